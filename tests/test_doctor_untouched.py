"""Nothing of the user's changes by being examined, and what would have to change is refused with what to do instead"""
import random
from functools import partial

import numpy as np
import pytest
import torch
from fastai.basics import DataLoader, DataLoaders, Learner, OptimWrapper
from planted.parts import (Net, Scores, Stateful, awd_learner, carried_step, loss_over_all, seed, stateless_step,
                           stream_items, streams, valid_ids, windows)

from charrnn_fa.errors import CharRNNError
from charrnn_fa.doctor import diagnose

RANDOM,SMALL = windows(8, 16, 12),dict(n_hid=16, n_emb=16)


def program(extra=lambda: None):
    "A training step that does something else as well"
    model = Scores(**SMALL)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    usual = stateless_step(model, opt)
    def step(x, y):
        extra()
        return usual(x, y)
    return dict(step_function=step, model=model, batches=RANDOM, opt=opt)


def healthy(**kwargs):
    report = diagnose(**kwargs, trials=False, seconds=600)
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
    diagnose(**kwargs, trials=trials, seconds=3)
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
    diagnose(learn, trials=trials, seconds=3)
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


# What a step and a loader hold


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


def test_what_would_have_to_change_is_refused(tmp_path):
    "A living iterator is not moved, and a file not written to"
    it = iter([1, 2])
    for extra in lambda: next(it), (tmp_path/'log').touch:
        with pytest.raises(CharRNNError) as e: diagnose(**program(extra))
        assert e.value.remedy
    assert next(it) == 1 and not [*tmp_path.iterdir()]
