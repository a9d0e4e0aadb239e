"What callbacks count, change and set on the model comes back after a kill, to the bit; what cannot is named when it appears"
import json
import os
import signal
from copy import deepcopy

import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

import kills
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.checkpoint.capture import capture, newly_lost
from charrnn_fa.checkpoint.restore import State
from charrnn_fa.checkpoint.serialize import Keeper
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.learner import char_learner
from kills import CKPT, Case, differences


# Callbacks that train by what they have counted

class Steers(Callback):
    "Adds a number to all gradients"
    def add(self, x):
        for p in self.model.parameters():
            if p.grad is not None: p.grad.add_(1e-3*x)


class Private(Steers):
    def __init__(self): self._n,self.__m = 0,0
    def before_step(self): self._n,self.__m = self._n+1,self.__m+2; self.add(self._n + self.__m)


class Argument(Steers):
    def __init__(self, n=0, by=()): self.n,self._by = n,list(by)
    def before_step(self): self.n += 1; self._by.append(self.n); self.add(self.n + len(self._by))


class OfClass(Steers):
    seen,total,still = [],0,3
    def before_step(self):
        self.seen.append(self.train_iter)
        OfClass.total += 1
        self.add(len(self.seen) + OfClass.total)


class Base(Steers):
    rows = {}

class Inherited(Base):
    def before_step(self): self.rows[self.train_iter % 3] = len(self.rows) + self.rows.get(self.train_iter % 3, 0); self.add(sum(self.rows.values()))


class Freezes(Callback):
    "Stops training of one matrix and lets another begin"
    def before_fit(self): self.model.decoder.weight.requires_grad_(False)
    def before_batch(self):
        if self.training and self.train_iter == 3: self.model.emb.weight.requires_grad_(False); self.model.decoder.weight.requires_grad_(True)


class Thaws(Callback):
    "Lets all groups train from the fourth step on"
    def before_batch(self):
        if self.training and self.train_iter == 3: self.learn.unfreeze()


class Anneals(Callback):
    def before_batch(self):
        if self.training and self.train_iter == 3:
            for m in self.model.modules():
                if isinstance(m, nn.Dropout): m.p = 0.6


class Modes(Callback):
    "Takes dropout out of a part of the model for the rest of an epoch"
    def before_batch(self):
        if self.training and self.train_iter == 15: self.model.drops[0].eval()


CASES = dict(
    private=Case(cbs=lambda: [Private()]),
    argument=Case(cbs=lambda: [Argument(), Argument(3)]),
    of_class=Case(cbs=lambda: [OfClass(), Inherited()]),
    freezes=Case(cbs=lambda: [Freezes()]),
    thaws=Case(before=lambda learn: learn.freeze(), cbs=lambda: [Thaws()], fit=lambda learn, cbs: learn.fit(3, 1e-2, cbs=cbs)),
    anneals=Case(cbs=lambda: [Anneals()], learner=dict(dropout=0.1)),
    modes=Case(cbs=lambda: [Modes()], learner=dict(dropout=0.3)),
)


def dies(n):
    "A callback without state that kills its process before the `n`-th training step that it does"
    left = iter(range(n))
    def before_batch(learn):
        if learn.training and next(left, None) is None:
            learn.checkpoint.saver.writer.wait(60)
            os.kill(os.getpid(), signal.SIGKILL)
    class Dies(Callback):
        order = 900
        def before_batch(self): before_batch(self.learn)
    return Dies()


def go(name, d, n=None, ckpt=CKPT): kills.train(CASES[name], d, ckpt, [dies(n)] if n is not None else [])


@pytest.fixture(scope='module')
def clean():
    c = kills.Clean()
    yield c
    c.close()


@pytest.mark.parametrize('name', CASES)
def test_state_of_callbacks_comes_back(clean, tmp_path, name):
    "Killed twice, in the second and the third epoch"
    def run(d, *args, rc=0, **kwargs): assert clean.start(tmp_path/'log', go, name, tmp_path/d, *args, **kwargs).wait(300) == rc, (tmp_path/'log').read_text()
    run('alone', ckpt=None)
    for n in 18, 14: run('r', n, rc=-9)
    run('r')
    assert differences(tmp_path/'alone', tmp_path/'r') == [] and RunFolder(tmp_path/'r/run').resumes() == [16, 28]


# In one process

def small(d, text='the rain in Spain stays mainly in the plain; '*20, **kwargs):
    dls = CharDataLoaders.from_text(text, bs=4, seq_len=16, seed=5, path=d, device='cpu')
    learn = char_learner(dls, **{**dict(n_hid=8, emb_sz=8, head_sz=0, precision='fp32', dropout=0.1), **kwargs})
    learn.logger = lambda log: None
    return learn.remove_cbs(learn.progress)


class Stop(Callback):
    order = 900
    def before_batch(self):
        if self.training and self.train_iter == 9: raise RuntimeError('stopped')


class Patient(Callback):
    def __init__(self, patience=3, n=0): self.patience,self._patience,self.n = patience,patience,n
    def before_batch(self): self.n += 1


def fit(d, *cbs, **kwargs):
    learn = small(d)
    learn.fit(2, 1e-2, cbs=[*cbs, Checkpoint(d/'r', steps=4, quiet=True, **kwargs)])
    return learn


def test_an_edited_argument_holds(tmp_path, settled):
    "A count that is an argument comes back beside it"
    with pytest.raises(RuntimeError): fit(tmp_path, Patient(3), Stop())
    class Look(Callback):
        order = 2000
        def before_batch(self):
            if not hasattr(self, 'saw'): self.saw = self.patient.patience,self.patient._patience,self.patient.n
    fit(tmp_path, cb := Patient(5), look := Look(), allow_changes=True)
    assert look.saw == (5, 5, 8 + 1) and cb.n > 9


class Watches(Callback):
    "Notes after each step what a checkpoint taken now would lack"
    order = 1500
    def before_fit(self): self.keeper,self.told = Keeper(),[]
    def after_batch(self):
        if self.training:
            capture(self.learn, (0, 0), self.keeper, Watches)
            self.told.append(newly_lost(self.keeper))


def test_what_cannot_be_kept_is_named_when_it_appears(tmp_path):
    "A model that a callback finds, a function that became a number, a path, a memory that is no tensor; each once"
    class Finds(Callback):
        def __init__(self, path='x'): self.path,self.best,self.f = path,None,print
        def before_batch(self):
            if self.train_iter == 2: self.best = deepcopy(self.model)
            if self.train_iter == 4: self.f,self.path = 7,'y'
            if self.train_iter == 6: self.model.drops[0].memory = {1}; self.model.drops[0].inplace = False
    class Own(nn.Dropout): pass
    learn = small(tmp_path)
    learn.model.drops[0] = Own(0.1)
    learn.fit(1, 1e-2, cbs=[Finds(), w := Watches()])
    told = {i:o for i,o in enumerate(w.told) if o}
    assert told == {0: ['Finds.f'], 2: ['Finds.best'], 4: ['Finds.path'], 6: ['model.drops.0.memory']}


class Victim(Callback):
    rows = []
    def __init__(self, path='log.txt', n=0): self.path,self.n,self.f,self._hidden = path,n,print,None
    def method(self): pass


@pytest.mark.parametrize('attrs', [{'path': '/etc/x'}, {'f': 1}, {'method': 1}, {'before_batch': 1}, {'learn': 1}, {'Victim.method': 1}, {'Victim.__init__': 1}, {'Callback.order': 1}, {'Learner.fit': 1},
                                   {'Victim.new': 1}, {'__dict__': 1}, {'Victim.order': 1}, {'GetAttr._default': 'x'}, {'object.x': 1}, {'Victim.rows': 'a text'}])
def test_no_file_replaces_more_than_state(tmp_path, attrs):
    "Of a callback: no function, no path, nothing of fastai's classes"
    learn = small(tmp_path)
    learn.fit(1, 1e-2, cbs=[v := Victim(), Stop2()])
    tensors,meta = learn.taken
    meta = json.loads(json.dumps(meta))
    meta['cbs']['Victim#0'] = {'dict': [o for kv in attrs.items() for o in kv]}
    learn.add_cb(v)
    classes = [c for c in type(v).__mro__] + [type(learn)]
    before = [{**vars(o)} for o in (v, *classes)]
    State(learn, tensors, meta, 'x').restore()
    if 'Victim.rows' in attrs: assert Victim.rows == []
    for o,b in zip((v, *classes), before): assert vars(o).keys() == b.keys() and all(vars(o)[k] is b[k] for k in b)


class Stop2(Callback):
    order = 2000
    def after_fit(self): self.learn.taken = capture(self.learn, (1, 0), Keeper(), Stop2)


@pytest.mark.parametrize('module,attrs', [('model.rnns.0.rnn', dict(num_layers=10**9)), ('model.rnns.0.rnn', dict(hidden_size=7)), ('model.rnns.0.rnn', dict(mode='GRU')), ('model', dict(n_hid=1)), ('model', dict(forward=1)),
                                          ('model', dict(emb=1)), ('model.emb', dict(weight=1)), ('model.drops.0', dict(_parameters=1)), ('model.drops.0', dict(training=False)), ('model.drops.0', dict(new=0.5)), ('model.no', dict(p=0.5))])
def test_no_file_replaces_more_than_settings_of_modules(tmp_path, module, attrs):
    learn = small(tmp_path)
    learn.fit(1, 1e-2, cbs=Stop2())
    tensors,meta = learn.taken
    meta = json.loads(json.dumps(meta))
    d = {module: attrs}
    as_dict = lambda d: {'dict': [as_dict(o) if isinstance(o, dict) else o for kv in d.items() for o in kv]}
    meta['model']['dict'] += ['attrs', as_dict(d)]
    before = [{**vars(o)} for o in learn.model.modules()]
    State(learn, tensors, meta, 'x').restore()
    for o,b in zip(learn.model.modules(), before): assert vars(o).keys() == b.keys() and all(vars(o)[k] is b[k] for k in b)
    meta['model']['dict'][-1] = as_dict({'model.drops.0': dict(p=0.75)})
    State(learn, tensors, meta, 'x').restore()
    assert learn.model.drops[0].p == 0.75
