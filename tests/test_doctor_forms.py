"""Batches, targets and weights in forms that other people give them"""
import importlib.util
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from charrnn_fa.doctor import diagnose
from charrnn_fa.doctor.targets import check_pairing

TEXT = ''.join(f'{a} {b} the {c}.\n' for a in ('Ada', 'Ben', 'Cleo') for b in ('sees', 'finds', 'paints')
               for c in ('sea', 'cat', 'moon'))*9
LETTERS = sorted(set(TEXT))
V = len(LETTERS)
IDS = torch.tensor([LETTERS.index(c) for c in TEXT])


def found(**kwargs): return [(o.id, o.certainty) for o in diagnose(**kwargs, trials=False).findings]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 16),nn.GRU(16, 24, batch_first=True),nn.Linear(24, V)
    def forward(self, x, h=None): return self.out(self.rnn(self.emb(x), h)[0])


# A data set of one tensor: its batch is a list of one, which some unpack in the loop and some in the step

@pytest.mark.parametrize('unpacks', [True, False])
@pytest.mark.parametrize('name', ['x', 'rows'])
@pytest.mark.parametrize('target,want', [(1, []), (0, ['D1'])])
def test_a_batch_of_one_part_is_given_as_the_step_takes_it(unpacks, name, target, want):
    torch.manual_seed(0)
    net = Net()
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    def train(rows):
        loss = F.cross_entropy(net(rows[:,:-1]).flatten(0, 1), rows[:,target:][:,:24].flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    made = {}
    exec(f'def step({name}): train({name}{"[0]" if unpacks else ""})', dict(train=train), made)
    loader = DataLoader(TensorDataset(IDS[:1500].view(-1, 25)), 5)
    assert [k for k,_ in found(step_function=made['step'], model=net, batches=loader)] == want



# Ids in columns: (rows, steps, 1), as for a layer that takes one number a step

class Columns(Net):
    def forward(self, x): return self.out(self.rnn(self.emb(x).squeeze(2))[0])


@pytest.mark.parametrize('fetched', [False, True])
@pytest.mark.parametrize('cut,want', [(lambda y: y, []), (lambda y: y.transpose(0, 1).reshape(y.shape), ['S3'])])
def test_ids_in_columns_are_ids(fetched, cut, want):
    torch.manual_seed(0)
    net = Columns()
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    rows = IDS[:1500].view(-1, 5, 25)
    def step(x, y):
        loss = F.cross_entropy(net(x).transpose(1, 2), cut(y).squeeze(2))
        opt.zero_grad()
        loss.backward()
        opt.step()
    batches = [(o[:,:-1,None], o[:,1:,None]) for o in rows]
    def fetch(): step(*batches[torch.randint(len(batches), ()).item()])
    given = dict(step_function=fetch) if fetched else dict(step_function=step, batches=batches)
    assert [k for k,_ in found(model=net, **given)] == want



# A state to begin with that stays as it is: some make it a weight, so that it goes where the others go

class Begins(Net):
    def __init__(self, value=0.):
        super().__init__()
        self.h0 = nn.Parameter(torch.zeros(1, 1, 24), requires_grad=False)
    def forward(self, x): return super().forward(x, self.h0.repeat(1, len(x), 1))


@pytest.mark.parametrize('freeze,want', [
    (lambda net: None, []), (lambda net: net.out.weight.requires_grad_(False), [('O8', 'weak')])])
def test_a_state_to_begin_with_is_no_layer_that_is_frozen(freeze, want):
    torch.manual_seed(0)
    net = Begins()
    freeze(net)
    opt = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=.01)
    def step(x, y):
        loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    batches = [(o[:,:-1], o[:,1:]) for o in IDS[:1500].view(-1, 5, 25)]
    assert found(step_function=step, model=net, batches=batches) == want



# The line of a step uphill is not that of first weights

def test_first_weights_between_two_bounds_are_no_step_uphill(tmp_path):
    (path := tmp_path/'own.py').write_text('''
from torch import nn
from torch.nn import functional as F
class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(n, 16),nn.GRU(16, 24, batch_first=True),nn.Linear(24, n)
        self.init_weights()
    def init_weights(self):
        bound = .1
        self.out.weight.data.uniform_(-bound, bound)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])
net = Net(%d)
def step(x, y):
    net.zero_grad()
    F.cross_entropy(net(x).flatten(0, 1), y.flatten()).backward()
    for p in net.parameters():
        p.data.add_(p.grad.data, alpha=.3)
''' % V)
    spec = importlib.util.spec_from_file_location('own_uphill', path)
    sys.modules[spec.name] = own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    batches = [(o[:,:-1], o[:,1:]) for o in IDS[:1500].view(-1, 5, 25)]
    finding, = diagnose(step_function=own.step, model=own.net, batches=batches, trials=False).findings
    assert finding.id == 'O1' and 'uniform_' not in finding.fix and finding.place.line == 18, finding.fix



# A translator of (steps, rows) whose first step is no answer: the batch size may say which axis is that of the rows

class StepsFirst(nn.Module):
    def __init__(self, batch_first=False):
        super().__init__()
        self.emb,self.enc,self.dec = nn.Embedding(V, 16),nn.GRU(16, 24, batch_first=batch_first),nn.GRU(16, 24)
        self.out = nn.Linear(24, V)
    def forward(self, x, y):
        h,res = self.enc(self.emb(x))[1][:,-y.shape[1]:],torch.zeros(*y.shape, V)
        for t in range(1, len(y)):
            o,h = self.dec(self.emb(y[t-1:t]), h)
            res[t] = self.out(o[0])
        return res


@pytest.mark.parametrize('has_size', [True, False])
@pytest.mark.parametrize('view,want', [(False, []), (True, ['S4'])])
def test_a_translator_of_steps_and_rows_may_leave_out_the_first_step(has_size, view, want):
    torch.manual_seed(0)
    net = StepsFirst()
    opt = torch.optim.Adam(net.parameters(), lr=.01)
    def step(src, trg):
        src = src.view(src.shape[1], src.shape[0]).transpose(0, 1) if view else src
        loss = F.cross_entropy(net(src, trg)[1:].flatten(0, 1), trg[1:].flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    def collate(rows):
        x = torch.stack(rows, 1)
        return x,x.flip(0)
    loader = DataLoader(IDS[:1026].view(-1, 9), 16, collate_fn=collate)
    batches = loader if has_size else [*loader][:-1]
    assert [k for k,_ in found(step_function=step, model=net, batches=batches)] == want



# Lines of several lengths side by side: where each ends, the next input is padding and not the target

def test_padding_below_lines_does_not_hide_that_they_go_on():
    torch.manual_seed(0)
    lengths = torch.randint(12, 60, (12, 14)).sort(1, descending=True).values
    lines = [[torch.cat([torch.tensor([1]), torch.randint(3, 24, (n,)), torch.tensor([2])]) for n in row]
             for row in lengths.tolist()]
    cut = lambda row,part: nn.utils.rnn.pad_sequence([o[part] for o in row])
    batches = [(cut(row, slice(0, -1)), cut(row, slice(1, None))) for row in lines]
    assert check_pairing(batches) == []
