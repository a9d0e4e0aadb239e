"""Programs with faults in the recurrence and its state (R1 to R11) and in the loss (L1 to L8)"""
import random
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn, optim
from fastai.basics import Adam, Callback, CrossEntropyLossFlat, trainable_params
from fastai.callback.rnn import RNNCallback
from fastai.text.models import AWD_LSTM
from charrnn_fa.learner import CharLearner
from charrnn_fa.text.data import CharDataLoaders
from . import program
from .parts import (ElmanByHand, GRUByHand, KeepsState, LSTMByHand, Net, Scores, Stateful, V, awd_config, awd_learner,
                    awd_model, carried_step, learner, lm_dls, loss_over_all, our_learner, quiet, seed,
                    stateless_step, stream_dls, streams, text, time_first, vocab, window_dls, windows)


def _adam(model, lr=5e-3): return optim.Adam(model.parameters(), lr=lr)


# R1: detached at every step

@program('R1', 'by hand')
def detach_inside_the_time_loop():
    "The hidden state is detached at every step of the loop, so nothing is learned about the step before."
    seed(1)
    class RNN(ElmanByHand):
        def forward(self, x, h=None):
            h = torch.zeros(x.shape[0], self.n_hid) if h is None else h
            out = []
            for t in range(x.shape[1]):
                h = torch.tanh(self.i2h(self.emb(x[:,t])) + self.h2h(h.detach()))
                out.append(self.h2o(h))
            return torch.stack(out, 1),h
    net = RNN(64, 32)
    opt = _adam(net)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 24), opt=opt)


class DetachedCell(nn.Module):
    "A loop over nn.GRUCell that keeps the state as data"
    def __init__(self, nh=64):
        super().__init__()
        self.nh,self.h = nh,None
        self.emb,self.cell,self.out = nn.Embedding(V, 32),nn.GRUCell(32, nh),nn.Linear(nh, V)
    def reset(self): self.h = None
    def forward(self, x):
        if self.h is None or len(self.h) != len(x): self.h = torch.zeros(len(x), self.nh)
        res = []
        for t in range(x.shape[1]):
            new = self.cell(self.emb(x[:,t]), self.h)
            res.append(self.out(new))
            self.h = new.data
        return torch.stack(res, dim=1)


@program('R1', 'torch.nn')
def keeps_data_of_the_gru_cell():
    "self.h = new.data after each character."
    seed(2)
    return dict(learn=learner(stream_dls(16, 24), DetachedCell(), lr=5e-3))


@program('R1', 'torch.nn')
def one_call_per_character_with_detach():
    "nn.LSTM is called for each character, and its state is detached each time to avoid an error."
    seed(3)
    net = Net('lstm', n_hid=56, n_layers=2, batch_first=False)
    opt = _adam(net)
    hidden = None
    def train_on(x, y):
        nonlocal hidden
        loss = 0.
        for t in range(x.shape[0]):
            out,hidden = net(x[t:t+1], hidden)
            hidden = tuple(h.detach() for h in hidden)
            loss = loss + F.cross_entropy(out[0], y[t])
        loss = loss/x.shape[0]
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        opt.step()
        return loss.item()
    return dict(step_function=train_on, model=net, batches=time_first(streams(16, 20)), opt=opt)


class CharByChar(nn.Module):
    "fastai's model, called for one character at a time"
    def __init__(self, model):
        super().__init__()
        self.model = model
    def reset(self): self.model.reset()
    def forward(self, x):
        parts = [self.model(x[:,t:t+1]) for t in range(x.shape[1])]
        return tuple(torch.cat(o, dim=1) for o in zip(*parts))


@program('R1', 'AWD-LSTM')
def awd_character_by_character():
    "AWD-LSTM detaches its state after each call, and it is called for each character."
    seed(4)
    return dict(learn=awd_learner(lm_dls(16, 20), CharByChar(awd_model())))


@program('R1', 'by hand')
def state_through_numpy():
    "The state of an LSTM by hand goes through NumPy after each character."
    seed(5)
    lstm = LSTMByHand(64)
    opt = _adam(lstm)
    class Loop:
        h = c = None
        def __call__(self, x, y):
            if self.h is None: self.h,self.c = np.zeros((len(x), 64), np.float32),np.zeros((len(x), 64), np.float32)
            total = 0
            for e,target in zip(lstm.emb(x).unbind(1), y.unbind(1)):
                h,c = lstm.cell(e, (torch.from_numpy(self.h), torch.from_numpy(self.c)))
                total = total + F.cross_entropy(lstm.out(h), target)
                self.h,self.c = h.detach().numpy(),c.detach().numpy()
            total = total/x.shape[1]
            opt.zero_grad()
            total.backward()
            opt.step()
            return total.item()
    loop = Loop()
    def step(x, y): return loop(x, y)
    return dict(step_function=step, model=lstm, batches=streams(16, 20), opt=opt)


def _ours_around(model):
    "`CharLearner` with a model of one's own"
    dls = CharDataLoaders.from_text(text, bs=16, seq_len=24, seed=0, device='cpu')
    return quiet(CharLearner(dls, model, opt_func=Adam, splitter=trainable_params, lr=5e-3, precision='fp32'))


class CutCell(nn.Module):
    "A cell of one's own for `CharLearner`: (scores, state) from ids and state"
    def __init__(self, nh=64):
        super().__init__()
        self.nh,self.emb = nh,nn.Embedding(V, 32)
        self.x2h,self.h2h,self.decoder = nn.Linear(32, nh),nn.Linear(nh, nh),nn.Linear(nh, V)
    def forward(self, x, state=None):
        h = torch.zeros(len(x), self.nh) if state is None else state[0][0]
        out = []
        for e in self.emb(x).unbind(1):
            with torch.no_grad(): before = self.h2h(h)
            h = torch.tanh(self.x2h(e) + before)
            out.append(self.decoder(h))
        return torch.stack(out, 1),(h[None],)


@program('R1', 'ours', also='L7')
def no_grad_around_the_recurrent_layer():
    "The recurrent product is computed under no_grad, to save memory, in a model put into CharLearner."
    seed(6)
    return dict(learn=_ours_around(CutCell()))


# R2: never detached

@program('R2', 'by hand')
def state_keeps_its_graph():
    "The state of one batch goes into the next with its whole history."
    seed(1)
    rnn = ElmanByHand(64, 32)
    opt = _adam(rnn)
    h = None
    def step(x, y):
        nonlocal h
        scores,h = rnn(x, h)
        loss = loss_over_all(scores, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    return dict(step_function=step, model=rnn, batches=streams(16, 24), opt=opt)


@program('R2', 'by hand')
def retain_graph_and_p_data():
    "retain_graph=True silences the error, and updates through p.data let it pass: each step goes back to the first."
    seed(2)
    net = GRUByHand(40, 24)
    state = None
    def train_step(x, y):
        nonlocal state
        net.zero_grad()
        out,state = net(x, state)
        loss = loss_over_all(out, y)
        loss.backward(retain_graph=True)
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        for p in net.parameters(): p.data.add_(p.grad.data, alpha=-0.5)
        return loss.item()
    return dict(step_function=train_step, model=net, batches=streams(16, 16))


class Undetached(Net):
    "Keeps the state as it came out"
    hidden = None
    def reset(self): self.hidden = None
    def forward(self, x):
        out,self.hidden = super().forward(x, self.hidden)
        return out


@program('R2', 'torch.nn')
def kept_lstm_state_with_history():
    "self.hidden is assigned and never detached."
    seed(3)
    return dict(learn=learner(stream_dls(16, 24), Undetached('lstm', n_hid=64)))


@program('R2', 'torch.nn')
def hidden_from_the_batch_before():
    "Two layers of GRU; the parts loop calls backward on a state that reaches back into the batch before."
    seed(4)
    net = Undetached('gru', n_hid=48, n_layers=2)
    return dict(model=net, dls=streams(20, 20), loss_func=loss_over_all, opt=_adam(net))


class LongMemory(AWD_LSTM):
    "AWD-LSTM with a state that is not cut off"
    def forward(self, inp, from_embeds=False):
        bs = inp.shape[0]
        if bs != self.bs: self._change_hidden(bs)
        output,new_hidden = self.input_dp(self.encoder_dp(inp)),[]
        for rnn,h in zip(self.rnns, self.hidden):
            output,new_h = rnn(output, h)
            new_hidden.append(new_h)
        self.hidden = new_hidden
        return output


@program('R2', 'AWD-LSTM')
def awd_without_detach():
    "A subclass of AWD_LSTM that forgot the detach in forward."
    seed(5)
    model = awd_model()
    c = awd_config()
    model[0] = LongMemory(V, c['emb_sz'], c['n_hid'], c['n_layers'], pad_token=None, weight_p=.05, input_p=.05)
    model[1].decoder.weight = model[0].encoder.weight
    return dict(learn=awd_learner(model=model))


# R3: the result of detach() is thrown away

@program('R3', 'by hand', also='R2')
def detach_as_a_statement():
    "hidden.detach() stands alone on its line."
    seed(1)
    rnn = ElmanByHand(64, 0)
    opt = optim.SGD(rnn.parameters(), lr=.5)
    hidden = torch.zeros(16, 64)
    def train_batch(x, y):
        nonlocal hidden
        output,hidden = rnn(x, hidden)
        loss = F.cross_entropy(output.flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
        hidden.detach()
        return loss.item()
    return dict(step_function=train_batch, model=rnn, batches=streams(16, 20), opt=opt)


class ForgetsToAssign(Net):
    "Detaches, or so it seems"
    state = None
    def reset(self): self.state = None
    def forward(self, x):
        if self.state is not None:
            for s in self.state: s.detach()
        out,self.state = super().forward(x, self.state)
        return out


@program('R3', 'torch.nn', also='R2')
def detaches_in_a_loop_without_assignment():
    "for s in self.state: s.detach(), which changes nothing."
    seed(2)
    net = ForgetsToAssign('lstm', n_hid=64, n_layers=2)
    return dict(model=net, dls=streams(16, 24), loss_func=loss_over_all, opt=_adam(net))


@program('R3', 'torch.nn', also='R2')
def both_parts_detached_to_nowhere():
    "h.detach() and c.detach() before the LSTM is called."
    seed(3)
    class CharLSTM(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.emb,self.lstm,self.dec = nn.Embedding(V, 32),nn.LSTM(32, nh, batch_first=True),nn.Linear(nh, V)
            self.reset()
        def reset(self): self.h = self.c = None
        def forward(self, x):
            if self.h is None: self.h,self.c = torch.zeros(1, len(x), 64),torch.zeros(1, len(x), 64)
            self.h.detach()
            self.c.detach()
            out,(self.h,self.c) = self.lstm(self.emb(x), (self.h, self.c))
            return self.dec(out)
    return dict(learn=learner(stream_dls(16, 30), CharLSTM(), lr=3e-3))


class DetachAfterBatch(Callback):
    "Cut the state off after each batch"
    def after_batch(self):
        for h,c in self.model[0].hidden:
            h.detach()
            c.detach()


@program('R3', 'AWD-LSTM', also='R2')
def awd_callback_detaches_to_nowhere():
    "The encoder does not detach; a callback does and throws the results away."
    seed(4)
    model = awd_model()
    model[0] = LongMemory(V, 64, 64, 1, pad_token=None, weight_p=.05, input_p=.05)
    model[1].decoder.weight = model[0].encoder.weight
    return dict(learn=awd_learner(model=model, cbs=[DetachAfterBatch()]))


# R4: one state for all rows

@program('R4', 'by hand')
def mean_state_for_all_rows():
    "The state is averaged over the batch, so that it fits a batch of any size."
    seed(1)
    class Averaging(KeepsState):
        def forward(self, x):
            h = torch.zeros(1, self.n_hid) if self.h is None else self.h
            out = []
            for t in range(x.shape[1]):
                h = torch.tanh(self.i2h(self.emb(x[:,t])) + self.h2h(h))
                out.append(self.h2o(h))
            self.h = h.mean(0, keepdim=True).detach()
            return torch.stack(out, 1)
    net = Averaging(64)
    return dict(model=net, dls=streams(16, 24), loss_func=loss_over_all, opt=_adam(net))


@program('R4', 'by hand')
def sum_over_rows_at_each_step():
    "The state has the shape (1, nh); at each step the rows are added up to keep it so."
    seed(2)
    class Summing(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.nh = nh
            self.i_h,self.h_h,self.h_o = nn.Linear(V, nh),nn.Linear(nh, nh),nn.Linear(nh, V)
        def forward(self, x):
            h,outs = torch.zeros(1, self.nh),[]
            for t in range(x.shape[1]):
                hs = torch.tanh(self.i_h(F.one_hot(x[:,t], V).float()) + self.h_h(h))
                outs.append(self.h_o(hs))
                h = hs.sum(0, keepdim=True)/len(x)**.5
            return torch.stack(outs, 1)
    net = Summing()
    return dict(model=net, dls=windows(16, 24), loss_func=loss_over_all, opt=_adam(net))


@program('R4', 'torch.nn')
def last_row_for_all():
    "Only the last row of the state is kept, and it is spread over the next batch."
    seed(3)
    class OneState(Net):
        h = None
        def reset(self): self.h = None
        def forward(self, x):
            h = None if self.h is None else self.h.expand(-1, len(x), -1).contiguous()
            out,h = super().forward(x, h)
            self.h = h[:,-1:].detach()
            return out
    return dict(learn=learner(stream_dls(16, 24), OneState('gru', n_hid=64, n_layers=2), lr=5e-3))


@program('R4', 'torch.nn', also='S6')
def hidden_of_one_row():
    "init_hidden makes a state for a single row, as in a program that read one line at a time."
    seed(4)
    net = Net('lstm', n_hid=64)
    opt = _adam(net)
    def step(x, y):
        hidden = torch.zeros(1, 1, 64),torch.zeros(1, 1, 64)
        out,_ = net(x, hidden)
        loss = loss_over_all(out, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=net, batches=windows(16, 24), opt=opt)


class MeanHidden(Callback):
    "The same state for all rows, less noisy"
    def after_batch(self):
        def _mean(h): return h.mean(1, keepdim=True).expand_as(h).contiguous()
        self.model[0].hidden = [(_mean(h), _mean(c)) for h,c in self.model[0].hidden]


@program('R4', 'AWD-LSTM')
def awd_rows_share_a_mean():
    "A callback gives each row the mean of all rows' states."
    seed(5)
    return dict(learn=awd_learner(lm_dls(16, 16), cbs=[MeanHidden()]))


class OneMemory(Callback):
    "All streams remember the same"
    def after_batch(self):
        if self.training: self.learn.carried = tuple(o.mean(1, keepdim=True).expand_as(o) for o in self.learn.carried)


@program('R4', 'ours')
def carried_state_averaged_over_streams():
    "A callback replaces the carried state of each stream by the mean of all."
    seed(6)
    return dict(learn=our_learner(bs=16, seq_len=16, cbs=[OneMemory()]))


# R5: no memory beyond one character, or beyond the batch

@program('R5', 'by hand')
def zeros_inside_the_loop():
    "The hidden state is made anew inside the loop over time."
    seed(1)
    class Amnesic(ElmanByHand):
        def forward(self, x, _=None):
            out = []
            for t in range(x.shape[1]):
                h = torch.zeros(x.shape[0], self.n_hid)
                h = torch.tanh(self.i2h(self.emb(x[:,t])) + self.h2h(h))
                out.append(self.h2o(h))
            return torch.stack(out, 1),h
    net = Amnesic(64, 32)
    opt = _adam(net)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 24), opt=opt)


@program('R5', 'by hand')
def new_state_under_another_name():
    "The new state is called h_new, and h stays what it was before the loop."
    seed(2)
    class Elman(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.nh,self.embed = nh,nn.Embedding(V, 32)
            self.wx,self.wh,self.wo = nn.Linear(32, nh),nn.Linear(nh, nh, bias=False),nn.Linear(nh, V)
        def forward(self, x):
            h = torch.zeros(x.size(0), self.nh)
            logits = []
            for t in range(x.size(1)):
                h_new = torch.tanh(self.wx(self.embed(x[:,t])) + self.wh(h))
                logits.append(self.wo(h_new))
            return torch.stack(logits, dim=1)
    net = Elman()
    return dict(model=net, dls=windows(20, 24), loss_func=CrossEntropyLossFlat(), opt=_adam(net))


@program('R5', 'torch.nn')
def cell_without_its_state():
    "self.cell(e) in the loop, without the state of the step before."
    seed(3)
    class CellNet(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.emb,self.cell,self.out = nn.Embedding(V, 32),nn.LSTMCell(32, nh),nn.Linear(nh, V)
        def forward(self, x):
            res = []
            for e in self.emb(x).unbind(1):
                h,c = self.cell(e)
                res.append(self.out(h))
            return torch.stack(res, 1)
    return dict(learn=learner(window_dls(16, 24), CellNet(), lr=5e-3))


@program('R5', 'torch.nn')
def one_character_a_call_state_dropped():
    "nn.GRU is called for each character, and the state that it gives is put into an underscore."
    seed(4)
    gru = Net('gru', n_hid=64, n_layers=2)
    optimizer = _adam(gru)
    def training_step(batch):
        inputs,labels = batch
        optimizer.zero_grad()
        loss = 0
        for i in range(inputs.shape[1]):
            output,_ = gru(inputs[:,i:i+1])
            loss += F.cross_entropy(output.squeeze(1), labels[:,i])
        loss = loss/inputs.shape[1]
        loss.backward()
        optimizer.step()
        return loss.item()
    return dict(step_function=training_step, model=gru, batches=streams(16, 20), opt=optimizer)


@program('R5', 'torch.nn')
def init_hidden_at_each_forward():
    "A model made to carry its state calls init_hidden in forward; the chunks are eight characters long."
    seed(5)
    class Forgetful(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.nh = nh
            self.emb,self.rnn,self.out = nn.Embedding(V, 32),nn.GRU(32, nh, batch_first=True),nn.Linear(nh, V)
        def init_hidden(self, bs): self.hidden = torch.zeros(1, bs, self.nh)
        def forward(self, x):
            self.init_hidden(x.shape[0])
            out,h = self.rnn(self.emb(x), self.hidden)
            self.hidden = h.detach()
            return self.out(out)
    return dict(learn=learner(stream_dls(16, 8, 100), Forgetful(), lr=5e-3))


class ResetBeforeBatch(Callback):
    "Begin afresh"
    def before_batch(self): self.model.reset()


@program('R5', 'AWD-LSTM')
def awd_reset_before_each_batch():
    "A callback resets AWD-LSTM before each batch of 8 characters."
    seed(6)
    return dict(learn=awd_learner(lm_dls(16, 8, 20_000), cbs=[ResetBeforeBatch()]))


class DropCarried(Callback):
    "Every batch on its own"
    def before_batch(self): self.learn.carried = None


@program('R5', 'ours')
def carried_state_dropped_by_a_callback():
    "A callback throws the carried state away before each batch of 8 characters."
    seed(7)
    return dict(learn=our_learner(bs=16, seq_len=8, cbs=[DropCarried()]))


@program('R5', 'by hand')
def state_multiplied_away():
    "The reset mask, meant for the first character of a document, is the wrong way round and empties the state always."
    seed(8)
    class Masked(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.nh,self.emb = nh,nn.Embedding(V, 32)
            self.xh,self.hh,self.ho = nn.Linear(32, nh),nn.Linear(nh, nh),nn.Linear(nh, V)
        def forward(self, x):
            begins = torch.zeros(x.shape)
            begins[:,0] = 1.
            h,out = torch.zeros(len(x), self.nh),[]
            for t in range(x.shape[1]):
                h = h*begins[:,t:t+1]
                h = torch.tanh(self.xh(self.emb(x[:,t])) + self.hh(h))
                out.append(self.ho(h))
            return torch.stack(out, 1)
    return dict(learn=learner(window_dls(16, 24), Masked(), lr=5e-3))


# R6: the state goes where it does not belong

@program('R6', 'by hand')
def state_runs_into_validation():
    "The kept state goes from training into validation and back."
    seed(1)
    learn = learner(stream_dls(16, 24, 40), KeepsState(64), lr=5e-3, resets=False)
    def watch(learn, cbs): learn.fit(3, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('R6', 'torch.nn')
def lstm_state_is_never_reset():
    "A stateful LSTM in a Learner without a callback that resets it between epochs and before validation."
    seed(2)
    learn = learner(stream_dls(16, 30, 30, 8), Stateful('lstm', n_hid=64, n_layers=2), lr=5e-3, resets=False)
    def watch(learn, cbs): learn.fit(3, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('R6', 'AWD-LSTM')
def awd_without_model_resetter():
    "fastai's AWD-LSTM with RNNCallback alone; ModelResetter is missing."
    seed(3)
    learn = learner(lm_dls(16, 24), awd_model(), lr=2e-2, cbs=[RNNCallback()], resets=False)
    def watch(learn, cbs): learn.fit(3, cbs=cbs)
    return dict(learn=learn, watch=watch)


class SampleNow(Callback):
    "Look at a sample every ten batches"
    def after_batch(self):
        if not self.training or self.iter % 10: return
        self.model.eval()
        self.model.reset()
        x = vocab.encode('The ')[None]
        with torch.no_grad():
            for _ in range(20): x = torch.cat([x, self.model(x[:,-1:])[:,-1:].argmax(-1)], 1)
        self.model.train()


@program('R6', 'torch.nn')
def sampling_overwrites_the_state():
    "A callback samples during training with the model's own state, and the training goes on from what it left."
    seed(4)
    class Spread(Stateful):
        def _fits(self, x):
            one_row = self.state is not None and self.state.shape[1] == 1
            if one_row: self.state = self.state.expand(-1, len(x), -1).clone()
            return super()._fits(x)
    learn = learner(stream_dls(16, 16, 80), Spread('gru', n_hid=64), lr=5e-3, cbs=[SampleNow()])
    def watch(learn, cbs): learn.fit(2, cbs=cbs)
    return dict(learn=learn, watch=watch)


# R7: the length of backpropagation does not fit

@program('R7', 'ours')
def two_characters_of_backpropagation():
    "seq_len=2: the gradient sees one step of memory."
    seed(1)
    return dict(learn=our_learner(bs=16, seq_len=2))


@program('R7', 'torch.nn', also='R1')
def one_character_per_update():
    "Each update sees a single character; the state is carried and detached, so no gradient reaches back."
    seed(2)
    net = Net('gru', n_hid=64)
    opt = _adam(net, 2e-3)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 1, 400), opt=opt)


@program('R7', 'by hand', also='I5')
def elman_over_two_hundred_steps():
    "An Elman network with small recurrent weights, unrolled over 200 steps in the hope of long memory."
    seed(3)
    rnn = ElmanByHand(48, 24)
    nn.init.uniform_(rnn.h2h.weight, -.05, .05)
    opt = _adam(rnn, 3e-3)
    return dict(step_function=stateless_step(rnn, opt), model=rnn, batches=windows(4, 200, 20), opt=opt)


@program('R7', 'AWD-LSTM')
def awd_bptt_of_two():
    "The loader was made with seq_len=2, so backpropagation through time ends after one step."
    seed(4)
    return dict(learn=awd_learner(lm_dls(16, 2, 6000)))


# R8: no non-linearity in the recurrence

@program('R8', 'by hand')
def combined_without_tanh():
    "The RNN of the first tutorials: hidden = i2h(combined), and nothing after it."
    seed(1)
    class RNN(nn.Module):
        def __init__(self, input_size, hidden_size, output_size):
            super().__init__()
            self.hidden_size = hidden_size
            self.i2h = nn.Linear(input_size+hidden_size, hidden_size)
            self.h2o = nn.Linear(hidden_size, output_size)
        def forward(self, line, hidden=None):
            hidden = torch.zeros(line.shape[0], self.hidden_size) if hidden is None else hidden
            outputs = []
            for t in range(line.shape[1]):
                combined = torch.cat((F.one_hot(line[:,t], V).float(), hidden), 1)
                hidden = self.i2h(combined)
                outputs.append(self.h2o(hidden))
            return torch.stack(outputs, 1),hidden
    rnn = RNN(V, 64, V)
    opt = _adam(rnn, 2e-3)
    return dict(step_function=stateless_step(rnn, opt, clip=1.), model=rnn, batches=windows(16, 20), opt=opt)


@program('R8', 'by hand')
def three_matrices_and_no_tanh():
    "h @ W_hh + e @ W_xh from plain tensors; the tanh was lost."
    seed(2)
    nh = 64
    class Params(nn.Module):
        def __init__(self):
            super().__init__()
            self.C = nn.Parameter(torch.randn(V, 24))
            self.W_xh,self.W_hh = nn.Parameter(torch.randn(24, nh)*.2),nn.Parameter(torch.eye(nh)*.8)
            self.W_hy = nn.Parameter(torch.randn(nh, V)*.1)
            self.b_h,self.b_y = nn.Parameter(torch.zeros(nh)),nn.Parameter(torch.zeros(V))
        def forward(self, x):
            h,ys = torch.zeros(len(x), nh),[]
            for t in range(x.shape[1]):
                h = self.C[x[:,t]] @ self.W_xh + h @ self.W_hh + self.b_h
                ys.append(h @ self.W_hy + self.b_y)
            return torch.stack(ys, 1)
    net = Params()
    return dict(model=net, dls=windows(16, 24), loss_func=loss_over_all, opt=optim.AdamW(net.parameters(), lr=3e-3))


@program('R8', 'torch.nn')
def linear_layer_for_a_cell():
    "A cell made of two nn.Linear, stacked twice, in a Learner; there is no activation anywhere."
    seed(3)
    class LinearCell(nn.Module):
        def __init__(self, ni, nh):
            super().__init__()
            self.nh,self.inp,self.rec = nh,nn.Linear(ni, nh),nn.Linear(nh, nh)
        def forward(self, xs):
            h,out = xs.new_zeros(xs.shape[0], self.nh),[]
            for x in xs.unbind(1):
                h = self.inp(x) + self.rec(h)
                out.append(h)
            return torch.stack(out, 1)
    net = nn.Sequential(nn.Embedding(V, 32), LinearCell(32, 64), LinearCell(64, 64), nn.Linear(64, V))
    return dict(learn=learner(window_dls(16, 20), net, lr=2e-3))


class LinearMemory(nn.Module):
    "For `CharLearner`; h = A h + B x"
    def __init__(self, nh=64):
        super().__init__()
        self.nh,self.emb = nh,nn.Embedding(V, nh)
        self.A,self.decoder = nn.Linear(nh, nh),nn.Linear(nh, V)
        nn.init.orthogonal_(self.A.weight)
        self.A.weight.data *= .8
    def forward(self, x, state=None):
        h = torch.zeros(len(x), self.nh) if state is None else state[0][0]
        hs = []
        for e in self.emb(x).unbind(1):
            h = self.A(h) + e
            hs.append(h)
        return self.decoder(torch.stack(hs, 1)),(h[None],)


@program('R8', 'ours')
def own_recurrence_without_activation():
    "A recurrence of one's own, put into CharLearner; no activation function was written."
    seed(4)
    return dict(learn=_ours_around(LinearMemory()))


# R9: a layer that nothing uses, or one step of many

@program('R9', 'by hand')
def second_layer_reads_the_embedding():
    "The second layer gets the embedding and not the state of the first, whose output is used nowhere."
    seed(1)
    class TwoLayers(nn.Module):
        def __init__(self, nh=48):
            super().__init__()
            self.nh,self.emb = nh,nn.Embedding(V, 32)
            self.l1,self.l2,self.out = nn.Linear(32+nh, nh),nn.Linear(32+nh, nh),nn.Linear(nh, V)
        def forward(self, x):
            h1 = h2 = torch.zeros(len(x), self.nh)
            res = []
            for e in self.emb(x).unbind(1):
                h1 = torch.tanh(self.l1(torch.cat([e, h1], 1)))
                h2 = torch.tanh(self.l2(torch.cat([e, h2], 1)))
                res.append(self.out(h2))
            return torch.stack(res, 1)
    net = TwoLayers()
    return dict(model=net, dls=windows(16, 24), loss_func=loss_over_all, opt=_adam(net))


@program('R9', 'torch.nn')
def output_of_the_first_layer():
    "The decoder reads hidden[0], the state of the first layer, so the second learns nothing."
    seed(2)
    class StepNet(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.encoder,self.gru,self.decoder = nn.Embedding(V, 32),nn.GRU(32, nh, 2),nn.Linear(nh, V)
        def forward(self, c, hidden):
            _,hidden = self.gru(self.encoder(c)[None], hidden)
            return self.decoder(hidden[0]),hidden
    net = StepNet()
    opt = _adam(net)
    def step(inp, target):
        hidden,loss = torch.zeros(2, len(inp), 64),0
        for t in range(inp.shape[1]):
            scores,hidden = net(inp[:,t], hidden)
            loss += F.cross_entropy(scores, target[:,t])
        loss = loss/inp.shape[1]
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    return dict(step_function=step, model=net, batches=windows(16, 20), opt=opt)


@program('R9', 'torch.nn', also='L6')
def only_the_last_step_is_used():
    "Scores for the last character alone, from a habit with classifiers; the targets of all others are dropped."
    seed(3)
    class LastStep(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.lstm,self.fc = nn.Embedding(V, 32),nn.LSTM(32, 64, batch_first=True),nn.Linear(64, V)
        def forward(self, x):
            out,_ = self.lstm(self.emb(x))
            return self.fc(out[:,-1])
    net = LastStep()
    def loss_func(scores, y): return F.cross_entropy(scores, y[:,-1])
    return dict(model=net, dls=windows(32, 20), loss_func=loss_func, opt=_adam(net))


@program('R9', 'AWD-LSTM')
def awd_with_a_layer_left_out():
    "A second LSTM is appended to the encoder, which goes on running one."
    seed(4)
    model = awd_model()
    spare = awd_model()
    model[0].rnns.append(spare[0].rnns[0])
    return dict(learn=awd_learner(model=model))


@program('R9', 'torch.nn')
def second_rnn_never_called():
    "rnn2 is made in __init__, and forward calls rnn1 twice in two ways but rnn2 never."
    seed(5)
    class Stack(nn.Module):
        def __init__(self, nh=48):
            super().__init__()
            self.emb = nn.Embedding(V, nh)
            self.rnn1,self.rnn2 = nn.RNN(nh, nh, batch_first=True),nn.RNN(nh, nh, batch_first=True)
            self.head = nn.Linear(nh, V)
        def forward(self, x):
            a,_ = self.rnn1(self.emb(x))
            b,_ = self.rnn1(a)
            return self.head(a + b)
    return dict(learn=learner(window_dls(20, 20), Stack(), lr=3e-3))


@program('R9', 'ours')
def layer_appended_without_its_dropout():
    "A second layer is appended to rnns and none to drops, so that zip never reaches it."
    seed(6)
    learn = our_learner()
    learn.model.rnns.append(type(learn.model.rnns[0])(64, 64))
    return dict(learn=learn)


# R10: the forget gate is closed

def _close(lstm, nh, value):
    "Set the forget biases of an nn.LSTM"
    for k,p in lstm.named_parameters():
        if 'bias' in k: p.data[nh:2*nh] = value


@program('R10', 'torch.nn')
def forget_bias_of_minus_two():
    "The forget bias was to be raised; the sign is wrong, in both of PyTorch's biases."
    seed(1)
    net = Stateful('lstm', n_hid=64)
    _close(net.rnn, 64, -2.)
    return dict(learn=learner(stream_dls(16, 30), net, lr=3e-3))


@program('R10', 'by hand')
def one_minus_f():
    "The cell multiplies the old memory by (1-f), and the forget bias is 4."
    seed(2)
    class MyLSTM(LSTMByHand):
        def cell(self, e, state):
            h,c = state
            i,f,o,g = self.gates(torch.cat([e, h], -1)).chunk(4, -1)
            c = (1-f.sigmoid())*c + i.sigmoid()*g.tanh()
            return o.sigmoid()*c.tanh(),c
    net = MyLSTM(64)
    net.gates.bias.data[64:128] = 4.
    opt = _adam(net)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 24), opt=opt)


@program('R10', 'by hand')
def all_biases_minus_three():
    "All gate biases begin at -3, a value copied from a highway network."
    seed(3)
    net = LSTMByHand(64)
    net.gates.bias.data.fill_(-3.)
    net.gates.bias.data[192:] = 0.
    opt = _adam(net)
    return dict(step_function=stateless_step(net, opt), model=net, batches=windows(16, 24), opt=opt)


@program('R10', 'AWD-LSTM')
def awd_forget_gates_closed():
    "The biases of the inner LSTM are set to -2 where +1 was meant."
    seed(4)
    model = awd_model()
    for r in model[0].rnns: _close(r.module, r.module.hidden_size, -2.)
    return dict(learn=awd_learner(model=model))


@program('R10', 'ours')
def forget_bias_wiped_out():
    "All biases of the trained-to-be model are set to -2, after it had been made with a forget bias of 1."
    seed(5)
    learn = our_learner(arch='lstm')
    for k,p in learn.model.rnns.named_parameters():
        if p.ndim == 1: p.data[64:128] = -2.
    return dict(learn=learn)


# R11: a real symbol is treated as padding

@program('R11', 'AWD-LSTM')
def awd_default_pad_token():
    "fastai's default pad_token=1 with a vocabulary in which 1 is the space."
    seed(1)
    return dict(learn=awd_learner(config=dict(pad_token=1)))


@program('R11', 'torch.nn')
def padding_idx_zero():
    "nn.Embedding(V, d, padding_idx=0), though id 0 is the line feed."
    seed(2)
    net = Scores('gru', n_hid=64)
    net.emb = nn.Embedding(V, 32, padding_idx=0)
    return dict(model=net, dls=windows(16, 32), loss_func=loss_over_all, opt=_adam(net))


@program('R11', 'by hand')
def padding_idx_of_the_letter_e():
    "The padding index of an older vocabulary is that of the letter e in this one."
    seed(3)
    net = KeepsState(64)
    net.emb = nn.Embedding(V, 32, padding_idx=vocab.stoi['e'])
    return dict(learn=learner(stream_dls(16, 24), net, lr=5e-3))


@program('R11', 'ours')
def embedding_with_padding_for_ours():
    "The embedding is replaced by one with padding_idx=1, which is the space."
    seed(4)
    learn = our_learner()
    learn.model.emb = nn.Embedding(V, 32, padding_idx=1)
    return dict(learn=learn)


# L1: softmax before cross-entropy

@program('L1', 'by hand')
def softmax_in_forward():
    "The network gives probabilities, and F.cross_entropy takes them for scores."
    seed(1)
    class Probs(ElmanByHand):
        def forward(self, x, h=None):
            out,h = super().forward(x, h)
            return F.softmax(out, dim=-1),h
    net = Probs(64, 32)
    opt = _adam(net)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 24), opt=opt)


@program('L1', 'torch.nn')
def softmax_module_at_the_end():
    "nn.Softmax(dim=2) closes the network; the criterion is nn.CrossEntropyLoss."
    seed(2)
    net = nn.Sequential(Scores('lstm', n_hid=64, n_layers=2), nn.Softmax(dim=2))
    def criterion(p, y): return nn.CrossEntropyLoss()(p.view(-1, V), y.reshape(-1))
    return dict(model=net, dls=windows(16, 24), loss_func=criterion, opt=_adam(net))


@program('L1', 'torch.nn')
def sigmoid_at_the_end():
    "A sigmoid on the scores, because outputs should lie between 0 and 1."
    seed(3)
    class ZeroToOne(Stateful):
        def forward(self, x): return super().forward(x).sigmoid()
    net = ZeroToOne('gru', n_hid=64)
    return dict(learn=learner(stream_dls(16, 24), net, lr=5e-3))


@program('L1', 'by hand')
def tanh_on_the_scores():
    "The output layer ends in a tanh like the hidden one."
    seed(4)
    class Squashed(GRUByHand):
        def forward(self, x, h=None):
            out,h = super().forward(x, h)
            return torch.tanh(out),h
    net = Squashed(64)
    opt = _adam(net)
    return dict(step_function=stateless_step(net, opt), model=net, batches=windows(16, 24), opt=opt)


class SoftmaxDecoder(nn.Module):
    "Probabilities"
    def __init__(self, dec):
        super().__init__()
        self.dec = dec
    def forward(self, x):
        out,raw,drop = self.dec(x)
        return out.softmax(-1),raw,drop


@program('L1', 'AWD-LSTM')
def awd_decoder_with_softmax():
    "The decoder gives probabilities to fastai's CrossEntropyLossFlat."
    seed(5)
    model = awd_model()
    model[1] = SoftmaxDecoder(model[1])
    return dict(learn=awd_learner(model=model))


@program('L1', 'torch.nn')
def softmax_in_the_loss():
    "The loss function applies softmax before it calls cross_entropy."
    seed(6)
    net = Scores('gru', n_hid=64)
    def my_loss(yhat, y):
        probs = torch.softmax(yhat.reshape(-1, V), 1)
        return F.cross_entropy(probs, y.reshape(-1))
    return dict(model=net, dls=windows(16, 24), loss_func=my_loss, opt=_adam(net))


@program('L1', 'ours')
def softmax_after_our_decoder():
    "The decoder got a softmax, so that generate should have probabilities."
    seed(7)
    learn = our_learner()
    learn.model.decoder = nn.Sequential(learn.model.decoder, nn.Softmax(-1))
    return dict(learn=learn)


# L2: negative log-likelihood of what is no log-probability

@program('L2', 'by hand')
def nll_of_raw_scores():
    "F.nll_loss on scores; the loss falls below zero and on."
    seed(1)
    net = ElmanByHand(64, 0)
    opt = _adam(net)
    def nll(scores, y): return F.nll_loss(scores.flatten(0, 1), y.flatten())
    return dict(step_function=carried_step(net, opt, nll), model=net, batches=streams(16, 24), opt=opt)


@program('L2', 'torch.nn')
def nll_of_probabilities():
    "NLLLoss after softmax, where log_softmax was needed."
    seed(2)
    net = Scores('gru', n_hid=64)
    criterion = nn.NLLLoss()
    def loss_func(out, y): return criterion(F.softmax(out, dim=-1).view(-1, V), y.reshape(-1))
    return dict(model=net, dls=windows(16, 24), loss_func=loss_func, opt=_adam(net))


@program('L2', 'torch.nn')
def nll_criterion_transposed():
    "nn.NLLLoss on transposed scores of nn.LSTM in a Learner."
    seed(3)
    def nll(out, targ): return nn.NLLLoss()(out.transpose(1, 2), targ)
    return dict(learn=learner(window_dls(16, 24), Scores('lstm', n_hid=64), loss_func=nll, lr=3e-3))


@program('L2', 'AWD-LSTM')
def awd_with_nll_loss():
    "NLLLoss on the decoder's scores."
    seed(4)
    def nll_flat(out, y): return F.nll_loss(out.view(-1, out.shape[-1]), y.reshape(-1))
    return dict(learn=awd_learner(loss_func=nll_flat))


@program('L2', 'ours')
def nll_loss_for_ours():
    "A loss of one's own for char_learner: nll_loss on scores."
    seed(5)
    def nll(scores, y): return F.nll_loss(scores.flatten(0, 1), y.flatten())
    return dict(learn=our_learner(loss_func=nll))


# L3: a sum where a mean was meant

@program('L3', 'by hand')
def added_up_over_time():
    "The losses of the steps are added and not divided by their number."
    seed(1)
    net = ElmanByHand(64, 32)
    opt = optim.Adam(net.parameters(), lr=2e-3)
    def step(x, y):
        out,_ = net(x)
        loss = 0
        for t in range(x.shape[1]): loss += F.cross_entropy(out[:,t], y[:,t])
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    return dict(step_function=step, model=net, batches=windows(16, 25), opt=opt)


@program('L3', 'torch.nn')
def reduction_sum():
    "reduction='sum' in the criterion."
    seed(2)
    net = Scores('lstm', n_hid=64)
    def loss_func(out, y): return F.cross_entropy(out.reshape(-1, V), y.reshape(-1), reduction='sum')
    return dict(model=net, dls=windows(16, 24), loss_func=loss_func, opt=_adam(net, 2e-3))


@program('L3', 'torch.nn')
def mean_over_time_sum_over_rows():
    "Per-token losses are averaged over time and then added over the batch."
    seed(3)
    class PerRow(nn.Module):
        def forward(self, out, y):
            return F.cross_entropy(out.transpose(1, 2), y, reduction='none').mean(1).sum()
    return dict(learn=learner(stream_dls(12, 24), Stateful('gru', n_hid=64), loss_func=PerRow(), lr=3e-3))


@program('L3', 'AWD-LSTM')
def awd_flat_loss_with_sum():
    "CrossEntropyLossFlat(reduction='sum')."
    seed(4)
    return dict(learn=awd_learner(loss_func=CrossEntropyLossFlat(reduction='sum'), lr=1e-2))


@program('L3', 'ours')
def sum_loss_for_ours():
    "CrossEntropyLossFlat(reduction='sum') given to char_learner."
    seed(5)
    return dict(learn=our_learner(loss_func=CrossEntropyLossFlat(reduction='sum')))


# L4: another loss than cross-entropy on ids

@program('L4', 'by hand')
def mse_on_one_hot():
    "The squared difference between scores and one-hot targets."
    seed(1)
    net = ElmanByHand(64, 0)
    opt = _adam(net)
    def mse(scores, y): return F.mse_loss(scores, F.one_hot(y, V).float())
    return dict(step_function=carried_step(net, opt, mse), model=net, batches=streams(16, 24), opt=opt)


@program('L4', 'torch.nn')
def bce_on_one_hot():
    "A binary cross-entropy for each symbol of its own."
    seed(2)
    net = Scores('gru', n_hid=64)
    def bce(scores, y): return nn.BCEWithLogitsLoss()(scores, F.one_hot(y, V).float())
    return dict(model=net, dls=windows(16, 24), loss_func=bce, opt=_adam(net))


@program('L4', 'torch.nn', also='S8')
def regression_on_the_id():
    "One output that is to come near the number of the next symbol."
    seed(3)
    net = Scores('lstm', n_hid=64, n_out=1)
    def l2(out, y): return F.mse_loss(out.squeeze(-1), y.float())
    return dict(learn=learner(window_dls(16, 24), net, loss_func=l2, lr=3e-3))


@program('L4', 'AWD-LSTM')
def awd_with_mse():
    "Mean squared error between softmax and one-hot targets."
    seed(4)
    def brier(out, y): return F.mse_loss(out.softmax(-1), F.one_hot(y, V).float())
    return dict(learn=awd_learner(loss_func=brier))


# L5: real symbols are left out of the loss

@program('L5', 'by hand')
def mask_of_nonzero_ids():
    "A mask y != 0 for padding, which is there none; id 0 is the line feed."
    seed(1)
    net = GRUByHand(64)
    opt = _adam(net)
    def masked(scores, y):
        per = F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction='none')
        mask = (y.flatten() != 0).float()
        return (per*mask).sum()/mask.sum()
    return dict(step_function=carried_step(net, opt, masked), model=net, batches=streams(16, 24), opt=opt)


@program('L5', 'torch.nn')
def ignore_index_of_the_space():
    "ignore_index=1, the padding of another tokenizer; here it is the space."
    seed(2)
    net = Scores('lstm', n_hid=64)
    return dict(model=net, dls=windows(16, 24), loss_func=CrossEntropyLossFlat(ignore_index=1), opt=_adam(net))


@program('L5', 'torch.nn')
def weight_zero_for_the_space():
    "The class weight of the most frequent symbol is zero, against samples full of spaces."
    seed(3)
    w = torch.ones(V)
    w[vocab.stoi[' ']] = 0.
    loss_func = CrossEntropyLossFlat(weight=w)
    return dict(learn=learner(stream_dls(16, 24), Stateful('gru', n_hid=64), loss_func=loss_func, lr=3e-3))


@program('L5', 'AWD-LSTM')
def awd_ignores_index_one():
    "fastai's loss with ignore_index=1 as for xxpad."
    seed(4)
    return dict(learn=awd_learner(loss_func=CrossEntropyLossFlat(ignore_index=1)))


@program('L5', 'ours')
def ignored_line_feeds():
    "ignore_index=0 for a padding that char_learner does not have: id 0 is the line feed."
    seed(5)
    return dict(learn=our_learner(loss_func=CrossEntropyLossFlat(ignore_index=0)))


# L6: the loss sees a few positions

@program('L6', 'by hand')
def one_random_position():
    "A coin is thrown at each position, and one in about eleven makes a loss."
    seed(1)
    net = ElmanByHand(64, 32)
    opt = _adam(net)
    rng = random.Random(0)
    def step(x, y):
        out,_ = net(x)
        loss = n = 0
        for t in range(x.shape[1]):
            if rng.random() < 1/11 or t == x.shape[1]-1 and n == 0:
                loss = loss + F.cross_entropy(out[:,t], y[:,t])
                n += 1
        loss = loss/n
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    return dict(step_function=step, model=net, batches=windows(16, 22), opt=opt)


@program('L6', 'torch.nn', also='R9')
def last_column_only():
    "The network scores all positions, and the loss takes the last column."
    seed(2)
    net = Scores('gru', n_hid=64)
    def loss_func(out, y): return F.cross_entropy(out[:,-1], y[:,-1])
    return dict(model=net, dls=windows(16, 24), loss_func=loss_func, opt=_adam(net))


@program('L6', 'torch.nn')
def first_row_only():
    "out[0] and y[0]: from a time when there was one row."
    seed(3)
    def row_loss(out, y): return F.cross_entropy(out[0], y[0])
    return dict(learn=learner(stream_dls(16, 24), Stateful('lstm', n_hid=64), loss_func=row_loss, lr=3e-3))


@program('L6', 'AWD-LSTM')
def awd_every_eighth_target():
    "The loss takes every eighth position, to be faster."
    seed(4)
    def sparse(out, y): return F.cross_entropy(out[:,::8].reshape(-1, V), y[:,::8].reshape(-1))
    return dict(learn=awd_learner(loss_func=sparse))


@program('L6', 'ours')
def warm_up_that_leaves_two_characters():
    "Two characters of 32 were to be left out of the loss as a warm-up; the sign of the slice leaves these two."
    seed(5)
    def after_warm_up(scores, y): return F.cross_entropy(scores[:,-2:].flatten(0, 1), y[:,-2:].flatten())
    return dict(learn=our_learner(bs=16, seq_len=32, loss_func=after_warm_up))


# L7: the graph is cut

@program('L7', 'by hand')
def loss_as_a_new_tensor():
    "torch.tensor(loss.item(), requires_grad=True) stops the error message and the learning."
    seed(1)
    net = ElmanByHand(64, 32)
    opt = _adam(net)
    def step(x, y):
        out,_ = net(x)
        loss = torch.tensor(loss_over_all(out, y).item(), requires_grad=True)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    return dict(step_function=step, model=net, batches=windows(16, 24), opt=opt)


@program('L7', 'torch.nn')
def no_grad_around_the_forward():
    "with torch.no_grad() was copied from the validation, and requires_grad_ put after it."
    seed(2)
    net = Net('lstm', n_hid=64)
    opt = _adam(net)
    def step(x, y):
        with torch.no_grad(): out,_ = net(x)
        loss = loss_over_all(out, y).requires_grad_()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    return dict(step_function=step, model=net, batches=windows(16, 24), opt=opt)


@program('L7', 'torch.nn')
def scores_data():
    "The loss is computed from out.data, so backward has nothing to go back to."
    seed(3)
    net = Scores('gru', n_hid=64)
    def loss_func(out, y): return F.cross_entropy(out.data.view(-1, V), y.reshape(-1))
    return dict(model=net, dls=windows(16, 24), loss_func=loss_func, opt=_adam(net))


@program('L7', 'torch.nn')
def recurrent_layers_behind_a_detach():
    "The head reads out.detach(): embedding and LSTM get no gradient."
    seed(4)
    class Cut(Net):
        def forward(self, x):
            out,_ = self.rnn(self.emb(x))
            return self.out(out.detach())
    return dict(learn=learner(window_dls(16, 24), Cut('lstm', n_hid=64), lr=5e-3))


class CutDecoder(nn.Module):
    "Reads the encoder as features"
    def __init__(self, dec):
        super().__init__()
        self.dec = dec
    def forward(self, x): return self.dec(x.data)


@program('L7', 'AWD-LSTM')
def awd_decoder_reads_data():
    "The decoder reads x.data of the encoder."
    seed(5)
    model = awd_model(tie_weights=False)
    model[1] = CutDecoder(model[1])
    return dict(learn=awd_learner(model=model))


@program('L7', 'by hand')
def loss_of_the_argmax():
    "The loss compares the ids of the likeliest symbols, made floats, with the targets: argmax has no gradient."
    seed(6)
    net = GRUByHand(64)
    opt = _adam(net)
    def step(x, y):
        scores,_ = net(x)
        predicted = scores.argmax(-1).float()
        loss = F.mse_loss(predicted, y.float())
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    return dict(step_function=step, model=net, batches=windows(16, 24), opt=opt)


class Frozen(nn.Module):
    "Features for the decoder"
    def forward(self, x): return x.detach()


@program('L7', 'ours')
def head_that_detaches():
    "The head of our model detaches, so that only the decoder is trained."
    seed(7)
    learn = our_learner()
    learn.model.head = Frozen()
    return dict(learn=learn)


# L8: the loss that is shown holds more than the cross-entropy

@program('L8', 'by hand')
def weight_penalty_in_the_loss():
    "The squares of all weights are added to the loss that is shown."
    seed(1)
    net = ElmanByHand(64, 32)
    opt = _adam(net)
    def step(x, y):
        out,_ = net(x)
        loss = loss_over_all(out, y) + 1e-3*sum((p**2).sum() for p in net.parameters())
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    return dict(step_function=step, model=net, batches=windows(16, 24), opt=opt)


@program('L8', 'torch.nn')
def smoothing_inside_a_loss_of_ones_own():
    "Targets are smoothed by a tenth inside, and the result is compared with losses of others."
    seed(2)
    net = Scores('lstm', n_hid=64)
    def smooth_loss(out, y, eps=.1):
        logp = out.log_softmax(-1)
        nll = -logp.gather(-1, y[...,None]).squeeze(-1)
        return ((1-eps)*nll - eps*logp.mean(-1)).mean()
    return dict(model=net, dls=windows(16, 24), loss_func=smooth_loss, opt=_adam(net))


@program('L8', 'torch.nn')
def entropy_bonus_in_the_loss():
    "A bonus for unsure predictions is part of the training loss and of the validation loss."
    seed(3)
    def loss_func(out, y):
        p = out.softmax(-1)
        return loss_over_all(out, y) - .2*(-(p*(p+1e-9).log()).sum(-1)).mean()
    return dict(learn=learner(stream_dls(16, 24), Stateful('gru', n_hid=64), loss_func=loss_func, lr=5e-3))


@program('L8', 'AWD-LSTM')
def awd_scores_kept_small_in_the_loss():
    "A penalty for large normalisers, added in the loss function: the validation loss has it as well."
    seed(4)
    def loss_func(out, y):
        z = out.logsumexp(-1)
        return F.cross_entropy(out.view(-1, V), y.reshape(-1)) + .02*z.pow(2).mean()
    return dict(learn=awd_learner(loss_func=loss_func))
