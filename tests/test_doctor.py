"""What `diagnose` promises: its forms of input, its report, its answers to bad input, and the commonest faults in small programs

The faults are written into programs, not turned round from what a check measures.
"""
import itertools
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import Callback, DataLoader, DataLoaders, Learner
from planted.parts import (V, ElmanByHand, GRUByHand, LSTMByHand, Net, Scores, Stateful, awd_learner, carried_step, learner, loss_over_all, our_learner, stateless_step, streams, text, time_first, train_ids,
                           valid_ids, vocab, windows)
from torch import nn

from charrnn_fa import doctor
from charrnn_fa.core import CharRNNError
from charrnn_fa.doctor import registry
from charrnn_fa.doctor.ladder import ids_ladder
from charrnn_fa.doctor.report import catalogue, certainties
from charrnn_fa.text.data import CharDataLoaders

Adam,SGD = torch.optim.Adam,torch.optim.SGD
RANDOM,CONTIGUOUS = windows(8, 16, 12),streams(8, 16, 12)
SMALL = dict(n_hid=24, n_emb=16)


@pytest.fixture(autouse=True)
def same_seed(): torch.manual_seed(0)


def parts(model=None, batches=RANDOM, loss=loss_over_all, opt=Adam, lr=3e-3):
    "A program of a model, batches, a loss and an optimiser"
    model = model or Scores(**SMALL)
    return dict(model=model, dls=batches, loss_func=loss, opt=opt(model.parameters(), lr=lr))


def stepped(make=stateless_step, model=None, batches=RANDOM, opt=Adam, lr=3e-3):
    "A program of a training step, made by `make(model, opt)`"
    model = model or Scores(**SMALL)
    opt = opt(model.parameters(), lr=lr)
    return dict(step_function=make(model, opt), model=model, batches=batches, opt=opt)


def learns(model=None, batches=RANDOM, **kwargs):
    loaders = DataLoaders(*[DataLoader([*zip(*map(torch.cat, zip(*b)))], bs=8, num_workers=0) for b in (batches, windows(8, 16, 3, valid_ids))])
    return dict(learn=learner(loaders, model or Scores(**SMALL), **kwargs))


def looked(**kwargs): return doctor.diagnose(**{'trials':False, 'seconds':600, **kwargs})
def sure(report): return [o for o in report.findings if o.certainty != 'weak']


# Forms of input

@pytest.mark.parametrize('form', [learns, parts, stepped, lambda: {**parts(), 'opt':None}, lambda: {**stepped(), 'opt':None}])
def test_each_form_of_a_program(form):
    "A healthy one has no finding; with targets that are its inputs, each is named alike"
    report = looked(**form())
    assert not report and len(report.passed) > 30 and not report.skipped, report
    copies = [(x, x) for x,_ in RANDOM]
    kwargs = form()
    if 'learn' in kwargs: kwargs = learns(batches=copies)
    else: kwargs['dls' if 'dls' in kwargs else 'batches'] = copies
    assert [o.id for o in looked(**kwargs).findings] == ['D1']


def of_a_dict(model, opt):
    step = stateless_step(model, opt)
    return lambda batch: step(batch['x'], batch['y'])


def of_a_pair(model, opt):
    step = stateless_step(model, opt)
    return lambda batch: step(*batch)


def of_one_tensor(model, opt):
    step = stateless_step(model, opt)
    return lambda batch: step(batch[:,:-1], batch[:,1:])


def of_labels(model, opt):
    "The labels are the inputs, and the step compares with the next ones, as a large library has it"
    def step(batch):
        loss = loss_over_all(model(batch['input_ids'])[:,:-1], batch['labels'][:,1:])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return step


def with_model_and_opt(model, opt):
    def step(model, opt, x, y): stateless_step(model, opt)(x, y)
    return step


STEPS = {
    'a dictionary': lambda: stepped(of_a_dict, batches=[dict(x=x, y=y) for x,y in RANDOM]),
    'targets before inputs': lambda: stepped(of_a_dict, batches=[dict(y=y, x=x) for x,y in RANDOM]),
    'a pair': lambda: stepped(of_a_pair), 'the model as well': lambda: stepped(with_model_and_opt),
    'one tensor': lambda: stepped(of_one_tensor, batches=[x for x,_ in RANDOM]),
    'labels': lambda: stepped(of_labels, batches=[dict(labels=x, input_ids=x) for x,_ in RANDOM]),
    'arrays': lambda: stepped(lambda m, o: lambda x, y: stateless_step(m, o)(torch.tensor(x), torch.tensor(y)),
                              batches=[(x.numpy(), y.numpy()) for x,y in RANDOM]),
}


@pytest.mark.parametrize('form', STEPS)
def test_what_a_step_is_given(form):
    report = looked(**STEPS[form]())
    assert not report and not any('alignment' in o for o in report.not_applicable), report.checks


def test_a_model_of_tensors():
    "A dictionary of tensors in place of a module, and updates by hand"
    w = dict(emb=torch.randn(V, 16)*.1, out=torch.randn(16, V)*.1)
    for o in w.values(): o.requires_grad_()
    def step(x, y, ascends=False):
        loss_over_all(w['emb'][x] @ w['out'], y).backward()
        with torch.no_grad():
            for o in w.values():
                o.sub_(.5*o.grad)
                o.grad = None
    report = looked(step_function=step, model=w, batches=RANDOM)
    assert {o.id for o in report.findings} <= {'R5'}, report # pairs of characters, as its author wanted


# The report

@pytest.fixture(scope='module')
def report():
    "Of a program with two faults, one of which is a consequence"
    torch.manual_seed(0)
    model = Scores('lstm', **SMALL)
    return looked(model=model, dls=[(x, x) for x,_ in RANDOM], opt=Adam(model.out.parameters(), lr=3e-3),
                  loss_func=lambda p, y: loss_over_all(p.softmax(-1), y))


def test_findings_have_what_is_promised(report):
    assert isinstance(report, doctor.Report) and report and len(report) == len(report.findings) >= 2
    for o in report.findings:
        assert isinstance(o, doctor.Finding) and o.certainty in certainties and o.title == catalogue[o.id]
        assert o.message.strip() and isinstance(o.fix, str) and isinstance(o.evidence, dict)
        assert o.title in str(o) and o.id in str(o) and o.certainty in str(o) and o.id in o._repr_html_()
    ids = [o.id for o in report.findings]
    assert len({*ids}) == len(ids)
    order = [certainties.index(o.certainty) for o in report.findings]
    assert order == sorted(order)


def test_a_finding_has_the_line_of_the_user(report):
    place = next(o for o in report.findings if o.id == 'L1').place
    assert place.file == __file__ and 'softmax' in place.source and 'softmax' in open(__file__).read().splitlines()[place.line-1]
    assert place.source in str(report)


def test_a_report_is_json(report):
    d = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert [o['id'] for o in d['findings']] == [o.id for o in report.findings]
    assert {*d['findings'][0]} == {'id', 'certainty', 'title', 'message', 'fix', 'evidence', 'place', 'follows'}
    assert d['seconds'] >= 0 and d['enough_time'] is True and d['checked'] and d['subject'] == 'Scores'


def test_a_report_as_text_and_as_html(report):
    said,page = str(report),report._repr_html_()
    for o in report.findings: assert o.title in said and o.title in page
    assert repr(report) == said and max(map(len, said.splitlines())) < 400
    assert page.count('<div') == page.count('</div>') and '<script' not in page
    assert len(report.checks.splitlines()) > len(report.passed) > 30
    assert not set(report.passed[0].splitlines()) & {*said.splitlines()}, "names of checks only where they are asked for"


def test_names_in_html_are_no_markup():
    f = doctor.Finding('L1', 'exact', 'a < b & c', '<b>x</b>', dict(what='<i>'))
    assert '<b>x' not in f._repr_html_() and '<i>' not in f._repr_html_() and 'a &lt; b' in f._repr_html_()


def test_numbers_that_are_not_finite_are_json():
    f = doctor.Finding('O4', 'exact', 'NaN', '', dict(loss=float('nan'), norms=torch.tensor([float('inf'), 1.])))
    json.dumps(doctor.Report([f]).as_dict(), allow_nan=False)
    assert 'nan' in str(f).lower()


def test_the_names_of_the_package():
    for o in 'Doctor', 'Finding', 'Report', 'diagnose', 'explain', 'ladder': assert callable(getattr(doctor, o))


def test_consequences_lie_beneath_their_cause():
    a,b,c = (doctor.Finding(k, 'exact', 'x', explains=e) for k,e in (('Z1', ()), ('L1', ('Z1', 'O2')), ('S4', ())))
    found = registry.arrange([a, b, c])
    assert {o.id for o in found} == {'L1', 'S4'} and [o.id for o in b.follows] == ['Z1']
    assert 'Z1' in str(doctor.Report([a, b, c])) and len(doctor.Report([a, b, c])) == 2


def test_an_error_of_a_check_costs_that_check_alone(monkeypatch):
    def fails(e): raise ZeroDivisionError('of no use')
    monkeypatch.setattr(registry, 'raises_own_errors', False)
    bad = registry.Check('Z1', 'exact', '', '', fails, (), (), (), 'Z1: fails')
    good = registry.Check('L1', 'exact', 'low {low}', 'x', lambda e: dict(low=3), (), (), (), 'L1: finds')
    found,passed,_,skipped = registry.examine(SimpleNamespace(), [bad, good], time.perf_counter()+60)
    assert ([o.message for o in found], passed, len(skipped)) == (['low 3'], [], 1)
    assert 'ZeroDivisionError' in skipped[0] and 'Z1: fails' in skipped[0]
    monkeypatch.setattr(registry, 'raises_own_errors', True)
    with pytest.raises(ZeroDivisionError): registry.examine(SimpleNamespace(), [bad], time.perf_counter()+60)


def test_a_check_must_name_what_the_catalogue_has():
    for args in ('Q7', 'exact'), ('L1', 'certainly'), ('L1', 'exact', '', '', '', (), 'Q7'):
        with pytest.raises(ValueError): registry.check(*args)
    assert {c.id for c in registry.checks} | {'E1', 'E2', 'S6', 'Z5'} <= {*catalogue}


def test_without_trials_nothing_is_tried():
    copies = [(x, x) for x,_ in RANDOM]
    assert not any('tried' in o.evidence for o in looked(**parts(batches=copies)).findings)


# Bad input and time

def step_of_three(a, b, c): return 0


BAD = {
    'nothing': lambda: {}, 'a model alone': lambda: dict(model=Scores(**SMALL)), 'a step alone': lambda: dict(step_function=print),
    'no Learner': lambda: dict(learn=3), 'a step of three': lambda: dict(model=Scores(**SMALL), step_function=step_of_three, batches=RANDOM),
    'an iterator': lambda: parts(batches=iter(RANDOM)), 'a generator': lambda: parts(batches=(o for o in RANDOM)),
    'text as batches': lambda: parts(batches='abc'), 'inputs alone': lambda: parts(batches=[x for x,_ in RANDOM]),
    'the class of a model': lambda: {**parts(), 'model':Scores}, 'the class of an optimiser': lambda: {**parts(), 'opt':Adam},
    'a loss of 3': lambda: {**parts(), 'loss_func':3}, 'a step of 3': lambda: {**stepped(), 'step_function':3},
    'a sample of 3': lambda: {**parts(), 'sample':3}, 'a text of 3': lambda: {**parts(), 'text':3},
    'a model of two arguments': lambda: parts(WantsLengths()),
}


class WantsLengths(Scores):
    def __init__(self): super().__init__(**SMALL)
    def forward(self, x, lengths): return super().forward(x)


@pytest.mark.parametrize('bad', BAD)
def test_bad_input_is_answered_in_a_sentence(bad):
    kwargs = BAD[bad]()
    with pytest.raises(CharRNNError) as e: looked(**kwargs)
    assert e.value.remedy.strip() or 'must be' in e.value.what
    assert len(e.value.what.splitlines()) == 1 and len(e.value.what) < 200


@pytest.mark.parametrize('seconds', [-1, float('nan'), None, '3'])
def test_seconds_must_be_a_number(seconds):
    with pytest.raises(CharRNNError, match='seconds'): looked(**{**parts(), 'seconds':seconds})


class Slow(list):
    def __iter__(self):
        for b in list.__iter__(self):
            time.sleep(.05)
            yield b


class SlowScores(Scores):
    def forward(self, x):
        time.sleep(.1)
        return super().forward(x)


@pytest.mark.parametrize('make', [lambda: parts(SlowScores(**SMALL)), lambda: parts(batches=Slow(RANDOM*9)),
                                  lambda: stepped(lambda m, o: lambda x, y: time.sleep(.2))])
def test_no_more_time_than_was_given(make):
    "What was not reached is said"
    began = time.monotonic()
    report = doctor.diagnose(**make(), seconds=1.)
    assert time.monotonic()-began < 8 and report.skipped and all('no time' in o for o in report.skipped), report


def test_no_time_is_enough_for_nothing():
    report = doctor.diagnose(**parts(), seconds=0)
    assert not report.findings and not report.enough_time and report.as_dict()['enough_time'] is False
    assert 'time' in report.heading() and report.skipped


def test_an_endless_loader():
    class Endless:
        def __iter__(self): return itertools.cycle(RANDOM)
    assert not sure(looked(**parts(batches=Endless())))


# Loaders and steps that fail

@pytest.mark.parametrize('make', [lambda: parts(batches=[]), lambda: dict(learn=Learner(DataLoaders([], []), Scores(**SMALL), loss_func=loss_over_all)),
                                  lambda: dict(learn=Learner(DataLoaders(), Scores(**SMALL), loss_func=loss_over_all))])
def test_a_loader_without_batches(make): assert [o.id for o in looked(**make()).findings] == ['D10']


def test_batches_without_sequences():
    with pytest.raises(CharRNNError, match='no batches'): looked(**parts(batches=[(x[:0], y[:0]) for x,y in RANDOM]))


class Breaks:
    "A loader that breaks after `n` batches"
    def __init__(self, n): self.n = n
    def __len__(self): return 12
    def __iter__(self):
        yield from RANDOM[:self.n]
        raise OSError('the disk is gone')


class BrokenItems(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, i):
        if i == 20: raise OSError('the disk is gone')
        return train_ids[i:i+16],train_ids[i+1:i+17]


@pytest.mark.parametrize('make', [lambda: Breaks(0), lambda: Breaks(1), lambda: torch.utils.data.DataLoader(BrokenItems(), 16)])
@pytest.mark.parametrize('form', [lambda o: parts(batches=o), lambda o: dict(learn=Learner(DataLoaders(o, RANDOM), Scores(**SMALL), loss_func=loss_over_all))])
def test_a_loader_that_raises(make, form):
    f, = looked(**form(make())).findings
    assert (f.id, f.certainty) == ('E2', 'exact') and 'the disk is gone' in f.message
    assert f.place.file == __file__ and 'raise OSError' in f.place.source


def raising(n, error):
    "A step that raises an error from its n-th call on"
    def make(model, opt):
        usual,calls = stateless_step(model, opt),[]
        def step(x, y):
            calls.append(x)
            if len(calls) >= n: raise error
            usual(x, y)
        return step
    return make


@pytest.mark.parametrize('n', [1, 3])
def test_a_step_that_raises(n):
    f = looked(**stepped(raising(n, ValueError('boom')))).findings[0]
    assert (f.id, f.certainty) == ('E1', 'exact') and 'boom' in f.message
    assert f.place.file == __file__ and f.place.source == 'if len(calls) >= n: raise error'


class RaisesAfterBatch(Callback):
    def after_batch(self): raise KeyError('boom')


def test_a_callback_that_raises():
    f = looked(**learns(cbs=RaisesAfterBatch())).findings[0]
    assert (f.id, f.place.function) == ('E1', 'after_batch') and 'boom' in f.message


def test_a_shape_error_is_explained_in_place_of_the_first_step():
    f = looked(**parts(loss=F.cross_entropy)).findings[0]
    assert (f.id, f.certainty) == ('S1', 'exact')
    scores,y = torch.randn(8, 16, V),RANDOM[0][1]
    assert torch.isclose(eval(f.fix, dict(F=F, scores=scores, y=y)), loss_over_all(scores, y))


def fetching(model, opt):
    "A step that takes its batches itself"
    usual,at = stateless_step(model, opt),[0]
    def step():
        at[0] = (at[0]+1) % len(RANDOM)
        return usual(*RANDOM[at[0]])
    return step


def test_a_step_without_arguments():
    "What does not need another batch is checked all the same, and the note has what to write for the rest"
    report = looked(**stepped(fetching, batches=None))
    assert not report and 'def step(x, y)' in report.note and 'batches=batches' in report.note and report.note in str(report)
    assert len(report.not_applicable) > 5
    def frozen(model, opt):
        model.out.requires_grad_(False)
        return fetching(model, opt)
    assert [o.id for o in looked(**stepped(frozen, batches=None)).findings] == ['O8']


class Forecast(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn,self.out = nn.GRU(3, 16, batch_first=True),nn.Linear(16, 3)
    def forward(self, x): return self.out(self.rnn(x)[0])


def series(n=12): return [(o[:,:-1], o[:,1:]) for o in torch.randn(n, 4, 11, 3).cumsum(2)*.1]


def test_a_program_that_is_no_text():
    "The checks of text do not apply, the others do"
    report = looked(**parts(Forecast(), series(), F.mse_loss))
    assert not sure(report) and 'text' in report.note and any('no text' in o for o in report.not_applicable), report
    assert looked(**parts(ElmanByHand(**SMALL), CONTIGUOUS, lambda p, y: loss_over_all(p[0], y))).note == ''
    model = Forecast()
    model.rnn.requires_grad_(False)
    assert [o.id for o in looked(**parts(model, series(), F.mse_loss)).findings] == ['O8']


@pytest.mark.parametrize('bad', [0, 1, 3])
def test_data_that_are_not_finite(bad):
    data = series()
    data[bad][0][3,4,1] = float('nan')
    f = looked(**parts(Forecast(), data, F.mse_loss)).findings[0]
    assert (f.id, f.certainty) == ('O4', 'exact')


# Small programs without a fault

def scheduled(model, opt):
    usual,sched = stateless_step(model, opt),torch.optim.lr_scheduler.CosineAnnealingLR(opt, 100)
    def step(x, y):
        usual(x, y)
        sched.step()
    return step


def by_hand(model, opt):
    def step(x, y):
        loss_over_all(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= .1*p.grad
                p.grad = None
    return step


def with_closure(model, opt):
    def step(x, y):
        def closure():
            opt.zero_grad()
            loss = loss_over_all(model(x), y)
            loss.backward()
            return loss
        opt.step(closure)
    return step


def accumulated(model, opt, every=4):
    calls = []
    def step(x, y):
        (loss_over_all(model(x), y)/every).backward()
        calls.append(1)
        if len(calls) % every == 0:
            opt.step()
            opt.zero_grad()
    return step


def truncated(model, opt):
    def step(x, y):
        state = None
        for a,b in zip(x.split(8, 1), y.split(8, 1)):
            opt.zero_grad()
            scores,state = model(a, state)
            state = state.detach()
            loss_over_all(scores, b).backward()
            opt.step()
    return step


def scaled(model, opt):
    scaler = torch.amp.GradScaler('cpu')
    def step(x, y):
        opt.zero_grad()
        scaler.scale(loss_over_all(model(x), y)).backward()
        scaler.step(opt)
        scaler.update()
    return step


def two_optimisers(model, opt):
    both = SGD(model.emb.parameters(), .1),Adam([*model.rnn.parameters(), *model.out.parameters()])
    def step(x, y):
        loss_over_all(model(x), y).backward()
        for o in both:
            o.step()
            o.zero_grad()
    return step


class Tutorial(nn.Module):
    "The Elman network of a first tutorial: one character at a time, the state given and returned"
    def __init__(self, n=24, activation=torch.tanh):
        super().__init__()
        self.n,self.i2h,self.h2o,self.activation = n,nn.Linear(V+n, n),nn.Linear(n, V),activation
    def forward(self, x, h):
        h = self.activation(self.i2h(torch.cat([F.one_hot(x, V).float(), h], 1)))
        return self.h2o(h),h


def by_letters(model, opt, detach=False, zero=True):
    "Its training step: a loop over the characters, losses added up"
    def step(x, y):
        h,loss = torch.zeros(len(x), model.n),0
        if zero: opt.zero_grad()
        for t in range(x.shape[1]):
            scores,h = model(x[:,t], h)
            loss = loss + F.cross_entropy(scores, y[:,t])
            if detach: h = h.detach()
        (loss/x.shape[1]).backward()
        opt.step()
    return step


class Causal(nn.Module):
    "No recurrence at all"
    def __init__(self):
        super().__init__()
        self.emb,self.layer,self.out = nn.Embedding(V, 32),nn.TransformerEncoderLayer(32, 4, 64, .1, batch_first=True),nn.Linear(32, V)
    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.out(self.layer(self.emb(x), src_mask=mask, is_causal=True))


class LastOnly(Scores):
    "One prediction for each sequence"
    def forward(self, x): return super().forward(x)[:,-1]


class Tied(Scores):
    def __init__(self):
        super().__init__('lstm', 24, 24)
        self.out.weight = self.emb.weight


class Ends(Scores):
    "Scores that something is done to"
    def __init__(self, f, **kwargs):
        super().__init__(**SMALL, **kwargs)
        self.f = f
    def forward(self, x): return self.f(super().forward(x))


def with_padding(fill):
    "Sequences of several lengths, filled up"
    ends = torch.randint(8, 17, (8, 1), generator=torch.Generator().manual_seed(0))
    is_over = torch.arange(16) >= ends
    return [(x.masked_fill(is_over, 0), y.masked_fill(is_over, fill)) for x,y in RANDOM]


HEALTHY = {
    'lstm': lambda: parts(Scores('lstm', **SMALL)), 'rnn, two layers': lambda: parts(Scores('rnn', n_layers=2, **SMALL)),
    'dropout': lambda: parts(Scores(n_layers=2, dropout=.3, **SMALL)), 'tied': lambda: parts(Tied()),
    'one-hot': lambda: parts(ElmanByHand(24, 0), loss=lambda p, y: loss_over_all(p[0], y)),
    'gru by hand': lambda: stepped(model=GRUByHand(**SMALL)), 'lstm by hand': lambda: stepped(model=LSTMByHand(**SMALL)),
    'log-softmax and cross-entropy': lambda: parts(Ends(lambda s: s.log_softmax(-1))),
    'log-softmax and nll': lambda: parts(Ends(lambda s: s.log_softmax(-1)), loss=lambda p, y: F.nll_loss(p.flatten(0, 1), y.flatten())),
    'classes on axis 1': lambda: parts(loss=lambda p, y: F.cross_entropy(p.transpose(1, 2), y)),
    'picked probabilities': lambda: parts(loss=lambda p, y: -p.log_softmax(-1).gather(-1, y[...,None]).mean()),
    'scores within 30': lambda: parts(Ends(lambda s: 30*torch.tanh(s/30))),
    'a symbol that is forbidden': lambda: parts(Ends(lambda s: s.masked_fill(torch.arange(V+1) == V, -1e9), n_out=V+1)),
    'contiguous, no state': lambda: parts(batches=CONTIGUOUS), 'time first': lambda: parts(Scores(batch_first=False, **SMALL), time_first(RANDOM)),
    'time first, contiguous': lambda: stepped(carried_step, Net(batch_first=False, **SMALL), time_first(CONTIGUOUS)),
    'transformer': lambda: parts(Causal()), 'one target each': lambda: parts(LastOnly(**SMALL), [(x, y[:,-1]) for x,y in windows(32, 16, 12)], F.cross_entropy),
    'flat targets': lambda: parts(batches=[(x, y.flatten()) for x,y in RANDOM], loss=lambda p, y: F.cross_entropy(p.flatten(0, 1), y)),
    'carried': lambda: stepped(carried_step, Net(**SMALL), CONTIGUOUS), 'carried pair': lambda: stepped(carried_step, Net('lstm', **SMALL), CONTIGUOUS),
    'kept as attribute': lambda: parts(Stateful(**SMALL), CONTIGUOUS), 'by letters': lambda: stepped(by_letters, Tutorial()),
    'padding left out': lambda: parts(batches=with_padding(-100), loss=lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten(), ignore_index=-100)),
    'left in evaluation mode': lambda: parts(Scores(n_layers=2, dropout=.3, **SMALL).eval()),
    'awd-lstm': lambda: dict(learn=awd_learner(config=dict(emb_sz=16, n_hid=24))), 'ours': lambda: dict(learn=our_learner(n_hid=24, emb_sz=16)),
    'ours, gru': lambda: dict(learn=our_learner(n_hid=24, emb_sz=16, arch='gru', n_layers=2)),
    **{o.__name__:(lambda o=o: stepped(o)) for o in (scheduled, by_hand, with_closure, accumulated, scaled, two_optimisers)},
    'truncated': lambda: stepped(truncated, Net(**SMALL)),
}


@pytest.mark.parametrize('program', HEALTHY)
def test_nothing_is_wrong(program):
    "Beyond hints: not all of these would learn in a minute"
    report = looked(**HEALTHY[program]())
    assert not sure(report), report
    assert not report.skipped and len(report.passed) > 30, report.checks


# Small programs with a fault

class Recut(Scores):
    "view in place of transpose, there and back"
    def forward(self, x):
        e = self.emb(x)
        e = e.view(e.shape[1], e.shape[0], -1)
        return self.out(self.rnn(e)[0].transpose(0, 1))


class Summed(Scores):
    "What the sequences of a batch have in common is added to each"
    def forward(self, x):
        e = self.emb(x)
        return self.out(self.rnn(e + e.sum(0, keepdim=True))[0])


class Forgetful(Scores):
    "The state is empty again at each character"
    def forward(self, x): return self.out(torch.stack([self.rnn(self.emb(x[:,t:t+1]))[0][:,0] for t in range(x.shape[1])], 1))


class BothWays(Scores):
    def __init__(self):
        super().__init__(**SMALL)
        self.rnn = nn.GRU(16, 12, batch_first=True, bidirectional=True)


class AsNumbers(Scores):
    "Ids go into the recurrent layer as they are"
    def forward(self, x): return self.out(self.rnn(x)[0])


class Deaf(Scores):
    def forward(self, x): return super().forward(torch.zeros_like(x))


class Unlisted(Scores):
    "Layers in a plain list"
    def __init__(self):
        super().__init__(**SMALL)
        self.heads = [nn.Linear(24, 24)]
    def forward(self, x): return self.out(self.heads[0](self.rnn(self.emb(x))[0]))


class WithSpare(Scores):
    "A layer that nothing uses"
    def __init__(self):
        super().__init__(**SMALL)
        self.more = nn.Linear(24, 24)


def keeping(how):
    "A step that carries its state, which goes through `how` in between"
    def make(model, opt):
        kept = dict(state=None)
        def step(x, y):
            scores,state = model(x, kept['state'])
            kept['state'] = how(state)
            loss = loss_over_all(scores, y)
            opt.zero_grad()
            loss.backward(retain_graph=True)
            opt.step()
        return step
    return make


def unused_detach(state):
    state.detach()
    return state


def in_order(order):
    "A training step whose lines are in that order"
    def make(model, opt):
        def step(x, y):
            loss = loss_over_all(model(x), y)
            if 'cut' in order: loss = torch.tensor(loss.item(), requires_grad=True)
            if 'minus' in order: loss = -loss
            for o in order.split():
                if o == 'zero': opt.zero_grad()
                if o == 'backward': loss.backward()
                if o == 'step': opt.step()
                if o == 'new': Adam(model.parameters(), lr=1e-3).step()
        return step
    return make


def fixed_targets(f):
    "A step that makes its targets of the inputs and targets"
    def make(model, opt):
        usual = stateless_step(model, opt)
        return lambda x, y: usual(x, f(x, y))
    return make


def frozen(make=lambda model: Adam(model.parameters(), lr=3e-3)):
    model = Scores(**SMALL)
    for o in model.emb, model.rnn: o.requires_grad_(False)
    return {**parts(model), 'opt':make(model)}


def too_early():
    "An optimiser that was made before the last layer"
    kwargs = parts()
    kwargs['model'].out = nn.Linear(24, V)
    return kwargs


def weights(f, **sizes):
    model = Scores('lstm', **{**SMALL, **sizes})
    with torch.no_grad(): f(model)
    return parts(model)


def closed(model):
    for k,p in model.rnn.named_parameters():
        if 'bias' in k: p[24:48] = -4.


def copied():
    "The validation set is a part of the training set"
    items = [(train_ids[i:i+32], train_ids[i+1:i+33]) for i in range(0, 9600, 32)]
    return dict(parts(), dls=DataLoaders(DataLoader(items, bs=16, num_workers=0), DataLoader(items[:96], bs=16, num_workers=0)))


def along_the_batch():
    "view(-1, bs) in place of view(bs, -1).t()"
    data = train_ids[:9600].view(-1, 12)
    batches = [(data[i:i+16], data[i+1:i+17]) for i in range(0, len(data)-17, 16)]
    return stepped(carried_step, Net(batch_first=False, **SMALL), batches)


def padded_away():
    kwargs = parts(loss=lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten(), ignore_index=vocab.stoi[' ']))
    return kwargs


def mse(p, y): return F.mse_loss(p, F.one_hot(y, V).float())
def no_rate(): return stepped(lr=0.)


FAULTS = {
    'D1': lambda: parts(batches=[(x, x) for x,_ in RANDOM]), 'D1 in the step': lambda: stepped(fixed_targets(lambda x, y: x)),
    'D2': lambda: parts(batches=[(x[:,:-1], y[:,1:]) for x,y in RANDOM]),
    'D2 in the loss': lambda: parts(loss=lambda p, y: loss_over_all(p[:,:-1], y[:,1:])),
    'D3': lambda: parts(batches=[(x, x.roll(-1, 1)) for x,_ in RANDOM]), 'D3 in the step': lambda: stepped(fixed_targets(lambda x, y: x.roll(-1, 1))),
    'D4': lambda: stepped(carried_step, Net(**SMALL), RANDOM), 'D5': along_the_batch, 'D6': copied, 'D12': lambda: parts(batches=[(x.float(), y) for x,y in RANDOM]),
    'S1': lambda: parts(loss=F.cross_entropy), 'S2': lambda: parts(AsNumbers(**SMALL)),
    'S3': lambda: parts(loss=lambda p, y: F.cross_entropy(p.transpose(0, 1).reshape(-1, V), y.reshape(-1))),
    'S4': lambda: parts(Recut(**SMALL)), 'S4 sum': lambda: parts(Summed(**SMALL)), 'S5': lambda: parts(Scores(batch_first=False, **SMALL)),
    'S9': lambda: parts(Ends(lambda s: s.log_softmax(1)), loss=lambda p, y: F.nll_loss(p.flatten(0, 1), y.flatten())),
    'S10': lambda: parts(BothWays()), 'R1': lambda: stepped(lambda m, o: by_letters(m, o, detach=True), Tutorial()),
    'R2': lambda: stepped(keeping(lambda s: s), Net(**SMALL), CONTIGUOUS, SGD),
    'R3': lambda: stepped(keeping(unused_detach), Net(**SMALL), CONTIGUOUS, SGD),
    'R4': lambda: stepped(keeping(lambda s: s.detach().mean(1, keepdim=True).expand_as(s).contiguous()), Net(**SMALL), CONTIGUOUS),
    'R5': lambda: parts(Forgetful(**SMALL)), 'R8': lambda: stepped(by_letters, Tutorial(activation=lambda h: h)), 'R9': lambda: parts(WithSpare()),
    'R10': lambda: weights(closed), 'L1': lambda: parts(Ends(lambda s: s.softmax(-1))), 'L1 sigmoid': lambda: parts(Ends(torch.sigmoid)),
    'L1 tanh': lambda: parts(Ends(torch.tanh)), 'L2': lambda: parts(loss=lambda p, y: F.nll_loss(p.flatten(0, 1), y.flatten())),
    'L3': lambda: parts(loss=lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten(), reduction='sum'), opt=SGD),
    'L4': lambda: parts(loss=mse), 'L4 sign': lambda: stepped(in_order('zero minus backward step')), 'L5': padded_away,
    'L6': lambda: parts(loss=lambda p, y: F.cross_entropy(p[:,-1], y[:,-1])), 'L7': lambda: stepped(in_order('zero cut backward step')),
    'O5': lambda: stepped(in_order('zero backward new')), 'O6': lambda: stepped(in_order('backward step')),
    'O7': too_early, 'O7 list': lambda: parts(Unlisted()), 'O8': frozen, 'O9': lambda: stepped(in_order('step backward zero')),
    'O9 zero': lambda: stepped(in_order('backward zero step')), 'O10': no_rate, 'O9 no step': lambda: stepped(in_order('zero backward')),
    'I1': lambda: weights(lambda m: m.out.weight.normal_(0, 9)), 'I2': lambda: weights(lambda m: [p.zero_() for p in m.parameters()], n_hid=20),
    'T2': lambda: stepped(lambda m, o: lambda x, y: stateless_step(m.eval(), o)(x, y), Scores(n_layers=2, dropout=.3, **SMALL)),
    'T7': lambda: parts(batches=RANDOM[:1]*12), 'Z1': lambda: parts(Deaf(**SMALL)),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_the_fault_is_found_first(fault):
    report = looked(**FAULTS[fault]())
    assert report and report.findings[0].id == fault.split()[0], report
    first = report.findings[0]
    assert len(first.message.split('. ')) <= 4 and first.title in str(report)


# What training shows

def test_a_rate_and_a_clip_that_let_nothing_be_learned():
    "Of the same program with a usual rate and clip nothing is said"
    def clipped(norm): return lambda m, o: stateless_step(m, o, clip=norm)
    for make,id in (lambda: stepped(lr=1e-6), 'O2'),(lambda: stepped(clipped(1e-4), opt=SGD, lr=1.), 'O14'):
        assert doctor.diagnose(**make(), seconds=600).findings[0].id == id


# What counting gets to

def test_the_ladder_has_the_constants_of_a_small_text():
    "Interpolated Witten-Bell by dictionaries"
    train,valid = text[:4000],text[4000:4300]
    def p(c, h):
        if h is None: return 1/V
        after = [train[i+len(h)] for i in range(len(train)-len(h)) if train.startswith(h, i)]
        shorter = p(c, h[1:] if h else None)
        return (after.count(c) + len(set(after))*shorter)/(len(after) + len(set(after))) if after else shorter
    found = doctor.ladder(CharDataLoaders.from_documents([train, valid], [[0], [1]], vocab=vocab, bs=2, seq_len=16))
    for n,k in (1, 'unigram'),(2, 'bigram'),(5, '5-gram'):
        assert abs(found[k] + np.mean([np.log(p(c, valid[max(0, i-n+1):i])) for i,c in enumerate(valid)])) < 1e-9
    assert found['uniform'] == np.log(V) and abs(found['double softmax'] - np.log(1+(V-1)/np.e)) < 1e-12


def test_nothing_is_known_of_what_follows_the_end_of_a_text():
    "By hand: the training text is abaabz, what is predicted za; z is followed by nothing, so the frequencies decide"
    found = ids_ladder([0, 1, 0, 0, 1, 2], [2, 0], 3)
    for k in 'unigram','bigram','5-gram': assert abs(found[k] + np.log([2/9, 4/9]).mean()) < 1e-12
    assert {*ids_ladder([0], [0], 2).values()} >= {np.log(2)}


@pytest.mark.parametrize('empty', [0, 1, 2])
def test_a_sequence_of_padding_is_no_document(empty):
    "The ladder is that of the others, wherever it stands"
    some = torch.randint(0, 4, (3, 9), generator=torch.Generator().manual_seed(0))
    x,y = some[:,:-1],some[:,1:].clone()
    y[empty] = -100
    rest = [i for i in range(3) if i != empty]
    of = lambda x, y: doctor.ladder(SimpleNamespace(train=[(x, y)], valid=[(x, y)]))
    assert of(x, y) == of(x[rest], y[rest])
