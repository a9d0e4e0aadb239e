"""Checkpoints on a Drive that dies, hangs, fills up, lies and forgets: training goes on, to the same weights,
with one warning for each outage"""
import errno
import gc
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import inject
import pytest
import torch
from fastai.callback.core import Callback
from faultfs import DriveMount

from charrnn_fa import cli, core
from charrnn_fa.checkpoint import writer
from charrnn_fa.store import lease, locate, mount, threads
from charrnn_fa.run import files
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.core import CharRNNError, wait_until
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.run.files import RunError, RunWarning, pack_json
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.run.model import Run
from charrnn_fa.learner import char_learner
from charrnn_fa.run.records import owner_name, owner_record
from charrnn_fa.store.mirror import Mirror
from charrnn_fa.store.locate import Place
from charrnn_fa.store.mount import MountStore, StoreError, follow, mount_of
from charrnn_fa.store.threads import abandoned
from machine import dawdle, ended, machine, until

needs_fuse = pytest.mark.usefixtures('fuse')
pytestmark = pytest.mark.usefixtures('settled')


# Training on a Drive

@pytest.fixture(scope='module')
def fresh(text):
    "Learners as a new process would make them, but for the seed"
    def _fresh(seed=5, n=2000, n_hid=16):
        dls = CharDataLoaders.from_text(text[:n], bs=4, seq_len=16, seed=seed, device='cpu')
        learn = char_learner(dls, n_hid=n_hid, emb_sz=8, head_sz=0, dropout=0.2, precision='fp32')
        learn.logger = lambda log: None
        return learn.remove_cbs(learn.progress)
    return _fresh


@pytest.fixture(scope='module')
def alone(fresh):
    "The same run, with nothing that could fail"
    learn = fresh()
    learn.fit_one_cycle(2, 1e-2)
    return learn


@pytest.fixture(scope='module')
def alone_for_an_epoch(fresh):
    learn = fresh()
    learn.fit_one_cycle(1, 1e-2)
    return learn


class At(Callback):
    "Call functions after training steps, in front of the checkpoint"
    order,run_valid = 999,False
    def __init__(self, fs): self.fs = fs
    def after_batch(self):
        if f := self.fs.get(self.learn.steps_done): f(self.learn.checkpoint)


@pytest.fixture
def fit(fresh, alone, home):
    "Train to the end, with functions of the checkpoint at some steps; `told` are the warnings. It must end as if alone."
    def _fit(where, at=(), seed=5, n_hid=16, **kwargs):
        learn = fresh(seed, n_hid=n_hid)
        with warnings.catch_warnings(record=True) as ws:
            warnings.simplefilter('always')
            learn.ckpt = Checkpoint(where, **{**dict(steps=10, wait=60), **kwargs})
            learn.fit_one_cycle(2, 1e-2, cbs=[learn.ckpt, At(dict(at))])
        learn.told = [str(w.message) for w in ws if issubclass(w.category, RunWarning)]
        if n_hid == 16:
            assert all(torch.equal(p, q) for p,q in zip(alone.model.parameters(), learn.model.parameters(), strict=True))
            assert torch.equal(torch.stack(alone.recorder.losses), torch.stack(learn.recorder.losses))
        return learn
    return _fit


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(Mirror, 'first_retry', 0.05)
    monkeypatch.setattr(MountStore, 'beat', 0.3)
    monkeypatch.setattr(lease, 'silent', 1)
    yield
    threads._waiting.clear()


@pytest.fixture
def drive(tmp_path, fuse):
    with DriveMount(tmp_path) as d:
        (d.backing/'MyDrive').mkdir()
        d.where,d.there = f'{d.mountpoint}/MyDrive/runs/bard',d.backing/'MyDrive/runs/bard'
        yield d


def settle(ckpt):
    assert ckpt.saver.writer.wait(60)
    until(lambda: ckpt.saver.mirror.worker.job is None and ckpt.saver.mirror.pending is None
          and not ckpt.saver.mirror.worker.busy, what='the copy')


def copied(ckpt):
    "Or in trouble: so that none of the copies is left out"
    m = ckpt.saver.mirror
    until(lambda: m.trouble or ckpt.saver.writer.wait(0)
          and not (m.worker.job or m.worker.busy or m.pending), what='the copy')


def tried(ckpt):
    "In trouble, a copy has a fifth of a second for its next try"
    end = time.monotonic()+0.2
    while ckpt.saver.mirror.trouble and time.monotonic() < end: time.sleep(0.01)


def hanging(ckpt):
    "A call of the copy has taken longer than is waited for"
    m = ckpt.saver.mirror
    until(lambda: (busy := m.worker.busy) and time.monotonic() - max(busy, m.moved) > 1.5*m.patience,
          what='a call that hangs')


def trouble(ckpt): until(lambda: ckpt.saver.mirror.trouble, what='the trouble')


def then(*fs):
    def _f(ckpt):
        for f in fs: f(ckpt)
    return _f


def doing(f, *args, **kwargs): return lambda ckpt: f(*args, **kwargs)


def steps(there):
    "Steps of the checkpoints in a folder, newest first, all of which are whole"
    run = RunFolder(there)
    cs = run.checkpoints()
    for m in cs: run.read(m)
    assert not run.damaged, run.damaged
    return [m['step'] for m in cs]


def brought(there, n=2):
    "Whether another process has brought that many checkpoints by now; for moments, files are half there"
    with suppress(RunError, AssertionError): return RunFolder.is_run(there) and len(steps(there)) >= n


def tidy(there, keep=3):
    "Nothing but a run: settings, text, one owner, and at most `keep` whole checkpoints, of which the newest is the end"
    names,n = sorted(os.listdir(there)),len(steps(there))
    assert sorted(o.split('-')[0] for o in names) == ['owner', 'run.json', *['step']*(2*n), 'text'], names
    assert 1 <= n <= keep and RunFolder(there).newest()['finished'], names
    assert all((there/o).stat().st_size for o in names)


def stop(ckpt):
    settle(ckpt)
    raise KeyboardInterrupt


def spoil(f, how):
    b = f.read_bytes()
    if how == 'missing': f.unlink()
    else:
        f.write_bytes(dict(truncated=b[:len(b)//2], flipped=b[:99]+bytes([b[99]^1])+b[100:], empty=b'',
                           html=b'<!doctype html><title>Sign in</title>')[how])


def die(ckpt): os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def lost(drive, fit, tmp_path, monkeypatch):
    "A machine trains for a while and is lost; this one is another"
    def _lost(step=35, *fs, at=(), **kwargs):
        pid = machine(tmp_path/'lost', lambda: fit(drive.where, {**dict.fromkeys((15, 25), settle), **dict(at),
                                                                 step: then(*(fs or [settle]), die)}, **kwargs))
        assert ended(pid) == -signal.SIGKILL
        shutil.rmtree(tmp_path/'lost', ignore_errors=True)
    return _lost


@pytest.fixture(scope='module')
def kept(tmp_path_factory): return tmp_path_factory.mktemp('kept')/'run'


@pytest.fixture
def lost_before(drive, lost, kept, monkeypatch):
    "The same machine, trained once for all tests that want no more of it than what is left; nobody waits for its owner"
    def _lost_before():
        if kept.exists(): shutil.copytree(kept, drive.there)
        else:
            lost(35)
            shutil.copytree(drive.there, kept)
        monkeypatch.setattr(lease, 'silence', lambda beat: 0.1)
    return _lost_before


@pytest.fixture
def hurried(monkeypatch):
    "What a store that has been copied to does not show is looked for again, but not for ten seconds"
    real = locate.wait_until
    monkeypatch.setattr(locate, 'wait_until', lambda f, seconds, every: real(f, min(seconds, 0.5), every/2))


# Gone

def test_all_is_well(drive, fit, capsys):
    learn = fit(drive.where)
    assert (not learn.told and set(learn.ckpt.states().values()) <= {'local', 'mounted'}
            and 'cannot be told' in capsys.readouterr().out)
    tidy(drive.there)
    # nothing depends on what a rename is there
    assert drive.calls()['rename'] == 0
    assert fit(drive.where, seed=None).told == []                                   # finished: loaded
    tidy(drive.there)


def test_mount_dies_and_comes_back(drive, fit, capsys):
    "errno 107 in mid-run, then a new mount on the same place"
    learn = fit(drive.where, {15: then(settle, doing(drive.kill)), 25: trouble, 45: doing(drive.remount)})
    assert (len(learn.told) == 1 and 'Transport endpoint is not connected' in learn.told[0]
            and 'training goes on' in learn.told[0]), learn.told
    assert 'is back' in capsys.readouterr().out
    tidy(drive.there)


def test_a_mount_that_has_died_is_to_be_mounted_again(drive, capsys):
    "Whoever reads a run there is told the same"
    drive.kill()
    with pytest.raises(RunError, match='cannot be reached .*not connected.; mount it again.'): RunFolder(drive.where)
    assert cli.main(['info', drive.where]) == 1
    assert 'not connected; mount it again.' in capsys.readouterr().err


def test_mount_gone_and_its_place_is_a_local_folder(drive, fit, capsys):
    "`umount -l`: what is written below would die with the machine"
    def gone(ckpt):
        settle(ckpt)
        drive.kill()
        drive.unmount()
        for _ in range(2): os.makedirs(drive.mountpoint, exist_ok=True)              # no proof of anything
    learn = fit(drive.where, {15: gone}, wait=1)
    assert len(learn.told) == 1 and 'is not mounted' in learn.told[0]
    assert os.listdir(drive.mountpoint) == []
    assert f'not in {drive.where} yet: the same fit of a new Learner brings them there.' in capsys.readouterr().out
    drive.remount()
    assert steps(drive.there) == [10, 0]
    # what is missing is copied
    again = fit(drive.where, seed=None)
    assert not again.told and RunFolder(drive.there).newest()['finished']


def test_mount_gone_and_somebody_made_the_folder(drive, fit):
    def gone(ckpt):
        settle(ckpt)
        drive.kill()
        drive.unmount()
        os.makedirs(drive.where)
    learn = fit(drive.where, {15: gone}, wait=1)
    assert len(learn.told) == 1 and os.listdir(drive.where) == []
    shutil.rmtree(f'{drive.mountpoint}/MyDrive')


def test_another_kind_of_mount_in_its_place(drive, fit):
    def other(ckpt):
        settle(ckpt)
        drive.kill()
        drive.unmount()
        subprocess.run(['mount', '-t', 'tmpfs', 'none', drive.mountpoint], check=True)
        os.makedirs(drive.where)
    try: learn = fit(drive.where, {15: other}, wait=1)
    finally: subprocess.run(['umount', drive.mountpoint])
    assert len(learn.told) == 1 and 'is not mounted' in learn.told[0]


def test_never_mounted(tmp_path, fit, monkeypatch, home):
    at = tmp_path/'drive'
    monkeypatch.setattr(core, 'drives', (str(at),))
    with pytest.raises(StoreError, match='is not mounted; .*; or go on without it with local=True'):
        fit(f'{at}/MyDrive/run')
    assert not at.exists() and not [o for o in home.rglob('*') if o.is_file()]
    learn = fit(f'{at}/MyDrive/run', local=True, wait=1)
    assert len(learn.told) == 1 and 'is not mounted' in learn.told[0] and not at.exists()
    assert set(learn.ckpt.states().values()) == {'local'}


def test_a_drive_that_was_mounted_elsewhere(tmp_path, fit, monkeypatch):
    "On Colab a folder MyDrive belongs to a mount, wherever it is"
    (tmp_path/'hostname').touch()
    monkeypatch.setattr(mount, 'colab_hostname', tmp_path/'hostname')
    with pytest.raises(CharRNNError, match='is not mounted'): fit(tmp_path/'gdrive/MyDrive/run')
    assert not (tmp_path/'gdrive').exists()


def test_mounted_late(tmp_path, fit, monkeypatch, fuse):
    "local=True, and a mount by hand during training"
    monkeypatch.setattr(core, 'drives', (str(tmp_path/'drive'),))
    drives = []
    def mount_by_hand(ckpt):
        drives.append(DriveMount(tmp_path))
        (drives[0].backing/'MyDrive').mkdir()
    try:
        learn = fit(tmp_path/'drive/MyDrive/run', {25: mount_by_hand}, local=True)
        assert len(learn.told) == 1 and RunFolder(tmp_path/'backing/MyDrive/run').newest()['finished']
    finally:
        for o in drives: o.close()


def test_drive_without_its_folder_is_not_empty(drive, fit):
    "A root that shows no `MyDrive` yet: neither made, nor taken for a Drive that lost the run"
    fit(drive.where)
    (drive.backing/'MyDrive').rename(drive.backing/'hidden')
    with pytest.raises(StoreError, match='has no MyDrive now; check the name, or mount it again; or go on'): fit(drive.where)
    assert os.listdir(drive.backing) == ['hidden']


def test_current_directory_on_the_dead_mount(drive, fit, tmp_path, monkeypatch):
    before = os.getcwd()
    try:
        os.chdir(drive.mountpoint/'MyDrive')
        learn = fit(drive.where, {15: then(settle, doing(drive.kill))}, wait=1)
        assert len(learn.told) == 1
        fit(tmp_path/'elsewhere')
        assert steps(tmp_path/'elsewhere')[0]
        drive.unmount()
        with pytest.raises(StoreError, match='os.chdir'): Checkpoint('relative')
    finally: os.chdir(before)


# Hangs

@needs_fuse
@pytest.mark.parametrize('op', ['write', 'create', 'getattr', 'fsync', 'readdir', 'unlink', 'open', 'getxattr'])
def test_mount_hangs(drive, fit, op, monkeypatch):
    "Training goes on, the end waits for `wait` seconds, and the copy follows if the mount wakes up"
    t = []
    def last(ckpt): t.append(time.monotonic())
    def hang(ckpt):
        settle(ckpt)
        monkeypatch.setattr(Mirror, 'patience', 0.2)
        drive.control(delay={op: 60})
    learn = fit(drive.where, {15: hang, 25: lambda _: time.sleep(0.5), 56: last}, wait=1)
    assert time.monotonic()-t[0] < 30                                              # the hang is for 60
    assert len(learn.told) <= 1 and all('no answer for' in o for o in learn.told)
    worker = learn.ckpt.saver.mirror.worker
    if op != 'getxattr': assert len(learn.told) == 1 and worker.is_alive()
    drive.control()
    worker.join(20)
    # what was begun is brought to its end, and the thread goes
    assert not worker.is_alive()
    assert steps(drive.there)[0] > 10, (learn.ckpt.saver.mirror.trouble, learn.ckpt.saver.mirror.pending,
                                        sorted(os.listdir(drive.there)))


def test_hangs_and_wakes_up(drive, fit, monkeypatch, capsys):
    monkeypatch.setattr(Mirror, 'patience', 0.2)
    def hang(ckpt):
        settle(ckpt)
        drive.control(delay=dict(write=60))
    learn = fit(drive.where, {15: hang, 25: hanging, 35: trouble, 45: doing(drive.control)})
    assert len(learn.told) == 1 and 'no answer for' in learn.told[0] and 'is back' in capsys.readouterr().out
    tidy(drive.there)


def test_hangs_at_the_start_and_threads_do_not_pile_up(drive, fit, monkeypatch):
    monkeypatch.setattr(locate, 'patience', 0.1)
    fit(drive.where)
    before = threading.active_count()
    drive.control(delay=dict(create=60, getattr=60, opendir=60))
    for i in range(6):
        t = time.monotonic()
        with pytest.raises(StoreError, match='has not answered .*local=True'): fit(drive.where, wait=0.3)
        assert time.monotonic()-t < 30
    for i in range(3): assert len(fit(drive.where.replace('bard', f'new{i}'), local=True, wait=0.3).told) == 1
    assert threading.active_count()-before <= 4 and len(abandoned(MountStore(drive.where))) <= 4
    drive.control()
    until(lambda: not abandoned(MountStore(drive.where)), what='an end of all threads')
    assert not fit(drive.where).told


def test_process_comes_to_its_end(drive, fit, tmp_path, monkeypatch):
    "A process with a call that hangs is done; Linux keeps a zombie of it until the call ends"
    monkeypatch.setattr(Mirror, 'patience', 0.2)
    done = tmp_path/'done'
    def run():
        fit(drive.where, {15: then(settle, doing(drive.control, delay=dict(write=60)))}, wait=1)
        done.write_text('yes')
    pid = machine(tmp_path/'other', run)
    until(done.exists, 30, 'the end of fit')
    state = lambda: next((o.split()[1] for o in Path(f'/proc/{pid}/status').read_text().splitlines()
                          if o.startswith('State')), 'X')
    until(lambda: state() in 'ZX', 30, 'the end of the process')                   # the call takes 60
    drive.control()
    assert ended(pid) == 0


# Slow

def test_slow_mount(drive, fit, monkeypatch):
    "The newest wins, those in between are left out, nothing piles up, and it is no outage"
    seen = []
    def look(ckpt): seen.append((threading.active_count(), len(os.listdir(drive.there)), set(ckpt.states().values())))
    drive.control(kbps=60)
    learn = fit(drive.where, {o: then(look, lambda _: time.sleep(0.05)) for o in range(12, 57, 2)}, steps=4, wait=20)
    assert not learn.told, learn.told
    threads,files,states = zip(*seen)
    assert max(threads)-threads[0] <= 1 and max(files) <= 12 and any('local' in o for o in states)
    copied = [o for o in learn.ckpt.saver.mirror.state]
    assert RunFolder(drive.there).newest()['finished'] and len(copied) <= 3
    assert drive.calls()['create'] < 40


def test_slow_writes_and_late_uploads(drive, fit, tmp_path, capsys, monkeypatch):
    """Both at once: the newest wins, nothing piles up, the cloud never loses its last whole checkpoint, and how
    far it is behind is said once"""
    monkeypatch.setattr(Mirror, 'slow', 0.5)
    cloud,seen = tmp_path/'cloud/MyDrive/runs/bard',[]
    drive.control(kbps=50, uncommitted=0.5, ids=True, cloud=tmp_path/'cloud')
    def whole():
        return [m['step'] for m in RunFolder(cloud).checkpoints()
                if (o := cloud/m['file']).exists() and o.stat().st_size == m['size']] if RunFolder.is_run(cloud) else []
    def look(ckpt):
        for o,state in ckpt.states().items():
            if state == 'uploaded': assert (cloud/o).stat().st_size == (ckpt.folder.path/o).stat().st_size
        seen.append((threading.active_count(), len(os.listdir(drive.there)) if drive.there.exists() else 0,
                     max(whole(), default=-1), ckpt.folder.newest()['step']))
        time.sleep(0.15)
    def next_upload(ckpt):
        before = max(whole(), default=-1)
        until(lambda: max(whole(), default=-1) > before, what='an upload')
        look(ckpt)
    learn = fit(drive.where, {**dict.fromkeys(range(1, 58), look), **dict.fromkeys((15, 29, 43, 57), next_upload)},
                steps=2, wait=40)
    threads,files,uploaded,here = zip(*seen)
    out = capsys.readouterr().out
    assert (not learn.told and out.count('take longer than it takes to the next checkpoint') == 1
            and out.rstrip().endswith(', uploaded.'))
    assert max(threads)-threads[0] <= 1 and max(files) <= 2+2*6, seen
    assert list(uploaded) == sorted(uploaded) and len(set(uploaded)) > 3 and max(h-u for h,u in zip(here, uploaded)) >= 4, seen
    tidy(drive.there)
    assert whole()[0] == 58


def test_old_ones_here_that_cannot_go_do_not_hold_up_the_copies(drive, fit, monkeypatch):
    def rotate(*args, **kwargs): raise PermissionError(1, 'Operation not permitted')
    monkeypatch.setattr(writer, 'rotate', rotate)
    learn = fit(drive.where)
    assert len(learn.told) == 1 and 'Operation not permitted' in learn.told[0] and RunFolder(drive.there).finished


def test_two_checkpoints_stay_in_drive(drive, fit):
    "Of a finished run too, where it cannot be told whether the last one has been uploaded"
    fit(drive.where, steps=None, minutes=60)
    assert steps(drive.there) == [58, 0]


def test_local_rotation_leaves_what_is_being_copied(drive, fit):
    "A copy that takes longer than `keep` saves"
    drive.control(kbps=80)
    def look(ckpt):
        time.sleep(0.02)
        m = ckpt.saver.mirror.pending
        assert m is None or (ckpt.folder.path/m['file']).stat().st_size == m['size'] or ckpt.saver.mirror.pending is not m
    learn = fit(drive.where, {o: look for o in range(58)}, steps=1, keep=2, wait=30)
    assert not learn.told, learn.told
    assert RunFolder(drive.there).newest()['finished']


def test_uploads_that_lag_behind(drive, fit, tmp_path, capsys):
    "Nothing is deleted before a newer one is uploaded, and what waits does not pile up"
    drive.control(uncommitted=0.01, ids=True)
    seen = []
    def stuck(ckpt):
        settle(ckpt)
        seen.append(steps(drive.there)[0])
        drive.control(uncommitted=True, ids=True)
    def wait(ckpt):
        ckpt.saver.writer.wait(20)
        until(lambda: ckpt.saver.mirror.state.get(ckpt.folder.newest()['file']) == 'mounted', what='the copy')
        assert ckpt.saver.mirror.worker.wait(20)                                  # what has piled up is gone by then
        seen.append(steps(drive.there))
    learn = fit(drive.where, {15: stuck, **dict.fromkeys(range(21, 56, 4), wait)}, steps=4, wait=5)
    # the last may still be on its way
    assert not learn.told and re.search('not uploaded yet|not in .* yet', capsys.readouterr().out)
    old = seen[0]
    assert all(old in o for o in seen[1:]) and max(map(len, seen[1:])) <= 7, seen
    until(lambda: steps(drive.there)[0] == 58, what='the last one')


def test_uploaded_is_said_after_proof_only(drive, fit, tmp_path, capsys):
    drive.control(uncommitted=0.6, ids=True, cloud=tmp_path/'cloud')
    seen = []
    def look(ckpt):
        for o,s in ckpt.states().items():
            there = tmp_path/'cloud/MyDrive/runs/bard'/o
            if s == 'uploaded': assert there.stat().st_size == (drive.there/o).stat().st_size
            seen.append(s)
    def seen_as(state):
        return lambda ckpt: until(lambda: state in ckpt.states().values(), what=state)
    looks = {o: then(look, lambda _: time.sleep(0.05)) for o in range(11, 57)}
    learn = fit(drive.where, {**looks, 20: then(seen_as('mounted'), look), 30: then(seen_as('uploaded'), look)})
    assert 'uploaded.' in capsys.readouterr().out and {'mounted', 'uploaded'} <= set(seen) and not learn.told
    tidy(drive.there)


def test_machine_lost_before_the_upload(drive, fit, lost, tmp_path):
    "The newest that was uploaded is where another machine goes on; the cache of this one is gone"
    drive.control(uncommitted=0.05, cloud=tmp_path/'cloud')
    (tmp_path/'cloud').mkdir()
    there = lambda ckpt: ckpt.saver.mirror.state.get(ckpt.folder.newest()['file']) == 'uploaded'
    slow = lambda ckpt: (settle(ckpt), until(lambda: there(ckpt)), drive.control(uncommitted=True, cloud=tmp_path/'cloud'))
    wait = (lambda ckpt: ckpt.saver.writer.wait(20)
            and until(lambda: ckpt.saver.mirror.state.get(ckpt.folder.newest()['file']) == 'mounted'))
    lost(45, wait, at={25: slow})
    assert steps(drive.there)[0] == 40
    drive.control()
    drive.remount(tmp_path/'cloud')
    cloud = tmp_path/'cloud/MyDrive/runs/bard'
    assert steps(cloud)[0] == 20
    learn = fit(drive.where, seed=None)
    assert RunFolder(cloud).resumes() == [20] and not learn.told
    tidy(cloud)


def test_an_attribute_that_cannot_be_read_proves_nothing(drive, fit):
    "Errors in passing while uploads are stuck: what the cloud has stays in the mount too"
    kept = []
    def blip(ckpt):
        settle(ckpt)
        drive.control(uncommitted=True, errno=dict(getxattr=5))
        time.sleep(1)
        kept.append(steps(drive.there))
    drive.control(uncommitted=0.05)
    def stuck(ckpt):
        settle(ckpt)
        until(lambda: ckpt.saver.mirror.state.get(ckpt.folder.newest()['file']) == 'uploaded')
        drive.control(uncommitted=True)
    fit(drive.where, {12: stuck, **{o: settle for o in (22, 32, 42)}, 45: blip,
                      47: doing(drive.control, uncommitted=True)}, keep=2, wait=1)
    assert 10 in kept[0] and 10 in steps(drive.there), kept


@needs_fuse
@pytest.mark.parametrize('answers,uploaded', [({}, None), (dict(uncommitted=False), True), (dict(uncommitted=True), False)])
def test_what_the_attributes_say(drive, answers, uploaded):
    s = MountStore(f'{drive.mountpoint}/MyDrive/x')
    drive.control(**answers)
    s.write('a', [b'x'])
    assert s.uploaded('a') is uploaded
    drive.control(errno=dict(getxattr=5))
    assert not s.uploaded('a')
    drive.control()
    # it has answered before, so it owes an answer
    if uploaded is not None: assert s.uploaded('a') is False


# I/O errors

@needs_fuse
@pytest.mark.parametrize('op', ['create', 'write', 'flush', 'fsync', 'read', 'open', 'getattr', 'opendir', 'unlink'])
def test_input_output_error(drive, fit, op, tmp_path):
    "errno 5 for a while: tried again, one warning at most, all is there in the end, and nothing else"
    drive.control(trash=tmp_path/'trash')
    def hurt(ckpt):
        settle(ckpt)
        drive.control(errno={op: [5, 2, 12]}, trash=tmp_path/'trash')
    learn = fit(drive.where, {15: hurt, **dict.fromkeys((25, 35), lambda _: time.sleep(0.3)),
                              45: doing(drive.control, trash=tmp_path/'trash')})
    assert len(learn.told) <= 1 and all('Input/output error' in o for o in learn.told), learn.told
    tidy(drive.there)
    assert not sum(o.stat().st_size for o in (tmp_path/'trash').iterdir())


# which ones; by hand, all
CALLS = ('openat', 61), ('write', 11), ('fsync', 7), ('close', 97), ('read', 151), ('newfstatat', 97), ('unlinkat', 5)

@needs_fuse
@pytest.mark.usefixtures('strace')
# the last two are one to the library
@pytest.mark.parametrize('error,calls', [('EIO', CALLS), ('ENOSPC', CALLS[2:3]), ('EDQUOT', CALLS[1:2])])
def test_an_error_in_every_call_of_a_copy(drive, fresh, tmp_path, monkeypatch, error, calls):
    "A call that the copy of one checkpoint makes on Drive fails, once or from then on; the same calls on the local disk work"
    # names that can be given to strace
    monkeypatch.setattr('charrnn_fa.run.folder.secrets', SimpleNamespace(token_hex=lambda n: '0'*2*n))
    files = [f'step-00000008-{"0"*8}{o}' for o in ('.safetensors', '.json')]
    alone = fresh(n=1200)
    alone.fit_one_cycle(1, 1e-2)
    def train():
        os.environ['CHARRNN_HOME'] = str(tmp_path/'home')
        with warnings.catch_warnings(record=True) as ws:
            warnings.simplefilter('always')
            learn = fresh(n=1200)
            cbs = [At({6: then(settle, lambda _: inject.gate()), **dict.fromkeys((10, 14), then(copied, tried))}),
                   Checkpoint(drive.where, steps=4, keep=2, wait=120, quiet=True)]
            learn.fit_one_cycle(1, 1e-2, cbs=cbs)
        told = [str(w.message) for w in ws if issubclass(w.category, RunWarning)]
        assert len(told) <= 1 and all(os.strerror(getattr(errno, error)) in o for o in told), told
        assert all(torch.equal(p, q) for p,q in zip(alone.model.parameters(), learn.model.parameters(), strict=True))
    def trial(call, i, more):
        "Whether the call was hit"
        for o in tmp_path/'home',drive.there: shutil.rmtree(o, ignore_errors=True)
        rc,hit = inject.run_with_fault(train, call, f'{i}{more}', f'error={error}', gate=True,
                                       path=[*(f'{drive.where}/{o}' for o in files), *files])
        assert rc == 0, (call, i, more)
        data,manifest = [drive.there/o for o in files]
        # what can never be removed may stay, but does not count
        if more and not (manifest.exists() and manifest.stat().st_size):
            for o in data,manifest: o.unlink(missing_ok=True)
        tidy(drive.there, 3 if more else 2)
        return hit
    for call,every in calls:
        hits = list(itertools.takewhile(lambda i: trial(call, i, ''), itertools.count(1, every)))
        assert hits, f'there is no {call}'
        assert [trial(call, i, '+') for i in hits][0]


def test_read_error_falls_back(drive, fit, lost_before):
    lost_before()
    assert steps(drive.there) == [30, 20, 10]
    # the run saves step 30 again, under another name
    drive.control(errno=dict(read=5), match='*' + RunFolder(drive.there).newest()['file'])
    learn = fit(drive.where, seed=None)
    assert len(learn.told) == 1 and 'Input/output error' in learn.told[0] and 'step 20 is used' in learn.told[0], learn.told
    drive.control()
    assert RunFolder(drive.there).resumes() == [20] and RunFolder(drive.there).newest()['finished']


@pytest.mark.parametrize('faults', [dict(errno=dict(read=5), match='*.safetensors'), dict(errno=dict(readdir=5))])
def test_what_cannot_be_read_for_a_while_is_not_to_be_removed(drive, fit, lost_before, faults):
    lost_before()
    drive.control(**faults)
    with pytest.raises(RunError, match='cannot be') as e: fit(drive.where, seed=None)
    assert e.value.remedy.endswith('or give another place.') and 'remove' not in e.value.remedy, e.value.remedy


def test_folder_that_cannot_be_listed(drive, fit, lost):
    "Names that are known are tried instead: copies, rotation and a resume on the same machine need no listing"
    learn = fit(drive.where, {15: then(settle, doing(drive.control, errno=dict(readdir=5)))})
    assert not learn.told, learn.told
    assert len(steps(drive.there)) == 3 and RunFolder(drive.there).newest()['finished']
    assert len([o for o in os.listdir(drive.there) if o.startswith('owner-')]) <= 2
    assert not fit(drive.where).told
    shutil.rmtree(os.environ['CHARRNN_HOME'])
    with pytest.raises(CharRNNError, match='cannot be listed'): fit(drive.where, seed=None)
    drive.control()
    assert not fit(drive.where, seed=None).told


# Full

@needs_fuse
@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize('op', ['write', 'flush', 'create'])
def test_drive_is_full(drive, fit, op, number, tmp_path):
    "No half file stays, nothing goes to the trash, training goes on, and the copy follows when there is room"
    seen = []
    drive.control(trash=tmp_path/'trash')
    def look(ckpt):
        trouble(ckpt)
        seen.extend(steps(drive.there))
        newest = RunFolder(drive.there).checkpoints()[0]['step']
        if op != 'flush':
            until(lambda: not [o for o in drive.there.glob('step-*') if newest < int(o.name[5:13])],
                  what='a moment between two tries')
        drive.control(trash=tmp_path/'trash')
    learn = fit(drive.where, {15: then(settle, doing(drive.control, errno={op: [number, 3]}, trash=tmp_path/'trash')),
                              45: look})
    assert len(learn.told) == 1 and os.strerror(number) in learn.told[0] and seen, learn.told
    tidy(drive.there)
    assert not sum(o.stat().st_size for o in (tmp_path/'trash').iterdir())


@contextmanager
def small(at, kilobytes):
    "A disk of that size"
    if sys.platform != 'linux' or os.geteuid(): pytest.skip('mounting needs root on Linux')
    Path(at).mkdir(parents=True, exist_ok=True)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k', 'none', at], capture_output=True).returncode:
        pytest.skip('tmpfs cannot be mounted here')
    try: yield Path(at)
    finally: subprocess.run(['umount', '-l', at])


@pytest.fixture
def size(fit, tmp_path):
    "Kilobytes of the largest checkpoint, and of what is beside them"
    fit(tmp_path/'measured')
    kb = lambda pattern: [-(-o.stat().st_size//4096)*4 for o in (tmp_path/'measured').glob(pattern)]
    res = max(kb('step-*.safetensors')),sum(kb('run.json')+kb('text-*'))
    shutil.rmtree(tmp_path/'measured')
    return res


def test_old_ones_make_room_in_drive(tmp_path, fit, size, fuse):
    "Room for three, although keep=5: two whole ones stay, the newest gets in"
    data,rest = size
    with small(tmp_path/'backing', 3*(data+4) + rest + data//2 + 12), DriveMount(tmp_path) as drive:
        (drive.backing/'MyDrive').mkdir()
        learn = fit(f'{drive.mountpoint}/MyDrive/run', {o: settle for o in range(11, 56, 4)}, steps=4, keep=5)
        there = drive.backing/'MyDrive/run'
        assert not learn.told, learn.told
        assert RunFolder(there).newest()['finished'] and 2 <= len(steps(there)) <= 3
        assert not [o for o in os.listdir(there) if o.startswith('step-') and not (there/o).stat().st_size]


def test_local_disk_is_full(tmp_path, fit, size):
    "A run on a small local disk: room is made, or one warning and no half file"
    data,rest = size
    with small(tmp_path/'disk', 3*(data+4) + rest + data//2 + 16) as d:
        learn = fit(d/'run', steps=4, keep=9)
        assert not learn.told and RunFolder(d/'run').newest()['finished']
        shutil.rmtree(d/'run')
        def fill(ckpt):
            ckpt.saver.writer.wait(20)
            with suppress(OSError), open(d/'other', 'wb') as f:
                while True: f.write(bytes(4096))
        learn = fit(d/'run', {15: fill, 45: lambda _: (d/'other').unlink()}, keep=2)
        assert len(learn.told) == 1 and 'No space left' in learn.told[0] and 'training goes on' in learn.told[0], learn.told
        assert RunFolder(d/'run').newest()['finished'] and not [o for o in os.listdir(d/'run') if o.startswith('.step')]


def test_an_end_that_is_not_stored_can_be_had_again(tmp_path, fresh, fit, size):
    "The same call of the same Learner, once there is room"
    data,rest = size
    with small(tmp_path/'disk', 2*(data+4) + rest + data//2 + 16) as d:
        learn = fresh()
        go = lambda: learn.fit_one_cycle(2, 1e-2, cbs=Checkpoint(d/'run', steps=10))
        with pytest.warns(RunWarning, match='not stored; once that is mended, the same call trains on to it.'): go()
        assert not RunFolder(d/'run').finished
        subprocess.run(['mount', '-o', 'remount,size=10m', d], check=True)
        go()
        assert RunFolder(d/'run').finished and not (d/'run/2').exists()


def test_cache_is_full_and_drive_is_not(drive, tmp_path, fit, size, monkeypatch):
    data,rest = size
    with small(tmp_path/'disk', 3*(data+4) + rest + data//2 + 24) as d:
        monkeypatch.setenv('CHARRNN_HOME', str(d))
        def fill(ckpt):
            settle(ckpt)
            with suppress(OSError), open(d/'other', 'wb') as f:
                while True: f.write(bytes(4096))
        learn = fit(drive.where, {15: fill, 45: lambda _: (d/'other').unlink()}, keep=2)
        assert len(learn.told) == 1 and 'No space left' in learn.told[0] and str(d) in learn.told[0], learn.told
        tidy(drive.there, 2)
        gc.collect()


# Lies

def test_files_arrive_empty(drive, fit):
    "A quota of operations: no error, and 0 bytes"
    learn = fit(drive.where, {15: then(settle, doing(drive.control, zero=True)), 35: then(trouble, doing(drive.control))})
    assert len(learn.told) == 1 and 'damaged or empty' in learn.told[0] and 'quota' in learn.told[0], learn.told
    tidy(drive.there)


@needs_fuse
@pytest.mark.parametrize('answers', [{}, dict(uncommitted=0.6)])
def test_files_become_empty(drive, fit, answers):
    "They were proven, and are empty a moment later: what was there before stays; a warning, and one more if a copy got through meanwhile"
    before,now = [],[]
    def start(ckpt):
        settle(ckpt)
        before.extend(steps(drive.there))
        # files written before keep what they hold
        drive.backing.joinpath('MyDrive').rename(drive.backing/'x'); drive.kill()
        drive.remount()
        drive.backing.joinpath('x').rename(drive.backing/'MyDrive')
        drive.control(zero=0.1, **answers)
    def look(ckpt):
        time.sleep(1)
        run = RunFolder(drive.there)
        now.extend(m['step'] for m in run.checkpoints() if not _damaged(run, m))
    learn = fit(drive.where, {25: start, 35: look, 45: look, 52: doing(drive.control, **answers)})
    assert any('quota' in o for o in learn.told) and len(learn.told) <= 2, learn.told
    assert before[0] in now and set(now) & set(before)
    assert RunFolder(drive.there).newest()['finished']


def _damaged(run, m):
    try: run.read(m)
    except RunError: return True


@needs_fuse
@pytest.mark.parametrize('which', ['.safetensors', '.json'])
def test_a_copy_that_goes_before_it_is_uploaded(drive, fit, which):
    "Somebody removes the newest file while the cloud does not have it yet: it is copied again"
    drive.control(uncommitted=True)
    def gone(ckpt):
        (drive.there/ckpt.saver.mirror.lease.record['newest']).with_suffix(which).unlink()
        until(lambda: ckpt.saver.mirror.trouble, what='the trouble')
        until(lambda: not ckpt.saver.mirror.pending, what='the second copy')
        assert steps(drive.there)[0] == 50
    learn = fit(drive.where, {55: then(settle, gone, doing(drive.control, uncommitted=0.01))})
    assert len(learn.told) == 1 and 'is no longer there' in learn.told[0], learn.told
    tidy(drive.there)


def test_settings_that_became_empty_are_written_anew(drive, fit):
    def empty(ckpt):
        settle(ckpt)
        os.truncate(drive.there/'run.json', 0)
    learn = fit(drive.where, {25: empty})
    assert not learn.told
    tidy(drive.there)


def test_nothing_goes_to_the_trash(drive, fit, tmp_path):
    drive.control(trash=tmp_path/'trash')
    fit(drive.where, dict.fromkeys(range(11, 56, 4), settle), steps=4)
    gone = list((tmp_path/'trash').iterdir())
    assert len(gone) > 20 and not sum(o.stat().st_size for o in gone)
    tidy(drive.there)


def test_duplicates(drive, fit, lost_before, monkeypatch, tmp_path):
    "`name (1).ext` beside the file or instead of it, empty ones too"
    lost_before()
    for i,o in enumerate(sorted(drive.there.iterdir())):
        stray = o.with_name(f'{o.stem} (1){o.suffix}')
        if o.name == 'run.json': stray.write_bytes(b'')
        elif i % 2: o.rename(stray)
        else: shutil.copy(o, stray)
    # the upload was tried twice, and came through once
    m = next(drive.there.glob('step-00000030-*.safetensors'))
    shutil.copy(m, m.with_name(m.name.replace('(1)', '').replace(' ', '').replace('.safetensors', ' (2).safetensors')))
    m.write_bytes(b'')
    learn = fit(drive.where, seed=None)
    assert RunFolder(drive.there).resumes() == [30] and not learn.told, learn.told
    names = [o for o in os.listdir(drive.there) if '(' in o and o.startswith('step-')]
    assert RunFolder(drive.there).newest()['finished'] and not [o for o in names if '-00000010-' in o], names


@needs_fuse
@pytest.mark.parametrize('fault', [dict(duplicates=True), dict(torn_rename=0.3)])
def test_odd_renames(drive, fit, fault):
    "A store needs no rename"
    drive.control(**fault)
    assert not fit(drive.where).told and drive.calls()['rename'] == 0
    tidy(drive.there)


def test_no_rename_replaces_anything(fit, tmp_path, monkeypatch):
    "On a local disk, a rename that is not atomic loses nothing that counts: its target is always new, and it comes between two syncs"
    calls,replace,sync = [],os.replace,os.fsync
    def _replace(old, new):
        calls.append('rename')
        assert not os.path.exists(new)
        replace(old, new)
    def _sync(fd):
        calls.append('sync')
        sync(fd)
    monkeypatch.setattr(os, 'replace', _replace)
    monkeypatch.setattr(os, 'fsync', _sync)
    fit(tmp_path/'run')
    assert calls.count('rename') > 10 and calls == ['sync', 'rename', 'sync']*calls.count('rename')


@needs_fuse
def test_killed_within_a_rename_that_is_not_atomic(drive, fresh, alone, tmp_path):
    "The cache of this machine lies on a disk whose rename removes the target, waits, and only then puts the new file there"
    (tmp_path/'disk').mkdir()
    with DriveMount(tmp_path/'disk', torn_rename=60) as disk:
        def train(seed=5):
            learn = fresh(seed)
            learn.fit_one_cycle(2, 1e-2, cbs=[At({o: settle for o in range(15, 58, 10)}),
                                              Checkpoint(drive.where, steps=10, wait=120, quiet=True)])
            return learn
        pid,runs = machine(disk.mountpoint/'home', train, tmp_path/'log'),disk.backing/'home/runs'
        notes = lambda: [o.name for o in runs.glob('*/.*') if '.mirror' in o.name]
        until(lambda: (calls := disk.calls()['rename']) and time.sleep(0.2) is None and disk.calls()['rename'] == calls
              and notes() and '.mirror' not in notes(), what='a rename that hangs')
        os.kill(pid, signal.SIGKILL)
        # Linux lets a process go only when its call is over
        disk.kill()
        assert ended(pid) == -signal.SIGKILL, (tmp_path/'log').read_text()
        assert notes() and '.mirror' not in notes()
        disk.control()
        disk.remount()
        with pytest.MonkeyPatch.context() as m, warnings.catch_warnings():
            m.setenv('CHARRNN_HOME', str(disk.mountpoint/'home'))
            warnings.simplefilter('error', RunWarning)
            learn = train(None)
        assert all(torch.equal(p, q) for p,q in zip(alone.model.parameters(), learn.model.parameters(), strict=True))
        assert len(RunFolder(drive.there).resumes()) == 1 and '.mirror' in notes()     # gone on with, not begun anew
    tidy(drive.there)


def test_listing_and_contents_that_are_old(drive, fit, lost):
    "What another machine did is seen late; what this one did is known, but not listed"
    drive.control(stale=1.5)
    os.listdir(drive.mountpoint/'MyDrive')
    lost(35)
    drive.control(stale=1.5)
    learn = fit(drive.where, {o: lambda _: time.sleep(0.05) for o in range(60)}, seed=None)
    assert not learn.told, learn.told
    drive.control()
    run = RunFolder(drive.there)
    assert run.newest()['finished'] and run.resumes()[0] in (20, 30) and len(steps(drive.there)) <= 6


def test_newest_is_found_through_the_owner(drive, fit, lost_before, monkeypatch):
    "A listing without the newest manifest"
    lost_before()
    names = MountStore.names
    monkeypatch.setattr(MountStore, 'names', lambda self: [o for o in names(self) if not o.startswith('step-00000030')])
    assert not fit(drive.where, seed=None).told
    assert RunFolder(drive.there).resumes() == [30]


# Not allowed

@needs_fuse
@pytest.mark.parametrize('fault,why', [(dict(readonly=True), 'it is read-only'),
                                       (dict(errno=dict(create=13, mkdir=13)), 'the right to write')])
def test_not_allowed_to_write(drive, fit, fault, why):
    drive.control(**fault)
    with pytest.raises(StoreError, match=f'cannot be written to .*{why}.*local=True'): fit(drive.where)
    learn = fit(drive.where, local=True, wait=0.5)
    assert len(learn.told) == 1 and why in learn.told[0] and os.listdir(drive.backing/'MyDrive') == []
    drive.control()
    # the copies of the first fit are let go
    assert wait_until(lambda: not any(t.is_alive() for ts in threads._waiting.values() for t in ts), 60)
    assert not fit(drive.where, seed=None).told                                     # writable by now: it follows
    assert RunFolder(drive.there).newest()['finished']


def test_remounted_read_only(drive, fit):
    "By the system's own `mount -o remount`, in mid-run and at the start"
    remount = lambda how: subprocess.run(['mount', '-i', '-o', f'remount,bind,{how}', drive.mountpoint], check=True,
                                         capture_output=True)
    learn = fit(drive.where, {15: then(settle, doing(remount, 'ro')), 25: trouble, 45: doing(remount, 'rw')})
    assert len(learn.told) == 1 and 'Read-only file system' in learn.told[0]
    tidy(drive.there)
    remount('ro')
    with pytest.raises(StoreError, match='it is read-only'): fit(drive.where.replace('bard', 'other'))


@needs_fuse
def test_not_the_owner_of_the_folder(drive, fit, tmp_path):
    "Mode 0555, as another user"
    os.chmod(drive.backing/'MyDrive', 0o555)
    (tmp_path/'home2').mkdir()
    log = tmp_path/'log'
    for o in tmp_path,*tmp_path.parents[:3]: os.chmod(o, os.stat(o).st_mode|0o11)
    os.chmod(tmp_path/'home2', 0o777)
    log.touch()
    def run():
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        fit(drive.where)
    assert ended(machine(tmp_path/'home2', run, log)) == 1
    last = log.read_text().strip().splitlines()[-1]
    assert 'StoreError' in last and 'the right to write' in last and 'local=True' in last, last


def test_holds_other_things(drive, fit):
    drive.there.mkdir(parents=True)
    (drive.there/'thesis.tex').write_text('x')
    for local in False, True:
        with pytest.raises(StoreError, match='holds other things'): fit(drive.where, local=local)
    assert os.listdir(drive.there) == ['thesis.tex']


# Two runtimes

def test_two_on_one_machine(drive, fit, tmp_path, monkeypatch):
    go = tmp_path/'go'
    pid = machine(os.environ['CHARRNN_HOME'], lambda: fit(drive.where, {15: then(settle, lambda _: until(go.exists))}))
    try:
        until(lambda: (drive.there/'run.json').exists(), what='the run')
        with pytest.raises(RunError, match='Another process on this machine'): fit(drive.where)
    finally: go.touch()
    assert ended(pid) == 0
    tidy(drive.there)


@needs_fuse
@pytest.mark.parametrize('stale', [0, 0.6])
def test_two_machines(drive, fit, tmp_path, monkeypatch, stale):
    "The second is refused while the first is alive; a silent one is overridden, and keeps its copies to itself from then on"
    monkeypatch.setattr(lease, 'silent', 60)      # two signs end the wait, however slow they are
    drive.control(stale=stale)
    log = tmp_path/'log'
    go = tmp_path/'go'
    pid = machine(tmp_path/'a', lambda: print(fit(drive.where, dict.fromkeys(range(11, 57), dawdle(go)), wait=2).told), log)
    try:
        until(lambda: brought(drive.there), what='the run')
        with pytest.raises(RunError, match='is being trained on another machine'): fit(drive.where, seed=None)
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(lease, 'silent', 1)
        time.sleep(2*stale)
        learn = fit(drive.where, seed=None)
        # it may have been stopped in the middle of a file
        assert all('is used' in o for o in learn.told)
        newest,names = RunFolder(drive.there).newest(),sorted(os.listdir(drive.there))
        assert newest['finished'] and newest['generation'] == 1
        # what the first will see
        until(lambda: sorted(os.listdir(drive.where)) == names, what='a listing that is not old')
        go.touch()
        os.kill(pid, signal.SIGCONT)
        assert ended(pid) == 0, log.read_text()
        pid = None
    finally:
        if pid: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    assert 'another process has taken over' in log.read_text()
    now = RunFolder(drive.there)
    assert now.newest() == newest and now.owner()['generation'] == 1
    if not stale: assert {o for o in os.listdir(drive.there) if o not in names and '00000020' not in o} == set()


@needs_fuse
@pytest.mark.parametrize('minutes', [-15, 15, -30_000_000])
def test_an_owner_whose_clock_is_slow(drive, fit, tmp_path, monkeypatch, minutes):
    "A quarter of an hour behind or ahead, or 57 years, but alive: seen by its signs"
    go,real = tmp_path/'go',time.time
    monkeypatch.setattr(lease, 'silent', 60)
    def owner():
        time.time = lambda: real()+60*minutes
        fit(drive.where, dict.fromkeys(range(12, 58), dawdle(go)))
    pid = machine(tmp_path/'a', owner, tmp_path/'log')
    try:
        until(lambda: brought(drive.there))
        with pytest.raises(RunError, match='trained on another machine'): fit(drive.where, seed=None)
    finally: go.touch()
    assert ended(pid) == 0, (tmp_path/'log').read_text()
    assert RunFolder(drive.there).resumes() == []


def test_owner_lives_through_a_long_copy(drive, fit, tmp_path, monkeypatch):
    "Signs of life during a copy that takes longer than the silence after which one is taken for dead"
    go = tmp_path/'go'
    monkeypatch.setattr(files, 'piece', 4000)
    pid = machine(tmp_path/'a', lambda: fit(drive.where, {15: then(settle, doing(drive.control, kbps=30)),
                                                          22: lambda _: until(go.exists)}, n_hid=80))
    try:
        until(lambda: drive.there.is_dir() and any(o.name.startswith('step-00000020') for o in drive.there.iterdir()),
              what='the copy')
        with pytest.raises(RunError, match='is being trained on another machine'): fit(drive.where, seed=None, n_hid=80)
        assert not list(drive.there.glob('step-00000020-*.json'))                   # that is, during the copy
    finally:
        drive.control()
        go.touch()
    assert ended(pid) == 0


def test_two_that_begin_at_once(drive, fit, tmp_path, monkeypatch):
    "Both find an empty folder: the settings of the first to bring them stay, the other keeps to itself"
    log,begin = tmp_path/'log',RunFolder.create
    # both have looked, neither has copied anything
    def meet(self, *args, **fields):
        (tmp_path/f'looked-{os.getpid()}').touch()
        until(lambda: len(list(tmp_path.glob('looked-*'))) == 2, what='the other')
        return begin(self, *args, **fields)
    monkeypatch.setattr(RunFolder, 'create', meet)
    drive.control(delay=dict(fsync=0.3))
    pid = machine(tmp_path/'a', lambda: print(fit(drive.where, {5: lambda _: time.sleep(1)}).told), log)
    learn = fit(drive.where, {5: lambda _: time.sleep(1)})
    assert ended(pid) == 0, log.read_text()
    both = ' '.join(learn.told) + log.read_text()
    drive.control()
    run = RunFolder(drive.there)
    assert both.count('another run') == 1 and run.newest()['finished'], both


def test_owner_whose_record_cannot_be_read(drive, fit, lost):
    "It was replaced a moment ago, or is empty: somebody is there all the same"
    lost(35)
    run = RunFolder(drive.there)
    o = run.owner()
    (drive.there/owner_name(dict(o, beat=o['beat']+1))).touch()
    t = time.monotonic()
    assert not fit(drive.where, seed=None).told and time.monotonic()-t > 0.8
    tidy(drive.there)


def test_a_last_sign_of_life_that_is_seen_late(drive, fit, lost, monkeypatch):
    "It came before the owner died, and says no more than that"
    monkeypatch.setattr(MountStore, 'beat', 0.9)
    lost(35)
    run = RunFolder(drive.there)
    o = run.owner()
    (drive.there/owner_name(o)).unlink()
    (drive.there/owner_name(dict(o, beat=o['beat']-1))).write_bytes(pack_json(dict(o, beat=o['beat']-1)))
    late = threading.Timer(1.5, (drive.there/owner_name(o)).write_bytes, [pack_json(o)])
    late.start()
    assert not fit(drive.where, seed=None).told and run.resumes() == [30]
    late.join()


def test_a_look_that_fails_is_no_sign_of_life(drive, fit, lost):
    "The names that a living owner would leave next are asked for, and once the answer is an error"
    lost(35)
    (owner,) = [o for o in os.listdir(drive.there) if o.startswith('owner-')]
    stem,beat = owner.removesuffix('.json').rsplit('-', 1)
    drive.control(errno=dict(getattr=5), match=f'*/{stem}-{int(beat)+1}.json')
    assert not fit(drive.where, seed=None).told and RunFolder(drive.there).resumes() == [30]


def test_going_on_without_a_drive_whose_owner_cannot_be_asked(drive, fit, lost, monkeypatch):
    "It dies between the first look and the question whether its owner, another machine, lives"
    with pytest.raises(KeyboardInterrupt): fit(drive.where, {25: stop})
    lost(45)
    real = Place._wait_for_owner
    def wait(self):
        drive.kill()
        return real(self)
    monkeypatch.setattr(Place, '_wait_for_owner', wait)
    with pytest.raises(StoreError, match='local=True'): fit(drive.where)
    drive.remount()
    learn = fit(drive.where, local=True, wait=2)
    assert len(learn.told) == 1, learn.told
    assert learn.ckpt.folder.resumes() == [25] and learn.ckpt.folder.finished


def test_old_owner_does_not_remove_the_new_one(drive, fit, capsys):
    "Its sign of life at the end of a long copy comes after the takeover"
    def taken(ckpt):
        settle(ckpt)
        m = ckpt.saver.mirror
        other = owner_record(ckpt.folder.id, 'deadbeef', 1, [10], beat=1)
        m.store.write(owner_name(other), [pack_json(other)])
        m.lease.beat()
    learn = fit(drive.where, {15: taken})
    assert len(learn.told) == 1 and 'taken over' in learn.told[0]
    assert 'safe on this machine only.' in capsys.readouterr().out
    assert RunFolder(drive.there).owner()['token'] == 'deadbeef' and steps(drive.there) == [10, 0]


# Clocks, kills, damage

def test_clocks_that_jump(drive, fit, lost, monkeypatch):
    "Order comes from generation and step: times are reversed, and the clock is a day off"
    lost(35)
    for i,o in enumerate(sorted(drive.there.iterdir())): os.utime(o, (10**9-i, 10**9-i))
    real,shift = time.time,[-86400]
    monkeypatch.setattr(time, 'time', lambda: real()+shift[0])
    t = time.monotonic()
    learn = fit(drive.where, {40: lambda _: shift.__setitem__(0, 86400)}, seed=None)
    assert time.monotonic()-t < 60 and not learn.told                              # not a day
    assert RunFolder(drive.there).resumes() == [30]
    tidy(drive.there)


def test_killed_between_data_and_manifest(drive, fit, lost, monkeypatch):
    write = MountStore.write
    def deadly(self, name, pieces):
        if name.startswith('step-00000030') and name.endswith('.json'): die(None)
        write(self, name, pieces)
    monkeypatch.setattr(MountStore, 'write', deadly)
    lost(56, at={35: settle})
    monkeypatch.setattr(MountStore, 'write', write)
    (orphan,) = [o for o in os.listdir(drive.there) if '00000030' in o]
    learn = fit(drive.where, seed=None)
    assert not learn.told and RunFolder(drive.there).resumes() == [20] and orphan not in os.listdir(drive.there)
    tidy(drive.there)


@needs_fuse
@pytest.mark.usefixtures('strace')
@pytest.mark.parametrize('call,every', [('fsync', 7), ('write', 17), ('unlinkat', 5), ('openat', 151)])
def test_killed_at_every_call_of_a_copy(drive, fresh, alone_for_an_epoch, tmp_path, monkeypatch, call, every):
    "SIGKILL in the thread that copies, while two saves and a rotation arrive in Drive; another machine goes on from what is there"
    class Copied(Callback):
        order = 1001
        def after_batch(self):
            if not self.training or self.train_iter%5: return
            settle(self.checkpoint)
            if self.train_iter == 10: inject.gate()
            if self.train_iter == 20: os._exit(0)
    def train(home, *cbs):
        os.environ['CHARRNN_HOME'] = str(home)
        learn = fresh(5 if cbs else None)
        learn.fit_one_cycle(1, 1e-2, cbs=[*cbs, Checkpoint(drive.where, steps=5, keep=2, wait=120, quiet=True)])
        return learn
    first,kills = 1,0
    while True:
        for o in tmp_path/'lost',tmp_path/'found',drive.there: shutil.rmtree(o, ignore_errors=True)
        rc,hit = inject.run_with_fault(lambda: train(tmp_path/'lost', Copied()), call, first, 'signal=SIGKILL', gate=True)
        if not hit: break
        assert rc == -signal.SIGKILL
        kills,first = kills+1,first+every
        with pytest.MonkeyPatch.context() as m, warnings.catch_warnings():
            m.setenv('CHARRNN_HOME', str(tmp_path/'found'))
            m.setattr(lease, 'silence', lambda beat: 0.1)                              # that it is dead is known
            warnings.simplefilter('error', RunWarning)
            learn = train(tmp_path/'found')
        assert all(torch.equal(p, q) for p,q in zip(alone_for_an_epoch.model.parameters(), learn.model.parameters(),
                                                    strict=True)), (call, first)
        tidy(drive.there, keep=2)
    assert kills > 1


@pytest.mark.parametrize('how', ['truncated', 'flipped', 'empty', 'html', 'missing'])
@pytest.mark.parametrize('which', ['safetensors', 'json'])
def test_damaged_here(fit, tmp_path, which, how):
    "A run on this machine's disk: the checkpoint before is used, and that is said"
    def stop(ckpt): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(tmp_path/'r', {45: stop})
    spoil(next((tmp_path/'r').glob(f'step-00000045-*.{which}')), how)
    learn = fit(tmp_path/'r', seed=None)
    assert RunFolder(tmp_path/'r').resumes() == [40] and len(learn.told) == (which+how != 'jsonmissing'), learn.told
    assert all('step 40 is used' in o for o in learn.told)


@needs_fuse
@pytest.mark.parametrize('how', ['truncated', 'flipped', 'empty', 'html', 'missing'])
@pytest.mark.parametrize('which', ['safetensors', 'json'])
def test_damaged_in_the_store(drive, fit, lost_before, which, how):
    "The one before is used, and it is said why"
    lost_before()
    (f,) = drive.there.glob(f'step-00000030-*.{which}')
    spoil(f, how)
    learn = fit(drive.where, seed=None)
    silent = (which,how) == ('json', 'missing')                                     # a checkpoint that never came about
    assert len(learn.told) == (not silent) and all(f.stem in o and 'step 20 is used' in o for o in learn.told), learn.told
    assert RunFolder(drive.there).resumes() == [20] and RunFolder(drive.there).newest()['finished']


def test_settings_lost_in_the_store_and_whole_here(drive, fit, tmp_path):
    "Of no bytes, or under the name that Drive gives to a second file: the run goes on and they are written anew"
    with pytest.raises(KeyboardInterrupt): fit(drive.where, {25: stop})
    (drive.there/'run.json').write_bytes(b'')
    with pytest.raises(KeyboardInterrupt): fit(drive.where, {35: stop}, seed=None)
    assert RunFolder(drive.there).resumes() == [25]
    (drive.there/'run.json').rename(drive.there/'run (1).json')
    assert not fit(drive.where, seed=None).told
    assert RunFolder(drive.there).resumes() == [25, 35] and RunFolder(drive.there).finished


@needs_fuse
@pytest.mark.parametrize('how', ['missing', 'empty', 'truncated'])
def test_settings_lost_in_the_store_and_no_copy_here(drive, fit, lost_before, how):
    "Each checkpoint has them too; what is not whole is not asked"
    lost_before()
    was = (drive.there/'run.json').read_bytes()
    spoil(drive.there/'run.json', how)
    (newest,) = drive.there.glob('step-00000030-*.safetensors')
    spoil(newest, 'flipped')
    learn = fit(drive.where, seed=None)
    assert (len(learn.told) == 2 and 'written anew from a checkpoint' in learn.told[0]
            and 'step 20 is used' in learn.told[1]), learn.told
    assert (drive.there/'run.json').read_bytes() == was and RunFolder(drive.there).resumes() == [20]
    assert not fit(drive.where, seed=None).told and RunFolder(drive.there).finished


@needs_fuse
@pytest.mark.parametrize('how', ['flipped', 'html'])
def test_settings_that_hold_something_are_a_persons_to_remove(drive, fit, lost_before, how):
    lost_before()
    spoil(drive.there/'run.json', how)
    is_now = (drive.there/'run.json').read_bytes()
    with pytest.raises(StoreError, match='or remove it, and it is written anew from a checkpoint'):
        fit(drive.where, seed=None)
    assert (drive.there/'run.json').read_bytes() == is_now
    (drive.there/'run.json').unlink()
    assert 'written anew' in fit(drive.where, seed=None).told[0] and RunFolder(drive.there).resumes() == [30]


def test_settings_are_not_taken_from_another_run(drive, fit, tmp_path, hurried):
    "Checkpoints of two runs, of a later generation in one; on the machine of one of them its own count, elsewhere none do"
    with pytest.raises(KeyboardInterrupt): fit(drive.where+'2', {25: stop})
    with pytest.raises(KeyboardInterrupt): fit(drive.where+'2', {35: stop}, seed=None)
    with pytest.raises(KeyboardInterrupt): fit(drive.where, {25: stop})
    for o in drive.there.with_name('bard2').glob('step-*'): shutil.copy(o, drive.there)
    (drive.there/'run.json').unlink()
    before = sorted(os.listdir(drive.there))
    def elsewhere():
        with pytest.raises(StoreError, match='holds checkpoints but no run.json'): Place(drive.where, 20)
    assert ended(machine(tmp_path/'other', elsewhere)) == 0 and sorted(os.listdir(drive.there)) == before
    learn = fit(drive.where, seed=None)
    assert ('written anew' in learn.told[0] and all('belongs to another run' in o for o in learn.told[1:])
            and RunFolder(drive.there).resumes() == [25])
    assert not [o for o in (tmp_path/'home/runs').iterdir() if '.old' in o.name]


@needs_fuse
@pytest.mark.parametrize('match', ['*.json', '*.safetensors'])
@pytest.mark.parametrize('here', [True, False])
def test_settings_lost_and_checkpoints_out_of_reach(drive, fit, lost_before, match, here, hurried):
    "No new run begins over them, and what is on this machine stays where it is; a minute later all is well"
    if here:
        with pytest.raises(KeyboardInterrupt): fit(drive.where, {35: stop})
    else: lost_before()
    (drive.there/'run.json').unlink()
    before = sorted(os.listdir(drive.there))
    drive.control(errno=dict(open=[5, 0]), match=f'/MyDrive/runs/bard/step-{match}')
    with pytest.raises(StoreError, match='holds checkpoints but no run.json'): fit(drive.where, seed=None)
    assert sorted(os.listdir(drive.there)) == before
    drive.control()
    assert 'written anew' in fit(drive.where, seed=None).told[0] and RunFolder(drive.there).resumes() == [35 if here else 30]


def test_settings_are_not_written_beside_other_things(drive, fit, lost_before):
    lost_before()
    (drive.there/'run.json').unlink()
    (drive.there/'notes.txt').write_text('mine')
    before = sorted(os.listdir(drive.there))
    with pytest.raises(StoreError, match='holds other things'): fit(drive.where, seed=None)
    assert sorted(os.listdir(drive.there)) == before
    (drive.there/'notes.txt').unlink()
    (drive.there/'log.txt').write_text('copied along by hand')
    fit(drive.where, seed=None)
    assert RunFolder(drive.there).resumes() == [30] and (drive.there/'log.txt').read_text() == 'copied along by hand'


def test_settings_that_were_lost_and_a_listing_that_is_old(drive, fit, lost):
    "What was written a moment ago is not listed yet, while the owner that was killed is waited for"
    lost(35)
    (drive.there/'run.json').unlink()
    drive.control(stale=3)
    os.listdir(drive.mountpoint/'MyDrive/runs/bard')
    learn = fit(drive.where, seed=None)
    assert 'written anew' in learn.told[0] and RunFolder(drive.there).resumes() == [30]


def test_a_file_that_cannot_be_read_for_a_while_is_not_lost(drive, fit):
    "Nor any other of the older ones; a false alarm would remove them"
    drive.control(uncommitted=0.01, ids=True)
    def hurt(ckpt):
        settle(ckpt)
        drive.control(uncommitted=0.01, ids=True, errno=dict(getattr=5, open=5), match='*/step-000000[12]0-*')
    def heal(ckpt):
        settle(ckpt)
        until(lambda: ckpt.saver.mirror.state.get(ckpt.folder.newest()['file']) == 'uploaded')
        # 0 is the second that is known to be whole
        assert steps(drive.there) == [30, 20, 10, 0]
        drive.control(uncommitted=0.01, ids=True)
    learn = fit(drive.where, {15: settle, 25: hurt, 35: heal})
    assert not learn.told, learn.told
    tidy(drive.there)


def test_a_text_that_was_cut_short_is_brought_anew(drive, fit, lost_before):
    "By another machine, whose Learner has it"
    lost_before()
    text, = drive.there.glob('text-*')
    spoil(text, 'truncated')
    assert not fit(drive.where, seed=None).told and Run(drive.there).info()['resumes'] == [30]


def test_settings_under_another_name_on_another_machine(drive, fit, lost_before):
    lost_before()
    (drive.there/'run.json').rename(drive.there/'run (1).json')
    assert not fit(drive.where, seed=None).told
    assert RunFolder(drive.there).resumes() == [30] and RunFolder(drive.there).finished


def test_one_look_at_an_empty_drive_is_not_trusted(drive, fit, monkeypatch):
    "Listings and contents come late: the run that was copied there is waited for. If it is gone for good, that is said"
    with pytest.raises(KeyboardInterrupt): fit(drive.where, {25: stop})
    drive.there.rename(drive.backing/'away')
    looks,wait = [],locate.wait_until
    def late(f, *args, **kwargs):
        def look():
            looks.append(f())
            if len(looks) == 1:
                shutil.rmtree(drive.there, ignore_errors=True)
                (drive.backing/'away').rename(drive.there)
            return looks[-1]
        return wait(look, *args, **kwargs)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(locate, 'wait_until', late)
        fit(drive.where, {35: stop}, seed=None)
    assert len(looks) > 1 and not looks[0] and looks[-1]
    assert RunFolder(drive.there).resumes() == [25]
    shutil.rmtree(drive.there)
    learn = fit(drive.where, wait=1)
    assert (len(learn.told) == 1 and 'holds no run any more' in learn.told[0] and '.old1' in learn.told[0]
            and RunFolder(drive.there).resumes() == [])


def test_damaged_here_and_whole_in_the_store(drive, fit, tmp_path, capsys):
    pid = machine(os.environ['CHARRNN_HOME'], lambda: fit(drive.where, {35: then(settle, die)}))
    ended(pid)
    (f,) = Path(os.environ['CHARRNN_HOME']).rglob('step-00000030-*.safetensors')
    f.write_bytes(b'')
    fit(drive.where, seed=None)
    assert RunFolder(drive.there).resumes() == [30]


# The table of mounts

def test_places_with_odd_names(tmp_path, fit, fuse):
    odd = tmp_path/'my näme\t\u2028#\\040'
    odd.mkdir()
    with DriveMount(odd) as drive:
        assert mount_of(drive.mountpoint/'x') == (str(drive.mountpoint), 'fuse.drive')
        (drive.backing/'MyDrive').mkdir()
        assert not fit(f'{drive.mountpoint}/MyDrive/run').told
        tidy(drive.backing/'MyDrive/run')


def test_link_to_drive(drive, fit, tmp_path):
    "`ln -s /content/drive/MyDrive /mydrive`, before and after the mount died: never a local path"
    link = tmp_path/'mydrive'
    link.symlink_to(drive.mountpoint/'MyDrive')
    assert not fit(link/'runs/bard').told
    tidy(drive.there)
    drive.control(delay=dict(getattr=60))
    t = time.monotonic()
    assert follow(link/'runs/x') == f'{drive.mountpoint}/MyDrive/runs/x' and time.monotonic()-t < 30
    drive.control()
    drive.kill()
    with pytest.raises(StoreError, match='not connected'): fit(link/'runs/x', wait=5)


def test_table_of_mounts_in_a_namespace_of_its_own(tmp_path):
    "`unshare -m`: a covered mount is none"
    if sys.platform != 'linux' or os.geteuid(): pytest.skip('mounting needs root on Linux')
    code = '''if True:
        import os, subprocess, sys
        from charrnn_fa.store.mount import *
        at = sys.argv[1]
        def mount(kind, where): subprocess.run(['mount', '-t', kind, 'none', where], check=True)
        os.makedirs(f'{at}/a/b')
        assert mount_of(f'{at}/a/b/c') == (None, None) and f'{at}/a/b' not in mounts()
        mount('tmpfs', f'{at}/a/b')
        kind,dev = mounts()[f'{at}/a/b']
        assert kind == 'tmpfs' and dev == os.stat(f'{at}/a/b').st_dev and mount_of(f'{at}/a/b/c') == (None, None)
        s = MountStore.__new__(MountStore)
        s.where,s.mountpoint,s.kind,s.parts = f'{at}/a/b/MyDrive/r',f'{at}/a/b','tmpfs',['MyDrive', 'r']
        s.write('x', [b'1'])
        mount('tmpfs', f'{at}/a')
        os.makedirs(f'{at}/a/b/MyDrive/r')
        for f in s.names, lambda: s.write('y', [b'2']), lambda: s.size('x'):
            try: f()
            except StoreError: pass
            else: assert False
        assert os.listdir(f'{at}/a/b/MyDrive/r') == []
        '''
    if subprocess.run(['unshare', '-m', 'true'], capture_output=True).returncode:
        pytest.skip('no mount namespaces here')
    r = subprocess.run(['unshare', '-m', sys.executable, '-c', code, tmp_path], capture_output=True, text=True, timeout=60)
    assert r.returncode == 0, r.stderr
