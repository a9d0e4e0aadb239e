"""Targets that belong to other places, and ids that come as amounts"""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from charrnn_fa import doctor
from charrnn_fa.text.corpus import load_corpus

TEXT = load_corpus('pydocs')[:12_000]
symbols = sorted({*TEXT})
ids = torch.tensor([symbols.index(c) for c in TEXT])
n_steps = 20


class Net(nn.Module):
    "Reads ids, or amounts; gives scores for each step, (rows, steps, symbols)"
    def __init__(self, amounts=False, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.emb = nn.Identity() if amounts else nn.Embedding(len(symbols), 16)
        self.rnn,self.out = nn.GRU(1 if amounts else 16, 32, batch_first=True),nn.Linear(32, len(symbols))
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


def nll(scores, y): return F.cross_entropy(scores.reshape(-1, scores.shape[-1]), y.reshape(-1))


def found(model, batches, loss=nll, **kwargs):
    opt = torch.optim.Adam(model.parameters(), 1e-3)
    report = doctor.diagnose(model=model, batches=batches, loss_func=loss, opt=opt, trials=False, **kwargs)
    return [(o.id, o.certainty) for o in report.findings], ' '.join(o.message+o.fix for o in report.findings)


def windows(ahead=1, bs=8):
    "Rows that go on from batch to batch, with targets so far ahead"
    rows = ids[:len(ids)//bs*bs].view(bs, -1)
    return [(rows[:,i:i+n_steps], rows[:,i+ahead:i+ahead+n_steps]) for i in range(0, rows.shape[1]-n_steps-ahead, n_steps)]


@pytest.mark.parametrize('cut', [1, 2])
def test_a_step_that_compares_with_what_was_read(cut):
    "The first scores are cut off, and the last targets"
    def loss(scores, y): return nll(scores[:,cut:], y[:,:-cut])
    said,words = found(Net(), windows(), loss)
    assert said == [('D1' if cut == 1 else 'D2', 'exact')] and 'cuts off the first scores' in words


def test_a_network_that_looks_one_step_ahead():
    "Each target has its prediction, so it is the network"
    class Ahead(Net):
        def forward(self, x): return super().forward(torch.cat([x[:,1:], x[:,-1:]], 1)) + super().forward(x)
    assert found(Ahead(), windows())[0] == [('S10', 'exact')]


@pytest.mark.parametrize('ahead', [1, 5, 9, n_steps])
def test_targets_far_ahead(ahead):
    said,words = found(Net(), windows(ahead))
    assert said == [('D2', 'exact')]*(ahead > 1) and (ahead == 1 or f'{ahead} characters ahead' in words)


def test_a_whole_window_may_be_told_from_the_one_before():
    "Of a network that reads all of the input first"
    class Forecast(Net):
        def __init__(self):
            super().__init__()
            self.emb_out = nn.Embedding(n_steps, 16)
        def forward(self, x):
            state = self.rnn(self.emb(x))[1]
            return self.out(self.rnn(self.emb_out.weight.expand(len(x), -1, -1), state)[0])
    assert found(Forecast(), windows(n_steps))[0] == []


def as_amounts(kind, x):
    x = x.float()[...,None]
    return x/len(symbols) if kind == 'share' else (x-x.mean())/20 if kind == 'centred' else x/(len(symbols)-1)*2-1


@pytest.mark.parametrize('kind', ['share', 'centred', 'from -1 to 1'])
@pytest.mark.parametrize('one', [False, True])
def test_ids_that_a_loader_has_divided(kind, one):
    "A target for each step, or one for each row"
    batches = windows()
    shift = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0))
    xs = as_amounts(kind, torch.stack([x for x,_ in batches])[shift])
    batches = [(x, batches[i][1]) for x,i in zip(xs, shift)]
    if one: batches = [(x, y[:,-1]) for x,y in batches]
    def loss(scores, y): return F.cross_entropy(scores[:,-1], y) if one else nll(scores, y)
    assert ('S2', 'exact') in found(Net(amounts=True), batches, loss)[0]


def test_amounts_that_are_no_ids():
    "Measured numbers, with a class for each row or each step; on a grid, or not"
    gen = torch.Generator().manual_seed(0)
    for grid in None,32:
        x = torch.randn(12, 8, n_steps, 1, generator=gen).cumsum(2)/4
        if grid: x = (x*grid).round()/grid
        level = (x[...,0]*3).round().clamp(-6, 6).long()+6
        def last(scores, y): return F.cross_entropy(scores[:,-1], y)
        for y,loss in (level.roll(-1, 2), nll),(level[...,-1], last):
            assert 'S2' not in [o for o,_ in found(Net(amounts=True), list(zip(x, y)), loss)[0]]


def test_adagrad_begins_with_long_steps():
    "A rate that is high at first, and right when the steps have become shorter; one that is too high all the way"
    text = ids[:25*60+1]
    batches = [(text[i:i+25][None], text[i+1:i+26][None]) for i in range(0, 25*60, 25)]
    def said(lr):
        net = Net(seed=1)
        opt = torch.optim.Adagrad(net.parameters(), lr)
        return [o.id for o in doctor.diagnose(model=net, batches=batches, loss_func=nll, opt=opt).findings
                if o.id in ('O1', 'O2')]
    assert said(10.) == ['O1'] and said(.05) == []
