"Our layers and Muon against torch.nn and NumPy; the hidden state, gradients, copies"
import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn

from charrnn_fa.models import CharRNN, archs, char_splitter
from charrnn_fa.optim import AdamW, Muon, mark_gates
from kills import BF16


@pytest.fixture(params=archs)
def arch(request): return request.param


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


def test_pure_causal_and_sequences_apart(arch):
    "The same call gives the same, the state given is not changed, and a character changes what follows in its sequence"
    m,x = CharRNN(11, n_hid=6, arch=arch, emb_sz=4).eval(),torch.randint(0, 11, (3, 9))
    state = m.empty_state(3)
    first = m(x, state)[0]
    assert torch.equal(m(x)[0], first) and all((o == 0).all() for o in state)
    y = x.clone()
    y[1,5] = (x[1,5]+1) % 11
    changed = (first != m(y)[0]).any(-1)
    assert not changed[[0,2]].any() and not changed[1,:5].any() and changed[1,5:].all()
    first[0,-1].sum().backward()
    assert (m.emb.weight.grad[x[0]].abs().sum(1) > 0).all() and all(p.grad is not None for p in m.parameters())


def test_dropout_only_in_training():
    m,x = CharRNN(11, n_hid=8, n_layers=2, dropout=0.5, emb_drop=0.3),torch.randint(0, 11, (2, 5))
    assert not torch.equal(m(x)[0], m(x)[0])
    m.eval()
    assert torch.equal(m(x)[0], m(x)[0])


@pytest.mark.parametrize('emb_sz', [0, 4])
def test_the_state_is_as_precise_as_the_weights(arch, emb_sz):
    m,x = CharRNN(11, n_hid=6, n_layers=2, arch=arch, emb_sz=emb_sz, head_sz=5).eval(),torch.randint(0, 11, (3, 9))
    single,_ = m(x)
    if arch != 'lstm' or BF16 == 'bf16':
        with torch.autocast('cpu', torch.bfloat16): assert {o.dtype for o in m(x)[1]} == {torch.float32}
    double,state = m.double()(x)
    assert {double.dtype, *(o.dtype for o in state)} == {torch.float64}
    assert torch.allclose(double.float(), single, atol=1e-5)
    m.decoder = nn.Sequential(m.decoder, nn.Tanh())                # may be exchanged
    assert torch.equal(m(x)[0], double.tanh())


def make(): return CharRNN(11, n_hid=8, n_layers=2, emb_sz=8, head_sz=8)


def load(model, **kwargs):
    "A model that has nothing of `model` but its weights"
    new = make()
    new.load_state_dict(deepcopy(model.state_dict()), **kwargs)
    return new


copies = dict(deepcopy=deepcopy, pickle=lambda o: pickle.loads(pickle.dumps(o)), state_dict=load,
              assigned=lambda o: load(o, assign=True)) # parameters in place of others, on which nothing is noted


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
    if how == 'assigned': splitter = mark_gates # the one that notes again
    model = make()
    copy,other = copies[how](model),deepcopy(model)
    ours = steps(model, Muon(splitter(model), lr=0.01))
    assert all_equal(ours, steps(copy, Muon(splitter(copy), lr=0.01)))
    assert not all_equal(ours, steps(other, AdamW(splitter(other), lr=0.01)))


