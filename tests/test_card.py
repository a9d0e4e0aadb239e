"""What people do with a card, on one that is pretended: nothing is computed from tensors of two devices,
and no number is read as if it were on this side"""
import pytest
import torch
from card import card
from torch import nn
from torch.nn import functional as F

from charrnn_fa import doctor, show
from charrnn_fa.learner import char_learner
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders

TEXT = load_corpus('pydocs')[:3000]


@pytest.fixture
def t4():
    with card(): yield


def made(**kwargs):
    dls = CharDataLoaders.from_text(TEXT, bs=4, seq_len=16, seed=1)
    learn = char_learner(dls, **{**dict(n_hid=16, emb_sz=8, head_sz=8, dropout=.2, reset_pct=.1), **kwargs})
    learn.remove_cbs(learn.progress)
    return learn


def test_it_notices_what_a_card_refuses(t4):
    x = torch.ones(2, device='cuda')
    for f in lambda: x+torch.ones(2), lambda: torch.ones(2)[x.long()], lambda: nn.Linear(2, 2)(x), lambda: x.numpy():
        with pytest.raises((RuntimeError, TypeError)): f()
    assert (x+torch.ones(2).to('cuda')).tolist() == [2, 2] and x.device.type == 'cuda'


def test_a_picture_of_the_losses_has_the_rungs_of_the_text(t4, tmp_path):
    learn = made()
    with learn.no_logging(): learn.fit_steps(4)
    assert 'unigram' in show.losses(learn).save(tmp_path/'losses.html').read_text()


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(n, 8),nn.GRU(8, 16, batch_first=True),nn.Linear(16, n)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


@pytest.mark.parametrize('there', [True, False])
def test_the_doctor_reads_a_loop_whose_batches_are_on_the_card(t4, there):
    symbols = sorted({*TEXT})
    ids = torch.tensor([symbols.index(c) for c in TEXT], device='cuda' if there else 'cpu')
    model = Net(len(symbols)).to('cuda')
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    def step(x, y):
        loss = F.cross_entropy(model(x.to('cuda')).flatten(0, 1), y.to('cuda').flatten())
        loss.backward()
        opt.step()
    rows = ids[:1280].view(4, -1)
    batches = [(rows[:,i:i+8], rows[:,i+1:i+9]) for i in range(0, 256, 8)]
    report = doctor.diagnose(step_function=step, model=model, batches=batches, trials=False)
    assert [o.id for o in report.findings] == ['O6']
