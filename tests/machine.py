"Other machines for tests: processes with a `CHARRNN_HOME` of their own"
import os
import sys
import time
import traceback
import warnings


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
            sys.stdout,sys.stderr = os.fdopen(1, 'w', buffering=1, closefd=False),os.fdopen(2, 'w', buffering=1, closefd=False)
        warnings.showwarning = lambda message, *args, **kwargs: print(message)      # pytest keeps them to itself otherwise
        f()
        status = 0
    except BaseException: traceback.print_exc()
    finally: os._exit(status)


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
