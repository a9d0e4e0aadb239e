"Ids against a table made by hand; batches against the text itself"
import random
import warnings

import numpy as np
import pytest
import torch
from fastai.data.block import DataBlock
from fastai.data.transforms import FuncSplitter

from charrnn_fa.errors import CharRNNError
from charrnn_fa.text import vocab
from charrnn_fa.text.data import CharBlock, CharDataLoaders
from charrnn_fa.text.streams import CharDL
from charrnn_fa.text.vocab import CharVocab, VocabError

SHAKESPEARE = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def quietly(f, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                            # of smaller batches
        return f(*args, **kwargs)


def test_ids_of_tiny_shakespeare():
    "nanoGPT's table: sorted characters"
    v = CharVocab.from_text('First Citizen:\n' + SHAKESPEARE[::-1]*2)
    assert len(v) == 65
    assert v.encode('hii there').tolist() == [46, 47, 47, 1, 58, 46, 43, 56, 43]
    assert v.textify([18, 47, 56, 57, 58]) == 'First'


@pytest.mark.parametrize('s', ['😉👩‍👩‍👧', '中文字', 'e\u0301a\u0308', 'a\0b', 'x\r\ny', '\ud800', 'z', '\U0010ffff', 'é', '\n'*5, ''])
def test_round_trip(tmp_path, s):
    "By the vocabulary, and through a file"
    v = CharVocab.from_text(s + 'abc')
    assert v.encode(s).tolist() == [sorted(set(s + 'abc')).index(c) for c in s]
    assert v.textify(v.encode(s)) == s and CharVocab.from_json(v.to_json()) == v
    if s == '\ud800': return                                       # a lone surrogate has no UTF-8
    text = (s*80)[:400] + 'ab'*40
    (tmp_path/'t.txt').write_bytes(text.encode())
    dls = quietly(CharDataLoaders.from_corpus, tmp_path/'t.txt', bs=2, seq_len=4, device='cpu')
    assert dls.vocab.textify(dls.train.ids) + dls.vocab.textify(dls.valid.ids) == text


@pytest.mark.parametrize('text', ['', 'abc', 'abcé', 'ab中'])
def test_unknown_characters(text):
    v = CharVocab.from_text(text)
    for unknown in 'Z', 'ß', '文', '😉':
        with pytest.raises(VocabError, match=f'U\\+{ord(unknown):04X}'): v.encode(text[:2]+unknown)
        assert v.textify(v.encode(f'{text[:1]}{unknown}{text[1:]}', unknown='skip')) == text
        with pytest.raises(VocabError): v.encode(unknown, unknown='replace')      # there is nothing to replace it by


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_encoding_in_steps(monkeypatch, dtype):
    "The parts in which a text is encoded do not show, whatever is left out of them"
    monkeypatch.setattr(vocab, '_step', 5)
    v = CharVocab('abcé')
    for text in '', 'abc', 'abcab', 'abécbaé', 'cab'*20 + 'é':
        ids = v.encode(text, dtype=dtype)
        assert ids.dtype == dtype and ids.tolist() == ['abcé'.index(c) for c in text]
    ids = v.encode('Zab中cZZZZZZZZZaé', unknown='skip', dtype=dtype)
    assert ids.dtype == dtype and ids.tolist() == [0, 1, 2, 0, 3]
    assert ids.untyped_storage().nbytes() == ids.nbytes               # no room kept for what was left out
    with pytest.raises(VocabError, match='U\\+005A'): v.encode('a'*12 + 'Z', dtype=dtype)


def test_many_symbols_need_wider_ids():
    text = ''.join(map(chr, range(0x4e00, 0x4e00+300)))*2
    dls = quietly(CharDataLoaders.from_text, text, bs=2, seq_len=8, device='cpu')
    assert dls.train.ids.dtype == torch.int16
    assert dls.vocab.textify(dls.train.ids) + dls.vocab.textify(dls.valid.ids) == text


@pytest.mark.parametrize('bs, sl', [(3, 10), (7, 4), (1, 64), (8, 100), (5, 1)])
@pytest.mark.parametrize('n', [500, 503])
def test_batches_are_the_text(bs, sl, n):
    "On a text of different characters each pair (x, x+1) shows that it is one; a seam would not"
    ids = torch.arange(n)
    dl,seen = quietly(CharDL, [(ids,)], bs=bs, seq_len=sl, shuffle=True, seed=3),[]
    for epoch in range(3):
        xs,ys = map(list, zip(*dl))
        x,y = torch.cat(xs, 1),torch.cat(ys, 1)
        assert torch.equal(y, x+1)                                 # targets are shifted by exactly one
        assert (y[:,:-1] != x[:,1:]).sum() <= 1                    # also across the borders of batches, but at the seam
        assert len(x.unique()) == x.numel() >= n-1-bs              # nothing twice, and at most bs left out
        assert all(o.shape == (dl.bs, dl.seq_len) for o in xs[:-1])
        seen.append(x[0,0].item())
    assert len(set(seen)) == 3                                     # cut elsewhere in each epoch
    dl = CharDL([(ids,)], bs=bs, seq_len=sl)                       # validation leaves nothing out
    batches = list(dl)
    assert len(batches) == len(dl) and all(torch.equal(y, x+1) for x,y in batches)
    assert sorted(torch.cat([y.flatten() for _,y in batches]).tolist()) == list(range(1, n))
    rows = [torch.cat([x[r] for x,_ in batches if r < len(x)]) for r in range(dl.bs)]
    for row in rows: assert torch.equal(row[1:], row[:-1]+1)       # each row goes on where it stopped


@pytest.mark.parametrize('batch', [0, 3, 'the end'])
def test_a_loader_goes_on_from_its_state(dls, batch):
    dl = dls.train
    if batch == 'the end': batch = len(dl)
    for _ in dl: pass
    whole = [x for x,_ in dl.new(shuffle=True)]
    it = iter(dl)
    for _ in range(batch): next(it)
    there,rest = dl.state_dict(),[x for x,_ in it]
    other = dls.train.new(shuffle=True)
    other.load_state_dict(there)
    got = [x for x,_ in other]
    assert len(got) == len(dl)-batch and all(torch.equal(a, b) for a,b in zip(got, rest, strict=True))
    assert dl.state_dict() == other.state_dict() == dict(seed=7, epoch=2, batch=0)
    assert len(list(other)) == len(dl) == len(whole)               # the pass after it is whole again


def test_the_seed_alone_decides(text):
    "No random number of others is drawn"
    rngs = lambda: (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    before = rngs()
    a,b,c = (CharDataLoaders.from_text(text, seed=s, device='cpu') for s in (5, 5, 6))
    assert torch.equal(a.one_batch()[0], b.one_batch()[0]) and not torch.equal(a.one_batch()[0], c.one_batch()[0])
    for _ in a.train: pass
    a.train.new(), a.test_dl(['some text of some length'])
    assert before == rngs()
    for seed in None,5:                                            # chosen or drawn, in loaders made of it too
        dls = CharDataLoaders.from_text(text, seed=seed, device='cpu')
        assert [o.seed_given for o in (dls.train, dls.train.new(), dls.valid.new())] == [seed is not None]*3


def test_split_like_nanogpt():
    dls = CharDataLoaders.from_text((SHAKESPEARE*20_000)[:1_115_394], device='cpu')
    assert (len(dls.train.ids), len(dls.valid.ids), dls.c) == (1_003_854, 111_540, 65)


@pytest.mark.parametrize('n, pct', [(0, .1), (1, .1), (63, .1), (100, .9), (200, 0.), (200, 1.), (200, -1)])
def test_too_short(n, pct):
    with pytest.raises(CharRNNError, match=f'{n} character|{pct}'): CharDataLoaders.from_text('a'*n, valid_pct=pct, device='cpu')


def test_files(tmp_path, text):
    for i in range(4): (tmp_path/f'{i}.txt').write_text(text[i*1000:(i+1)*1000], encoding='utf-8')
    dls = CharDataLoaders.from_files(tmp_path, bs=4, seq_len=16, sep='§', device='cpu')
    assert dls.vocab.textify(dls.train.ids) == '§'.join(text[i*1000:(i+1)*1000] for i in range(3))
    assert dls.vocab.textify(dls.test_dl([tmp_path/'1.txt', 'and more']).ids) == text[1000:2000] + '§and more'
    one = FuncSplitter(lambda o: o.name == '1.txt')
    for pct in 0, 1, 10, -.1:                                      # a splitter does not look at it
        with pytest.raises(CharRNNError, match='between 0 and 1'): CharDataLoaders.from_files(tmp_path, valid_pct=pct)
        dls = CharDataLoaders.from_files(tmp_path, splitter=one, valid_pct=pct, bs=4, seq_len=16, device='cpu')
        assert dls.vocab.textify(dls.valid.ids) == text[1000:2000]


def test_vocabulary_sees_what_get_x_makes(text):
    items = [text[:1000].upper(), text[1000:2000].upper()]
    block = DataBlock(blocks=CharBlock(seq_len=8), get_x=str.lower, splitter=lambda items: ([0], [1]))
    dls = block.dataloaders(items, bs=2, device='cpu')
    assert dls.vocab.textify(dls.valid.ids) == text[1000:2000].lower()


NAMES = ['shakespeare', 'https://example.org/a/book/with/a/rather/long/name/that/is/longer/than/needed.txt', '~/mine.txt',
         '/content/drive/MyDrive/my texts/a name of a file that is not there/because Drive is not mounted.txt', '~']


@pytest.mark.parametrize('name', NAMES)
def test_the_name_of_a_text_is_not_a_text(name, tmp_path, monkeypatch):
    "Found in a notebook: a link was given to `from_text`, and its 80 characters were trained on"
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path/'mine.txt').write_text('a text\n'*20)
    with pytest.raises(CharRNNError, match='from_corpus'): CharDataLoaders.from_text(name)
    with pytest.raises(CharRNNError, match='load_corpus'): CharDataLoaders.from_documents([name], [[0], []])
    block = DataBlock(CharBlock(seq_len=4), get_items=lambda o: [name]*2, splitter=lambda o: ([0], [1]))
    with pytest.raises(CharRNNError, match='Path'): block.dataloaders(None, bs=2)


@pytest.mark.parametrize('line', ['count: one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve',
                                  'See https://example.org for more, and ~ for the rest, or / for all that there is. ' * 2])
def test_a_text_of_one_line_is_a_text(line): assert CharDataLoaders.from_text(line, bs=1, seq_len=8).train.n_pairs
