"Everything that fastai documents for a Learner, and what ours adds"
import io
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from copy import deepcopy
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.all import CSVLogger, CutMix, EarlyStoppingCallback, GradientAccumulation, GradientClip, MixUp
from fastai.callback.all import MixedPrecision, ModelResetter, RNNCallback, RNNRegularizer, SaveModelCallback
from fastai.callback.fp16 import ModelToHalf
from fastai.callback.core import Callback, CancelFitException
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import IndexSplitter
from fastai.learner import AvgMetric, AvgSmoothLoss, Learner, Recorder, load_learner
from fastai.losses import FocalLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.metrics import accuracy
from fastai.optimizer import Lookahead, OptimWrapper
from fastai.basics import ItemTransform, Transform
from matplotlib import pyplot as plt
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from charrnn_fa import evaluate
from charrnn_fa.core import CharRNNError
from charrnn_fa.text.vocab import CharVocab
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharBlock, CharDataLoaders, TensorChars
from charrnn_fa.text.streams import CharDL
from charrnn_fa.callback.progress import ProgressLines
from charrnn_fa.doctor.watch import Doctor
from charrnn_fa.evaluate import CharAccuracy, CharLoss
from charrnn_fa.learner import char_learner
from charrnn_fa.loop import CharLearner
from charrnn_fa.models import CharRNN
from charrnn_fa.optim import AdamW, Muon
from charrnn_fa.presets import presets
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.run.files import RunWarning
from charrnn_fa.run.model import load_run, save_run
from kills import BF16

needs_bf16 = pytest.mark.skipif(BF16 != 'bf16', reason='this processor has no LSTM in bf16')


def nats(learn): return learn.validate()[0]


@pytest.mark.parametrize('fit', ['fit', 'fit_one_cycle', 'fit_flat_cos'])
def test_fits_learn(learn, fit):
    before = nats(learn)
    getattr(learn, fit)(3, 1e-2)
    assert nats(learn) < before - 0.5
    assert len(learn.recorder.losses) == 3*len(learn.dls.train)


@pytest.mark.parametrize('arch', ['rnn', 'gru', 'lstm'])
def test_archs_learn_to_count(arch):
    "012012... first; the harder 0121 needs one character of memory"
    for corpus in 'count', 'count:0121':
        learn = char_learner(CharDataLoaders.from_corpus(corpus, bs=8, seq_len=16, seed=1, device='cpu'),
                             arch=arch, n_hid=32, emb_sz=8)
        with learn.no_bar(): learn.fit_one_cycle(1, 1e-2)
        assert learn.evaluate()['accuracy'] > 0.99


def test_one_cycle_schedule_reaches_both_optimisers(learn):
    learn.fit_one_cycle(2, 1e-2, pct_start=0.25, div=25.)
    lrs,moms = learn.recorder.hps['lr'],learn.recorder.hps['mom']
    assert math.isclose(lrs[0], 1e-2/25, rel_tol=1e-6) and max(lrs) <= 1e-2 and max(lrs) > 0.99e-2 and lrs[-1] < 1e-4
    assert min(moms) < 0.86 and moms[0] == 0.95


def test_lr_find_leaves_no_trace(learn, make, dls, same):
    learn.fit(1, 1e-3)
    before = (deepcopy(learn.model.state_dict()),dls.train.state_dict(),[o.clone() for o in learn.carried],
              torch.get_rng_state(),learn.model.training)
    lrs = learn.lr_find(num_it=20, show_plot=False)
    assert 1e-7 < lrs.valley < 10
    assert all(torch.equal(v, before[0][k]) for k,v in learn.model.state_dict().items())
    assert dls.train.state_dict() == before[1]
    assert all(torch.equal(a, b) for a,b in zip(learn.carried, before[2]))
    assert torch.equal(torch.get_rng_state(), before[3])


def test_lines_instead_of_a_bar(dls, capsys):
    "As many as asked for, one for each epoch, no list of numbers, and all as it was afterwards"
    learn = char_learner(dls, n_hid=16, emb_sz=8, head_sz=0, precision='fp32')
    n,before = len(dls.train),(learn.logger, list(map(type, learn.cbs)))
    with learn.no_bar(0): learn.fit(2)
    out = capsys.readouterr().out.splitlines()
    assert [o.split('   ')[0] for o in out] == [*(f'step {i} of {2*n}' for i in range(2, n+1)), 'epoch 1 of 2',
                                                *(f'step {i} of {2*n}' for i in range(n+1, 2*n+1)), 'epoch 2 of 2']
    assert out[-1].split('   ')[1] == f'train_loss {learn.recorder.values[-1][0]:.4g}' and out[-2].endswith('0 s left')
    with learn.no_bar(10_000), learn.no_valid(): learn.fit(1)
    assert [o.split()[0] for o in capsys.readouterr().out.splitlines()] == ['epoch']
    with pytest.raises(ZeroDivisionError), learn.no_bar(0): learn.fit(1, cbs=Fail())
    assert (learn.logger, list(map(type, learn.cbs))) == before
    with learn.no_bar(0):
        learn.validate(); learn.get_preds(); learn.lr_find(num_it=3, show_plot=False)
        with learn.no_bar(): learn.fit(1)
    assert 'step' not in (out := capsys.readouterr().out) and 'epoch' not in out


def test_lines_are_right_beside_a_validation_in_each_epoch(dls, capsys):
    learn = char_learner(dls, n_hid=16, emb_sz=8, head_sz=0, precision='fp32')
    class Look(Callback):
        def after_batch(self):
            if self.training and self.iter == 3: self.learn.validate()
    with learn.no_bar(0): learn.fit(2, cbs=Look())
    out,n = capsys.readouterr().out.splitlines(),len(dls.train)
    assert (len(out) == 2*n-1 + 2
            and [o.split('   ')[0] for o in out if o.startswith('epoch')] == ['epoch 1 of 2', 'epoch 2 of 2'])
    for o,vs in zip([o for o in out if o.startswith('epoch')], learn.recorder.values):
        assert [i.split(' ')[1] for i in o.split('   ')[1:-1]] == [f'{v:.4g}' for v in vs] and len(vs) == 5
    alone = char_learner(dls, n_hid=16, emb_sz=8, head_sz=0, precision='fp32')
    with alone.no_bar(), alone.no_logging(): alone.fit(2)
    assert (list(learn.recorder.values) == list(alone.recorder.values)
            and list(learn.recorder.iters) == list(alone.recorder.iters))


class Fail(Callback):
    def after_batch(self): 1/0


def test_lines_at_parts_of_a_run_above_a_bar(make):
    """Where they are asked for, each on a line of its own, with a sample below; the bar counts right, also in a
    run that goes on, and is closed"""
    screen,learn = io.StringIO(),make()
    def lines(parts):
        return ProgressLines(0, parts=parts, file=screen, sample=lambda learn: f'sample at {learn.steps_done}',
                             bar=bar, epochs=False)
    bar = tqdm(total=None, file=screen, mininterval=0)
    learn.fit_steps(40, cbs=lines(4))
    assert (bar.n, bar.total, bar.initial, bar.disable) == (40, 40, 0, True) and 'nats' in bar.postfix
    shown = [o.split('\r')[-1] for o in screen.getvalue().split('\n')]
    assert [o.split('   ')[0] for o in shown if 'left' in o] == ['step 10 of 40', 'step 20 of 40', 'step 30 of 40']
    assert ([o for o in shown if o.startswith('sample')] == ['sample at 10', 'sample at 20', 'sample at 30']
            and not any('epoch' in o for o in shown))
    bar = tqdm(total=None, file=screen, mininterval=0)
    learn.fit_steps(40, start=25, cbs=lines(4))
    assert (bar.n, bar.total, bar.initial) == (40, 40, 25)
    bar = tqdm(total=None, file=screen)
    with pytest.raises(ZeroDivisionError): learn.fit_steps(40, cbs=[lines(4), Fail()])
    assert bar.disable


def test_a_bar_is_closed_by_an_error_in_another_before_fit(make):
    "As by a `Checkpoint` that finds its run in use: what is said next has a line of its own"
    class Refuses(Callback):
        order = 1000
        def before_fit(self): raise CharRNNError('In use')
    bar = tqdm(total=None, file=io.StringIO())
    with pytest.raises(CharRNNError): make().fit(1, cbs=[ProgressLines(bar=bar), Refuses()])
    assert bar.disable


def test_loaders_of_another_make(learn):
    "Epochs, steps and emptied streams, but no start within an epoch"
    x,y = learn.dls.train.batch(0, 0)
    dls = DataLoaders(DataLoader([(x, y)]*3, bs=None), DataLoader([(x, y)], bs=None))
    other = CharLearner(dls, learn.model, precision='fp32', reset_pct=0.5)
    with other.no_bar(), other.no_logging():
        other.fit(2, 1e-3)
        assert (other.steps_done, other.run_epoch, len(other.recorder.losses)) == (6, 0, 6)
        with pytest.raises(CharRNNError, match='Only a CharDL can start in the middle'):
            other.fit(2, 1e-3, start_batch=1)
        assert other.fit_steps(5) == 5 and other.steps_done == 11


@pytest.mark.parametrize('limit', ['_most_scores', '_most_chars'])
@pytest.mark.parametrize('context', ['carry', 32, 100, 10**6])
def test_evaluate_has_few_scores_at_once(learn, monkeypatch, context, limit):
    "64 windows of 1,024 characters over 8,000 symbols were 10 GB, and a window of a whole text what it liked"
    whole,sizes,most = learn.evaluate(context),[],{'_most_scores':3000, '_most_chars':50}[limit]
    unit = len(learn.vocab) if limit == '_most_scores' else 1
    monkeypatch.setattr(evaluate, limit, most)
    hook = learn.model.register_forward_hook(lambda m, i, o: sizes.append((o[0][...,0].numel(), len(o[0]))))
    pieces = learn.evaluate(context)
    hook.remove()
    assert all(n*unit <= max(most, rows*unit) for n,rows in sizes) and len(sizes) > 3
    assert {k:pytest.approx(v, rel=1e-6) if k != 'context' else v for k,v in whole.items()} == pieces


def test_a_text_without_a_batch_is_refused():
    "By epochs and by steps, which would go through it for ever"
    dl = CharDL([(torch.zeros(1, dtype=torch.uint8),)], bs=2, seq_len=2, shuffle=True, seed=1)
    learn = CharLearner(DataLoaders(dl, dl), CharRNN(2, n_hid=4, emb_sz=2), precision='fp32')
    for fit in learn.fit, learn.fit_steps:
        with pytest.raises(CharRNNError, match='The loader of this Learner has no text'), learn.no_bar(): fit(3)


def test_a_subclass_finds_what_was_patched_in(make, same):
    class Mine(CharLearner):
        n_fits = 0
        def fit(self, *args, **kwargs):
            self.n_fits += 1
            super().fit(*args, **kwargs)
    a,b = make(dropout=0.2),make(dropout=0.2)
    b.__class__ = Mine
    for learn in a,b: learn.fit_one_cycle(1, 1e-2)
    assert b.n_fits == 1 and same(a, b)


def test_validation_keeps_the_state(learn):
    learn.fit(1, 1e-3)
    before = [o.clone() for o in learn.carried]
    learn.validate(); learn.get_preds(); learn.summary(); learn.evaluate(); learn.generate(n=5)
    assert all(torch.equal(a, b) for a,b in zip(learn.carried, before))


def test_validate_counts_every_character_once(learn, dls):
    "Against a direct sum over the streams, whose last batch has one row"
    total = n = 0
    state = None
    learn.model.eval()
    for x,y in dls.valid:
        state = None if state is None else tuple(o[:,:len(x)] for o in state)
        logits,state = learn.model(x, state)
        p = logits.log_softmax(-1).gather(-1, y[...,None])
        total -= p.sum().item(); n += y.numel()
    loss,bits,perplexity,accuracy = learn.validate()
    assert n == len(dls.valid.ids)-1
    assert math.isclose(loss, total/n, rel_tol=1e-5)
    assert math.isclose(bits, loss/math.log(2), rel_tol=1e-5) and math.isclose(perplexity, math.exp(loss), rel_tol=1e-4)


def test_get_preds_in_text_order(learn, dls):
    preds,targs = learn.get_preds()
    assert dls.vocab.textify(targs) == dls.vocab.textify(dls.valid.ids[1:])
    assert preds.shape == (len(targs), len(dls.vocab)) and torch.allclose(preds.sum(1), torch.ones(len(preds)), atol=1e-5)
    inp,p,t,dec,losses = learn.get_preds(with_input=True, with_decoded=True, with_loss=True)
    assert dls.vocab.textify(inp) == dls.vocab.textify(dls.valid.ids[:-1])
    assert torch.equal(dec, p.argmax(-1))
    assert torch.allclose(losses, -p.gather(1, t[:,None])[:,0].log(), atol=1e-4)
    train = learn.get_preds(0)[1]
    assert dls.vocab.textify(train) == dls.vocab.textify(dls.train.ids[1:])
    text = 'a new text to look at'
    assert dls.vocab.textify(learn.get_preds(dl=dls.test_dl([text]))[1]) == text[1:]


def test_predict(learn):
    c,i,p = learn.predict('The ')
    assert learn.vocab[int(i)] == c and p.argmax() == i and math.isclose(p.sum(), 1, rel_tol=1e-5)
    with pytest.raises(CharRNNError): learn.predict('漢')


def test_show_results(learn, capsys):
    learn.show_results(max_n=2)
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ['text', 'target', 'prediction'] and len(out) == 3


def test_save_load(learn, make, same):
    learn.fit(1, 1e-2)
    learn.save('here')
    other = make(seed=99)
    assert not same(learn, other)
    other.load('here')
    assert same(learn, other)
    for a,b in zip(learn.opt.all_params(), other.opt.all_params()):
        assert torch.equal(a[2]['grad_avg'], b[2]['grad_avg'])


def test_export(learn, tmp_path):
    learn.fit(1, 1e-2)
    learn.export('e.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        other = load_learner(tmp_path/'e.pkl')
    assert other.generate('The', n=40, seed=3) == learn.generate('The', n=40, seed=3)
    assert other.predict('The')[0] == learn.predict('The')[0]


def test_freeze_and_rate_slices(learn):
    before = deepcopy(learn.model.state_dict())
    learn.freeze()
    learn.fit(1, 1e-2)
    moved = {k for k,v in learn.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {'decoder.weight', 'decoder.bias'}
    learn.unfreeze()
    learn.fit(1, slice(1e-4, 1e-2))
    assert [round(h['lr'], 8) for h in learn.opt.hypers] == [1e-4, 1e-3, 1e-2]
    assert all(not torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())


def test_biases_do_not_decay(make):
    learn = make(lr=0., wd=0.5)
    learn.fit(1, 0.)
    learn.create_opt()
    assert ({k for k,p in learn.model.named_parameters() if not learn.opt.state[p].get('do_wd', True)}
            == {k for k,p in learn.model.named_parameters() if p.ndim == 1})


@needs_bf16
def test_precisions(learn):
    assert learn.to_bf16() is learn and learn.precision == 'bf16'
    learn.fit(1, 1e-2)
    assert all(p.dtype == torch.float32 for p in learn.model.parameters()) and learn.carried[0].dtype == torch.float32
    learn.to_fp32().fit(1, 1e-2)
    with pytest.warns(UserWarning, match='fp16 needs a GPU'): learn.to_fp16()
    assert learn.precision == 'fp32'
    assert nats(learn) < 3.3


@needs_bf16
def test_bf16_is_used(make):
    "The logits of a bf16 run are rounded; those of an fp32 run are not"
    class Dtype(Callback):
        def after_pred(self): self.seen = self.pred.dtype
    for precision,dtype in ('bf16', torch.bfloat16), ('fp32', torch.float32):
        cb = Dtype()
        make(precision=precision).fit(1, 1e-3, cbs=cb)
        assert cb.seen == dtype


def test_without_an_lstm_in_bf16():
    "A processor with AVX2 and no more, as oneDNN can be told to see: fp32 is taken by itself, bf16 is refused in a sentence"
    code = """
import warnings
from charrnn_fa.learner import char_learner
from charrnn_fa.text.data import CharDataLoaders
dls = CharDataLoaders.from_text('to be or not to be. '*400, seed=1)
learn = char_learner(dls)
learn.remove_cbs(learn.progress)
with learn.no_logging(): learn.fit_steps(2)
print(learn.precision)
try: char_learner(dls, precision='bf16')
except ValueError as e: print(e)
with warnings.catch_warnings(record=True) as w: print(learn.to_bf16().precision, len(w))
"""
    done = subprocess.run([sys.executable, '-c', code],
                          env=dict(os.environ, ONEDNN_MAX_CPU_ISA='AVX2', OMP_NUM_THREADS='1'),
                          capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert (done.returncode == 0 and said[0] == 'fp32' and 'take fp32' in said[1]
            and said[2] == 'fp32 1'), (done.stdout, done.stderr)


def test_gradient_clip(make):
    class Norm(Callback):
        order = GradientClip.order+1
        def before_fit(self): self.norms = []
        def before_step(self):
            self.norms.append(torch.stack([p.grad.norm() for p in self.model.parameters()]).norm().item())
    clipped,free = Norm(),Norm()
    make(clip=0.01).fit(1, 1e-3, cbs=clipped)
    make(clip=0).fit(1, 1e-3, cbs=free)
    assert max(clipped.norms) < 0.0101 < min(free.norms)


def test_gradient_accumulation(make):
    "Steps of two batches: half as many, and the mean of both gradients"
    class Count(Callback):
        order = 100
        def before_fit(self): self.n = 0
        def after_step(self): self.n += 1
    cb = Count()
    learn = make()
    learn.fit(1, 1e-3, cbs=[GradientAccumulation(2*learn.dls.train.bs), cb])
    assert cb.n == len(learn.dls.train)//2


def test_trackers_and_logger(learn, tmp_path):
    learn.fit(3, 1e-2, cbs=[SaveModelCallback(fname='best'), CSVLogger()])
    assert (tmp_path/'models/best.pth').exists()
    log = pd.read_csv(tmp_path/'history.csv')
    assert len(log) == 3 and {'train_loss', 'valid_loss', 'bits', 'perplexity', 'accuracy'} < set(log.columns)
    learn.fit(10, 0., cbs=EarlyStoppingCallback(patience=2))
    assert len(learn.recorder.values) == 3


def test_interrupt_leaves_a_usable_learner(learn):
    class Interrupt(Callback):
        def before_batch(self):
            if self.training and self.iter == 5: raise KeyboardInterrupt
    learn.add_cb(learn_progress := ProgressLike())
    logger = learn.logger
    with pytest.raises(KeyboardInterrupt): learn.fit(2, 1e-2, cbs=Interrupt())
    assert learn.logger is logger and learn_progress.closed
    assert all(p.grad is None for p in learn.model.parameters())
    learn.fit(1, 1e-2)
    assert nats(learn) < 3.3


class ProgressLike(Callback):
    closed = False
    def after_fit(self): self.closed = True


def test_real_ctrl_c(tmp_path):
    "SIGINT to a process in the middle of `fit`; it goes on to validate and to write"
    code = '''
from charrnn_fa.all import *
import signal
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell switches interrupts off for what is in its background
learn = char_learner(CharDataLoaders.from_text(load_corpus('pydocs')[:20000], seed=1), n_hid=32)
try: learn.fit(1000, 1e-3)
except KeyboardInterrupt: print('\\nstopped')
learn.fit(1, 1e-3)
print('\\nusable', len(learn.generate('The', n=20)))
'''
    p = subprocess.Popen([sys.executable, '-u', '-c', code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = b''
    while b'Epoch' not in out and (new := p.stdout.read1(4096)): out += new
    os.set_blocking(p.stdout.fileno(), False)
    # one that lands in a bare `except:` of somebody's is lost, as at a keyboard
    for _ in range(10):
        p.send_signal(signal.SIGINT)
        end = time.monotonic()+10
        while b'stopped' not in out and time.monotonic() < end:
            out += p.stdout.read() or b''
            time.sleep(0.01)
        if b'stopped' in out: break
    os.set_blocking(p.stdout.fileno(), True)
    out += p.communicate(timeout=120)[0]
    assert b'stopped' in out and b'usable 23' in out, out[-2000:]


class StopAt(Callback):
    "Stop before a batch and keep all that goes on"
    order = -20
    def __init__(self, epoch, i): self.at = epoch,i
    def before_batch(self):
        if self.training and (self.epoch, self.iter) == self.at:
            self.kept = deepcopy((self.model.state_dict(), self.opt.state_dict(), self.learn.carried,
                                  self.dls.train.state_dict())),torch.get_rng_state()
            raise CancelFitException()


def go_on(learn, stop):
    learn.create_opt()
    (weights,opt,learn.carried,dl),rng = stop.kept
    learn.model.load_state_dict(weights)
    learn.opt.load_state_dict(opt)
    learn.dls.train.load_state_dict({**dl, 'batch':stop.at[1]})
    torch.set_rng_state(rng)
    return learn


SPLIT = [dict(dropout=0.3), dict(arch='rnn', precision=BF16), dict(opt_func=AdamW, n_layers=2, dropout=0.2),
         dict(reset_pct=0.3)]


@pytest.fixture(scope='module')
def splittable(text, tmp_path_factory):
    "Learners with 29 batches in an epoch, and those that have trained without a cut, each trained once"
    d,whole = tmp_path_factory.mktemp('split'),{}
    def _fresh(**kwargs):
        dls = CharDataLoaders.from_text(text[:2000], bs=4, seq_len=16, seed=7, path=d, device='cpu')
        learn = char_learner(dls, **{**dict(n_hid=16, emb_sz=8, head_sz=0, precision='fp32'), **kwargs})
        return learn.remove_cbs(learn.progress)
    def _whole(f, **kwargs):
        if (k := repr(kwargs)) not in whole: f(whole.setdefault(k, _fresh(**kwargs)))
        return whole[k]
    return _fresh,_whole


@pytest.mark.parametrize('at', [(0, 1), (1, 0), (1, 7), (2, 26)])
@pytest.mark.parametrize('kwargs', SPLIT)
def test_a_run_split_in_two_is_the_same_run(splittable, same, at, kwargs):
    "Weights equal to the bit, for every place of the cut"
    fresh,whole = splittable
    one = whole(lambda learn: learn.fit_one_cycle(3, 1e-2), **kwargs)
    stop = StopAt(*at)
    fresh(**kwargs).fit_one_cycle(3, 1e-2, cbs=stop)
    two = go_on(fresh(**kwargs), stop)
    two.start_at(*at).fit_one_cycle(3, 1e-2)
    assert len(one.dls.train) == 29 and len(two.recorder.lrs) == 3*29 - at[0]*29 - at[1]
    assert same(one, two)
    assert one.recorder.lrs[-len(two.recorder.lrs):] == two.recorder.lrs


@pytest.mark.parametrize('step', [1, 28, 29, 44])
def test_a_run_of_steps_split_in_two(splittable, same, step):
    fresh,whole = splittable
    kwargs = dict(dropout=0.2, reset_pct=0.1)
    one = whole(lambda learn: learn.fit_steps(66), **kwargs)
    stop = StopAt(0, step)
    half = fresh(**kwargs)
    half.fit_steps(66, cbs=stop)
    two = fresh(**kwargs)
    two.create_opt()
    (weights,opt,two.carried,dl),rng = stop.kept
    two.model.load_state_dict(weights); two.opt.load_state_dict(opt)
    two.dls.train.load_state_dict({**dl, 'batch':dl['batch']-1})     # the batch that was drawn and not trained on
    torch.set_rng_state(rng)
    two.fit_steps(66, start=step)
    assert same(one, two)


def test_seed_fixes_the_run(text, make, same):
    def run(seed):
        learn = make(CharDataLoaders.from_text(text, bs=4, seq_len=16, device='cpu'), seed=seed, dropout=0.3)
        torch.rand(seed)                              # whatever happened before
        learn.fit(1, 1e-2)
        return learn
    assert same(run(5), run(5)) and not same(run(5), run(6))


def test_state_is_carried_and_detached(learn):
    class Watch(Callback):
        def before_fit(self): self.states = []
        def after_batch(self):
            if self.training: self.states.append(self.learn.carried)
    w = Watch()
    learn.fit(1, 1e-3, cbs=w)
    assert all(not o.requires_grad for s in w.states for o in s)
    x,_ = next(iter(learn.dls.train))
    assert w.states[0][0].abs().sum() > 0 and w.states[0][0].shape == (1, 4, 16)


def test_fit_steps_ends_at_nothing_and_in_time(learn):
    n = learn.fit_steps(50)
    assert n == 50 and len(learn.recorder.losses) == 50
    lrs = learn.recorder.lrs
    assert max(lrs) == lrs[9] == presets['cpu-minute'].lr and lrs[-1] < 0.01*max(lrs)
    n = learn.fit_steps(minutes=0.02)
    assert len(learn.recorder.losses) == n > 0


def test_steps_cross_epochs(learn):
    n = 2*len(learn.dls.train)+10
    learn.fit_steps(n)
    assert learn.run_epoch == learn.dls.train.epoch == 3 and learn.dls.train.state_dict()['batch'] == 0
    learn.fit_steps(2*len(learn.dls.train))
    assert learn.run_epoch == 5 and learn.steps_done == 4*len(learn.dls.train)+10


def test_evaluate_against_a_direct_sum(learn, dls):
    ids = dls.valid.ids.long()
    learn.model.eval()
    logp = learn.model(ids[None,:-1])[0][0].double().log_softmax(-1)
    nats = -logp[range(len(ids)-1), ids[1:]].mean().item()
    r = learn.evaluate('carry')
    assert math.isclose(r['nats'], nats, rel_tol=1e-6) and r['n_chars'] == len(ids)-1
    w = 0
    for i in range(0, len(ids)-1, 50):
        part = ids[i:i+51]
        w -= learn.model(part[None,:-1])[0][0].double().log_softmax(-1)[range(len(part)-1), part[1:]].sum().item()
    assert math.isclose(learn.evaluate(50)['nats'], w/(len(ids)-1), rel_tol=1e-6)


def test_summary_counts_once(make):
    learn = make(n_hid=16, emb_sz=16, tie=True, n_layers=2)
    n = sum(p.numel() for p in learn.model.parameters())
    s = str(learn.summary())
    assert f'{n:,} parameters, {n:,} of them trained' in s
    counts = [int(o.split()[-2].replace(',', '')) for o in s.splitlines() if o.endswith(('True', 'False'))]
    assert sum(counts) == n
    assert '4 x 16 x 16' in s


def test_plain_learner_and_data_block_names(text):
    learn = char_learner(CharDataLoaders.from_text(text, device='cpu'), arch='gru', preset='cpu-minute', n_hid=20,
                         n_layers=2, dropout=0.1, cbs=None)
    assert isinstance(learn, Learner) and learn.model.arch == 'gru' and learn.model.n_layers == 2
    for bad in dict(arch='gpt'), dict(preset='nope'), dict(precision='fp8'):
        with pytest.raises(CharRNNError): char_learner(CharDataLoaders.from_text(text, device='cpu'), **bad)


def test_swapped_axes_are_refused():
    with pytest.raises(CharRNNError, match='rows, steps, vocabulary'):
        CharLoss()(torch.randn(3, 5, 4), torch.randint(0, 5, (3, 4)))


def test_start_from_a_smaller_vocabulary(learn, make, text):
    learn.fit(2, 1e-2)
    vocab = CharVocab([*learn.vocab, 'ß', '漢'])
    other = make(CharDataLoaders.from_text(text + 'ß漢'*10, vocab=vocab, bs=4, seq_len=16,
                                           device='cpu')).start_from(learn.model, learn.vocab)
    p,q = learn.predict('The ')[2],other.predict('The ')[2]
    q = q[[vocab.stoi[c] for c in learn.vocab]]
    assert torch.allclose(q/q.sum(), p, atol=1e-5)


def test_looking_does_not_move_the_loader(learn):
    "However the loader was left, an epoch begins at its begin"
    n = len(learn.dls.train)
    next(iter(learn.dls.train))
    for look in learn.validate, learn.get_preds, learn.summary, lambda: learn.lr_find(num_it=10, show_plot=False):
        look()
        learn.fit(1, 1e-3)
        assert len(learn.recorder.losses) == n


def test_interrupt_then_look_then_fit(learn):
    class Interrupt(Callback):
        def after_batch(self):
            if self.training and self.iter == 5: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3, cbs=[Interrupt(), SaveModelCallback(fname='never')])
    learn.validate()
    learn.fit(1, 1e-3)
    assert len(learn.recorder.losses) == len(learn.dls.train)


def test_error_in_a_callback_leaves_the_logger(learn):
    class Bad(Callback):
        def after_batch(self): raise RuntimeError('bad')
    logger = learn.logger
    for cbs in Bad(), [CSVLogger(), Bad()]:
        with pytest.raises(RuntimeError): learn.fit(1, 1e-3, cbs=cbs)
        assert learn.logger == logger


@needs_bf16
def test_predictions_of_a_bf16_run_are_single(make):
    assert make(precision='bf16').get_preds()[0].dtype == torch.float32


def test_predictions_of_the_training_loader_are_in_text_order(learn, dls):
    learn.fit(1, 1e-3)
    targs = learn.get_preds(dl=dls.train)[1]
    text = dls.vocab.textify(dls.train.ids)
    assert dls.vocab.textify(targs)[:100] in (text + text) and len(targs) >= len(text)-1-dls.train.bs


def test_two_learners_on_one_text(make, same, dls):
    "Each has its own cuts and its own count of epochs"
    a,b = make(seed=5, dropout=0.2),make(seed=6)
    a.fit(1, 1e-2); b.fit(1, 1e-2); a.fit(1, 1e-2)
    c = make(seed=5, dropout=0.2)
    c.fit(1, 1e-2); c.fit(1, 1e-2)
    assert same(a, c)


def test_a_copy_is_trained_like_the_original(learn, same):
    learn.fit(1, 1e-2)
    copy = deepcopy(learn)
    learn.fit(1, 1e-2); copy.fit(1, 1e-2)
    assert same(learn, copy)


def test_short_epochs_see_other_text(learn):
    from fastai.callback.training import ShortEpochCallback
    class First(Callback):
        def before_fit(self): self.seen = []
        def before_batch(self):
            if self.training and self.iter == 0: self.seen.append(self.x[0].tolist())
    first = First()
    learn.fit(3, 1e-3, cbs=[ShortEpochCallback(0.1), first])
    assert len({tuple(o) for o in first.seen}) == 3


@pytest.mark.parametrize('other', [dict(n_hid=12), dict(emb_sz=16, tie=True), dict(head_sz=8), dict(emb_sz=4),
                                   dict(arch='gru'), dict(emb_sz=0)])
def test_start_from_another_shape_is_refused_and_changes_nothing(learn, make, other):
    m = make(**other)
    before = deepcopy(m.model.state_dict())
    with pytest.raises(CharRNNError, match='differ in more than'): m.start_from(learn.model, learn.vocab)
    assert all(torch.equal(v, before[k]) for k,v in m.model.state_dict().items())


def test_grad_scale_skips_overflow(make):
    "fp16's callback, run on the CPU: scaled and unscaled gradients give the weights of a run without it"
    from charrnn_fa.callback.precision import GradScale
    class Norm(Callback):
        order = GradientClip.order+1
        def before_fit(self): self.norms = []
        def before_step(self):
            self.norms.append(torch.stack([p.grad.norm() for p in self.model.parameters()]).norm().item())
    a,b,na,nb = make(clip=0),make(clip=0),Norm(),Norm()
    b.add_cb(GradScale())
    a.fit(1, 1e-3, cbs=na); b.fit(1, 1e-3, cbs=nb)
    assert nb.norms[0] == pytest.approx(na.norms[0], rel=1e-4)


class Overflows(Callback):
    "An infinite loss in some steps; the scale before each"
    def __init__(self, steps): self.steps,self.scales = steps,[]
    order = 0
    def before_backward(self):
        self.scales.append(self.learn.scaler.get_scale())
        if self.train_iter in self.steps: self.learn.loss_grad = self.loss_grad*float('inf')


def test_a_step_with_an_overflow_is_left_out_without_asking(make, monkeypatch):
    "As PyTorch's scaler leaves it out by asking, which makes the processor wait for a GPU: the same weights, averages and scales"
    from charrnn_fa.callback import precision
    from charrnn_fa.callback.precision import GradScale
    class Asks(precision._Optimiser):
        def __init__(self, opt):
            super().__init__(opt)
            self._step_supports_amp_scaling = False
    class Pulls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default: pulled.append(func)
            return func(*args, **(kwargs or {}))
    class Watched(Callback):
        order = GradScale.order-1
        def before_step(self): self.mode = Pulls().__enter__()
    class Unwatched(Callback):
        order = 2000
        def after_step(self): self.learn.watched.mode.__exit__(None, None, None)
    ends,pulls = [],[]
    for kind in precision._Optimiser,Asks:
        monkeypatch.setattr(precision, '_Optimiser', kind)
        learn,pulled,overflows = make(),[],Overflows({3, 4, 9})
        learn.remove_cb(Doctor)
        learn.fit(1, 1e-2, cbs=[GradScale(), overflows, Watched(), Unwatched()])
        state = [v for p in learn.model.parameters() for _,v in sorted(learn.opt.state[p].items()) if torch.is_tensor(v)]
        ends.append((overflows.scales, [*learn.model.parameters(), *state]))
        pulls.append(len(pulled))
        assert learn.opt.found_inf is None
    (scales,ours),(others,theirs) = ends
    assert scales == others and len({*scales[:12]}) == 4
    assert len(ours) == len(theirs) and all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a,b in zip(ours, theirs))
    assert pulls[0] == 0 < pulls[1]


class OwnStep(Muon):
    def step_group(self, ps, h):
        for p in ps: p.sub_(p.grad, alpha=h['lr'])


@pytest.mark.parametrize('opt_func', [lambda ps, lr: Lookahead(Muon(ps, lr=lr)), OwnStep,
                                      partial(OptimWrapper, opt=torch.optim.AdamW)])
def test_other_optimisers_are_kept_from_a_step_with_an_overflow(make, opt_func):
    "Wrapped around one of ours, made of one, or another's: they cannot leave it out by themselves"
    from charrnn_fa.callback.precision import GradScale
    learn = make(opt_func=opt_func)
    learn.fit(1, 1e-3, cbs=[GradScale(), Overflows({3})])
    assert all(p.isfinite().all() for p in learn.model.parameters())


def test_an_error_within_a_step_with_an_overflow_costs_no_other(make):
    from charrnn_fa.callback.precision import GradScale
    class Falls(Callback):
        order = 2000
        def before_step(self): raise KeyboardInterrupt
    learn = make()
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3, cbs=[GradScale(), Overflows({0}), Falls()])
    assert learn.opt.found_inf is None
    before = deepcopy(learn.model.state_dict())
    learn.fit(1, 1e-3)
    assert all(not torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())


def test_what_scales_keeps_no_optimiser(make, tmp_path):
    "An exported Learner has no state of the optimiser, after a fit in fp16 neither"
    from charrnn_fa.callback.precision import GradScale
    learn = make()
    learn.add_cb(GradScale())
    learn.fit(1, 1e-3)
    learn.export(tmp_path/'with.pkl')
    learn.remove_cb(GradScale).export(tmp_path/'without.pkl')
    assert (tmp_path/'with.pkl').stat().st_size < (tmp_path/'without.pkl').stat().st_size + 2000


class Far(torch.Tensor):
    "A number that NumPy is refused, as one on a GPU"
    def __array__(self, *args): raise TypeError('not here')
    def cpu(self): return self.as_subclass(torch.Tensor)


class SendsFar(Callback):
    order = Recorder.order+1
    def after_batch(self):
        if self.training: self.recorder.losses[-1] = self.recorder.losses[-1].as_subclass(Far)


class Stops(Callback):
    order = 60
    def after_batch(self): raise CancelFitException


@pytest.mark.parametrize('how', [lambda o: o.fit(1), lambda o: o.fit(1, cbs=Stops()), lambda o: o.lr_find(num_it=30)])
def test_losses_are_here_for_a_plot_however_a_fit_ends(make, monkeypatch, how):
    monkeypatch.setattr('charrnn_fa.loop.batches.is_away', lambda o: isinstance(o, Far))
    learn = make(cbs=SendsFar())
    how(learn)
    plt.close('all')
    assert learn.recorder.losses and not any(isinstance(o, Far) for o in learn.recorder.losses)


def test_a_recorder_of_ones_own_stays_as_it_is(make):
    class Own(AvgSmoothLoss): pass
    for rec,kind,beta in (Recorder(beta=.5), 'AvgSmoothLoss', .5),(Recorder(), 'Own', .7):
        if kind == 'Own': rec.smooth_loss = Own(beta=.7)
        learn = make(cbs=rec)
        assert (type(learn.recorder.smooth_loss).__name__, learn.recorder.smooth_loss.beta) == (kind, beta)


def test_a_model_compiles_as_one_graph():
    "Whose layers PyTorch can compile; `nn.LSTM` it cannot"
    model,x = CharRNN(65, arch='rnn', head_sz=32, n_hid=16).eval(),torch.zeros(2, 8, dtype=torch.long)
    explained = torch._dynamo.explain(model)(x)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained


def test_callbacks_of_every_make_are_asked(make):
    "In `__call__`, in the class, in the object, and through `__getattr__`: as often as by fastai's own loop"
    class Called(Callback):
        def __init__(self): self.n = Counter()
        def __call__(self, event_name): self.n[event_name] += 1
    class Own(Callback):
        def __init__(self):
            self.n = Counter()
            for o in events: setattr(self, o, partial(self.n.update, [o]))
    class Looked(Callback):
        def __init__(self): self.n = Counter()
        def __getattr__(self, k):
            if k in events: return partial(self.n.update, [k])
            return super().__getattr__(k)
    events = ['before_fit', 'before_batch', 'after_pred', 'after_loss', 'before_backward', 'before_step',
              'after_step', 'after_batch', 'after_epoch']
    cbs = [Called(), Own(), Looked()]
    learn = make()
    learn.fit(1, 1e-3, cbs=cbs)
    n,m = len(learn.dls.train),len(learn.dls.valid)
    for cb in cbs: assert [cb.n[o] for o in events] == [1, n+m, n+m, n+m, n, n, n, n+m, 1], (cb, cb.n)


@pytest.mark.parametrize('by_line', [False, True])
def test_a_look_at_the_loader_changes_no_training(by_line):
    "The Learner has a seed of its own, which its loaders take over when a fit begins"
    def trained(look):
        learn = char_learner(CharDataLoaders.from_text('ab\nc\nde\n\n'*60, bs=4, seq_len=8, seed=1, by_line=by_line),
                             n_hid=8, seed=2, precision='fp32')
        if look: learn.dls.train.one_batch()
        with learn.no_bar(), learn.no_logging(): learn.fit_steps(12)
        return learn
    a,b = trained(False),trained(True)
    assert all(map(torch.equal, a.model.parameters(), b.model.parameters()))


def test_steps_that_are_done_already_change_nothing(learn):
    learn.create_opt()
    before = [h['lr'] for h in learn.opt.hypers]
    with pytest.raises(CharRNNError, match='done already'): learn.fit_steps(5, start=5, lr=.3)
    assert [h['lr'] for h in learn.opt.hypers] == before


def test_a_callback_may_listen_to_more_in_the_next_fit(learn):
    class Grows(Callback):
        n = 0
        def before_fit(self): self.after_batch = self.count
        def count(self): self.n += self.training
    cb = Grows()
    learn.add_cb(cb)
    learn.fit(1, 1e-3)
    first,cb.n = cb.n,0
    learn.fit(1, 1e-3)
    assert (first, cb.n) == (len(learn.dls.train),)*2


def test_numbers_of_numpy_are_numbers(learn, tmp_path):
    from charrnn_fa.checkpoint import Checkpoint
    assert learn.fit_steps(3, lr=np.float64(1e-3)) == 3
    learn.fit(np.int64(1), lr=np.float32(1e-3), cbs=Checkpoint(tmp_path/'r'))
    assert learn.epoch == 0
    for f in lambda: learn.fit(1, lr=math.inf), lambda: learn.fit_steps(3, lr=math.inf):
        with pytest.raises(CharRNNError, match='lr is inf'): f()


def ragged():
    "A validation part whose last batch has one step, where the others have 33"
    text = load_corpus('pydocs')[:8000+16*34+1]
    return CharDataLoaders.from_documents([text[:8000], text[8000:]], [[0], [1]], bs=16, seq_len=33, seed=3)


def test_metrics_of_fastai_weigh_characters():
    "Functions and fastai's own averages, also those that are set later"
    from fastai.metrics import Perplexity as Theirs
    learn = char_learner(ragged(), n_hid=32, precision='fp32', metrics=[accuracy, AvgMetric(accuracy), Theirs()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    probs,targets = learn.get_preds()
    right = (probs.argmax(-1) == targets).float().mean().item()
    want = [right, right, math.exp(F.nll_loss(probs.log(), targets).item())]
    assert [*learn.validate()[1:]] == pytest.approx(want, rel=1e-4)
    learn.metrics = accuracy
    assert [*learn.validate()[1:]] == pytest.approx([right], rel=1e-4)


class WithState(nn.Module):
    "A network of somebody's own that keeps to the contract"
    def __init__(self, n):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(n, 8),nn.GRU(8, 16, batch_first=True),nn.Linear(16, n)
    def forward(self, x, state=None):
        h,s = self.rnn(self.emb(x), None if state is None else state[0])
        return self.out(h),(s,)


def test_a_model_of_ones_own():
    dls = ragged()
    learn = CharLearner(dls, WithState(len(dls.vocab)))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    assert learn.recorder.losses[-1] < learn.recorder.losses[0]
    stateless = nn.Sequential(nn.Embedding(len(dls.vocab), 8), nn.Linear(8, len(dls.vocab)))
    with pytest.raises(CharRNNError, match='takes no state.*Learner'): CharLearner(dls, stateless)


class BareState(WithState):
    "The usual way to write it for a GRU, whose state is no tuple"
    def forward(self, x, state=None):
        h,s = self.rnn(self.emb(x), state)
        return self.out(h),s


def test_a_bare_state_is_refused():
    "Fewer units than rows: each batch would begin without a memory, and nobody would notice"
    text = 'ab\n'*200
    dls = CharDataLoaders.from_text(text, bs=20, seq_len=4, seed=0)
    learn = CharLearner(dls, BareState(3), precision='fp32')
    with pytest.raises(CharRNNError, match='bare tensor'), learn.no_bar(): learn.fit(1, 1e-2)
    with pytest.raises(CharRNNError, match='bare tensor'): learn.generate('a', 5)
    learn = CharLearner(dls, WithState(3), precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert len(learn.generate('a', 5)) == 6


def test_a_single_loader_is_refused():
    with pytest.raises(CharRNNError, match='dls is CharDL; give loaders'): char_learner(ragged().train)


def test_transforms_of_items_are_made():
    "By a DataBlock, once for each document"
    class Backwards(ItemTransform):
        def encodes(self, o): return o[0].flip(0),
    docs = [load_corpus('pydocs')[i:i+3000] for i in (0, 3000, 6000)]
    block = lambda **kwargs: DataBlock(CharBlock(seed=1), splitter=IndexSplitter([2]),
                                       **kwargs).dataloaders(docs, bs=4, seq_len=16)
    plain,turned = block(),block(item_tfms=Backwards())
    want = torch.cat([o.flip(0) for o in plain.train.ids.split([3000, 3000])])
    assert torch.equal(turned.train.ids, want) and not torch.equal(want, plain.train.ids)


def test_transforms_of_items_are_set_up_and_know_their_part():
    class First(Transform):
        split_idx = 0 # for training only
        def setups(self, dl): self.n = 1000
        def encodes(self, o:TensorChars): return o[:self.n]
    docs = [load_corpus('pydocs')[i:i+3000] for i in (0, 3000, 6000)]
    dls = DataBlock(CharBlock(seed=1), splitter=IndexSplitter([2]), item_tfms=First()).dataloaders(docs, bs=4, seq_len=16)
    assert [len(o.ids) for o in dls.loaders] == [2000, 3000]


def test_a_loaded_run_counts_on(tmp_path):
    learn = char_learner(ragged(), n_hid=16, precision='fp32', opt_func=partial(Muon, muon_ratio=1.))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
    save_run(learn, tmp_path/'a')
    with pytest.warns(RunWarning, match=r'trained with Muon\(muon_ratio=1.0\)'): again = load_run(tmp_path/'a')
    assert (again.steps_done, again.run_epoch) == (learn.steps_done, 2) == (2*len(learn.dls.train), 2)
    info = save_run(again, tmp_path/'b').info()
    assert (info['step'], info['epoch']) == (learn.steps_done, 2)


@pytest.mark.parametrize('loss_func', [CharLoss(reduction='sum'), LabelSmoothingCrossEntropyFlat(.3), FocalLossFlat()])
def test_bits_are_those_of_the_text_whatever_the_loss(loss_func):
    learn = char_learner(ragged(), n_hid=16, precision='fp32', loss_func=loss_func)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
    _,bits,perplexity,_ = learn.validate()
    probs,targets = learn.get_preds(act=partial(torch.softmax, dim=-1))
    nats = F.nll_loss(probs.log(), targets).item()
    assert (bits, perplexity) == pytest.approx((nats/math.log(2), math.exp(nats)), rel=1e-3)


def test_a_loaded_run_validates_as_before(tmp_path):
    learn = char_learner(CharDataLoaders.from_text('She sells sea shells. '*40, bs=4, seq_len=8, val_bs=1, seed=1),
                         n_hid=8, precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    save_run(learn, tmp_path/'r')
    assert load_run(tmp_path/'r', 'cpu').validate() == learn.validate()


def test_a_seed_does_not_pass_from_one_learner_to_the_next(tmp_path):
    dls = CharDataLoaders.from_text('She sells sea shells. '*40, bs=4, seq_len=8, seed=3)
    def fitted(**kwargs):
        learn = char_learner(dls, n_hid=8, precision='fp32', **kwargs)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        return learn
    first,other,again = fitted(),fitted(seed=7),fitted()
    assert (first.seed, other.seed, again.seed, dls.seed) == (3, 7, 3, 3)
    assert all(torch.equal(a, b) for a,b in zip(first.model.parameters(), again.model.parameters()))


@pytest.mark.parametrize('cb,why', [
    (ModelResetter, 'ModelResetter empties a memory of the model'), (MixUp(), 'MixUp mixes'), (CutMix, 'CutMix mixes'),
    (RNNRegularizer(2., 1.), 'RNNRegularizer reads'), (RNNCallback(), 'RNNCallback reads'),
    (MixedPrecision(), "precision='fp16'"), (ModelToHalf(), "precision='fp16'")])
def test_callbacks_that_cannot_serve_are_refused(learn, tmp_path, cb, why):
    "In one sentence, before anything is begun, and the Learner is as it was"
    before = [*learn.cbs]
    with pytest.raises(CharRNNError, match=why): learn.fit(1, cbs=[Checkpoint(tmp_path/'r'), cb])
    assert learn.cbs == before and not (tmp_path/'r').exists()
    learn.fit(1)


def test_a_model_of_ones_own_may_be_reset(dls):
    class Resets(CharRNN):
        n_resets = 0
        def reset(self): self.n_resets += 1
    learn = CharLearner(dls, Resets(len(dls.vocab), n_hid=8), precision='fp32')
    with learn.no_bar(): learn.fit(1, cbs=ModelResetter())
    assert learn.model.n_resets


def test_metrics_that_are_added_to_the_list_weigh_characters(learn):
    "As those that are set"
    learn.metrics.append(AvgMetric(accuracy))
    learn.metrics.extend([accuracy, CharAccuracy()])
    *_,row_avg,as_function,ours = learn.validate()
    assert row_avg == as_function == ours


def test_a_frozen_model_is_not_trained(learn, tmp_path):
    learn.freeze_to(9)
    with pytest.raises(CharRNNError, match='frozen; call unfreeze'): learn.fit(1)
    learn.unfreeze()
    learn.fit(1)


def test_an_exported_learner_says_that_it_has_no_text(learn, tmp_path):
    learn.logger = print
    learn.export(tmp_path/'e.pkl')
    other = load_learner(tmp_path/'e.pkl')
    for f in other.evaluate, other.summary, other.validate, other.lr_find:
        with pytest.raises(CharRNNError, match='has no text; set its loaders'): f()
    assert other.evaluate(text='the text')['n_chars'] == 7


@pytest.mark.parametrize('given, way', [(dict(arch='cpu-minute'), "preset='cpu-minute'"), (dict(preset='gru'), "arch='gru'"),
                                        (dict(arch=presets['t4-hour']), 'preset=')])
def test_a_preset_in_the_place_of_an_arch_is_told_its_name(dls, given, way):
    with pytest.raises(CharRNNError, match=f'give .*{way}'): char_learner(dls, **given)


def test_a_loss_of_a_persons_own_may_be_in_16_bits():
    "What a person computes from scores in bf16 is in bf16 itself, where autocast leaves it so"
    def smooth(out, target):
        logp = out.log_softmax(-1)
        return -.9*logp.gather(-1, target[...,None]).mean() - .1*logp.mean()
    dls = CharDataLoaders.from_text('To be, or not to be. '*40, bs=4, seq_len=8, seed=1)
    learn = char_learner(dls, n_hid=8, loss_func=smooth, precision='bf16', seed=1)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.recorder.values[-1][0] > 0


def test_a_learner_from_a_pickle_writes_in_a_process_that_imported_nothing(learn, tmp_path):
    "`load_learner` imports the class alone"
    learn.path = tmp_path
    learn.export()
    code = (f"from fastai.learner import load_learner; learn = load_learner({str(tmp_path/'export.pkl')!r}); "
            "print(len(learn.generate('', n=7)), callable(learn.share), type(learn).validate.__module__)")
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert (p.stdout, p.returncode) == ('7 True charrnn_fa.loop.look\n', 0), p.stderr


def test_loaders_of_another_vocabulary_are_refused(learn, dls, make, tmp_path):
    "Their ids mean other characters; found in a notebook, where evaluate gave 8.9 nats and training went on"
    other = CharDataLoaders.from_text('Hello, how are you? I am fine. '*20, bs=4, seq_len=16, seed=7)
    with pytest.raises(CharRNNError, match='vocab=learn.vocab'): learn.dls = other
    assert learn.dls is dls
    for f in learn.validate, learn.get_preds, learn.show_results:
        with pytest.raises(CharRNNError, match='another vocabulary'): f(dl=other.valid)
    learn.dls = again = CharDataLoaders.from_text(dls.vocab.textify(dls.train.ids), bs=4, seq_len=16, vocab=learn.vocab)
    assert learn.dls is again
    learn.path = tmp_path
    learn.export()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'export.pkl')
    for o in loaded, deepcopy(learn):
        with pytest.raises(CharRNNError, match='another vocabulary'): o.dls = other
        o.dls = dls
    with pytest.raises(CharRNNError, match='set learn.model first if that changes too'): learn.dls = other
    learn.model = make(other).model
    learn.dls = other
    assert learn.evaluate()['nats'] < 4


def test_a_tracker_watches_what_is_recorded_and_knows_what_is_better(learn):
    "fastai takes the highest of all that has no 'loss' in its name for the best: the worst model was kept"
    for cls in SaveModelCallback, EarlyStoppingCallback:
        with pytest.raises(CharRNNError, match="'nats'.*valid_loss, bits, perplexity, accuracy"):
            learn.fit(1, cbs=cls(monitor='nats'))
        for name in 'bits', 'perplexity':
            with pytest.raises(CharRNNError, match=f"monitor='{name}', comp=np.less"): learn.fit(1, cbs=cls(monitor=name))
    assert learn.opt is None
    learn.fit(2, 1e-2, cbs=SaveModelCallback(monitor='bits', comp=np.less))
    assert learn.validate()[0] == pytest.approx(min(o[1] for o in learn.recorder.values), abs=1e-4)
    learn.fit(1, cbs=SaveModelCallback)


def test_an_assertion_without_words_in_a_callback_is_seen(learn):
    "fastai looks for its words and ends in: tuple index out of range"
    class Asserts(Callback):
        def before_fit(self): raise AssertionError # as a bare `assert` does
    class Wrong(Callback):
        def before_fit(self): [][0]
    for kind,cb in ((AssertionError, Asserts()), (IndexError, Wrong())):
        with pytest.raises(kind): learn.fit(1, cbs=cb)
    learn.add_cb(Asserts())
    learn.remove_cb(Asserts)
    learn.fit(1)


def test_a_missing_validation_part_is_told(text, tmp_path):
    "A splitter that found nothing left a column of None"
    block = DataBlock(CharBlock(seq_len=16, seed=1), splitter=lambda o: ([0, 1], []))
    learn = char_learner(block.dataloaders([text[:1000], text[1000:2000]], bs=4, path=tmp_path), n_hid=8, precision='fp32')
    with learn.no_bar(), pytest.warns(UserWarning, match='no validation part.*splitter'): learn.fit(1)


def test_what_can_be_no_metric_is_refused(dls):
    with pytest.raises(CharRNNError, match="'accuracy'.*without quotes"): char_learner(dls, metrics='accuracy')
    with pytest.raises(CharRNNError, match='metric'): char_learner(dls, metrics=[accuracy, None])


def test_several_suggested_rates_are_not_one_for_each_group(learn):
    from fastai.callback.schedule import minimum, steep, valley
    found = learn.lr_find(num_it=20, show_plot=False, suggest_funcs=(valley, steep, minimum))
    with pytest.raises(CharRNNError, match=r'valley, steep, minimum.*found\.valley'): learn.fit_one_cycle(1, found)
    learn.fit_one_cycle(1, learn.lr_find(num_it=20, show_plot=False))


def test_figures_of_both_parts_are_watched_in_the_right_direction(learn):
    learn.recorder.train_metrics = True
    with pytest.raises(CharRNNError, match="'bits'.*valid_bits"): learn.fit(1, cbs=SaveModelCallback(monitor='bits'))
    with pytest.raises(CharRNNError, match='comp=np.less'): learn.fit(1, cbs=SaveModelCallback(monitor='valid_bits'))
    learn.fit(1, cbs=SaveModelCallback(monitor='valid_accuracy'))


def test_an_optimiser_of_pytorch_is_told_how_to_be_wrapped(dls):
    with pytest.raises(CharRNNError, match='partial.OptimWrapper, opt=torch.optim.Adam'):
        char_learner(dls, opt_func=torch.optim.Adam)


def test_results_fit_into_a_notebook(make, text, capsys):
    "Three columns of 60 characters were broken over two lines each"
    make(CharDataLoaders.from_text(text, bs=4, seq_len=64, seed=1)).show_results()
    assert max(map(len, capsys.readouterr().out.split('\n'))) <= 130
