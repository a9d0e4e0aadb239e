"The `Doctor` callback: what it costs in looks, what it keeps, and faults that only a run shows"
import copy
import io
import math
import pickle
import random

import pytest
from fastai.basics import (AvgMetric, Callback, CancelFitException, DataLoaders, F, LabelSmoothingCrossEntropyFlat,
                           Learner, Metric,
                           OptimWrapper, accuracy, nn, partial, torch)
from fastai.callback.tracker import SaveModelCallback

from charrnn_fa.callback.precision import GradScale
from charrnn_fa.doctor import every_step
from charrnn_fa.doctor.watch import Doctor
from charrnn_fa.learner import char_learner
from charrnn_fa.optim import AdamW
from charrnn_fa.text.data import CharDataLoaders

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
    learn = Learner(DataLoaders(batches(n), valid or batches(2)), Net(), loss_over_all,
                    opt_func=partial(OptimWrapper, opt=opt), **kwargs)
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
    cb,learn = doctor(every=1),Learner(DataLoaders(batches(20), batches(2)), Net(), loss_over_all, opt_func=opt_func,
                                       cbs=[GradScale(), Overflows()])
    learn.device = torch.device('cpu')
    with learn.no_bar(): assert fit(learn, cb) == []
    assert len(cb.course.norms) == 19


@pytest.mark.parametrize('is_near', [True, False])
def test_all_losses_are_noted_though_reading_waits(is_near, monkeypatch):
    "As on a GPU, where losses are read ten at once"
    monkeypatch.setattr(every_step, '_is_near', lambda loss: is_near)
    cb = doctor()
    assert fit(learner(43), cb) == [] and cb.course.step == 43 and not cb.unread
    assert [s for s,_ in cb.course.losses] == [10, 20, 30, 40]
    assert fit(learner(20, cbs=[NaNs()]), doctor()) == ['O4']


def test_each_fit_that_begins_with_lost_weights_is_told():
    "The next cell is a fit at a lower rate, which cannot bring them back"
    cb,learn = doctor(),learner(20, cbs=[NaNs()])
    assert fit(learn, cb) == ['O4'] and 'step 16' in cb.findings[0].message
    for _ in range(2):
        told = len(cb.file.getvalue())
        assert fit(learn, cb) == ['O4'] and 'before this fit' in cb.findings[0].message, cb.findings
        assert 'the model anew' in cb.file.getvalue()[told:]
    told = cb.file.getvalue()
    learn.model = learner().model
    learn.create_opt()
    learn.remove_cbs(NaNs)
    assert fit(learn, cb) == ['O4'] and cb.file.getvalue() == told


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


@pytest.mark.parametrize('metric,rows,found',
                         [(LastLoss, 1, ['T8']), (MeanOfBatches, 1, ['T8']), (MeanOfBatches, 4, []),
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


@pytest.mark.parametrize('is_ours,dropout,fix', [(True, 0., 'dropout=0.5'), (True, .5, 'fewer epochs'),
                                                 (False, 0., 'more dropout'), (False, .5, 'SaveModelCallback')])
def test_nobody_is_told_to_do_what_the_network_has_already(is_ours, dropout, fix):
    learn,cb = text_learner(dropout=dropout) if is_ours else learner(2),doctor()
    if not is_ours: learn.model.drop = nn.Dropout(dropout)
    assert fit(learn, cb) == []
    cb.learn = learn
    cb.where,cb.course.step = 'the validation part',50
    cb.course.valid.extend([(10, 2., 1.8), (20, 1.9, 1.5), (30, 2., 1.2), (40, 2.1, 1.)])
    cb.course.losses.extend((50+i, .9) for i in range(5))
    cb._note_valid(2.2, cb.where)
    f, = cb.findings
    assert f.id == 'T4' and fix in f.fix


def text_learner(seq_len=16, text=None, **kwargs):
    text = text or ''.join(chr(97+int(i)) for i in ids)
    learn = char_learner(CharDataLoaders.from_text(text, bs=16, seq_len=seq_len, seed=1), n_hid=16,
                         precision='fp32', **kwargs)
    return learn.remove_cbs([learn.progress, learn.doctor])


def learnt_words(n=3000):
    "Words of a small dictionary at random: what comes next is learnt within a fit"
    random.seed(1)
    words = [''.join(random.choices('abcdefgh', k=random.randint(2, 6))) for _ in range(40)]
    return ' '.join(random.choices(words, k=n))


def saved_and_loaded(learn, folder):
    learn.path = folder
    learn.save('before')
    with learn.no_logging(): learn.fit(4, 1e-2)
    learn.load('before')


def another_text(learn, folder):
    learn.dls = CharDataLoaders.from_text(learnt_words()[::-1], bs=16, seq_len=16, seed=1, vocab=learn.vocab)


def another_loss(learn, folder): learn.loss_func = LabelSmoothingCrossEntropyFlat(.5)


def more_dropout(learn, folder): learn.model.drops[0].p = .9


CHANGES = saved_and_loaded, another_text, another_loss, more_dropout, None


@pytest.mark.parametrize('seq_len,n,change', [*((16, 3000, o) for o in CHANGES), (2, 600, saved_and_loaded), (2, 600, None)])
def test_a_further_fit_begins_as_it_must(seq_len, n, change, tmp_path):
    "Whatever is meant to make its first loss another one is no fault"
    learn,cb = text_learner(seq_len, learnt_words(n)),doctor()
    with learn.no_logging(): learn.fit(4, 1e-2, cbs=cb)
    if change: change(learn, tmp_path)
    with learn.no_logging(): learn.fit(2, 1e-4, cbs=cb)
    seen = {o.id for o in cb.findings if o.certainty != 'weak'}
    assert not seen & {'G5', 'G9', 'Z3'} - ({'Z3'} if change is more_dropout else set()) # it does rise by that


def test_best_weights_that_are_put_back_are_no_fault(tmp_path):
    learn,cb = text_learner(16, learnt_words()[:2000]),doctor()
    learn.path = tmp_path
    with learn.no_logging():
        learn.fit(30, 3e-2, cbs=[cb, SaveModelCallback()])
        learn.fit(1, 1e-4, cbs=cb)
    assert not {o.id for o in cb.findings} & {'G5', 'G9'}


def test_the_loss_that_is_told_is_that_of_the_validation():
    "Also where the beginning of the validation part is unlike the rest of it"
    words = learnt_words()
    strange = ''.join(random.choices('ABCDEFGH', k=2100))
    docs = [words[:3000]+strange[:500], strange+words[3000:9000]]
    dls = CharDataLoaders.from_documents(docs, [[0], [1]], bs=16, seq_len=32, seed=1)
    learn,cb = char_learner(dls, n_hid=64, precision='fp32'),doctor()
    learn.remove_cbs([learn.progress, learn.doctor])
    with learn.no_logging(): learn.fit(30, 1e-2, cbs=cb)
    valid = [float(o[1]) for o in learn.recorder.values]
    for f in cb.findings:
        if f.id == 'T4': assert f.evidence['best'] == pytest.approx(min(valid), abs=1e-3)
    seen = [v for _,v,_ in cb.course.valid]
    assert len(seen) > 25 and seen == pytest.approx(valid[-len(seen):], abs=1e-4)


def test_pieces_stand_all_over_the_validation_part():
    "In a fit without epochs they come to what `evaluate` says, though the beginning is another text"
    words = learnt_words()
    strange = ''.join(random.choices('ABCDEFGH', k=2100))
    dls = CharDataLoaders.from_documents([words[:9000]+strange, strange+words[3000:12000]], [[0], [1]],
                                         bs=16, seq_len=32, seed=1)
    learn,cb = char_learner(dls, n_hid=32, precision='fp32'),doctor()
    learn.remove_cbs([learn.progress, learn.doctor])
    with learn.no_logging(): learn.fit_steps(150, cbs=cb)
    assert cb.course.valid[-1][1] == pytest.approx(learn.evaluate()['nats'], abs=.3)


def test_a_frozen_network_has_lost_nothing(tmp_path):
    "`export` makes the optimiser anew, with all that it knew, and `fine_tune` empties whatever it finds"
    learn = char_learner(CharDataLoaders.from_text(learnt_words(), bs=16, seq_len=16, seed=1, path=tmp_path), n_hid=16)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-2)
        learn.export()
        learn.fine_tune(1, 1e-3)
    doctor = next(o for o in learn.cbs if isinstance(o, Doctor))
    assert 'G9' not in {o.id for o in doctor.findings}
