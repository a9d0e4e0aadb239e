"What callbacks count, change and set on the model comes back after a kill, to the bit; what cannot is named when it appears"
import json
import os
import signal
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from fastai.basics import SGD, AvgMetric, DataLoader, DataLoaders, Learner, noop
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.all import ActivationStats, CSVLogger, SaveModelCallback
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

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
    def before_step(self):
        self.rows[self.train_iter % 3] = len(self.rows) + self.rows.get(self.train_iter % 3, 0)
        self.add(sum(self.rows.values()))


class Freezes(Callback):
    "Stops training of one matrix and lets another begin"
    def before_fit(self): self.model.decoder.weight.requires_grad_(False)
    def before_batch(self):
        if self.training and self.train_iter == 3:
            self.model.emb.weight.requires_grad_(False)
            self.model.decoder.weight.requires_grad_(True)


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


class Careful(Callback):
    "Trains more slowly the higher the last loss was"
    def before_batch(self):
        if self.training: self.opt.set_hyper('lr', 1e-2/(1+float(self.learn.loss)))


class Skips(Callback):
    "Leaves out every fifth batch, whose loss is then that of the one before"
    def before_batch(self):
        if self.training and self.train_iter % 5 == 0: raise CancelBatchException


class Rising:
    "A loss that counts how often it was asked in training"
    n = 0
    def __call__(self, p, y):
        if torch.is_grad_enabled(): self.n += 1
        return F.cross_entropy(p.flatten(0, -2), y.flatten())*(1+.1*self.n)


class RisingModule(nn.Module):
    "The same in a buffer"
    def __init__(self):
        super().__init__()
        self.register_buffer('n', torch.zeros(()))
    def forward(self, p, y):
        if torch.is_grad_enabled(): self.n += 1
        return F.cross_entropy(p.flatten(0, -2), y.flatten())*(1+.1*self.n)


CASES = dict(
    loss_module=Case(learner=dict(loss_func=RisingModule())),
    loss=Case(learner=dict(loss_func=Rising())),
    private=Case(cbs=lambda: [Private()]),
    argument=Case(cbs=lambda: [Argument(), Argument(3)]),
    of_class=Case(cbs=lambda: [OfClass(), Inherited()]),
    freezes=Case(cbs=lambda: [Freezes()]),
    thaws=Case(before=lambda learn: learn.freeze(), cbs=lambda: [Thaws()],
               fit=lambda learn, cbs: learn.fit(3, 1e-2, cbs=cbs)),
    careful=Case(cbs=lambda: [Careful()], fit=lambda learn, cbs: learn.fit(3, 1e-2, cbs=cbs)),
    skips=Case(cbs=lambda: [Skips()]),
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


@pytest.mark.parametrize('name', CASES)
def test_state_of_callbacks_comes_back(clean, tmp_path, name):
    "Killed twice, in the second and the third epoch"
    def run(d, *args, rc=0, **kwargs):
        assert clean.start(tmp_path/'log', go, name, tmp_path/d, *args, **kwargs).wait(300) == rc, (tmp_path/'log').read_text()
    run('alone', ckpt=None)
    for n in 18, 14: run('r', n, rc=-9)
    run('r')
    assert differences(tmp_path/'alone', tmp_path/'r') == []
    # which counts what it leaves out
    assert RunFolder(tmp_path/'r/run').resumes() == ([20, 36] if name == 'skips' else [16, 28])


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
    assert look.saw == (5, 5, 9 + 1) and cb.n > 10


@pytest.mark.parametrize('order,attrs,event,said',
                         [(2000, dict(n=0), 'after_batch', True), (900, dict(n=0), 'after_batch', False),
                          (2000, {}, 'after_batch', False), (2000, dict(n=0), 'before_fit', False)])
def test_a_callback_that_comes_after_the_checkpoint_is_named(tmp_path, order, attrs, event, said, capsys):
    class Counts(Callback):
        def __init__(self):
            vars(self).update(attrs)
            self.order = order
    setattr(Counts, event, lambda self: None)
    small(tmp_path).fit(1, cbs=[Counts(), Checkpoint(tmp_path/'r')])
    sentence = ('What Counts does at the end of a batch comes after the checkpoint of that batch, and is missing in it; '
                'give it an order below 1000.')
    assert (sentence in capsys.readouterr().out) == said


class Watches(Callback):
    "Notes after each step what a checkpoint taken now would lack"
    order,is_checkpoint = 1500,True
    def before_fit(self): self.keeper,self.told = Keeper(),[]
    def after_batch(self):
        if self.training:
            capture(self.learn, (0, 0), self.keeper)
            self.told.append(newly_lost(self.keeper))


def test_an_exchanged_loss_and_a_metric_with_a_generator_are_named(tmp_path, capsys):
    class Exchanges(Callback):
        def before_batch(self):
            if self.training and self.train_iter == 3: self.learn.loss_func = RisingModule()
    class Draws(AvgMetric):
        def __init__(self): super().__init__(lambda p,y: torch.zeros(()), ); self.gen = torch.Generator()
    learn = small(tmp_path, metrics=Draws())
    learn.fit(1, cbs=[Exchanges(), Checkpoint(tmp_path/'r', steps=4)])
    said = [o for o in capsys.readouterr().out.splitlines() if 'Not kept' in o]
    assert len(said) == 2 and 'Draws.gen' in said[0] and 'learn.loss_func' in said[1], said


def test_what_a_callback_sets_on_a_learner_is_named(tmp_path, capsys):
    class Sets(Callback):
        def before_fit(self): self.learn.tag = 'as ever'
        def after_batch(self):
            if self.training and self.train_iter == 3: self.learn.n_seen,self.learn.reset_pct = 1,.5
        def after_epoch(self): self.dls.train.seq_len = 8
    small(tmp_path).fit(2, cbs=[Sets(), CSVLogger(tmp_path/'log.csv'), SaveModelCallback(),
                                Checkpoint(tmp_path/'r', steps=4)])
    said = [o for o in capsys.readouterr().out.splitlines() if 'Not kept' in o]
    assert [o.rpartition(': ')[2] for o in said] == ['learn.reset_pct, learn.n_seen.', 'dls[0].seq_len.']


@pytest.mark.parametrize('exchange,what', [
    (lambda learn: vars(learn).update(opt=learn.opt_func(learn.splitter(learn.model), lr=1e-2)), ''),
    (lambda learn: vars(learn).update(opt=SGD(learn.splitter(learn.model), lr=1e-2)), 'optimiser'),
    (lambda learn: weight_norm(learn.model.decoder), 'parameters')])
def test_a_state_that_could_not_be_put_back_is_not_kept(tmp_path, exchange, what):
    "The last checkpoint before an exchange stays, and the run goes on from there"
    class Exchanges(Callback):
        def before_batch(self):
            if self.training and self.train_iter == 6: exchange(self.learn)
    context = pytest.warns(UserWarning, match=f'the fit began with another .*{what}') if what else nullcontext()
    with context, pytest.raises(RuntimeError, match='stopped'): fit(tmp_path, Exchanges(), Stop())
    learn = fit(tmp_path)
    assert RunFolder(tmp_path/'r').resumes() == [4 if what else 9] and learn.train_iter > 9


def stopped_at(d, make, epoch=2):
    "A callback as it is at the end of three epochs: in one go, and stopped before `epoch`"
    class Dies(Callback):
        order = 3000
        def before_epoch(self):
            if self.epoch == epoch: raise RuntimeError('stopped')
    def go(*cbs):
        learn,cb = small(d),make()
        learn.fit(3, 1e-2, cbs=[cb, *cbs])
        return cb
    whole = go()
    with pytest.raises(RuntimeError): go(Checkpoint(d/'r', minutes=0, quiet=True), Dies())
    return whole,go(Checkpoint(d/'r', minutes=0, quiet=True))


def test_what_a_later_callback_resets_before_the_fit_comes_back(tmp_path):
    class Resets(Callback):
        order = 2000
        def before_fit(self): self.n = 0
        def before_batch(self): self.n += 1
    whole,again = stopped_at(tmp_path, Resets)
    assert whole.n == again.n > 0


@pytest.mark.parametrize('resets', ['before_fit', 'before_epoch', 'before_train'])
@pytest.mark.parametrize('stop', [3, 12, 25])
def test_what_a_later_callback_counts_goes_on_within_an_epoch(tmp_path, resets, stop):
    "It begins anew now and then, and is counted on; nothing comes back a second time, an epoch later"
    class Later(Callback):
        order = 2000
        def before_fit(self): self.counts,self.n = [],0
        def before_batch(self): self.n += 1
        def after_epoch(self): self.counts.append(self.n)
    if resets != 'before_fit': setattr(Later, resets, lambda self: setattr(self, 'n', 0))
    class Dies(Callback):
        order = 3000
        def before_batch(self):
            if self.train_iter == stop: raise KeyboardInterrupt
    def go(*cbs):
        dls = CharDataLoaders.from_text('abcdefghij '*60, bs=4, seq_len=16, seed=1)
        learn,later = char_learner(dls, n_hid=8, emb_sz=4, head_sz=0, precision='fp32'),Later()
        learn.logger = noop
        learn.remove_cbs(learn.progress)
        learn.fit(4, 1e-2, cbs=[later, *cbs])
        return later
    whole = go()
    assert len({*whole.counts}) == (4 if resets == 'before_fit' else 1)
    with pytest.raises(KeyboardInterrupt): go(Checkpoint(tmp_path/'r', steps=1, quiet=True), Dies())
    again = go(Checkpoint(tmp_path/'r', steps=1, quiet=True))
    assert (again.counts, again.n) == (whole.counts, whole.n)


def test_a_state_that_is_added_to_a_list_is_added_once(tmp_path):
    class Adds(Callback):
        def __init__(self): self.ns = []
        def after_epoch(self): self.ns.append(self.epoch)
        def state_dict(self): return dict(ns=list(self.ns))
        def load_state_dict(self, d): self.ns.extend(d['ns'])
    whole,again = stopped_at(tmp_path, Adds)
    assert whole.ns == again.ns == [0, 1, 2]


def test_a_generator_of_a_part_of_a_data_set_goes_on(tmp_path):
    class Noisy(torch.utils.data.Dataset):
        gen = None
        def __init__(self): self.gen = torch.Generator().manual_seed(3)
        def __len__(self): return 40
        def __getitem__(self, i): return torch.rand(3, generator=self.gen),torch.zeros(1)
    def fit(*cbs, n=None):
        ds = torch.utils.data.Subset(Noisy(), range(32))
        torch.manual_seed(0)
        learn = Learner(DataLoaders(*[DataLoader(ds, bs=4, num_workers=0)]*2, device='cpu'), nn.Linear(3, 1),
                        loss_func=F.mse_loss)
        learn.logger = lambda log: None
        with learn.no_bar(): learn.fit(3, cbs=[*cbs, *([] if n is None else [Dies(n)])])
        return learn
    class Dies(Callback):
        order = 2000
        def __init__(self, n): self.n = n
        def before_epoch(self):
            if self.epoch == self.n: raise RuntimeError('stopped')
    whole = fit()
    with pytest.raises(RuntimeError): fit(Checkpoint(tmp_path/'r', minutes=0, quiet=True), n=2)
    again = fit(Checkpoint(tmp_path/'r', minutes=0, quiet=True))
    assert all(torch.equal(a, b) for a,b in zip(whole.model.parameters(), again.model.parameters()))


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


@pytest.mark.parametrize('attrs', [{'path': '/etc/x'}, {'f': 1}, {'method': 1}, {'before_batch': 1},
                                   {'learn': 1}, {'Victim.method': 1}, {'Victim.__init__': 1}, {'Callback.order': 1},
                                   {'Learner.fit': 1}, {'Victim.new': 1}, {'__dict__': 1}, {'Victim.order': 1},
                                   {'GetAttr._default': 'x'}, {'object.x': 1}, {'Victim.rows': 'a text'}])
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
    order,is_checkpoint = 2000,True
    def after_fit(self): self.learn.taken = capture(self.learn, (1, 0), Keeper())


@pytest.mark.parametrize('module,attrs',
                         [('model.rnns.0.rnn', dict(num_layers=10**9)), ('model.rnns.0.rnn', dict(hidden_size=7)),
                          ('model.rnns.0.rnn', dict(mode='GRU')), ('model', dict(n_hid=1)), ('model', dict(forward=1)),
                          ('model', dict(emb=1)), ('model.emb', dict(weight=1)),
                          ('model.drops.0', dict(_parameters=1)), ('model.drops.0', dict(training=False)),
                          ('model.drops.0', dict(new=0.5)), ('model.no', dict(p=0.5))])
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
    for o,b in zip(learn.model.modules(), before):
        assert vars(o).keys() == b.keys() and all(vars(o)[k] is b[k] for k in b)
    meta['model']['dict'][-1] = as_dict({'model.drops.0': dict(p=0.75)})
    State(learn, tensors, meta, 'x').restore()
    assert learn.model.drops[0].p == 0.75


# Files

def without_time(text): return [l.rpartition(',')[0] for l in text.splitlines()]


@pytest.fixture
def alone(tmp_path):
    "The log of a run that nobody touched"
    (d := tmp_path/'alone').mkdir()
    fit(d, CSVLogger())
    return without_time((d/'history.csv').read_text())


@pytest.mark.parametrize('change', [lambda f, text: f.write_text(text + 'epoch,train_loss\n0,1.5\n'),
                                    lambda f, text: f.write_text('somebody,else\n'),
                                    lambda f, text: f.write_text(text + '1,9.9,9.9,9.9,9.9,9.9,00:00\n')],
                         ids=['appended', 'replaced', 'like ours'])
@pytest.mark.parametrize('append', [False, True])
def test_lines_of_others_stay(tmp_path, alone, change, append, capsys, settled):
    "A run that goes on leaves them alone, says so once, and has its own log in its folder"
    with pytest.raises(RuntimeError): fit(tmp_path, CSVLogger(append=append), Stop())
    log = tmp_path/'history.csv'
    change(log, log.read_text())
    before = log.read_bytes()
    small(tmp_path).fit(2, 1e-2, cbs=[CSVLogger(append=append), Checkpoint(tmp_path/'r', steps=4)])
    assert log.read_bytes() == before and capsys.readouterr().out.count('is left alone') == 1
    assert without_time((tmp_path/'r/log-0.csv').read_text()) == alone


def test_the_log_of_one_run_has_its_usual_name(tmp_path, alone, capsys, settled):
    "Lines that come after the checkpoint are written again, and a file that is lost is there again"
    class Late(Stop):
        def before_epoch(self):
            if self.epoch == 1: raise RuntimeError('stopped')
        def before_batch(self): pass
    with pytest.raises(RuntimeError): fit(tmp_path, CSVLogger(), Late())
    log = tmp_path/'history.csv'
    assert len(log.read_text().splitlines()) == 2
    small(tmp_path).fit(2, 1e-2, cbs=[CSVLogger(), Checkpoint(tmp_path/'r', steps=4)])
    assert without_time(log.read_text()) == alone and 'left alone' not in capsys.readouterr().out
    log.unlink()
    fit(tmp_path, CSVLogger())
    assert without_time(log.read_text()) == alone


def test_another_run_does_not_empty_a_log(tmp_path, alone):
    fit(tmp_path, CSVLogger())
    before = (tmp_path/'history.csv').read_bytes()
    small(tmp_path).fit(1, 1e-2, cbs=[CSVLogger(), Checkpoint(tmp_path/'other', quiet=True)])
    fit(tmp_path, CSVLogger())
    assert (tmp_path/'history.csv').read_bytes() == before and len((tmp_path/'other/log-0.csv').read_text().splitlines()) == 2


def best(): return SaveModelCallback(monitor='train_loss')


@pytest.mark.parametrize('checkpoint', [True, False])
def test_models_of_other_runs_stay(tmp_path, checkpoint, same, capsys):
    "The cell of a finished run loads its best model and overwrites nobody's"
    d,model = tmp_path,tmp_path/'models/model.pth'
    a = fit(d, best())
    of_a = model.read_bytes()
    cbs = [Checkpoint(d/'other', quiet=True)] if checkpoint else []
    b = small(d, n_hid=12)
    b.fit(1, 1e-2, cbs=[best(), *cbs])
    assert (model.read_bytes() == of_a) == checkpoint
    if checkpoint: assert (d/'other/model.pth').exists()
    there = model.read_bytes()
    again = small(d)
    again.fit(2, 1e-2, cbs=[cb := best(), Checkpoint(d/'r', steps=4)])
    assert model.read_bytes() == there and same(a, again) and cb.fname == 'model'
    assert capsys.readouterr().out.count('is left alone') == (not checkpoint)
    assert (d/'r/model.pth').exists() == (not checkpoint)


def test_models_of_every_epoch(tmp_path):
    (tmp_path/'models').mkdir()
    (tmp_path/'models/model_1.pth').write_text('of somebody')
    fit(tmp_path, SaveModelCallback(every_epoch=True))
    assert ((tmp_path/'models/model_1.pth').read_text() == 'of somebody'
            and sorted(o.name for o in (tmp_path/'r').glob('*.pth')) == ['model_0.pth', 'model_1.pth'])


def test_files_of_a_run_are_no_links(tmp_path, settled):
    "What a foreign folder has in their place is replaced, and what it points to stays"
    with pytest.raises(RuntimeError): fit(tmp_path, CSVLogger(), best(), Stop())
    for o in 'log-0.csv', 'models.txt':
        (victim := tmp_path/f'victim {o}').write_text('mine')
        (tmp_path/'r'/o).unlink()
        (tmp_path/'r'/o).symlink_to(victim)
    fit(tmp_path, CSVLogger(), best())
    assert all((tmp_path/f'victim {o}').read_text() == 'mine'
               and not (tmp_path/'r'/o).is_symlink() for o in ('log-0.csv', 'models.txt'))


def test_what_is_not_kept_is_said_when_it_appears(tmp_path, capsys, settled):
    "In the middle of a fit, once"
    class Finds(Callback):
        def __init__(self): self.best = None
        def before_batch(self):
            if self.training and self.train_iter == 5: self.best = self.model
    small(tmp_path).fit(2, 1e-2, cbs=[Finds(), Checkpoint(tmp_path/'r', steps=4)])
    said = [l for l in capsys.readouterr().out.splitlines() if 'Not kept' in l]
    assert len(said) == 1 and said[0].endswith('Not kept, and as new after a kill: Finds.best.')


def test_a_generator_that_a_callback_was_given_is_named(tmp_path, capsys, settled):
    "It moves on without a change that a digest would see"
    class Draws(Callback):
        def __init__(self, gen): self.gen = gen
        def before_batch(self): torch.rand(1, generator=self.gen)
    small(tmp_path).fit(1, 1e-2, cbs=[Draws(torch.Generator()), Checkpoint(tmp_path/'r', steps=4)])
    said = [l for l in capsys.readouterr().out.splitlines() if 'Not kept' in l]
    assert len(said) == 1 and said[0].endswith('Not kept, and as new after a kill: Draws.gen.')


def test_a_state_dict_that_nobody_takes_is_no_state(tmp_path):
    "The attributes are kept instead, and a sound checkpoint is not called damaged"
    class Gives(Callback):
        def __init__(self): self.n = 0
        def before_batch(self): self.n += self.training
        def state_dict(self): return dict(n=self.n)
    class Ends(Callback):
        order = 900
        def before_batch(self):
            if self.training and self.train_iter == 9: raise OSError('the end')
    with pytest.raises(OSError):
        small(tmp_path).fit(2, 1e-2, cbs=[Gives(), Ends(), Checkpoint(tmp_path/'r', steps=4, quiet=True)])
    learn = small(tmp_path)
    learn.fit(2, 1e-2, cbs=[gives := Gives(), Checkpoint(tmp_path/'r', steps=4, quiet=True)])
    assert gives.n == 2*len(learn.dls.train)


def test_hooks_that_a_callback_adds_are_named(tmp_path, capsys):
    "Those that are there when training begins come back by the same code; `ActivationStats` takes its own away at the end"
    class Halves(Callback):
        def before_fit(self): self.add(self.model.emb)
        def after_batch(self):
            if self.training and self.train_iter == 3: self.add(self.model.decoder)
        def add(self, m): m.register_forward_hook(lambda m, x, y: y/2)
    small(tmp_path).fit(1, 1e-2, cbs=[Halves(), ActivationStats(), Checkpoint(tmp_path/'r', steps=4)])
    said = [l for l in capsys.readouterr().out.splitlines() if 'Not kept' in l]
    assert len(said) == 1 and said[0].endswith('after a kill: model.decoder._forward_hooks[1].'), said


def test_that_an_end_is_not_stored_is_told_after_other_trouble(tmp_path):
    "Though the trouble is the same"
    class Exchanges(Callback):
        def before_batch(self):
            if self.training and self.train_iter == 6: self.learn.opt = SGD(self.learn.splitter(self.model), lr=1e-2)
    with pytest.warns(UserWarning) as told: fit(tmp_path, Exchanges())
    ends = [str(o.message).partition('optimiser): ')[2] for o in told]
    assert [*filter(None, dict.fromkeys(ends))] == ['training goes on, and the next save is tried again.',
                                                    'the end of the run is not stored; once that is mended, '
                                                    'the same call trains on to it.'], ends


def test_epochs_of_other_lengths(tmp_path, settled):
    "A callback sets the steps of a batch as each epoch begins; a place in a long one is not called damaged"
    class Grows(Callback):
        def before_epoch(self): self.dls.train.seq_len = 8*(1+self.epoch)
    go = lambda *cbs: (learn := small(tmp_path)).fit(2, 1e-2, cbs=[Grows(), *cbs]) or learn
    class Ends(Callback):
        order = 2000
        def after_batch(self):
            if self.training and self.steps_done == n: raise RuntimeError('stopped')
    whole = go()
    for n in 20, 35:
        with pytest.raises(RuntimeError): go(Ends(), Checkpoint(tmp_path/f'r{n}', steps=4, quiet=True))
        again = go(Checkpoint(tmp_path/f'r{n}', steps=4, quiet=True))
        assert again.recorder.losses == whole.recorder.losses and RunFolder(tmp_path/f'r{n}').resumes() == [n]
