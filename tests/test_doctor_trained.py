"""What only a training shows, and what looks like a fault and is none: decoders that are given their targets, all data
in one batch, sums that an optimiser does not mind, an eps, few units"""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from charrnn_fa.doctor.diagnose import diagnose
from charrnn_fa.text.corpus import load_corpus

TEXT = load_corpus('pydocs')[:24_000]
symbols = sorted({*TEXT})
V = len(symbols)
ids = torch.tensor([symbols.index(c) for c in TEXT])


class Net(nn.Module):
    "Scores (rows, steps, symbols)"
    def __init__(self, n_hid=48, shift=0, size=None):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 24),nn.GRU(24, n_hid, batch_first=True),nn.Linear(n_hid, V)
        self.shift = shift
        if size:
            for p in self.parameters(): nn.init.normal_(p, 0, size)
    def forward(self, x):
        if self.shift: x = F.pad(x[:,:-self.shift], (self.shift, 0))
        return self.out(self.rnn(self.emb(x))[0])


def lines(n=40, rows=16): return [ids[i:i+n*rows].view(rows, n) for i in range(0, n*rows*8, n*rows)]


def pairs(n=40, rows=16):
    x,y = ids[:-1],ids[1:]
    return [(x[i:i+n*rows].view(rows, n), y[i:i+n*rows].view(rows, n)) for i in range(0, n*rows*8, n*rows)]


def nll(scores, y, reduction='mean'): return F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction=reduction)


def trained(net, batches, make=lambda ps: torch.optim.Adam(ps, 3e-3), reduction='mean', trials=True):
    "The findings of a step that is a function"
    opt = make(net.parameters())
    def step(x, y=None):
        opt.zero_grad()
        loss = nll(net(x), x if y is None else y, reduction)
        loss.backward()
        opt.step()
        return loss.item()
    return diagnose(model=net, step_function=step, batches=batches, trials=trials).findings


@pytest.mark.parametrize('shift', [0, 1])
@pytest.mark.parametrize('has_targets', [False, True])
def test_a_decoder_that_is_given_its_targets(shift, has_targets):
    "One that puts a letter before them predicts the next; without it the targets are the inputs"
    torch.manual_seed(0)
    batches = [(o, o) if has_targets else o for o in lines()]
    assert [f.id for f in trained(Net(shift=shift), batches, trials=False)] == ([] if shift else ['D1'])


PROGRAM = '''
import torch
from torch import nn
torch.manual_seed(0)
series = torch.sin(torch.arange(900.)/6) + .4*torch.sin(torch.arange(900.)/13)
rows = series.unfold(0, 30, 5)
x,y = rows[FEW,:-1,None],rows[FEW,1:,None]
of_another_type = x.double()
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn,self.out = nn.LSTM(1, 16, batch_first=True),nn.Linear(16, 1)
    def forward(self, x): return self.out(self.rnn(x)[0])
net = Net()
opt = torch.optim.Adam(net.parameters(), 1e-2)
def step():
    opt.zero_grad()
    loss = nn.functional.mse_loss(net(x), y)
    loss.backward()
    opt.step()
    return loss.item()
'''


@pytest.mark.parametrize('few,want', [(':-20', []), (':4', ['T7'])])
def test_the_same_batch_in_each_step(few, want):
    "It is everything that there is, or a small part"
    at = {}
    exec(PROGRAM.replace('FEW', few), at)
    assert [f.id for f in diagnose(model=at['net'], step_function=at['step'], trials=False).findings] == want


def test_a_sum_is_not_to_blame_where_the_optimiser_does_not_mind():
    "A mean with that rate would be as bad; the rate comes first, and the sum is no cause of it"
    torch.manual_seed(0)
    first,*others = trained(Net(), pairs(), lambda ps: torch.optim.Adam(ps, 1.), 'sum')
    assert first.id == 'O1' and [f.id for f in others] in ([], ['L3'])


def test_a_sum_is_to_blame_for_a_rate_that_a_mean_could_have():
    torch.manual_seed(0)
    first,*_ = trained(Net(), pairs(), lambda ps: torch.optim.SGD(ps, 1.), 'sum')
    assert first.id == 'L3'
    torch.manual_seed(0)
    assert not trained(Net(), pairs(), lambda ps: torch.optim.SGD(ps, 1.))


def test_an_eps_that_makes_all_steps_short():
    "The fix that is named helps"
    torch.manual_seed(0)
    first,*_ = trained(Net(), pairs(), lambda ps: torch.optim.Adam(ps, 3e-3, eps=1.))
    assert first.id == 'O2' and first.fix.startswith('eps = 1e-8'), first
    torch.manual_seed(0)
    assert not trained(Net(), pairs(), lambda ps: torch.optim.Adam(ps, 3e-3, eps=1e-8))


def test_two_units_are_too_few():
    torch.manual_seed(0)
    assert [f.id for f in trained(Net(n_hid=2), pairs(), lambda ps: torch.optim.Adam(ps, 1e-2))] == ['I6']


def test_weights_that_are_nearly_zero():
    torch.manual_seed(0)
    first,*_ = trained(Net(size=1e-6), pairs(), trials=False)
    assert first.id == 'I2' and 'uniform_' in first.fix
