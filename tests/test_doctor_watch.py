"The `Doctor` callback: what it costs in looks, what it keeps, and faults that only a run shows"
import copy
import io
import math
import pickle

import pytest
from fastai.basics import AvgMetric, Callback, CancelFitException, DataLoaders, F, Learner, Metric, OptimWrapper, accuracy, nn, partial, torch

from charrnn_fa.callback.precision import GradScale
from charrnn_fa.doctor import watch
from charrnn_fa.doctor.watch import Doctor
from charrnn_fa.optim import AdamW

V = 7
ids = torch.randint(0, V, (4000,), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    "Embedding, GRU, scores"
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 8),nn.GRU(8, 8, batch_first=True),nn.Linear(8, V)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


def loss_over_all(p, y): return F.cross_entropy(p.flatten(0, 1), y.flatten())


def batches(n, rows=4):
    at = [i % 3900 for i in range(0, n*40, 40)]
    return [(ids[i:i+rows*8].view(rows, 8), ids[i+1:i+rows*8+1].view(rows, 8)) for i in at]


def learner(n=20, valid=None, opt=torch.optim.Adam, **kwargs):
    torch.manual_seed(0)
    learn = Learner(DataLoaders(batches(n), valid or batches(2)), Net(), loss_over_all, opt_func=partial(OptimWrapper, opt=opt), **kwargs)
    return learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else learn


def fit(learn, cb, n=1):
    with learn.no_logging(): learn.fit(n, 1e-3, cbs=cb)
    return [o.id for o in cb.findings]


def doctor(**kwargs): return Doctor(quiet=True, file=io.StringIO(), **kwargs)


class NaNs(Callback):
    def after_pred(self):
        if self.training and self.learn.train_iter == 15: self.learn.pred = self.learn.pred*math.nan


class Ends(Callback):
    "Ends a fit before it has made a step, as one does that is finished already"
    order = 90
    def __init__(self, event): setattr(self, event, self._end)
    def _end(self): raise CancelFitException


@pytest.mark.parametrize('event', ['before_fit', 'before_epoch', 'before_train', 'before_batch', 'after_pred'])
def test_a_fit_without_a_step_is_nothing_to_speak_of(event):
    cb = Doctor(quiet=True, file=io.StringIO())
    learn = learner(20)
    with learn.no_logging(): learn.fit(1, 1e-3, cbs=[cb, Ends(event)])
    assert (cb.findings, cb.file.getvalue()) == ([], '')


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


@pytest.mark.parametrize('is_near', [True, False])
def test_all_losses_are_noted_though_reading_waits(is_near, monkeypatch):
    "As on a GPU, where losses are read ten at once"
    monkeypatch.setattr(watch, '_is_near', lambda loss: is_near)
    cb = doctor()
    assert fit(learner(43), cb) == [] and cb.course.step == 43 and not cb.unread
    assert [s for s,_ in cb.course.losses] == [10, 20, 30, 40]
    assert fit(learner(20, cbs=[NaNs()]), doctor()) == ['O4']


def test_looks_get_rarer():
    cb = doctor(every=1)
    fit(learner(450), cb)
    steps = [s for s,_ in cb.course.norms]
    assert steps[:100] == [*range(1, 101)] and len(steps) < 220 and steps[-1]-steps[-2] == 8


def test_most_steps_are_passed_over(monkeypatch):
    seen,old = [],Doctor.after_pred
    monkeypatch.setattr(Doctor, 'after_pred', lambda self: (seen.append(self.learn.iter), old(self))[1])
    fit(learner(95), doctor())
    assert [i for i in seen if i > 1] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 94] and len(seen) < 15


def test_a_new_optimiser_in_an_old_place_is_a_new_one():
    "Made anew for each fit, each may be where the last one was"
    learn,cb = learner(opt=torch.optim.SGD),doctor()
    for i in range(4):
        learn.opt = None
        found = fit(learn, cb)
        assert found == ['O5']*(i == 3)


@pytest.mark.parametrize('opt,found', [(torch.optim.Adam, ['G9']), (torch.optim.SGD, [])])
def test_an_optimiser_that_has_forgotten(opt, found):
    "Said only where there was something to forget"
    learn,cb = learner(opt=opt),doctor()
    assert fit(learn, cb) == fit(learn, cb) == []
    learn.create_opt()
    assert fit(learn, cb) == found


def test_an_optimiser_that_is_loaded_has_forgotten_nothing():
    learn,cb = learner(),doctor()
    fit(learn, cb)
    state = copy.deepcopy(learn.opt.state_dict())
    learn.create_opt()
    learn.opt.load_state_dict(state)
    assert fit(learn, cb) == []


def test_a_doctor_can_be_pickled_after_a_fit():
    "As `Learner.export` does"
    cb = doctor()
    cb.file = None
    fit(learner(), cb)
    assert pickle.loads(pickle.dumps(cb)).course.step == 20


class LastLoss(Metric):
    "The loss of the last batch"
    name = 'last'
    def reset(self): self.all = []
    def accumulate(self, learn): self.all.append(learn.loss.item())
    @property
    def value(self): return self.all[-1]


class MeanOfBatches(LastLoss):
    "Each batch counts the same"
    @property
    def value(self): return sum(self.all)/len(self.all)


@pytest.mark.parametrize('metric,rows,found', [(LastLoss, 1, ['T8']), (MeanOfBatches, 1, ['T8']), (MeanOfBatches, 4, []),
                                               (lambda: AvgMetric(lambda p, y: accuracy(p.flatten(0, 1), y.flatten())), 1, [])])
def test_averages_that_are_not_over_characters(metric, rows, found):
    learn,cb = learner(valid=[*batches(3), *batches(1, rows)], metrics=[metric()]),doctor()
    assert fit(learn, cb) == found
    assert learn.recorder.values[-1][-1] is not None


def test_what_is_measured_for_long_can_be_kept():
    cb = doctor()
    cb.course.valid.extend((i, 2., 2.) for i in range(5000))
    twin = doctor()
    twin.load_state_dict(cb.state_dict())
    assert twin.course.valid == cb.course.valid
