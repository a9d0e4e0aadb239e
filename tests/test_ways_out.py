"The ways out of a fit that are not its end: errors, output that cannot be written, processes that were forked, weights that are no numbers"
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fastai.basics import Learner, noop
from fastai.callback.all import Callback, TerminateOnNaNCallback

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.doctor.watch import Doctor, ShapeError
from charrnn_fa.learner import char_learner
from charrnn_fa.models import CharRNN
from charrnn_fa.run.files import RunError
from charrnn_fa.run.folder import Lock, RunFolder
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from kills import newest_step
from test_checkpoint import At
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


@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT])
def test_a_forked_process_has_the_handlers_of_before(short, tmp_path, sig):
    "The parent keeps its own"
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
    try: ours(tmp_path, short).fit(1, 1e-2, cbs=[Fork(), Checkpoint(tmp_path/'a', quiet=True)])
    finally: signal.signal(sig, old)
    assert seen == [b'True', False] and RunFolder(tmp_path/'a').finished


# Errors

def of(d, short, *cbs, n=2, ckpt=dict(minutes=60), make=ours):
    learn = make(d, short)
    learn.fit(n, 1e-2, cbs=[*cbs, Checkpoint(d/'r', **{'quiet': True, **ckpt})])
    return learn


@pytest.mark.parametrize('event,order,valid,step', [('before_batch', 900, False, 0), ('before_step', 900, False, 15), ('after_batch', -20, False, 15),
                                                    ('after_batch', 1500, False, 15), ('after_pred', 900, True, 14)])
def test_an_error_goes_back_to_the_last_checkpoint(short, tmp_path, same, event, order, valid, step):
    "Or to the end of an epoch's training, whose validation failed; then the run ends as it would have"
    alone = of(tmp_path/'alone', short)
    n = dict(before_batch=3, after_pred=1).get(event, 18)
    with pytest.raises(RuntimeError, match='thrown'): of(tmp_path, short, At(event, n, 'error', order, valid), ckpt=dict(steps=5))
    assert newest_step(tmp_path/'r') == step and not Lock.held
    again = of(tmp_path, short, ckpt=dict(steps=5))
    assert same(alone, again) and list(map(float, alone.recorder.losses)) == list(map(float, again.recorder.losses))


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


@pytest.mark.parametrize('event,n,step', [('before_step', 19, 15), ('before_validate', 2, 28), ('after_fit', 1, 28)])
def test_it_is_said_from_where_the_run_goes_on(short, tmp_path, event, n, step, capsys):
    with pytest.raises(RuntimeError): of(tmp_path, short, At(event, n, 'error'), ckpt=dict(steps=5, quiet=False))
    assert f'Stopped by an error; the run in {tmp_path/"r"} goes on after step {step} ' in capsys.readouterr().out
    assert newest_step(tmp_path/'r') == step


def test_an_error_while_the_disk_is_full(short, tmp_path, monkeypatch, capsys, event='before_validate', n=1):
    "The error stays what it was, and no step is promised that is not stored"
    def full(*args, **kwargs): raise RunError('The disk is full', 'make room.')
    class Full(Callback):
        def before_train(self): monkeypatch.setattr(RunFolder, 'save', full)
    with (pytest.warns(UserWarning, match='The disk is full.*the steps since the last one are lost'),
          pytest.raises(RuntimeError, match='thrown')):
        of(tmp_path, short, Full(), At(event, n, 'error'), ckpt=dict(minutes=60, quiet=False))
    assert 'goes on after' not in capsys.readouterr().out and newest_step(tmp_path/'r') == 0 and not Lock.held


# Output that cannot be written

SAVING = "Checkpoint(d/'r', steps=4)"
QUIET = "Checkpoint(d/'r', steps=4, quiet=True)"


@pytest.mark.parametrize('out,last', [('pipe', f'{SAVING}, Bad()'), ('/dev/full', SAVING), ('closed', f'{QUIET}, ProgressLines(0)')])
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
        with pytest.raises(RunError, match='no finite numbers.*under another name'):
            fit(learn, lr)
    assert not (tmp_path/'r/2').exists()
    assert all(p.isfinite().all() for p in fit(make(tmp_path, short), 1e-3, name='r2').model.parameters())


@pytest.mark.parametrize('stays,ours', [(True, True), (False, False)])
def test_an_error_of_shapes_in_mid_run_is_explained_and_resumed(tmp_path, ours, stays):
    "The doctor makes batches again to find its words"
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
    with pytest.raises(ShapeError): learner(n_batches+9).fit(2, cbs=Checkpoint(tmp_path/'r', steps=n_batches, quiet=True))
    assert newest_step(tmp_path/'r') == n_batches
    again = learner()
    again.fit(2, cbs=Checkpoint(tmp_path/'r', steps=n_batches, quiet=True))
    assert all(map(torch.equal, alone.model.parameters(), again.model.parameters()))
    assert torch.equal(torch.stack(list(alone.recorder.losses)), torch.stack(list(again.recorder.losses)))
