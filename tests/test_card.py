"""What people do with a card, on one that is pretended: nothing is computed from tensors of two devices,
and no number is read as if it were on this side"""
import re
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from statistics import median

import pytest
import torch
from card import card, waited
from fastai.basics import Transform
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.data.block import DataBlock
from fastai.learner import load_learner
from fastai.torch_core import TensorCategory
from torch import nn
from torch.nn import functional as F

from charrnn_fa import doctor, show
from charrnn_fa.callback.precision import bf16_on_cpu
from charrnn_fa.checkpoint import Checkpoint
from charrnn_fa.cli import main
from charrnn_fa.learner import char_learner
from charrnn_fa.presets import presets
from charrnn_fa.run.model import load_run, save_run
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharBlock, CharDataLoaders, TensorChars
from charrnn_fa.text.streams import check_device

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


def test_the_doctor_reads_a_loop_whose_batches_are_on_the_card(t4):
    symbols = sorted({*TEXT})
    ids = torch.tensor([symbols.index(c) for c in TEXT], device='cuda')
    model = Net(len(symbols)).to('cuda')
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    def step(x, y):
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        opt.step()
    rows = ids[:1280].view(4, -1)
    batches = [(rows[:,i:i+8], rows[:,i+1:i+9]) for i in range(0, 256, 8)]
    report = doctor.diagnose(step_function=step, model=model, batches=batches, trials=False)
    assert [o.id for o in report.findings] == ['O6']


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


def test_a_run_in_bf16_goes_on_in_it_whatever_the_new_learner_was_made_with(tmp_path):
    "The gradients of a card have a scale in all 16 bits"
    with card((8, 0)):
        fitted(tmp_path/'run', until=7, precision='bf16')
        learn = fitted(tmp_path/'run', precision='fp32')
        assert (learn.precision, learn.steps_done) == ('bf16', len(learn.dls.train))


def by_rows(logp, y): return -logp[torch.arange(len(y)),y.cpu()].mean() # a card takes indices of the host
def by_letters(logp, y): return -sum(o[i] for o,i in zip(logp, y[:,None]))/len(y)


@pytest.mark.parametrize('loss', [by_rows, by_letters])
def test_the_doctor_sees_what_a_loss_by_hand_picks_on_the_card(t4, loss):
    ids = torch.tensor([ord(c) % 32 for c in TEXT], device='cuda')
    model = Net(32).to('cuda')
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    def step(x, y):
        opt.zero_grad()
        loss(model(x).log_softmax(-1)[0], y[0]).sum().backward()
        opt.step()
    batches = [(ids[None,i:i+5], ids[None,i:i+5]) for i in range(0, 40, 5)]
    report = doctor.diagnose(step_function=step, model=model, batches=batches, trials=False)
    assert [o.id for o in report.findings] == ['D1']


SYMBOLS = sorted({*TEXT})

def encoded(text): return torch.tensor([SYMBOLS.index(c) for c in text])


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn = nn.Embedding(len(SYMBOLS), 8),nn.GRU(8, 64, batch_first=True)
        self.out = nn.Linear(64, len(SYMBOLS))
    def forward(self, x, state=None):
        h,state = self.rnn(self.emb(x), state)
        return self.out(h),state


def stateful_step(model, opt):
    def step(x, y):
        opt.zero_grad()
        F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten()).backward()
        opt.step()
    return step


@pytest.fixture(scope='module')
def writer():
    "A network that has learned to write a little"
    torch.manual_seed(0)
    model,rows = Stateful(),encoded(TEXT[:2561])
    step = stateful_step(model, torch.optim.Adam(model.parameters(), 1e-2))
    for _ in range(150): step(rows[:-1].view(80, 32), rows[1:].view(80, 32))
    return model


@pytest.mark.parametrize('remembers,ids', [(True, []), (False, ['G3'])])
def test_the_doctor_reads_what_is_written_on_the_card(writer, remembers, ids):
    torch.manual_seed(0)
    with card():
        model,rows = deepcopy(writer).to('cuda'),encoded(TEXT[:2561]).to('cuda')
        opt = torch.optim.Adam(model.parameters(), 1e-2)
        batches = [(rows[i:i+128].view(4, 32), rows[i+1:i+129].view(4, 32)) for i in range(0, 640, 128)]
        def write(model, prompt, n):
            x,state = encoded(prompt)[None].to('cuda'),None
            for _ in range(n):
                scores,new = model(x, state)
                if remembers: state = new
                x = torch.multinomial(scores[0,-1:].softmax(-1), 1)
                prompt += SYMBOLS[x.item()]
            return prompt
        report = doctor.diagnose(step_function=stateful_step(model, opt), model=model, opt=opt, batches=batches, sample=write, text=TEXT, trials=False)
        assert [o.id for o in report.findings if o.id[0] == 'G'] == ids


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


class Waits(Callback):
    def before_fit(self): self.seen = [0]
    def after_batch(self): self.seen.append(sum(waited.values()))


def test_most_steps_ask_the_card_for_nothing(t4, tmp_path):
    learn,cb = made(text=SHORT),Waits()
    with learn.no_logging(), learn.no_valid(): learn.fit(1, cbs=[cb, Checkpoint(tmp_path/'run', steps=20)])
    assert median(b-a for a,b in zip(cb.seen, cb.seen[1:])) == 0 < cb.seen[-1]


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


@pytest.mark.skipif(not bf16_on_cpu(), reason='this processor has no bf16')
def test_what_has_bf16_on_its_processor_is_in_fp32_on_a_card_without(t4):
    learn = made('cpu', precision='bf16')
    learn.dls.cuda()
    with pytest.warns(UserWarning, match='capability 8 or later; fp32 is used'): learn.validate()


def test_pictures_of_the_memory_and_the_lens_are_drawn_on_the_card(t4, tmp_path):
    learn = made()
    assert show.memory(learn).save(tmp_path/'memory.html').exists()
    assert show.lens(learn, TEXT[:40]).save(tmp_path/'lens.html').exists()


def test_the_card_follows_the_classes_of_fastai(t4):
    t = TensorCategory(torch.ones(2)).cuda()
    t.tag = 1
    assert isinstance(t+1, TensorCategory) and (t+1).is_cuda and (t+1).tag == 1
    assert type(t.cpu()) is TensorCategory and not t.cpu().is_cuda
    with pytest.raises(RuntimeError, match='same device'): t+torch.ones(2)


class Copied(Transform):
    def encodes(self, o:TensorChars): return o.clone()


class Typed(Transform):
    def encodes(self, o:torch.Tensor): return TensorCategory(o) if o.is_cuda else o


def test_a_data_block_with_transforms_feeds_the_card(t4, tmp_path):
    "A network with one matrix for two layers, too; and what fastai exports goes on anywhere"
    block = DataBlock(blocks=CharBlock(seq_len=16, seed=1), get_items=lambda o: o, splitter=lambda o: ([0], [1]),
                      item_tfms=[Copied()], batch_tfms=[Typed()])
    dls = block.dataloaders([TEXT[:1000], TEXT[1000:1300]], bs=4, path=tmp_path)
    assert all(isinstance(o, TensorCategory) and o.is_cuda for o in dls.one_batch())
    dls.show_batch()
    learn = char_learner(dls, n_hid=16, emb_sz=8, head_sz=8, tie=True)
    with learn.no_bar(), learn.no_logging(), learn.no_valid():
        learn.fit_steps(4)
        assert learn.model.emb.weight is learn.model.decoder.weight and learn.model.emb.weight.is_cuda
        learn.validate()
        learn.show_results()
        learn.export('export.pkl')
        with pytest.warns(UserWarning, match='pickle'): here = load_learner(tmp_path/'export.pkl')
        assert not here.model.emb.weight.is_cuda
        assert here.generate('The', n=9, seed=1) == learn.generate('The', n=9, seed=1)


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


@pytest.mark.parametrize('fails,step', [(full, 7), (dead, 5)])
def test_a_run_comes_back_after_its_card_is_full_or_fails(t4, tmp_path, monkeypatch, capsys, fails, step):
    "A card that is full can still be read, one that has failed cannot"
    class Fails(Callback):
        def after_pred(self):
            if self.learn.steps_done != 8: return
            if fails is dead: monkeypatch.setattr('card.check', dead)
            fails()
    with pytest.raises(RuntimeError, match='CUDA'): fitted(tmp_path/'run', cbs=[Fails()])
    monkeypatch.undo()
    assert f'goes on after step {step} when' in capsys.readouterr().out
    assert fitted(tmp_path/'run', until=9).steps_done == 10 and f'goes on after step {step}.' in capsys.readouterr().out


def test_the_command_line_works_on_the_card(t4, tmp_path, capsys):
    (tmp_path/'text.txt').write_text(TEXT[:1000])
    run = str(tmp_path/'run')
    sizes = '--preset t4-hour --n-hid 16 --n-layers 1 --emb-sz 8 --head-sz 8 --bs 8 --seq-len 16 --seed 1'.split()
    assert main(['train', str(tmp_path/'text.txt'), '--run', run, '--epochs', '1', *sizes]) == 0
    assert 'fp16 (16-bit numbers) on cuda:0' in capsys.readouterr().out
    for o in ['sample', run, '-n', '9'], ['eval', run, '--context', '32'], ['info', run], ['doctor', run]: assert main(o) == 0
    assert main(['train', str(tmp_path/'text.txt'), '--run', run+'2', '--precision', 'bf16', *sizes]) == 1
    assert 'take fp16 on this one' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['t4-minute', 't4-ten-minutes', 't4-hour'])
def test_a_preset_for_the_card_ends_with_its_epochs(t4, name):
    preset = replace(presets[name], max_epochs=.05)
    dls = CharDataLoaders.from_text(TEXT, bs=4, seq_len=16, seed=1)
    learn = char_learner(dls, preset=preset, n_hid=16, n_layers=2, emb_sz=8, head_sz=8)
    with learn.no_bar(), learn.no_logging(), learn.no_valid(): assert learn.fit_steps() == round(.05*len(dls.train))
    assert (learn.precision, learn.device.type) == ('fp16', 'cuda')


def test_a_gpu_of_apple_needs_no_double_precision(tmp_path, capsys):
    with card(kind='mps'):
        learn = fitted(tmp_path/'run', until=6)
        assert (learn.device.type, learn.precision) == ('mps', 'fp32')
        fitted(tmp_path/'run', until=7)
        said = capsys.readouterr().out
        assert 'the random numbers of an Apple GPU, which are not kept' in said and 'doctor:' not in said
        assert learn.vocab.textify(torch.zeros(2, device='mps')) == learn.vocab[0]*2
        assert show.surprise(learn, TEXT[:40]).save(tmp_path/'surprise.html').exists()
        assert show.memory(learn).save(tmp_path/'memory.html').exists()


def test_a_card_that_is_full_is_not_taken_for_none(t4, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(torch, 'empty', full)
        with pytest.raises(torch.OutOfMemoryError): check_device('cuda')


@pytest.mark.parametrize('mode,ids', [('train', []), ('eval', ['T2'])])
def test_the_doctor_says_what_a_card_refuses_in_evaluation_mode(t4, mode, ids):
    "cuDNN goes no way back there, and a CPU does"
    model = Net(32).to('cuda')
    getattr(model, mode)()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    def step(x, y):
        opt.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        opt.step()
    x = torch.randint(32, (2, 9)).to('cuda')
    report = doctor.diagnose(step_function=step, model=model, batches=[(x[:,:-1], x[:,1:])], trials=False, seconds=1)
    assert [o.id for o in report.findings] == ids
