"Run folders: what comes back, and what damage, full disks and folders of other things lead to"
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from fastai.data.all import DataBlock, IndexSplitter
from safetensors import safe_open

from charrnn_fa import errors, show
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.cli import main
from charrnn_fa.errors import CharRNNError
from charrnn_fa.learner import char_learner
from charrnn_fa.run import model as runs
from charrnn_fa.run.files import RunError, write_whole
from charrnn_fa.run.model import Run, load_run, save_run, weights, weights_sha256
from charrnn_fa.store.copies import rotate
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharBlock
from charrnn_fa.text.drawings import load_drawings


@pytest.fixture
def run(make, tmp_path):
    learn = make(n_hid=8, emb_sz=8, head_sz=0, tie=True)
    learn.fit(1, 1e-2)
    run = save_run(learn, tmp_path/'run', corpus='pydocs', valid_pct=0.1)
    run.learn = learn
    return run


def test_what_was_saved_comes_back(run, same):
    learn,again = run.learn,load_run(run.path, 'cpu')
    assert same(learn, again) and again.evaluate() == learn.evaluate()
    assert again.generate('The', n=60, seed=4) == learn.generate('The', n=60, seed=4)
    for o in 'seed', 'precision', 'preset', 'vocab': assert getattr(again, o) == getattr(learn, o)
    assert all(torch.equal(a.ids, b.ids) for a,b in zip(again.dls.loaders, learn.dls.loaders))
    assert again.model.decoder.weight is again.model.emb.weight
    again.fit(1, 1e-3)


def test_format_is_what_it_says(run):
    "Read with nothing of ours: safetensors, JSON, SHA-256 as sha256sum gives it"
    manifest = json.loads(next(run.path.glob('step-*.json')).read_text())
    file = run.path/manifest['file']
    assert manifest['format'] == 1 and manifest['finished'] and file.stat().st_size == manifest['size']
    said = subprocess.run(['sha256sum', file], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == manifest['file_sha256']
    ps = dict(run.learn.model.named_parameters())
    with safe_open(file, 'pt') as f:
        names = [*f.keys()]
        assert 'decoder.weight' not in names and 'emb.weight' in names # a tied matrix once
        for k,p in ps.items(): assert torch.equal(f.get_tensor(k), p)
    assert not any(b'pickle' in o.read_bytes() for o in run.path.iterdir())
    b = b''.join(struct.pack(f'<{p.numel()}f', *p.detach().flatten().tolist()) for k,p in sorted(ps.items()))
    assert weights_sha256(run.learn.model) == hashlib.sha256(b).hexdigest() == run.info()['weights_sha256']


def test_folders_that_are_not_free(learn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'file').write_text('x')
    (tmp_path/'other').mkdir()
    (tmp_path/'other/thesis.txt').write_text('x')
    for o in 'file', 'other', '':
        with pytest.raises(CharRNNError): save_run(learn, o)
    for o in 'file', 'other', 'nowhere', '':
        with pytest.raises(CharRNNError): load_run(o)
    with pytest.raises(RunError, match=f"--run '{tmp_path}/my run'"): load_run(tmp_path/'my run') # can be pasted
    run = save_run(learn, tmp_path/'other/run')
    with pytest.raises(RunError, match='is a file'): load_run(run.path/'run.json')
    with pytest.raises(RunError, match='Checkpoint'): load_run(tmp_path/'other')
    assert {o.name for o in (tmp_path/'other').iterdir()} == {'thesis.txt', 'run'}


def test_names_of_folders(make, tmp_path, monkeypatch):
    "`~` is written out; of somebody who does not exist it is a part of a name; a current directory that is gone has none"
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name,there in ('~/a b', 'a b'), ('~nobody-of-that-name/run', '~nobody-of-that-name/run'):
        make(n_hid=8, emb_sz=8, head_sz=0).fit(1, 1e-2, cbs=Checkpoint(name, quiet=True))
        assert load_run(name).steps_done and (tmp_path/there/'run.json').exists()
    (tmp_path/'gone').mkdir()
    monkeypatch.chdir(tmp_path/'gone')
    (tmp_path/'gone').rmdir()
    learn = load_run(tmp_path/'a b', 'cpu')
    for f in lambda: save_run(learn, 'r'), lambda: load_run('r'), lambda: learn.share('a.html'), show.surprise(learn, 'The').save:
        with pytest.raises(RunError, match='current directory|could not be written'): f('a.html') if 'save' in repr(f) else f()


def test_what_cannot_be_kept(learn, tmp_path, monkeypatch, same):
    "A model that could not be loaded; a save that was interrupted leaves no run, and the same call does it"
    with pytest.raises(RunError, match='JSON'): save_run(learn, tmp_path/'r', x=torch.ones(2))
    for dtype in torch.float64, torch.float16:
        learn.model.to(dtype)
        with pytest.raises(RunError, match='char_learner'): save_run(learn, tmp_path/'r')
    learn.model.float()
    assert not (tmp_path/'r').exists()
    with monkeypatch.context() as m:
        def stopped(*args, **kwargs): raise KeyboardInterrupt
        m.setattr(Run, 'save', stopped)
        with pytest.raises(KeyboardInterrupt): save_run(learn, tmp_path/'r')
    assert not Run.is_run(tmp_path/'r')
    (tmp_path/'r/text-0123456789abcdef.safetensors').write_bytes(b'half') # as a kill leaves it
    assert same(load_run(save_run(learn, tmp_path/'r').path, 'cpu'), learn)
    monkeypatch.setattr(runs, 'most_text', 100)
    run = save_run(learn, tmp_path/'long')
    assert not [*run.path.glob('text-*')] and run.load_model() is not None
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


def test_a_full_disk(learn, full_disk):
    "The old file stays, and nothing of a run that does not fit"
    write_whole(full_disk/'a', b'x'*40_000)
    with pytest.raises(RunError, match='No space left.*free some space'): write_whole(full_disk/'a', b'y'*100_000)
    with pytest.raises(RunError, match='No space left'): save_run(learn, full_disk/'r')
    assert [o.name for o in full_disk.rglob('*') if o.is_file()] == ['a'] and (full_disk/'a').read_bytes() == b'x'*40_000


def test_what_may_not_be_read(run):
    "Is not called damaged"
    with tempfile.TemporaryDirectory() as d:
        Path(d).chmod(0o755)
        for o in 'listed', 'read': subprocess.run(['cp', '-r', run.path, f'{d}/{o}'], check=True)
        os.chmod(f'{d}/listed', 0o300)
        os.chmod(f'{d}/read/run.json', 0)
        code = ("import os\nfrom charrnn_fa.run.model import Run\nos.geteuid() or os.setresuid(65534, 65534, 65534)\n"
                f"for o in 'listed','read':\n    try: Run(f'{d}/{{o}}')\n    except ValueError as e: print(e)")
        said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout
        os.chmod(f'{d}/listed', 0o700)
    assert said.count('(Permission denied)') == 2 and 'run.json' in said and 'damaged' not in said, said


@pytest.mark.parametrize('docs,split', [(['abc def. '*300], []), (['abc'*4, 'abc'], [1]), (['abc'*30, 'a'], [1])])
def test_a_run_with_little_text_is_loaded_again(tmp_path, docs, split, capsys):
    "`DataBlock` asks for no least length, and its splitter may hold nothing back"
    dls = DataBlock(CharBlock(seed=1), splitter=IndexSplitter(split)).dataloaders(docs, bs=4, seq_len=8, device='cpu')
    learn = char_learner(dls, n_hid=8, precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Checkpoint(tmp_path/'r'))
    again = load_run(tmp_path/'r', 'cpu')
    assert [o.ids.tolist() for o in again.dls.loaders] == [o.ids.tolist() for o in dls.loaders]
    is_held = len(dls.valid.ids) > 1
    assert main(['train', '--run', str(tmp_path/'r')]) == 0
    assert main(['eval', str(tmp_path/'r')]) == (not is_held) and ('--whole' in capsys.readouterr().err) != is_held
    assert main(['eval', str(tmp_path/'r'), '--whole']) == 0


def test_what_is_to_be_in_drive_is_not_written_beside_it(tmp_path, monkeypatch, learn, capsys):
    "A folder that is made there is lost with the machine, and Drive cannot be mounted over it any more"
    monkeypatch.setattr(errors, 'drives', (str(tmp_path/'drive'),))
    drive = tmp_path/'drive/MyDrive'
    for f in (lambda: save_run(learn, drive/'run'), lambda: learn.share(drive/'page.html'), lambda: load_run(drive/'run'),
              lambda: load_corpus(drive/'book.txt'), lambda: load_drawings(drive/'faces')):
        with pytest.raises(CharRNNError, match=r'mount_drive\(\)'): f()
    assert main(['info', str(drive/'run')]) == 1 and 'mount_drive()' in capsys.readouterr().err
    assert not drive.parent.exists()
    drive.mkdir(parents=True)
    (drive/'book.txt').write_text('a text')
    assert load_corpus(drive/'book.txt') == 'a text' # what lies there all the same


def test_what_a_rotation_leaves(run):
    "Two checkpoints, but the last one alone of a run whose other one has nothing trained"
    ts = weights(run.learn.model)
    steps = lambda: [o.step for o in run.checkpoints()]
    for step in 1010, 1020, 1030: run.save(ts, {}, step=step, epoch=1, finished=step == 1030)
    rotate(run, 2)
    assert steps() == [1030, 1020]
    run.store.remove(run.checkpoints()[1].file.replace('.safetensors', '.json'))
    run.save(ts, {}, step=0, epoch=0)
    rotate(run, 2)
    assert steps() == [1030]


def test_a_checkpoint_without_a_manifest_leaves_nothing(run, monkeypatch):
    "Its manifest cannot be written, for there is a folder of that name"
    monkeypatch.setattr('secrets.token_hex', lambda n: '0'*2*n)
    (run.path/'step-00000050-00000000.json').mkdir()
    with pytest.raises(RunError): run.save(weights(run.learn.model), {}, step=50, epoch=1)
    assert not [*run.path.glob('step-00000050-*.safetensors')]
