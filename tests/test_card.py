"""What people do with a card, on one that is pretended: nothing is computed from tensors of two devices,
and no number is read as if it were on this side"""
import re
from contextlib import suppress

import pytest
import torch
from card import card
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision

from charrnn_fa import show
from charrnn_fa.checkpoint import Checkpoint
from charrnn_fa.learner import char_learner
from charrnn_fa.run.model import load_run, save_run
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders

TEXT = load_corpus('pydocs')[:3000]
SHORT = TEXT[:1800] # 25 steps an epoch


@pytest.fixture
def t4():
    with card(): yield


def made(device=None, text=TEXT, **kwargs):
    dls = CharDataLoaders.from_text(text, bs=4, seq_len=16, seed=1, device=device)
    learn = char_learner(dls, **{**dict(n_hid=16, emb_sz=8, head_sz=8, dropout=.2, reset_pct=.1), **kwargs})
    learn.remove_cbs(learn.progress)
    return learn


class Stop(Callback):
    def __init__(self, step): self.step = step
    def before_batch(self):
        if self.learn.steps_done > self.step: raise KeyboardInterrupt


def fitted(folder, until=None, cbs=(), **kwargs):
    "A fit of one epoch, or until a step of it"
    learn = made(text=SHORT, **kwargs)
    with suppress(KeyboardInterrupt), learn.no_logging(), learn.no_valid():
        learn.fit_one_cycle(1, 1e-2, cbs=[Checkpoint(folder, steps=5), *cbs, *([Stop(until)] if until else [])])
    return learn


def test_a_run_that_has_been_without_its_card_is_in_fp16_again_beside_one(t4, tmp_path, capsys):
    run = tmp_path/'run'
    assert fitted(run, until=7).precision == 'fp16'
    assert fitted(run, until=14, device='cpu', precision='fp32').precision == 'fp32'
    assert 'fp16 -> fp32' in capsys.readouterr().out
    learn = fitted(run, until=21)
    assert learn.precision == 'fp16' and 'fp32 -> fp16' in capsys.readouterr().out
    learn = fitted(run, precision='fp32')
    out = capsys.readouterr().out
    assert learn.precision == 'fp16' and "begun in fp16 and keeps to it: this Learner's fp32" in out and '->' not in out



class Overflow(Callback):
    order = MixedPrecision.order-1
    def before_step(self):
        if self.learn.steps_done in (3, 12): self.model.decoder.bias.grad[0] = float('inf')


def test_a_run_with_overflows_is_the_same_after_kills(t4, tmp_path):
    "Steps that are left out count, and the scale comes back"
    alone = fitted(tmp_path/'alone', cbs=[Overflow()])
    for until in 7,21: fitted(tmp_path/'killed', until, [Overflow()])
    again = fitted(tmp_path/'killed', cbs=[Overflow()])
    assert alone.scaler.get_scale() == 65536/4 and again.scaler.state_dict() == alone.scaler.state_dict()
    pairs = zip(alone.model.parameters(), again.model.parameters())
    assert all(torch.isfinite(a).all() and torch.equal(a, b) for a,b in pairs)
    assert [*map(float, again.recorder.losses)] == [*map(float, alone.recorder.losses)]


@pytest.mark.parametrize('arch', ['lstm', 'gru', 'rnn'])
def test_what_a_network_on_the_card_says_is_what_it_says_on_the_cpu(t4, tmp_path, arch):
    learn = made(arch=arch, n_layers=2)
    with learn.no_logging(), learn.no_valid(): learn.fit_steps(5)
    save_run(learn, tmp_path/'run')
    here = load_run(tmp_path/'run', device='cpu')
    for context in 'carry',32:
        a,b = (o.evaluate(context) for o in (learn, here))
        assert a['nats'] == pytest.approx(b['nats'], abs=1e-5) and a['accuracy'] == b['accuracy']
    for kwargs in dict(), dict(bs=3, top_k=9), dict(bs=2, top_p=.9, stop='.'):
        assert learn.generate('The', n=20, seed=1, **kwargs) == here.generate('The', n=20, seed=1, **kwargs)
    assert learn.predict('The')[0] == here.predict('The')[0]
    assert [o.device.type for o in learn.get_preds()] == ['cpu']*2 and learn.model.emb.weight.is_cuda
    learn.show_results()
    learn.summary()
    learn.lr_find(num_it=8, show_plot=False)
    pictures = show.surprise(learn, TEXT[:80]),show.neurons(learn, TEXT[:80], unit=3)
    assert all(o.save(tmp_path/'o.html').exists() for o in pictures)
    assert learn.share(tmp_path/'page.html', unit=3).exists()


def test_a_learner_goes_where_its_loaders_go(t4):
    "With what its optimiser remembers; the precision stays behind where there is none such"
    learn = made()
    def on():
        kept = [o for s in learn.opt.state.values() for o in s.values() if isinstance(o, torch.Tensor)]
        return {o.device.type for o in (*kept, *learn.model.parameters())}
    with learn.no_logging(), learn.no_valid():
        learn.fit_steps(4)
        learn.dls.cpu()
        with pytest.warns(UserWarning, match='fp16 needs a GPU with CUDA; fp32 is used'): learn.fit_steps(8, start=4)
        assert (learn.precision, learn.opt.ns_dtype, on()) == ('fp32', None, {'cpu'})
        assert not hasattr(learn, 'grad_scale')
        learn.dls.cuda()
        learn.fit_steps(12, start=8)
        assert (learn.precision, on()) == ('fp32', {'cuda'})


def test_a_run_goes_to_a_machine_without_a_card_and_back(tmp_path, capsys):
    run = tmp_path/'run'
    with card(): fitted(run, until=6)
    learn = fitted(run, until=12, device='cpu', precision='fp32')
    assert re.search('cuda -> cpu, gpu Tesla T4 -> None,(.* -> None,)? fp16 -> fp32', capsys.readouterr().out) # cuDNN's version
    save_run(learn, tmp_path/'kept')
    with card():
        assert fitted(run, until=18).precision == 'fp16'
        assert 'cpu -> cuda' in capsys.readouterr().out
        learn = load_run(tmp_path/'kept')
        assert learn.model.emb.weight.is_cuda and learn.generate('The', n=9, seed=1).startswith('The')


def full(*_, **__): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB.')
def dead(*_): raise torch.AcceleratorError('CUDA error: unspecified launch failure')


@pytest.mark.parametrize('fails', [full, dead])
def test_a_run_comes_back_after_its_card_is_full_or_fails(t4, tmp_path, monkeypatch, capsys, fails, step=5):
    "From the last checkpoint"
    class Fails(Callback):
        def after_pred(self):
            if self.learn.steps_done != 8: return
            if fails is dead: monkeypatch.setattr('card.check', dead)
            fails()
    with pytest.raises(RuntimeError, match='CUDA'): fitted(tmp_path/'run', cbs=[Fails()])
    monkeypatch.undo()
    assert f'goes on after step {step} when' in capsys.readouterr().out
    assert fitted(tmp_path/'run', until=9).steps_done == 10 and f'goes on after step {step}.' in capsys.readouterr().out
