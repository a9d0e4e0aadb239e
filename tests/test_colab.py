"""Colab without Google: calls that must end, a `google.colab` that fails as the real one does, and real mounts in a
namespace of their own. What each error of Drive and of Secrets says stands in the notebook"""
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import pytest

from charrnn_fa import colab
from charrnn_fa.colab import ColabError, call_with_deadline, mount_drive, on_colab, secret

TOKEN = 'ya29.do-not-show'


class MessageError(Exception): pass


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
def swallow_all():
    try: time.sleep(60)
    except: sleep()                                                        # noqa: E722


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


def refused(f, *args, **kwargs):
    "The sentence of the `ColabError`, which drags no other error along"
    with pytest.raises(ColabError) as e: f(*args, **kwargs)
    assert e.value.__cause__ is None and e.value.__context__ is None
    said = str(e.value)
    assert e.value.what and said.endswith('.') and '. ' not in said and '\n' not in said and TOKEN not in said
    return said


def in_thread(f):
    "What `f` returns in another thread"
    res = []
    t = threading.Thread(target=lambda: res.append(f()))
    t.start()
    t.join()
    return res[0]


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


# A call that ends

@pytest.mark.parametrize('f', [sleep, spin, swallow, swallow_all])
def test_a_deadline_leaves_handler_alarm_and_threads_as_they_were(f):
    def _handler(*_): pass
    t0,before,old = time.monotonic(),set(threading.enumerate()),signal.signal(signal.SIGALRM, _handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 300, 7)                       # somebody else's
        with pytest.raises(TimeoutError, match='0.1 s'): call_with_deadline(f, 0.1)
        assert time.monotonic()-t0 < 30 and not set(threading.enumerate())-before
        assert signal.getsignal(signal.SIGALRM) is _handler
        left,again = signal.getitimer(signal.ITIMER_REAL)
        assert 100 < left <= 300 and again == 7
        for o in 1/7, ZeroDivisionError(), KeyboardInterrupt():
            try: assert call_with_deadline(act, 20, o) == o
            except (ZeroDivisionError, KeyboardInterrupt) as e: assert e is o
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_a_drive_that_hangs_dies_and_is_covered(tmp_path, fuse):
    "A FUSE mount whose server never answers, then is gone; looking at the list is never held up"
    if not shutil.which('unshare') or subprocess.run(['unshare', '-m', 'true'], capture_output=True).returncode:
        pytest.skip('no mount namespaces here')
    code = textwrap.dedent('''
        import ctypes, os, subprocess, sys, time
        from charrnn_fa.colab import drive_mounted, mount_drive
        at = sys.argv[1]+'/my drive'
        os.mkdir(at)
        fd,libc = os.open('/dev/fuse', os.O_RDWR),ctypes.CDLL(None, use_errno=True)
        how = f'fd={fd},rootmode=40000,user_id=0,group_id=0'.encode()
        assert libc.mount(b'drive', os.fsencode(at), b'fuse.drive', 0, how) == 0, os.strerror(ctypes.get_errno())
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
        assert not drive_mounted(at)''')
    r = subprocess.run(['unshare', '-m', sys.executable, '-c', code, tmp_path], capture_output=True, text=True, timeout=250)
    assert r.returncode == 0, r.stdout + r.stderr


@pytest.mark.parametrize('error,remedy', [
    (NotImplementedError(TOKEN), 'local path'), (MessageError(TOKEN), 'Mount Drive'), (KeyError('CREDS'), 'in a cell'),
    (None, 'Nobody allowed'),                                              # no answer is no error there
    (sleep, 'not there in time'), (spin, 'not there in time'), (swallow, 'not there in time'),
], ids=lambda o: getattr(o, '__name__', str(o)))
def test_a_mount_is_refused(fake, tmp_path, capfd, error, remedy):
    m,t0 = fake(mount=error),time.monotonic()
    assert remedy in refused(mount_drive, tmp_path/'drive', timeout=0.3, wait=0)
    assert m.asked == [str(tmp_path/'drive')] and time.monotonic()-t0 < 30
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ('', '')


@pytest.mark.parametrize('error', [sleep, MessageError('late')], ids=['sleep', 'late'])
def test_mounted_in_the_end(fake, monkeypatch, error):
    "The list of mounts has the last word, whatever the call said"
    m = fake(mount=error)
    monkeypatch.setattr(colab, 'drive_mounted', lambda at: len(m.asked) > 0)
    assert mount_drive('/content/drive/', timeout=0.3, wait=0) == Path('/content/drive/MyDrive')
    assert m.asked == ['/content/drive']


# Secrets and the machine

def test_a_secret_is_found_and_stays_secret(fake, monkeypatch, capfd):
    monkeypatch.delenv('A_KEY', raising=False)
    deadline = call_with_deadline
    monkeypatch.setattr(colab, 'call_with_deadline', lambda f, seconds, *args: deadline(f, min(seconds, 0.2), *args))
    m = fake(get=TOKEN)
    assert [secret('A_KEY'), secret('A_KEY', None), in_thread(lambda: secret('A_KEY'))] == [TOKEN]*3
    monkeypatch.setenv('A_KEY', 'from the environment')
    assert secret('A_KEY') == 'from the environment' and len(m.asked) == 3
    monkeypatch.setenv('A_KEY', '')                                        # empty is none
    for m.on_get in sleep, swallow, MessageError(TOKEN), '':
        assert 'environment variable A_KEY' in refused(secret, 'A_KEY') and secret('A_KEY', default='d') == 'd'
    assert not any(TOKEN in repr(v) for v in vars(colab).values()) and capfd.readouterr() == ('', '')
