"Learners that fastai made, with loaders, samplers, models and data sets of a person's own: the same after a kill, or said"
import os
import random
import signal

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, TfmdDL
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat, MSELossFlat
from fastai.text.models.awdlstm import WeightDropout
from torch import nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

import kills
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.core import CharRNNError
from charrnn_fa.learner import char_learner
from charrnn_fa.loop import OneRowPerChar
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.text.data import CharDataLoaders
from kills import CKPT, Case, differences
from test_checkpoint import At

X = torch.randn(56, 3, generator=torch.Generator().manual_seed(0))
ITEMS = list(zip(X, X.sum(1, keepdim=True) + 1))


def learner(d, train, model=None, **kwargs):
    dls = DataLoaders(train, TfmdDL(ITEMS[:9], bs=4, num_workers=0), path=d)
    return Learner(dls, model or nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1)),
                   loss_func=MSELossFlat(), path=d, **kwargs)


# Loaders that draw from generators of their own. The generator stands somewhere else in each process

def gen(): return torch.Generator().manual_seed(3)


def torch_loader(d): return learner(d, DataLoader(ITEMS, batch_size=4, shuffle=True, generator=gen()))


def torch_sampler(d):
    return learner(d, DataLoader(ITEMS, batch_size=4,
                                 sampler=WeightedRandomSampler(torch.arange(1., 57), 56, generator=gen())))


class Augmented(Dataset):
    "Adds noise from generators of NumPy and of Python"
    def __init__(self):
        self.numpy,self.old,self.python = np.random.default_rng(5),np.random.RandomState(5),random.Random(5)
    def __len__(self): return len(ITEMS)
    def __getitem__(self, i):
        return ITEMS[i][0] + float(self.numpy.normal() + self.old.rand() + self.python.random()), ITEMS[i][1]

def augmented(d): return learner(d, DataLoader(Augmented(), batch_size=4))


class OwnLoader(TfmdDL):
    "A loader of fastai's that draws its order itself, and counts"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gen,self.passes = gen(),0
    def get_idxs(self):
        self.passes += 1
        return torch.randperm(self.n, generator=self.gen).roll(self.passes).tolist()

def own_loader(d): return learner(d, OwnLoader(ITEMS, bs=4))


class OwnSampler:
    "Another order in each pass"
    passes = 0
    def __len__(self): return len(ITEMS)
    def __iter__(self):
        self.passes += 1
        return iter([i*(2*self.passes + 1) % len(ITEMS) for i in range(len(ITEMS))])

def own_sampler(d): return learner(d, DataLoader(ITEMS, batch_size=4, sampler=OwnSampler()))


# Models with a memory

class Remembers(nn.Module):
    "Keeps what it has put out in a plain attribute, another that it makes itself, counts, and a buffer that is None at first"
    def __init__(self):
        super().__init__()
        self.lin,self.h,self.n,self.seen = nn.Linear(3, 1),None,0,[]
        self.register_buffer('mean', None)
    def forward(self, x):
        y = self.lin(x)
        if self.h is not None and self.training:
            y = y + 0.1*self.h.mean() + 1e-3*self.n + 0.1*self.mean + 0.1*self.made[0].mean() + 1e-3*len(self.seen)
        if self.training: self.h,self.n,self.mean,self.made = y.detach(),self.n+1,y.detach().mean()[None],(y.detach(),)
        if self.training: self.seen = [*self.seen[-40:], self.n]
        return y

def remembers(d): return learner(d, TfmdDL(ITEMS, bs=4, shuffle=True), Remembers())


class Fills(Callback):
    "Gives a buffer of the model its contents"
    def before_batch(self):
        if self.model.mean is None: self.model.mean = torch.zeros(1)


CASES = dict(torch_loader=Case(make=torch_loader), torch_sampler=Case(make=torch_sampler), augmented=Case(make=augmented),
             own_loader=Case(make=own_loader), own_sampler=Case(make=own_sampler), remembers=Case(make=remembers),
             best=Case(make=remembers, cbs=lambda: [kills.SaveModelCallback(monitor='train_loss'), Fills()]))
for case in CASES.values(): case.fit = lambda learn, cbs: learn.fit(4, 1e-2, cbs=cbs)


def dies(n):
    "A callback that kills its process before the `n`-th epoch that it sees"
    left = iter(range(n))
    def hit(learn):
        if next(left, None) is None:
            learn.checkpoint.saver.writer.wait(60)
            os.kill(os.getpid(), signal.SIGKILL)
    class Dies(Callback):
        order = 900
        def before_epoch(self): hit(self.learn)
    return Dies()


def go(name, d, n=None, ckpt=CKPT): kills.train(CASES[name], d, ckpt, [] if n is None else [dies(n)])


@pytest.mark.parametrize('name', CASES)
def test_other_learners_come_back(clean, tmp_path, name):
    "Killed at the beginning of the second epoch, of the fourth, and not at all"
    def run(d, *args, rc=0, **kwargs):
        assert clean.start(tmp_path/'log', go, name, tmp_path/d, *args, **kwargs).wait(300) == rc, (tmp_path/'log').read_text()
    run('alone', ckpt=None)
    for n in 1, 2: run('r', n, rc=-9)
    run('r')
    assert differences(tmp_path/'alone', tmp_path/'r') == [] and RunFolder(tmp_path/'r/run').resumes() == [14, 42]
    assert 'Warning' not in (tmp_path/'log').read_text(), (tmp_path/'log').read_text()


# fastai's own `Learner` over our loaders

class Plain(nn.Module):
    "Scores, and no state"
    def __init__(self, n):
        super().__init__()
        self.emb,self.rnn,self.decoder = nn.Embedding(n, 8),nn.GRU(8, 8, batch_first=True),nn.Linear(8, n)
    def forward(self, x): return self.decoder(self.rnn(self.emb(x))[0])


def over_text():
    dls = CharDataLoaders.from_text('To be, or not to be. '*40, bs=4, seq_len=8, seed=1)
    return Learner(dls, Plain(len(dls.vocab)), loss_func=CrossEntropyLossFlat())


def test_get_preds_over_our_loaders_is_told_how():
    "It ended in `'list' object has no attribute 'softmax'`; `predict` and `Interpretation` call it too"
    learn = over_text()
    with learn.no_bar():
        for f in (learn.get_preds, lambda: learn.predict('To be'), lambda: Interpretation.from_learner(learn)):
            with pytest.raises(CharRNNError, match='OneRowPerChar'): f()
        probs,y,losses = learn.get_preds(with_loss=True, cbs=OneRowPerChar())
        assert torch.equal(y, learn.dls.valid.ids[1:].long()) and len(probs) == len(y)
        assert torch.allclose(losses, -probs[range(len(y)), y].log(), atol=1e-4)


def test_a_learner_that_was_loaded_says_that_it_has_no_text(tmp_path):
    "It trained on nothing and showed `nan`"
    over_text().export(tmp_path/'x.pkl')
    with pytest.warns(UserWarning): learn = load_learner(tmp_path/'x.pkl')
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(CharRNNError, match='no two characters'): learn.fit(1)


class Dropped(nn.Module):
    "A layer of fastai's AWD_LSTM: the weights that are used are made of others in each step"
    def __init__(self):
        super().__init__()
        self.rnn,self.out = WeightDropout(nn.LSTM(3, 8, batch_first=True), .3),nn.Linear(8, 1)
    def forward(self, x): return self.out(self.rnn(x[:, None])[0][:, -1])

def test_weights_that_are_made_anew_in_each_step_are_not_called_lost(tmp_path, capsys):
    def fitted(d, *cbs):
        torch.manual_seed(1)
        learn = learner(tmp_path, TfmdDL(ITEMS, bs=4), Dropped())
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2, cbs=[Checkpoint(tmp_path/d), *cbs])
        return learn.model.state_dict()
    whole = fitted('whole')
    with pytest.raises(RuntimeError): fitted('r', At('before_batch', 20, 'error'))
    again = fitted('r')
    assert all(torch.equal(v, again[k]) for k,v in whole.items()) and 'Not kept' not in capsys.readouterr().out


def test_interpretation_says_where_to_look():
    "It took the number of a character for that of a document: an `IndexError`, or another text"
    learn = char_learner(CharDataLoaders.from_text('To be, or not to be. '*40, bs=4, seq_len=8, seed=1), n_hid=8)
    with learn.no_bar():
        found = ClassificationInterpretation.from_learner(learn)
        for f in found.plot_top_losses, found.show_results:
            with pytest.raises(CharRNNError, match=r'show.CharInterpretation.from_learner\(learn\).worst_lines\(\)'): f(3)
        assert found.confusion_matrix().sum() == len(learn.dls.valid.ids)-1 and found.most_confused()
        found.print_classification_report()


def test_a_loaded_learner_goes_on_as_it_is_told(tmp_path):
    text = 'To be, or not to be. '*40
    dls = CharDataLoaders.from_text(text, bs=4, seq_len=8, seed=1)
    char_learner(dls, n_hid=8).export(tmp_path/'x.pkl')
    with pytest.warns(UserWarning): learn = load_learner(tmp_path/'x.pkl')
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(CharRNNError) as e: learn.fit(1)
        exec(e.value.remedy.partition(': ')[2])
        learn.fit(1)
