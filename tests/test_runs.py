"Run folders: what comes back, and what damage, full disks and hostile files lead to"
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from fastai.data.all import DataBlock, IndexSplitter
from safetensors import safe_open

from charrnn_fa import core, show
from charrnn_fa.core import CharRNNError
from charrnn_fa.run.files import RunError, write_whole
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.cli import main
from charrnn_fa.learner import char_learner
from charrnn_fa.run.health import examine_run
from charrnn_fa.run.model import Run, load_run, save_run, weights_sha256
from charrnn_fa.store.retain import rotate
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharBlock, CharDataLoaders
from charrnn_fa.text.drawings import load_drawings
from charrnn_fa.text.vocab import CharVocab


@pytest.fixture
def run(make, tmp_path):
    learn = make(n_hid=8, emb_sz=8, head_sz=0, tie=True)
    learn.fit(1, 1e-2)
    run = save_run(learn, tmp_path/'run', corpus='pydocs', valid_pct=0.1)
    run.learn = learn
    return run


def test_a_run_named_like_somebody_s_home_comes_back(make, tmp_path, monkeypatch):
    "There is no such person, so the name is that of a folder"
    monkeypatch.chdir(tmp_path)
    make(n_hid=8, emb_sz=8, head_sz=0).fit(1, 1e-2, cbs=Checkpoint('~nobody-of-that-name/run', quiet=True))
    assert load_run('~nobody-of-that-name/run').steps_done
    assert (tmp_path/'~nobody-of-that-name/run/run.json').exists()


def test_what_was_saved_comes_back(run, same):
    again = load_run(run.path, 'cpu')
    assert same(run.learn, again)
    assert again.evaluate() == run.learn.evaluate()
    assert again.generate('The', n=60, seed=4) == run.learn.generate('The', n=60, seed=4)
    assert (again.seed, again.precision, again.preset, again.vocab) == (run.learn.seed, run.learn.precision,
                                                                        run.learn.preset, run.learn.vocab)
    assert (torch.equal(again.dls.train.ids, run.learn.dls.train.ids)
            and torch.equal(again.dls.valid.ids, run.learn.dls.valid.ids))
    assert again.model.decoder.weight is again.model.emb.weight
    again.fit(1, 1e-3)


def test_format_is_what_it_says(run):
    "Read with nothing of ours: safetensors, JSON, SHA-256 as sha256sum gives it"
    manifest = json.loads(next(run.path.glob('step-*.json')).read_text())
    file = run.path/manifest['file']
    assert manifest['format'] == 1 and manifest['finished'] and file.stat().st_size == manifest['size']
    assert (subprocess.run(['sha256sum', file], capture_output=True, text=True, check=True).stdout.split()[0]
            == manifest['file_sha256'])
    with safe_open(file, 'pt') as f:
        names = list(f.keys())
        assert 'decoder.weight' not in names and 'emb.weight' in names            # a tied matrix once
        for k,p in run.learn.model.named_parameters(): assert torch.equal(f.get_tensor(k), p)
    assert not any(b'pickle' in o.read_bytes() for o in run.path.iterdir())


def test_weights_sha256_by_hand(run):
    import hashlib
    ps = dict(run.learn.model.named_parameters())
    b = b''.join(struct.pack(f'<{p.numel()}f', *p.detach().flatten().tolist()) for k,p in sorted(ps.items()))
    assert weights_sha256(run.learn.model) == hashlib.sha256(b).hexdigest() == run.info()['weights_sha256']


def test_file_without_manifest_does_not_count(run):
    (run.path/'step-99999999-deadbeef.safetensors').write_bytes(b'half')
    assert run.newest()['step'] == run.info()['step'] < 99999999


def mutations(b, rng):
    yield b''
    yield b[:len(b)//2]
    yield b'<!DOCTYPE html><html>quota exceeded</html>'
    yield pickle.dumps({'a': 1})
    yield b[:8] + b'\xff'*8 + b[16:]
    yield struct.pack('<Q', 2**62) + b[8:]                                          # a header of absurd length
    for _ in range(30):
        i = rng.randrange(len(b))
        yield b[:i] + bytes([b[i] ^ (1 << rng.randrange(8))]) + b[i+1:]


def test_every_damage_is_a_run_error(run):
    rng,info = random.Random(0),run.info()
    for file in list(run.path.iterdir()):
        whole = file.read_bytes()
        for bad in mutations(whole, rng):
            file.write_bytes(bad)
            try: got = Run(run.path).info()
            except RunError as e: assert str(file.name) in str(e) or 'restore' in str(e)
            else: assert got == info                                               # white space in JSON may change
        file.unlink()
        with pytest.raises(RunError): Run(run.path).newest(); Run(run.path).info()
        file.write_bytes(whole)
    assert Run(run.path).info() == info


def test_hostile_settings(run):
    "A settings file with a right checksum and wrong contents"
    from charrnn_fa.run.files import digest
    f = run.path/'run.json'
    d = json.loads(f.read_text())
    for k,v in dict(format=99, preset={'nope': 1}, vocab={'points': 'abc'}, text=None).items():
        bad = {**d, k: v}
        f.write_text(json.dumps({**bad, 'sha256': digest(bad)}))
        with pytest.raises(RunError): Run(run.path).info()
    for text in '[]', '"x"', 'null', '1', '['*100_000, '{"sha256": 1}', '\ufeff{}':
        f.write_text(text)
        with pytest.raises(RunError): Run(run.path)


def test_folders_that_are_not_free(learn, tmp_path):
    (tmp_path/'file').write_text('x')
    (tmp_path/'other').mkdir(); (tmp_path/'other/thesis.txt').write_text('x')
    for o in 'file', 'other':
        with pytest.raises(RunError): save_run(learn, tmp_path/o)
    assert (tmp_path/'other').exists() and os.listdir(tmp_path/'other') == ['thesis.txt']
    for o in 'file', 'other', 'nowhere':
        with pytest.raises(RunError): Run(tmp_path/o)


def test_long_text_is_not_kept(learn, tmp_path, monkeypatch):
    from charrnn_fa.run import model as runs
    monkeypatch.setattr(runs, 'most_text', 100)
    run = save_run(learn, tmp_path/'run')
    assert not list(run.path.glob('text-*')) and run.load_model() is not None
    with pytest.raises(RunError, match='--corpus'): run.ids()


@pytest.fixture
def full_disk(tmp_path):
    "A file system of 64 kB"
    d = tmp_path/'small'
    d.mkdir()
    if os.geteuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', d], capture_output=True).returncode:
        pytest.skip('mounting a small file system needs root')
    yield d
    subprocess.run(['umount', d], check=True)


def test_full_disk(full_disk):
    write_whole(full_disk/'a', b'x'*1000)
    with pytest.raises(RunError, match='No space left.*free some space'): write_whole(full_disk/'a', b'y'*100_000)
    assert os.listdir(full_disk) == ['a'] and (full_disk/'a').read_bytes() == b'x'*1000


def test_full_disk_leaves_nothing_of_a_run(learn, full_disk):
    (full_disk/'ballast').write_bytes(b'x'*40_000)
    with pytest.raises(RunError, match='No space left'): save_run(learn, full_disk/'r')
    assert not (full_disk/'r').exists() or os.listdir(full_disk/'r') == []


def test_killed_before_the_settings(learn, tmp_path):
    "A text without run.json is what a kill leaves; the folder can be used"
    (tmp_path/'r').mkdir()
    (tmp_path/'r/text-0123456789abcdef.safetensors').write_bytes(b'half')
    assert save_run(learn, tmp_path/'r').info()['finished']


@pytest.mark.parametrize('change', [dict(file=None), dict(size='1'), dict(step='x'), dict(step=True),
                                    dict(results=None), dict(results={'nats': 'x'}), dict(finished=1)])
def test_hostile_manifest(run, change):
    from charrnn_fa.run.files import digest
    f = next(run.path.glob('step-*.json'))
    bad = {**json.loads(f.read_text()), **change}
    f.write_text(json.dumps({**bad, 'sha256': digest(bad)}))
    with pytest.raises(RunError): Run(run.path).info()


def test_what_cannot_be_kept(learn, tmp_path):
    with pytest.raises(RunError, match='JSON'): save_run(learn, tmp_path/'r', x=torch.ones(2))
    learn.model.decoder = torch.nn.Linear(16, 3)
    with pytest.raises(RunError, match='char_learner'): save_run(learn, tmp_path/'q')


def test_rotation_without_the_newest(run):
    "Somebody has removed its data: nothing goes, and the sentence says why"
    for s in 1020, 1030, 1040: newest = run.save({'w':torch.ones(2)}, {}, step=s, epoch=1)
    (run.path/newest['file']).unlink()
    with pytest.raises(RunError, match='step-00001040.* is missing'): rotate(run, 2)
    assert len(run.checkpoints()) == 4


def test_settings_that_were_lost(run):
    (run.path/'run.json').unlink()
    for f in run.check_free, Run:
        with pytest.raises(RunError, match='holds checkpoints but no run.json.*restore'): f(run.path)


def test_checkpoints_that_were_lost(run):
    for o in run.path.glob('step-*'): o.unlink()
    for f in run.newest, run.info:
        with pytest.raises(RunError, match='no checkpoint any more; restore'): f()


def test_a_folder_that_may_not_be_listed():
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/'r').mkdir(mode=0o300)
        Path(d).chmod(0o755)
        code = ("import os\nfrom charrnn_fa.run.model import *\nfrom charrnn_fa.run.files import RunError\n"
                "os.geteuid() or os.setresuid(65534, 65534, 65534)\nfor f in Run, Run.check_free:\n"
                f"    try: f({d!r}+'/r')\n    except RunError as e: print(e)")
        r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert ([o.split(' (')[0][-9:] for o in r.stdout.splitlines()] == ['e reached', 'be listed']
            and r.stdout.count('(Permission denied)') == 2), r.stdout + r.stderr


def test_a_run_that_could_not_be_saved_is_none(learn, tmp_path, monkeypatch, same):
    "Interrupted within the checkpoint: no folder that counts as a run, and the same call does it"
    with monkeypatch.context() as m:
        def stopped(*args, **kwargs): raise KeyboardInterrupt
        m.setattr(Run, 'save', stopped)
        with pytest.raises(KeyboardInterrupt): save_run(learn, tmp_path/'r')
    assert not Run.is_run(tmp_path/'r')
    assert same(save_run(learn, tmp_path/'r').load('cpu'), learn)


def test_a_run_without_weights_is_no_fresh_network(run):
    for o in run.path.glob('step-*'): o.unlink()
    with pytest.raises(RunError, match='no checkpoint any more; restore'): load_run(run.path)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_a_model_of_other_numbers_is_not_kept(learn, tmp_path, dtype):
    "It could not be loaded"
    learn.model.to(dtype)
    with pytest.raises(RunError, match='not the one that the preset'): save_run(learn, tmp_path/'r')
    assert not (tmp_path/'r').exists()


@pytest.mark.parametrize('docs,split', [(['abc def. '*300], []), (['abc'*4, 'abc'], [1]), (['abc'*30, 'a'], [1])])
def test_a_run_with_little_text_is_loaded_again(tmp_path, docs, split, capsys):
    "`DataBlock` asks for no least length, and its splitter may hold nothing back"
    dls = DataBlock(CharBlock(seed=1), splitter=IndexSplitter(split)).dataloaders(docs, bs=4, seq_len=8, device='cpu')
    learn = char_learner(dls, n_hid=8, precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Checkpoint(tmp_path/'r'))
    again = load_run(tmp_path/'r', 'cpu')
    assert [o.ids.tolist() for o in again.dls.loaders] == [o.ids.tolist() for o in dls.loaders]
    capsys.readouterr()
    is_held = len(dls.valid.ids) > 1
    assert main(['train', '--run', str(tmp_path/'r')]) == 0
    assert ('nothing was held back' in capsys.readouterr().out) != is_held
    assert main(['eval', str(tmp_path/'r')]) == (not is_held)
    assert ('with --whole' in capsys.readouterr().err) != is_held
    assert main(['eval', str(tmp_path/'r'), '--whole']) == 0
    assert main(['doctor', str(tmp_path/'r')]) in (0, 1) and 'longer one' not in capsys.readouterr().err


def test_a_run_of_the_unknown_symbol_alone_is_examined(tmp_path):
    "It can write nothing, and what else is found is said"
    dls = CharDataLoaders.from_text('ab'*600, vocab=CharVocab([], '\ufffd'), bs=4, seq_len=16, seed=0)
    learn = char_learner(dls, n_hid=8, emb_sz=4, head_sz=0, precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit_steps(3)
    report = examine_run(save_run(learn, tmp_path/'r').path)
    assert [o.id for o in report.findings] == ['D11']
    assert any('what it writes' in o for o in report.skipped) and 'what it writes' not in report.passed

@pytest.fixture
def no_drive(tmp_path, monkeypatch):
    "A place where Colab mounts Drive, and nothing is mounted there"
    monkeypatch.setattr(core, 'drives', (str(tmp_path/'drive'),))
    return tmp_path/'drive/MyDrive'


def test_what_is_to_be_in_drive_is_not_written_beside_it(no_drive, make, capsys):
    "A folder that is made there is lost with the machine, and Drive cannot be mounted over it any more"
    learn = make(n_hid=8, emb_sz=8, head_sz=0)
    learn.fit(1, 1e-2)
    for f in (lambda: save_run(learn, no_drive/'run'), lambda: learn.share(no_drive/'page.html'),
              lambda: load_run(no_drive/'run'), lambda: load_corpus(no_drive/'book.txt'),
              lambda: load_drawings(no_drive/'faces.svg'), lambda: load_drawings(no_drive/'faces')):
        with pytest.raises(CharRNNError, match=r'mount Google Drive first, by mount_drive\(\) in a cell'): f()
    assert main(['info', str(no_drive/'run')]) == 1
    assert 'mount Google Drive first' in capsys.readouterr().err
    assert not no_drive.parent.exists()


def test_what_lies_there_all_the_same_is_read(no_drive):
    no_drive.mkdir(parents=True)
    (no_drive/'book.txt').write_text('a text')
    assert load_corpus(no_drive/'book.txt') == 'a text'


def test_a_file_of_a_run_and_the_folder_above_are_told_apart(learn, tmp_path):
    "run.json was said to have no run.json, and a user of Python was sent to --run"
    run = save_run(learn, tmp_path/'Läufe'/'Erster Versuch')
    for o in run.path/'run.json', run.path/run.newest().file:
        with pytest.raises(RunError, match='is a file and not a run; give the folder of one'): load_run(o)
    with pytest.raises(RunError, match='it has no run.json.*in Python that of Checkpoint or save_run'): load_run(tmp_path/'Läufe')


def test_an_empty_name_is_no_folder(learn, tmp_path, monkeypatch):
    "A run was begun in the current folder, if that was empty"
    monkeypatch.chdir(tmp_path)
    for f in lambda: save_run(learn, ''), lambda: load_run(''), lambda: Checkpoint(''):
        with pytest.raises(CharRNNError, match="''.*; give (the|a) path"): f()
    with pytest.raises(CharRNNError, match='give a dict'): Checkpoint('r', info=['a note'])
    assert not [*tmp_path.iterdir()]


def test_a_relative_path_where_the_current_directory_is_gone(learn, tmp_path, monkeypatch):
    (tmp_path/'gone').mkdir()
    monkeypatch.chdir(tmp_path/'gone')
    (tmp_path/'gone').rmdir()
    for f in (lambda: save_run(learn, 'r'), lambda: load_run('r')):
        with pytest.raises(RunError, match=r"current directory cannot be reached .*os.chdir\('/'\)"): f()
    with pytest.raises(RunError, match='a.html could not be written'): learn.share('a.html')
    picture = show.surprise(learn, learn.vocab[1])
    with pytest.raises(RunError, match='a.html could not be written'): picture.save('a.html')
    save_run(learn, tmp_path/'r')
    assert load_run(tmp_path/'r').vocab == learn.vocab


def test_a_folder_under_home_that_is_no_run(tmp_path, monkeypatch):
    "Its ~ was not written out where its files are looked at"
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path/'my folder').mkdir()
    with pytest.raises(RunError, match='~/my folder is not a run'): load_run('~/my folder')


def test_a_name_with_a_blank_can_be_pasted(tmp_path):
    with pytest.raises(RunError, match=f"--run '{tmp_path}/my run'"): load_run(tmp_path/'my run')
