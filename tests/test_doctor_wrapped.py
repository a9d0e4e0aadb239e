"""Networks in the wrappers that PyTorch has for them: scripted, or compiled, as a whole or in part"""
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from charrnn_fa import doctor
from charrnn_fa.text.corpus import load_corpus

TEXT = load_corpus('pydocs')[:24_000]
symbols = sorted({*TEXT})
V = len(symbols)
rows = torch.tensor([symbols.index(c) for c in TEXT]).unfold(0, 33, 32)


class Net(nn.Module):
    def __init__(self, n: int = 32, batch_first: bool = True):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, n),nn.GRU(n, n, batch_first=batch_first),nn.Linear(n, V)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


class Letters(nn.Module):
    "A cell that is asked letter by letter"
    def __init__(self, cell, n=32):
        super().__init__()
        self.emb,self.cell,self.out = nn.Embedding(V, n),cell,nn.Linear(n, V)
    def forward(self, x):
        h,res = torch.zeros(len(x), 32),[]
        for e in self.emb(x).unbind(1):
            h = self.cell(e, h)
            res.append(self.out(h))
        return torch.stack(res, 1)


def compiled(net): return torch.compile(net, backend='eager')


def step_of(net, ahead=1):
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(b):
        x,y = b[:,:-1],b[:,ahead:][:,:32]
        loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    return step


def ids_of(step, **given):
    batches = DataLoader(rows, batch_size=16)
    return [o.id for o in doctor.diagnose(step_function=step, batches=batches, trials=False, **given).findings]


@pytest.mark.parametrize('wrap', [torch.jit.script, compiled])
@pytest.mark.parametrize('batch_first,ahead,want', [(True, 1, []), (False, 1, ['S5']), (True, 0, ['D1'])])
def test_a_network_as_a_whole(wrap, batch_first, ahead, want):
    torch.manual_seed(0)
    assert ids_of(step_of(wrap(Net(batch_first=batch_first)), ahead)) == want


@pytest.mark.parametrize('wrap', [torch.jit.script, compiled])
def test_a_cell_of_a_network(wrap):
    torch.manual_seed(0)
    assert ids_of(step_of(Letters(wrap(nn.GRUCell(32, 32))))) == []


def test_a_scripted_network_that_writes():
    torch.manual_seed(0)
    net = torch.jit.script(Net())
    @torch.no_grad()
    def sample(model, prompt, n):
        model.eval()
        for _ in range(n):
            x = torch.tensor([[symbols.index(c) for c in prompt]])
            prompt += symbols[torch.multinomial(model(x)[0,-1].softmax(-1), 1)]
        model.train()
        return prompt
    assert ids_of(step_of(net), model=net, sample=sample, text=TEXT) == []
