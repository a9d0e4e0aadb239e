"""Programs without a fault, of many designs: the doctor must not find one in them

Each of them learns: its loss falls well below that of the letters' frequencies within some hundred steps.
"""
import torch
import torch.nn.functional as F
from fastai.basics import Adam as FastAdam
from fastai.callback.rnn import ModelResetter, RNNRegularizer
from fastai.callback.training import GradientAccumulation, GradientClip
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations
from torch.utils.data import DataLoader as TorchLoader, IterableDataset

from . import program
from .parts import (ElmanByHand, GRUByHand, LSTMByHand, Net, Scores, Stateful, V, adam, awd_learner, carried_step,
                    fitted, in_parts, in_steps, learner, lm_dls, loss_over_all, our_learner, stateless_step,
                    stream_dls, streams, text, time_first, train, train_ids, update, vocab, window_dls, windows)

Adam,SGD = torch.optim.Adam,torch.optim.SGD


# By hand: cells from linear layers and tensors

@program(kind='by hand', seed=1)
def elman_one_hot():
    "One-hot letters, an Elman network, windows from random places"
    model = ElmanByHand(n_hid=96, n_emb=0)
    return in_steps(stateless_step, model, windows(32, 25), adam(model, 2e-3), clip=5.)


@program(kind='by hand', seed=3)
def lstm_by_hand_over_streams():
    "An LSTM by hand whose state goes from batch to batch"
    model = LSTMByHand()
    return in_steps(carried_step, model, streams(20, 24, 60), adam(model, 5e-3), clip=1.)


class _MinCharRNN(nn.Module):
    "Five tensors and a loop"
    def __init__(self, n_hid=100):
        super().__init__()
        self.Wxh = nn.Parameter(torch.randn(n_hid, V)*0.05)
        self.Whh = nn.Parameter(torch.randn(n_hid, n_hid)*0.05)
        self.Why = nn.Parameter(torch.randn(V, n_hid)*0.05)
        self.bh = nn.Parameter(torch.zeros(n_hid, 1))
        self.by = nn.Parameter(torch.zeros(V, 1))
    def forward(self, inputs, h):
        ys = []
        for i in inputs:
            h = torch.tanh(self.Wxh[:,[int(i)]] + self.Whh @ h + self.bh)
            ys.append((self.Why @ h + self.by)[:,0])
        return torch.stack(ys),h


@program(kind='by hand', seed=5)
def min_char_rnn():
    "One stream, 25 characters at a time, Adagrad, each gradient cut to 5, the loss summed in numbers only for the log"
    rnn = _MinCharRNN()
    opt = torch.optim.Adagrad(rnn.parameters(), lr=1e-1)
    hprev = [torch.zeros(100, 1)]
    def step(x, y):
        scores,h = rnn(x[0], hprev[0])
        hprev[0] = h.detach()
        loss = F.cross_entropy(scores, y[0])
        opt.zero_grad()
        loss.backward()
        clip_grad_value_(rnn.parameters(), 5)
        opt.step()
        return loss
    return dict(step_function=step, model=rnn, batches=streams(1, 25, 400), opt=opt)


@program(kind='by hand', seed=6)
def own_gradient_descent():
    "No optimiser: the weights are moved by hand, then their gradients are emptied"
    net = ElmanByHand(n_hid=64, n_emb=16)
    def step(x, y):
        out,_ = net(x)
        loss = F.cross_entropy(out.reshape(-1, V), y.reshape(-1))
        loss.backward()
        clip_grad_norm_(net.parameters(), 2.)
        with torch.no_grad():
            for p in net.parameters(): p -= 0.5*p.grad
        for p in net.parameters(): p.grad = None
        return loss.item()
    return dict(step_function=step, model=net, batches=windows(16, 16))


class _LearnedStart(nn.Module):
    "The first state is a parameter, the same for all rows at the start"
    def __init__(self, n_hid=64):
        super().__init__()
        self.h0 = nn.Parameter(torch.zeros(n_hid))
        self.emb = nn.Embedding(V, 32)
        self.cell = nn.GRUCell(32, n_hid)
        self.out = nn.Linear(n_hid, V)
    def forward(self, x):
        h,res = self.h0.expand(x.shape[0], -1),[]
        for t in range(x.shape[1]):
            h = self.cell(self.emb(x[:,t]), h)
            res.append(self.out(h))
        return torch.stack(res, dim=1)


@program(kind='by hand', seed=8)
def learned_first_state():
    "Each window begins with a state that is learned"
    model = _LearnedStart()
    return in_parts(model, windows(32, 20), adam(model, 3e-3))


@program(kind='by hand', seed=9)
def letter_by_letter():
    "Batches of one step; the losses of 12 steps are gathered, then the gradient goes back through all of them"
    net = ElmanByHand(n_hid=64, n_emb=24)
    opt = adam(net, 4e-3)
    now = dict(h=None, losses=[])
    def step(x, y):
        scores,now['h'] = net(x, now['h'])
        loss = F.cross_entropy(scores[:,0], y[:,0])
        now['losses'].append(loss)
        if len(now['losses']) == 12:
            opt.zero_grad()
            torch.stack(now['losses']).mean().backward()
            opt.step()
            now.update(h=now['h'].detach(), losses=[])
        return loss.detach()
    return dict(step_function=step, model=net, batches=streams(32, 1, 600), opt=opt)


@program(kind='by hand', seed=10)
def burn_in():
    "The first 8 characters of a window only warm the state up; there is no loss on them, on purpose"
    model = GRUByHand()
    opt = adam(model, 3e-3)
    burn_in = 8
    def train_step(x, y):
        with torch.no_grad(): _,h = model(x[:,:burn_in])
        scores,_ = model(x[:,burn_in:], h)
        return update(opt, F.cross_entropy(scores.flatten(0, 1), y[:,burn_in:].flatten()))
    return dict(step_function=train_step, model=model, batches=windows(16, 40), opt=opt)


class _MinGRU(nn.Module):
    "h_t = (1-z_t) h_{t-1} + z_t c_t, where z and c see the input only: all steps at once, by sums of logarithms"
    def __init__(self, n=96):
        super().__init__()
        self.emb,self.zc,self.norm,self.out = nn.Embedding(V, n),nn.Linear(n, 2*n),nn.LayerNorm(n),nn.Linear(n, V)
        self.mix = nn.Linear(2*n, n)
    def forward(self, x):
        e = self.emb(x)
        e = torch.cat([e, F.pad(e, (0, 0, 1, 0))[:,:-1]], -1) # each letter with the one before
        z,c = self.zc(F.silu(self.mix(e))).chunk(2, -1)
        log_keep = F.logsigmoid(-z).cumsum(1)
        log_new = F.logsigmoid(z) + torch.where(c >= 0, (F.relu(c)+0.5).log(), F.logsigmoid(c))
        h = (log_keep + torch.logcumsumexp(log_new-log_keep, 1)).exp()
        return self.out(self.norm(h))


@program(kind='by hand', seed=13)
def min_gru_parallel_scan():
    "A recurrence without a loop"
    model = _MinGRU()
    return in_parts(model, windows(16, 40), adam(model, 3e-3))


class _IRNN(nn.Module):
    "ReLU units whose recurrent matrix begins as the identity"
    def __init__(self, n_hid=64):
        super().__init__()
        self.emb,self.out = nn.Embedding(V, 32),nn.Linear(n_hid, V)
        self.i2h,self.h2h = nn.Linear(32, n_hid),nn.Linear(n_hid, n_hid)
        nn.init.normal_(self.i2h.weight, std=0.05)
        nn.init.eye_(self.h2h.weight)
        nn.init.zeros_(self.h2h.bias)
    def forward(self, x):
        h,res = torch.zeros(x.shape[0], self.h2h.in_features),[]
        for e in self.emb(x).unbind(1):
            h = F.relu(self.i2h(e) + self.h2h(h))
            res.append(h)
        return self.out(torch.stack(res, 1))


@program(kind='by hand', seed=15)
def relu_from_identity():
    "A ReLU network with the start that suits it, and clipping"
    model = _IRNN()
    return in_steps(stateless_step, model, windows(16, 24), adam(model, 2e-3), clip=1.)


# torch.nn: parts

@program(seed=20)
def tiny_rnn():
    "Twelve units and a high learning rate that suits them"
    model = Scores('rnn', n_hid=12, n_emb=6)
    return in_parts(model, windows(32, 16), adam(model, 1e-2))


@program(seed=22)
def gru_with_a_low_rate():
    "Adam at 5e-4: slow, but it learns"
    model = Scores('gru', n_hid=128, n_emb=64)
    return in_parts(model, windows(16, 24), adam(model, 5e-4))


@program(seed=24)
def two_layers_with_dropout():
    "nn.LSTM of two layers with dropout between them, over streams, scores and state"
    model = Net('lstm', n_hid=64, n_layers=2, dropout=0.3)
    return in_steps(carried_step, model, streams(16, 24), adam(model, 5e-3), clip=0.5)


@program(seed=25)
def stateful_time_first():
    "Two layers, time first, the state kept by the model"
    model = Stateful('lstm', n_layers=2, batch_first=False)
    return in_parts(model, time_first(streams(12, 20)), adam(model, 6e-3))


class _LogProbs(nn.Module):
    "GRU, then log-softmax"
    def __init__(self, n_hid=64):
        super().__init__()
        self.embedding = nn.Embedding(V, 32)
        self.gru = nn.GRU(32, n_hid, batch_first=True)
        self.fc = nn.Linear(n_hid, V)
        self.softmax = nn.LogSoftmax(dim=2)
    def forward(self, input): return self.softmax(self.fc(self.gru(self.embedding(input))[0]))


@program(seed=26)
def log_softmax_and_nll():
    "LogSoftmax in the model, NLLLoss outside"
    model = _LogProbs()
    crit = nn.NLLLoss()
    def loss_func(out, y): return crit(out.transpose(1, 2), y)
    return dict(model=model, dls=windows(16, 30), loss_func=loss_func, opt=adam(model, 3e-3))


@program(seed=29)
def label_smoothing():
    "Label smoothing, said openly in the loss"
    model = Scores('lstm')
    def loss_func(scores, y): return F.cross_entropy(scores.flatten(0, 1), y.flatten(), label_smoothing=0.1)
    return dict(model=model, dls=windows(16, 32), loss_func=loss_func, opt=adam(model, 5e-3))


@program(seed=30)
def sum_over_tokens_divided():
    "The loss is a sum, divided by the number of characters"
    model = Scores('gru')
    crit = nn.CrossEntropyLoss(reduction='sum')
    def loss_func(scores, y): return crit(scores.view(-1, V), y.reshape(-1))/y.numel()
    return dict(model=model, dls=windows(8, 40), loss_func=loss_func, opt=adam(model, 3e-3))


@program(seed=31)
def one_target_a_row():
    "Many to one: 20 letters go in, the next one is to come out"
    class LastOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.lstm,self.head = nn.Embedding(V, 24),nn.LSTM(24, 64, batch_first=True),nn.Linear(64, V)
        def forward(self, x):
            _,(h,_) = self.lstm(self.emb(x))
            return self.head(h[-1])
    model = LastOnly()
    dls = [(x, y[:,-1]) for x,y in windows(128, 20, 60)]
    return dict(model=model, dls=dls, loss_func=nn.CrossEntropyLoss(), opt=adam(model, 6e-3))


def _lines(n=400, longest=40):
    "Lines of the text as ids"
    lines = [o for o in text[:50_000].split('\n') if 8 < len(o)]
    return [vocab.encode(o[:longest+1]) for o in lines[:n]]


def _padded(lines, pad): return nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=pad)


@program(seed=33)
def padded_lines():
    "Lines of unequal length; the symbol for padding is none of the text, and the loss leaves it out"
    pad = V
    class Lines(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.rnn = nn.Embedding(V+1, 32, padding_idx=pad),nn.GRU(32, 64, batch_first=True)
            self.out = nn.Linear(64, V+1)
        def forward(self, x): return self.out(self.rnn(self.emb(x))[0])
    lines = _lines()
    rows = [_padded(lines[i:i+16], pad) for i in range(0, len(lines), 16)]
    model = Lines()
    def loss_func(out, y): return F.cross_entropy(out.reshape(-1, V+1), y.reshape(-1), ignore_index=pad)
    dls = [(o[:,:-1], o[:,1:]) for o in rows]
    return dict(model=model, dls=dls, loss_func=loss_func, opt=adam(model, 5e-3))


@program(seed=35)
def masks_beside():
    "A mask says which letters count; the mean is over those"
    lines = _lines()
    batches = []
    for i in range(0, len(lines), 20):
        part = lines[i:i+20]
        o = _padded(part, 0)
        real = torch.arange(o.shape[1]-1)[None] < torch.tensor([len(p)-1 for p in part])[:,None]
        batches.append((o[:,:-1], o[:,1:], real.float()))
    model = Scores('gru', n_hid=80)
    opt = adam(model, 4e-3)
    def step(x, y, mask):
        losses = F.cross_entropy(model(x).transpose(1, 2), y, reduction='none')
        return update(opt, (losses*mask).sum()/mask.sum())
    return dict(step_function=step, model=model, batches=batches, opt=opt)


@program(seed=37)
def conv_with_cut_padding():
    "Padding on both sides, and the surplus on the right cut off: causal as well"
    class Chomp(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.conv = nn.Embedding(V, 32),nn.Conv1d(32, 64, 3, padding=2)
            self.rnn,self.out = nn.RNN(64, 64, batch_first=True),nn.Linear(64, V)
        def forward(self, x):
            e = self.conv(self.emb(x).permute(0, 2, 1))[...,:-2]
            return self.out(self.rnn(torch.relu(e).permute(0, 2, 1))[0])
    model = Chomp()
    return in_parts(model, windows(20, 30), adam(model, 2e-3))


@program(seed=38)
def encoder_of_what_went_before():
    "A bidirectional encoder reads the 16 letters before; a causal decoder writes the next 16"
    class Seq2Seq(nn.Module):
        def __init__(self, n=48):
            super().__init__()
            self.emb = nn.Embedding(V, 32)
            self.encoder = nn.GRU(32, n, batch_first=True, bidirectional=True)
            self.decoder = nn.GRU(32, 2*n, batch_first=True)
            self.out = nn.Linear(2*n, V)
        def forward(self, context, x):
            _,h = self.encoder(self.emb(context))
            return self.out(self.decoder(self.emb(x), torch.cat([h[0], h[1]], -1)[None])[0])
    model = Seq2Seq()
    opt = adam(model, 4e-3)
    batches = [(x[:,:16], x[:,16:], y[:,16:]) for x,y in windows(24, 32)]
    def step(context, x, y):
        return update(opt, loss_over_all(model(context, x), y))
    return dict(step_function=step, model=model, batches=batches, opt=opt)


@program(seed=42)
def orthogonal_recurrence():
    "The recurrent matrix is kept orthogonal by a parametrization"
    model = ElmanByHand(n_hid=48)
    parametrizations.orthogonal(model.h2h)
    return in_parts(model, windows(16, 16), adam(model, 3e-3))


class _Endless(IterableDataset):
    "Windows without end"
    def __iter__(self):
        while True:
            i = torch.randint(len(train_ids)-33, ()).item()
            yield train_ids[i:i+32],train_ids[i+1:i+33]


@program(seed=45)
def endless_windows():
    "A loader without length"
    model = Scores('gru')
    return dict(model=model, dls=TorchLoader(_Endless(), batch_size=16), loss_func=loss_over_all,
                opt=adam(model, 5e-3))


# torch.nn: optimisers, schedules, precision

@program(seed=50)
def sgd_at_20():
    "Plain gradient descent at a rate of 20, with the norm clipped to 0.25: an old recipe that works"
    model = Net('lstm')
    return in_steps(carried_step, model, streams(20, 32), SGD(model.parameters(), lr=20.), clip=0.25)


@program(seed=54)
def two_optimisers():
    "Sparse gradients for the embedding, so two optimisers"
    model = Scores('gru')
    model.emb = nn.Embedding(V, 32, sparse=True)
    rest = [p for k,p in model.named_parameters() if not k.startswith('emb')]
    opts = torch.optim.SparseAdam(model.emb.parameters(), lr=4e-3),Adam(rest, lr=4e-3)
    def step(x, y):
        loss = loss_over_all(model(x), y)
        for o in opts: o.zero_grad()
        loss.backward()
        for o in opts: o.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24))


@program(seed=55)
def accumulation_done_right():
    "Four small batches make a step; each loss is divided by four"
    model = Scores('gru')
    opt = adam(model, 4e-3)
    every,seen = 4,[0]
    def step(x, y):
        loss = loss_over_all(model(x), y)
        (loss/every).backward()
        seen[0] += 1
        if seen[0] % every == 0:
            clip_grad_norm_(model.parameters(), 1.)
            opt.step()
            opt.zero_grad()
        return loss
    return dict(step_function=step, model=model, batches=windows(8, 32, 80), opt=opt)


@program(seed=57)
def warm_up_from_near_zero():
    "The rate rises over 100 steps from a hundredth of its value; the first steps do almost nothing, on purpose"
    model = Scores('lstm')
    opt = adam(model, 6e-3)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min(1., (i+1)/100))
    def step(x, y):
        loss = loss_over_all(model(x), y)
        update(opt, loss)
        sched.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 28), opt=opt)


@program(kind='by hand', seed=61)
def fp16_with_a_scaler():
    "float16 with a loss scale; gradients are unscaled before they are clipped"
    model = ElmanByHand()
    opt = adam(model, 3e-3)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.)
    def step(x, y):
        with torch.autocast('cpu', dtype=torch.float16): scores,_ = model(x)
        loss = loss_over_all(scores.float(), y)
        opt.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        clip_grad_norm_(model.parameters(), 1.)
        scaler.step(opt)
        scaler.update()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 16), opt=opt)


@program(seed=69)
def adaptive_softmax():
    "nn.AdaptiveLogSoftmaxWithLoss over ids sorted by frequency"
    order = torch.bincount(train_ids, minlength=V).argsort(descending=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(V))
    class Adaptive(nn.Module):
        def __init__(self, n_hid=64):
            super().__init__()
            self.emb,self.rnn = nn.Embedding(V, 32),nn.GRU(32, n_hid, batch_first=True)
            self.loss = nn.AdaptiveLogSoftmaxWithLoss(n_hid, V, cutoffs=[20, 50], div_value=2.)
        def forward(self, x, y): return self.loss(self.rnn(self.emb(x))[0].flatten(0, 1), y.flatten()).loss
    model = Adaptive()
    opt = adam(model, 4e-3)
    def step(x, y):
        return update(opt, model(x, y))
    return dict(step_function=step, model=model, batches=[(rank[x], rank[y]) for x,y in windows(16, 24)], opt=opt)


# Learners of fastai

@program(seed=81)
def learner_with_a_resetter():
    "A model that keeps its state, streams, and ModelResetter"
    cbs = [ModelResetter(), GradientClip(1.)]
    return dict(learn=learner(stream_dls(16, 24), Stateful('lstm', n_hid=80), lr=5e-3, cbs=cbs))


@program(seed=82)
def learner_that_accumulates():
    "fastai's GradientAccumulation over four batches of 8"
    return dict(learn=learner(window_dls(8, 24, 80), Scores('gru'), lr=4e-3, cbs=GradientAccumulation(32)))


@program(seed=84)
def learner_in_mid_training():
    "After an epoch of one cycle"
    learn = learner(window_dls(16, 20, 60), Scores('gru', n_hid=48, n_emb=24), lr=1e-2)
    with learn.no_bar(): learn.fit_one_cycle(1, 1e-2)
    return dict(learn=learn)


# AWD-LSTM of fastai

@program(kind='AWD-LSTM', seed=90)
def awd_lstm():
    "fastai's language model with its own loader"
    return dict(learn=awd_learner())


@program(kind='AWD-LSTM', also='L8', seed=92)
def awd_lstm_regularised():
    "Activations are held small and slow, as the paper has it: the loss in training holds a second term on purpose"
    cbs = [RNNRegularizer(alpha=2., beta=1.), GradientClip(0.5)]
    return dict(learn=awd_learner(lm_dls(16, 30), drop_mult=0.2, cbs=cbs))


# Our own

@program(kind='ours')
def our_lstm():
    "char_learner as it comes"
    return dict(learn=our_learner())


@program(kind='ours')
def our_elman_one_hot():
    "An Elman network on one-hot letters with Adam"
    return dict(learn=our_learner(20, 20, arch='rnn', emb_sz=0, opt_func=FastAdam, lr=3e-3))


@program(kind='ours')
def our_tied_lstm_that_forgets():
    "Tied, and now and then a stream's memory is emptied on purpose"
    return dict(learn=our_learner(16, 32, tie=True, emb_sz=64, n_hid=64, reset_pct=0.05))


# With a function that writes text

def _trained(model, batches, n=120, lr=8e-3):
    "The model after `n` steps, and the program's parts"
    opt = Adam(model.parameters(), lr=lr)
    train(stateless_step(model, opt), batches, n)
    return dict(in_parts(model, batches, opt), text=text)


@torch.no_grad()
def _write(model, prompt, n, temperature=1., top_k=None):
    "The prompt goes in as a whole, then one letter at a time with the state"
    was,res = model.training,prompt
    model.eval()
    x,state = vocab.encode(prompt)[None],None
    for _ in range(n):
        scores,state = model(x, state)
        last = scores[:,-1]/temperature
        if top_k: last = last.masked_fill(last < last.topk(top_k).values[:,-1:], -torch.inf)
        x = torch.multinomial(last.softmax(-1), 1)
        res += vocab[x.item()]
    model.train(was)
    return res


@program(seed=100)
def writes_with_its_state():
    "Samples from the softmax, the state goes on"
    return dict(_trained(Net('gru', n_hid=48, n_emb=24), windows(16, 20)), sample=_write)


@program(seed=104)
def writes_with_a_state_kept_inside():
    "The model keeps its state itself; it is emptied before, and put back afterwards"
    @torch.no_grad()
    def sample(model, prompt, n):
        kept = model.state
        model.eval()
        model.reset()
        ids = vocab.encode(prompt)
        scores = model(ids[None])
        for _ in range(n):
            new = torch.multinomial(scores[:,-1].softmax(-1), 1)
            ids = torch.cat([ids, new[0]])
            scores = model(new)
        model.train()
        model.state = kept
        return vocab.textify(ids)
    return dict(_trained(Stateful('gru', n_hid=48, n_emb=24), streams(16, 20)), sample=sample)


# Watched while they train

@program(seed=110)
def watched_learner():
    "A GRU in a Learner, one cycle over some hundred batches"
    learn = learner(window_dls(16, 24, 80), Scores('gru', n_hid=48, n_emb=24), lr=1e-2)
    def watch(learn, cbs): learn.fit_one_cycle(3, 1e-2, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program(seed=111)
def watched_with_state():
    "An LSTM that keeps its state over streams, three epochs at one rate, clipped"
    cbs = [ModelResetter(), GradientClip(1.)]
    learn = learner(stream_dls(16, 24, 60), Stateful('lstm'), lr=6e-3, cbs=cbs)
    return fitted(learn, 3)


@program(kind='ours')
def watched_ours():
    "char_learner by steps"
    def watch(learn, cbs): learn.fit_steps(150, cbs=cbs)
    return dict(learn=our_learner(16, 24, n_hid=48), watch=watch)
