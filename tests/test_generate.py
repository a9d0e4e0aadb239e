"What is drawn, against the probabilities; nothing else changes"
import inspect
import math

import numpy as np
import pytest
import torch
from fastcore.docments import docments
from scipy.stats import chisquare

from charrnn_fa.core import CharRNNError
from charrnn_fa.text.vocab import CharVocab
from charrnn_fa.generate import generate, next_probs, sample_ids, stream
from charrnn_fa.models import CharRNN


@pytest.fixture
def model():
    torch.manual_seed(0)
    m = CharRNN(9, n_hid=16, n_layers=2, emb_sz=8, dropout=0.5)
    with torch.no_grad(): m.decoder.weight.mul_(4)               # far from uniform
    return m.train()


@pytest.fixture
def vocab(): return CharVocab('abcdefgh\n')


@pytest.mark.parametrize('temperature', [0.5, 1., 2.])
def test_frequencies_are_softmax(model, vocab, temperature):
    "First characters of many samples against softmax(logits/T), by a chi-square test"
    model.eval()
    logits = model(vocab.encode('ab')[None])[0][0,-1].detach()
    expected = torch.softmax(logits.double()/temperature, -1).numpy()
    n = 20_000
    got = np.bincount(next(sample_ids(model, vocab.encode('ab'), bs=n, seed=10, temperature=temperature)).numpy(),
                      minlength=9)
    assert chisquare(got, expected*n).pvalue > 1e-4
    assert chisquare(got, np.roll(expected, 1)*n).pvalue < 1e-9   # and the test would notice


def test_second_character_depends_on_first(model, vocab):
    "The state goes on: p(second | first) is that of the model fed with both"
    model.eval()
    it = sample_ids(model, vocab.encode('a'), bs=20_000, seed=3, temperature=1.)
    first,second = next(it).numpy(),next(it).numpy()
    c = np.bincount(first).argmax()
    expected = torch.softmax(model(torch.tensor([[vocab.stoi['a'], c]]))[0][0,-1].double(), -1).detach().numpy()
    got = np.bincount(second[first == c], minlength=9)
    assert chisquare(got, expected*got.sum()).pvalue > 1e-4


def test_alone_or_among_others(model, vocab):
    many = generate(model, vocab, 'abc', n=200, seed=100, bs=32)
    for i in 0, 7, 31: assert generate(model, vocab, 'abc', n=200, seed=100+i) == many[i]
    assert len(set(many)) == 32
    assert ''.join(stream(model, vocab, 'abc', n=200, seed=100)) == many[0][3:]


@pytest.mark.parametrize('stop', [None, 'a', ['abc', 'bc', 'cde'], ['aa', 'aaa'], '\n'])
def test_stream_of_many(model, vocab, stop):
    "With `bs` the pieces carry the number of their sample, also if there is one only"
    texts = generate(model, vocab, 'ab', n=60, seed=5, bs=4, stop=stop, temperature=2.)
    pieces = list(stream(model, vocab, 'ab', n=60, seed=5, bs=4, stop=stop, temperature=2.))
    assert ['ab' + ''.join(p for j,p in pieces if j == i) for i in range(4)] == texts
    assert all(p for _,p in pieces)
    assert {i for i,_ in stream(model, vocab, 'ab', n=60, seed=5, bs=1)} == {0}
    assert texts == [generate(model, vocab, 'ab', n=60, seed=5+i, stop=stop, temperature=2.) for i in range(4)]


def test_arguments_are_shown(model, vocab):
    "What `generate` hands on is in its signature, with the same default, and documented"
    args,docs = inspect.signature(generate).parameters,docments(generate)
    assert list(args)[:5] == ['model', 'vocab', 'prompt', 'n', 'temperature']
    for k,p in inspect.signature(stream).parameters.items(): assert args[k].default == p.default and docs[k]
    assert generate(model, vocab, 'a', 50, 3., seed=1) == generate(model, vocab, 'a', n=50, temperature=3., seed=1)
    with pytest.raises(TypeError): generate(model, vocab, 'a', 5, 0.8, 3)  # not taken for `bs`


def test_nothing_else_changes(model, vocab):
    rng,training = torch.get_rng_state(),[m.training for m in model.modules()]
    generate(model, vocab, 'abc', n=20)
    s = stream(model, vocab, 'abc', n=20)
    next(s)                                                        # left half-way
    assert training == [m.training for m in model.modules()]
    assert torch.equal(rng, torch.get_rng_state()) and torch.is_grad_enabled()


def test_dropout_is_off(model, vocab):
    assert generate(model, vocab, 'abc', n=100, temperature=0) == generate(model, vocab, 'abc', n=100, temperature=0)


@pytest.mark.parametrize('length', [1, 5, 1024, 1025, 3000])
def test_prompts_of_any_length(model, vocab, length):
    prompt = ('abcdefgh'*400)[:length]
    text = generate(model, vocab, prompt, n=1, temperature=0)
    model.eval()
    assert text == prompt + vocab[int(model(vocab.encode(prompt)[None])[0][0,-1].argmax())]


def test_stop_strings(model, vocab):
    whole = generate(model, vocab, 'a', n=300, seed=1)
    stop = whole[50:54]
    end = whole.index(stop, 1)
    assert generate(model, vocab, 'a', n=300, seed=1, stop=stop) == whole[:end]
    assert 'a' + ''.join(stream(model, vocab, 'a', n=300, seed=1, stop=[stop, 'no such'])) == whole[:end]
    assert generate(model, vocab, 'a', n=300, seed=1, stop='no such') == whole
    texts = generate(model, vocab, 'a', n=300, seed=1, bs=4, stop=stop)
    assert texts[0] == whole[:end] and all(stop not in t[1:] for t in texts)


def test_unknown_symbol_is_never_drawn():
    v = CharVocab('abcdefgh', unk='\ufffd')
    torch.manual_seed(0)
    m = CharRNN(len(v), n_hid=8)
    with torch.no_grad(): m.decoder.bias[v.stoi['\ufffd']] = 50.
    assert '\ufffd' not in generate(m, v, 'a', n=100)


@pytest.mark.parametrize('bad', [dict(temperature=-0.1), dict(top_k=0), dict(top_p=1.01), dict(top_p=0), dict(min_p=-1),
                                 dict(prompt='xyz'), dict(temperature=float('nan')), dict(stop=''),
                                 dict(stop=['a', '']), dict(n=-1), dict(bs=0)])
def test_bad_values(model, vocab, bad):
    with pytest.raises(CharRNNError): generate(model, vocab, **bad)


def test_entropy_rises_with_temperature():
    logits = torch.randn(50)
    h = [-(p := next_probs(logits, t)).mul(p.clamp_min(1e-300).log()).sum().item() for t in (0.3, 0.7, 1, 2, 100)]
    assert h == sorted(h) and abs(h[-1] - math.log(50)) < 1e-2


def test_hardly_any_temperature_is_the_best_character():
    logits = torch.randn(4, 50)
    assert torch.equal(next_probs(logits, 1e-320), next_probs(logits, 0))


def test_weights_that_are_no_numbers_do_not_write(learn):
    "After a rate that was too high; the last character of the vocabulary, for ever"
    with torch.no_grad(): learn.model.decoder.bias.fill_(math.nan)
    for kwargs in {}, dict(bs=2), dict(temperature=0):
        with pytest.raises(CharRNNError, match='NaN.*lower rate'): learn.generate('The ', n=5, **kwargs)
