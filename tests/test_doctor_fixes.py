"""Fixes that were tried by the doctor, and fixes that it shows, put into the program by the test: what they bring"""
import importlib.util
import textwrap
import time

import pytest
import torch
import torch.nn.functional as F
from planted.parts import V, Net, Scores, loss_over_all, stateless_step, streams, train, windows
from torch import nn

from charrnn_fa.doctor import diagnose
from charrnn_fa.doctor.evidence import Evidence
from charrnn_fa.doctor.fixes import try_fix
from charrnn_fa.doctor.forms import as_batch, parts_subject, step_subject
from charrnn_fa.doctor.registry import checks, examine

RANDOM,CONTIGUOUS = windows(8, 16, 12),streams(8, 16, 12)
SMALL = dict(n_hid=24, n_emb=16)
Adam,SGD = torch.optim.Adam,torch.optim.SGD


def few(ids, *quick):
    "All of them, but only some in `make test`"
    return [pytest.param(o, marks=[] if o in quick else pytest.mark.hunt) for o in ids]


@pytest.fixture(autouse=True)
def same_seed(): torch.manual_seed(0)


def parts(model=None, batches=RANDOM, loss=loss_over_all, opt=Adam, lr=1e-2):
    model = model or Scores(**SMALL)
    return dict(model=model, dls=batches, loss_func=loss, opt=opt(model.parameters(), lr=lr))


def stepped(make, model=None, opt=Adam, lr=1e-2, batches=RANDOM, **kwargs):
    model = model or Scores(**SMALL)
    opt = opt(model.parameters(), lr=lr, **kwargs)
    return dict(step_function=make(model, opt), model=model, batches=batches, opt=opt)


# Tried by the doctor

class Softmaxed(Scores):
    def forward(self, x): return super().forward(x).softmax(-1)


class Detaches(Net):
    "By hand, and detached at each time step"
    def forward(self, x):
        h,res = torch.zeros(1, len(x), 24),[]
        for e in self.emb(x).unbind(1):
            out,h = self.rnn(e[:,None], h.detach())
            res.append(self.out(out[:,0]))
        return torch.stack(res, 1)


def never_zero(model, opt):
    def step(x, y):
        loss_over_all(model(x), y).backward()
        opt.step()
    return step


def exploding(model, opt):
    "A loss of which some batches count a thousand times"
    n = [0]
    def step(x, y):
        n[0] += 1
        opt.zero_grad()
        (loss_over_all(model(x), y)*(1000 if n[0] % 4 == 0 else 1)).backward()
        opt.step()
    return step


def head_alone():
    kwargs = parts()
    kwargs['opt'] = Adam([*kwargs['model'].emb.parameters(), *kwargs['model'].rnn.parameters()], lr=1e-2)
    return kwargs


def large_weights():
    model = Scores(**SMALL)
    with torch.no_grad(): model.out.weight.normal_(0, 9)
    return parts(model)


def periodic(n=12, period=3):
    "Sequences that repeat what stood some steps before: without gradients through time there is little to learn"
    first = torch.randint(4, (n, 16, period), generator=torch.Generator().manual_seed(0)).repeat(1, 1, 8)
    return [(o[:,:-1], o[:,1:]) for o in first]


TRIED = {
    'D1': lambda: parts(batches=[(x, x) for x,_ in RANDOM]), 'D2': lambda: parts(batches=[(x[:,:-1], y[:,1:]) for x,y in RANDOM]),
    'L1': lambda: parts(Softmaxed(**SMALL)), 'R1': lambda: parts(Detaches(**SMALL), periodic(), lr=3e-2), 'O1': lambda: parts(lr=3.),
    'O2': lambda: parts(lr=1e-5), 'O3': lambda: stepped(exploding, opt=SGD, lr=.3), 'O6': lambda: stepped(never_zero, opt=SGD, lr=1.),
    'O7': head_alone, 'I1': large_weights, 'O14': lambda: stepped(lambda m, o: stateless_step(m, o, clip=1e-3), opt=SGD, lr=1.),
    'S3': lambda: parts(loss=lambda p, y: F.cross_entropy(p.transpose(0, 1).reshape(-1, V), y.reshape(-1))),
    'O13': lambda: stepped(stateless_step, opt=torch.optim.AdamW, weight_decay=20.),
    'I7': lambda: parts(Dropped(.9)),
}


class Dropped(Scores):
    def __init__(self, p):
        super().__init__(**SMALL)
        self.drop = nn.Dropout(p)
    def forward(self, x): return self.out(self.drop(self.rnn(self.emb(x))[0]))


def evidence_of(kwargs):
    batches,until = [*map(as_batch, kwargs.get('dls') or kwargs['batches'])],time.perf_counter()+600
    if 'dls' in kwargs: s = parts_subject(kwargs['model'], batches[:4], kwargs['loss_func'], kwargs['opt'])
    else: s = step_subject(kwargs['step_function'], kwargs['model'], kwargs['opt'], batches[:4])
    s.until,s.more,s.loader,s.dls = until,batches,batches,None
    e = Evidence(s, until)
    e.sample,e.corpus,e.with_trials = None,None,True
    return e


@pytest.mark.parametrize('id', few(TRIED, 'D1', 'L1', 'O6', 'O14'))
def test_a_fix_that_was_tried_has_its_figures(id):
    "With the checks of this id alone, since all of them take their time"
    e = evidence_of(TRIED[id]())
    found,*_ = examine(e, [c for c in checks if c.id == id], e.until)
    assert [o.id for o in found] == [id]
    try_fix(e, found[0])
    tried = found[0].evidence['tried']
    assert tried['steps'] >= 15 and tried['after'] < tried['before']-.1 and found[0].certainty != 'weak', tried


def test_what_was_tried_stands_in_the_report():
    report = diagnose(**TRIED['O6'](), seconds=600)
    found = report.findings[0]
    tried = found.evidence['tried']
    assert found.id == 'O6' and tried['after'] < tried['before']
    for said in str(found),found._repr_html_(): assert f"{tried['after']:.2f}" in said and f"{tried['steps']} steps" in said
    assert found.as_dict()['evidence']['tried'] == tried and '_curves' not in found.as_dict()['evidence']


# Shown by the doctor, and put into the program by the test

HEAD = """
import torch
import torch.nn.functional as F
from torch import nn
from planted.parts import V, streams, train_ids, windows
bs,seq_len,n_in,n_hid,clip = 8,16,16,24,1.
text = train_ids[:2048]
n_layers,n_symbols = 1,V
"""
BODY = """
lr = 1e-2
weight_decay = 0.
dropout = 0.
DATA

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.drop,self.out = nn.Embedding(V, n_in),nn.Dropout(dropout),nn.Linear(n_hid, V)
        RNN
        self.rnn = rnn
        layers = [nn.Linear(n_hid, n_hid)]
        LAYERS
    def forward(self, x, state=None):
        e = self.emb(x)
        INPUT
        h,state = self.rnn(e, state)
        h = h + self.layers[0](self.drop(h)).tanh()
        scores = self.out(h)
        RETURN

    @property
    def returns(self): return True

model = Net()
WEIGHTS
OPT
state = None

def step(x, y):
    global state
    MODE
    scores = model(x, state)
    if isinstance(scores, tuple): scores,state = scores
    STATE
    SCORES
    LOSS
    UPDATE
    return loss
"""
USUAL = dict(
    DATA='batches = windows(8, 16, 12)', RNN='rnn = nn.GRU(n_in, n_hid, batch_first=True)', LAYERS='self.layers = nn.ModuleList(layers)',
    INPUT='pass', RETURN='return scores', WEIGHTS='', OPT='opt = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)',
    MODE='pass', STATE='pass', SCORES='pass', LOSS='loss = F.cross_entropy(scores.flatten(0, 1), y.flatten())',
    UPDATE='opt.zero_grad()\nloss.backward()\nopt.step()')


def made(tmp_path, name, sets='', **lines):
    "A program with some lines in place of the usual ones, as a module"
    source = BODY
    for k,v in {**USUAL, **lines}.items():
        line = next(o for o in source.splitlines() if o.strip() == k)
        source = source.replace(line, textwrap.indent(v, line[:len(line)-len(k)]), 1)
    for o in sets.splitlines():
        old = next((p for p in source.splitlines() if p.split(' = ')[0] == o.split(' = ')[0]), None)
        source = source.replace(old, o, 1) if old else source
    (tmp_path/f'{name}.py').write_text(HEAD+source)
    spec = importlib.util.spec_from_file_location(name, tmp_path/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    torch.manual_seed(0)
    spec.loader.exec_module(module)
    return module


def loss_of(p, n=80):
    "What a program comes to after some steps: the mean loss of the last ten on its own batches"
    torch.manual_seed(0)
    return sum(train(p.step, p.batches, n)[-10:])/10


def seen(p, **kwargs):
    return diagnose(**{**dict(step_function=p.step, model=p.model, batches=p.batches, opt=p.opt, trials=False, seconds=600), **kwargs})


CARRY = dict(DATA='batches = streams(8, 16, 12)', RETURN='return scores,state', STATE='state = state.detach()')
PIECES = ("pieces = [text[i:i+17] for i in range(0, 2000, 16)]\nx,y = (torch.stack(o) for o in zip(*map(cut, pieces)))\n"
          "batches = [*zip(x.split(8), y.split(8))][:12]")
def cut_by(line): return f'def cut(text):\n    {line}\n    return x,y\n'+PIECES


SHIFTED = dict(DATA=cut_by('x,y = text[:-1],text[1:]'))
KEPT_GRAPH = dict(CARRY, UPDATE='opt.zero_grad()\nloss.backward(retain_graph=True)\nopt.step()',
                  OPT='opt = torch.optim.SGD(model.parameters(), lr=.1)')
SHOWN = {
    # id: (where the fault is, the line with the fault, other lines of program and twin)
    'L1': ('RETURN', 'return scores.softmax(-1)', {}),
    'L4': ('LOSS', 'loss = F.mse_loss(scores.softmax(-1), F.one_hot(y, V).float())', {}),
    'L5': ('LOSS', 'loss = F.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=y.flatten().mode().values.item())', {}),
    'L6': ('LOSS', 'loss = F.cross_entropy(scores[:,-1], y[:,-1])', {}),
    'D1': ('DATA', cut_by('x,y = text[:-1],text[:-1]'), SHIFTED), 'D2': ('DATA', cut_by('x,y = text[:-2],text[2:]'), SHIFTED),
    'S3': ('SCORES', 'scores = scores.transpose(0, 1).contiguous()', {}), 'S5': ('RNN', 'rnn = nn.GRU(n_in, n_hid)', {}),
    'R3': ('STATE', 'state.detach()', KEPT_GRAPH), 'I1': ('WEIGHTS', 'model.out.weight.data.normal_(0, 9)', {}),
    'O5': ('UPDATE', 'opt = torch.optim.Adam(model.parameters(), lr=lr)\nopt.zero_grad()\nloss.backward()\nopt.step()', {}),
    'O6': ('UPDATE', 'loss.backward()\nopt.step()', dict(OPT='opt = torch.optim.SGD(model.parameters(), lr=1.)')),
    'O7': ('LAYERS', 'self.layers = layers', {}), 'O8': ('WEIGHTS', 'model.rnn.requires_grad_(False)', {}),
    'O9': ('UPDATE', 'opt.step()\nloss.backward()\nopt.zero_grad()', {}), 'T2': ('MODE', 'model.eval()', {}),
}
# What the fix of an id replaces, where it is more or other than the line with the fault
BY_FIX = {
    'D1': lambda fix: dict(DATA=cut_by(fix)), 'D2': lambda fix: dict(DATA=cut_by(fix)), 'O6': lambda fix: dict(UPDATE=f'{fix}\nloss.backward()\nopt.step()'),
    'S3': lambda fix: dict(SCORES=f'scores = scores.transpose(0, 1).contiguous()\n{fix}'), 'T2': lambda fix: dict(MODE=f'model.eval()\n{fix}'),
    'I1': lambda fix: dict(WEIGHTS=f'model.out.weight.data.normal_(0, 9)\n{fix}'), 'O5': lambda fix: dict(UPDATE=f'{fix}\nopt.zero_grad()\nloss.backward()\nopt.step()'),
    'O9': lambda fix: dict(UPDATE=fix.replace('scheduler.step()', '')), 'O8': lambda fix: dict(WEIGHTS=f'model.rnn.requires_grad_(False)\n{fix}'),
}


@pytest.mark.parametrize('id', few(SHOWN, 'L1', 'O8', 'S5'))
def test_a_fix_that_is_shown_makes_the_loss_as_good_as_its_twins(id, tmp_path):
    slot,line,others = SHOWN[id]
    sets = 'dropout = 0.3' if id == 'T2' else ''
    p = made(tmp_path, 'program', sets, **{**others, slot:line})
    found = seen(p, opt=None if id == 'O5' else p.opt).findings[0]
    assert found.id == id and found.fix, found
    twin = loss_of(made(tmp_path, 'twin', sets, **others))
    fixed = made(tmp_path, 'fixed', sets, **{**others, **BY_FIX.get(id, lambda fix: {slot:fix})(found.fix)})
    assert loss_of(fixed) < twin+.15, (twin, found)
    assert id not in [o.id for o in seen(fixed).findings]
