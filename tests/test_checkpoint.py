"""A fit that is killed and resumed by another process: the same batches, losses, weights, optimiser state and
text as if nothing had happened"""
import json
import os
import re
import shutil
import signal
import random
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.all import (CSVLogger, EarlyStoppingCallback, GradientAccumulation, GradientClip, MixUp,
                                 ReduceLROnPlateau, SaveModelCallback, TerminateOnNaNCallback)
from fastai.callback import core
from fastai.callback.core import Callback, CancelBatchException, event
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import Learner, Metric
from fastai.losses import MSELossFlat
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import charrnn_fa.checkpoint.callback
import charrnn_fa.checkpoint.writer
import charrnn_fa.run.folder
import charrnn_fa.callback.schedule
import charrnn_fa.checkpoint.state
import kills
from machine import until
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.cli import main
from charrnn_fa.colab import ColabError, DriveCheckpoint
from charrnn_fa.errors import CharRNNError
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.evaluate import CharLoss
from charrnn_fa.run.files import RunError, RunWarning
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.run.model import load_run
from charrnn_fa.learner import char_learner
from charrnn_fa.loop import CharLearner
from charrnn_fa.optim import AdamW, Muon
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


class Shifting(Callback):
    "Its attributes change their kinds, are private or arguments, and are changed in place and between epochs"
    def __init__(self, n=0): self.best,self.parts,self._seen,self.n = '',[],[],n
    def before_epoch(self): self._seen.append(self.epoch)
    def before_step(self):
        if not self.best: self.best = 0.
        self.best,self.n = self.best + self.loss.item(),self.n+1
        self.parts = torch.full((3,), float(self.n)) if self.n > 2 else (np.float32(1), [None])
        self.back = np.arange(4)[::-1]
        g = self.best + sum(self._seen) + float(sum(self.parts)) if self.n > 2 else self.n
        for p in self.model.parameters(): p.grad.add_(1e-5*g)


class Mean(Metric):
    "Has state of its own, in the middle of an epoch too"
    def reset(self): self.total = getattr(self, 'total', 0.)/2
    def accumulate(self, learn): self.total += learn.loss.item()
    @property
    def value(self): return self.total


class Leaves(Callback):
    "Switches itself off"
    def before_step(self):
        for p in self.model.parameters(): p.grad.add_(1e-3)
        if self.train_iter == 9: self.run = False


class Freezes(Callback):
    "Stops training of one matrix and lets another begin; raises dropout; takes it out of a part for the rest of an epoch"
    def before_fit(self): self.model.decoder.weight.requires_grad_(False)
    def before_batch(self):
        if self.training and self.train_iter == 3:
            self.model.emb.weight.requires_grad_(False)
            self.model.decoder.weight.requires_grad_(True)
            self.model.drops[-1].p = 0.6
        if self.training and self.train_iter == 15: self.model.drops[0].eval()


class Skips(Callback):
    "Leaves out every fifth batch, whose loss is then that of the one before, and trains more slowly the higher it was"
    def before_batch(self):
        if not self.training: return
        if self.train_iter % 5 == 0: raise CancelBatchException
        self.opt.set_hyper('lr', 1e-2/(1+float(self.learn.loss.detach())))


class Rising:
    "A loss that counts how often it was called in training"
    n = 0
    def __call__(self, p, y):
        if torch.is_grad_enabled(): self.n += 1
        return cross_entropy(p.flatten(0, -2), y.flatten())*(1+.1*self.n)


# Learners that fastai made, whose data draws from generators of its own

X = torch.randn(56, 3, generator=torch.Generator().manual_seed(0))
ITEMS = list(zip(X, X.sum(1, keepdim=True) + 1))

def over(train):
    def _make(d):
        dls = DataLoaders(train(), TfmdDL(ITEMS[:9], bs=4, num_workers=0), path=d)
        return Learner(dls, nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1)), loss_func=MSELossFlat(), path=d)
    return _make

def gen(): return torch.Generator().manual_seed(3)


class Augmented(Dataset):
    "Adds noise from generators of NumPy and of Python"
    def __init__(self): self.numpy,self.python = np.random.RandomState(5),random.Random(5)
    def __len__(self): return len(ITEMS)
    def __getitem__(self, i): return ITEMS[i][0] + float(self.numpy.normal() + self.python.random()), ITEMS[i][1]


class OwnLoader(TfmdDL):
    "A loader of fastai's that draws its order itself, and counts"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gen,self.passes = gen(),0
    def get_idxs(self):
        self.passes += 1
        return torch.randperm(self.n, generator=self.gen).roll(self.passes).tolist()


class OwnSampler:
    "Another order in each pass"
    passes = 0
    def __len__(self): return len(ITEMS)
    def __iter__(self):
        self.passes += 1
        return iter([i*(2*self.passes + 1) % len(ITEMS) for i in range(len(ITEMS))])


def further(learn, cbs):
    learn.fit_one_cycle(1, 1e-2, cbs=cbs)
    learn.fit(2, 1e-3, cbs=cbs)
    learn.fit_one_cycle(1, 1e-2, cbs=cbs)

def one_cycle(n, lr=1e-2): return lambda learn, cbs: learn.fit_one_cycle(n, lr, cbs=cbs)
def fit(n, lr=1e-2): return lambda learn, cbs: learn.fit(n, lr, cbs=cbs)

CASES = dict(
    lstm=Case(learner=dict(dropout=0.2)),
    gru=Case(learner=dict(arch='gru', n_layers=3, dropout=0.2), fit=lambda learn, cbs: learn.fit_flat_cos(3, 1e-2, cbs=cbs)),
    bf16=Case(learner=dict(precision=BF16, opt_func=AdamW, emb_drop=0.1, n_layers=2), fit=fit(3)),
    steps=Case(learner=dict(dropout=0.2, reset_pct=0.2), fit=lambda learn, cbs: learn.fit_steps(45, cbs=cbs)),
    several=Case(cbs=lambda: [SaveModelCallback(), EarlyStoppingCallback(patience=2, min_delta=0.3), CSVLogger(), Noise(),
                              ReduceLROnPlateau(patience=1, min_delta=0.3), GradientAccumulation(12), GradientClip(0.5),
                              TerminateOnNaNCallback()], fit=fit(6), learner=dict(dropout=0.2)),
    counts=Case(cbs=lambda: [Shifting(), Leaves()], fit=fit(3), learner=dict(metrics=Mean())),
    look=Case(cbs=lambda: [Look()], learner=dict(dropout=0.2)),
    slices=Case(before=lambda learn: learn.freeze(), fit=one_cycle(3, slice(1e-3, 1e-2))),
    pretrained=Case(before=lambda learn: (learn.fit(1, 1e-2), learn.lr_find(num_it=6, show_plot=False)),
                    learner=dict(dropout=0.2)),
    freezes=Case(cbs=lambda: [Freezes()], learner=dict(dropout=0.3)),
    skips=Case(cbs=lambda: [Skips()], fit=fit(3), learner=dict(loss_func=Rising())),
    minutes=Case(before=lambda learn: setattr(charrnn_fa.callback.schedule, 'time', Clock()),
                 fit=lambda learn, cbs: learn.fit_steps(minutes=0.455/60, cbs=cbs)),
    best=Case(cbs=lambda: [SaveModelCallback(with_opt=True)], fit=one_cycle(3, 3e-1)),
    append=Case(cbs=lambda: [CSVLogger(append=True)]),
    between=Case(fit=lambda learn, cbs: between(learn, cbs), learner=dict(dropout=0.2)),
    tuned=Case(fit=lambda learn, cbs: learn.fine_tune(2, 1e-2, cbs=cbs)),
    further=Case(fit=further, learner=dict(dropout=0.2)),
    plain=Case(make=plain, fit=one_cycle(4), cbs=lambda: [SaveModelCallback(), CSVLogger()]),
    mixed=Case(make=plain, cbs=lambda: [MixUp()], fit=fit(3)),
    torch_loader=Case(make=over(lambda: DataLoader(ITEMS, batch_size=4, shuffle=True, generator=gen()))),
    augmented=Case(make=over(lambda: DataLoader(Augmented(), batch_size=4))),
    own_loader=Case(make=over(lambda: OwnLoader(ITEMS, bs=4))),
    own_sampler=Case(make=over(lambda: DataLoader(ITEMS, batch_size=4, sampler=OwnSampler()))),
)
WITHIN_EPOCHS = 'gru bf16 steps several counts look slices pretrained freezes skips'.split()


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

@pytest.mark.parametrize('name', WITHIN_EPOCHS)
def test_killed_twice_and_the_same(run, name):
    "In the middle of the second and of the third epoch"
    for o in DIE: run(name, o, rc=-9)
    run(name).same()
    assert run.resumes == ([20, 36] if name == 'skips' else [16, 28]) # `steps_done` counts what is left out


PLACES = { # where, and the step from which the next process resumes
    'before the run': (('before_fit', 1, 'die'), None), 'before the first save': (('before_batch', 4, 'die'), 0),
    'in a step': (('after_backward', 21, 'die'), 20), 'in validation': (('after_pred', 2, 'die', 900, True), 12),
    'next epoch': (('before_epoch', 2, 'die'), 12), 'last step': (('after_batch', 42, 'die', 2000), 40),
    'after_fit': (('after_fit', 1, 'die'), 40), 'finished': (('after_fit', 1, 'die', 2000), 42)}

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


def test_the_best_model_is_there_after_the_loss_of_a_machine(run, name='best'):
    run(name, ('before_batch', 33, 'die'), rc=-9)
    shutil.rmtree(run.d/'models')
    run(name, ('before_batch', 3, 'die'), rc=-9)
    shutil.rmtree(run.d/'models')
    run(name).same()
    shutil.rmtree(run.d/'models')
    run(name).same() # finished


def test_log_is_appended_to(run):
    run.d.mkdir()
    (run.d/'history.csv').write_text('old,0\n')
    run('append', ('before_batch', 9, 'die'), rc=-9)
    run('append', ('before_batch', 9, 'die'), rc=-9)
    run('append').same()
    lines = (run.d/'history.csv').read_text().splitlines()
    assert len(lines) == 5 and lines[0] == 'old,0' and lines[1].startswith('epoch,')


@pytest.mark.parametrize('n', [5, 20])
def test_minutes(run, n):
    "Killed while the steps are timed, and after"
    run('minutes', ('before_batch', n, 'die'), rc=-9)
    run('minutes').same()
    assert run.steps[0] == 45 and run.resumes == [n-n%4 - 4*(n%4 == 0)]


def test_further_fits_under_one_name(run, n=25):
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


@pytest.mark.parametrize('name', 'mixed torch_loader augmented own_loader own_sampler'.split())
def test_other_learners(run, name):
    "Killed in a later epoch, and called again when finished"
    run(name, ('before_epoch', 3, 'die'), rc=-9)
    for _ in range(2): assert run(name).same()
    assert run.resumes == [28]


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
    monkeypatch.setattr(charrnn_fa.checkpoint.callback, 'time', SimpleNamespace(perf_counter=lambda: learn.steps_done))
    class Note(Callback):
        order = 1001
        def after_batch(self):
            if self.training and self.checkpoint.saved == self.steps_done: saved.append(self.steps_done)
    learn.fit(5, 1e-2, cbs=[Checkpoint(tmp_path/'r', minutes=20/60, keep=9, quiet=True), Note()])
    assert saved == [20, 40, 60] and [m['step'] for m in RunFolder(tmp_path/'r').checkpoints()] == [70, 60, 40, 20]


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


def test_validation_beside_a_finished_run(short, tmp_path):
    class Afterwards(Callback):
        order = 900
        def before_fit(self): self.inside = vars(self).get('inside', False)
        def after_fit(self):
            if self.inside: return
            self.inside = True
            self.seen = [float(o) for o in self.learn.validate()]
            self.inside = False
    seen = []
    for _ in range(2):
        small(tmp_path, short, 5).fit(1, 1e-2, cbs=[cb := Afterwards(), Checkpoint(tmp_path/'r', quiet=True)])
        seen.append(cb.seen)
    assert seen[0] == seen[1]


def test_a_learner_without_a_recorder_comes_back(short, tmp_path):
    def fit(*cbs):
        learn = small(tmp_path, short, 5)
        learn.remove_cb(learn.recorder)
        learn.fit(2, 1e-2, cbs=[Checkpoint(tmp_path/'r', steps=4, quiet=True), *cbs])
    with pytest.raises(RuntimeError): fit(At('before_batch', 11, 'error'))
    fit()
    assert RunFolder(tmp_path/'r').finished and RunFolder(tmp_path/'r').resumes() == [8]


def test_no_epoch_is_no_step(tmp_path):
    learn = plain(tmp_path)
    learn.remove_cbs(learn.progress)
    learn.fit(0, 1e-2, cbs=Checkpoint(tmp_path/'r', quiet=True))
    assert RunFolder(tmp_path/'r').newest()['step'] == 0 and RunFolder(tmp_path/'r').finished


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


def test_a_log_that_kills_do_not_cut_short(run):
    "What each process said; the second kill comes after an epoch whose validation the third process repeats"
    for o in DIE: run('lstm', o, rc=-9)
    run('lstm').same()
    assert run.resumes == [16, 28]
    said = [o.split('  ', 1)[1] for o in (run.d/'run/log.txt').read_text().splitlines()]
    assert [o.split('   ')[0] for o in said if o.startswith('epoch ')] == ['epoch 1 of 3', 'epoch 2 of 3',
                                                                           'epoch 2 of 3', 'epoch 3 of 3']
    others = [o for o in said if not o.startswith(('epoch ', 'step '))]
    want = 'A new run', 'goes on after step 16', 'goes on after step 28', 'finished after 42 steps'
    assert all(w in o for w,o in zip(want, others, strict=True)), others


def test_a_log_that_cannot_be_written_stops_nothing(short, tmp_path, same):
    "A full disk, to begin with"
    alone = small(tmp_path, short, 5)
    alone.fit(2, 1e-2)
    first = small(tmp_path, short, 5)
    with pytest.raises(KeyboardInterrupt):
        first.fit(2, 1e-2, cbs=[Checkpoint(tmp_path/'r', steps=4, quiet=True), At('before_batch', 6, 'interrupt')])
    log = tmp_path/'r/log.txt'
    log.unlink()
    log.symlink_to('/dev/full')
    again = small(tmp_path, short, 5)
    again.fit(2, 1e-2, cbs=Checkpoint(tmp_path/'r', steps=4, quiet=True))
    assert same(alone, again) and RunFolder(tmp_path/'r').finished


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


class Other(CharLoss): pass

CHANGES = {
    'the text': dict(text='one byte'), 'the vocabulary': dict(text='a letter'), 'n_hid 16 -> 12': dict(n_hid=12),
    'arch lstm -> gru': dict(arch='gru'), 'bs 4 -> 5': dict(bs=5), 'n_epoch 2 -> 3': dict(n_epoch=3),
    r'lr \[0.01\S* 0.01\S* 0.01\] -> \[0.02': dict(lr=2e-2), 'the schedule of lr': dict(fit='fit_one_cycle'),
    r'wd .*0.5': dict(wd=0.5), 'dropout 0.2 -> 0.3': dict(dropout=0.3), 'clip': dict(clip=0.1), 'seed 5 -> 6': dict(seed=6),
    'opt muon -> adamw': dict(opt_func=AdamW), 'loss CharLoss -> Other': dict(loss_func=Other()),
    'muon_ratio': dict(opt_func=partial(Muon, muon_ratio=3.)),
    'GradientAccumulation.n_acc none -> 8': dict(cbs=[GradientAccumulation(8)])}

CANNOT = 'the vocabulary', 'n_hid 16 -> 12', 'arch lstm -> gru', 'opt muon -> adamw'

@pytest.mark.parametrize('what', CHANGES)
def test_changes_are_refused_by_name(begun, short, what, capsys):
    "Nothing is written; then they are allowed, unless weights or the optimiser's state have no place"
    kwargs = dict(CHANGES[what])
    if 'text' in kwargs:
        kwargs['text'] = {'one byte': short[:500] + ('e' if short[500] != 'e' else 'a') + short[501:],
                          'a letter': short + 'ß'*9}[kwargs['text']]
    before = {o.name: o.read_bytes() for o in begun.d.iterdir()}
    with pytest.raises(RunError, match=f'other settings.*{what}') as refused: begun(**kwargs)
    assert ('allow_changes=True' in str(refused.value)) == (what not in CANNOT)
    assert {o.name: o.read_bytes() for o in begun.d.iterdir()} == before and not charrnn_fa.run.folder.Lock.held
    if what in CANNOT:
        with pytest.raises(RunError, match=what): begun(**kwargs, ckpt=dict(allow_changes=True))
        return begun() # as it was begun
    learn = begun(**kwargs, ckpt=dict(allow_changes=True))
    assert re.search(f'goes on with these.*{what}', capsys.readouterr().out)
    if 'lr' in kwargs: assert learn.recorder.lrs[7] == 1e-2 and learn.recorder.lrs[8:] == [2e-2]*20
    if 'wd' in kwargs: assert {h['wd'] for h in learn.opt.hypers} == {0.5}


def test_fewer_epochs_than_have_begun(short, tmp_path, same):
    "Nothing is left to train: the end of the run is what was kept last, and no untrained Learner"
    fit = lambda n, *cbs, **kwargs: (learn := small(tmp_path, short, 5)).fit(
        n, 1e-2, cbs=[*cbs, Checkpoint(tmp_path/'r', steps=4, quiet=True, **kwargs)]) or learn
    with pytest.raises(RuntimeError): fit(3, At('before_batch', 20, 'error'))
    was = RunFolder(tmp_path/'r').newest()
    learn = fit(1, allow_changes=True)
    end = RunFolder(tmp_path/'r').newest()
    assert end['finished'] and end['step'] == was['step'] == learn.steps_done == 16
    assert same(learn, load_run(tmp_path/'r')) and len(learn.recorder.losses) == 16


def test_the_same_seed_may_be_given_again(begun): assert begun(seed=5).seed == begun(seed=None).seed == 5


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


@pytest.mark.parametrize('name,at,step', [
    ('lstm', ('before_batch', 19, 'int'), 19), ('lstm', ('before_batch', 19, 'int2'), 16),
    ('lstm', ('after_pred', 1, 'int', 0, True), 14), ('lstm', ('after_epoch', 1, 'int'), 15), ('lstm', ('after_fit', 1, 'int'), 42),
    ('plain', ('before_batch', 33, 'int'), 28)])
def test_ctrl_c(run, name, at, step):
    "Saved, raised, usable, and the same call goes on; a second one stops at once"
    run(name, at, f=interrupted, step=step, ckpt=dict(steps=16))
    assert 'interrupted' in run.text
    run.same()


@pytest.mark.parametrize('at,step', [(('before_batch', 19, 'term'), 19), (('after_pred', 1, 'term', 0, True), 14)])
def test_sigterm(run, at, step):
    "Saved, then the process ends as it would have"
    run('lstm', at, rc=-signal.SIGTERM, ckpt=dict(steps=1000))
    assert newest_step(run.d/'run') == step
    run('lstm', ckpt=dict(steps=1000)).same()


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

@pytest.mark.parametrize('action,order', [('error', 900), *(pytest.param(*o, marks=pytest.mark.hunt) for o in (
    ('interrupt', 900), ('error', 2000), ('interrupt', 2000)))])
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
    with pytest.raises(CharRNNError, match='cannot be (made|reached|asked for)|null'):
        small(tmp_path, short, 5).fit(1, cbs=Checkpoint(tmp_path/where, quiet=True))


def test_names_that_are_none():
    with pytest.raises(ColabError, match='None cannot be the name'): DriveCheckpoint(None)


def test_no_room_for_copies_on_this_machine(short, tmp_path, monkeypatch):
    (tmp_path/'file').touch()
    monkeypatch.setenv('CHARRNN_HOME', str(tmp_path/'file/home'))
    with pytest.raises(RunError, match='let CHARRNN_HOME name one'):
        small(tmp_path, short, 5).fit(1, cbs=Checkpoint('memory://no-room/r', quiet=True))


def test_the_class_instead_of_a_callback(short, tmp_path):
    with pytest.raises(CharRNNError, match='where'): small(tmp_path, short, 5).fit(1, cbs=Checkpoint)


def test_a_checkpoint_that_cannot_be_taken_does_not_stop_training(short, tmp_path, monkeypatch):
    learn,real,n = small(tmp_path, short, 5),charrnn_fa.checkpoint.callback.capture,[]
    def capture(*args):
        n.append(0)
        if len(n) in (2, 3, 4): raise ValueError('nothing doing')
        return real(*args)
    monkeypatch.setattr(charrnn_fa.checkpoint.callback, 'capture', capture)
    with pytest.warns(RunWarning, match='nothing doing.*training goes on') as w:
        learn.fit(2, 1e-2, cbs=Checkpoint(tmp_path/'r', steps=10, quiet=True))
    assert (len(learn.recorder.losses) == 28 and RunFolder(tmp_path/'r').finished
            and sum(issubclass(o.category, RunWarning) for o in w) == 1)


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


# The command

TINY = '--n-hid 16 --emb-sz 8 --head-sz 8 --bs 4 --seq-len 16 --precision fp32'.split()

def charrnn(*args): sys.exit(main(list(map(str, args))))


def test_the_command(clean, tmp_path):
    "A real process for SIGKILL, forks for the others"
    def args(d):
        return 'train', 'count', '--run', tmp_path/d, '--steps', 300, '--save-steps', 10, '--seed', 3, '--quiet', *TINY
    def fork(*args): return clean.start(tmp_path/'log', charrnn, *args)
    p = subprocess.Popen([sys.executable, '-m', 'charrnn_fa', *map(str, args('r'))], stdout=subprocess.DEVNULL,
                         stderr=open(tmp_path/'log', 'w'))
    for sig,status in (signal.SIGKILL, -9), (signal.SIGINT, 130):
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
    assert infos[0]['weights_sha256'] == infos[1]['weights_sha256'] and infos[0]['step'] == infos[1]['step'] == 300
    assert len(infos[0]['resumes']) == 2 and infos[0]['resumes'] == sorted(infos[0]['resumes']) and infos[1]['resumes'] == []
    assert (clean.run(tmp_path/'log', charrnn, *args('r')) == 0
            and 'is finished after 300 steps' in (tmp_path/'log').read_text())


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
    n,_,_,further,runs,lost,differ = killed('forks', *'--forks 10 --cases 2 --saves'.split())
    assert n >= 10 and runs and further and lost == differ == 0


@pytest.mark.hunt
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
