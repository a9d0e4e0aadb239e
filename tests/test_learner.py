"Everything that fastai documents for a Learner, and what ours adds"
import io
import math
import subprocess
import sys
import warnings
from collections import Counter
from copy import deepcopy
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import ItemTransform, Transform
from fastai.callback.all import CSVLogger, CutMix, EarlyStoppingCallback, GradientAccumulation, GradientClip, MixUp
from fastai.callback.all import MixedPrecision, ModelResetter, RNNCallback, RNNRegularizer, SaveModelCallback, ShortEpochCallback
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import ModelToHalf
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import IndexSplitter
from fastai.learner import AvgMetric, Recorder, load_learner
from fastai.losses import FocalLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.metrics import Perplexity, accuracy
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from charrnn_fa import evaluate
from charrnn_fa.callback import precision
from charrnn_fa.callback.precision import GradScale
from charrnn_fa.callback.progress import ProgressLines
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.errors import CharRNNError
from charrnn_fa.doctor.watch import Doctor
from charrnn_fa.evaluate import CharAccuracy, CharLoss
from charrnn_fa.learner import char_learner
from charrnn_fa.loop import CharLearner
from charrnn_fa.models import CharRNN
from charrnn_fa.optim import AdamW, Muon
from charrnn_fa.run.files import RunWarning
from charrnn_fa.run.model import load_run, save_run
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharBlock, CharDataLoaders, TensorChars
from charrnn_fa.text.streams import CharDL
from kills import BF16

needs_bf16 = pytest.mark.skipif(BF16 != 'bf16', reason='this processor has no LSTM in bf16')


def nats(learn): return learn.validate()[0]


def quietly(learn, n=1, lr=None):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, lr)
    return learn


# A fit


@pytest.mark.parametrize('fit', ['fit', 'fit_one_cycle', 'fit_flat_cos'])
def test_fits_learn(learn, fit):
    before = nats(learn)
    getattr(learn, fit)(2, 1e-2)
    assert nats(learn) < before - 0.5
    assert len(learn.recorder.losses) == 2*len(learn.dls.train)


@pytest.mark.parametrize('arch', ['rnn', 'gru', 'lstm'])
def test_archs_learn_to_count(arch):
    "0121 needs one character of memory"
    dls = CharDataLoaders.from_corpus('count:0121', bs=8, seq_len=16, seed=1, device='cpu')
    learn = char_learner(dls, arch=arch, n_hid=32, emb_sz=8)
    with learn.no_bar(): learn.fit_one_cycle(1, 1e-2)
    assert learn.evaluate()['accuracy'] > 0.99


def test_gradients_are_clipped_and_accumulated(make):
    class Norm(Callback):
        order = GradientClip.order+1
        def before_fit(self): self.norms = []
        def before_step(self):
            self.norms.append(torch.stack([p.grad.norm() for p in self.model.parameters()]).norm().item())
    clipped,free,halved = Norm(),Norm(),Norm()
    make(clip=0.01).fit(1, 1e-3, cbs=clipped)
    make(clip=0).fit(1, 1e-3, cbs=free)
    assert max(clipped.norms) < 0.0101 < min(free.norms)
    learn = make()
    learn.fit(1, 1e-3, cbs=[GradientAccumulation(2*learn.dls.train.bs), halved]) # a step every two batches
    assert len(halved.norms) == len(learn.dls.train)//2


def test_trackers_and_logger(learn, tmp_path):
    learn.fit(2, 1e-2, cbs=[SaveModelCallback(fname='best'), CSVLogger()])
    assert (tmp_path/'models/best.pth').exists()
    log = pd.read_csv(tmp_path/'history.csv')
    assert len(log) == 2 and {'train_loss', 'valid_loss', 'bits', 'perplexity', 'accuracy'} < set(log.columns)
    learn.fit(10, 0., cbs=EarlyStoppingCallback(patience=1))
    assert len(learn.recorder.values) == 2


def test_a_text_without_a_batch_is_refused():
    "By epochs and by steps, which would go through it for ever"
    dl = CharDL([(torch.zeros(1, dtype=torch.uint8),)], bs=2, seq_len=2, shuffle=True, seed=1)
    learn = CharLearner(DataLoaders(dl, dl), CharRNN(2, n_hid=4, emb_sz=2), precision='fp32')
    for fit in learn.fit, learn.fit_steps:
        with pytest.raises(CharRNNError, match='has no text'), learn.no_bar(): fit(3)


def test_short_epochs_see_other_text(learn):
    class First(Callback):
        def before_fit(self): self.seen = []
        def before_batch(self):
            if self.training and self.iter == 0: self.seen.append(self.x[0].tolist())
    first = First()
    learn.fit(3, 1e-3, cbs=[ShortEpochCallback(0.1), first])
    assert len({tuple(o) for o in first.seen}) == 3


def test_a_seed_fixes_the_run_of_each_learner(make, same):
    "On one text, beside others, or as a copy: each has its own cuts and its own count of epochs"
    dls = CharDataLoaders.from_text('She sells sea shells. '*40, bs=4, seq_len=8, seed=3)
    a,b = make(dls, seed=5, dropout=.2),make(dls, seed=6, dropout=.2)
    a.fit(1, 1e-2)
    b.fit(1, 1e-2)
    copy = deepcopy(a)
    for o in a,copy: o.fit(1, 1e-2)
    torch.rand(5)                                     # whatever happened before
    again = make(dls, seed=5, dropout=.2)
    for _ in range(2): again.fit(1, 1e-2)
    assert same(a, copy) and same(a, again) and not same(a, b)
    assert make(dls).seed == 3


# An end before the end


class Fail(Callback):
    order = Recorder.order+1
    def after_batch(self):
        if self.train_iter == 5: self.fail()
    def fail(self): 1/0


class Interrupt(Fail):
    def fail(self): raise KeyboardInterrupt


@pytest.mark.parametrize('cbs', [Fail(), [CSVLogger(), Fail()], [Interrupt(), SaveModelCallback(fname='never')]])
def test_an_error_or_interrupt_leaves_a_usable_learner(learn, cbs):
    class Opened(Callback):
        closed = False
        def after_fit(self): self.closed = True
    learn.add_cb(opened := Opened())
    logger = learn.logger
    with pytest.raises((ZeroDivisionError, KeyboardInterrupt)): learn.fit(2, 1e-2, cbs=cbs)
    assert learn.logger is logger and opened.closed and all(p.grad is None for p in learn.model.parameters())
    learn.validate()
    learn.fit(1, 1e-2)
    assert nats(learn) < 3.3 and len(learn.recorder.losses) == len(learn.dls.train)


# A run split in two


class StopAt(Callback):
    "Stop before a batch and keep all that goes on"
    order = -20
    def __init__(self, epoch, i): self.at = epoch,i
    def before_batch(self):
        if self.training and (self.epoch, self.iter) == self.at:
            self.kept = deepcopy((self.model.state_dict(), self.opt.state_dict(), self.learn.carried,
                                  self.dls.train.state_dict())),torch.get_rng_state()
            raise CancelFitException()


@pytest.mark.parametrize('kwargs', [dict(dropout=0.3, reset_pct=0.3), dict(arch='rnn', precision=BF16),
                                    dict(opt_func=AdamW, n_layers=2, dropout=0.2)])
@pytest.mark.parametrize('fit,places', [('fit_one_cycle', [(0, 1), (1, 0), (1, 7), (2, 26)]),
                                        ('fit_steps', [(0, 1), (0, 28), (0, 29), (0, 44)])])
def test_a_run_split_in_two_is_the_same_run(text, same, kwargs, fit, places):
    "Weights equal to the bit, for every place of the cut"
    def _fresh():
        dls = CharDataLoaders.from_text(text[:2000], bs=4, seq_len=16, seed=7, device='cpu')
        learn = char_learner(dls, **{**dict(n_hid=16, emb_sz=8, head_sz=0, precision='fp32'), **kwargs})
        learn.remove_cbs([learn.progress, Doctor])
        learn.create_opt()
        return learn
    in_steps = fit == 'fit_steps'
    length = (66,) if in_steps else (3, 1e-2)
    getattr(one := _fresh(), fit)(*length)
    assert len(one.dls.train) == 29
    for at in places:
        stop,two = StopAt(*at),_fresh()
        getattr(_fresh(), fit)(*length, cbs=stop)
        (weights,opt,two.carried,dl),rng = stop.kept
        two.model.load_state_dict(weights)
        two.opt.load_state_dict(opt)
        # in a fit by steps one batch was drawn and not trained on
        two.dls.train.load_state_dict({**dl, 'batch':dl['batch']-1 if in_steps else at[1]})
        torch.set_rng_state(rng)
        if in_steps: two.fit_steps(*length, start=at[1])
        else: two.start_at(*at).fit_one_cycle(*length)
        assert same(one, two) and one.recorder.lrs[at[0]*29+at[1]:] == two.recorder.lrs, at


# Whoever looks changes nothing


def test_looking_does_not_move_the_loader(learn):
    "However the loader was left, an epoch begins at its begin"
    n = len(learn.dls.train)
    next(iter(learn.dls.train))
    for look in learn.validate, learn.get_preds, learn.summary, lambda: learn.lr_find(num_it=10, show_plot=False):
        look()
        learn.fit(1, 1e-3)
        assert len(learn.recorder.losses) == n


@pytest.mark.parametrize('by_line', [False, True])
def test_a_look_at_the_loader_changes_no_training(make, same, by_line):
    "The Learner has a seed of its own, which its loaders take over when a fit begins"
    a,b = (make(CharDataLoaders.from_text('ab\nc\nde\n\n'*60, bs=4, seq_len=8, seed=1, by_line=by_line), seed=2) for _ in range(2))
    b.dls.train.one_batch()
    for o in a,b: o.fit_steps(12)
    assert same(a, b)


def test_validate_counts_every_character_once(learn, dls):
    "Against a direct sum over the streams, whose last batch has one row"
    total = n = 0
    state = None
    learn.model.eval()
    for x,y in dls.valid:
        state = None if state is None else tuple(o[:,:len(x)] for o in state)
        logits,state = learn.model(x, state)
        total -= logits.log_softmax(-1).gather(-1, y[...,None]).sum().item()
        n += y.numel()
    loss,bits,perplexity,_ = learn.validate()
    assert n == len(dls.valid.ids)-1
    assert math.isclose(loss, total/n, rel_tol=1e-5)
    assert math.isclose(bits, loss/math.log(2), rel_tol=1e-5) and math.isclose(perplexity, math.exp(loss), rel_tol=1e-4)


@needs_bf16
def test_predictions_of_a_bf16_run_are_single(make):
    assert make(precision='bf16').get_preds()[0].dtype == torch.float32


@pytest.mark.parametrize('context', ['carry', 32, 10**6])
def test_evaluate_has_few_scores_at_once(learn, monkeypatch, context):
    "64 windows of 1,024 characters over 8,000 symbols were 10 GB, and a window of a whole text what it liked"
    whole,sizes = learn.evaluate(context),[]
    monkeypatch.setattr(evaluate, '_most_scores', 3000)
    learn.model.register_forward_hook(lambda m, i, o: sizes.append((o[0].numel(), o[0][:,0].numel())))
    pieces = learn.evaluate(context)
    assert all(n <= max(3000, a_step) for n,a_step in sizes) and len(sizes) > 3
    assert {k:pytest.approx(v, rel=1e-6) if k != 'context' else v for k,v in whole.items()} == pieces


# Lines


def test_a_bar_is_closed_by_an_error_in_another_before_fit(make):
    "As by a `Checkpoint` that finds its run in use: what is said next has a line of its own"
    class Refuses(Callback):
        order = 1000
        def before_fit(self): raise CharRNNError('In use')
    bar = tqdm(total=None, file=io.StringIO())
    with pytest.raises(CharRNNError): make().fit(1, cbs=[ProgressLines(bar=bar), Refuses()])
    assert bar.disable


# Callbacks


def test_callbacks_of_every_make_are_called(make):
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
    class Grows(Callback):
        "May listen to more in the next fit"
        def __init__(self): self.n = Counter()
        def before_fit(self): self.before_step = partial(self.n.update, ['grown'])
    events = ['before_fit', 'before_batch', 'after_pred', 'after_loss', 'before_backward', 'before_step',
              'after_step', 'after_batch', 'after_epoch']
    cbs,grows = [Called(), Own(), Looked()],Grows()
    learn = make(cbs=grows)
    n,m = len(learn.dls.train),len(learn.dls.valid)
    learn.fit(1, 1e-3, cbs=cbs)
    for cb in cbs: assert [cb.n[o] for o in events] == [1, n+m, n+m, n+m, n, n, n, n+m, 1], (cb, cb.n)
    learn.fit(1, 1e-3)
    assert grows.n['grown'] == 2*n


@pytest.mark.parametrize('cb,why', [
    (ModelResetter, 'ModelResetter'), (MixUp(), 'MixUp mixes'), (CutMix, 'CutMix mixes'),
    (RNNRegularizer(2., 1.), 'RNNRegularizer reads'), (RNNCallback(), 'RNNCallback reads'),
    (MixedPrecision(), "precision='fp16'"), (ModelToHalf(), "precision='fp16'")])
def test_callbacks_that_cannot_serve_are_refused(learn, tmp_path, cb, why):
    "In one sentence, before anything is begun, and the Learner is as it was"
    before = [*learn.cbs]
    with pytest.raises(CharRNNError, match=why): learn.fit(1, cbs=[Checkpoint(tmp_path/'r'), cb])
    assert learn.cbs == before and not (tmp_path/'r').exists()
    learn.fit_steps(2)


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
    learn.recorder.train_metrics = True
    with pytest.raises(CharRNNError, match='comp=np.less'): learn.fit(1, cbs=SaveModelCallback(monitor='valid_bits'))
    learn.fit(1, cbs=[SaveModelCallback, SaveModelCallback(monitor='valid_accuracy')])


# Metrics, losses, and models of a person's own


def ragged():
    "A validation part whose last batch has one step, where the others have 33"
    text = load_corpus('pydocs')[:8000+16*34+1]
    return CharDataLoaders.from_documents([text[:8000], text[8000:]], [[0], [1]], bs=16, seq_len=33, seed=3)


def test_metrics_of_fastai_weigh_characters():
    "Functions and fastai's own averages, also those that are set later, or added to the list"
    learn = char_learner(ragged(), n_hid=32, precision='fp32', metrics=[accuracy, AvgMetric(accuracy), Perplexity()])
    quietly(learn, 1, 1e-2)
    probs,targets = learn.get_preds()
    right = (probs.argmax(-1) == targets).float().mean().item()
    want = [right, right, math.exp(F.nll_loss(probs.log(), targets).item())]
    assert [*learn.validate()[1:]] == pytest.approx(want, rel=1e-4)
    learn.metrics = accuracy
    learn.metrics.append(AvgMetric(accuracy))
    learn.metrics.extend([accuracy, CharAccuracy()])
    assert [*learn.validate()[1:]] == pytest.approx([right]*4, rel=1e-4)


@pytest.mark.parametrize('loss_func', [CharLoss(reduction='sum'), LabelSmoothingCrossEntropyFlat(.3), FocalLossFlat()])
def test_bits_are_those_of_the_text_whatever_the_loss(loss_func):
    learn = quietly(char_learner(ragged(), n_hid=16, precision='fp32', loss_func=loss_func), 1, 1e-4)
    _,bits,perplexity,_ = learn.validate()
    probs,targets = learn.get_preds(act=partial(torch.softmax, dim=-1))
    nats = F.nll_loss(probs.log(), targets).item()
    assert (bits, perplexity) == pytest.approx((nats/math.log(2), math.exp(nats)), rel=1e-3)


@needs_bf16
def test_a_loss_of_a_persons_own_may_be_in_16_bits(dls):
    "What a person computes from scores in bf16 is in bf16 itself, where autocast leaves it so"
    def smooth(out, target):
        logp = out.log_softmax(-1)
        return -.9*logp.gather(-1, target[...,None]).mean() - .1*logp.mean()
    assert quietly(char_learner(dls, n_hid=8, loss_func=smooth, precision='bf16')).recorder.values[-1][0] > 0


class Own(nn.Module):
    "A model of somebody's own that keeps to the contract, and may be reset"
    n_resets = 0
    def __init__(self, n):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(n, 8),nn.GRU(8, 16, batch_first=True),nn.Linear(16, n)
    def reset(self): self.n_resets += 1
    def forward(self, x, state=None):
        h,s = self.rnn(self.emb(x), None if state is None else state[0])
        return self.out(h),(s,)


class BareState(Own):
    "The usual way to write it for a GRU, whose state is not a tuple: with fewer units than rows each batch would begin without"
    def forward(self, x, state=None):
        h,s = self.rnn(self.emb(x), state)
        return self.out(h),s


def test_a_model_of_ones_own():
    dls = ragged()
    n,learn = len(dls.vocab),CharLearner(dls, Own(len(dls.vocab)), precision='fp32', cbs=ModelResetter)
    quietly(learn, 2, 1e-2)
    assert learn.recorder.losses[-1] < learn.recorder.losses[0] and learn.model.n_resets and len(learn.generate('a', 5)) == 6
    with pytest.raises(CharRNNError, match='takes no state'): CharLearner(dls, nn.Sequential(nn.Embedding(n, 8), nn.Linear(8, n)))
    bare = CharLearner(dls, BareState(n), precision='fp32')
    for f in partial(quietly, bare), partial(bare.generate, 'a', 5):
        with pytest.raises(CharRNNError, match='bare tensor'): f()


def test_a_model_compiles_as_one_graph():
    "Whose layers PyTorch can compile; `nn.LSTM` it cannot"
    model,x = CharRNN(65, arch='rnn', head_sz=32, n_hid=16).eval(),torch.zeros(2, 8, dtype=torch.long)
    explained = torch._dynamo.explain(model)(x)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained


# Loaders


def test_a_missing_validation_part_is_named(text, tmp_path):
    "A splitter that found nothing left a column of None"
    block = DataBlock(CharBlock(seq_len=16, seed=1), splitter=lambda o: ([0, 1], []))
    learn = char_learner(block.dataloaders([text[:1000], text[1000:2000]], bs=4, path=tmp_path), n_hid=8, precision='fp32')
    with pytest.warns(UserWarning, match='no validation set'): quietly(learn)


def test_transforms_of_items_are_set_up_and_made_by_a_datablock():
    "Once for each document, each in its part"
    class Backwards(ItemTransform):
        def encodes(self, o): return o[0].flip(0),
    class First(Transform):
        split_idx = 0 # for training only
        def setups(self, dl): self.n = 1000
        def encodes(self, o:TensorChars): return o[:self.n]
    docs = [load_corpus('pydocs')[i:i+3000] for i in (0, 3000, 6000)]
    plain,turned,cut = (DataBlock(CharBlock(seed=1), splitter=IndexSplitter([2]), item_tfms=o).dataloaders(docs, bs=4, seq_len=16)
                        for o in (None, Backwards(), First()))
    assert torch.equal(turned.train.ids, torch.cat([o.flip(0) for o in plain.train.ids.split([3000, 3000])]))
    assert not torch.equal(turned.train.ids, plain.train.ids) and [len(o.ids) for o in cut.loaders] == [2000, 3000]


# Saved and loaded


def exported(learn, path):
    learn.export(path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # of pickle
        return load_learner(path)


def test_loaders_of_another_vocabulary_are_refused(learn, dls, make, tmp_path):
    "Their ids mean other characters; found in a notebook, where evaluate gave 8.9 nats and training went on"
    other = CharDataLoaders.from_text('Hello, how are you? I am fine. '*20, bs=4, seq_len=16, seed=7)
    for f in learn.validate, learn.get_preds, learn.show_results:
        with pytest.raises(CharRNNError, match='another vocabulary'): f(dl=other.valid)
    again = CharDataLoaders.from_text(dls.vocab.textify(dls.train.ids), bs=4, seq_len=16, vocab=learn.vocab)
    for o in learn, exported(learn, tmp_path/'e.pkl'), deepcopy(learn):
        with pytest.raises(CharRNNError, match='vocab=learn.vocab, or set learn.model first'): o.dls = other
        assert o.dls is not other
        o.dls = again
        assert o.dls is again
    learn.model = make(other).model
    learn.dls = other
    assert learn.evaluate()['nats'] < 4


def test_an_exported_learner_writes_in_a_process_that_imported_nothing(learn, tmp_path):
    "`load_learner` imports the class alone; it has no text, and says so"
    learn.logger = print
    other = exported(quietly(learn, 1, 1e-2), tmp_path/'e.pkl')
    for f in other.evaluate, other.summary, other.validate, other.lr_find:
        with pytest.raises(CharRNNError, match='has no text'): f()
    assert other.evaluate(text='the text')['n_chars'] == 7 and other.predict('The')[0] == learn.predict('The')[0]
    code = (f"from fastai.learner import load_learner; learn = load_learner({str(tmp_path/'e.pkl')!r}); "
            "print(callable(learn.share), repr(learn.generate('The', n=40, seed=3)))")
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert (p.stdout, p.returncode) == (f"True {learn.generate('The', n=40, seed=3)!r}\n", 0), p.stderr


def test_a_loaded_run_counts_on_and_validates_as_before(tmp_path):
    dls = CharDataLoaders.from_text('She sells sea shells. '*40, bs=4, seq_len=8, val_bs=1, seed=1)
    learn = quietly(char_learner(dls, n_hid=8, precision='fp32', opt_func=partial(Muon, muon_ratio=1.)), 2)
    save_run(learn, tmp_path/'a')
    with pytest.warns(RunWarning, match='Muon'): again = load_run(tmp_path/'a', 'cpu')
    assert again.validate() == learn.validate()
    assert (again.steps_done, again.run_epoch) == (learn.steps_done, 2) == (2*len(learn.dls.train), 2)
    info = save_run(again, tmp_path/'b').info()
    assert (info['step'], info['epoch']) == (learn.steps_done, 2)


# Gradients in fp16, on a CPU


class Overflows(Callback):
    "An infinite loss in some steps; the scale before each"
    def __init__(self, steps): self.steps,self.scales = steps,[]
    order = 0
    def before_backward(self):
        self.scales.append(self.learn.scaler.get_scale())
        if self.train_iter in self.steps: self.learn.loss_grad = self.loss_grad*float('inf')


def test_a_step_with_an_overflow_is_left_out_without_waiting(make, monkeypatch):
    "As PyTorch's scaler leaves it out by a question that makes the processor wait for a GPU: the same weights, averages and scales"
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
        learn.fit_steps(20, cbs=[GradScale(), overflows, Watched(), Unwatched()])
        state = [v for p in learn.model.parameters() for _,v in sorted(learn.opt.state[p].items()) if torch.is_tensor(v)]
        ends.append((overflows.scales, [*learn.model.parameters(), *state]))
        pulls.append(len(pulled))
        assert learn.opt.found_inf is None
    (scales,ours),(others,theirs) = ends
    assert scales == others and len({*scales[:12]}) == 4
    assert len(ours) == len(theirs) and all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a,b in zip(ours, theirs))
    assert pulls[0] == 0 < pulls[1]


def test_an_error_within_a_step_with_an_overflow_costs_no_other(make, tmp_path):
    "And an exported Learner has no state of the optimiser, after a fit in fp16 neither"
    class Falls(Callback):
        order = 2000
        def before_step(self): raise KeyboardInterrupt
    learn = make()
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3, cbs=[GradScale(), Overflows({0}), Falls()])
    assert learn.opt.found_inf is None
    before = deepcopy(learn.model.state_dict())
    learn.add_cb(GradScale()).fit(1, 1e-3)
    assert all(not torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    learn.export(tmp_path/'with.pkl')
    learn.remove_cb(GradScale).export(tmp_path/'without.pkl')
    assert (tmp_path/'with.pkl').stat().st_size < (tmp_path/'without.pkl').stat().st_size + 2000
