"""Batches in another order, texts without rows, and a few faults more"""
import random

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from fastcore.basics import noop

from charrnn_fa.doctor import diagnose

TEXT = ''.join(f'{a} {b} the {c}.\n' for a in ('Ada', 'Ben', 'Cleo') for b in ('sees', 'finds', 'paints')
               for c in ('sea', 'cat', 'moon'))*9
V = len(set(TEXT))
IDS = torch.tensor([sorted(set(TEXT)).index(c) for c in TEXT])


class Net(nn.Module):
    def __init__(self, first=True, both=False, drop=0.):
        super().__init__()
        self.emb,self.rnn = nn.Embedding(V, 24),nn.LSTM(24, 32, batch_first=first, bidirectional=both)
        self.out,self.drop = nn.Linear(32*(1+both), V),nn.Dropout(drop)
    def forward(self, x): return self.drop(self.out(self.rnn(self.emb(x))[0]))


def windows(n=4, bs=6, sl=16, shift=1):
    torch.manual_seed(1)
    at = torch.randint(0, len(IDS)-sl-shift-1, (n, bs)).tolist()
    return [tuple(torch.stack([IDS[i+s:i+s+sl] for i in row]) for s in (0, shift)) for row in at]


def trained(net, x, y, opt):
    opt.zero_grad()
    loss = F.cross_entropy(net(x).float().flatten(0, -2), y.flatten())
    loss.backward()
    opt.step()
    return loss.item()


def found(batches, step, net, **kwargs):
    r = diagnose(step_function=step, model=net, batches=batches, **{'trials':False, **kwargs})
    return [(o.id, o.certainty) for o in r.findings]


def program(net, **kwargs):
    torch.manual_seed(2)
    return net,torch.optim.Adam(net.parameters(), lr=3e-3, **kwargs)


THIRD = dict(lengths=lambda x: torch.full((len(x),), x.shape[1]), flag=lambda x: True, mask=lambda x: torch.ones_like(x))


@pytest.mark.parametrize('third', THIRD)
@pytest.mark.parametrize('first,want', [(True, []), (False, [('S5', 'exact')])])
def test_a_third_part_after_the_targets(third, first, want):
    net,opt = program(Net(first))
    def step(x, y, z): return trained(net, x, y, opt)
    assert found([(x, y, THIRD[third](x)) for x,y in windows()], step, net) == want


@pytest.mark.parametrize('shift,want', [(1, []), (0, ['D1'])])
@pytest.mark.parametrize('flat', [False, True])
@pytest.mark.parametrize('steps_first', [False, True])
def test_targets_that_are_the_inputs_say_nothing_of_the_axis(steps_first, flat, shift, want):
    "The text does: a recurrence along it is no fault"
    turn = (lambda t: t.T.contiguous()) if steps_first else noop
    batches = [(turn(x), turn(y).flatten() if flat else turn(y)) for x,y in windows(8, 12, 20, shift)]
    net,opt = program(Net(first=not steps_first))
    assert [k for k,_ in found(batches, lambda x, y: trained(net, x, y, opt), net)] == want


@pytest.mark.parametrize('shift,want', [(1, []), (0, [('D1', 'exact')]), (2, [('D2', 'exact')])])
def test_a_text_with_its_lengths_in_one_part(shift, want):
    net,opt = program(Net())
    def step(batch):
        (x,lengths),y = batch
        assert lengths.shape == (len(x),)
        return trained(net, x, y, opt)
    batches = [((x, torch.full((len(x),), x.shape[1])), y) for x,y in windows(shift=shift)]
    assert found(batches, step, net) == want


@pytest.mark.parametrize('shift,both,want', [(1, False, []), (0, False, ['D1']), (2, False, ['D2']), (1, True, ['S10'])])
def test_a_text_without_rows(shift, both, want):
    net,opt = program(Net(both=both))
    def step(x, y): return trained(net, x[None], y, opt)
    batches = [(IDS[i:i+25], IDS[i+shift:i+shift+25]) for i in range(0, 200, 25)]
    assert [o for o,_ in found(batches, step, net)] == want


def test_pairs_of_characters_need_no_memory():
    net,opt = program(nn.Embedding(V, V))
    def step(x, y): return trained(net, x, y, opt)
    assert found([(IDS[i:i+50], IDS[i+1:i+51]) for i in range(0, 200, 50)], step, net) == []


def test_a_step_of_all_parts():
    net,opt = program(Net())
    net.emb.requires_grad_(False)
    net.rnn.requires_grad_(False)
    def step(*batch):
        x,y = batch
        return trained(net, x, y, opt)
    assert found(windows(), step, net) == [('O8', 'exact')]


class Told(nn.Module):
    "A decoder that is given the truth, one step late or not, or its own guess now and then"
    def __init__(self, late, forcing=1.):
        super().__init__()
        self.late,self.forcing = late,forcing
        self.enc,self.emb = nn.GRU(24, 32, batch_first=True),nn.Embedding(V+1, 24)
        self.cell,self.out = nn.GRUCell(24, 32),nn.Linear(32, V)
    def forward(self, src, tgt):
        h = self.enc(self.emb(src))[1][0]
        token,res = torch.full((len(src),), V),[]
        for t in range(tgt.shape[1]):
            h = self.cell(self.emb(token if self.late else tgt[:,t]), h)
            res.append(self.out(h))
            token = tgt[:,t] if random.random() < self.forcing else res[-1].argmax(1)
        return torch.stack(res, 1)


@pytest.mark.parametrize('late,forcing,want', [(True, .5, []), (True, 1., []), (False, 1., [('D1', 'strong')])])
def test_a_decoder_is_told_the_truth(late, forcing, want):
    "Chance in the choice of what it is told is no dropout"
    net,opt = program(Told(late, forcing))
    def step(src, tgt):
        opt.zero_grad()
        loss = F.cross_entropy(net(src, tgt[:,1:]).flatten(0, 1), tgt[:,1:].flatten())
        loss.backward()
        opt.step()
        return loss.item()
    torch.manual_seed(3)
    batches = [(x, torch.cat([torch.zeros(len(x), 1, dtype=torch.long), x.flip(1)], 1)) for x,_ in windows(sl=8)]
    assert found(batches, step, net) == want


@pytest.mark.parametrize('drop,want', [(0., []), (.5, [('I7', 'exact')])])
def test_dropout_on_the_scores(drop, want):
    net,opt = program(Net(drop=drop))
    assert found(windows(), lambda x, y: trained(net, x, y, opt), net) == want


@pytest.mark.parametrize('kind,want', [(torch.float32, []), (torch.bfloat16, [('O12', 'strong')])])
def test_weights_too_coarse_for_their_updates(kind, want):
    torch.manual_seed(2)
    net = Net().to(kind)
    opt = torch.optim.SGD(net.parameters(), lr=.02, momentum=.9)
    assert found(windows(), lambda x, y: trained(net, x, y, opt), net) == want


def test_targets_of_the_same_place_are_not_shuffled_apart():
    net,opt = program(Net())
    assert found([(x, x) for x,_ in windows(24, 32)], lambda x, y: trained(net, x, y, opt), net) == [('D1', 'exact')]


def test_what_writes_may_have_its_own_order():
    net,opt = program(Net())
    symbols = sorted(set(TEXT))
    def generate(prime='Ada', predict_len=100, temperature=.8):
        text = prime
        with torch.no_grad():
            net.eval()
            for _ in range(predict_len):
                scores = net(torch.tensor([[symbols.index(c) for c in text]]))[0,-1]/temperature
                text += symbols[torch.multinomial(scores.softmax(0), 1)]
            net.train()
        return text
    res = found(windows(), lambda x, y: trained(net, x, y, opt), net, sample=generate, text=TEXT)
    assert not [o for o in res if o[1] != 'weak']


def test_a_sum_is_mended_in_the_criterion():
    "Its call may flatten what it is given; the option is where it was made"
    net,opt = program(Net())
    criterion = nn.CrossEntropyLoss(ignore_index=90, reduction='sum')
    def step(x, y):
        opt.zero_grad()
        loss = criterion(net(x).view(-1, V), y.reshape(-1))
        loss.backward()
        opt.step()
        return loss.item()
    f, = diagnose(step_function=step, model=net, batches=windows(), trials=False).findings
    assert (f.id == 'L3' and 'nn.CrossEntropyLoss(ignore_index=90)' in f.fix
            and eval(f.fix.split('=', 1)[1], dict(nn=nn)).reduction == 'mean')


class Pen(nn.Module):
    "Strokes of a pen, (dx, dy, up)"
    def __init__(self, first=True, mixes=False):
        super().__init__()
        self.mixes,self.rnn,self.out = mixes,nn.LSTM(3, 16, batch_first=first),nn.Linear(16, 3)
    def forward(self, x):
        h = self.rnn(x)[0]
        return self.out(h-h.mean(0, keepdim=True) if self.mixes else h)


@pytest.mark.parametrize('net,want', [(dict(), []), (dict(first=False), ['S5']), (dict(mixes=True), ['S4'])])
def test_rows_of_strokes(net, want):
    torch.manual_seed(4)
    net = Pen(**net)
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    def step(x, y):
        opt.zero_grad()
        loss = F.mse_loss(net(x), y)
        loss.backward()
        opt.step()
        return loss.item()
    strokes = [torch.randn(8, 13, 3).cumsum(1) for _ in range(4)]
    assert [o for o,_ in found([(o[:,:-1], o[:,1:]) for o in strokes], step, net)] == want


@pytest.mark.parametrize('seconds', [0, 1e-6])
def test_no_time_is_no_error(seconds):
    net,opt = program(Net())
    r = diagnose(step_function=lambda x, y: trained(net, x, y, opt), model=net, batches=windows(), seconds=seconds)
    assert not r.findings and r.late


@pytest.mark.parametrize('lr,want', [(3e-3, []), (3., ['O1'])])
def test_short_trainings_get_batches_as_the_loader_gives_them(lr, want):
    torch.manual_seed(2)
    net = Net()
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    def step(x, y, lengths):
        assert lengths.tolist() == [16]*6 and torch.equal(x[:,1:], y[:,:-1])
        return trained(net, x, y, opt)
    batches = [(x, y, torch.full((6,), 16)) for x,y in windows(24)]
    assert [o for o,_ in found(batches, step, net, trials=True)][:1] == want
