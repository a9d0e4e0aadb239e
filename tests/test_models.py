"Our layers against NumPy and torch.nn; the state, gradients and initial weights"
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from charrnn_fa.core import CharRNNError
from charrnn_fa.models import LSTM, CharRNN, archs, char_splitter, count_params, gate_matrices
from charrnn_fa.optim import AdamW, Muon, mark_gates
from kills import BF16


@pytest.fixture(params=archs)
def arch(request): return request.param


def test_elman_against_numpy():
    m,x = CharRNN(7, n_hid=5, arch='rnn', emb_sz=0),torch.randint(0, 7, (2, 9))
    Wxh,Whh,bh,Why,by = (o.detach().numpy() for o in (m.rnns[0].Wxh, m.rnns[0].Whh, m.rnns[0].bh,
                                                      m.decoder.weight, m.decoder.bias))
    for row,got in zip(x, m(x)[0].detach().numpy()):
        h = np.zeros(5)
        for t,i in enumerate(row):
            h = np.tanh(Wxh @ np.eye(7)[i] + Whh @ h + bh)
            assert np.allclose(Why @ h + by, got[t], atol=1e-6)


@pytest.mark.parametrize('arch, ref', [('lstm', nn.LSTM), ('gru', nn.GRU), ('rnn', nn.RNN)])
@pytest.mark.parametrize('n_layers', [1, 3])
def test_against_torch(arch, ref, n_layers):
    "One stacked reference layer with our weights, from a state that is not empty"
    m = CharRNN(11, n_hid=6, n_layers=n_layers, arch=arch, emb_sz=4).eval()
    r = ref(4, 6, n_layers, batch_first=True)
    with torch.no_grad():
        for i,layer in enumerate(m.rnns):
            if arch == 'rnn':
                ours = dict(weight_ih=layer.Wxh, weight_hh=layer.Whh, bias_ih=layer.bh, bias_hh=torch.zeros(6))
            else: ours = {k[:-3]:p for k,p in layer.rnn.named_parameters()}
            for k,p in ours.items(): getattr(r, f'{k}_l{i}').copy_(p)
    x,state = torch.randint(0, 11, (3, 8)),tuple(torch.randn(n_layers, 3, 6) for _ in range(m.n_states))
    logits,new = m(x, state)
    h,s = r(m.emb(x), state if len(state) > 1 else state[0])
    assert torch.allclose(logits, m.decoder(h), atol=1e-6)
    for a,b in zip(new, s if isinstance(s, tuple) else (s,)): assert torch.allclose(a, b, atol=1e-6)


def test_two_halves_equal_the_whole(arch):
    m,x = CharRNN(11, n_hid=6, n_layers=2, arch=arch, emb_sz=4).eval(),torch.randint(0, 11, (3, 9))
    whole,end = m(x)
    a,s = m(x[:,:4])
    b,end2 = m(x[:,4:], s)
    assert torch.allclose(torch.cat([a, b], 1), whole, atol=1e-6)
    for p,q in zip(end, end2): assert torch.allclose(p, q, atol=1e-6)


def test_pure(arch):
    "Nothing is kept: the same call gives the same, and the state given is not changed"
    m,x = CharRNN(11, n_hid=6, arch=arch).eval(),torch.randint(0, 11, (3, 9))
    state = m.empty_state(3)
    first = m(x, state)[0]
    assert torch.equal(m(x)[0], first) and all((o == 0).all() for o in state)


def test_causal_and_rows_apart(arch):
    m,x = CharRNN(11, n_hid=6, arch=arch).eval(),torch.randint(0, 11, (3, 9))
    y = x.clone()
    y[1,5] = (x[1,5]+1) % 11
    changed = (m(x)[0] != m(y)[0]).any(-1)
    assert not changed[[0,2]].any() and not changed[1,:5].any() and changed[1,5:].all()


def test_gradient_reaches_back(arch):
    m,x = CharRNN(11, n_hid=6, arch=arch, emb_sz=4),torch.arange(9)[None]
    m(x)[0][0,-1].sum().backward()
    assert (m.emb.weight.grad[:9].abs().sum(1) > 0).all()
    assert all(p.grad is not None for p in m.parameters())


def test_initial_weights():
    m = CharRNN(11, n_hid=8, arch='lstm', emb_sz=4)
    r = m.rnns[0].rnn
    for w in r.weight_hh_l0.chunk(4): assert torch.allclose(w @ w.T, torch.eye(8), atol=1e-5)
    assert r.bias_ih_l0[8:16].eq(1).all() and r.bias_ih_l0[:8].eq(0).all() and r.bias_hh_l0.eq(0).all()


def test_tie():
    m = CharRNN(11, n_hid=8, emb_sz=8, tie=True)
    assert m.decoder.weight is m.emb.weight
    assert count_params(m) == 11*8 + 11 + 4*8*16 + 64 == sum(p.numel() for g in char_splitter(m) for p in g)
    with pytest.raises(CharRNNError, match='emb_sz equal to n_hid'): CharRNN(11, n_hid=8, emb_sz=4, tie=True)


def test_dropout_only_in_training():
    m,x = CharRNN(11, n_hid=8, n_layers=2, dropout=0.5, emb_drop=0.3),torch.randint(0, 11, (2, 5))
    assert not torch.equal(m(x)[0], m(x)[0])
    m.eval()
    assert torch.equal(m(x)[0], m(x)[0])


def test_state_stays_single_under_autocast():
    m,x = CharRNN(11, n_hid=8, arch='lstm' if BF16 == 'bf16' else 'gru'),torch.randint(0, 11, (2, 5))
    with torch.autocast('cpu', torch.bfloat16): _,state = m(x)
    assert all(o.dtype == torch.float32 for o in state)


class Lookalike(nn.Module):
    "The parts of a `CharRNN`, by somebody else"
    n_gates = 4
    def __init__(self):
        super().__init__()
        self.emb,self.rnns,self.head,self.decoder = (nn.Embedding(11, 4),nn.ModuleList([LSTM(4, 8)]),
                                                     nn.Identity(),nn.Linear(8, 11))


def make(tie=True): return CharRNN(11, n_hid=8, n_layers=2, emb_sz=8, head_sz=8, tie=tie)


def load(model):
    "A model that has nothing of `model` but its weights"
    new = make()
    new.load_state_dict(model.state_dict())
    return new


copies = dict(deepcopy=deepcopy, pickle=lambda o: pickle.loads(pickle.dumps(o)), state_dict=load)


def steps(model, opt, n=3):
    "The weights after `n` steps with gradients that are drawn"
    gen = torch.Generator().manual_seed(0)
    for _ in range(n):
        for p in model.parameters(): p.grad = torch.randn(p.shape, generator=gen)
        opt.step()
    return [p.detach().clone() for p in model.parameters()]


def all_equal(a, b): return all(map(torch.equal, a, b))


@pytest.mark.parametrize('how', copies)
@pytest.mark.parametrize('splitter', [mark_gates, char_splitter, lambda m: list(m.parameters())])
def test_a_copied_model_has_its_gates(how, splitter):
    "PyTorch's copy of a parameter has no attributes; whatever makes the groups, Muon treats the same matrices of a copy"
    model = make()
    copy,other = copies[how](model),deepcopy(model)
    ours = steps(model, Muon(splitter(model), lr=0.01))
    assert all_equal(ours, steps(copy, Muon(splitter(copy), lr=0.01)))
    assert not all_equal(ours, steps(other, AdamW(splitter(other), lr=0.01)))


@pytest.mark.parametrize('kind', [Lookalike, make])
@pytest.mark.parametrize('how', ['deepcopy', 'pickle'])
def test_model_and_optimiser_copied_together(kind, how):
    "As in a copied Learner: no splitter is called again, and the steps go on as before"
    model = kind()
    opt = Muon(mark_gates(model), lr=0.01)
    steps(model, opt)
    copy,opt2 = copies[how]((model, opt))
    assert all_equal(steps(model, opt), steps(copy, opt2))
    assert [p.shape for p in opt2.n_gates] == [p.shape for p in opt.n_gates]
    assert not any(p in opt.n_gates for p in opt2.n_gates)


def test_parameters_put_in_place_of_others():
    "Nothing is noted on them until an optimiser is made"
    model,new = make(tie=False),make(tie=False)
    new.load_state_dict(deepcopy(model.state_dict()), assign=True)
    assert all_equal(steps(model, Muon(mark_gates(model), lr=0.01)), steps(new, Muon(mark_gates(new), lr=0.01)))


def muon_by_hand(W, grads, n_gates, lr, mom=.9, wd=.01, n_steps=4):
    "Steps of Muon with gates that are made equally long, in NumPy"
    avg = np.zeros_like(W)
    for g in grads:
        avg = mom*avg + (1-mom)*g
        ahead = mom*avg + (1-mom)*g
        X = np.concatenate([o/np.linalg.norm(o) for o in np.split(ahead, n_gates)])
        X /= np.linalg.norm(X)
        for _ in range(n_steps):
            A = X @ X.T
            X = 3.4445*X + (-4.7750*A + 2.0315*A@A) @ X
        W = W*(1-lr*wd) - lr*max(1, W.shape[0]/W.shape[1])**.5*X
    return W


@pytest.mark.parametrize('shape,n_gates', [((24, 6), 4), ((6, 24), 1), ((8, 8), 2)])
def test_muon_is_what_it_says(shape, n_gates):
    rng = np.random.default_rng(0)
    W,grads = rng.normal(size=shape),[rng.normal(size=shape)*rng.exponential(size=(shape[0], 1)) for _ in range(5)]
    p = nn.Parameter(torch.tensor(W))
    p.n_gates = n_gates
    opt = Muon([p], lr=.002)
    for g in grads:
        p.grad = torch.tensor(g)
        opt.step()
    assert np.allclose(p.detach().numpy(), muon_by_hand(W, grads, n_gates, .02), atol=1e-6)


def test_a_choice_of_gates_stays():
    model = CharRNN(11, n_hid=8)
    for p,_ in gate_matrices(model): p.n_gates = 1
    assert set(Muon(mark_gates(model), lr=0.01).n_gates.values()) == {1}


@pytest.mark.parametrize('emb_sz', [0, 4])
def test_double_precision(arch, emb_sz):
    "The memory is as precise as the weights"
    m,x = CharRNN(11, n_hid=6, n_layers=2, arch=arch, emb_sz=emb_sz, head_sz=5).eval(),torch.randint(0, 11, (3, 9))
    single,_ = m(x)
    double,state = m.double()(x)
    assert {double.dtype, *(o.dtype for o in state)} == {torch.float64}
    assert torch.equal(m(x, state)[0], m(x, m(x)[1])[0]) and torch.allclose(double.float(), single, atol=1e-5)


def test_a_decoder_may_be_exchanged():
    "The memory was made like its weights"
    model = CharRNN(9, n_hid=8)
    model.decoder = torch.nn.Sequential(model.decoder, torch.nn.Tanh())
    scores,state = model(torch.zeros(2, 3, dtype=torch.long))
    assert scores.shape == (2, 3, 9) and state[0].dtype == torch.float32
