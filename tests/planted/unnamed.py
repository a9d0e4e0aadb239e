"""Programs that learn badly for a reason that the catalogue of faults does not have, each with its healthy twin

The fault is in exactly one part: the model, the data, the optimiser or the loop. `UNNAMED` has that part and the
maker of each program by its name; `make(fault=False)` makes the same without the fault.
"""
from functools import wraps

import torch
import torch.nn.functional as F
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders
from torch.optim import Optimizer

from .parts import (Batches, ElmanByHand, GRUByHand, Scores, Stateful, V, adam, carried_step, in_parts, in_steps,
                    learner, loss_over_all, seed, stateless_step, stream_dls, stream_items, streams, update, valid_ids,
                    window_dls, windows)

UNNAMED = {}


def unnamed(part):
    "Enter a function that makes a program whose fault, in `part`, has no name in the catalogue"
    def enter(f):
        @wraps(f)
        def make(fault=True):
            seed()
            return f(fault)
        UNNAMED[f.__name__] = part,make
        return make
    return enter


class DirectionScores(Scores):
    "Scores from a direction for each character, without bias: products, or cosines"
    def __init__(self, cosine):
        super().__init__()
        self.cosine,self.out.bias = cosine,None
    def forward(self, x):
        h,w = self.rnn(self.emb(x))[0],self.out.weight
        return F.linear(F.normalize(h, dim=-1), F.normalize(w, dim=-1)) if self.cosine else F.linear(h, w)


@unnamed('model')
def cosine_head(fault=True):
    "The scores are cosines without a scale: all lie in [-1, 1], and no distribution can be sharp."
    model = DirectionScores(cosine=fault)
    return in_parts(model, window_dls(), adam(model, 1e-2), CrossEntropyLossFlat())


class SoftGRU(GRUByHand):
    "Gates that compete: a softmax over the units"
    def cell(self, e, h):
        z,r = (o.softmax(-1) for o in self.gates(torch.cat([e, h], -1)).chunk(2, -1))
        return (1-z)*h + z*torch.tanh(self.new(torch.cat([e, r*h], -1)))


@unnamed('model')
def softmax_gates(fault=True):
    "The gates of a GRU are a softmax over the units, not sigmoids: each is about 1/64 and little is ever written."
    model = SoftGRU() if fault else GRUByHand()
    return in_steps(carried_step, model, streams(), adam(model, 1e-2), clip=1.)


def replaced(x, share):
    "Ids with a share of them drawn at random from the vocabulary"
    return torch.where(torch.rand(x.shape) < share, torch.randint_like(x, V), x)


@unnamed('data')
def corrupted_inputs(fault=True):
    "Half of the characters that the network reads were replaced at random, as for a denoiser; it cannot know which."
    batches = [(replaced(x, 0.5) if fault else x, y) for x,y in windows()]
    model = Scores()
    return in_steps(stateless_step, model, batches, adam(model, 1e-2))


@unnamed('data')
def random_labels(fault=True):
    "Labels are 'augmented': 60 % of the targets are random characters."
    items = [(x, replaced(y, 0.6) if fault else y) for x,y in stream_items()]
    model = Stateful('lstm')
    dls = DataLoaders(*[DataLoader(o, bs=16, num_workers=0) for o in (items, stream_items(n=5, source=valid_ids))])
    return in_parts(model, dls, adam(model, 1e-2), CrossEntropyLossFlat())


@unnamed('data')
def foreign_targets(fault=True):
    "For half of the rows of a batch the targets are those of other rows."
    def _mixed(y): return torch.cat([y[:8], y[8:].roll(1, 0)]) if fault else y
    model = Scores('rnn')
    dls = DataLoaders(Batches([(x, _mixed(y)) for x,y in windows()]), Batches(windows(n=5, source=valid_ids)))
    return in_parts(model, dls, adam(model, 1e-2))


class Centred(torch.optim.Adam):
    "Adam with centralised gradients: those of a matrix without their mean over the inputs"
    def __init__(self, params, lr, keep='rest'):
        super().__init__(params, lr=lr)
        self.keep = keep
    @torch.no_grad()
    def step(self, closure=None):
        for p in (p for g in self.param_groups for p in g['params'] if p.ndim > 1):
            mean = p.grad.mean(-1, keepdim=True)
            p.grad.copy_(mean.expand_as(p) if self.keep == 'mean' else p.grad-mean)
        super().step()


@unnamed('optimiser')
def only_the_mean(fault=True):
    "Centralised gradients the wrong way round: their mean over the inputs is kept, the rest thrown away."
    model = ElmanByHand()
    opt = Centred(model.parameters(), lr=1e-2, keep='mean' if fault else 'rest')
    return in_steps(carried_step, model, streams(), opt, clip=1.)


class TopSGD(Optimizer):
    "Momentum over the largest entries of the gradient, as many as a slow line carries"
    def __init__(self, params, lr, share): super().__init__(params, dict(lr=lr, share=share))
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group['params']: p.sub_(group['lr']*self.momentum(p.grad, self.state[p], group['share']))
    def momentum(self, g, state, share):
        n = max(1, int(share*g.numel()))
        if n < g.numel(): g = torch.where(g.abs() >= g.abs().flatten().topk(n).values[-1], g, 0.)
        state['m'] = 0.9*state['m'] + g if state else g.clone()
        return state['m']


@unnamed('optimiser')
def only_the_largest(fault=True):
    "Of each gradient a thousandth of the entries is applied, and the rest is not kept for later."
    model = Scores('rnn')
    opt = TopSGD(model.parameters(), lr=0.2, share=0.001 if fault else 1.)
    return in_steps(stateless_step, model, windows(), opt, clip=1.)


class ClipWeights(Callback):
    "Keeps the weights small after each step"
    def __init__(self, limit): self.limit = limit
    def after_step(self):
        for p in self.model.parameters(): p.data.clamp_(-self.limit, self.limit)


@unnamed('loop')
def clipped_weights(fault=True):
    "A callback cuts the weights to 0.05 after each step, where gradients were meant."
    return dict(learn=learner(stream_dls(), Stateful('lstm'), lr=1e-2, cbs=[ClipWeights(0.05)] if fault else []))


@unnamed('loop')
def noise_on_weights(fault=True):
    "After each step noise is added to the weights, much larger than the step."
    model = ElmanByHand()
    opt,kept = adam(model, 1e-2),dict(h=None)
    def step(x, y):
        scores,h = model(x, kept['h'])
        kept['h'] = h.detach()
        loss = update(opt, loss_over_all(scores, y), model, clip=1.)
        for p in model.parameters(): p.data.add_(torch.randn_like(p), alpha=0.05*fault)
        return loss
    return dict(step_function=step, model=model, batches=streams(), opt=opt)
