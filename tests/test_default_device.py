"""`torch.set_default_device` and `torch.set_default_dtype` are a person's choice for their own tensors: what must be on
the CPU stays there, and a seed means the same weights; a model follows the type"""
import pytest
import torch

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.learner import char_learner
from charrnn_fa.run.files import RunError
from charrnn_fa.run.model import load_run, save_run
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders


@pytest.fixture(autouse=True)
def usual():
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def used(folder):
    "What a Learner makes: batches, weights, scores, hidden states, losses, texts"
    dls = CharDataLoaders.from_text(load_corpus('pydocs')[:4000], bs=4, seq_len=16, seed=1, device='cpu')
    learn = char_learner(dls, n_hid=16, emb_sz=8, head_sz=8, dropout=0.2, reset_pct=0.3)
    x,y = dls.train.one_batch()
    with torch.no_grad(): scores,state = learn.model.eval()(x)
    learn.training,learn.carried,learn.iter,learn.epoch = True,state,0,0
    save_run(learn, folder)
    again = load_run(folder, device='cpu')
    texts = [o.generate('The', n=30, bs=n, seed=3) for o in (learn, again) for n in (None, 2)]
    made = x,y,scores,*state,*learn._state_for(4),*learn.model.parameters()
    return [o.tolist() for o in made],learn.evaluate(),learn.evaluate(context=32),texts,learn.predict('The')[0]


def test_all_that_is_made_is_where_it_should_be(tmp_path):
    "A default device without data: what is made there by mistake cannot be read"
    want = used(tmp_path/'a')
    torch.set_default_device('meta')
    assert used(tmp_path/'b') == want


def test_a_run_is_read_where_another_type_is_the_default(tmp_path, make):
    "It writes the same text, and goes on with nothing but its own"
    plain,cb = make(),lambda: Checkpoint(tmp_path/'run', steps=5, quiet=True)
    torch.set_default_dtype(torch.float64)
    learn = make()
    learn.fit_steps(10, cbs=cb())
    torch.set_default_dtype(torch.float32)
    again = load_run(tmp_path/'run', device='cpu')
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    assert again.evaluate()['nats'] == pytest.approx(learn.evaluate()['nats'], abs=1e-5)
    with pytest.raises(RunError, match=r'set_default_dtype'): plain.fit_steps(20, cbs=cb())
    torch.set_default_dtype(torch.float64)
    assert load_run(tmp_path/'run', device='cpu').evaluate() == learn.evaluate()


