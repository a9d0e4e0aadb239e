"""The doctor on networks whose rows begin with the memory of others: of the batch before, or of the same batch"""
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


@pytest.mark.parametrize('renew,kwargs', [(Kept.reset, dict(shuffle=True)), (lambda self: None, {})],
                         ids=['emptied', 'in order'])
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
    r = diagnose(model=Kept(10), dls=dl, loss_func=nn.BCEWithLogitsLoss(), trials=False, seconds=600)
    assert not said(r) & {'R6', 'D4'}


class Shared(nn.Module):
    "A state a step, of which `one` makes one for all rows"
    def __init__(self, n_symbols=9, n=20):
        super().__init__()
        self.emb,self.cell,self.out,self.n = nn.Embedding(n_symbols, n),nn.Linear(n, n),nn.Linear(n, n_symbols),n
    def forward(self, x):
        h,res = torch.zeros(1, self.n),[]
        for t in range(x.shape[1]):
            z = torch.tanh(self.emb(x[:,t]) + self.cell(h))
            res.append(self.out(z))
            h = self.one(z)
        return torch.stack(res, 1)
    def one(self, z):
        pooled = z.mean(0, keepdim=True)
        return pooled


class Slice(Shared):
    def one(self, z):
        return z[-1:]


class Both(Shared):
    def one(self, z):
        first = z[:1]
        return first+z.mean(0)


class Matrix(Shared):
    "A mean that is no function of a mean"
    def one(self, z): return z.new_full((1, len(z)), 1/len(z)) @ z


def of_a_text(model, rows=12, steps=7):
    ids = torch.randint(0, 9, (400*steps+1,), generator=seeded())
    x,y = ids[:-1].view(-1, steps),ids[1:].view(-1, steps)
    data = torch.utils.data.TensorDataset(x, y)
    loss_func = lambda out, y: nn.functional.cross_entropy(out.flatten(0, 1), y.flatten())
    return diagnose(model=model, dls=torch.utils.data.DataLoader(data, rows, shuffle=True),
                    loss_func=loss_func, trials=False)


@pytest.mark.parametrize('cls,fix', [(Shared, 'pooled = z '), (Slice, 'return z ')])
def test_what_makes_one_state_of_all_rows(cls, fix):
    f, = of_a_text(cls()).findings
    assert f.id == 'R4' and f.fix.startswith(fix) and f.place.function == 'one'


@pytest.mark.parametrize('cls', [Both, Matrix])
def test_one_state_for_all_rows_of_no_known_line(cls):
    f, = of_a_text(cls()).findings
    assert f.id == 'R4' and f.place is None and 'over the rows' in f.fix
