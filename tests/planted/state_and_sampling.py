"""Programs with faults of the training state (T1 to T9), plateaus (Z1 to Z4), sampling and reloading (G1 to G9)"""
from copy import deepcopy
from functools import cache, partial

import torch
import torch.nn.functional as F
from fastai.basics import Adam as FastAdam, Callback, DataLoader, DataLoaders, Metric, SGD as FastSGD
from fastai.callback.rnn import ModelResetter
from fastai.callback.schedule import ParamScheduler, SchedLin
from torch import nn

from charrnn_fa.text.vocab import CharVocab

from . import program
from .parts import (Batches, ElmanByHand, GRUByHand, KeepsState, Net, Scores, V, adam, awd_learner, fitted, in_parts,
                    learner, loss_over_all, our_learner, seed, stateless_step, stream_dls, streams, text,
                    train, train_ids, update, valid_ids, vocab, window_dls, windows)


class _WithDropout(Scores):
    "A GRU and dropout before the scores"
    def __init__(self):
        super().__init__('gru')
        self.drop = nn.Dropout(0.3)
    def forward(self, x): return self.out(self.drop(self.rnn(self.emb(x))[0]))


# T1: validation in training mode

@program('T1', seed=1)
def functional_dropout_always_on():
    "F.dropout without training=self.training drops in validation as well"
    class Dropping(Scores):
        def forward(self, x): return self.out(F.dropout(self.rnn(self.emb(x))[0], 0.4))
    model = Dropping('gru')
    dls = DataLoaders(Batches(windows(16, 24)), Batches(windows(16, 24, 4, valid_ids)))
    return in_parts(model, dls, adam(model, 4e-3))


class _TrainsOn(Callback):
    "Turns training mode on for validation, to get losses that can be compared"
    order = 50
    def before_validate(self): self.model.train()


@program('T1', seed=3)
def validated_in_training_mode():
    "A callback calls model.train() before validation"
    model = Scores('lstm', n_layers=2, dropout=0.5)
    return fitted(learner(window_dls(16, 20, 40), model, lr=5e-3, cbs=_TrainsOn()), 2)


# T2: training in evaluation mode

class _WritesALine(Callback):
    "Writes a few letters every fourth batch, in evaluation mode, and leaves the model there"
    def after_batch(self):
        if not self.training or self.iter % 4: return
        self.model.eval()
        x = self.xb[0][:1]
        with torch.no_grad():
            for _ in range(5): x = torch.cat([x, self.model(x)[:,-1:].argmax(-1)], 1)


@program('T2', seed=7)
def samples_while_it_trains():
    "A callback that samples calls eval() and not train()"
    return fitted(learner(window_dls(16, 20, 40), _WithDropout(), lr=5e-3, cbs=_WritesALine()), 2)


@program('T2', 'by hand', seed=8)
def eval_in_the_step():
    "model.eval() at the top of the training step, copied from the function that tests"
    class Dropping(GRUByHand):
        def cell(self, e, h): return super().cell(F.dropout(e, 0.3, self.training), h)
    model = Dropping()
    opt = adam(model)
    def step(x, y):
        model.eval()
        return update(opt, loss_over_all(model(x)[0], y))
    return dict(step_function=step, model=model, batches=windows(16, 20), opt=opt)


class _EvalBefore(Callback):
    order = 50
    def before_batch(self): self.model.eval()


@program('T2', 'AWD-LSTM', seed=9)
def awd_in_eval_mode():
    "A callback switches dropout off before each batch"
    return dict(learn=awd_learner(drop_mult=0.5, cbs=[_EvalBefore()]))


# T3: gradients in validation

@program('T3', seed=10)
def validation_losses_keep_their_graphs():
    "No no_grad, and the losses are gathered as tensors"
    model = Scores('gru')
    opt = adam(model, 4e-3)
    held_out,valid_losses = windows(16, 24, 2, valid_ids),[]
    def step(x, y):
        model.train()
        loss = update(opt, loss_over_all(model(x), y))
        model.eval()
        for a,b in held_out: valid_losses.append(loss_over_all(model(a), b))
        model.train()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


class _GradOn(Callback):
    order = 50
    def before_validate(self): torch.set_grad_enabled(True)


@program('T3', 'by hand', seed=11)
def learner_validates_with_gradients():
    "Gradients are switched on again before validation"
    return fitted(learner(stream_dls(16, 16, 30), KeepsState(n_hid=48), lr=4e-3, cbs=[_GradOn(), ModelResetter()]))


# T4: overfitting

def _items(source, seq_len, n=None):
    return [(source[i:i+seq_len], source[i+1:i+seq_len+1]) for i in range(0, len(source)-seq_len-1, seq_len)][:n]


@program('T4', seed=13)
def wide_gru_on_a_page():
    "A wide GRU on 1,500 letters for many epochs"
    dls = DataLoaders(DataLoader(_items(train_ids[:1500], 20), bs=8, shuffle=True, num_workers=0),
                      DataLoader(_items(valid_ids, 20, 32), bs=8, num_workers=0))
    return fitted(learner(dls, Scores('gru', n_hid=96), lr=1e-2), 30)


@program('T4', 'ours')
def ours_on_a_page():
    "char_learner on 2,000 letters, thirty times over"
    return fitted(our_learner(8, 20, source=text[:2000], n_hid=96, lr=5e-3, opt_func=FastAdam), 30, lr=1e-2)


# T5: underfitting

@program('T5', also='O2', seed=15)
def stopped_early_at_a_low_rate():
    "A rate of 1e-4 and three epochs: the curves are nearly flat far above what the text allows"
    return fitted(learner(window_dls(16, 20, 60), Scores('gru'), lr=1e-4), 3)


# T7: the same text at every step

@program('T7', seed=17)
def first_batch_for_ever():
    "next(iter(loader)) in the step gives the first batch each time"
    model = Scores('gru')
    opt = adam(model, 4e-3)
    loader = windows(16, 24)
    def step():
        x,y = next(iter(loader))
        return update(opt, loss_over_all(model(x), y))
    return dict(step_function=step, model=model, opt=opt)


# T8: a metric that is no mean over characters

class _MeanOfBatches(Metric):
    "The mean of the batches' means, one row or sixteen"
    name = 'valid_loss_'
    def reset(self): self.vals = []
    def accumulate(self, learn): self.vals.append(loss_over_all(learn.pred, learn.y).item())
    @property
    def value(self): return sum(self.vals)/len(self.vals)


@program('T8', seed=22)
def mean_of_means():
    "Three batches, the last of them one row, count the same"
    dls = window_dls(16, 20, 40)
    dls.loaders[1] = DataLoader(_items(valid_ids, 20, 33), bs=16, num_workers=0)
    return fitted(learner(dls, Scores('lstm', n_hid=48), lr=5e-3, metrics=_MeanOfBatches()))


# T9: losses over different texts or vocabularies

@program('T9', also='D7', seed=23)
def valid_text_in_capitals():
    "The validation part is in capitals and has a vocabulary of its own"
    upper = text[54_000:].upper()
    dls = window_dls(16, 20, 40)
    dls.loaders[1] = DataLoader(_items(CharVocab.from_text(upper).encode(upper), 20, 80), bs=16, num_workers=0)
    return dict(learn=learner(dls, Scores('gru', n_hid=48), lr=5e-3))


@program('T9', 'AWD-LSTM', seed=24)
def awd_validated_on_another_text():
    "Trained on prose, validated on counting"
    digits = vocab.encode('0123456789'*300)
    dls = DataLoaders(*[DataLoader(_items(o, 20, 320), bs=16, num_workers=0) for o in (train_ids, digits)])
    return dict(learn=awd_learner(dls))


# Z1: what comes in makes no difference

@program('Z1', 'by hand', also='R5', seed=25)
def input_is_never_added():
    "tanh(h2h(h)): the letter is embedded and then forgotten"
    class Deaf(ElmanByHand):
        def forward(self, x):
            h,out = torch.zeros(x.shape[0], self.n_hid),[]
            for t in range(x.shape[1]):
                _ = self.i2h(self.emb(x[:,t]))
                h = torch.tanh(self.h2h(h))
                out.append(self.h2o(h))
            return torch.stack(out, 1)
    model = Deaf()
    return in_parts(model, windows(16, 20), adam(model, 4e-3))


class _Clamp(Callback):
    "All ids are at most 0"
    def before_batch(self): self.learn.xb = (self.xb[0].clamp(max=0),)


@program('Z1', 'AWD-LSTM', seed=28)
def awd_sees_one_symbol():
    "A callback that was meant for unknown symbols clamps all ids to 0"
    return dict(learn=awd_learner(cbs=[_Clamp()]))


# Z2: only the last letter counts

@program('Z2', 'by hand', also='R5', seed=29)
def mlp_of_one_letter():
    "Embedding and two layers: there is no recurrence in it"
    return in_parts(nn.Sequential(nn.Embedding(V, 32), nn.Linear(32, 96), nn.Tanh(), nn.Linear(96, V)), windows(16, 24))


@program('Z2', also='R5 S5', seed=30)
def each_letter_is_a_row():
    "The letters are put in the rows of a batch and the sequence is one long"
    class Rows(Scores):
        def forward(self, x):
            o,_ = self.rnn(self.emb(x).reshape(-1, 1, 32))
            return self.out(o).reshape(*x.shape, V)
    return fitted(learner(window_dls(16, 20, 60), Rows('gru'), lr=1e-2), 3)


# Z3: the loss falls, then rises

@program('Z3', also='O1 O10', seed=31)
def rate_rises_without_end():
    "The rate rises to 1 in the course of the run, as in a search for it"
    return fitted(learner(window_dls(16, 20, 60), Scores('gru')), 4, [ParamScheduler({'lr':SchedLin(1e-3, 1.)})])


@program('Z3', 'by hand', also='O6 O1', seed=33)
def momentum_that_gathers():
    "Momentum of 0.999: it falls at first, then what has gathered throws it out"
    opt_func = partial(FastSGD, mom=0.999)
    return fitted(learner(stream_dls(16, 16, 80), KeepsState(n_hid=48), lr=0.3, opt_func=opt_func), 3)


# Z4: a spike

@program('Z4', seed=34)
def a_chunk_of_noise():
    "A part of the file is binary"
    batches = windows(16, 20, 150)
    noise = torch.randint(V, (16, 21), generator=torch.Generator().manual_seed(1))
    batches[120] = noise[:,:-1],noise[:,1:]
    dls = DataLoaders(Batches(batches), Batches(windows(16, 20, 4, valid_ids)))
    return fitted(learner(dls, Scores('gru'), lr=8e-3))


# Networks that were trained for a second, for those who write

@cache
def _trained(kind):
    "A healthy network that was trained, its batches and its optimiser"
    seed(50)
    model = dict(gru=lambda: Net('gru'), hand=lambda: GRUByHand(n_hid=56),
                 dropout=lambda: Net('lstm', n_layers=2, dropout=0.5))[kind]()
    batches,opt = windows(16, 20, 60),adam(model, 1e-2)
    train(stateless_step(model, opt, clip=1.), batches, 140)
    return model,batches,opt


def _writer(kind, sample):
    "A trained network with a function that writes"
    model,batches,opt = deepcopy(_trained(kind))
    seed(60)
    return dict(in_parts(model, batches, opt), sample=sample, text=text)


@torch.no_grad()
def _write(model, prompt, n, choose=lambda scores: _draw(scores.softmax(-1)), chars=vocab):
    "As it should be, but for what `choose` makes of the scores, or for another table of characters"
    model.eval()
    out,h = model(_ids(prompt))
    for _ in range(n):
        i = choose(out[:,-1])
        prompt += chars[int(i)]
        out,h = model(i, h)
    return prompt


def _ids(prompt): return vocab.encode(prompt)[None]
def _draw(probs): return torch.multinomial(probs, 1)


# G1: the temperature

@program('G1')
def temperature_multiplied():
    "scores*temperature, with a temperature of 0.3: the opposite of what it is for"
    def choose(scores, temperature=0.3): return _draw(F.softmax(scores*temperature, dim=-1))
    return _writer('gru', partial(_write, choose=choose))


@program('G1', 'by hand')
def softmax_of_the_softmax():
    "Probabilities are divided by the temperature and put through softmax again: nearly uniform"
    def choose(scores, T=0.8):
        probs = scores.softmax(-1)
        return _draw(torch.softmax(probs/T, -1))
    return _writer('hand', partial(_write, choose=choose))


# G2: dropout while it writes

@program('G2')
def dropout_left_on():
    "No eval() before writing"
    def sample(net, prompt, n):
        net.train()
        with torch.no_grad():
            out,h = net(_ids(prompt))
            for _ in range(n):
                i = _draw(out[:,-1].softmax(-1))
                prompt += vocab[i.item()]
                out,h = net(i, h)
        return prompt
    return _writer('dropout', sample)


# G3: the state is lost, or the prompt is not read

@program('G3')
def state_thrown_away():
    "Each letter is fed with an empty state"
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        out,_ = model(_ids(prompt))
        for _ in range(n):
            i = _draw(out[:,-1].softmax(-1))
            prompt += vocab[int(i)]
            out,_ = model(i)
        return prompt
    return _writer('gru', sample)


@program('G3', 'by hand')
def prompt_is_not_read():
    "Only the last letter of the prompt goes in, then the state is carried"
    @torch.no_grad()
    def sample(model, prompt, n):
        x,h,res = _ids(prompt[-1]),None,prompt
        for _ in range(n):
            out,h = model(x, h)
            x = _draw(out[:,-1].softmax(-1))
            res += vocab[x.item()]
        return res
    return _writer('hand', sample)


# G4: another vocabulary

@program('G4')
def letters_in_another_order():
    "The table for writing is sorted by frequency, that of the training by code"
    by_frequency = sorted(vocab.itos, key=lambda c: -text.count(c))
    return _writer('gru', partial(_write, chars=by_frequency))


# G6: a symbol that is not known

@program('G6')
def table_of_the_first_page():
    "The table for sampling was made of other text, which lacks letters"
    stoi = {c:i for c,i in vocab.stoi.items() if c not in 'etaoin'}
    @torch.no_grad()
    def sample(model, prompt, n):
        out,h = model(torch.tensor([[stoi[c] for c in prompt]]))
        for _ in range(n):
            i = _draw(out[:,-1].softmax(-1))
            prompt += vocab[int(i)]
            out,h = model(i, h)
        return prompt
    return _writer('gru', sample)


# G7: loops

@program('G7')
def always_the_best_letter():
    "argmax: after some words it goes round in a circle"
    return _writer('gru', partial(_write, choose=lambda scores: scores.argmax(-1, keepdim=True)))


# G8: it recites

@program('G8', seed=54)
def knows_its_page_by_heart():
    "Trained on 400 letters until nothing was left to learn; what it writes is that page"
    small,model = train_ids[2000:2401],Net('gru', n_hid=96)
    opt = adam(model, 2e-2)
    train(stateless_step(model, opt, clip=1.), [o for k in range(10) for o in streams(4, 20, 5, small[k*2:])], 170)
    def choose(scores, temperature=0.5): return _draw((scores/temperature).softmax(-1))
    made = in_parts(model, streams(4, 20, 5, small), opt)
    return dict(made, sample=partial(_write, choose=choose), text=text[2000:2401])


# G9: going on is not going on

@program('G9', also='O5', seed=55)
def optimiser_not_saved():
    "The weights were saved, the optimiser was not: Adam begins without its means"
    learn = learner(window_dls(16, 20, 60), Scores('lstm', n_hid=48), lr=2e-2)
    def watch(learn, cbs):
        learn.fit(2, cbs=cbs)
        weights = {k:v.clone() for k,v in learn.model.state_dict().items()}
        learn.model.load_state_dict(weights)
        learn.create_opt()
        learn.fit(1, cbs=cbs)
    return dict(learn=learn, watch=watch)
