"""Programs with faults in data and targets (D1 to D12) and in shapes and axes (S1 to S10)"""
import random
from collections import Counter
import numpy as np
import torch
import torch.nn.functional as F
from functools import cache
from torch import nn, optim
from torch.utils.data import DataLoader as TorchDL, Dataset, TensorDataset, random_split
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, ItemTransform
from fastai.text.data import LMDataLoader, Numericalize
from fastai.text.models import AWD_LSTM, get_language_model
from charrnn_fa.learner import char_learner
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.text.vocab import CharVocab
from . import program
from .parts import (Batches, ElmanByHand, GRUByHand, KeepsState, LSTMByHand, Net, Scores, Stateful, V, awd_config,
                    awd_learner, awd_model, carried_step, detached, ids, learner, lm_dls, loss_over_all, our_learner,
                    quiet, seed, stateless_step, streams, text, time_first, train, train_ids, valid_ids,
                    vocab, window_dls, windows)


def _adam(model, lr=5e-3): return optim.Adam(model.parameters(), lr=lr)


# D1: the target is not shifted

@program('D1', 'by hand')
def copies_its_input():
    "Inputs and targets are the same slice of the text."
    seed(1)
    def get_batch(i, bs=16, bptt=30):
        starts = [i*bptt + k*3000 for k in range(bs)]
        inp = torch.stack([ids[s:s+bptt] for s in starts])
        target = torch.stack([ids[s:s+bptt] for s in starts])
        return inp,target
    rnn = ElmanByHand(n_hid=64, n_emb=0)
    opt = _adam(rnn)
    return dict(step_function=carried_step(rnn, opt), model=rnn, batches=[get_batch(i) for i in range(40)], opt=opt)


class CharDataset(Dataset):
    "Chunks of a text; each is input and target"
    def __init__(self, data, block): self.data,self.block = data,block
    def __len__(self): return (len(self.data)-1)//self.block
    def __getitem__(self, i):
        chunk = self.data[i*self.block:(i+1)*self.block]
        return chunk,chunk.clone()


@program('D1', 'torch.nn')
def dataset_returns_the_chunk_twice():
    "The dataset gives the chunk as input and a copy of it as target."
    seed(2)
    net = Scores('lstm', n_hid=48)
    dl = TorchDL(CharDataset(train_ids, 24), batch_size=20, shuffle=True, drop_last=True,
                 generator=torch.Generator().manual_seed(2))
    return dict(model=net, dls=dl, loss_func=loss_over_all, opt=_adam(net, 2e-3))


@program('D1', 'torch.nn')
def autoencoder_loss():
    "The loss compares the scores with the input of the step, not with the target."
    seed(3)
    net = Net('gru', n_hid=40, n_layers=2, batch_first=False)
    opt = optim.RMSprop(net.parameters(), lr=2e-3)
    state = None
    def training_step(batch):
        nonlocal state
        source,_ = batch
        output,state = net(source, state)
        state = state.detach()
        loss = F.cross_entropy(output.view(-1, V), source.view(-1))
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    return dict(step_function=training_step, model=net, batches=time_first(streams(12, 20)), opt=opt)


@program('D1', 'AWD-LSTM')
def awd_targets_equal_inputs():
    "Own loaders for fastai's language model, with the slice [:-1] on both sides."
    seed(4)
    def _pairs(source): return [(o[:-1], o[:-1]) for o in source[:len(source)//33*33].view(-1, 33)]
    dls = DataLoaders(DataLoader(_pairs(train_ids), bs=16, shuffle=True, drop_last=True, num_workers=0),
                      DataLoader(_pairs(valid_ids), bs=16, drop_last=True, num_workers=0))
    class NoCarry(Callback):
        def before_batch(self): self.model.reset()
    return dict(learn=awd_learner(dls, cbs=[NoCarry()]))


class PredictInput(Callback):
    "Targets from inputs"
    def before_batch(self): self.learn.yb = self.learn.xb


@program('D1', 'ours')
def callback_makes_targets_of_inputs():
    "A callback replaces the targets by the inputs, unshifted."
    seed(5)
    return dict(learn=our_learner(cbs=[PredictInput()]))


# D2: the target is shifted by another number

@program('D2', 'by hand')
def shifted_again_in_the_loss():
    "The batches are shifted already, and the loss drops the first target and the last score besides."
    seed(1)
    model = GRUByHand(56)
    optimizer = _adam(model)
    def step(x, y):
        logits,_ = model(x)
        loss = F.cross_entropy(logits[:,:-1].flatten(0, 1), y[:,1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(20, 30), opt=optimizer)


@program('D2', 'torch.nn')
def roll_to_the_wrong_side():
    "The whole text is rolled by +1 where -1 was meant, so the target is the character before."
    seed(2)
    y = torch.roll(train_ids, 1)
    at = [(s, s+25) for s in range(1, 40_000, 25)]
    ds = [(train_ids[a:b], y[a:b]) for a,b in at]
    net = Scores('rnn', n_hid=64)
    dls = TorchDL(ds, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(0))
    return dict(model=net, dls=dls, loss_func=CrossEntropyLossFlat(), opt=_adam(net))


@program('D2', 'torch.nn')
def two_steps_ahead():
    "The target slice begins two characters after the input."
    seed(3)
    def loader(source, bs, n):
        k = len(source)//bs - 2
        a = torch.stack([source[i*k:i*k+k] for i in range(bs)])
        b = torch.stack([source[i*k+2:i*k+k+2] for i in range(bs)])
        return Batches([(a[:,i:i+n], b[:,i:i+n]) for i in range(0, k-n, n)])
    dls = DataLoaders(loader(train_ids, 16, 32), loader(valid_ids, 16, 32))
    return dict(learn=learner(dls, Stateful('gru', n_hid=64), lr=5e-3))


class ShiftBatch(ItemTransform):
    "Cut a batch into input and target"
    def encodes(self, b):
        x,y = b
        return x[:,:-1],y[:,1:]


@program('D2', 'AWD-LSTM')
def awd_shift_transform_after_lm_loader():
    "fastai's loader shifts, and so does a transform of the batch."
    seed(4)
    dls = DataLoaders(*[LMDataLoader([o], bs=16, seq_len=33, after_batch=[ShiftBatch()])
                        for o in (train_ids[:20_000], valid_ids)])
    return dict(learn=awd_learner(dls))


class NextChar(Callback):
    "Train on the next character"
    def before_batch(self): self.learn.xb,self.learn.yb = (self.x[:,:-1],),(self.y[:,1:],)


@program('D2', 'ours')
def callback_shifts_what_is_shifted():
    "A callback shifts the batches of a loader whose targets are shifted already."
    seed(5)
    return dict(learn=our_learner(cbs=[NextChar()]))


@program('D2', 'by hand')
def pairs_of_characters():
    "The offset of the target is a pair of characters, from a program that had bigrams for symbols."
    seed(6)
    rnn = ElmanByHand(64, 0)
    opt = _adam(rnn)
    rows = train_ids[:16*3300].view(16, -1)
    batches = [(rows[:,i:i+20], rows[:,i+2:i+22]) for i in range(0, 3200, 20)]
    return dict(step_function=carried_step(rnn, opt, clip=1.), model=rnn, batches=batches, opt=opt)


# D3: one column is wrong

@program('D3', 'by hand')
def last_target_wraps_around():
    "The target is the row rolled by one, so its last entry is the row's own first character."
    seed(1)
    xs = [x for x,_ in streams(16, 20)]
    batches = [(x, torch.roll(x, -1, dims=1)) for x in xs]
    net = ElmanByHand(64, 24)
    opt = _adam(net)
    return dict(step_function=carried_step(net, opt), model=net, batches=batches, opt=opt)


@program('D3', 'torch.nn')
def last_target_is_padded():
    "Chunks have no character for the last target, so a zero was put there."
    seed(2)
    chunks = train_ids[:40_000].view(-1, 20)
    targets = torch.cat([chunks[:,1:], torch.zeros(len(chunks), 1, dtype=torch.long)], dim=1)
    net = Scores('lstm', n_hid=64, n_layers=2)
    dls = TorchDL(TensorDataset(chunks, targets), batch_size=25, shuffle=True,
                  generator=torch.Generator().manual_seed(1))
    return dict(model=net, dls=dls, loss_func=loss_over_all, opt=_adam(net))


@program('D3', 'torch.nn')
def numpy_ydata_per_row():
    "The well-known ydata[-1] = xdata[0], done in each row in place of once for the text."
    seed(3)
    def make_batch(k):
        xdata = np.stack([ids[b*3000+k*16:b*3000+k*16+16].numpy() for b in range(18)])
        ydata = np.copy(xdata)
        ydata[:,:-1] = xdata[:,1:]
        ydata[:,-1] = xdata[:,0]
        return torch.from_numpy(xdata),torch.from_numpy(ydata)
    net = Stateful('gru', n_hid=72)
    dls = DataLoaders(Batches([make_batch(k) for k in range(100)]), Batches(streams(18, 16, 5, valid_ids)))
    return dict(learn=learner(dls, net, lr=5e-3))


@program('D3', 'AWD-LSTM')
def awd_rows_that_wrap():
    "Each row of the loader ends with its own first character as target."
    seed(4)
    def _wrap(source, n): return Batches([(x, torch.cat([x[:,1:], x[:,:1]], 1)) for x,_ in streams(16, 24, n, source)])
    return dict(learn=awd_learner(DataLoaders(_wrap(train_ids, 40), _wrap(valid_ids, 5))))


@program('D3', 'torch.nn')
def one_target_too_few():
    "The input keeps the last character of the chunk that the target does not have: 30 against 29."
    seed(5)
    data = [(o, o[1:]) for o in train_ids[:30_000].view(-1, 30)]
    net = Scores('gru', n_hid=48)
    return dict(model=net, dls=TorchDL(data, batch_size=16), loss_func=loss_over_all, opt=_adam(net))


@program('D3', 'by hand')
def last_target_repeats_the_input():
    "There is no next character at the end of a row, so the last one is repeated as its own target."
    seed(6)
    model = KeepsState(64)
    batches = [(x, torch.cat([x[:,1:], x[:,-1:]], dim=1)) for x,_ in streams(20, 15, 60)]
    return dict(model=model, dls=batches, loss_func=loss_over_all, opt=_adam(model))


# D4: a carried state, and batches that do not go on

@program('D4', 'by hand')
def carries_state_over_random_windows():
    "The state is carried from batch to batch, but each batch comes from random places."
    seed(1)
    rnn = ElmanByHand(64, 32)
    opt = _adam(rnn)
    hidden = torch.zeros(16, 64)
    def train_step(inputs, targets):
        nonlocal hidden
        out,h = rnn(inputs, hidden)
        hidden = h.detach()
        loss = loss_over_all(out, targets)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(rnn.parameters(), 1.)
        opt.step()
        return loss.item()
    return dict(step_function=train_step, model=rnn, batches=windows(16, 16), opt=opt)


@program('D4', 'torch.nn')
def shuffled_loader_for_a_stateful_model():
    "The model keeps its state, and the loader shuffles."
    seed(2)
    return dict(learn=learner(window_dls(16, 20, shuffle=True), Stateful('lstm', n_hid=64), lr=5e-3))


@program('D4', 'torch.nn')
def randint_batches_and_kept_hidden():
    "get_batch draws offsets at random as for a transformer, while the GRU keeps its state."
    seed(3)
    net = Stateful('gru', n_hid=80, n_layers=2, batch_first=False)
    rng = np.random.RandomState(0)
    def get_batch():
        ix = rng.randint(0, len(train_ids)-33, size=24)
        return (torch.stack([train_ids[i:i+32] for i in ix], dim=1),
                torch.stack([train_ids[i+1:i+33] for i in ix], dim=1))
    return dict(model=net, dls=[get_batch() for _ in range(60)], loss_func=loss_over_all, opt=_adam(net, 3e-3))


@program('D4', 'AWD-LSTM')
def awd_on_shuffled_chunks():
    "AWD-LSTM keeps its state between batches; an ordinary loader shuffles the chunks."
    seed(4)
    return dict(learn=awd_learner(window_dls(16, 32, shuffle=True)))


@program('D4', 'ours')
def ordinary_shuffled_loader_for_ours():
    "char_learner carries the state; the loaders are ordinary ones that shuffle chunks."
    seed(5)
    dls = window_dls(16, 32, shuffle=True)
    dls.vocab = vocab
    return dict(learn=quiet(char_learner(dls, n_hid=64, emb_sz=32, head_sz=0, n_layers=1, precision='fp32', seed=5)))


# D5: the text runs down the batch

@program('D5', 'by hand', also='D4')
def chunks_in_order_down_the_batch():
    "Chunks in their order fill a batch row by row, so each row goes on in the next row and not in the next batch."
    seed(1)
    n,bs = 20,16
    def batch(i):
        part = ids[i*n*bs:(i+1)*n*bs+1]
        return part[:-1].view(bs, n),part[1:].view(bs, n)
    model = KeepsState(n_hid=64)
    opt = _adam(model)
    return dict(step_function=stateless_step(model, opt), model=model, batches=[batch(i) for i in range(100)], opt=opt)


@program('D5', 'torch.nn', also='D4')
def sequential_dataloader_and_state():
    "DataLoader(shuffle=False) over chunks, in the belief that this makes batches go on."
    seed(2)
    n = 24
    items = [(train_ids[i:i+n], train_ids[i+1:i+n+1]) for i in range(0, len(train_ids)-n-1, n)]
    lstm = Stateful('lstm', n_hid=64)
    dls = TorchDL(items, batch_size=20, shuffle=False, drop_last=True)
    return dict(model=lstm, dls=dls, loss_func=loss_over_all, opt=_adam(lstm))


@program('D5', 'torch.nn')
def view_minus_one_bs():
    "batchify with view(-1, bs) in place of view(bs, -1).t(): the text runs along the batch."
    seed(3)
    bsz,bptt = 20,25
    data = train_ids[:len(train_ids)//bsz*bsz].view(-1, bsz)
    batches = [(data[i:i+bptt], data[i+1:i+1+bptt]) for i in range(0, len(data)-bptt-1, bptt)]
    net = Net('gru', n_hid=64, n_layers=2, batch_first=False)
    opt = _adam(net)
    return dict(step_function=carried_step(net, opt, clip=.5), model=net, batches=batches, opt=opt)


@program('D5', 'AWD-LSTM', also='D4')
def awd_on_ordered_chunks():
    "AWD-LSTM with a loader that puts one chunk after the other into a batch."
    seed(4)
    return dict(learn=awd_learner(window_dls(16, 32, shuffle=False)))


@program('D5', 'by hand')
def fortran_order():
    "NumPy's reshape without a transpose: neighbours of the text stand in one column of the batch."
    seed(5)
    bs,n = 12,25
    a = np.array(train_ids[:bs*n*60+bs])
    def cut(i): return torch.from_numpy(a[i*bs*n:(i+1)*bs*n].reshape(n, bs).T.copy())
    def cut_y(i): return torch.from_numpy(a[i*bs*n+bs:(i+1)*bs*n+bs].reshape(n, bs).T.copy())
    net = LSTMByHand(64)
    opt = _adam(net)
    batches = [(cut(i), cut_y(i)) for i in range(60)]
    return dict(step_function=carried_step(net, opt), model=net, batches=batches, opt=opt)


# D6: the validation text is in the training text

@program('D6', 'torch.nn')
def split_after_windowing():
    "Windows that overlap are split at random, so most validation text is trained on."
    seed(1)
    n = 40
    ds = [(ids[i:i+n], ids[i+1:i+n+1]) for i in range(0, 30_000, 3)]
    tr,va = random_split(ds, [9000, 1000], generator=torch.Generator().manual_seed(0))
    dls = DataLoaders(DataLoader(tr, bs=32, shuffle=True, drop_last=True, num_workers=0),
                      DataLoader(va, bs=32, drop_last=True, num_workers=0))
    return dict(learn=learner(dls, Scores('gru', n_hid=64)))


@program('D6', 'by hand')
def trains_on_the_whole_text():
    "Validation is the last tenth, training is the whole text."
    seed(2)
    net = KeepsState(64)
    dls = DataLoaders(Batches(streams(16, 30, 100, ids)), Batches(streams(16, 30, 10, ids[-6000:])))
    return dict(model=net, dls=dls, loss_func=loss_over_all, opt=_adam(net))


@program('D6', 'AWD-LSTM')
def awd_valid_is_part_of_train():
    "The validation loader reads text that the training loader reads as well."
    seed(3)
    train_dl = LMDataLoader([ids[:30_000]], bs=16, seq_len=32)
    valid_dl = LMDataLoader([ids[20_000:26_000]], bs=16, seq_len=32)
    return dict(learn=awd_learner(DataLoaders(train_dl, valid_dl)))


@program('D6', 'ours')
def text_twice_then_split():
    "The file was appended to itself by an earlier run, and the split goes through the repetition."
    seed(4)
    twice = text[:25_000] + text[:25_000]
    dls = CharDataLoaders.from_text(twice, bs=16, seq_len=32, valid_pct=0.2, seed=0, device='cpu')
    return dict(learn=quiet(char_learner(dls, n_hid=64, emb_sz=32, head_sz=0, n_layers=1, precision='fp32')))


# D7: another order of the symbols

def _other_order(s=0):
    "What `list(set(text))` gives in another process"
    chars = sorted(set(text))
    random.Random(s).shuffle(chars)
    return chars


@cache
def _trained_gru():
    "Weights of a GRU that has learned something, with the symbols in the order of `vocab`"
    seed(0)
    net = Net('gru', n_hid=64)
    train(carried_step(net, _adam(net, 1e-2)), streams(16, 24), 150)
    return net.state_dict()


@program('D7', 'torch.nn', also='G4')
def set_order_after_reload():
    "The weights come from a file, the table is built anew by list(set(text)) and has another order."
    seed(1)
    stoi = {c:i for i,c in enumerate(_other_order())}
    data = torch.tensor([stoi[c] for c in text])
    net = Net('gru', n_hid=64)
    net.load_state_dict(_trained_gru())
    opt = _adam(net, 1e-3)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 24, 40, data), opt=opt)


@program('D7', 'torch.nn', also='G4')
def samples_with_a_new_table():
    "Training used one table; the text is written with one built anew from a set."
    seed(2)
    chars = _other_order(3)
    stoi = {c:i for i,c in enumerate(chars)}
    net = Net('gru', n_hid=64)
    net.load_state_dict(_trained_gru())
    opt = _adam(net, 1e-3)
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        scores,h = model(torch.tensor([[stoi[c] for c in prompt]]))
        res = prompt
        for _ in range(n):
            i = torch.multinomial(scores[:,-1].softmax(-1), 1)
            res += chars[int(i)]
            scores,h = model(i, h)
        model.train()
        return res
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 24), opt=opt,
                sample=sample, text=text)


@program('D7', 'ours', also='G4')
def vocabulary_of_another_text():
    "The weights of a run on one text, the vocabulary of another with as many symbols."
    seed(3)
    old = our_learner(lr=1e-2)
    old.fit(1)
    other = text.translate(str.maketrans('()*+,-./:', '\u00e0\u00e8\u00e9\u00f6\u00fc\u00e4\u00f1\u00ea\u00f2'))
    learn = our_learner(source=other, lr=1e-2)
    learn.model.load_state_dict(old.model.state_dict())
    return dict(learn=learn)


@cache
def _trained_awd():
    "Weights of an AWD-LSTM that has learned something"
    seed(0)
    learn = awd_learner(lm_dls(12, 20, 12*20*60), lr=3e-2)
    learn.fit(2)
    return learn.model.state_dict()


@program('D7', 'AWD-LSTM', also='G4')
def awd_weights_for_another_order():
    "A pretrained AWD-LSTM is loaded, and the vocabulary is sorted by frequency now, by code point then."
    seed(4)
    itos = [c for c,_ in Counter(text).most_common()]
    data = torch.tensor([itos.index(c) for c in text])
    dls = DataLoaders(*[LMDataLoader([o], bs=16, seq_len=24) for o in (data[:16_000], data[55_000:])])
    dls.vocab = itos
    learn = awd_learner(dls, lr=2e-3)
    learn.model.load_state_dict(_trained_awd())
    return dict(learn=learn)


# D8: symbols get lost

def _lm(data): return DataLoaders(*[LMDataLoader([o], bs=16, seq_len=32) for o in (data[:20_000], data[55_000:])])


@program('D8', 'ours')
def min_freq_turns_capitals_into_unk():
    "Symbols with fewer than 300 occurrences became one unknown symbol."
    seed(1)
    dls = CharDataLoaders.from_text(text, bs=16, seq_len=32, min_freq=300, seed=0, device='cpu')
    learn = quiet(char_learner(dls, n_hid=64, emb_sz=32, head_sz=0, n_layers=1, precision='fp32'))
    return dict(learn=learn, text=text)


@program('D8', 'AWD-LSTM')
def awd_numericalize_with_min_freq():
    "fastai's Numericalize with a min_freq for words: rare characters are xxunk."
    seed(2)
    num = Numericalize(min_freq=400)
    num.setup([list(text)])
    data = torch.as_tensor(num(list(text))).long()
    dls = _lm(data)
    dls.vocab = num.vocab
    model = get_language_model(AWD_LSTM, len(num.vocab), awd_config(pad_token=num.vocab.index('xxpad')), 0.1)
    return dict(learn=awd_learner(dls, model), text=text)


def _sampler(itos, stoi):
    "A sampling function without a fault, for a model that gives (scores, state)"
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        scores,state = model(torch.tensor([[stoi(c) for c in prompt]]))
        res = list(prompt)
        for _ in range(n):
            i = torch.multinomial(scores[:,-1].softmax(-1), 1)
            res.append(itos[int(i)])
            scores,state = model(i, state)
        model.train()
        return ''.join(res)
    return sample


@program('D8', 'by hand')
def unknown_characters_are_id_zero():
    "All but lower-case letters and the space get the id of '#', by dict.get."
    seed(3)
    alphabet = '#abcdefghijklmnopqrstuvwxyz '
    lookup = {c:i for i,c in enumerate(alphabet)}
    data = torch.tensor([lookup.get(c, 0) for c in text])
    rnn = GRUByHand(64, n_out=len(alphabet))
    rnn.emb = nn.Embedding(len(alphabet), 32)
    opt = _adam(rnn)
    return dict(step_function=carried_step(rnn, opt), model=rnn, batches=streams(16, 24, 40, data), opt=opt,
                sample=_sampler(alphabet, lambda c: lookup.get(c, 0)), text=text)


@program('D8', 'torch.nn')
def everything_lower_case():
    "The text is made lower-case before it is numbered, though capitals are wanted in what is written."
    seed(4)
    low = CharVocab.from_text(text.lower())
    data = low.encode(text.lower())
    net = Net('lstm', n_hid=64, n_out=len(low))
    net.emb = nn.Embedding(len(low), 32)
    opt = _adam(net)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 24, 40, data), opt=opt,
                sample=_sampler(low.itos, lambda c: low.stoi[c.lower()]), text=text)


# D9: the text is damaged

_curly = text.replace('"', '\u201c').replace("'", '\u2019').replace(' - ', ' \u2014 ')

def _ours_from(source):
    dls = CharDataLoaders.from_text(source, bs=16, seq_len=32, seed=0, device='cpu')
    return quiet(char_learner(dls, n_hid=64, emb_sz=32, head_sz=0, n_layers=1, precision='fp32'))


@program('D9', 'ours')
def utf8_read_as_cp1252():
    "A file in UTF-8 was read as cp1252: three signs stand for each curly quote."
    seed(1)
    return dict(learn=_ours_from(_curly.encode('utf-8').decode('cp1252', errors='ignore')))


@program('D9', 'ours')
def replacement_characters():
    "A file in cp1252 was read as UTF-8 with errors='replace'."
    seed(2)
    return dict(learn=_ours_from(_curly.encode('cp1252').decode('utf-8', errors='replace')))


@program('D9', 'torch.nn')
def bom_and_carriage_returns():
    "Files with a byte order mark and CR LF were put together unchanged."
    seed(3)
    files = [text[i:i+6000] for i in range(0, 60_000, 6000)]
    corpus = ''.join('\ufeff' + o.replace('\n', '\r\n') for o in files)
    voc = CharVocab.from_text(corpus)
    net = Net('gru', n_hid=64, n_out=len(voc))
    net.emb = nn.Embedding(len(voc), 32)
    opt = _adam(net)
    batches = streams(16, 24, 40, voc.encode(corpus))
    return dict(step_function=carried_step(net, opt), model=net, batches=batches, opt=opt,
                sample=_sampler(voc.itos, voc.stoi.get), text=corpus)


@program('D9', 'AWD-LSTM')
def awd_on_windows_line_ends_and_mojibake():
    "UTF-8 read as latin-1 for fastai's loaders; the vocabulary has the debris."
    seed(4)
    corpus = _curly.encode('utf-8').decode('latin-1')
    voc = CharVocab.from_text(corpus)
    data = voc.encode(corpus)
    dls = _lm(data)
    dls.vocab = voc.itos
    return dict(learn=awd_learner(dls, get_language_model(AWD_LSTM, len(voc), awd_config(), 0.1)), text=corpus)


# D10: too little text for the batches

@program('D10', 'AWD-LSTM')
def awd_one_batch_per_epoch():
    "1,500 characters for 64 rows of 72: one short batch is all there is."
    seed(1)
    dls = DataLoaders(LMDataLoader([ids[:1500]], bs=64, seq_len=72), LMDataLoader([ids[1500:1700]], bs=64, seq_len=72))
    return dict(learn=awd_learner(dls))


@program('D10', 'torch.nn')
def drop_last_drops_all():
    "A batch wants 64 chunks, the text has 40, and drop_last leaves none."
    seed(2)
    data = [(o[:-1], o[1:]) for o in train_ids[:2040].view(-1, 51)]
    net = Scores('lstm', n_hid=64)
    return dict(model=net, dls=TorchDL(data, batch_size=64, shuffle=True, drop_last=True), loss_func=loss_over_all,
                opt=_adam(net))


@program('D10', 'by hand')
def validation_is_empty():
    "The validation part is shorter than one batch, so the loader of it has none."
    seed(3)
    def batches(source, bs, n): return [(o[:,:-1], o[:,1:]) for o in source[:len(source)//(bs*n)*bs*n].view(-1, bs, n)]
    net = KeepsState(48)
    valid = Batches(streams(16, 32, 1))
    valid.batches = batches(valid_ids[:400], 16, 33)
    dls = DataLoaders(Batches(streams(16, 32, 20)), valid)
    return dict(learn=learner(dls, net))


@program('D10', 'ours')
def a_note_for_large_batches():
    "500 characters, and batches of 64 rows of 64."
    seed(4)
    dls = CharDataLoaders.from_text(text[:500], bs=64, seq_len=64, seed=0, device='cpu')
    return dict(learn=quiet(char_learner(dls, n_hid=48, emb_sz=24, head_sz=0, n_layers=1, precision='fp32')))


# D11: text and parameters do not fit each other

# D12: ids out of range, or of a wrong type

@program('D12', 'by hand')
def ids_begin_with_one():
    "enumerate(chars, 1) for the table, len(chars) for the network."
    seed(1)
    stoi = {c:i for i,c in enumerate(sorted(set(text)), 1)}
    data = torch.tensor([stoi[c] for c in text])
    rnn = ElmanByHand(64, 32, n_in=len(stoi), n_out=len(stoi))
    opt = _adam(rnn)
    return dict(step_function=carried_step(rnn, opt), model=rnn, batches=streams(16, 32, 120, data), opt=opt)


@program('D12', 'torch.nn')
def network_for_the_first_page():
    "The vocabulary size was taken from the first 500 characters."
    seed(2)
    n = len(set(text[:500]))
    net = Scores('gru', n_hid=64, n_out=n)
    net.emb = nn.Embedding(n, 32)
    return dict(model=net, dls=windows(16, 32), loss_func=loss_over_all, opt=_adam(net))


@program('D12', 'torch.nn')
def ids_as_floats():
    "The ids went through a NumPy array of float32 and stayed floats."
    seed(3)
    data = torch.from_numpy(np.array([vocab.stoi[c] for c in text], dtype=np.float32))
    net = Net('lstm', n_hid=64)
    opt = _adam(net)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 32, 20, data), opt=opt)


@program('D12', 'torch.nn')
def targets_as_int32():
    "Targets are int32, which the loss does not take."
    seed(4)
    net = Scores('rnn', n_hid=64)
    return dict(model=net, dls=[(x, y.int()) for x,y in windows(16, 32)], loss_func=loss_over_all, opt=_adam(net))


@program('D12', 'AWD-LSTM')
def awd_with_too_few_symbols():
    "The language model was made for the vocabulary of another text."
    seed(5)
    n = len(CharVocab.from_text(text[:3000]))
    return dict(learn=awd_learner(model=get_language_model(AWD_LSTM, n, awd_config(), 0.1)))


# S1: classes are not in dimension 1

@program('S1', 'by hand')
def three_dimensions_into_cross_entropy():
    "F.cross_entropy gets (batch, time, vocabulary) as it comes from the network."
    seed(1)
    rnn = ElmanByHand(64, 0)
    optimizer = optim.SGD(rnn.parameters(), lr=.1)
    def fit_batch(batch_x, batch_y):
        optimizer.zero_grad()
        y_hat,_ = rnn(batch_x)
        loss = F.cross_entropy(y_hat, batch_y)
        loss.backward()
        optimizer.step()
        return loss.item()
    return dict(step_function=fit_batch, model=rnn, batches=windows(20, 24), opt=optimizer)


@program('S1', 'torch.nn')
def plain_criterion():
    "nn.CrossEntropyLoss on scores of three dimensions."
    seed(2)
    net = Scores('lstm', n_hid=48, n_layers=2)
    return dict(model=net, dls=windows(32, 16), loss_func=nn.CrossEntropyLoss(), opt=_adam(net))


@program('S1', 'AWD-LSTM')
def awd_with_pytorchs_loss():
    "fastai's model with PyTorch's loss, which does not flatten."
    seed(3)
    return dict(learn=awd_learner(loss_func=nn.CrossEntropyLoss()))


@program('S1', 'torch.nn', also='S9')
def sizes_agree_by_chance():
    "seq_len equals the vocabulary size, so cross_entropy takes time for the classes without a word."
    seed(4)
    net = Scores('gru', n_hid=48)
    return dict(model=net, dls=windows(8, V, 30), loss_func=nn.CrossEntropyLoss(), opt=_adam(net))


@program('S1', 'ours')
def pytorchs_loss_for_ours():
    "char_learner with nn.CrossEntropyLoss, which does not flatten."
    seed(5)
    return dict(learn=our_learner(loss_func=nn.CrossEntropyLoss()))


@program('S1', 'torch.nn')
def scores_flattened_targets_not():
    "The scores are flattened, the targets keep their two dimensions."
    seed(6)
    net = Net('gru', n_hid=64, batch_first=False)
    opt = _adam(net)
    def step(x, y):
        out,_ = net(x)
        loss = F.cross_entropy(out.view(-1, V), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=net, batches=time_first(windows(16, 24)), opt=opt)


# S2: ids are not embedded

class ScalarRNN(nn.Module):
    "The id as one number"
    def __init__(self, n_hid=64):
        super().__init__()
        self.rnn = nn.RNN(1, n_hid, batch_first=True)
        self.fc = nn.Linear(n_hid, V)
    def forward(self, x):
        out,_ = self.rnn(x.float().unsqueeze(-1))
        return self.fc(out)


@program('S2', 'torch.nn')
def id_as_a_magnitude():
    "The id itself is the input, as a float."
    seed(1)
    net = ScalarRNN()
    return dict(model=net, dls=windows(16, 32), loss_func=CrossEntropyLossFlat(), opt=_adam(net))


@program('S2', 'torch.nn')
def id_divided_by_n_vocab():
    "Ids are scaled to between 0 and 1 as an old Keras tutorial does."
    seed(2)
    class LSTMNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(input_size=1, hidden_size=64, num_layers=1, batch_first=True)
            self.dropout,self.linear = nn.Dropout(0.1),nn.Linear(64, V)
        def forward(self, x):
            x = (x / float(V)).reshape(x.shape[0], x.shape[1], 1)
            x,_ = self.lstm(x)
            return self.linear(self.dropout(x))
    net = LSTMNet()
    opt = _adam(net)
    return dict(step_function=stateless_step(net, opt), model=net, batches=windows(24, 30), opt=opt)


@program('S2', 'torch.nn')
def ids_straight_into_lstm():
    "nn.LSTM gets the ids; there is neither embedding nor one-hot."
    seed(3)
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm,self.head = nn.LSTM(V, 64, batch_first=True),nn.Linear(64, V)
        def forward(self, x): return self.head(self.lstm(x)[0])
    net = Bare()
    return dict(learn=learner(window_dls(), net))


@program('S2', 'by hand')
def linear_layer_on_ids():
    "The first linear layer gets ids, one a row, as in the first evening of many."
    seed(4)
    n_hid = 64
    i_h,h_h,h_o = nn.Linear(V, n_hid),nn.Linear(n_hid, n_hid),nn.Linear(n_hid, V)
    net = nn.ModuleList([i_h, h_h, h_o])
    opt = _adam(net)
    def step(x, y):
        h,loss = torch.zeros(len(x), n_hid),0.
        for t in range(x.shape[1]):
            h = torch.tanh(i_h(x[:,t]) + h_h(h))
            loss = loss + F.cross_entropy(h_o(h), y[:,t])
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss/x.shape[1]
    return dict(step_function=step, model=net, batches=windows(16, 16), opt=opt)


@program('S2', 'by hand')
def scalar_input_by_hand():
    "x[:,t] is viewed as a column of floats for a layer with one input."
    seed(5)
    class Net1(nn.Module):
        def __init__(self, nh):
            super().__init__()
            self.nh = nh
            self.wx,self.wh,self.wy = nn.Linear(1, nh),nn.Linear(nh, nh),nn.Linear(nh, V)
        def forward(self, x):
            h,ys = x.new_zeros(x.size(0), self.nh, dtype=torch.float32),[]
            for t in range(x.size(1)):
                h = torch.tanh(self.wx(x[:,t].view(-1, 1).float()) + self.wh(h))
                ys += [self.wy(h)]
            return torch.stack(ys, dim=1)
    net = Net1(64)
    return dict(model=net, dls=windows(16, 24), loss_func=loss_over_all, opt=_adam(net, 3e-3))


# S3: scores and targets are flattened in different orders

@program('S3', 'by hand')
def stacked_along_time_first():
    "torch.stack(outs) has time first, the targets have the batch first, and both are flattened."
    seed(1)
    class TimeFirst(ElmanByHand):
        def forward(self, x, h=None):
            h = torch.zeros(x.shape[0], self.n_hid) if h is None else h
            outs = []
            for t in range(x.shape[1]):
                h = torch.tanh(self.i2h(self.emb(x[:,t])) + self.h2h(h))
                outs.append(self.h2o(h))
            return torch.stack(outs),h
    net = TimeFirst(64, 32)
    opt = _adam(net)
    def step(x, y):
        out,_ = net(x)
        loss = F.cross_entropy(out.view(-1, V), y.reshape(-1))
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=net, batches=windows(16, 30), opt=opt)


class Transposing(nn.Module):
    "Time first inside and in what it returns"
    def __init__(self, nh=64, cell=nn.GRU, nl=1):
        super().__init__()
        self.i_h = nn.Embedding(V, 32)
        self.rnn = cell(32, nh, nl)
        self.h_o = nn.Linear(nh, V)
    def forward(self, x):
        res,_ = self.rnn(self.i_h(x.t()))
        return self.h_o(res)


@program('S3', 'torch.nn')
def output_never_transposed_back():
    "The input is transposed for nn.GRU, the output is not transposed back."
    seed(2)
    return dict(learn=learner(window_dls(16, 30), Transposing(), lr=5e-3))


@program('S3', 'torch.nn')
def targets_flattened_with_a_transpose():
    "The scores are batch first, the targets are transposed before they are flattened."
    seed(3)
    net = Net('lstm', n_hid=64, n_layers=2)
    opt = _adam(net)
    def loss_of(scores, y): return F.cross_entropy(scores.reshape(-1, V), y.t().reshape(-1))
    return dict(step_function=carried_step(net, opt, loss_func=loss_of), model=net, batches=streams(20, 25), opt=opt)


class TransposedDecoder(nn.Module):
    "A decoder for models with time first"
    def __init__(self, dec):
        super().__init__()
        self.dec = dec
    def forward(self, x):
        out,raw,drop = self.dec(x)
        return out.transpose(0, 1),raw,drop


@program('S3', 'AWD-LSTM')
def awd_decoder_transposes():
    "A decoder from code with time first is put on fastai's encoder, which is batch first."
    seed(4)
    model = awd_model()
    model[1] = TransposedDecoder(model[1])
    return dict(learn=awd_learner(lm_dls(16, 32), model))


@program('S3', 'by hand')
def square_batch_stacked_time_first():
    "Outputs are stacked along axis 0; with as many rows as steps no size tells."
    seed(5)
    class StackZero(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.nh,self.table = nh,nn.Embedding(V, 32)
            self.update,self.readout = nn.Linear(32+nh, nh),nn.Linear(nh, V)
        def forward(self, x):
            h,rows = torch.zeros(len(x), self.nh),[]
            for t in range(x.shape[1]):
                h = self.update(torch.cat([self.table(x[:,t]), h], 1)).tanh()
                rows.append(self.readout(h))
            return torch.stack(rows, 0)
    net = StackZero()
    return dict(model=net, dls=windows(24, 24), loss_func=loss_over_all, opt=_adam(net))


# S4: view where transpose was meant

@program('S4', 'torch.nn')
def view_as_seq_bs():
    "x.view(seq_len, bs) is to give time first for nn.LSTM, and the scores are viewed back."
    seed(1)
    class Viewer(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.emb,self.lstm,self.dec = nn.Embedding(V, 32),nn.LSTM(32, nh),nn.Linear(nh, V)
        def forward(self, x):
            bs,sl = x.size()
            out,_ = self.lstm(self.emb(x).view(sl, bs, -1))
            return self.dec(out).view(bs, sl, -1)
    net = Viewer()
    return dict(model=net, dls=windows(12, 40), loss_func=loss_over_all, opt=_adam(net))


@program('S4', 'by hand')
def reshape_in_the_loop():
    "The batch is reshaped to (time, batch) before the loop over time."
    seed(2)
    class Reshaper(ElmanByHand):
        def forward(self, x, h=None):
            bs,n = x.shape
            h = torch.zeros(bs, self.n_hid)
            outs = []
            for xt in x.reshape(n, bs):
                h = torch.tanh(self.i2h(self.emb(xt)) + self.h2h(h))
                outs.append(self.h2o(h))
            return torch.stack(outs).reshape(bs, n, -1)
    net = Reshaper(72, 24)
    opt = _adam(net)
    return dict(step_function=stateless_step(net, opt), model=net, batches=windows(10, 28), opt=opt)


@program('S4', 'torch.nn', also='S3')
def viewed_back_to_batch_first():
    "Transposed on the way in, but viewed and not transposed on the way out."
    seed(3)
    class HalfView(Transposing):
        def forward(self, x):
            res,_ = self.rnn(self.i_h(x.t()))
            return self.h_o(res).view(x.shape[0], x.shape[1], V)
    return dict(learn=learner(window_dls(16, 24), HalfView(nl=2), lr=5e-3))


class Recut(nn.Module):
    "Time first for what follows, and back"
    def __init__(self, dim):
        super().__init__()
        self.gru = nn.GRU(dim, dim)
    def forward(self, x):
        bs,sl,d = x.shape
        return self.gru(x.reshape(sl, bs, d))[0].reshape(bs, sl, d)


@program('S4', 'AWD-LSTM')
def awd_with_a_layer_that_recuts():
    "A further layer between encoder and decoder swaps the axes with reshape."
    seed(4)
    model = awd_model()
    model.insert(1, Recut(64))
    return dict(learn=awd_learner(lm_dls(16, 40), model))


@program('S4', 'torch.nn')
def layers_viewed_into_the_batch():
    "The states of two layers, (2, bs, nh), are viewed as (bs, 2*nh), which mixes the rows."
    seed(5)
    class BothLayers(nn.Module):
        def __init__(self, nh=40):
            super().__init__()
            self.nh,self.emb = nh,nn.Embedding(V, 32)
            self.gru,self.dec = nn.GRU(32, nh, 2, batch_first=True),nn.Linear(2*nh, V)
        def forward(self, x):
            h,out = torch.zeros(2, len(x), self.nh),[]
            for t in range(x.shape[1]):
                _,h = self.gru(self.emb(x[:,t:t+1]), h)
                out.append(self.dec(h.view(len(x), -1)))
            return torch.stack(out, 1)
    net = BothLayers()
    return dict(model=net, dls=windows(16, 20), loss_func=loss_over_all, opt=_adam(net))


# S5: the recurrence runs over the batch

@program('S5', 'torch.nn')
def forgot_batch_first():
    "nn.LSTM without batch_first gets (batch, time, features)."
    seed(1)
    net = Scores('lstm', n_hid=64, batch_first=False)
    return dict(model=net, dls=windows(32, 20), loss_func=loss_over_all, opt=_adam(net))


@program('S5', 'torch.nn')
def two_layers_without_batch_first():
    "A GRU of two layers reads a batch-first loader as time first; the carried state has the size of the chunk."
    seed(2)
    net = Net('gru', n_hid=48, n_layers=2, batch_first=False)
    opt = _adam(net)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 25), opt=opt)


@program('S5', 'torch.nn')
def batch_first_for_time_first_data():
    "The loader gives (time, batch) and the layers were told that the batch comes first."
    seed(3)
    net = Scores('rnn', n_hid=64, n_layers=2, batch_first=True)
    return dict(model=net, dls=time_first(windows(16, 30)), loss_func=loss_over_all, opt=_adam(net))


@program('S5', 'by hand')
def loops_over_rows():
    "for e in emb(x) goes over the rows of the batch, not over time."
    seed(4)
    class RowLoop(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.nh,self.emb = nh,nn.Embedding(V, 32)
            self.cell,self.out = nn.Linear(32+nh, nh),nn.Linear(nh, V)
        def forward(self, x):
            h,res = torch.zeros(x.shape[1], self.nh),[]
            for e in self.emb(x):
                h = torch.tanh(self.cell(torch.cat((e, h), dim=1)))
                res.append(self.out(h))
            return torch.stack(res)
    net = RowLoop()
    return dict(model=net, dls=windows(16, 20), loss_func=CrossEntropyLossFlat(), opt=_adam(net))


@program('S5', 'AWD-LSTM')
def awd_square_batches_time_first():
    "The inner LSTM was set to time first; with bs equal to seq_len no size complains."
    seed(5)
    model = awd_model()
    for r in model[0].rnns: r.module.batch_first = False
    dls = DataLoaders(*[LMDataLoader([o], bs=24, seq_len=24) for o in (train_ids[:24*24*30+1], valid_ids[:24*24*6+1])])
    return dict(learn=awd_learner(dls, model))


@program('S5', 'torch.nn')
def square_lstm_with_init_hidden():
    "init_hidden has a row for each line of text, nn.LSTM has time first; bs equals seq_len, so nothing complains."
    seed(6)
    class CharModel(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.nh,self.embedding = nh,nn.Embedding(V, 32)
            self.lstm,self.linear = nn.LSTM(32, nh, num_layers=2),nn.Linear(nh, V)
        def init_hidden(self, bs): return torch.zeros(2, bs, self.nh),torch.zeros(2, bs, self.nh)
        def forward(self, x):
            out,_ = self.lstm(self.embedding(x), self.init_hidden(x.shape[0]))
            return self.linear(out)
    return dict(learn=learner(window_dls(24, 24), CharModel(), lr=5e-3))


# S6: the state has another batch size

class FixedState(nn.Module):
    "Makes its state once, for one batch size"
    def __init__(self, bs, nh=64, cell=nn.LSTM, nl=2):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 32),cell(32, nh, nl, batch_first=True),nn.Linear(nh, V)
        h = torch.zeros(nl, bs, nh)
        self.hidden = (h, h.clone()) if cell is nn.LSTM else h
    def forward(self, x):
        out,state = self.rnn(self.emb(x), self.hidden)
        self.hidden = detached(state)
        return self.out(out)


@program('S6', 'torch.nn')
def last_batch_is_smaller():
    "The state is made for 32 rows; the last batch of the loader has fewer."
    seed(1)
    data = [(o[:-1], o[1:]) for o in train_ids[:3330].view(-1, 37)]
    net = FixedState(32)
    return dict(model=net, dls=TorchDL(data, batch_size=32, shuffle=False), loss_func=loss_over_all, opt=_adam(net))


@program('S6', 'torch.nn')
def validation_rows_differ():
    "The validation loader has twice as many rows as the state."
    seed(2)
    dls = DataLoaders(Batches(streams(16, 24)), Batches(streams(32, 24, 5, valid_ids)))
    return dict(learn=learner(dls, FixedState(16, cell=nn.GRU, nl=1)))


@program('S6', 'torch.nn')
def init_hidden_for_the_wrong_axis():
    "init_hidden takes the number of rows from axis 1, which is time here."
    seed(3)
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder,self.decoder = nn.Embedding(V, 32),nn.Linear(64, V)
            self.gru = nn.GRU(32, 64, 2, batch_first=True)
        def init_hidden(self, x): return torch.zeros(2, x.size(1), 64)
        def forward(self, x):
            output,_ = self.gru(self.encoder(x), self.init_hidden(x))
            return self.decoder(output)
    net = Model()
    return dict(model=net, dls=windows(20, 32), loss_func=loss_over_all, opt=_adam(net))


@program('S6', 'by hand')
def hidden_of_another_size():
    "The hidden state has 32 rows as in a former setting, the batches have 20."
    seed(4)
    rnn = ElmanByHand(64, 32)
    opt = _adam(rnn)
    hidden = torch.zeros(32, 64)
    def step(x, y):
        nonlocal hidden
        out,hidden = rnn(x, hidden)
        hidden = hidden.detach()
        loss = loss_over_all(out, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=rnn, batches=streams(20, 24), opt=opt)


class AWDOfFixedSize(AWD_LSTM):
    "AWD-LSTM for one batch size"
    def reset(self):
        self.bs = 16
        super().reset()
    def _change_hidden(self, bs): pass


@program('S6', 'AWD-LSTM')
def awd_whose_state_keeps_its_rows():
    "A subclass does not follow the batch size; validation has 24 rows and training 16."
    seed(5)
    model = awd_model()
    model[0] = AWDOfFixedSize(V, 64, 64, 1, pad_token=None, weight_p=.05, input_p=.05, embed_p=.01)
    model[1].decoder.weight = model[0].encoder.weight
    train_dl,valid_dl = [LMDataLoader([o], bs=b, seq_len=32) for o,b in ((train_ids[:20_000], 16), (valid_ids, 24))]
    return dict(learn=awd_learner(DataLoaders(train_dl, valid_dl), model))


# S7: the state of an LSTM is a pair

@program('S7', 'torch.nn')
def detach_a_tuple():
    "hidden.detach() from code for a GRU; the LSTM gives a pair."
    seed(1)
    net = Net('lstm', n_hid=64)
    opt = _adam(net)
    hidden = None
    def step(x, y):
        nonlocal hidden
        out,hidden = net(x, hidden)
        loss = loss_over_all(out, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        hidden = hidden.detach()
        return loss.item()
    return dict(step_function=step, model=net, batches=streams(16, 24), opt=opt)


@program('S7', 'torch.nn')
def one_tensor_for_an_lstm():
    "init_hidden gives one tensor, nn.LSTM wants two."
    seed(2)
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.rnn,self.out = nn.Embedding(V, 32),nn.LSTM(32, 64, 2, batch_first=True),nn.Linear(64, V)
        def forward(self, x):
            hidden = torch.zeros(2, x.size(0), 64)
            out,_ = self.rnn(self.emb(x), hidden)
            return self.out(out)
    net = Model()
    return dict(model=net, dls=windows(16, 24), loss_func=loss_over_all, opt=_adam(net))


@program('S7', 'by hand')
def lstm_cell_with_h_alone():
    "The cell wants (h, c) and is begun with h alone."
    seed(3)
    net = LSTMByHand(64)
    opt = _adam(net)
    def step(x, y):
        state = torch.zeros(x.shape[0], net.n_hid)
        out,state = net(x, state)
        loss = loss_over_all(out, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=net, batches=windows(16, 24), opt=opt)


class DetachHidden(Callback):
    "Detach the state after each batch"
    def after_batch(self): self.model[0].hidden = [h.detach() for h in self.model[0].hidden]


@program('S7', 'AWD-LSTM')
def awd_callback_detaches_pairs():
    "A callback calls detach on each layer's state, which is a pair."
    seed(4)
    return dict(learn=awd_learner(cbs=[DetachHidden()]))


# S8: as many outputs as something else

@program('S8', 'by hand')
def one_output_per_byte():
    "256 outputs as for bytes, with a vocabulary of fewer characters."
    seed(1)
    net = GRUByHand(64, n_out=256)
    opt = _adam(net)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 24), opt=opt)


@program('S8', 'torch.nn')
def scores_are_the_hidden_state():
    "There is no output layer: the 64 hidden units are taken for scores."
    seed(2)
    class NoHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.rnn = nn.Embedding(V, 32),nn.GRU(32, 64, batch_first=True)
        def forward(self, x): return self.rnn(self.emb(x))[0]
    net = NoHead()
    return dict(model=net, dls=windows(16, 24), loss_func=CrossEntropyLossFlat(), opt=_adam(net))


@program('S8', 'torch.nn')
def outputs_for_letters_only():
    "The last layer was sized for another alphabet: ten outputs too few."
    seed(3)
    net = Net('lstm', n_hid=64, n_out=V-10)
    opt = _adam(net)
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 24), opt=opt)


@program('S8', 'AWD-LSTM')
def awd_decoder_for_words():
    "The decoder keeps the width of a pretrained word model, 400, and not that of the characters."
    seed(4)
    model = awd_model(tie_weights=False)
    model[1].decoder = nn.Linear(64, 400)
    dls = lm_dls()
    dls.vocab = vocab.itos
    return dict(learn=awd_learner(dls, model))


@program('S8', 'ours')
def decoder_for_bytes_in_ours():
    "The decoder of our model was replaced by one with an output for each of 256 bytes."
    seed(5)
    learn = our_learner()
    learn.model.decoder = nn.Linear(64, 256)
    return dict(learn=learn)


# S9: softmax over a wrong dimension

@program('S9', 'by hand')
def log_softmax_over_time():
    "F.log_softmax(out, dim=1) on (batch, time, vocabulary), then the negative log-likelihood."
    seed(1)
    rnn = ElmanByHand(64, 32)
    opt = _adam(rnn)
    def step(x, y):
        out,_ = rnn(x)
        logp = F.log_softmax(out, dim=1)
        loss = F.nll_loss(logp.flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=rnn, batches=windows(16, 24), opt=opt)


@program('S9', 'torch.nn')
def logsoftmax_module_dim_zero():
    "nn.LogSoftmax(dim=0), copied from a program without batches."
    seed(2)
    net = nn.Sequential(Scores('gru', n_hid=64), nn.LogSoftmax(dim=0))
    def nll(out, y): return F.nll_loss(out.reshape(-1, V), y.reshape(-1))
    return dict(model=net, dls=windows(16, 24), loss_func=nll, opt=_adam(net))


@program('S9', 'AWD-LSTM')
def awd_log_probabilities_over_time():
    "A loss of one's own normalises axis 1, which is time in fastai's order."
    seed(3)
    def lm_loss(out, targ): return F.nll_loss(out.log_softmax(1).reshape(-1, V), targ.reshape(-1))
    return dict(learn=awd_learner(loss_func=lm_loss))


@program('S9', 'torch.nn', also='G1')
def samples_with_softmax_over_the_row():
    "Training is right; the sampling takes softmax over axis 0 of (1, vocabulary), which makes all symbols equal."
    seed(4)
    net = Net('gru', n_hid=64)
    net.load_state_dict(_trained_gru())
    opt = _adam(net, 1e-3)
    @torch.no_grad()
    def generate(model, start, length):
        out,h = model(vocab.encode(start)[None])
        written = start
        for _ in range(length):
            p = F.softmax(out[:,-1,:], dim=0)
            c = torch.multinomial(p, 1)
            written += vocab[int(c)]
            out,h = model(c, h)
        return written
    return dict(step_function=carried_step(net, opt), model=net, batches=streams(16, 24), opt=opt,
                sample=generate, text=text)


@program('S9', 'ours')
def log_softmax_axis_for_ours():
    "Our model's scores go through LogSoftmax(1), which is time, and then into nll_loss."
    seed(5)
    def nll(logp, y): return F.nll_loss(logp.flatten(0, 1), y.flatten())
    learn = our_learner(loss_func=nll)
    learn.model.decoder = nn.Sequential(learn.model.decoder, nn.LogSoftmax(1))
    return dict(learn=learn)


# S10: the future is visible

class BiLM(nn.Module):
    "Reads in both directions"
    def __init__(self, nh=40, cell=nn.LSTM, nl=1):
        super().__init__()
        self.emb,self.rnn = nn.Embedding(V, 32),cell(32, nh, nl, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2*nh, V)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


@program('S10', 'torch.nn')
def bidirectional_language_model():
    "bidirectional=True, because it gave a lower loss."
    seed(1)
    return dict(learn=learner(window_dls(16, 32), BiLM(), lr=5e-3))


@program('S10', 'torch.nn')
def convolution_that_looks_ahead():
    "A convolution with padding on both sides before the GRU."
    seed(2)
    class ConvGRU(nn.Module):
        def __init__(self, d=48):
            super().__init__()
            self.emb,self.conv = nn.Embedding(V, d),nn.Conv1d(d, d, kernel_size=3, padding=1)
            self.rnn,self.out = nn.GRU(d, d, batch_first=True),nn.Linear(d, V)
        def forward(self, x):
            e = self.emb(x)
            e = e + F.relu(self.conv(e.transpose(1, 2))).transpose(1, 2)
            return self.out(self.rnn(e)[0])
    net = ConvGRU()
    return dict(model=net, dls=windows(16, 32), loss_func=loss_over_all, opt=_adam(net))


@program('S10', 'by hand')
def style_vector_of_the_last_state():
    "The last hidden state is added to all positions before the output layer."
    seed(3)
    class Styled(GRUByHand):
        def forward(self, x, h=None):
            h = torch.zeros(x.shape[0], self.n_hid) if h is None else h
            outs = []
            for e in self.emb(x).unbind(1):
                h = self.cell(e, h)
                outs.append(h)
            hs = torch.stack(outs, 1)
            return self.out(hs + hs[:,-1:]),h
    net = Styled(64)
    opt = _adam(net)
    return dict(step_function=stateless_step(net, opt), model=net, batches=windows(16, 24), opt=opt)


@program('S10', 'torch.nn')
def mean_over_time():
    "The mean of all states of the chunk is joined to each of them."
    seed(4)
    class Pooled(nn.Module):
        def __init__(self, nh=48):
            super().__init__()
            self.emb,self.rnn,self.out = nn.Embedding(V, 32),nn.RNN(32, nh, 2, batch_first=True),nn.Linear(2*nh, V)
        def forward(self, x):
            hs,_ = self.rnn(self.emb(x))
            summary = hs.mean(dim=1, keepdim=True).expand_as(hs)
            return self.out(torch.cat([hs, summary], dim=-1))
    net = Pooled()
    return dict(model=net, dls=windows(16, 32), loss_func=loss_over_all, opt=_adam(net))


@program('S10', 'torch.nn')
def attention_without_a_mask():
    "Attention over the states of the whole chunk, without a causal mask."
    seed(5)
    class Attending(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.emb,self.rnn = nn.Embedding(V, 32),nn.GRU(32, nh, batch_first=True)
            self.attn,self.out = nn.MultiheadAttention(nh, 2, batch_first=True),nn.Linear(nh, V)
        def forward(self, x):
            hs,_ = self.rnn(self.emb(x))
            ctx,_ = self.attn(hs, hs, hs, need_weights=False)
            return self.out(hs + ctx)
    net = Attending()
    opt = _adam(net, 3e-3)
    return dict(step_function=stateless_step(net, opt), model=net, batches=windows(16, 32), opt=opt)


@program('S10', 'AWD-LSTM')
def awd_bidir():
    "AWD-LSTM with bidir=True for a language model."
    seed(6)
    return dict(learn=awd_learner(config=dict(bidir=True)))


@program('S10', 'by hand')
def second_pass_from_the_right():
    "A second Elman network reads from the right, and both states make the scores."
    seed(7)
    class TwoWays(nn.Module):
        def __init__(self, nh=48):
            super().__init__()
            self.nh,self.emb = nh,nn.Embedding(V, 24)
            self.right,self.left,self.out = nn.Linear(24+nh, nh),nn.Linear(24+nh, nh),nn.Linear(2*nh, V)
        def run(self, cell, es):
            h,hs = es[0].new_zeros(es[0].shape[0], self.nh),[]
            for e in es:
                h = torch.tanh(cell(torch.cat([e, h], 1)))
                hs.append(h)
            return hs
        def forward(self, x):
            es = list(self.emb(x).unbind(1))
            a,b = self.run(self.right, es),self.run(self.left, es[::-1])[::-1]
            return self.out(torch.cat([torch.stack(a, 1), torch.stack(b, 1)], -1))
    net = TwoWays()
    return dict(model=net, dls=windows(16, 24), loss_func=loss_over_all, opt=_adam(net))


class Blur(nn.Module):
    "A convolution along time"
    def __init__(self, d):
        super().__init__()
        self.conv = nn.Conv1d(d, d, 5, padding=2)
    def forward(self, x): return x + self.conv(x.transpose(1, 2)).transpose(1, 2)


@program('S10', 'ours')
def head_that_looks_ahead():
    "The head of our model was replaced by a convolution that is padded on both sides."
    seed(8)
    learn = our_learner()
    learn.model.head = Blur(64)
    return dict(learn=learn)


@program('S10', 'torch.nn')
def normalised_over_time():
    "Each channel is normalised by its mean and deviation over the whole chunk."
    seed(9)
    class NormNet(nn.Module):
        def __init__(self, nh=64):
            super().__init__()
            self.emb,self.rnn = nn.Embedding(V, 32),nn.LSTM(32, nh, batch_first=True)
            self.norm,self.out = nn.InstanceNorm1d(nh, affine=True),nn.Linear(nh, V)
        def forward(self, x):
            hs,_ = self.rnn(self.emb(x))
            return self.out(self.norm(hs.transpose(1, 2)).transpose(1, 2))
    return dict(learn=learner(window_dls(16, 32), NormNet(), lr=5e-3))
