"""The doctor on steps that fetch their own batches; beside each fault the program without it"""
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

from charrnn_fa.doctor.diagnose import diagnose

V = 9


def seeded(n=0):
    torch.manual_seed(n)
    return torch.Generator().manual_seed(n)


def text(n):
    "Ids with a rule: the next is the double of the last, or one more"
    gen,ids = seeded(),[1]
    for r in torch.rand(n, generator=gen).tolist(): ids.append((2*ids[-1] if r < .8 else ids[-1]+1) % V)
    return torch.tensor(ids)


def found(trials=False, **kwargs): return diagnose(trials=trials, **kwargs).findings


def ids_of(**kwargs): return [f.id for f in found(**kwargs)]


# ---- Steps that fetch their batches

class Letters(nn.Module):
    def __init__(self, cut=False, n=24):
        super().__init__()
        self.cut,self.emb,self.cell,self.out = cut,nn.Embedding(V, n),nn.GRUCell(n, n),nn.Linear(n, V)

    def forward(self, x):
        h,res = torch.zeros(len(x), self.cell.hidden_size),[]
        for t in range(x.shape[1]):
            h = self.cell(self.emb(x[:,t]), h.detach() if self.cut else h)
            res.append(self.out(h))
        return torch.stack(res, 1)


def fetching(zero=True, shift=1, turned=False, **kwargs):
    "A step that takes the next piece of eight streams, and where it is"
    seeded()
    net,at,streams = Letters(**kwargs),[0],text(8*200-1).view(8, 200)
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    def train_on():
        i = at[0] = (at[0]+12) % 180
        x,y = streams[:,i:i+12],streams[:,i+shift:i+12+shift]
        if zero: adam.zero_grad()
        scores = net(x)
        if turned: scores,y = scores.transpose(0, 1),y.T
        loss = F.cross_entropy(scores.flatten(0, 1), y.flatten())
        loss.backward()
        adam.step()
        return loss.item()
    return train_on,net,at


@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize('fault,want', [(dict(), []), (dict(zero=False), ['O6']), (dict(cut=True), ['R1']),
                                        (dict(shift=0), ['D1']), (dict(shift=3), ['D2'])])
def test_a_step_that_fetches_its_batches(fault, want, turned):
    if turned and fault.get('shift', 1) != 1: pytest.skip('in another order it cannot be told what belongs to what')
    step,net,at = fetching(turned=turned, **fault)
    assert ids_of(step_function=step, model=net) == want
    assert at == [0] and step() > 0 and at == [12]


def in_pieces(shift=1, each=False, measures=False, is_clear=True, batch_first=True):
    "A step that fetches its batch in four pieces, for one step of the optimiser or one each"
    gen,ids = seeded(),text(2000)
    net = Sequences(batch_first)
    opt = torch.optim.AdamW(net.parameters(), 3e-3)
    def get_batch():
        at = torch.randint(0, 1900, (6,), generator=gen).tolist()
        return torch.stack([ids[i:i+12] for i in at]),torch.stack([ids[i+shift:i+12+shift] for i in at])
    def train():
        opt.zero_grad()
        for _ in range(4):
            if not is_clear: opt.zero_grad()
            loss = loss_of(net, *get_batch())
            (loss if each else loss/4).backward()
            if each:
                opt.step()
                opt.zero_grad()
        if not each: opt.step()
        if measures:
            with torch.no_grad(): loss = loss_of(net, *get_batch())
        return loss.item()
    return dict(step_function=train, model=net, opt=opt)


class Sequences(nn.Module):
    def __init__(self, batch_first, n=24):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, n),nn.GRU(n, n, batch_first=batch_first),nn.Linear(n, V)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


def loss_of(net, x, y): return F.cross_entropy(net(x).flatten(0, 1), y.flatten())


@pytest.mark.parametrize('fault,want', [
    (dict(), []), (dict(each=True), []), (dict(measures=True), []), (dict(shift=2), ['D2']), (dict(shift=0), ['D1']),
    (dict(batch_first=False), ['S5']), (dict(is_clear=False), ['O11'])])
def test_a_step_that_fetches_its_batch_in_pieces(fault, want):
    assert ids_of(**in_pieces(**fault)) == want


def test_a_network_that_a_step_speaks_of_need_not_be_given():
    step,net,_ = fetching(zero=False)
    assert ids_of(step_function=step) == ['O6']


# ---- Which axis is that of the rows

class Attending(nn.Module):
    "Reads (steps, rows), and looks back at all steps for each answer"
    def __init__(self, axis, n=24):
        super().__init__()
        self.axis,self.emb,self.read = axis,nn.Embedding(V, n),nn.GRU(n, n)
        self.query,self.out = nn.Linear(n, n),nn.Linear(2*n, V)

    def forward(self, x):
        memory,_ = self.read(self.emb(x))
        weights = torch.einsum('sbh,tbh->stb', memory, self.query(memory)).softmax(self.axis)
        return self.out(torch.cat([memory, torch.einsum('stb,sbh->tbh', weights, memory)], -1))


def turned_rows(): return [(x, x.flip(0)) for x in torch.randint(0, V, (6, 10, 8), generator=seeded())]


@pytest.mark.parametrize('axis,want', [(0, []), (2, ['S4'])])
def test_steps_come_first_where_nothing_says_so(axis, want):
    net = Attending(axis)
    loss = lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten())
    assert ids_of(model=net, dls=turned_rows(), loss_func=loss, opt=torch.optim.Adam(net.parameters(), 3e-3)) == want


# ---- Rows of several lengths

class Packed(nn.Module):
    def __init__(self, n=24):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(12, n, padding_idx=0),nn.LSTM(n, n, batch_first=True),nn.Linear(n, 2)

    def forward(self, x, lengths):
        return self.out(self.rnn(pack_padded_sequence(self.emb(x), lengths, batch_first=True))[1][0][-1])


def reviews(n=160, width=10):
    gen = seeded()
    lengths = torch.randint(3, width+1, (n,), generator=gen)
    x = torch.randint(1, 12, (n, width), generator=gen).masked_fill(torch.arange(width) >= lengths[:,None], 0)
    return [*zip(x.split(16), (x == 5).any(1).long().split(16))]


@pytest.mark.parametrize('both', [True, False])
def test_rows_that_are_sorted_for_packing(both):
    net = Packed()
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    def fit_rows(x, y):
        lengths,order = (x != 0).sum(1).sort(descending=True)
        if both: y = y[order]
        adam.zero_grad()
        loss = F.cross_entropy(net(x[order], lengths), y)
        loss.backward()
        adam.step()
        return loss.item()
    fs = found(step_function=fit_rows, model=net, batches=reviews())
    assert [f.id for f in fs] == ([] if both else ['S4'])
    assert both or 'y = y[order]' in fs[0].fix


@pytest.mark.parametrize('wrong', [True, False])
def test_a_mask_the_wrong_way_round(wrong):
    gen = seeded()
    n = torch.randint(3, 13, (96,), generator=gen)
    x = torch.randint(1, V, (96, 12), generator=gen).masked_fill(torch.arange(12) >= n[:,None], 0)
    y = torch.where(x > 0, x % 4 + 1, 0)
    net = nn.Sequential(nn.Embedding(V, 16), nn.Linear(16, 5))
    def loss(p, y):
        each,mask = F.cross_entropy(p.transpose(1, 2), y, reduction='none'),(y == 0) == wrong
        return (each*mask).sum()/mask.sum()
    fs = found(model=net, dls=[*zip(x.split(16), y.split(16))], loss_func=loss,
               opt=torch.optim.Adam(net.parameters(), 3e-3))
    assert [f.title for f in fs if f.id in ('L5', 'T8')] == ['Only padding counts']*wrong


def test_a_length_beside_padding_is_no_symbol():
    "The last column says how long a row is, and is no id; 0 fills the rows"
    class WithLength(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.rnn,self.out = (nn.Embedding(12, 16, padding_idx=0),
                                          nn.GRU(16, 16, batch_first=True),nn.Linear(16, 2))
        def forward(self, x):
            h,_ = self.rnn(self.emb(x[:,:-1]))
            return self.out(h[torch.arange(len(x)),x[:,-1]-1])
    net = WithLength()
    batches = [(torch.cat([x, (x != 0).sum(1, keepdim=True)], 1), y) for x,y in reviews()]
    assert 'R11' not in ids_of(model=net, dls=batches, loss_func=F.cross_entropy,
                               opt=torch.optim.Adam(net.parameters(), 3e-3))


# ---- What is indexed and cut

class LastRow(nn.Module):
    def __init__(self, fault, n=24):
        super().__init__()
        self.fault,self.emb,self.rnn,self.out = fault,nn.Embedding(V, n),nn.GRU(n, n, batch_first=True),nn.Linear(n, 3)

    def forward(self, x):
        h,_ = self.rnn(self.emb(x))
        return self.out(h[-1] if self.fault else h[:,-1])


class BothWays(nn.Module):
    def __init__(self, fault, n=12):
        super().__init__()
        self.fault,self.emb,self.rnn,self.out = (fault,nn.Embedding(V, n),
                                                 nn.GRU(n, n, batch_first=True, bidirectional=True),nn.Linear(2*n, 3))

    def forward(self, x):
        h_n = self.rnn(self.emb(x))[1]
        if not self.fault: return self.out(h_n.transpose(0, 1).flatten(1))
        both = h_n.view(len(x), 24)
        return self.out(both)


@pytest.mark.parametrize('fault', [True, False])
@pytest.mark.parametrize('net,fix', [(LastRow, 'out[:, -1]'), (BothWays, 'h_n.transpose(0, 1).reshape(len(x), 24)')])
def test_what_is_taken_of_a_layer(net, fix, fault):
    x = torch.randint(0, V, (144, 12), generator=seeded())
    net = net(fault)
    fs = found(model=net, dls=[*zip(x.split(12), (x[:,3] % 3).split(12))], loss_func=F.cross_entropy,
               opt=torch.optim.Adam(net.parameters(), 3e-3))
    assert [f.id for f in fs] == ['S4']*fault and (not fault or fix in fs[0].fix)


# ---- Classes

@pytest.mark.parametrize('shuffle', [True, False])
def test_a_class_at_a_time(shuffle):
    y = torch.arange(4).repeat_interleave(120)
    x = torch.randint(0, V, (480, 6), generator=seeded())
    x[:,2] = y
    net = LastRow(False)
    net.out = nn.Linear(24, 4)
    dl = DataLoader(TensorDataset(x, y), batch_size=15, shuffle=shuffle)
    fs = found(model=net, dls=dl, loss_func=F.cross_entropy, opt=torch.optim.Adam(net.parameters(), 3e-3))
    assert [f.title for f in fs] == ['Each batch holds one class']*(not shuffle)


@pytest.mark.parametrize('squeeze', ['softmax', 'sigmoid'])
def test_several_right_answers(squeeze):
    "Which of nine letters come in a row"
    x = torch.randint(0, V, (120, 5), generator=seeded())
    y = F.one_hot(x, V).amax(1).float()
    class Which(LastRow):
        def forward(self, x):
            scores = super().forward(x)
            return scores.softmax(-1) if squeeze == 'softmax' else scores.sigmoid()
    net = Which(False)
    net.out = nn.Linear(24, V)
    fs = found(model=net, dls=[*zip(x.split(12), y.split(12))], loss_func=nn.BCELoss(),
               opt=torch.optim.Adam(net.parameters(), 3e-3))
    assert [f.title for f in fs] == ['Softmax where several answers may be right']*(squeeze == 'softmax')


# ---- Nothing is said of what is right

def test_two_tables_for_two_languages():
    "Ids of both in one batch; the second table is larger"
    seeded()
    net = nn.ModuleDict(dict(a=nn.Embedding(6, 16), b=nn.Embedding(V, 16), rnn=nn.GRU(16, 16, batch_first=True),
                             out=nn.Linear(16, V)))
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = net
        def forward(self, x):
            h = self.parts.rnn(self.parts.a(x[:,:5]))[1]
            return self.parts.out(self.parts.rnn(self.parts.b(x[:,5:]), h)[0])
    model,src = Translator(),torch.randint(0, 6, (96, 5))
    y = (src+3) % V
    x = torch.cat([src, torch.full((96, 1), 8), y[:,:-1]], 1)
    loss = lambda p, y: F.cross_entropy(p.transpose(1, 2), y)
    assert 'D12' not in ids_of(model=model, dls=[*zip(x.split(12), y.split(12))], loss_func=loss,
                               opt=torch.optim.Adam(model.parameters(), 3e-3))


def test_gradients_that_are_divided_and_scaled():
    net,seen = Letters(),itertools.count(1)
    adam,scaler = torch.optim.Adam(net.parameters(), 3e-3),torch.amp.GradScaler('cpu')
    x = text(6*8*12)
    def accumulate(x, y):
        loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
        scaler.scale(loss/4).backward()
        if next(seen) % 4 == 0:
            scaler.step(adam)
            scaler.update()
            adam.zero_grad()
        return loss.item()
    assert 'O11' not in ids_of(step_function=accumulate, model=net,
                               batches=[*zip(x[:-1].view(6, 8, 12), x[1:].view(6, 8, 12))])


class Towers(nn.Module):
    def __init__(self, n=24):
        super().__init__()
        self.a,self.b = (nn.ModuleList([nn.Embedding(V, n), nn.GRU(n, n, batch_first=True)]) for _ in range(2))
    def tower(self, parts, x): return F.normalize(parts[1](parts[0](x))[1][0], dim=-1)
    def forward(self, q, a): return self.tower(self.a, q) @ self.tower(self.b, a).T/.05


def test_a_first_loss_among_the_rows_of_a_batch():
    seeded(1)
    net = Towers()
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    def fit_pairs(q, a):
        adam.zero_grad()
        loss = F.cross_entropy(net(q, a), torch.arange(len(q)))
        loss.backward()
        adam.step()
        return loss.item()
    q = torch.randint(0, V, (160, 6))
    assert 'I1' not in ids_of(step_function=fit_pairs, model=net, batches=[*zip(q.split(16), ((q+1) % V).split(16))])


def test_rows_that_are_mixed_at_random_are_not_measured_in_a_few_steps():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.rnn,self.out = nn.Embedding(V, 24),nn.GRU(24, 24, batch_first=True),nn.Linear(24, 3)
        def forward(self, x, order, share):
            e = self.emb(x)
            return self.out(self.rnn(share*e + (1-share)*e[order])[0].mean(1))
    seeded()
    net = Mixed()
    adam,beta = torch.optim.Adam(net.parameters(), 3e-3),torch.distributions.Beta(.2, .2)
    def fit_mixed(x, y):
        share,order = float(beta.sample()),torch.randperm(len(x))
        scores = net(x, order, share)
        loss = share*F.cross_entropy(scores, y) + (1-share)*F.cross_entropy(scores, y[order])
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.item()
    x = torch.randint(0, V, (480, 10))
    batches = [*zip(x.split(16), (x[:,2] % 3).split(16))]
    assert not {'I6', 'I7', 'O1', 'O2', 'T5'} & {*ids_of(trials=True, step_function=fit_mixed, model=net, batches=batches)}


def test_clipping_that_comes_too_early_where_the_loss_runs_away():
    "Of the first weights each step has gradients as large as they come, however the training goes on"
    net = Letters()
    sgd,x = torch.optim.SGD(net.parameters(), 30.),text(6*8*12)
    def fit_one(x, y):
        sgd.zero_grad()
        loss = F.cross_entropy(net(x).transpose(1, 2), y, reduction='none').sum(1).mean()
        nn.utils.clip_grad_norm_(net.parameters(), .5)
        loss.backward()
        sgd.step()
        return loss.item()/12
    assert found(step_function=fit_one, model=net, batches=[*zip(x[:-1].view(6, 8, 12), x[1:].view(6, 8, 12))])[0].id == 'O9'


# ---- A cell of one's own

class OwnCell(nn.Module):
    def __init__(self, old, n=20):
        super().__init__()
        self.old,self.both = old,nn.Linear(2*n, 4*n)

    def forward(self, x, state):
        h,c = state
        i,f,g,o = self.both(torch.cat([x, h], 1)).chunk(4, 1)
        new = f.sigmoid()*c + i.sigmoid()*g.tanh()
        return o.sigmoid()*new.tanh(),(c if self.old else new)


@pytest.mark.parametrize('old', [True, False])
def test_a_cell_that_hands_back_what_it_was_given(old):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.cell,self.out = nn.Embedding(V, 20),OwnCell(old),nn.Linear(20, V)
        def forward(self, x):
            state,res = (torch.zeros(len(x), 20),)*2,[]
            for t in range(x.shape[1]):
                state = self.cell(self.emb(x[:,t]), state)
                res.append(self.out(state[0]))
            return torch.stack(res, 2)
    net,x = Reader(),text(6*8*12)
    fs = found(model=net, dls=[*zip(x[:-1].view(6, 8, 12), x[1:].view(6, 8, 12))], loss_func=F.cross_entropy,
               opt=torch.optim.Adam(net.parameters(), 3e-3))
    assert [f.title for f in fs] == ['A part of the state never changes']*old


# ---- Losses for each step of what a network gives at once; and one row alone

class OfLayer(nn.Module):
    def __init__(self, n=24, **kwargs):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, n),nn.GRU(n, n, **kwargs),nn.Linear(n, V)

    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


def fetching_windows(rows, steps, shift=1, axis=1, **kwargs):
    "A step that fetches windows anywhere in a text, and adds up a loss for each step"
    seeded()
    net,ids,gen = OfLayer(**kwargs),text(2000),seeded()
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    def windows():
        at = torch.randint(len(ids)-steps-4, (rows, 1), generator=gen) + torch.arange(steps)
        return (ids[at], ids[at+shift]) if axis else (ids[at].T, ids[at+shift].T)
    def train():
        x,y = windows()
        scores = net(x)
        loss = sum(F.cross_entropy(scores.select(axis, t), y.select(axis, t)) for t in range(steps))/steps
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.item()
    return dict(step_function=train, model=net)


@pytest.mark.parametrize('rows,steps', [(8, 8), (6, 12), (1, 12)])
@pytest.mark.parametrize('axis', [0, 1])
def test_a_recurrence_over_the_batch_where_each_step_has_a_loss(rows, steps, axis):
    assert ids_of(**fetching_windows(rows, steps, axis=axis, batch_first=bool(axis))) == []
    assert ids_of(**fetching_windows(rows, steps, axis=axis, batch_first=not axis)) == ['S5']
    found = ids_of(**fetching_windows(rows, steps, shift=0, axis=axis, batch_first=bool(axis)))
    assert found == (['D1'] if axis and rows < steps else []) # where it can be told which way the text runs


# ---- Lines of one-hot letters, of which neither inputs nor targets can be told

class ByHand(nn.Module):
    "The output is made of the state before, as the hidden one is"
    def __init__(self, n=24):
        super().__init__()
        self.n,self.h,self.o = n,nn.Linear(V+n, n),nn.Linear(V+n, V)

    def forward(self, letter, h):
        both = torch.cat([letter, h], 1)
        return self.o(both).log_softmax(1),torch.tanh(self.h(both))


def by_letter(given='h', sign=-1, same=False, lengths=(6, 12), zeroes=True, opt=None):
    "A step as those who name things by letters write it, with the mark of a begin"
    seeded()
    net,ids,gen = ByHand(),text(999),seeded()
    opt = opt and opt(net.parameters(), 1e-5)
    def line():
        i,n = (7, 9) if same else [int(torch.randint(a, b, (), generator=gen)) for a,b in ((0, 900), lengths)]
        x = torch.cat([torch.zeros(1).long(), ids[i:i+n]])
        return F.one_hot(x[:-1], V).float()[:,None],x[1:,None]
    def train():
        x,y = line()
        h = first = torch.zeros(1, net.n)
        loss = 0
        for letter,target in zip(x, y):
            output,h = net(letter, dict(h=h, cut=h.detach(), first=first)[given])
            loss = loss + F.nll_loss(output, target)
        if zeroes: net.zero_grad()
        loss.backward()
        if opt: opt.step()
        else:
            with torch.no_grad():
                for p in net.parameters(): p.add_(0 if p.grad is None else p.grad, alpha=sign*1e-5)
        return output,loss.item()/len(x)
    return dict(step_function=train, model=net)


@pytest.mark.parametrize('fault,want', [
    (dict(), []), (dict(given='cut'), ['R1']), (dict(given='first'), ['R5']), (dict(sign=1), ['O1']),
    (dict(same=True), ['T7']), (dict(lengths=(9, 10)), [])])
def test_lines_of_one_hot_letters(fault, want):
    assert ids_of(**by_letter(**fault)) == want # lines that only begin alike are not the same


# ---- Gradients that stay, of batches that neither can be told nor come twice

@pytest.mark.parametrize('opt', [None, torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize('zeroes', [False, True])
def test_gradients_that_stay_where_lines_come_letter_by_letter(zeroes, opt):
    assert ids_of(**by_letter(zeroes=zeroes, opt=opt)) == ([] if zeroes else ['O6'])


@pytest.mark.parametrize('wrap', [lambda train, line: lambda: train(*line()), lambda train, line: partial(train, *line())])
def test_a_line_in_what_a_lambda_calls(wrap):
    "The step is handed over as a function around it"
    seeded()
    net,x = ByHand(),text(9)
    opt = torch.optim.Adam(net.parameters(), 1e-3)
    def train(x, y):
        loss = 0
        for letter,target in zip(x, y):
            h = torch.zeros(1, net.n)
            output,h = net(letter, h)
            loss = loss + F.nll_loss(output, target)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()/len(x)
    step = wrap(train, lambda: (F.one_hot(x[:-1], V).float()[:,None], x[1:,None]))
    f = next(o for o in found(step_function=step, model=net) if o.id != 'T7')
    assert f.id == 'R5'
    assert f.place.source == 'h = torch.zeros(1, net.n)' and '= net(letter, h)' in f.fix
