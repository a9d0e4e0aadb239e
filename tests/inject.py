"""Kill a child at its N-th system call, or let that call fail or wait: strace's fault injection

How strace 6.13 counts: `when=N` counts for each thread (a new thread or fork starts at 0), for each system call
of the set on its own, and only the calls that -P lets through. So N is hit once in every thread that gets that
far; with SIGKILL the first one ends the process. The signal comes on entering the call, which is then not
carried out; what comes after the last call of a kind is reached through other kinds. A call that waits in the
kernel counts when it starts.

-P takes exact paths, existing or not, no folders or patterns; a folder's path means its own `openat` and
`fsync`. It works with inject for calls with a path and for those with a file descriptor of it (write, fsync,
ftruncate, close), for `rename` by the old name only (`renameat`, `renameat2`: both). Where names are random,
count from the start of a function instead: `cmd` as a function, or `gate`. --seccomp-bpf is not used: with it,
signals get lost.
"""
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from functools import lru_cache
from pathlib import Path

CALLS = 'openat', 'write', 'fsync', ('rename', 'renameat', 'renameat2'), ('unlink', 'unlinkat'), 'ftruncate'


@lru_cache
def missing():
    "Why nothing can be injected here, or None"
    if not sys.platform.startswith('linux') or not shutil.which('strace'): return 'strace is not installed'
    p = subprocess.run(['strace', '-o', '/dev/null', '-e', 'trace=?write', '-e', 'inject=?write:delay_enter=1:when=1',
                        'true'], capture_output=True, text=True)
    return f'strace does not work here: {p.stderr.strip()}' if p.returncode else None


def gate():
    "In a child run with `gate=True`: counting starts here"
    os.kill(os.getpid(), signal.SIGSTOP)


def _fork(f, stop):
    pid = os.fork()
    if pid: return pid
    status = 1
    try:
        os.setsid()
        if stop: gate()
        f()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally: os._exit(status)


def _until(done, end, what):
    while not (r := done()):
        if time.monotonic() > end: raise TimeoutError(f'{what} took too long')
        time.sleep(0.002)
    return r


def _traced(pid, tracer):
    if tracer.poll() is not None: raise RuntimeError('strace could not attach')
    return all(f'\nTracerPid:\t{tracer.pid}\n' in o.read_text() for o in Path(f'/proc/{pid}/task').glob('*/status'))


def run_with_fault(cmd, syscalls, n, action, env=None, path=None, timeout=600, gate=False):
    """`(returncode, hit)` of `cmd`, whose `n`-th call ('3', '3+', '3+2') of each of `syscalls` is met by
    `action`, such as 'signal=SIGKILL' or 'error=ENOSPC'

    `cmd` is an argument list, or a function for a fork of this process, which spares it the imports. `path`:
    exact path or paths, see above. `gate`: the program or function stops itself where counting starts. The run
    ends with the child itself; what else is left of its session is killed then. A returncode of -9 means killed
    by signal 9. After `timeout` seconds all is killed and `TimeoutError` raised."""
    # ? = where the machine has such a call
    which = ','.join('?'+o for o in ([syscalls] if isinstance(syscalls, str) else syscalls))
    paths = [] if path is None else [path] if isinstance(path, (str, os.PathLike)) else path
    def f():
        if not callable(cmd): os.execvpe(cmd[0], cmd, os.environ if env is None else env)
        os.environ.update(env or {})
        cmd()
    end,tracer,wait = time.monotonic()+timeout, None, os.WEXITED|os.WNOWAIT|os.WNOHANG
    with tempfile.TemporaryDirectory() as d:
        log = Path(d)/'strace'
        pid = _fork(f, not gate)
        try:
            # attached rather than started by strace, which would wait for all processes that the child leaves behind
            if _until(lambda: os.waitid(os.P_PID, pid, os.WSTOPPED|wait), end,
                      'the way to the gate').si_code != os.CLD_STOPPED:
                raise RuntimeError('the child ended before its gate')
            tracer = subprocess.Popen(['strace', '-f', '-qq', '-o', log, '-e', f'trace={which}', '-e',
                                       f'inject={which}:{action}:when={n}',
                                       *(o for p in paths for o in ('-P', p)), '-p', str(pid)])
            _until(lambda: _traced(pid, tracer), end, 'strace')
            os.kill(pid, signal.SIGCONT)
            _until(lambda: os.waitid(os.P_PID, pid, wait), end, f'{cmd}')
            before = log.read_text(errors='replace')
        finally:
            os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            if tracer:
                try: tracer.wait(5)
                except subprocess.TimeoutExpired: tracer.kill()
        rc,name = os.waitstatus_to_exitcode(status), (re.findall(r'signal=(\w+)', action) or ['SIGKILL'])[0]
        # of SIGKILL only what came before the one above
        return rc,bool('SIGKILL' in action and (rc == -9 or 'killed by SIGKILL' in before) or
                       re.search(rf'\((INJECTED|DELAYED)\)$|--- {name} .*si_code=SI_KERNEL',
                                 log.read_text(errors='replace'), re.M))


def at_every_call(cmd, action='signal=SIGKILL', syscalls=CALLS, most=500, **kwargs):
    """`run_with_fault` for each of `syscalls` and each n until no hit; yields (syscall, n, returncode, hit),
    the last of a kind with hit=False"""
    for o in syscalls:
        for n in itertools.count(1):
            if n > most: raise RuntimeError(f'more than {most} calls of {o}')
            rc,hit = run_with_fault(cmd, o, n, action, **kwargs)
            yield o,n,rc,hit
            if not hit: break
