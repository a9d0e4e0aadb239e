"""`explain`: the fixes that it shows for errors of shapes and states, carried out"""
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner
from torch import nn

from charrnn_fa.doctor import explain
from charrnn_fa.doctor.report import catalogue

V,BATCH,TIME,UNITS = 70,9,16,24
x,y = torch.randint(V, (BATCH, TIME)),torch.randint(V, (BATCH, TIME))
scores = torch.randn(BATCH, TIME, V)
right = F.cross_entropy(scores.flatten(0, 1), y.flatten())


class Net(nn.Module):
    "With other layers, or another forward"
    def __init__(self, forward=None, **layers):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 12),nn.LSTM(12, UNITS, batch_first=True),nn.Linear(UNITS, V)
        for k,m in layers.items(): setattr(self, k, m)
        self._forward = forward or (lambda net, x: net.out(net.rnn(net.emb(x))[0]))
    def forward(self, x): return self._forward(self, x)


def explained(f, *args, subject=None):
    with pytest.raises(Exception) as e: f(*args)
    found = explain(e.value, subject)
    assert found.certainty == 'exact' and found.id in catalogue and found.message and found.as_dict()
    return found


def of(forward=None, batch=x, **layers): return explained(Net(forward, **layers), batch)
def loss_of(scores, targets): return F.cross_entropy(scores, targets)
def code(found): return '\n'.join(o.split('   #')[0] for o in found.fix.splitlines())


# Losses

@pytest.mark.parametrize('s,t', [(scores, y), (scores.flatten(0, 1), y), (scores, y.flatten()), (scores.transpose(0, 1), y)])
def test_a_loss_that_needs_other_shapes(s, t):
    "What is shown comes to the loss that was meant"
    found = explained(loss_of, s, t)
    assert found.id in ('S1', 'S3') and (found.place.file, found.place.function) == (__file__, 'loss_of')
    assert torch.isclose(eval(code(found), dict(F=F, scores=s, y=t, CrossEntropyLossFlat=CrossEntropyLossFlat)), right)


# Layers

@pytest.mark.parametrize('layers', [dict(out=nn.Linear(UNITS//2, V)), dict(rnn=nn.LSTM(12, UNITS, batch_first=True, bidirectional=True)),
                                    dict(rnn=nn.LSTM(48, UNITS, batch_first=True))])
def test_a_layer_of_the_right_size(layers):
    found,net = of(**layers),Net(**layers)
    exec(code(found), dict(self=net, nn=nn))
    assert found.id == 'S8' and net(x).shape == (BATCH, TIME, V)


# Hidden states

STATES = {
    'another batch size': ('S6', lambda: torch.zeros(1, BATCH+3, UNITS), True), 'the time axis': ('S6', lambda: torch.zeros(1, TIME, UNITS), True),
    'batch first': ('S6', lambda: torch.zeros(BATCH, 1, UNITS), True), 'one tensor': ('S7', lambda: torch.zeros(1, BATCH, UNITS), False)}


@pytest.mark.parametrize('state', STATES)
def test_the_state_of_an_lstm(state):
    id,make,is_pair = STATES[state]
    found = of(lambda net, x: net.rnn(net.emb(x), (make(), make()) if is_pair else make()))
    assert found.id == id
    if 'torch.zeros' not in found.fix: return
    names,net = dict(torch=torch, x=x),Net()
    exec(code(found), names)
    assert net.rnn(net.emb(x), names['state'])[0].shape == (BATCH, TIME, UNITS)


@pytest.mark.parametrize('given', [lambda: (torch.zeros(2, BATCH, UNITS),)*2, lambda: torch.zeros(2, BATCH, UNITS+1), lambda: torch.zeros(1, BATCH, UNITS)])
def test_the_state_of_a_gru(given):
    gru = nn.GRU(12, UNITS, 2, batch_first=True)
    found = of(lambda net, x: net.rnn(net.emb(x), given()), rnn=gru)
    names = dict(torch=torch, x=x)
    exec(code(found), names)
    assert found.id in ('S6', 'S7') and 'state' not in names
    assert gru(torch.zeros(BATCH, TIME, 12), names['h'])[0].shape == (BATCH, TIME, UNITS)


class Carries(Net):
    state = None
    def forward(self, x):
        out,self.state = self.rnn(self.emb(x), self.state)
        return out


@pytest.mark.parametrize('cls', [nn.LSTM, nn.GRU])
@pytest.mark.parametrize('kwargs', [{}, dict(retain_graph=True)])
def test_a_state_that_is_never_detached(cls, kwargs):
    net = Carries(rnn=cls(12, UNITS, batch_first=True))
    opt = torch.optim.SGD(net.parameters(), lr=.1)
    def steps():
        for _ in range(2):
            net(x).sum().backward(**kwargs)
            opt.step()
    learn = Learner(DataLoaders([(x, y)], [(x, y)]), net, loss_func=CrossEntropyLossFlat())
    found = explained(steps, subject=learn)
    names = dict(state=net.state)
    exec(code(found).splitlines()[-1], names)
    state = names['state'] if cls is nn.LSTM else (names['state'],)
    assert found.id == 'R2' and not any(o.requires_grad for o in state)
