"What stands beside a run: a second checkpoint of the same fit, another run's files, a person's own log, a look at the validation text"
import signal
from pathlib import Path
import pytest
from fastai.callback.all import CSVLogger, GradientAccumulation, SaveModelCallback
from fastai.callback.core import Callback
from fastai.test_utils import synth_learner
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.run.files import RunError
from charrnn_fa.run.folder import Lock, RunFolder
from charrnn_fa.run.model import Run, load_run, save_run
from test_checkpoint import At, small


@pytest.fixture
def short(text): return text[:1000]


def fit(learn, tmp_path, *cbs, **kwargs):
    "Two epochs of 14 steps with a checkpoint"
    learn.fit(2, 1e-2, cbs=[*cbs, Checkpoint(tmp_path/'r', **{**dict(steps=5, quiet=True), **kwargs})])
    return learn


@pytest.mark.parametrize('best', [True, False])
def test_two_checkpoints_leave_nothing_behind(short, tmp_path, same, best):
    "Neither after an error nor after a resume: the next fit has all of its epochs"
    def both(*cbs):
        learn = small(tmp_path, short, 5)
        more = [SaveModelCallback()]*best
        try: learn.fit(3, 1e-2, cbs=[*cbs, *more, *(Checkpoint(tmp_path/o, steps=5, quiet=True) for o in 'ab')])
        except RuntimeError: pass
        assert not {'_with_events', '_call_one'} & {*vars(learn)} and not any('_save' in vars(o) for o in more)
        return learn
    both(At('before_step', 31, 'error'))
    learn = both()
    alone = small(tmp_path, short, 5)
    alone.fit(3, 1e-2)
    assert same(learn, alone) and learn.steps_done == 42
    learn.fit(3, 1e-2)
    assert learn.steps_done == 84


@pytest.mark.parametrize('is_new', [True, False])
def test_two_checkpoints_at_different_places_are_refused(short, tmp_path, same, is_new):
    "One goes on alone"
    a,b = (lambda o=o: Checkpoint(tmp_path/o, steps=3, quiet=True) for o in 'ab')
    for ckpt,n in [(a, 20), (b, 10)][:2-is_new]:
        with pytest.raises(RuntimeError):
            small(tmp_path, short, 5).fit(2, 1e-2, cbs=[At('before_step', n, 'error'), ckpt()])
    for both in (a, b),(b, a):
        learn = small(tmp_path, short, 5)
        with pytest.raises(RunError, match='at different places of the same fit.*leave one of them out'):
            learn.fit(2, 1e-2, cbs=[o() for o in both])
        assert not {'_with_events', '_call_one'} & {*vars(learn)}
    learn = small(tmp_path, short, 5)
    learn.fit(2, 1e-2, cbs=a())
    alone = small(tmp_path, short, 5)
    alone.fit(2, 1e-2)
    assert same(learn, alone)


def test_two_checkpoints_in_one_folder_are_refused(short, tmp_path, monkeypatch):
    "Whatever way leads to it, and before anything is begun; nothing stays behind"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'link').symlink_to(tmp_path/'r')
    ckpt = lambda where: Checkpoint(where, steps=5, quiet=True)
    handler = signal.getsignal(signal.SIGTERM)
    def refused(*cbs, learn=None):
        learn = learn or small(tmp_path, short, 5)
        with pytest.raises(RunError, match='Two checkpoints of this fit are kept in.*leave one of them out'):
            learn.fit(2, 1e-2, cbs=[*cbs])
        assert not any(o.active for o in cbs) and signal.getsignal(signal.SIGTERM) is handler
        assert not {'_with_events', '_call_one'} & {*vars(learn)} and not Lock.held
        return learn
    one = ckpt('r')
    for other in one, ckpt(tmp_path/'r'), ckpt('x/../r'), ckpt('link'), ckpt(f'file://{tmp_path}/r/'): refused(one, other)
    refused(ckpt('memory://kept/r'), ckpt('memory://kept/r/'))
    refused(ckpt('new'), learn=small(tmp_path, short, 5, cbs=ckpt('new')))
    assert not (tmp_path/'new'/'run.json').exists() and not (tmp_path/'r').exists()
    small(tmp_path, short, 5).fit(1, 1e-2, cbs=one)
    refused(ckpt('r'), ckpt('r/2')) # the first goes on there
    learn = synth_learner()
    refused(ckpt('plain'), ckpt('plain'), learn=learn)


def test_two_checkpoints_that_stay_on_a_learner(short, tmp_path):
    "Where one of them began the fit before is no place of this one"
    def both():
        learn = small(tmp_path, short, 5)
        return learn.add_cbs([Checkpoint(tmp_path/o, steps=5, quiet=True) for o in 'ab'])
    with pytest.raises(RuntimeError): both().fit(2, 1e-2, cbs=At('before_step', 20, 'error'))
    learn = both()
    for _ in range(2): learn.fit(2, 1e-2)
    assert learn.steps_done == 56 and (tmp_path/'b/2').exists()


def test_a_look_at_the_validation_text_is_no_place_to_go_on_from(short, tmp_path):
    "Nor is a validation that was cut short"
    def run(d, *cbs):
        learn = small(tmp_path, short, 5)
        next(iter(learn.dls.valid))
        return fit(learn, tmp_path/d, *cbs)
    alone = run('alone')
    with pytest.raises(RuntimeError): run('cut', At('after_batch', 10, 'error'))
    assert run('cut').recorder.values == alone.recorder.values


def test_an_error_where_a_batch_is_left_out(short, tmp_path, same):
    "What callbacks have counted of it by then is not to be undone, so the checkpoint before counts"
    run = lambda d, *cbs: fit(small(tmp_path, short, 5), tmp_path/d, GradientAccumulation(32), *cbs)
    alone = run('alone')
    class Fails(Callback):
        order = 500
        def before_fit(self): self.n = 0
        def after_cancel_batch(self):
            self.n += 1
            if self.n == 3: raise RuntimeError('fault')
    with pytest.raises(RuntimeError): run('cut', Fails())
    assert same(run('cut'), alone)


@pytest.mark.parametrize('before', [b'a,b\r\n1,2\r\n', 'Verlust,Größe\n'.encode('latin-1'), b'a\rb\n', b'no end'])
def test_a_log_that_is_appended_to_keeps_its_bytes(short, tmp_path, before):
    log = tmp_path/'history.csv'
    log.write_bytes(before)
    with pytest.raises(RuntimeError):
        fit(small(tmp_path, short, 5), tmp_path, CSVLogger(append=True), At('before_step', 20, 'error'))
    assert log.read_bytes().startswith(before)
    fit(small(tmp_path, short, 5), tmp_path, CSVLogger(append=True))
    assert log.read_bytes().startswith(before)
    new = log.read_bytes().removeprefix(before)
    assert new.count(b'\n0,') == new.count(b'\n1,') == 1


def test_a_log_of_a_learner_that_is_fitted_again_after_an_error(tmp_path):
    "Each epoch stands there once"
    learn = synth_learner(n_trn=10, n_val=2, path=tmp_path)
    learn.remove_cb(learn.progress)
    left = iter(range(14))
    class Fails(Callback):
        def after_pred(self):
            if next(left, None) is None and next(once, None): raise RuntimeError('fault')
    once = iter([True])
    go = lambda: learn.fit(3, 1e-2, cbs=[Fails(), CSVLogger(), Checkpoint(tmp_path/'r', quiet=True)])
    with pytest.raises(RuntimeError): go()
    go()
    assert [o.partition(',')[0] for o in (tmp_path/'history.csv').read_text().splitlines()] == ['epoch', '0', '1', '2']


def test_other_runs_models_of_epochs_are_left_alone(short, tmp_path):
    "Under a name that begins as ours does"
    others = [tmp_path/'models'/o for o in ('.model_b-new.pth', 'model_best.pth', '.model-0123abcd-new.pth')]
    (tmp_path/'models').mkdir()
    for o in others: o.write_bytes(b'half')
    fit(small(tmp_path, short, 5), tmp_path, SaveModelCallback(every_epoch=True))
    assert all(o.read_bytes() == b'half' for o in others) and (tmp_path/'models/model_1.pth').exists()


def test_a_run_that_could_not_be_begun_leaves_the_folder_as_it_was(learn, tmp_path, monkeypatch, same):
    "Although its one checkpoint is that of a later step"
    learn.fit(1, 1e-2)
    write = type(RunFolder(tmp_path/'x', dict(info={})).store).write
    def full(self, name, *args):
        if name == 'run.json': raise OSError(28, 'No space left on device')
        return write(self, name, *args)
    with monkeypatch.context() as m:
        m.setattr('charrnn_fa.run.files.Folder.write', full)
        with pytest.raises(OSError): save_run(learn, tmp_path/'r')
    assert [*(tmp_path/'r').iterdir()] == []
    assert same(save_run(learn, tmp_path/'r').load('cpu'), learn)


def test_what_a_run_cannot_be_is_said(learn, short, tmp_path, monkeypatch):
    import torch
    run = save_run(learn, tmp_path/'r')
    with pytest.raises(RunError, match='holds a run already; give another name'): save_run(learn, tmp_path/'r')
    with pytest.raises(RunError, match='weights, and nothing to go on from'):
        learn.fit(1, 1e-2, cbs=Checkpoint(run.path, quiet=True))
    monkeypatch.setenv('HOME', str(tmp_path))
    assert load_run('~/r', 'cpu').steps_done == 0 and Run('~/r').path == run.path
    with pytest.raises(RunError, match='memory://x/r is a URL; give a path'): save_run(learn, 'memory://x/r')
    learn.model.register_buffer('more', torch.zeros(3))
    with pytest.raises(RunError, match='not the one that the preset'): save_run(learn, tmp_path/'q')
    assert not Path('memory:').exists() and not (tmp_path/'q').exists()
