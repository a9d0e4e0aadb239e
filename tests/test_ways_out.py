"The ways out of a fit that are not its end: errors, output that cannot be written, processes that were forked, weights that are no numbers"
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fastai.basics import ItemTransform, Learner, noop
from fastai.callback.all import (CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException,
                                 Callback, GradientAccumulation, MixUp, SaveModelCallback, TerminateOnNaNCallback)

import charrnn_fa.run.folder
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.doctor.watch import Doctor, ShapeError
from charrnn_fa.learner import char_learner
from charrnn_fa.models import CharRNN
from charrnn_fa.run.files import RunError
from charrnn_fa.run.folder import Lock, RunFolder
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from kills import newest_step, set_generators
from test_checkpoint import At, Noise, plain, small
from test_fits_again import other, ours

HERE = Path(__file__).parent


@pytest.fixture
def short(text): return text[:1000]


def script(d, body, **kwargs):
    "A Python process of its own that has a small Learner, `learn`, and a folder, `d`"
    head = f'''
        import os, sys, signal, time, multiprocessing
        sys.path.insert(0, {str(HERE)!r})
        from pathlib import Path
        from test_checkpoint import At, Callback, Checkpoint, small
        from charrnn_fa.text.corpus import load_corpus
        d = Path({str(d)!r})
        learn = small(d, load_corpus('pydocs')[:1000], 5)
    '''
    code = textwrap.dedent(head) + body
    return subprocess.Popen([sys.executable, '-c', code], env={**os.environ, 'OMP_NUM_THREADS': '1'}, text=True, **kwargs)


# Other processes

FORKS = '''
class Fork(Callback):
    def before_batch(self):
        if self.training and self.train_iter == 2:
            self._p = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,), daemon=True)
            self._p.start()
            (d/'pid').write_text(str(self._p.pid))

learn.fit(1, 1e-2, cbs=[Fork(), Checkpoint(d/'r', quiet=True)])
'''

def test_the_interpreter_ends_beside_a_daemon(tmp_path):
    "Python terminates daemons at its end, and waits for them"
    p = script(tmp_path, FORKS)
    try: assert p.wait(120) == 0
    finally:
        p.kill()
        try: os.kill(int((tmp_path/'pid').read_text()), signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError): pass
    assert RunFolder(tmp_path/'r').finished


@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT])
def test_a_forked_process_has_the_handlers_of_before(short, tmp_path, sig):
    "Two checkpoints stand in front of them; the parent keeps its own"
    seen = []
    class Fork(Callback):
        def before_batch(self):
            if not self.training or self.train_iter != 2: return
            r,w = os.pipe()
            if not os.fork():
                os.write(w, str(signal.getsignal(sig) is before).encode())
                os._exit(0)
            os.close(w)
            seen.append(os.read(r, 10))
            seen.append(signal.getsignal(sig) is before)
            os.close(r)
            os.wait()
    before = signal.default_int_handler if sig == signal.SIGINT else signal.getsignal(sig)
    old = signal.signal(sig, before)
    try: ours(tmp_path, short).fit(1, 1e-2, cbs=[Fork(), *(Checkpoint(tmp_path/o, quiet=True) for o in 'ab')])
    finally: signal.signal(sig, old)
    assert seen == [b'True', False] and RunFolder(tmp_path/'a').finished


# Errors

class Sums(Callback):
    "Counts on the way to a step, changes the rate there, and trains on what it has"
    order = 3
    def __init__(self): self.n,self.seen = 0,[0.]*5
    def before_batch(self):
        if not self.training: return
        self.n += 1
        self.seen[self.n%5] += self.n
        self.opt.set_hyper('lr', self.opt.hypers[-1]['lr']*0.99)
    def before_step(self):
        for p in self.model.parameters():
            if p.grad is not None: p.grad.add_(1e-4*sum(self.seen) + 1e-3*torch.randn(()))


def of(d, short, *cbs, n=2, ckpt=dict(minutes=60), accumulate=0, make=ours, sums=True):
    learn = make(d, short)
    learn.fit(n, 1e-2, cbs=[*[Sums()]*sums, *[GradientAccumulation(accumulate)]*bool(accumulate), *cbs,
                            Checkpoint(d/'r', **{'quiet': True, **ckpt})])
    return learn


@pytest.fixture(scope='module')
def alone_with(text, tmp_path_factory):
    "The run that nothing stops; trained once for all tests that compare theirs with the same one"
    runs = {}
    def _alone(*cbs, **kwargs):
        if (k := (*cbs, *kwargs.items())) not in runs:
            runs[k] = of(tmp_path_factory.mktemp('alone'), text[:1000], *(f() for f in cbs), **kwargs)
        return runs[k]
    return _alone


ON_THE_WAY = 'before_batch after_pred after_loss before_backward after_backward before_step'.split()
IN_A_BATCH = dict.fromkeys(ON_THE_WAY, 0) | dict(after_step=1, after_batch=1)

def same_history(a, b):
    return ([float(o) for o in a.recorder.losses] == [float(o) for o in b.recorder.losses]
            and a.recorder.lrs == b.recorder.lrs)

# an error at each event of a later batch; and of the first and the last, as far as the step and then behind it
ERRORS = [*((order, [(o, 3) for o in IN_A_BATCH]) for order in (-20, 4, 55, 900)),
          *((55, [('before_batch', n), *((o, 1) for o in ON_THE_WAY[1:]), ('after_step', 1)]) for n in (1, 15, 28)),
          *((55, [('after_batch', n)]) for n in (1, 15, 28))]

@pytest.mark.parametrize('order,errors', ERRORS)
def test_errors_in_batches(short, tmp_path, same, alone_with, order, errors, capfd):
    """Before its step the batch before is saved, after it this one, whichever callbacks have heard of it; epochs
    have 14. One error after the other stops the same run, each at the n-th event of its process"""
    alone,step = alone_with(),0
    for event,n in errors:
        with pytest.raises(RuntimeError, match='thrown'): of(tmp_path, short, At(event, n, 'error', order))
        step += n-1+IN_A_BATCH[event]
        assert (newest_step(tmp_path/'r'), Lock.held) == (step, {}) and capfd.readouterr() == ('', ''), event
    again = of(tmp_path, short)
    assert same(alone, again) and same_history(alone, again)


class Records(Callback):
    "Draws from what it has recorded; a record may be long, or too deep for a copy at each batch"
    def __init__(self, of): self.record,self.of = [],of
    def after_loss(self):
        if not self.training: return
        if not self.record: self.record = [self.of(0) for _ in range(1200)]
        self.record.append(self.of(self.train_iter))
        self.learn.loss_grad = self.loss_grad*(1 + len(self.record)/1e4)


@pytest.mark.parametrize('of_what,step', [(float, 18), (torch.tensor, 15), (lambda i: [i], 15)])
def test_an_error_beside_a_long_record(short, tmp_path, same, of_what, step):
    alone = of(tmp_path/'alone', short, Records(of_what))
    with pytest.raises(RuntimeError):
        of(tmp_path, short, Records(of_what), At('before_step', 19, 'error'), ckpt=dict(steps=5))
    assert newest_step(tmp_path/'r') == step
    assert same(alone, of(tmp_path, short, Records(of_what), ckpt=dict(steps=5)))


class Anneals(Callback):
    "Lets dropout rise and one matrix train every other time; what another process would do again after an error"
    def before_batch(self):
        if not self.training: return
        for m in self.model.modules():
            if isinstance(m, torch.nn.Dropout): m.p = min(0.5, m.p + 0.01)
        w = self.model.emb.weight
        w.requires_grad_(not w.requires_grad)
    def before_epoch(self):
        for d in self.model.drops: d.p /= 2
    def after_pred(self):
        if self.training: self.model.drops[0].train(not self.model.drops[0].training)

class Freezes(Callback):
    "Every other time all groups but the last stand still; gradients that no step has used cannot be brought back"
    def before_batch(self):
        if self.training: self.opt.freeze_to(0 if self.opt.frozen_idx else -1)

@pytest.mark.parametrize('ns', [[15]+[1]*5, [3]*6])
def test_errors_beside_a_callback_that_sets_what_modules_do(short, tmp_path, same, alone_with, ns):
    alone,step = alone_with(Anneals),0
    for event,n in zip(ON_THE_WAY, ns, strict=True):
        with pytest.raises(RuntimeError): of(tmp_path, short, Anneals(), At(event, n, 'error', 900))
        step += n-1
        assert newest_step(tmp_path/'r') == step, event
    again = of(tmp_path, short, Anneals())
    assert same(alone, again) and [m.p for m in alone.model.drops] == [m.p for m in again.model.drops]


@pytest.mark.parametrize('event', ON_THE_WAY)
def test_an_error_beside_a_callback_that_freezes(short, tmp_path, same, alone_with, event):
    alone = alone_with(Freezes)
    with pytest.raises(RuntimeError): of(tmp_path, short, Freezes(), At(event, 20, 'error', 900))
    assert newest_step(tmp_path/'r') == (0 if event in ('after_backward', 'before_step') else 19)
    assert same(alone, of(tmp_path, short, Freezes()))


def stopped_and_again(d, short, same, step, *cbs, event='before_step', n=19, order=900, valid=False, exact=True, extra=()):
    "An error, and whether the same fit afterwards does what it does alone; `cbs` makes callbacks"
    make = lambda: [f() for f in cbs]
    alone = of(d/'alone', short, *make(), n=3)
    with pytest.raises(RuntimeError, match='thrown'):
        of(d, short, *make(), At(event, n, 'error', order, valid), *extra, ckpt=dict(steps=5), n=3)
    assert newest_step(d/'r') == step
    again = of(d, short, *make(), ckpt=dict(steps=5), n=3)
    assert (same(alone, again) and same_history(alone, again)) == exact


def written(write):
    class Writes(Callback):
        def before_batch(self):
            if self.training: write(self)
    return Writes

def past_the_version(cb):
    for p in cb.model.parameters(): p.data.mul_(0.999)
def by_numpy(cb):
    for p in cb.model.parameters(): p.detach().numpy()[...] *= -1
def into_the_optimiser(cb):
    for s in cb.opt.state.values():
        if 'grad_avg' in s: s['grad_avg'].mul_(0.5)
def into_the_carried_state(cb):
    for o in cb.learn.carried or (): o.mul_(0.9)
def openly(cb):
    with torch.no_grad(): next(cb.model.parameters()).mul_(0.999)

@pytest.mark.parametrize('write', [past_the_version, by_numpy, into_the_optimiser, into_the_carried_state, openly])
def test_what_was_written_to_is_not_saved(short, tmp_path, same, write):
    "A mark cannot bring weights back, so the last checkpoint counts"
    stopped_and_again(tmp_path, short, same, 15, written(write))


class Store(Callback):
    "Hears of nothing; another one counts here"
    def __init__(self): self.total = 0
class CountsThere(Callback):
    def before_batch(self):
        if self.training: self.learn.store.total += 1
    def before_step(self): self.opt.set_hyper('lr', 1e-2/(1 + self.learn.store.total))
class Hook(Callback):
    "Counts where the model is called"
    def __init__(self): self.calls = 0
    def before_fit(self): self._hook = self.model.decoder.register_forward_hook(self.count)
    def count(self, *args): self.calls += self.training
    def after_batch(self): self.opt.set_hyper('lr', 1e-2/(1 + self.calls))
    def after_fit(self): self._hook.remove()
class Late(Callback):
    "Begins to count in the batch that fails"
    def before_batch(self):
        if self.training and self.train_iter >= 18: self.n = vars(self).get('n', 0) + 1
    def before_step(self): self.opt.set_hyper('lr', 1e-2/(1 + vars(self).get('n', 0)))

@pytest.mark.parametrize('cbs', [[Store, CountsThere], [Hook], [Late]])
def test_what_counts_elsewhere(short, tmp_path, same, cbs): stopped_and_again(tmp_path, short, same, 18, *cbs)


class Boxed(Callback):
    "Only itself knows what it holds"
    def __init__(self): self.box = SimpleNamespace(n=0)
    def before_batch(self):
        if self.training: self.box.n += 1
    def before_step(self): self.opt.set_hyper('lr', 1e-2/(1 + self.box.n))
    def state_dict(self): return dict(n=self.box.n)
    def load_state_dict(self, d): self.box.n = d['n']

def test_a_callback_that_says_itself_what_it_holds(short, tmp_path, same):
    stopped_and_again(tmp_path, short, same, 15, Boxed)


class Samples(Callback):
    "Looks at the model after each batch, and fails there once"
    fails = True
    def after_batch(self):
        if not self.training: return
        self.model.eval()
        if Samples.fails and self.train_iter == 19: raise RuntimeError('thrown')
        self.model.train()

def test_an_error_that_leaves_the_model_in_another_mode(short, tmp_path, same, monkeypatch):
    "It is not to be trained on"
    dropout = lambda d, text: small(d, text, 5, dropout=0.3)
    monkeypatch.setattr(Samples, 'fails', False)
    alone = of(tmp_path/'alone', short, Samples(), make=dropout)
    monkeypatch.setattr(Samples, 'fails', True)
    with pytest.raises(RuntimeError): of(tmp_path, short, Samples(), ckpt=dict(steps=5), make=dropout)
    monkeypatch.setattr(Samples, 'fails', False)
    assert newest_step(tmp_path/'r') == 15
    assert same(alone, of(tmp_path, short, Samples(), ckpt=dict(steps=5), make=dropout))


def cancels(event, exception, order=5):
    class Cancels(Callback):
        def __init__(self): self.order = order
    def f(self):
        if self.training and self.epoch == 1 and self.iter == 4: raise exception
    setattr(Cancels, event, f)
    return Cancels

@pytest.mark.parametrize('event,order', [('after_batch', -50), ('after_step', -50), ('after_step', 50)])
@pytest.mark.parametrize('exception', [CancelTrainException, CancelEpochException])
def test_an_error_before_another_callback_cancels(short, tmp_path, same, event, order, exception):
    "In the very batch; what that would have cancelled goes on nowhere"
    stopped_and_again(tmp_path, short, same, 15, cancels('after_batch', exception), event=event, order=order)

@pytest.mark.parametrize('event,exception,n,valid,step', [
    ('before_epoch', CancelEpochException, 3, False, 15), ('before_validate', CancelTrainException, 2, False, 15),
    ('after_pred', CancelTrainException, 4, True, 15), ('after_epoch', CancelTrainException, 2, False, 15)])
def test_an_error_after_a_cancelled_epoch(short, tmp_path, same, event, exception, n, valid, step):
    "No mark of its batches counts any more"
    stopped_and_again(tmp_path, short, same, step, cancels('before_batch', exception), event=event, n=n, valid=valid)


@pytest.mark.parametrize('event,order', [('after_step', 50), ('after_batch', -50), ('before_step', 50)])
def test_an_error_beside_two_checkpoints(short, tmp_path, same, alone_with, event, order):
    "Each goes on by itself, and has what it says"
    alone = alone_with()
    with pytest.raises(RuntimeError):
        of(tmp_path, short, At(event, 19, 'error', order),
           Checkpoint(tmp_path/'s', steps=5, quiet=True), ckpt=dict(steps=5))
    steps = [newest_step(tmp_path/o) for o in 'rs']
    assert steps == [18 if event == 'before_step' else 15]*2
    os.rename(tmp_path/'s', tmp_path/'r2')
    assert same(alone, of(tmp_path, short, ckpt=dict(steps=5)))
    os.rename(tmp_path/'r', tmp_path/'r1')
    os.rename(tmp_path/'r2', tmp_path/'r')
    assert same(alone, of(tmp_path, short, ckpt=dict(steps=5)))


def test_an_error_that_was_there_before(short, tmp_path, same):
    "One object, raised first by a callback and then by the model; its traceback has both places"
    e = RuntimeError('thrown')
    def _call_one(cb, event_name): raise e
    class Twice(Callback):
        def before_fit(self): self._hook = self.model.register_forward_pre_hook(self.look)
        def look(self, *args):
            if not self.training or self.train_iter != 18: return
            with suppress(RuntimeError): _call_one(self, 'after_batch')
            raise e
    with pytest.raises(RuntimeError): of(tmp_path, short, Twice(), sums=False)
    assert newest_step(tmp_path/'r') == 18
    assert same(of(tmp_path/'alone', short, sums=False), of(tmp_path, short, sums=False))


class Leaves(Callback):
    "Takes itself out of the Learner, and then fails"
    def after_batch(self):
        if self.training and self.train_iter == 19:
            self.learn.remove_cb(self)
            raise RuntimeError('thrown')

class TakesOut(Callback):
    "Takes the checkpoint out of the Learner, and then fails"
    def after_batch(self):
        self.learn.remove_cb(self.learn.checkpoint)
        raise RuntimeError('thrown')

@pytest.mark.parametrize('cb', [lambda: At('before_train', 1, 'error'), lambda: At('before_batch', 1, 'error', -50),
                                Leaves, TakesOut])
def test_the_error_stays_what_it_was(short, tmp_path, cb):
    with pytest.raises(RuntimeError, match='thrown') as e: of(tmp_path, short, cb())
    assert not e.value.__context__ and not Lock.held


def test_a_checkpoint_that_is_taken_out_at_the_beginning(short, tmp_path):
    class TakesOutFirst(Callback):
        def before_fit(self): self.learn.remove_cb(self.learn.checkpoint)
    of(tmp_path, short, TakesOutFirst())
    assert not (tmp_path/'r').exists()


@pytest.mark.parametrize('event', ['before_batch', 'after_batch', 'after_epoch'])
def test_a_checkpoint_that_is_taken_out_on_the_way(short, tmp_path, event):
    "The fit goes on without it; the folder is free afterwards, and goes on from what was saved"
    class TakesOutLater(Callback): pass
    def take_out(self):
        if self.learn.train_iter >= 13 and hasattr(self.learn, 'checkpoint'): self.learn.remove_cb(self.learn.checkpoint)
    setattr(TakesOutLater, event, take_out)
    n = threading.active_count()
    learn = of(tmp_path, short, TakesOutLater(), ckpt=dict(steps=5))
    assert learn.train_iter == 28 and not Lock.held and threading.active_count() == n
    assert 0 < newest_step(tmp_path/'r') < 28
    assert of(tmp_path, short).train_iter == 28 and RunFolder(tmp_path/'r').finished


@pytest.mark.parametrize('n', [14, 19])
def test_an_error_behind_the_checkpoint(short, tmp_path, same, n):
    "It has heard of the end of the batch already, perhaps of the last one of an epoch"
    stopped_and_again(tmp_path, short, same, n, event='after_batch', n=n, order=1500)


class KeepsGradients(Callback):
    "Every other batch is left after its step, so that its gradients are still there in the next"
    order = 2000
    def after_step(self):
        if self.train_iter % 2: raise CancelBatchException

@pytest.mark.parametrize('n', [19, 20])
@pytest.mark.parametrize('event', ['before_batch', 'after_loss', 'after_backward'])
def test_an_error_where_gradients_stay(short, tmp_path, same, event, n):
    "They are kept, as long as those of this batch are not among them"
    lost = event == 'after_backward' and n == 19
    stopped_and_again(tmp_path, short, same, 15 if lost else n-1, KeepsGradients, event=event, n=n, order=-50)


def test_the_loader_goes_on_as_it_would(short, tmp_path):
    learn = ours(tmp_path, short)
    with pytest.raises(RuntimeError):
        learn.fit(2, 1e-2, cbs=[At('before_step', 19, 'error'), Checkpoint(tmp_path/'r', quiet=True)])
    assert newest_step(tmp_path/'r') == 18
    learn.dls.train.next_epoch()
    assert len(list(learn.dls.train)) == 14


def test_an_error_in_the_loader(short, tmp_path, same, alone_with):
    "Between two batches"
    class Breaks(ItemTransform):
        n = 0
        def encodes(self, b):
            self.n += 1
            if self.n == 20: raise RuntimeError('thrown')
            return b
    def breaks(d, text):
        learn = ours(d, text)
        learn.dls.train.after_batch.add(Breaks())
        return learn
    alone = alone_with()
    with pytest.raises(RuntimeError, match='thrown'): of(tmp_path, short, make=breaks)
    assert newest_step(tmp_path/'r') == 19
    assert same(alone, of(tmp_path, short))


@pytest.mark.parametrize('event,valid,step', [('before_validate', False, 14), ('after_pred', True, 14),
                                              ('after_epoch', False, 14), ('before_epoch', False, 0),
                                              ('after_train', False, 14)])
def test_an_error_around_a_validation(short, tmp_path, same, alone_with, event, valid, step):
    alone = alone_with()
    with pytest.raises(RuntimeError): of(tmp_path, short, At(event, 1, 'error', 900, valid))
    assert newest_step(tmp_path/'r') == step
    assert same(alone, of(tmp_path, short))


@pytest.mark.parametrize('event,n,step', [('before_step', 19, 18), ('after_batch', 19, 19), ('before_validate', 2, 28),
                                          ('after_fit', 1, 28)])
def test_it_is_said_from_where_the_run_goes_on(short, tmp_path, event, n, step, capsys):
    with pytest.raises(RuntimeError): of(tmp_path, short, At(event, n, 'error'), ckpt=dict(steps=5, quiet=False))
    but = ', without what At had still to do there,' if event == 'after_batch' else ''
    assert (f'Stopped by an error; the run in {tmp_path/"r"} goes on after step {step}{but} when it is started again '
            'in the same way.' in capsys.readouterr().out)
    assert newest_step(tmp_path/'r') == step


@pytest.mark.parametrize('event,n', [('after_batch', 9), ('before_validate', 1)])
def test_an_error_while_the_disk_is_full(short, tmp_path, event, n, monkeypatch, capsys):
    "The error stays what it was, and no step is promised that is not stored"
    def full(*args, **kwargs): raise RunError('The disk is full', 'make room.')
    class Full(Callback):
        def before_train(self): monkeypatch.setattr(RunFolder, 'save', full)
    with (pytest.warns(UserWarning, match='The disk is full.*the steps since the last one are lost'),
          pytest.raises(RuntimeError, match='thrown')):
        of(tmp_path, short, Full(), At(event, n, 'error'), ckpt=dict(minutes=60, quiet=False))
    assert 'goes on after' not in capsys.readouterr().out and newest_step(tmp_path/'r') == 0 and not Lock.held


def test_an_error_after_the_last_epoch(short, tmp_path, same, alone_with):
    alone = alone_with()
    with pytest.raises(RuntimeError): of(tmp_path, short, At('after_fit', 1, 'error'))
    assert newest_step(tmp_path/'r') == 28 and not RunFolder(tmp_path/'r').finished
    assert same(alone, of(tmp_path, short, At('before_batch', 1, 'error')))


@pytest.mark.parametrize('event', ['before_batch', 'after_loss', 'before_step', 'after_batch'])
@pytest.mark.parametrize('n', range(17, 20))
def test_an_error_while_gradients_are_summed_up(short, tmp_path, same, alone_with, event, n):
    "Twelve rows are three batches; those that are summed up are saved too, unless some of this batch are among them"
    alone = alone_with(accumulate=12)
    with pytest.raises(RuntimeError): of(tmp_path, short, At(event, n, 'error', -20), accumulate=12)
    lost = event == 'before_step' and n%3 != 1
    assert newest_step(tmp_path/'r') == (n if event == 'after_batch' else 0 if lost else n-1)
    assert same(alone, of(tmp_path, short, accumulate=12))


@pytest.mark.parametrize('sums', [True, False])
def test_an_error_in_the_optimiser(short, tmp_path, same, sums):
    "Half of the weights are new: the checkpoint before is the last, whether or not the weights are summed up"
    alone = of(tmp_path/'alone', short, sums=sums)
    def fails(d, text):
        learn = ours(d, text)
        def opt(*args, **kwargs):
            res = first(*args, **kwargs)
            step = res.step
            def _step(closure=None):
                if learn.steps_done == 19:
                    next(learn.model.parameters()).data.add_(1) # as fastai's do, which no version number tells
                    raise RuntimeError('out of memory')
                step()
            res.step = _step
            return res
        first,learn.opt_func = learn.opt_func,opt
        opt.__name__ = 'Muon'
        return learn
    with pytest.raises(RuntimeError): of(tmp_path, short, ckpt=dict(steps=5), make=fails, sums=sums)
    assert newest_step(tmp_path/'r') == 15
    assert same(alone, of(tmp_path, short, ckpt=dict(allow_changes=True), sums=sums))


def test_an_error_in_another_learner_leaves_its_last_epoch(short, tmp_path):
    learn = other(tmp_path, short)
    with pytest.raises(RuntimeError):
        learn.fit(4, 1e-2, cbs=[At('before_batch', 33, 'error'), Checkpoint(tmp_path/'r', minutes=60, quiet=True)])
    assert newest_step(tmp_path/'r') == 28


@pytest.mark.parametrize('event', ['after_loss', 'before_step', 'after_batch'])
def test_the_learner_is_left_as_it_is(short, tmp_path, event):
    "Saving on the way out draws no random number and moves nothing"
    def state(*cbs):
        learn = ours(tmp_path, short)
        set_generators(3)
        with pytest.raises(RuntimeError): learn.fit(2, 1e-2, cbs=[Noise(), At(event, 19, 'error'), *cbs])
        return (learn.steps_done,learn.chars_seen,torch.rand(3).tolist(),learn.dls.train.state_dict(),
                [h['lr'] for h in learn.opt.hypers],learn.carried[0].tolist())
    assert state() == state(Checkpoint(tmp_path/'r', quiet=True))


def test_ctrl_c_twice_saves_nothing(short, tmp_path):
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt): of(tmp_path, short, At('after_loss', 19, 'int2'))
    finally: signal.signal(signal.SIGINT, old)
    assert newest_step(tmp_path/'r') == 0


@pytest.mark.parametrize('how', ['int', 'error'])
def test_the_same_cell_after_a_stop_within_mixup(tmp_path, how):
    "It exchanges the loss while it trains"
    from test_fingerprint_fit import learner
    learn,loss = (l := learner(tmp_path)),l.loss_func
    go = lambda *cbs: learn.fit(4, 1e-2, cbs=[MixUp(), *cbs, Checkpoint(tmp_path/'r', quiet=True)])
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises((KeyboardInterrupt, RuntimeError)): go(At('before_batch', 15, how))
    finally: signal.signal(signal.SIGINT, old)
    assert learn.loss_func is loss
    go()
    assert RunFolder(tmp_path/'r').finished and RunFolder(tmp_path/'r').resumes() == [12] and learn.loss_func is loss


# Output that cannot be written

SAVING = "Checkpoint(d/'r', steps=4)"
QUIET = "Checkpoint(d/'r', steps=4, quiet=True)"


@pytest.mark.parametrize('out,last', [('pipe', SAVING), ('pipe', f'{SAVING}, Bad()'), ('/dev/full', SAVING),
                                      ('closed', SAVING), ('closed', f'{QUIET}, ProgressLines(0)')])
def test_output_that_cannot_be_written(tmp_path, out, last):
    "A pipe that nobody reads, a full disk, a closed file; for messages and for a warning"
    body = f'''
from charrnn_fa.callback.progress import ProgressLines
from charrnn_fa.checkpoint import writer
def full(*args, **kwargs): raise PermissionError(1, 'Operation not permitted')
class Bad(Callback):
    def before_fit(self): writer.rotate = full
try: learn.fit(2, 1e-2, cbs=[{last}])
finally: os._exit(0)
'''
    if out == 'closed': body = 'sys.stdout.close()\nsys.stderr.close()\n' + body
    if out == 'pipe':
        r,w = os.pipe()
        os.close(r)
    else: w = os.open('/dev/null' if out == 'closed' else out, os.O_WRONLY)
    p = script(tmp_path, body, stdout=w, stderr=w)
    os.close(w)
    p.wait(120)
    run = RunFolder(tmp_path/'r')
    assert run.finished and run.newest()['step'] == 28


# Weights that are no numbers

@pytest.mark.parametrize('make', [ours, other])
@pytest.mark.parametrize('terminate', [True, False])
def test_a_run_that_ends_in_nan(short, tmp_path, make, terminate, settled):
    "Two finite checkpoints stay, whenever it began, and it is said once"
    class Nan(Callback):
        order = -20
        def after_pred(self):
            if self.training and self.train_iter >= 33: self.learn.pred = self.pred*float('nan')
    learn = make(tmp_path, short)
    with pytest.warns(UserWarning, match='no finite numbers.*checkpoints from before stay') as w:
        learn.fit(6, 1e-2, cbs=[Nan(), *[TerminateOnNaNCallback()]*terminate,
                                Checkpoint(tmp_path/'r', steps=4 if make is ours else 14, keep=2, quiet=True)])
    assert sum('no finite numbers' in str(o.message) for o in w) == 1
    end = (tmp_path/'r'/'log.txt').read_text().splitlines()[-1]
    assert 'begin another run' in end and 'are safe' not in end, end
    run = RunFolder(tmp_path/'r')
    finite = [m['step'] for m in run.checkpoints() if all(t.isfinite().all() for k,t in run.read(m)[0].items()
                                                          if not k.startswith('train/') and t.is_floating_point())]
    assert len(finite) == 2 and max(finite) >= 28 and len(run.checkpoints()) <= 4


def test_a_run_that_begins_with_nan(short, tmp_path):
    "The beginning stays"
    class Nan(Callback):
        def after_pred(self): self.learn.pred = self.pred*float('nan')
    with pytest.warns(UserWarning, match='no finite numbers'):
        ours(tmp_path, short).fit(2, 1e-2, cbs=[Nan(), TerminateOnNaNCallback(), Checkpoint(tmp_path/'r', quiet=True)])
    assert [m['step'] for m in RunFolder(tmp_path/'r').checkpoints()][-1] == 0


@pytest.mark.parametrize('make', [ours, other])
def test_what_is_said_at_the_next_fit_of_a_run_that_ended_in_nan(short, tmp_path, make, capsys):
    "The same fit again has nothing to go on from; another one under that name would begin with NaN, and is refused"
    class Nan(Callback):
        order = -20
        def after_pred(self):
            if self.training and self.train_iter == 3: self.learn.pred = self.pred*float('nan')
    def fit(learn, lr, *cbs, name='r'):
        learn.logger = noop
        learn.fit(2, lr, cbs=[*cbs, TerminateOnNaNCallback(), Checkpoint(tmp_path/name)])
        return learn
    with pytest.warns(UserWarning, match='no finite numbers'): first = fit(make(tmp_path, short), 1e-2, Nan())
    assert 'begin another run under another name with a lower learning rate' in capsys.readouterr().out
    again = fit(make(tmp_path, short), 1e-2)
    said = capsys.readouterr().out
    assert 'is finished' in said and 'no finite numbers any more' in said and 'under another name' in said
    assert 'call fit again' not in said
    for learn,lr in (first, 1e-2), (again, 1e-2), (make(tmp_path, short), 1e-3):
        with pytest.raises(RunError, match='no finite numbers any more; make the Learner anew.*under another name'):
            fit(learn, lr)
    assert not (tmp_path/'r/2').exists()
    assert all(p.isfinite().all() for p in fit(make(tmp_path, short), 1e-3, name='r2').model.parameters())


def test_an_unfinished_run_whose_weights_are_no_numbers_says_so_as_it_goes_on(short, tmp_path, capsys):
    class Nan(Callback):
        order = -20
        def after_pred(self):
            if self.training and self.train_iter >= 3: self.learn.pred = self.pred*float('nan')
    class Dies(Callback):
        order = 2000
        def after_batch(self):
            if self.train_iter == 9: raise KeyboardInterrupt
    def fit(*cbs):
        learn = ours(tmp_path, short)
        learn.logger = noop
        learn.fit(1, 1e-2, cbs=[*cbs, Checkpoint(tmp_path/'r', steps=3)])
    with pytest.warns(UserWarning, match='no finite numbers'), pytest.raises(KeyboardInterrupt): fit(Nan(), Dies())
    capsys.readouterr()
    fit(Nan())
    goes_on = next(o for o in capsys.readouterr().out.splitlines() if 'goes on after step' in o)
    assert 'no finite numbers any more' in goes_on and 'under another name' in goes_on


@pytest.mark.parametrize('stays', [True, False])
@pytest.mark.parametrize('ours', [True, False])
def test_an_error_of_shapes_in_mid_run_is_told_and_costs_no_step(tmp_path, ours, stays):
    "The doctor makes batches anew to find its words; what was reached is kept before that, and nobody waits for a thread that has ended"
    def learner(at=None):
        "Its loss gets shapes that do not fit in batch `at`, and in all later ones if the error stays"
        n = Counter()
        def loss(p, y):
            p = p[0] if isinstance(p, tuple) else p
            n['calls'] += p.requires_grad # in training
            wrong = at and (n['calls'] >= at if stays else n['calls'] == at)
            return F.cross_entropy(p, y) if wrong else F.cross_entropy(p.flatten(0, 1), y.flatten())
        dls = CharDataLoaders.from_text(load_corpus('pydocs')[:4000], bs=4, seq_len=16, seed=5)
        torch.manual_seed(5)
        if ours: learn = char_learner(dls, n_hid=16, emb_sz=8, head_sz=0, seed=5, precision='fp32', loss_func=loss)
        else: learn = Learner(dls, CharRNN(len(dls.vocab), n_hid=16, emb_sz=8), loss_func=loss, cbs=Doctor(quiet=True))
        learn.logger = noop
        return learn.remove_cbs(learn.progress)
    alone = learner()
    alone.fit(2)
    n_batches = len(alone.dls.train)
    with pytest.raises(ShapeError): learner(n_batches+9).fit(2, cbs=Checkpoint(tmp_path/'r', steps=1000, quiet=True))
    said = (tmp_path/'r'/'log.txt').read_text()
    assert f'goes on after step {n_batches+8 if ours else n_batches:,} ' in said, said
    again = learner()
    again.fit(2, cbs=Checkpoint(tmp_path/'r', steps=1000, quiet=True))
    assert all(map(torch.equal, alone.model.parameters(), again.model.parameters()))
    assert torch.equal(torch.stack(list(alone.recorder.losses)), torch.stack(list(again.recorder.losses)))
