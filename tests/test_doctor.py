"""The doctor's exact probes on programs as people write them, healthy and with one fault; nothing of what is examined changes

The fault is written into a program, not into what a probe looks at: no detector's formula turned round.
"""
import io
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import Callback, CancelBatchException, DataLoaders, Learner, OptimWrapper
from fastai.text.all import CrossEntropyLossFlat, LMDataLoader, rnn_cbs
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
from fastai.text.models.core import get_language_model
from torch import nn

from charrnn_fa.core import CharRNNError
from charrnn_fa.doctor.batches import parts_of
from charrnn_fa.doctor.corpus import check_symbols
from charrnn_fa.doctor.course import Course, decayed
from charrnn_fa.doctor.diagnose import diagnose
from charrnn_fa.doctor.given import parts_subject
from charrnn_fa.doctor.ids import as_ids
from charrnn_fa.doctor.ladder import ids_ladder, ladder
from charrnn_fa.doctor.overlap import check_overlap
from charrnn_fa.doctor.sampling import check_loaded, knows_text
from charrnn_fa.doctor.texts import read_ids
from charrnn_fa.doctor.trial import entropy
from charrnn_fa.doctor.watch import Doctor
from charrnn_fa.learner import char_learner
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.text.vocab import CharVocab
from kills import BF16

TEXT = load_corpus('pydocs')[:50_000]
VOCAB = CharVocab.from_text(TEXT)
IDS,V = VOCAB.encode(TEXT).long(),len(VOCAB)


def windows(bs=16, seq_len=24, n=6, ahead=1):
    "Pieces from anywhere in the text"
    gen = torch.Generator().manual_seed(0)
    starts = [torch.randint(0, len(IDS)-seq_len-3, (bs,), generator=gen).tolist() for _ in range(n)]
    return [tuple(torch.stack([IDS[i+s:i+s+seq_len] for i in row]) for s in (0, ahead)) for row in starts]


def streams(bs=16, seq_len=24, n=6):
    m = (len(IDS)-1)//bs
    x,y = IDS[:m*bs].view(bs, m),IDS[1:m*bs+1].view(bs, m)
    return [(x[:,i*seq_len:(i+1)*seq_len], y[:,i*seq_len:(i+1)*seq_len]) for i in range(n)]


def loss_over_all(scores, y): return F.cross_entropy(scores.flatten(0, 1), y.flatten())


class Net(nn.Module):
    "Embedding or one-hot, a recurrent layer of PyTorch's, scores"
    def __init__(self, cls=nn.LSTM, n_layers=1, one_hot=False, dropout=0., tied=False, log=False, n=48):
        super().__init__()
        self.emb = nn.Embedding(V, n)
        self.rnn = cls(V if one_hot else n, n, n_layers, batch_first=True, dropout=dropout if n_layers > 1 else 0.)
        self.drop,self.out = nn.Dropout(dropout),nn.Linear(n, V)
        self.one_hot,self.log = one_hot,log
        if one_hot: del self.emb
        if tied: self.out.weight = self.emb.weight

    def forward(self, x):
        x = F.one_hot(x, V).float() if self.one_hot else self.emb(x)
        scores = self.out(self.drop(self.rnn(x)[0]))
        return scores.log_softmax(-1) if self.log else scores


class ByHand(nn.Module):
    "The Elman network of a first tutorial: one character at a time, the state given and returned"
    def __init__(self, n=32):
        super().__init__()
        self.n,self.i2h,self.h2o = n,nn.Linear(V+n, n),nn.Linear(n, V)

    def forward(self, x, h):
        h = torch.tanh(self.i2h(torch.cat([F.one_hot(x, V).float(), h], 1)))
        return self.h2o(h),h


class StepsFirst(nn.Module):
    "Time on the first axis, as PyTorch has it"
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 32),nn.GRU(32, 32),nn.Linear(32, V)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


class Causal(nn.Module):
    "No recurrence at all"
    def __init__(self):
        super().__init__()
        self.emb,self.layer,self.out = (nn.Embedding(V, 32),
                                        nn.TransformerEncoderLayer(32, 4, 64, .1, batch_first=True),nn.Linear(32, V))
    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.out(self.layer(self.emb(x), src_mask=mask, is_causal=True))


class LastOnly(StepsFirst):
    "One prediction a row"
    def forward(self, x): return self.out(self.rnn(self.emb(x).transpose(0, 1))[0][-1])


def given(model, batches=None, loss=loss_over_all, opt=torch.optim.Adam):
    return dict(model=model, dls=batches or windows(), loss_func=loss, opt=opt(model.parameters(), lr=1e-3))


def tutorial(detach=False, zero=True):
    "Its training step: a loop over the characters, losses added up"
    model = ByHand()
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    def step(x, y):
        h,loss = torch.zeros(len(x), model.n),0
        if zero: opt.zero_grad()
        for t in range(x.shape[1]):
            scores,h = model(x[:,t], h)
            loss = loss + F.cross_entropy(scores, y[:,t])
            if detach: h = h.detach()
        loss = loss/x.shape[1]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
    return dict(step_function=step, model=model, batches=windows(8))


def stateful(batches, n_hid=32):
    "A step whose state lives in a variable outside"
    model,state = Net(n=n_hid),None
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    def step(batch):
        nonlocal state
        x,y = batch
        out,state = model.rnn(model.emb(x), state)
        state = tuple(o.detach() for o in state)
        loss = F.cross_entropy(model.out(out).transpose(1, 2), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return dict(step_function=step, model=model, batches=batches)


def in_chunks():
    "Inputs and targets cut from one piece within the step"
    model = Net(nn.GRU)
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    def step(batch):
        x,y = batch[0][:,:-1],batch[0][:,1:]
        opt.zero_grad()
        loss_over_all(model(x), y).backward()
        opt.step()
    return dict(step_function=step, model=model, batches=[(x,) for x,_ in windows()])


def awd(**config):
    dl = [LMDataLoader([o], bs=8, seq_len=24, shuffle=i == 0) for i,o in enumerate((IDS[:40_000], IDS[40_000:]))]
    model = get_language_model(AWD_LSTM, V, config={**awd_lstm_lm_config, 'n_hid':48, 'emb_sz':32, 'n_layers':2,
                                                    'pad_token':None, **config})
    return dict(learn=Learner(DataLoaders(*dl), model, loss_func=CrossEntropyLossFlat(), cbs=rnn_cbs()))


def ours(**kwargs): return dict(learn=char_learner(CharDataLoaders.from_text(TEXT, bs=8, seq_len=24, seed=0), **kwargs))


HEALTHY = {
    'lstm': lambda: given(Net()), 'gru, two layers, dropout': lambda: given(Net(nn.GRU, 2, dropout=.3)),
    'rnn': lambda: given(Net(nn.RNN)), 'one-hot': lambda: given(Net(one_hot=True)),
    'log-softmax': lambda: given(Net(log=True)), 'tied': lambda: given(Net(tied=True, dropout=.5)),
    'log-softmax and nll': lambda: given(Net(log=True), loss=lambda p,y: F.nll_loss(p.flatten(0, 1), y.flatten())),
    'classes on axis 1': lambda: given(Net(), loss=lambda p,y: F.cross_entropy(p.transpose(1, 2), y)),
    'label smoothing': lambda: given(Net(), loss=lambda p,y: F.cross_entropy(p.flatten(0, 1), y.flatten(), label_smoothing=.1)),
    'streams without a state': lambda: given(Net(), streams()),
    'small': lambda: given(Net(n=4)), 'high rate': lambda: given(Net(), opt=torch.optim.SGD),
    'steps first': lambda: given(StepsFirst(), [(x.T.contiguous(), y.T.contiguous()) for x,y in windows()]),
    'transformer': lambda: given(Causal()),
    'one target a row': lambda: given(LastOnly(), [(x, y[:,-1]) for x,y in windows(32)], F.cross_entropy),
    'tutorial': tutorial, 'a state outside': lambda: stateful(streams()), 'chunks': in_chunks,
    'awd-lstm': awd, 'awd-lstm, one layer, not tied': lambda: awd(n_layers=1, tie_weights=False),
    'ours': ours, 'ours, gru': lambda: ours(arch='gru', n_layers=2, n_hid=64),
    'ours, rnn, one-hot': lambda: ours(arch='rnn', n_hid=64, emb_sz=0, head_sz=0),
    'ours, bf16': lambda: ours(precision=BF16, n_hid=64),
}


def looped(make, batches=None, model=None):
    "A training step that is written out, by `make(model, opt)`"
    model = model or Net()
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    return dict(step_function=make(model, opt), model=model, batches=batches or windows())


def scheduled(model, opt):
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 100)
    def step(x, y):
        opt.zero_grad()
        loss_over_all(model(x), y).backward()
        opt.step()
        sched.step()
    return step


def by_hand(model, opt):
    def step(x, y):
        loss_over_all(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= .1*p.grad
                p.grad = None
    return step


def functional(model, opt):
    ps = [*model.parameters()]
    def step(x, y):
        for p,g in zip(ps, torch.autograd.grad(loss_over_all(model(x), y), ps)): p.grad = g
        opt.step()
    return step


def with_closure(model, opt):
    def step(x, y):
        def closure():
            opt.zero_grad()
            loss = loss_over_all(model(x), y)
            loss.backward()
            return loss
        opt.step(closure)
    return step


def accumulated(model, opt):
    n = [0]
    def step(x, y):
        (loss_over_all(model(x), y)/8).backward()
        n[0] += 1
        if n[0] % 8 == 0:
            opt.step()
            opt.zero_grad()
    return step


def in_parts(model, opt):
    def step(x, y):
        opt.zero_grad()
        for a,b in zip(x.chunk(4), y.chunk(4)): (loss_over_all(model(a), b)/4).backward()
        opt.step()
    return step


def truncated(model, opt):
    def step(x, y):
        state = None
        for a,b in zip(x.split(12, 1), y.split(12, 1)):
            opt.zero_grad()
            out,state = model.rnn(model.emb(a), state)
            state = tuple(o.detach() for o in state)
            loss_over_all(model.out(out), b).backward()
            opt.step()
    return step


def scaled(model, opt):
    scaler = torch.amp.GradScaler('cpu')
    def step(x, y):
        opt.zero_grad()
        scaler.scale(loss_over_all(model(x), y)).backward()
        scaler.step(opt)
        scaler.update()
    return step


def two_optimisers(model, opt):
    a,b = torch.optim.SGD(model.emb.parameters(), .1),torch.optim.Adam([*model.rnn.parameters(), *model.out.parameters()])
    def step(x, y):
        loss_over_all(model(x), y).backward()
        for o in a, b:
            o.step()
            o.zero_grad()
    return step


def from_dict(model, opt):
    def step(batch):
        opt.zero_grad()
        loss_over_all(model(batch['x']), batch['y']).backward()
        opt.step()
    return step


def from_tensor(model, opt):
    def step(batch):
        opt.zero_grad()
        loss_over_all(model(batch[:,:-1]), batch[:,1:]).backward()
        opt.step()
    return step


def usual(model, opt):
    def step(data, target):
        opt.zero_grad()
        loss_over_all(model(data), target).backward()
        opt.step()
    return step


def zero_head():
    model = Net()
    nn.init.zeros_(model.out.weight)
    nn.init.zeros_(model.out.bias)
    return given(model)


def names(fill):
    "Short words, one a row, filled up"
    gen,res = torch.Generator().manual_seed(0),[]
    for _ in range(5):
        x,y = torch.zeros(8, 10, dtype=torch.long),torch.full((8, 10), fill)
        for row in range(8):
            word = torch.randint(1, 20, (int(torch.randint(3, 9, (), generator=gen)),), generator=gen)
            x[row,1:1+len(word)],y[row,:len(word)],y[row,len(word)] = word,word,0
        res.append((x, y))
    return res


def masked(model, opt):
    def step(x, y):
        opt.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-1).backward()
        opt.step()
    return step


def from_labels(model, opt):
    "The labels are the inputs, and the step compares with the next ones, as a large library has it"
    def step(batch):
        opt.zero_grad()
        scores = model(batch['input_ids'])
        loss_over_all(scores[:,:-1], batch['labels'][:,1:]).backward()
        opt.step()
    return step


def padded(model, opt):
    def step(x, y):
        opt.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100).backward()
        opt.step()
    return step


def of_many_lengths():
    "Texts of many lengths, steps first; what follows a text is filled up"
    gen,res = torch.Generator().manual_seed(0),[]
    for x,y in windows(12):
        ends = torch.randint(8, x.shape[1]+1, (len(x),), generator=gen)
        is_over = torch.arange(x.shape[1]) >= ends[:,None]
        res.append((x.masked_fill(is_over, 0).T.contiguous(), y.masked_fill(is_over, -100).T.contiguous()))
    return res


def with_gaps(bs=16, seq_len=24, n=20):
    "Streams cut into pieces of one more than inputs, so that one character of each is a target only"
    rows = IDS[:len(IDS)//bs*bs].view(bs, -1)
    return [(o[:,:-1], o[:,1:]) for o in rows.split(seq_len+1, 1)[:n]]


def asked(model, opt):
    "The first state asks for gradients, as in an old tutorial"
    def step(x, y):
        opt.zero_grad()
        h = torch.zeros(len(x), 48, requires_grad=True)
        loss_over_all(model.out(model.rnn(model.emb(x), h[None])[0]), y).backward()
        opt.step()
    return step


HEALTHY |= {
    **{o.__name__: (lambda o=o: looped(o)) for o in (scheduled, by_hand, functional, with_closure, accumulated,
                                                     in_parts, truncated, scaled, two_optimisers, usual)},
    'from_dict': lambda: looped(from_dict, [dict(x=x, y=y) for x,y in windows()]),
    'from_tensor': lambda: looped(from_tensor, [x for x,_ in windows()]), 'zero head': zero_head,
    'words with padding': lambda: looped(masked, names(-1)),
    'words filled with their end': lambda: looped(usual, names(0)),
    'flat targets': lambda: given(Net(), [(x, y.flatten()) for x,y in windows()],
                                  lambda p,y: F.cross_entropy(p.flatten(0, 1), y)),
    'targets first': lambda: looped(from_dict, [dict(y=y, x=x) for x,y in windows()]),
    'labels are inputs': lambda: looped(from_labels, [dict(labels=x, input_ids=x) for x,_ in windows()]),
    'padding, steps first': lambda: looped(padded, of_many_lengths(), StepsFirst()),
    'gaps': lambda: stateful(with_gaps()), 'a first state with gradients': lambda: looped(asked, model=Net(nn.GRU)),
    'left in evaluation mode': lambda: given(Net(dropout=.3).eval()),
    'one-hot targets': lambda: given(Net(), [(x, F.one_hot(y, V)) for x,y in windows()],
                                     lambda p,y: F.cross_entropy(p.flatten(0, 1), y.argmax(-1).flatten())),
    'steps first, in one piece': lambda: looped(
        lambda m,o: lambda batch: (o.zero_grad(), loss_over_all(m(batch[:-1].T), batch[1:].T).backward(), o.step()),
        [x.T.contiguous() for x,_ in windows()]),
}


@pytest.mark.parametrize('program', HEALTHY)
def test_nothing_is_wrong(program):
    "Nothing exact: not all of these programs would learn in a minute, with their few batches and rates of 0.001"
    report = diagnose(**HEALTHY[program](), trials=False, seconds=600)
    assert not exact(report), report
    assert len(report.checked) > 7 and {*report.skipped} <= TRIALS


TRIALS = {'short trainings (trials=False)'}
def exact(report): return [o for o in report.findings if o.certainty == 'exact']


class Turned(Net):
    "Somebody has read that PyTorch wants (steps, rows), and turns what was right"
    def __init__(self):
        super().__init__()
        self.rnn.batch_first = False


class Reads(Net):
    "Both ways, for more context"
    def __init__(self):
        super().__init__()
        self.rnn,self.out = nn.LSTM(48, 48, batch_first=True, bidirectional=True),nn.Linear(96, V)


class Recut(Net):
    "view in place of transpose, there and back"
    def forward(self, x):
        e = self.emb(x)
        e = e.view(e.shape[1], e.shape[0], -1)
        return self.out(self.rnn(e)[0].transpose(0, 1))


class Forgetful(Net):
    "The state begins anew with each character"
    def forward(self, x):
        return self.out(torch.stack([self.rnn(self.emb(x[:,t:t+1]))[0][:,0] for t in range(x.shape[1])], 1))


class Softmaxed(Net):
    def forward(self, x): return super().forward(x).softmax(-1)


class Squashed(Net):
    def forward(self, x): return super().forward(x).sigmoid()


class Evaluated(Net):
    "A sample was written before, and the mode left"
    def __init__(self):
        super().__init__(dropout=.2)
        self.eval()


class Amounts(Net):
    "The number of a character as an amount of something"
    def __init__(self):
        super().__init__()
        self.emb = nn.Linear(1, 48)
    def forward(self, x): return super().forward(x[...,None])


def transposed(model):
    "The scores come steps first, and are flattened like that"
    return given(model, loss=lambda p,y: F.cross_entropy(p.transpose(0, 1).reshape(-1, V), y.reshape(-1)))


def step_of(order):
    "A training step whose lines are in a wrong order, or not all there"
    model = Net()
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    def step(x, y):
        loss = loss_over_all(model(x), y)
        if 'cut' in order: loss = torch.tensor(loss.item(), requires_grad=True)
        for o in order.split():
            if o == 'zero': opt.zero_grad()
            if o == 'all': model.zero_grad()
            if o == 'filled': model.zero_grad(set_to_none=False)
            if o == 'backward': loss.backward()
            if o == 'step': opt.step()
            if o == 'anew': torch.optim.Adam(model.parameters(), lr=1e-3).step()
    return dict(step_function=step, model=model, batches=windows())


def frozen():
    "All but the last layer, as after loading a trained encoder"
    model = Net()
    for o in model.emb, model.rnn: o.requires_grad_(False)
    return dict(given(model), opt=torch.optim.Adam(model.out.parameters()))


def forgotten():
    "An optimiser that was made before the last layer"
    model = Net()
    kwargs = given(model)
    model.out = nn.Linear(48, V)
    return kwargs


def with_targets(f):
    "A step that makes its own targets from the inputs"
    def make(model, opt):
        def step(x, y):
            opt.zero_grad()
            loss_over_all(model(x), f(x)).backward()
            opt.step()
        return step
    return looped(make)


def wrapped():
    "The text of a row wraps around"
    return given(Net(), [(x, x.roll(-1, 1)) for x,_ in windows()])


FAULTS = {
    'D1': lambda: given(Net(), windows(ahead=0)), 'D1 in the step': lambda: with_targets(lambda x: x),
    'D3 in the step': lambda: with_targets(lambda x: x.roll(-1, 1)), 'D2': lambda: given(Net(), windows(ahead=2)),
    'D3': wrapped, 'D4': lambda: stateful(windows()), 'S3': lambda: transposed(Net()), 'S4': lambda: given(Recut()),
    'S5': lambda: given(Turned()), 'S10': lambda: given(Reads()), 'R1': lambda: tutorial(detach=True),
    'R5': lambda: given(Forgetful()), 'L1': lambda: given(Softmaxed()), 'L1 sigmoid': lambda: given(Squashed()),
    'L2': lambda: given(Net(), loss=lambda p,y: F.nll_loss(p.flatten(0, 1), y.flatten())),
    'L3': lambda: given(Net(), loss=lambda p,y: F.cross_entropy(p.flatten(0, 1), y.flatten(), reduction='sum'),
                        opt=torch.optim.SGD),
    'L4': lambda: given(Net(), loss=lambda p,y: F.mse_loss(p, F.one_hot(y, V).float())),
    'L5': lambda: given(Net(), loss=lambda p,y: F.cross_entropy(p.flatten(0, 1), y.flatten(), ignore_index=VOCAB.stoi[' '])),
    'L6': lambda: given(Net(), loss=lambda p,y: F.cross_entropy(p[:,-1], y[:,-1])),
    'L7': lambda: step_of('zero cut backward step'), 'O5': lambda: step_of('zero backward anew'),
    'O6': lambda: tutorial(zero=False), 'O7': forgotten, 'O8': frozen, 'O9': lambda: step_of('step backward zero'),
    'O9 zero': lambda: step_of('backward zero step'), 'O9 all': lambda: step_of('backward all step'),
    'O9 filled': lambda: step_of('backward filled step'), 'O11 none': lambda: step_of('zero backward'),
    'S5 padded': lambda: looped(padded, of_many_lengths(), Net()),
    'T2': lambda: looped(usual, model=Evaluated()), 'T7': lambda: given(Net(), windows()[:1]*4),
    'S1': lambda: given(Net(), loss=F.cross_entropy), 'D12': lambda: given(Net(), [(x.float(), y) for x,y in windows()]),
    'S2': lambda: given(Amounts(), [(x.float(), y) for x,y in windows()]),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_the_fault_is_the_first_that_is_found(fault):
    report = diagnose(**FAULTS[fault](), trials=False)
    first = report.findings[0]
    assert (first.id, first.certainty) == (fault.split()[0], 'exact'), report
    assert len(first.message.split('. ')) <= 3 and first.fix and first.title in str(report)


@pytest.mark.parametrize('shape', [(16, 1), (1, 1), (1, 16), (2, 2)])
def test_batches_as_small_as_can_be(shape):
    "A letter by itself has no next one within its batch"
    bs,n = shape
    m = (len(IDS)-1)//bs
    x,y = IDS[:m*bs].view(bs, m),IDS[1:m*bs+1].view(bs, m)
    report = diagnose(model=Net(), dls=[(x[:,i:i+n], y[:,i:i+n]) for i in range(0, 24*n, n)],
                      loss_func=loss_over_all, trials=False)
    assert not {o.id for o in report.findings} & {'D1', 'D2', 'D3', 'E1', 'E2'}, report


def test_what_cannot_be_tried_has_its_reason():
    "A step that computes gradients only once in twelve gives too few losses for a trial; that is no want of time"
    net,losses = Net(),[]
    opt = torch.optim.Adam(net.parameters(), lr=1e-3)
    def step(x, y):
        losses.append(loss_over_all(net(x), y))
        if len(losses) < 12: return
        opt.zero_grad()
        torch.stack(losses).mean().backward()
        opt.step()
        losses.clear()
    report = diagnose(step_function=step, model=net, batches=windows(), seconds=600)
    assert report.has_time and not report.late and any('most steps compute no gradients' in o for o in report.skipped), report


def test_time_that_is_over_is_no_error_of_a_callback():
    "fastai asks for the words of what a callback raises, and fails if there are none"
    from charrnn_fa.doctor.batches import OutOfTime
    from charrnn_fa.doctor.given import learner_subject
    s = learner_subject(Learner(DataLoaders(windows(), windows()), Net(), loss_func=loss_over_all))
    s.between = lambda: setattr(s, 'until', 0.) # after the first step
    with pytest.raises(OutOfTime): s.run(s.batches[:2])


class Guesser(nn.Module):
    "A network whose author has names of their own for everything"
    def __init__(self):
        super().__init__()
        self.lookup,self.cells,self.guess = nn.Embedding(V, 24),nn.GRU(24, 40),nn.Linear(40, V)
    def forward(self, ids, memory=None):
        o, memory = self.cells(self.lookup(ids), memory)
        return self.guess(o)


class Certain(Guesser):
    def forward(self, ids, memory=None):
        o, memory = self.cells(self.lookup(ids.t()), memory)
        return F.softmax(self.guess(o).transpose(0, 1), dim=-1)


def test_a_fix_has_the_names_of_the_training_step():
    net,criterion = Guesser(),nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    def learn_some(ids, target):
        logits = net(ids.t()).transpose(0, 1)
        l = criterion(logits.flatten(0, 1), target.flatten())
        l.backward()
        optimizer.step()
    f = diagnose(step_function=learn_some, model=net, batches=windows(), trials=False).findings[0]
    assert (f.id, f.fix.split('  ')[0]) == ('O6', 'optimizer.zero_grad()'), f
    assert 'l.backward()' in f.fix


def test_a_fix_has_the_names_of_where_it_is_asked_for():
    net = Guesser()
    first_guess = F.cross_entropy
    def criterion(p, y): return first_guess(p.flatten(0, 1), y.flatten())
    f = diagnose(model=net, dls=windows(), loss_func=criterion, trials=False).findings[0]
    assert (f.id, f.fix, f.place.function) == ('S5', 'self.cells = nn.GRU(24, 40, batch_first=True)', 'Guesser.__init__'), f


def test_a_line_is_given_as_it_should_be():
    f = diagnose(model=Certain(), dls=windows(), loss_func=lambda p,y: F.cross_entropy(p.flatten(0, 1), y.flatten()),
                 trials=False).findings[0]
    assert (f.id, f.fix) == ('L1', 'return self.guess(o).transpose(0, 1)') and f.place.function == 'Certain.forward', f
    assert 'softmax' in f.place.source and f.place.file == __file__


def test_a_line_in_a_cell_of_a_notebook_is_found():
    "IPython keeps cells where Python finds the source of functions, but not of classes"
    cell = ["import torch, torch.nn.functional as F", "from torch import nn",
            "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.e,self.r,self.o = nn.Embedding(9, 8),nn.RNN(8, 8, batch_first=True),nn.Linear(8, 9)\n"
            "    def forward(self, x): return self.o(self.r(self.e(x))[0]).softmax(-1)",
            "from charrnn_fa.doctor.diagnose import diagnose", "ids = torch.arange(99) % 9",
            "dl = [(ids[i:i+16].view(2, 8), ids[i+1:i+17].view(2, 8)) for i in range(4)]",
            "r = diagnose(model=Net(), dls=dl, loss_func=lambda p,y: F.cross_entropy(p.flatten(0, 1), y.flatten()), trials=False)",
            "print(r.findings[0])"]
    program = ("from IPython.core.interactiveshell import InteractiveShell as S\ns = S.instance()\n"
               f"for c in {cell!r}: s.run_cell(c).raise_error()")
    out = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout
    assert 'L1' in out and 'in Net.forward' in out and 'return self.o(self.r(self.e(x))[0])\n' in out, out


def all_of(o, seen=None):
    "Bits of everything that hangs on a model, an optimiser, a closure"
    return [(k, v.detach().clone(), v.grad is not None) for k,v in o.state_dict(keep_vars=True).items()]


SMALLER = {'ours': lambda: ours(n_hid=48, emb_sz=16, head_sz=0)} # its trials train it many times

@pytest.mark.parametrize('program', ['tutorial', 'a state outside', 'awd-lstm', 'ours', 'gru, two layers, dropout'])
def test_nothing_changes(program):
    kwargs = SMALLER.get(program, HEALTHY[program])()
    learn = kwargs.get('learn')
    model = learn.model if learn else kwargs['model']
    if learn: learn.dls.train.one_batch() # whatever loaders do first
    before,modes = all_of(model),[m.training for m in model.modules()]
    attributes = {n:{k:v for k,v in vars(m).items() if not k.startswith('_')} for n,m in model.named_modules()}
    rngs = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()
    of_learner = learn and dict(vars(learn))
    diagnose(**kwargs, trials=program in ('tutorial', 'a state outside', 'ours'), seconds=20) # fewer trials on a slow machine
    assert rngs == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert modes == [m.training for m in model.modules()]
    for (k,a,g),(_,b,h) in zip(before, all_of(model)): assert torch.equal(a, b) and g == h, k
    for n,m in model.named_modules():
        assert {k:v for k,v in vars(m).items() if not k.startswith('_')}.keys() == attributes[n].keys()
    if learn:
        assert dict(vars(learn)).keys() == of_learner.keys() and all(vars(learn)[k] is v for k,v in of_learner.items())
    if 'step_function' in kwargs and program == 'a state outside':
        cells = dict(zip(kwargs['step_function'].__code__.co_freevars, kwargs['step_function'].__closure__))
        assert cells['state'].cell_contents is None and not cells['opt'].cell_contents.state


def test_a_loss_by_hand_is_not_said_to_have_been_looked_at():
    "Scores and targets that do not pass through a loss of PyTorch's are not seen"
    report = diagnose(**given(Net(), loss=lambda p,y: (p.logsumexp(-1) - (p*F.one_hot(y, V)).sum(-1)).mean()), trials=False)
    assert not exact(report) and sum('no loss function' in o for o in report.skipped) == 7


def test_a_loss_of_picked_probabilities_is_seen():
    report = diagnose(**given(Net(), loss=lambda p,y: -p.log_softmax(-1).gather(-1, y[...,None]).mean()), trials=False)
    assert not exact(report) and not any('no loss function' in o for o in report.skipped)
    ahead = [(x, torch.cat([y[:,1:], y[:,:1]], 1)) for x,y in windows()]
    assert diagnose(**given(Net(), ahead, loss=lambda p,y: -p.softmax(-1).gather(-1, y[...,None]).log().mean()),
                    trials=False).findings[0].id in ('D2', 'D3')


# Targets that are not the next character

class BothWays(nn.Module):
    "Some classes for each character, from all that stands before and after"
    def __init__(self, n=2, norm=False):
        super().__init__()
        self.emb,self.rnn,self.out = (nn.Embedding(V, 24),
                                      nn.GRU(24, 24, bidirectional=True, batch_first=True),nn.Linear(48, n))
        self.norm = nn.BatchNorm1d(48) if norm else nn.Identity()
    def forward(self, x): return self.out(self.norm(self.rnn(self.emb(x))[0].transpose(1, 2)).transpose(1, 2))


VOWELS = torch.tensor([c in 'aeiou' for c in VOCAB.itos])


def vowel_or_first(x):
    "Whether a character is a vowel, and whether it follows a space: four tags"
    return VOWELS[x].long() + 2*(torch.cat([x[:,:1], x[:,:-1]], 1) == VOCAB.stoi[' ']).long()


@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.parametrize('tag', [lambda x: VOWELS[x].long(), vowel_or_first,
                                 lambda x: (torch.cat([x[:,1:], x[:,:1]], 1) == VOCAB.stoi[' ']).long()])
def test_a_tagger_may_look_in_both_directions(tag, norm):
    n = int(max(tag(x).max() for x,_ in windows()))+1
    assert not diagnose(**given(BothWays(n, norm), [(x, tag(x)) for x,_ in windows()]), trials=False).findings


def test_who_predicts_the_next_character_may_not_even_if_rows_are_padded():
    def _cut(x, y): return tuple(torch.cat([o[:,:-6], torch.full_like(o[:,:6], m)], 1) for o,m in ((x, 0), (y, -100)))
    for batches in windows(), [_cut(*b) for b in windows()]:
        assert diagnose(**given(BothWays(V), batches), trials=False).findings[0].id == 'S10'


def echo(text, by, n=12):
    "The target of each place is what stood there `by` steps before"
    return [(text[:,i:i+15], text[:,i-by:i-by+15]) for i in range(by, by+15*n, 15)]


@pytest.mark.parametrize('by', [1, 3])
def test_an_echo_is_an_exercise(by):
    bits = torch.randint(0, 2, (8, 400), generator=torch.Generator().manual_seed(3))
    assert not diagnose(**given(Net(), echo(bits, by)), trials=False).findings


@pytest.mark.parametrize('by', [1, 2, 3])
def test_a_text_that_is_given_back_is_doubtful(by):
    found = diagnose(**given(Net(), echo(IDS[:16*400].view(16, 400), by)), trials=False).findings
    assert [(o.id, o.certainty) for o in found] == [('D2', 'weak')] and 'If the next character' in found[0].message


def of_lengths(mark, pad=0, n=6):
    "Rows of different length, padded; their last real target is known"
    gen = torch.Generator().manual_seed(5)
    def _one():
        k,i = (int(torch.randint(*o, (1,), generator=gen)) for o in ((12, 30), (0, len(IDS)-40)))
        return tuple(F.pad(IDS[i+s:i+s+k], (0, 30-k), value=m) for s,m in ((0, pad), (1, mark)))
    return [tuple(torch.stack(o) for o in zip(*(_one() for _ in range(16)))) for _ in range(n)]


@pytest.mark.parametrize('mark', [-100, V])
def test_padding_is_no_wrong_column(mark):
    def loss(p, y): return F.cross_entropy(p.flatten(0, 1), y.flatten(), ignore_index=mark)
    assert not diagnose(**given(Net(), of_lengths(mark), loss), trials=False).findings


def test_a_wrong_column_is_found_beside_padding():
    def _spoil(x, y): return x,torch.where(torch.arange(30) == 7, 3, y)
    found = diagnose(**given(Net(), [_spoil(*b) for b in of_lengths(-100)]), trials=False).findings
    assert [o.id for o in found] == ['D3'] and found[0].evidence['columns'] == [7]


class Labels(BothWays):
    "A number for each character"
    def __init__(self): super().__init__(1)
    def forward(self, x): return super().forward(x).squeeze(-1)


class Series(nn.Module):
    "The next number of a series"
    def __init__(self):
        super().__init__()
        self.rnn,self.out = nn.LSTM(1, 24, batch_first=True),nn.Linear(24, 1)
    def forward(self, x): return self.out(self.rnn(x)[0])


def waves():
    s = torch.sin(torch.arange(2001)/9)+torch.sin(torch.arange(2001)/3.7)
    return [(s[i:-1][:400].view(16, 25, 1), s[i+1:][:400].view(16, 25, 1)) for i in (0, 400, 800, 1200, 1600)][:4]


def so_far(x): return VOWELS[x].float().cumsum(1)/9


@pytest.mark.parametrize('tag,seq_len', [(lambda x: VOWELS[x].float(), 24), (lambda x: x/7.3, 24), (so_far, 24), (so_far, 150)])
def test_labels_for_each_character_are_no_classes(tag, seq_len):
    batches = [(x, tag(x)) for x,_ in windows(16 if seq_len < 99 else 2, seq_len)]
    loss = F.binary_cross_entropy_with_logits if tag(batches[0][0]).max() == 1 else F.mse_loss
    assert not diagnose(**given(Labels(), batches, loss), trials=False).findings


def test_numbers_are_no_classes(): assert not diagnose(**given(Series(), waves(), F.mse_loss), trials=False).findings


@pytest.mark.parametrize('loss', [lambda p,y: F.mse_loss(p[...,0], y.float()), lambda p,y: F.smooth_l1_loss(p[...,0], y/V),
                                  lambda p,y: F.binary_cross_entropy_with_logits(p, F.one_hot(y, V).float())])
def test_symbols_are(loss): assert diagnose(**given(Net(), loss=loss), trials=False).findings[0].id == 'L4'


def each(p, y): return F.cross_entropy(p.flatten(0, 1), y.flatten(), reduction='none').view(y.shape)


def whole_sum(p, y): return each(p, y).sum()
def sum_of_rows(p, y): return each(p, y).mean(1).sum()
def sum_of_steps(p, y): return each(p, y).sum(1).mean()


@pytest.mark.parametrize('loss,grows', [(whole_sum, True), (sum_of_rows, True), (sum_of_steps, False)])
@pytest.mark.parametrize('opt', [torch.optim.SGD, torch.optim.Adam])
def test_a_sum_matters_if_it_grows_with_the_batch_and_the_optimiser_minds(loss, grows, opt):
    certainty = 'exact' if grows and opt is torch.optim.SGD else 'weak'
    found = diagnose(**given(Net(), windows(bs=24), loss, opt), trials=False).findings
    assert [(o.id, o.certainty) for o in found] == [('L3', certainty)]
    assert ('size of a batch' in found[0].message) == grows


def test_adam_in_mid_training_makes_nothing_of_a_sum_and_keeps_its_state():
    kwargs = given(Net(), loss=whole_sum)
    for x,y in windows():
        kwargs['loss_func'](kwargs['model'](x), y).backward()
        kwargs['opt'].step()
        kwargs['opt'].zero_grad()
    before = [{k:v.clone() for k,v in o.items()} for o in kwargs['opt'].state.values()]
    found = diagnose(**kwargs, trials=False).findings
    assert [(o.id, o.certainty) for o in found] == [('L3', 'weak')]
    after = [*kwargs['opt'].state.values()]
    assert len(before) == len(after) and all(torch.equal(a[k], b[k]) for a,b in zip(before, after) for k in a)


def test_the_characters_that_do_not_train_are_counted():
    last, = diagnose(**given(Net(), windows(bs=16, seq_len=24), lambda p,y: F.cross_entropy(p[:,-1], y[:,-1])),
                     trials=False).findings
    assert '16 of 384' in last.message


class Ends(Net):
    "Scores that something is done to"
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, x): return self.f(super().forward(x))


@pytest.mark.parametrize('f', [F.relu, F.relu6, torch.tanh, F.hardtanh, torch.sigmoid, lambda s: s.clamp(min=-.02),
                               lambda s: 2*torch.tanh(s)-1, lambda s: s.relu().square()])
def test_scores_that_are_squeezed(f):
    found = diagnose(**given(Ends(f)), trials=False).findings
    assert [(o.id, o.certainty, o.title) for o in found] == [('L1', 'exact', 'The scores are squeezed')]


@pytest.mark.parametrize('f', [F.softplus, F.leaky_relu, F.log_softmax, F.gelu, lambda s: s.clamp(-50, 50),
                               lambda s: 30*torch.tanh(s/30), lambda s: s.masked_fill(torch.arange(V) > V+1, -1e9),
                               torch.asinh, lambda s: s-1e9*(torch.arange(V) == 200)])
def test_scores_that_are_not(f):
    f = partial(F.log_softmax, dim=-1) if f is F.log_softmax else f
    assert not diagnose(**given(Ends(f)), trials=False).findings


@pytest.mark.parametrize('opt', ['partial(OptimWrapper, opt=torch.optim.AdamW)', 'Adam'])
def test_a_fresh_process_trains_on(opt):
    "What is imported on the way is imported whole"
    code = f"""
import torch
from functools import partial
from fastai.basics import *
from test_doctor import Net, loss_over_all, windows
from charrnn_fa.doctor.diagnose import diagnose
dls = DataLoaders(DataLoader([(x[0], y[0]) for x,y in windows()], bs=2), DataLoader([(x[0], y[0]) for x,y in windows()], bs=2))
learn = Learner(dls, Net(), loss_func=loss_over_all, opt_func={opt})
before = dls.train.rng.getstate()
assert not any(o.certainty == 'exact' for o in diagnose(learn, trials=False).findings) and dls.train.rng.getstate() == before
with learn.no_bar(), learn.no_logging(): learn.fit(1)
"""
    p = subprocess.run([sys.executable, '-c', code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr


def test_no_more_time_than_was_given():
    "What was not reached is said"
    def step(x, y): time.sleep(.2)
    began = time.monotonic()
    report = diagnose(step_function=step, model=Net(), batches=windows(), seconds=1.)
    assert report.skipped and not report.findings and time.monotonic()-began < 20


counted = 0


def test_counters_stand_where_they_stood():
    "Of a function, of its module, and a global name that did not exist"
    model = Net()
    opt = torch.optim.Adam(model.parameters())
    def step(x, y):
        global counted, made
        counted += 1
        made = x
        step.n = getattr(step, 'n', 0)+1
        opt.zero_grad()
        loss_over_all(model(x), y).backward()
        opt.step()
    assert not diagnose(step_function=step, model=model, batches=windows(), trials=False).findings
    assert counted == 0 and 'made' not in globals() and not hasattr(step, 'n')


def test_an_error_in_somebody_elses_code_is_a_finding(tmp_path):
    "With the line where it is, and nothing changed"
    class Fails(Net):
        def forward(self, x):
            self.calls = getattr(self, 'calls', 0)+1
            raise KeyError('hidden')
    model = Fails()
    f, = diagnose(**given(model), trials=False).findings
    assert (f.place.source == "raise KeyError('hidden')" and f.place.file == __file__ and 'KeyError' in f.message
            and not hasattr(model, 'calls'))


def test_a_step_that_writes_is_refused_before_it_does(tmp_path):
    kwargs = tutorial()
    def step(x, y):
        torch.save(kwargs['model'].state_dict(), tmp_path/'model.pth')
        (tmp_path/'log.txt').write_text('x')
    with pytest.raises(CharRNNError, match='writes to a file.*give the doctor a training step'):
        diagnose(step_function=step, model=kwargs['model'], batches=windows())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('kwargs,said', [
    (dict(), 'missing'), (dict(model=Net()), 'dls and loss_func are missing'),
    (dict(step_function=print), 'Which model'), (dict(learn=3), 'no Learner'),
    (dict(model=Net(), loss_func=loss_over_all, dls=iter(windows())), 'use up'),
    (dict(model=Net(), step_function=lambda a,b,c: 0, batches=windows()), 'takes a, b, c')])
def test_bad_input_is_answered_in_a_sentence(kwargs, said):
    with pytest.raises(CharRNNError, match=said) as e: diagnose(**kwargs)
    assert e.value.remedy


def test_the_ladder_has_the_constants_of_a_small_text():
    "Interpolated Witten-Bell by dictionaries"
    train,valid = TEXT[:4000],TEXT[4000:4300]
    def p(c, h):
        if h is None: return 1/V
        after = [train[i+len(h)] for i in range(len(train)-len(h)) if train.startswith(h, i)]
        shorter = p(c, h[1:] if h else None)
        return (after.count(c) + len(set(after))*shorter)/(len(after) + len(set(after))) if after else shorter
    dls = CharDataLoaders.from_documents([train, valid], [[0], [1]], vocab=VOCAB, bs=2, seq_len=16)
    found = ladder(dls)
    for n,k in enumerate(['unigram', 'bigram', '3-gram', '4-gram', '5-gram'], 1):
        if n in (1, 2, 5):
            assert abs(found[k] + np.mean([np.log(p(c, valid[max(0, i-n+1):i])) for i,c in enumerate(valid)])) < 1e-9
    assert found['uniform'] == np.log(V) and abs(found['double softmax'] - np.log(1+(V-1)/np.e)) < 1e-12


def test_nothing_is_known_of_what_follows_the_end_of_a_text():
    "By hand: the training text is abaabz, what is predicted za; z is followed by nothing, so the frequencies decide"
    found = ids_ladder([0, 1, 0, 0, 1, 2], [2, 0], 3)
    for k in 'unigram','bigram','5-gram': assert abs(found[k] + np.log([2/9, 4/9]).mean()) < 1e-12
    assert {*ids_ladder([0], [0], 2).values()} >= {np.log(2)}


@pytest.mark.parametrize('kwargs', [dict(model=Net(), loss_func=loss_over_all, dls=[]),
                                    dict(learn=Learner(DataLoaders([], []), Net(), loss_func=loss_over_all))])
def test_a_loader_without_batches_is_a_finding(kwargs): assert [o.id for o in diagnose(**kwargs).findings] == ['D10']


class SkipsThree(Callback):
    "Batches that were done before a kill are skipped"
    def before_batch(self):
        if self.learn.train_iter < 3: raise CancelBatchException


class Infinite(Callback):
    "One batch ends in an infinite loss, and is left out"
    def after_loss(self):
        if self.learn.train_iter == 4: self.learn.loss_grad = self.learn.loss = self.learn.loss*float('inf')
    def before_backward(self):
        if self.learn.train_iter == 4: raise CancelBatchException


def masked_rows(): return [(x, torch.cat([torch.full_like(y[:,:4], -100), y[:,4:]], 1)) for x,y in windows(n=20)]


def sparse_net():
    net = Net()
    net.emb = nn.Embedding(V, 48, sparse=True)
    return net


@pytest.mark.parametrize('make,batches,cbs', [(Net, masked_rows, []), (Net, lambda: windows(n=20), [SkipsThree]),
                                              (sparse_net, lambda: windows(n=20), []),
                                              (lambda: Net(dropout=.3), lambda: windows(n=20), [Infinite]),
                                              (lambda: Net(dropout=.3), lambda: windows(n=40), [])])
def test_a_fit_is_the_same_with_the_doctor_and_without(make, batches, cbs):
    def weights(*doctor):
        torch.manual_seed(0)
        learn = Learner(DataLoaders(batches(), batches()[:2]), make(), loss_over_all,
                        opt_func=partial(OptimWrapper, opt=torch.optim.SGD), cbs=[o() for o in cbs])
        with learn.no_bar(), learn.no_logging(): learn.fit(2, .1, cbs=[*doctor])
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    said = io.StringIO()
    assert torch.equal(weights(), weights(Doctor(file=said)))
    assert 'watching ends' not in said.getvalue()


def test_batches_without_ids_have_no_symbols():
    "Amounts are no symbols, so nothing is lost among them"
    assert check_symbols(['cat', 'dog'], [(torch.randn(4, 10), torch.tensor([0, 1, 0, 1]))]) == []


@pytest.mark.parametrize('empty', [0, 1, 2])
def test_a_row_of_padding_is_no_document(empty):
    "The ladder is that of the other rows, wherever the row stands"
    ids = torch.randint(0, 4, (3, 9), generator=torch.Generator().manual_seed(0))
    x,y = ids[:,:-1],ids[:,1:].clone()
    y[empty] = -100
    rest = [i for i in range(3) if i != empty]
    of = lambda x,y: ladder(SimpleNamespace(train=[(x, y)], valid=[(x, y)]))
    assert read_ids([(x, y)])[1] == [0, 8]
    assert of(x, y) == of(x[rest], y[rest])


def ragged(lengths, seed):
    "Rows of letters by chance"
    gen = np.random.default_rng(seed)
    return [gen.integers(0, 20, n) for n in lengths]


def in_a_batch(rows):
    "A loader of one batch with such rows"
    x = torch.full((len(rows), max(map(len, rows))), -100)
    for i,row in enumerate(rows): x[i,:len(row)] = torch.tensor(row)
    return [(x, x.clone())]


@pytest.mark.parametrize('median', [14, 16, 19, 22])
@pytest.mark.parametrize('same', [False, True])
def test_copied_rows_are_seen_at_any_length(median, same):
    "Some rows have pieces of 20 letters also where most are shorter"
    lengths = np.arange(median-10, median+11).tolist()*40
    train = ragged(lengths, 0)
    valid = train[40:110] if same else ragged(lengths[:70], 1)
    found = check_overlap(SimpleNamespace(train=in_a_batch(train), valid=in_a_batch(valid)))
    assert [o.id for o in found] == ['D6']*same


@pytest.mark.parametrize('length,every,ids', [
    (17, 1, ['D6']), (17, 4, ['D6']), (17, 8, ['D6']), (17, 17, []), (41, 10, ['D6']), (41, 20, ['D6']), (41, 41, [])])
def test_windows_that_are_shared_out_by_chance(length, every, ids):
    "Those that overlap have most of a validation row among the training rows, be it in short rows or in few pieces"
    text = load_corpus('pydocs')[:int(8_000*every**.5)]
    rows = torch.tensor([ord(c) % 128 for c in text]).unfold(0, length, every)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    n = len(rows)//5
    valid,train = ([(o[:,:-1], o[:,1:])] for o in (rows[:n], rows[n:]))
    assert [o.id for o in check_overlap(SimpleNamespace(train=train, valid=valid))] == ids
    same = [(train[0][0][:n], train[0][1][:n])]
    assert [o.id for o in check_overlap(SimpleNamespace(train=train, valid=same))] == ['D6']


@pytest.mark.parametrize('length,every', [(32, 32), (32, 1), (40, 10)])
def test_a_text_of_twenty_phrases_is_no_copy_of_itself(length, every):
    "Each is used many times, in both parts"
    text,gen = load_corpus('pydocs'),np.random.default_rng(0)
    phrases = [text[i:i+gen.integers(40, 80)] for i in gen.integers(0, len(text)-80, 20)]
    told = torch.tensor([ord(c) % 128 for i in gen.integers(0, 20, 300) for c in phrases[i]])
    cut = len(told)*9//10
    rows = [o.unfold(0, length+1, every) for o in (told[:cut], told[cut:])]
    train,valid = ([(o[:,:-1], o[:,1:])] for o in rows)
    assert check_overlap(SimpleNamespace(train=train, valid=valid)) == []


def test_short_rows_of_few_kinds_are_no_copies():
    "Sums of two digits each come again by nature, in both parts"
    gen = np.random.default_rng(0)
    sums = lambda n: [np.array([ord(c) for c in f'{a:02}+{b:02}={a+b:03}']) for a,b in gen.integers(0, 30, (n, 2))]
    assert check_overlap(SimpleNamespace(train=in_a_batch(sums(2000)), valid=in_a_batch(sums(200)))) == []


def test_a_few_long_names_say_nothing_of_all():
    "One that comes again among a thousand short ones is no copy of the text"
    train,valid = ragged([7]*1000, 0),ragged([7]*100, 1)
    long, = ragged([24], 2)
    assert check_overlap(SimpleNamespace(train=in_a_batch([*train, long]), valid=in_a_batch([*valid, long]))) == []


def test_equal_numbers_know_no_text():
    "As those of outputs that begin at 0; no correlation is no knowledge"
    ids = torch.randint(0, 20, (5000,), generator=torch.Generator().manual_seed(0))
    for value in 0.,1.: assert knows_text(torch.full((20, 8), value), ids) == 0


def test_outputs_that_begin_at_0_are_not_half_loaded():
    class Zeros(Net):
        def __init__(self):
            super().__init__()
            [nn.init.zeros_(m.weight) for m in self.modules() if isinstance(m, nn.Linear)]
    torch.manual_seed(0)
    net = Zeros()
    subject = parts_subject(net, windows(n=20), loss_over_all)
    assert check_loaded(subject, {c:VOCAB.stoi[c] for c in VOCAB}, TEXT) == []


@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.half, torch.float64])
def test_one_hot_vectors_of_any_kind_are_ids(dtype):
    ids = torch.randint(0, 5, (3, 7))
    assert as_ids(F.one_hot(ids, 5).to(dtype)).equal(ids)


@pytest.mark.parametrize('kind', ['>f2', '>f4', '>f8', '<f4', '>i4', '<u2', '>u8', '?', 'longdouble'])
def test_arrays_of_any_byte_order_are_batches(kind):
    "And go back to a step as they came"
    given = np.arange(6).reshape(2, 3).astype(kind)
    batch = parts_of((given, given))
    assert batch[0].tolist() == given.tolist()
    back = batch.as_given(batch)[0]
    assert back.dtype == given.dtype and (back == given).all()


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32, torch.int8])
def test_pairs_are_counted_whatever_the_type_of_ids(dtype):
    ids = torch.randint(0, 60, (4, 200), generator=torch.Generator().manual_seed(0))
    given,wanted = Course(),Course()
    given.note_batch(ids[:,:-1].to(dtype), ids[:,1:].to(dtype))
    wanted.note_batch(ids[:,:-1], ids[:,1:])
    assert given.pairs.equal(wanted.pairs)


def test_the_entropy_of_ids_does_not_depend_on_their_shape():
    ids = torch.arange(8)
    assert entropy(ids) == entropy(ids.view(2, 4)) == entropy(ids.view(2, 2, 2)) == pytest.approx(np.log(8))


@pytest.mark.parametrize('weights', [[0., 0., 0.], [1., 1., float('nan')], [float('inf')]*3, [float('nan'), 1., 1.]])
def test_weights_that_have_no_size_have_not_decayed(weights):
    assert decayed(Course(weights=weights), .3) is None
