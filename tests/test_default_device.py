"""`torch.set_default_device` is a person's choice for their own tensors; what must be on the CPU stays there,
and a seed means the same weights. So is `torch.set_default_dtype`, which a network follows"""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from charrnn_fa import doctor
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.learner import char_learner
from charrnn_fa.run.files import RunError
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


@pytest.fixture
def double():
    yield lambda: torch.set_default_dtype(torch.float64)
    torch.set_default_dtype(torch.float32)


def test_a_run_is_read_where_another_type_is_the_default(tmp_path, make, dls, double):
    "It writes the same text, and goes on with nothing but its own"
    plain,cb = make(),lambda: Checkpoint(tmp_path/'run', steps=5, quiet=True)
    double()
    learn = make()
    learn.fit_steps(10, cbs=cb())
    torch.set_default_dtype(torch.float32)
    again = load_run(tmp_path/'run', device='cpu')
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    assert again.evaluate()['nats'] == pytest.approx(learn.evaluate()['nats'], abs=1e-5)
    with pytest.raises(RunError, match=r'of another type.*torch\.set_default_dtype'): plain.fit_steps(20, cbs=cb())
    double()
    assert load_run(tmp_path/'run', device='cpu').evaluate() == learn.evaluate()


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.emb,self.rnn = nn.Embedding(n, 8, device='cpu'),nn.GRU(8, 48, batch_first=True, device='cpu')
        self.out = nn.Linear(48, n, device='cpu')
    def forward(self, x, state=None):
        h,state = self.rnn(self.emb(x), state)
        return self.out(h),state


@pytest.mark.parametrize('remembers', [True, False])
def test_a_doctor_looks_where_the_network_is(elsewhere, remembers):
    text = load_corpus('pydocs')[:2561]
    symbols = sorted({*text})
    rows = torch.tensor([symbols.index(c) for c in text])
    model = Net(len(symbols))
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    def step(x, y):
        opt.zero_grad()
        F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten()).backward()
        opt.step()
    torch.manual_seed(0)
    for _ in range(100): step(rows[:-1].view(80, 32), rows[1:].view(80, 32))
    def write(model, prompt, n):
        x,state = torch.tensor([[symbols.index(c) for c in prompt]], device='cpu'),None
        for _ in range(n):
            scores,new = model(x, state)
            if remembers: state = new
            x = torch.multinomial(scores[0,-1:].softmax(-1), 1)
            prompt += symbols[x.item()]
        return prompt
    batches = [(rows[i:i+128].view(4, 32), rows[i+1:i+129].view(4, 32)) for i in range(0, 1920, 128)]
    elsewhere()
    report = doctor.diagnose(step_function=step, model=model, batches=batches, sample=write, text=text, trials=False)
    assert [o.id for o in report.findings] == ([] if remembers else ['G3'])
