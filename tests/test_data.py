"Ids against a table made by hand; batches against the text itself"
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import DataBlock
from fastai.data.transforms import FuncSplitter, get_text_files

from charrnn_fa.text import vocab
from charrnn_fa.core import CharRNNError, charrnn_home
from charrnn_fa.text.read import TextWarning
from charrnn_fa.text.vocab import CharVocab, VocabError
from charrnn_fa.text.streams import CharDL
from charrnn_fa.text.data import CharBlock, CharDataLoaders, split_files
from charrnn_fa.text.drawings import load_drawings

SHAKESPEARE = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_ids_of_tiny_shakespeare():
    "nanoGPT's table: sorted characters"
    v = CharVocab.from_text('First Citizen:\n' + SHAKESPEARE[::-1]*2)
    assert len(v) == 65
    assert v.encode('hii there').tolist() == [46, 47, 47, 1, 58, 46, 43, 56, 43]
    assert v.textify([18, 47, 56, 57, 58]) == 'First'


AWKWARD = ['😉👩‍👩‍👧', '中文字', 'e\u0301a\u0308', 'a\0b', 'x\r\ny', '\ud800', 'z', '\U0010ffff', 'é', '\n'*5]


@pytest.mark.parametrize('s', AWKWARD)
def test_round_trip(s):
    v = CharVocab.from_text(s + 'abc')
    assert v.encode(s).tolist() == [sorted(set(s + 'abc')).index(c) for c in s]
    assert v.textify(v.encode(s)) == s
    assert CharVocab.from_json(v.to_json()) == v


def test_no_character():
    v = CharVocab.from_text('')
    assert len(v) == 0 and v.textify([]) == '' and v.encode('').tolist() == []
    with pytest.raises(VocabError): v.encode('a')


def test_textify_takes_anything():
    v = CharVocab('abcd')
    for ids in ([0, 1, 2], (0, 1, 2), np.array([[0, 1, 2]]), torch.tensor([[0], [1], [2]]),
                torch.tensor([0, 1, 2], dtype=torch.uint8)):
        assert v.textify(ids) == 'abc'
        assert v.textify(ids, sep='-') == 'a-b-c'
    for bad in ([4], [-1]):
        with pytest.raises(VocabError): v.textify(bad)


@pytest.mark.parametrize('text', ['abc', 'abcé', 'ab中'])
def test_unknown_characters(text):
    v = CharVocab.from_text(text)
    for unknown in 'Z', 'ß', '文', '😉':
        with pytest.raises(VocabError, match=f'U\\+{ord(unknown):04X}'): v.encode('ab'+unknown)
        assert v.textify(v.encode(f'a{unknown}b', unknown='skip')) == 'ab'
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
    assert v.encode('Z'*11, unknown='skip', dtype=dtype).shape == (0,)
    with pytest.raises(VocabError, match='U\\+005A'): v.encode('a'*12 + 'Z', dtype=dtype)


def test_many_symbols_need_wider_ids():
    text = ''.join(map(chr, range(0x4e00, 0x4e00+300)))*2
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dls = CharDataLoaders.from_text(text, bs=2, seq_len=8, device='cpu')
    assert dls.train.ids.dtype == torch.int16
    assert dls.vocab.textify(dls.train.ids) + dls.vocab.textify(dls.valid.ids) == text


def test_ten_megabytes_on_one_line():
    text = 'the quick brown fox '*500_000
    v = CharVocab.from_text(text)
    t = time.perf_counter()
    ids = v.encode(text, dtype=torch.uint8)
    assert len(ids) == 10**7 and ids[:20].tolist() == [sorted(set(text)).index(c) for c in text[:20]]
    assert v.textify(ids[-20:]) == text[-20:]


@pytest.mark.parametrize('bs, sl', [(3, 10), (7, 4), (1, 64), (8, 100), (5, 1)])
@pytest.mark.parametrize('n', [500, 503])
def test_training_batches_are_the_text(bs, sl, n):
    "On a text of different characters each pair (x, x+1) shows that it is one; a seam would not"
    text = ''.join(map(chr, range(1000, 1000+n)))
    v = CharVocab.from_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                            # of smaller batches
        dl = CharDL([(v.encode(text),)], bs=bs, seq_len=sl, shuffle=True, seed=3)
    seen = []
    for epoch in range(3):
        xs,ys = map(list, zip(*dl))
        x,y = torch.cat(xs, 1),torch.cat(ys, 1)
        assert torch.equal(y, x+1)                                 # targets are shifted by exactly one
        assert (y[:,:-1] != x[:,1:]).sum() <= 1                    # also across the borders of batches, but at the seam
        assert len(x.unique()) == x.numel() >= n-1-bs              # nothing twice, and at most bs left out
        assert all(o.shape == (dl.bs, dl.seq_len) for o in xs[:-1])
        seen.append(x[0,0].item())
    assert len(set(seen)) == 3                                     # cut elsewhere in each epoch


@pytest.mark.parametrize('bs, sl', [(3, 10), (7, 4), (1, 64), (8, 100), (5, 1)])
@pytest.mark.parametrize('n', [500, 503])
def test_validation_leaves_nothing_out(bs, sl, n):
    text = ''.join(map(chr, range(1000, 1000+n)))
    v = CharVocab.from_text(text)
    dl = CharDL([(v.encode(text),)], bs=bs, seq_len=sl)
    batches = list(dl)
    assert len(batches) == len(dl)
    assert sorted(torch.cat([y.flatten() for _,y in batches]).tolist()) == list(range(1, n))
    assert all(torch.equal(y, x+1) for x,y in batches)
    rows = [torch.cat([x[r] for x,_ in batches if r < len(x)]) for r in range(dl.bs)]
    for row in rows: assert torch.equal(row[1:], row[:-1]+1)       # each row goes on where it stopped


def test_state_dict(dls):
    dl = dls.train
    it = iter(dl)
    for _ in range(3): next(it)
    there = dl.state_dict()
    rest = [x for x,_ in it]
    other = dls.train.new(shuffle=True)
    other.load_state_dict(there)
    assert all(torch.equal(a, b) for a,(b,_) in zip(rest, other, strict=True))
    assert dl.state_dict() == other.state_dict() == dict(seed=7, epoch=1, batch=0)


@pytest.mark.parametrize('batch', [0, 1, 5])
def test_go_to_is_a_state_with_another_batch(dls, batch):
    dl = dls.train
    for _ in dl: pass
    other = dl.new(shuffle=True)
    other.load_state_dict({**dl.state_dict(), 'batch':batch})
    dl.go_to(batch)
    assert dl.state_dict() == other.state_dict() == dict(seed=7, epoch=1, batch=batch)
    got = [x for x,_ in dl]
    assert len(got) == len(dl)-batch and all(torch.equal(a, b) for a,(b,_) in zip(got, other, strict=True))
    assert len(list(dl)) == len(dl)                                # the pass after it is whole again


def test_go_to_the_end_of_an_epoch(dls):
    dl = dls.train
    dl.go_to(len(dl))
    assert list(dl) == [] and dl.state_dict() == dict(seed=7, epoch=1, batch=0)


@pytest.mark.parametrize('shuffle', [True, False])
def test_batch_size_is_bs(shuffle):
    "PyTorch's name for it, which fastai's loaders take; the streams must be as many as the rows"
    ids = torch.arange(200)
    a,b = (CharDL([(ids,)], seq_len=5, shuffle=shuffle, seed=1, **kw) for kw in (dict(bs=4), dict(batch_size=4)))
    assert all(torch.equal(x, y) for (x,_),(y,_) in zip(a, b, strict=True))
    with pytest.raises(CharRNNError, match='1 or more'): CharDL([(ids,)], batch_size=0)


def test_global_random_numbers_stay(text):
    import random
    before = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()
    dls = CharDataLoaders.from_text(text, device='cpu')
    for _ in dls.train: pass
    dls.train.new(); dls.one_batch(); dls.test_dl(['some text of some length'])
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_seed_is_the_same_cut(text):
    a,b,c = (CharDataLoaders.from_text(text, seed=s, device='cpu') for s in (5, 5, 6))
    assert torch.equal(a.one_batch()[0], b.one_batch()[0]) and not torch.equal(a.one_batch()[0], c.one_batch()[0])


def test_split_like_nanogpt():
    text = (SHAKESPEARE*20_000)[:1_115_394]
    dls = CharDataLoaders.from_text(text, device='cpu')
    assert (len(dls.train.ids), len(dls.valid.ids)) == (1_003_854, 111_540)


@pytest.mark.parametrize('n, pct', [(0, .1), (1, .1), (63, .1), (100, .9), (200, 0.), (200, 1.), (200, -1)])
def test_too_short(n, pct):
    with pytest.raises(CharRNNError) as e:
        CharDataLoaders.from_text('ab'*(n//2) + 'c'*(n%2), valid_pct=pct, device='cpu')
    assert str(n) in str(e.value) or str(pct) in str(e.value)


def test_shortest_text_gives_smaller_batches():
    with pytest.warns(UserWarning, match='bs=4 and seq_len=14'):
        dls = CharDataLoaders.from_text('abcdefgh'*8, device='cpu')
    assert sum(y.numel() for _,y in dls.valid) == len(dls.valid.ids)-1


@pytest.fixture
def folder(tmp_path, text):
    for i in range(4): (tmp_path/f'{i}.txt').write_text(text[i*1000:(i+1)*1000], encoding='utf-8')
    return tmp_path


def test_data_block_by_file(folder, text):
    block = DataBlock(blocks=CharBlock(seq_len=16, seed=1), get_items=get_text_files,
                      splitter=FuncSplitter(lambda o: o.name == '2.txt'))
    dls = block.dataloaders(folder, bs=4, device='cpu')
    assert dls.vocab.textify(dls.valid.ids) == text[2000:3000]
    assert len(dls.train.ids) == 3000
    assert set(dls.vocab) == set(text[:4000])                        # the vocabulary covers all items
    assert dls.one_batch()[0].shape == (4, 16)


def test_from_files(folder, text):
    dls = CharDataLoaders.from_files(folder, bs=4, seq_len=16, sep='§', device='cpu')
    assert dls.vocab.textify(dls.train.ids) == '§'.join(text[i*1000:(i+1)*1000] for i in range(3))
    dls = CharDataLoaders.from_files([folder/'0.txt'], bs=4, seq_len=16, device='cpu')
    assert len(dls.valid.ids) == 100


@pytest.mark.parametrize('pct', [0, 1, 10, -.1])
def test_share_of_files(folder, pct):
    "A share that is none is refused for files as it is for a text"
    with pytest.raises(CharRNNError, match='between 0 and 1'):
        CharDataLoaders.from_files(folder, valid_pct=pct, device='cpu')
    dls = CharDataLoaders.from_files(folder, splitter=FuncSplitter(lambda o: o.name == '1.txt'), valid_pct=pct, bs=4,
                                     seq_len=16, device='cpu')
    assert len(dls.valid.ids) == 1000                                # a splitter does not look at it


def test_show_and_decode(dls, text, capsys):
    b = dls.one_batch()
    rows = dls.train.decode_batch(b)
    assert len(rows) == 4 and all(x[1:] == y[:-1] for x,y in rows[1:])
    assert rows[0][0] == dls.vocab.textify(b[0][0])
    dls.show_batch(max_n=2)
    out = capsys.readouterr().out
    assert 'target' in out and len(out.splitlines()) == 3


def test_test_dl(dls, tmp_path, text):
    assert dls.vocab.textify(dls.test_dl(['a text', ' and more']).ids) == 'a text and more'
    (tmp_path/'t.txt').write_text(text[:300], encoding='utf-8')
    assert dls.vocab.textify(dls.test_dl([tmp_path/'t.txt']).ids) == text[:300]


def test_vocabulary_sees_what_get_x_makes(text):
    items = [text[:1000].upper(), text[1000:2000].upper()]
    block = DataBlock(blocks=CharBlock(seq_len=8), get_x=str.lower, splitter=lambda items: ([0], [1]))
    dls = block.dataloaders(items, bs=2, device='cpu')
    assert dls.vocab.textify(dls.valid.ids) == text[1000:2000].lower()


@pytest.mark.parametrize('bad', [dict(bs=0), dict(seq_len=0), dict(val_bs=0), dict(bs=-1)])
def test_sizes_below_one(text, bad):
    with pytest.raises(CharRNNError, match='1 or more'): CharDataLoaders.from_text(text, device='cpu', **bad)


@pytest.mark.parametrize('s', AWKWARD)
def test_files_with_awkward_text(tmp_path, s):
    s = (s*80)[:400] + 'ab'*40
    if '\ud800' in s: pytest.skip('a lone surrogate has no UTF-8')
    (tmp_path/'t.txt').write_bytes(s.encode())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dls = CharDataLoaders.from_corpus(tmp_path/'t.txt', bs=2, seq_len=4, device='cpu')
    assert dls.vocab.textify(dls.train.ids) + dls.vocab.textify(dls.valid.ids) == s


def test_a_drawn_seed_stays_a_drawn_one(text):
    "In a loader like another, and in loaders that fastai makes of it"
    for seed in None,5:
        dls = CharDataLoaders.from_text(text, seed=seed, device='cpu')
        assert [o.seed_given for o in (dls.train, dls.train.new(), dls.valid.new())] == [seed is not None]*3
    assert dls.train.new(seed=3).seed_given and dls.train.new(seed=3).seed == 3


def test_names_of_files_are_no_documents(tmp_path):
    "Strings are texts; a list of names would be learned as such"
    files = [tmp_path/f'{i}.txt' for i in range(2)]
    for o in files: o.write_text('The quick brown fox.\n'*10)
    with pytest.raises(CharRNNError, match='Path'):
        CharDataLoaders.from_documents([*map(str, files)], [[0], [1]], bs=2, seq_len=4)
    block = DataBlock(CharBlock(seq_len=4), get_items=lambda o: [*map(str, files)], splitter=lambda o: ([0], [1]))
    with pytest.raises(CharRNNError, match='Path'): block.dataloaders(None, bs=2)
    dls = CharDataLoaders.from_documents(files, [[0], [1]], bs=2, seq_len=4)
    assert dls.vocab.textify(dls.train.ids) == 'The quick brown fox.\n'*10


def test_a_document_is_trained_on_or_validated_on():
    with pytest.raises(CharRNNError, match='divide'):
        CharDataLoaders.from_documents(['ab'*100]*2, [[0, 1], [1]], bs=2, seq_len=4)


def test_a_tilde_of_no_user_is_a_name(tmp_path, monkeypatch):
    "Where Python knows no home, the name stays as it is, and what can be said of it is ours"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CharRNNError, match='~nouser/a.txt cannot be read'): split_files(['~nouser/a.txt'])
    with pytest.raises(CharRNNError, match='~nouser'): load_drawings('~nouser/a.svg')
    monkeypatch.setenv('CHARRNN_HOME', '~nouser/kept')
    assert str(charrnn_home()) == '~nouser/kept'
    (tmp_path/'~nouser').mkdir()
    (tmp_path/'~nouser'/'a.txt').write_text('the text')
    assert split_files(['~nouser/a.txt']*3) == ([0, 1], [2])


def test_c_is_the_number_of_symbols():
    "A last layer of a person's own asks `dls.c`, as of fastai's other loaders"
    dls = CharDataLoaders.from_text('To be, or not to be. '*20, bs=2, seq_len=8, seed=1)
    assert dls.c == len(dls.vocab) == 10


NAMES = ['shakespeare', 'https://example.org/a/book/with/a/rather/long/name/that/is/longer/than/needed.txt', '~/mine.txt',
         '/content/drive/MyDrive/my texts/a name of a file that is not there/because Drive is not mounted.txt', '~']


@pytest.mark.parametrize('name', NAMES)
def test_the_name_of_a_text_is_no_text(name, tmp_path, monkeypatch):
    "Found in a notebook: a link was given to `from_text`, and its 80 characters were trained on"
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path/'mine.txt').write_text('a text\n'*20)
    with pytest.raises(CharRNNError, match='from_corpus'): CharDataLoaders.from_text(name)
    with pytest.raises(CharRNNError, match='load_corpus'): CharDataLoaders.from_documents([name], [[0], []])


@pytest.mark.parametrize('line', ['count: one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve',
                                  'See https://example.org for more, and ~ for the rest, or / for all that there is. ' * 2])
def test_a_text_of_one_line_is_a_text(line): assert CharDataLoaders.from_text(line, bs=1, seq_len=8).train.n_pairs


def test_a_folder_that_gives_no_document_says_so(tmp_path):
    "fastai would end in: 'NoneType' object is not iterable"
    with pytest.raises(CharRNNError, match='no documents'):
        DataBlock(CharBlock(), get_items=get_text_files).dataloaders(tmp_path)


@pytest.mark.parametrize('table', [pd.DataFrame(dict(name=['Anna', 'Bo']*8)), pd.Series(['Anna', None]*8)])
def test_what_is_no_text_in_a_table_is_told_with_the_way_out(table):
    with pytest.raises(CharRNNError, match=r'(?s)An item .*ColReader.*dropna'):
        DataBlock(CharBlock(sep='\n'), splitter=FuncSplitter(lambda o: False)).dataloaders(table)


def test_names_that_run_together_are_told():
    "Without `sep`, Anna and Bo are read as AnnaBo"
    names = ['Anna', 'Bo', 'Cleo', 'Dan']*8
    block = lambda **kwargs: DataBlock(CharBlock(**kwargs), splitter=FuncSplitter(lambda o: o == 'Bo'))
    with pytest.warns(TextWarning, match='24 documents .*sep') as told: block().dataloaders(names, bs=2)
    assert sum('sep=' in str(o.message) for o in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        block(sep='\n', seq_len=8).dataloaders(names, bs=2)
        block(seq_len=8).dataloaders([f'{o}\n' for o in names], bs=2)


def test_summary_of_a_block_goes_through(capsys):
    "It collated documents of different lengths, and advised to pad them"
    DataBlock(CharBlock(sep='\n', seq_len=4), splitter=FuncSplitter(lambda o: o == 'Cleo')).summary(['Anna', 'Bo', 'Cleo']*8)
    assert 'rror' not in capsys.readouterr().out
