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
from collections import Counter
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


def _strace(cmd, options, env, timeout, gate):
    """Run `cmd` under strace with these options: its status, what was logged before the end of its session, and
    all that was logged"""
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
            tracer = subprocess.Popen(['strace', '-f', '-qq', '-o', log, *options, '-p', str(pid)])
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
        return os.waitstatus_to_exitcode(status),before,log.read_text(errors='replace')


# ? = where the machine has such a call
def _names(syscalls): return ','.join('?'+o for o in ([syscalls] if isinstance(syscalls, str) else syscalls))


def run_with_fault(cmd, syscalls, n, action, env=None, path=None, timeout=600, gate=False):
    """`(returncode, hit)` of `cmd`, whose `n`-th call ('3', '3+', '3+2') of each of `syscalls` is met by
    `action`, such as 'signal=SIGKILL' or 'error=ENOSPC'

    `cmd` is an argument list, or a function for a fork of this process, which spares it the imports. `path`:
    exact path or paths, see above. `gate`: the program or function stops itself where counting starts. The run
    ends with the child itself; what else is left of its session is killed then. A returncode of -9 means killed
    by signal 9. After `timeout` seconds all is killed and `TimeoutError` raised."""
    which = _names(syscalls)
    paths = [] if path is None else [path] if isinstance(path, (str, os.PathLike)) else path
    rc,before,log = _strace(cmd, ['-e', f'trace={which}', '-e', f'inject={which}:{action}:when={n}',
                                  *(o for p in paths for o in ('-P', p))], env, timeout, gate)
    name = (re.findall(r'signal=(\w+)', action) or ['SIGKILL'])[0]
    # of SIGKILL only what came before the one above
    return rc,bool('SIGKILL' in action and (rc == -9 or 'killed by SIGKILL' in before) or
                   re.search(rf'\((INJECTED|DELAYED)\)$|--- {name} .*si_code=SI_KERNEL', log, re.M))


def calls_of(cmd, syscalls=CALLS, env=None, timeout=600, gate=False):
    """`(returncode, calls)` of `cmd` with nothing in its way; of each call its name, its number as `run_with_fault`
    counts, and its line, in which descriptors have their paths"""
    which = ','.join(_names(o) for o in syscalls)
    rc,_,log = _strace(cmd, ['-y', '-s', '0', '-e', f'trace={which}'], env, timeout, gate)
    counts,calls = Counter(),[]
    for thread,name,line in re.findall(r'^(\d+) +(\w+)(\(.*)', log, re.M):
        counts[thread,name] += 1
        calls.append((name, counts[thread,name], line))
    return rc,calls


def first_and_last(calls):
    "Those of `calls` that differ from others in more than numbers: which checkpoint, which piece"
    kinds = [(o[0], re.sub(r'[0-9a-f]{8,}|\d+', 'N', o[2])) for o in calls]
    return [o for i,(o,kind) in enumerate(zip(calls, kinds)) if kind not in kinds[:i] or kind not in kinds[i+1:]]


def changes(calls, folder):
    """Those of `calls` that change the files of a folder, which a kill on entering another call leaves as they
    were: of pieces of a file that are written one after the other, the first and the last"""
    did = [o for o in calls if f'{folder}/' in o[2] and ' = -1 ' not in o[2] and o[0] != 'fsync'
           and (o[0] != 'openat' or 'O_CREAT' in o[2] or 'O_TRUNC' in o[2])]
    where = [(o[0], o[2].partition(',')[0]) for o in did]
    between = [where[i] in where[i-1:i] and where[i] in where[i+1:i+2] for i in range(len(did))]
    return [o for o,b in zip(did, between) if o[0] != 'write' or not b]


def at_every_call(cmd, action='signal=SIGKILL', syscalls=CALLS, most=500, **kwargs):
    """`run_with_fault` for each of `syscalls` and each n until no hit; yields (syscall, n, returncode, hit),
    the last of a kind with hit=False"""
    for o in syscalls:
        for n in itertools.count(1):
            if n > most: raise RuntimeError(f'more than {most} calls of {o}')
            rc,hit = run_with_fault(cmd, o, n, action, **kwargs)
            yield o,n,rc,hit
            if not hit: break
