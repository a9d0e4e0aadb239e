"Other machines for tests: processes with a `CHARRNN_HOME` of their own, and the command in a process that needs no second for its imports"
import os
import signal
import sys
import threading
import time
import traceback
import warnings

import tqdm.auto

showwarning = warnings.showwarning                                                  # Python's own


def machine(home, f, log=None):
    "A process of its own with a `CHARRNN_HOME` of its own, in which `f` runs; its id"
    sys.stdout.flush(); sys.stderr.flush()
    pid = os.fork()
    if pid: return pid
    status = 1
    try:
        os.environ['CHARRNN_HOME'] = str(home)
        if log:
            fd = os.open(log, os.O_WRONLY|os.O_CREAT|os.O_APPEND)
            os.dup2(fd, 1); os.dup2(fd, 2)
            sys.stdout,sys.stderr = (os.fdopen(1, 'w', buffering=1, closefd=False),
                                     os.fdopen(2, 'w', buffering=1, closefd=False))
        # pytest keeps them to itself otherwise
        warnings.showwarning = lambda message, *args, **kwargs: print(message)
        f()
        status = 0
    except BaseException: traceback.print_exc()
    finally: os._exit(status)


def command(*args, stdin=0, stdout=1, stderr=2):
    """`charrnn` in a process of its own with these descriptors, in a session of its own; its id. It is a fork,
    which does not end as the interpreter does"""
    from charrnn_fa.cli import main
    sys.stdout.flush(); sys.stderr.flush()
    pid = os.fork()
    if pid: return pid
    status = 1
    try:
        os.setsid()
        # theirs would be shared with this process, and with one that is killed for ever
        for o in tqdm.std.tqdm,*tqdm.std.tqdm.__subclasses__(): o._lock = threading.RLock()
        # ignored by what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for fd,at in zip([os.dup(o) for o in (stdin, stdout, stderr)], (0, 1, 2)): os.dup2(fd, at)
        sys.stdin,sys.stdout,sys.stderr = (open(0, closefd=False),open(1, 'w', closefd=False),
                                           open(2, 'w', buffering=1, errors='backslashreplace', closefd=False))
        warnings.resetwarnings()
        # pytest keeps them to itself otherwise
        warnings.showwarning = showwarning
        status = main(list(map(str, args)))
        sys.stdout.flush()
    except SystemExit as e: status = e.code
    except BaseException: traceback.print_exc()
    finally: os._exit(status or 0)


def output_of(*args):
    "What the command writes to a pipe; it must end well"
    r,w = os.pipe()
    pid = command(*args, stdout=w)
    os.close(w)
    with open(r, encoding='utf-8') as f: out = f.read()
    assert ended(pid) == 0, out
    return out


def dawdle(go):
    "A step that takes a second, until the file `go` is there"
    def _f(*args):
        end = time.monotonic()+1
        while not go.exists() and time.monotonic() < end: time.sleep(0.02)
    return _f


def ended(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def until(f, seconds=60, what='it'):
    "Wait for what `f` gives; how long is a matter of the machine, and no test's business"
    end = time.monotonic()+seconds
    while not (res := f()):
        if time.monotonic() > end: raise TimeoutError(f'{what} did not come about')
        time.sleep(0.02)
    return res
