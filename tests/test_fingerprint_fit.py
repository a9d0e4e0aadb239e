"What a fit is made of: each change of it refuses the run by name, what has not changed does not, and nothing is drawn or fetched to tell"
import random
from functools import partial
from shutil import copytree

import numpy as np
import pytest
import torch
from fastai.callback.all import GradientClip, MixUp
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import Categorize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.optimizer import SGD, OptimWrapper
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.checkpoint.resume import data_digest, learner_settings
from charrnn_fa.run.files import RunError
from charrnn_fa.run.folder import Lock, RunFolder
from test_checkpoint import At

X = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(400) % 3


class Gate(nn.Module):
    "A person's own module"
    def __init__(self, act, scale=1.): super().__init__(); self.act,self.scale,self.calls = act,scale,0
    def forward(self, x): self.calls += 1; return self.scale*self.act(x)


def learner(d, x=X, y=Y, act=nn.ReLU, p=0.1, gate=torch.tanh, scale=1., opt=SGD, loss=None, moms=None, **kwargs):
    rows = [(a,b) for a,b in zip(x, y)]
    loader = partial(TfmdDL, bs=50, num_workers=0)
    dls = DataLoaders(loader(rows[:300], shuffle=True), loader(rows[300:]), path=d)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), act(), nn.Dropout(p), Gate(gate, scale), nn.LSTM(8, 8, batch_first=True),
                          type('Last', (nn.Module,), dict(forward=lambda self, o: o[0]))(), nn.Linear(8, 3))
    learn = Learner(dls, model, loss_func=loss or CrossEntropyLossFlat(), opt_func=opt, **kwargs)
    learn.logger = lambda log: None
    learn.remove_cbs(learn.progress)
    return learn


def fit(d, *cbs, ckpt={}, **kwargs):
    learner(d, **kwargs).fit(3, 1e-2, cbs=[*cbs, Checkpoint(d/'r', **{**dict(quiet=True, steps=6), **ckpt})])


def swapped(y): return torch.where(torch.arange(len(y)) % 2 == 0, (y+1) % 3, y)

W = CrossEntropyLossFlat(weight=torch.tensor([1., 2., 3.]))
BASE = dict(
    labels=({}, dict(y=swapped(Y)), r'the training data \(by a sample\)'),
    valid_labels=({}, dict(y=torch.cat([Y[:300], swapped(Y[300:])])), 'the validation data'),
    inputs=({}, dict(x=X+1), 'the training data'),
    activation=({}, dict(act=nn.GELU), r'model\.1\.class ReLU -> GELU'),
    dropout=({}, dict(p=0.9), r'model\.2\.p 0\.1 -> 0\.9'),
    own_function=({}, dict(gate=torch.sigmoid), r'model\.3\.act tanh -> sigmoid'),
    own_number=({}, dict(scale=2.), r'model\.3\.scale 1\.0 -> 2\.0'),
    weights=(dict(loss=W), dict(loss=CrossEntropyLossFlat(weight=torch.tensor([1., 2., 4.]))), r'loss\.func\.weight'),
    no_weights=(dict(loss=W), {}, r'loss\.func\.weight .* -> none'),
    smoothing=({}, dict(loss=CrossEntropyLossFlat(label_smoothing=0.1)), r'loss\.func\.label_smoothing 0\.0 -> 0\.1'),
    eps=(dict(loss=LabelSmoothingCrossEntropyFlat(eps=0.1)), dict(loss=LabelSmoothingCrossEntropyFlat(eps=0.2)),
         r'loss\.func\.eps 0\.1 -> 0\.2'),
    torch_loss=(dict(loss=nn.CrossEntropyLoss()), dict(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
                r'loss\.label_smoothing'),
    part_loss=(dict(loss=partial(nn.functional.cross_entropy, label_smoothing=0.1)),
               dict(loss=partial(nn.functional.cross_entropy, label_smoothing=0.3)), r'loss\.label_smoothing 0\.1 -> 0\.3'),
    momentum=(dict(opt=partial(SGD, mom=0.9)), dict(opt=partial(SGD, mom=0.5)), r'optimiser\.mom 0\.9 -> 0\.5'),
    no_momentum=(dict(opt=partial(SGD, mom=0.9)), {}, 'optimiser'),
    betas=(dict(opt=partial(OptimWrapper, opt=torch.optim.SGD, nesterov=False)),
           dict(opt=partial(OptimWrapper, opt=torch.optim.SGD, nesterov=True, momentum=0.9)),
           r'optimiser\.nesterov False -> True'),
    mixup=(dict(cbs=lambda: [MixUp(0.4)]), dict(cbs=lambda: [MixUp(40.)]), r'MixUp\.distrib\.concentration'),
    clip=(dict(cbs=lambda: [GradientClip(1.)]), dict(cbs=lambda: [GradientClip(0.1)]),
          r'GradientClip\.max_norm 1\.0 -> 0\.1'),
    bn_bias=({}, dict(wd_bn_bias=True), 'wd_bn_bias False -> True'),
    train_bn=({}, dict(train_bn=False), 'train_bn True -> False'),
)


def run(d, given, *more, **kwargs):
    given = dict(given)
    fit(d, *given.pop('cbs', list)(), *more, **given, **kwargs)


@pytest.mark.parametrize('what', BASE)
def test_a_change_is_refused_by_name(tmp_path, what):
    "After an error in the second epoch; as it was begun, it goes on"
    then,now,words = BASE[what]
    with pytest.raises(RuntimeError): run(tmp_path, then, At('before_batch', 9, 'error'))
    with pytest.raises(RunError, match=f'other settings: .*{words}') as refused: run(tmp_path, now)
    assert not Lock.held
    copytree(tmp_path/'r', tmp_path/'copy'/'r')
    run(tmp_path, then)
    assert RunFolder(tmp_path/'r').finished and RunFolder(tmp_path/'r').resumes() == [6]
    allowed = partial(run, tmp_path/'copy', now, ckpt=dict(allow_changes=True))
    if 'allow_changes=True' in str(refused.value): return allowed() # what is offered works
    with pytest.raises(RunError, match='other settings'): allowed()


def test_changes_may_be_allowed(tmp_path, capsys):
    with pytest.raises(RuntimeError): fit(tmp_path, At('before_batch', 9, 'error'))
    fit(tmp_path, y=swapped(Y), act=nn.GELU, p=0.9, ckpt=dict(allow_changes=True, quiet=False))
    said = capsys.readouterr().out
    assert ('goes on with these: the training data (by a sample)' in said
            and 'model.1.class ReLU -> GELU; model.1.inplace' in said)
    fit(tmp_path, y=swapped(Y), act=nn.GELU, p=0.9, ckpt=dict(allow_changes=True))


class Falls(Callback):
    "Lowers a dropout rate in each epoch"
    def before_epoch(self): self.model[2].p = 0.1/(1+self.epoch)


def test_what_a_callback_has_changed_is_no_change(tmp_path):
    "The same Learner after an error, and in a further fit; what a person changes is one"
    learn = learner(tmp_path)
    go = lambda *cbs: learn.fit(3, 1e-2, cbs=[*cbs, Checkpoint(tmp_path/'r', quiet=True)])
    with pytest.raises(RuntimeError): go(Falls(), At('before_batch', 9, 'error'))
    assert learn.model[2].p == 0.05
    learn.model[2].p = 0.7
    with pytest.raises(RunError, match=r'model\.2\.p 0\.1 -> 0\.7'): go(Falls())
    learn.model[2].p = 0.05
    go(Falls())
    go(Falls())
    assert RunFolder(tmp_path/'r').finished and RunFolder(tmp_path/'r/2').finished


# Data

PETS = [f'{"cat" if i%3 else "dog"}-{i}' for i in range(500)]

def named(o): return o.split('-')[0]
@pytest.mark.parametrize('make', [lambda y: TensorDataset(X, y), lambda y: [*zip(X, y)], lambda y: [*zip(X.numpy(), y.numpy())]])
def test_datasets_of_pytorch(make):
    a,b,c = (data_digest(DataLoader(make(o), batch_size=8)) for o in (Y, Y.clone(), swapped(Y)))
    assert a and a == b != c


def test_nothing_is_drawn(tmp_path):
    "By a description of a Learner whose transforms and labels are random"
    tfm = lambda o: random.random() + np.random.rand() + torch.rand(()).item()
    dls = Datasets(PETS, [[tfm], [lambda o: (tfm(o), named(o))[1], Categorize()]],
                   splits=[[*range(400)], [*range(400, 500)]]).dataloaders(bs=8)
    states = lambda: (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
                      dls.train.rng.getstate())
    learn = Learner(dls, nn.Linear(1, 2), loss_func=CrossEntropyLossFlat())
    before = states()
    assert learner_settings(learn)['data'] == learner_settings(learn)['data'] and states() == before


def test_a_parameter_that_is_held_by_hand_is_told(tmp_path):
    with pytest.raises(RuntimeError): fit(tmp_path, At('before_batch', 9, 'error'))
    learn = learner(tmp_path)
    learn.model[0].bias.requires_grad_(False)
    with pytest.raises(RunError, match=r"untrained none -> \['0.bias'\]"): learn.fit(3, 1e-2, cbs=Checkpoint(tmp_path/'r'))
    fit(tmp_path)
    assert RunFolder(tmp_path/'r').finished


def test_callbacks_of_ones_own_that_come_or_go_are_told_and_not_refused(tmp_path, capsys):
    class Noise(Callback):
        def before_step(self):
            for p in self.model.parameters(): p.grad.add_(torch.randn_like(p), alpha=1e-3)
    class Other(Noise): pass
    def said(*cbs, at=999):
        try: fit(tmp_path, *cbs, At('before_batch', at, 'error'), ckpt=dict(quiet=False))
        except RuntimeError: pass
        return capsys.readouterr().out
    assert 'same callbacks' not in said(Noise(), at=9)
    assert 'was begun with Noise and without Other; only with the same callbacks' in said(Other(), at=15)
    assert 'same callbacks' not in said(Other()) # it is what was begun last
    assert RunFolder(tmp_path/'r').finished
