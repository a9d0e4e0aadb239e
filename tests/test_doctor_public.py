"""Programs as they are found in public: files called model.py, steps that fetch, and states"""
import importlib.util
import sys

import pytest
import torch
from torch import nn

from charrnn_fa.core import CharRNNError
from charrnn_fa.doctor import diagnose

TEXT = ''.join(f'{a} {b} the {c}.\n' for a in ('Ada', 'Ben', 'Cleo') for b in ('sees', 'finds', 'paints')
               for c in ('sea', 'cat', 'moon'))*9
LETTERS = sorted(set(TEXT))
V = len(LETTERS)
IDS = torch.tensor([LETTERS.index(c) for c in TEXT])


def module_of(path, source):
    "A module of somebody's own, in a file of this name"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(f'own_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# An error is told with its place as it is, whatever somebody calls the network

def test_the_name_of_a_file_is_no_variable(tmp_path):
    own = module_of(tmp_path/'model.py', '''
from torch import nn
class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.emb,self.out = nn.Embedding(n, 8),nn.Linear(8, n)
    def forward(self, x):
        opt = self.emb(x)
        return self.out(opt.flatter())
''')
    net = own.Net(V)
    optimizer = torch.optim.SGD(net.parameters(), lr=.1)
    def step(x, y):
        loss = nn.functional.cross_entropy(net(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = IDS[:400].view(-1, 4, 10)
    finding, = diagnose(step_function=step, model=net, batches=[(o[:,:-1], o[:,1:]) for o in x], trials=False).findings
    assert finding.id == 'E1' and f'{tmp_path}/model.py:9: return self.out(opt.flatter())' in finding.fix, finding.fix


# A loop over the steps that ends too early: it is not the sum that is to be changed

class OneStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.cell,self.out = nn.Embedding(V, 16),nn.GRUCell(16, 24),nn.Linear(24, V)
    def forward(self, x, h):
        h = self.cell(self.emb(x), h)
        return self.out(h),h


@pytest.mark.parametrize('length,found', [
    (24, []), (8, ['for t in range(y.shape[1]):   # all 24 steps, and not 8 of them'])])
def test_a_loop_that_ends_too_early(length, found):
    torch.manual_seed(0)
    net = OneStep()
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    def step(inp, target):
        h,loss = torch.zeros(len(inp), 24),0
        for t in range(length):
            scores,h = net(inp[:,t], h)
            loss = loss + nn.functional.cross_entropy(scores, target[:,t])/length
        opt.zero_grad()
        loss.backward()
        opt.step()
    x = IDS[:1500].view(-1, 5, 25)
    report = diagnose(step_function=step, model=net, batches=[(o[:,:-1], o[:,1:]) for o in x], trials=False)
    assert [o.fix for o in report.findings] == found


# Gradients so small that a thousand times as much is not clipped either: that of a softmax too many is the fault

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 16),nn.GRU(16, 24, batch_first=True),nn.Linear(24, V)
    def forward(self, x, h=None):
        o,h = self.rnn(self.emb(x), h)
        return self.out(o),h


def clipping(to, softmax=True, early=False, by_hand=False):
    torch.manual_seed(0)
    net = Small()
    opt = torch.optim.Adam(net.parameters(), lr=1e-3)
    def update():
        if not by_hand: return opt.step()
        for p in net.parameters(): p.data.add_(p.grad, alpha=-.5)
    def loss_of(x, y):
        scores = net(x)[0].flatten(0, 1)
        return nn.functional.cross_entropy(scores.softmax(1) if softmax else scores, y.flatten())
    def clipped(x, y):
        net.zero_grad()
        loss_of(x, y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), to)
        update()
    def clipped_early(x, y):
        net.zero_grad()
        nn.utils.clip_grad_norm_(net.parameters(), to)
        loss_of(x, y).backward()
        update()
    x = IDS[:1620].view(-1, 4, 27)
    return dict(step_function=clipped_early if early else clipped, model=net, batches=[(o[:,:-1], o[:,1:]) for o in x])


@pytest.mark.parametrize('change,found', [
    (dict(to=1e3), ['L1']), (dict(to=1e3, softmax=False), []), (dict(to=5, early=True), ['L1', 'O9']),
    (dict(to=5, softmax=False, early=True), ['O9']), (dict(to=1e3, softmax=False, by_hand=True), []),
    (dict(to=.01, softmax=False, by_hand=True, early=True), ['O9'])])
def test_a_clipping_that_has_nothing_to_do(change, found):
    assert [o.id for o in diagnose(**clipping(**change), trials=False).findings] == found


# A step that fetches its batch, and calls the network for each letter of it

def by_letter(ahead=1, keeps=lambda h: h, zero=True):
    torch.manual_seed(0)
    net = OneStep()
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    def piece():
        starts = torch.randint(len(IDS)-20, (5,))
        return tuple(torch.stack([IDS[i+k:i+k+16] for i in starts]) for k in (0, ahead))
    def step():
        (x,y),h,loss = piece(),torch.zeros(5, 24),0
        if zero: opt.zero_grad()
        for t in range(16):
            scores,h = net(x[:,t], keeps(h))
            loss = loss + nn.functional.cross_entropy(scores, y[:,t])/16
        loss.backward()
        opt.step()
        return loss.item()
    return dict(step_function=step, model=net)


@pytest.mark.parametrize('change,found', [
    ({}, []), (dict(ahead=0), ['D1']), (dict(ahead=2), ['D2']), (dict(keeps=torch.Tensor.detach), ['R1']),
    (dict(keeps=torch.zeros_like), ['R5']), (dict(zero=False), ['O6'])])
def test_letters_that_a_step_fetches(change, found):
    assert [o.id for o in diagnose(**by_letter(**change), trials=False).findings] == found


# What is squeezed by a function of PyTorch's has its own name, which is not that of the library

def test_targets_are_not_called_like_the_library():
    torch.manual_seed(0)
    net = Small()
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    def step(inputs, wanted):
        loss = nn.functional.cross_entropy(torch.flatten(net(inputs)[0], 0, 1), torch.flatten(wanted))
        opt.zero_grad()
        loss.backward()
        opt.step()
    x = IDS[:1560].view(-1, 4, 26)
    finding, = diagnose(step_function=step, model=net, batches=[(o, o) for o in x], trials=False).findings
    assert (finding.id, finding.fix) == ('D1', 'x,wanted = text[:-1],text[1:]')


# A network that has to be given its state cannot be called without it: that is no error of the training

def test_a_network_that_takes_a_state_is_given_with_its_step():
    class Stateful(Small):
        def forward(self, x, hidden): return super().forward(x, hidden)
    x = IDS[:1560].view(-1, 4, 26)
    given = dict(model=Stateful(), batches=[(o[:,:-1], o[:,1:]) for o in x])
    def loss_func(out, y): return nn.functional.cross_entropy(out[0].flatten(0, 1), y.flatten())
    with pytest.raises(CharRNNError, match='takes hidden as well.*step_function='):
        diagnose(**given, loss_func=loss_func)


# A recurrence without a bend, letter by letter, is one whoever fetches the letters; a table of pairs has none

def one_hot(ids): return nn.functional.one_hot(ids, V).float()


class Classes(nn.Module):
    def __init__(self, bend):
        super().__init__()
        self.new,self.out,self.bend = nn.Linear(V+16, 16),nn.Linear(V+16, 3),bend
    def forward(self, letter, h):
        both = torch.cat([letter, h], 1)
        return self.out(both).log_softmax(1),self.bend(self.new(both))


def of_words(bend=nn.Identity(), fetches=True):
    torch.manual_seed(0)
    net = Classes(bend)
    opt = torch.optim.SGD(net.parameters(), lr=.05)
    words = [(torch.tensor([k % 3]), IDS[7*k:7*k+5]) for k in range(40)]
    def train(kind, word):
        h = torch.zeros(1, 16)
        opt.zero_grad()
        for letter in one_hot(word): scores,h = net(letter[None], h)
        nn.functional.nll_loss(scores, kind).backward()
        opt.step()
    def step(): train(*words[torch.randint(len(words), ()).item()])
    return dict(step_function=step, model=net) if fetches else dict(step_function=train, model=net, batches=words)


def pairs_of_letters(fetches):
    torch.manual_seed(0)
    net = nn.Linear(V, V)
    opt = torch.optim.SGD(net.parameters(), lr=1.)
    def train(x, y):
        opt.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        opt.step()
    def batch():
        at = torch.randint(len(IDS)-1, (48,))
        return one_hot(IDS[at]),IDS[at+1]
    if not fetches: return dict(step_function=train, model=net, batches=[batch() for _ in range(6)])
    return dict(step_function=lambda: train(*batch()), model=net)


@pytest.mark.parametrize('given,found', [
    (of_words(), ['R8']), (of_words(torch.tanh), []), (of_words(fetches=False), ['R8']),
    (pairs_of_letters(False), []), (pairs_of_letters(True), [])],
    ids=['fetched', 'bent', 'given', 'pairs', 'fetched pairs'])
def test_a_linear_recurrence_is_a_recurrence(given, found):
    assert [o.id for o in diagnose(**given, trials=False).findings] == found


# An error in a step that fetches its batches is told as in any other

def fetching(mend, keep):
    torch.manual_seed(0)
    net,opened = Small(),[0, None]
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    streams = IDS[:1600].view(4, 400)
    def step():
        i,h = opened
        x,y = streams[:,i:i+10],streams[:,i+1:i+11]
        scores,h = net(x, h)
        loss = nn.functional.cross_entropy(mend(scores), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        opened[:] = i+10,keep(h)
    return dict(step_function=step, model=net)


@pytest.mark.parametrize('mend,keep,found', [
    (lambda s: s.transpose(1, 2), torch.Tensor.detach, []), (lambda s: s, torch.Tensor.detach, ['S1']),
    (lambda s: s.transpose(1, 2), lambda h: h, ['R2'])], ids=['sound', 'axes', 'graph'])
def test_errors_of_a_step_that_fetches(mend, keep, found):
    assert [o.id for o in diagnose(**fetching(mend, keep), trials=False).findings] == found


# What mends a recurrence without a bend, and scores that are cut off, is told in somebody's own lines

BY_LETTER = '''
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.tab,self.mix,self.out,self.cut = nn.Embedding(n, 12),nn.Linear(24, 12),nn.Linear(12, n),nn.ReLU()
    def forward(self, letter, memory):
        hid = BEND(self.mix(torch.cat([self.tab(letter), memory], 1)))
        return CUT(self.out(hid)),hid
'''


@pytest.mark.parametrize('bend,cut,id,fix', [
    ('', '', 'R8', 'hid = torch.tanh(self.mix(torch.cat([self.tab(letter), memory], 1)))'),
    ('torch.tanh', 'self.cut', 'L1', 'net.cut = nn.Identity()   # in place of ReLU'),
    ('torch.tanh', '', None, None)])
def test_own_lines(bend, cut, id, fix, tmp_path):
    torch.manual_seed(0)
    net = module_of(tmp_path/f'by_letter_{id}.py', BY_LETTER.replace('BEND', bend).replace('CUT', cut)).Net(V)
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    def step(x, y):
        memory,loss = torch.zeros(len(x), 12),0
        for t in range(x.shape[1]):
            scores,memory = net(x[:,t], memory)
            loss += nn.functional.cross_entropy(scores, y[:,t])/x.shape[1]
        opt.zero_grad()
        loss.backward()
        opt.step()
    x = IDS[:1500].view(-1, 6, 10)
    found = diagnose(step_function=step, model=net, batches=[(o[:,:-1], o[:,1:]) for o in x], trials=False).findings
    assert [(o.id, o.fix) for o in found] == ([(id, fix)] if id else [])


# Flat targets may lie in the order of the other axis: a fault, if the scores do not

class Upright(nn.Module):
    def __init__(self, turns):
        super().__init__()
        self.emb,self.rnn,self.out,self.turns = nn.Embedding(V, 16),nn.GRU(16, 24),nn.Linear(24, V),turns
    def forward(self, x):
        scores = self.out(self.rnn(self.emb(x))[0])
        return (scores.transpose(0, 1) if self.turns else scores).reshape(-1, V)


@pytest.mark.parametrize('scores,targets,found', [(False, False, []), (True, True, []), (False, True, ['S3']), (True, False, ['S3'])])
def test_flat_targets_of_the_other_order(scores, targets, found):
    torch.manual_seed(0)
    streams = IDS[:1501].unfold(0, 301, 300).T # (steps, rows)
    pieces = [(streams[i:i+12], streams[i+1:i+13]) for i in range(0, 288, 12)]
    batches = [(x, (y.T if targets else y).flatten()) for x,y in pieces]
    report = diagnose(model=Upright(scores), dls=batches, loss_func=nn.functional.cross_entropy, trials=False)
    assert [o.id for o in report.findings] == found


# A step that is a line around a function has the names and the lines of that

WRAPPED = '''
import torch
from torch import nn
from torch.nn import functional as F
class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.tab,self.cell,self.out = nn.Embedding(n, 12),nn.GRUCell(12, 16),nn.Linear(16, n)
    def forward(self, letter, memory):
        memory = self.cell(self.tab(letter), memory)
        return self.out(memory),memory
def made(ids, n):
    torch.manual_seed(0)
    lm = Net(n)
    adam = torch.optim.Adam(lm.parameters(), lr=.01)
    def fit(x, y):
        memory,nats = torch.zeros(len(x), 16),0
        ZERO
        for t in range(x.shape[1]):
            scores,memory = lm(x[:,t], KEPT)
            nats SIGN F.cross_entropy(scores, y[:,t])/x.shape[1]
        nats.backward()
        adam.step()
    def piece():
        at = torch.randint(len(ids)-12, (6,))
        both = torch.stack([ids[i:i+11] for i in at])
        return both[:,:-1],both[:,1:]
    return dict(step_function=lambda: fit(*piece()))
'''


@pytest.mark.parametrize('change,id,fix', [
    ({}, None, None), ({'adam.zero_grad()':'pass'}, 'O6', 'adam.zero_grad()   # before nats.backward()'),
    ({'[:,t], memory)':'[:,t], memory.data)'}, 'R1', 'scores, memory = lm(x[:, t], memory)'),
    ({'+=':'='}, 'L6', 'nats += F.cross_entropy(scores, y[:, t]) / x.shape[1]   # added up in the loop; nats = 0 before it')],
    ids=['sound', 'zero', 'data', 'last'])
def test_a_line_around_a_function(change, id, fix, tmp_path):
    source = WRAPPED.replace('ZERO', 'adam.zero_grad()').replace('KEPT', 'memory').replace('SIGN', '+=')
    for k,v in change.items():
        assert k in source
        source = source.replace(k, v)
    found = diagnose(**module_of(tmp_path/f'wrapped_{id}.py', source).made(IDS, V), trials=False).findings
    assert [o.id for o in found] == ([id] if id else []) and all(o.fix.startswith(fix) for o in found), found


# What a step looks up tells of its padding, though it fetches its batches

@pytest.mark.parametrize('padding,found', [(None, []), (LETTERS.index('e'), ['R11'])])
def test_a_letter_as_padding_in_a_step_that_fetches(padding, found):
    torch.manual_seed(0)
    net = Small()
    net.emb = nn.Embedding(V, 16, padding_idx=padding)
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    def step():
        at = torch.randint(len(IDS)-12, (6,))
        x = torch.stack([IDS[i:i+12] for i in at])
        opt.zero_grad()
        nn.functional.cross_entropy(net(x[:,:-1])[0].flatten(0, 1), x[:,1:].flatten()).backward()
        opt.step()
    assert [o.id for o in diagnose(step_function=step, model=net, trials=False).findings] == found


# What a loss gets is asked of a step that fetches its batches, too

@pytest.mark.parametrize('loss_of,found', [
    (lambda s, y: nn.functional.cross_entropy(s.flatten(0, 1), y.flatten()), []),
    (lambda s, y: nn.functional.mse_loss(s.softmax(-1), one_hot(y)), ['L4']),
    (lambda s, y: nn.functional.mse_loss(s[...,0], y.sin()), [])], ids=['sound', 'symbols', 'amounts'])
def test_a_loss_of_what_is_fetched(loss_of, found, monkeypatch):
    monkeypatch.setattr('charrnn_fa.doctor.errors.raises_own_errors', True)
    torch.manual_seed(0)
    net = Small()
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    def step():
        at = torch.randint(len(IDS)-12, (6,))
        x = torch.stack([IDS[i:i+12] for i in at])
        opt.zero_grad()
        loss_of(net(x[:,:-1])[0], x[:,1:]).backward()
        opt.step()
    assert [o.id for o in diagnose(step_function=step, model=net, trials=False).findings] == found


# One-hot targets that are filled up with zeros: nothing is added to the loss, it is shown too small

@pytest.mark.parametrize('filled,found', [(0, []), (4, [('T8', 'weak')])])
def test_rows_of_zeros_among_one_hot_targets(filled, found):
    torch.manual_seed(0)
    net = Small()
    net.emb = nn.Linear(V, 16)
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    def step(x, y, lengths):
        opt.zero_grad()
        nn.functional.cross_entropy(net(x)[0].flatten(0, 1), y.flatten(0, 1)).backward()
        opt.step()
    batches = []
    for o in IDS[:1620].view(-1, 4, 27):
        x,y = one_hot(o[:,:-1]),one_hot(o[:,1:])
        for k in range(4): x[k,26-filled*k:],y[k,26-filled*k:] = 0,0
        batches.append((x, y, [26-filled*k for k in range(4)]))
    report = diagnose(step_function=step, model=net, batches=batches, trials=False)
    assert [(o.id, o.certainty) for o in report.findings] == found


# Tensors of an object of one's own, without a module

BY_HAND = '''
import torch
from torch.nn import functional as F
class Scratch:
    def __init__(self, n, n_hid=16):
        made = lambda *shape: (.1*torch.randn(*shape)).requires_grad_()
        self.n,self.weights = n,[made(n, n_hid), made(n_hid, n_hid), made(n_hid, n)]
    def __call__(self, x):
        into,again,out = self.weights
        h,scores = torch.zeros(len(x), again.shape[0]),[]
        for letter in F.one_hot(x.T, self.n).float():
            h = BEND(letter @ into + h @ again)
            scores.append(h @ out)
        return torch.stack(scores, 1)
def made(n):
    torch.manual_seed(0)
    lm = Scratch(n)
    def fit(x, y):
        loss = F.cross_entropy(lm(x).flatten(0, 1), y.flatten())
        loss.backward()
        with torch.no_grad():
            for w in lm.weights:
                w -= .5*w.grad
                w.grad.zero_()
    return fit
'''


@pytest.mark.parametrize('bend,found', [('torch.tanh', []), ('', ['R8'])])
def test_tensors_of_an_object(bend, found, tmp_path):
    fit = module_of(tmp_path/f'scratch{bend}.py', BY_HAND.replace('BEND', bend)).made(V)
    batches = [(o[:,:-1], o[:,1:]) for o in IDS[:1500].view(-1, 6, 10)]
    assert [o.id for o in diagnose(step_function=fit, batches=batches, trials=False).findings] == found
