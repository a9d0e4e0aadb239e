"""The doctor on networks with a memory from batch to batch, and one target a row"""
import pytest
import torch
from fastai.basics import DataLoader, DataLoaders, Learner
from fastai.callback.rnn import ModelResetter
from torch import nn

from charrnn_fa.doctor.diagnose import diagnose


def said(r): return {f.id for f in r.findings} | {g.id for f in r.findings for g in f.follows}


def seeded(n=0):
    torch.manual_seed(n)
    return torch.Generator().manual_seed(n)


class Kept(nn.Module):
    "What comes of the last step of a layer that has a state of its own from batch to batch"
    def __init__(self, rows, renew=lambda self: None):
        super().__init__()
        self.rows,self.renew = rows,renew
        self.emb,self.lstm,self.out = nn.Embedding(6, 8),nn.LSTM(8, 12, batch_first=True),nn.Linear(12, 1)
        self.norm = nn.BatchNorm1d(12)
        self.memory = self.empty()
    def empty(self): return torch.zeros(1, self.rows, 12),torch.zeros(1, self.rows, 12)
    def reset(self): self.memory = self.empty()
    def forward(self, x):
        self.renew(self)
        out,memory = self.lstm(self.emb(x) if x.ndim == 2 else x.expand(-1, -1, 8), self.memory)
        self.memory = tuple(o.detach() for o in memory)
        return self.out(self.norm(out[:,-1]))


def words_with_marks(rows=200, steps=9, n=6):
    x = torch.randint(0, n, (rows, steps), generator=seeded())
    return x,(x == 2).sum(1, keepdim=True).gt(1).float()


def of_a_learner(model, x, y, loss_func, **kwargs):
    data = torch.utils.data.TensorDataset(x, y)
    dls = DataLoaders(*(DataLoader(data, bs=10, drop_last=True, **kw) for kw in (kwargs, {})))
    return diagnose(learn=Learner(dls, model, loss_func=loss_func, cbs=ModelResetter()), trials=False)


def test_a_memory_of_other_rows():
    r = of_a_learner(Kept(10), *words_with_marks(), nn.BCEWithLogitsLoss(), shuffle=True)
    assert [(f.id, f.certainty) for f in r.findings] == [('R6', 'exact')]
    assert r.findings[0].fix.startswith('self.reset()') and 'Kept.forward' in str(r.findings[0].place)


@pytest.mark.parametrize('renew,kwargs', [(Kept.reset, dict(shuffle=True)), (lambda self: None, {})], ids=['emptied', 'in order'])
def test_a_memory_that_belongs_to_its_rows(renew, kwargs):
    r = of_a_learner(Kept(10, renew), *words_with_marks(), nn.BCEWithLogitsLoss(), **kwargs)
    assert not said(r) & {'R6', 'D4'}


class Series(torch.utils.data.IterableDataset):
    "Series in new order, ten at a time, each in pieces one after the other"
    def __init__(self, n=80, pieces=8, steps=6): self.of = torch.randn(n, pieces*steps+1, 1),pieces,steps
    def __iter__(self):
        s,pieces,steps = self.of
        for group in torch.randperm(len(s)).view(-1, 10):
            for i in range(0, pieces*steps, steps): yield s[group,i:i+steps],s[group,i+steps]


def test_series_in_new_order_go_on():
    seeded()
    dl = torch.utils.data.DataLoader(Series(), batch_size=None)
    r = diagnose(model=Kept(10), dls=dl, loss_func=nn.MSELoss(), trials=False)
    assert not said(r) & {'R6', 'D4'}


def test_a_loop_of_its_own_may_empty_the_state():
    x,y = words_with_marks()
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 10, shuffle=True)
    r = diagnose(model=Kept(10), dls=dl, loss_func=nn.BCEWithLogitsLoss(), trials=False)
    assert [(f.id, f.certainty) for f in r.findings] == [('R6', 'strong')]


class Stream(torch.utils.data.IterableDataset):
    "A stream without an end, of few symbols, never the same again"
    def __iter__(self):
        while True:
            x = torch.randint(0, 6, (10, 4))
            yield x,(x == 2).any(1, keepdim=True).float()


def test_rows_that_come_again_by_chance():
    seeded()
    dl = torch.utils.data.DataLoader(Stream(), batch_size=None)
    r = diagnose(model=Kept(10), dls=dl, loss_func=nn.BCEWithLogitsLoss(), trials=False, seconds=20)
    assert not said(r) & {'R6', 'D4'}
