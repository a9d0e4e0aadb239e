"What callbacks count, change and set on the model comes back after a kill, to the bit; what cannot is named when it appears"
import json
from copy import deepcopy

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.all import CSVLogger, SaveModelCallback

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.checkpoint.state import capture, marks
from charrnn_fa.checkpoint.restore import State

from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.learner import char_learner


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
    assert look.saw == (5, 5, 8 + 1) and cb.n > 10


def not_saved(capsys): return [o.rpartition(': ')[2] for o in capsys.readouterr().out.splitlines() if 'Not saved' in o]


def test_what_a_callback_sets_on_a_learner_is_named(tmp_path, capsys):
    class Sets(Callback):
        def before_fit(self): self.learn.tag = 'as ever'
        def before_batch(self):
            if self.training and self.train_iter == 3: self.learn.n_seen,self.learn.reset_pct = 1,.5
        def after_epoch(self): self.dls.train.seq_len = 8
    small(tmp_path).fit(2, 1e-2, cbs=[Sets(), CSVLogger(tmp_path/'log.csv'), SaveModelCallback(),
                                      Checkpoint(tmp_path/'r', steps=4)])
    assert not_saved(capsys) == ['learn.reset_pct, learn.n_seen.', 'dls[0].seq_len.']


def test_what_cannot_be_saved_is_named_once(tmp_path, capsys):
    "A file, a model that a callback finds, a path, a generator, what a callback after the checkpoint counts"
    class Finds(Callback):
        def __init__(self, path='x', gen=None): self.path,self.best,self.f,self.gen = path,None,print,gen
        def before_batch(self):
            if self.train_iter == 2: self.best = deepcopy(self.model)
            if self.train_iter == 6: self.path = 'y'
    class Late(Callback):
        order = 2000
        def after_batch(self): pass
    small(tmp_path).fit(1, 1e-2, cbs=[Finds(gen=torch.Generator()), Late(), Checkpoint(tmp_path/'r', steps=4)])
    assert not_saved(capsys) == ['Finds.f, Finds.gen, the last batch of Late (its order is above 1000).', 'Finds.best.', 'Finds.path.']


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


def test_a_state_that_is_added_to_a_list_is_added_once(tmp_path):
    class Adds(Callback):
        def __init__(self): self.ns = []
        def after_epoch(self): self.ns.append(self.epoch)
        def state_dict(self): return dict(ns=list(self.ns))
        def load_state_dict(self, d): self.ns.extend(d['ns'])
    whole,again = stopped_at(tmp_path, Adds)
    assert whole.ns == again.ns == [0, 1, 2]


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
    def after_fit(self): self.learn.taken = capture(self.learn, (1, 0), marks(self.learn))[:2]


@pytest.mark.parametrize('name,v', [('model.rnns.0.rnn.num_layers', 10**9), ('model.rnns.0.rnn.mode', 'GRU'), ('model.n_hid', 1),
                                    ('model.forward', True), ('model.drops.0.new', 0.5), ('model.no.p', 0.5),
                                    ('opt.state', True), ('opt.frozen_idx', 'x')])
def test_no_file_replaces_more_than_settings_of_modules(tmp_path, name, v):
    learn = small(tmp_path)
    learn.fit(1, 1e-2, cbs=Stop2())
    tensors,meta = learn.taken
    meta = json.loads(json.dumps(meta))
    meta['switches']['dict'] += [name, v]
    before = [{**vars(o)} for o in (*learn.model.modules(), learn.opt)]
    State(learn, tensors, meta, 'x').restore()
    for o,b in zip(learn.model.modules(), before): assert vars(o).keys() == b.keys() and all(vars(o)[k] is b[k] for k in b)
    meta['switches']['dict'] += ['model.drops.0.p', 0.75]
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
