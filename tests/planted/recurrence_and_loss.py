"""Programs with faults in the recurrence and its state (R1 to R11) and in the loss (L1 to L8)"""

import torch
import torch.nn.functional as F
from fastai.basics import Callback, CrossEntropyLossFlat
from fastai.callback.rnn import RNNCallback
from torch import nn, optim

from . import program
from .parts import (ElmanByHand, GRUByHand, KeepsState, LSTMByHand, Net, Scores, Stateful, V, adam, awd_learner,
                    awd_model, carried_step, fitted, in_parts, in_steps, learner, lm_dls, loss_over_all, our_learner,
                    stateless_step, stream_dls, streams, update, vocab, window_dls, windows)


# R1: detached at every step

@program('R1', 'by hand', seed=1)
def detach_inside_the_time_loop():
    "The hidden state is detached at every step of the loop, so nothing is learned about the step before."
    class RNN(ElmanByHand):
        def cell(self, e, h): return torch.tanh(self.i2h(e) + self.h2h(h.detach()))
    return in_steps(carried_step, RNN(), streams(16, 24))


# R2: never detached

@program('R2', 'by hand', seed=2)
def retain_graph_and_p_data():
    "retain_graph=True silences the error, and updates through p.data let it pass: each step goes back to the first."
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


@program('R2', seed=3)
def kept_lstm_state_with_history():
    "self.hidden is assigned and never detached."
    return dict(learn=learner(stream_dls(16, 24), Undetached('lstm')))


# R3: the result of detach() is thrown away

@program('R3', 'by hand', also='R2', seed=1)
def detach_as_a_statement():
    "hidden.detach() stands alone on its line."
    rnn = ElmanByHand(n_emb=0)
    opt = optim.SGD(rnn.parameters(), lr=.5)
    hidden = torch.zeros(16, 64)
    def train_batch(x, y):
        nonlocal hidden
        output,hidden = rnn(x, hidden)
        loss = update(opt, F.cross_entropy(output.flatten(0, 1), y.flatten()))
        hidden.detach()
        return loss.item()
    return dict(step_function=train_batch, model=rnn, batches=streams(16, 20), opt=opt)


class ForgetsToAssign(Undetached):
    "Detaches, or so it seems"
    def forward(self, x):
        if self.hidden is not None:
            for s in self.hidden: s.detach()
        return super().forward(x)


@program('R3', also='R2', seed=2)
def detaches_in_a_loop_without_assignment():
    "for s in self.hidden: s.detach(), which changes nothing."
    return in_parts(ForgetsToAssign('lstm', n_layers=2), streams(16, 24))


# R4: one state for all rows

@program('R4', 'by hand', seed=1)
def mean_state_for_all_rows():
    "The state is averaged over the batch, so that it fits a batch of any size."
    class Averaging(KeepsState):
        def forward(self, x):
            out = super().forward(x)
            self.h = self.h.mean(0, keepdim=True).expand(len(x), -1)
            return out
    return in_parts(Averaging(), streams(16, 24))


class OneMemory(Callback):
    "The same hidden state for all streams"
    def after_batch(self):
        if self.training: self.learn.carried = tuple(o.mean(1, keepdim=True).expand_as(o) for o in self.learn.carried)


@program('R4', 'ours', seed=6)
def carried_state_averaged_over_streams():
    "A callback replaces the carried state of each stream by the mean of all."
    return dict(learn=our_learner(bs=16, seq_len=16, cbs=[OneMemory()]))


# R5: no memory beyond one character, or beyond the batch

@program('R5', 'by hand', seed=1)
def zeros_inside_the_loop():
    "The hidden state is made again inside the loop over time."
    class Amnesic(ElmanByHand):
        def cell(self, e, h):
            h = torch.zeros(e.shape[0], self.n_hid)
            return super().cell(e, h)
    return in_steps(carried_step, Amnesic(), streams(16, 24))


class DropCarried(Callback):
    "Every batch on its own"
    def before_batch(self): self.learn.carried = None


@program('R5', 'ours', seed=7)
def carried_state_dropped_by_a_callback():
    "A callback throws the carried state away before each batch of 8 characters."
    return dict(learn=our_learner(bs=16, seq_len=8, cbs=[DropCarried()]))


# R6: the state goes where it does not belong

@program('R6', 'by hand', seed=1)
def state_runs_into_validation():
    "The kept state goes from training into validation and back."
    return fitted(learner(stream_dls(16, 24, 40), KeepsState(), lr=5e-3, resets=False), 3)


@program('R6', 'AWD-LSTM', seed=3)
def awd_without_model_resetter():
    "fastai's AWD-LSTM with RNNCallback alone; ModelResetter is missing."
    return fitted(learner(lm_dls(16, 24), awd_model(), lr=2e-2, cbs=[RNNCallback()], resets=False), 3)


# R7: the length of backpropagation does not fit

@program('R7', 'ours', seed=1)
def two_characters_of_backpropagation():
    "seq_len=2: the gradient sees one step of memory."
    return dict(learn=our_learner(bs=16, seq_len=2))


@program('R7', 'by hand', also='I5', seed=3)
def elman_over_two_hundred_steps():
    "An Elman network with small recurrent weights, unrolled over 200 steps in the hope of long memory."
    rnn = ElmanByHand(48, 24)
    nn.init.uniform_(rnn.h2h.weight, -.05, .05)
    return in_steps(stateless_step, rnn, windows(4, 200, 20), adam(rnn, 3e-3))


# R8: no non-linearity in the recurrence

@program('R8', 'by hand', seed=1)
def combined_without_tanh():
    "The RNN of the first tutorials: hidden = i2h(combined), and nothing after it."
    class RNN(nn.Module):
        def __init__(self, input_size, hidden_size, output_size):
            super().__init__()
            self.hidden_size = hidden_size
            self.i2h = nn.Linear(input_size+hidden_size, hidden_size)
            self.h2o = nn.Linear(hidden_size, output_size)
        def forward(self, line):
            hidden,outputs = torch.zeros(line.shape[0], self.hidden_size),[]
            for t in range(line.shape[1]):
                combined = torch.cat((F.one_hot(line[:,t], V).float(), hidden), 1)
                hidden = self.i2h(combined)
                outputs.append(self.h2o(hidden))
            return torch.stack(outputs, 1)
    rnn = RNN(V, 64, V)
    return in_steps(stateless_step, rnn, windows(16, 20), adam(rnn, 2e-3), clip=1.)


# R9: a layer that nothing uses, or one step of many

@program('R9', also='L6', seed=3)
def only_the_last_step_is_used():
    "Scores for the last character alone, from a habit with classifiers; the targets of all others are dropped."
    class LastStep(Scores):
        def forward(self, x): return super().forward(x)[:,-1]
    def loss_func(scores, y): return F.cross_entropy(scores, y[:,-1])
    return in_parts(LastStep('lstm'), windows(32, 20), loss_func=loss_func)


@program('R9', 'AWD-LSTM', seed=4)
def awd_with_a_layer_left_out():
    "A second LSTM is appended to the encoder, which goes on running one."
    model,spare = awd_model(),awd_model()
    model[0].rnns.append(spare[0].rnns[0])
    return dict(learn=awd_learner(model=model))


# R10: the forget gate is closed

def _close(lstm, nh, value):
    "Set the forget biases of an nn.LSTM"
    for k,p in lstm.named_parameters():
        if 'bias' in k: p.data[nh:2*nh] = value


@program('R10', seed=1)
def forget_bias_of_minus_two():
    "The forget bias was to be raised; the sign is wrong, in both of PyTorch's biases."
    net = Stateful('lstm')
    _close(net.rnn, 64, -2.)
    return dict(learn=learner(stream_dls(16, 30), net, lr=3e-3))


@program('R10', 'by hand', seed=2)
def one_minus_f():
    "The cell multiplies the old memory by (1-f), and the forget bias is 4."
    class MyLSTM(LSTMByHand):
        def cell(self, e, state):
            h,c = state
            i,f,o,g = self.gates(torch.cat([e, h], -1)).chunk(4, -1)
            c = (1-f.sigmoid())*c + i.sigmoid()*g.tanh()
            return o.sigmoid()*c.tanh(),c
    net = MyLSTM()
    net.gates.bias.data[64:128] = 4.
    return in_steps(carried_step, net, streams(16, 24))


# R11: a real symbol is treated as padding

@program('R11', 'AWD-LSTM', seed=1)
def awd_default_pad_token():
    "fastai's default pad_token=1 with a vocabulary in which 1 is the space."
    return dict(learn=awd_learner(config=dict(pad_token=1)))


@program('R11', seed=2)
def padding_idx_zero():
    "nn.Embedding(V, d, padding_idx=0), though id 0 is the line feed."
    net = Scores('gru')
    net.emb = nn.Embedding(V, 32, padding_idx=0)
    return in_parts(net, windows())


# L1: softmax before cross-entropy

@program('L1', 'by hand', seed=1)
def softmax_in_forward():
    "The network gives probabilities, and F.cross_entropy takes them for scores."
    class Probs(ElmanByHand):
        def forward(self, x, h=None):
            out,h = super().forward(x, h)
            return F.softmax(out, dim=-1),h
    return in_steps(carried_step, Probs(), streams(16, 24))


@program('L1', seed=3)
def sigmoid_at_the_end():
    "A sigmoid on the scores, because outputs should lie between 0 and 1."
    class ZeroToOne(Stateful):
        def forward(self, x): return super().forward(x).sigmoid()
    return dict(learn=learner(stream_dls(16, 24), ZeroToOne('gru'), lr=5e-3))


@program('L1', 'by hand', seed=4)
def tanh_on_the_scores():
    "The output layer ends in a tanh like the hidden one."
    class Squashed(GRUByHand):
        def forward(self, x, h=None):
            out,h = super().forward(x, h)
            return torch.tanh(out),h
    return in_steps(stateless_step, Squashed(), windows(16, 24))


# L2: negative log-likelihood of what is no log-probability

@program('L2', 'by hand', seed=1)
def nll_of_raw_scores():
    "F.nll_loss on scores; the loss falls below zero and on."
    def nll(scores, y): return F.nll_loss(scores.flatten(0, 1), y.flatten())
    return in_steps(carried_step, ElmanByHand(n_emb=0), streams(16, 24), loss_func=nll)


@program('L2', seed=2)
def nll_of_probabilities():
    "NLLLoss after softmax, where log_softmax was needed."
    criterion = nn.NLLLoss()
    def loss_func(out, y): return criterion(F.softmax(out, dim=-1).view(-1, V), y.reshape(-1))
    return in_parts(Scores('gru'), windows(16, 24), loss_func=loss_func)


# L3: a sum where a mean was meant

@program('L3', 'by hand', seed=1)
def added_up_over_time():
    "The losses of the steps are added and not divided by their number."
    net = ElmanByHand()
    opt = adam(net, 2e-3)
    def step(x, y):
        out,_ = net(x)
        loss = 0
        for t in range(x.shape[1]): loss += F.cross_entropy(out[:,t], y[:,t])
        return update(opt, loss).item()
    return dict(step_function=step, model=net, batches=windows(16, 25), opt=opt)


@program('L3', seed=3)
def mean_over_time_sum_over_rows():
    "Per-token losses are averaged over time and then added over the batch."
    def per_row(out, y): return F.cross_entropy(out.transpose(1, 2), y, reduction='none').mean(1).sum()
    return dict(learn=learner(stream_dls(12, 24), Stateful('gru'), loss_func=per_row, lr=3e-3))


@program('L3', 'AWD-LSTM', seed=4)
def awd_flat_loss_with_sum():
    "CrossEntropyLossFlat(reduction='sum')."
    return dict(learn=awd_learner(loss_func=CrossEntropyLossFlat(reduction='sum'), lr=1e-2))


# L4: another loss than cross-entropy on ids

@program('L4', 'by hand', seed=1)
def mse_on_one_hot():
    "The squared difference between scores and one-hot targets."
    def mse(scores, y): return F.mse_loss(scores, F.one_hot(y, V).float())
    return in_steps(carried_step, ElmanByHand(n_emb=0), streams(16, 24), loss_func=mse)


@program('L4', also='S8', seed=3)
def regression_on_the_id():
    "One output that is to come near the number of the next symbol."
    def l2(out, y): return F.mse_loss(out.squeeze(-1), y.float())
    return dict(learn=learner(window_dls(16, 24), Scores('lstm', n_out=1), loss_func=l2, lr=3e-3))


# L5: real symbols are left out of the loss

@program('L5', 'by hand', seed=1)
def mask_of_nonzero_ids():
    "A mask y != 0 for padding, of which there is none; id 0 is the line feed."
    def masked(scores, y):
        per = F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction='none')
        mask = (y.flatten() != 0).float()
        return (per*mask).sum()/mask.sum()
    return in_steps(carried_step, GRUByHand(), streams(16, 24), loss_func=masked)


@program('L5', seed=3)
def weight_zero_for_the_space():
    "The class weight of the most frequent symbol is zero, against samples full of spaces."
    w = torch.ones(V)
    w[vocab.stoi[' ']] = 0.
    return dict(learn=learner(stream_dls(16, 24), Stateful('gru'), loss_func=CrossEntropyLossFlat(weight=w), lr=3e-3))


@program('L5', 'ours', seed=5)
def ignored_line_feeds():
    "ignore_index=0 for a padding that char_learner does not have: id 0 is the line feed."
    return dict(learn=our_learner(loss_func=CrossEntropyLossFlat(ignore_index=0)))


# L6: the loss sees a few positions


@program('L6', seed=3)
def first_row_only():
    "out[0] and y[0]: from a time when there was one row."
    def row_loss(out, y): return F.cross_entropy(out[0], y[0])
    return dict(learn=learner(stream_dls(16, 24), Stateful('lstm'), loss_func=row_loss, lr=3e-3))


# L7: the graph is cut

@program('L7', 'by hand', seed=1)
def loss_as_a_new_tensor():
    "torch.tensor(loss.item(), requires_grad=True) stops the error message and the learning."
    net = ElmanByHand()
    opt = adam(net)
    def step(x, y):
        out,_ = net(x)
        loss = torch.tensor(loss_over_all(out, y).item(), requires_grad=True)
        return update(opt, loss).item()
    return dict(step_function=step, model=net, batches=windows(16, 24), opt=opt)


@program('L7', seed=4)
def recurrent_layers_behind_a_detach():
    "The head reads out.detach(): embedding and LSTM get no gradient."
    class Cut(Net):
        def forward(self, x):
            out,_ = self.rnn(self.emb(x))
            return self.out(out.detach())
    return dict(learn=learner(window_dls(16, 24), Cut('lstm'), lr=5e-3))


# L8: the loss that is shown holds more than the cross-entropy

@program('L8', 'by hand', seed=1)
def weight_penalty_in_the_loss():
    "The squares of all weights are added to the loss that is shown."
    net = ElmanByHand()
    opt = adam(net)
    def step(x, y):
        out,_ = net(x)
        loss = loss_over_all(out, y) + 1e-3*sum((p**2).sum() for p in net.parameters())
        return update(opt, loss).item()
    return dict(step_function=step, model=net, batches=windows(16, 24), opt=opt)
