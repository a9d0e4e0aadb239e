"""Faults as people ask about them: what a network reads, what its optimiser may change, where numbers are lost first"""
import math

import pytest
from fastai.basics import F, nn, torch

from charrnn_fa import doctor
from charrnn_fa.core import CharRNNError

V = 9
text = torch.randint(0, V, (3000,), generator=torch.Generator().manual_seed(0)).repeat_interleave(2)


def windows(n=8, rows=16, steps=20):
    at = range(0, n*rows*steps, rows*steps)
    text_ = text.repeat(2)
    return [(text_[i:i+rows*steps].view(rows, steps), text_[i+1:i+rows*steps+1].view(rows, steps)) for i in at]


def found(**kwargs): return [(o.id, o.certainty) for o in doctor.diagnose(**{'trials':False, **kwargs}).findings]


def trained(opts, loss):
    for o in opts: o.zero_grad()
    loss.backward()
    for o in opts: o.step()
    return loss.item()


def over_all(p, y): return F.cross_entropy(p.flatten(0, 1), y.flatten())


class FromGuesses(nn.Module):
    "A cell that goes on from the letter that is there, or from its own guess"
    def __init__(self, guesses):
        super().__init__()
        self.guesses = guesses
        self.emb,self.cell,self.out = nn.Embedding(V, 16),nn.GRUCell(16, 32),nn.Linear(32, V)
    def forward(self, x):
        i,h,res = x[:,0],torch.zeros(len(x), 32),[]
        for t in range(x.shape[1]):
            h = self.cell(self.emb(i), h)
            res.append(self.out(h))
            if t+1 < x.shape[1]: i = res[-1].argmax(1).detach() if self.guesses else x[:,t+1]
        return torch.stack(res, 1)


@pytest.mark.parametrize('guesses,want', [(True, [('Z1', 'exact')]), (False, [])])
def test_a_decoder_that_trains_on_its_own_guesses(guesses, want):
    torch.manual_seed(1)
    net = FromGuesses(guesses)
    assert found(model=net, dls=windows(), loss_func=over_all, opt=torch.optim.Adam(net.parameters(), 3e-3)) == want


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 16),nn.GRU(16, 32, batch_first=True),nn.Linear(32, V)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


@pytest.mark.parametrize('divided,want', [(lambda i, n: i//n, ['O10']), (lambda i, n: i/n, [])])
def test_a_warm_up_that_stands_at_nothing(divided, want):
    "Whatever the step does to the rate, the parameters are the optimiser's"
    torch.manual_seed(1)
    net = Plain()
    opt,steps = torch.optim.Adam(net.parameters(), 4e-3),[0]
    def step(x, y):
        steps[0] += 1
        for g in opt.param_groups: g['lr'] = 4e-3*min(1, divided(steps[0], 4000))
        return trained([opt], over_all(net(x), y))
    assert [i for i,_ in found(model=net, opt=opt, step_function=step, batches=windows())] == want


class Attends(nn.Module):
    "A look back at earlier steps, then what `last` makes of it"
    def __init__(self, diagonal, last):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 16),nn.GRU(16, 32, batch_first=True),nn.Linear(64, V)
        self.diagonal,self.last = diagonal,last
    def forward(self, x):
        h,_ = self.rnn(self.emb(x))
        n = x.shape[1]
        a = h @ h.transpose(1, 2)/math.sqrt(32)
        a = a.masked_fill(~torch.ones(n, n).tril(self.diagonal).bool(), -math.inf).softmax(-1)
        return self.out(self.last(torch.cat([h, a@h], -1)))


def standardised(z):
    "Over the steps so far, of which the first has no spread"
    n = torch.arange(1, z.shape[1]+1).view(1, -1, 1)
    mean = z.cumsum(1)/n
    return (z-mean)/(((z-mean)**2).cumsum(1)/n).sqrt()


@pytest.mark.parametrize('diagonal,last,words', [
    (-1, nn.Identity(), 'softmax gives for a row in which the mask leaves nothing'),
    (0, standardised, 'what div gives'),
    (0, nn.Identity(), None),
])
def test_the_first_number_that_is_lost(diagonal, last, words):
    "A mask's own −inf is none"
    torch.manual_seed(1)
    net = Attends(diagonal, last)
    report = doctor.diagnose(model=net, dls=windows(), loss_func=over_all,
                             opt=torch.optim.Adam(net.parameters(), 1e-3), trials=False)
    assert [o.id for o in report.findings] == (['O4'] if words else [])
    if words: assert words in report.findings[0].message


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn = nn.Embedding(V, 16),nn.GRU(16, 32, batch_first=True)
    def forward(self, x): return self.rnn(self.emb(x))[1]


class Writes(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 16),nn.GRU(16, 32, batch_first=True),nn.Linear(32, V)
    def forward(self, x, h): return self.out(self.rnn(self.emb(x), h)[0])


def pairs(n=8, rows=16, steps=12):
    at = torch.randint(0, 5900, (n, rows), generator=torch.Generator().manual_seed(1)).tolist()
    return [tuple(torch.stack([text[i+s:i+s+steps] for i in os]) for s in (0, steps)) for os in at]


@pytest.mark.parametrize('told,want', [(True, [('S10', 'weak')]), (False, [])])
def test_two_networks_with_an_optimiser_each(told, want):
    "An encoder and a decoder that are nobody's parts; the one may read what the other is to write"
    torch.manual_seed(1)
    reads,writes = Reads(),Writes()
    opts = [torch.optim.Adam(o.parameters(), 3e-3) for o in (reads, writes)]
    reads_opt,writes_opt = opts
    def step(before, now):
        h = reads(now if told else before)
        inputs = torch.cat([before[:,-1:], now[:,:-1]], 1)
        loss = over_all(writes(inputs, h), now)
        return trained([reads_opt, writes_opt], loss)
    assert found(step_function=step, batches=pairs()) == want


def test_of_two_networks_one_without_an_optimiser():
    "It may be a teacher, or forgotten: that is asked"
    reads,writes = Reads(),Writes()
    opt = torch.optim.Adam(writes.parameters(), 3e-3)
    def step(before, now): return trained([opt], over_all(writes(now, reads(before)), now))
    with pytest.raises(CharRNNError, match='give model='): doctor.diagnose(step_function=step, batches=pairs())


class Noisy(Plain):
    "What a network that samples does in evaluation as well, which is no dropout"
    def forward(self, x):
        h = self.rnn(self.emb(x))[0]
        return self.out(h + .1*torch.randn_like(h))


def test_noise_is_no_dropout():
    torch.manual_seed(1)
    net = Noisy()
    assert 'T1' not in [i for i,_ in found(model=net, dls=windows(), loss_func=over_all,
                                           opt=torch.optim.Adam(net.parameters(), 3e-3))]


def test_one_letter_that_is_written_on_and_on():
    "What comes after the first step need not be read"
    class OneToMany(Plain):
        def forward(self, x): return self.out(self.rnn(self.emb(x[:,:1]).expand(-1, x.shape[1], -1))[0])
    torch.manual_seed(1)
    net = OneToMany()
    same = [(x, x[:,:1].expand(-1, 20).contiguous()) for x,_ in windows()]
    assert 'Z1' not in [i for i,_ in found(model=net, dls=same, loss_func=over_all,
                                           opt=torch.optim.Adam(net.parameters(), 3e-3))]
