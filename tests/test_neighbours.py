"""Training beside busy processes: they are noticed, the spinning ends, no bit changes, and nothing is left behind

In processes of their own, with as many threads as processors: the rest of the suite runs with one thread each,
and there would be nothing to see. One is a program as a person runs it, to the end of its interpreter; the others
are forks of a process that has imported the library and run no torch operation.
"""
import os
import subprocess
import sys
from contextlib import redirect_stdout

import kills
import pytest
import torch

N = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1
pytestmark = pytest.mark.skipif(N < 2 or not os.path.exists('/proc/self/schedstat'),
                                reason='needs Linux and two processors')

BEGIN = """
import os, signal, subprocess, sys, threading, time
import torch
from contextlib import contextmanager
from charrnn_fa.callback import contention
from charrnn_fa.callback.contention import Neighbours, hold_spares, sharing_processors
from charrnn_fa.checkpoint import Checkpoint
from charrnn_fa.learner import char_learner
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from fastai.callback.core import Callback

class At(Callback):
    "Call `f` after a step"
    order = 2000
    def __init__(self, step, f): self.step,self.f = step,f
    def after_batch(self):
        if self.train_iter == self.step: self.f()

def made(n_hid=64):
    text = load_corpus('pydocs')[:20000]
    return char_learner(CharDataLoaders.from_text(text, bs=16, seq_len=32, seed=1), n_hid=n_hid, precision='fp32')

def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(), learn.no_valid(): learn.fit_steps(*args, **kwargs)

def work_until(f):
    end = time.monotonic()+120
    while not f() and time.monotonic() < end: torch.ones(300, 300) @ torch.ones(300, 300)

@contextmanager
def busy():
    others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(2*torch.get_num_threads())]
    try: yield
    finally:
        for o in others: o.kill()

def left(): return sum(o.name in ('neighbours', 'spare') for o in threading.enumerate())
"""


THREADS = {'OMP_NUM_THREADS': str(N)}


def program(out, code):
    "What a fork does; what it prints goes to a file, and what it complains of to its log"
    torch.set_num_threads(N)
    with open(out, 'w') as f, redirect_stdout(f): exec(BEGIN + code, {'__name__': '__main__'})


@pytest.fixture(scope='module')
def clean():
    c = kills.Clean(**THREADS)
    yield c
    c.close()


@pytest.fixture
def run(clean, tmp_path):
    "A fork with a thread for each processor; what it printed"
    def _run(code):
        out,log = tmp_path/'out',tmp_path/'log'
        assert clean.start(log, program, out, code).wait(300) == 0, log.read_text()
        return out.read_text().split()
    return _run


def test_a_spare_team_ends_the_spinning(run):
    "Small operations with pauses: a thread that spins between them takes processor time, one that sleeps does not"
    spinning,sleeping,again = map(float, run("""
def worked(n):
    x = torch.zeros(1<<16)
    began = time.process_time()
    for _ in range(n):
        x.add_(1)
        time.sleep(.001)
    return time.process_time()-began

worked(20)
print(worked(200))
spares = hold_spares()
print(worked(200))
for o in spares: o.stop()
print(worked(200))
"""))
    assert sleeping < 0.6*spinning and sleeping < 0.6*again


def test_busy_processes_are_noticed_in_a_fit():
    "A fit beside them makes the same weights as one alone, and its threads end with it"
    code = BEGIN + """
seen,look = [],Neighbours.look
def noted(self, share, at):
    look(self, share, at)
    if self.way == 'sleep': seen.append(len(self.spares))
Neighbours.look = noted

def trained(f):
    fit(learn := made(), 12, cbs=At(5, f))
    return [*learn.model.parameters()]

alone = trained(seen.clear)
with busy(): beside = trained(lambda: work_until(lambda: seen))
print(all(map(torch.equal, alone, beside)), bool(seen) and min(seen) > 0, left())
"""
    p = subprocess.run([sys.executable, '-c', code], env={**os.environ, **THREADS}, capture_output=True, text=True, timeout=300)
    assert (p.stdout.split(), p.returncode) == (['True', 'True', '0'], 0), p.stderr


def test_a_run_by_the_clock_goes_on_in_one_thread(run, tmp_path):
    "As long as they are there; its checkpoints have the number of threads that it began with, and how many steps were made in one"
    at_work,threads,kept,in_one = map(int, run(f"""
from charrnn_fa.run.folder import RunFolder

torch.set_num_threads(2)
Neighbours.are_many = property(lambda self: False, lambda self, o: None) # however busy it is, one thread is tried

def stays_in_one():
    with contention._watcher().lock:
        if contention._watcher().way == 'one': contention._watcher().until,contention._watcher().many = float('inf'),9.
        return contention._watcher().way == 'one'

def stop():
    print(torch.get_num_threads())
    raise KeyboardInterrupt

try:
    with busy():
        cbs = At(6, lambda: work_until(stays_in_one)),At(7, stop),Checkpoint({str(tmp_path/'r')!r}, steps=1, quiet=True)
        fit(made(), minutes=5, cbs=cbs)
except KeyboardInterrupt: pass
(_,_,meta),*_ = RunFolder({str(tmp_path/'r')!r}).whole()
kept = meta['cbs']['Budget#0']['dict'] # names and values in turn
print(torch.get_num_threads(), meta['env']['threads'], kept[kept.index('in_one_thread')+1])
"""))
    assert (at_work, threads, kept) == (1, 2, 2) and in_one > 0


def test_a_save_leaves_no_team_behind(run, tmp_path):
    "A team of OpenMP's that the thread that saves held would end the spinning for the rest of the fit"
    before,after = run(f"""
Neighbours.look = lambda self, share, at: None # no teams that are made on purpose
def count(): print(len(os.listdir('/proc/self/task')))
def count_after_save():
    learn.checkpoint.saver.finish()
    count()
learn = made(128)
fit(learn, 8, cbs=[Checkpoint({str(tmp_path/'r')!r}, steps=5, quiet=True), At(4, count), At(6, count_after_save)])
""")
    assert before == after
