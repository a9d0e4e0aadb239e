"""Programs with faults in data and targets (D1 to D12) and in shapes and axes (S1 to S10)"""
import random
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, ItemTransform
from fastai.text.data import LMDataLoader
from torch import nn, optim
from torch.utils.data import DataLoader as TorchDL, random_split

from charrnn_fa.text.vocab import CharVocab

from . import program
from .parts import (Batches, ElmanByHand, GRUByHand, KeepsState, Net, Scores, Stateful, V, adam, awd_learner,
                    carried_step, detached, ids, in_parts, in_steps, learner, loss_over_all, our_learner, seed,
                    stateless_step, streams, text, time_first, train, train_ids, update, valid_ids, vocab, window_dls,
                    windows)


# D1: the target is not shifted

@program('D1', 'by hand', seed=1)
def copies_its_input():
    "Inputs and targets are the same slice of the text."
    def get_batch(i, bs=16, bptt=30):
        starts = [i*bptt + k*3000 for k in range(bs)]
        inp = torch.stack([ids[s:s+bptt] for s in starts])
        target = torch.stack([ids[s:s+bptt] for s in starts])
        return inp,target
    return in_steps(carried_step, ElmanByHand(n_emb=0), [get_batch(i) for i in range(40)])


class PredictInput(Callback):
    "Targets from inputs"
    def before_batch(self): self.learn.yb = self.learn.xb


@program('D1', 'ours', seed=5)
def callback_makes_targets_of_inputs():
    "A callback replaces the targets by the inputs, unshifted."
    return dict(learn=our_learner(cbs=[PredictInput()]))


# D2: the target is shifted by another number

@program('D2', 'by hand', seed=1)
def shifted_again_in_the_loss():
    "The batches are shifted already, and the loss drops the first target and the last score besides."
    def loss_func(logits, y): return F.cross_entropy(logits[:,:-1].flatten(0, 1), y[:,1:].flatten())
    return in_steps(stateless_step, GRUByHand(56), windows(20, 30), loss_func=loss_func)


@program('D2', seed=2)
def roll_to_the_wrong_side():
    "The whole text is rolled by +1 where -1 was meant, so the target is the character before."
    y = torch.roll(train_ids, 1)
    ds = [(train_ids[i:i+25], y[i:i+25]) for i in range(1, 40_000, 25)]
    dls = TorchDL(ds, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(0))
    return in_parts(Scores('rnn'), dls, loss_func=CrossEntropyLossFlat())


class ShiftBatch(ItemTransform):
    "Cut a batch into input and target"
    def encodes(self, b):
        x,y = b
        return x[:,:-1],y[:,1:]


@program('D2', 'AWD-LSTM', seed=4)
def awd_shift_transform_after_lm_loader():
    "fastai's loader shifts, and so does a transform of the batch."
    both = train_ids[:20_000],valid_ids
    dls = DataLoaders(*[LMDataLoader([o], bs=16, seq_len=33, after_batch=[ShiftBatch()]) for o in both])
    return dict(learn=awd_learner(dls))


# D3: one column is wrong

@program('D3', 'by hand', seed=1)
def last_target_wraps_around():
    "The target is the row rolled by one, so its last entry is the row's own first character."
    return in_steps(carried_step, ElmanByHand(64, 24), [(x, torch.roll(x, -1, dims=1)) for x,_ in streams(16, 20)])


@program('D3', seed=5)
def one_target_too_few():
    "The input keeps the last character of the chunk that the target does not have: 30 against 29."
    data = [(o, o[1:]) for o in train_ids[:30_000].view(-1, 30)]
    return in_parts(Scores('gru', n_hid=48), TorchDL(data, batch_size=16))


# D4: a carried state, and batches that do not go on

@program('D4', 'by hand', seed=1)
def carries_state_over_random_windows():
    "The state is carried from batch to batch, but each batch comes from random places."
    return in_steps(carried_step, ElmanByHand(), windows(16, 16), clip=1.)


@program('D4', seed=2)
def shuffled_loader_for_a_stateful_model():
    "The model keeps its state, and the loader shuffles."
    return dict(learn=learner(window_dls(16, 20, shuffle=True), Stateful('lstm'), lr=5e-3))


@program('D4', 'AWD-LSTM', seed=4)
def awd_on_shuffled_chunks():
    "AWD-LSTM keeps its state between batches; an ordinary loader shuffles the chunks."
    return dict(learn=awd_learner(window_dls(16, 32, shuffle=True)))


# D5: the text runs down the batch

@program('D5', 'by hand', also='D4', seed=1)
def chunks_in_order_down_the_batch():
    "Chunks in their order fill a batch row by row, so each row goes on in the next row and not in the next batch."
    def batch(i, bs=16, n=20):
        part = ids[i*n*bs:(i+1)*n*bs+1]
        return part[:-1].view(bs, n),part[1:].view(bs, n)
    return in_steps(stateless_step, KeepsState(), [batch(i) for i in range(100)])


@program('D5', seed=3)
def view_minus_one_bs():
    "batchify with view(-1, bs) in place of view(bs, -1).t(): the text runs along the batch."
    bsz,bptt = 20,25
    data = train_ids[:len(train_ids)//bsz*bsz].view(-1, bsz)
    batches = [(data[i:i+bptt], data[i+1:i+1+bptt]) for i in range(0, len(data)-bptt-1, bptt)]
    return in_steps(carried_step, Net('gru', n_layers=2, batch_first=False), batches, clip=.5)


# D6: the validation text is in the training text

@program('D6', seed=1)
def split_after_windowing():
    "Windows that overlap are split at random, so most validation text is trained on."
    ds = [(ids[i:i+40], ids[i+1:i+41]) for i in range(0, 30_000, 3)]
    tr,va = random_split(ds, [9000, 1000], generator=torch.Generator().manual_seed(0))
    dls = DataLoaders(*[DataLoader(o, bs=32, shuffle=o is tr, drop_last=True, num_workers=0) for o in (tr, va)])
    return dict(learn=learner(dls, Scores('gru')))


@program('D6', 'by hand', seed=2)
def trains_on_the_whole_text():
    "Validation is the last tenth, training is the whole text."
    dls = DataLoaders(Batches(streams(16, 30, 100, ids)), Batches(streams(16, 30, 10, ids[-6000:])))
    return in_parts(KeepsState(), dls)


@program('D6', 'ours', seed=4)
def text_twice_then_split():
    "The file was appended to itself by an earlier run, and the split goes through the repetition."
    return dict(learn=our_learner(source=text[:25_000]*2, data=dict(valid_pct=0.2)))


# D7: another order of the symbols

@cache
def _trained_gru():
    "Weights of a GRU that has learned something, with the symbols in the order of `vocab`"
    seed(0)
    net = Net('gru')
    train(carried_step(net, adam(net, 1e-2)), streams(16, 24), 150)
    return net.state_dict()


@program('D7', also='G4', seed=1)
def set_order_after_reload():
    "The weights come from a file, the table is built again by list(set(text)) and has another order."
    chars = sorted(set(text))
    random.Random(0).shuffle(chars) # as in another process
    data = torch.tensor([chars.index(c) for c in text])
    net = Net('gru')
    net.load_state_dict(_trained_gru())
    return in_steps(carried_step, net, streams(16, 24, 40, data), adam(net, 1e-3))


@program('D7', 'ours', also='G4', seed=3)
def vocabulary_of_another_text():
    "The weights of a run on one text, the vocabulary of another with as many symbols."
    old = our_learner(lr=1e-2)
    old.fit(1)
    other = text.translate(str.maketrans('()*+,-./:', '\u00e0\u00e8\u00e9\u00f6\u00fc\u00e4\u00f1\u00ea\u00f2'))
    learn = our_learner(source=other, lr=1e-2)
    learn.model.load_state_dict(old.model.state_dict())
    return dict(learn=learn)


# D8: symbols get lost

@program('D8', 'ours', seed=1)
def min_freq_turns_capitals_into_unk():
    "Symbols with fewer than 300 occurrences became one unknown symbol."
    return dict(learn=our_learner(data=dict(min_freq=300)), text=text)


def _with_own_vocabulary(voc, corpus, written, **kwargs):
    "A network of that vocabulary over `corpus`, with a correct `sample`; `written` is the text as its author sees it"
    net = Net(n_out=len(voc), **kwargs)
    net.emb = nn.Embedding(len(voc), 32)
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        scores,state = model(voc.encode(prompt if prompt in corpus else prompt.lower())[None])
        for _ in range(n):
            i = torch.multinomial(scores[:,-1].softmax(-1), 1)
            prompt += voc[int(i)]
            scores,state = model(i, state)
        model.train()
        return prompt
    return dict(in_steps(carried_step, net, streams(16, 24, 40, voc.encode(corpus))), sample=sample, text=written)


@program('D8', seed=4)
def everything_lower_case():
    "The text is made lower-case before it is numbered, though capitals are wanted in what is written."
    low = text.lower()
    return _with_own_vocabulary(CharVocab.from_text(low), low, text, cell='lstm')


# D9: the text is damaged

@program('D9', 'ours', seed=1)
def utf8_read_as_cp1252():
    "A file in UTF-8 was read as cp1252: three signs stand for each curly quote."
    curly = text.replace('"', '\u201c').replace("'", '\u2019').replace(' - ', ' \u2014 ')
    return dict(learn=our_learner(source=curly.encode('utf-8').decode('cp1252', errors='ignore')))


@program('D9', seed=3)
def bom_and_carriage_returns():
    "Files with a byte order mark and CR LF were put together unchanged."
    files = [text[i:i+6000] for i in range(0, 60_000, 6000)]
    corpus = ''.join('\ufeff' + o.replace('\n', '\r\n') for o in files)
    return _with_own_vocabulary(CharVocab.from_text(corpus), corpus, corpus)


# D10: too little text for the batches

@program('D10', 'AWD-LSTM', seed=1)
def awd_one_batch_per_epoch():
    "1,500 characters for 64 rows of 72: one short batch is all there is."
    dls = DataLoaders(LMDataLoader([ids[:1500]], bs=64, seq_len=72), LMDataLoader([ids[1500:1700]], bs=64, seq_len=72))
    return dict(learn=awd_learner(dls))


@program('D10', seed=2)
def drop_last_drops_all():
    "A batch wants 64 chunks, the text has 40, and drop_last leaves none."
    data = [(o[:-1], o[1:]) for o in train_ids[:2040].view(-1, 51)]
    return in_parts(Scores('lstm'), TorchDL(data, batch_size=64, shuffle=True, drop_last=True))


@program('D10', 'ours', seed=4)
def a_note_for_large_batches():
    "500 characters, and batches of 64 rows of 64."
    return dict(learn=our_learner(64, 64, source=text[:500], n_hid=48, emb_sz=24))


# D12: ids out of range, or of a wrong type

@program('D12', 'by hand', seed=1)
def ids_begin_with_one():
    "enumerate(chars, 1) for the table, len(chars) for the network."
    stoi = {c:i for i,c in enumerate(sorted(set(text)), 1)}
    data = torch.tensor([stoi[c] for c in text])
    return in_steps(carried_step, ElmanByHand(n_in=len(stoi), n_out=len(stoi)), streams(16, 32, 120, data))


@program('D12', seed=3)
def ids_as_floats():
    "The ids went through a NumPy array of float32 and stayed floats."
    data = torch.from_numpy(np.array([vocab.stoi[c] for c in text], dtype=np.float32))
    return in_steps(carried_step, Net('lstm'), streams(16, 32, 20, data))


@program('D12', seed=4)
def targets_as_int32():
    "Targets are int32, which the loss does not take."
    return in_parts(Scores('rnn'), [(x, y.int()) for x,y in windows()])


# S1: classes are not in dimension 1

@program('S1', 'by hand', seed=1)
def three_dimensions_into_cross_entropy():
    "F.cross_entropy gets (batch, time, vocabulary) as it comes from the network."
    rnn = ElmanByHand(n_emb=0)
    optimizer = optim.SGD(rnn.parameters(), lr=.1)
    def fit_batch(batch_x, batch_y):
        y_hat,_ = rnn(batch_x)
        loss = F.cross_entropy(y_hat, batch_y)
        return update(optimizer, loss).item()
    return dict(step_function=fit_batch, model=rnn, batches=windows(20, 24), opt=optimizer)


@program('S1', 'AWD-LSTM', seed=3)
def awd_with_pytorchs_loss():
    "fastai's model with PyTorch's loss, which does not flatten."
    return dict(learn=awd_learner(loss_func=nn.CrossEntropyLoss()))


@program('S1', also='S9', seed=4)
def sizes_agree_by_chance():
    "seq_len equals the vocabulary size, so cross_entropy takes time for the classes without a word."
    return in_parts(Scores('gru', n_hid=48), windows(8, V, 30), loss_func=nn.CrossEntropyLoss())


# S2: ids are not embedded

@program('S2', seed=1)
def id_as_a_magnitude():
    "The id itself is the input, as a float."
    class ScalarRNN(nn.Module):
        def __init__(self, n_hid=64):
            super().__init__()
            self.rnn,self.fc = nn.RNN(1, n_hid, batch_first=True),nn.Linear(n_hid, V)
        def forward(self, x):
            out,_ = self.rnn(x.float().unsqueeze(-1))
            return self.fc(out)
    return in_parts(ScalarRNN(), windows(), loss_func=CrossEntropyLossFlat())


@program('S2', 'by hand', seed=4)
def linear_layer_on_ids():
    "The first linear layer gets ids, one a row, as in the first evening of many."
    n_hid = 64
    i_h,h_h,h_o = nn.Linear(V, n_hid),nn.Linear(n_hid, n_hid),nn.Linear(n_hid, V)
    net = nn.ModuleList([i_h, h_h, h_o])
    opt = adam(net)
    def step(x, y):
        h,loss = torch.zeros(len(x), n_hid),0.
        for t in range(x.shape[1]):
            h = torch.tanh(i_h(x[:,t]) + h_h(h))
            loss = loss + F.cross_entropy(h_o(h), y[:,t])
        return update(opt, loss)/x.shape[1]
    return dict(step_function=step, model=net, batches=windows(16, 16), opt=opt)


# S3: scores and targets are flattened in different orders

@program('S3', seed=2)
def output_never_transposed_back():
    "The input is transposed for nn.GRU, the output is not transposed back."
    class Transposing(Scores):
        def forward(self, x): return super().forward(x.t())
    return dict(learn=learner(window_dls(16, 30), Transposing('gru', batch_first=False), lr=5e-3))


@program('S3', seed=3)
def targets_flattened_with_a_transpose():
    "The scores are batch first, the targets are transposed before they are flattened."
    def loss_of(scores, y): return F.cross_entropy(scores.reshape(-1, V), y.t().reshape(-1))
    return in_steps(carried_step, Net('lstm', n_layers=2), streams(20, 25), loss_func=loss_of)


# S4: view where transpose was meant

@program('S4', seed=1)
def view_as_seq_bs():
    "x.view(seq_len, bs) is to give time first for nn.LSTM, and the scores are viewed back."
    class Viewer(Scores):
        def forward(self, x):
            bs,sl = x.size()
            out,_ = self.rnn(self.emb(x).view(sl, bs, -1))
            return self.out(out).view(bs, sl, -1)
    return in_parts(Viewer('lstm', batch_first=False), windows(12, 40))


# S5: the recurrence runs over the batch

@program('S5', seed=1)
def forgot_batch_first():
    "nn.LSTM without batch_first gets (batch, time, features)."
    return in_parts(Scores('lstm', batch_first=False), windows(32, 20))


@program('S5', seed=3)
def batch_first_for_time_first_data():
    "The loader gives (time, batch), and the layers have batch_first=True."
    return in_parts(Scores('rnn', n_layers=2, batch_first=True), time_first(windows(16, 30)))


@program('S5', 'by hand', seed=4)
def loops_over_rows():
    "for e in emb(x) goes over the rows of the batch, not over time."
    class RowLoop(ElmanByHand):
        def forward(self, x):
            h,res = torch.zeros(x.shape[1], self.n_hid),[]
            for e in self.emb(x):
                h = self.cell(e, h)
                res.append(self.h2o(h))
            return torch.stack(res)
    return in_parts(RowLoop(), windows(16, 20), loss_func=CrossEntropyLossFlat())


# S6: the state has another batch size

class FixedState(Net):
    "Makes its state once, for one batch size"
    def __init__(self, bs, cell, n_layers):
        super().__init__(cell, n_layers=n_layers)
        h = torch.zeros(n_layers, bs, 64)
        self.hidden = (h, h.clone()) if cell == 'lstm' else h
    def forward(self, x):
        out,state = self.rnn(self.emb(x), self.hidden)
        self.hidden = detached(state)
        return self.out(out)


@program('S6', seed=1)
def last_batch_is_smaller():
    "The state is made for 32 rows; the last batch of the loader has fewer."
    data = [(o[:-1], o[1:]) for o in train_ids[:3330].view(-1, 37)]
    return in_parts(FixedState(32, 'lstm', 2), TorchDL(data, batch_size=32, shuffle=False))


@program('S6', seed=2)
def validation_rows_differ():
    "The validation loader has twice as many rows as the state."
    dls = DataLoaders(Batches(streams(16, 24)), Batches(streams(32, 24, 5, valid_ids)))
    return dict(learn=learner(dls, FixedState(16, 'gru', 1)))


# S7: the state of an LSTM is a pair

@program('S7', seed=1)
def detach_a_tuple():
    "hidden.detach() from code for a GRU; the LSTM gives a pair."
    net = Net('lstm')
    opt = adam(net)
    hidden = None
    def step(x, y):
        nonlocal hidden
        out,hidden = net(x, hidden)
        loss = update(opt, loss_over_all(out, y))
        hidden = hidden.detach()
        return loss.item()
    return dict(step_function=step, model=net, batches=streams(16, 24), opt=opt)


@program('S7', seed=2)
def one_tensor_for_an_lstm():
    "init_hidden gives one tensor, nn.LSTM wants two."
    class Model(Net):
        def forward(self, x):
            hidden = torch.zeros(2, x.size(0), 64)
            out,_ = self.rnn(self.emb(x), hidden)
            return self.out(out)
    return in_parts(Model('lstm', n_layers=2), windows(16, 24))


# S8: as many outputs as something else

@program('S8', 'by hand', seed=1)
def one_output_per_byte():
    "256 outputs as for bytes, with a vocabulary of fewer characters."
    return in_steps(carried_step, GRUByHand(n_out=256), streams(16, 24))


@program('S8', seed=2)
def scores_are_the_hidden_state():
    "There is no output layer: the 64 hidden units are taken for scores."
    class NoHead(Scores):
        def forward(self, x): return self.rnn(self.emb(x))[0]
    net = NoHead('gru')
    del net.out
    return in_parts(net, windows(16, 24), loss_func=CrossEntropyLossFlat())


@program('S8', 'ours', seed=5)
def decoder_for_bytes_in_ours():
    "The decoder of our model was replaced by one with an output for each of 256 bytes."
    learn = our_learner()
    learn.model.decoder = nn.Linear(64, 256)
    return dict(learn=learn)


# S9: softmax over a wrong dimension

@program('S9', 'by hand', seed=1)
def log_softmax_over_time():
    "F.log_softmax(out, dim=1) on (batch, time, vocabulary), then the negative log-likelihood."
    rnn = ElmanByHand()
    opt = adam(rnn)
    def step(x, y):
        out,_ = rnn(x)
        logp = F.log_softmax(out, dim=1)
        return update(opt, F.nll_loss(logp.flatten(0, 1), y.flatten()))
    return dict(step_function=step, model=rnn, batches=windows(16, 24), opt=opt)


@program('S9', seed=2)
def logsoftmax_module_dim_zero():
    "nn.LogSoftmax(dim=0), copied from a program without batches."
    def nll(out, y): return F.nll_loss(out.reshape(-1, V), y.reshape(-1))
    return in_parts(nn.Sequential(Scores('gru'), nn.LogSoftmax(dim=0)), windows(16, 24), loss_func=nll)


# S10: the future is visible

@program('S10', seed=1)
def bidirectional_language_model():
    "bidirectional=True, because it gave a lower loss."
    class BiLM(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.out = nn.Embedding(V, 32),nn.Linear(80, V)
            self.rnn = nn.LSTM(32, 40, batch_first=True, bidirectional=True)
        def forward(self, x): return self.out(self.rnn(self.emb(x))[0])
    return dict(learn=learner(window_dls(16, 32), BiLM(), lr=5e-3))


@program('S10', seed=2)
def convolution_that_looks_ahead():
    "A convolution with padding on both sides before the GRU."
    class ConvGRU(Scores):
        def __init__(self, d=48):
            super().__init__('gru', n_hid=d, n_emb=d)
            self.conv = nn.Conv1d(d, d, kernel_size=3, padding=1)
        def forward(self, x):
            e = self.emb(x)
            e = e + F.relu(self.conv(e.transpose(1, 2))).transpose(1, 2)
            return self.out(self.rnn(e)[0])
    return in_parts(ConvGRU(), windows(16, 32))


@program('S10', 'by hand', seed=3)
def style_vector_of_the_last_state():
    "The last hidden state is added to all positions before the output layer."
    class Styled(GRUByHand):
        def forward(self, x):
            h,hs = torch.zeros(x.shape[0], self.n_hid),[]
            for e in self.emb(x).unbind(1):
                h = self.cell(e, h)
                hs.append(h)
            hs = torch.stack(hs, 1)
            return self.out(hs + hs[:,-1:])
    return in_steps(stateless_step, Styled(), windows(16, 24))
