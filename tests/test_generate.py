"What is drawn, against the probabilities; nothing else changes"
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from charrnn_fa.errors import CharRNNError
from charrnn_fa.text.vocab import CharVocab
from charrnn_fa.generate import generate, stream
from charrnn_fa.models import CharRNN


@pytest.fixture
def model():
    torch.manual_seed(0)
    m = CharRNN(9, n_hid=16, n_layers=2, emb_sz=8, dropout=0.5)
    with torch.no_grad(): m.decoder.weight.mul_(10)              # far from uniform
    return m.train()


@pytest.fixture
def vocab(): return CharVocab('abcdefgh\n')


def drawn(model, vocab, prompt, bs=10_000, **kwargs):
    "New ids of many samples, (bs, n)"
    return np.array([vocab.encode(o[len(prompt):]).tolist() for o in generate(model, vocab, prompt, bs=bs, **kwargs)])


@pytest.mark.parametrize('temperature', [0.5, 1., 2.])
def test_frequencies_are_softmax(model, vocab, temperature):
    "Two characters of many samples against softmax(logits/T), by a chi-square test; the second knows the first"
    new = drawn(model, vocab, 'ab', n=2, seed=10, temperature=temperature)
    first = int(np.bincount(new[:,0]).argmax())
    model.eval()
    for got,ids in (new[:,0], vocab.encode('ab')), (new[new[:,0] == first,1], vocab.encode('ab' + vocab[first])):
        p = torch.softmax(model(ids[None])[0][0,-1].detach().double()/temperature, -1).numpy()
        counts = np.bincount(got, minlength=9)
        assert chisquare(counts, p*counts.sum()).pvalue > 1e-4
        assert chisquare(counts, np.roll(p, 1)*counts.sum()).pvalue < 1e-9   # and the test would notice


@pytest.mark.parametrize('stop', [None, 'a', ['abc', 'bc', 'cde'], ['aa', 'aaa'], '\n'])
def test_alone_among_others_or_in_pieces(model, vocab, stop):
    "The same text; with `bs` the pieces carry the number of their sample, also if there is one only"
    how = dict(n=60, stop=stop, temperature=2.)
    texts = generate(model, vocab, 'ab', seed=5, bs=4, **how)
    pieces = list(stream(model, vocab, 'ab', seed=5, bs=4, **how))
    assert ['ab' + ''.join(p for j,p in pieces if j == i) for i in range(4)] == texts
    assert all(p for _,p in pieces) and {i for i,_ in stream(model, vocab, 'ab', seed=5, bs=1, **how)} == {0}
    assert texts == [generate(model, vocab, 'ab', seed=5+i, **how) for i in range(4)]
    assert ''.join(stream(model, vocab, 'ab', seed=5, **how)) == texts[0][2:]
    wholes = generate(model, vocab, 'ab', n=60, temperature=2., seed=5, bs=4)
    assert len({*wholes}) == 4 and all(o.startswith(t) for o,t in zip(wholes, texts))
    stops = [stop] if isinstance(stop, str) else stop or []
    ends = [min((o.index(s, 2) for s in stops if s in o[2:]), default=62) for o in wholes]
    assert [len(o) for o in texts] == ends


def test_nothing_else_changes(model, vocab):
    rng,training = torch.get_rng_state(),[m.training for m in model.modules()]
    one,two = (generate(model, vocab, 'abc', n=100, temperature=0) for _ in range(2))
    assert one == two                                              # without dropout
    next(stream(model, vocab, 'abc', n=20))                        # left half-way
    assert training == [m.training for m in model.modules()]
    assert torch.equal(rng, torch.get_rng_state()) and torch.is_grad_enabled()


@pytest.mark.parametrize('length', [1, 5, 1024, 1025, 3000])
def test_prompts_of_any_length(model, vocab, length):
    prompt = ('abcdefgh'*400)[:length]
    text = generate(model, vocab, prompt, n=1, temperature=0)
    model.eval()
    assert text == prompt + vocab[int(model(vocab.encode(prompt)[None])[0][0,-1].argmax())]


def test_unknown_symbol_is_never_drawn():
    v = CharVocab('abcdefgh', unk='\ufffd')
    m = CharRNN(len(v), n_hid=8)
    with torch.no_grad(): m.decoder.bias[v.stoi['\ufffd']] = 50.
    assert '\ufffd' not in generate(m, v, 'a', n=100)


def test_weights_that_are_nan_do_not_write(learn):
    "After a learning rate that was too high; the last character of the vocabulary, for ever"
    with torch.no_grad(): learn.model.decoder.bias.fill_(math.nan)
    for kwargs in {}, dict(bs=2), dict(temperature=0):
        with pytest.raises(CharRNNError, match='NaN'): learn.generate('The ', n=5, **kwargs)
