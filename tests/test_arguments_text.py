"Arguments that cannot be: each is refused in one sentence, before anything is made of it"
import math
from functools import partial

import numpy as np
import pytest
import torch

from charrnn_fa.errors import CharRNNError
from charrnn_fa.presets import Preset, check_seed, get_preset, presets
from charrnn_fa.text.corpus import corpus_documents, corpus_files, count_text, load_corpus, read_source
from charrnn_fa.text.data import CharBlock, CharDataLoaders, split_files, split_text
from charrnn_fa.text.download import download
from charrnn_fa.text.read import decode_text, read_text
from charrnn_fa.text.streams import CharDL
from charrnn_fa.text.vocab import CharVocab

TEXT = 'abcdefgh'*200
VOCAB = CharVocab(TEXT)
IDS = [(VOCAB.encode(TEXT),)]
BYTES = TEXT.encode()
# for what is a whole number from 1 on; None is the default
NO_COUNT = 0, -3, 2.5, math.nan, math.inf, '8', True, [8], b'8'
NO_TEXT = None, 5, BYTES, ['abc'], math.nan
NO_SHARE = None, 0, 1, -0.1, 2, math.nan, math.inf, '0.1', True, [0.1]
NO_SEED = -1, 1.5, math.nan, '7', True, [7]
NO_FREQ = NO_COUNT[1:]                                                  # 0 leaves nothing out


def from_text(**kw): return CharDataLoaders.from_text(**{'text':TEXT, 'bs':2, 'seq_len':8, 'device':'cpu', **kw})


def from_documents(**kw):
    return CharDataLoaders.from_documents(**{'items':[TEXT, TEXT], 'splits':[[0], [1]], 'bs':2, 'seq_len':8,
                                             'device':'cpu', **kw})


def loader(**kw): return CharDL(**{'dataset':IDS, 'bs':2, 'seq_len':8, **kw})


def load(**kw): return load_corpus(**{'what':'count', **kw})


vocab,encode,textify = partial(CharVocab.from_text, texts=TEXT),partial(VOCAB.encode, text='abc'),partial(VOCAB.textify, ids=[0, 1])
NO_DEVICE = 'gpu', 'cuda:99', '', 3.5, ['cpu'], 10**6
BAD = [
    (from_text, 'text', NO_TEXT), (from_text, 'bs', NO_COUNT), (from_text, 'seq_len', NO_COUNT),
    (from_text, 'val_bs', NO_COUNT), (from_text, 'valid_pct', NO_SHARE), (from_text, 'min_freq', NO_FREQ),
    (from_text, 'max_size', NO_COUNT), (from_text, 'seed', NO_SEED),
    (from_text, 'vocab', ('abcdefgh', 5, list('abcdefgh'))),
    (from_documents, 'items', (None, 5, [TEXT], [BYTES, TEXT], [TEXT, None], [5, 6])),
    (from_documents, 'splits', (None, [[0]], [[0], [5]], [[0], [1], [1]], 5, [[0], ['x']], [[0], [-3]])),
    (from_documents, 'sep', NO_TEXT), (from_documents, 'encoding', NO_TEXT), (from_documents, 'path', (5, [1])),
    (CharBlock, 'sep', NO_TEXT), (CharBlock, 'encoding', NO_TEXT), (CharBlock, 'min_freq', NO_FREQ), (CharBlock, 'max_size', NO_COUNT),
    (CharBlock, 'vocab', ('abc', 5)), (loader, 'bs', NO_COUNT), (loader, 'seq_len', NO_COUNT), (loader, 'seed', NO_SEED),
    (loader, 'sep', NO_TEXT),
    (loader, 'device', NO_DEVICE), (from_text, 'device', NO_DEVICE), (loader(device='cpu').to, 'device', NO_DEVICE),
    (vocab, 'texts', (None, 5, BYTES, [BYTES], [TEXT, None], [5])),
    (vocab, 'min_freq', NO_FREQ), (vocab, 'max_size', NO_COUNT), (vocab, 'unk', (5, None, BYTES)),
    (CharVocab, 'chars', (None, 5, [1, 2], BYTES, ['ab'], [None], [''])),
    (lambda unk: CharVocab('abc', unk), 'unk', (5, 'ab', BYTES)),
    (encode, 'text', NO_TEXT), (encode, 'unknown', ('skp', 5, True, '')),
    (encode, 'dtype', (None, 'int', torch.bfloat16, torch.bool, int, torch.complex64)),
    (textify, 'ids', ([0.5], [math.nan], 'abc', ['a'], None, [8], [-1], [2**70], [[0], [1, 2]], [None], [0, 'a'])),
    (textify, 'sep', NO_TEXT),
    (CharVocab.from_json, 's', (None, 5, '', '[]', '{}', 'x', '{"points": [1114112], "unk": null}',
                                '{"points": ["a"], "unk": null}', '{"points": [1e300], "unk": null}',
                                '{"points": 5, "unk": 1}', '{"points": [97], "unk": 5}', '[' * 100_000)),
    (load, 'what', (None, 5, BYTES, ['count'], math.nan, '')), (load, 'sep', NO_TEXT), (load, 'encoding', (None, 5)),
    (corpus_files, 'what', (None, 5, BYTES, ['a.txt'], '')), (corpus_documents, 'what', (None, 5, BYTES, '')),
    (count_text, 'pattern', (None, 5.5, BYTES, ['0', '1'], '', 'aa', 1, 63, True, 10**30, '1'*10)),
    (split_text, 'text', NO_TEXT), (lambda valid_pct: split_text(TEXT, valid_pct), 'valid_pct', NO_SHARE),
    (lambda valid_pct: split_files(['a', 'b'], valid_pct), 'valid_pct', NO_SHARE),
    (CharDataLoaders.from_files, 'files', (None, 5, [], [None], [5], BYTES, [BYTES], '', ['gone.txt'], ['gone', 'gone'])),
    (split_files, 'files', (None, 5, [], [None], ['gone.txt'])),
    (read_text, 'path', (None, 5, BYTES, ['a'], '', 'a\0b')),
    (lambda encoding: read_text(__file__, encoding), 'encoding', (None, 5, '', 'klingon', 'rot13', 'a\0', '\ud800')),
    (read_source, 'path', (None, 5, BYTES, '', 'gone.py', 'a\0b')),
    (lambda b: decode_text(b, 'x'), 'b', (None, 5, TEXT)), (download, 'url', (None, 5, BYTES, '', 'a.txt')),
    (lambda sha256: download('http://127.0.0.1:9/', sha256, progress=False), 'sha256', (5, BYTES, 'xyz')),
    (get_preset, 'name', (5, 'no', ['cpu-minute'], True, '', {})),
    (lambda settings: get_preset(**settings), 'settings', ({'n_hids':5}, {'preset':1})),
    (check_seed, 'seed', (None, 2**62, 2**70, *NO_SEED)),
]
for k in ('n_hid', 'n_layers', 'bs', 'seq_len', 'warmup'): BAD += [(Preset, k, (None, *NO_COUNT, 10**23, np.int64(0)))]
for k in ('minutes', 'lr', 'wd', 'clip', 'reset_pct'): BAD += [(Preset, k, (None, -1, math.nan, '1', True, [1]))]
BAD += [(Preset, 'dropout', (-1, math.nan, '1', True, [1]))]
for k in ('emb_sz', 'head_sz'): BAD += [(Preset, k, (None, -1, 1.5, math.nan, '1', True, 10**23))]
BAD += [(Preset, 'tie', (None, 1, 0, 0., 'no', 'yes', [])),
        (Preset, 'arch', (None, 5, 'LSTM', ['lstm'], np.array([1, 2]))), (Preset, 'opt', (None, 5, 'sgd'))]


@pytest.mark.parametrize('f, name, v', [(f, name, v) for f,name,vs in BAD for v in vs])
def test_refused(f, name, v, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CharRNNError) as e: f(**{name:v})
    said = str(e.value)
    assert '\n' not in said and len(said) < 400 and said.endswith(('.', '?')), said


# What is as good as what is meant

@pytest.mark.parametrize('dtype, n', [(torch.uint8, 257), (torch.int8, 129), (torch.int16, 2**15+1),
                                      (torch.float16, 2**11+2)])
def test_ids_that_do_not_fit(dtype, n):
    "A narrow type would give other characters in silence"
    v = CharVocab(map(chr, range(0x10000, 0x10000+n)))
    with pytest.raises(CharRNNError, match='cannot hold'): v.encode(v[-1], dtype=dtype)
    assert CharVocab(v.itos[:-1] if n % 2 else v.itos[:-2]).encode(v[n-4], dtype=dtype).tolist() == [n-4]


@pytest.mark.parametrize('ids', [[0, 1], (0, 1), np.array([0, 1]), torch.tensor([0, 1]), np.array([0, 1], dtype=np.float32),
                                 torch.tensor([0., 1.]), np.array([0, 1], dtype=np.uint64),
                                 torch.tensor([0., 1.], dtype=torch.bfloat16), [np.int64(0), 1], [[0], [1]], range(2)])
def test_ids_of_all_kinds(ids): assert VOCAB.textify(ids) == 'ab' and VOCAB.textify(ids, sep='-') == 'a-b'


def test_no_ids(): assert VOCAB.textify([]) == VOCAB.textify(torch.zeros(0)) == VOCAB.textify(np.zeros((0, 4))) == ''


@pytest.mark.parametrize('v', [10**30, 10**9])
def test_sizes_beyond_the_text(v):
    "As large as the text allows, and said"
    with pytest.warns(UserWarning, match='are used'): dls = from_text(bs=v, seq_len=v)
    assert dls.one_batch()[0].numel() <= len(TEXT)


def test_presets_stay():
    assert all(Preset(**{**vars(o)}) == o for o in presets.values()) and get_preset(None) == presets['cpu-minute']
