"""Fixes put where they belong, in programs whose lines and names do not let every fix be pasted"""
import pytest
from test_doctor_fixes import diagnose, first, made


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
