"""Nothing of the user's changes by being examined, and what would have to change is refused with what to do instead"""
import csv
import importlib
import itertools
import random
import sqlite3
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.basics import DataLoader, DataLoaders, Learner, OptimWrapper
from planted.parts import (Net, Scores, Stateful, awd_learner, carried_step, loss_over_all, seed, stateless_step,
                           stream_items, streams, valid_ids, windows)

from charrnn_fa.core import CharRNNError
from charrnn_fa.doctor import diagnose

RANDOM,SMALL = windows(8, 16, 12),dict(n_hid=16, n_emb=16)


def program(extra=lambda: None, **kwargs):
    "A training step that does something else as well"
    model = Scores(**SMALL)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    usual = stateless_step(model, opt)
    def step(x, y):
        extra()
        return usual(x, y)
    return dict(step_function=step, model=model, batches=RANDOM, opt=opt, **kwargs)


def healthy(trials=False, **kwargs):
    report = diagnose(**kwargs, trials=trials, seconds=600)
    assert not [o for o in report.findings if o.certainty == 'exact'], report
    return report


# Weights, optimisers, generators

def contents(model):
    "Of a module: numbers, gradients, what needs gradients, modes, names of attributes"
    tensors = [(k, v.detach().clone(), v.grad if v.grad is None else v.grad.clone(), v.requires_grad) for k,v in model.state_dict(keep_vars=True).items()]
    return tensors,[(m.training, sorted(vars(m)), sorted(m._buffers), sorted(m._forward_hooks)) for m in model.modules()]


def same_contents(a, b):
    for (k,v,grad,needs),(_,w,other,need) in zip(a[0], b[0], strict=True):
        assert torch.equal(v, w) and needs == need and (grad is None) == (other is None) and (grad is None or torch.equal(grad, other)), k
    assert a[1] == b[1]


def states(opt):
    of_each = {id(p):{k:torch.as_tensor(v).clone() for k,v in s.items()} for p,s in opt.state.items()}
    return of_each,[{k:v for k,v in g.items() if k != 'params'} for g in opt.param_groups]
def generators(): return random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()


class Counting(Scores):
    "With a buffer and an attribute that go on with each batch, and dropout"
    def __init__(self):
        super().__init__(n_layers=2, dropout=.3, **SMALL)
        self.register_buffer('seen', torch.zeros(()))
        self.calls,self.norm = 0,torch.nn.BatchNorm1d(16)
    def forward(self, x):
        self.seen += 1
        self.calls += 1
        random.random(), np.random.rand()
        self.norm(self.emb(x).flatten(0, 1))
        return super().forward(x)


def counting():
    model = Counting()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    sched = torch.optim.lr_scheduler.StepLR(opt, 5)
    usual = stateless_step(model, opt)
    for b in RANDOM[:3]: usual(*b) # in mid-training
    loss_over_all(model(RANDOM[0][0]), RANDOM[0][1]).backward() # with a gradient that waits
    model.norm.eval()
    model.emb.requires_grad_(False)
    def step(x, y):
        usual(x, y)
        sched.step()
    return dict(step_function=step, model=model, batches=RANDOM, opt=opt),sched


@pytest.mark.parametrize('trials', [False, True])
def test_a_step_and_what_it_moves(trials):
    torch.manual_seed(0)
    kwargs,sched = counting()
    model,opt = kwargs['model'],kwargs['opt']
    before = contents(model),states(opt),generators(),sched.state_dict(),model.calls
    batches = [tuple(o.clone() for o in b) for b in RANDOM]
    diagnose(**kwargs, trials=trials, seconds=6)
    same_contents(before[0], contents(model))
    for (k,s),(j,t) in zip(before[1][0].items(), states(opt)[0].items(), strict=True):
        assert k == j and all(torch.equal(torch.as_tensor(s[n]), torch.as_tensor(t[n])) for n in s)
    assert before[1][1] == states(opt)[1] and before[2] == generators()
    assert sched.state_dict() == before[3] and model.calls == before[4]
    assert all(torch.equal(a, b) for x,y in zip(batches, RANDOM) for a,b in zip(x, y))


def test_the_optimiser_has_the_methods_that_it_had():
    kwargs = program()
    opt,model = kwargs['opt'],kwargs['model']
    before = type(opt).step,type(opt).zero_grad,sorted(vars(opt)),torch.nn.Module.__call__,type(model).forward
    healthy(**kwargs)
    assert before == (type(opt).step, type(opt).zero_grad, sorted(vars(opt)), torch.nn.Module.__call__, type(model).forward)
    assert torch.is_grad_enabled() and not torch.is_anomaly_enabled() and torch.get_default_dtype() == torch.float32


def small_learner():
    items = [stream_items(8, 16, 20),stream_items(8, 16, 5, valid_ids)]
    dls = DataLoaders(*[DataLoader(o, bs=8, shuffle=i == 0, num_workers=0) for i,o in enumerate(items)])
    return Learner(dls, Stateful(**SMALL), loss_func=loss_over_all, opt_func=partial(OptimWrapper, opt=torch.optim.Adam))


@pytest.mark.parametrize('make,trials', [(small_learner, True), (lambda: awd_learner(config=dict(emb_sz=16, n_hid=16)), False)])
def test_a_learner(make, trials):
    learn = make()
    learn.dls.train.one_batch() # whatever loaders do first
    before,own,cbs = contents(learn.model),dict(vars(learn)),[*learn.cbs]
    drawn,rng = generators(),learn.dls.train.rng.getstate()
    diagnose(learn, trials=trials, seconds=5)
    same_contents(before, contents(learn.model))
    assert vars(learn).keys() == own.keys() and all(vars(learn)[k] is v for k,v in own.items())
    assert [*learn.cbs] == cbs and generators() == drawn and learn.dls.train.rng.getstate() == rng
    assert learn.opt is None


def test_training_afterwards_is_what_it_would_have_been():
    def trained(looks):
        seed()
        learn = small_learner()
        if looks: diagnose(learn, trials=False, seconds=600)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    assert torch.equal(trained(False), trained(True))


# Python objects

class Counter:
    n,names = 0,[]
    def count(self):
        type(self).n += 1
        Counter.names.append('x')
        Counter.made = 1


class Slotted:
    __slots__ = 'n',
    def __init__(self): self.n = 0
    def count(self): self.n += 1


counted,kept_in_list = 0,[]


def test_names_of_a_file_of_a_function_and_of_a_closure():
    "And a name that did not exist"
    calls,by_name = 0,dict(a=[1])
    def extra():
        nonlocal calls
        global counted, made
        calls += 1
        counted += 1
        made = 3
        kept_in_list.append(1)
        by_name['a'].append(2)
        by_name['b'] = 3
        extra.n = getattr(extra, 'n', 0)+1
    healthy(**program(extra))
    assert (calls, counted, kept_in_list, by_name) == (0, 0, [], dict(a=[1]))
    assert 'made' not in globals() and not hasattr(extra, 'n')


def test_classes_and_slots_count_from_where_they_stood():
    a,b,names = Counter(),Slotted(),Counter.names
    def extra(): a.count(), b.count()
    healthy(**program(extra))
    assert (Counter.n, Counter.names, b.n) == (0, [], 0) and Counter.names is names
    assert not hasattr(Counter, 'made')


def test_globals_of_other_modules(tmp_path, monkeypatch):
    "Of a module that the step names, and of one that this one names"
    (tmp_path/'own_config.py').write_text('step,seen = 0,[]\n')
    (tmp_path/'own_helpers.py').write_text('import own_config\ncalls = 0\ndef count():\n'
                                           '    global calls\n    calls += 1\n    own_config.step += 1\n'
                                           '    own_config.seen.append(calls)\n    own_config.made = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    helpers = importlib.import_module('own_helpers')
    config = sys.modules['own_config']
    monkeypatch.setitem(globals(), 'own_helpers', helpers)
    def extra(): own_helpers.count()   # noqa: F821
    healthy(**program(extra))
    assert (helpers.calls, config.step, config.seen, hasattr(config, 'made')) == (0, 0, [], False)


def test_generators_of_ones_own():
    a,b,c = random.Random(3),np.random.default_rng(3),torch.Generator().manual_seed(3)
    before = a.getstate(),b.bit_generator.state,c.get_state().tolist()
    healthy(**program(lambda: (a.random(), b.random(), torch.rand(2, generator=c))))
    assert before == (a.getstate(), b.bit_generator.state, c.get_state().tolist())


def test_a_state_that_is_carried_is_empty_again():
    model = Net(**SMALL)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    step = carried_step(model, opt)
    healthy(step_function=step, model=model, batches=streams(8, 16, 12))
    kept = dict(zip(step.__code__.co_freevars, step.__closure__))['kept'].cell_contents
    assert kept == dict(state=None) and not opt.state


def test_loaders_begin_where_they_would_have():
    generator = torch.Generator().manual_seed(3)
    dl = torch.utils.data.DataLoader(stream_items(8, 16, 20), batch_size=8, shuffle=True, generator=generator)
    before = generator.get_state()
    model = Scores(**SMALL)
    healthy(model=model, dls=dl, loss_func=loss_over_all)
    assert torch.equal(generator.get_state(), before)


def test_a_batch_that_a_step_writes_into():
    def step(x, y):
        x[0,0] = 5
        usual(x, y)
    kwargs = program()
    usual,before = kwargs['step_function'],RANDOM[0][0].clone()
    diagnose(**{**kwargs, 'step_function':step}, trials=False)
    assert torch.equal(RANDOM[0][0], before)


# Iterators

def forever():
    while True: yield from RANDOM


ITERATORS = {'list': lambda: iter([*range(90)]), 'generator': forever, 'cycle': lambda: itertools.cycle([1, 2, 3]),
             'count': lambda: itertools.count(7), 'zip': lambda: zip('abc'*30, itertools.count()),
             'enumerate': lambda: enumerate(itertools.cycle('ab')), 'expression': lambda: (2*i for i in itertools.count()),
             'loader': lambda: iter(torch.utils.data.DataLoader([*range(90)], batch_size=2))}


@pytest.mark.parametrize('kind', ITERATORS)
def test_a_living_iterator_is_refused_with_the_advice(kind):
    "And not moved: the next call gives what it would have given"
    it = ITERATORS[kind]()
    next(it)
    with pytest.raises(CharRNNError, match='iterator') as e: diagnose(**program(lambda: next(it)))
    assert 'batches=' in e.value.remedy and 'def step(x, y)' in e.value.remedy
    same = ITERATORS[kind]()
    next(same)
    assert str(next(it)) == str(next(same))


@pytest.mark.parametrize('how', ['global', 'attribute', 'list', 'dict', 'default', 'partial', 'slot', 'class', 'model'])
def test_it_does_not_matter_where_it_is_held(how, monkeypatch):
    it = iter([*range(90)])
    class Holds:
        __slots__ = 'it',
        of_class = it if how == 'class' else None
    slotted,has,model = Holds(),SimpleNamespace(it=it),None
    slotted.it = it
    monkeypatch.setitem(globals(), 'held', it)
    a_list,a_dict = [it],{'it':it}
    extra = {'global':lambda: next(held),   # noqa: F821
             'attribute':lambda: next(has.it), 'list':lambda: next(a_list[0]), 'dict':lambda: next(a_dict['it']),
             'default':lambda it=it: next(it), 'partial':partial(next, it), 'slot':lambda: next(slotted.it),
             'class':lambda: next(Holds.of_class), 'model':lambda: next(model.it)}[how]
    kwargs = program(extra)
    model = kwargs['model']
    if how == 'model': model.it = it
    with pytest.raises(CharRNNError, match='iterator'): diagnose(**kwargs)
    assert next(it) == 0


def test_an_iterator_that_is_used_up_is_no_obstacle():
    it = iter([])
    next(it, None)
    healthy(**program(lambda: next(it, None)))


# Files

def saves(folder, kind):
    "Ways to write into a folder"
    ways = dict(open=lambda: (folder/'log.txt').write_text('x'), torch=lambda: torch.save({}, folder/'model.pth'),
                numpy=lambda: np.save(folder/'ids.npy', np.zeros(3)), mkdir=lambda: (folder/'runs').mkdir(),
                sqlite=lambda: sqlite3.connect(folder/'log.db'), program=lambda: subprocess.run(['touch', str(folder/'x')]))
    return ways[kind]


@pytest.mark.parametrize('kind', ['open', 'torch', 'numpy', 'mkdir', 'sqlite', 'program'])
def test_a_step_that_writes_is_refused_before_it_does(kind, tmp_path):
    with pytest.raises(CharRNNError) as e: diagnose(**program(saves(tmp_path, kind)))
    assert not [*tmp_path.iterdir()] and e.value.remedy
    saves(tmp_path, kind)()
    assert [*tmp_path.iterdir()] # the same is possible afterwards


@pytest.mark.parametrize('how', ['print', 'write', 'attribute', 'csv'])
def test_a_file_that_is_open_for_writing_is_not_written_to(how, tmp_path):
    with open(tmp_path/'log', 'w') as log:
        log.write('first\n')
        log.flush()
        has,rows = SimpleNamespace(log=log),csv.writer(log)
        extra = {'print':lambda: print('x', file=log, flush=True), 'write':lambda: log.write('x'),
                 'attribute':lambda: has.log.write('x'), 'csv':lambda: rows.writerow([1])}[how]
        with pytest.raises(CharRNNError): diagnose(**program(extra))
        log.flush()
        assert (tmp_path/'log').read_text() == 'first\n' and not log.closed


def test_a_file_that_is_read_is_at_its_place(tmp_path):
    (tmp_path/'text').write_text('abcdefgh'*1000)
    with open(tmp_path/'text') as f:
        f.read(10)
        healthy(**program(lambda: f.read(100)))
        assert f.read(5) == 'cdefg'


def test_a_step_that_prints_is_silent(capsys):
    healthy(**program(lambda: print('loss') or sys.stderr.write('step')))
    assert capsys.readouterr() == ('', '')


def test_a_data_base_in_memory_is_no_file():
    healthy(**program(lambda: sqlite3.connect(':memory:').close()))
