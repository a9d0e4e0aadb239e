"Arguments of models, Learners and fits that cannot be: one sentence, and nothing trained"
import io
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from fastai.basics import SGD, CrossEntropyLossFlat, Learner, noop
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip

from charrnn_fa import doctor, show
from charrnn_fa.callback.precision import check_precision
from charrnn_fa.callback.progress import Pace, ProgressLines
from charrnn_fa.callback.schedule import Budget
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.colab import DriveCheckpoint
from charrnn_fa.core import CharRNNError
from charrnn_fa.evaluate import evaluate_ids
from charrnn_fa.generate import check_sampling, generate, stream
from charrnn_fa.learner import CharLearner, char_learner
from charrnn_fa.models import CharRNN
from charrnn_fa.optim import AdamW
from charrnn_fa.presets import Preset
from charrnn_fa.run.files import RunWarning
from charrnn_fa.run.model import Run, load_run, save_run

NO_NUMBER = '5', math.nan, [], None, True
NO_WHOLE = 1.5, *NO_NUMBER
HUGE = 10**23


@pytest.fixture
def text(text): return text[:1500] # each refusal is followed by an epoch


def refused(f, *args, **kwargs):
    with pytest.raises(CharRNNError) as e: f(*args, **kwargs)
    said = str(e.value)
    assert '\n' not in said and len(said) < 300 and type(e.value).__name__ not in said
    return said


@pytest.mark.parametrize('name', ['vocab_sz', 'n_hid', 'n_layers', 'emb_sz', 'head_sz'])
@pytest.mark.parametrize('bad', [*NO_WHOLE, -1, HUGE, math.inf])
def test_sizes_of_a_model(name, bad): assert f'{name} is {bad!r}' in refused(CharRNN, **{'vocab_sz':5, name:bad})


@pytest.mark.parametrize('bad', [dict(dropout=1.1), dict(dropout='x'), dict(emb_drop=math.nan), dict(arch=[]),
                                 dict(arch='x'), dict(tie='no'), dict(tie='yes'), dict(tie=None), dict(n_layers=1001)])
def test_other_settings_of_a_model(bad): refused(CharRNN, 5, **{'n_hid':8, 'emb_sz':8, **bad})


def test_tie_that_is_no_does_not_tie():
    assert CharRNN(5, n_hid=8, emb_sz=8, tie=np.bool_(False)).decoder.weight is not CharRNN(5, n_hid=8, emb_sz=8).emb.weight
    m = CharRNN(5, n_hid=8, emb_sz=8, tie=True)
    assert m.decoder.weight is m.emb.weight


@pytest.mark.parametrize('bad', [dict(n_hid=HUGE), dict(n_hid='8'), dict(tie='no'), dict(seed=-1), dict(seed='x'),
                                 dict(seed=2**70), dict(precision=[]), dict(lr=math.nan), dict(lr='x'),
                                 dict(wd=-1), dict(clip=math.nan), dict(reset_pct=2), dict(arch=5), dict(preset='x'),
                                 dict(n_layers=1001), dict(dropout=math.nan)])
def test_arguments_of_char_learner(dls, bad): refused(char_learner, dls, **bad)


@pytest.mark.parametrize('bad', ['text', None, 5])
def test_loaders_that_are_none(bad): assert 'from_text' in refused(char_learner, bad)


def unchanged(learn, f):
    "`f` is refused, and the Learner has not moved"
    before = [p.clone() for p in learn.model.parameters()]
    said = refused(f)
    assert learn.steps_done == 0 and all(map(torch.equal, before, learn.model.parameters()))
    # it is as usable as before, from its first batch on
    with learn.no_logging(), learn.no_valid(): learn.fit(1, 1e-3)
    assert learn.steps_done == len(learn.dls.train)
    return said


@pytest.mark.parametrize('bad', [-1, 1.5, '2', math.nan, True])
def test_epochs_of_a_fit(learn, bad): assert 'n_epoch is' in unchanged(learn, lambda: learn.fit(bad))


@pytest.mark.parametrize('bad', [dict(start_epoch=-1), dict(start_epoch=1.5), dict(start_batch=-3),
                                 dict(start_batch='x'), dict(lr=math.nan), dict(lr='x'), dict(lr=-1), dict(wd=math.nan),
                                 dict(lr=slice(math.nan, 1.)), dict(lr=slice(-1)), dict(lr=[.1, math.nan]),
                                 dict(wd=slice(math.nan)), dict(cbs=5), dict(cbs=[[GradientClip()]]), dict(cbs=noop)])
def test_start_and_rates_of_a_fit(learn, bad): unchanged(learn, lambda: learn.fit(2, **bad))


@pytest.mark.parametrize('bad', [dict(minutes=math.nan), dict(minutes=math.inf), dict(minutes='1'), dict(minutes=0),
                                 dict(minutes=-1), dict(n_steps=math.nan), dict(n_steps='5'), dict(n_steps=2.5),
                                 dict(n_steps=0), dict(n_steps=HUGE), dict(n_steps=5, minutes=1),
                                 dict(n_steps=5, lr=math.nan), dict(n_steps=5, start=-1), dict(n_steps=5, start='x'),
                                 dict(n_steps=5, start=5)])
def test_length_of_fit_steps(learn, bad): unchanged(learn, lambda: learn.fit_steps(**bad))


NO_RATE = '3e-3', math.nan, -1, True, [], {}, HUGE, [1e-3, '1e-3'], [1e-3, None], slice(None), slice('1e-3')
LENGTHS = dict(fit_steps=dict(n_steps=2), fine_tune=dict(epochs=2), lr_find={})
RATES = dict(fit='lr', fit_one_cycle='lr_max', fit_flat_cos='lr', fit_steps='lr', fine_tune='base_lr', lr_find='end_lr')
FITS = {k:partial(getattr(CharLearner, k), **LENGTHS.get(k, {'n_epoch':2})) for k in RATES}


@pytest.mark.parametrize('bad', NO_RATE)
@pytest.mark.parametrize('how', RATES)
def test_rates_of_all_fits(learn, how, bad):
    assert f'{RATES[how]} ' in unchanged(learn, lambda: FITS[how](learn, **{RATES[how]:bad}))


@pytest.mark.parametrize('bad', [*NO_RATE, None])
@pytest.mark.parametrize('how', [o for o in RATES if o not in ('fine_tune', 'lr_find')])
def test_own_rate_of_a_learner(learn, how, bad):
    def _with_bad():
        learn.lr = bad
        try: FITS[how](learn)
        finally: learn.lr = 1e-3
    assert 'learn.lr ' in unchanged(learn, _with_bad)


@pytest.mark.parametrize('how,bad', [
    ('fit_one_cycle', dict(div='25')), ('fit_one_cycle', dict(div=0)), ('fit_one_cycle', dict(pct_start=2)),
    ('fit_one_cycle', dict(pct_start='x')), ('fit_one_cycle', dict(wd='x')), ('fit_flat_cos', dict(div_final=None)),
    ('fine_tune', dict(epochs='2')), ('fine_tune', dict(freeze_epochs=None)), ('fine_tune', dict(lr_mult=0)),
    ('fine_tune', dict(base_lr=None)), ('fine_tune', dict(base_lr=slice(1e-3))), ('fine_tune', dict(base_lr=[1e-3])),
    ('lr_find', dict(num_it='100')), ('lr_find', dict(num_it=0)), ('lr_find', dict(start_lr=None)),
    ('lr_find', dict(start_lr=0))])
def test_numbers_of_all_fits(learn, how, bad):
    "A fit that trains in two parts is refused before the first"
    assert f'{[*bad][0]} is' in unchanged(learn, lambda: FITS[how](learn, **bad))


def test_rates_that_do_not_fit_the_groups(learn):
    said = unchanged(learn, lambda: learn.fit_one_cycle(1, [1e-3]*2))
    assert 'lr_max has 2 rates for 3 groups of parameters' in said and 'slice(1e-4, 1e-3)' in said


def test_numbers_of_numpy_and_rates_of_groups_are_taken(learn):
    with learn.no_logging(), learn.no_valid():
        learn.fit(np.int64(1), 1e-3)
        learn.fit(1, slice(1e-4, 1e-3))
        learn.fit_steps(np.int64(3), lr=[1e-3]*len(learn.opt.hypers))
        rate = torch.tensor(1e-3)
        for how in 'fit', 'fit_one_cycle', 'fit_flat_cos', 'fit_steps', 'fine_tune':
            for o in rate, np.array(1e-3): FITS[how](learn, **{RATES[how]:o})
        assert rate == 1e-3


@pytest.mark.parametrize('bad', [dict(warmup=0), dict(warmup='x'), dict(warmup=math.nan)])
def test_arguments_of_a_budget(bad): refused(Budget, 5, **bad)


@pytest.mark.parametrize('bad', [dict(n=-1), dict(n=1.5), dict(n='5'), dict(n=math.nan), dict(n=None),
                                 dict(bs=0), dict(bs=-1), dict(bs='2'), dict(bs=1.5), dict(seed=2**70), dict(seed=-1),
                                 dict(seed='x'), dict(seed=1.5), dict(temperature=math.nan), dict(temperature=math.inf),
                                 dict(temperature='x'), dict(temperature=None), dict(top_k=1.5),
                                 dict(top_k='x'), dict(top_k=0), dict(top_p=math.nan), dict(top_p='x'), dict(top_p=0),
                                 dict(min_p=math.nan), dict(min_p=[]), dict(stop=5), dict(stop=['a', 5]),
                                 dict(stop=''), dict(prompt=5), dict(prompt=None), dict(prompt=b'a')])
def test_arguments_of_generate(learn, bad):
    refused(lambda: learn.generate(**{'n':3, **bad}))
    if 'bs' not in bad: refused(lambda: list(learn.stream(**{'n':3, **bad})))


def test_what_is_given_in_the_place_of_another_is_named(learn, tmp_path):
    "A Learner where its parts are asked for, and arguments that are exchanged"
    for given in (learn, 'The '), (learn.model, 'The '), (learn, learn.vocab, 'The '), (learn.vocab, learn.model):
        assert 'learn.generate' in refused(generate, *given)
        assert 'learn.stream' in refused(lambda: list(stream(*given)))
    assert 'learn is' in refused(save_run, tmp_path/'r', learn)
    for given in learn, None, 3, learn.dls.train: assert 'loaders' in refused(doctor.ladder, given)
    for given in (learn,), (learn, ValueError('x')), ('Expected target size [4, 9], got [4, 16]', learn):
        assert 'except Exception as e' in refused(doctor.explain, *given)


@pytest.mark.parametrize('bad', ['Live', dict(live=1), 3])
def test_what_is_no_callback_is_refused_when_it_is_given(dls, bad):
    assert 'is no callback' in refused(char_learner, dls, n_hid=8, cbs=bad)


def test_unknown_characters_have_a_way_out_wherever_they_are(learn):
    "A remedy that works where it is said: `generate` has no `unknown`"
    for f in learn.generate, learn.vocab.encode, lambda o: learn.evaluate(text=o):
        assert "leave it out, as vocab.textify(vocab.encode(text, unknown='skip')) does" in refused(f, 'The \u2603')
    kept = learn.vocab.textify(learn.vocab.encode('The \u2603', unknown='skip'))
    assert learn.generate(kept, n=3, seed=1).startswith('The ')


def test_the_largest_seed_serves_and_means_itself(learn):
    a,b = (learn.generate(n=20, seed=o, temperature=2) for o in (2**62-1, 2**62-2))
    assert a != b and a == learn.generate(n=20, seed=np.int64(2**62-1), temperature=2)


def test_sampling_takes_what_it_took(): check_sampling(np.float32(0.8), np.int64(3), 1, 0.)


@pytest.mark.parametrize('bad', ['all', 2.5, math.nan, math.inf, None, 0, -1, True, [], '9'*5000])
def test_context_of_evaluate(learn, bad): refused(learn.evaluate, bad)


@pytest.mark.parametrize('bad', [[1, 2, 3], torch.ones(2, 3).long(), torch.ones(5), 'text'])
def test_ids_to_evaluate(learn, bad): refused(evaluate_ids, learn.model, bad)


@pytest.mark.parametrize('bad', ['fp8', [], 5])
def test_precisions(learn, bad):
    refused(check_precision, bad, 'cpu')
    refused(learn.set_precision, bad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='fp16 is the fastest format of some GPUs only')
def test_the_fastest_precision_is_whole(learn):
    learn.set_precision(None)
    assert (learn.precision == 'fp16') == any(type(o).__name__ == 'GradScale' for o in learn.cbs)


@pytest.mark.parametrize('kind', [Pace, ProgressLines])
@pytest.mark.parametrize('bad', [('x',), (math.nan,), (-1,), (1, 0), (1, 1.5)])
def test_arguments_of_lines(kind, bad): refused(kind, *bad)


@pytest.mark.parametrize('stream', [io.TextIOWrapper(io.BytesIO(), encoding='ascii'), 'closed'])
def test_lines_that_a_file_cannot_take(learn, stream):
    "Letters that it lacks, or a file that is closed: the fit goes on, and says so once"
    if stream == 'closed': (stream := io.StringIO()).close()
    lines = ProgressLines(0, file=stream, sample=lambda learn: 'Käse')
    with pytest.warns(UserWarning, match='cannot be written'), learn.no_logging(): learn.fit(1, 1e-3, cbs=lines)
    assert learn.steps_done == len(learn.dls.train)


def test_a_run_with_too_many_layers(learn, tmp_path):
    "A new one is refused when its model is made, in its own words; a stranger's as damaged"
    assert 'n_layers is 1001' in refused(char_learner, learn.dls, n_hid=4, n_layers=1001)
    settings = save_run(learn, tmp_path/'r').settings
    assert 'damaged' in refused(Run, tmp_path/'q', {**settings, 'preset':{**settings['preset'], 'n_layers':1001}})


@pytest.mark.parametrize('bad', [dict(step=-1), dict(step='x'), dict(step=1.5)])
def test_arguments_of_save_run(learn, tmp_path, bad):
    refused(save_run, learn, tmp_path/'r', **bad)
    assert not (tmp_path/'r').exists()


@pytest.mark.parametrize('bad', [5, None, b'text', 'x', ['a']])
def test_what_is_no_run_or_no_text(learn, tmp_path, bad):
    if not isinstance(bad, str): refused(load_run, bad)
    save_run(learn, tmp_path/'r')
    if bad is not None: refused(load_run, tmp_path/'r', 'cpu', bad)


def test_a_learner_that_is_not_ours_is_refused(dls, tmp_path):
    refused(save_run, Learner(dls, torch.nn.Linear(1, 1), loss_func=torch.nn.functional.mse_loss), tmp_path/'r')


def test_an_optimiser_that_a_run_does_not_keep_is_named(dls, tmp_path):
    fitted = char_learner(dls, n_hid=8, opt_func=partial(SGD, mom=.9), loss_func=CrossEntropyLossFlat(),
                          cbs=Checkpoint(tmp_path/'r'))
    with fitted.no_bar(), fitted.no_logging(): fitted.fit(1, 1e-3)
    save_run(fitted, tmp_path/'s')
    for o in 'rs':
        with pytest.warns(RunWarning, match=r'trained with SGD\(mom=0.9\) and CrossEntropyLossFlat'):
            load_run(tmp_path/o)


def test_a_preset_optimiser_is_kept(dls, tmp_path):
    for opt in 'muon', 'adamw': save_run(char_learner(dls, preset=Preset(n_hid=8, opt=opt)), tmp_path/opt)
    save_run(char_learner(dls, n_hid=8, opt_func=AdamW), tmp_path/'given')
    with warnings.catch_warnings():
        warnings.simplefilter('error', RunWarning)
        for o in 'muon', 'adamw', 'given': load_run(tmp_path/o)


@pytest.mark.parametrize('cls,way', [(Checkpoint, "Checkpoint('runs/my-run')"), (DriveCheckpoint, "DriveCheckpoint('my-run')"),
                                     (show.Watch, 'Watch(text=')])
def test_a_class_that_cannot_make_itself(dls, learn, cls, way):
    "fastai makes callbacks of classes, but one that must be told something it cannot make"
    asked = lambda: char_learner(dls, n_hid=8, cbs=cls), lambda: char_learner(dls, n_hid=8, cbs=[cls])
    for f in asked: assert way in refused(f)
    for f in lambda: learn.fit(1, cbs=cls), lambda: learn.fit_one_cycle(1, cbs=[GradientClip, cls]), lambda: learn.add_cb(cls):
        assert way in unchanged(learn, f)
        learn.steps_done = 0
    assert any(isinstance(o, GradientClip) for o in learn.add_cb(GradientClip(1.)).cbs)


@pytest.mark.parametrize('given', [(40,), dict(n_words=40), dict(temperature=.7), dict(with_input=True)])
def test_predict_says_what_writes_more(learn, given):
    said = refused(lambda: learn.predict('The ', *given) if isinstance(given, tuple) else learn.predict('The ', **given))
    assert 'learn.generate(text, n=300' in said


def test_inputs_of_text_are_not_augmented(learn):
    told = []
    class Told(Callback):
        def before_fit(self): told.append(1)
    learn.add_cb(Told())
    assert 'learn.get_preds()' in refused(learn.tta) and told == []
