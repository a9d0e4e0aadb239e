"""Fixes put where they belong, in programs whose lines and names do not let every fix be pasted"""
import ast

import pytest
from test_doctor_fixes import diagnose, first, made, said


# A state that is made in the loop, of what the loop alone has

IN_LOOP = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.cell,self.guess = nn.Embedding(12, 16),nn.{kind}Cell(16, 16),nn.Linear(16, 12)
    def forward(self, seq):
        outs = []
        BEFORE
        for letter in self.table(seq).unbind(1):
            {makes}
            {call}
            outs.append(self.guess({state}))
        return torch.stack(outs, 1)
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all, opt=adam)
"""
GRU = dict(kind='GRU', call='mem = self.cell(letter, mem)', state='mem')
LSTM = dict(kind='LSTM', call='mem, c = self.cell(letter, (mem, c))', state='mem')
KEPT = dict(kind='GRU', call='self.mem = self.cell(letter, self.mem)', state='self.mem')


@pytest.mark.parametrize('parts,makes', [
    (GRU, 'mem = torch.zeros(len(letter), 16)'), (LSTM, 'mem = c = torch.zeros_like(letter)'),
    (LSTM, 'mem, c = torch.zeros_like(letter), torch.zeros_like(letter)'), (KEPT, 'self.mem = torch.zeros_like(letter)'),
    (GRU, 'mem = torch.zeros(len(seq), 16)')])
def test_a_state_made_anew_at_each_letter_is_made_once(parts, makes, tmp_path):
    source = IN_LOOP.format(**parts, makes=makes)
    f = first(source.replace('BEFORE', 'pass'), tmp_path)
    assert f.id == 'R5' and f.place.source == makes, f
    before,inside = f.fix.splitlines()[:2]
    mended = source.replace(makes, inside if inside.startswith('if') else 'pass').replace('BEFORE', before)
    found = diagnose(**made(mended, tmp_path, 'mended'), trials=False).findings
    assert not [o for o in found if o.certainty == 'exact'], (f.fix, found)


# A state that is made within the call, or has another name when it comes back

BY_LETTER = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.cell,self.guess = nn.Embedding(12, 16),nn.GRUCell(16, 16),nn.Linear(16, 12)
    def first(self, n): return torch.zeros(n, 16)
    def forward(self, letter, state):
        state = self.cell(self.table(letter), state)
        return self.guess(state), state
net = Net()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
def learn(x, y):
    {before}
    loss = 0
    {loop}
        {call}
        loss = loss + F.cross_entropy(out, goal)/15
    adam.zero_grad()
    loss.backward()
    adam.step()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=streams)
"""
ZIPPED = 'for letter, goal in zip(x.T, y.T):'


@pytest.mark.parametrize('before,call', [
    ('pass', 'out, mem = net(letter, torch.zeros(len(letter), 16))'), ('mem = net.first(8)', 'out, _ = net(letter, mem)')])
def test_a_state_that_is_not_handed_on_from_call_to_call(before, call, tmp_path):
    source = BY_LETTER.format(before=before, loop=ZIPPED, call=call)
    f = first(source, tmp_path)
    assert f.id == 'R5' and f.place.source == call, f
    lines = f.fix.replace('\n', '\n        ')
    if '# once, before the loop' in lines: # of which the next line, and its head, if that is told, take the place
        once,_,lines = lines.partition('\n        ')
        source = source.replace('loss = 0', f'{once}\n    loss = 0')
        lines = lines.replace(f'{ZIPPED}\n', '').strip()
    assert not said(source.replace(call, lines), tmp_path), f.fix


@pytest.mark.parametrize('parts,call', [
    (GRU, 'mem = self.cell(letter, torch.zeros(8, 16))'),
    (LSTM, 'mem, c = self.cell(letter, (torch.zeros(8, 16), torch.zeros(8, 16)))')])
def test_a_state_that_a_cell_gets_anew_within_the_call(parts, call, tmp_path):
    source = IN_LOOP.format(**{**parts, 'call':call}, makes='pass')
    f = first(source.replace('BEFORE', 'pass'), tmp_path)
    assert f.id == 'R5' and f.place.source == call, f
    before,_,inside = f.fix.splitlines()
    assert not said(source.replace('BEFORE', before).replace(call, inside.strip()), tmp_path), f.fix


# A layer with a path that is no name

OUT_OF = """
class Reader(nn.Module):
    def __init__(self, batch_first=False):
        super().__init__()
        self.l = nn.LSTM(16, 16, batch_first=batch_first)
    def forward(self, h): return self.l(h)[0]
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {makes}
        HERE
    def forward(self, seq): return {gives}
net = {net}
AFTER
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all)
"""
STACK = 'nn.Sequential(nn.Embedding(12, 16), {}, nn.Linear(16, 12))'
BY_NAME = 'nn.ModuleDict({"in-to": nn.Embedding(12, 16), "the-rnn": nn.LSTM(16, 16), "class": nn.Linear(16, 12)})'
PATHS = {
    'of a sequence': (f"self.net = {STACK.format('Reader()')}", 'self.net(seq)'),
    'of a list': ('self.ls = nn.ModuleList([nn.Embedding(12, 16), nn.LSTM(16, 16), nn.Linear(16, 12)])',
                  'self.ls[2](self.ls[1](self.ls[0](seq))[0])'),
    'of a dictionary': (f'self.d = {BY_NAME}', 'self.d["class"](self.d["the-rnn"](self.d["in-to"](seq))[0])'),
    'with a keyword for a name': (f"self.net = {STACK.format('nn.Identity()')}; self.add_module('lambda', nn.LSTM(16, 16))",
                                  "self.net[2](getattr(self, 'lambda')(self.net[0](seq))[0])")}


@pytest.mark.parametrize('path', PATHS)
def test_a_layer_is_made_anew_by_a_line_that_is_python(path, tmp_path):
    makes,gives = PATHS[path]
    source = OUT_OF.format(makes=makes, gives=gives, net='Net()').replace('AFTER', '')
    f = first(source.replace('HERE', ''), tmp_path)
    assert f.id == 'S5' and f.fix.startswith('self'), f
    assert not said(source.replace('HERE', f.fix), tmp_path), f.fix


@pytest.mark.parametrize('net', [STACK.format('Reader()'), f'nn.Sequential(nn.Sequential({STACK.format("Reader()")}))'])
def test_a_layer_of_a_model_without_a_class_of_its_own_is_told_by_the_models_name(net, tmp_path):
    source = OUT_OF.format(makes='', gives='seq', net=net).replace('HERE', '').replace('net = ', 'model = ').replace('=net', '=model')
    f = first(source.replace('AFTER', ''), tmp_path)
    assert f.id == 'S5' and f.fix.startswith('model['), f
    assert not said(source.replace('AFTER', f.fix), tmp_path), f.fix


# Parts that belong to no module

LOOSE = """
names = dict(xh=(12, 16), hh=(16, 16), hy=(16, 12))
W = {k:torch.full(v, .1).requires_grad_() for k,v in names.items()}
HERE
def learn(x, y):
    h,outs = torch.zeros(8, 16),[]
    for t in range(15):
        h = torch.tanh(W['xh'][x[:,t]] + h@W['hh'])
        outs.append(h@W['hy'])
    loss = F.cross_entropy(torch.stack(outs, 1).flatten(0, 1), y.flatten())
    loss.backward()
    with torch.no_grad():
        for p in W.values():
            p -= .1*p.grad
            p.grad = None
def given(): return dict(step_function=learn, batches=streams)
"""


@pytest.mark.parametrize('given', ['', 'model=W, '])
def test_tensors_of_a_dictionary_are_told_by_the_name_that_it_has(given, tmp_path):
    source = LOOSE.replace('step_function', f'{given}step_function')
    f = first(source.replace('HERE', ''), tmp_path)
    assert f.id == 'I2' and "W['h" in f.message, f
    assert not said(source.replace('HERE', f.fix), tmp_path), f.fix


TWO = """
reader,guess = nn.Sequential(nn.Embedding(12, 16), nn.GRU(16, 16)),nn.Linear(16, 12)
HERE
adam = torch.optim.Adam([*reader.parameters(), *guess.parameters()], lr=1e-3)
def learn(x, y):
    loss = F.cross_entropy(guess(reader(x)[0]).flatten(0, 1), y.flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
def given(): return dict(step_function=learn, opt=adam, batches=streams)
"""


def test_a_layer_of_one_of_two_networks_is_told_by_the_name_of_that_network(tmp_path):
    f = first(TWO.replace('HERE', ''), tmp_path)
    assert f.id == 'S5' and f.fix.startswith('reader[1] = '), f
    assert not said(TWO.replace('HERE', f.fix), tmp_path), f.fix


# A loader that stops

PIECES = """
class Pieces(torch.utils.data.Dataset):
    def __len__(self):
        seq_len = 16
        HERE
    def __getitem__(self, i):
        if i > 149: raise IndexError(i)
        return ids[16*i:16*i+16],ids[16*i+1:16*i+17]
ids = ids[:2390+MORE]
net = nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 12))
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def given(): return dict(model=net, dls=torch.utils.data.DataLoader(Pieces(), 60), loss_func=over_all)
"""


@pytest.mark.parametrize('line,more', [('return 150', 0), ('return 151', 11)])
def test_a_data_set_that_says_too_much_is_told_how_many_whole_pieces_there_are(line, more, tmp_path):
    source = PIECES.replace('MORE', str(more))
    f = first(source.replace('HERE', line), tmp_path)
    assert f.id == 'E2' and 'pass' not in f.fix, f
    assert 'E2' not in said(source.replace('HERE', f.fix), tmp_path), f.fix


# Errors that need a sentence

ENDS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table,self.reader,self.guess = nn.Embedding(12, 16),nn.GRU(16, 16, 2, batch_first=True),nn.Linear(16, 12)
    def forward(self, seq):
        start = torch.zeros(2, len(seq), 16)
        h = self.table(seq)
        HERE
        return self.guess(self.reader(h, start)[0])
net = Net()
def over_all(p, t): return F.cross_entropy(p.flatten(0, 1), t.flatten())
def given(): return dict(model=net, dls=streams, loss_func=over_all)
"""


@pytest.mark.parametrize('line,id,says', [
    ('h = h.transpose(1, 2).view(8, 15, 16)', 'E1', 'lie in memory one after the other'),
    ('start = start.transpose(0, 1)', 'S6', 'batch_first=True exchanges axes of what goes in and comes out, not of the state'),
    ('start = start[0]', 'S6', 'has 3 axes and the state 2'),
    ('h = h.double()', 'E1', 'weights of float32 and gets numbers of float64'),
    ('h = self.table(seq[..., None])', 'S8', 'Ids that are still to be embedded have two'),
    ('h = nn.BatchNorm1d(16)(h)', 'S8', 'looks for them on axis 1, where it finds 15'),
    ('h = torch.einsum("bti,ij->btj", h, torch.zeros(15, 16))', 'S8', 'the letter i'),
    ('h = h + torch.bmm(h, h)', 'S8', 'the last axis of the first'),
    ('h = h.tanh(); h += 1', 'E1', 'changed after it was used')])
def test_an_error_of_a_network_is_told_in_a_sentence(line, id, says, tmp_path):
    f = first(ENDS.replace('HERE', line), tmp_path)
    assert f.id == id and says in f.message, f
    ast.parse(f.fix)



# Targets that a step makes by roll

ROLLED = """
net = nn.Sequential(nn.Embedding(12, 16), nn.Tanh(), nn.Linear(16, 12))
adam = torch.optim.Adam(net.parameters())
def learn(x, y=None):
    HERE
    loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
    adam.zero_grad()
    loss.backward()
    adam.step()
def given(): return dict(step_function=learn, model=net, opt=adam, batches=BATCHES)
"""


ONE = '[x for x,_ in streams]'


@pytest.mark.parametrize('line,batches', [
    ('y = x.roll(-1, 1)', 'streams'), ('y = x.flatten().roll(-1)', 'streams'), ('y = torch.roll(x, -1)', 'streams'),
    ('y = x.roll(-1, 1)', ONE), ('y = torch.roll(x, -1, 0)', '[x.T.contiguous() for x,_ in streams]')])
def test_a_roll_in_the_step_wraps_around(line, batches, tmp_path):
    source = ROLLED.replace('BATCHES', batches)
    f = first(source.replace('HERE', line), tmp_path)
    assert f.id == 'D3', f
    assert 'D3' not in said(source.replace('HERE', f.fix), tmp_path), f.fix


@pytest.mark.parametrize('line', ['y = x.flatten().roll(-1)', 'x,y = x[:,:-1],x[:,1:]'])
def test_rows_that_go_on_with_the_next_row_may_be_rolled_as_one(line, tmp_path):
    assert 'D3' not in said(ROLLED.replace('HERE', line).replace('BATCHES', '[x for x in ids[:2400].view(-1, 8, 15)]'), tmp_path)
