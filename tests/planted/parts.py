"""Healthy parts that programs share: a text and its ids, batches, models of each kind, losses and steps

Nothing in here has a fault. A program takes what it needs and writes its own fault beside it.
"""
import random
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from fastai.basics import Adam, CrossEntropyLossFlat, DataLoader, DataLoaders, L, Learner
from fastai.callback.rnn import ModelResetter, rnn_cbs
from fastai.text.data import LMDataLoader
from fastai.text.models import AWD_LSTM, awd_lstm_lm_config, get_language_model
from charrnn_fa.learner import char_learner
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.text.vocab import CharVocab

text = TEXT = load_corpus('pydocs')[:60_000]
vocab = CharVocab.from_text(text)
V = len(vocab)
ids = vocab.encode(text)
train_ids,valid_ids = ids[:54_000],ids[54_000:]


def seed(n=0):
    "Seed all random generators"
    random.seed(n)
    np.random.seed(n)
    torch.manual_seed(n)


# Batches: lists of (x, y), each (bs, seq_len)

def streams(bs=16, seq_len=32, n=40, source=train_ids):
    "Consecutive batches: row b of each goes on where row b of the one before ended"
    rows = (len(source)-1)//bs
    xs,ys = (o[:bs*rows].view(bs, rows) for o in (source[:-1], source[1:]))
    n = min(n, rows//seq_len)
    return [(xs[:,i*seq_len:(i+1)*seq_len], ys[:,i*seq_len:(i+1)*seq_len]) for i in range(n)]


def windows(bs=16, seq_len=32, n=40, source=train_ids, seed=0):
    "Batches of windows from random places: for models that begin each batch with an empty state"
    g = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(source)-seq_len-1, (n, bs, 1), generator=g)
    at = starts + torch.arange(seq_len+1)
    return [(source[o[:,:-1]], source[o[:,1:]]) for o in at]


def time_first(batches): return [(x.t().contiguous(), y.t().contiguous()) for x,y in batches]


class Batches:
    "A loader that gives the same list of batches at each pass, as fastai's `DataLoaders` takes one"
    def __init__(self, batches): self.batches,self.bs,self.device = batches,len(batches[0][0]),torch.device('cpu')
    def __len__(self): return len(self.batches)
    def __iter__(self): return iter(self.batches)
    def one_batch(self): return self.batches[0]
    def to(self, device): return self


def stream_dls(bs=16, seq_len=32, n=40, n_valid=5):
    "fastai DataLoaders of consecutive batches"
    return DataLoaders(*[DataLoader(rows, bs=bs, shuffle=False, num_workers=0) for rows in
                         (stream_items(bs, seq_len, n), stream_items(bs, seq_len, n_valid, valid_ids))])


def stream_items(bs=16, seq_len=32, n=40, source=train_ids):
    "Items in such an order that a loader of `bs` without shuffling gives consecutive batches"
    return [(a, b) for x,y in streams(bs, seq_len, n, source) for a,b in zip(x, y)]


def window_dls(bs=16, seq_len=32, n=40, n_valid=5, shuffle=True):
    "fastai DataLoaders of chunks of the text, one after another or shuffled"
    def _items(source, n): return [(source[i:i+seq_len], source[i+1:i+seq_len+1])
                                   for i in range(0, min(n*bs*seq_len, len(source)-seq_len-1), seq_len)]
    return DataLoaders(DataLoader(_items(train_ids, n), bs=bs, shuffle=shuffle, drop_last=True, num_workers=0),
                       DataLoader(_items(valid_ids, n_valid), bs=bs, num_workers=0))


def lm_dls(bs=16, seq_len=32, n_chars=20_000):
    "fastai's own loaders for language models"
    return DataLoaders(LMDataLoader([train_ids[:n_chars]], bs=bs, seq_len=seq_len),
                       LMDataLoader([valid_ids[:4000]], bs=bs, seq_len=seq_len))


# Models by hand

class ElmanByHand(nn.Module):
    "An Elman network of linear layers, embedding or one-hot; the state comes and goes as an argument"
    def __init__(self, n_hid=64, n_emb=32, n_in=V, n_out=V):
        super().__init__()
        self.n_hid,self.n_in = n_hid,n_in
        self.emb = nn.Embedding(n_in, n_emb) if n_emb else None
        self.i2h = nn.Linear(n_emb or n_in, n_hid)
        self.h2h = nn.Linear(n_hid, n_hid, bias=False)
        self.h2o = nn.Linear(n_hid, n_out)
    def cell(self, e, h): return torch.tanh(self.i2h(e) + self.h2h(h))
    def forward(self, x, h=None):
        if h is None: h = torch.zeros(x.shape[0], self.n_hid)
        out = []
        for e in (self.emb(x) if self.emb is not None else F.one_hot(x, self.n_in).float()).unbind(1):
            h = self.cell(e, h)
            out.append(self.h2o(h))
        return torch.stack(out, 1),h


class GRUByHand(nn.Module):
    "A gated recurrent unit from two linear layers; the state as an argument"
    def __init__(self, n_hid=64, n_emb=32, n_out=V):
        super().__init__()
        self.n_hid = n_hid
        self.emb = nn.Embedding(V, n_emb)
        self.gates = nn.Linear(n_emb+n_hid, 2*n_hid)
        self.new = nn.Linear(n_emb+n_hid, n_hid)
        self.out = nn.Linear(n_hid, n_out)
    def cell(self, e, h):
        z,r = self.gates(torch.cat([e, h], -1)).sigmoid().chunk(2, -1)
        return (1-z)*h + z*torch.tanh(self.new(torch.cat([e, r*h], -1)))
    def forward(self, x, h=None):
        h = torch.zeros(x.shape[0], self.n_hid) if h is None else h
        out = []
        for e in self.emb(x).unbind(1):
            h = self.cell(e, h)
            out.append(h)
        return self.out(torch.stack(out, 1)),h


class LSTMByHand(nn.Module):
    "A long short-term memory from one linear layer; the state (h, c) as an argument"
    def __init__(self, n_hid=64, n_emb=32, n_out=V):
        super().__init__()
        self.n_hid = n_hid
        self.emb = nn.Embedding(V, n_emb)
        self.gates = nn.Linear(n_emb+n_hid, 4*n_hid)
        self.out = nn.Linear(n_hid, n_out)
        self.gates.bias.data[n_hid:2*n_hid] = 1.
    def cell(self, e, state):
        h,c = state
        i,f,o,g = self.gates(torch.cat([e, h], -1)).chunk(4, -1)
        c = f.sigmoid()*c + i.sigmoid()*g.tanh()
        return o.sigmoid()*c.tanh(),c
    def forward(self, x, state=None):
        if state is None: state = (torch.zeros(x.shape[0], self.n_hid),)*2
        out = []
        for e in self.emb(x).unbind(1):
            state = self.cell(e, state)
            out.append(state[0])
        return self.out(torch.stack(out, 1)),state


class KeepsState(nn.Module):
    "An Elman network that keeps its state from batch to batch as an attribute, one row for each stream"
    def __init__(self, n_hid=64, n_emb=32):
        super().__init__()
        self.n_hid,self.h = n_hid,None
        self.emb,self.i2h = nn.Embedding(V, n_emb),nn.Linear(n_emb, n_hid)
        self.h2h,self.h2o = nn.Linear(n_hid, n_hid),nn.Linear(n_hid, V)
    def reset(self): self.h = None
    def forward(self, x):
        h,out = self.h,[]
        if h is None or len(h) != len(x): h = torch.zeros(len(x), self.n_hid)
        for t in range(x.shape[1]):
            h = torch.tanh(self.i2h(self.emb(x[:,t])) + self.h2h(h))
            out.append(self.h2o(h))
        self.h = h.detach()
        return torch.stack(out, 1)


# Models of torch.nn

_cells = dict(rnn=nn.RNN, gru=nn.GRU, lstm=nn.LSTM)


class Net(nn.Module):
    "Embedding, recurrent layers of torch.nn, linear layer; gives (scores, state), the state is an argument"
    def __init__(self, cell='gru', n_hid=64, n_emb=32, n_layers=1, batch_first=True, dropout=0., n_out=V):
        super().__init__()
        self.emb = nn.Embedding(V, n_emb)
        self.rnn = _cells[cell](n_emb, n_hid, n_layers, batch_first=batch_first, dropout=dropout)
        self.out = nn.Linear(n_hid, n_out)
    def forward(self, x, state=None):
        out,state = self.rnn(self.emb(x), state)
        return self.out(out),state


class Scores(Net):
    "The same, from an empty state in each batch; gives scores alone"
    def forward(self, x): return super().forward(x)[0]


class Stateful(Net):
    "The same, with the state kept from batch to batch; gives scores alone"
    state = None
    def reset(self): self.state = None
    def _fits(self, x):
        if self.state is None: return False
        h = self.state[0] if isinstance(self.state, tuple) else self.state
        return h.shape[1] == x.shape[0 if self.rnn.batch_first else 1]
    def forward(self, x):
        if not self._fits(x): self.state = None
        out,state = super().forward(x, self.state)
        self.state = tuple(o.detach() for o in state) if isinstance(state, tuple) else state.detach()
        return out


# Training

def adam(model, lr=5e-3): return torch.optim.Adam(model.parameters(), lr=lr)

def loss_over_all(scores, y): return F.cross_entropy(scores.reshape(-1, scores.shape[-1]), y.reshape(-1))

def detached(state): return tuple(o.detach() for o in state) if isinstance(state, tuple) else state.detach()


def update(opt, loss, model=None, clip=None):
    "A step of the optimiser on `loss`, which comes back; with `clip`, the gradient of `model` is clipped"
    opt.zero_grad()
    loss.backward()
    if clip: nn.utils.clip_grad_norm_(model.parameters(), clip)
    opt.step()
    return loss


def stateless_step(model, opt, loss_func=loss_over_all, clip=None):
    "A function of (x, y) that trains on one batch, from an empty state"
    def step(x, y):
        scores = model(x)
        return update(opt, loss_func(scores[0] if isinstance(scores, tuple) else scores, y), model, clip)
    return step


def carried_step(model, opt, loss_func=loss_over_all, clip=None):
    "The same from the state of the batch before; `model(x, state)` gives (scores, state)"
    kept = dict(state=None)
    def step(x, y):
        scores,state = model(x, kept['state'])
        kept['state'] = detached(state)
        return update(opt, loss_func(scores, y), model, clip)
    return step


def train(step, batches, n=200):
    "Train for `n` steps over `batches`, again and again; gives the losses"
    batches = list(batches)
    return [float(torch.as_tensor(step(*batches[i % len(batches)])).detach()) for i in range(n)]


# What a program returns

def in_parts(model, dls, opt=None, loss_func=loss_over_all):
    "A program of a model, batches, an optimiser (Adam at 5e-3 if none is given) and a loss"
    return dict(model=model, dls=dls, loss_func=loss_func, opt=opt or adam(model))


def in_steps(make_step, model, batches, opt=None, **kwargs):
    "A program of a training step that `carried_step` or `stateless_step` makes"
    opt = opt or adam(model)
    return dict(step_function=make_step(model, opt, **kwargs), model=model, batches=batches, opt=opt)


def fitted(learn, n=1, with_cbs=(), **kwargs):
    "A Learner that is watched in a fit of `n` epochs"
    def watch(learn, cbs): learn.fit(n, cbs=[*with_cbs, *cbs], **kwargs)
    return dict(learn=learn, watch=watch)


# Learners

def quiet(learn):
    "Without bar and table"
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = lambda *args: None
    return learn


def learner(dls, model, lr=3e-3, cbs=(), resets=True, **kwargs):
    "A fastai Learner over parts; a model that keeps a state is reset before training and validation"
    kwargs = dict(loss_func=CrossEntropyLossFlat(), opt_func=Adam) | kwargs
    cbs = list(L(cbs))
    there = any(isinstance(o, ModelResetter) for o in cbs)
    if resets and hasattr(model, 'reset') and not there: cbs.append(ModelResetter())
    return quiet(Learner(dls, model, lr=lr, cbs=cbs, **kwargs))


def awd_config(**kwargs):
    "A small AWD-LSTM; no symbol stands for padding. With two layers it needs some 500 steps to leave the unigram"
    return awd_lstm_lm_config | dict(emb_sz=64, n_hid=64, n_layers=1, pad_token=None) | kwargs


def awd_model(drop_mult=0.1, **kwargs): # Not 0: fastai's reset() fails then
    return get_language_model(AWD_LSTM, V, awd_config(**kwargs), drop_mult)


def awd_learner(dls=None, model=None, lr=2e-2, drop_mult=0.1, cbs=(), config={}, **kwargs):
    "fastai's AWD-LSTM in a fastai Learner, with its callbacks"
    dls = dls or lm_dls()
    model = model or awd_model(drop_mult, **config)
    return learner(dls, model, lr=lr, cbs=[*rnn_cbs(), *L(cbs)], **kwargs)


def our_learner(bs=16, seq_len=32, source=text, data={}, **kwargs):
    "`char_learner` over a text, small; `data` goes to the loaders"
    dls = CharDataLoaders.from_text(source, bs=bs, seq_len=seq_len, seed=0, device='cpu', **data)
    return quiet(char_learner(dls, **dict(n_hid=64, emb_sz=32, head_sz=0, n_layers=1, precision='fp32') | kwargs))
