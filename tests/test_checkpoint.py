"""A fit that is killed and resumed by another process: the same batches, losses, weights, optimiser state and
text as if nothing had happened"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter, defaultdict, deque, namedtuple
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.all import (CSVLogger, EarlyStoppingCallback, GradientAccumulation, MixUp, ProgressCallback,
                                 ReduceLROnPlateau, SaveModelCallback,
                                 ShortEpochCallback, ShowGraphCallback)
from fastai.callback import core
from fastai.callback.core import Callback, event
from fastai.data.core import DataLoaders
from fastai.learner import AvgMetric, Learner, Metric, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper, ranger
from fastcore.foundation import L
from torch import nn

import charrnn_fa.checkpoint.callback
import charrnn_fa.checkpoint.writer
import charrnn_fa.run.folder
import charrnn_fa.callback.schedule
import charrnn_fa.checkpoint.capture
import charrnn_fa.checkpoint.save
import charrnn_fa.checkpoint.state
import inject
import kills
from machine import until
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.cli import main
from charrnn_fa.colab import ColabError, DriveCheckpoint
from charrnn_fa.core import CharRNNError
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.evaluate import CharLoss
from charrnn_fa.run.files import RunError, RunWarning
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.run.model import load_run
from charrnn_fa.learner import char_learner
from charrnn_fa.loop import CharLearner
from charrnn_fa.checkpoint.log import Log
from charrnn_fa.callback.progress import CharProgress
from charrnn_fa.optim import AdamW, Muon
from charrnn_fa.checkpoint.serialize import Keeper, from_json
from charrnn_fa.store.locate import Place
from kills import BF16, CKPT, SEED, Case, Noise, differences, digest, leave, newest_step, plain, set_generators

needs_bf16 = pytest.mark.skipif(BF16 != 'bf16', reason='this processor has no LSTM in bf16')

N = 14 # batches of an epoch


# What is trained

class Clock:
    "A clock that goes on by 10 ms whenever it is looked at"
    now = 0.
    def perf_counter(self): self.now += 0.01; return self.now


class Look(Callback):
    "Validates, generates and looks at predictions in the middle of an epoch"
    order = 5
    def after_batch(self):
        if self.training and self.train_iter % 5 == 2:
            self.learn.validate()
            self.learn.get_preds()
            self.learn.generate(n=5)


class Window(Callback):
    "Keeps the last 40 losses, and lowers the learning rate by what they tell"
    order = 70
    def __init__(self): self.last = [0.]*40
    def after_batch(self):
        if not self.training: return
        self.last.pop(0)
        self.last.append(self.loss.item())
        self.opt.set_hyper('lr', 1e-4*sum(self.last[::7]))


class Twice(Callback):
    "Goes by counts of events"
    def before_fit(self): self.epochs,self.trains = 0,0
    def before_epoch(self): self.epochs += 1
    def before_train(self): self.trains += 1
    def before_step(self):
        for p in self.model.parameters(): p.grad.add_(1e-3*self.epochs + 1e-4*self.trains)


Pair = namedtuple('Pair', 'a b')

class Odd(Callback):
    "Counts in containers of many kinds; holds things that nobody can keep"
    def __init__(self):
        self.ring,self.letters,self.counts,self.rows = deque([1.], maxlen=5),set(),Counter(),defaultdict(list)
    def before_fit(self):
        self.me,self.pair,self.file,self.wave = [self],Pair(1, 2),open(os.devnull),torch.ones(2, dtype=torch.complex64)
    def before_step(self):
        self.shape = self.x.shape
        self.me.append(self.me)
        self.ring.append(len(self.ring)+self.ring[-1]/2)
        c = self.x[0,0].item()
        self.letters.add(c)
        self.counts[c] += 1
        self.rows[c%5].append(self.train_iter)
        g = sum(self.ring) + len(self.letters) + max(self.counts.values()) + len(self.rows[c%5]) + self.shape[1]
        for p in self.model.parameters(): p.grad.add_(1e-4*g)


class Shifting(Callback):
    "Its attributes change their kinds, are changed in place and between epochs, and some are the model's own"
    def __init__(self): self.best,self.parts,self.right,self.later = '',[],[],0
    def before_fit(self):
        self.steps,self.marks,self.size = [],dict(n=0),np.float32(1)
        self.weights,self.sums = list(self.model.parameters()),[torch.zeros(()) for _ in range(40)]
    def before_epoch(self): self.steps.append(self.epoch)
    def before_train(self): self.marks['n'] += 1
    def before_step(self):
        if not self.best: self.best = 0.
        self.best,self.size,n = self.best + self.loss.item(),self.size*np.float32(1.01),self.train_iter
        self.parts = torch.full((3,), float(n))
        self.right.append(torch.tensor(n%3))
        self.back = np.arange(4)[::-1]
        self.sums[n%40] += n
        g = (self.best + float(self.size) + sum(self.steps) + self.marks['n'] + sum(self.right).item()
             + self.parts.sum().item() + sum(self.sums).item() + self.back[0])
        for p in self.weights: p.grad.add_(1e-5*g)
        if n == 10: self.later = [1, 2]


class Leaves(Callback):
    "Switches itself off"
    def before_step(self):
        for p in self.model.parameters(): p.grad.add_(1e-3)
        if self.train_iter == 9: self.run = False


def train_metrics(learn):
    "Measures the training part too, by a function and by a metric that keeps what it has across epochs"
    class Sum(Metric):
        def reset(self): self.n = getattr(self, 'n', 0.)
        def accumulate(self, learn): self.n += learn.loss.item()
        @property
        def value(self): return self.n
    class Joined(Metric):
        def reset(self): self.parts = []
        def accumulate(self, learn): self.parts.append(learn.loss.detach()[None])
        @property
        def value(self):
            self.parts = torch.cat(self.parts) if isinstance(self.parts, list) else self.parts
            return self.parts.mean().item()
    learn.metrics = L([*learn.metrics, AvgMetric(lambda x, y: x.sum()), Sum(), Joined()])
    learn.recorder.train_metrics = True


def texts(d):
    "A Learner of fastai over its own loader for language models, which shuffles the order that it had before"
    from fastai.text.data import LMDataLoader
    docs = [torch.randint(0, 9, (20+i,), generator=torch.Generator().manual_seed(i)) for i in range(12)]
    dls = DataLoaders(LMDataLoader(docs, bs=2, seq_len=10, shuffle=True), LMDataLoader(docs[:3], bs=2, seq_len=10), path=d)
    return Learner(dls, nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)), loss_func=CrossEntropyLossFlat())


def further(learn, cbs):
    learn.fit_one_cycle(1, 1e-2, cbs=cbs)
    learn.fit(2, 1e-3, cbs=cbs)
    learn.fit_one_cycle(1, 1e-2, cbs=cbs)

def unvalidated(learn, cbs):
    with learn.no_valid(): learn.fit_one_cycle(3, 1e-2, cbs=cbs)

def one_cycle(n, lr=1e-2): return lambda learn, cbs: learn.fit_one_cycle(n, lr, cbs=cbs)
def fit(n, lr=1e-2): return lambda learn, cbs: learn.fit(n, lr, cbs=cbs)

CASES = dict(
    lstm=Case(learner=dict(dropout=0.2)),
    adamw=Case(learner=dict(opt_func=AdamW, emb_drop=0.1), fit=fit(3)),
    gru=Case(learner=dict(arch='gru', n_layers=3, dropout=0.2), fit=lambda learn, cbs: learn.fit_flat_cos(3, 1e-2, cbs=cbs)),
    rnn=Case(learner=dict(arch='rnn', tie=True, emb_sz=16, wd=0.3), fit=one_cycle(3)),
    onehot=Case(learner=dict(emb_sz=0, head_sz=8, clip=0)),
    bf16=Case(learner=dict(precision=BF16, dropout=0.2, n_layers=2)),
    steps=Case(learner=dict(dropout=0.2, reset_pct=0.2), fit=lambda learn, cbs: learn.fit_steps(45, cbs=cbs)),
    minutes=Case(before=lambda learn: setattr(charrnn_fa.callback.schedule, 'time', Clock()),
                 fit=lambda learn, cbs: learn.fit_steps(minutes=0.455/60, cbs=cbs)),
    best=Case(cbs=lambda: [SaveModelCallback(with_opt=True)], fit=one_cycle(3, 3e-1)),
    accuracy=Case(cbs=lambda: [SaveModelCallback(monitor='accuracy', fname='other')]),
    every=Case(cbs=lambda: [SaveModelCallback(every_epoch=True)]),
    append=Case(cbs=lambda: [CSVLogger(append=True)]),
    several=Case(cbs=lambda: [SaveModelCallback(), EarlyStoppingCallback(patience=2, min_delta=0.3),
                              ReduceLROnPlateau(patience=1, min_delta=0.3), CSVLogger(),
                              GradientAccumulation(12), Noise()], fit=fit(6), learner=dict(dropout=0.2)),
    counts=Case(cbs=lambda: [Odd(), Twice(), Window(), Shifting(), Leaves()], fit=fit(3)),
    look=Case(cbs=lambda: [Look()], learner=dict(dropout=0.2)),
    short=Case(cbs=lambda: [ShortEpochCallback(0.7)], fit=one_cycle(4)),
    slices=Case(before=lambda learn: learn.freeze(), fit=one_cycle(3, slice(1e-3, 1e-2))),
    unvalidated=Case(fit=unvalidated),
    ranger=Case(learner=dict(opt_func=ranger)),
    sgdr=Case(fit=lambda learn, cbs: learn.fit_sgdr(2, 1, lr_max=1e-2, cbs=cbs)),
    pretrained=Case(before=lambda learn: (learn.fit(1, 1e-2), learn.lr_find(num_it=6, show_plot=False)),
                    learner=dict(dropout=0.2)),
    between=Case(fit=lambda learn, cbs: between(learn, cbs), learner=dict(dropout=0.2)),
    tuned=Case(fit=lambda learn, cbs: learn.fine_tune(2, 1e-2, cbs=cbs)),
    further=Case(fit=further, learner=dict(dropout=0.2)),
    plain=Case(make=plain, fit=one_cycle(4), cbs=lambda: [SaveModelCallback(), CSVLogger()]),
    plain_best=Case(make=plain, fit=fit(4), cbs=lambda: [SaveModelCallback()]),
    bar=Case(before=lambda learn: learn.add_cb(CharProgress()), learner=dict(dropout=0.2)),
    plain_bar=Case(make=plain, before=lambda learn: learn.add_cb(ProgressCallback()), fit=one_cycle(4)),
    graph=Case(before=lambda learn: learn.add_cb(CharProgress()), cbs=lambda: [ShowGraphCallback()]),
    metrics=Case(before=train_metrics),
    texts=Case(make=texts, fit=one_cycle(4)),
    late=Case(fit=lambda learn, cbs: learn.start_at(1).fit(3, 1e-2, cbs=cbs), learner=dict(dropout=0.2)),
    lowered=Case(cbs=lambda: [SaveModelCallback(with_opt=True), ReduceLROnPlateau(patience=1, factor=3, min_delta=0.5)],
                 fit=fit(4)),
    mixed=Case(make=plain, cbs=lambda: [MixUp()], fit=fit(3)),
    two_monitors=Case(cbs=lambda: [SaveModelCallback(monitor='accuracy'), EarlyStoppingCallback(patience=1, min_delta=5.)],
                      fit=fit(4)),
)


# How it is killed

class At(Callback):
    """Does something at the `n`-th `event` of a kind that this process sees, while training or validating; what
    it counts is no attribute, which would come back with the run"""
    def __init__(self, event, n, action, order=900, valid=False):
        self.order,left = order,iter(range(n-1))
        batch = event.split('_')[-1] in ('batch', 'pred', 'loss', 'backward', 'step')
        def hit():
            if not (batch and self.training == valid) and next(left, None) is None and next(once, None):
                ACTIONS[action](self.learn)
        once = iter([True])
        setattr(self, event, hit)


def die(learn):
    if s := getattr(learn.checkpoint, 'saver', None): s.writer.wait(60)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)

def throw(e): raise e
def send(*sigs):
    for s in sigs: os.kill(os.getpid(), s)

ACTIONS = dict(die=die, wait=lambda learn: time.sleep(60), int=lambda learn: send(signal.SIGINT),
               int2=lambda learn: send(signal.SIGINT, signal.SIGINT), term=lambda learn: send(signal.SIGTERM),
               error=lambda learn: throw(RuntimeError('thrown')), interrupt=lambda learn: throw(KeyboardInterrupt()))


def go(name, d, *at, ckpt=CKPT, seed=SEED, threads=None):
    if threads: torch.set_num_threads(threads)
    kills.train(CASES[name], d, ckpt, [At(*o) for o in at], seed)


@pytest.fixture(scope='module')
def alone(clean, tmp_path_factory):
    "The folder of the run that nobody touched"
    top = tmp_path_factory.mktemp('alone')
    def _alone(name):
        if not (top/name).exists():
            (top/name).mkdir()
            if name == 'append': (top/name/'history.csv').write_text('old,0\n')
            assert clean.run(top/f'{name}.log', go, name, top/name, ckpt=None) == 0, (top/f'{name}.log').read_text()
        return top/name
    return _alone


@pytest.fixture
def run(clean, alone, tmp_path):
    "A run by name in `run.d`; every call is a process, which is what is asked for at `at`"
    class Run:
        d,log = tmp_path/'r',tmp_path/'log'
        def start(self, name, *at, f=go, **kwargs):
            self.name = name
            return clean.start(self.log, f, name, self.d, *at, **kwargs)
        def __call__(self, name, *at, rc=0, **kwargs):
            got = self.start(name, *at, **kwargs).wait(300)
            assert got == rc, self.text
            return self
        @property
        def text(self): return self.log.read_text()
        @property
        def steps(self): return [m['step'] for m in RunFolder(self.d/'run').checkpoints()]
        @property
        def resumes(self): return RunFolder(self.d/'run').resumes()
        def same(self):
            assert differences(alone(self.name), self.d) == []
            assert 'Warning' not in self.text and 'Traceback' not in self.text, self.text
            return True
    return Run()


DIE = ('before_batch', 18, 'die'),('before_batch', 14, 'die') # the second time counted from where the first left off

@pytest.mark.parametrize('name', [o for o in CASES if o not in (
    'lstm', 'bar', 'further', 'between', 'tuned', 'plain', 'plain_best', 'append', 'best', 'accuracy', 'short', 'minutes',
    'two_monitors', 'plain_bar', 'texts', 'late', 'lowered', 'mixed')])
def test_killed_twice_and_the_same(run, name):
    "In the middle of the second and of the third epoch"
    for o in DIE: run(name, o, rc=-9)
    run(name).same()
    assert run.resumes == [16, 28] and run.steps[0] in (45, *range(42, 85, 14)) # or some whole epochs


PLACES = { # where, and the step from which the next process goes on
    'before the run': (('before_fit', 1, 'die'), None), 'at once': (('before_epoch', 1, 'die'), 0),
    'before the first save': (('before_batch', 4, 'die'), 0), 'in a step': (('after_backward', 21, 'die'), 20),
    'end of training': (('after_train', 1, 'die'), 12), 'in validation': (('after_pred', 2, 'die', 900, True), 12),
    'between epochs': (('after_epoch', 1, 'die', 2000), 12), 'next epoch': (('before_epoch', 2, 'die'), 12),
    'first batch': (('after_batch', 15, 'die'), 12), 'last step': (('after_batch', 42, 'die', 2000), 40),
    'last validation': (('before_validate', 3, 'die'), 40), 'after_fit': (('after_fit', 1, 'die'), 40),
    'finished': (('after_fit', 1, 'die', 2000), 42)}

@pytest.mark.parametrize('place', PLACES)
def test_killed_anywhere(run, place):
    at,step = PLACES[place]
    run('lstm', at, rc=-9)
    assert newest_step(run.d/'run') == step
    run('lstm').same()
    assert run.resumes == ([] if step in (None, 42) else [step])


@pytest.mark.parametrize('step,at', [(14, ('after_epoch', 1, 'die')), (42, ('before_validate', 3, 'die'))])
def test_killed_with_all_batches_of_an_epoch_done(run, step, at):
    run('lstm', at, rc=-9, ckpt=dict(steps=7))
    run('lstm', ckpt=dict(steps=7)).same()
    assert run.resumes == [step]


def test_killed_again_and_again(run):
    n = 0
    while newest_step(run.d/'run') != 40:
        run('lstm', ('before_batch', 6, 'die'), rc=-9)
        n += 1
    run('lstm').same()
    assert n == 10 and run.resumes == list(range(4, 41, 4))


@pytest.mark.parametrize('name', ['best', 'accuracy'])
def test_the_best_model_is_there_after_the_loss_of_a_machine(run, name):
    run(name, ('before_batch', 33, 'die'), rc=-9)
    shutil.rmtree(run.d/'models')
    run(name, ('before_batch', 3, 'die'), rc=-9)
    shutil.rmtree(run.d/'models')
    run(name).same()
    shutil.rmtree(run.d/'models')
    run(name).same() # finished


def test_the_best_model_of_the_epoch_that_stops_the_fit(run):
    run('two_monitors', DIE[0], rc=-9)
    run('two_monitors').same()
    assert run.steps[0] == 28
    shutil.rmtree(run.d/'models')
    run('two_monitors').same()


def test_log_is_appended_to(run):
    run.d.mkdir()
    (run.d/'history.csv').write_text('old,0\n')
    run('append', ('before_batch', 9, 'die'), rc=-9)
    run('append', ('before_batch', 9, 'die'), rc=-9)
    run('append').same()
    lines = (run.d/'history.csv').read_text().splitlines()
    assert len(lines) == 5 and lines[0] == 'old,0' and lines[1].startswith('epoch,')


def test_short_epochs(run):
    for n in 15, 15: run('short', ('before_batch', n, 'die'), rc=-9)
    run('short').same()


@pytest.mark.parametrize('n', [5, 20])
def test_minutes(run, n):
    "Killed while the steps are timed, and after"
    run('minutes', ('before_batch', n, 'die'), rc=-9)
    run('minutes').same()
    assert run.steps[0] == 45 and run.resumes == [n-n%4 - 4*(n%4 == 0)]


@pytest.mark.parametrize('n', [2, 25])
def test_further_fits_under_one_name(run, n):
    "Killed in the first, second and third of three fits"
    run('further', ('before_batch', 6, 'die'), rc=-9)
    run('further', ('before_batch', N-4 + n, 'die'), rc=-9)
    assert RunFolder(run.d/'run').finished and not RunFolder(run.d/'run/2').finished
    run('further', ('before_batch', 28-(n-1)//4*4 + 6, 'die'), rc=-9)
    assert RunFolder(run.d/'run/2').finished and not RunFolder(run.d/'run/3').finished
    run('further').same()
    assert ([RunFolder(run.d/'run'/o).newest()['step'] for o in ('.', '2', '3')] == [14, 28, 14]
            and not (run.d/'run/4').exists())
    run('further').same()


def test_fine_tune(run):
    "Two fits: of the last layer, and of all"
    for n in 9, N-8 + 11: run('tuned', ('before_batch', n, 'die'), rc=-9)
    assert [newest_step(run.d/'run'/o) for o in ('.', '2')] == [14, 8]
    run('tuned').same()


def between(learn, cbs):
    learn.fit_one_cycle(1, 1e-2, cbs=cbs)
    learn.fit(1, 1e-2)
    learn.fit(2, 1e-3, cbs=cbs)


def test_what_was_done_between_two_fits_stays(run):
    run('between', ('before_batch', N + 9, 'die'), rc=-9)
    run('between').same()
    assert RunFolder(run.d/'run/2').resumes() == [8]


def test_a_fresh_learner_goes_on_from_the_last_fit(short, tmp_path, same):
    "Which it has not seen: weights, optimiser, memory and random numbers come from there"
    a,b = small(tmp_path, short, 5, dropout=0.2),small(tmp_path, short, dropout=0.2)
    a.fit(1, 1e-2, cbs=Checkpoint(tmp_path/'r'))
    a.fit(2, 1e-3)
    b.fit(2, 1e-3, cbs=Checkpoint(tmp_path/'r'))
    assert same(a, b) and digest(a.opt.state_dict()) == digest(b.opt.state_dict()) and a.steps_done == b.steps_done == 42


def test_an_optimiser_of_pytorch(short, tmp_path, same):
    "Not in forks: PyTorch imports its compiler for one, which takes seconds"
    def fresh(seed=None): return small(tmp_path, short, seed, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))
    alone = fresh(5)
    alone.fit_one_cycle(2, 1e-2)
    with pytest.raises(RuntimeError):
        fresh(5).fit_one_cycle(2, 1e-2, cbs=[Checkpoint(tmp_path/'r', steps=4, quiet=True), At('before_batch', 19, 'error')])
    again = fresh()
    again.fit_one_cycle(2, 1e-2, cbs=Checkpoint(tmp_path/'r'))
    assert (same(alone, again) and digest(alone.opt.state_dict()) == digest(again.opt.state_dict())
            and RunFolder(tmp_path/'r').resumes() == [18])


def test_another_number_of_threads(run):
    run('lstm', DIE[0], rc=-9)
    run('lstm', threads=2).same()


def test_another_learner_goes_on_at_epoch_ends(run):
    run('plain', ('before_batch', 18, 'die'), rc=-9)
    assert run.steps == [14, 0]
    shutil.rmtree(run.d/'models')
    run('plain', ('after_pred', 2, 'die', 900, True), rc=-9)
    run('plain').same()
    assert run.resumes == [14, 14] and run.steps[0] == 56
    run('plain').same()


@pytest.mark.parametrize('name', ['plain_bar', 'texts', 'mixed'])
def test_other_learners(run, name):
    "Killed in a later epoch, and called again when finished"
    run(name, ('before_epoch', 3, 'die'), rc=-9)
    for _ in range(2): assert run(name).same()


@pytest.mark.parametrize('name', ['bar', 'late', 'lowered'])
def test_finished_and_called_again(run, name):
    run(name, ('before_batch', 3, 'die'), rc=-9)
    for _ in range(2): assert run(name).same()


def test_half_precision_of_fastai(tmp_path, text):
    "Its callback has thrown its scaler away when the end is saved"
    for f in Learner.to_fp16,Learner.to_bf16,Learner.to_fp32:
        for _ in range(2):
            learn = f(plain(tmp_path))
            learn.remove_cbs(learn.progress)
            with warnings.catch_warnings(), learn.no_logging():
                warnings.simplefilter('ignore')
                learn.fit(1, 1e-2, cbs=(ckpt := Checkpoint(tmp_path/f.__name__, quiet=True)))
            assert RunFolder(ckpt.where).finished and not ckpt.saver.trouble if ckpt.saver else True


def test_saves_are_due_by_the_clock_in_epochs_of_any_length(short, tmp_path, monkeypatch, settled):
    "A step takes a second, an epoch fourteen: a save every twenty seconds comes every twenty steps"
    learn,saved = small(tmp_path, short, 5),[]
    for o in charrnn_fa.checkpoint.callback,charrnn_fa.checkpoint.save:
        monkeypatch.setattr(o, 'time', SimpleNamespace(perf_counter=lambda: learn.steps_done))
    class Note(Callback):
        order = 1001
        def after_batch(self):
            if self.training and self.checkpoint.saved == self.steps_done: saved.append(self.steps_done)
    learn.fit(5, 1e-2, cbs=[Checkpoint(tmp_path/'r', minutes=20/60, keep=9, quiet=True), Note()])
    assert saved == [20, 40, 60] and [m['step'] for m in RunFolder(tmp_path/'r').checkpoints()] == [70, 60, 40, 20]


@pytest.fixture
def handle():
    "Set a handler for a test: a shell starts what is in its background with interrupts switched off"
    old = {}
    def _set(s, f): old[s] = signal.signal(s, f)
    yield _set
    for s,f in old.items(): signal.signal(s, f)


def test_an_interrupt_in_another_learner_saves_the_last_epoch(tmp_path, handle):
    "Though no save was due"
    class Stop(Callback):
        def before_batch(self):
            if self.training and self.train_iter == 33: send(signal.SIGINT)
    learn = plain(tmp_path)
    learn.remove_cbs(learn.progress)
    handle(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), learn.no_logging():
        learn.fit(4, 1e-2, cbs=[Checkpoint(tmp_path/'r', minutes=60, quiet=True), Stop()])
    assert RunFolder(tmp_path/'r').newest()['step'] == 28


def test_what_is_not_kept_is_said(short, tmp_path, capsys):
    class Mine(Callback):
        def before_fit(self): self.seen,self.opened,self._hidden = [],open(os.devnull),open(os.devnull)
        def after_fit(self): self.opened.close(); self._hidden.close()
    small(tmp_path, short, 5).fit(1, 1e-2, cbs=[Mine(), Checkpoint(tmp_path/'r')])
    assert re.search(r'Not kept, .*: Mine\.opened, Mine\._hidden\.$', capsys.readouterr().out, re.M)


@pytest.mark.parametrize('change,what', [
    (lambda l: l.model.register_buffer('wave', torch.zeros(2, dtype=torch.complex64)), 'complex64'),
    (lambda l: l.add_cb(type('Own', (Callback,), dict(state_dict=lambda self: {'g': torch.Generator()},
                                                      load_state_dict=lambda self, d: None))()), 'state of Own')])
def test_what_cannot_be_kept_is_told_at_once(tmp_path, change, what):
    learn = plain(tmp_path)
    learn.remove_cbs(learn.progress)
    change(learn)
    with pytest.raises(RunError, match=what): learn.fit(1, 1e-2, cbs=Checkpoint(tmp_path/'r', quiet=True))
    assert not (tmp_path/'r').exists() and not charrnn_fa.run.folder.Lock.held


@pytest.mark.parametrize('args', [dict(where=None), dict(where=3), dict(minutes=None), dict(minutes=-1),
                                  dict(steps=0), dict(keep=1), dict(keep=None)])
def test_mistakes_in_arguments(args):
    with pytest.raises(CharRNNError): Checkpoint(**{'where': 'r', **args})


def test_results_are_numbers(short, tmp_path):
    "Whatever they give instead, no step is trained twice"
    for given in {'a': 'text'}, {'a': float('nan')}, {'a': np.zeros(2)}, None:
        with pytest.raises((CharRNNError, AttributeError)):
            small(tmp_path, short, 5).fit(1, 1e-2, cbs=Checkpoint(tmp_path/'r', results=lambda learn: given, quiet=True))
        m = RunFolder(tmp_path/'r').newest()
        assert m['step'] == 14 and not m['finished'] and not charrnn_fa.run.folder.Lock.held
    seen = At('before_batch', 1, 'error')
    small(tmp_path, short, 5).fit(1, 1e-2, cbs=[
        Checkpoint(tmp_path/'r', results=lambda learn: {'a': np.float32(2), 'b': torch.tensor(3), 'c': 4}, quiet=True), seen])
    assert RunFolder(tmp_path/'r').newest()['results'] == dict(a=2, b=3, c=4) and RunFolder(tmp_path/'r').finished


def test_an_exported_learner_takes_no_threads_along(short, tmp_path):
    learn = small(tmp_path, short, 5, cbs=[Checkpoint(tmp_path/'r', quiet=True)])
    learn.fit(1, 1e-2)
    learn.logger = print
    learn.export('all.pkl')
    for o in load_learner(tmp_path/'all.pkl'),deepcopy(learn):
        assert o.checkpoint.where == str(tmp_path/'r')
        if o.dls.train.n_pairs: assert o.validate() == learn.validate()


@pytest.mark.parametrize('ours', [True, False])
def test_validation_beside_a_finished_run(short, tmp_path, ours):
    class Afterwards(Callback):
        def after_fit(self):
            if not hasattr(self, 'gather_preds') and not self.learn.lock.locked() and not getattr(self, 'inside', False):
                self.inside = True
                self.valid = self.learn.validate()
                self.inside = False
    seen = []
    for _ in range(2):
        learn = small(tmp_path, short, 5) if ours else plain(tmp_path)
        if not ours: learn.remove_cbs(learn.progress)
        with learn.no_logging(): learn.fit(1, 1e-2, cbs=[probe := Afterwards(), Checkpoint(tmp_path/'r', quiet=True)])
        seen.append(list(probe.valid))
    assert seen[0] == seen[1]


def test_a_learner_without_a_recorder_comes_back(short, tmp_path):
    def fit(*cbs):
        learn = small(tmp_path, short, 5)
        learn.remove_cb(learn.recorder)
        learn.fit(2, 1e-2, cbs=[Checkpoint(tmp_path/'r', steps=4, quiet=True), *cbs])
    with pytest.raises(RuntimeError): fit(At('before_batch', 11, 'error'))
    fit()
    assert RunFolder(tmp_path/'r').finished and RunFolder(tmp_path/'r').resumes() == [10]


def test_no_epoch_is_no_step(tmp_path):
    learn = plain(tmp_path)
    learn.remove_cbs(learn.progress)
    learn.fit(0, 1e-2, cbs=Checkpoint(tmp_path/'r', quiet=True))
    assert RunFolder(tmp_path/'r').newest()['step'] == 0 and RunFolder(tmp_path/'r').finished


def test_two_checkpoints_of_one_fit(short, tmp_path):
    "Both keep the best model, and leave no handler of signals behind"
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    ckpts = [Checkpoint(tmp_path/o, quiet=True) for o in 'ab']
    best = []
    class Note(Callback):
        order = 1001
        def after_epoch(self): best.append([len(o.best) for o in ckpts])
    small(tmp_path, short, 5).fit(2, 1e-2, cbs=[SaveModelCallback(), *ckpts, Note()])
    assert best == [[1, 1]]*2 and all(RunFolder(tmp_path/o).finished for o in 'ab')
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_log_that_others_have_written_on_stays(short, tmp_path):
    "The finished run is called again: its lines are there, those after them too"
    again = lambda: small(tmp_path, short, 5).fit(
        1, 1e-2, cbs=[CSVLogger(append=True), Checkpoint(tmp_path/'r', quiet=True)])
    again()
    log = tmp_path/'history.csv'
    log.write_text(both := log.read_text() + 'another fit,1,2\n')
    again()
    assert log.read_text() == both


def test_a_manifest_that_was_being_removed(short, tmp_path, settled):
    "Emptied and not gone: an older one is no reason for a warning, and goes"
    again = lambda: small(tmp_path, short).fit(2, 1e-2, cbs=Checkpoint(tmp_path/'r', steps=10, quiet=True))
    small(tmp_path, short, 5).fit(2, 1e-2, cbs=Checkpoint(tmp_path/'r', steps=10, quiet=True))
    old, = (tmp_path/'r').glob('step-00000010-*.json')
    old.write_bytes(b'')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again()
    assert not list((tmp_path/'r').glob('step-00000010-*'))


def test_files_that_are_not_ours_stay(short, tmp_path):
    "Whatever they are called: the folder counts as taken. What a killed process left is cleared"
    names = ['text-notes.md', 'owner-manual.txt', '.env', '.gitignore', 'step-by-step.json', 'text-0123456789abcdef.txt']
    for o in names:
        d = tmp_path/o.replace('.', '')
        d.mkdir()
        (d/o).write_text('mine')
        with pytest.raises(RunError, match='holds other things'):
            small(tmp_path, short, 5).fit(1, 1e-2, cbs=Checkpoint(d, quiet=True))
        assert (d/o).read_text() == 'mine'
    d = tmp_path/'left'
    d.mkdir()
    for o in 'text-0123456789abcdef.safetensors', 'step-00000000-01234567.safetensors', '.run.json.01234567', '.lock':
        (d/o).write_text('half')
    small(tmp_path, short, 5).fit(1, 1e-2, cbs=Checkpoint(d, quiet=True))
    # settings, text, owner, lock, log, a checkpoint of two files
    assert len(os.listdir(d)) == 7 and RunFolder(d).finished


def test_copies_by_hard_links_stay_whole(short, tmp_path):
    "`cp -al` is a backup: old checkpoints that go do not take its contents along"
    learn,d = small(tmp_path, short, 5),tmp_path/'r'
    class Copy(Callback):
        order = 1001
        def after_batch(self):
            if self.training and self.train_iter == 12:
                self.checkpoint.saver.writer.wait(10)
                shutil.copytree(d, tmp_path/'copy', copy_function=os.link)
    learn.fit(3, 1e-2, cbs=[Checkpoint(d, steps=4, keep=2, quiet=True), Copy()])
    copy = RunFolder(tmp_path/'copy')
    assert copy.newest()['step'] == 12 and len(copy.checkpoints()) == 2 and all(copy.read(m) for m in copy.checkpoints())


def test_two_threads_of_one_process(short, tmp_path):
    "The second is refused"
    go = threading.Event()
    class Wait(Callback):
        def before_batch(self): go.wait(20)
    one = threading.Thread(target=lambda: small(tmp_path, short, 5).fit(
        1, 1e-2, cbs=[Checkpoint(tmp_path/'r', quiet=True), Wait()]))
    one.start()
    while not RunFolder.is_run(tmp_path/'r') or not charrnn_fa.run.folder.Lock.held: time.sleep(0.01)
    try:
        with pytest.raises(RunError, match='Another thread'):
            small(tmp_path, short).fit(1, 1e-2, cbs=Checkpoint(tmp_path/'r', quiet=True))
    finally:
        go.set()
        one.join()
    assert RunFolder(tmp_path/'r').finished


def test_warnings_that_are_errors(short, tmp_path, monkeypatch, capsys, settled):
    "Training does not die of a checkpoint, even then"
    monkeypatch.setattr(charrnn_fa.checkpoint.writer, 'rotate',
                        lambda *args, **kwargs: throw(PermissionError(1, 'Operation not permitted')))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        small(tmp_path, short, 5).fit(2, 1e-2, cbs=Checkpoint(tmp_path/'r', steps=4))
    assert (capsys.readouterr().out.count('Operation not permitted') == 1
            and len(RunFolder(tmp_path/'r').checkpoints()) > 3 and RunFolder(tmp_path/'r').finished)


def test_a_log_that_kills_do_not_cut_short(run):
    "log.txt has what each process said, with the time; the second kill comes after an epoch whose validation the third process repeats"
    for o in DIE: run('lstm', o, rc=-9)
    run('lstm').same()
    assert run.resumes == [16, 28]
    times,said = zip(*(o.split('  ', 1) for o in (run.d/'run/log.txt').read_text().splitlines()))
    times = [time.strptime(o, '%Y-%m-%d %H:%M:%S') for o in times]
    assert times == sorted(times)
    assert [o.split('   ')[0] for o in said if o.startswith('epoch ')] == ['epoch 1 of 3', 'epoch 2 of 3',
                                                                           'epoch 2 of 3', 'epoch 3 of 3']
    others = [o for o in said if not o.startswith(('epoch ', 'step '))]
    want = 'A new run', 'goes on after step 16', 'goes on after step 28', 'finished after 42 steps'
    assert all(w in o for w,o in zip(want, others, strict=True)), others


def test_a_log_that_cannot_be_written_stops_nothing(short, tmp_path, same):
    "A full disk, to begin with; nobody's folder is touched by a fit that is refused"
    alone = small(tmp_path, short, 5)
    alone.fit(2, 1e-2)
    first = small(tmp_path, short, 5)
    with pytest.raises(KeyboardInterrupt):
        first.fit(2, 1e-2, cbs=[Checkpoint(tmp_path/'r', steps=4, quiet=True), At('before_batch', 6, 'interrupt')])
    log = tmp_path/'r/log.txt'
    log.unlink()
    log.symlink_to('/dev/full')
    with pytest.raises(OSError), open(log, 'a') as f: f.write('x')
    again = small(tmp_path, short, 5)
    again.fit(2, 1e-2, cbs=Checkpoint(tmp_path/'r', steps=4, quiet=True))
    assert same(alone, again) and RunFolder(tmp_path/'r').finished
    log.unlink()
    with pytest.raises(RunError):
        small(tmp_path, short, 6).fit(2, 1e-2, cbs=Checkpoint(tmp_path/'r', steps=4, quiet=True))
    assert not log.exists()


def test_a_folder_that_somebody_removes_stops_nothing(short, tmp_path, same):
    class Remove(Callback):
        def after_batch(self):
            if self.training and self.train_iter == 9:
                self.checkpoint.saver.writer.wait(10)
                shutil.rmtree(tmp_path/'r')
    alone,learn = small(tmp_path, short, 5),small(tmp_path, short, 5)
    alone.fit(2, 1e-2)
    with pytest.warns(RunWarning, match='could not be written'):
        learn.fit(2, 1e-2, cbs=[Checkpoint(tmp_path/'r', steps=4, quiet=True), Remove()])
    assert same(alone, learn) and not (tmp_path/'r').exists()


@pytest.mark.usefixtures('strace')
# the last two are one to the library
@pytest.mark.parametrize('error,calls', [*((o, ('openat', 'write', 'fsync', 'rename', 'close')) for o in ('EIO', 'ENOSPC')),
                                         ('EDQUOT', ['write'])])
def test_an_error_in_every_call_of_a_save(clean, tmp_path, error, calls):
    """The local disk fails once, at each call in turn, but for pieces of one file and names of one kind, of which the
    first and the last: what has a manifest has its data, nothing is left about, and the end is there"""
    top = tmp_path
    assert clean.run(top/'log', kills.brief, top/'begun', 8) == 0
    def one():
        shutil.copytree(top/'begun', top/'d')
        kills.brief(top/'d', 12, kills.about(12))
    _,found = inject.calls_of(one, calls, gate=True)
    shutil.rmtree(top/'d')
    tried = [o for o in inject.first_and_last(found) if f'{top}/' in o[2]]
    for call,i,_ in tried:
        rc,hit = inject.run_with_fault(one, call, i, f'error={error}', gate=True)
        run = RunFolder(top/'d/run')
        whole = [m for m in run.checkpoints() if run.read(m)]
        assert (hit and rc == 0 and len(whole) >= 2 and not run.damaged
                and not [o for o in run.names() if o.startswith('.step')]), (call, i, rc)
        assert len([o for o in run.names() if o.startswith('step')]) == 2*len(whole), (call, i)
        shutil.rmtree(top/'d')
    assert len(tried) > 2*len(calls)


def test_a_budget_of_bytes(short, tmp_path, settled):
    "Two stay, however large they are"
    small(tmp_path, short, 5).fit(3, 1e-2, cbs=Checkpoint(tmp_path/'r', steps=4, keep=9, max_mb=0.01, quiet=True))
    assert len(RunFolder(tmp_path/'r').checkpoints()) == 2
    small(tmp_path, short, 5).fit(3, 1e-2, cbs=Checkpoint(tmp_path/'q', steps=4, keep=9, max_mb=0.2, quiet=True))
    sizes = [m['size'] for m in RunFolder(tmp_path/'q').checkpoints()]
    assert len(sizes) > 2 and sum(sizes) <= 0.2e6


@needs_bf16
def test_precision_is_that_of_the_run(short, tmp_path, same, capsys):
    "Whatever the Learner that goes on was made with"
    alone = small(tmp_path, short, 5, precision='bf16')
    alone.fit(2, 1e-2)
    with pytest.raises(RuntimeError):
        small(tmp_path, short, 5, precision='bf16').fit(2, 1e-2, cbs=[Checkpoint(tmp_path/'r', steps=4, quiet=True),
                                                                      At('before_batch', 11, 'error')])
    learn = small(tmp_path, short, precision='fp32')
    learn.fit(2, 1e-2, cbs=Checkpoint(tmp_path/'r'))
    assert learn.precision == 'bf16' and same(alone, learn) and 'No longer exact' not in capsys.readouterr().out


@pytest.mark.parametrize('name,now,said', [('versions', lambda: dict(charrnn_fa='0.0', torch='1.0'), 'torch .* -> 1.0'),
                                           ('_cpu', lambda: 'Abacus', 'processor .* -> Abacus')])
def test_what_is_no_longer_exact_is_listed(begun, monkeypatch, capsys, name, now, said):
    "Other versions, another processor: the run goes on all the same"
    monkeypatch.setattr(charrnn_fa.checkpoint.state, name, now)
    assert begun().steps_done == 28
    assert re.search(f'No longer exact to the bit: .*{said}', capsys.readouterr().out)


# Seeds and settings

def small(d, text, seed=None, cbs=None, bs=4, seq_len=16, **kwargs):
    dls = CharDataLoaders.from_text(text, bs=bs, seq_len=seq_len, seed=seed, path=d, device='cpu')
    learn = char_learner(dls, cbs=cbs, **{**dict(n_hid=16, emb_sz=8, head_sz=0, precision='fp32'), **kwargs})
    learn.logger = lambda log: None
    return learn.remove_cbs(learn.progress)


@pytest.fixture
def short(text): return text[:1000]


@pytest.fixture
def begun(short, tmp_path):
    "A run of two epochs that ended in an error at step 10, and a function that tries to go on with it"
    d = tmp_path/'r'
    with pytest.raises(RuntimeError):
        small(d, short, 5).fit(2, 1e-2, cbs=[Checkpoint(d, steps=4, quiet=True), At('before_batch', 11, 'error')])
    def _try(text=short, seed=None, n_epoch=2, lr=1e-2, wd=None, cbs=None, fit='fit', ckpt={}, **kwargs):
        learn = small(d, text, seed, **kwargs)
        getattr(learn, fit)(n_epoch, lr, wd=wd, cbs=[*(cbs or []), Checkpoint(d, **ckpt)])
        return learn
    _try.d = d
    return _try


@pytest.mark.parametrize('how', ['missing', 'truncated', 'flipped'])
def test_a_kept_text_that_is_damaged_is_written_anew(begun, short, how):
    "The Learner that goes on has it; another text, which is allowed, does not take its place"
    text, = begun.d.glob('text-*')
    whole = text.read_bytes()
    if how == 'missing': text.unlink()
    else: text.write_bytes(whole[:99] if how == 'truncated' else whole[:-1] + bytes([whole[-1]^1]))
    begun(short[:500] + ('e' if short[500] != 'e' else 'a') + short[501:], ckpt=dict(allow_changes=True))
    assert not text.exists() or text.read_bytes() != whole
    begun()
    assert text.read_bytes() == whole


class Other(CharLoss): pass

CHANGES = {
    'the text': dict(text='one byte'), 'the vocabulary': dict(text='a letter'), 'n_hid 16 -> 12': dict(n_hid=12),
    'n_layers 1 -> 2': dict(n_layers=2), 'arch lstm -> gru': dict(arch='gru'),
    'bs 4 -> 5': dict(bs=5), 'seq_len 16 -> 8': dict(seq_len=8), 'n_epoch 2 -> 3': dict(n_epoch=3),
    r'lr \[0.01\S* 0.01\S* 0.01\] -> \[0.02': dict(lr=2e-2), 'the schedule of lr': dict(fit='fit_one_cycle'),
    r'wd .*0.5': dict(wd=0.5), 'dropout 0.2 -> 0.3': dict(dropout=0.3),
    'clip': dict(clip=0.1), 'seed 5 -> 6': dict(seed=6), 'opt muon -> adamw': dict(opt_func=AdamW),
    'loss CharLoss -> Other': dict(loss_func=Other()), 'muon_ratio': dict(opt_func=partial(Muon, muon_ratio=3.)),
    'GradientAccumulation none -> ': dict(cbs=[GradientAccumulation(8)])}

CANNOT = 'the vocabulary', 'n_hid 16 -> 12', 'n_layers 1 -> 2', 'arch lstm -> gru', 'opt muon -> adamw'

@pytest.mark.parametrize('what', CANNOT)
def test_changes_that_cannot_be_allowed(begun, short, what):
    "Weights of other shapes, or the state of another optimiser: the file is not damaged, and nothing is said to go on"
    kwargs = CHANGES[what] if what != 'the vocabulary' else dict(text=short + 'ß'*9)
    with pytest.raises(RunError, match=f'other settings.*{what}.*; restore them or give another name.'):
        begun(**kwargs, ckpt=dict(allow_changes=True))
    assert not charrnn_fa.run.folder.Lock.held

@pytest.mark.parametrize('what', CHANGES)
def test_changes_are_refused_by_name(begun, short, what):
    kwargs = dict(CHANGES[what])
    if 'text' in kwargs:
        kwargs['text'] = {'one byte': short[:500] + ('e' if short[500] != 'e' else 'a') + short[501:],
                          'a letter': short + 'ß'*9}[kwargs['text']]
    before = {o.name: o.read_bytes() for o in begun.d.iterdir()}
    with pytest.raises(RunError, match=f'other settings.*{what}') as refused: begun(**kwargs)
    assert ('allow_changes=True' in str(refused.value)) == (what not in CANNOT)
    assert {o.name: o.read_bytes() for o in begun.d.iterdir()} == before
    assert not charrnn_fa.run.folder.Lock.held
    begun() # as it was begun


@pytest.mark.parametrize('what', ['the text', 'bs 4 -> 5', 'seq_len 16 -> 8', 'n_epoch 2 -> 3', 'lr', 'wd .*0.5',
                                  'dropout 0.2 -> 0.3', 'the schedule of lr',
                                  'GradientAccumulation none -> ', 'seed 5 -> 6'])
def test_changes_that_are_allowed(begun, short, what, capsys):
    kwargs = dict(next(v for k,v in CHANGES.items() if k.startswith(what)))
    if 'text' in kwargs: kwargs['text'] = short[:500] + ('e' if short[500] != 'e' else 'a') + short[501:]
    learn = begun(**kwargs, ckpt=dict(allow_changes=True))
    assert re.search(f'goes on with these.*{what}', capsys.readouterr().out)
    assert (len(learn.recorder.lrs) == len(learn.recorder.losses) == learn.n_epoch*len(learn.dls.train)
            or 'bs' in kwargs or 'seq_len' in kwargs)
    if 'lr' in kwargs: assert learn.recorder.lrs[9] == 1e-2 and learn.recorder.lrs[10:] == [2e-2]*18
    if 'wd' in kwargs: assert {h['wd'] for h in learn.opt.hypers} == {0.5}


def test_fewer_epochs_than_have_begun(short, tmp_path, same):
    "Nothing is left to train: the end of the run is what was kept last, and no untrained Learner"
    fit = lambda n, *cbs, **kwargs: (learn := small(tmp_path, short, 5)).fit(
        n, 1e-2, cbs=[*cbs, Checkpoint(tmp_path/'r', steps=4, quiet=True, **kwargs)]) or learn
    with pytest.raises(RuntimeError): fit(3, At('before_batch', 20, 'error'))
    was = RunFolder(tmp_path/'r').newest()
    learn = fit(1, allow_changes=True)
    end = RunFolder(tmp_path/'r').newest()
    assert end['finished'] and end['step'] == was['step'] == learn.steps_done == 19
    assert same(learn, load_run(tmp_path/'r')) and len(learn.recorder.losses) == 19


def test_the_same_seed_may_be_given_again(begun): assert begun(seed=5).seed == begun(seed=None).seed == 5


def test_from_a_gpu_to_a_cpu(short, tmp_path, monkeypatch, capsys):
    "The states of a GPU's generators and fp16's scaler are left; what is no longer exact is said"
    real,rng = charrnn_fa.checkpoint.save.capture,charrnn_fa.checkpoint.capture.rng_state
    def capture(*args):
        ts,m = real(*args)
        m['env'].update(device='cuda', gpu='Tesla T4', deterministic=True, torch='2.11.0+cu128')
        return ts,m
    with monkeypatch.context() as patch:
        patch.setattr(charrnn_fa.checkpoint.save, 'capture', capture)
        patch.setattr(charrnn_fa.checkpoint.capture, 'rng_state',
                      lambda: dict(rng(), cuda=[torch.ones(16, dtype=torch.uint8)]*2))
        learn = small(tmp_path, short, 5)
        learn.scaler = torch.amp.GradScaler('cpu', enabled=False)
        with pytest.raises(RuntimeError):
            learn.fit(2, 1e-2, cbs=[Checkpoint(tmp_path/'r', steps=4), At('before_batch', 11, 'error')])
    learn = small(tmp_path, short)
    learn.fit(2, 1e-2, cbs=Checkpoint(tmp_path/'r'))
    said = next(l for l in capsys.readouterr().out.splitlines() if l.startswith('No longer exact'))
    assert 'device cuda -> cpu' in said and 'gpu Tesla T4 -> None' in said and 'torch 2.11.0+cu128 -> ' in said
    assert len(learn.recorder.losses) == 28


# Signals

def interrupted(name, d, *at, step=0, ckpt=CKPT):
    "Ctrl-C, then the same Learner is used for something else, then the same call goes on"
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    d.mkdir()
    set_generators(SEED)
    learn,case = kills.learner(CASES[name], d, SEED),CASES[name]
    try:
        case.fit(learn, [kills.Seen(d/'batches'), *case.cbs(), *(At(*o) for o in at),
                         Checkpoint(d/'run', quiet=True, **ckpt)])
    except KeyboardInterrupt: print('interrupted')
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers and not charrnn_fa.run.folder.Lock.held
    assert newest_step(d/'run') == step, newest_step(d/'run')
    learn.fit(1, 1e-2)
    if not case.make: learn.generate(n=5)
    case.fit(learn, [kills.Seen(d/'batches'), *case.cbs(), Checkpoint(d/'run', quiet=True, **ckpt)])
    leave(learn, d)


@pytest.mark.parametrize('at,step', [(('before_batch', 19, 'int'), 19), (('after_batch', 19, 'int', 1), 19),
                                     (('before_batch', 19, 'int2'), 16), (('after_pred', 1, 'int', 0, True), 14),
                                     (('after_epoch', 1, 'int'), 15), (('before_fit', 1, 'int', 2000), 1),
                                     (('after_epoch', 3, 'int'), 42), (('after_fit', 1, 'int'), 42)])
def test_ctrl_c(run, at, step):
    "Saved, raised, usable, and the same call goes on; a second one stops at once"
    run('lstm', at, f=interrupted, step=step, ckpt=dict(steps=16))
    assert 'interrupted' in run.text
    run.same()


@contextmanager
def interrupt_at(line, first, *others):
    "SIGINT before the `line`-th line of functions, from when `first` begins; gives a list of the lines that were come to"
    codes,seen = {o.__code__ for o in (first, *others)},[]
    def each_line(frame, event, _):
        if event == 'line':
            seen.append(frame.f_lineno)
            if len(seen) == line: send(signal.SIGINT)
        return each_line
    before = sys.gettrace()
    sys.settrace(lambda frame, *_: each_line if frame.f_code in codes and (seen or frame.f_code is first.__code__) else None)
    try: yield seen
    finally: sys.settrace(before)


def test_ctrl_c_while_a_fit_puts_away_what_it_used(short, tmp_path, handle):
    "At any line: it comes through when all is put away, the folder is free, and no thread is left"
    held,free = charrnn_fa.run.folder.Lock.held,charrnn_fa.run.folder.Lock.free
    handle(signal.SIGINT, signal.default_int_handler)
    n,line,n_lines = threading.active_count(),0,1
    while (line := line+1) <= n_lines:
        with interrupt_at(line, Checkpoint._clean_up, Place.close, free) as seen, pytest.raises(KeyboardInterrupt):
            small(tmp_path, short, 5).fit(1, 1e-2, cbs=Checkpoint(tmp_path/f'{line}', quiet=True))
            signal.raise_signal(signal.SIGINT) # after the last line there is nobody any more to hear it
        n_lines = max(n_lines, len(seen))
        assert RunFolder(tmp_path/f'{line}').finished and not held and threading.active_count() == n, line
    assert n_lines > 10


def test_ctrl_c_in_another_learner(run):
    run('plain_best', ('before_batch', 33, 'int'), f=interrupted, step=28)
    run.same()


@pytest.mark.parametrize('at,step', [(('before_batch', 19, 'term'), 19), (('after_pred', 1, 'term', 0, True), 14),
                                     (('after_epoch', 3, 'term'), 42), (('after_fit', 1, 'term'), 42)])
def test_sigterm(run, at, step):
    "Saved, then the process ends as it would have"
    run('lstm', at, rc=-signal.SIGTERM, ckpt=dict(steps=1000))
    assert newest_step(run.d/'run') == step
    run('lstm', ckpt=dict(steps=1000)).same()


def own_handler(name, d, *at):
    got = []
    signal.signal(signal.SIGTERM, lambda s, frame: got.append(s))
    with pytest.raises(KeyboardInterrupt): go(name, d, *at)
    assert got == [signal.SIGTERM]


def test_a_handler_of_ones_own_gets_the_signal(run):
    run('lstm', ('before_batch', 19, 'term'), f=own_handler)
    assert newest_step(run.d/'run') == 19
    run('lstm').same()


class Slow(Callback):
    "5 steps a second"
    def after_batch(self): time.sleep(0.2)


def slow(name, d): kills.train(CASES[name], d, dict(minutes=60), [Slow()])


def test_sigterm_is_answered_within_a_step(run):
    "SIGKILL often follows seconds later: no epoch is brought to its end, and no other step is begun"
    n_begun = lambda: len((run.d/'batches').read_text().splitlines()) if (run.d/'batches').exists() else 0
    p = run.start('lstm', f=slow)
    while n_begun() < 5: assert p.wait(0.01) is None, run.text
    p.kill(signal.SIGTERM)
    assert p.wait(600) == -signal.SIGTERM
    assert 5 <= newest_step(run.d/'run') == n_begun() < 42
    run('lstm', ckpt=dict(minutes=60)).same()


def in_a_thread(name, d, *at):
    t = threading.Thread(target=go, args=(name, d, *at))
    t.start()
    t.join()


def test_a_fit_in_another_thread(run):
    "Where Python allows no signal handlers"
    run('lstm', DIE[0], f=in_a_thread, rc=-9)
    run('lstm', f=in_a_thread).same()


# Errors

@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    from charrnn_fa.text.corpus import load_corpus
    learn = small(tmp_path_factory.mktemp('ref'), load_corpus('pydocs')[:500], 5, dropout=0.2)
    learn.fit(2, 1e-2)
    return learn


EVENTS = [o for o in vars(event) if o.startswith(('before_', 'after_')) and o != 'after_create']

@pytest.mark.parametrize('action', ['error', 'interrupt'])
@pytest.mark.parametrize('order', [900, 2000])
def test_an_error_in_any_event(short, tmp_path, same, reference, action, order):
    "The Learner is as good as before, lock and handlers are free, and the run goes on"
    text,threads = short[:500],set(threading.enumerate())
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    error,bad = dict(error=RuntimeError, interrupt=KeyboardInterrupt)[action],[]
    for o in EVENTS:
        if order == 2000 and not o.endswith(('_fit', '_epoch', '_train', 'after_batch')): continue
        d,kind,cbs = tmp_path/o,o.split('_')[-1],[]
        d.mkdir()
        if 'cancel' in o:
            class Cancel(Callback):
                def __init__(self): setattr(self, 'before_epoch' if kind == 'fit' else f'before_{kind}', self._cancel)
                def _cancel(self):
                    raise getattr(core, f"Cancel{dict(validate='Valid').get(kind, kind.title())}Exception")
            cbs = [Cancel()]
        learn = small(d, text, 5, dropout=0.2)
        logger,n_cbs = learn.logger,len(learn.cbs)
        n = 6 if o.endswith(('_batch', '_pred', '_loss', '_backward', '_step')) and 'cancel' not in o else 1
        with pytest.raises(error):
            learn.fit(2, 1e-2, cbs=[At(o, n, action, order), *cbs, CSVLogger(), Checkpoint(d/'run', steps=4, quiet=True)])
        why = [w for w,wrong in dict(lock=charrnn_fa.run.folder.Lock.held,
                                     handlers=[signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] != handlers,
                                     logger=learn.logger is not logger, callbacks=len(learn.cbs) != n_cbs,
                                     grads=any(p.grad is not None for p in learn.model.parameters()),
                                     finished=RunFolder.is_run(d/'run')
                                     and RunFolder(d/'run').finished != (o == 'after_fit' and order == 2000)).items()
               if wrong]
        learn.fit(1, 1e-3)
        if len(learn.recorder.losses) != 7: why.append('fit')
        again = small(d, text, None if RunFolder.is_run(d/'run') else 5, dropout=0.2)
        again.fit(2, 1e-2, cbs=Checkpoint(d/'run', steps=4, quiet=True))
        if not cbs and not same(again, reference): why.append('resumed')
        if not RunFolder(d/'run').finished: why.append('not finished')
        if why: bad.append((o, why))
    assert not bad
    until(lambda: not set(threading.enumerate())-threads, 60, 'the end of all threads')


@pytest.mark.parametrize('order', [900, 2000])
@pytest.mark.parametrize('o', ['before_fit', 'before_batch', 'after_epoch', 'before_validate', 'after_fit', 'before_epoch'])
def test_an_error_in_another_learner(tmp_path, o, order):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    learn = plain(tmp_path)
    learn.remove_cbs(learn.progress)
    with learn.no_logging():
        at = At(o, 20 if 'batch' in o else 1, 'error', order)
        hit = getattr(at, o)
        with pytest.raises(RuntimeError): learn.fit(3, 1e-2, cbs=[at, Checkpoint(tmp_path/'r', steps=1, quiet=True)])
        assert (not charrnn_fa.run.folder.Lock.held
                and [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers)
        assert (not {'_with_events', '_call_one'} & set(vars(learn)) and getattr(at, o) is hit
                and ('before_fit' in vars(at)) == (o == 'before_fit'))
        learn.fit(1, 1e-2)
        learn.fit(3, 1e-2, cbs=Checkpoint(tmp_path/'r', quiet=True))
    assert RunFolder(tmp_path/'r').finished and len(learn.recorder.values) == 3


def test_no_wait_at_the_end(short, tmp_path):
    "Says nothing about the start, where a disk needs a moment too"
    for i in range(5): small(tmp_path, short, 5).fit(1, 1e-2, cbs=Checkpoint(tmp_path/f'r{i}', wait=0, quiet=True))
    assert all(RunFolder(tmp_path/f'r{i}').finished for i in range(5))


@pytest.mark.parametrize('bad', [dict(minutes=-1), dict(minutes=True), dict(steps=0), dict(keep=1), dict(keep=None),
                                 dict(max_mb='x'), dict(max_mb=-1), dict(wait=-1), dict(wait=None),
                                 dict(minutes=float('nan')), dict(minutes=None)])
def test_arguments_that_make_no_sense(tmp_path, bad):
    with pytest.raises(CharRNNError, match=next(iter(bad))): Checkpoint(tmp_path, **bad)


def test_arguments_that_nobody_takes(tmp_path):
    "A path has no options to pass on, so that a misspelt name is not lost"
    with pytest.raises(TypeError, match='no argument step;.* steps'): Checkpoint(tmp_path, step=10)
    with pytest.raises(CharRNNError, match='results'): Checkpoint(tmp_path, results=3)
    Checkpoint('s3://bucket/run', key='id', secret='word')


@pytest.mark.parametrize('where', ['x'*300, 'a\0b'])
def test_names_that_no_folder_can_have(short, tmp_path, where):
    with pytest.raises(CharRNNError, match='cannot be (made|reached)|null'):
        small(tmp_path, short, 5).fit(1, cbs=Checkpoint(tmp_path/where, quiet=True))


def test_names_that_are_none():
    with pytest.raises(ColabError, match='None cannot be the name'): DriveCheckpoint(None)


def test_no_room_for_copies_on_this_machine(short, tmp_path, monkeypatch):
    (tmp_path/'file').touch()
    monkeypatch.setenv('CHARRNN_HOME', str(tmp_path/'file/home'))
    with pytest.raises(RunError, match='let CHARRNN_HOME name one'):
        small(tmp_path, short, 5).fit(1, cbs=Checkpoint('memory://no-room/r', quiet=True))


def test_the_class_instead_of_a_callback(short, tmp_path):
    with pytest.raises(CharRNNError, match='has to be told where'): small(tmp_path, short, 5).fit(1, cbs=Checkpoint)


@needs_bf16
def test_another_precision_is_said(short, tmp_path, capsys):
    "The run keeps its own"
    small(tmp_path, short, 5, precision='bf16').fit(1, 1e-2, cbs=Checkpoint(tmp_path/'r'))
    learn = small(tmp_path, short, 5, precision='fp32')
    learn.fit(1, 1e-2, cbs=Checkpoint(tmp_path/'r'))
    assert learn.precision == 'bf16' and "begun in bf16 and keeps to it: this Learner's fp32" in capsys.readouterr().out


@pytest.mark.parametrize('make', [lambda d, text: small(d, text, 5), lambda d, text: plain(d)])
def test_what_was_loaded_is_not_kept_in_memory(short, tmp_path, make):
    "A resume where an epoch begins, and a further fit, hold no second copy of weights and optimiser state while they train"
    held = []
    class Look(Callback):
        order = 2000
        def before_batch(self):
            held.append((self.checkpoint.state, self.checkpoint.found.state, self.checkpoint.found.after))
    def fit(n, lr, *cbs):
        learn = make(tmp_path, short)
        learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
        with learn.no_logging(): learn.fit(n, lr, cbs=[*cbs, Checkpoint(tmp_path/'r', steps=1, quiet=True)])
    with pytest.raises(RuntimeError): fit(2, 1e-2, At('before_epoch', 2, 'error'))
    fit(2, 1e-2, Look())
    fit(1, 1e-3, Look())
    assert held and set(held) == {(None, None, None)}


def test_how_long_a_run_has_trained(short, tmp_path):
    learn,ckpt = small(tmp_path, short, 5),Checkpoint(tmp_path/'r', quiet=True)
    learn.fit(1, 1e-2, cbs=ckpt)
    t = ckpt.seconds()
    time.sleep(0.01)
    assert ckpt.seconds() == t > 0


def test_a_checkpoint_that_cannot_be_taken_does_not_stop_training(short, tmp_path, monkeypatch):
    learn,real,n = small(tmp_path, short, 5),charrnn_fa.checkpoint.save.capture,[]
    def capture(*args):
        n.append(0)
        if len(n) in (2, 3, 4): raise ValueError('nothing doing')
        return real(*args)
    monkeypatch.setattr(charrnn_fa.checkpoint.save, 'capture', capture)
    with pytest.warns(RunWarning, match='nothing doing.*training goes on') as w:
        learn.fit(2, 1e-2, cbs=Checkpoint(tmp_path/'r', steps=10, quiet=True))
    assert (len(learn.recorder.losses) == 28 and RunFolder(tmp_path/'r').finished
            and sum(issubclass(o.category, RunWarning) for o in w) == 1)


def test_the_same_trouble_is_told_each_time(tmp_path, monkeypatch):
    "Python's own filter shows a warning of the same words once for each line of code"
    seen = []
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter('default')
        monkeypatch.setattr(warnings, 'showwarning', lambda m, *_: seen.append(str(m)))
        for o in Log(), Log(quiet=True): o.warn('gone'); o.warn('gone')
        warnings.simplefilter('ignore')
        Log().warn('gone')
    assert seen == ['gone']*4


def test_nothing_happens_without_a_fit(short, tmp_path):
    learn = small(tmp_path, short, 5, cbs=Checkpoint(tmp_path/'r', steps=4, quiet=True))
    learn.lr_find(num_it=5, show_plot=False)
    learn.validate(); learn.get_preds(); learn.summary(); learn.predict('The')
    assert not (tmp_path/'r').exists() and not charrnn_fa.run.folder.Lock.held
    learn.fit(1, 1e-3)
    learn.validate(); learn.get_preds(); learn.lr_find(num_it=5, show_plot=False)
    assert RunFolder(tmp_path/'r').newest()['step'] == 14


def test_a_finished_run_trains_nothing(short, tmp_path, same, capsys):
    a = small(tmp_path, short, 5)
    a.fit(2, 1e-2, cbs=Checkpoint(tmp_path/'r'))
    b,seen = small(tmp_path, short),At('before_batch', 1, 'error')
    b.fit(2, 1e-2, cbs=[Checkpoint(tmp_path/'r'), seen])
    assert (same(a, b) and a.recorder.values == b.recorder.values
            and digest(a.recorder.losses) == digest(b.recorder.losses) and b.steps_done == 28)
    assert a.generate('The', n=50, seed=2) == b.generate('The', n=50, seed=2)
    assert 'nothing is trained' in capsys.readouterr().out


# Two processes

def with_children(name, d, *at):
    "Two children live on: one that inherits every open file, and a fork"
    pids = [subprocess.Popen(['sleep', '60'], close_fds=False).pid]
    class Fork(Callback):
        order = 899
        def before_batch(self):
            if self.train_iter == 8:
                if not (pid := os.fork()): time.sleep(60); os._exit(0)
                (d/'children').write_text(f'{pids[0]} {pid}')
    kills.train(CASES[name], d, CKPT, [Fork(), *(At(*o) for o in at)])


def test_two_processes_and_the_children_of_a_dead_one(run):
    p = run.start('lstm', ('before_batch', 10, 'wait'), f=with_children)
    while not (run.d/'children').exists(): assert p.wait(0.01) is None, run.text
    pids = [int(o) for o in (run.d/'children').read_text().split()]
    try:
        run('lstm', rc=1)
        assert 'Another process on this machine trains the run' in run.text
        p.kill()
        assert p.wait() == -9
        for o in pids: os.kill(o, 0) # they live
        run.log.unlink()
        run('lstm').same()
        assert run.resumes[0] in (4, 8)
    finally:
        for o in pids: os.kill(o, signal.SIGKILL)


# Keeping a callback's lists

def test_lists_that_move_are_kept_as_they_are():
    "Only one that has grown is taken from the last time"
    for change in (lambda v: (v.pop(0), v.append(v[3]*2)), lambda v: v.__setitem__(7, v[0]),
                   lambda v: v.append(v[4]+1), lambda v: v.clear(), lambda v: v.insert(3, v[2]+1)):
        for make in float, lambda o: torch.as_tensor(o, dtype=torch.float64):
            k,v = Keeper(),[make(i/3) for i in range(50)]
            k.json(v, 'v')
            change(v)
            assert from_json(k.json(v, 'v'), k.tensors) == v


# The command

TINY = '--n-hid 16 --emb-sz 8 --head-sz 8 --bs 4 --seq-len 16 --precision fp32'.split()

def charrnn(*args): sys.exit(main(list(map(str, args))))


def test_the_command(clean, tmp_path):
    "A real process for SIGKILL, forks for the others"
    def args(d):
        return 'train', 'count', '--run', tmp_path/d, '--steps', 500, '--save-steps', 10, '--seed', 3, '--quiet', *TINY
    def fork(*args): return clean.start(tmp_path/'log', charrnn, *args)
    p = subprocess.Popen([sys.executable, '-m', 'charrnn_fa', *map(str, args('r'))], stdout=subprocess.DEVNULL,
                         stderr=open(tmp_path/'log', 'w'))
    for sig,status in (signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, -15):
        first = newest_step(tmp_path/'r') or 0
        while (newest_step(tmp_path/'r') or 0) < first+20:
            assert kills.wait(p, 0.005) is None, (tmp_path/'log').read_text()
        os.kill(p.pid, sig)
        assert p.wait(300) == status and 'Traceback' not in (tmp_path/'log').read_text(), (tmp_path/'log').read_text()
        p = fork(*args('r'))
    assert p.wait() == 0, p.log.read_text()
    assert fork(*args('alone')).wait() == 0
    infos = []
    for o in 'r', 'alone':
        assert clean.run(tmp_path/f'{o}.json', charrnn, 'info', tmp_path/o, '--json') == 0
        infos.append(json.loads((tmp_path/f'{o}.json').read_text()))
    assert infos[0]['weights_sha256'] == infos[1]['weights_sha256'] and infos[0]['step'] == infos[1]['step'] == 500
    assert len(infos[0]['resumes']) == 3 and infos[0]['resumes'] == sorted(infos[0]['resumes']) and infos[1]['resumes'] == []
    assert (clean.run(tmp_path/'log', charrnn, *args('r')) == 0
            and 'is finished after 500 steps' in (tmp_path/'log').read_text())


# At random, and at every call

def kill(*args): sys.exit(kills.main([*'--fresh 0 --long 0 --machines 0'.split(), *args]))


@pytest.fixture
def killed(clean, tmp_path):
    "The numbers of a row in the table that `kills` prints, called with these arguments"
    def _killed(row, *args):
        assert clean.run(tmp_path/'log', kill, *args) == 0, (tmp_path/'log').read_text()
        said, = [o for o in (tmp_path/'log').read_text().splitlines() if o.startswith(row)]
        return map(int, re.findall(r' (\d+)', said[len(row):]))
    return _killed


def test_random_kills(killed):
    n,_,_,further,runs,lost,differ = killed('forks', *'--forks 10 --cases 3 --saves'.split())
    assert n >= 10 and runs and further and lost == differ == 0


@pytest.mark.usefixtures('strace')
@pytest.mark.parametrize('step,kind', [(12, 'a save'), (0, 'the first save')])
def test_kills_at_the_calls_of_a_save(killed, step, kind):
    "At each that changes something on the disk; one at another call would find the same there"
    n,_,_,further,runs,lost,differ = killed(f'every call of {kind}', '--forks', '0', '--brisk', '--saves', str(step))
    assert runs > n > (20, 6)[step > 0] and (further or not step) and lost == differ == 0


def test_a_first_manifest_that_was_cut_short_stops_no_other_machine(tmp_path):
    "A machine was killed while it wrote its first manifest, before the settings, to a store whose files can be cut short"
    d,alone = tmp_path/'run',tmp_path/'alone'
    (d/'there').mkdir(parents=True)
    for name,size in ('step-00000000-0123abcd.safetensors', 99), ('step-00000000-0123abcd.json', 0):
        (d/'there'/name).write_bytes(bytes(size))
    assert kills.Child(lambda: kills.on_machine('lstm', d, 'b', 900),
                       tmp_path/'log').wait(300) == 0, (tmp_path/'log').read_text()
    assert kills.Child(lambda: kills.train(CASES['lstm'], alone), tmp_path/'log').wait(300) == 0
    assert kills.differences(alone, d) == []


# A network of a person's own in a `CharLearner`, which no preset describes

class Residual(nn.Module):
    "Two layers whose input is added to what they give; `logits, state = model(x, state)`"
    def __init__(self, n, n_hid=16):
        super().__init__()
        self.emb,self.decoder,self.drop = nn.Embedding(n, n_hid),nn.Linear(n_hid, n),nn.Dropout(.2)
        self.rnns = nn.ModuleList(nn.GRU(n_hid, n_hid, batch_first=True) for _ in range(2))
    def forward(self, x, state=None):
        h,new = self.emb(x),[]
        for rnn,s in zip(self.rnns, state or [None]*2):
            y,s = rnn(h, s)
            h = h + self.drop(y)
            new.append(s)
        return self.decoder(h),tuple(new)


def test_a_network_of_a_persons_own_goes_on_within_an_epoch(tmp_path):
    "It was refused, since `load_run` could not make it again; the script that made it can"
    class Stops(Callback):
        order = 1100 # after the checkpoint
        def after_batch(self):
            if self.training and self.train_iter == 13: raise KeyError('killed')
    def fit(name, *cbs):
        torch.manual_seed(4)
        dls = CharDataLoaders.from_text('To be, or not to be. '*60, bs=4, seq_len=16, seed=1)
        learn = CharLearner(dls, Residual(len(dls.vocab)), seed=2)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(2, 1e-2, cbs=[Checkpoint(tmp_path/name, steps=3, quiet=True), *cbs])
        return learn
    alone = fit('a')
    with pytest.raises(KeyError): fit('b', Stops())
    begins = []
    class Begins(Callback):
        def before_batch(self): begins.append(self.train_iter)
    learn = fit('b', Begins())
    assert 0 < begins[0] <= 13
    for p,q in zip(alone.model.parameters(), learn.model.parameters()): assert torch.equal(p, q)
    with pytest.raises(RunError, match='make that Learner again'): load_run(tmp_path/'b')
