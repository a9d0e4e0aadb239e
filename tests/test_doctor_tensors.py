"""Networks of bare tensors, steps that fetch what they are not given, cells by hand"""
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from charrnn_fa.doctor import diagnose

TEXT = ''.join(f'{a} {b} the {c}.\n' for a in ('Ada', 'Ben', 'Cleo') for b in ('sees', 'finds', 'paints')
               for c in ('sea', 'cat', 'moon'))*9
LETTERS = sorted(set(TEXT))
V = len(LETTERS)
IDS = torch.tensor([LETTERS.index(c) for c in TEXT])


def windows(n=4, bs=6, sl=16):
    torch.manual_seed(1)
    at = torch.randint(0, len(IDS)-sl-1, (n, bs)).tolist()
    return [tuple(torch.stack([IDS[i+s:i+s+sl] for i in row]) for s in (0, 1)) for row in at]


def found(**kwargs): return [(o.id, o.certainty) for o in diagnose(**{'trials':False, **kwargs}).findings]


def trained(opt, loss):
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss


# A network of bare tensors

def bare():
    torch.manual_seed(2)
    W = dict(xh=torch.randn(V, 24)/5, hh=torch.randn(24, 24)/5, ho=torch.randn(24, V)/5)
    for o in W.values(): o.requires_grad_()
    return W


GIVEN = dict(nothing=lambda W, f: None, a_dictionary=lambda W, f: W, a_list=lambda W, f: [*W.values()],
             a_function=lambda W, f: f)


@pytest.mark.parametrize('given', GIVEN)
@pytest.mark.parametrize('squash,clears,want', [(torch.tanh, True, []), (lambda h: h, True, [('R8', 'exact')]),
                                                (torch.tanh, False, [('O6', 'exact')])])
def test_tensors_without_a_module(given, squash, clears, want):
    W = bare()
    opt = torch.optim.Adam(W.values(), lr=1e-3)
    def scores_of(x):
        h,res = torch.zeros(len(x), 24),[]
        for i in x.T:
            h = squash(W['xh'][i] + h@W['hh'])
            res.append(h@W['ho'])
        return torch.stack(res, 1)
    def step(x, y):
        loss = F.cross_entropy(scores_of(x).flatten(0, 1), y.flatten())
        if clears: opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    before = {k:v.detach().clone() for k,v in W.items()}
    assert found(model=GIVEN[given](W, scores_of), step_function=step, batches=windows()) == want
    assert all(torch.equal(v, before[k]) for k,v in W.items())


def test_one_that_is_not_in_the_optimiser():
    W = bare()
    opt = torch.optim.Adam([W['xh'], W['ho']], lr=1e-3)
    def step(x, y):
        h,loss = torch.zeros(len(x), 24),0
        for i,t in zip(x.T, y.T):
            h = torch.tanh(W['xh'][i] + h@W['hh'])
            loss = loss+F.cross_entropy(h@W['ho'], t)/x.shape[1]
        return trained(opt, loss)
    report = diagnose(step_function=step, batches=windows(), trials=False)
    assert report.findings[0].id == 'O7' and 'hh' in report.findings[0].message


# A step that fetches its batch only if it gets none

class Numbers(nn.Module):
    "Of the ids themselves, or of a vector for each"
    def __init__(self, looks_up):
        super().__init__()
        self.emb = nn.Embedding(V, 8) if looks_up else None
        self.rnn,self.out = nn.LSTM(8 if looks_up else 1, 32, batch_first=True),nn.Linear(32, V)
    def forward(self, x): return self.out(self.rnn(self.emb(x) if self.emb else x.float().unsqueeze(-1))[0])


@pytest.mark.parametrize('looks_up,want', [(True, []), (False, [('S2', 'exact')])])
def test_a_batch_that_need_not_be_given(looks_up, want):
    torch.manual_seed(2)
    net = Numbers(looks_up)
    opt = torch.optim.NAdam(net.parameters(), lr=2e-3)
    def step(batch=None):
        x,y = batch or windows(1)[0]
        return trained(opt, F.cross_entropy(net(x).flatten(0, 1), y.flatten()))
    assert found(model=net, step_function=step, batches=windows(8)) == want


# Writing

class Brain(nn.Module):
    "Asked for one character, in training and in writing alike"
    def __init__(self):
        super().__init__()
        self.inp,self.cell,self.voice = nn.Embedding(V, 24),nn.LSTMCell(24, 24),nn.Linear(24, V)
    def blank(self, n): return torch.zeros(n, 24),torch.zeros(n, 24)
    def tick(self, c, memory):
        memory = self.cell(self.inp(c), memory)
        return self.voice(memory[0]),memory


@pytest.mark.parametrize('kept,want', [(True, []), (False, [('G3', 'exact')])])
@pytest.mark.parametrize('one', [False, True])
def test_a_method_that_writes_a_character(kept, one, want):
    "`one`: it takes a single one to begin with"
    torch.manual_seed(2)
    brain = Brain()
    opt = torch.optim.Adam(brain.parameters(), 5e-3)
    def teach(x, y):
        memory,loss = brain.blank(len(x)),0
        for a,b in zip(x.T, y.T):
            s,memory = brain.tick(a, memory)
            loss = loss+F.cross_entropy(s, b)/x.shape[1]
        return trained(opt, loss)
    for b in windows(60): teach(*b)
    index = {c:i for i,c in enumerate(LETTERS)}
    def write(brain, prompt, n):
        res,memory = prompt,brain.blank(1)
        for c in [prompt] if one else prompt: s,memory = brain.tick(torch.tensor([index[c]]), memory)
        for _ in range(n):
            k = torch.distributions.Categorical(logits=s).sample()
            res += LETTERS[k]
            s,memory = brain.tick(k, memory if kept else brain.blank(1))
        return res
    assert found(model=brain, step_function=teach, batches=windows(), sample=write, text=TEXT) == want


# What is cut off, or mixed

class Copy(nn.Module):
    "Reads a word, and writes it again"
    def __init__(self, passed_on):
        super().__init__()
        self.emb,self.out = nn.Embedding(V, 16),nn.Linear(24, V)
        self.enc,self.dec = (nn.GRU(16, 24, batch_first=True) for _ in range(2))
        self.passed_on = passed_on
    def forward(self, x, told):
        h = self.passed_on(self.enc(self.emb(x))[1])
        return self.out(self.dec(self.emb(told), h)[0])


@pytest.mark.parametrize('passed_on,want', [(lambda h: h, []), (lambda h: torch.tensor(h.tolist()), [('L7', 'exact')]),
                                            (lambda h: h.detach(), [('L7', 'exact')]),
                                            (torch.zeros_like, [('R9', 'exact')])])
def test_what_is_cut_off_and_what_is_not_used(passed_on, want):
    torch.manual_seed(2)
    net = Copy(passed_on)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    words = [torch.randint(1, V, (8, 6)) for _ in range(4)]
    batches = [(w, F.pad(w[:,:-1], (1, 0)), w) for w in words]
    def step(x, told, y): return trained(opt, F.cross_entropy(net(x, told).flatten(0, 1), y.flatten()))
    assert found(model=net, step_function=step, batches=batches) == want


class Attends(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.emb,self.enc,self.dec,self.out = (nn.Embedding(V, 16),nn.GRU(16, 24, batch_first=True),
                                               nn.GRUCell(40, 24),nn.Linear(24, V))
        self.dim = dim
    def forward(self, x, told):
        memory,h = self.enc(self.emb(x))
        h,res = h[0],[]
        for i in told.T:
            share = F.softmax(memory@h[:,:,None], dim=self.dim)
            h = self.dec(torch.cat([self.emb(i), (share*memory).sum(1)], -1), h)
            res.append(self.out(h))
        return torch.stack(res, 1)


@pytest.mark.parametrize('dim,want', [(1, []), (0, [('S9', 'exact')])])
def test_attention_along_the_rows(dim, want):
    torch.manual_seed(2)
    net = Attends(dim)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    batches = [(x, torch.cat([0*x[:,:1], x.flip(1)], 1)) for x in (torch.randint(1, V, (8, 7)) for _ in range(4))]
    def step(x, y): return trained(opt, F.cross_entropy(net(x, y[:,:-1]).flatten(0, 1), y[:,1:].flatten()))
    assert found(model=net, step_function=step, batches=batches) == want


@pytest.mark.parametrize('padded', [True, False])
@pytest.mark.parametrize('turned,want', [(False, []), (True, [('S3', 'exact')])])
def test_tags_of_words_step_by_step(padded, turned, want):
    "The mask leaves out what fills the ends of rows"
    torch.manual_seed(2)
    def pad(n):
        lengths = torch.randint(4 if padded else 10, 11, (n, 1))
        return torch.where(torch.arange(10) < lengths, torch.randint(1, 9, (n, 10)), 0)
    batches = [(w, torch.where(w > 0, w % 3 + 1, 0), w > 0) for w in (pad(12) for _ in range(4))]
    emb,rnn,out = nn.Embedding(9, 12),nn.LSTM(12, 16),nn.Linear(16, 4)
    net = nn.ModuleList([emb, rnn, out])
    opt = torch.optim.Adam(net.parameters(), 5e-3)
    def step(words, tags, mask):
        scores = out(rnn(emb(words.T))[0])
        if not turned: scores = scores.transpose(0, 1)
        each = F.cross_entropy(scores.reshape(-1, 4), tags.reshape(-1), reduction='none')
        return trained(opt, (each*mask.reshape(-1)).sum()/mask.sum())
    assert found(model=net, step_function=step, batches=batches) == want


# What is no fault

class Plain(nn.Module):
    def __init__(self, n=V):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(n, 24),nn.GRU(24, 32, batch_first=True),nn.Linear(32, n)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


@pytest.mark.parametrize('times,want', [(1/math.log(2), []), (1.3, [('L8', 'weak')])])
def test_a_loss_in_bits(times, want):
    torch.manual_seed(2)
    net = Plain()
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, y): return trained(opt, F.cross_entropy(net(x).flatten(0, 1), y.flatten())*times)
    assert found(model=net, step_function=step, batches=windows()) == want


def test_rows_that_beat_in_time():
    "Other numbers in each row, with marks at the same places: no text that runs down the batch"
    torch.manual_seed(2)
    digits = torch.randint(0, 5, (16, 1801))
    digits[:,::7],digits[:,1::7] = 5,6
    net = Plain(7)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, y): return trained(opt, F.cross_entropy(net(x).flatten(0, 1), y.flatten()))
    assert found(model=net, step_function=step, batches=[(digits[:,i:i+36], digits[:,i+1:i+37]) for i in range(0, 1764, 36)]) == []


@pytest.mark.parametrize('cls,lr,want', [(torch.optim.RAdam, 1e-3, set()), (torch.optim.Adam, 1e-5, {'O2'})])
def test_an_optimiser_that_warms_up_itself(cls, lr, want):
    "At its first steps RAdam is slow at any rate"
    torch.manual_seed(2)
    net = Plain()
    opt = cls(net.parameters(), lr)
    def step(x, y): return trained(opt, F.cross_entropy(net(x).flatten(0, 1), y.flatten()))
    assert {i for i,_ in found(model=net, step_function=step, batches=windows(24), trials=True, seconds=600)} & {'O2'} == want
