"""min-char-rnn in bare tensors, validation of fewer rows, torch.func"""
import pytest
import torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner
from fastai.callback.rnn import ModelResetter
from torch import nn

from charrnn_fa.doctor import diagnose

TEXT = ''.join(f'{a} {b} the {c}.\n' for a in ('Ada', 'Ben', 'Cleo') for b in ('sees', 'finds', 'paints')
               for c in ('sea', 'cat', 'moon'))*9
LETTERS = sorted(set(TEXT))
V = len(LETTERS)
IDS = [LETTERS.index(c) for c in TEXT]


def found(**kwargs): return [(o.id, o.certainty) for o in diagnose(**{'trials':False, **kwargs}).findings]


# One symbol a step, one-hot by hand, and the number that counts picked of a vector

def min_char_rnn(ahead=1, squash=torch.tanh, keeps=lambda h: h, surprise=lambda y, i: -y.log_softmax(0)[i,0]):
    torch.manual_seed(1)
    W = {k:(torch.randn(*s)/5).requires_grad_() for k,s in dict(xh=(24, V), hh=(24, 24), hy=(V, 24)).items()}
    last = torch.zeros(24, 1)
    def step(inputs, targets):
        nonlocal last
        loss,h = 0,last
        for i,t in zip(inputs, targets):
            x = torch.zeros(V, 1)
            x[i] = 1
            h = squash(W['xh']@x + W['hh']@keeps(h))
            loss = loss + surprise(W['hy']@h, t)
        loss.backward()
        last = h.detach()
        with torch.no_grad():
            for p in W.values():
                p -= .01*p.grad.clamp(-5, 5)
                p.grad = None
        return loss.item()/len(inputs)
    batches = [(IDS[i:i+20], IDS[i+ahead:i+ahead+20]) for i in range(0, 400, 20)]
    return dict(step_function=step, model=W, batches=batches)


def share(y, i): return -(y.exp()/y.exp().sum())[i,0].log()


@pytest.mark.parametrize('change,want', [
    ({}, []), (dict(surprise=share), []), (dict(ahead=2), [('D2', 'exact')]), (dict(ahead=2, surprise=share), [('D2', 'exact')]),
    (dict(keeps=torch.Tensor.detach), [('R1', 'exact')]), (dict(squash=lambda h: h), [('R8', 'exact')])])
def test_one_symbol_a_step(change, want): assert found(**min_char_rnn(**change)) == want


# A state of as many rows as training has, in a validation of fewer

class Keeps(nn.Module):
    "An LSTM that keeps its state"
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 12),nn.LSTM(12, 24, batch_first=True),nn.Linear(24, V)
        self.reset()
    def reset(self): self.state = None
    def forward(self, x):
        y,state = self.rnn(self.emb(x), self.state)
        self.state = tuple(o.detach() for o in state)
        return self.out(y)


def streams(ids, bs, sl=16):
    n = (len(ids)-1)//bs//sl*sl
    x,y = (torch.tensor(ids[s:s+n*bs]).view(bs, n) for s in (0, 1))
    return list(zip(x.split(sl, 1), y.split(sl, 1)))


@pytest.mark.parametrize('bs,cbs,want', [(4, [], ['S6']), (4, [ModelResetter], []), (8, [], ['R6'])])
def test_validation_of_fewer_rows(bs, cbs, want):
    torch.manual_seed(1)
    dls = DataLoaders(streams(IDS[:3500], 8), streams(IDS[3500:], bs))
    learn = Learner(dls, Keeps(), CrossEntropyLossFlat(), lr=1e-3, cbs=[o() for o in cbs])
    ids = [o for o,_ in found(learn=learn, text=TEXT)]
    assert [o for o in ids if o not in ('D6', 'D11')] == want # so small a text says the same again


def test_parameters_in_the_hands_of_torch_func():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Embedding(V, 16), nn.Linear(16, V))
    params = dict(net.named_parameters())
    def loss_of(ps, x, y):
        scores = torch.func.functional_call(net, ps, (x,))
        return nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())
    def step(x, y):
        gs,loss = torch.func.grad_and_value(loss_of)({k:p.detach() for k,p in params.items()}, x, y)
        with torch.no_grad():
            for k,p in params.items(): p -= .3*gs[k]
        return loss.item()
    ids = [o for o,_ in found(step_function=step, model=net, batches=streams(IDS[:1500], 8))]
    assert 'O7' not in ids
