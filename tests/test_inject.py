"The fault injection itself: every call of a careful writer, counted as documented"
import os
import signal
import sys
import threading
import time
from pathlib import Path

import inject
import pytest
from inject import at_every_call, run_with_fault

pytestmark = pytest.mark.usefixtures('strace')

OLD,NEW = b'old'*100, b'new'*200

WRITER = """
import os, sys
def write(path, data):
    fd = os.open(path + '.tmp', os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 0)
    for i in range(0, len(data), 200): os.write(fd, data[i:i+200])
    os.fsync(fd)
    os.close(fd)
    os.replace(path + '.tmp', path)
    d = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(d)
    os.close(d)
    open(path + '.log', 'wb').close()
    os.unlink(path + '.log')
"""
space = {}
exec(WRITER, space)
write = space['write']
WANT = {'openat': 3, 'write': 3, 'fsync': 2, ('rename', 'renameat', 'renameat2'): 1,
        ('unlink', 'unlinkat'): 1, 'ftruncate': 1}


@pytest.fixture
def file(tmp_path):
    f = tmp_path/'f'
    f.write_bytes(OLD)
    return f


def test_old_or_new_after_every_kill(file):
    "A fork of this process: 17 runs in no time"
    hits,seen = {o: 0 for o in WANT}, set()
    for call,n,rc,hit in at_every_call(lambda: write(str(file), NEW)):
        assert rc == (-signal.SIGKILL if hit else 0)
        seen.add(file.read_bytes())
        assert file.read_bytes() in (OLD, NEW) if hit else file.read_bytes() == NEW
        hits[call] += hit
        file.write_bytes(OLD)
        for o in file.parent.glob('f.*'): o.unlink()
    assert hits == WANT and seen == {OLD, NEW}


def test_bad_writer_is_caught(file):
    "Truncate and write in place: some kill leaves neither old nor new"
    bad = []
    for *_,hit in at_every_call(lambda: file.write_bytes(NEW), syscalls=['openat', 'write']):
        if hit: bad.append(file.read_bytes() not in (OLD, NEW))
        file.write_bytes(OLD)
    assert any(bad)


def test_program_with_exact_paths(file):
    "-P keeps the calls of Python's start out, for names that do not exist yet and for calls by file descriptor"
    cmd,tmp = [sys.executable, '-S', '-c', WRITER+f'write({str(file)!r}, b"x"*600)'], f'{file}.tmp'
    for call,n in ('openat', 2), ('write', 4), ('fsync', 2), ('ftruncate', 2), (('rename', 'renameat2'), 2):
        assert run_with_fault(cmd, call, n, 'error=EIO', path=tmp) == (0, False)
        rc,hit = run_with_fault(cmd, call, n-1, 'error=EIO', path=tmp, env={**os.environ, 'PYTHONUNBUFFERED': '1'})
        assert rc == 1 and hit
    assert (run_with_fault(cmd, 'fsync', 1, 'signal=SIGKILL', path=file.parent) == (-9, True)
            and file.read_bytes() == b'x'*600)
    assert run_with_fault(cmd, 'openat', 1, 'error=EACCES', path=[file, file.parent]) == (1, True)


def test_plain_rename_matches_the_old_name_only(file):
    "Where the C library calls rename(2)"
    cmd = [sys.executable, '-S', '-c', WRITER+f'write({str(file)!r}, b"x")']
    assert run_with_fault(cmd, 'renameat2', 1, 'error=EIO') == (0, False)
    if os.uname().machine == 'x86_64': assert run_with_fault(cmd, 'rename', 1, 'error=EIO', path=file) == (0, False)


def test_gate(file):
    "A program that says itself where counting starts"
    code = WRITER+f'import json, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwrite({str(file)!r}, {NEW!r})'
    assert run_with_fault([sys.executable, '-c', code], 'openat', 2, 'signal=SIGKILL', gate=True) == (-9, True)
    assert file.read_bytes() == NEW
    assert run_with_fault([sys.executable, '-c', code], 'openat', 4, 'signal=SIGKILL', gate=True) == (0, False)
    with pytest.raises(RuntimeError, match='before its gate'):
        run_with_fault(['true'], 'openat', 1, 'error=EIO', gate=True)


def test_errors_delays_and_signals(file):
    def f(): write(str(file), NEW)
    assert run_with_fault(f, 'write', '2+', 'error=ENOSPC') == (1, True) and file.read_bytes() == OLD
    t = time.monotonic()
    assert run_with_fault(f, 'fsync', 1, 'delay_enter=300ms') == (0, True) and time.monotonic()-t > 0.3
    assert run_with_fault(f, 'fsync', 1, 'signal=SIGTERM') == (-15, True)
    assert run_with_fault(f, 'fsync', 3, 'signal=SIGTERM') == (0, False)
    with pytest.raises(TimeoutError): run_with_fault(lambda: time.sleep(30), 'fsync', 1, 'error=EIO', timeout=0.5)
    with pytest.raises(TimeoutError): run_with_fault(['sleep', '30'], 'fsync', 1, 'error=EIO', timeout=0.5)


def test_each_thread_and_each_call_counts_on_its_own(tmp_path):
    def f():
        def g(name):
            fd = os.open(tmp_path/name, os.O_WRONLY|os.O_CREAT)
            for _ in range(2): os.write(fd, b'x')
        g('a')
        t = threading.Thread(target=g, args='b')
        t.start()
        t.join()
    assert run_with_fault(f, 'write', 3, 'signal=SIGKILL') == (0, False)                 # 4 writes, 2 in each thread
    assert run_with_fault(f, ['openat', 'write'], 3, 'signal=SIGKILL') == (0, False)
    (tmp_path/'b').unlink()
    assert run_with_fault(f, 'write', 1, 'signal=SIGKILL', path=tmp_path/'b') == (-9, True)
    assert (tmp_path/'a').stat().st_size == 2 and (tmp_path/'b').stat().st_size == 0


def test_nothing_is_left_running(tmp_path):
    "A killed leader takes the rest of its group along"
    seconds = f'47.{os.getpid()}'
    cmd = ['sh', '-c', f'sleep {seconds} & : > {tmp_path}/x']
    assert run_with_fault(cmd, 'openat', 1, 'signal=SIGKILL', path=tmp_path/'x') == (-9, True)
    assert run_with_fault(cmd, 'openat', 2, 'signal=SIGKILL', path=tmp_path/'x') == (0, False)
    assert run_with_fault(['sh', '-c', f'(: > {tmp_path}/x); true'], 'openat', 1, 'signal=SIGKILL',
                          path=tmp_path/'x') == (0, True)
    def args(o):
        try: return o.read_text()
        except OSError: return ''
    def left(): return any(f'sleep\0{seconds}' in args(o) for o in Path('/proc').glob('[0-9]*/cmdline'))
    end = time.monotonic()+20 # it sleeps for longer than that
    while left() and time.monotonic() < end: time.sleep(0.05)
    assert not left()
