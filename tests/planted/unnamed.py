"""Programs that learn badly for a reason that the catalogue of faults does not have, each with its healthy twin

The fault is in exactly one part: the model, the data, the loss, the optimiser or the loop. `UNNAMED` has that part and the
maker of each program by its name; `make(fault=False)` makes the same without the fault.
"""
import copy
import zlib
from functools import partial, wraps

import torch
import torch.nn.functional as F
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, OptimWrapper
from torch import nn
from torch.optim import Optimizer

from .parts import (V, Batches, ElmanByHand, GRUByHand, Scores, Stateful, carried_step, learner, loss_over_all, seed,
                    stateless_step, stream_dls, stream_items, streams, train_ids, valid_ids, vocab, window_dls, windows)

UNNAMED = {}


def unnamed(part):
    "Enter a function that makes a program whose fault, in `part`, has no name in the catalogue"
    def enter(f):
        @wraps(f)
        def make(fault=True):
            seed()
            return f(fault)
        UNNAMED[f.__name__] = part,make
        return make
    return enter


def adam(model, lr=1e-2): return torch.optim.Adam(model.parameters(), lr=lr)


def update(model, opt, loss):
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.)
    opt.step()


class DirectionScores(Scores):
    "Scores from a direction for each character, without bias: products, or cosines"
    def __init__(self, cosine):
        super().__init__()
        self.cosine,self.out.bias = cosine,None
    def forward(self, x):
        h,w = self.rnn(self.emb(x))[0],self.out.weight
        return F.linear(F.normalize(h, dim=-1), F.normalize(w, dim=-1)) if self.cosine else F.linear(h, w)


@unnamed('model')
def cosine_head(fault=True):
    "The scores are cosines without a scale: all lie in [-1, 1], and no distribution can be sharp."
    model = DirectionScores(cosine=fault)
    return dict(model=model, dls=window_dls(), loss_func=CrossEntropyLossFlat(), opt=adam(model))


class SmoothScores(Scores):
    "The head sees the mean of the states so far, which is steadier than the last"
    def forward(self, x):
        h,_ = self.rnn(self.emb(x))
        return self.out(h.cumsum(1) / torch.arange(1, x.shape[1]+1)[:,None])


@unnamed('model')
def mean_of_states(fault=True):
    "The head sees the mean of all states so far in place of the last: what was just read is diluted."
    model = SmoothScores('rnn') if fault else Scores('rnn')
    return dict(model=model, dls=window_dls(), loss_func=CrossEntropyLossFlat(), opt=adam(model))


class SoftGRU(GRUByHand):
    "Gates that compete: a softmax over the units"
    def cell(self, e, h):
        z,r = (o.softmax(-1) for o in self.gates(torch.cat([e, h], -1)).chunk(2, -1))
        return (1-z)*h + z*torch.tanh(self.new(torch.cat([e, r*h], -1)))


@unnamed('model')
def softmax_gates(fault=True):
    "The gates of a GRU are a softmax over the units, not sigmoids: each is about 1/64 and little is ever written."
    opt = adam(model := SoftGRU() if fault else GRUByHand())
    return dict(step_function=carried_step(model, opt, clip=1.), model=model, batches=streams(), opt=opt)


class LookBack(nn.Module):
    "Embedding and a convolution that looks back over `k` characters"
    def __init__(self, n_emb=32, k=3, pad=0):
        super().__init__()
        self.k,self.emb = k,nn.Embedding(V, n_emb)
        self.conv = nn.Conv1d(n_emb, n_emb, k, padding=pad)
    def forward(self, x):
        e = F.pad(self.emb(x).transpose(1, 2), (self.k-1, 0))
        return self.conv(e)[:,:,:x.shape[1]].relu().transpose(1, 2)


@unnamed('model')
def padded_twice(fault=True):
    "The causal convolution is padded by hand and once more by the layer: the network sees each character 2 steps late."
    model = Stateful()
    model.emb = LookBack(pad=2 if fault else 0)
    return dict(learn=learner(stream_dls(), model, lr=1e-2))


class NoisyScores(Scores):
    "Noise on the embedded characters"
    def forward(self, x): return self.out(self.rnn((e := self.emb(x)) + 3*torch.randn_like(e))[0])


@unnamed('model')
def noise_on_embeddings(fault=True):
    "Noise three times as large as the embeddings is added to them, in training and after."
    opt = adam(model := NoisyScores() if fault else Scores())
    return dict(step_function=stateless_step(model, opt), model=model, batches=windows(), opt=opt)


@unnamed('model')
def renormed_embeddings(fault=True):
    "`max_norm` of the embedding is 0.1: the characters all lie close to the origin, whatever is learned."
    model = Scores('rnn')
    if fault: model.emb.max_norm = 0.1
    return dict(model=model, dls=window_dls(), loss_func=CrossEntropyLossFlat(), opt=adam(model))


def replaced(x, share):
    "Ids with a share of them drawn anew from the vocabulary"
    return torch.where(torch.rand(x.shape) < share, torch.randint_like(x, V), x)


@unnamed('data')
def corrupted_inputs(fault=True):
    "Half of the characters that the network reads were replaced at random, as for a denoiser; it cannot know which."
    batches = [(replaced(x, 0.5) if fault else x, y) for x,y in windows()]
    opt = adam(model := Scores())
    return dict(step_function=stateless_step(model, opt), model=model, batches=batches, opt=opt)


@unnamed('data')
def random_labels(fault=True):
    "Labels are 'augmented': 60 % of the targets are random characters."
    items = [(x, replaced(y, 0.6) if fault else y) for x,y in stream_items()]
    model = Stateful('lstm')
    dls = DataLoaders(*[DataLoader(o, bs=16, num_workers=0) for o in (items, stream_items(n=5, source=valid_ids))])
    return dict(model=model, dls=dls, loss_func=CrossEntropyLossFlat(), opt=adam(model))


@unnamed('data')
def hashed_inputs(fault=True):
    "Characters are hashed into 6 buckets for the network to read: some 16 of them share an id."
    bucket = torch.tensor([zlib.crc32(o.encode()) % 6 if fault else i for i,o in enumerate(vocab)])
    def _loader(**kwargs): return DataLoader([(bucket[x], y) for x,y in stream_items(**kwargs)], bs=16, num_workers=0)
    dls = DataLoaders(_loader(), _loader(n=5, source=valid_ids))
    return dict(learn=learner(dls, Scores(), lr=1e-2))


@unnamed('data')
def foreign_targets(fault=True):
    "For half of the rows of a batch the targets are those of other rows."
    def _mixed(y): return torch.cat([y[:8], y[8:].roll(1, 0)]) if fault else y
    model = Scores('rnn')
    dls = DataLoaders(Batches([(x, _mixed(y)) for x,y in windows()]), Batches(windows(n=5, source=valid_ids)))
    return dict(model=model, dls=dls, loss_func=loss_over_all, opt=adam(model))


@unnamed('data')
def moved_alphabet(fault=True):
    "An 'augmentation' moves the ids of each row by a random number, in inputs and targets alike."
    def _moved(x, y):
        by = torch.randint(V, (len(x), 1)) if fault else 0
        return (x+by) % V,(y+by) % V
    opt = adam(model := GRUByHand())
    return dict(step_function=stateless_step(model, opt), model=model, batches=[_moved(*o) for o in windows()], opt=opt)


@unnamed('loss')
def focal_turned_round(fault=True, gamma=2):
    "The focal loss weighs by p in place of 1-p: characters that the network finds hard do not count."
    def focal(scores, y):
        ce = F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction='none')
        pt = (-ce).exp()
        return (pt**gamma*ce if fault else ce).mean()
    model = Scores()
    return dict(model=model, dls=window_dls(), loss_func=focal, opt=adam(model))


@unnamed('loss')
def balanced_classes(fault=True):
    "The characters are weighed by the inverse of how frequent they are, so that all 'matter alike'."
    weight = 1/torch.bincount(train_ids, minlength=V).clamp(min=1).float()
    loss_func = CrossEntropyLossFlat(weight=weight) if fault else CrossEntropyLossFlat()
    return dict(learn=learner(window_dls(), Scores(), lr=1e-2, loss_func=loss_func))


@unnamed('loss')
def mean_perplexity(fault=True):
    "Minimises the mean perplexity of the characters, exp(loss) of each: the rarest rule the gradient."
    def loss_func(scores, y):
        ce = F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction='none')
        return ce.exp().mean() if fault else ce.mean()
    opt = adam(model := ElmanByHand())
    return dict(step_function=carried_step(model, opt, loss_func, clip=1.), model=model, batches=streams(), opt=opt)


@unnamed('loss')
def missing_mass(fault=True):
    "The loss is 1-p, said to be robust: where p is small there is no gradient."
    def loss_func(scores, y):
        p = scores.softmax(-1).gather(-1, y[...,None])
        return (1-p).mean() if fault else -p.log().mean()
    model = Scores()
    return dict(model=model, dls=window_dls(), loss_func=loss_func, opt=adam(model))


class OwnOptimizer(Optimizer):
    "An optimiser with a rule for one parameter, `change(p, g, state, group)`, which gives what is added to it"
    def __init__(self, params, lr, **kwargs): super().__init__(params, dict(lr=lr, **kwargs))
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is not None: p.add_(self.change(p, p.grad, self.state[p], group))


class CoarseSGD(OwnOptimizer):
    "Momentum over gradients that are rounded to steps of `unit`, as if they were sent over a slow line"
    def change(self, p, g, state, group):
        if group['unit']: g = (g/group['unit']).round()*group['unit']
        m = state['m'] = 0.9*state['m'] + g if state else g.clone()
        return -group['lr']*m


@unnamed('optimiser')
def rounded_gradients(fault=True):
    "Gradients are rounded to multiples of 1/32: nearly all of them become nothing."
    model = Scores('rnn')
    opt = CoarseSGD(model.parameters(), lr=0.2, unit=1/32 if fault else 0)
    return dict(step_function=stateless_step(model, opt, clip=1.), model=model, batches=windows(), opt=opt)


class OwnRprop(OwnOptimizer):
    "Rprop: steps grow where the gradient keeps its sign and shrink where it turns"
    def change(self, p, g, state, group):
        if not state: state.update(last=torch.zeros_like(p), size=torch.full_like(p, group['lr']))
        turned = g*state['last']
        times = torch.where(turned < 0, group['down'], torch.where(turned > 0, group['up'], 1.))
        state['size'].mul_(times).clamp_(1e-8, group['most'])
        state['last'] = g.clone()
        return -g.sign()*state['size']


@unnamed('optimiser')
def shrinking_steps(fault=True):
    "Rprop over minibatches: signs turn with the batch, and each turn halves a step, which hardly grows again."
    model = Scores()
    down,up = (0.5, 1.05) if fault else (1., 1.)
    opt = OwnRprop(model.parameters(), lr=5e-3, most=1e-2, down=down, up=up)
    return dict(model=model, dls=window_dls(), loss_func=CrossEntropyLossFlat(), opt=opt)


class OnSphere(torch.optim.Adam):
    "Adam after which each row of a matrix, and each vector, has the norm again that it began with"
    @torch.no_grad()
    def step(self, closure=None):
        norms = {p: p.norm(dim=-1, keepdim=True) for g in self.param_groups for p in g['params']}
        super().step()
        for p,norm in norms.items(): p.mul_(norm/p.norm(dim=-1, keepdim=True))


@unnamed('optimiser')
def kept_norms(fault=True):
    "The optimiser sets each row back to the norm of its start, in the head and the biases too: scores stay small."
    opt_func = partial(OptimWrapper, opt=OnSphere if fault else torch.optim.Adam)
    return dict(learn=learner(window_dls(), Scores(), lr=1e-2, opt_func=opt_func))


class Centred(torch.optim.Adam):
    "Adam with centralised gradients: those of a matrix without their mean over the inputs"
    def __init__(self, params, lr, keep='rest'):
        super().__init__(params, lr=lr)
        self.keep = keep
    @torch.no_grad()
    def step(self, closure=None):
        for p in (p for g in self.param_groups for p in g['params'] if p.ndim > 1):
            mean = p.grad.mean(-1, keepdim=True)
            p.grad.copy_(mean.expand_as(p) if self.keep == 'mean' else p.grad-mean)
        super().step()


@unnamed('optimiser')
def only_the_mean(fault=True):
    "Centralised gradients the wrong way round: their mean over the inputs is kept, the rest thrown away."
    model = ElmanByHand()
    opt = Centred(model.parameters(), lr=1e-2, keep='mean' if fault else 'rest')
    return dict(step_function=carried_step(model, opt, clip=1.), model=model, batches=streams(), opt=opt)


class TopSGD(OwnOptimizer):
    "Momentum over the largest entries of the gradient, as many as a slow line carries"
    def change(self, p, g, state, group):
        n = max(1, int(group['share']*g.numel()))
        if n < g.numel(): g = torch.where(g.abs() >= g.abs().flatten().topk(n).values[-1], g, 0.)
        m = state['m'] = 0.9*state['m'] + g if state else g.clone()
        return -group['lr']*m


@unnamed('optimiser')
def only_the_largest(fault=True):
    "Of each gradient a thousandth of the entries is applied, and the rest is not kept for later."
    model = Scores('rnn')
    opt = TopSGD(model.parameters(), lr=0.2, share=0.001 if fault else 1.)
    return dict(step_function=stateless_step(model, opt, clip=1.), model=model, batches=windows(), opt=opt)


class ClipWeights(Callback):
    "Keeps the weights small after each step"
    def __init__(self, limit): self.limit = limit
    def after_step(self):
        for p in self.model.parameters(): p.data.clamp_(-self.limit, self.limit)


@unnamed('loop')
def clipped_weights(fault=True):
    "A callback cuts the weights to 0.05 after each step, where gradients were meant."
    return dict(learn=learner(stream_dls(), Stateful('lstm'), lr=1e-2, cbs=[ClipWeights(0.05)] if fault else []))


@unnamed('loop')
def noise_on_weights(fault=True):
    "After each step noise is added to the weights, much larger than the step."
    model = ElmanByHand()
    opt,kept = adam(model),dict(h=None)
    def step(x, y):
        scores,h = model(x, kept['h'])
        kept['h'] = h.detach()
        loss = loss_over_all(scores, y)
        update(model, opt, loss)
        for p in model.parameters(): p.data.add_(torch.randn_like(p), alpha=0.05*fault)
        return loss
    return dict(step_function=step, model=model, batches=streams(), opt=opt)


@unnamed('loop')
def reads_itself(fault=True, share=0.7):
    "From the first step on 70 % of what the network reads it sampled itself, while the targets are of the text."
    opt = adam(model := GRUByHand())
    def step(x, y):
        char,h,out = x[:,:1],None,[]
        for t in range(x.shape[1]):
            scores,h = model(char, h)
            out.append(scores)
            nxt = torch.multinomial(scores[:,-1].detach().softmax(-1), 1)
            char = torch.where(torch.rand(len(x), 1) < share, nxt, y[:,t:t+1]) if fault else y[:,t:t+1]
        loss = loss_over_all(torch.cat(out, 1), y)
        update(model, opt, loss)
        return loss
    return dict(step_function=step, model=model, batches=windows(), opt=opt)


@unnamed('loop')
def back_to_the_best(fault=True):
    "Whenever the loss of a batch is not the lowest so far, the weights of the lowest are put back."
    opt = adam(model := Scores('rnn'))
    best = dict(loss=float('inf'), weights=None)
    def step(x, y):
        loss = loss_over_all(model(x), y)
        if fault:
            if loss.item() < best['loss']: best.update(loss=loss.item(), weights=copy.deepcopy(model.state_dict()))
            else: model.load_state_dict(best['weights'])
            loss = loss_over_all(model(x), y)
        update(model, opt, loss)
        return loss
    return dict(step_function=step, model=model, batches=windows(), opt=opt)
