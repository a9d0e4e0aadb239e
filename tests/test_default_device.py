"""`torch.set_default_device` is a person's choice for their own tensors; what must be on the CPU stays there,
and a seed means the same weights"""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from charrnn_fa import doctor
from charrnn_fa.learner import char_learner
from charrnn_fa.run.model import load_run, save_run
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders


@pytest.fixture
def elsewhere():
    "A default device that has no data: whatever is made there by mistake cannot be read"
    yield lambda: torch.set_default_device('meta')
    torch.set_default_device(None)


def used(folder):
    "What a Learner makes: batches, weights, scores, losses, texts"
    dls = CharDataLoaders.from_text(load_corpus('pydocs')[:4000], bs=4, seq_len=16, seed=1, device='cpu')
    learn = char_learner(dls, n_hid=16, emb_sz=8, head_sz=8, dropout=0.2, reset_pct=0.3)
    x,y = dls.train.one_batch()
    with torch.no_grad(): scores,state = learn.model.eval()(x)
    learn.training,learn.carried,learn.iter,learn.epoch = True,state,0,0
    emptied = [o.tolist() for o in learn._state_for(4)]
    save_run(learn, folder)
    again = load_run(folder, device='cpu')
    texts = [o.generate('The', n=30, bs=n, seed=3) for o in (learn, again) for n in (None, 2)]
    return [x.tolist(), y.tolist(), [p.tolist() for p in learn.model.parameters()], scores.tolist(),
            [o.tolist() for o in state], emptied,
            learn.evaluate(), learn.evaluate(context=32), texts, learn.predict('The')[0]]


def test_all_that_is_made_is_where_it_should_be(tmp_path, elsewhere):
    want = used(tmp_path/'a')
    elsewhere()
    assert used(tmp_path/'b') == want


class Net(nn.Module):
    "Embedding, GRU, scores"
    def __init__(self, n):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(n, 8),nn.GRU(8, 16, batch_first=True),nn.Linear(16, n)
    def forward(self, x, h=None):
        out,h = self.rnn(self.emb(x), h)
        return self.out(out),h


def examined(ahead):
    "What the doctor finds, and what it could not look at"
    text = load_corpus('pydocs')[:4000]
    symbols = sorted({*text})
    ids = torch.tensor([symbols.index(c) for c in text], device='cpu')
    torch.manual_seed(0)
    with torch.device('cpu'): model = Net(len(symbols))
    opt = torch.optim.SGD(model.parameters(), 1.)
    def step(x, y):
        loss = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    def sample(model, prompt, n):
        x,h,res = torch.tensor([[symbols.index(c) for c in prompt]], device='cpu'),None,prompt
        for _ in range(n):
            scores,h = model(x, h)
            x = torch.multinomial(scores[:,-1].softmax(-1), 1)
            res += symbols[x.item()]
        return res
    x,y = (ids[i:i+3840].view(-1, 4, 16) for i in (0, ahead))
    report = doctor.diagnose(model=model, step_function=step, batches=[*zip(x, y)], sample=sample, text=text,
                             trials=False)
    return [(o.id, o.message, o.fix) for o in report.findings],report.skipped


@pytest.mark.parametrize('ahead', [1, 2])
def test_the_doctor_sees_the_same(ahead, elsewhere):
    want = examined(ahead)
    elsewhere()
    assert examined(ahead) == want
