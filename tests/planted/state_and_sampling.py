"""Programs with faults of the training state (T1 to T9), plateaus (Z1 to Z4), sampling and reloading (G1 to G9)"""
import random
import torch
import torch.nn.functional as F
from copy import deepcopy
from functools import cache, partial
from torch import nn
from fastai.basics import Adam as FastAdam, Callback, DataLoader, DataLoaders, Metric, SGD as FastSGD
from fastai.callback.rnn import ModelResetter
from fastai.callback.schedule import ParamScheduler, SchedLin
from charrnn_fa.text.vocab import CharVocab
from . import program
from .parts import (V, Batches, ElmanByHand, GRUByHand, KeepsState, Net, Scores, awd_learner, detached, learner, lm_dls,
                    loss_over_all, our_learner, seed, stateless_step, stream_dls, streams, text, train, train_ids,
                    valid_ids, vocab, window_dls, windows)

Adam,SGD = torch.optim.Adam,torch.optim.SGD


# T1: validation in training mode

@program('T1')
def functional_dropout_always_on():
    "F.dropout without training=self.training drops in validation as well"
    seed(1)
    class Dropping(Scores):
        def forward(self, x): return self.out(F.dropout(self.rnn(self.emb(x))[0], 0.4))
    model = Dropping('gru', n_hid=64)
    dls = DataLoaders(Batches(windows(16, 24)), Batches(windows(16, 24, 4, valid_ids)))
    return dict(model=model, dls=dls, loss_func=loss_over_all, opt=Adam(model.parameters(), lr=4e-3))


@program('T1', 'by hand')
def dropout_made_in_the_forward():
    "nn.Dropout is made anew in each forward pass, and what is new is in training mode"
    seed(2)
    class Fresh(nn.Module):
        def __init__(self, n=56):
            super().__init__()
            self.emb,self.cell,self.out = nn.Embedding(V, 24),nn.GRUCell(24, n),nn.Linear(n, V)
        def forward(self, x):
            h,res = None,[]
            for t in range(x.shape[1]):
                h = self.cell(self.emb(x[:,t]), h)
                res.append(self.out(nn.Dropout(0.3)(h)))
            return torch.stack(res, 1)
    learn = learner(window_dls(16, 16, 40), Fresh(), lr=4e-3)
    return dict(learn=learn)


class _TrainsOn(Callback):
    "Turns training mode on for validation, to get losses that can be compared"
    order = 50
    def before_validate(self): self.model.train()


@program('T1')
def validated_in_training_mode():
    "A callback calls model.train() before validation"
    seed(3)
    model = Scores('lstm', n_hid=64, n_layers=2, dropout=0.5)
    learn = learner(window_dls(16, 20, 40), model, lr=5e-3, cbs=_TrainsOn())
    def watch(learn, cbs): learn.fit(2, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('T1', also='T3')
def checks_without_eval():
    "The step looks at held-out text in training mode"
    seed(4)
    model = Scores('lstm', n_hid=64, n_layers=2, dropout=0.5)
    opt = Adam(model.parameters(), lr=5e-3)
    held_out = windows(16, 24, 2, valid_ids)
    valid = []
    def step(x, y):
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        valid.append(sum(loss_over_all(model(a), b).item() for a,b in held_out)/2)
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program('T1', 'AWD-LSTM')
def awd_validated_with_dropout():
    "The callback of the one above, for AWD-LSTM"
    seed(5)
    learn = awd_learner(lm_dls(16, 24, 10_000), drop_mult=1., cbs=[_TrainsOn()])
    def watch(learn, cbs): learn.fit(2, cbs=cbs)
    return dict(learn=learn, watch=watch)


# T2: training in evaluation mode

@program('T2')
def never_back_to_train():
    "eval() for the validation loss, and no train() after it"
    seed(6)
    model = Net('lstm', n_hid=64, n_layers=2, dropout=0.3)
    opt = Adam(model.parameters(), lr=5e-3)
    held_out = streams(16, 24, 2, valid_ids)
    now = dict(state=None, valid=None)
    def step(x, y):
        out,s = model(x, now['state'])
        now['state'] = detached(s)
        loss = loss_over_all(out, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        model.eval()
        with torch.no_grad(): now['valid'] = sum(loss_over_all(model(a)[0], b).item() for a,b in held_out)/2
        return loss
    batches = streams(16, 24)
    train(step, batches, 3)
    return dict(step_function=step, model=model, batches=batches, opt=opt)


class _WritesALine(Callback):
    "Writes a few letters every fourth batch, in evaluation mode, and leaves the model there"
    def after_batch(self):
        if not self.training or self.iter % 4: return
        self.model.eval()
        x = self.xb[0][:1]
        with torch.no_grad():
            for _ in range(5): x = torch.cat([x, self.model(x)[:,-1:].argmax(-1)], 1)


@program('T2')
def samples_while_it_trains():
    "A callback that samples calls eval() and not train()"
    seed(7)
    class WithDropout(Scores):
        def __init__(self):
            super().__init__('gru', n_hid=64)
            self.drop = nn.Dropout(0.3)
        def forward(self, x): return self.out(self.drop(self.rnn(self.emb(x))[0]))
    learn = learner(window_dls(16, 20, 40), WithDropout(), lr=5e-3, cbs=_WritesALine())
    def watch(learn, cbs): learn.fit(2, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('T2', 'by hand')
def eval_in_the_step():
    "model.eval() at the top of the training step, copied from the function that tests"
    seed(8)
    class Dropping(GRUByHand):
        def forward(self, x):
            h,res = torch.zeros(len(x), self.n_hid),[]
            for e in self.emb(x).unbind(1):
                h = self.cell(F.dropout(e, 0.3, self.training), h)
                res.append(self.out(h))
            return torch.stack(res, 1)
    model = Dropping()
    opt = Adam(model.parameters(), lr=5e-3)
    def step(x, y):
        model.eval()
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 20), opt=opt)


class _EvalBefore(Callback):
    order = 50
    def before_batch(self): self.model.eval()


@program('T2', 'AWD-LSTM')
def awd_in_eval_mode():
    "A callback switches dropout off before each batch"
    seed(9)
    return dict(learn=awd_learner(drop_mult=0.5, cbs=[_EvalBefore()]))


# T3: gradients in validation

@program('T3')
def validation_losses_keep_their_graphs():
    "No no_grad, and the losses are gathered as tensors"
    seed(10)
    model = Scores('gru', n_hid=64)
    opt = Adam(model.parameters(), lr=4e-3)
    held_out,valid_losses = windows(16, 24, 2, valid_ids),[]
    def step(x, y):
        model.train()
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        model.eval()
        for a,b in held_out: valid_losses.append(loss_over_all(model(a), b))
        model.train()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


class _GradOn(Callback):
    order = 50
    def before_validate(self): torch.set_grad_enabled(True)


@program('T3', 'by hand')
def learner_validates_with_gradients():
    "Gradients are switched on again before validation"
    seed(11)
    learn = learner(stream_dls(16, 16, 30), KeepsState(n_hid=48), lr=4e-3, cbs=[_GradOn(), ModelResetter()])
    def watch(learn, cbs): learn.fit(1, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('T3', 'AWD-LSTM')
def awd_validates_with_gradients():
    "The same for AWD-LSTM"
    seed(12)
    learn = awd_learner(lm_dls(16, 24, 8000), cbs=[_GradOn()])
    def watch(learn, cbs): learn.fit(1, cbs=cbs)
    return dict(learn=learn, watch=watch)


# T4: overfitting

def _items(source, seq_len, n=None):
    res = [(source[i:i+seq_len], source[i+1:i+seq_len+1]) for i in range(0, len(source)-seq_len-1, seq_len)]
    return res[:n]


def _small_dls(n_chars, bs=8, seq_len=20):
    "Loaders over the first `n_chars` of the text"
    return DataLoaders(DataLoader(_items(train_ids[:n_chars], seq_len), bs=bs, shuffle=True, num_workers=0),
                       DataLoader(_items(valid_ids, seq_len, 4*bs), bs=bs, num_workers=0))


@program('T4')
def wide_gru_on_a_page():
    "A wide GRU on 1,500 letters for many epochs"
    seed(13)
    learn = learner(_small_dls(1500), Scores('gru', n_hid=96), lr=1e-2)
    def watch(learn, cbs): learn.fit(30, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('T4', 'AWD-LSTM')
def awd_on_a_page():
    "AWD-LSTM without dropout on 1,600 letters"
    seed(14)
    both = train_ids[:1600],valid_ids[:800]
    dls = DataLoaders(*[DataLoader(_items(o, 20, 80), bs=8, num_workers=0) for o in both])
    learn = awd_learner(dls, drop_mult=0.01, lr=1e-2, config=dict(n_layers=1))
    def watch(learn, cbs): learn.fit(30, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('T4', 'ours')
def ours_on_a_page():
    "char_learner on 2,000 letters, a hundred times over"
    learn = our_learner(8, 20, source=text[:2000], n_hid=96, lr=5e-3, opt_func=FastAdam)
    def watch(learn, cbs): learn.fit(30, 1e-2, cbs=cbs)
    return dict(learn=learn, watch=watch)


# T5: underfitting

@program('T5', also='O2')
def stopped_early_at_a_low_rate():
    "A rate of 1e-4 and three epochs: the curves are nearly flat far above what the text allows"
    seed(15)
    learn = learner(window_dls(16, 20, 60), Scores('gru', n_hid=64), lr=1e-4)
    def watch(learn, cbs): learn.fit(3, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('T5', 'AWD-LSTM', also='O2 I7')
def awd_for_a_moment():
    "Half of everything dropped, a low rate and four epochs"
    seed(16)
    learn = awd_learner(lm_dls(16, 24, 10_000), drop_mult=1.5, lr=5e-4)
    def watch(learn, cbs): learn.fit(4, cbs=cbs)
    return dict(learn=learn, watch=watch)


# T7: the same text at every step

@program('T7')
def first_batch_for_ever():
    "next(iter(loader)) in the step gives the first batch each time"
    seed(17)
    model = Scores('gru', n_hid=64)
    opt = Adam(model.parameters(), lr=4e-3)
    loader = windows(16, 24)
    def step():
        x,y = next(iter(loader))
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, opt=opt)


@program('T7', 'by hand')
def seeded_in_get_batch():
    "The seed is set in the function that draws the windows"
    seed(18)
    model = ElmanByHand(n_hid=64)
    opt = Adam(model.parameters(), lr=4e-3)
    def get_batch(bs=16, seq_len=20):
        torch.manual_seed(1337)
        at = torch.randint(len(train_ids)-seq_len-1, (bs, 1)) + torch.arange(seq_len+1)
        return train_ids[at[:,:-1]],train_ids[at[:,1:]]
    def step():
        x,y = get_batch()
        loss = loss_over_all(model(x)[0], y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, opt=opt)


class _Restarts:
    "Draws windows, from a generator that begins anew for each of them"
    def __len__(self): return 50
    def __iter__(self):
        for _ in range(50):
            random.seed(42)
            at = [random.randrange(len(train_ids)-25) for _ in range(16)]
            yield torch.stack([train_ids[i:i+24] for i in at]),torch.stack([train_ids[i+1:i+25] for i in at])


@program('T7')
def loader_seeds_each_batch():
    "The loader seeds its generator for each batch"
    seed(19)
    model = Scores('lstm', n_hid=64)
    return dict(model=model, dls=_Restarts(), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=5e-3))


@program('T7', 'AWD-LSTM')
def awd_sees_one_batch():
    "The list of batches is made by [batch]*40"
    seed(20)
    dls = DataLoaders(Batches([windows(16, 24, 1)[0]]*40), Batches(windows(16, 24, 3, valid_ids)))
    return dict(learn=awd_learner(dls))


# T8: a metric that is no mean over characters

class _LastBatch(Metric):
    "The loss of the last batch"
    def reset(self): self.val = None
    def accumulate(self, learn): self.val = loss_over_all(learn.pred, learn.y).item()
    @property
    def value(self): return self.val
    @property
    def name(self): return 'valid_loss_'


class _MeanOfBatches(_LastBatch):
    "The mean of the batches' means, one row or sixteen"
    def reset(self): self.vals = []
    def accumulate(self, learn): self.vals.append(loss_over_all(learn.pred, learn.y).item())
    @property
    def value(self): return sum(self.vals)/len(self.vals)


def _uneven_dls():
    "The last batch of the validation part has one row"
    dls = window_dls(16, 20, 40)
    dls.loaders[1] = DataLoader(_items(valid_ids, 20, 33), bs=16, num_workers=0)
    return dls


@program('T8')
def metric_of_the_last_batch():
    "The metric forgets all batches but the last"
    seed(21)
    learn = learner(_uneven_dls(), Scores('gru', n_hid=48), lr=5e-3, metrics=_LastBatch())
    def watch(learn, cbs): learn.fit(1, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('T8')
def mean_of_means():
    "Three batches, the last of them one row, count the same"
    seed(22)
    learn = learner(_uneven_dls(), Scores('lstm', n_hid=48), lr=5e-3, metrics=_MeanOfBatches())
    def watch(learn, cbs): learn.fit(1, cbs=cbs)
    return dict(learn=learn, watch=watch)


# T9: losses over different texts or vocabularies

@program('T9', also='D7')
def valid_text_in_capitals():
    "The validation part is in capitals and has a vocabulary of its own"
    seed(23)
    upper = text[54_000:].upper()
    own = CharVocab.from_text(upper)
    dls = window_dls(16, 20, 40)
    dls.loaders[1] = DataLoader(_items(own.encode(upper), 20, 80), bs=16, num_workers=0)
    return dict(learn=learner(dls, Scores('gru', n_hid=48), lr=5e-3))


@program('T9', 'AWD-LSTM')
def awd_validated_on_another_text():
    "Trained on prose, validated on counting"
    seed(24)
    digits = vocab.encode('0123456789'*300)
    dls = DataLoaders(*[DataLoader(_items(o, 20, 320), bs=16, num_workers=0) for o in (train_ids, digits)])
    return dict(learn=awd_learner(dls))


# Z1: what comes in makes no difference

@program('Z1', 'by hand', also='R5')
def input_is_never_added():
    "tanh(h2h(h)): the letter is embedded and then forgotten"
    seed(25)
    class Deaf(ElmanByHand):
        def forward(self, x):
            h,out = torch.zeros(x.shape[0], self.n_hid),[]
            for t in range(x.shape[1]):
                _ = self.i2h(self.emb(x[:,t]))
                h = torch.tanh(self.h2h(h))
                out.append(self.h2o(h))
            return torch.stack(out, 1)
    model = Deaf(n_hid=64)
    return dict(model=model, dls=windows(16, 20), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=4e-3))


@program('Z1')
def embeds_an_empty_tensor():
    "A buffer of zeros was made for the ids and never filled"
    seed(26)
    class Zeros(Net):
        def forward(self, x, state=None): return super().forward(torch.zeros_like(x), state)
    net = Zeros('gru', n_hid=64)
    opt = Adam(net.parameters(), lr=5e-3)
    return dict(step_function=stateless_step(net, opt), model=net, batches=windows(16, 24), opt=opt)


@program('Z1')
def scores_from_a_bias():
    "The decoder's weight is multiplied by a gate that is zero, so only its bias learns"
    seed(27)
    class Gated(Scores):
        def forward(self, x):
            o = self.rnn(self.emb(x))[0]
            return self.out(o*(o.abs() > 1))
    learn = learner(window_dls(16, 20, 60), Gated('lstm', n_hid=64), lr=1e-2)
    def watch(learn, cbs): learn.fit(3, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('Z1', 'AWD-LSTM')
def awd_sees_one_symbol():
    "A callback that was meant for unknown symbols clamps all ids to 0"
    seed(28)
    class Clamp(Callback):
        def before_batch(self): self.learn.xb = (self.xb[0].clamp(max=0),)
    return dict(learn=awd_learner(cbs=[Clamp()]))


# Z2: only the last letter counts

@program('Z2', 'by hand', also='R5')
def mlp_of_one_letter():
    "Embedding and two layers: there is no recurrence in it"
    seed(29)
    model = nn.Sequential(nn.Embedding(V, 32), nn.Linear(32, 96), nn.Tanh(), nn.Linear(96, V))
    return dict(model=model, dls=windows(16, 24), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=5e-3))


@program('Z2', also='R5 S5')
def each_letter_is_a_row():
    "The letters are put in the rows of a batch and the sequence is one long"
    seed(30)
    class Rows(Scores):
        def forward(self, x):
            o,_ = self.rnn(self.emb(x).reshape(-1, 1, 32))
            return self.out(o).reshape(*x.shape, V)
    learn = learner(window_dls(16, 20, 60), Rows('gru', n_hid=64), lr=1e-2)
    def watch(learn, cbs): learn.fit(3, cbs=cbs)
    return dict(learn=learn, watch=watch)


# Z3: the loss falls, then rises

@program('Z3', also='O1 O10')
def rate_rises_without_end():
    "The rate rises to 1 in the course of the run, as in a search for it"
    seed(31)
    learn = learner(window_dls(16, 20, 60), Scores('gru', n_hid=64))
    def watch(learn, cbs): learn.fit(4, cbs=[ParamScheduler({'lr':SchedLin(1e-3, 1.)}), *cbs])
    return dict(learn=learn, watch=watch)


@program('Z3', 'AWD-LSTM', also='O1')
def awd_cycle_to_one():
    "fit_one_cycle with a top of 1"
    seed(32)
    learn = awd_learner(lm_dls(16, 24, 16_000))
    def watch(learn, cbs): learn.fit_one_cycle(4, 1., pct_start=0.9, div=500, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('Z3', 'by hand', also='O6 O1')
def momentum_that_gathers():
    "Momentum of 0.999: it falls at first, then what has gathered throws it out"
    seed(33)
    learn = learner(stream_dls(16, 16, 80), KeepsState(n_hid=48), lr=0.3, opt_func=partial(FastSGD, mom=0.999))
    def watch(learn, cbs): learn.fit(3, cbs=cbs)
    return dict(learn=learn, watch=watch)


# Z4: a spike

def _with_a_bad_chunk(batches, at, kind):
    "One batch of another kind of text"
    x,y = batches[at]
    rare = torch.bincount(train_ids, minlength=V).argsort()[:3]
    symbols = torch.arange(V) if kind == 'noise' else rare
    g = torch.Generator().manual_seed(1)
    other = symbols[torch.randint(len(symbols), (len(x), x.shape[1]+1), generator=g)]
    return [*batches[:at], (other[:,:-1], other[:,1:]), *batches[at+1:]]


@program('Z4')
def a_chunk_of_noise():
    "A part of the file is binary"
    seed(34)
    batches = _with_a_bad_chunk(windows(16, 20, 150), 120, 'noise')
    dls = DataLoaders(Batches(batches), Batches(windows(16, 20, 4, valid_ids)))
    learn = learner(dls, Scores('gru', n_hid=64), lr=8e-3)
    def watch(learn, cbs): learn.fit(1, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('Z4', 'AWD-LSTM')
def awd_meets_rare_symbols():
    "A chunk consists of three symbols that hardly occur elsewhere"
    seed(35)
    batches = _with_a_bad_chunk(windows(16, 20, 150), 120, 'rare symbols')
    dls = DataLoaders(Batches(batches), Batches(windows(16, 20, 4, valid_ids)))
    learn = awd_learner(dls, lr=1e-2)
    def watch(learn, cbs): learn.fit(1, cbs=cbs)
    return dict(learn=learn, watch=watch)


# Networks that were trained for a second, for those who write

@cache
def _trained(kind):
    "A healthy network that was trained, and its batches"
    seed(50)
    model = dict(gru=lambda: Net('gru', n_hid=64), lstm=lambda: Net('lstm', n_hid=64), hand=lambda: GRUByHand(n_hid=56),
                 elman=lambda: ElmanByHand(n_hid=64), scores=lambda: Scores('gru', n_hid=64),
                 dropout=lambda: Net('lstm', n_hid=64, n_layers=2, dropout=0.5))[kind]()
    batches = windows(16, 20, 60)
    opt = Adam(model.parameters(), lr=1e-2)
    train(stateless_step(model, opt, clip=1.), batches, 140)
    return model,batches,opt


def _writer(kind, sample):
    "A trained network with a function that writes"
    model,batches,opt = deepcopy(_trained(kind))
    seed(60)
    return dict(model=model, dls=batches, loss_func=loss_over_all, opt=opt, sample=sample, text=text)


def _ids(prompt): return vocab.encode(prompt)[None]
def _draw(probs): return torch.multinomial(probs, 1)


# G1: the temperature

@program('G1')
def temperature_multiplied():
    "scores*temperature, with a temperature of 0.3: the opposite of what it is for"
    @torch.no_grad()
    def sample(model, prompt, n, temperature=0.3):
        model.eval()
        out,h = model(_ids(prompt))
        res = prompt
        for _ in range(n):
            i = _draw(F.softmax(out[:,-1]*temperature, dim=-1))
            res += vocab[int(i)]
            out,h = model(i, h)
        return res
    return _writer('gru', sample)


@program('G1', 'by hand')
def softmax_of_the_softmax():
    "Probabilities are divided by the temperature and put through softmax again: nearly uniform"
    @torch.no_grad()
    def generate(model, start, length, T=0.8):
        model.eval()
        out,hidden = model(_ids(start))
        s = start
        for _ in range(length):
            probs = out[0,-1].softmax(0)
            i = _draw(torch.softmax(probs/T, 0))
            s += vocab[i.item()]
            out,hidden = model(i[None], hidden)
        return s
    return _writer('hand', generate)


@program('G1')
def probabilities_to_the_power_of_t():
    "p**T in place of p**(1/T), with T=0.25"
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        out,state = model(_ids(prompt))
        ids = vocab.encode(prompt).tolist()
        for _ in range(n):
            p = out[:,-1].softmax(-1)**0.25
            i = _draw(p/p.sum())
            ids.append(i.item())
            out,state = model(i, state)
        return vocab.textify(ids)
    return _writer('lstm', sample)


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


@program('G2')
def greedy_with_dropout():
    "The best letter each time, but dropout makes it another one each time"
    def predict(model, prompt, n):
        ids,state = _ids(prompt),None
        out,state = model(ids, state)
        for _ in range(n):
            i = out[:,-1:].argmax(-1)
            ids = torch.cat([ids, i], 1)
            out,state = model(i, state)
        return vocab.textify(ids[0])
    return _writer('dropout', predict)


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
def only_the_last_letter_goes_in():
    "The network has no state as an argument here, and gets the last letter alone"
    @torch.no_grad()
    def generate(model, seed_text, n_chars):
        res = seed_text
        for _ in range(n_chars):
            x = torch.tensor([[vocab.stoi[res[-1]]]])
            scores,_ = model(x)
            res += vocab[int(_draw(scores[0,-1].softmax(0)))]
        return res
    return _writer('elman', generate)


@program('G3')
def the_first_state_each_time():
    "The state after the prompt is given at every step; the new one has another name"
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        out,hidden = model(_ids(prompt))
        for _ in range(n):
            i = _draw(out[:,-1].softmax(-1))
            prompt += vocab[int(i)]
            out,new_hidden = model(i, hidden)
        return prompt
    return _writer('lstm', sample)


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


@program('G3', 'AWD-LSTM')
def awd_reset_at_each_letter():
    "model.reset() stands inside the loop"
    seed(51)
    learn = awd_learner(lm_dls(16, 24, 16_000), drop_mult=0.05, lr=2e-2)
    with learn.no_bar(): learn.fit(2)
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        model.reset()
        out = model(_ids(prompt))[0]
        for _ in range(n):
            i = _draw(out[:,-1].softmax(-1))
            prompt += vocab[i.item()]
            model.reset()
            out = model(i)[0]
        return prompt
    return dict(learn=learn, sample=sample, text=text)


# G4: another vocabulary

@program('G4')
def letters_in_another_order():
    "The table for writing is sorted by frequency, that of the training by code"
    by_frequency = sorted(vocab.itos, key=lambda c: -text.count(c))
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        out,h = model(_ids(prompt))
        for _ in range(n):
            i = _draw(out[:,-1].softmax(-1))
            prompt += by_frequency[int(i)]
            out,h = model(i, h)
        return prompt
    return _writer('gru', sample)


@program('G4', 'by hand')
def table_begins_at_one():
    "Ids begin at 1 in the function that writes, at 0 in the one that trains"
    to_char = {i+1:c for i,c in enumerate(vocab.itos)}
    to_id = {c:i for i,c in to_char.items()}
    @torch.no_grad()
    def sample(model, prompt, n):
        out,h = model(torch.tensor([[to_id[c] % V for c in prompt]]))
        for _ in range(n):
            i = _draw(out[:,-1].softmax(-1))
            prompt += to_char[int(i) or 1]
            out,h = model(i, h)
        return prompt
    return _writer('hand', sample)


@program('G4')
def vocabulary_of_the_prompt():
    "The table is made anew from the text that is at hand when it writes: a shorter one"
    other = CharVocab.from_text(text[:3000])
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        out,h = model(other.encode(''.join(c for c in prompt if c in other))[None])
        for _ in range(n):
            i = _draw(out[:,-1,:len(other)].softmax(-1))
            prompt += other[int(i)]
            out,h = model(i, h)
        return prompt
    return _writer('lstm', sample)


# G5: weights that were not loaded

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
    @torch.no_grad()
    def generate(model, prompt, n):
        model.eval()
        out,h = model(_ids(prompt))
        for _ in range(n):
            i = out[:,-1:].argmax(-1)
            prompt += vocab[i.item()]
            out,h = model(i, h)
        return prompt
    return _writer('gru', generate)


@program('G7', 'by hand')
def almost_frozen():
    "A temperature of 0.05"
    @torch.no_grad()
    def generate(model, prompt, n, temperature=0.05):
        out,h = model(_ids(prompt))
        for _ in range(n):
            i = _draw((out[:,-1]/temperature).softmax(-1))
            prompt += vocab[i.item()]
            out,h = model(i, h)
        return prompt
    return _writer('hand', generate)


# G8: it recites

@cache
def _reciter():
    "A network that knows 400 letters by heart"
    seed(54)
    small = train_ids[2000:2401]
    model = Net('gru', n_hid=96)
    batches = streams(4, 20, 5, small)
    opt = Adam(model.parameters(), lr=2e-2)
    train(stateless_step(model, opt, clip=1.), [o for k in range(10) for o in streams(4, 20, 5, small[k*2:])], 170)
    return model,batches,opt


@program('G8')
def knows_its_page_by_heart():
    "Trained on 400 letters until nothing was left to learn; what it writes is that page"
    model,batches,opt = deepcopy(_reciter())
    page = text[2000:2401]
    @torch.no_grad()
    def sample(model, prompt, n, temperature=0.5):
        model.eval()
        out,h = model(_ids(prompt))
        for _ in range(n):
            i = _draw((out[:,-1]/temperature).softmax(-1))
            prompt += vocab[i.item()]
            out,h = model(i, h)
        return prompt
    return dict(model=model, dls=batches, loss_func=loss_over_all, opt=opt, sample=sample, text=page)


# G9: going on is not going on

@program('G9', also='O5')
def optimiser_not_saved():
    "The weights were saved, the optimiser was not: Adam begins without its means"
    seed(55)
    learn = learner(window_dls(16, 20, 60), Scores('lstm', n_hid=48), lr=2e-2)
    def watch(learn, cbs):
        learn.fit(2, cbs=cbs)
        weights = {k:v.clone() for k,v in learn.model.state_dict().items()}
        learn.model.load_state_dict(weights)
        learn.create_opt()
        learn.fit(1, cbs=cbs)
    return dict(learn=learn, watch=watch)


@program('G9', 'AWD-LSTM')
def goes_on_from_an_old_file():
    "The run goes on from the weights of the epoch before the last, with the optimiser of the last"
    seed(56)
    learn = awd_learner(lm_dls(16, 24, 12_000), lr=1e-2)
    def watch(learn, cbs):
        learn.fit(1, cbs=cbs)
        old = {k:v.clone() for k,v in learn.model.state_dict().items()}
        learn.fit(3, cbs=cbs)
        learn.model.load_state_dict(old)
        learn.fit(1, cbs=cbs)
    return dict(learn=learn, watch=watch)
