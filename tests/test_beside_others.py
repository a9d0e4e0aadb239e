"What stands beside a run: a second checkpoint of the same fit, another run's files, a person's own log, a look at the validation text"
from pathlib import Path
import pytest
from fastai.callback.all import CSVLogger, SaveModelCallback
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.run.files import RunError
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.run.model import Run, load_run, save_run
from test_checkpoint import At, small


@pytest.fixture
def short(text): return text[:1000]


def fit(learn, tmp_path, *cbs, **kwargs):
    "Two epochs of 14 steps with a checkpoint"
    learn.fit(2, 1e-2, cbs=[*cbs, Checkpoint(tmp_path/'r', **{**dict(steps=5, quiet=True), **kwargs})])
    return learn


def test_a_look_at_the_validation_text_is_no_place_to_go_on_from(short, tmp_path):
    "Nor is a validation that was cut short"
    def run(d, *cbs):
        learn = small(tmp_path, short, 5)
        next(iter(learn.dls.valid))
        return fit(learn, tmp_path/d, *cbs)
    alone = run('alone')
    with pytest.raises(RuntimeError): run('cut', At('after_batch', 10, 'error'))
    assert run('cut').recorder.values == alone.recorder.values


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
    assert same(load_run(save_run(learn, tmp_path/'r').path, 'cpu'), learn)


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
