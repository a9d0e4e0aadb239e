"""`explain`: errors of PyTorch and of plain Python in words, with the user's line and a fix that ends them"""
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import CancelFitException, CrossEntropyLossFlat, DataLoaders, Learner
from torch import nn

from charrnn_fa.core import CharRNNError
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


def test_the_axes_have_names():
    "Where the batch is known"
    learn = Learner(DataLoaders([(x, y)], [(x, y)]), Net(), loss_func=loss_of)
    with learn.no_bar(), learn.no_logging(), pytest.raises(RuntimeError) as e: learn.fit(1)
    found = explain(e.value, learn)
    assert found.id == 'S1' and all(o in found.message for o in ('batch', 'time', 'vocabulary', str(V)))


@pytest.mark.parametrize('f,id', [
    (lambda: F.mse_loss(scores, y.float()), 'L4'), (lambda: loss_of(scores.flatten(0, 1), y.flatten().float()), 'D12'),
    (lambda: loss_of(torch.randn(2, 9), torch.tensor([3, 12])), 'S8'), (lambda: loss_of(scores[0], torch.full((TIME,), -1)), 'D12'),
    (lambda: loss_of(Net(lambda net, x: None)(x), y), 'E1'), (lambda: nn.CrossEntropyLoss()((scores, None), y), 'S7'),
    (lambda: torch.ones(1).backward(), 'L7'), (lambda: scores.sum().item().backward(), 'L7'),
    (lambda: loss_of(Net().requires_grad_(False)(x).flatten(0, 1), y.flatten()).backward(), 'L7')])
@pytest.mark.filterwarnings('ignore:Using a target size')
def test_what_a_loss_gets(f, id): assert explained(f).id == id


def test_frozen_weights_are_known_with_the_learner():
    learn = Learner(DataLoaders([(x, y)], [(x, y)]), Net().requires_grad_(False), loss_func=CrossEntropyLossFlat())
    found = explained(lambda: learn.loss_func(learn.model(x), y).backward(), subject=learn)
    model = learn.model
    exec(code(found), dict(model=model))
    assert found.id == 'O8' and all(p.requires_grad for p in model.parameters())


# Layers

@pytest.mark.parametrize('layers', [dict(out=nn.Linear(UNITS//2, V)), dict(rnn=nn.LSTM(12, UNITS, batch_first=True, bidirectional=True)),
                                    dict(rnn=nn.LSTM(48, UNITS, batch_first=True))])
def test_a_layer_of_the_right_size(layers):
    found,net = of(**layers),Net(**layers)
    exec(code(found), dict(self=net, nn=nn))
    assert found.id == 'S8' and net(x).shape == (BATCH, TIME, V)


def test_a_recurrent_layer_that_is_left_out():
    found = of(lambda net, x: net.out(net.emb(x)))
    assert found.id == 'S8' and 'self.rnn(' in found.fix and 'nn.Linear' not in found.fix


def test_nothing_is_shown_where_either_of_two_may_be_wrong():
    for layer,given in (nn.GRUCell(8, 16), torch.zeros(4, 9)),(nn.Linear(16, 65), torch.zeros(5)):
        found = explained(layer, given)
        assert found.id == 'S8' and found.fix == ''


@pytest.mark.parametrize('forward', [lambda net, x: net.rnn(x), lambda net, x: net.rnn(x.float()), lambda net, x: net.out(x),
                                     lambda net, x: net.out(x[:,0].float())])
def test_ids_without_an_embedding(forward):
    found = of(forward)
    assert found.id == 'S2' and 'nn.Embedding(' in found.fix


@pytest.mark.parametrize('emb,batch', [(nn.Embedding(60, 12), torch.full_like(x, 65)), (nn.Embedding(V, 12), x-V)])
def test_ids_that_are_out_of_range(emb, batch):
    found = of(batch=batch, emb=emb)
    assert found.id == 'D12' and str(int(batch.max())) in found.message


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


@pytest.mark.parametrize('forward', [lambda net, x: net.out(net.rnn(net.emb(x))), lambda net, x: net.rnn(net.emb(x))[1].detach(),
                                     lambda net, x: net.rnn(net.emb(x)).detach()])
def test_a_tuple_that_is_used_as_a_tensor(forward): assert of(forward).id == 'S7'


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


def test_a_state_that_was_written_into():
    def adds():
        h = torch.zeros(3, requires_grad=True).exp()
        z = h.exp()
        h += 1
        (z*h).sum().backward()
    assert explained(adds).id == 'E1'


# Data

class Lines(torch.utils.data.Dataset):
    "One line is shorter than the others"
    def __len__(self): return 4
    def __getitem__(self, i): return torch.arange(9 if i == 3 else 10)


class Encodes(Lines):
    def __getitem__(self, i): return {'a':0}['é']


@pytest.mark.parametrize('n_workers', [0, 1])
def test_a_loader_that_fails(n_workers):
    found = explained(list, torch.utils.data.DataLoader(Encodes(), 4, num_workers=n_workers))
    assert found.id == 'E2' and 'é' in found.message and 'Traceback' not in found.message
    assert explained(list, torch.utils.data.DataLoader(Lines(), 4, num_workers=n_workers)).id == 'E2'


def encodes(stoi, text): return [stoi[c] for c in text]


def test_a_character_that_is_not_in_the_vocabulary():
    found = explained(encodes, {'a':0}, 'aé')
    assert found.id == 'D12' and 'stoi[c]' in found.place.source and 'é' in found.message


# Whatever else

@pytest.mark.parametrize('f,id', [
    (lambda: nn.Embedding(V, 8)('abc'), 'D12'), (lambda: torch.tensor(['a', 'b']), 'D12'), (lambda: torch.optim.SGD([], .1), 'O7'),
    (lambda: torch.optim.SGD([scores.requires_grad_()*2], .1), 'O7'), (lambda: torch.multinomial(torch.tensor([-1., 1.]), 1), 'O4'),
    (lambda: nn.Linear(8, 8)(torch.zeros(8).double()), 'E1'), (lambda: nn.Linear(8, 8)(torch.zeros(2, 8, device='meta')), 'T6'),
    (lambda: torch.empty(10**16), 'E1'), (lambda: scores.reshape(-1, 33), 'E1'), (lambda: torch.zeros(5, 3)+torch.zeros(4, 3), 'S8')])
def test_other_errors(f, id): assert explained(f).id == id


class Odd(Exception):
    def __str__(self): raise ValueError


@pytest.mark.parametrize('error', [ValueError('of something else'), Odd(), KeyError(), KeyError((1, 2)), RuntimeError(3)])
def test_an_error_that_is_not_known_has_its_own_words_and_line(error):
    def fails(): raise error
    found = explained(fails)
    assert (found.id, found.fix, found.place.function) == ('E1', '', 'fails') and type(error).__name__ in found.message


def test_the_cause_of_an_error_is_explained():
    def fails():
        try: loss_of(scores, y)
        except RuntimeError as e: raise ValueError('in other words') from e
    assert explained(fails).id == 'S1'


def test_what_is_not_an_error():
    for e in KeyboardInterrupt(),CancelFitException(): assert explain(e) is None
    assert explain(ValueError('never raised')).place is None
    for o in None,'Expected target size',3:
        with pytest.raises(CharRNNError) as e: explain(o)
        assert 'except Exception as e' in str(e.value)
