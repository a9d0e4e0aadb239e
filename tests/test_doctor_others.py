"""The doctor on programs that are no language models, or write them otherwise: nothing is said of them that is not so"""
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import Callback, DataLoader, DataLoaders, Learner
from torch import nn

from charrnn_fa.doctor.diagnose import diagnose
from charrnn_fa.doctor.given import function_subject, parts_subject
from charrnn_fa.doctor.initial import check_first_loss, check_table
from charrnn_fa.doctor.overlap import check_overlap
from charrnn_fa.doctor.rates import check_low_rate
from charrnn_fa.doctor.stuck import check_stuck
from charrnn_fa.doctor.trial import trial
from charrnn_fa.doctor.trials import check_capacity
from charrnn_fa.text.corpus import load_corpus


def ids_of(r): return [f.id for f in r.findings]


def said(r): return {f.id for f in r.findings} | {g.id for f in r.findings for g in f.follows}


def seeded(n=0):
    torch.manual_seed(n)
    return torch.Generator().manual_seed(n)


class Last(nn.Module):
    "What comes of the last step of a recurrent layer"
    def __init__(self, n_in, n_out, n=24, n_symbols=None):
        super().__init__()
        self.emb = nn.Embedding(n_symbols, n_in) if n_symbols else nn.Identity()
        self.rnn,self.out = nn.GRU(n_in, n, batch_first=True),nn.Linear(n, n_out)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0][:,-1])


def learner(model, x, y, loss_func):
    cut = int(.8*len(x))
    parts = [torch.utils.data.TensorDataset(x[i:j], y[i:j]) for i,j in ((0, cut), (cut, len(x)))]
    return Learner(DataLoaders(*(DataLoader(o, bs=32) for o in parts)), model, loss_func=loss_func)


def waves(n=1500): return torch.sin(torch.arange(n)/9)*1.5 + torch.cos(torch.arange(n)/4)


def windows_of(s, n, ahead):
    return tuple(torch.stack(o) for o in zip(*((s[i:i+n], s[i+n:i+n+ahead]) for i in range(len(s)-n-ahead))))


@pytest.mark.parametrize('ahead', [1, 5])
def test_a_forecast_of_amounts_is_no_text(ahead):
    "Neither are its numbers counted, nor is it said that training and validation overlap"
    seeded()
    x,y = windows_of(waves(), 12, ahead)
    learn = learner(Last(1, ahead), x[...,None], y, nn.HuberLoss())
    assert not said(diagnose(learn=learn, trials=False)) & {'T9', 'D6'}


def test_amounts_below_zero_as_targets_of_words():
    gen = seeded()
    x = torch.randint(0, 30, (1400, 10), generator=gen)
    learn = learner(Last(16, 1, n_symbols=30), x, (x % 3 - 1).float().sum(1, keepdim=True), nn.MSELoss())
    assert not ids_of(diagnose(learn=learn, trials=False))


def test_marks_for_padding_among_the_targets_are_not_counted():
    gen = seeded()
    x = torch.randint(0, 30, (1400, 10), generator=gen)
    y = torch.where(x % 7 == 0, -100, x % 5)
    class Tagger(Last):
        def forward(self, x): return self.out(self.rnn(self.emb(x))[0]).transpose(1, 2)
    assert not said(diagnose(learn=learner(Tagger(16, 5, n_symbols=30), x, y, nn.CrossEntropyLoss()),
                             trials=False)) & {'T9', 'D6'}


def test_whole_amounts_below_zero():
    "A series of differences, the next of which is to be told"
    gen = seeded()
    s = torch.randint(-3, 4, (6000,), generator=gen).float()
    x,y = s[:-1].unfold(0, 20, 20),s[1:].unfold(0, 20, 20)
    class Next(Last):
        def forward(self, x): return self.out(self.rnn(x[...,None])[0])[...,0]
    for z in y,x.roll(2, 1):
        batches = list(zip(x.split(30), z.split(30)))
        assert not said(diagnose(model=Next(1, 1), dls=batches, loss_func=nn.MSELoss(), trials=False)) & {'D5', 'S10', 'L4'}


class Pair(nn.Module):
    "An encoder, and a decoder that is told the targets so far or its own best guesses"
    def __init__(self, n_symbols=11, n=32, told=True):
        super().__init__()
        self.emb,self.told = nn.Embedding(n_symbols+1, n),told
        self.reader,self.writer = nn.GRU(n, n, batch_first=True),nn.GRUCell(n, n)
        self.out = nn.Linear(n, n_symbols)
    def forward(self, x, y):
        h,last,res = self.reader(self.emb(x))[1][0],torch.full((len(x),), self.out.out_features),[]
        for t in range(y.shape[1]):
            h = self.writer(self.emb(last), h)
            res.append(self.out(h))
            last = y[:,t] if self.told else res[-1].argmax(1)
        return torch.stack(res, 1)


def step_of(model, loss=lambda model, x, y: F.cross_entropy(model(x, y).flatten(0, 1), y.flatten())):
    opt = torch.optim.Adam(model.parameters(), 3e-3)
    def step(x, y):
        opt.zero_grad()
        value = loss(model, x, y)
        value.backward()
        opt.step()
        return value.item()
    return step


TASKS = {'turned': lambda x: x.flip(1), 'copied': torch.clone, 'in turn': lambda x: x.roll(-1, 1),
         'two on': lambda x: x.roll(-2, 1),
         'sorted': lambda x: x.sort(1).values}


@pytest.mark.parametrize('n', [4, 5, 9])
@pytest.mark.parametrize('told', [True, False])
@pytest.mark.parametrize('task', TASKS)
def test_an_encoder_may_see_all(task, told, n):
    if not told and task in ('in turn', 'two on'): pytest.skip("nothing tells it from a text that is read both ways")
    gen = seeded(1)
    x = torch.randint(0, 11, (600, n), generator=gen)
    model = Pair(told=told)
    batches = list(zip(x.split(30), TASKS[task](x).split(30)))
    assert not said(diagnose(step_function=step_of(model), model=model, batches=batches,
                             trials=False)) & {'S10', 'D1', 'D2', 'D3'}


class BothWays(nn.Module):
    def __init__(self, n_symbols, n=24):
        super().__init__()
        self.emb,self.rnn = nn.Embedding(n_symbols, n),nn.GRU(n, n, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2*n, n_symbols)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0]).transpose(1, 2)


def test_what_reads_a_text_both_ways_sees_ahead():
    gen = seeded()
    ids = torch.randint(0, 11, (9001,), generator=gen)
    batches = [(ids[i:i+300].view(30, 10), ids[i+1:i+301].view(30, 10)) for i in range(0, 8700, 300)]
    assert 'S10' in ids_of(diagnose(model=BothWays(11), dls=batches, loss_func=nn.CrossEntropyLoss(), trials=False))


def test_a_class_and_then_its_text():
    "What comes last is read, and the class that comes first is what the loss compares with"
    gen = seeded()
    names = [torch.randint(0, 9, (int(n), 1), generator=gen) for n in torch.randint(4, 9, (60,), generator=gen)]
    batches = [((o.sum() % 3)[None], F.one_hot(o, 9).float()) for o in names]
    model = Last(9, 3)
    step = step_of(model, lambda model, kind, name: F.cross_entropy(model(name.transpose(0, 1)), kind))
    assert not ids_of(diagnose(step_function=step, model=model, batches=batches, trials=False))


@pytest.mark.parametrize('rows', [1, 8])
def test_a_loss_of_the_last_character_alone_is_seen(rows):
    gen = seeded()
    x = torch.randint(0, 9, (40*rows, 12), generator=gen)
    batches = list(zip(x.split(rows), x.roll(-1, 0).split(rows)))
    step = step_of(model := Last(16, 9, n_symbols=9), lambda model, x, y: F.cross_entropy(model(x), y[:,-1]))
    assert 'L6' in said(diagnose(step_function=step, model=model, batches=batches, trials=False))


class Verdict(nn.Module):
    "Yes or no for each row, as one number"
    def __init__(self, batch_first=True, last=lambda o, h: h[-1], n=24):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(30, n),nn.GRU(n, n, batch_first=batch_first),nn.Linear(n, 1)
        self.last = last
    def forward(self, x): return self.out(self.last(*self.rnn(self.emb(x)))).squeeze(-1)


def verdicts(shape, rows=16, n=12, mark=lambda x: (x < 6).any(1).float()):
    gen = seeded()
    x = torch.randint(0, 30, (rows*20, n), generator=gen)
    return [(a, b.view(shape)) for a,b in zip(x.split(rows), mark(x).split(rows))]


FLAT = {'yes or no': (nn.BCEWithLogitsLoss(), lambda x: (x < 6).any(1).float()),
        'an amount': (nn.MSELoss(), lambda x: (x % 7).float().mean(1))}


@pytest.mark.parametrize('rows,n', [(16, 12), (12, 12), (4, 12)])
@pytest.mark.parametrize('kind', FLAT)
def test_one_number_for_each_row_is_no_row_of_numbers(kind, rows, n):
    loss,mark = FLAT[kind]
    assert not ids_of(diagnose(model=Verdict(), dls=verdicts(rows, rows, n, mark), loss_func=loss, trials=False))


def test_steps_first_in_a_square_batch():
    batches = [(x.T.contiguous(), y) for x,y in verdicts(12, rows=12)]
    model = Verdict(batch_first=False)
    assert not ids_of(diagnose(model=model, dls=batches, loss_func=nn.BCEWithLogitsLoss(), trials=False))


@pytest.mark.parametrize('last', [lambda o, h: o[:,-1], lambda o, h: o.mean(1)])
def test_one_number_for_each_row_of_a_recurrence_down_the_batch(last):
    "Not even where the predictions depend on a single step"
    model = Verdict(batch_first=False, last=last)
    assert ids_of(diagnose(model=model, dls=verdicts(16), loss_func=nn.BCEWithLogitsLoss(), trials=False)) == ['S5']


def test_one_number_for_each_row_cut_anew():
    model = Verdict(last=lambda o, h: o.reshape(o.shape[1], o.shape[0], -1)[-1])
    assert 'S4' in ids_of(diagnose(model=model, dls=verdicts(16), loss_func=nn.BCEWithLogitsLoss(), trials=False))


class ByHand(nn.Module):
    "Weights of its own, as large as they should be, or as nn.Parameter made them"
    def __init__(self, n_symbols, inside, n=24):
        super().__init__()
        self.n = n
        for k,shape in dict(W_in=(n_symbols, n), W_hid=(n, n), W_out=(n, n_symbols)).items():
            w = torch.randn(shape)
            setattr(self, k, nn.Parameter(w*.1) if inside else nn.Parameter(w)*.1)
        self.bias = nn.Parameter(torch.zeros(n_symbols))
    def forward(self, x):
        h,res = torch.zeros(len(x), self.n),[]
        for i in x.T:
            h = torch.tanh(self.W_in[i] + h@self.W_hid)
            res.append(h@self.W_out + self.bias)
        return torch.stack(res, 2)


def next_of(n_symbols=11, rows=20, n=10):
    gen = seeded()
    ids = torch.randint(0, n_symbols, (rows*n*20+1,), generator=gen)
    return [(ids[i:i+rows*n].view(rows, n), ids[i+1:i+1+rows*n].view(rows, n)) for i in range(0, len(ids)-1, rows*n)]


@pytest.mark.parametrize('inside,want', [(True, []), (False, ['O7'])])
def test_a_result_of_a_parameter_is_none(inside, want):
    "Its graph is gone after the first step, and it is no state"
    r = diagnose(model=ByHand(11, inside), dls=next_of(), loss_func=nn.CrossEntropyLoss(), trials=False)
    assert ids_of(r) == want
    assert not want or r.findings[0].fix.startswith('self.W_in = nn.Parameter(')


def test_a_state_with_its_graph_is_a_state():
    "Also where it is there from before"
    class Carries(Verdict):
        state = None
        def forward(self, x):
            o,self.state = self.rnn(self.emb(x), self.state)
            return self.out(o[:,-1])[:,0]
    model = Carries()
    model(torch.zeros(16, 12, dtype=torch.long))
    r = diagnose(model=model, dls=verdicts(16), loss_func=nn.BCEWithLogitsLoss(), trials=False)
    assert ids_of(r) == ['R2'] and 'self.state' in r.findings[0].fix


@pytest.mark.parametrize('axis', [0, 1])
def test_what_softmax_over_another_axis_brings_is_no_fault_of_its_own(axis):
    "Rows and steps are mixed by it, and the sum of all gradients may be none"
    class Along(nn.Module):
        def __init__(self, n=24):
            super().__init__()
            self.emb,self.rnn,self.out = nn.Embedding(11, n),nn.GRU(n, n, batch_first=True),nn.Linear(n, 11)
        def forward(self, x): return self.out(self.rnn(self.emb(x))[0]).log_softmax(axis)
    loss = lambda p, y: F.nll_loss(p.flatten(0, 1), y.flatten())
    assert ids_of(diagnose(model=Along(), dls=next_of(), loss_func=loss, trials=False)) == ['S9']


class Tied(nn.Module):
    "One matrix for what enters and what comes out, so first scores are larger than others"
    def __init__(self, n_symbols, n=96):
        super().__init__()
        self.emb,self.rnn,self.norm = nn.Embedding(n_symbols, n),nn.LSTM(n, n, batch_first=True),nn.LayerNorm(n)
        self.bias = nn.Parameter(torch.zeros(n_symbols))
        nn.init.normal_(self.emb.weight, std=.1)
    def forward(self, x):
        return F.linear(self.norm(self.rnn(self.emb(x))[0]), self.emb.weight, self.bias).transpose(1, 2)


@pytest.mark.parametrize('seed', range(3))
def test_first_weights_are_not_taken_for_those_of_another_table(seed):
    gen = seeded()
    often = torch.rand(80, generator=gen).pow(4)
    x = torch.multinomial(often, 12000, True, generator=gen)
    batches = [(x[i:i+600].view(20, 30), x[i+1:i+601].view(20, 30)) for i in range(0, 11000, 600)]
    seeded(seed)
    r = diagnose(model=Tied(80), dls=batches, loss_func=nn.CrossEntropyLoss(), trials=False)
    assert 'D7' not in said(r) and not any(f.id == 'I1' and f.certainty != 'weak' for f in r.findings)


def told_again(n, seed):
    "A text from a few phrases, each sentence another choice of them"
    gen = random.Random(seed)
    who,did,what,when = (o.split(',') for o in (
        'the miller,my aunt,a tired ferryman,the widow,nobody,an old dog,his brother,every child,a clerk,the new teacher',
        'carried,had forgotten,sold,painted,found,kept,wrote about,never trusted,borrowed,threw away,was looking for',
        'a sack of barley,the brass key,two letters,that crooked ladder,the last lantern,seven coins,some rope,her umbrella,the bell',
        'at dusk,before the frost came,twice a year,without a word,behind the chapel,while it snowed,in spite of the rain'))
    return ' '.join(f'{gen.choice(who)} {gen.choice(did)} {gen.choice(what)} {gen.choice(when)}.' for _ in range(n))


@pytest.mark.parametrize('every,leaks', [(40, False), (7, False), (1, False), (3, True)])
def test_a_text_that_says_the_same_in_new_order_is_no_leak(every, leaks):
    ids = torch.tensor([*told_again(500, 0).encode()])-32
    rows = [(ids[i:i+40], ids[i+1:i+41]) for i in range(0, len(ids)-41, every)]
    if leaks: random.Random(0).shuffle(rows)
    cut = int(.85*len(rows))
    parts = rows[:cut],rows[cut+40//every:]
    dls = DataLoaders(*(DataLoader(o, bs=16, drop_last=True, num_workers=0) for o in parts))
    assert bool(check_overlap(dls)) == leaks


class WithState(nn.Module):
    "Scores, and the state beside them"
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(96, 24),nn.GRU(24, 24, batch_first=True),nn.Linear(24, 96)
    def forward(self, x):
        out,h = self.rnn(self.emb(x))
        return self.out(out),h


def of_scores(out, y): return F.cross_entropy(out.transpose(1, 2), y)


@pytest.mark.parametrize('loss', [of_scores, lambda out, y: of_scores(out[0], y),
                                  lambda out, y: of_scores(out[0], y) + 1e-3*out[1].square().mean()])
def test_a_loss_of_a_tuple(loss):
    seeded()
    ids = torch.tensor([*told_again(60, 1).encode()])-32
    x,y = (o[:8*4*30].view(4, 8, 30) for o in (ids, ids[1:]))
    net = WithState()
    assert not diagnose(model=net, dls=[*zip(x, y)], loss_func=loss, opt=torch.optim.Adam(net.parameters(), 3e-3),
                        trials=False).findings


class Plain(nn.Module):
    "Embedding, a recurrent layer and scores, with first weights of somebody's own"
    def __init__(self, layer, change):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(96, 48),layer,nn.Linear(48, 96)
        with torch.no_grad(): change(self)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


def batches_of(n=12, bs=8, seq_len=30):
    ids = torch.tensor([*told_again(90, 1).encode()])-32
    x,y = (o[:n*bs*seq_len].view(n, bs, seq_len) for o in (ids, ids[1:]))
    return [*zip(x, y)]


@pytest.mark.parametrize('by', [1, 1.5, 2])
@pytest.mark.parametrize('seed', range(6))
def test_large_first_weights_are_not_those_of_another_table(seed, by):
    seeded(seed)
    def change(net):
        nn.init.eye_(net.rnn.weight_hh_l0)
        net.emb.weight.mul_(by)
    net = Plain(nn.RNN(48, 48, nonlinearity='relu', batch_first=True), change)
    subject = parts_subject(net, batches_of(), of_scores, torch.optim.Adam(net.parameters()))
    assert not check_table(subject)


def sampled(net, n_sampled=12):
    "The loss over the target and some symbols drawn, each with the log of how often it is drawn taken off"
    def loss(out, y):
        others = torch.randint(96, (*y.shape, n_sampled))
        ids = torch.cat([y[...,None], others], -1)
        scores = out.gather(-1, ids) - torch.tensor([.02, *[n_sampled/96]*n_sampled]).log()
        return F.cross_entropy(scores.flatten(0, 1), torch.zeros(y.numel(), dtype=torch.long))
    return loss


@pytest.mark.parametrize('change,said_of', [(lambda net: None, []), (lambda net: net.out.weight.mul_(40), ['I1'])])
def test_a_first_loss_that_no_weights_bring_down_is_not_theirs(change, said_of):
    seeded()
    net = Plain(nn.GRU(48, 48, batch_first=True), change)
    loss = sampled(net) if not said_of else of_scores
    subject = parts_subject(net, batches_of(), loss, torch.optim.Adam(net.parameters()))
    step,*_ = subject.run()
    assert [f.id for f in check_first_loss(subject, step)] == said_of


class OneHot(nn.Module):
    "A recurrent layer that reads letters one-hot"
    def __init__(self, n_hid, n_layers=1):
        super().__init__()
        self.rnn,self.out = nn.LSTM(96, n_hid, n_layers, batch_first=True),nn.Linear(n_hid, 96)
    def forward(self, x): return self.out(self.rnn(F.one_hot(x, 96).float())[0])


@pytest.mark.parametrize('n_hid,lr,said_of', [(64, .1, []), (1, .1, ['I6'])])
def test_a_network_that_learns_at_a_lower_rate_is_not_too_small(n_hid, lr, said_of):
    seeded()
    net = OneHot(n_hid)
    subject = parts_subject(net, batches_of(3, 32), of_scores, torch.optim.RMSprop(net.parameters(), lr))
    found = check_capacity(subject, trial(subject), 60)
    assert [f.id for f in found] == said_of and all('in place of 1 units' in f.fix for f in found)


def test_a_network_that_begins_late_is_not_too_small():
    "Two layers stand near the frequencies of characters for a hundred steps and more, and then learn the batch by heart"
    seeded()
    net = OneHot(48, 2)
    subject = parts_subject(net, batches_of(3, 16), of_scores, torch.optim.Adam(net.parameters(), 4e-3))
    assert check_capacity(subject, trial(subject), 60) == []


@pytest.mark.parametrize('share,said_of', [(.8, True), (.1, False)])
def test_a_part_of_the_validation_text_that_is_trained_on_is_seen_in_short_rows(share, said_of):
    ids = torch.tensor([*load_corpus('pydocs')[:67_000].encode('ascii', 'ignore')])
    rows = lambda ids: [(ids[i:i+30], ids[i+1:i+31]) for i in range(0, len(ids)-31, 30)]
    valid = ids[60_007-int(6000*share):66_007-int(6000*share)] # cut elsewhere
    dls = DataLoaders(*(DataLoader(rows(o), bs=16, drop_last=True, num_workers=0) for o in (ids[:60_000], valid)))
    assert bool(check_overlap(dls)) == said_of


class Gated(nn.Module):
    "A block that gives what the next one reads, and what the outputs are made of"
    def __init__(self, n=12):
        super().__init__()
        self.gate,self.on,self.aside = nn.Linear(n, n),nn.Linear(n, n),nn.Linear(n, n)
    def forward(self, x):
        z = torch.tanh(self.gate(x + F.pad(x, (0, 0, 1, 0))[:,:-1]))
        return x + self.on(z),self.aside(z)


class Blocks(nn.Module):
    def __init__(self, n_used):
        super().__init__()
        self.emb,self.blocks,self.out,self.n_used = (nn.Embedding(40, 12),nn.ModuleList(Gated() for _ in range(4)),
                                                     nn.Linear(12, 40),n_used)
    def forward(self, x):
        x,total = self.emb(x),0
        for o in self.blocks[:self.n_used]:
            x,aside = o(x)
            total = total+aside
        return self.out(F.relu(total))


@pytest.mark.parametrize('n_used,ids', [(4, []), (3, ['R9'])])
def test_the_last_block_has_nobody_to_read_it(n_used, ids):
    "In a stack as WaveNet has it: the last residual goes nowhere, which is no fault; a block that is left out is one"
    table = {c:i for i,c in enumerate(sorted(set(load_corpus('pydocs')[:4000])))}
    data = torch.tensor([min(table[c], 39) for c in load_corpus('pydocs')[:4000]])
    batches = [(data[i:i+240].view(8, 30), data[i+1:i+241].view(8, 30)) for i in range(0, 3600, 240)]
    torch.manual_seed(0)
    net = Blocks(n_used)
    r = diagnose(model=net, dls=batches, loss_func=lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten()),
                 opt=torch.optim.Adam(net.parameters(), 3e-3), trials=False)
    assert ids_of(r) == ids, r


class Spells(nn.Module):
    "Reads words by their letters, and says which word is next"
    def __init__(self, n_words):
        super().__init__()
        self.letters,self.rnn,self.words = nn.Embedding(12, 8),nn.LSTM(8, 32, batch_first=True),nn.Linear(32, n_words)
    def forward(self, x): return self.words(self.rnn(self.letters(x).mean(2))[0])


@pytest.mark.parametrize('n_words,ids', [(90, []), (9, ['S8'])])
def test_targets_of_another_kind_than_the_inputs(n_words, ids):
    "There are more words than letters; but outputs that no target ever asks for are too many"
    words = torch.randint(0, n_words, (6, 8, 11), generator=torch.Generator().manual_seed(0))
    spelt = torch.stack([words%12, words//8%12, words%5], 3) # three letters each
    seeded()
    net = Spells(90)
    r = diagnose(model=net, dls=[*zip(spelt[:,:,:-1], words[:,:,1:])], loss_func=of_scores,
                 opt=torch.optim.Adam(net.parameters(), 2e-3), trials=False)
    assert ids_of(r) == ids, r


class OnActivations(Callback):
    "Adds a tenth to what is trained, as fastai's RNNRegularizer does, and nothing to what is shown"
    def after_loss(self):
        if self.training: self.learn.loss_grad = self.learn.loss_grad + .1*self.learn.pred.square().mean() + .4


@pytest.mark.parametrize('cbs,ids', [(OnActivations(), []), (None, ['L8'])])
def test_what_is_added_to_the_gradient_alone_is_in_no_curve(cbs, ids):
    loss = over_steps if cbs else lambda p, y: over_steps(p, y) + .5
    seeded()
    batches = batches_of(8)
    dls = DataLoaders(batches[:6], batches[6:])
    learn = Learner(dls, OneHot(32), loss_func=loss, cbs=cbs)
    assert [o for o in ids_of(diagnose(learn=learn, trials=False)) if o != "D6"] == ids


def over_steps(p, y): return F.cross_entropy(p.transpose(1, 2), y)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(96, 24),nn.GRU(24, 48, batch_first=True),nn.Linear(48, 96)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


def test_a_trial_counts_what_the_loss_counts():
    "Padding that a mask takes out of the loss by hand: its characters are never learned, and are no part of the nats"
    mask = (torch.arange(30) < 12).float().expand(8, 30)
    batches = [(x*mask.long(), mask, (y*mask).long()) for x,y in batches_of(4)]
    def made():
        seeded()
        net = Padded()
        adam = torch.optim.Adam(net.parameters(), 5e-3)
        def fit(x, mask, y):
            losses = F.cross_entropy(net(x).flatten(0, 1), y.flatten(), reduction='none').view_as(mask)
            loss = (losses*mask).sum()/mask.sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            return loss.item()
        return fit,net,adam
    fit,*_ = made()
    by_hand = [fit(*batches[i%4]) for i in range(40)]
    assert np.allclose(trial(function_subject(*made(), batches), n=40).nats, by_hand, atol=1e-4)


class Packed(nn.Module):
    "Names of different lengths, packed"
    def __init__(self, n_symbols, both_ways):
        super().__init__()
        self.emb = nn.Embedding(n_symbols, 8, padding_idx=0)
        self.rnn = nn.LSTM(8, 12, batch_first=True, bidirectional=both_ways)
        self.out = nn.Linear(24 if both_ways else 12, n_symbols)
    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(self.emb(x), lengths, batch_first=True, enforce_sorted=False)
        return self.out(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


def batches_of_names(ahead):
    "Inputs, lengths, and what comes `ahead` later; 2 ends a name in the targets, where the inputs have 0"
    g = seeded()
    names = [[1, *torch.randint(3, 20, (int(torch.randint(3, 9, (), generator=g)),), generator=g).tolist(), 2]
             for _ in range(120)]
    pad = lambda rows: nn.utils.rnn.pad_sequence([torch.tensor(o) for o in rows], batch_first=True)
    parts = [(o[:-1], o[ahead:]+[0]*(ahead-1)) for o in names]
    return [(pad(xs), torch.tensor(list(map(len, xs))), pad(ys))
            for xs,ys in (zip(*parts[i:i+12]) for i in range(0, 120, 12))]


def packed_step(net):
    opt = torch.optim.Adam(net.parameters())
    def step(x, lengths, y):
        opt.zero_grad()
        F.cross_entropy(net(x, lengths).flatten(0, 1), y.flatten(), ignore_index=0).backward()
        opt.step()
    return step


@pytest.mark.parametrize('both_ways', [True, False])
def test_names_with_their_lengths_that_are_seen_ahead(both_ways):
    "Padding hides that the targets are the next inputs"
    net,batches = Packed(20, both_ways),batches_of_names(1)
    r = diagnose(step_function=packed_step(net), model=net, batches=batches, trials=False)
    assert ids_of(r) == ['S10']*both_ways
    if both_ways: assert 'nn.Linear(12, 20)' in r.findings[0].fix


@pytest.mark.parametrize('ahead', [1, 2, 3])
def test_targets_beside_padding_that_are_too_far_ahead(ahead):
    net = Packed(20, False)
    r = diagnose(step_function=packed_step(net), model=net, batches=batches_of_names(ahead), trials=False)
    assert [(f.id, f.evidence['ahead']) for f in r.findings] == [('D2', ahead)]*(ahead > 1)


class FourLetters(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(4, 4),nn.GRU(4, 48, batch_first=True),nn.Linear(48, 4)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


@pytest.mark.parametrize('lr,ids', [(1e-4, ['O2']), (.5, [])])
def test_a_low_rate_where_there_is_little_to_gain(lr, ids):
    "Four letters with words among them, of which sixty good steps learn a few hundredths of a nat"
    seeded()
    rng = random.Random(0)
    text = ''.join(''.join(rng.choices('ACGT', k=rng.randint(3, 9))) + rng.choice(['TATAAA', 'GGCCAATCT', 'TTGACA'])
                   for _ in range(2000))
    letters = torch.tensor(['ACGT'.index(o) for o in text])
    starts = torch.randint(len(letters)-31, (60, 32), generator=seeded())
    batches = [tuple(torch.stack([letters[i+k:i+k+30] for i in s]) for k in (0, 1)) for s in starts]
    net = FourLetters()
    s = parts_subject(net, batches, of_scores, torch.optim.SGD(net.parameters(), lr=lr))
    assert [o.id for o in check_low_rate(s, trial(s), 10)] == ids


@pytest.mark.parametrize('lr,ids', [(1e-6, ['O2']), (1e-2, [])])
def test_a_batch_that_only_a_much_higher_rate_learns(lr, ids):
    "Not even ten times the rate moves the loss"
    seeded()
    net = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
    x = torch.randn(24, 5)
    s = parts_subject(net, [(x, x.sum(1, keepdim=True))], nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=lr))
    assert [o.id for o in check_stuck(s)] == ids


def test_one_hot_targets_are_ids_in_the_fix():
    seeded()
    net = OneHot(12)
    batches = [(x, F.one_hot(y, 96).float()) for x,y in batches_of(3, 8)]
    f = diagnose(model=net, dls=batches, loss_func=lambda p, y: F.mse_loss(p.softmax(-1), y), trials=False).findings[0]
    assert f.id == 'L4' and 'y.argmax(-1).flatten()' in f.fix
    assert F.cross_entropy(net(batches[0][0]).flatten(0, 1), batches[0][1].argmax(-1).flatten()).isfinite()


class Restarted(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.cell,self.out = nn.Embedding(96, 8),nn.LSTMCell(8, 12),nn.Linear(12, 96)
    def forward(self, x):
        scores = []
        for t in range(x.shape[1]):
            h = torch.zeros(len(x), 12)
            c = torch.zeros(len(x), 12)
            h, c = self.cell(self.emb(x[:,t]), (h, c))
            scores.append(self.out(h))
        return torch.stack(scores, 1)


def test_both_parts_of_a_state_go_before_the_loop():
    seeded()
    f = diagnose(model=Restarted(), dls=batches_of(3, 8), loss_func=of_scores, trials=False).findings[0]
    assert f.id == 'R5' and f.fix.index('h = torch.zeros') < f.fix.index('c = torch.zeros') < f.fix.index('for t in')


# What a step is given may be no tensors, or nothing at all

def letters(n=24, rows=8, steps=16):
    "Ids of a text, and batches of it: (x, y)"
    text = load_corpus('pydocs')[:20_000]
    vocab = sorted({*text})
    ids = torch.tensor([vocab.index(c) for c in text])
    cut = lambda at: torch.stack([ids[at + i*997:at + i*997 + steps] for i in range(rows)])
    return len(vocab),[(cut(k*steps), cut(k*steps+1)) for k in range(n)]


class Reader(torch.nn.Module):
    def __init__(self, n, wide=48, last=None, bidirectional=False, emb=None):
        super().__init__()
        self.e = emb or torch.nn.Embedding(n, wide)
        self.r = torch.nn.GRU(self.e.embedding_dim, wide, batch_first=True, bidirectional=bidirectional)
        self.o = torch.nn.Linear(wide*(1+bidirectional), n)
        self.last = last or torch.nn.Identity()
    def forward(self, x): return self.last(self.o(self.r(self.e(x))[0]))


def training(net, loss=lambda scores, y: torch.nn.functional.cross_entropy(scores.transpose(1, 2), y),
             take=lambda x, y: (x, y)):
    "A training step of `net`, whose batches `take` turns into tensors"
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    def step(x, y):
        x,y = take(x, y)
        res = loss(net(x), y)
        opt.zero_grad()
        res.backward()
        opt.step()
        return res.item()
    return step


FORMS = dict( # what makes it of a tensor, and how a step makes a tensor of it again
    arrays=(lambda o: o.numpy(), torch.from_numpy),
    small=(lambda o: o.numpy().astype('uint8'), lambda o: torch.from_numpy(o).long()),
    lists=(lambda o: o.tolist(), torch.tensor),
)

@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('fault', ['D1', 'S10', None])
def test_batches_that_are_no_tensors(form, fault):
    "Arrays and lists are looked at as tensors are, and the step gets what it expects"
    torch.manual_seed(0)
    give,take = FORMS[form]
    n,batches = letters()
    net = Reader(n, bidirectional=fault == 'S10')
    given = [(give(x), give(x if fault == 'D1' else y)) for x,y in batches]
    report = diagnose(step_function=training(net, take=lambda x, y: (take(x), take(y))), model=net,
                      batches=given, trials=False)
    assert [o.id for o in report.findings][:1] == [fault]*(fault is not None), report
    assert type(given[0][0]) is type(give(batches[0][0]))


def test_batches_of_words_are_said_to_be_unseen():
    "No probe of the data counts as made"
    torch.manual_seed(0)
    n,batches = letters()
    net,texts = Reader(n),[str(i) for i in range(len(batches))]
    step = training(net)
    report = diagnose(step_function=lambda chunk: step(*batches[int(chunk)]), model=net, batches=texts, trials=False)
    unseen = 'whether each target is the next character (the batches have no numbers; give ids)'
    assert unseen in report.skipped, report.skipped


def test_a_step_that_fetches_its_batches_is_no_batch_learned_by_heart():
    torch.manual_seed(0)
    n,batches = letters(96)
    net,at = Reader(n, 24),iter(range(10**6))
    step = training(net)
    report = diagnose(step_function=lambda: step(*batches[next(at) % 96]), model=net)
    assert not {'I6', 'T5'} & {o.id for o in report.findings}, report


@pytest.mark.parametrize('last', [torch.nn.Softmax(-1), torch.nn.Sigmoid(), None])
def test_squeezed_before_log_softmax(last):
    torch.manual_seed(0)
    n,batches = letters()
    net = Reader(n, last=last)
    nll = lambda scores, y: torch.nn.NLLLoss()(scores.log_softmax(-1).flatten(0, 1), y.flatten())
    report = diagnose(step_function=training(net, nll), model=net, batches=batches, trials=False)
    assert [o.id for o in report.findings][:1] == ['L1']*(last is not None), report


def test_a_frozen_table_that_keeps_symbols_apart_is_no_fault():
    "One-hot vectors, for instance; a narrow one is"
    torch.manual_seed(0)
    n,batches = letters()
    for table,found in (torch.eye(n), []), (torch.randn(n, 8), ['O8']):
        net = Reader(n, 16, emb=torch.nn.Embedding.from_pretrained(table))
        report = diagnose(step_function=training(net), model=net, batches=batches, trials=False)
        assert [o.id for o in report.findings] == found, report


def trained(opt, loss):
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss


class Centred(nn.Module):
    "Sees one step ahead by a convolution that is padded on both sides"
    def __init__(self, n=24, padding=1):
        super().__init__()
        self.emb,self.conv,self.rnn,self.out = (nn.Embedding(11, n),nn.Conv1d(n, n, 1+2*padding, padding=padding),
                                                nn.GRU(n, n, batch_first=True),nn.Linear(n, 11))
    def forward(self, x):
        h = self.conv(self.emb(x).transpose(1, 2)).transpose(1, 2)
        return dict(scores=self.out(self.rnn(h)[0]))


@pytest.mark.parametrize('reads_all', [False, True])
@pytest.mark.parametrize('padding,cuts,ids', [(1, False, ['S10']), (0, False, []), (0, True, ['D1'])])
def test_who_sees_ahead_and_who_cuts_first_scores_off(reads_all, padding, cuts, ids):
    "Both make predictions that change with a later character of their row, if inputs and targets are cut out of one text"
    model = Centred(padding=padding)
    opt = torch.optim.Adam(model.parameters(), 1e-3)
    def step(b):
        if cuts: p,y = model(b)['scores'][:,1:],b[:,1:]
        elif reads_all: p,y = model(b)['scores'][:,:-1],b[:,1:]
        else: p,y = model(b[:,:-1])['scores'],b[:,1:]
        return trained(opt, F.cross_entropy(p.flatten(0, 1), y.flatten()))
    gen = seeded()
    batches = [torch.randint(11, (8, 13), generator=gen) for _ in range(4)]
    assert ids_of(diagnose(model=model, step_function=step, batches=batches, opt=opt, trials=False)) == ids


class Sketch(nn.Module):
    "Shares of a mixture, its places, and the scores of three states of a pen"
    def __init__(self, n=24, k=5):
        super().__init__()
        self.rnn,self.out,self.k = nn.GRU(5, n, batch_first=True),nn.Linear(n, 3*k+3),k
    def forward(self, x):
        share,at,width,pen = self.out(self.rnn(x)[0]).split([self.k]*3+[3], -1)
        return share.log_softmax(-1),at,width.exp(),pen


def test_shares_of_a_mixture_are_no_probabilities_of_symbols():
    gen = seeded()
    model = Sketch()
    opt = torch.optim.Adam(model.parameters(), 1e-3)
    def step(b):
        share,at,width,pen = model(b[:,:-1])
        near = -((b[:,1:,:1]-at)/width)**2/2 - width.log()
        loss = F.cross_entropy(pen.flatten(0, 1), b[:,1:,2:].argmax(-1).flatten())
        return trained(opt, loss - torch.logsumexp(share+near, -1).mean())
    pens = F.one_hot(torch.randint(3, (64, 20), generator=gen), 3)
    rows = torch.cat([torch.randn(64, 20, 2, generator=gen).cumsum(1), pens], -1)
    assert ids_of(diagnose(model=model, step_function=step, batches=list(rows.split(16)), opt=opt, trials=False)) == []
