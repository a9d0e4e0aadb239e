"""The doctor on networks that give amounts, or one answer a row: healthy, and with one fault"""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from charrnn_fa.doctor.diagnose import diagnose

torch.manual_seed(0)
WAVE = torch.sin(torch.arange(900)/4) + .4*torch.cos(torch.arange(900)/1.7)
STEPS = 14


def pieces(n=24, steps=STEPS, n_batches=6, target=lambda y: y):
    "Series, (rows, steps, 1), and the value after each, (rows,)"
    order = torch.randperm(800, generator=torch.Generator().manual_seed(0))
    rows = order[:n*n_batches].view(n_batches, n).tolist()
    return [(torch.stack([WAVE[i:i+steps] for i in r])[...,None], target(torch.stack([WAVE[i+steps] for i in r]))) for r in rows]


def column(y): return y[:,None]


def is_positive(y): return (y > 0).float()[:,None]


class Forecast(nn.Module):
    "A recurrent layer, and one number"
    def __init__(self, last=lambda p: p, cls=nn.GRU):
        super().__init__()
        self.layer,self.head,self.last = cls(1, 16, batch_first=True),nn.Linear(16, 1),last
    def forward(self, series): return self.last(self.head(self.layer(series)[0][:,-1]))


def given(model, batches, loss=nn.MSELoss()):
    return dict(model=model, dls=batches, loss_func=loss, opt=torch.optim.Adam(model.parameters(), lr=3e-3))


def written(model, batches, loss):
    "The same with a training step of one's own"
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    def train(series, wanted):
        opt.zero_grad()
        guess = model(series)
        cost = loss(guess, wanted)
        cost.backward()
        opt.step()
    return dict(step_function=train, model=model, batches=batches)


def said(program): return diagnose(**program, trials=False).findings


def exact(program): return [o.id for o in said(program) if o.certainty == 'exact']


def mean_square(p, y): return ((p-y)**2).mean()


@pytest.mark.parametrize('loss', [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), mean_square])
def test_each_prediction_meets_all_targets(loss):
    first = said(given(Forecast(), pieces(), loss))[0]
    assert first.id == 'S3' and first.certainty == 'exact' and '(24, 1)' in first.message
    assert exact(given(Forecast(), pieces(target=column), loss)) == []


def test_all_targets_in_own_names():
    first = said(written(Forecast(), pieces(), nn.MSELoss()))[0]
    assert first.fix.startswith('wanted = wanted[:, None] ')
    first = said(written(Forecast(lambda p: p[:,0]), pieces(target=column), nn.MSELoss()))[0]
    assert first.fix.startswith('wanted = wanted.squeeze(-1) ')


@pytest.mark.parametrize('loss', [
    lambda p,y: 2*(p-y).abs().mean() - (p-p.T).abs().mean(), # of distributions
    lambda p,y: F.mse_loss(p-p.T, y[:,None]-y[None]), # of pairs
    lambda p,y: mean_square(p.squeeze(), y), lambda p,y: F.mse_loss(p, y.unsqueeze(1)),
])
def test_pairs_on_purpose(loss): assert exact(given(Forecast(), pieces(), loss)) == []


@pytest.mark.parametrize('last', [torch.sigmoid, torch.tanh])
def test_squashed_before_a_loss_with_logits(last):
    first = said(given(Forecast(last), pieces(target=is_positive), nn.BCEWithLogitsLoss()))[0]
    assert (first.id, first.certainty) == ('L1', 'exact') and first.evidence['floor'] > .3


def test_the_floor_is_that_of_the_best_scores():
    batches = pieces(target=is_positive)
    first = said(given(Forecast(torch.sigmoid), batches, nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.]))))[0]
    best = F.binary_cross_entropy_with_logits(batches[0][1], batches[0][1], pos_weight=torch.tensor([3.]))
    assert abs(first.evidence['floor']-best) < 1e-3


@pytest.mark.parametrize('last,loss', [
    (lambda p: p, nn.BCEWithLogitsLoss()), (torch.sigmoid, nn.BCELoss()), (lambda p: 12*p.tanh(), nn.BCEWithLogitsLoss()),
    (lambda p: p.clamp(-5, 5), nn.BCEWithLogitsLoss()), (lambda p: p-p.detach().mean(), nn.BCEWithLogitsLoss()),
])
def test_scores_that_can_be_any(last, loss): assert exact(given(Forecast(last), pieces(target=is_positive), loss)) == []


@pytest.mark.parametrize('last,times', [(F.relu, 1), (torch.sigmoid, 1), (torch.tanh, 4), (F.softplus, 1), (lambda p: -p.exp(), 1)])
def test_targets_out_of_reach(last, times):
    found = said(given(Forecast(last), pieces(target=lambda y: times*column(y))))
    first = next(o for o in found if o.id == 'I4')
    assert first.certainty == 'exact' and first.evidence['share'] > .2 and '%' in first.message


@pytest.mark.parametrize('last,to', [
    (lambda p: p, lambda y: y), (F.relu, lambda y: y.abs()), (torch.tanh, lambda y: y/2), (F.softplus, lambda y: y+2),
    (torch.sigmoid, lambda y: (y+2)/4), (F.leaky_relu, lambda y: y), (lambda p: 2*p.tanh(), lambda y: y),
    (torch.sigmoid, lambda y: (y > 0).float()), # yes or no, with squared differences
])
def test_targets_in_reach(last, to): assert exact(given(Forecast(last), pieces(target=lambda y: column(to(y))))) == []


def test_a_few_targets_out_of_reach_are_outliers():
    def wild(y): return column(torch.where(torch.arange(len(y)) == 3, 8., y/2))
    assert exact(given(Forecast(torch.tanh), pieces(target=wild), nn.HuberLoss())) == []
