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
import os, resource, subprocess, sys, threading, time
import torch
from charrnn_fa.callback import neighbours
from charrnn_fa.callback.neighbours import Neighbours, hold_spares, sharing_processors
"""


THREADS = {'OMP_NUM_THREADS': str(N)}


def from_the_start(code):
    "A fresh process with a thread for each processor; what it printed"
    p = subprocess.run([sys.executable, '-c', BEGIN + code], env={**os.environ, **THREADS}, capture_output=True,
                       text=True, timeout=300)
    assert p.returncode == 0, p.stderr
    return p.stdout.split()


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
def worked(n=400):
    x = torch.zeros(1<<16)
    began = time.process_time()
    for _ in range(n):
        x.add_(1)
        time.sleep(.001)
    return time.process_time()-began

worked(20)
print(worked())
spares = hold_spares()
print(worked())
for o in spares: o.stop()
print(worked())
"""))
    assert sleeping < 0.6*spinning and sleeping < 0.6*again


def test_busy_processes_are_noticed_in_a_fit():
    "A fit beside them makes the same weights as one alone, and its threads end with it"
    same,noticed,left = from_the_start("""
from charrnn_fa.learner import char_learner
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from fastai.callback.core import Callback

seen = []
looked = Neighbours.look
def noted(self, share, at):
    looked(self, share, at)
    if self.way == 'sleep': seen.append(len(self.spares))
Neighbours.look = noted

class Long(Callback):
    "Waits, working, until the neighbours are noticed"
    def after_batch(self):
        if self.train_iter != 5 or not busy: return
        end = time.monotonic()+120
        while not seen and time.monotonic() < end: torch.ones(300, 300) @ torch.ones(300, 300)

def trained():
    learn = char_learner(CharDataLoaders.from_text(load_corpus('pydocs')[:20000], bs=16, seq_len=32, seed=1), n_hid=64, precision='fp32')
    with learn.no_bar(), learn.no_logging(), learn.no_valid(): learn.fit_steps(20, cbs=Long())
    return [p.detach().clone() for p in learn.model.parameters()]

busy = []
alone = trained()
seen.clear()
busy = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(2*torch.get_num_threads())]
try: beside = trained()
finally:
    for o in busy: o.kill()
print(all(map(torch.equal, alone, beside)), bool(seen) and min(seen) > 0, \
[o.name for o in threading.enumerate() if o.name in ('neighbours', 'spare')] != [])
""")
    assert (same, noticed, left) == ('True', 'True', 'False')


def test_a_run_by_the_clock_goes_on_in_one_thread(run, tmp_path):
    "As long as they are there; its checkpoints have the number of threads that it began with, and how many steps were made in one"
    at_work,threads,kept,in_one = map(int, run(f"""
from charrnn_fa.checkpoint import Checkpoint
from charrnn_fa.learner import char_learner
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from fastai.callback.core import Callback

torch.set_num_threads(2)

class Seen(Callback):
    "Waits, working, at the sixth step until the neighbours are noticed, and notes the threads of the seventh"
    order = 2000
    def after_batch(self):
        if self.train_iter < 6: return
        if self.train_iter == 7:
            print(torch.get_num_threads())
            raise KeyboardInterrupt
        end,watcher = time.monotonic()+120,neighbours._watcher()
        while not stays_in_one(watcher) and time.monotonic() < end: torch.ones(300, 300) @ torch.ones(300, 300)

def stays_in_one(watcher):
    with watcher.lock:
        if watcher.way == 'one': watcher.until,watcher.many = float('inf'),9.
        return watcher.way == 'one'

neighbours.Neighbours.are_many = property(lambda self: False, lambda self, o: None) # however busy it is, one thread is tried

busy = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(2*{N})]
learn = char_learner(CharDataLoaders.from_text(load_corpus('pydocs')[:20000], bs=16, seq_len=32, seed=1), n_hid=64, precision='fp32')
try:
    with learn.no_bar(), learn.no_logging(), learn.no_valid():
        learn.fit_steps(minutes=5, cbs=[Seen(), Checkpoint({str(tmp_path/'r')!r}, quiet=True)])
except KeyboardInterrupt: pass
finally:
    for o in busy: o.kill()
run = RunFolder({str(tmp_path/'r')!r})
(_,_,meta),*_ = run.whole()
kept = meta['cbs']['Budget#0']['dict'] # names and values in turn
print(torch.get_num_threads(), meta['env']['threads'], kept[kept.index('in_one_thread')+1])
"""))
    assert (at_work, threads, kept) == (1, 2, 2) and in_one > 0


def test_an_error_leaves_no_thread(run):
    left, = run("""
try:
    with sharing_processors():
        neighbours.time.sleep(.3)
        raise KeyboardInterrupt
except KeyboardInterrupt: pass
print([o.name for o in threading.enumerate() if o.name in ('neighbours', 'spare')] != [])
""")
    assert left == 'False'


def test_what_takes_longer_is_watched_outside_of_a_fit_too(run):
    "In each of these somebody watches whenever the model computes a batch, and nobody does afterwards"
    lines = run("""
from charrnn_fa import show
from charrnn_fa.doctor import diagnose
from charrnn_fa.learner import char_learner
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from torch.nn.modules.module import register_module_forward_pre_hook

def watchers(): return sum(o.name == 'neighbours' for o in threading.enumerate())

learn = char_learner(CharDataLoaders.from_text(load_corpus('pydocs')[:20000], bs=16, seq_len=32, seed=1), n_hid=8, precision='fp32')
text = load_corpus('pydocs')[:300]
ways = dict(
    evaluate=learn.evaluate,
    windows=lambda: learn.evaluate(context=256),
    generate=lambda: learn.generate(n=3, bs=2),
    validate=learn.validate,
    get_preds=learn.get_preds,
    diagnose=lambda: diagnose(learn, seconds=5, trials=False),
    surprise=lambda: show.surprise(learn, text),
    neurons=lambda: show.neurons(learn, text),
    memory=lambda: show.memory(learn, text),
    fit=lambda: learn.fit_steps(2),
)
for k,f in ways.items():
    seen = set()
    hook = register_module_forward_pre_hook(lambda *_: seen.add(watchers()))
    with learn.no_bar(), learn.no_logging(): f()
    hook.remove()
    print(k, *seen, watchers(), sep=',')
""")
    names = 'evaluate windows generate validate get_preds diagnose surprise neurons memory fit'.split()
    assert lines == [f'{o},1,0' for o in names]


def test_a_forked_process_has_no_watcher(run):
    "Neither the lock of a watcher that just decides, nor threads that rest, come along: their thread stays with the parent"
    status, = run("""
import signal

torch.set_num_threads(2)
held,over = threading.Event(),threading.Event()
def deciding():
    with watcher.lock:
        held.set()
        over.wait()

with sharing_processors() as watcher:
    watcher.way,watcher.until = 'one',float('inf')
    neighbours.may_rest()
    threading.Thread(target=deciding).start()
    held.wait()
    child = os.fork()
    if not child:
        signal.alarm(60)
        torch.set_num_threads(1)
        with sharing_processors(): pass
        os._exit(10+torch.get_num_threads())
    status = os.waitpid(child, 0)[1]
    over.set()
print(os.waitstatus_to_exitcode(status))
""")
    assert status == '11'


def test_a_save_leaves_no_team_behind(run):
    "A team of OpenMP's that the thread that saves held would end the spinning for the rest of the fit"
    before,after = map(int, run("""
import tempfile
from charrnn_fa.checkpoint import Checkpoint
from charrnn_fa.learner import char_learner
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from fastai.callback.core import Callback

Neighbours.look = lambda self, share, at: None # no teams that are made on purpose

class Count(Callback):
    "Threads of this process before the first save, and after it"
    order = 2000
    def after_batch(self):
        if self.train_iter == 4: print(len(os.listdir('/proc/self/task')))
        if self.train_iter != 6: return
        self.learn.checkpoint.saver.finish()
        print(len(os.listdir('/proc/self/task')))

learn = char_learner(CharDataLoaders.from_text(load_corpus('pydocs')[:20000], bs=16, seq_len=16, seed=1), n_hid=128,
                     precision='fp32')
with tempfile.TemporaryDirectory() as d, learn.no_bar(), learn.no_logging(), learn.no_valid():
    learn.fit_steps(8, cbs=[Checkpoint(f'{d}/run', steps=5, quiet=True), Count()])
"""))
    assert before == after
