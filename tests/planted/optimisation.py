"""Programs with faults of the optimiser (O1 to O13) and of initialisation and capacity (I1 to I7)"""
import torch
import torch.nn.functional as F
from fastai.basics import Callback, DataLoaders, SGD as FastSGD
from fastai.callback.core import CancelBatchException
from fastai.callback.training import GradientAccumulation
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR

from . import program
from .parts import (Batches, ElmanByHand, GRUByHand, KeepsState, Net, Scores, V, adam, awd_learner, carried_step,
                    detached, fitted, in_parts, in_steps, learner, lm_dls, loss_over_all, our_learner, seed,
                    stateless_step, streams, train, update, window_dls, windows)

SGD,AdamW = torch.optim.SGD,torch.optim.AdamW


# O1: the learning rate is too high

@program('O1', seed=1)
def adam_at_a_third():
    "Adam at 0.3"
    model = Scores('gru')
    return in_parts(model, windows(), adam(model, 0.3))


@program('O1', 'by hand', seed=4)
def weights_moved_too_far():
    "Gradient descent by hand with a rate of 30, clipped or not"
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


@program('O1', 'AWD-LSTM', seed=5)
def awd_at_a_half():
    "A rate of 0.5, read off the wrong side of the curve of lr_find"
    return dict(learn=awd_learner(lr=0.5))


# O2: the learning rate is too low

@program('O2', seed=6)
def sgd_at_a_thousandth():
    "Adam's usual rate, but with plain gradient descent"
    model = Scores('lstm')
    return in_parts(model, windows(), SGD(model.parameters(), lr=1e-3))


@program('O2', 'by hand', seed=8)
def tutorial_rate():
    "lr 5e-6, as one fine-tunes a large network"
    model = KeepsState()
    return in_parts(model, streams(16, 20), adam(model, 5e-6))


@program('O2', 'ours')
def ours_far_too_slow():
    "lr=1e-6"
    return dict(learn=our_learner(16, 24, lr=1e-6))


# O3: nothing holds exploding gradients

class _ReluRNN(Scores):
    "nn.RNN with ReLU, its recurrent matrix larger than suits it"
    def __init__(self, gain):
        super().__init__('rnn')
        self.rnn = nn.RNN(32, 64, nonlinearity='relu', batch_first=True)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


@program('O3', also='O1 O4', seed=10)
def relu_rnn_never_clipped():
    "A ReLU network over 64 steps with plain gradient descent and no clipping"
    return fitted(learner(window_dls(16, 64, 60), _ReluRNN(1.05), lr=0.3, opt_func=FastSGD), 3)


@program('O3', also='O1 O4', seed=11)
def product_over_fifty_steps():
    "Fifty steps of ReLU: the fourth gradient is a hundred thousand; clipped to 0.5, the same program learns"
    model = _ReluRNN(1.2)
    return in_steps(stateless_step, model, windows(16, 50), SGD(model.parameters(), lr=0.2))


# O4: NaN or Inf

@program('O4', 'by hand', seed=12)
def divides_by_the_length_of_zero():
    "Each state is divided by its length, the first one too: 0/0"
    class UnitState(ElmanByHand):
        def cell(self, e, h):
            h = h/h.norm(dim=1, keepdim=True)
            return super().cell(e, h)
        def forward(self, x): return super().forward(x)[0]
    model = UnitState(48, 24)
    return in_parts(model, windows(16, 20), adam(model, 3e-3))


@program('O4', seed=15)
def a_batch_without_targets():
    "One batch in twenty consists of padding; the mean of no losses is not a number"
    batches = windows(16, 24, 60)
    batches[17] = batches[17][0],torch.full_like(batches[17][1], -100)
    return fitted(learner(DataLoaders(Batches(batches), Batches(windows(16, 24, 4))), Scores('gru', n_hid=48), lr=4e-3))


# O5: the optimiser is made again

@program('O5', seed=17)
def adam_made_in_the_loop():
    "The optimiser is built in the training function"
    model = Scores('gru')
    def train_batch(x, y):
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        return update(optimizer, loss_over_all(model(x), y))
    return dict(step_function=train_batch, model=model, batches=windows(16, 24))


# O6: gradients are never emptied

@program('O6', seed=21)
def no_zero_grad():
    "backward, step, and on"
    model = Net('lstm')
    opt = adam(model, 3e-3)
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


@program('O6', 'by hand', seed=22)
def descent_that_keeps_gradients():
    "p -= lr*p.grad, as in the tutorial, without the line after it"
    model = ElmanByHand()
    def step(x, y):
        loss = loss_over_all(model(x)[0], y)
        loss.backward()
        for p in model.parameters(): p.data.add_(p.grad, alpha=-0.1)
        return loss.item()
    return dict(step_function=step, model=model, batches=windows(16, 16))


class _LeavesEarly(Callback):
    "Logs the norm of the weights after a step and leaves the batch there, before the gradients are emptied"
    norms = []
    def after_step(self):
        self.norms = [p.norm().item() for p in self.model.parameters()]
        raise CancelBatchException


@program('O6', 'AWD-LSTM', seed=24)
def awd_whose_batches_end_early():
    "CancelBatchException after the step skips zero_grad"
    return dict(learn=awd_learner(cbs=[_LeavesEarly()]))


# O7: the optimiser has other parameters than the model

@program('O7', seed=25)
def decoder_changed_afterwards():
    "The head is replaced for a larger vocabulary after the optimiser was made"
    model = Scores('lstm', n_out=80)
    opt = adam(model, 4e-3)
    model.out = nn.Linear(64, V)
    return in_parts(model, windows(16, 24), opt)


class _CellsInAList(nn.Module):
    "Layers in a plain list: they are no part of the module"
    def __init__(self, n_hid=56, n_layers=2):
        super().__init__()
        self.emb,self.out = nn.Embedding(V, n_hid),nn.Linear(n_hid, V)
        self.cells = [nn.GRUCell(n_hid, n_hid) for _ in range(n_layers)]
    def forward(self, x):
        hs,res = [None]*len(self.cells),[]
        for o in self.emb(x).unbind(1):
            for i,cell in enumerate(self.cells): hs[i] = o = cell(o, hs[i])
            res.append(self.out(o))
        return torch.stack(res, 1)


@program('O7', 'by hand', seed=27)
def layers_in_a_plain_list():
    "A list in place of nn.ModuleList, so model.parameters() lacks the recurrent layers"
    model = _CellsInAList()
    return in_parts(model, windows(16, 20), adam(model, 4e-3))


@program('O7', 'ours')
def our_embedding_made_anew():
    "The embedding is replaced after create_opt"
    learn = our_learner()
    learn.create_opt()
    seed(30)
    learn.model.emb = nn.Embedding(*learn.model.emb.weight.shape)
    return dict(learn=learn)


# O8: layers are frozen

@program('O8', seed=31)
def embedding_left_frozen():
    "from_pretrained freezes by default, and the vectors are random"
    model = Scores('lstm')
    model.emb = nn.Embedding.from_pretrained(torch.randn(V, 32)*0.1)
    return in_parts(model, windows(16, 24), adam(model, 4e-3))


@program('O8', seed=32)
def rate_zero_for_the_body():
    "A group of parameters has lr 0, left from a first phase of training"
    net = Net('gru')
    groups = [dict(params=[*net.emb.parameters(), *net.rnn.parameters()], lr=0.), dict(params=net.out.parameters())]
    return in_steps(carried_step, net, streams(16, 20), torch.optim.Adam(groups, lr=5e-3))


@program('O8', 'ours')
def ours_half_frozen():
    "The recurrent layer takes no gradient"
    learn = our_learner(arch='gru')
    for p in learn.model.rnns.parameters(): p.requires_grad = False
    return dict(learn=learn)


# O9: things in the wrong order

@program('O9', seed=35)
def step_before_backward():
    "zero_grad, step, backward"
    model = Scores('gru')
    opt = adam(model, 3e-3)
    def step(x, y):
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        opt.step()
        loss.backward()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program('O9', seed=38)
def schedule_before_the_step():
    "scheduler.step() comes before optimizer.step(), so the first rate of the list is never used"
    model = Scores('gru')
    opt = adam(model, 8e-3)
    sched = ExponentialLR(opt, 0.999)
    def step(x, y):
        opt.zero_grad()
        loss = loss_over_all(model(x), y)
        loss.backward()
        sched.step()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program('O9', 'by hand', seed=39)
def clipped_after_the_step():
    "The gradient is clipped when the step is done already"
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


# O10: the schedule

@program('O10', seed=41)
def warm_up_by_whole_numbers():
    "step//warmup is 0 for the first thousand steps"
    model = Scores('lstm')
    opt = adam(model)
    sched = LambdaLR(opt, lambda i: min(1, i//1000))
    def step(x, y):
        loss = update(opt, loss_over_all(model(x), y))
        sched.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


class _EndlessWarmUp(Callback):
    "The rate rises by a millionth of its value a step"
    def before_batch(self):
        if self.training: self.learn.opt.set_hyper('lr', 5e-3*(self.train_iter+1)/1_000_000)


@program('O10', also='O2', seed=45)
def warm_up_without_end():
    "The warm-up of a large network, a million steps long, in a run of some hundred"
    return fitted(learner(window_dls(16, 20, 60), Scores('gru', n_hid=48), cbs=_EndlessWarmUp()), 3)


# O11: accumulation

@program('O11', seed=46)
def accumulated_but_not_divided():
    "Sixteen batches are summed up for one step of SGD, none is divided"
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


@program('O11', 'AWD-LSTM', seed=49)
def awd_accumulates_a_million():
    "GradientAccumulation counts rows, and is given a number of characters: an epoch has fewer than it waits for"
    return dict(learn=awd_learner(lm_dls(16, 32, 20_000), cbs=[GradientAccumulation(16*32*64*100)]))


# O12: half precision

@program('O12', seed=50)
def scale_without_a_bound():
    "The scale begins at 2**120 and may not fall, so each step is skipped"
    model = Scores('gru')
    opt = adam(model, 3e-3)
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


@program('O12', 'by hand', also='O4', seed=51)
def all_in_half():
    "model.half() and Adam: its eps is 0 in float16, so 0/0"
    class Half(ElmanByHand):
        def forward(self, x): return super().forward(x, torch.zeros(x.shape[0], self.n_hid, dtype=torch.float16))[0]
    model = Half(n_hid=48).half()
    return in_parts(model, windows(16, 16), torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False))


# O13: weight decay

@program('O13', seed=54)
def adamw_decays_all():
    "weight_decay=20 on everything: each step takes a tenth of every weight"
    model = Scores('lstm')
    return in_parts(model, windows(16, 24), AdamW(model.parameters(), lr=5e-3, weight_decay=20.))


@program('O13', seed=56)
def learner_with_decay_of_ten():
    "wd=10"
    return fitted(learner(window_dls(16, 20, 60), Scores('gru'), lr=5e-3, wd=10.), 4)


# I1: the start is too large

@program('I1', 'by hand', seed=60)
def randn_everywhere():
    "torch.randn for all matrices, without a scale"
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
    return in_parts(model, windows(16, 20), adam(model, 2e-3))


@program('I1', 'ours')
def our_decoder_times_fifty():
    "The decoder's weights are multiplied"
    learn = our_learner()
    with torch.no_grad(): learn.model.decoder.weight.mul_(150)
    return dict(learn=learn)


# I2: the start is zero, or the same everywhere

@program('I2', 'by hand', seed=63)
def all_zeros():
    "Every matrix is zero: no gradient reaches the recurrence"
    model = ElmanByHand(n_emb=0)
    for p in model.parameters(): nn.init.zeros_(p)
    return in_steps(stateless_step, model, windows(16, 20), SGD(model.parameters(), lr=0.5))


@program('I2', seed=64)
def constant_everywhere():
    "nn.init.constant_ for all weights: every unit is every other"
    model = Scores('lstm')
    for p in model.rnn.parameters(): nn.init.constant_(p, 0.1)
    nn.init.constant_(model.out.weight, 0.1)
    return in_parts(model, windows(16, 24), adam(model, 4e-3))


# I3: saturated units

@program('I3', 'by hand', seed=67)
def ids_times_a_hundred():
    "The embedding is multiplied by 100: tanh is 1 or -1 and has no slope"
    model = ElmanByHand()
    model.emb.weight.data.mul_(100)
    return in_steps(stateless_step, model, windows(16, 20), adam(model, 2e-3))


@program('I3', also='O1', seed=69)
def driven_into_saturation():
    "A rate that drives the units of nn.RNN to their ends"
    return fitted(learner(window_dls(16, 24, 60), Scores('rnn'), lr=0.2), 2)


# I4: dead units

class _ReluHead(Scores):
    "A recurrent layer, and a layer of ReLU before the scores"
    def __init__(self, cell, n, bias=None):
        super().__init__(cell, n_hid=n)
        self.hidden = nn.Linear(n, n)
        if bias: nn.init.constant_(self.hidden.bias, bias)
    def forward(self, x): return self.out(F.relu(self.hidden(self.rnn(self.emb(x))[0])))


@program('I4', seed=71)
def relu_head_with_a_low_bias():
    "A ReLU layer whose bias is -5: none of its units ever fires"
    model = _ReluHead('lstm', 64, bias=-5.)
    return in_parts(model, windows(16, 24), adam(model, 2e-3))


@program('I4', also='O1', seed=73)
def relu_killed_by_the_rate():
    "A rate that throws all units of a ReLU layer below zero in the first steps"
    return fitted(learner(window_dls(16, 24, 60), _ReluHead('gru', 48), lr=0.5), 2)


# I5: gradients that vanish or explode from layer to layer

@program('I5', seed=74)
def ten_layers_of_sigmoid():
    "Nothing of the gradient is left at the embedding"
    class SigmoidTower(Scores):
        def __init__(self, n=48):
            super().__init__('gru', n_hid=n)
            self.tower = nn.Sequential(*[o for _ in range(10) for o in (nn.Linear(n, n), nn.Sigmoid())])
        def forward(self, x): return self.out(self.tower(self.rnn(self.emb(x))[0]))
    model = SigmoidTower()
    return in_parts(model, windows(16, 20), SGD(model.parameters(), lr=0.5, momentum=0.9))


# I6: too small

@program('I6', seed=77)
def two_units():
    "n_hid=2"
    model = Scores('lstm', n_hid=2, n_emb=8)
    return in_parts(model, windows(32, 20), adam(model, 1e-2))


@program('I6', 'ours')
def our_two_units():
    "char_learner with n_hid=2"
    return dict(learn=our_learner(n_hid=2, emb_sz=4))


# I7: too much dropout

@program('I7', seed=80)
def nine_tenths_dropped():
    "Dropout of 0.95 after the embedding and after the GRU"
    class Dropped(Scores):
        def __init__(self):
            super().__init__('gru')
            self.drop = nn.Dropout(0.95)
        def forward(self, x): return self.out(self.drop(self.rnn(self.drop(self.emb(x)))[0]))
    model,batches = Dropped(),windows(16, 20)
    opt = adam(model)
    train(stateless_step(model, opt), batches, 150)
    return in_parts(model, batches, opt)


@program('I7', 'ours')
def our_dropout_of_nine_tenths():
    "dropout=0.95 and emb_drop=0.8"
    learn = our_learner(16, 20, dropout=0.95, emb_drop=0.8)
    learn.fit_steps(100)
    return dict(learn=learn)
