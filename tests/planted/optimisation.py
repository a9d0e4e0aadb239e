"""Programs with faults of the optimiser (O1 to O13) and of initialisation and capacity (I1 to I7)"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_
from fastai.basics import Callback, SGD as FastSGD
from fastai.callback.core import CancelBatchException
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.callback.training import GradientAccumulation
from fastai.text.models.awdlstm import awd_lstm_lm_split
from . import program
from .parts import (V, Batches, DataLoaders, ElmanByHand, GRUByHand, KeepsState, LSTMByHand, Net, Scores,
                    awd_learner, awd_model, carried_step, detached, learner, lm_dls, loss_over_all, our_learner, seed,
                    stateless_step, streams, train, vocab, window_dls,
                    windows)

Adam,SGD = torch.optim.Adam,torch.optim.SGD


def _parts(model, dls, opt, loss_func=loss_over_all): return dict(model=model, dls=dls, loss_func=loss_func, opt=opt)


# O1: the learning rate is too high

@program('O1')
def adam_at_a_third():
    "Adam at 0.3"
    seed(1)
    model = Scores('gru', n_hid=64)
    return _parts(model, windows(16, 32), Adam(model.parameters(), lr=0.3))


@program('O1')
def two_layers_at_one():
    "A rate of 1, which was meant for plain gradient descent, with Adam"
    seed(2)
    net = Net('lstm', n_hid=48, n_layers=2)
    opt = Adam(net.parameters(), lr=1.)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 24), opt=opt)


@program('O1', 'by hand')
def elman_at_a_tenth():
    "0.1 was taken from a tutorial on SGD, but the optimiser is Adam"
    seed(3)
    rnn = ElmanByHand(n_hid=80, n_emb=0)
    optimizer = Adam(rnn.parameters(), lr=0.1)
    return dict(step_function=stateless_step(rnn, optimizer), model=rnn, batches=windows(24, 25), opt=optimizer)


@program('O1', 'by hand')
def weights_moved_too_far():
    "Gradient descent by hand with a rate of 30, clipped or not"
    seed(4)
    model = GRUByHand(n_hid=48)
    rate = 30.
    def train_on(inputs, targets):
        out,_ = model(inputs)
        loss = F.cross_entropy(out.reshape(-1, V), targets.reshape(-1))
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters(): p.sub_(rate*p.grad)
        return loss
    return dict(step_function=train_on, model=model, batches=windows(16, 20))


@program('O1', 'AWD-LSTM')
def awd_at_a_half():
    "A rate of 0.5, read off the wrong side of the curve of lr_find"
    seed(5)
    return dict(learn=awd_learner(lr=0.5))


@program('O1', 'ours')
def ours_at_two():
    "Adam's usual rate times a thousand"
    return dict(learn=our_learner(lr=2.))


# O2: the learning rate is too low

@program('O2')
def sgd_at_a_thousandth():
    "Adam's usual rate, but with plain gradient descent"
    seed(6)
    model = Scores('lstm', n_hid=64)
    return _parts(model, windows(16, 32), SGD(model.parameters(), lr=1e-3))


@program('O2')
def adam_at_a_millionth():
    "A slip in the exponent"
    seed(7)
    model = Net('gru', n_hid=64, n_layers=2)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-6)
    return dict(step_function=carried_step(model, opt, clip=1.), model=model, batches=streams(16, 24), opt=opt)


@program('O2', 'by hand')
def tutorial_rate():
    "lr 5e-6, as one fine-tunes a large network"
    seed(8)
    model = KeepsState(n_hid=64)
    return _parts(model, streams(16, 20), Adam(model.parameters(), lr=5e-6))


@program('O2', 'AWD-LSTM')
def awd_at_a_millionth():
    "The rate of the last layers in fine-tuning, for a network that begins from nothing"
    seed(9)
    return dict(learn=awd_learner(lr=1e-6))


@program('O2', 'ours')
def ours_far_too_slow():
    "lr=1e-6"
    return dict(learn=our_learner(16, 24, lr=1e-6))


# O3: nothing holds exploding gradients

class _ReluRNN(nn.Module):
    "nn.RNN with ReLU, its recurrent matrix larger than suits it"
    def __init__(self, gain=1.2, n_hid=64):
        super().__init__()
        self.emb,self.out = nn.Embedding(V, 32),nn.Linear(n_hid, V)
        self.rnn = nn.RNN(32, n_hid, nonlinearity='relu', batch_first=True)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


@program('O3', also='O1 O4')
def relu_rnn_never_clipped():
    "A ReLU network over 64 steps with plain gradient descent and no clipping"
    seed(10)
    learn = learner(window_dls(16, 64, 60), _ReluRNN(1.05), lr=0.3, opt_func=FastSGD)
    def watch(learn, cbs): learn.fit(3, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('O3', also='O1 O4')
def product_over_fifty_steps():
    "Fifty steps of ReLU: the fourth gradient is a hundred thousand; clipped to 0.5, the same program learns"
    seed(11)
    model = _ReluRNN(1.2)
    opt = SGD(model.parameters(), lr=0.2)
    return dict(step_function=stateless_step(model, opt), model=model, batches=windows(16, 50), opt=opt)


# O4: numbers that are none

class _UnitState(nn.Module):
    "Divides each state by its length, the first one too, which is zero"
    def __init__(self, n_hid=48):
        super().__init__()
        self.n_hid,self.emb,self.i2h,self.h2h = n_hid,nn.Embedding(V, 24),nn.Linear(24, n_hid),nn.Linear(n_hid, n_hid)
        self.out = nn.Linear(n_hid, V)
    def forward(self, x):
        h,res = torch.zeros(len(x), self.n_hid),[]
        for e in self.emb(x).unbind(1):
            h = h/h.norm(dim=1, keepdim=True)
            h = torch.tanh(self.i2h(e) + self.h2h(h))
            res.append(self.out(h))
        return torch.stack(res, 1)


@program('O4', 'by hand')
def divides_by_the_length_of_zero():
    "0/0 at the first step"
    seed(12)
    model = _UnitState()
    return _parts(model, windows(16, 20), Adam(model.parameters(), lr=3e-3))


class _OwnNorm(nn.Module):
    "A layer norm by hand: the root of a variance that is zero has no slope"
    def forward(self, x):
        sd = ((x - x.mean(-1, keepdim=True))**2).mean(-1, keepdim=True).sqrt()
        return (x - x.mean(-1, keepdim=True))/(sd + 1e-5)


@program('O4')
def root_of_zero_variance():
    "The normalised embedding of one symbol is all the same number: forward is fine, backward is not"
    seed(13)
    class Normed(Scores):
        def __init__(self):
            super().__init__('gru', n_hid=56)
            self.norm = _OwnNorm()
            with torch.no_grad(): self.emb.weight[1] = 0.
        def forward(self, x): return self.out(self.rnn(self.norm(self.emb(x)))[0])
    model = Normed()
    opt = Adam(model.parameters(), lr=2e-3)
    return dict(step_function=stateless_step(model, opt, clip=1.), model=model, batches=windows(16, 24), opt=opt)


@program('O4')
def log_of_a_softmax():
    "log(softmax(x)) by hand on scores so large that a probability is exactly zero"
    seed(14)
    model = Scores('lstm', n_hid=64)
    with torch.no_grad(): model.out.bias.add_(torch.linspace(0, 120, V))
    def nll(scores, y):
        p = scores.exp()/scores.exp().sum(-1, keepdim=True)
        return -p.log().gather(-1, y[...,None]).mean()
    return _parts(model, windows(16, 24), Adam(model.parameters(), lr=2e-3), nll)


@program('O4')
def a_batch_without_targets():
    "One batch in twenty consists of padding; the mean of no losses is not a number"
    seed(15)
    batches = windows(16, 24, 60)
    batches[17] = batches[17][0],torch.full_like(batches[17][1], -100)
    dls = DataLoaders(Batches(batches), Batches(windows(16, 24, 4)))
    def watch(learn, cbs): learn.fit(1, cbs=cbs)
    return dict(learn=learner(dls, Scores('gru', n_hid=48), lr=4e-3), watch=watch)


@program('O4', 'AWD-LSTM')
def awd_with_a_vector_of_no_length():
    "Vectors for the letters are divided by their lengths, and that of 'q' was never filled in"
    seed(16)
    model = awd_model(tie_weights=False)
    vectors = torch.randn(model[0].encoder.weight.shape)
    vectors[vocab.stoi['q']] = 0.
    with torch.no_grad(): model[0].encoder.weight.copy_(vectors/vectors.norm(dim=1, keepdim=True)*0.1)
    return dict(learn=awd_learner(model=model))


# O5: the optimiser is made anew

@program('O5')
def adam_made_in_the_loop():
    "The optimiser is built in the training function"
    seed(17)
    model = Scores('gru')
    def train_batch(x, y):
        optimizer = Adam(model.parameters(), lr=3e-3)
        optimizer.zero_grad()
        loss = loss_over_all(model(x), y)
        loss.backward()
        optimizer.step()
        return loss
    return dict(step_function=train_batch, model=model, batches=windows(16, 24))


@program('O5', 'by hand')
def rebuilt_at_each_decay():
    "The rate is lowered by making a new RMSprop, every other step"
    seed(18)
    net = LSTMByHand(n_hid=48)
    now = dict(opt=torch.optim.RMSprop(net.parameters(), lr=2e-3), lr=2e-3, i=0)
    def step(x, y):
        now['i'] += 1
        if now['i'] % 2 == 0:
            now['lr'] *= 0.999
            now['opt'] = torch.optim.RMSprop(net.parameters(), lr=now['lr'])
        loss = loss_over_all(net(x)[0], y)
        now['opt'].zero_grad()
        loss.backward()
        now['opt'].step()
        return loss
    return dict(step_function=step, model=net, batches=windows(16, 20))


class _NewOptimiser(Callback):
    "Makes the optimiser anew before each batch, to set a rate"
    def before_batch(self):
        if self.training: self.learn.create_opt()


@program('O5')
def learner_with_a_new_optimiser_each_batch():
    "A callback calls create_opt to change the rate"
    seed(19)
    return dict(learn=learner(window_dls(16, 24), Scores('gru'), lr=3e-3, cbs=_NewOptimiser()))


# O6: gradients are never emptied

@program('O6')
def no_zero_grad():
    "backward, step, and on"
    seed(21)
    model = Net('lstm', n_hid=64)
    opt = Adam(model.parameters(), lr=3e-3)
    state = [None]
    def step(x, y):
        out,s = model(x, state[0])
        state[0] = detached(s)
        loss = loss_over_all(out, y)
        loss.backward()
        clip_grad_norm_(model.parameters(), 5.)
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=streams(16, 24), opt=opt)


@program('O6', 'by hand')
def descent_that_keeps_gradients():
    "p -= lr*p.grad, as in the tutorial, without the line after it"
    seed(22)
    model = ElmanByHand(n_hid=64)
    def step(x, y):
        loss = loss_over_all(model(x)[0], y)
        loss.backward()
        for p in model.parameters(): p.data.add_(p.grad, alpha=-0.1)
        return loss.item()
    return dict(step_function=step, model=model, batches=windows(16, 16))


@program('O6')
def empties_the_other_network():
    "zero_grad of an encoder that is not part of this network"
    seed(23)
    encoder,model = Scores('gru', n_hid=16),Scores('gru', n_hid=64)
    enc_opt,opt = SGD(encoder.parameters(), lr=0.1),SGD(model.parameters(), lr=0.5)
    def step(x, y):
        enc_opt.zero_grad()
        loss = loss_over_all(model(x), y)
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


class _LeavesEarly(Callback):
    "Logs the norm of the weights after a step and leaves the batch there, before the gradients are emptied"
    norms = []
    def after_step(self):
        self.norms = [p.norm().item() for p in self.model.parameters()]
        raise CancelBatchException


@program('O6', 'AWD-LSTM')
def awd_whose_batches_end_early():
    "CancelBatchException after the step skips zero_grad"
    seed(24)
    return dict(learn=awd_learner(cbs=[_LeavesEarly()]))


# O7: the optimiser has other parameters than the model

@program('O7')
def decoder_changed_afterwards():
    "The head is replaced for a larger vocabulary after the optimiser was made"
    seed(25)
    model = Scores('lstm', n_hid=64, n_out=80)
    opt = Adam(model.parameters(), lr=4e-3)
    model.out = nn.Linear(64, V)
    return _parts(model, windows(16, 24), opt)


@program('O7')
def only_the_rnn_is_trained():
    "The optimiser is given the parameters of model.rnn"
    seed(26)
    net = Net('gru', n_hid=72)
    optimizer = Adam(net.rnn.parameters(), lr=5e-3)
    return dict(step_function=carried_step(net, optimizer), model=net, batches=streams(16, 24), opt=optimizer)


class _CellsInAList(nn.Module):
    "Layers in a plain list: they are no part of the module"
    def __init__(self, n_hid=56, n_layers=2):
        super().__init__()
        self.emb,self.out = nn.Embedding(V, n_hid),nn.Linear(n_hid, V)
        self.cells = [nn.GRUCell(n_hid, n_hid) for _ in range(n_layers)]
    def forward(self, x):
        hs,res = [None]*len(self.cells),[]
        for t in range(x.shape[1]):
            o = self.emb(x[:,t])
            for i,cell in enumerate(self.cells): hs[i] = o = cell(o, hs[i])
            res.append(self.out(o))
        return torch.stack(res, 1)


@program('O7', 'by hand')
def layers_in_a_plain_list():
    "A list in place of nn.ModuleList, so model.parameters() lacks the recurrent layers"
    seed(27)
    model = _CellsInAList()
    return _parts(model, windows(16, 20), Adam(model.parameters(), lr=4e-3))


@program('O7', 'by hand')
def recurrence_as_plain_tensor():
    "The recurrent matrix asks for gradients but is no parameter"
    seed(28)
    class Plain(nn.Module):
        def __init__(self, n=64):
            super().__init__()
            self.emb,self.out = nn.Embedding(V, n),nn.Linear(n, V)
            self.W = torch.randn(n, n, requires_grad=True)
        def forward(self, x):
            h,res = torch.zeros(len(x), self.W.shape[0]),[]
            for e in self.emb(x).unbind(1):
                h = torch.tanh(e + h @ self.W*0.05)
                res.append(self.out(h))
            return torch.stack(res, 1)
    model = Plain()
    opt = Adam(model.parameters(), lr=3e-3)
    return dict(step_function=stateless_step(model, opt), model=model, batches=windows(16, 20), opt=opt)


@program('O7', 'AWD-LSTM')
def awd_splitter_forgets_the_decoder():
    "A splitter that names the encoder's layers only; the decoder is not tied"
    seed(29)
    def splitter(model): return [list(model[0].parameters())]
    return dict(learn=awd_learner(config=dict(tie_weights=False), splitter=splitter))


@program('O7', 'ours')
def our_embedding_made_anew():
    "The embedding is replaced after create_opt"
    learn = our_learner()
    learn.create_opt()
    seed(30)
    learn.model.emb = nn.Embedding(*learn.model.emb.weight.shape)
    return dict(learn=learn)


# O8: layers are frozen

@program('O8')
def embedding_left_frozen():
    "from_pretrained freezes by default, and the vectors are random"
    seed(31)
    model = Scores('lstm', n_hid=64)
    model.emb = nn.Embedding.from_pretrained(torch.randn(V, 32)*0.1)
    return _parts(model, windows(16, 24), Adam(model.parameters(), lr=4e-3))


@program('O8')
def rate_zero_for_the_body():
    "A group of parameters has lr 0, left from a first phase of training"
    seed(32)
    net = Net('gru', n_hid=64)
    groups = [dict(params=[*net.emb.parameters(), *net.rnn.parameters()], lr=0.), dict(params=net.out.parameters())]
    opt = Adam(groups, lr=5e-3)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 20), opt=opt)


@program('O8', 'by hand')
def recurrence_frozen():
    "requires_grad of the recurrent layer was switched off for an experiment"
    seed(33)
    model = ElmanByHand(n_hid=64)
    for p in model.h2h.parameters(): p.requires_grad_(False)
    for p in model.i2h.parameters(): p.requires_grad_(False)
    opt = Adam([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    return dict(step_function=stateless_step(model, opt), model=model, batches=windows(16, 20), opt=opt)


@program('O8', 'AWD-LSTM')
def awd_frozen():
    "freeze() as for fine-tuning, but nothing was loaded"
    seed(34)
    learn = awd_learner(splitter=awd_lstm_lm_split, config=dict(tie_weights=False))
    learn.freeze()
    return dict(learn=learn)


@program('O8', 'ours')
def ours_half_frozen():
    "The recurrent layer takes no gradient"
    learn = our_learner(arch='gru')
    for p in learn.model.rnns.parameters(): p.requires_grad = False
    return dict(learn=learn)


# O9: things in the wrong order

@program('O9')
def step_before_backward():
    "zero_grad, step, backward"
    seed(35)
    model = Scores('gru')
    opt = Adam(model.parameters(), lr=3e-3)
    def step(x, y):
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        opt.step()
        loss.backward()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program('O9', 'by hand')
def emptied_between_backward_and_step():
    "loss.backward(); opt.zero_grad(); opt.step()"
    seed(36)
    rnn = LSTMByHand(n_hid=56)
    opt = SGD(rnn.parameters(), lr=0.5, momentum=0.9)
    def step(x, y):
        loss = loss_over_all(rnn(x)[0], y)
        loss.backward()
        opt.zero_grad()
        opt.step()
        return loss
    return dict(step_function=step, model=rnn, batches=windows(16, 20), opt=opt)


@program('O9')
def backward_twice():
    "Once for the log of gradients and once for the step"
    seed(37)
    model = Net('gru', n_hid=64)
    opt = SGD(model.parameters(), lr=0.5)
    state = [None]
    def step(x, y):
        out,h = model(x, state[0])
        state[0] = h.detach()
        loss = loss_over_all(out, y)
        opt.zero_grad()
        loss.backward(retain_graph=True)
        norm = sum(p.grad.norm()**2 for p in model.parameters())**0.5
        loss.backward()
        if norm > 100: print('large gradient')
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=streams(16, 24), opt=opt)


@program('O9')
def schedule_before_the_step():
    "scheduler.step() comes before optimizer.step(), so the first rate of the list is never used"
    seed(38)
    model = Scores('gru')
    opt = Adam(model.parameters(), lr=8e-3)
    sched = torch.optim.lr_scheduler.ExponentialLR(opt, 0.999)
    def step(x, y):
        opt.zero_grad()
        loss = loss_over_all(model(x), y)
        loss.backward()
        sched.step()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program('O9', 'by hand')
def clipped_after_the_step():
    "The gradient is clipped when the step is done already"
    seed(39)
    model = GRUByHand(n_hid=56)
    opt = SGD(model.parameters(), lr=1.)
    def step(x, y):
        loss = loss_over_all(model(x)[0], y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        clip_grad_norm_(model.parameters(), 0.5)
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 20), opt=opt)


class _BackwardAgain(Callback):
    "Looks at a gradient with a backward pass of its own"
    def before_backward(self): self.learn.loss_grad.backward(retain_graph=True)


@program('O9', 'AWD-LSTM')
def awd_with_a_second_backward():
    "A callback calls backward as well"
    seed(40)
    return dict(learn=awd_learner(cbs=[_BackwardAgain()], opt_func=FastSGD, lr=1.))


# O10: the schedule

@program('O10')
def warm_up_by_whole_numbers():
    "step//warmup is 0 for the first thousand steps"
    seed(41)
    model = Scores('lstm')
    opt = Adam(model.parameters(), lr=5e-3)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min(1, i//1000))
    def step(x, y):
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program('O10', 'by hand')
def decay_each_batch():
    "StepLR(1, 0.5) was meant for epochs and is stepped for batches: after forty of them the rate is nothing"
    seed(42)
    model = ElmanByHand(n_hid=64)
    opt = Adam(model.parameters(), lr=5e-3)
    sched = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    def step(x, y):
        loss = loss_over_all(model(x)[0], y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 20), opt=opt)


@program('O10')
def schedule_has_ended():
    "The cosine was made for the 50 batches of one epoch; this is the second"
    seed(43)
    model = Net('gru', n_hid=48, n_emb=24)
    opt = Adam(model.parameters(), lr=5e-3)
    total = 50
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: max(0., 1-i/total))
    state = [None]
    def step(x, y):
        out,h = model(x, state[0])
        state[0] = h.detach()
        loss = loss_over_all(out, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        return loss
    batches = streams(16, 20)
    train(step, batches, 55)
    return dict(step_function=step, model=model, batches=batches, opt=opt)


@program('O10', 'AWD-LSTM')
def awd_schedule_from_zero():
    "Start and end of the cosine are exchanged and both are as good as nothing"
    seed(44)
    learn = awd_learner(lm_dls(16, 24, 12_000))
    def watch(learn, cbs): learn.fit(2, cbs=[ParamScheduler({'lr':SchedCos(1e-9, 0.)}), *cbs])
    return dict(learn=learn, watch=watch)


class _EndlessWarmUp(Callback):
    "The rate rises by a millionth of its value a step"
    def before_batch(self):
        if self.training: self.learn.opt.set_hyper('lr', 5e-3*(self.train_iter+1)/1_000_000)


@program('O10', also='O2')
def warm_up_without_end():
    "The warm-up of a large network, a million steps long, in a run of some hundred"
    seed(45)
    learn = learner(window_dls(16, 20, 60), Scores('gru', n_hid=48), cbs=_EndlessWarmUp())
    def watch(learn, cbs): learn.fit(3, cbs=cbs)
    return dict(learn=learn, watch=watch)


# O11: accumulation

@program('O11')
def accumulated_but_not_divided():
    "Sixteen batches are summed up for one step of SGD, none is divided"
    seed(46)
    model = Scores('gru')
    opt = SGD(model.parameters(), lr=1.)
    count = [0]
    def step(x, y):
        loss = loss_over_all(model(x), y)
        loss.backward()
        count[0] += 1
        if count[0] % 16 == 0:
            opt.step()
            opt.zero_grad()
        return loss
    return dict(step_function=step, model=model, batches=windows(8, 24, 80), opt=opt)


@program('O11')
def zeroed_at_each_piece():
    "A batch is trained on in four pieces for one step, and gradients are set to zero at each piece"
    seed(411)
    model = Scores('gru', n_hid=48)
    opt = Adam(model.parameters(), lr=3e-3)
    def step(x, y):
        for xs,ys in zip(x.chunk(4), y.chunk(4)):
            opt.zero_grad()
            loss = loss_over_all(model(xs), ys)
            (loss/4).backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24, 40), opt=opt)


@program('O11', 'by hand')
def counter_begins_anew():
    "The counter is set to 0 in each call, so the step never comes"
    seed(47)
    model = LSTMByHand(n_hid=48)
    opt = Adam(model.parameters(), lr=4e-3)
    accumulate = 4
    def step(x, y):
        i = 0
        loss = loss_over_all(model(x)[0], y)/accumulate
        loss.backward()
        if (i+1) % accumulate == 0:
            opt.step()
            opt.zero_grad()
        i += 1
        return loss*accumulate
    return dict(step_function=step, model=model, batches=windows(16, 20), opt=opt)


@program('O11')
def learner_accumulates_for_ever():
    "GradientAccumulation counts samples, and an epoch has fewer than it waits for"
    seed(48)
    learn = learner(window_dls(16, 20, 40), Scores('gru', n_hid=48), lr=5e-3, cbs=GradientAccumulation(1_000_000))
    return dict(learn=learn)


@program('O11', 'AWD-LSTM')
def awd_accumulates_a_million():
    "The same with the number of characters in place of the number of rows"
    seed(49)
    return dict(learn=awd_learner(lm_dls(16, 32, 20_000), cbs=[GradientAccumulation(16*32*64*100)]))


# O12: half precision

@program('O12')
def scale_without_a_bound():
    "The scale begins at 2**120 and may not fall, so each step is skipped"
    seed(50)
    model = Scores('gru')
    opt = Adam(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.**120, backoff_factor=0.999)
    def step(x, y):
        with torch.autocast('cpu', dtype=torch.float16): scores = model(x)
        loss = loss_over_all(scores.float(), y)
        opt.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 20), opt=opt)


@program('O12', 'by hand', also='O4')
def all_in_half():
    "model.half() and Adam: its eps is 0 in float16, so 0/0"
    seed(51)
    class Half(ElmanByHand):
        def forward(self, x): return super().forward(x, torch.zeros(x.shape[0], self.n_hid, dtype=torch.float16))[0]
    model = Half(n_hid=48).half()
    opt = Adam(model.parameters(), lr=1e-3, foreach=False)
    return _parts(model, windows(16, 16), opt)


@program('O12', 'by hand', also='L3')
def sum_overflows_in_half():
    "A fixed scale of 32 beside the scaler's, on a sum in float16: more than 65504, so each step is skipped"
    seed(52)
    model = ElmanByHand(n_hid=48)
    opt = Adam(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.**16, growth_interval=2000)
    def step(x, y):
        with torch.autocast('cpu', dtype=torch.float16): scores,_ = model(x)
        loss = -scores.log_softmax(-1).half().gather(-1, y[...,None]).sum()*32
        opt.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        return loss
    return dict(step_function=step, model=model, batches=windows(64, 20), opt=opt)


class _HalfHead(nn.Module):
    "Sums over the state in float16 overflow after a while"
    def __init__(self, n_hid=48):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 32),nn.GRU(32, n_hid, batch_first=True),nn.Linear(n_hid, V)
    def forward(self, x):
        h = self.rnn(self.emb(x))[0]
        return self.out((h.half()*30000).cumsum(1).float()/30000)


@program('O12', also='O4')
def running_sum_in_half():
    "A running sum in float16 leaves its range"
    seed(53)
    learn = learner(window_dls(16, 32, 40), _HalfHead(), lr=4e-3)
    def watch(learn, cbs): learn.fit(1, cbs=cbs)
    return dict(learn=learn, watch=watch)


# O13: weight decay

@program('O13')
def adamw_decays_all():
    "weight_decay=20 on everything: each step takes a tenth of every weight"
    seed(54)
    model = Scores('lstm')
    return _parts(model, windows(16, 24), torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=20.))


@program('O13', 'by hand')
def decay_in_the_gradient():
    "Adam with weight_decay=1, which belongs to the gradient there and outweighs it"
    seed(55)
    model = LSTMByHand(n_hid=56)
    opt = Adam(model.parameters(), lr=4e-3, weight_decay=1.)
    return dict(step_function=stateless_step(model, opt), model=model, batches=windows(16, 20), opt=opt)


@program('O13')
def learner_with_decay_of_ten():
    "wd=10"
    seed(56)
    learn = learner(window_dls(16, 20, 60), Scores('gru', n_hid=64), lr=5e-3, wd=10.)
    def watch(learn, cbs): learn.fit(4, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('O13', 'AWD-LSTM')
def awd_decays():
    "wd=12 at 1e-2: a weight is gone after some twenty steps"
    seed(57)
    learn = awd_learner(lm_dls(16, 24, 12_000), lr=1e-2, wd=12.)
    def watch(learn, cbs): learn.fit(4, cbs=cbs)
    return dict(learn=learn, watch=watch)


# I1: the start is too large

@program('I1', 'by hand')
def randn_everywhere():
    "torch.randn for all matrices, without a scale"
    seed(60)
    class Randn(nn.Module):
        def __init__(self, n=64):
            super().__init__()
            self.Wx,self.Wh = nn.Parameter(torch.randn(V, n)),nn.Parameter(torch.randn(n, n)*n**-0.5)
            self.Wy,self.b = nn.Parameter(torch.randn(n, V)),nn.Parameter(torch.zeros(V))
        def forward(self, x):
            h,ys = torch.zeros(len(x), self.Wh.shape[0]),[]
            for t in range(x.shape[1]):
                h = torch.tanh(self.Wx[x[:,t]] + h @ self.Wh)
                ys.append(h @ self.Wy + self.b)
            return torch.stack(ys, 1)
    model = Randn()
    return _parts(model, windows(16, 20), Adam(model.parameters(), lr=2e-3))


@program('I1')
def tied_to_a_wide_embedding():
    "Tied to an embedding of standard deviation 1: the scores have one of eight"
    seed(61)
    class TiedWide(nn.Module):
        def __init__(self, n=96):
            super().__init__()
            self.emb,self.out = nn.Embedding(V, n),nn.Linear(n, V, bias=False)
            self.rnn,self.scale = nn.LSTM(n, n, 2, batch_first=True),nn.LayerNorm(n)
            self.out.weight = self.emb.weight
        def forward(self, x): return self.out(self.scale(self.rnn(self.emb(x))[0]))
    model = TiedWide()
    return _parts(model, windows(16, 24), Adam(model.parameters(), lr=3e-3))


@program('I1', 'ours')
def our_decoder_times_fifty():
    "The decoder's weights are multiplied"
    learn = our_learner()
    with torch.no_grad(): learn.model.decoder.weight.mul_(150)
    return dict(learn=learn)


@program('I1', 'AWD-LSTM')
def awd_with_normal_weights():
    "Decoder and embedding, one matrix, are drawn from N(0, 3)"
    seed(62)
    model = awd_model()
    nn.init.normal_(model[1].decoder.weight, std=3.)
    return dict(learn=awd_learner(model=model))


# I2: the start is zero, or the same everywhere

@program('I2', 'by hand')
def all_zeros():
    "Every matrix is zero: no gradient reaches the recurrence"
    seed(63)
    model = ElmanByHand(n_hid=64, n_emb=0)
    for p in model.parameters(): nn.init.zeros_(p)
    opt = SGD(model.parameters(), lr=0.5)
    return dict(step_function=stateless_step(model, opt), model=model, batches=windows(16, 20), opt=opt)


@program('I2')
def constant_everywhere():
    "nn.init.constant_ for all weights: every unit is every other"
    seed(64)
    model = Scores('lstm', n_hid=64)
    for p in model.rnn.parameters(): nn.init.constant_(p, 0.1)
    nn.init.constant_(model.out.weight, 0.1)
    return _parts(model, windows(16, 24), Adam(model.parameters(), lr=4e-3))


@program('I2')
def units_that_are_one():
    "Input and recurrent matrices of the GRU are filled with one number, and so is the head"
    seed(65)
    net = Net('gru', n_hid=48, n_layers=2)
    for k,p in net.named_parameters():
        if 'emb' not in k: p.data.fill_(0.01)
    opt = Adam(net.parameters(), lr=4e-3)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 20), opt=opt)


@program('I2', 'AWD-LSTM')
def awd_of_zeros():
    "A loop over all parameters that sets them to 0"
    seed(66)
    model = awd_model()
    for p in model.parameters(): p.data.zero_()
    return dict(learn=awd_learner(model=model))


# I3: saturated units

@program('I3', 'by hand')
def ids_times_a_hundred():
    "The embedding is multiplied by 100: tanh is 1 or -1 and has no slope"
    seed(67)
    class Loud(ElmanByHand):
        def __init__(self):
            super().__init__(n_hid=64)
            self.emb.weight.data.mul_(100)
        def forward(self, x): return super().forward(x)[0]
    model = Loud()
    return _parts(model, windows(16, 20), Adam(model.parameters(), lr=2e-3))


@program('I3')
def recurrence_of_gain_twenty():
    "nn.RNN whose input and recurrent weights are drawn from N(0, 3)"
    seed(68)
    model = Scores('rnn', n_hid=64)
    for p in (model.rnn.weight_ih_l0, model.rnn.weight_hh_l0): nn.init.normal_(p, std=3.)
    return _parts(model, windows(16, 24), Adam(model.parameters(), lr=1e-3))


@program('I3', also='O1')
def driven_into_saturation():
    "A rate that drives the units of nn.RNN to their ends"
    seed(69)
    learn = learner(window_dls(16, 24, 60), Scores('rnn', n_hid=64), lr=0.2)
    def watch(learn, cbs): learn.fit(2, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('I3', 'AWD-LSTM')
def awd_with_gates_shut_or_open():
    "The weights of the gates are multiplied by 300"
    seed(70)
    model = awd_model(tie_weights=False)
    with torch.no_grad():
        for k,p in model[0].rnns.named_parameters(): p.mul_(300)
    return dict(learn=awd_learner(model=model))


# I4: dead units

@program('I4')
def relu_head_with_a_low_bias():
    "A ReLU layer whose bias is -5: none of its units ever fires"
    seed(71)
    class DeadHead(Scores):
        def __init__(self):
            super().__init__('lstm', n_hid=64)
            self.hidden = nn.Linear(64, 64)
            nn.init.constant_(self.hidden.bias, -5.)
        def forward(self, x): return self.out(F.relu(self.hidden(self.rnn(self.emb(x))[0])))
    model = DeadHead()
    return _parts(model, windows(16, 24), Adam(model.parameters(), lr=2e-3))


@program('I4', 'by hand')
def relu_rnn_dead_at_the_start():
    "A ReLU recurrence whose bias is far below zero"
    seed(72)
    class Dead(nn.Module):
        def __init__(self, n=64):
            super().__init__()
            self.emb,self.out = nn.Embedding(V, 32),nn.Linear(n, V)
            self.i2h,self.h2h = nn.Linear(32, n),nn.Linear(n, n)
            nn.init.constant_(self.i2h.bias, -4.)
        def forward(self, x):
            h,res = torch.zeros(x.shape[0], 64),[]
            for t in range(x.shape[1]):
                h = torch.relu(self.i2h(self.emb(x[:,t])) + self.h2h(h))
                res.append(self.out(h))
            return torch.stack(res, 1)
    model = Dead()
    opt = SGD(model.parameters(), lr=0.3)
    return dict(step_function=stateless_step(model, opt), model=model, batches=windows(16, 20), opt=opt)


class _ReluHead(Scores):
    "A GRU and a layer of ReLU before the scores"
    def __init__(self, n=48):
        super().__init__('gru', n_hid=n)
        self.hidden = nn.Linear(n, n)
    def forward(self, x): return self.out(F.relu(self.hidden(self.rnn(self.emb(x))[0])))


@program('I4', also='O1')
def relu_killed_by_the_rate():
    "A rate that throws all units of a ReLU layer below zero in the first steps"
    seed(73)
    learn = learner(window_dls(16, 24, 60), _ReluHead(), lr=0.5)
    def watch(learn, cbs): learn.fit(2, cbs=cbs)
    return dict(learn=learn, watch=watch)


# I5: gradients that vanish or explode from layer to layer

class _SigmoidTower(nn.Module):
    "A GRU, then ten layers of sigmoid"
    def __init__(self, n=48, depth=10):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 32),nn.GRU(32, n, batch_first=True),nn.Linear(n, V)
        self.tower = nn.Sequential(*[o for _ in range(depth) for o in (nn.Linear(n, n), nn.Sigmoid())])
    def forward(self, x): return self.out(self.tower(self.rnn(self.emb(x))[0]))


@program('I5')
def ten_layers_of_sigmoid():
    "Nothing of the gradient is left at the embedding"
    seed(74)
    model = _SigmoidTower()
    return _parts(model, windows(16, 20), SGD(model.parameters(), lr=0.5, momentum=0.9))


@program('I5', 'by hand')
def eight_layers_of_elman():
    "Eight layers stacked, with small weights and no way around"
    seed(75)
    class Deep(nn.Module):
        def __init__(self, n=40, n_layers=8):
            super().__init__()
            self.n,self.emb,self.out = n,nn.Embedding(V, n),nn.Linear(n, V)
            self.ins = nn.ModuleList(nn.Linear(n, n) for _ in range(n_layers))
            self.recs = nn.ModuleList(nn.Linear(n, n) for _ in range(n_layers))
            for o in (*self.ins, *self.recs): nn.init.normal_(o.weight, std=0.05)
        def forward(self, x):
            o = self.emb(x)
            for i2h,h2h in zip(self.ins, self.recs):
                h,res = torch.zeros(len(x), self.n),[]
                for e in o.unbind(1):
                    h = torch.tanh(i2h(e) + h2h(h))
                    res.append(h)
                o = torch.stack(res, 1)
            return self.out(o)
    model = Deep()
    opt = SGD(model.parameters(), lr=0.5)
    return dict(step_function=stateless_step(model, opt), model=model, batches=windows(8, 12), opt=opt)


@program('I5', also='I1 O3')
def tower_that_multiplies():
    "Eight ReLU layers of gain 2.5 before the head: the gradient grows a thousandfold on its way"
    seed(76)
    class Growing(Scores):
        def __init__(self, n=64):
            super().__init__('gru', n_hid=n)
            self.tower = nn.Sequential(*[o for _ in range(8) for o in (nn.Linear(n, n), nn.ReLU())])
            for o in self.tower[::2]: nn.init.normal_(o.weight, std=2.5*(2/n)**0.5)
            with torch.no_grad(): self.out.weight.mul_(1e-3)
        def forward(self, x): return self.out(self.tower(self.rnn(self.emb(x))[0]))
    model = Growing()
    return _parts(model, windows(16, 20), SGD(model.parameters(), lr=0.01))


# I6: too small

@program('I6')
def two_units():
    "n_hid=2"
    seed(77)
    model = Scores('lstm', n_hid=2, n_emb=8)
    return _parts(model, windows(32, 20), Adam(model.parameters(), lr=1e-2))


@program('I6', 'by hand')
def one_number_for_each_letter():
    "An embedding of size 1 and three units"
    seed(78)
    model = ElmanByHand(n_hid=3, n_emb=1)
    opt = Adam(model.parameters(), lr=1e-2)
    return dict(step_function=stateless_step(model, opt), model=model, batches=windows(32, 16), opt=opt)


@program('I6', 'AWD-LSTM')
def awd_through_a_bottleneck():
    "emb_sz=2, which is the size of the last layer as well"
    seed(79)
    return dict(learn=awd_learner(drop_mult=0.02, config=dict(emb_sz=2, n_hid=4)))


@program('I6', 'ours')
def our_two_units():
    "char_learner with n_hid=2"
    return dict(learn=our_learner(n_hid=2, emb_sz=4))


# I7: too much dropout

@program('I7')
def nine_tenths_dropped():
    "Dropout of 0.95 after the embedding and after the GRU"
    seed(80)
    class Dropped(Scores):
        def __init__(self):
            super().__init__('gru', n_hid=64)
            self.drop = nn.Dropout(0.95)
        def forward(self, x): return self.out(self.drop(self.rnn(self.drop(self.emb(x)))[0]))
    model = Dropped()
    opt = Adam(model.parameters(), lr=5e-3)
    batches = windows(16, 20)
    train(stateless_step(model, opt), batches, 150)
    return _parts(model, batches, opt)


@program('I7', 'by hand')
def keeps_where_it_should_drop():
    "The probability to keep, 0.9, is given as the one to drop, at each step of the state"
    seed(81)
    class Keep(nn.Module):
        def __init__(self, n=64, keep_prob=0.9):
            super().__init__()
            self.emb,self.cell,self.out = nn.Embedding(V, 32),nn.GRUCell(32, n),nn.Linear(n, V)
            self.drop = nn.Dropout(keep_prob)
        def forward(self, x):
            h,res = None,[]
            for t in range(x.shape[1]):
                h = self.drop(self.cell(self.emb(x[:,t]), h))
                res.append(self.out(h))
            return torch.stack(res, 1)
    model = Keep()
    opt = Adam(model.parameters(), lr=4e-3)
    step,batches = stateless_step(model, opt),windows(16, 16)
    train(step, batches, 150)
    return dict(step_function=step, model=model, batches=batches, opt=opt)


@program('I7', 'AWD-LSTM')
def awd_drops_its_output():
    "0.95 of the output and 0.8 of the input are dropped, for a small network on a small text"
    seed(82)
    learn = awd_learner(lm_dls(16, 24, 12_000), drop_mult=1., lr=1e-2, config=dict(output_p=0.95, input_p=0.8))
    with learn.no_bar(): learn.fit(2)
    return dict(learn=learn)


@program('I7', 'ours')
def our_dropout_of_nine_tenths():
    "dropout=0.95 and emb_drop=0.8"
    learn = our_learner(16, 20, dropout=0.95, emb_drop=0.8)
    learn.fit_steps(100)
    return dict(learn=learn)
