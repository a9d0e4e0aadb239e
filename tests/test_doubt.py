"Nothing is removed on a doubt: disks that cannot be asked, stores that lose contents, clocks apart, weights that are no numbers"
import errno
import math
import os
import stat

import pytest
import torch
from fastai.callback.core import Callback
from faultfs import DriveMount
from test_store import alone, drive, fit, fresh, hasty, settle, steps, stop, tidy, trouble, then, doing      # noqa: F401: fixtures too

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.run.files import RunError, write_whole
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.store.copies import tidy as tidy_up

pytestmark = pytest.mark.usefixtures('settled')


# Files that cannot be asked for

@pytest.fixture
def disk(tmp_path, fuse, home, monkeypatch):
    "This machine's disk, with faults: `CHARRNN_HOME` lies on it"
    (tmp_path/'disk').mkdir()
    with DriveMount(tmp_path/'disk') as d:
        monkeypatch.setenv('CHARRNN_HOME', str(d.mountpoint/'home'))
        yield d


@pytest.mark.parametrize('number', [errno.ESTALE, errno.EIO])
def test_settings_that_cannot_be_asked_for_cost_nothing(drive, disk, fit, number):
    "The newest checkpoints are on this machine only, and one look at the folder there fails"
    def away(ckpt):
        settle(ckpt)
        drive.control(errno=dict(write=5))
    def late(ckpt):
        assert ckpt.saver.writer.wait(60)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(drive.where, {15: away, 45: late})
    (run,) = (disk.backing/'home/runs').iterdir()
    assert steps(run)[0] > 10 and steps(drive.there)[0] == 10
    before = sorted(o.name for o in run.glob('step-*'))
    drive.control()
    disk.control(errno=dict(getattr=number), match='*/run.json')
    with pytest.raises(RunError, match=os.strerror(number)): fit(drive.where, seed=None)
    assert sorted(o.name for o in run.glob('step-*')) == before
    disk.control()
    learn = fit(drive.where, seed=None)
    assert RunFolder(drive.there).resumes()[0] > 10 and not [o for o in learn.told if 'damaged' in o]


def test_checkpoints_without_settings_are_set_aside(drive, fit, home):
    "Somebody removed `run.json` here, and the run in the store: what is left on this machine is not rubbish"
    with pytest.raises(KeyboardInterrupt): fit(drive.where, {25: stop})
    (run,) = (home/'runs').iterdir()
    before = sorted(o.name for o in run.glob('step-*') if '-00000000-' not in o.name)
    (run/'run.json').unlink()
    drive.there.rename(drive.backing/'away')
    learn = fit(drive.where)
    assert '.old1' in learn.told[0] and sorted(o.name for o in run.with_name(run.name+'.old1').glob('step-*')) == before


def a_run(path, *steps, n=2):
    run = RunFolder(path, dict(info={}, text={}))
    run.create(None, dict(w=torch.zeros(n)), {}, step=0, epoch=0)
    for o in steps: run.save(dict(w=torch.zeros(n)+o), {}, step=o, epoch=0)
    return run


def test_tidying_needs_an_answer(drive):
    "Sizes of manifests that cannot be told: their data stay, and nothing is raised"
    run = a_run(drive.mountpoint/'r', 10, 20)
    (drive.backing/'r/step-00000030-0123abcd.safetensors').write_bytes(b'half')
    drive.control(errno=dict(getattr=errno.ESTALE), match='*.json')
    tidy_up(run.store)
    drive.control()
    assert steps(drive.backing/'r') == [20, 10, 0]
    tidy_up(run.store)
    assert '00000030' not in ''.join(os.listdir(drive.backing/'r'))


def test_a_write_that_fails_removes_what_is_known_to_be_new(drive):
    "Whether there was a file before cannot be told: what is there stays"
    f = drive.mountpoint/'f'
    f.write_bytes(b'old')
    drive.control(errno=dict(getattr=errno.EIO, fsync=errno.EIO, fsyncdir=errno.EIO), match='/f')
    with pytest.raises(RunError, match='Input/output error'): write_whole(f, b'new')
    drive.control()
    assert f.read_bytes() == b'old' and sorted(os.listdir(drive.backing)) == ['MyDrive', 'f']


# To the disk, and in which order

def test_order_of_syncs_and_names(tmp_path, monkeypatch):
    "All bytes are synced before the file has its name, and its folder after"
    seen,fsync,replace = [],os.fsync,os.replace
    def _fsync(fd):
        s = os.fstat(fd if isinstance(fd, int) else fd.fileno())
        seen.append('folder' if stat.S_ISDIR(s.st_mode) else s.st_size)
        fsync(fd)
    def _replace(*args):
        seen.append('name')
        replace(*args)
    monkeypatch.setattr(os, 'fsync', _fsync)
    monkeypatch.setattr(os, 'replace', _replace)
    write_whole(tmp_path/'a', [bytes(1000), bytes(500)])
    assert seen == [1500, 'name', 'folder']


# Rotation

def hollow(file): file.write_bytes(bytes(file.stat().st_size))


class Poison(Callback):
    "Weights become NaN at a step"
    order,run_valid = 998,False
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.learn.steps_done >= self.at:
            with torch.no_grad(): next(self.learn.model.parameters()).fill_(math.nan)


def finite_steps(path):
    return [m['step'] for m,ts,_ in RunFolder(path).whole()
            if all(t.isfinite().all() for k,t in ts.items() if not k.startswith('train/'))]


def test_a_run_that_breaks_keeps_them_in_drive(drive, fresh, home):
    learn = fresh()
    class Settle(Callback):
        order = 1001
        def after_batch(self): settle(self.learn.checkpoint)
    learn.fit_one_cycle(2, 1e-2, cbs=[Poison(25), Settle(), Checkpoint(drive.where, steps=4, keep=3, quiet=True)])
    assert finite_steps(drive.there) == [24, 20, 16] and len(RunFolder(drive.there).checkpoints()) == 4


# Stores that keep sizes and lose contents

def test_a_drive_that_loses_contents(drive, fit):
    "Sizes are right: the copy is not taken for one, what was there before stays, and all is well when Drive is"
    def look(ckpt):
        trouble(ckpt)
        assert 10 in [m['step'] for m,*_ in RunFolder(drive.there).whole()] and 'uploaded' not in ckpt.states().values()
        drive.control()
    learn = fit(drive.where, {15: then(settle, doing(drive.control, hollow=True)), 45: look})
    assert len(learn.told) == 1 and 'arrived damaged or empty' in learn.told[0], learn.told
    tidy(drive.there)


@pytest.fixture
def lossy():
    "A back end of fsspec on this disk that can keep the size of a file and lose its contents"
    import fsspec
    from fsspec.implementations.local import LocalFileOpener, LocalFileSystem
    class Opener(LocalFileOpener):
        def write(self, b): return super().write(bytes(len(b)) if Lossy.loses(self.path) else b)
    class Lossy(LocalFileSystem):
        protocol,loses = 'lossy',staticmethod(lambda path: False)
        @classmethod
        def _strip_protocol(cls, path): return LocalFileSystem._strip_protocol(str(path).removeprefix('lossy://'))
        def _open(self, path, mode='rb', block_size=None, **kwargs): return Opener(path, mode, fs=self, **kwargs)
    fsspec.register_implementation('lossy', Lossy, clobber=True)
    return Lossy


def test_a_url_is_proven_by_content(lossy, fit, tmp_path):
    "A store that zeroes files: nothing is called uploaded, older copies stay, and all follows when it is well"
    there = tmp_path/'there'
    def ill(ckpt):
        settle(ckpt)
        lossy.loses = staticmethod(lambda path: 'step-' in path and path.endswith('.safetensors'))
    def look(ckpt):
        trouble(ckpt)
        assert {int(o[5:13]) for o,s in ckpt.states().items() if s == 'uploaded'} <= {0, 10}
        assert [m['step'] for m,*_ in RunFolder(there).whole()] == [10, 0]
        lossy.loses = staticmethod(lambda path: False)
    learn = fit(f'lossy://{there}', {15: ill, 45: look})
    assert len(learn.told) == 1 and 'arrived damaged or empty' in learn.told[0], learn.told
    tidy(there)
    assert learn.ckpt.states()[RunFolder(there).newest()['file']] == 'uploaded'


def test_what_an_earlier_process_left_in_a_store_is_proven_too(lossy, fit, tmp_path, home, monkeypatch):
    "Damage in the store pushes out no whole copy"
    there,where = tmp_path/'there',f'lossy://{tmp_path}/there'
    with pytest.raises(KeyboardInterrupt): fit(where, {45: stop}, keep=4)
    assert steps(there) == [40, 30, 20, 10]
    for o in there.glob('step-000000[34]0-*.safetensors'): hollow(o)
    seen = []
    fit(where, {47: lambda ckpt: (settle(ckpt), seen.extend(m['step'] for m,*_ in RunFolder(there).whole()))},
        seed=None, steps=46, keep=3)
    assert seen == [46, 40, 20]


