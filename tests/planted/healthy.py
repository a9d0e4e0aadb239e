"""Programs without a fault, of many designs: the doctor must not find one in them

Each of them learns: its loss falls well below that of the letters' frequencies within some hundred steps.
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader as TorchLoader, IterableDataset, TensorDataset
from fastai.basics import Adam as FastAdam, CrossEntropyLossFlat, RMSProp, ranger
from fastai.callback.rnn import ModelResetter, RNNRegularizer
from fastai.callback.training import GradientAccumulation, GradientClip
from . import program
from .parts import (V, ElmanByHand, GRUByHand, KeepsState, LSTMByHand, Net, Scores, Stateful, awd_learner, carried_step,
                    detached, lm_dls, learner, loss_over_all, our_learner, seed, stateless_step, stream_dls, streams,
                    text, time_first, train, train_ids, vocab, window_dls, windows)

Adam,SGD = torch.optim.Adam,torch.optim.SGD


# By hand: cells from linear layers and tensors

@program(kind='by hand')
def elman_one_hot():
    "One-hot letters, an Elman network, windows from random places"
    seed(1)
    model = ElmanByHand(n_hid=96, n_emb=0)
    opt = Adam(model.parameters(), lr=2e-3)
    return dict(step_function=stateless_step(model, opt, clip=5.), model=model, batches=windows(32, 25), opt=opt)


@program(kind='by hand')
def gru_of_two_linears():
    "A GRU by hand with RMSprop, as parts"
    seed(2)
    model = GRUByHand(n_hid=72, n_emb=24)
    opt = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return dict(model=model, dls=windows(24, 30, seed=3), loss_func=loss_over_all, opt=opt)


@program(kind='by hand')
def lstm_by_hand_over_streams():
    "An LSTM by hand whose state goes from batch to batch"
    seed(3)
    model = LSTMByHand(n_hid=64)
    opt = Adam(model.parameters(), lr=5e-3)
    return dict(step_function=carried_step(model, opt, clip=1.), model=model, batches=streams(20, 24, 60), opt=opt)


@program(kind='by hand')
def state_as_attribute():
    "The state is an attribute, one row for each stream, detached once a batch"
    seed(4)
    model = KeepsState(n_hid=80)
    return dict(model=model, dls=streams(16, 20), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=3e-3))


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


@program(kind='by hand')
def min_char_rnn():
    "One stream, 25 characters at a time, Adagrad, each gradient cut to 5, the loss summed in numbers only for the log"
    seed(5)
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


@program(kind='by hand')
def own_gradient_descent():
    "No optimiser: the weights are moved by hand, then their gradients are emptied"
    seed(6)
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


class _ResidualElman(nn.Module):
    "Two Elman layers with a way around each and layer norm before it"
    def __init__(self, n_hid=64, n_layers=2):
        super().__init__()
        self.n_hid = n_hid
        self.emb = nn.Embedding(V, n_hid)
        self.norms = nn.ModuleList(nn.LayerNorm(n_hid) for _ in range(n_layers))
        self.ins = nn.ModuleList(nn.Linear(n_hid, n_hid) for _ in range(n_layers))
        self.recs = nn.ModuleList(nn.Linear(n_hid, n_hid, bias=False) for _ in range(n_layers))
        self.out = nn.Linear(n_hid, V)
    def layer(self, e, norm, i2h, h2h):
        h,res = e.new_zeros(len(e), self.n_hid),[]
        for o in i2h(norm(e)).unbind(1):
            h = torch.tanh(o + h2h(h))
            res.append(h)
        return e + torch.stack(res, 1)
    def forward(self, x):
        e = self.emb(x)
        for parts in zip(self.norms, self.ins, self.recs): e = self.layer(e, *parts)
        return self.out(e)


@program(kind='by hand')
def residual_with_layer_norm():
    "Layer norm over the features of each step, a residual around each layer"
    seed(7)
    model = _ResidualElman()
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    return dict(model=model, dls=windows(16, 32), loss_func=loss_over_all, opt=opt)


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


@program(kind='by hand')
def learned_first_state():
    "Each window begins with a state that is learned"
    seed(8)
    model = _LearnedStart()
    return dict(model=model, dls=windows(32, 20), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=3e-3))


@program(kind='by hand')
def letter_by_letter():
    "Batches of one step; the losses of 12 steps are gathered, then the gradient goes back through all of them"
    seed(9)
    net = ElmanByHand(n_hid=64, n_emb=24)
    opt = Adam(net.parameters(), lr=4e-3)
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


@program(kind='by hand')
def burn_in():
    "The first 8 characters of a window only warm the state up; there is no loss on them, on purpose"
    seed(10)
    model = GRUByHand(n_hid=64)
    opt = Adam(model.parameters(), lr=3e-3)
    burn_in = 8
    def train_step(x, y):
        with torch.no_grad(): _,h = model(x[:,:burn_in])
        scores,_ = model(x[:,burn_in:], h)
        loss = F.cross_entropy(scores.flatten(0, 1), y[:,burn_in:].flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=train_step, model=model, batches=windows(16, 40), opt=opt)


class _Variational(nn.Module):
    "One dropout mask for all steps of a window, on input and output"
    def __init__(self, n_hid=96, p=0.2):
        super().__init__()
        self.p,self.emb,self.cell,self.out = p,nn.Embedding(V, 32),nn.LSTMCell(32, n_hid),nn.Linear(n_hid, V)
    def mask(self, x, n): return F.dropout(torch.ones(len(x), n), self.p, self.training)
    def forward(self, x):
        m_in,m_out = self.mask(x, 32),self.mask(x, self.out.in_features)
        state,res = None,[]
        for t in range(x.size(1)):
            state = self.cell(self.emb(x[:,t])*m_in, state)
            res.append(self.out(state[0]*m_out))
        return torch.stack(res, 1)


@program(kind='by hand')
def variational_dropout():
    "LSTMCell in a loop, the same mask of dropout at all steps"
    seed(11)
    model = _Variational()
    return dict(model=model, dls=windows(20, 24), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=4e-3))


class _WeightDrop(nn.Module):
    "An LSTM whose recurrent weights are dropped, once for each batch"
    def __init__(self, n_hid=64, p=0.3):
        super().__init__()
        self.p,self.n_hid = p,n_hid
        self.emb = nn.Embedding(V, 32)
        self.ih = nn.Linear(32, 4*n_hid)
        self.hh = nn.Linear(n_hid, 4*n_hid, bias=False)
        self.out = nn.Linear(n_hid, V)
    def forward(self, x):
        w = F.dropout(self.hh.weight, self.p, self.training)
        h = c = torch.zeros(x.shape[0], self.n_hid)
        outs = []
        for t in range(x.shape[1]):
            i,f,g,o = (self.ih(self.emb(x[:,t])) + F.linear(h, w)).chunk(4, 1)
            c = torch.sigmoid(f+1)*c + torch.sigmoid(i)*torch.tanh(g)
            h = torch.sigmoid(o)*torch.tanh(c)
            outs.append(self.out(h))
        return torch.stack(outs, 1)


@program(kind='by hand')
def weight_dropout_by_hand():
    "DropConnect on the recurrent matrix"
    seed(12)
    model = _WeightDrop()
    opt = Adam(model.parameters(), lr=4e-3)
    return dict(step_function=stateless_step(model, opt, clip=1.), model=model, batches=windows(16, 28), opt=opt)


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


@program(kind='by hand')
def min_gru_parallel_scan():
    "A recurrence without a loop"
    seed(13)
    model = _MinGRU()
    return dict(model=model, dls=windows(16, 40), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=3e-3))


class _QRNN(nn.Module):
    "A convolution that looks back by one letter, then a mean that forgets"
    def __init__(self, n=96):
        super().__init__()
        self.n,self.emb = n,nn.Embedding(V, 48)
        self.conv = nn.Conv1d(48, 3*n, kernel_size=2)
        self.out = nn.Linear(n, V)
    def forward(self, x):
        e = F.pad(self.emb(x).transpose(1, 2), (1, 0))
        z,f,o = self.conv(e).transpose(1, 2).chunk(3, -1)
        z,f,o,c,res = z.tanh(),f.sigmoid(),o.sigmoid(),torch.zeros(len(x), self.n),[]
        for t in range(x.shape[1]):
            c = f[:,t]*c + (1-f[:,t])*z[:,t]
            res.append(o[:,t]*c)
        return self.out(torch.stack(res, 1))


@program(kind='by hand')
def qrnn():
    "A quasi-recurrent network"
    seed(14)
    model = _QRNN()
    opt = torch.optim.NAdam(model.parameters(), lr=3e-3)
    return dict(model=model, dls=windows(24, 32), loss_func=CrossEntropyLossFlat(), opt=opt)


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


@program(kind='by hand')
def relu_from_identity():
    "A ReLU network with the start that suits it, and clipping"
    seed(15)
    model = _IRNN()
    opt = Adam(model.parameters(), lr=2e-3)
    return dict(step_function=stateless_step(model, opt, clip=1.), model=model, batches=windows(16, 24), opt=opt)


@program(kind='by hand')
def state_emptied_at_line_ends():
    "Streams with marks beside them: where a line ended just before, that row's state begins anew"
    seed(16)
    newline = vocab.stoi['\n']
    net,last = LSTMByHand(n_hid=64),{'state':None}
    opt = Adam(net.parameters(), lr=5e-3)
    marked = [(x, y, (x[:,0] == newline)) for x,y in streams(16, 16, 80)]
    def step(x, y, fresh):
        state = last['state']
        if state is not None: state = tuple(o*(~fresh)[:,None] for o in state)
        scores,state = net(x, state)
        last['state'] = detached(state)
        loss = loss_over_all(scores, y)
        opt.zero_grad(set_to_none=False)
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=net, batches=marked, opt=opt)


@program(kind='by hand')
def trained_elman():
    "An Elman network after 250 steps"
    seed(17)
    model = ElmanByHand(n_hid=48, n_emb=24)
    opt = Adam(model.parameters(), lr=4e-3)
    batches = windows(16, 16)
    step = stateless_step(model, opt, clip=5.)
    train(step, batches, 250)
    return dict(step_function=step, model=model, batches=batches, opt=opt)


class _MultiplicativeRNN(nn.Module):
    "The letter chooses how the state is turned"
    def __init__(self, n_hid=80):
        super().__init__()
        self.by_letter,self.add = nn.Embedding(V, n_hid),nn.Embedding(V, n_hid)
        self.first,self.second = nn.Linear(n_hid, n_hid, bias=False),nn.Linear(n_hid, n_hid)
        self.readout = nn.Linear(n_hid, V)
        nn.init.ones_(self.by_letter.weight)
    def forward(self, ids, hidden=None):
        if hidden is None: hidden = torch.zeros(ids.shape[0], self.first.in_features)
        scores = []
        for t in range(ids.shape[1]):
            turned = self.second(self.by_letter(ids[:,t])*self.first(hidden))
            hidden = torch.tanh(turned + self.add(ids[:,t]))
            scores.append(self.readout(hidden))
        return torch.stack(scores, 1),hidden


@program(kind='by hand')
def multiplicative_rnn():
    "A multiplicative network over streams"
    seed(18)
    model = _MultiplicativeRNN()
    opt = Adam(model.parameters(), lr=2e-3)
    return dict(step_function=carried_step(model, opt, clip=1.), model=model, batches=streams(24, 20), opt=opt)


# torch.nn: parts

@program()
def tiny_rnn():
    "Twelve units and a high learning rate that suits them"
    seed(20)
    model = Scores('rnn', n_hid=12, n_emb=6)
    return dict(model=model, dls=windows(32, 16), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=1e-2))


@program()
def lstm_of_256():
    "A wide LSTM"
    seed(21)
    model = Scores('lstm', n_hid=256, n_emb=64)
    return dict(model=model, dls=windows(16, 32), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=2e-3))


@program()
def gru_with_a_low_rate():
    "Adam at 5e-4: slow, but it learns"
    seed(22)
    model = Scores('gru', n_hid=128, n_emb=64)
    return dict(model=model, dls=windows(16, 24), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=5e-4))


@program()
def time_first_gru():
    "Time is the first axis everywhere"
    seed(23)
    model = Scores('gru', batch_first=False)
    dls = time_first(windows(16, 32))
    return dict(model=model, dls=dls, loss_func=loss_over_all, opt=Adam(model.parameters(), lr=4e-3))


@program()
def two_layers_with_dropout():
    "nn.LSTM of two layers with dropout between them, over streams, scores and state"
    seed(24)
    model = Net('lstm', n_hid=64, n_layers=2, dropout=0.3)
    opt = Adam(model.parameters(), lr=5e-3)
    return dict(step_function=carried_step(model, opt, clip=0.5), model=model, batches=streams(16, 24), opt=opt)


@program()
def stateful_time_first():
    "Two layers, time first, the state kept by the model"
    seed(25)
    model = Stateful('lstm', n_layers=2, batch_first=False)
    opt = Adam(model.parameters(), lr=6e-3)
    return dict(model=model, dls=time_first(streams(12, 20)), loss_func=loss_over_all, opt=opt)


class _LogProbs(nn.Module):
    "GRU, then log-softmax"
    def __init__(self, n_hid=64):
        super().__init__()
        self.embedding = nn.Embedding(V, 32)
        self.gru = nn.GRU(32, n_hid, batch_first=True)
        self.fc = nn.Linear(n_hid, V)
        self.softmax = nn.LogSoftmax(dim=2)
    def forward(self, input): return self.softmax(self.fc(self.gru(self.embedding(input))[0]))


@program()
def log_softmax_and_nll():
    "LogSoftmax in the model, NLLLoss outside"
    seed(26)
    model = _LogProbs()
    crit = nn.NLLLoss()
    def loss_func(out, y): return crit(out.transpose(1, 2), y)
    return dict(model=model, dls=windows(16, 30), loss_func=loss_func, opt=Adam(model.parameters(), lr=3e-3))


@program()
def log_softmax_and_cross_entropy():
    "LogSoftmax before cross-entropy: not needed, and without effect"
    seed(27)
    model = _LogProbs(48)
    return dict(model=model, dls=windows(32, 20), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=5e-3))


@program()
def classes_in_the_second_axis():
    "The model turns its scores to (bs, V, seq_len), as cross-entropy takes them"
    seed(28)
    class CharGRU(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.rnn,self.lin = nn.Embedding(V, 40),nn.GRU(40, 72, batch_first=True),nn.Linear(72, V)
        def forward(self, x): return self.lin(self.rnn(self.emb(x))[0]).permute(0, 2, 1)
    model = CharGRU()
    opt = Adam(model.parameters(), lr=3e-3)
    return dict(model=model, dls=windows(16, 25), loss_func=nn.CrossEntropyLoss(), opt=opt)


@program()
def label_smoothing():
    "Label smoothing, said openly in the loss"
    seed(29)
    model = Scores('lstm')
    def loss_func(scores, y): return F.cross_entropy(scores.flatten(0, 1), y.flatten(), label_smoothing=0.1)
    return dict(model=model, dls=windows(16, 32), loss_func=loss_func, opt=Adam(model.parameters(), lr=5e-3))


@program()
def sum_over_tokens_divided():
    "The loss is a sum, divided by the number of characters"
    seed(30)
    model = Scores('gru')
    crit = nn.CrossEntropyLoss(reduction='sum')
    def loss_func(scores, y): return crit(scores.view(-1, V), y.reshape(-1))/y.numel()
    return dict(model=model, dls=windows(8, 40), loss_func=loss_func, opt=Adam(model.parameters(), lr=3e-3))


@program()
def one_target_a_row():
    "Many to one: 20 letters go in, the next one is to come out"
    seed(31)
    class LastOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.lstm,self.head = nn.Embedding(V, 24),nn.LSTM(24, 64, batch_first=True),nn.Linear(64, V)
        def forward(self, x):
            _,(h,_) = self.lstm(self.emb(x))
            return self.head(h[-1])
    model = LastOnly()
    dls = [(x, y[:,-1]) for x,y in windows(128, 20, 60)]
    return dict(model=model, dls=dls, loss_func=nn.CrossEntropyLoss(), opt=Adam(model.parameters(), lr=6e-3))


@program()
def one_hot_many_to_one():
    "The same with one-hot windows from a torch loader"
    seed(32)
    class OneHotLSTM(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm,self.dense = nn.LSTM(V, 64, batch_first=True),nn.Linear(64, V)
        def forward(self, x): return self.dense(self.lstm(x)[0][:,-1])
    starts = range(0, 9000, 3)
    xs = torch.stack([train_ids[i:i+16] for i in starts])
    ys = torch.stack([train_ids[i+16] for i in starts])
    class OneHots(torch.utils.data.Dataset):
        def __len__(self): return len(xs)
        def __getitem__(self, i): return F.one_hot(xs[i], V).float(),ys[i]
    model = OneHotLSTM()
    dls = TorchLoader(OneHots(), batch_size=128, shuffle=True)
    return dict(model=model, dls=dls, loss_func=nn.CrossEntropyLoss(), opt=Adam(model.parameters(), lr=8e-3))


def _lines(n=400, longest=40):
    "Lines of the text as ids"
    lines = [o for o in text[:50_000].split('\n') if 8 < len(o)]
    return [vocab.encode(o[:longest+1]) for o in lines[:n]]


def _padded(lines, pad): return nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=pad)


@program()
def padded_lines():
    "Lines of unequal length; the symbol for padding is none of the text, and the loss leaves it out"
    seed(33)
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
    return dict(model=model, dls=dls, loss_func=loss_func, opt=Adam(model.parameters(), lr=5e-3))


@program()
def packed_lines():
    "Lines of unequal length, packed; the loss is that of their own letters"
    seed(34)
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.rnn,self.out = nn.Embedding(V, 32),nn.LSTM(32, 64, batch_first=True),nn.Linear(64, V)
        def forward(self, x, lengths):
            packed = pack_padded_sequence(self.emb(x), lengths, batch_first=True, enforce_sorted=False)
            out,_ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
            return self.out(out)
    def collate(lines):
        lengths = torch.tensor([len(o)-1 for o in lines])
        return _padded([o[:-1] for o in lines], 0),_padded([o[1:] for o in lines], -100),lengths
    model = Packed()
    opt = Adam(model.parameters(), lr=5e-3)
    lines = _lines()
    batches = [collate(lines[i:i+16]) for i in range(0, len(lines), 16)]
    def step(x, y, lengths):
        opt.zero_grad()
        loss = F.cross_entropy(model(x, lengths).flatten(0, 1), y.flatten()) # -100 is left out
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=batches, opt=opt)


@program()
def masks_beside():
    "A mask says which letters count; the mean is over those"
    seed(35)
    lines = _lines()
    batches = []
    for i in range(0, len(lines), 20):
        part = lines[i:i+20]
        o = _padded(part, 0)
        real = torch.arange(o.shape[1]-1)[None] < torch.tensor([len(p)-1 for p in part])[:,None]
        batches.append((o[:,:-1], o[:,1:], real.float()))
    model = Scores('gru', n_hid=80)
    opt = Adam(model.parameters(), lr=4e-3)
    def step(x, y, mask):
        losses = F.cross_entropy(model(x).transpose(1, 2), y, reduction='none')
        loss = (losses*mask).sum()/mask.sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=batches, opt=opt)


class _ConvThenGRU(nn.Module):
    "A convolution padded on the left only, then a GRU"
    def __init__(self, k=4):
        super().__init__()
        self.k,self.emb = k,nn.Embedding(V, 32)
        self.conv = nn.Conv1d(32, 48, k)
        self.rnn = nn.GRU(48, 64, batch_first=True)
        self.out = nn.Linear(64, V)
    def forward(self, x):
        e = F.pad(self.emb(x).mT, (self.k-1, 0))
        return self.out(self.rnn(F.gelu(self.conv(e)).mT)[0])


@program()
def causal_conv_then_gru():
    "The convolution sees the past only"
    seed(36)
    model = _ConvThenGRU()
    return dict(model=model, dls=windows(16, 32), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=3e-3))


@program()
def conv_with_cut_padding():
    "Padding on both sides, and the surplus on the right cut off: causal as well"
    seed(37)
    class Chomp(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.conv = nn.Embedding(V, 32),nn.Conv1d(32, 64, 3, padding=2)
            self.rnn,self.out = nn.RNN(64, 64, batch_first=True),nn.Linear(64, V)
        def forward(self, x):
            e = self.conv(self.emb(x).permute(0, 2, 1))[...,:-2]
            return self.out(self.rnn(torch.relu(e).permute(0, 2, 1))[0])
    model = Chomp()
    return dict(model=model, dls=windows(20, 30), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=2e-3))


@program()
def encoder_of_what_went_before():
    "A bidirectional encoder reads the 16 letters before; a causal decoder writes the next 16"
    seed(38)
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
    opt = Adam(model.parameters(), lr=4e-3)
    batches = [(x[:,:16], x[:,16:], y[:,16:]) for x,y in windows(24, 32)]
    def step(context, x, y):
        loss = loss_over_all(model(context, x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=batches, opt=opt)


class _Tied(nn.Module):
    "One matrix for letters in and out, and a projection from the state to its width"
    def __init__(self, n_hid=96, n_emb=40):
        super().__init__()
        self.emb = nn.Embedding(V, n_emb)
        self.rnn = nn.LSTM(n_emb, n_hid, batch_first=True)
        self.proj = nn.Linear(n_hid, n_emb)
        self.decoder = nn.Linear(n_emb, V)
        self.decoder.weight = self.emb.weight
        nn.init.normal_(self.emb.weight, std=n_emb**-0.5)
    def forward(self, x, state=None):
        o,state = self.rnn(self.emb(x), state)
        return self.decoder(self.proj(o)),state


@program()
def tied_with_projection():
    "Tied weights"
    seed(39)
    model = _Tied()
    opt = Adam(model.parameters(), lr=5e-3)
    return dict(step_function=carried_step(model, opt), model=model, batches=streams(16, 32), opt=opt)


@program()
def lstm_with_proj_size():
    "nn.LSTM that projects its output itself"
    seed(40)
    class Projecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.out = nn.Embedding(V, 32),nn.Linear(48, V)
            self.rnn = nn.LSTM(32, 96, 2, batch_first=True, proj_size=48)
        def forward(self, x): return self.out(self.rnn(self.emb(x))[0])
    model = Projecting()
    return dict(model=model, dls=windows(16, 24), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=6e-3))


@program()
def lazy_head():
    "The head finds its width by itself, from one batch before the optimiser is made"
    seed(41)
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.rnn,self.head = nn.Embedding(V, 24),nn.GRU(24, 64, batch_first=True),nn.LazyLinear(V)
        def forward(self, x): return self.head(self.rnn(self.emb(x))[0])
    model,dls = Lazy(),windows(16, 24)
    with torch.no_grad(): model(dls[0][0])
    return dict(model=model, dls=dls, loss_func=loss_over_all, opt=Adam(model.parameters(), lr=4e-3))


@program()
def orthogonal_recurrence():
    "The recurrent matrix is kept orthogonal by a parametrization"
    seed(42)
    model = ElmanByHand(n_hid=48)
    parametrizations.orthogonal(model.h2h)
    opt = Adam(model.parameters(), lr=3e-3)
    return dict(model=model, dls=windows(16, 16), loss_func=loss_over_all, opt=opt)


@program()
def weight_norm_on_the_decoder():
    "Weight normalisation, and a scale for all scores"
    seed(43)
    model = Scores('gru')
    parametrizations.weight_norm(model.out)
    opt = torch.optim.Adamax(model.parameters(), lr=8e-3)
    return dict(model=model, dls=windows(16, 24), loss_func=loss_over_all, opt=opt)


@program()
def shuffled_torch_loader():
    "Chunks of the text in random order, each from an empty state"
    seed(44)
    n,seq_len = 1200,30
    xs,ys = train_ids[:n*seq_len].view(n, seq_len),train_ids[1:n*seq_len+1].view(n, seq_len)
    model = Scores('lstm', n_hid=80)
    dls = TorchLoader(TensorDataset(xs, ys), batch_size=24, shuffle=True, drop_last=True)
    return dict(model=model, dls=dls, loss_func=loss_over_all, opt=Adam(model.parameters(), lr=6e-3))


class _Endless(IterableDataset):
    "Windows without end"
    def __iter__(self):
        while True:
            i = torch.randint(len(train_ids)-33, ()).item()
            yield train_ids[i:i+32],train_ids[i+1:i+33]


@program()
def endless_windows():
    "A loader without length"
    seed(45)
    model = Scores('gru', n_hid=64)
    return dict(model=model, dls=TorchLoader(_Endless(), batch_size=16), loss_func=loss_over_all,
                opt=Adam(model.parameters(), lr=5e-3))


@program()
def small_bytes():
    "Ids as bytes, made long in the model"
    seed(46)
    class Bytes(Scores):
        def forward(self, x): return super().forward(x.long())
    model = Bytes('gru')
    dls = [(x.to(torch.uint8), y) for x,y in windows(16, 32)]
    return dict(model=model, dls=dls, loss_func=loss_over_all, opt=Adam(model.parameters(), lr=3e-3))


@program()
def trained_stateful_lstm():
    "An LSTM that keeps its state, after 200 steps"
    seed(47)
    model = Stateful('lstm', n_hid=48, n_emb=24)
    opt = Adam(model.parameters(), lr=8e-3)
    dls = streams(16, 20)
    train(stateless_step(model, opt), dls, 200)
    return dict(model=model, dls=dls, loss_func=loss_over_all, opt=opt)


@program()
def stacked_cells():
    "Two LSTMCells by turns"
    seed(48)
    class Stacked(nn.Module):
        def __init__(self, n_hid=56):
            super().__init__()
            self.emb,self.head = nn.Embedding(V, 28),nn.Linear(n_hid, V)
            self.cell1,self.cell2 = nn.LSTMCell(28, n_hid),nn.LSTMCell(n_hid, n_hid)
        def forward(self, x):
            a = b = None
            res = []
            for t in range(x.shape[1]):
                a = self.cell1(self.emb(x[:,t]), a)
                b = self.cell2(a[0], b)
                res.append(self.head(b[0]))
            return torch.stack(res, 1)
    model = Stacked()
    return dict(model=model, dls=windows(16, 20), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=8e-3))


# torch.nn: optimisers, schedules, precision

@program()
def sgd_at_20():
    "Plain gradient descent at a rate of 20, with the norm clipped to 0.25: an old recipe that works"
    seed(50)
    model = Net('lstm', n_hid=64)
    opt = SGD(model.parameters(), lr=20.)
    return dict(step_function=carried_step(model, opt, clip=0.25), model=model, batches=streams(20, 32), opt=opt)


@program()
def sgd_with_momentum():
    "Nesterov momentum at 0.3, clipped"
    seed(51)
    model = Scores('gru')
    opt = SGD(model.parameters(), lr=0.3, momentum=0.9, nesterov=True)
    return dict(step_function=stateless_step(model, opt, clip=1.), model=model, batches=windows(16, 32), opt=opt)


@program()
def adadelta():
    "Adadelta at its usual rate of 1"
    seed(52)
    model = Scores('gru')
    opt = torch.optim.Adadelta(model.parameters(), lr=1.)
    return dict(model=model, dls=windows(16, 24), loss_func=loss_over_all, opt=opt)


@program()
def parameter_groups():
    "No decay on biases, a lower rate for the embedding"
    seed(53)
    model = Scores('lstm', n_hid=96)
    groups = [dict(params=model.emb.parameters(), lr=2e-3, weight_decay=0.),
              dict(params=[p for k,p in model.named_parameters() if 'bias' in k], weight_decay=0.),
              dict(params=[p for k,p in model.named_parameters() if 'weight' in k and 'emb' not in k])]
    opt = torch.optim.AdamW(groups, lr=6e-3, weight_decay=0.05)
    return dict(model=model, dls=windows(16, 24), loss_func=loss_over_all, opt=opt)


@program()
def two_optimisers():
    "Sparse gradients for the embedding, so two optimisers"
    seed(54)
    model = Scores('gru', n_hid=64)
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


@program()
def accumulation_done_right():
    "Four small batches make a step; each loss is divided by four"
    seed(55)
    model = Scores('gru')
    opt = Adam(model.parameters(), lr=4e-3)
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


@program()
def parts_of_a_batch():
    "A batch is cut in two inside the step, the gradients are added up, each with its share"
    seed(56)
    model = Scores('lstm', n_hid=64)
    opt = Adam(model.parameters(), lr=5e-3)
    def step(x, y):
        opt.zero_grad()
        total = 0.
        for xb,yb in zip(x.chunk(2), y.chunk(2)):
            loss = loss_over_all(model(xb), yb)*len(xb)/len(x)
            loss.backward()
            total += loss.item()
        opt.step()
        return total
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program()
def warm_up_from_near_zero():
    "The rate rises over 100 steps from a hundredth of its value; the first steps do almost nothing, on purpose"
    seed(57)
    model = Scores('lstm')
    opt = Adam(model.parameters(), lr=6e-3)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min(1., (i+1)/100))
    def step(x, y):
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 28), opt=opt)


@program()
def one_cycle():
    "OneCycleLR, a step a batch"
    seed(58)
    model = Net('gru', n_hid=64)
    opt = Adam(model.parameters())
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=1e-2, total_steps=600)
    state = [None]
    def step(x, y):
        scores,h = model(x, state[0])
        state[0] = h.detach()
        loss = loss_over_all(scores, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        return loss
    return dict(step_function=step, model=model, batches=streams(16, 24), opt=opt)


@program()
def cosine_in_mid_training():
    "A part of a cosine is behind it"
    seed(59)
    model = Scores('gru', n_hid=48, n_emb=24)
    opt = Adam(model.parameters(), lr=8e-3)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=400)
    batches = windows(16, 20)
    def step(x, y):
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        return loss
    train(step, batches, 120)
    return dict(step_function=step, model=model, batches=batches, opt=opt)


@program()
def bf16_autocast():
    "The forward pass in bfloat16, the loss in float32"
    seed(60)
    model = Scores('gru')
    opt = Adam(model.parameters(), lr=4e-3)
    def step(x, y):
        with torch.autocast('cpu', dtype=torch.bfloat16): scores = model(x)
        loss = loss_over_all(scores.float(), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program(kind='by hand')
def fp16_with_a_scaler():
    "float16 with a loss scale; gradients are unscaled before they are clipped"
    seed(61)
    model = ElmanByHand(n_hid=64)
    opt = Adam(model.parameters(), lr=3e-3)
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


@program()
def average_of_weights():
    "A second model holds the running mean of the weights; the first one trains"
    seed(62)
    model = Scores('gru')
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    opt = torch.optim.RAdam(model.parameters(), lr=1e-2)
    def step(x, y):
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        ema.update_parameters(model)
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program()
def loss_in_the_model():
    "The model gives scores and loss when it gets targets"
    seed(63)
    class WithLoss(Scores):
        def forward(self, x, targets=None):
            logits = super().forward(x)
            return logits,None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    model = WithLoss('gru', n_hid=80)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    def step(x, y):
        _,loss = model(x, y)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 32), opt=opt)


@program()
def shift_inside_the_step():
    "A batch is one piece of text; the step cuts inputs and targets from it"
    seed(64)
    model = Scores('gru')
    opt = Adam(model.parameters(), lr=4e-3)
    batches = [torch.cat([x, y[:,-1:]], 1) for x,y in windows(16, 30)]
    def step(batch):
        x,y = batch[:,:-1],batch[:,1:]
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=batches, opt=opt)


@program()
def batch_as_dictionary():
    "A batch is a dictionary"
    seed(65)
    net = Scores('lstm')
    opt = Adam(net.parameters(), lr=5e-3)
    batches = [{'input_ids':x, 'labels':y} for x,y in windows(16, 24)]
    def training_step(batch):
        loss = loss_over_all(net(batch['input_ids']), batch['labels'])
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=training_step, model=net, batches=batches, opt=opt)


@program()
def step_that_fetches():
    "The step takes nothing and draws its own windows"
    seed(66)
    model = Scores('gru')
    opt = Adam(model.parameters(), lr=4e-3)
    def get_batch(bs=16, seq_len=24):
        at = torch.randint(len(train_ids)-seq_len-1, (bs,))
        return (torch.stack([train_ids[i+k:i+k+seq_len] for i in at]) for k in (0, 1))
    def step():
        x,y = get_batch()
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, opt=opt)


@program()
def two_chunks_a_batch():
    "Truncated BPTT inside the step: 40 letters in chunks of 10, a step after each, the state goes on"
    seed(67)
    model = Net('gru', n_hid=64)
    opt = Adam(model.parameters(), lr=3e-3)
    def step(x, y):
        h,losses = None,[]
        for xb,yb in zip(x.split(10, 1), y.split(10, 1)):
            scores,h = model(xb, h)
            h = h.detach()
            loss = loss_over_all(scores, yb)
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())
        return sum(losses)/len(losses)
    return dict(step_function=step, model=model, batches=windows(16, 40), opt=opt)


@program()
def checkpointed_layers():
    "Activations are computed again in the backward pass, to save memory"
    seed(68)
    class Checkpointed(Scores):
        def forward(self, x):
            e = self.emb(x)
            return self.out(checkpoint(lambda o: self.rnn(o)[0], e, use_reentrant=False))
    model = Checkpointed('gru', n_layers=2)
    return dict(model=model, dls=windows(16, 20), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=5e-3))


@program()
def adaptive_softmax():
    "nn.AdaptiveLogSoftmaxWithLoss over ids sorted by frequency"
    seed(69)
    order = torch.bincount(train_ids, minlength=V).argsort(descending=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(V))
    class Adaptive(nn.Module):
        def __init__(self, n_hid=64):
            super().__init__()
            self.emb,self.rnn = nn.Embedding(V, 32),nn.GRU(32, n_hid, batch_first=True)
            self.loss = nn.AdaptiveLogSoftmaxWithLoss(n_hid, V, cutoffs=[20, 50], div_value=2.)
        def forward(self, x, y): return self.loss(self.rnn(self.emb(x))[0].flatten(0, 1), y.flatten()).loss
    model = Adaptive()
    opt = Adam(model.parameters(), lr=4e-3)
    def step(x, y):
        loss = model(x, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=[(rank[x], rank[y]) for x,y in windows(16, 24)], opt=opt)


@program()
def validates_on_the_way():
    "Every tenth step looks at held-out text: eval, no_grad, a state of its own, and train again"
    seed(70)
    model = Net('lstm', n_hid=64, n_layers=2, dropout=0.2)
    opt = Adam(model.parameters(), lr=5e-3)
    held_out = streams(16, 24, 3, train_ids[50_000:])
    now = dict(i=0, state=None, valid=None)
    def validate():
        model.eval()
        state,losses = None,[]
        with torch.no_grad():
            for x,y in held_out:
                scores,state = model(x, state)
                losses.append(loss_over_all(scores, y).item())
        model.train()
        return sum(losses)/len(losses)
    def step(x, y):
        scores,state = model(x, now['state'])
        now['state'] = detached(state)
        loss = loss_over_all(scores, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        now['i'] += 1
        if now['i'] % 10 == 0: now['valid'] = validate()
        return loss
    return dict(step_function=step, model=model, batches=streams(16, 24, 60, train_ids[:50_000]), opt=opt)


# Learners of fastai

@program()
def learner_over_shuffled_chunks():
    "A stateless GRU in a Learner, chunks shuffled"
    seed(80)
    return dict(learn=learner(window_dls(16, 32), Scores('gru'), lr=4e-3))


@program()
def learner_with_a_resetter():
    "A model that keeps its state, streams, and ModelResetter"
    seed(81)
    cbs = [ModelResetter(), GradientClip(1.)]
    return dict(learn=learner(stream_dls(16, 24), Stateful('lstm', n_hid=80), lr=5e-3, cbs=cbs))


@program()
def learner_that_accumulates():
    "fastai's GradientAccumulation over four batches of 8"
    seed(82)
    return dict(learn=learner(window_dls(8, 24, 80), Scores('gru'), lr=4e-3, cbs=GradientAccumulation(32)))


@program()
def learner_with_other_optimisers():
    "RMSProp of fastai, time first in the model only"
    seed(83)
    class Turned(Scores):
        def forward(self, x): return super().forward(x.t()).transpose(0, 1)
    model = Turned('gru', batch_first=False)
    return dict(learn=learner(window_dls(16, 30), model, lr=2e-3, opt_func=RMSProp))


@program()
def learner_in_mid_training():
    "After an epoch of one cycle"
    seed(84)
    learn = learner(window_dls(16, 20, 60), Scores('gru', n_hid=48, n_emb=24), lr=1e-2)
    with learn.no_bar(): learn.fit_one_cycle(1, 1e-2)
    return dict(learn=learn)


@program(kind='by hand')
def learner_by_hand():
    "The model by hand with its state as an attribute, in a Learner with ranger"
    seed(85)
    learn = learner(stream_dls(16, 20), KeepsState(n_hid=64), lr=5e-3, opt_func=ranger, cbs=ModelResetter())
    return dict(learn=learn)


# AWD-LSTM of fastai

@program(kind='AWD-LSTM')
def awd_lstm():
    "fastai's language model with its own loader"
    seed(90)
    return dict(learn=awd_learner())


@program(kind='AWD-LSTM')
def awd_lstm_one_layer():
    "One layer, more dropout, other sizes"
    seed(91)
    return dict(learn=awd_learner(lm_dls(12, 24), drop_mult=0.3, lr=8e-3, config=dict(n_layers=1, emb_sz=64)))


@program(kind='AWD-LSTM', also='L8')
def awd_lstm_regularised():
    "Activations are held small and slow, as the paper has it: the loss in training holds a second term on purpose"
    seed(92)
    cbs = [RNNRegularizer(alpha=2., beta=1.), GradientClip(0.5)]
    return dict(learn=awd_learner(lm_dls(16, 30), drop_mult=0.2, cbs=cbs))


@program(kind='AWD-LSTM')
def awd_lstm_trained():
    "After an epoch"
    seed(93)
    learn = awd_learner(lm_dls(16, 24, 16_000), drop_mult=0.1)
    with learn.no_bar(): learn.fit(1, 1e-2)
    return dict(learn=learn)


@program(kind='AWD-LSTM')
def awd_lstm_untied_over_own_streams():
    "Not tied, over fastai loaders of consecutive chunks"
    seed(94)
    return dict(learn=awd_learner(stream_dls(16, 20), config=dict(tie_weights=False, n_hid=80)))


# Our own

@program(kind='ours')
def our_lstm():
    "char_learner as it comes"
    return dict(learn=our_learner())


@program(kind='ours')
def our_gru_of_two_layers():
    "Two layers, dropout, a head"
    return dict(learn=our_learner(12, 24, arch='gru', n_layers=2, dropout=0.2, head_sz=48))


@program(kind='ours')
def our_elman_one_hot():
    "An Elman network on one-hot letters with Adam"
    return dict(learn=our_learner(20, 20, arch='rnn', emb_sz=0, opt_func=FastAdam, lr=3e-3))


@program(kind='ours')
def our_trained_lstm():
    "After 120 steps"
    learn = our_learner(16, 16, n_hid=48)
    learn.fit_steps(120)
    return dict(learn=learn)


@program(kind='ours')
def our_tied_lstm_that_forgets():
    "Tied, and now and then a stream's memory is emptied on purpose"
    return dict(learn=our_learner(16, 32, tie=True, emb_sz=64, n_hid=64, reset_pct=0.05))


# With a function that writes text

def _trained(model, batches, n=120, lr=8e-3):
    "The model after `n` steps, and the program's parts"
    opt = Adam(model.parameters(), lr=lr)
    train(stateless_step(model, opt), batches, n)
    return dict(model=model, dls=batches, loss_func=loss_over_all, opt=opt, text=text)


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


@program()
def writes_with_its_state():
    "Samples from the softmax, the state goes on"
    seed(100)
    return dict(_trained(Net('gru', n_hid=48, n_emb=24), windows(16, 20)), sample=_write)


@program()
def writes_a_little_colder():
    "A temperature of 0.8 and the ten best letters, dropout off while it writes"
    seed(101)
    def sample(model, prompt, n): return _write(model, prompt, n, temperature=0.8, top_k=10)
    return dict(_trained(Net('lstm', n_hid=48, n_layers=2, dropout=0.2), windows(16, 16)), sample=sample)


@program()
def reads_all_again():
    "No state: the whole text so far goes in for each letter"
    seed(102)
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        ids = vocab.encode(prompt).tolist()
        for _ in range(n):
            probs = model(torch.tensor([ids]))[0,-1].softmax(0)
            ids.append(torch.multinomial(probs, 1).item())
        model.train()
        return vocab.textify(ids)
    return dict(_trained(Scores('gru', n_hid=48), windows(16, 24)), sample=sample)


@program(kind='by hand')
def writes_by_hand():
    "An Elman network reads the prompt letter by letter, then writes by Gumbel noise"
    seed(103)
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        hidden = None
        for c in prompt: scores,hidden = model(torch.tensor([[vocab.stoi[c]]]), hidden)
        out = []
        for _ in range(n):
            gumbel = -torch.empty(V).exponential_().log()
            i = (scores[0,-1] + gumbel).argmax()
            out.append(vocab[int(i)])
            scores,hidden = model(i.view(1, 1), hidden)
        model.train()
        return prompt + ''.join(out)
    return dict(_trained(ElmanByHand(n_hid=64), windows(16, 16), n=200, lr=4e-3), sample=sample)


@program()
def writes_with_a_state_kept_inside():
    "The model keeps its state itself; it is emptied before, and put back afterwards"
    seed(104)
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

@program()
def watched_learner():
    "A GRU in a Learner, one cycle over some hundred batches"
    seed(110)
    learn = learner(window_dls(16, 24, 80), Scores('gru', n_hid=48, n_emb=24), lr=1e-2)
    def watch(learn, cbs): learn.fit_one_cycle(3, 1e-2, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program()
def watched_with_state():
    "An LSTM that keeps its state over streams, three epochs at one rate, clipped"
    seed(111)
    cbs = [ModelResetter(), GradientClip(1.)]
    learn = learner(stream_dls(16, 24, 60), Stateful('lstm', n_hid=64), lr=6e-3, cbs=cbs)
    def watch(learn, cbs): learn.fit(3, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program(kind='AWD-LSTM')
def watched_awd_lstm():
    "fastai's language model for three epochs, flat and then down"
    seed(112)
    def watch(learn, cbs): learn.fit_flat_cos(3, 1e-2, cbs=cbs)
    return dict(learn=awd_learner(lm_dls(16, 30), drop_mult=0.1), watch=watch)


@program(kind='by hand')
def watched_by_hand():
    "An Elman network over streams, with decay and a schedule"
    seed(113)
    learn = learner(stream_dls(16, 20, 60), KeepsState(n_hid=64), lr=4e-3, wd=0.01, cbs=ModelResetter())
    def watch(learn, cbs): learn.fit_one_cycle(3, 5e-3, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program(kind='ours')
def watched_ours():
    "char_learner by steps"
    def watch(learn, cbs): learn.fit_steps(150, cbs=cbs)
    return dict(learn=our_learner(16, 24, n_hid=48), watch=watch)
