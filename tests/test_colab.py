"Colab without Google: a fake `google.colab` that fails in each way the real one does, and real mounts in a namespace of their own"
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import faultfs
import pytest
import torch

from charrnn_fa import colab
from charrnn_fa.colab import (ColabError, call_with_deadline, drive_mounted, has_frontend, mount_drive, mount_type,
                              on_colab, runtime, runtime_line, secret)
from charrnn_fa.store.mount import parse_mounts

TOKEN = 'ya29.do-not-show'


class MessageError(Exception): pass
class TIMEOUT(Exception): pass # pexpect's
class SecretNotFoundError(Exception): pass
class NotebookAccessError(Exception): pass
class TimeoutException(Exception): pass


def act(what):
    if isinstance(what, BaseException): raise what
    return what() if callable(what) else what

def sleep(): time.sleep(60)
def spin():
    while True: pass
def swallow():
    "As google.colab waits for the page"
    while True:
        try: time.sleep(0.01)
        except Exception: pass


class FakeColab(types.ModuleType):
    "`google.colab` with the real signatures; `asked` is what it was asked for"
    def __init__(self, mount=None, get=None):
        super().__init__('google.colab')
        self.asked,self.drive,self.userdata = ([],types.SimpleNamespace(mount=self._mount),
                                               types.SimpleNamespace(get=self._get))
        self.on_mount,self.on_get = mount,get
    def _mount(self, mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
        assert ' ' not in mountpoint and not force_remount and not readonly and timeout_ms >= 1000
        self.asked.append(mountpoint)
        return act(self.on_mount)
    def _get(self, key):
        self.asked.append(key)
        return act(self.on_get)


@pytest.fixture
def fake(monkeypatch):
    "Make this process believe that it is a kernel on Colab"
    def _fake(**kwargs):
        m = FakeColab(**kwargs)
        monkeypatch.setitem(sys.modules, 'google.colab', m)
        monkeypatch.setattr(colab, 'on_colab', lambda: True)
        return m
    return _fake


@pytest.fixture
def nowhere(monkeypatch): monkeypatch.setitem(sys.modules, 'google.colab', None)


def refused(f, *args, **kwargs):
    "The sentence of the `ColabError`, which drags no other error along"
    with pytest.raises(ColabError) as e: f(*args, **kwargs)
    assert e.value.__cause__ is None and e.value.__context__ is None
    said = str(e.value)
    assert e.value.what and e.value.remedy.endswith('.')
    assert said.endswith('.') and '. ' not in said and '\n' not in said and TOKEN not in said
    return said


# Where are we?

def test_on_colab(tmp_path, monkeypatch):
    for k in 'VERTEX_PRODUCT', 'KAGGLE_KERNEL_RUN_TYPE': monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr(colab, 'colab_hostname', tmp_path/'hostname')
    monkeypatch.setenv('COLAB_RELEASE_TAG', 'release-colab')               # Kaggle sets it too
    assert not on_colab()
    (tmp_path/'hostname').touch()
    assert on_colab()
    for k,v in dict(VERTEX_PRODUCT='COLAB_ENTERPRISE', KAGGLE_KERNEL_RUN_TYPE='Batch').items():
        with monkeypatch.context() as m:
            m.setenv(k, v)
            assert not on_colab()


def test_has_frontend(fake, monkeypatch):
    ipython = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=1))
    monkeypatch.setitem(sys.modules, 'IPython', ipython)
    monkeypatch.setitem(sys.modules, 'google.colab', None)
    assert not has_frontend()                                              # a kernel elsewhere
    fake()
    assert has_frontend()
    ipython.get_ipython = lambda: None
    assert not has_frontend()                                              # !python train.py
    monkeypatch.delitem(sys.modules, 'IPython')
    assert not has_frontend()


# A call that ends

def _id(o): return getattr(o, '__name__', str(o)) # the same in every process


@pytest.mark.parametrize('f', [sleep, spin, swallow])
def test_deadline_in_the_main_thread(f):
    t0,before = time.monotonic(),set(threading.enumerate())
    with pytest.raises(TimeoutError, match='0.2 s'): call_with_deadline(f, 0.2)
    assert time.monotonic()-t0 < 30 and not set(threading.enumerate())-before


def test_deadline_survives_a_bare_except():
    def once():
        try: time.sleep(60)
        except: sleep()                                                    # noqa: E722
    t0 = time.monotonic()
    with pytest.raises(TimeoutError): call_with_deadline(once, 0.1)
    assert time.monotonic()-t0 < 30


def test_deadline_leaves_the_alarm_as_it_was():
    rang,handler = [],lambda *_: rang.append(time.monotonic())
    old = signal.signal(signal.SIGALRM, handler)
    try:
        for f in (lambda: 1), sleep, (lambda: 1/0), (lambda: act(KeyboardInterrupt())):
            try: call_with_deadline(f, 0.1)
            except (TimeoutError, ZeroDivisionError, KeyboardInterrupt): pass
            assert signal.getsignal(signal.SIGALRM) is handler and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        signal.setitimer(signal.ITIMER_REAL, 300, 7)
        call_with_deadline(time.sleep, 20, 0.3)
        left,again = signal.getitimer(signal.ITIMER_REAL)
        assert 100 < left < 299.75 and again == 7 and not rang
        signal.setitimer(signal.ITIMER_REAL, 0.1)                          # due while the call runs: late, but not lost
        call_with_deadline(time.sleep, 20, 0.3)
        time.sleep(0.1)
        assert len(rang) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_deadlines_nest():
    with pytest.raises(TimeoutError, match='0.1 s'): call_with_deadline(lambda: call_with_deadline(sleep, 0.1), 30)
    def inner():
        with pytest.raises(TimeoutError, match='0.3 s'): call_with_deadline(sleep, 0.3)
        sleep()
    with pytest.raises(TimeoutError, match='0.1 s'): call_with_deadline(inner, 0.1)


def test_deadline_in_another_thread():
    res,over = [],threading.Event()
    def run():
        for f,seconds,args in (divmod, 20, (7, 3)), (divmod, 20, (7, 0)), (over.wait, 0.5, (30,)):
            try: res.append(call_with_deadline(f, seconds, *args))
            except Exception as e: res.append(type(e))
    t0,t = time.monotonic(),threading.Thread(target=run)
    t.start()
    t.join()
    assert res == [(2, 1), ZeroDivisionError, TimeoutError] and time.monotonic()-t0 < 25
    over.set()


def test_a_call_given_up_does_not_hold_up_the_end():
    code = ('import threading, time; from charrnn_fa.colab import *; t = threading.Thread(target=lambda: '
            'call_with_deadline(time.sleep, 0.1, 60)); t.start(); t.join(); print("end")')
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=50)
    assert r.returncode == 0 and 'TimeoutError' in r.stderr and r.stdout == 'end\n'


def test_without_alarms(monkeypatch):
    "As on Windows"
    monkeypatch.delattr(signal, 'SIGALRM')
    assert call_with_deadline(divmod, 5, 7, 3) == (2, 1)
    over = threading.Event()
    with pytest.raises(TimeoutError): call_with_deadline(over.wait, 0.1, 30)
    over.set()


# The list of mounts

def in_namespace(code, *args):
    "Run `code` as root in a mount namespace of its own, or skip"
    if sys.platform != 'linux' or os.geteuid() != 0: pytest.skip('mounting needs root on Linux')
    if not shutil.which('unshare') or subprocess.run(['unshare', '-m', 'true'], capture_output=True).returncode:
        pytest.skip('no mount namespaces here')
    r = subprocess.run(['unshare', '-m', sys.executable, '-c', textwrap.dedent(code), *args], capture_output=True,
                       text=True, timeout=100)
    assert r.returncode == 0, r.stdout + r.stderr


def test_a_real_mount_on_an_odd_path(tmp_path):
    in_namespace(r'''
        import os, subprocess, sys
        from charrnn_fa.colab import drive_mounted, mount_type
        for name in 'my drive', 'a\tb\nc\\d\\040', 'näh\u2028\r#':
            at = os.path.join(sys.argv[1], name)
            os.mkdir(at)
            assert mount_type(at) is None
            subprocess.run(['mount', '-t', 'tmpfs', 'none', at], check=True)
            assert mount_type(at) == mount_type(at+'/') == 'tmpfs', name
            assert mount_type(at+'/x') is None and not drive_mounted(at)
            subprocess.run(['umount', at], check=True)
            assert mount_type(at) is None
    ''', str(tmp_path))


def test_drive_that_hangs_dies_and_is_covered(tmp_path, fuse):
    "A FUSE mount whose server never answers, then is gone; looking at the list is never held up"
    in_namespace('''
        import ctypes, os, subprocess, sys, time
        from charrnn_fa.colab import drive_mounted, mount_drive, mount_type
        at = sys.argv[1]+'/my drive'
        os.mkdir(at)
        fd,libc = os.open('/dev/fuse', os.O_RDWR),ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b'drive', os.fsencode(at), b'fuse.drive', 0, \
f'fd={fd},rootmode=40000,user_id=0,group_id=0'.encode()) == 0, os.strerror(ctypes.get_errno())
        t0 = time.monotonic()
        assert drive_mounted(at) and drive_mounted(at+'/') and not drive_mounted(at+'/MyDrive')
        assert str(mount_drive(at)) == at+'/MyDrive'                       # hangs not, asks not
        os.close(fd)
        try: os.stat(at)
        except OSError as e: assert e.errno == 107, e
        else: assert False
        assert drive_mounted(at) and time.monotonic()-t0 < 30
        subprocess.run(['umount', '-l', at], check=True)
        assert not drive_mounted(at)
        subprocess.run(['mount', '-t', 'tmpfs', 'none', at], check=True)
        assert mount_type(at) == 'tmpfs' and not drive_mounted(at)
    ''', str(tmp_path))


def test_covered(tmp_path):
    a,b = b'1 0 0:1 / /d rw - fuse.drive drive rw\n',b'2 0 0:2 / /d rw shared:1 master:2 - tmpfs - rw\n'
    assert parse_mounts(a+b)['/d'][0] == 'tmpfs' and parse_mounts(b+a)['/d'][0] == 'fuse.drive'
    assert parse_mounts(b'') == parse_mounts(b'rubbish\n\n1 2 3\n') == {}


# Never mounted

def test_never_mounted(nowhere, tmp_path, capfd):
    t0 = time.monotonic()
    assert 'local path' in refused(mount_drive, tmp_path/'drive', wait=60)
    assert time.monotonic()-t0 < 30 and list(tmp_path.iterdir()) == []
    assert not drive_mounted(tmp_path) and mount_type(tmp_path) is None
    assert capfd.readouterr() == ('', '')


def test_never_mounted_in_a_script(tmp_path):
    if drive_mounted(): pytest.skip('Drive is mounted here')
    script = 'import sys; from charrnn_fa.colab import *; mount_drive(sys.argv[1], wait=0)'
    r = subprocess.run([sys.executable, '-c', script, tmp_path/'content/drive'], capture_output=True, text=True)
    assert r.returncode == 1 and 'ColabError: ' in r.stderr and r.stdout == ''
    assert list(tmp_path.iterdir()) == []      # not /content, which the twin of Colab makes and takes away beside this


# A mount needs a person

@pytest.mark.parametrize('error,remedy', [
    (NotImplementedError(f'Mounting drive is unsupported in this environment. {TOKEN}'), 'local path'),
    (ValueError('Mountpoint must not contain a space.'), '/content/drive'),
    (ValueError('Mountpoint must not be a symlink'), '/content/drive'),
    (ValueError('Mountpoint must not already contain files'), '!mv'),
    (ValueError('mount failed'), 'delete runtime'),
    (ValueError('mount failed: timeout during initial read of root folder; for more info: https://x'), 'into folders'),
    (ValueError('The domain policy has disabled Drive File Stream: https://x'), 'another account'),
    (MessageError('Error: credential propagation was unsuccessful'), 'choose the account'),
    (MessageError(TOKEN), 'Mount Drive'),
    (TIMEOUT(f'Timeout exceeded.\nbuffer: {TOKEN}'), 'Mount Drive'),
    (AttributeError("'NoneType' object has no attribute 'kernel'"), 'in a cell'),
    (KeyError('TBE_EPHEM_CREDS_ADDR'), 'in a cell'),
    (AssertionError(), 'delete runtime'),
    (None, 'Nobody allowed'),                                              # no answer is no error there
    (sleep, 'not there in time'), (spin, 'not there in time'), (swallow, 'not there in time'),
], ids=_id)
def test_mount_refused(fake, tmp_path, capfd, error, remedy):
    m,t0 = fake(mount=error),time.monotonic()
    assert remedy in refused(mount_drive, tmp_path/'drive', timeout=0.3, wait=0)
    assert m.asked == [str(tmp_path/'drive')] and time.monotonic()-t0 < 30
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ('', '')


def test_ctrl_c_is_no_refusal(fake, tmp_path):
    fake(mount=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): mount_drive(tmp_path/'drive', wait=0)


@pytest.mark.parametrize('error', [None, sleep, MessageError('late')], ids=_id)
def test_mounted_in_the_end(fake, monkeypatch, error):
    "The list of mounts has the last word, whatever the call said"
    m = fake(mount=error)
    monkeypatch.setattr(colab, 'drive_mounted', lambda at: len(m.asked) > 0)
    assert mount_drive('/content/drive/', timeout=0.3, wait=0) == Path('/content/drive/MyDrive')
    assert m.asked == ['/content/drive']


def test_mounted_already(fake, monkeypatch):
    m = fake(mount=AssertionError())
    monkeypatch.setattr(colab, 'drive_mounted', lambda at: True)
    for _ in range(3): assert mount_drive() == Path('/content/drive/MyDrive')
    assert m.asked == []


@pytest.mark.usefixtures('fuse')
def test_a_drive_that_died_is_mounted_anew(fake, tmp_path):
    "Its process is gone, the mount is not, and every look fails with errno 107: `drive.mount` is asked, and clears that away"
    with faultfs.DriveMount(tmp_path) as drive:
        (drive.backing/'MyDrive').mkdir()
        m = fake(mount=lambda *args, **kwargs: drive.remount())
        assert mount_drive(drive.mountpoint) == drive.mountpoint/'MyDrive' and m.asked == []
        drive.kill()
        with pytest.raises(OSError, match='107'): os.listdir(drive.mountpoint)
        assert mount_drive(drive.mountpoint) == drive.mountpoint/'MyDrive' and len(m.asked) == 1
        assert os.listdir(drive.mountpoint) == ['MyDrive']


def test_side_bar_mount_comes_late(fake, monkeypatch):
    m,t0 = fake(),time.monotonic()
    monkeypatch.setattr(colab, 'drive_mounted', lambda at: time.monotonic()-t0 > 0.7)
    mount_drive()
    assert m.asked == [] and time.monotonic()-t0 < 9      # it would have waited for 10


def test_waits_only_on_colab(fake, monkeypatch, tmp_path):
    "With `google.colab` but not on its machines (a local runtime, Enterprise) there is no side bar to wait for"
    m,t0 = fake(mount=NotImplementedError()),time.monotonic()
    monkeypatch.setattr(colab, 'on_colab', lambda: False)
    assert 'local path' in refused(mount_drive, tmp_path/'drive', wait=60)
    assert len(m.asked) == 1 and time.monotonic()-t0 < 30


def test_threads_do_not_ask(fake, tmp_path):
    m,said = fake(),[]
    t = threading.Thread(target=lambda: said.append(refused(mount_drive, tmp_path/'drive', wait=0)))
    t.start()
    t.join()
    assert 'main thread' in said[0] and m.asked == []


# Secrets missing, no UI, wrong account

@pytest.mark.parametrize('error,remedy,optional', [
    (SecretNotFoundError(TOKEN), 'This Google account has no secret', True),
    (NotebookAccessError(TOKEN), 'Notebook access', False),
    (TimeoutException(TOKEN), 'environment variable A_KEY', True),
    (ValueError(TOKEN), 'without spaces', False),
    (AttributeError(TOKEN), 'environment variable A_KEY', True),
    ('', 'no secret A_KEY', True), (None, 'no secret A_KEY', True),
    (sleep, 'environment variable A_KEY', True), (swallow, 'environment variable A_KEY', True),
], ids=_id)
def test_secret_not_given(fake, monkeypatch, capfd, error, remedy, optional):
    monkeypatch.delenv('A_KEY', raising=False)
    monkeypatch.setattr(colab, 'call_with_deadline',
                        lambda f, seconds, *args: call_with_deadline(f, min(seconds, 0.2), *args))
    m = fake(get=error)
    assert remedy in refused(secret, 'A_KEY')
    if optional: assert secret('A_KEY', None) is None and secret('A_KEY', default='d') == 'd'
    else: assert remedy in refused(secret, 'A_KEY', None)
    assert set(m.asked) == {'A_KEY'} and capfd.readouterr() == ('', '')


def test_secret_given(fake, monkeypatch, capfd):
    monkeypatch.delenv('A_KEY', raising=False)
    m = fake(get=TOKEN)
    assert secret('A_KEY') == secret('A_KEY', None) == TOKEN
    monkeypatch.setenv('A_KEY', 'from the environment')
    assert secret('A_KEY') == 'from the environment' and len(m.asked) == 2
    monkeypatch.setenv('A_KEY', '')
    assert secret('A_KEY') == TOKEN                                        # empty is none
    assert capfd.readouterr() == ('', '')
    assert not any(TOKEN in repr(v) for v in vars(colab).values())         # kept nowhere


def test_secret_from_a_thread(fake, monkeypatch):
    monkeypatch.delenv('A_KEY', raising=False)
    fake(get=TOKEN)
    res = []
    t = threading.Thread(target=lambda: res.append(secret('A_KEY')))
    t.start()
    t.join()
    assert res == [TOKEN]


def test_secret_elsewhere(nowhere, monkeypatch):
    monkeypatch.delenv('A_KEY', raising=False)
    assert 'environment variable A_KEY' in refused(secret, 'A_KEY')
    assert secret('A_KEY', None) is None
    monkeypatch.setenv('A_KEY', 'x')
    assert secret('A_KEY') == 'x'


# What did I get?

def test_runtime():
    d = runtime()
    assert d['cores'] >= 1 and d['disk_free'] > 0 and d['ram'] > 2**28 and d['precision'] in ('fp32', 'bf16', 'fp16')
    assert re.fullmatch(r'(Not )?Colab: .+ \(.*(fp32|bf16|fp16)\), \d+ cores?, [\d.]+ GB RAM, \d+ GB disk free, '
                        r'Python 3\S+, torch \S+, fastai \S+', runtime_line())


def test_runtime_with_a_t4(monkeypatch):
    t4 = types.SimpleNamespace(name='Tesla T4', total_memory=15_828_320_256, major=7, minor=5)
    for k,v in dict(is_available=lambda: True, current_device=lambda: 0, get_device_properties=lambda _: t4,
                    get_device_capability=lambda _: (7, 5)).items():
        monkeypatch.setattr(torch.cuda, k, v)
    monkeypatch.setattr(colab, 'on_colab', lambda: True)
    monkeypatch.setitem(sys.modules, 'psutil', None)
    d = runtime()
    assert (d['gpu'], d['capability'], d['precision']) == ('Tesla T4', (7, 5), 'fp16') and d['ram'] > 2**28
    assert runtime_line().startswith('Colab: Tesla T4 (14.7 GB, fp16), ')
