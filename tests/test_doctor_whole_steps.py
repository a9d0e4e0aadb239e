"""The doctor on what a step makes of its pieces, its padding, its weights and its series of amounts; beside
each fault the program without it"""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from charrnn_fa.doctor.diagnose import diagnose

V = 9


def seeded(n=0):
    torch.manual_seed(n)
    return torch.Generator().manual_seed(n)


def texts(n=6, bs=8, steps=12):
    "Batches of a text with a rule: the next letter is the double of the last, or one more"
    gen,ids = seeded(),[1]
    for r in torch.rand(n*bs*steps, generator=gen).tolist(): ids.append((2*ids[-1] if r < .8 else ids[-1]+1) % V)
    x = torch.tensor(ids)
    return [*zip(x[:-1].view(n, bs, steps), x[1:].view(n, bs, steps))]


class Letters(nn.Module):
    def __init__(self, n=V, n_hid=24):
        super().__init__()
        self.emb,self.gru,self.out = nn.Embedding(n, n_hid),nn.GRU(n_hid, n_hid, batch_first=True),nn.Linear(n_hid, n)

    def forward(self, x, h=None):
        y,h = self.gru(self.emb(x), h)
        return self.out(y),h


def nats(scores, y, **kwargs): return F.cross_entropy(scores.flatten(0, 1), y.flatten(), **kwargs)


def findings(step, net, batches, **kwargs):
    return diagnose(step_function=step, model=net, batches=batches, **{'trials':False, **kwargs}).findings


def ids_of(*args, **kwargs): return {f.id for f in findings(*args, **kwargs)}


# ---- pieces of a text

def in_pieces(running, n=4):
    "A step that learns from pieces of a text, each with the state of the one before; of the sum so far, or of each loss"
    net = Letters()
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    def fit_pieces(x, y):
        total,h = 0,None
        adam.zero_grad()
        for a,b in zip(x.chunk(n, 1), y.chunk(n, 1)):
            scores,h = net(a, h)
            h = h.detach()
            piece = nats(scores, b)/n
            total = total + (piece if running else piece.detach())
            (total if running else piece).backward(retain_graph=running)
        adam.step()
        return float(total)
    return fit_pieces,net,texts()


def test_the_gradient_of_a_sum_so_far():
    f,*_ = findings(*in_pieces(True))
    assert (f.id, f.certainty, f.evidence) == ('O9', 'exact', {'times':4}) and 'total' not in f.message


def test_pieces_with_a_loss_each_are_no_fault():
    assert not findings(*in_pieces(False))


def micro_batches(lr, divided):
    net = Letters()
    sgd = torch.optim.SGD(net.parameters(), lr, momentum=.9)
    def fit_some(x, y):
        sgd.zero_grad()
        shown = 0.
        for a,b in zip(x.chunk(4), y.chunk(4)):
            loss = nats(net(a)[0], b)
            (loss/4 if divided else loss).backward()
            shown += loss.item()/4
        sgd.step()
        return shown
    return fit_some,net,texts()


def test_losses_that_are_added_up_are_why_a_rate_is_too_high():
    f,*_ = findings(*micro_batches(2., False), trials=True)
    assert f.id == 'O11' and f.evidence == {'batches':4} and 'O1' in {o.id for o in f.follows}


@pytest.mark.parametrize('lr,divided', [(.02, False), (.1, True)])
def test_losses_that_are_added_up_at_a_rate_that_fits_are_no_fault(lr, divided):
    assert not {'O11', 'L3'} & ids_of(*micro_batches(lr, divided), trials=True)


# ---- cross-entropy by hand

def by_shares(share):
    "Cross-entropy as the product of logarithms and shares, of which the letter that came has `share`"
    def loss(scores, y):
        shares = torch.full_like(scores, (1-share)/(V-1)).scatter_(-1, y[...,None], share)
        return -(shares*scores[...,:].log_softmax(-1)).sum(-1).mean()
    return loss


class Scores(Letters):
    def forward(self, x): return super().forward(x)[0]


def of_loss(loss, net=None):
    net = net or Scores()
    return diagnose(model=net, dls=texts(), loss_func=loss, opt=torch.optim.Adam(net.parameters(), 3e-3),
                    trials=False).findings


def test_a_tenth_for_the_letter_that_came():
    f,*others = of_loss(by_shares(.1 + .01))
    assert (f.id, f.certainty) == ('L8', 'strong') and 'label_smoothing=0.1' in f.fix and not others


def test_one_hot_vectors_by_hand_are_cross_entropy():
    assert not of_loss(by_shares(1.))
    assert not of_loss(lambda p, y: -(F.one_hot(y, V)*p.log_softmax(-1)).sum(-1).mean())


def test_softmax_twice_is_seen_behind_one_hot_vectors():
    "What was not looked at before: no loss function of PyTorch is called"
    class Squeezed(Scores):
        def forward(self, x): return super().forward(x).softmax(-1)
    assert [f.id for f in of_loss(lambda p, y: -(F.one_hot(y, V)*p.log_softmax(-1)).sum(-1).mean(), Squeezed())] == ['L1']


# ---- rows of several lengths

def names(mark=None, n=200, width=14):
    "Names of letters 1 to 8, the next of which is likely, with a 0 at their end; after it 0 again, or `mark`"
    gen,rows = seeded(1),[]
    for _ in range(n):
        name = [int(torch.randint(1, V, (), generator=gen))]
        while torch.rand((), generator=gen) < .8 and len(name) < width-1: name.append(name[-1] % (V-1) + 1)
        rows.append(torch.tensor(name + [0]*(width-len(name))))
    y = torch.stack(rows)
    x = torch.cat([torch.zeros(n, 1, dtype=torch.long), y[:,:-1]], 1)
    if mark is not None: y = y.masked_fill((y == 0).cumsum(1) > 1, mark)
    return [*zip(x.split(20), y.split(20))]


def of_names(batches, **kwargs):
    net = Scores()
    loss = lambda p, y: nats(p, y, **kwargs)
    return diagnose(model=net, dls=batches, loss_func=loss, opt=torch.optim.Adam(net.parameters(), 3e-3),
                    trials=False).findings


def test_padding_that_counts():
    f,*others = of_names(names())
    assert (f.id, f.certainty, f.title) == ('T8', 'strong', 'Padding counts as text') and not others
    mended = {'y':names()[0][1]}
    exec(f.fix, mended)
    assert torch.equal(mended['y'], names(-100)[0][1])


def test_padding_that_is_left_out():
    assert not of_names(names(-100)) and 'T8' not in {f.id for f in of_names(names(), ignore_index=0)}


def test_a_target_that_stays_is_no_padding():
    "Whether a 3 has come yet: the same to the end of a row from some step on, but what is read goes on"
    x = torch.randint(0, 12, (200, 14), generator=seeded(2))
    y = ((x == 3).cumsum(1) > 0).long()
    net = Scores(12)
    r = diagnose(model=net, dls=[*zip(x.split(20), y.split(20))], loss_func=nats,
                 opt=torch.optim.Adam(net.parameters(), 3e-3), trials=False)
    assert 'T8' not in {f.id for f in r.findings}


# ---- weights after a step

def averaged(copied_back, every=1):
    net = Scores()
    adam,mean,n = torch.optim.Adam(net.parameters(), 3e-3),copy.deepcopy(net),[0]
    def fit_one(x, y):
        adam.zero_grad()
        loss = nats(net(x), y)
        loss.backward()
        adam.step()
        n[0] += 1
        with torch.no_grad():
            for p,q in zip(net.parameters(), mean.parameters()):
                q.lerp_(p, .001)
                if copied_back and n[0] % every == 0: p.copy_(q)
        return loss.item()
    return fit_one,net,texts()


def test_an_average_that_is_copied_back():
    f,*others = findings(*averaged(True))
    assert (f.id, f.certainty, f.title) == ('O8', 'exact', 'Weights are put back after each step') and not others


@pytest.mark.parametrize('copied_back,every', [(False, 1), (True, 5)])
def test_an_average_beside_the_network_or_now_and_then(copied_back, every):
    assert not {'O8'} & ids_of(*averaged(copied_back, every))


def moved_by_hand(early):
    net = Scores()
    def fit_one(x, y):
        net.zero_grad()
        loss = nats(net(x), y)
        if not early: loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), .25)
        if early: loss.backward()
        for p in net.parameters(): p.data.add_(p.grad, alpha=-.2)
        return loss.item()
    return fit_one,net,texts()


@pytest.mark.parametrize('early', [True, False])
def test_clipping_before_gradients_where_weights_are_moved_by_hand(early):
    found = findings(*moved_by_hand(early))
    assert [(f.id, f.certainty) for f in found] == [('O9', 'exact')]*early
    assert not early or 'clip_grad_norm_' in found[0].place.source


# ---- series of amounts

class Pen(nn.Module):
    "Where a pen goes next: shares of three guesses, and the guesses"
    def __init__(self, both=False, axis=-1, n_hid=24):
        super().__init__()
        self.axis,self.lstm = axis,nn.LSTM(2, n_hid, batch_first=True, bidirectional=both)
        self.out = nn.Linear(n_hid*(1+both), 9)

    def forward(self, x):
        shares,*guess = self.out(self.lstm(x)[0]).split(3, -1)
        return shares.log_softmax(self.axis),*guess


def strokes(n=120, steps=15):
    t = torch.arange(steps)[None] + 9*torch.rand(n, 1, generator=seeded(3))
    return torch.stack([torch.cos(t/2), torch.sin(t/3)], -1).split(20)


def of_guesses(given, y):
    shares,a,b = given
    return -(shares - (y[...,:1]-a)**2 - (y[...,1:]-b)**2).logsumexp(-1).mean()


def drawing(net, x_of=lambda o: o[:,:-1], y_of=lambda o: o[:,1:]):
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    def fit_one(strokes):
        adam.zero_grad()
        loss = of_guesses(net(x_of(strokes)), y_of(strokes))
        loss.backward()
        adam.step()
        return loss.item()
    return fit_one,net,[*strokes()]


@pytest.mark.parametrize('net,want', [(dict(), []), (dict(axis=1), ['S10']), (dict(both=True), ['S10'])])
def test_a_series_that_is_seen_ahead(net, want):
    found = findings(*drawing(Pen(**net)))
    assert [f.id for f in found] == want and {f.certainty for f in found} <= {'exact'}
    assert 'axis' not in net or 'log_softmax' in found[0].place.source


def of_pairs(net, pairs):
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    return [f.id for f in diagnose(model=net, dls=pairs, loss_func=of_guesses, opt=adam, trials=False).findings]


def test_a_series_with_itself_as_target():
    rows = strokes()
    assert of_pairs(Pen(), [(o[:,:-1], o[:,:-1]) for o in rows]) == ['D1']
    assert of_pairs(Pen(), [(o[:,:-1], o[:,1:]) for o in rows]) == []


def test_what_is_to_find_a_short_form_may_have_itself_as_target():
    "All is read before anything is told, or there are fewer units than amounts"
    rows = strokes()
    assert of_pairs(Pen(both=True), [(o, o) for o in rows]) == of_pairs(Pen(n_hid=1), [(o, o) for o in rows]) == []


def test_normalisation_over_a_batch_does_not_see_ahead_in_use():
    class Normed(Pen):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
        def forward(self, x): return super().forward(self.norm(x.transpose(1, 2)).transpose(1, 2))
    assert 'S10' not in ids_of(*drawing(Normed()))
