"""What `diagnose` promises: its forms of input, its report, its answers to bad input"""
import itertools
import json
import time

import pytest
import torch
import torch.nn.functional as F
from fastai.basics import DataLoader, DataLoaders
from planted.parts import (V, ElmanByHand, Net, Scores, carried_step, learner, loss_over_all, stateless_step, streams, time_first,
                           valid_ids, windows)
from torch import nn

from charrnn_fa import doctor
from charrnn_fa.errors import CharRNNError
from charrnn_fa.doctor.report import catalogue, certainties

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


STEPS = {
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


# Bad input and time

def step_of_three(a, b, c): return 0


BAD = {
    'a model alone': lambda: dict(model=Scores(**SMALL)), 'a step alone': lambda: dict(step_function=print),
    'no Learner': lambda: dict(learn=3), 'a step of three': lambda: dict(model=Scores(**SMALL), step_function=step_of_three, batches=RANDOM),
    'an iterator': lambda: parts(batches=iter(RANDOM)), 'inputs alone': lambda: parts(batches=[x for x,_ in RANDOM]),
    'the class of a model': lambda: {**parts(), 'model':Scores}, 'a loss of 3': lambda: {**parts(), 'loss_func':3},
    'seconds without a number': lambda: {**parts(), 'seconds':float('nan')},
}


@pytest.mark.parametrize('bad', BAD)
def test_bad_input_is_answered_in_a_sentence(bad):
    kwargs = BAD[bad]()
    with pytest.raises(CharRNNError) as e: looked(**kwargs)
    assert e.value.remedy.strip() or 'must be' in e.value.what
    assert len(e.value.what.splitlines()) == 1 and len(e.value.what) < 200


class SlowScores(Scores):
    def forward(self, x):
        time.sleep(.1)
        return super().forward(x)


@pytest.mark.parametrize('make', [lambda: parts(SlowScores(**SMALL)), lambda: stepped(lambda m, o: lambda x, y: time.sleep(.2))])
def test_no_more_time_than_was_given(make):
    "What was not reached is said"
    began = time.monotonic()
    report = doctor.diagnose(**make(), seconds=1.)
    assert time.monotonic()-began < 8 and report.skipped and all('no time' in o for o in report.skipped), report


def test_an_endless_loader():
    class Endless:
        def __iter__(self): return itertools.cycle(RANDOM)
    assert not sure(looked(**parts(batches=Endless())))


# Loaders and steps that fail

def test_a_loader_without_batches(): assert [o.id for o in looked(**parts(batches=[])).findings] == ['D10']


class Breaks:
    "A loader that breaks after `n` batches"
    def __init__(self, n): self.n = n
    def __len__(self): return 12
    def __iter__(self):
        yield from RANDOM[:self.n]
        raise OSError('the disk is gone')


@pytest.mark.parametrize('n', [0, 1])
def test_a_loader_that_raises(n):
    f, = looked(**parts(batches=Breaks(n))).findings
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


def test_a_step_that_raises():
    f = looked(**stepped(raising(3, ValueError('boom')))).findings[0]
    assert (f.id, f.certainty) == ('E1', 'exact') and 'boom' in f.message
    assert f.place.file == __file__ and f.place.source == 'if len(calls) >= n: raise error'


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


def test_data_that_are_not_finite():
    data = series()
    data[1][0][3,4,1] = float('nan')
    f = looked(**parts(Forecast(), data, F.mse_loss)).findings[0]
    assert (f.id, f.certainty) == ('O4', 'exact')


# Small programs beside those of tests/planted

def with_closure(model, opt):
    def step(x, y):
        def closure():
            opt.zero_grad()
            loss = loss_over_all(model(x), y)
            loss.backward()
            return loss
        opt.step(closure)
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


class Causal(nn.Module):
    "No recurrence at all"
    def __init__(self):
        super().__init__()
        self.emb,self.out = nn.Embedding(V, 32),nn.Linear(32, V)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, .1, batch_first=True)
    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.out(self.layer(self.emb(x), src_mask=mask, is_causal=True))


HEALTHY = {
    'transformer': lambda: parts(Causal()), 'with closure': lambda: stepped(with_closure), 'truncated': lambda: stepped(truncated, Net(**SMALL)),
    'classes on axis 1': lambda: parts(loss=lambda p, y: F.cross_entropy(p.transpose(1, 2), y)),
    'contiguous, no state': lambda: parts(batches=CONTIGUOUS),
    'time first, contiguous': lambda: stepped(carried_step, Net(batch_first=False, **SMALL), time_first(CONTIGUOUS)),
    'flat targets': lambda: parts(batches=[(x, y.flatten()) for x,y in RANDOM], loss=lambda p, y: F.cross_entropy(p.flatten(0, 1), y)),
    'left in evaluation mode': lambda: parts(Scores(n_layers=2, dropout=.3, **SMALL).eval()),
}


@pytest.mark.parametrize('program', HEALTHY)
def test_nothing_is_wrong(program):
    "Beyond hints: not all of these would learn in a minute"
    report = looked(**HEALTHY[program]())
    assert not sure(report) and not report.skipped and len(report.passed) > 30, report
