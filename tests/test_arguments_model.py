"Arguments of models, Learners and fits that cannot be: one sentence, and nothing trained"
import io
import math
import warnings
from functools import partial

import pytest
import torch
from fastai.basics import SGD, CrossEntropyLossFlat, Learner, noop
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip

from charrnn_fa import doctor
from charrnn_fa.callback.progress import Pace, ProgressLines
from charrnn_fa.callback.schedule import Budget
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.errors import CharRNNError
from charrnn_fa.generate import generate, stream
from charrnn_fa.learner import CharLearner, char_learner
from charrnn_fa.models import CharRNN
from charrnn_fa.optim import AdamW
from charrnn_fa.presets import Preset
from charrnn_fa.run.files import RunWarning
from charrnn_fa.run.model import Run, load_run, save_run

nan,HUGE = math.nan,10**23
NO_NUMBER = '5', nan, [], None, True


@pytest.fixture
def text(text): return text[:1500] # each refusal is followed by an epoch


def refused(f, *args, **kwargs):
    "What is said, in one sentence of ours"
    with pytest.raises(CharRNNError) as e: f(*args, **kwargs)
    said = str(e.value)
    assert '\n' not in said and len(said) < 300 and type(e.value).__name__ not in said
    return said


def unchanged(learn, f):
    "`f` is refused, and the Learner has not moved"
    before = [p.clone() for p in learn.model.parameters()]
    said = refused(f)
    assert learn.steps_done == 0 and all(map(torch.equal, before, learn.model.parameters()))
    # it is as usable as before, from its first batch on
    with learn.no_logging(), learn.no_valid(): learn.fit(1, 1e-3)
    assert learn.steps_done == len(learn.dls.train)
    return said


def some(**kwargs): return [{k:v} for k,vs in kwargs.items() for v in vs]


@pytest.mark.parametrize('bad', [*some(**dict.fromkeys(['vocab_sz', 'n_hid', 'n_layers', 'emb_sz', 'head_sz'],
                                                       (1.5, *NO_NUMBER, -1, HUGE, math.inf))),
                                 *some(dropout=[1.1, 'x'], emb_drop=[nan], tie=['no', 'yes', None], n_layers=[1001])])
def test_arguments_of_a_model(bad):
    (k,v), = bad.items()
    assert f'{k} is {v!r}' in refused(CharRNN, **{'vocab_sz':5, 'n_hid':8, 'emb_sz':8, **bad})


@pytest.mark.parametrize('bad', some(n_hid=[HUGE, '8'], tie=['no'], seed=[-1, 'x', 2**70], precision=[[], 'fp8'], lr=[nan, 'x'],
                                     wd=[-1], clip=[nan], reset_pct=[2], arch=[5], preset=['x'], n_layers=[1001], dropout=[nan]))
def test_arguments_of_char_learner(dls, bad): refused(char_learner, dls, **bad)


@pytest.mark.parametrize('bad', [*some(n_epoch=[-1, 1.5, '2', nan, True], start_epoch=[-1, 1.5], start_batch=[-3, 'x'],
                                       wd=[nan, slice(nan)], cbs=[5, [[GradientClip()]], noop])])
def test_arguments_of_a_fit(learn, bad): unchanged(learn, lambda: learn.fit(**{'n_epoch':2, **bad}))


@pytest.mark.parametrize('bad', [*some(minutes=[nan, math.inf, '1', 0, -1], n_steps=[nan, '5', 2.5, 0, HUGE]),
                                 *({'n_steps':5, **o} for o in some(minutes=[1], start=[-1, 'x', 5]))])
def test_length_of_fit_steps(learn, bad): unchanged(learn, lambda: learn.fit_steps(**bad))


NO_RATE = '3e-3', nan, -1, True, [], {}, HUGE, [1e-3, '1e-3'], [1e-3, None], [.1, nan], slice(None), slice('1e-3')
LENGTHS = dict(fit_steps=dict(n_steps=2), fine_tune=dict(epochs=2), lr_find={})
RATES = dict(fit='lr', fit_one_cycle='lr_max', fit_flat_cos='lr', fit_steps='lr', fine_tune='base_lr', lr_find='end_lr')
FITS = {k:partial(getattr(CharLearner, k), **LENGTHS.get(k, {'n_epoch':2})) for k in RATES}


@pytest.mark.parametrize('how', RATES)
def test_rates_of_all_fits(learn, how):
    "Given, or set on the Learner"
    for bad in NO_RATE: assert f'{RATES[how]} ' in refused(FITS[how], learn, **{RATES[how]:bad})
    if how in ('fine_tune', 'lr_find'): return
    for learn.lr in *NO_RATE, None: assert 'learn.lr ' in refused(FITS[how], learn)
    learn.lr = 1e-3
    assert 'lr' in unchanged(learn, lambda: FITS[how](learn, **{RATES[how]:nan}))


@pytest.mark.parametrize('how,bads', [
    ('fit_one_cycle', some(div=['25', 0], pct_start=[2, 'x'], wd=['x'])), ('fit_flat_cos', some(div_final=[None])),
    ('fine_tune', some(epochs=['2'], freeze_epochs=[None], lr_mult=[0], base_lr=[None, slice(1e-3), [1e-3]])),
    ('lr_find', some(num_it=['100', 0], start_lr=[None, 0]))])
def test_numbers_of_all_fits(learn, how, bads):
    "A fit that trains in two parts is refused before the first"
    for bad in bads: assert f'{[*bad][0]} is' in refused(FITS[how], learn, **bad)
    unchanged(learn, lambda: FITS[how](learn, **bads[0]))


@pytest.mark.parametrize('bad', some(n=[-1, 1.5, '5', nan, None], bs=[0, -1, '2', 1.5], seed=[2**70, -1, 'x', 1.5],
                                     temperature=[nan, math.inf, 'x', None, -.1], top_k=[1.5, 'x', 0], top_p=[nan, 'x', 0, 1.01],
                                     min_p=[nan, [], -1], stop=[5, ['a', 5], '', ['a', '']], prompt=[5, None, b'a', '\u2603']))
def test_arguments_of_generate(learn, bad):
    refused(lambda: learn.generate(**{'n':3, **bad}))
    if 'bs' not in bad: refused(lambda: list(learn.stream(**{'n':3, **bad})))


@pytest.mark.parametrize('f,bads', [(partial(Budget, 5), some(warmup=[0, 'x', nan])),
                                    *((o, [dict(seconds=s, parts=p) for s,p in (('x', None), (nan, None), (-1, None), (1, 0), (1, 1.5))])
                                      for o in (Pace, ProgressLines))])
def test_arguments_of_callbacks(f, bads):
    for bad in bads: refused(f, **bad)


def test_what_is_given_in_the_place_of_another_is_named(dls, learn, tmp_path):
    "A Learner where its parts are needed, exchanged arguments, what is not a callback, and fastai's predict for text"
    for given in (learn, 'The '), (learn.model, 'The '), (learn, learn.vocab, 'The '), (learn.vocab, learn.model):
        assert 'learn.generate' in refused(generate, *given)
        assert 'learn.stream' in refused(lambda: list(stream(*given)))
    assert 'learn is' in refused(save_run, tmp_path/'r', learn)
    for given in learn, None, 3, learn.dls.train: assert 'loaders' in refused(doctor.ladder, given)
    for given in (learn,), (learn, ValueError('x')), ('Expected target size [4, 9], got [4, 16]', learn):
        assert 'except Exception as e' in refused(doctor.explain, *given)
    for bad in 'text', None, 5: assert 'from_text' in refused(char_learner, bad)
    for bad in 'Live', dict(live=1), 3: assert type(bad).__name__ in refused(char_learner, dls, n_hid=8, cbs=bad)
    for args,kwargs in ((40,), {}), ((), dict(n_words=40)), ((), dict(with_input=True)):
        assert 'learn.generate(text, n=300' in refused(learn.predict, 'The ', *args, **kwargs)


def test_unknown_characters_have_a_way_out_wherever_they_are(learn):
    "A remedy that works where it is said: `generate` has no `unknown`"
    for f in learn.generate, learn.vocab.encode, lambda o: learn.evaluate(text=o):
        assert "vocab.textify(vocab.encode(text, unknown='skip'))" in refused(f, 'The \u2603')
    kept = learn.vocab.textify(learn.vocab.encode('The \u2603', unknown='skip'))
    assert learn.generate(kept, n=3, seed=1).startswith('The ')


@pytest.mark.parametrize('bad', ['all', 2.5, nan, math.inf, None, 0, -1, True, [], '9'*5000])
def test_context_of_evaluate(learn, bad): refused(learn.evaluate, bad)


@pytest.mark.parametrize('stream', [io.TextIOWrapper(io.BytesIO(), encoding='ascii'), 'closed'])
def test_lines_that_a_file_cannot_take(learn, stream):
    "Letters that it lacks, or a file that is closed: the fit goes on, and says so once"
    if stream == 'closed': (stream := io.StringIO()).close()
    lines = ProgressLines(0, file=stream, sample=lambda learn: 'Käse')
    with pytest.warns(UserWarning, match='cannot be written'), learn.no_logging(): learn.fit(1, 1e-3, cbs=lines)
    assert learn.steps_done == len(learn.dls.train)


# Runs

def test_what_a_run_cannot_be(learn, dls, tmp_path):
    assert not (tmp_path/'r').exists()
    refused(save_run, Learner(dls, torch.nn.Linear(1, 1), loss_func=torch.nn.functional.mse_loss), tmp_path/'r')
    settings = save_run(learn, tmp_path/'r').settings
    for bad in 5, None, b'text', ['a']: refused(load_run, bad)
    for bad in 5, b'text', 'x', ['a']: refused(load_run, tmp_path/'r', 'cpu', bad)
    assert 'damaged' in refused(Run, tmp_path/'q', {**settings, 'preset':{**settings['preset'], 'n_layers':1001}})


def test_an_optimiser_that_a_run_does_not_keep_is_named(dls, tmp_path):
    fitted = char_learner(dls, n_hid=8, opt_func=partial(SGD, mom=.9), loss_func=CrossEntropyLossFlat(), cbs=Checkpoint(tmp_path/'r'))
    with fitted.no_bar(), fitted.no_logging(): fitted.fit(1, 1e-3)
    save_run(fitted, tmp_path/'s')
    for o in 'rs':
        with pytest.warns(RunWarning, match=r'SGD and CrossEntropyLossFlat'): load_run(tmp_path/o)
    for opt in 'muon', 'adamw': save_run(char_learner(dls, preset=Preset(n_hid=8, opt=opt)), tmp_path/opt)
    save_run(char_learner(dls, n_hid=8, opt_func=AdamW), tmp_path/'given')
    with warnings.catch_warnings():
        warnings.simplefilter('error', RunWarning)
        for o in 'muon', 'adamw', 'given': load_run(tmp_path/o)


def test_inputs_of_text_are_not_augmented(learn):
    class Called(Callback):
        def before_fit(self): raise AssertionError
    learn.add_cb(Called())
    assert 'learn.get_preds()' in refused(learn.tta)
