"""The `Doctor` callback: what it costs in looks, what it keeps, and the faults that a fit shows"""
import io
import math
import random

import pytest
import torch
import torch.nn.functional as F
from fastai.basics import Callback, CancelBatchException, CancelFitException, DataLoaders, Learner, OptimWrapper, partial
from torch import nn

from charrnn_fa.callback.precision import GradScale
from charrnn_fa.errors import CharRNNError
from charrnn_fa.doctor import Doctor, Report, explain
from charrnn_fa.doctor.watch import ShapeError
from charrnn_fa.learner import char_learner
from charrnn_fa.optim import AdamW
from charrnn_fa.text.data import CharDataLoaders

V = 7
ids = torch.randint(0, V, (4000,), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    "Embedding, GRU, scores"
    def __init__(self, p=0.):
        super().__init__()
        self.emb,self.rnn,self.drop,self.out = nn.Embedding(V, 8),nn.GRU(8, 8, batch_first=True),nn.Dropout(p),nn.Linear(8, V)
    def forward(self, x): return self.out(self.drop(self.rnn(self.emb(x))[0]))


def loss_over_all(p, y): return F.cross_entropy(p.flatten(0, 1), y.flatten())


def batches(n, rows=4):
    at = [i % 3900 for i in range(0, n*40, 40)]
    return [(ids[i:i+rows*8].view(rows, 8), ids[i+1:i+rows*8+1].view(rows, 8)) for i in at]


def learner(n=20, valid=None, opt=torch.optim.Adam, model=None, data=None, **kwargs):
    torch.manual_seed(0)
    learn = Learner(DataLoaders(data or batches(n), valid or batches(2)), model or Net(), kwargs.pop('loss_func', loss_over_all),
                    opt_func=partial(OptimWrapper, opt=opt), **kwargs)
    return learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else learn


def fit(learn, cb, n=1, lr=1e-3, **kwargs):
    with learn.no_logging(): learn.fit(n, lr, cbs=cb, **kwargs)
    return [o.id for o in cb.findings]


def doctor(**kwargs): return Doctor(quiet=True, file=io.StringIO(), **kwargs)


# A fit without a fault

def test_a_fit_without_a_fault():
    cb = Doctor(file=io.StringIO())
    assert fit(learner(), cb) == [] and not cb.report and isinstance(cb.report, Report)
    assert len(cb.file.getvalue().splitlines()) == 1 and 'stopped' not in cb.file.getvalue()
    quiet = doctor()
    assert fit(learner(), quiet) == [] and quiet.file.getvalue() == ''


class Ends(Callback):
    "Ends a fit before it has made a step, as one does that is finished already"
    order = 90
    def __init__(self, event): setattr(self, event, self._end)
    def _end(self): raise CancelFitException


@pytest.mark.parametrize('event', ['before_fit', 'before_batch', 'after_pred'])
def test_a_fit_without_a_step(event):
    cb,learn = Doctor(file=io.StringIO()),learner(20)
    with learn.no_logging(): learn.fit(1, 1e-3, cbs=[cb, Ends(event)])
    assert (cb.findings, cb.file.getvalue()) == ([], '')


class SkipsThree(Callback):
    "Batches that were done before a kill are skipped"
    def before_batch(self):
        if self.learn.train_iter < 3: raise CancelBatchException


class Infinite(Callback):
    "One batch ends in an infinite loss, and is left out"
    def after_loss(self):
        if self.learn.train_iter == 4: self.learn.loss_grad = self.learn.loss = self.learn.loss*float('inf')
    def before_backward(self):
        if self.learn.train_iter == 4: raise CancelBatchException


class Sparse(Net):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(V, 8, sparse=True)


def masked(): return [(x, torch.cat([torch.full_like(y[:,:4], -100), y[:,4:]], 1)) for x,y in batches(20)]


@pytest.mark.parametrize('model,data,cbs', [(Net, masked, []), (Net, lambda: batches(20), [SkipsThree]), (Sparse, lambda: batches(20), []),
                                            (lambda: Net(.3), lambda: batches(20), [Infinite]), (lambda: Net(.3), lambda: batches(40), [])])
def test_a_fit_is_the_same_with_the_doctor_and_without(model, data, cbs):
    def weights(*watching):
        torch.manual_seed(0)
        learn = learner(data=data(), model=model(), opt=torch.optim.SGD, cbs=[o() for o in cbs])
        with learn.no_logging(): learn.fit(2, .1, cbs=[*watching])
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    cb = doctor()
    assert torch.equal(weights(), weights(cb)) and 'stopped' not in cb.file.getvalue()


class Overflows(Callback):
    order = 0
    def before_backward(self):
        if self.learn.train_iter == 15: self.learn.loss_grad = self.learn.loss_grad*math.inf


@pytest.mark.parametrize('opt_func', [AdamW, partial(OptimWrapper, opt=torch.optim.Adam)])
def test_a_step_that_the_scaler_leaves_out_is_no_explosion(opt_func):
    "Whether the optimiser leaves it out, as ours do, or fastai's loop"
    cb,learn = doctor(every=1),Learner(DataLoaders(batches(20), batches(2)), Net(), loss_over_all, opt_func=opt_func, cbs=[GradScale(), Overflows()])
    learn.device = torch.device('cpu')
    with learn.no_bar(): assert fit(learn, cb) == []
    assert len(cb.course.norms) == 19


# What it costs

def test_most_steps_are_passed_over(monkeypatch):
    seen,old = [],Doctor.after_pred
    monkeypatch.setattr(Doctor, 'after_pred', lambda self: (seen.append(self.learn.iter), old(self))[1])
    fit(learner(95), doctor())
    assert len(seen) < 35 and {10, 20, 50, 90} <= {*seen} | {o+1 for o in seen} | {o-1 for o in seen}


# Numbers that are lost

class NaNs(Callback):
    def after_pred(self):
        if self.training and self.learn.train_iter == 15: self.learn.pred = self.learn.pred*math.nan


def test_each_fit_that_begins_with_lost_weights_says_so():
    "The next cell is a fit at a lower learning rate, which cannot bring them back"
    cb,learn = doctor(),learner(20, cbs=[NaNs()])
    assert fit(learn, cb) == ['O4'] and cb.findings[0].evidence['step'] == 16
    said = len(cb.file.getvalue())
    assert fit(learn, cb) == ['O4'] and 'O4' in cb.file.getvalue()[said:] and cb.findings[0].certainty == 'exact'


# Faults that a fit shows

class WithGradients(Callback):
    order = 5
    def before_validate(self): torch.set_grad_enabled(True)
    def after_validate(self): torch.set_grad_enabled(True)


class Keeps(Callback):
    "Gradients are never set to zero"
    def before_fit(self): self.opt.zero_grad = lambda *args, **kwargs: None


class Deaf(Net):
    def forward(self, x): return super().forward(torch.zeros_like(x))[:,:1].expand(-1, x.shape[1], -1)


FAULTS = {
    'T3': lambda: learner(cbs=[WithGradients()]), 'O6': lambda: learner(opt=torch.optim.SGD, cbs=[Keeps()]),
    'Z1': lambda: learner(90, model=Deaf()),
}


@pytest.mark.parametrize('id', FAULTS)
def test_a_fault_is_found_once(id):
    cb = doctor(every=2)
    found = fit(FAULTS[id](), cb, 2)
    assert id in found and found.count(id) == 1, found
    f = next(o for o in cb.findings if o.id == id)
    assert f.fix and cb.file.getvalue().count(f'{id}  {f.title}') == 1
    assert [o.id for o in cb.report.findings]


def test_what_a_healthy_twin_has_not():
    for kwargs in dict(model=Net(.3)),dict(opt=torch.optim.SGD),dict(n=90):
        assert fit(learner(**kwargs), doctor(every=2), 2) == [], kwargs


@pytest.mark.parametrize('made', [False, True])
def test_another_model_in_a_learner(made):
    cb,learn = doctor(),learner()
    fit(learn, cb)
    learn.model = Net()
    if made: learn.create_opt()
    assert fit(learn, cb) == ['O7']*(not made)


@pytest.mark.parametrize('is_ours,dropout,fix', [(True, 0., 'dropout='), (True, .5, 'SaveModelCallback'), (False, .5, 'SaveModelCallback')])
def test_overfitting_and_what_is_left_to_do(is_ours, dropout, fix):
    "Nobody is advised to do what the model has already"
    learn,cb = text_learner(dropout=dropout) if is_ours else learner(2, model=Net(dropout)),doctor()
    fit(learn, cb)
    cb.findings.clear()
    cb.learn = learn
    cb.course.step = 50
    cb.course.valid.clear()
    cb.course.losses.clear()
    cb.course.losses.extend((50+i, .9) for i in range(5))
    cb.course.valid.extend([(10, 2., 1.8), (20, 1.9, 1.5), (30, 2., 1.2), (40, 2.1, 1.)])
    cb._note_valid(2.2)
    f, = cb.findings
    assert (f.id, f.evidence['best'], f.evidence['best_step']) == ('T4', 1.9, 20) and fix in f.fix


# Real texts

def learnt_words(n=3000):
    "Words of a small dictionary at random: what comes next is learnt within a fit"
    random.seed(1)
    words = [''.join(random.choices('abcdefgh', k=random.randint(2, 6))) for _ in range(40)]
    return ' '.join(random.choices(words, k=n))


def text_learner(seq_len=16, text=None, **kwargs):
    text = text or ''.join(chr(97+int(i)) for i in ids)
    learn = char_learner(CharDataLoaders.from_text(text, bs=16, seq_len=seq_len, seed=1), n_hid=16, precision='fp32', **kwargs)
    return learn.remove_cbs([learn.progress, learn.doctor])


def test_a_further_fit_over_another_text():
    "That its first loss is another one is no fault"
    learn,cb = text_learner(16, learnt_words(600)),doctor()
    with learn.no_logging(): learn.fit(3, 1e-2, cbs=cb)
    learn.dls = CharDataLoaders.from_text(learnt_words(600)[::-1], bs=16, seq_len=16, seed=1, vocab=learn.vocab)
    with learn.no_logging(): learn.fit(1, 1e-4, cbs=cb)
    assert not [o for o in cb.findings if o.certainty != 'weak'], cb.findings


# Errors in a fit

def test_an_error_of_shapes_is_explained():
    cb,learn = doctor(),learner(loss_func=nn.CrossEntropyLoss())
    with learn.no_logging(), pytest.raises(ShapeError) as e: learn.fit(1, cbs=cb)
    assert isinstance(e.value, CharRNNError) and e.value.what and e.value.remedy
    found = explain(e.value, learn)
    assert found.id == 'S1' and found.fix == e.value.remedy and found.message.rstrip('.') == e.value.what
    learn.loss_func = loss_over_all
    assert fit(learn, cb) == []
