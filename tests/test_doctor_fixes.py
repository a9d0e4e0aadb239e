"""The fixes that the doctor shows, put where they belong: they are Python, in the program's own names, and mend it"""
import ast
import importlib.util
import sys
import textwrap

import pytest
import torch

from charrnn_fa.core import CharRNNError
from charrnn_fa.doctor.diagnose import diagnose
from charrnn_fa.doctor.report import Finding
from charrnn_fa.doctor.shapes import explain
from charrnn_fa.learner import char_learner
from charrnn_fa.text.data import CharDataLoaders

HEAD = """
import torch, torch.nn as nn, torch.nn.functional as F
gen = torch.Generator().manual_seed(0)
table = (5*torch.rand(12, 12, generator=gen)).softmax(1)
ids = torch.zeros(2401, dtype=torch.long)
for i in range(2400): ids[i+1] = torch.multinomial(table[ids[i]], 1, generator=gen)
streams = [(ids[:2400].view(8, 300)[:,i:i+15], ids[1:].view(8, 300)[:,i:i+15]) for i in range(0, 300, 15)]
"""


def made(source, tmp_path, name='program'):
    "What a program gives to the doctor, from a file of its own"
    file = tmp_path/f'{name}.py'
    file.write_text(HEAD+textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    torch.manual_seed(0)
    spec.loader.exec_module(module)
    return module.given()


def first(source, tmp_path, name='program'): return diagnose(**made(source, tmp_path, name), trials=False).findings[0]


def said(source, tmp_path): return [o.id for o in diagnose(**made(source, tmp_path, 'mended'), trials=False).findings]


CARRIED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(12, 16),nn.{kind}(16, 16, batch_first=True),nn.Linear(16, 12)
    def forward(self, x, hx):
        o, hx = self.rnn(self.emb(x), hx)
        return self.out(o), hx
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
{memory}
def learn(x, y):
    {says}
    LINE
    scores, {holder} = net(x, {holder})
    loss = F.cross_entropy(scores.flatten(0, 1), y.flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=streams)
"""
ONE,TWO = 'torch.zeros(1, 8, 16)','(torch.zeros(1, 8, 16), torch.zeros(1, 8, 16))'
CARRIERS = {
    'a dictionary of a tuple': (dict(kind='LSTM', memory=f"kept = dict(mem={TWO})", says='', holder="kept['mem']"),
                                ["for h in kept['mem']: h.detach()", "for h in kept['mem']:\n        h.detach()"]),
    'a tuple': (dict(kind='LSTM', memory=f'mem = {TWO}', says='global mem', holder='mem'),
                ['for h in mem: h.detach()', 'for a, b in [mem]: a.detach(); b.detach()',
                 'if mem is not None: mem[0].detach(); mem[1].detach()']),
    'a tensor': (dict(kind='GRU', memory=f'mem = {ONE}', says='global mem', holder='mem'),
                 ['mem.detach()', 'if mem is not None: mem.detach()', 'with torch.no_grad(): mem.detach()',
                  'while True:\n        mem.detach(); break', 'for _ in range(1): mem.detach()']),
    'an item': (dict(kind='GRU', memory=f'kept = [{ONE}]', says='', holder='kept[0]'),
                ['for h in kept: h.detach()', 'kept[0].detach()']),
}


@pytest.mark.parametrize('carrier,line', [(k, l) for k,(_,lines) in CARRIERS.items() for l in lines])
def test_a_line_that_throws_detach_away_gets_one_that_keeps_it(carrier, line, tmp_path):
    source = CARRIED.format(**CARRIERS[carrier][0])
    f = first(source.replace('LINE', line), tmp_path)
    assert f.id == 'R3', f
    ast.parse(f.fix)
    assert not said(source.replace('LINE', f.fix), tmp_path), f.fix


CELLS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.out = nn.Embedding(12, 16),nn.Linear(16, 12)
        self.low,self.high = nn.GRUCell(16, 16),nn.GRUCell(16, 16)
    def forward(self, x, a, b):
        res = []
        for e in self.emb(x).unbind(1):
            a = self.low(e, a)
            b = self.high(a, b)
            res.append(self.out(b))
        return torch.stack(res, 1), a, b
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
HELD
def learn(x, y):
    SAYS
    LINE
    scores, A, B = net(x, A, B)
    loss = F.cross_entropy(scores.flatten(0, 1), y.flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=streams)
"""


@pytest.mark.parametrize('held,says,a,b', [
    ('a, b = torch.zeros(2, 8, 16)', 'global a, b', 'a', 'b'),
    ('mem = dict(zip("ab", torch.zeros(2, 8, 16)))', 'pass', "mem['a']", "mem['b']"),
])
def test_of_two_states_of_which_one_comes_of_the_other_both_are_cut_off(held, says, a, b, tmp_path):
    source = CELLS.replace('HELD', held).replace('SAYS', says).replace('A, B', f'{a}, {b}')
    f = first(source.replace('LINE', 'pass'), tmp_path)
    assert f.id == 'R2', f
    assert not said(source.replace('LINE', f.fix.replace('\n', '\n    ')), tmp_path), f.fix


READER = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.reader,self.guess = nn.Embedding(12, 16),nn.GRU(16, 16, batch_first=True),nn.Linear(16, 12)
        MADE
    def forward(self, seq):
        hs = self.reader(self.table(seq))[0]
        HERE
        return self.guess(hs)
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all, opt=adam)
"""


def reader(here='pass', made='pass'): return READER.replace('HERE', here).replace('MADE', made)


ONE_LINE = "p, t = p[:, :-1], t[:, 1:]"
TWO_LINES = "p = p[..., :-1, :]\n    t = t[..., 1:].contiguous()"


@pytest.mark.parametrize('shift', [ONE_LINE, TWO_LINES])
def test_a_second_shift_is_to_go_and_the_loader_is_not(shift, tmp_path):
    loss = f"def over_all(p, t):\n    {shift}\n    return F.cross_entropy(p.flatten(0, 1), t.flatten())"
    f = first(reader()+loss.replace('def over_all', '\ndef over_all'), tmp_path)
    assert f.id == 'D2' and 'text[' not in f.fix and 'loader' in f.fix, f
    lines = [o.strip() for o in shift.split('\n')]
    assert f.place.source == lines[0] if len(lines) == 1 else all(o in f.fix for o in lines), f
    ast.parse(f.fix)


def test_a_loader_that_shifts_too_far_is_still_what_is_to_be_mended(tmp_path):
    f = first(reader()+"\nstreams = [(ids[:2400].view(8, 300)[:,i:i+15], "
                       "ids[1:].view(8, 300)[:,i+1:i+16]) for i in range(0, 280, 15)]", tmp_path)
    assert f.id == 'D2' and 'text[' in f.fix, f


@pytest.mark.parametrize('here', ['hs = hs + hs.mean(1, keepdim=True)', 'hs = hs + hs.softmax(1)'])
def test_who_sees_ahead_without_a_layer_of_two_directions_gets_the_line(here, tmp_path):
    f = first(reader(here), tmp_path)
    assert f.id == 'S10' and 'bidirectional' not in f.fix and f.place.source == here, f
    assert not ast.parse(f.fix).body


def test_a_layer_of_two_directions_is_still_named(tmp_path):
    f = first(reader('hs = self.both(hs)[0]', 'self.both = nn.GRU(16, 8, batch_first=True, bidirectional=True)'), tmp_path)
    assert f.id == 'S10' and 'bidirectional=False' in f.fix, f


def deaf(loss): return reader()+f"""
from fastai.basics import DataLoaders, Learner
from fastai.losses import CrossEntropyLossFlat
class Turned(Net):
    def forward(self, seq): return super().forward(seq).transpose(1, 2)
{loss}
"""


FLAT = """
def given(): return dict(learn=Learner(DataLoaders(streams, streams), net, loss_func=LOSS))
"""
TURNED = """
net = Turned()
criterion = LOSS
def given(): return dict(model=net, dls=streams, loss_func=criterion)
"""
BY_NAME = """
PAD = 3
def over_all(p, t):
    return LOSS
"""
DEAF = [(FLAT, 'CrossEntropyLossFlat(ignore_index=3)', 'learn.loss_func = CrossEntropyLossFlat()'),
        (TURNED, 'nn.CrossEntropyLoss(ignore_index=3, label_smoothing=0.1)',
         'criterion = nn.CrossEntropyLoss(label_smoothing=0.1)'),
        (BY_NAME, 'F.cross_entropy(p.flatten(0, 1), t.flatten(), ignore_index=PAD)',
         'return F.cross_entropy(p.flatten(0, 1), t.flatten())')]


@pytest.mark.parametrize('program,loss,want', DEAF)
def test_a_loss_that_ignores_a_symbol_keeps_its_kind(program, loss, want, tmp_path):
    f = first(deaf(program.replace('LOSS', loss)), tmp_path)
    assert (f.id, f.fix.split('   #')[0]) == ('L5', want), f
    other = want.rpartition(' = ')[2].removeprefix('return ')
    assert 'L5' not in said(deaf(program.replace('LOSS', other)), tmp_path)


def test_a_mask_by_hand_is_no_option_of_a_loss(tmp_path):
    f = first(deaf("def over_all(p, t): return (F.cross_entropy(p.transpose(1, 2), t, reduction='none')*(t != 3)).mean()"),
              tmp_path)
    assert f.id == 'L5' and not ast.parse(f.fix).body, f


def test_targets_that_are_left_out_by_what_they_are_end_in_no_error(tmp_path):
    assert not said(deaf("def over_all(p, t): return F.cross_entropy(p[t != 3], t[t != 3])"), tmp_path)


ANEW = """
def learn(x, y):
    mover = MADE
    loss = over_all(net(x), y)
    loss.backward()
    mover.step()
    mover.zero_grad()
def given(): return dict(step_function=learn, model=net, batches=streams)
"""


@pytest.mark.parametrize('made,want', [
    ('torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)', 'torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)'),
    ('torch.optim.RMSprop(net.parameters(), 2e-3)', 'torch.optim.RMSprop(net.parameters(), lr=0.002)')])
def test_an_optimiser_that_is_made_anew_is_of_its_own_kind(made, want, tmp_path):
    f = first(reader()+ANEW.replace('MADE', made), tmp_path)
    assert (f.id, f.fix.split('\n')[1:]) == ('O5', [f'mover = {want}']), f
    assert not said(reader()+f'\n{f.fix}\n'+ANEW.replace('    mover = MADE\n', ''), tmp_path)


BY_HAND = """
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.keep,self.new = nn.Embedding(12, 16),nn.Linear(32, 16),nn.Linear(32, 16)
        self.gain = nn.Parameter(torch.randn(16, 12)*.2)
        MADE
    def forward(self, seq):
        s,res = torch.zeros(len(seq), 16),[]
        for e in self.table(seq).unbind(1):
            both = torch.cat([e, s], 1)
            s = STATE
            res.append(s @ self.gain)
        return torch.stack(res, 1)
net = Own()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all, opt=adam)
"""
GATED = 'torch.sigmoid(self.keep(both))*s + torch.tanh(self.new(both))'


@pytest.mark.parametrize('id,state,begun', [
    ('R8', 'self.keep(both) + self.new(both)', 'pass'),
    ('R10', GATED, 'nn.init.constant_(self.keep.bias, -5.)'),
    ('I3', 'torch.tanh(self.keep(both) + self.new(both))', 'nn.init.normal_(self.new.weight, std=8.)')])
def test_a_fix_has_no_names_that_a_network_by_hand_has_not(id, state, begun, tmp_path):
    kwargs = made(BY_HAND.replace('STATE', state).replace('MADE', begun), tmp_path)
    found = [g for f in diagnose(**kwargs, trials=False).findings for g in (f, *f.follows)]
    fixes = [o.fix for o in found if o.id == id]
    assert fixes and not any(k in fixes[0] for k in ('rnn', 'h2h', 'last_layer')), found
    ast.parse(fixes[0])


UNUSED = """
class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.out,self.second = nn.Embedding(12, 16),nn.GRU(16, 16, batch_first=True),nn.GRU(16, 16, batch_first=True)
        self.guess = nn.Linear(16, 12)
    def forward(self, seq):
        e = self.table(seq)
        LINE
        return self.guess(self.second(e)[0])
net = Stack()
def given(): return dict(model=net, dls=streams, loss_func=over_all)
"""


@pytest.mark.parametrize('line', ['a, _ = self.out(e)', 'pass'])
def test_a_layer_that_is_not_used_is_told_by_its_name(line, tmp_path):
    f = first(reader()+UNUSED.replace('LINE', line), tmp_path)
    assert f.id == 'R9' and 'self.out' in f.fix, f
    if line == 'pass':
        assert not said(reader()+UNUSED.replace('LINE', f.fix.replace('h', 'e', 1).replace('(h)', '(e)')), tmp_path), f
    else: assert f.place.source == line and not ast.parse(f.fix).body


CALLED = """
class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.step,self.guess = nn.Embedding(12, 16),nn.GRUCell(16, 16),nn.Linear(16, 12)
    def forward(self, seq):
        mem, out = torch.zeros(len(seq), 16), []
        for t in range(seq.shape[1]):
            mem = self.step(self.table(seq[:, t]), LINE)
            out.append(self.guess(mem))
        return torch.stack(out, 1)
net = Cell()
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all)
"""


@pytest.mark.parametrize('line', ['mem.data', 'mem.detach()'])
def test_a_state_is_called_as_it_was_before_it_was_detached(line, tmp_path):
    f = first(CALLED.replace('LINE', line), tmp_path)
    mended,before = f.fix.splitlines()
    assert f.id == 'R1' and before.startswith('# mem = mem.detach()'), f
    assert not said(CALLED.replace('mem = self.step(self.table(seq[:, t]), LINE)', mended), tmp_path), f


@pytest.mark.parametrize('line', ['mem = mem.detach()', 'mem = mem.data'])
def test_a_line_in_a_loop_that_detaches_a_state_is_left_out(line, tmp_path):
    source = CALLED.replace(', LINE)', ', mem)').replace('            out.append', '            WHERE\n            out.append')
    f = first(source.replace('WHERE', line), tmp_path)
    assert f.id == 'R1' and f.place.source == line and f.fix.splitlines()[0] == f'# leave this line out: {line}', f
    assert not said(source.replace('WHERE', 'pass'), tmp_path)


def test_the_last_row_in_place_of_the_last_steps(tmp_path):
    source = READER.replace('return self.guess(hs)', 'return self.guess(hs[-1])').replace('MADE', 'pass').replace('HERE', 'pass')
    source = source.replace('F.cross_entropy(p.flatten(0, 1), t.flatten())', 'F.cross_entropy(p, t[:, -1])')
    f = first(source, tmp_path)
    assert f.id == 'S4' and 'out = out[:, -1]' in f.fix, f
    assert said(source.replace('hs[-1]', 'hs[:, -1]'), tmp_path) == ['L6'] # the loader has targets for all steps


ALIKE = """
def given():
    HERE
    return dict(model=net, dls=streams, loss_func=over_all, opt=torch.optim.Adam(net.parameters(), lr=1e-3))
"""


@pytest.mark.parametrize('id,line', [
    ('I2', 'for p in net.parameters(): nn.init.constant_(p, .01)'), ('I1', 'for p in net.parameters(): nn.init.normal_(p)'),
    ('I1', 'net.guess.weight.data *= 40')])
def test_all_first_weights_that_are_wrong_are_drawn_anew(id, line, tmp_path):
    source = reader()+ALIKE
    f = first(source.replace('HERE', line), tmp_path)
    assert f.id == id and f.fix.startswith('nn.init' if 'guess' in line else 'for p in model.parameters()'), f
    mended = source.replace('HERE', f"{line}\n    model = net\n{textwrap.indent(f.fix, '    ')}")
    assert not said(mended, tmp_path), f.fix


def test_the_line_of_a_softmax_over_the_steps_is_named(tmp_path):
    line = 'self.softmax = nn.LogSoftmax(dim=1)'
    f = first(reader(here='return self.softmax(self.guess(hs))', made=line).replace('F.cross_entropy', 'F.nll_loss'),
              tmp_path)
    assert f.id == 'S9' and f.place.source == line, f


OF_ONE_ROW = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.old,self.guess = nn.Embedding(12, 16),nn.Linear(16, 16),nn.Linear(16, 12)
    def forward(self, seq):
        state = torch.zeros(len(seq), 16)
        seen = []
        for i in range(seq.shape[1]):
            STEP
            seen.append(self.guess(state))
        return torch.stack(seen, 1)
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all, opt=adam)
"""


@pytest.mark.parametrize('one', ['[0]', '[-1]', '[:1]'])
def test_an_index_that_gives_all_rows_one_state_is_taken_away(one, tmp_path):
    line = f'state = torch.tanh(self.table(seq[:, i]) + self.old(state{one}))'
    source = OF_ONE_ROW.replace('STEP', line)
    f = first(source, tmp_path)
    assert f.id == 'R4' and f.place.source == line and f'state{one}' not in f.fix, f
    assert not said(source.replace(line, f.fix), tmp_path), f.fix


def test_a_fix_is_not_the_line_that_is_there(tmp_path):
    line = 'state = torch.tanh(self.table(seq[:, i]) + self.old(state[0]) - .5*state[0])'
    f = first(OF_ONE_ROW.replace('STEP', line), tmp_path)
    assert f.id == 'R4' and f.place.source == line and line not in f.fix and 'one row' in f.fix, f


LOSS_ANEW = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.reader,self.guess = nn.Embedding(12, 16),nn.GRU(16, 16, batch_first=True),nn.Linear(16, 12)
    def forward(self, seq): return self.guess(self.reader(self.table(seq))[0])
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
Variable = torch.autograd.Variable
def learn(x, y):
    adam.zero_grad()
    cost = F.cross_entropy(net(x).permute(0, 2, 1), y)
    CUT
    ENDS.backward()
    adam.step()
    cost = cost.item()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=streams)
"""


@pytest.mark.parametrize('line,more,ends', [
    ('cost = torch.tensor(cost.item(), requires_grad=True)', '', 'cost'),
    ('cost = cost.detach()', 'cost.requires_grad_()', 'cost'),
    ('cost = cost.detach()', '', 'cost'),
    ('cost = nn.Parameter(cost.data)', '', 'cost'),
    ('error = Variable(cost.data, requires_grad=True)', '', 'error'),
])
def test_a_line_that_makes_the_loss_anew_is_to_go(line, more, ends, tmp_path):
    source = LOSS_ANEW.replace('CUT', f'{line}\n    {more}').replace('ENDS', ends)
    f = first(source, tmp_path)
    assert f.id == 'L7' and f.place.source == line, f
    assert not said(source.replace(line, f.fix), tmp_path), f.fix


FEW = """
n_in = int(ids.max())+1
COUNTED
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.reader,self.guess = nn.Embedding(n_in, 16),nn.GRU(16, 16, batch_first=True),nn.Linear(16, outs)
    def forward(self, seq): return self.guess(self.reader(self.table(seq))[0])
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def learn(x, y):
    adam.zero_grad()
    F.cross_entropy(net(x).view(-1, outs), y.reshape(-1)).backward()
    adam.step()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=streams)
"""


@pytest.mark.parametrize('line', ['outs = int(ids.max())', 'outs = ids.max().item()', 'outs = len(set(ids.tolist())) - 1'])
def test_one_output_too_few_is_mended_where_they_are_counted(line, tmp_path):
    source = FEW.replace('COUNTED', line)
    f = first(source, tmp_path)
    assert f.id == 'S8' and f.place.source == line and 'vocab' not in f.fix, f
    assert not said(source.replace(line, f.fix), tmp_path), f.fix


def test_the_layer_that_has_too_few_outputs_is_given_as_it_should_be(tmp_path):
    f = first(FEW.replace('COUNTED', 'outs = 9'), tmp_path)
    assert f.id == 'S8' and f.fix.startswith('self.guess = nn.Linear(16, 12)') and 'one too few' not in f.message, f


UNREAD = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.start,self.reader,self.guess = nn.Parameter(torch.zeros(16)),nn.GRU(12, 16, batch_first=True),nn.Linear(16, 12)
        self.seen = set()
    def forward(self, seq):
        self.seen.add(len(seq))
        rows = torch.zeros(*seq.shape, 12)
        MADE
        return self.guess(self.start + self.reader(rows)[0])
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all, opt=adam)
"""


@pytest.mark.parametrize('line', ['rows.scatter(2, seq[..., None], 1.0)',
                                  'rows.masked_fill(seq[..., None] == torch.arange(12), 1)'])
def test_a_line_whose_result_is_thrown_away_is_done_in_place(line, tmp_path):
    source = UNREAD.replace('MADE', line)
    f = first(source, tmp_path)
    assert f.id == 'Z1' and f.place.source == line and '`reader`' in f.message, f
    assert not said(source.replace(line, f.fix), tmp_path), f.fix


def test_ids_that_are_lost_before_the_first_layer_are_told_without_a_line(tmp_path):
    f = first(UNREAD.replace('MADE', 'rows = rows + 1'), tmp_path)
    assert f.id == 'Z1' and '`reader`' in f.message and '0 throughout' not in f.message and f.place is None, f
    assert f.fix and not ast.parse(f.fix).body


def test_a_network_that_reads_nothing_is_not_called_too_small(monkeypatch, tmp_path):
    larger = Finding('I6', 'strong', 'A larger network learns more.', 'n_hid = 64')
    monkeypatch.setattr(sys.modules[diagnose.__module__], 'trial_findings', lambda *args: [('larger ones', [larger])])
    def found(line): return diagnose(**made(UNREAD.replace('MADE', line), tmp_path, 'mended')).findings
    assert 'I6' not in [o.id for f in found('pass') for o in (f, *f.follows)]
    assert [o.id for o in found('rows.scatter_(2, seq[..., None], 1.0)')] == ['I6']


BY_STEPS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.reader,self.guess = nn.Embedding(12, 16),nn.GRU(16, 16),nn.Linear(16, 12)
    def forward(self, seq):
        rows, steps = seq.shape
        hs = self.reader(self.table(seq).transpose(0, 1))[0]
        scores = self.guess(hs.view(steps*rows, -1))
        LINE
        return scores
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def over_all(p, t): return F.cross_entropy(p.view(-1, 12), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all, opt=adam)
"""


@pytest.mark.parametrize('line', ['scores = scores.view(rows, steps, -1)', 'scores = scores.reshape(rows, steps, 12)'])
def test_scores_that_were_cut_anew_are_not_the_fault_of_the_loss(line, tmp_path):
    source = BY_STEPS.replace('LINE', line)
    f = first(source, tmp_path)
    assert f.id == 'S4' and f.place.source == line, f
    assert not said(source.replace(line, f.fix), tmp_path), f.fix


@pytest.mark.parametrize('line', ['scores = scores.view(steps, rows, -1)', 'pass'])
def test_scores_of_steps_and_rows_are_still_to_be_turned_in_the_loss(line, tmp_path):
    f = first(BY_STEPS.replace('LINE', line), tmp_path)
    assert f.id == 'S3' and '(steps, rows)' in f.message, f


WRITER = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.reader,self.guess = nn.Embedding(12, 16),nn.GRU(16, 16, batch_first=True),nn.Linear(16, 12)
        self.drop = nn.Dropout(.5)
    def forward(self, seq): return self.guess(self.drop(self.reader(self.table(seq))[0]))
net = Net()
net.MODE()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
abc = 'abcdefghijkl'
text = ''.join(abc[i] for i in ids.tolist())
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def go_on(network, begun, n):
    LINE
    for _ in range(n):
        read = torch.tensor([[abc.index(c) for c in begun]])
        begun += abc[torch.multinomial(network(read)[0, -1].softmax(-1), 1).item()]
    return begun
def given(): return dict(model=net, dls=streams, loss_func=over_all, opt=adam, sample=go_on, text=text)
"""


@pytest.mark.parametrize('line', ['network.train()', 'network.train(True)'])
def test_a_function_that_writes_in_training_mode_by_itself_gets_its_line(line, tmp_path):
    source = WRITER.replace('LINE', line).replace('MODE', 'train')
    f = next(o for o in diagnose(**made(source, tmp_path), trials=False).findings if o.id == 'G2')
    assert f.place.source == line and f.fix.startswith('network.eval()'), f
    assert 'G2' not in said(source.replace(line, f.fix), tmp_path), f.fix


def test_who_forgets_evaluation_mode_is_still_told_so(tmp_path):
    source = WRITER.replace('LINE', 'pass').replace('MODE', 'train')
    f = next(o for o in diagnose(**made(source, tmp_path), trials=False).findings if o.id == 'G2')
    assert f.place is None and '.eval()' in f.fix, f


OF_A_CLASS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.reader,self.guess = nn.Embedding(12, 16),nn.GRU(16, 16, batch_first=True),nn.Linear(16, 12)
    def forward(self, seq): return self.guess(self.reader(self.table(seq))[0])
class Trainer:
    def __init__(self):
        self.net = Net()
        self.adam = torch.optim.Adam(self.net.parameters(), lr=1e-3)
    def learn(self, x, y):
        loss = F.cross_entropy(self.net(x).flatten(0, 1), y.flatten())
        loss.backward()
        LINE
        self.adam.step()
all_of_it = Trainer()
def given(): return dict(step_function=all_of_it.learn, model=all_of_it.net, opt=all_of_it.adam, batches=streams)
"""


def test_a_step_of_a_class_is_told_in_the_names_that_it_has_there(tmp_path):
    f = first(OF_A_CLASS.replace('LINE', 'self.adam.zero_grad()'), tmp_path)
    assert f.id == 'O9' and f.place.source == 'self.adam.step()', f
    assert 'self.adam.zero_grad()' in f.fix and 'of the model' not in str(f.evidence), f


def test_a_zero_grad_of_the_model_is_still_told_as_that(tmp_path):
    f = first(OF_A_CLASS.replace('LINE', 'self.net.zero_grad()'), tmp_path)
    assert f.id == 'O9' and 'of the model' in str(f.evidence), f


SCHEDULED = """
net = nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 12))
adam = torch.optim.Adam(net.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: i//500)
def learn(x, y):
    loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
    scheduler.step()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=streams)
"""


def test_a_schedule_that_makes_the_rate_zero_is_told_and_replaced(tmp_path):
    f = next(o for o in diagnose(**made(SCHEDULED, tmp_path), trials=False).findings if o.id == 'O10')
    assert '0.01' in f.message and 'LambdaLR' in f.message, f
    mended = SCHEDULED.replace('scheduler = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: i//500)', f.fix)
    assert mended != SCHEDULED and 'O10' not in said(mended, tmp_path), f.fix


LISTED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.out = nn.Embedding(12, 16),nn.Linear(16, 12)
        self.stack = {kept}
        LINE
    def forward(self, x):
        h = self.emb(x)
        for o in {all}: h = o(h)[0]
        return self.out(h)
net = Net()
def loss(scores, y): return F.cross_entropy(scores.flatten(0, 1), y.flatten())
def given(): return dict(model=net, batches=streams, loss_func=loss, opt=torch.optim.Adam(net.parameters(), lr=1e-2))
"""


@pytest.mark.parametrize('kept,all', [('[nn.GRU(16, 16, batch_first=True)]', 'self.stack'),
                                      ('dict(first=nn.GRU(16, 16, batch_first=True))', 'self.stack.values()')])
def test_layers_in_a_plain_list_are_named(tmp_path, kept, all):
    source = LISTED.format(kept=kept, all=all)
    f = first(source.replace('LINE', 'pass'), tmp_path)
    assert f.id == 'O7' and f.fix.startswith('self.stack = nn.Module'), f
    assert 'O7' not in said(source.replace('LINE', f.fix), tmp_path), f.fix


HALF = """
net = nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 12))
half = torch.optim.Adam(net[1].parameters(), lr=1e-2)
def another_program(): return torch.optim.SGD(net.parameters(), lr=1)
def learn(x, y):
    loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
    half.zero_grad()
    loss.backward()
    half.step()
def given(): return dict(step_function=learn, model=net, opt=half, batches=streams)
"""


def test_the_line_outside_the_step_is_named(tmp_path):
    "And none of another function of the file"
    f = next(o for o in diagnose(**made(HALF, tmp_path), trials=False).findings if o.id == 'O7')
    assert f.place.source == 'half = torch.optim.Adam(net[1].parameters(), lr=1e-2)', f
    assert 'O7' not in said(HALF.replace(f.place.source, f.fix), tmp_path), f.fix


def test_a_zero_grad_without_brackets_is_the_line_that_is_shown(tmp_path):
    source = CARRIED.format(**CARRIERS['a tensor'][0]).replace('LINE', 'mem = mem.detach()')
    f = first(source.replace('adam.zero_grad()', 'adam.zero_grad'), tmp_path)
    assert f.id == 'O6' and f.place.source == 'adam.zero_grad', f
    assert not said(source.replace('adam.zero_grad()', f.fix), tmp_path), f.fix


LETTER_BY_LETTER = """
class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.step,self.guess = nn.Embedding(12, 16),nn.GRUCell(16, 16),nn.Linear(16, 12)
    def forward(self, letter, mem):
        mem = self.step(self.table(letter), mem)
        return self.guess(mem), mem
net = Cell()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
criterion = nn.CrossEntropyLoss()
def learn(x, y):
    mem, loss = torch.zeros(len(x), 16), 0
    for t in range(15):
        scores, mem = net(x[:,t], mem)
        HERE
    AFTER
    adam.zero_grad()
    loss.backward()
    adam.step()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=streams)
"""


@pytest.mark.parametrize('once,after', [('loss = criterion(scores, y[:,t])', 'pass'),
                                        ('pass', 'loss += criterion(scores, y[:,t])')])
def test_a_loss_of_the_last_letter_only_is_to_be_added_up_in_the_loop(once, after, tmp_path):
    f = first(LETTER_BY_LETTER.replace('HERE', once).replace('AFTER', after), tmp_path)
    assert f.id == 'L6', f
    assert not said(LETTER_BY_LETTER.replace('HERE', f.fix).replace('AFTER', 'pass'), tmp_path), f.fix


STEPS_FIRST = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.reader,self.guess = nn.Embedding(12, 16),nn.GRU(16, 16),nn.Linear(16, 12)
    def forward(self, x):
        IN
        o = self.reader(self.table(x))[0]
        return self.guess(OUT)
net = Net()
def over_all(p, t): return F.cross_entropy(p.reshape(-1, 12), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all)
"""


def test_a_view_in_place_of_a_transpose_is_mended_where_it_goes_in_and_where_it_comes_out(tmp_path):
    f = first(STEPS_FIRST.replace('IN', 'x = x.reshape(15, 8)').replace('OUT', 'o'), tmp_path)
    line,back = f.fix.splitlines()[:2]
    assert f.id == 'S4' and back.startswith('#') and 'transpose(0, 1)' in back, f
    assert not said(STEPS_FIRST.replace('IN', line).replace('OUT', 'o.transpose(0, 1)'), tmp_path), f.fix


@pytest.mark.parametrize('wrong,said', [
    (lambda: torch.stack([torch.zeros(3), torch.zeros(4)]), 'one with 3 and one with 4'),
    (lambda: torch.nn.Linear(3, 3)(torch.zeros(2, 3).long()), 'An embedding has a vector'),
    (lambda: torch.nn.Linear(3, 3)(torch.zeros(2, 3).double()), 'two types meet, Double and Float')])
def test_numbers_of_an_error_that_are_no_sizes_and_types_that_are_no_ids(wrong, said):
    with pytest.raises(RuntimeError) as e: wrong()
    found = explain(e.value)
    assert said in found.message, found


def test_an_error_that_a_fit_has_put_into_words_is_explained_too():
    "The network's Doctor raises it as a `ShapeError`, from PyTorch's own"
    dls = CharDataLoaders.from_text('the cat sat. '*99, bs=4, seq_len=16)
    learn = char_learner(dls, n_hid=8, precision='fp32', loss_func=torch.nn.CrossEntropyLoss())
    with learn.no_bar(), learn.no_logging(), pytest.raises(CharRNNError) as e: learn.fit(1)
    found = explain(e.value, learn)
    assert found and found.id == 'S1' and found.message.rstrip('.') == e.value.what, found
    assert (found.fix, found.place.file) == (e.value.remedy, __file__)
    assert explain(ValueError('of something else'), learn) is None


# Errors of plain Python, in somebody's own lines

def looks_up(stoi, text): return [stoi[c] for c in text]
def names(itos, ids): return ''.join(itos[i] for i in ids)
def loses(batch): return batch['labels']
def ends(text, n):
    for i in range(n): text[i+1]
def expects_a_state(net, x):
    out, state = net(x)
def expects_pairs(dl):
    for x, y in dl: pass
def counts_pairs(dl):
    for i, (x, y) in enumerate(dl): pass
def expects_a_pair(batch):
    x, y = batch


@pytest.mark.parametrize('f,args,id,says,mends', [
    (looks_up, ({'a':0}, 'aé'), 'D12', "'é' has no number", 'sorted(set(text))'),
    (names, ({0:'a'}, [0, 7]), 'D12', 'number 7', 'for c,i in stoi.items()'),
    (names, ({0:'a'}, [torch.tensor(0)]), 'D12', 'a tensor is no key', 'itos[i.item()]'),
    (loses, ({'ids':1, 'y':2},), 'E1', "'labels'", 'print(batch.keys())'),
    (ends, ('abc', 3), 'D12', 'counted from 0', 'print(len(text), i + 1)'),
    (ends, ([1, 2, 3], 3), 'D12', 'counted from 0', 'print(len(text), i + 1)'),
    (expects_a_state, (torch.nn.Identity(), torch.zeros(3, 4)), 'E1', 'net gives', 'out = net(x)'),
    (expects_a_state, (torch.nn.Identity(), torch.zeros(1, 4)), 'E1', 'net gives', 'out = net(x)'),
    (expects_pairs, (torch.zeros(3, 8, 5),), 'E1', 'dl gives', 'x, y = batch[:, :-1], batch[:, 1:]'),
    (expects_pairs, ([[torch.zeros(3, 8)]],), 'E1', 'dl gives', 'x, y = batch[:, :-1], batch[:, 1:]'),
    (counts_pairs, ([torch.zeros(3, 8)],), 'E1', 'dl gives', 'x, y = batch[:, :-1], batch[:, 1:]'),
    (expects_a_pair, (torch.zeros(3, 8),), 'E1', 'batch', 'x, y = batch[:, :-1], batch[:, 1:]'),
])
def test_an_error_of_plain_python_is_explained(f, args, id, says, mends):
    with pytest.raises((KeyError, IndexError, ValueError)) as e: f(*args)
    found = explain(e.value)
    assert found.id == id and says in found.message and mends in found.fix and found.place.file == __file__, found
    ast.parse(found.fix)


def test_an_error_of_plain_python_within_a_library_is_not_put_into_words():
    with pytest.raises(KeyError) as e: torch.nn.ModuleDict()['a']
    assert explain(e.value) is None
    with pytest.raises(KeyError) as e: raise KeyError('a')
    assert explain(e.value) is None


RATED = reader() + """
from fastai.basics import Callback, DataLoaders, Learner
class Rate(Callback):
    order = 55
    def __init__(self, line): self.line = line
    def before_batch(self): exec(self.line, dict(learn=self.learn, lr=1e-2, i=self.train_iter+1, n_warmup=100))
def given():
    learn = Learner(DataLoaders(streams[:14], streams[14:]), net, loss_func=over_all, lr=RATE, cbs=Rate(LINE))
    AFTER
    return dict(learn=learn)
"""


def rated(rate=1e-2, line='pass', after='pass'):
    return RATED.replace('RATE', str(rate)).replace('LINE', repr(line)).replace('AFTER', after)


def test_a_callback_that_sets_the_rate_of_a_learner_to_0_is_what_is_to_be_mended(tmp_path):
    f = first(rated(line="learn.opt.set_hyper('lr', 4e-3*(i//10000))"), tmp_path)
    assert f.id == 'O10' and '0.01' in f.message and '//' in f.fix, f
    assert not said(rated(line=f.fix), tmp_path), f


def test_a_learner_of_rate_0_gets_another(tmp_path):
    f = first(rated(0.), tmp_path)
    assert f.id == 'O10', f
    assert not said(rated(0., after=f.fix), tmp_path), f


VIEWED = reader() + """
def learn(seq, t):
    guesses = net(seq)
    LINE
    loss = F.cross_entropy(VIEWED, t)
    adam.zero_grad()
    loss.backward()
    adam.step()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=streams)
"""


def test_scores_that_are_cut_anew_for_the_loss_are_turned_by_their_own_name(tmp_path):
    f = first(VIEWED.replace('LINE', 'pass').replace('VIEWED', 'guesses.view(8, 12, 15)'), tmp_path)
    assert (f.id, f.fix.split('   #')[0]) == ('S4', 'guesses = guesses.transpose(1, 2)'), f
    assert not said(VIEWED.replace('LINE', f.fix).replace('VIEWED', 'guesses'), tmp_path), f


WEIGHTS_BY_HAND = """
Wxh, Whh, Why = [(.3*torch.randn(s, generator=gen)).requires_grad_() for s in ((12, 16), (16, 16), (16, 12))]
weights = [Wxh, Whh, Why]
def learn(x, y):
    h, loss = torch.zeros(8, 16), 0
    for t in range(x.shape[1]):
        h = torch.tanh(Wxh[x[:,t]] + h@Whh)
        loss = loss + F.cross_entropy(h@Why, y[:,t])/x.shape[1]
    loss.backward()
    with torch.no_grad():
        for p in weights: p -= .1*p.grad
    AFTER
def given(): return dict(step_function=learn, GIVENbatches=streams)
"""


@pytest.mark.parametrize('given', ['', 'model=weights, ', 'model=dict(a=Wxh, b=Whh, c=Why), '])
def test_weights_that_are_in_no_module_have_the_name_of_their_list(given, tmp_path):
    source = WEIGHTS_BY_HAND.replace('GIVEN', given)
    f = first(source.replace('AFTER', 'pass'), tmp_path)
    assert f.id == 'O6', f
    assert not said(source.replace('AFTER', f.fix), tmp_path), f


PACKED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(13, 16),nn.GRU(16, 16, batch_first=True),nn.Linear(16, 13)
        if AUTO: self.dec = nn.GRU(16, 16, batch_first=True)
    def forward(self, x, n):
        p = nn.utils.rnn.pack_padded_sequence(self.emb(x), n, batch_first=True, enforce_sorted=False)
        o, h = self.rnn(p)
        if AUTO:
            told = torch.cat([torch.full_like(x[:, :1], 12), x[:, :-1]], 1)
            return self.out(self.dec(self.emb(told), h)[0])
        return self.out(nn.utils.rnn.pad_packed_sequence(o, batch_first=True)[0])
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-2)
lengths = torch.tensor([16, 12, 9, 14, 11, 16, 8, 13])
words = [ids[torch.arange(16)[None] + 16*torch.arange(8)[:, None] + 128*k] for k in range(12)]
words = [(w.masked_fill(torch.arange(16)[None] >= lengths[:, None], 12), lengths) for w in words]
def learn(w, n):
    BOTH
    loss = F.cross_entropy(net(x, n.clamp(max=x.shape[1])).reshape(-1, 13), y.reshape(-1), ignore_index=12)
    adam.zero_grad()
    loss.backward()
    adam.step()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=words)
"""


@pytest.mark.parametrize('both,auto,ids', [
    ('x, y = w[:, :-1], w[:, :-1]', 0, ['D1']), ('x, y = w[:, :-2], w[:, 2:]', 0, ['D2']),
    ('x, y = w[:, :-1], w[:, 1:]', 0, []), ('x, y = w, w', 1, [])])
def test_a_step_that_cuts_inputs_and_targets_out_of_padded_words(both, auto, ids, tmp_path):
    "An autoencoder is to say again what it was told"
    source = PACKED.replace('AUTO', str(auto))
    found = diagnose(**made(source.replace('BOTH', both), tmp_path), trials=False).findings
    assert [o.id for o in found] == ids, found
    for f in found: assert not said(source.replace('BOTH', f.fix.replace('batch[', 'w[')), tmp_path), f


IN_A_ROW = """
class Reads(nn.GRU):
    def forward(self, x): return super().forward(x)[0]
torch.manual_seed(0)
net = nn.Sequential(nn.Embedding(12, 16), Reads(16, 16, batch_first=True), nn.Sequential(nn.Linear(16, 12), LAST))
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def learn(x, y):
    loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
AFTER
def given(): return dict(step_function=learn, batches=streams)
"""


@pytest.mark.parametrize('last', ['nn.Softmax(-1)', 'nn.Sigmoid()', 'nn.Tanh()'])
def test_a_layer_that_squeezes_the_scores_is_put_out_of_use(last, tmp_path):
    source = IN_A_ROW.replace('LAST', last)
    f = first(source.replace('AFTER', ''), tmp_path)
    assert f.id == 'L1', f
    assert not said(source.replace('AFTER', f.fix), tmp_path), f


TOLD_LATE = reader() + """
def learn(x, y):
    given = GIVEN
    loss = F.cross_entropy(net(given).flatten(0, 1), y.flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=streams)
"""


@pytest.mark.parametrize('given,ids', [('torch.cat([x[:, :1], y[:, :-1]], 1)', []), ('torch.full_like(x, 3)', ['Z1']),
                                       ('torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)', [])])
def test_a_decoder_that_reads_the_text_in_the_targets_is_not_deaf(given, ids, tmp_path):
    assert said(TOLD_LATE.replace('GIVEN', given), tmp_path) == ids


CHECKPOINTED = """
from torch.utils.checkpoint import checkpoint
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.reader,self.guess = nn.Embedding(12, 16),nn.GRU(16, 16, batch_first=True),nn.Linear(16, 12)
    def piece(self, seq): return self.guess(self.reader(self.table(seq))[0])
    def forward(self, seq):
        LINE
        return scores
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all, opt=adam)
"""


@pytest.mark.parametrize('option', ['use_reentrant=True', 'use_reentrant=None'])
@pytest.mark.filterwarnings('ignore')
def test_a_checkpoint_of_ids_keeps_the_gradients_of_its_weights(option, tmp_path):
    line = f'scores = checkpoint(self.piece, seq, {option})'
    f = first(CHECKPOINTED.replace('LINE', line), tmp_path)
    assert f.id == 'L7' and f.place.source == line, f
    assert not said(CHECKPOINTED.replace('LINE', f.fix.partition('   #')[0]), tmp_path), f


# Steps that go the wrong way, with a rate that is too small for a trial to tell

UPHILL = reader() + """
gone = torch.optim.SGD(net.parameters(), lr=1e-6)
def learn(x, y):
    loss = F.cross_entropy(net(x).transpose(1, 2), y)
    net.zero_grad()
    loss.backward()
    gone.step()
def given(): return dict(step_function=learn, model=net, batches=streams)
"""
STEP_BY_HAND = """with torch.no_grad():
        for p in net.parameters(): p -= 1e-6*p.grad"""


@pytest.mark.parametrize('right,wrong', [
    ('loss.backward()', '(-loss).backward()'), ('lr=1e-6', 'lr=1e-6, maximize=True'), ('p -= ', 'p += '),
    ('SGD(net.parameters(), lr=1e-6', 'Adam(net.parameters(), lr=1e-6, maximize=True')])
def test_a_step_that_goes_uphill(right, wrong, tmp_path):
    source = UPHILL.replace('gone.step()', STEP_BY_HAND) if 'p -=' in right else UPHILL
    assert 'O1' not in said(source, tmp_path)
    f = first(source.replace(right, wrong), tmp_path)
    assert (f.id, f.title) == ('O1', 'Each step goes uphill'), f
    assert wrong.split(', ')[-1] in f.place.source, f
    ast.parse(f.fix)


def test_who_negates_twice_goes_downhill(tmp_path):
    twice = UPHILL.replace('loss.backward()', '(-loss).backward()').replace('lr=1e-6', 'lr=1e-6, maximize=True')
    assert 'O1' not in said(twice, tmp_path)


# Ids that are used as numbers, where there is no table yet

NO_TABLE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn,self.out = nn.LSTM(1, 16, batch_first=True),nn.Linear(16, 12)
    def forward(self, x):
        return self.out(self.rnn(READ)[0])
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all, opt=adam)
"""
LOOSE = """
rnn,out = nn.GRU(1, 16, batch_first=True),nn.Linear(16, 12)
adam = torch.optim.Adam([*rnn.parameters(), *out.parameters()], lr=1e-3)
def learn(x, y):
    loss = F.cross_entropy(out(rnn(READ)[0]).flatten(0, 1), y.flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
def given(): return dict(step_function=learn, batches=streams)
"""
LAYERS_IN_A_ROW = """
net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 12))
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def learn(x, y):
    loss = F.cross_entropy(net(READ).flatten(0, 1), y.flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=streams)
"""
AMOUNTS = 'x.unsqueeze(-1).float()'


def s2(source, tmp_path):
    f = next(o for o in diagnose(**made(source, tmp_path), trials=False).findings if o.id == 'S2')
    return [o.split('   #')[0] for o in f.fix.splitlines()]


def test_a_table_for_ids_that_are_used_as_numbers(tmp_path):
    table,layer,use = s2(NO_TABLE.replace('READ', AMOUNTS), tmp_path)
    mended = NO_TABLE.replace('self.rnn,self.out =', f'{table}\n        {layer}\n        _,self.out =').replace('READ', 'x')
    assert not said(mended.replace('return self.out(', f'{use}\n        return self.out('), tmp_path), (table, layer, use)


def test_a_table_for_layers_that_belong_to_no_network(tmp_path):
    table,layer,use = s2(LOOSE.replace('READ', AMOUNTS), tmp_path)
    assert 'self' not in table+layer+use
    mended = LOOSE.replace('adam =', f'{table}\n{layer}\nadam =', 1).replace('[*rnn', '[*emb.parameters(), *rnn').replace('READ', 'x')
    assert not said(mended.replace('loss = F', f'{use}\n    loss = F'), tmp_path), (table, layer, use)


def test_a_table_for_layers_in_a_row(tmp_path):
    table,_ = s2(LAYERS_IN_A_ROW.replace('READ', AMOUNTS), tmp_path)
    mended = LAYERS_IN_A_ROW.replace('adam =', f'{table}\nadam =', 1).replace('READ', 'x')
    assert 'S2' not in said(mended, tmp_path), table


def test_a_table_for_a_layer_that_ends_in_an_error(tmp_path):
    source = NO_TABLE.replace('nn.LSTM(1,', 'nn.LSTM(8,').replace('READ', 'x')
    f = first(source, tmp_path)
    table,use = f.fix.splitlines()
    assert f.id == 'S2' and 'nn.Embedding(n_symbols, 8)' in table, f
    mended = source.replace('self.rnn,', f'{table.replace("n_symbols", "12")}\n        self.rnn,', 1)
    assert not said(mended.replace('return self.out(', f'{use}\n        return self.out('), tmp_path), f


# All of the text as one batch

ALL_AT_ONCE = reader() + """
rows,goals = ids[:800].view(8, 100),ids[1:801].view(8, 100)
def learn(x, y):
    pass
    loss = F.cross_entropy(net(x).transpose(1, 2), y)
    adam.zero_grad()
    loss.backward()
    adam.step()
def alone():
    x,y = rows,goals
    learn(x, y)
"""


@pytest.mark.parametrize('given', ['step_function=alone', 'step_function=learn, batches=[(rows, goals)]*4'])
def test_all_of_the_text_in_each_step(given, tmp_path):
    source = ALL_AT_ONCE + f"def given(): return dict({given}, model=net)\n"
    f = first(source, tmp_path)
    assert f.id == 'T7', f
    where = 'x,y = rows,goals\n' if 'alone' in given else 'pass\n'
    mended = source.replace(where, where+textwrap.indent(f.fix, '    ')+'\n')
    assert 'alone' not in given or 'T7' not in said(mended, tmp_path), f.fix
    ast.parse(f.fix)
