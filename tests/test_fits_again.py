"The same fit again: by the Learner that has finished it, by a fresh one, and beside runs that a person has named so"
from functools import partial
import pytest
import torch
from fastai.optimizer import OptimWrapper, SGD
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.run.files import RunError
from charrnn_fa.run.folder import Lock, RunFolder
from test_checkpoint import At, plain, small


@pytest.fixture
def short(text): return text[:1000]


def other(d, text):
    learn = plain(d)
    learn.remove_cbs(learn.progress)
    learn.logger = lambda log: None
    return learn

def ours(d, text): return small(d, text, 5)


@pytest.mark.parametrize('make', [ours, other])
def test_a_loop_of_fits(short, tmp_path, same, make, capsys):
    "Trains each time; a fresh Learner gets the three results in their order, and then goes on"
    learn,again = make(tmp_path, short),make(tmp_path, short)
    for _ in range(3): learn.fit(1, 1e-2, cbs=Checkpoint(tmp_path/'r', steps=4))
    assert RunFolder(tmp_path/'r/2').finished and RunFolder(tmp_path/'r/3').finished and not (tmp_path/'r/4').exists()
    said = capsys.readouterr().out
    assert said.count('so the same fit again is a further one: r/2.') == said.count('further one: r/3.') == 1
    if make is ours:
        alone = ours(tmp_path, short)
        for _ in range(3): alone.fit(1, 1e-2)
        assert same(alone, learn)
    for _ in range(3): again.fit(1, 1e-2, cbs=Checkpoint(tmp_path/'r', quiet=True))
    assert same(learn, again) and not (tmp_path/'r/4').exists()
    again.fit(1, 1e-2, cbs=Checkpoint(tmp_path/'r', quiet=True))
    assert RunFolder(tmp_path/'r/4').finished and not same(learn, again)


def test_killed_in_the_second_of_three(short, tmp_path, same):
    "A fresh Learner finds the first, goes on with the second, and begins the third"
    def loop(learn, *cbs):
        for _ in range(3): learn.fit(1, 1e-2, cbs=[*cbs, Checkpoint(tmp_path/'r', steps=4, quiet=True)])
        return learn
    alone = ours(tmp_path, short)
    for _ in range(3): alone.fit(1, 1e-2)
    with pytest.raises(RuntimeError): loop(ours(tmp_path, short), At('before_batch', 20, 'error'))
    assert RunFolder(tmp_path/'r').finished and not RunFolder(tmp_path/'r/2').finished
    again = loop(small(tmp_path, short))
    assert same(alone, again) and again.steps_done == 42 and RunFolder(tmp_path/'r/2').resumes()


@pytest.mark.parametrize('make', [ours, other])
def test_a_run_of_its_own_under_the_next_name(short, tmp_path, make):
    "Neither finished nor unfinished is it gone on with; under its own name it is"
    make(tmp_path, short).fit(1, 1e-2, cbs=Checkpoint(tmp_path/'exp', quiet=True))
    make(tmp_path, short).fit(1, 1e-3, cbs=Checkpoint(tmp_path/'exp/2', quiet=True))
    weights = lambda: {o.name: o.read_bytes() for o in (tmp_path/'exp/2').glob('step-*')}
    before = weights()
    for n,lr in (1, 1e-3), (2, 1e-3):
        with pytest.raises(RunError, match='exp/2 is a run of its own'):
            make(tmp_path, short).fit(n, lr, cbs=Checkpoint(tmp_path/'exp', quiet=True, allow_changes=True))
    assert weights() == before and not Lock.held
    make(tmp_path, short).fit(1, 1e-3, cbs=Checkpoint(tmp_path/'exp/2', quiet=True))
    assert weights() == before


@pytest.mark.parametrize('ours_', [True, False])
def test_an_exported_learner_holds_no_secrets(short, tmp_path, home, ours_):
    "Neither an argument nor a part of a URL, be it of the callback or of the fits that the Learner has done"
    learn = (ours if ours_ else other)(tmp_path, short)
    ckpt = Checkpoint(f'memory://me:pass-word-1@host/{ours_}?sig=pass-word-2', quiet=True, skip_instance_cache=True,
                      token='pass-word-3')
    learn.add_cb(ckpt)
    learn.logger = print
    learn.fit(1, 1e-2)
    ways = [lambda path: torch.save(learn, path)] + [learn.export]*ours_ # a list of items cannot be exported
    for f in ways:
        f(tmp_path/'all.pkl')
        b = (tmp_path/'all.pkl').read_bytes()
        assert b'pass-word' not in b and b'skip_instance' not in b
        back = torch.load(tmp_path/'all.pkl', weights_only=False)
        assert back.checkpoint.where == f'memory://host/{ours_}' and not back.checkpoint.storage_options
    assert ckpt.storage_options['token'] == 'pass-word-3'


def test_a_fresh_learner_with_another_rate_is_told_whose_weights_it_begins_with(short, tmp_path, capsys):
    "And is not, where its own weights go on"
    learn = ours(tmp_path, short)
    for lr in 1e-2, 1e-3: learn.fit(1, lr, cbs=Checkpoint(tmp_path/'r'))
    assert 'last weights' not in capsys.readouterr().out
    ours(tmp_path, short).fit(2, 2e-2, cbs=Checkpoint(tmp_path/'r'))
    assert f'A new run from the last weights of {tmp_path/"r/2"}, which is finished' in capsys.readouterr().out


@pytest.mark.parametrize('opt_func', [SGD, partial(OptimWrapper, opt=torch.optim.SGD)], ids=['fastai', 'torch'])
@pytest.mark.parametrize('n', [28, 10], ids=['further', 'resumed'])
def test_the_rate_and_the_decay_that_are_asked_for(short, tmp_path, opt_func, n):
    "Of a fit that goes on from a finished one, and of one that goes on with other settings"
    def fit(lr, wd, *cbs, **kwargs):
        learn = small(tmp_path, short, 5, opt_func=opt_func)
        learn.fit(1, lr, wd=wd, cbs=[*cbs, Checkpoint(tmp_path/'r', steps=4, quiet=True, **kwargs)])
        return [(h['lr'], h['wd']) for h in learn.opt.hypers]
    if n == 28: fit(1e-2, .1)
    else:
        with pytest.raises(RuntimeError): fit(1e-2, .1, At('before_batch', n, 'error'))
    assert {*fit(1e-3, .5, allow_changes=n < 28)} == {(1e-3, .5)}
