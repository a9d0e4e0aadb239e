"""What a diagnosis leaves as it was beside weights: iterators, slots, classes, modules, open files; and what it
says of bad input and of time

Each program is as somebody might write it; nothing is asked of the parts of the doctor.
"""
import csv
import importlib
import itertools
import sqlite3
import sys
import time
from collections import deque
from functools import partial
from types import SimpleNamespace

import fastai.data.load
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import Callback, DataLoaders, Learner
from torch import nn

from charrnn_fa.core import CharRNNError
from charrnn_fa.doctor.diagnose import diagnose
from charrnn_fa.text.corpus import load_corpus

TEXT = load_corpus('pydocs')[:20_000]
SYMBOLS = sorted(set(TEXT))
IDS,V = torch.tensor([SYMBOLS.index(c) for c in TEXT]),len(SYMBOLS)


def batches(bs=8, seq_len=16, n=12):
    "Pieces from anywhere in the text"
    starts = [torch.randint(0, len(IDS)-seq_len-1, (bs,), generator=torch.Generator().manual_seed(i)).tolist()
              for i in range(n)]
    return [tuple(torch.stack([IDS[i+s:i+s+seq_len] for i in row]) for s in (0, 1)) for row in starts]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 24),nn.GRU(24, 24, batch_first=True),nn.Linear(24, V)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


def loss_over_all(scores, y): return F.cross_entropy(scores.flatten(0, 1), y.flatten())


def program(extra=lambda: None):
    "A training step that does something else as well"
    model = Net()
    opt = torch.optim.Adam(model.parameters())
    def step(x, y):
        extra()
        opt.zero_grad()
        loss_over_all(model(x), y).backward()
        opt.step()
    return dict(step_function=step, model=model, batches=batches())


def healthy(**kwargs):
    report = diagnose(**kwargs, trials=False)
    assert not [o for o in report.findings if o.certainty == 'exact'], report
    return report


def forever(n):
    while True: yield from range(n)


def falling(n, *more, by=1, **named):
    "Nothing is given another value"
    for i in range(n, 0, -by): yield i


ITERATORS = {
    'list': lambda: iter([*range(90)]), 'range': lambda: iter(range(90)), 'dict': lambda: iter({i:0 for i in range(90)}),
    'text': lambda: iter(TEXT), 'deque': lambda: iter(deque(range(90))), 'count': lambda: itertools.count(7, 3),
    'cycle': lambda: itertools.cycle([1, 2, 3]), 'chain': lambda: itertools.chain([1, 2, 3], range(90)),
    'islice': lambda: itertools.islice(itertools.count(), 3, 90), 'zip': lambda: zip('abc'*30, itertools.count()),
    'enumerate': lambda: enumerate(itertools.cycle('ab')), 'map': lambda: map(str, itertools.cycle([1, 2, 3])),
    'callable': lambda: iter(lambda: 3, 4), 'generator': lambda: forever(5),
    'options': lambda: falling(90, 1, 2, by=2, k=3), 'expression': lambda: (2*i for i in itertools.count()),
    'nested': lambda: zip(falling(90), itertools.cycle(falling(4))),
    'PyTorch': lambda: iter(torch.utils.data.DataLoader([*range(90)], batch_size=2, shuffle=True)),
    'fastai': lambda: iter(fastai.data.load.DataLoader([*range(90)], bs=2)),
}


NOT_COPIED = 'cycle', 'chain', 'islice', 'zip', 'enumerate', 'map', 'expression', 'nested'


@pytest.mark.parametrize('begun', [0, 2])
def test_iterators_stand_where_they_stood(begun):
    "Of all kinds, held by one step"
    kinds = [k for k in ITERATORS if sys.version_info < (3, 14) or k not in NOT_COPIED] # itertools cannot be copied there
    def at_their_places():
        torch.manual_seed(0)
        its = {k:ITERATORS[k]() for k in kinds}
        for it in its.values():
            for _ in range(begun): next(it)
        return its
    its,same = at_their_places(),at_their_places()
    def rest(it):
        torch.manual_seed(1)
        return [str(next(it)) for _ in range(6)]
    healthy(**program(lambda: [next(it) for it in its.values()]))
    for k in kinds: assert rest(its[k]) == rest(same[k]), k


@pytest.mark.parametrize('how', ['global', 'attribute', 'list', 'dict', 'pair', 'default', 'partial', 'method',
                                 'slot', 'class', 'model'])
def test_it_does_not_matter_where_it_is_held(how, monkeypatch):
    it = iter(range(9000))
    class Holds:
        __slots__ = 'it',
        of_class = it if how == 'class' else None
    slotted,has,model = Holds(),SimpleNamespace(it=it),None
    slotted.it = it
    monkeypatch.setitem(globals(), 'held', it)
    a_list,a_dict,pair = [it],{'it':it},(it, 0)
    extra = {'global':lambda: next(held),   # noqa: F821
             'attribute':lambda: next(has.it), 'list':lambda: next(a_list[0]), 'dict':lambda: next(a_dict['it']),
             'pair':lambda: next(pair[0]),
             'default':lambda it=it: next(it), 'partial':partial(next, it), 'method':it.__next__,
             'slot':lambda: next(slotted.it), 'class':lambda: next(Holds.of_class),
             'model':lambda: next(model.it)}[how]
    kwargs = program(extra)
    model = kwargs['model']
    if how == 'model': model.it = it
    healthy(**kwargs)
    assert next(it) == 0 and next(a_list[0]) == 1 and next(has.it) == 2


def test_a_step_that_takes_its_own_batches_is_examined():
    "From a loader that has gone on, which is where it was"
    model = Net()
    opt = torch.optim.Adam(model.parameters())
    it = forever_through(batches())
    next(it)
    def step():
        x,y = next(it)
        opt.zero_grad()
        loss_over_all(model(x), y).backward()
    report = diagnose(step_function=step, model=model, opt=opt, trials=False)
    assert report.findings[0].id in ('O7', 'O9', 'O11'), report # nothing steps
    assert torch.equal(next(it)[0], batches()[1][0])


def forever_through(batches):
    while True: yield from batches


def counted_down(n):
    while n:
        n -= 1
        yield n


def workers():
    "Stands for a loader with processes of its own"
    a,_ = itertools.tee(iter(range(90)))
    return a


@pytest.mark.parametrize('make,name', [(lambda: counted_down(90), 'generator counted_down'), (workers, 'tee')])
def test_what_cannot_be_put_back_is_not_moved_and_said(make, name):
    it,same = make(),make()
    next(it), next(same)
    with pytest.raises(CharRNNError, match=f'could not be put back afterwards .{name}.*give the doctor a training step'):
        diagnose(**program(lambda: next(it)))
    assert next(it) == next(same)
    healthy(**program(lambda: it)) # only held


class Counter:
    n,names = 0,[]
    def count(self):
        type(self).n += 1
        Counter.names.append('x')
        Counter.made = 1


class Slotted:
    __slots__ = 'n','made'
    def __init__(self): self.n = 0
    def count(self):
        self.n += 1
        self.made = 1


def test_classes_and_slots_count_from_where_they_stood():
    a,b = Counter(),Slotted()
    names = Counter.names
    def extra(): a.count(), b.count()
    healthy(**program(extra))
    assert ((Counter.n, Counter.names, b.n) == (0, [], 0) and Counter.names is names and not hasattr(Counter, 'made')
            and not hasattr(b, 'made'))


def test_a_class_that_only_a_function_names():
    def extra(): Counter.n += 1
    healthy(**program(extra))
    assert Counter.n == 0


def test_globals_of_other_modules(tmp_path, monkeypatch):
    "Of a module that the step names, and of one that this one names"
    (tmp_path/'own_config.py').write_text('step,seen = 0,[]\n')
    (tmp_path/'own_helpers.py').write_text('import own_config\ncalls = 0\ndef count():\n'
                                           '    global calls\n    calls += 1\n    own_config.step += 1\n'
                                           '    own_config.seen.append(calls)\n    own_config.made = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    helpers = importlib.import_module('own_helpers')
    config = sys.modules['own_config']
    monkeypatch.setitem(globals(), 'own_helpers', helpers)
    def extra(): own_helpers.count()   # noqa: F821
    healthy(**program(extra))
    assert (helpers.calls, config.step, config.seen, hasattr(config, 'made')) == (0, 0, [], False)


def test_whoever_goes_through_a_list_goes_on():
    "What did not change is not filled anew"
    names = deque('abc')
    it = iter(names)
    next(it)
    healthy(**program(lambda: names))
    assert next(it) == 'b'


@pytest.mark.parametrize('how', ['print', 'write', 'method', 'attribute', 'csv', 'dict writer', 'binary', 'both'])
def test_an_open_file_is_not_written_to(how, tmp_path):
    path = tmp_path/'log'
    mode = {'binary':'wb', 'both':'w+'}.get(how, 'w')
    with open(path, mode) as log:
        log.write(b'first\n' if how == 'binary' else 'first\n')
        log.flush()
        write,has,rows,named = log.write,SimpleNamespace(log=log),csv.writer(log),csv.DictWriter(log, ['a'])
        extra = {'print':lambda: print('x', file=log, flush=True),
                 'write':lambda: log.write('x'), 'method':lambda: write('x'), 'attribute':lambda: has.log.write('x'),
                 'csv':lambda: rows.writerow([1]), 'dict writer':lambda: named.writerow(dict(a=1)),
                 'binary':lambda: log.write(b'x'), 'both':lambda: log.write('x')}[how]
        healthy(**program(extra))
        assert has.log is log and not log.closed
        log.flush()
        assert path.read_bytes() == b'first\n'
        extra()
    assert path.stat().st_size > 6


def test_a_file_that_is_closed_in_the_step_is_open(tmp_path):
    with open(tmp_path/'log', 'w') as log:
        def extra():
            log.write('x')
            log.flush()
            assert log.fileno() > 2
        healthy(**program(extra))
        healthy(**program(lambda: log.closed or log.close()))
        log.write('y')
    assert (tmp_path/'log').read_text() == 'y'


def test_a_file_that_is_read_is_at_its_place(tmp_path):
    (tmp_path/'text').write_text(TEXT)
    with open(tmp_path/'text') as f:
        f.read(10)
        healthy(**program(lambda: f.read(100)))
        assert f.read(5) == TEXT[10:15]


class Clock:
    "Seconds that pass when something takes some, and a little at each look, however fast the machine is"
    now = 0.
    def __call__(self):
        self.now += 1e-3
        return self.now
    def sleep(self, seconds): self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(time, 'perf_counter', clock := Clock())
    return clock


def take(seconds): time.perf_counter.sleep(seconds) if isinstance(time.perf_counter, Clock) else time.sleep(seconds)


class Slow(list):
    def __iter__(self):
        for b in list.__iter__(self):
            take(.1)
            yield b


class Endless:
    def __iter__(self): return itertools.cycle(batches())


class Breaks:
    def __init__(self, n): self.n = n
    def __iter__(self):
        yield from batches()[:self.n]
        raise OSError('the disk is gone')
    def __len__(self): return 12


def given(dls, model=None, **kwargs): return dict(model=model or Net(), loss_func=loss_over_all, dls=dls, **kwargs)
def learner(*dls, **kwargs): return dict(learn=Learner(DataLoaders(*dls), Net(), loss_func=loss_over_all), **kwargs)


@pytest.mark.parametrize('make', [lambda: given(Slow(batches(n=300))),
                                  lambda: given(SimpleNamespace(train=Slow(batches(n=300)), valid=Slow(batches(n=300)))),
                                  lambda: learner(Slow(batches(n=300)), Slow(batches(n=300))),
                                  lambda: learner(Endless(), Endless())])
def test_a_slow_loader_takes_no_more_time_than_was_given(make, clock):
    report = diagnose(**make(), seconds=2.)
    assert clock.now < 2.4 and report.skipped, report


@pytest.mark.parametrize('seconds', [0, .05])
def test_no_time_is_enough_for_nothing(seconds):
    report = diagnose(**given(Slow(batches())), seconds=seconds)
    assert not report.findings and 'anything: there was no time' in report.skipped and report.seconds < 2


@pytest.mark.parametrize('seconds', [-1, float('nan'), None, '3'])
def test_seconds_must_be_a_number(seconds):
    with pytest.raises(CharRNNError, match='seconds is'): diagnose(**given(batches()), seconds=seconds)


class NotCopied(Net):
    def __deepcopy__(self, memo): raise RuntimeError('not this one')


@pytest.mark.parametrize('make', [lambda: given(batches(), NotCopied()), lambda: given(batches(bs=1)),
                                  lambda: given(Endless()), lambda: given(DataLoaders(batches())),
                                  lambda: learner(batches()),
                                  lambda: learner(batches(), None)])
def test_what_is_no_fault(make): healthy(**make())


@pytest.mark.parametrize('make,said', [
    (lambda: dict(learn=Learner(None, Net(), loss_func=loss_over_all)), 'The Learner has no data; give it loaders'),
    (lambda: given((b for b in Endless())), 'use up; give a list'), (lambda: given('abc'), 'str cannot be gone through'),
    (lambda: given([x for x,_ in batches()]), 'no inputs and targets; give pairs'),
    (lambda: given([(x[:0], y[:0]) for x,y in batches()]), 'nothing in it'),
    (lambda: given(batches(), Net), 'the class Net'), (lambda: given(batches(), opt=torch.optim.Adam), 'the class Adam'),
    (lambda: dict(model=Net(), loss_func=3, dls=batches()), 'no function'),
    (lambda: dict(model=Net(), step_function=3, batches=batches()), 'The training step is int')])
def test_bad_input_is_answered_in_a_sentence(make, said):
    kwargs = make()
    with pytest.raises(CharRNNError, match=said) as e: diagnose(**kwargs)
    assert e.value.remedy


@pytest.mark.parametrize('make', [lambda: given(batches(), Net().to('meta')),
                                  lambda: given([tuple(o.to('meta') for o in b) for b in batches()]),
                                  lambda: {**program(), 'model':None}])
def test_a_model_on_another_device(make):
    kwargs = make()
    if kwargs['model'] is None:
        model = kwargs['model'] = Net().to('meta')
        kwargs['step_function'] = lambda x,y: loss_over_all(model(x), y).backward()
    f, = diagnose(**kwargs).findings
    assert ((f.id, 'no numbers on the device meta; put model and batches on another one' in f.message) == ('E1', True)
            and 'to(device)' in f.fix and 'OtherDevice' not in str(f))


def test_a_validation_loader_that_breaks_is_a_finding():
    for kwargs in learner(batches(), Breaks(0)), given(SimpleNamespace(train=batches(), valid=Breaks(1))):
        report = diagnose(**kwargs, trials=False)
        assert any('The loader ends in an error' in o.message
                   and 'the disk is gone' in o.message for o in report.findings), report


def test_an_iterator_for_validation_is_not_used_up():
    valid = iter(batches())
    healthy(**given(SimpleNamespace(train=batches(), valid=valid)))
    healthy(learn=Learner(DataLoaders(batches(), valid), Net(), loss_func=loss_over_all))
    assert len([*valid]) == 12


def test_loaders_that_are_none_are_said():
    assert [o.id for o in diagnose(learn=Learner(DataLoaders(), Net(), loss_func=loss_over_all)).findings] == ['D10']


def test_a_learner_has_its_loaders_back():
    kwargs = learner(batches(), batches())
    dls = kwargs['learn'].dls
    diagnose(**kwargs, trials=False)
    assert kwargs['learn'].dls is dls


def line_of(f, source):
    "The place of a finding is in this file, in a line like that"
    assert f.place and f.place.file == __file__ and source in f.place.source, f
    return f


def raised_at(n, e=ValueError('boom')):
    "From the n-th call on"
    calls = []
    def extra():
        calls.append(1)
        if len(calls) >= n: raise e
    return extra


@pytest.mark.parametrize('trials', [True, False])
@pytest.mark.parametrize('n', [1, 3, 7])
def test_an_error_in_a_later_step_is_a_finding(n, trials):
    f = line_of(diagnose(**program(raised_at(n)), trials=trials).findings[0], 'if len(calls) >= n: raise e')
    assert ((f.id, f.certainty, f.title) == ('E1', 'exact', 'The training step ends in an error')
            and 'ValueError: boom' in f.message and __file__ in f.fix)
    assert n == 1 or f'Step {n} ends' in f.message


def test_an_error_that_only_a_long_training_meets():
    f = line_of(diagnose(**{**program(raised_at(33)), 'batches':batches(n=60)}).findings[0], 'raise e')
    assert (f.id, f.evidence['step']) == ('E1', 33)


def test_a_batch_in_the_middle_that_does_not_fit():
    kwargs = program()
    x,y = kwargs['batches'][9]
    kwargs['batches'][9] = x,y[:,:-1]
    f = line_of(diagnose(**kwargs, trials=False).findings[0], 'loss_over_all')
    assert (f.id, f.evidence['step']) == ('D3', 10), f


class RaisesInBatch(Callback):
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.training and self.iter == self.n: raise KeyError('boom')


@pytest.mark.parametrize('n', [0, 6])
def test_an_error_in_a_callback_is_a_finding(n):
    f = line_of(diagnose(learn=Learner(DataLoaders(batches(), batches()), Net(), loss_func=loss_over_all,
                                       cbs=RaisesInBatch(n)), trials=False).findings[0], "raise KeyError('boom')")
    assert (f.id, f.place.function) == ('E1', 'after_batch') and r'\n' not in f.message and 'boom' in f.message


def schedule_of(n):
    "A step whose schedule ends after n steps"
    kwargs = program()
    opt = torch.optim.SGD(kwargs['model'].parameters(), lr=.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, .1, total_steps=n)
    return program(schedule.step)


@pytest.mark.parametrize('make', [lambda: program(raised_at(20, StopIteration())),
                                  lambda: program(raised_at(13, IndexError())), lambda: schedule_of(14)])
def test_a_training_that_was_not_meant_to_go_on_has_no_error(make):
    "Beyond the first pass through the batches"
    assert not [o for o in diagnose(**make(), seconds=20).findings if o.id[0] == 'E']


def test_a_long_error_is_not_cut_within_a_word():
    f, = diagnose(**program(raised_at(1, RuntimeError('word '*200)))).findings
    assert f.message.endswith('word ….') and str(f).count('RuntimeError') == 1 and not f.evidence


state = torch.zeros(1, 8, 24)


@pytest.mark.parametrize('options', [dict(retain_graph=True), {}])
def test_a_state_that_is_never_detached_by_its_name(options):
    model = Net()
    opt = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    def step(x, y):
        global state
        out,state = model.rnn(F.one_hot(x, V).float() @ model.emb.weight, state)
        opt.zero_grad()
        loss_over_all(model.out(out), y).backward(**options)
        opt.step()
    f = diagnose(step_function=step, model=model, batches=batches(), trials=False).findings[0]
    assert (f.id, f.fix) == ('R2', 'state = state.detach()') and state.grad_fn is None, f


class PairKept(Net):
    def __init__(self):
        super().__init__()
        self.rnn,self.memory = nn.LSTM(24, 24, batch_first=True),None
    def forward(self, x):
        out,self.memory = self.rnn(self.emb(x), self.memory)
        return self.out(out)


def test_a_pair_that_is_never_detached():
    f = diagnose(**given(batches(), PairKept()), trials=False).findings[0]
    assert (f.id, f.fix) == ('R2', 'self.memory = tuple(o.detach() for o in self.memory)'), f


@pytest.mark.parametrize('seconds', [0, .02])
def test_too_little_time_is_said_in_the_first_line(seconds):
    report = diagnose(**given(batches()), seconds=seconds)
    assert (report.heading().startswith('There was not enough time') and report.as_dict()['enough_time'] is False
            and report.late), report
    assert diagnose(**given(batches()), trials=False, seconds=600).as_dict()['enough_time'] is True


class Broken(torch.utils.data.Dataset):
    def __init__(self, at): self.at = at
    def __len__(self): return 90
    def __getitem__(self, i):
        if i == self.at: raise IndexError('row is broken')
        return IDS[i:i+16],IDS[i+1:i+17]


@pytest.mark.parametrize('at', [0, 20])
def test_a_data_set_that_breaks_is_a_finding_with_its_line(at):
    dl = torch.utils.data.DataLoader(Broken(at), 16)
    for kwargs in given(dl), learner(dl, batches()):
        f = line_of(diagnose(**kwargs).findings[0], "raise IndexError('row is broken')")
        assert ((f.id, f.place.function) == ('E2', '__getitem__') and 'row is broken' in f.message
                and 'LoaderEnds' not in str(f))


@pytest.mark.parametrize('make', [lambda: given(Breaks(0)), lambda: given(Breaks(1)), lambda: learner(Breaks(0), batches())])
def test_a_loader_that_breaks_is_a_finding(make):
    f = line_of(diagnose(**make()).findings[0], "raise OSError('the disk is gone')")
    assert (f.id, f.title) == ('E2', 'The loader ends in an error') and 'batch' in f.message


class Forecast(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn,self.out = nn.LSTM(3, 16, batch_first=True),nn.Linear(16, 3)
    def forward(self, x): return self.out(self.rnn(x)[0])


@pytest.mark.parametrize('bad', [0, 1, 5])
def test_data_that_are_no_numbers_are_said_before_all_else(bad):
    data = [(torch.randn(4, 10, 3), torch.randn(4, 10, 3)) for _ in range(12)]
    data[bad][0][3,4,1] = float('nan')
    model = Forecast()
    f, = diagnose(model=model, dls=data, loss_func=nn.MSELoss(), opt=torch.optim.Adam(model.parameters())).findings
    assert f.id == 'O4' and f'Batch {bad} itself' in f.message and 'inputs' in f.message and '[3, 4, 1]' in f.message, f


def test_missing_targets_that_a_loss_leaves_out_are_no_fault():
    def loss(p, y): return F.mse_loss(p[~y.isnan()], y[~y.isnan()])
    data = [(torch.randn(4, 10, 3), torch.randn(4, 10, 3)) for _ in range(12)]
    for _,y in data: y[1,2] = float('nan')
    assert not [o for o in diagnose(model=Forecast(), dls=data, loss_func=loss, trials=False).findings if o.id == 'O4']


def test_one_symbol_is_nothing_to_learn():
    model = nn.Sequential(nn.Embedding(1, 8), nn.Linear(8, 1))
    f, = diagnose(model=model, dls=[(torch.zeros(4, 10).long(),)*2]*12, loss_func=loss_over_all).findings
    assert (f.id, 'only one symbol' in f.message) == ('D11', True), f


def test_a_data_base_is_not_written_to(tmp_path):
    def insert():
        db = sqlite3.connect(tmp_path/'log.db')
        db.execute('create table if not exists t (a)')
        db.commit()
        db.close()
    with pytest.raises(CharRNNError, match='log.db.*give the doctor a training step'): diagnose(**program(insert))
    assert not (tmp_path/'log.db').exists()
    healthy(**program(lambda: sqlite3.connect(':memory:').close()))


class Frozen(Net):
    def forward(self, x):
        with torch.no_grad():
            h = self.rnn(self.emb(x))[0]
        return self.out(h)


def test_layers_without_gradients_by_the_line():
    f = line_of(diagnose(**given(batches(), Frozen()), trials=False).findings[0], 'h = self.rnn(self.emb(x))[0]')
    assert (f.id, 'no_grad' in f.message, bool(f.fix)) == ('L7', True, True)


@pytest.mark.parametrize('norm,said', [(1e-3, True), (1., False)])
def test_gradients_that_are_clipped_away(norm, said):
    model = Net()
    opt = torch.optim.SGD(model.parameters(), lr=1.)
    def step(x, y):
        opt.zero_grad()
        loss_over_all(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), norm)
        opt.step()
    found = diagnose(step_function=step, model=model, batches=batches(), seconds=600).findings
    assert ([o.id for o in found] == ['O14']*said
            and all('clipping' in o.message and 'in place of 0.001' in o.fix for o in found)), found


class SlowNet(Net):
    def forward(self, x):
        take(.8)
        return super().forward(x)


class SlowSet(Broken):
    def __getitem__(self, i):
        take(.05)
        return super().__getitem__(i)


@pytest.mark.parametrize('make', [lambda: given(batches(), SlowNet()),
                                  lambda: given(torch.utils.data.DataLoader(SlowSet(None), 16))])
def test_what_cannot_end_in_time_is_not_begun(make, clock):
    report = diagnose(**make(), seconds=2.)
    assert clock.now < 2.4 and report.late, report
