"""What other tools say of a program: torchtest2 0.1.0, neural-net-checklist 1.1.0, torch-audit 0.3.0

`rivals` has a function for each. It takes a program (a dictionary, see `tests/planted`) and seconds, and gives a list
of `Said`. They take less than the doctor does, so each gets a program in the form that shows it most:

- torchtest2: model, first batch, loss and optimiser. Of a training step that is a function it gets what the model gives
  in it, and what gradients are computed of first.
- neural-net-checklist: a network and batches, ids in rows, scores on the last axis; the loss and the optimiser are its
  own. Each of its checks runs, whatever the others say.
- torch-audit: watches the first twenty training steps, or the whole run of a program with `watch`.

`names` is the table of what a report names in the catalogue. It is generous: a report may name many entries,
though it does not say which one it is. `quoted` are errors of PyTorch's that a report may repeat.
"""
import contextlib
import copy
import inspect
import itertools
import time
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from charrnn_fa.doctor.snapshot import Snapshot as Noted

N_STEPS = 20


@dataclass
class Said:
    "A report of a rival's"
    check: str # Its name for what it looked at
    level: str # Its word for how serious that is
    words: str


class NotApplicable(Exception): "A rival cannot look at this program; the message says why"

class OutOfTime(Exception): "A check was not done in time"

class _AtBackward(BaseException): "A training step has come to its backward pass"


def first(out): return out[0] if isinstance(out, (tuple, list)) else out

def plain(o): return o.as_subclass(torch.Tensor) if isinstance(o, torch.Tensor) else o

def as_args(x): return x if isinstance(x, tuple) else (x,)


class Look:
    "The parts of a program"
    def __init__(self, given):
        learn = self.learn = given.get('learn')
        self.step,self.model = given.get('step_function'),learn.model if learn else given['model']
        loader = learn.dls if learn else given.get('dls') if given.get('batches') is None else given['batches']
        self.batches = list(itertools.islice(getattr(loader, 'train', loader) or (), N_STEPS))
        if not self.batches: raise NotApplicable('it has no batches')
        self.x,self.y = split(self.batches[0])
        self.loss_func = learn.loss_func if learn else given.get('loss_func')
        self.opt = self._optimiser(given)

    def _optimiser(self, given):
        if self.learn: return of_learner(self.learn)
        if given.get('opt') is not None: return AsTorch.of(given['opt'])
        if self.step: return used_by(self.step)
        return torch.optim.SGD(self.model.parameters(), lr=1e-3)

    def whole(self, x, y):
        "A batch in the form of the program's own"
        like,parts = self.batches[0],[*as_args(x)] + [y]*(y is not None)
        if isinstance(like, dict): return dict(zip(like, parts))
        if isinstance(like, torch.Tensor): return parts[0]
        return type(like)(*parts) if hasattr(like, '_fields') else type(like)(parts)

    @property
    def batch_dim(self):
        "The axis of the rows: 1 if the next character is in the next row, none if there is but one"
        x,y = first(self.x),self.y
        if y is None or x.shape[:y.ndim] != y.shape: return 0
        x = x.argmax(-1) if x.ndim > y.ndim else x
        if not torch.equal(x[1:], y[:-1]): return 0
        return None if y.ndim == 1 else int(not torch.equal(x[:,1:], y[:,:-1]))

    def forward(self, model, x, y):
        "Scores; of a step that is a function, scores and loss as a dictionary"
        return self.until_backward(model, x, y) if self.step else first(model(*as_args(x)))

    def eval_forward(self, model, x):
        "The same in evaluation; no state is left behind"
        with no_state_left(self.step, model), in_evaluation(model): return self.forward(model, x, self.y)

    def until_backward(self, model, x, y):
        "What a step gives up to its first backward pass, with `model` in place of the program's own"
        noted = Noted(self.step)
        with swapped(self.model, model), Scores(self.model) as seen:
            loss = loss_of(lambda: call(self.step, self.model, self.opt, self.whole(x, y)))
        if loss is None: noted.restore() # what would have been for a later step
        return {k:v for k,v in dict(scores=seen.scores, loss=loss).items() if v is not None}


def split(batch):
    "Inputs and targets; no targets where a step takes them from the inputs"
    if isinstance(batch, torch.Tensor): return plain(batch),None
    *x,y = map(plain, batch.values() if isinstance(batch, dict) else batch)
    if not x: return y,None
    return x[0] if len(x) == 1 else tuple(x),y


def of_learner(learn):
    if not learn.opt: learn.create_opt()
    learn.opt.set_hyper('lr', learn.lr)
    return AsTorch.of(learn.opt)


class AsTorch:
    "An optimiser of fastai's as one of PyTorch's"
    def __init__(self, opt): self.opt = opt
    @staticmethod
    def of(opt):
        if isinstance(opt, torch.optim.Optimizer): return opt
        return opt.opt if isinstance(getattr(opt, 'opt', None), torch.optim.Optimizer) else AsTorch(opt)
    @property
    def param_groups(self):
        groups = zip(self.opt.param_lists, self.opt.hypers)
        return [dict(params=list(ps), weight_decay=o.get('wd') or 0., **o) for ps,o in groups]
    def zero_grad(self, set_to_none=True): self.opt.zero_grad()
    def step(self, closure=None): self.opt.step()
    def state_dict(self): return self.opt.state_dict()
    def load_state_dict(self, sd): self.opt.load_state_dict(sd)


def uses(f):
    "Objects that a function uses"
    for o in f.__closure__ or ():
        with contextlib.suppress(ValueError): yield o.cell_contents # empty
    yield from (f.__globals__[k] for k in f.__code__.co_names if k in f.__globals__)

def optimisers_of(o, depth=3):
    "In a function, and in what it uses"
    if isinstance(o, torch.optim.Optimizer): yield o
    elif depth and inspect.isfunction(o):
        for p in uses(o): yield from optimisers_of(p, depth-1)
    elif isinstance(o, (tuple, list)) and len(o) < 10:
        for p in o: yield from optimisers_of(p, depth)

def used_by(step):
    "The optimiser of a step, or all of them as one"
    opts = list({id(o):o for o in optimisers_of(step)}.values())
    return Several(opts) if len(opts) > 1 else opts[0] if opts else None


class Several:
    "Optimisers as one"
    def __init__(self, opts): self.opts = opts
    @property
    def param_groups(self): return [g for o in self.opts for g in o.param_groups]
    def zero_grad(self, set_to_none=True):
        for o in self.opts: o.zero_grad(set_to_none)
    def step(self, closure=None):
        for o in self.opts: o.step()
    def state_dict(self): return [o.state_dict() for o in self.opts]
    def load_state_dict(self, sds):
        for o,sd in zip(self.opts, sds): o.load_state_dict(sd)


_meant = {k:v for v,names in dict(model='model net network rnn m', opt='opt optimizer optimiser optim',
                                  i='i it iteration epoch n').items() for k in names.split()}

def call(step, model, opt, batch, i=0):
    "Make a step: a function of a batch, or of x and y, perhaps of model, optimiser and number beside"
    kinds = inspect.Parameter.POSITIONAL_ONLY,inspect.Parameter.POSITIONAL_OR_KEYWORD
    wanted = [p.name for p in inspect.signature(step).parameters.values() if p.kind in kinds and p.default is p.empty]
    if not wanted: return step()
    parts = list(batch.values()) if isinstance(batch, dict) else batch
    meant = [_meant.get(o.lower()) for o in wanted]
    if len(wanted) <= len(parts) and not {'model', 'opt'} & {*meant}: meant = [None]*len(wanted)
    n = meant.count(None)
    data = iter([batch] if n == 1 else parts if n == len(parts) else [parts[0], parts[-1]])
    known = dict(model=model, opt=opt, i=i)
    step(*[known[o] if o else next(data) for o in meant])


@contextlib.contextmanager
def swapped(a, b):
    "A `with` in which `a` is `b`, and the other way round"
    def swap():
        x,y = vars(a),vars(b)
        for o,d in (a, y), (b, x): object.__setattr__(o, '__dict__', d)
    if a is b: return (yield)
    swap()
    try: yield
    finally: swap()


@contextlib.contextmanager
def no_state_left(*objects):
    "A `with` after which a program's own state is as before"
    noted = Noted(*objects)
    try: yield
    finally: noted.restore()


@contextlib.contextmanager
def in_evaluation(model):
    "A `with` in which a model stays in evaluation mode, whatever a step asks for"
    vars(model)['train'] = lambda mode=True: model
    try: yield
    finally: del vars(model)['train']


class Scores(TorchFunctionMode):
    "A `with` that notes what a model gives, or what the loss is given if the model is only called in parts"
    def __init__(self, model):
        super().__init__()
        self.model,self.outs,self.ins = model,[],[]
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.cross_entropy, F.nll_loss) and args: self.ins.append(args[0])
        return func(*args, **(kwargs or {}))
    def __enter__(self):
        self.hook = self.model.register_forward_hook(lambda model,args,out: self.outs.append(first(out)))
        return super().__enter__()
    def __exit__(self, *args):
        self.hook.remove()
        return super().__exit__(*args)
    @property
    def scores(self):
        o = self.outs or self.ins
        if len(o) < 2 or len({p.shape for p in o}) > 1: return o[0] if o else None
        return torch.stack(o, 1) if o[0].ndim == 2 else torch.cat(o, 1)


def loss_of(f):
    "What `f` first computes gradients of, which then are not computed"
    def caught(loss, *args, **kwargs): raise _AtBackward(loss)
    with contextlib.ExitStack() as stack:
        for o,k in (torch.Tensor, 'backward'), (torch.autograd, 'backward'), (torch.autograd, 'grad'):
            stack.enter_context(mock.patch.object(o, k, caught))
        stack.enter_context(mock.patch.object(torch.amp.GradScaler, 'scale', lambda self,loss: loss))
        try: f()
        except _AtBackward as e: return first(e.args[0])


def torchtest2(given, seconds=60):
    from torchtest2 import check_model
    look = Look(given)
    report = check_model(look.model, look.x, look.y, loss_fn=look.loss_func, optimizer=look.opt,
                         batch_dim=look.batch_dim, forward_fn=look.forward, eval_forward_fn=look.eval_forward)
    return [Said(o.name, o.status.value, o.message) for o in report if o.status.value in ('FAIL', 'WARN')]


def tensors(o):
    "In an attribute"
    if isinstance(o, torch.Tensor): yield o
    elif isinstance(o, (list, tuple)):
        for p in o: yield from tensors(p)

def copied(model):
    "A copy, even of a model that keeps tensors with their graph"
    kept = [t for m in model.modules() for o in vars(m).values() for t in tensors(o) if not t.is_leaf]
    return copy.deepcopy(model, {id(t):t.detach().clone() for t in kept})


class Network(nn.Module):
    "A copy of a program's network: ids in rows, or one-hot vectors, to scores, (rows, steps, symbols)"
    def __init__(self, look):
        super().__init__()
        self.net = copied(look.model)
        object.__setattr__(self, 'look', look)

    def forward(self, x):
        look,flip = self.look,self.look.batch_dim == 1
        x_,y = x.transpose(0, 1) if flip else x,None
        if look.y is None: x_ = torch.cat([x, x[:,-1:]], 1) # the step wants a character more
        else: y = look.y.new_zeros(x_.shape[:2] if look.y.ndim > 1 else len(x))
        with no_state_left(look.step, self.net): out = look.forward(self.net, x_, y)
        return in_rows(out['scores'] if look.step else out, x, flip, look.y is None or look.y.ndim > 1)


def in_rows(scores, x, flip, each):
    "Scores with rows first and symbols last, if there are some for each step"
    bs,sl = x.shape[:2]
    if not each: return scores
    if scores.ndim == 2 and len(scores) == bs*sl: scores = scores.view(*((sl, bs) if flip else (bs, sl)), -1)
    if scores.ndim == 3 and flip: scores = scores.transpose(0, 1)
    is_turned = scores.ndim == 3 and scores.shape[:2] != (bs, sl) and (scores.shape[0], scores.shape[2]) == (bs, sl)
    return scores.transpose(1, 2) if is_turned else scores


class Rows:
    "As many rows as are asked for, from all batches"
    def __init__(self, look):
        pairs = [split(b) for b in look.batches]
        if look.y is None: pairs = [(x[:,:-1], x[:,1:]) for x,_ in pairs]
        if isinstance(look.x, tuple): raise NotApplicable('its batches have more than inputs and targets')
        if look.batch_dim is None: raise NotApplicable('its batches have no rows')
        if look.batch_dim == 1: pairs = [(x.transpose(0, 1), y.t()) for x,y in pairs]
        self.bs = len(pairs[0][0])
        self.x,self.y = (torch.cat([o[i] for o in pairs if o[0].shape[1] == pairs[0][0].shape[1]]) for i in (0, 1))
        if self.y.ndim > 2: self.y = self.y.argmax(-1)
        if self.y.is_floating_point(): raise NotApplicable('its targets are no ids')
    def __call__(self, n=None):
        at = torch.arange(n or self.bs) % len(self.x)
        return self.x[at],self.y[at]


def with_gradient(make, rows, n_symbols):
    "The same networks and rows, with one-hot vectors for ids, of which gradients can be had"
    if rows.x.is_floating_point(): return make,rows
    name,emb = next(((k,o) for k,o in make().named_modules() if isinstance(o, nn.Embedding)), (None, None))
    if emb is None: return None
    from neural_net_checklist.torch_diagnostics import replace_input_embedding_layer
    n = emb.num_embeddings
    return replace_input_embedding_layer(make, name),lambda k=None: (F.one_hot(rows(k)[0], n).float(), rows(k)[1])


def checklist(make, rows, n_symbols, until):
    "The checks of neural-net-checklist that can be made, as pairs of name and function"
    from neural_net_checklist import torch_diagnostics as td
    def loss(scores, y): return F.cross_entropy(scores.reshape(-1, n_symbols), y.reshape(-1))
    def train(*args, **kwargs):
        for o in td.train_batch(*args, **kwargs):
            if time.perf_counter() > until: raise OutOfTime
            yield o
    each = rows.y.ndim > 1
    soft = with_gradient(make, rows, n_symbols)
    yield 'loss_at_init',lambda: td.assert_balanced_classification_cross_entropy_loss_at_init(
        make(), rows, num_classes=n_symbols, loss_fn=loss)
    yield 'init_calibrated',lambda: td.assert_balanced_classification_cross_entropy_init_calibrated(
        make(), rows, num_classes=n_symbols)
    yield 'forward_batch_independence',lambda: td.assert_forward_batch_independence(make, rows)
    if each: yield 'forward_causal',lambda: td.assert_forward_causal_property(make, rows)
    yield 'non_zero_gradients',lambda: td.assert_non_zero_gradients(make(), rows)
    if soft: yield 'backward_batch_independence',lambda: td.assert_backward_batch_independence(*soft)
    if soft and each: yield 'backward_causal',lambda: td.assert_backward_causal_property(*soft)
    yield 'input_independent_baseline',lambda: td.assert_input_independent_baseline_worse(
        make, rows, loss_fn=loss, train_batch_fn=train)
    yield 'overfit_to_batch',lambda: td.assert_overfit_to_batch(
        make(), rows, loss_fn=loss, threshold=.1 if each else 1e-4, train_batch_fn=train)


def neural_net_checklist(given, seconds=60):
    until = time.perf_counter()+seconds
    look = Look(given)
    rows = Rows(look)
    with torch.no_grad(): out = Network(look).eval()(rows()[0])
    if out.shape[:-1] != rows()[1].shape: raise NotApplicable(f'its scores are {tuple(out.shape)}')
    said,errors,done = [],[],0
    for name,check in checklist(lambda: Network(look), rows, out.shape[-1], until):
        try: check()
        except AssertionError as e: said.append(Said(name, 'assertion', str(e)))
        except Exception as e:
            errors.append(f'{name}: {type(e).__name__}: {e}')
            continue
        done += 1
    if not done: raise NotApplicable(f'all of its checks end in errors, such as: {errors[0]}')
    return said


def audited(given, auditor):
    "Let torch-audit watch a program's training"
    if given.get('learn'): return audited_learner(given['learn'], auditor, given.get('watch'))
    if given.get('step_function') and given.get('batches') is None and given.get('dls') is None: # it draws its own
        auditor.optimizer = given.get('opt') or used_by(given['step_function'])
        auditor.autopatch()
        for _ in range(N_STEPS): given['step_function']()
        return
    look = Look(given)
    auditor.optimizer = look.opt
    auditor.autopatch()
    look.model.train()
    for i,b in zip(range(N_STEPS), itertools.cycle(look.batches)):
        if look.step: call(look.step, look.model, look.opt, b, i)
        else:
            x,y = split(b)
            look.loss_func(look.forward(look.model, x, y), y).backward()
            look.opt.step()
            look.opt.zero_grad()


def audited_learner(learn, auditor, watch):
    from fastai.callback.core import Callback, CancelFitException
    class Audited(Callback):
        order,run_valid,n = 100,False,0
        def before_fit(self):
            auditor.optimizer = AsTorch.of(learn.opt)
            auditor.audit_static()
            auditor.audit_init()
            auditor.optimizer = learn.opt
            auditor.autopatch(run_static=False, run_init=False)
        def after_batch(self):
            self.n += 1
            if self.n >= N_STEPS and not watch: raise CancelFitException
    with learn.no_bar(), learn.no_logging():
        if watch: watch(learn, [Audited()])
        else: learn.fit(1, cbs=Audited())


def torch_audit(given, seconds=60):
    from torch_audit.runtime import Auditor
    auditor = Auditor(given['learn'].model if given.get('learn') else given['model'], every_n_steps=1)
    with contextlib.suppress(Exception): audited(given, auditor) # an error of the program is not the rival's
    once = {}
    for o in auditor.finish().findings: once.setdefault((o.rule_id, o.module_path, o.entity), o)
    return [Said(o.rule_id, o.severity.value, f'{o.module_path or ""} {o.message}'.strip()) for o in once.values()]


rivals = {'torchtest2':torchtest2, 'neural-net-checklist':neural_net_checklist, 'torch-audit':torch_audit}
versions = {'torchtest2':'0.1.0', 'neural-net-checklist':'1.1.0', 'torch-audit':'0.3.0'}

# Check -> entries of the catalogue that its report rightly names
names = {
    'torchtest2': dict(
        forward='S2 S6 S7 S8 D11 D12', output_finite='O4 O12 I1', output_varies='Z1 I2', eval_determinism='G2 T1',
        loss='L7 L2 L4 O4 O12 S1 S8 D12', initial_loss='I1 L1 L2 L3 L4 D1 S10', optimizer_coverage='O7 O8',
        gradient_flow='R9 R1 R5 R11 L7 O8 I2 I4', gradient_magnitude='O3 O4 O12 L3 I1 I5', frozen_params='O8',
        params_change='O2 O7 O8 O9 O10 L7 R9 I4', input_dependency='Z1 R5 S2', batch_independence='S3 S4 S5 S9 R4',
        overfit_batch='O1 O2 O3 O4 O10 O12 O13 S3 Z1 I6 I7 T5'),
    'neural-net-checklist': dict(
        loss_at_init='I1', init_calibrated='I1', forward_batch_independence='S3 S4 S5 R4 G2', forward_causal='S10',
        non_zero_gradients='R9 R1 R5 O8 I2 I4 L7', backward_batch_independence='S3 S4 S5 R4 Z1',
        backward_causal='S10 Z1', input_independent_baseline='Z1 R5 S2', overfit_to_batch='I6 I7 Z1 T5'),
    'torch-audit': dict(
        TA100='O4 O12', TA102='O3 L3 I1 I5', TA103='I2 I4 R9 R5 L7', TA104='L7 O8 O9', TA105='I4', TA202='T6',
        TA300='T6', TA301='S2', TA305='D12', TA401='O13', TA402='O13', TA403='O13', TA500='R9'),
}

# Errors of PyTorch's that a report may repeat -> entries
quoted = {
    'backward through the graph a second time':'R2 R3', 'Expected target size':'S1', 'Expected hidden':'S6 R4',
    "'tuple' object":'S7', 'must be a tuple':'S7', 'index out of range':'D12', 'is out of bounds':'D12 S8',
    'cannot be multiplied':'S2 S8 D11', 'to match target batch_size':'S1 S8', 'same dtype':'S2 D12',
    'Expected tensor for argument #1':'S2 D12',
}


def named(rival, said):
    "Entries of the catalogue that a report names"
    more = [v for k,v in quoted.items() if said.level == 'FAIL' and k in said.words]
    return set(' '.join([names[rival].get(said.check, ''), *more]).split())
