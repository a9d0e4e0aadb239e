"""The doctor on training steps that people write out: what a step hands on, and what it leaves behind"""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from charrnn_fa.doctor.diagnose import diagnose
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.vocab import CharVocab

TEXT = load_corpus('pydocs')[:20_000]
VOCAB = CharVocab.from_text(TEXT)
IDS,V = VOCAB.encode(TEXT).long(),len(VOCAB)


def rows(bs=8, seq_len=20, n=6):
    x = IDS[:n*bs*seq_len+1]
    return [*zip(x[:-1].view(n, bs, seq_len), x[1:].view(n, bs, seq_len))]


def found(step, net, batches=None, **kwargs):
    return diagnose(step_function=step, model=net, batches=batches or rows(), **{'trials':False, **kwargs}).findings


class Reader(nn.Module):
    "Embedding, a recurrent layer, scores"
    def __init__(self, drop=0.):
        super().__init__()
        self.emb,self.rnn,self.drop,self.out = nn.Embedding(V, 24),nn.GRU(24, 24, batch_first=True),nn.Dropout(drop),nn.Linear(24, V)

    def forward(self, x): return self.out(self.drop(self.rnn(self.emb(x))[0]))


def measured_step(drop, comes_back):
    "A step that looks at the network in evaluation mode when it is over"
    reader = Reader(drop)
    adam = torch.optim.Adam(reader.parameters(), 2e-3)
    def look():
        was = reader.training
        reader.eval()
        with torch.no_grad(): reader(IDS[:30][None])
        if comes_back: reader.train(was)
    def fit_one(x, y):
        adam.zero_grad()
        loss = F.cross_entropy(reader(x).flatten(0, 1), y.flatten())
        loss.backward()
        adam.step()
        look()
        return loss.item()
    return fit_one,reader


def test_a_step_that_leaves_evaluation_mode_on():
    f,*others = found(*measured_step(.3, False))
    assert (f.id, f.certainty) == ('T2', 'exact') and not others and 'reader.train()' in f.fix


@pytest.mark.parametrize('drop,comes_back', [(.3, True), (0., False)])
def test_a_mode_that_comes_back_or_changes_nothing_is_no_fault(drop, comes_back):
    assert not found(*measured_step(drop, comes_back))
