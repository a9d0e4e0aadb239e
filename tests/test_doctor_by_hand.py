"""Courses that move weights by hand, two tasks at once, schedules of epochs, parts that are left out"""
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from charrnn_fa.doctor import diagnose

TEXT = ''.join(f'{a} {b} the {c}.\n' for a in ('Ada', 'Ben', 'Cleo') for b in ('sees', 'finds', 'paints')
               for c in ('sea', 'cat', 'moon'))*9
LETTERS = sorted(set(TEXT))
V = len(LETTERS)
IDS = torch.tensor([LETTERS.index(c) for c in TEXT])


def streams(rows=6, steps=15):
    "Batches whose rows go on in the next"
    n = (len(IDS)-1)//rows
    x,y = IDS[:n*rows].view(rows, n),IDS[1:n*rows+1].view(rows, n)
    return [(x[:,i:i+steps], y[:,i:i+steps]) for i in range(0, n-steps, steps)]

def found(**kwargs): return diagnose(trials=False, **kwargs).findings
def ids(**kwargs): return [f.id for f in found(**kwargs)]


# A course: weights in a list of an object, moved by hand, a state from batch to batch

def forward(x, h, ps, detached=False, forgets=False):
    scores,first = [],h
    for one in F.one_hot(x.T, V).float():
        if forgets: h = first
        h = torch.tanh(one @ ps[0] + (h.detach() if detached else h) @ ps[1] + ps[2])
        scores.append(h @ ps[3] + ps[4])
    return torch.cat(scores),h

class Course:
    def __init__(self, std=.1, **options):
        shapes = (V, 32),(32, 32),(32,),(32, V),(V,)
        self.ps,self.options = [(torch.randn(o)*std).requires_grad_() for o in shapes],options
    def __call__(self, x, h): return forward(x, h, self.ps, **self.options)

def move(ps, lr, to_zero=True):
    with torch.no_grad():
        for p in ps:
            p -= lr*p.grad
            if to_zero: p.grad.zero_()

def course(turned=True, to_zero=True, cut=False, **options):
    torch.manual_seed(0)
    net,h = Course(**options),torch.zeros(6, 32)
    def train(x, y):
        nonlocal h
        scores,h = net(x, h.detach())
        if cut: scores = scores.argmax(1, keepdim=True).float().expand(-1, V).clone().requires_grad_()
        loss = F.cross_entropy(scores, (y.T if turned else y).reshape(-1))
        loss.backward()
        move(net.ps, .5, to_zero)
        return loss.item()
    return train


def test_a_course_that_is_right(): assert ids(step_function=course(), batches=streams()) == []

def test_weights_that_are_moved_by_hand_are_not_taken_for_a_state():
    "What a batch leaves for the next is the state, and what was learned"
    mixed = streams()
    random.Random(0).shuffle(mixed)
    f, = found(step_function=course(), batches=mixed)
    assert f.id == 'D4' and f.fix.startswith('h = torch.zeros_like(h)'), f.fix

def test_first_weights_of_zeros_in_a_list():
    f, = found(step_function=course(std=0.), batches=streams())
    assert f.id == 'I2' and 'net.ps[0], net.ps[1], net.ps[3]' in f.fix, f.fix

def test_a_loss_that_is_cut_off_where_weights_are_moved_by_hand():
    "The error is that None has no square, or cannot be multiplied"
    f, = found(step_function=course(cut=True), batches=streams())
    assert f.id == 'L7' and f.fix.startswith('loss = F.cross_entropy(scores, y'), f.fix

def test_a_list_of_weights_by_its_name():
    f, = found(step_function=course(to_zero=False), batches=streams())
    assert f.id == 'O6' and f.fix.startswith('for p in net.ps: p.grad = None'), f.fix

def test_lines_of_functions_that_an_object_calls():
    f, = found(step_function=course(detached=True), batches=streams())
    assert f.id == 'R1' and '(h.detach() if detached else h)' in str(f.place), f

def test_a_state_that_the_loop_of_a_course_makes_anew():
    "It has a recurrence, and needs no further layer"
    f, = found(step_function=course(forgets=True), batches=streams())
    assert f.id == 'R5' and 'nn.GRU' not in f.fix and 'torch.tanh' in str(f.place), f

def test_targets_are_turned_where_functions_give_flat_scores():
    f, = found(step_function=course(turned=False), batches=streams())
    assert f.id == 'S3' and 'y.T.flatten()' in f.fix and 'F.cross_entropy' not in f.fix, f.fix

@pytest.mark.parametrize('n,want', [(5, []), (4, ['O7'])])
def test_a_weight_that_is_not_moved(n, want):
    "Of five in a list"
    torch.manual_seed(0)
    net = Course()
    def train(x, y):
        scores,_ = net(x, torch.zeros(6, 32))
        F.cross_entropy(scores, y.T.reshape(-1)).backward()
        move(net.ps[:n], .5)
        net.ps[-1].grad = None
    assert ids(step_function=train, batches=streams()) == want


# Two tasks at once: the next letter, and of which kind it is

KIND = torch.tensor([0 if c.islower() else 1 if c.isupper() else 2 for c in LETTERS])

class TwoHeads(nn.Module):
    def __init__(self, before=2):
        super().__init__()
        self.before,self.emb,self.conv = before,nn.Embedding(V, 16),nn.Conv1d(16, 16, 3)
        self.rnn,self.letter,self.kind = nn.GRU(16, 24, batch_first=True),nn.Linear(24, V),nn.Linear(24, 3)
    def forward(self, x):
        e = F.pad(self.emb(x).transpose(1, 2), (self.before, 2-self.before))
        out,_ = self.rnn(self.conv(e).relu().transpose(1, 2))
        return self.letter(out),self.kind(out)

@pytest.mark.parametrize('before,copies,cut,weight,want', [
    (2, False, False, 1., []), (2, False, False, .2, []), (1, False, False, 1., ['S10']), (2, True, False, 1., ['D1']),
    (2, False, True, 1., ['S4'])])
def test_a_second_task_hides_no_fault_of_the_first(before, copies, cut, weight, want):
    torch.manual_seed(0)
    net = TwoHeads(before)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, y, kinds):
        letters,kind = net(x)
        letters = letters.view(len(x), V, -1) if cut else letters.transpose(1, 2)
        loss = F.cross_entropy(kind.transpose(1, 2), kinds) + weight*F.cross_entropy(letters, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    batches = [(x, x if copies else y, KIND[y]) for x,y in streams()]
    assert ids(step_function=step, model=net, batches=batches) == want


# A network as most have it, and what is wrong around it

class Net(nn.Module):
    def __init__(self, n=V, **options):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 16),nn.GRU(16, 24, batch_first=True, **options),nn.LazyLinear(n)
        self(IDS[None,:2]) # so that the last layer has its size
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])

def own_step(net, loss_of=None, schedule=None):
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    sched = schedule and schedule(opt)
    loss_of = loss_of or (lambda scores, y: F.cross_entropy(scores.flatten(0, 1), y.flatten()))
    def step(x, y):
        scores = net(x)
        loss = loss_of(scores, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if sched: sched.step()
        return loss.item()
    return step

@pytest.mark.parametrize('by,want', [(.1, ['O10']), (.97, [])])
def test_a_schedule_of_epochs_that_goes_on_with_each_batch(by, want):
    net = Net()
    step = own_step(net, schedule=lambda opt: torch.optim.lr_scheduler.ExponentialLR(opt, by))
    assert ids(step_function=step, model=net, batches=streams()) == want

def test_scores_that_the_loss_itself_has_turned():
    "They need not be turned once more"
    net = Net()
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, y):
        scores = net(x)
        loss = F.cross_entropy(scores.transpose(0, 1).reshape(-1, V), y.reshape(-1))
        opt.zero_grad()
        loss.backward()
        opt.step()
    f, = found(step_function=step, model=net, batches=streams())
    assert (f.id, f.fix.splitlines()[0]) == ('S3', 'loss = F.cross_entropy(scores.flatten(0, 1), y.flatten())')

def test_a_symbol_without_an_output_that_comes_late():
    "A step that fetches its batches, and an IndexError of the loss, which is none of a list that ends"
    net = Net(V-1)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    it = iter([(x, y.clamp(max=V-2)) for x,y in streams()[:6]] + streams())
    def fetch():
        x,y = next(it)
        opt.zero_grad()
        F.cross_entropy(net(x).flatten(0, 1), y.flatten()).backward()
        opt.step()
    f, = found(step_function=fetch, model=net)
    assert f.id == 'S8' and f'id {V-1}' in f.message, f.message

class Trainer:
    "As libraries have it: a module makes the loss of a batch, and is told the number of the step"
    def __init__(self, net, loader):
        self.net,self.it,self.n_steps,self.opt = net,iter(loader),0,torch.optim.Adam(net.parameters(), 3e-3)
    def training_step(self, batch, i): return F.cross_entropy(self.net(batch[0]).flatten(0, 1), batch[1].flatten())
    def fit_one(self):
        loss = self.training_step(next(self.it), self.n_steps)
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        self.n_steps += 1

def test_the_number_of_a_step_is_no_target():
    net = Net()
    f, = found(step_function=Trainer(net, [(x, x) for x,_ in streams()*9]).fit_one, model=net)
    assert (f.id, f.fix) == ('D1', 'x,y = text[:-1],text[1:]')

@pytest.mark.parametrize('to_zero,want', [(True, []), (False, ['O6'])])
def test_gradients_between_the_pieces_of_a_batch(to_zero, want):
    net = Net()
    opt = torch.optim.Adam(net.parameters(), 1e-3)
    def step(x, y):
        for a,b in zip(x.split(5, 1), y.split(5, 1)):
            if to_zero: opt.zero_grad()
            F.cross_entropy(net(a).flatten(0, 1), b.flatten()).backward()
            opt.step()
    assert ids(step_function=step, model=net, batches=streams(steps=20)) == want

@pytest.mark.parametrize('cut', [False, True])
def test_targets_that_are_cut_anew_and_not_turned(cut):
    "By the loader, which gives steps first"
    net = Net()
    net.rnn.batch_first = False
    batches = [(x.t(), y.reshape(y.shape[::-1]) if cut else y.t()) for x,y in streams()]
    fs = found(step_function=own_step(net), model=net, batches=batches)
    assert [f.id for f in fs] == (['S4'] if cut else []) and (not cut or fs[0].fix.startswith('y = y.t()'))

def test_a_recurrence_over_the_batch_in_both_directions():
    "What is hidden may be seen from both sides, but not from other rows"
    torch.manual_seed(0)
    def hidden(x):
        at = torch.rand(x.shape) < .3
        return x.masked_fill(at, 0),x.masked_fill(~at, -100)
    rows = torch.utils.data.TensorDataset(*hidden(IDS[:1200].view(-1, 15)))
    batches = torch.utils.data.DataLoader(rows, batch_size=8)
    def wanted(first):
        net = Net(bidirectional=True)
        net.rnn.batch_first = first
        return ids(step_function=own_step(net), model=net, batches=batches)
    assert [wanted(o) for o in (True, False)] == [[], ['S5']]


# Parts that are left out

class Stack(nn.Module):
    def __init__(self, uses=True):
        super().__init__()
        self.uses,self.emb,self.out = uses,nn.Embedding(V, 24),nn.Linear(24, V)
        self.layers = nn.ModuleList(nn.GRU(24, 24, batch_first=True) for _ in range(2))
    def forward(self, x):
        h = self.emb(x)
        for layer in self.layers:
            out,_ = layer(h)
            if self.uses: h = h + out
        return self.out(h)

def test_layers_without_a_use_are_why_there_is_no_memory():
    f, = found(step_function=own_step(net := Stack(False)), model=net, batches=streams())
    assert f.id == 'R9' and [o.id for o in f.follows] == ['R5'], f
    assert ids(step_function=own_step(net := Stack()), model=net, batches=streams()) == []

class Cell(nn.Module):
    def __init__(self, uses=True):
        super().__init__()
        self.uses,self.emb,self.cell,self.out = uses,nn.Embedding(V, 16),nn.GRUCell(16, 24),nn.Linear(24, V)
    def forward(self, c, h):
        h = self.cell(self.emb(c), h if self.uses else None)
        return self.out(h),h

def test_a_state_that_is_carried_on_without_gradients_is_not_the_fault():
    "It is that the cell does not get it"
    net = Cell(False)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, y):
        h,losses = torch.zeros(len(x), 24),[]
        for a,b in zip(x.T, y.T):
            scores,_ = net(a, h)
            losses.append(F.cross_entropy(scores, b))
            with torch.no_grad(): h = net(a, h)[1]
        opt.zero_grad()
        torch.stack(losses).mean().backward()
        opt.step()
    fs = found(step_function=step, model=net, batches=streams())
    assert [f.id for f in fs] == ['R5'] and 'self.cell(x_t, ' in fs[0].fix, fs


# A mixture of probabilities

@pytest.mark.parametrize('axis,want', [(-1, []), (0, ['L2'])])
def test_shares_of_a_mixture_that_do_not_sum_to_1(axis, want):
    "A softmax over the rows, which is in the middle of a network"
    torch.manual_seed(0)
    net = nn.ModuleDict(dict(emb=nn.Embedding(V, 24), rnn=nn.GRU(24, 24, batch_first=True), share=nn.Linear(24, 2),
                             out=nn.Linear(24, 2*V)))
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, y):
        h,_ = net['rnn'](net['emb'](x))
        p = net['out'](h).view(*x.shape, 2, V).softmax(-1)
        mixed = (p*net['share'](h).softmax(axis)[...,None]).sum(2)
        loss = F.nll_loss(mixed.log().flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    fs = found(step_function=step, model=net, batches=streams())
    assert [f.id for f in fs][:1] == want and (not want or 'do not sum to 1' in fs[0].message), fs


# Names in batches of their own

def names(other_order=False):
    torch.manual_seed(0)
    words = [w for w in TEXT.split() if len(w) > 2][:160]
    rows = []
    for i in range(0, 160, 16):
        ws = [torch.tensor([LETTERS.index(c)+1 for c in w]) for w in words[i:i+16]]
        pad = lambda os: nn.utils.rnn.pad_sequence(os, batch_first=True)
        lengths = torch.tensor([len(w)-1 for w in ws])
        rows.append((pad([w[:-1] for w in ws]), lengths.roll(1) if other_order else lengths, pad([w[1:] for w in ws])))
    return rows

class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V+1, 16),nn.GRU(16, 24, batch_first=True),nn.Linear(24, V+1)
    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(self.emb(x), lengths, batch_first=True, enforce_sorted=False)
        out,_ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.out(out).log_softmax(-1)

def of_names(cut):
    torch.manual_seed(0)
    net = Packed()
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, lengths, y):
        out = net(x, lengths)
        out = out.view(len(x), V+1, -1) if cut else out.transpose(1, 2)
        loss = F.nll_loss(out, y, ignore_index=0)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    return dict(step_function=step, model=net)

@pytest.mark.parametrize('cut,other_order,want', [(False, False, []), (True, False, ['S4']), (False, True, ['S4'])])
def test_names_that_are_packed(cut, other_order, want):
    "Logarithms of probabilities that are cut anew are no scores; lengths that belong to other rows"
    fs = found(**of_names(cut), batches=names(other_order))
    assert [f.id for f in fs] == want and (not other_order or 'another row' in fs[0].message), fs
