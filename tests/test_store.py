"""Checkpoints on a Drive that dies, hangs, fills up, lies and forgets: training goes on, to the same weights,
with one warning for each outage"""
import errno
import os
import re
import shutil
import signal
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import inject
import pytest
import torch
from fastai.callback.core import Callback
from faultfs import DriveMount

from charrnn_fa import errors
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.errors import CharRNNError
from charrnn_fa.store.mount import wait_until
from charrnn_fa.learner import char_learner
from charrnn_fa.run import files
from charrnn_fa.run.files import RunError, RunWarning
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.store import mirror, mount, place
from charrnn_fa.store.filesystem import Store
from charrnn_fa.store.mirror import Mirror
from charrnn_fa.store.mount import StoreError, abandoned
from charrnn_fa.text.data import CharDataLoaders
from machine import dawdle, ended, machine, until

needs_fuse = pytest.mark.usefixtures('fuse')
def hunt(*params): return [pytest.param(*(o if isinstance(o, tuple) else (o,)), marks=pytest.mark.hunt) for o in params]
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
    monkeypatch.setattr(Store, 'beat', 0.3)
    yield
    mount._waiting.clear()


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
    "The same machine, trained once for all tests that want no more of it than what is left; whose process has ended"
    def _lost_before():
        if kept.exists(): shutil.copytree(kept, drive.there)
        else:
            lost(35)
            shutil.copytree(drive.there, kept)
    return _lost_before


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


def test_never_mounted(tmp_path, fit, monkeypatch, home):
    at = tmp_path/'drive'
    monkeypatch.setattr(errors, 'drives', (str(at),))
    with pytest.raises(StoreError, match='is not mounted; .*; or go on without it with local=True'):
        fit(f'{at}/MyDrive/run')
    assert not at.exists() and not [o for o in home.rglob('*') if o.is_file()]
    learn = fit(f'{at}/MyDrive/run', local=True, wait=1)
    assert len(learn.told) == 1 and 'is not mounted' in learn.told[0] and not at.exists()
    assert set(learn.ckpt.states().values()) == {'local'}


def test_drive_without_its_folder_is_not_empty(drive, fit):
    "A root that shows no `MyDrive` yet: neither made, nor taken for a Drive that lost the run"
    fit(drive.where)
    (drive.backing/'MyDrive').rename(drive.backing/'hidden')
    with pytest.raises(StoreError, match='has no MyDrive now; check the name, or mount it again; or go on'): fit(drive.where)
    assert os.listdir(drive.backing) == ['hidden']


# Hangs

@needs_fuse
@pytest.mark.parametrize('op', ['write', 'getattr', 'readdir', *hunt('create', 'fsync', 'unlink', 'open', 'getxattr')])
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


def test_hangs_at_the_start_and_threads_do_not_pile_up(drive, fit, monkeypatch):
    monkeypatch.setattr(place, 'patience', 0.1)
    fit(drive.where)
    before = threading.active_count()
    drive.control(delay=dict(create=60, getattr=60, opendir=60))
    for i in range(6):
        t = time.monotonic()
        with pytest.raises(StoreError, match='has not answered .*local=True'): fit(drive.where, wait=2)
        assert time.monotonic()-t < 30
    for i in range(3): assert len(fit(drive.where.replace('bard', f'new{i}'), local=True, wait=2).told) == 1
    assert threading.active_count()-before <= 4 and len(abandoned(Store(drive.where))) <= 4
    drive.control()
    until(lambda: not abandoned(Store(drive.where)), what='an end of all threads')
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


# I/O errors

@needs_fuse
@pytest.mark.parametrize('op', ['write', 'read', 'unlink', *hunt('create', 'flush', 'fsync', 'open', 'getattr', 'opendir')])
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
@pytest.mark.parametrize('op,number', [('write', errno.ENOSPC), *hunt(('flush', errno.EDQUOT), ('create', errno.ENOSPC))])
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


# Lies

def test_files_arrive_empty(drive, fit):
    "A quota of operations: no error, and 0 bytes"
    learn = fit(drive.where, {15: then(settle, doing(drive.control, zero=True)), 35: then(trouble, doing(drive.control))})
    assert len(learn.told) == 1 and 'damaged or empty' in learn.told[0] and 'quota' in learn.told[0], learn.told
    tidy(drive.there)


@needs_fuse
@pytest.mark.parametrize('which', ['.safetensors', '.json'])
def test_a_copy_that_goes_before_it_is_uploaded(drive, fit, which):
    "Somebody removes the newest file while the cloud does not have it yet: it is copied again"
    drive.control(uncommitted=True)
    def gone(ckpt):
        (drive.there/ckpt.saver.mirror.latest['file']).with_suffix(which).unlink()
        until(lambda: ckpt.saver.mirror.trouble, what='the trouble')
        until(lambda: not ckpt.saver.mirror.pending, what='the second copy')
        assert steps(drive.there)[0] == 50
    learn = fit(drive.where, {55: then(settle, gone, doing(drive.control, uncommitted=0.01))})
    assert len(learn.told) == 1 and 'is no longer there' in learn.told[0], learn.told
    tidy(drive.there)


def test_nothing_goes_to_the_trash(drive, fit, tmp_path):
    drive.control(trash=tmp_path/'trash')
    fit(drive.where, dict.fromkeys(range(11, 56, 4), settle), steps=4)
    gone = list((tmp_path/'trash').iterdir())
    assert len(gone) > 20 and not sum(o.stat().st_size for o in gone)
    tidy(drive.there)


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
    assert wait_until(lambda: not any(t.is_alive() for ts in mount._waiting.values() for t in ts), 60)
    assert not fit(drive.where, seed=None).told                                     # writable by now: it follows
    assert RunFolder(drive.there).newest()['finished']


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


def other_machine(monkeypatch): monkeypatch.setattr(mirror.socket, 'gethostname', lambda: 'another')


def test_two_machines(drive, fit, tmp_path, monkeypatch):
    "The second is refused while the first gives signs of life; a silent one is overridden, and keeps its copies to itself from then on"
    log,go = tmp_path/'log',tmp_path/'go'
    pid = machine(tmp_path/'a', lambda: print(fit(drive.where, dict.fromkeys(range(11, 57), dawdle(go)), wait=2).told), log)
    other_machine(monkeypatch)
    try:
        until(lambda: brought(drive.there), what='the run')
        with pytest.raises(RunError, match=f'being trained by process {pid} on .* seconds ago.; stop it there'):
            fit(drive.where, seed=None)
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(mirror, 'silent', -1)
        time.sleep(1.5)
        learn = fit(drive.where, seed=None)
        # it may have been stopped in the middle of a file
        assert all('is used' in o for o in learn.told)
        newest,names = RunFolder(drive.there).newest(),sorted(os.listdir(drive.there))
        assert newest['finished'] and newest['generation'] == 1
        go.touch()
        os.kill(pid, signal.SIGCONT)
        assert ended(pid) == 0, log.read_text()
        pid = None
    finally:
        if pid: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    assert 'another process has taken over' in log.read_text()
    now = RunFolder(drive.there)
    assert now.newest() == newest and now.owner()['generation'] == 1
    assert {o for o in os.listdir(drive.there) if o not in names and '00000020' not in o} == set()


def test_owner_lives_through_a_long_copy(drive, fit, tmp_path, monkeypatch):
    "Signs of life during a copy that takes longer than the silence after which one is taken for dead"
    go = tmp_path/'go'
    monkeypatch.setattr(files, 'piece', 4000)
    monkeypatch.setattr(mirror, 'silent', 1)
    other_machine(monkeypatch)
    pid = machine(tmp_path/'a', lambda: fit(drive.where, {15: then(settle, doing(drive.control, kbps=30)),
                                                          22: lambda _: until(go.exists)}, n_hid=80))
    try:
        until(lambda: drive.there.is_dir() and any(o.name.startswith('step-00000020') for o in drive.there.iterdir()),
              what='the copy')
        with pytest.raises(RunError, match='is being trained by process'): fit(drive.where, seed=None, n_hid=80)
        assert not list(drive.there.glob('step-00000020-*.json'))                   # that is, during the copy
    finally:
        drive.control()
        go.touch()
    assert ended(pid) == 0


# Clocks, kills, damage


def test_killed_between_data_and_manifest(drive, fit, lost, monkeypatch):
    write = Store.write
    def deadly(self, name, pieces):
        if name.startswith('step-00000030') and name.endswith('.json'): die(None)
        write(self, name, pieces)
    monkeypatch.setattr(Store, 'write', deadly)
    lost(56, at={35: settle})
    monkeypatch.setattr(Store, 'write', write)
    (orphan,) = [o for o in os.listdir(drive.there) if '00000030' in o]
    learn = fit(drive.where, seed=None)
    assert not learn.told and RunFolder(drive.there).resumes() == [20] and orphan not in os.listdir(drive.there)
    tidy(drive.there)


@needs_fuse
@pytest.mark.hunt
@pytest.mark.usefixtures('strace')
@pytest.mark.parametrize('call,every', [('fsync', 7), ('write', 17), ('unlink', 3), ('openat', 151)])
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
            warnings.simplefilter('error', RunWarning)
            learn = train(tmp_path/'found')
        assert all(torch.equal(p, q) for p,q in zip(alone_for_an_epoch.model.parameters(), learn.model.parameters(),
                                                    strict=True)), (call, first)
        tidy(drive.there, keep=2)
    assert kills > 1


@needs_fuse
@pytest.mark.parametrize('which,how', [('safetensors', 'truncated'), ('safetensors', 'flipped'), ('json', 'empty'), ('json', 'missing')])
def test_damaged_in_the_store(drive, fit, lost_before, which, how):
    "The one before is used, and it is said why"
    lost_before()
    (f,) = drive.there.glob(f'step-00000030-*.{which}')
    spoil(f, how)
    learn = fit(drive.where, seed=None)
    silent = (which,how) == ('json', 'missing')                                     # a checkpoint that never came about
    assert len(learn.told) == (not silent) and all(f.stem in o and 'step 20 is used' in o for o in learn.told), learn.told
    assert RunFolder(drive.there).resumes() == [20] and RunFolder(drive.there).newest()['finished']


@needs_fuse
@pytest.mark.parametrize('how', ['missing', 'flipped'])
def test_settings_lost_in_the_store_and_no_copy_here(drive, fit, lost_before, how):
    "Each checkpoint has them too; what is not whole is not asked"
    lost_before()
    was = (drive.there/'run.json').read_bytes()
    spoil(drive.there/'run.json', how)
    (newest,) = drive.there.glob('step-00000030-*.safetensors')
    spoil(newest, 'flipped')
    learn = fit(drive.where, seed=None)
    assert (len(learn.told) == 2 and 'written again from a checkpoint' in learn.told[0]
            and 'step 20 is used' in learn.told[1]), learn.told
    assert (drive.there/'run.json').read_bytes() == was and RunFolder(drive.there).resumes() == [20]
    assert not fit(drive.where, seed=None).told and RunFolder(drive.there).finished


def test_settings_lost_and_checkpoints_out_of_reach(drive, fit, lost_before):
    "No new run begins over them; a minute later all is well"
    lost_before()
    (drive.there/'run.json').unlink()
    before = sorted(os.listdir(drive.there))
    drive.control(errno=dict(open=5), match='/MyDrive/runs/bard/step-*.safetensors')
    with pytest.raises(StoreError, match='holds checkpoints but no run.json'): fit(drive.where, seed=None)
    assert sorted(os.listdir(drive.there)) == before
    drive.control()
    assert 'written again' in fit(drive.where, seed=None).told[0] and RunFolder(drive.there).resumes() == [30]


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


def test_one_look_at_an_empty_drive_is_not_trusted(drive, fit, monkeypatch):
    "Listings and contents come late: the run that was copied there is waited for. If it is gone for good, that is said"
    with pytest.raises(KeyboardInterrupt): fit(drive.where, {25: stop})
    drive.there.rename(drive.backing/'away')
    looks,wait = [],place.wait_until
    def late(f, *args, **kwargs):
        def look():
            looks.append(f())
            if len(looks) == 1:
                shutil.rmtree(drive.there, ignore_errors=True)
                (drive.backing/'away').rename(drive.there)
            return looks[-1]
        return wait(look, *args, **kwargs)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(place, 'wait_until', late)
        fit(drive.where, {35: stop}, seed=None)
    assert len(looks) > 1 and not looks[0] and looks[-1]
    assert RunFolder(drive.there).resumes() == [20]
    shutil.rmtree(drive.there)
    learn = fit(drive.where, wait=1)
    assert (len(learn.told) == 1 and 'holds no run any more' in learn.told[0] and '.old1' in learn.told[0]
            and RunFolder(drive.there).resumes() == [])


# The table of mounts


