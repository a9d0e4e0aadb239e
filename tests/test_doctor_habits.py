"""Programs with the habits of other tutorials: averaged copies, packed names, trainers that are called, tables by part"""
import random
from copy import deepcopy

import pytest
import torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from charrnn_fa import doctor
from charrnn_fa.text.corpus import load_corpus

TEXT = load_corpus('pydocs')[:24_000]
symbols = sorted({*TEXT})
V = len(symbols)
ids = torch.tensor([symbols.index(c) for c in TEXT])


class Net(nn.Module):
    "Scores (rows, steps, symbols)"
    def __init__(self, n_hid=48):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 24),nn.GRU(24, n_hid, batch_first=True),nn.Linear(n_hid, V)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


def nll(scores, y): return F.cross_entropy(scores.flatten(0, 1), y.flatten())


def windows(o, n=40): return [(o[i:i+n], o[i+1:i+n+1]) for i in range(0, len(o)-n, n)]


def loaders(train, valid): return DataLoaders(DataLoader(windows(train), bs=16), DataLoader(windows(valid), bs=16))


def batches(n=5): return [tuple(map(torch.stack, zip(*windows(ids)[16*i:16*i+16]))) for i in range(n)]


def found(**given): return doctor.diagnose(**given, trials=False).findings


class Averaged(Callback):
    "A mean of the weights so far, in a copy of the network that is made in the fit, and asked now and then"
    def before_fit(self): self.learn.averaged = deepcopy(self.learn.model)
    def after_step(self):
        with torch.no_grad():
            for a,b in zip(self.learn.averaged.parameters(), self.learn.model.parameters()): a.lerp_(b, .01)
            self.learn.averaged(self.x)


def test_the_network_may_be_copied_while_it_is_examined():
    "The hooks that look on are not copied with all that they look on, and calls of a copy are not the network's"
    torch.manual_seed(0)
    learn = Learner(loaders(ids[:-4000], ids[-4000:]), Net(), loss_func=CrossEntropyLossFlat(), lr=3e-3, cbs=Averaged())
    assert not doctor.diagnose(learn, trials=False).findings


class Trainer:
    "Is called itself, as a function is"
    def __init__(self, net): self.net,self.optim,self.i = net,torch.optim.Adam(net.parameters(), 3e-3),0
    def __call__(self, x, y):
        self.optim.zero_grad()
        (nll(self.net(x), y)/4).backward()
        self.i += 1
        if self.i % 4 == 0: self.optim.step()


def test_a_trainer_that_is_called_is_spoken_to_in_its_own_names():
    torch.manual_seed(0)
    trainer = Trainer(Net())
    f, = found(step_function=trainer, model=trainer.net, batches=batches())
    assert f.id == 'O11' and f.fix.startswith('self.optim.step(); self.optim.zero_grad()')


class Packed(nn.Module):
    "Names that are sorted for packing"
    fix = ''
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(30, 16),nn.GRU(16, 32, batch_first=True),nn.Linear(32, 30)
    def forward(self, x):
        lengths,order = (x != 0).sum(1).sort(descending=True)
        packed = pack_padded_sequence(self.emb(x[order]), lengths, batch_first=True)
        steps,_ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.size(1))
        if self.fix: steps = eval(self.fix.partition(' = ')[2], dict(steps=steps, order=order)) # as it would be pasted
        return self.out(steps)


def test_packed_rows_come_back_in_their_order_with_the_line_that_is_told():
    torch.manual_seed(0)
    names = [torch.randint(3, 30, (random.Random(i).randint(4, 11),)) for i in range(32)]
    x,y = (pad_sequence([o[a:len(o)-1+a] for o in names], batch_first=True) for a in (0, 1))
    loss = lambda scores,y: F.cross_entropy(scores.transpose(1, 2), y, ignore_index=0)
    given = dict(model=Packed(), dls=[*zip(x.split(16), y.split(16))], loss_func=loss)
    f, = [o for o in found(**given) if o.id == 'S4']
    assert f.fix.splitlines()[-1] == 'steps = steps[order.argsort()]'
    given['model'].fix = f.fix.splitlines()[-1]
    assert not [o for o in found(**given) if o.id == 'S4']


class Forgets(Net):
    def begin(self, n): return torch.zeros(n, 48)
    def forward(self, x):
        res = []
        for t in range(x.size(1)):
            h = self.begin(len(x))
            y,h = self.step(x[:,t], h)
            res.append(y)
        return torch.stack(res, 1)
    def step(self, c, h):
        h = self.rnn(self.emb(c)[:,None], h[None].contiguous())[1][0]
        return self.out(h),h


def test_a_state_that_a_loop_makes_anew_is_made_before_it():
    torch.manual_seed(0)
    f = next(o for o in found(model=Forgets(), dls=batches(), loss_func=nll) if o.id == 'R5')
    assert f.fix.splitlines()[0].startswith('h = self.begin(len(x))') and 'h = self.begin' in f.place.source


def by_part(o, by_order):
    itos = [*dict.fromkeys(o)] if by_order else sorted({*o})
    return torch.tensor([itos.index(c) for c in o])


@pytest.mark.parametrize('by_order', [False, True])
def test_parts_that_number_their_own_symbols(by_order):
    train,valid = TEXT[:20_000],TEXT[20_000:]
    dls = loaders(by_part(train, by_order), by_part(valid, by_order))
    assert [o.id for o in found(model=Net(), dls=dls, loss_func=nll)] == ['D7']
    small = [symbols.index(c) for c in valid.lower()]
    said = found(model=Net(), dls=loaders(ids[:20_000], torch.tensor(small)), loss_func=nll)
    assert not any(o.id == 'D7' for o in said) # of one table, and other letters


@pytest.mark.parametrize('target', ['drawn apart', 'backwards', 'as in the text'])
def test_targets_that_have_nothing_to_do_with_the_inputs(target):
    gen = random.Random(0)
    def draw():
        i,j = gen.randrange(len(ids)-41),gen.randrange(len(ids)-41)
        x,y = ids[i:i+40],ids[i+1:i+41]
        return x,dict(zip(('drawn apart', 'backwards', 'as in the text'), (ids[j:j+40], x.flip(0), y)))[target]
    rows = [draw() for _ in range(320)]
    drawn = [tuple(map(torch.stack, zip(*rows[i:i+16]))) for i in range(0, 320, 16)]
    said = found(model=Net(), dls=drawn, loss_func=nll)
    assert any(o.id == 'S4' for o in said) == (target == 'drawn apart')


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_probabilities_that_are_picked_by_hand_and_run_along_another_axis(axis):
    def loss(scores, y): return -scores.log_softmax(axis).gather(2, y[...,None]).mean()
    assert [o.id for o in found(model=Net(), dls=batches(), loss_func=loss)] == ['S9']*(axis < 2)


class Cells(nn.Module):
    "An LSTM's cell in a loop, with the line that is told once that is known"
    line = 'c, h = self.cell(x, (h, c))'
    def __init__(self):
        super().__init__()
        self.emb,self.cell,self.out = nn.Embedding(V, 24),nn.LSTMCell(24, 24),nn.Linear(24, V)
    def forward(self, ids):
        h = c = torch.zeros(len(ids), 24)
        res = []
        for x in self.emb(ids).unbind(1):
            if self.line == 'c, h = self.cell(x, (h, c))':
                c, h = self.cell(x, (h, c))
            else:
                names = dict(self=self, x=x, h=h, c=c)
                exec(self.line, names)
                h,c = names['h'],names['c']
            res.append(self.out(h))
        return torch.stack(res, 1)


def test_states_of_an_lstm_that_change_places():
    torch.manual_seed(0)
    net = Cells()
    f, = found(model=net, dls=batches(), loss_func=nll)
    assert (f.id, f.certainty, f.fix) == ('S7', 'exact', 'h, c = self.cell(x, (h, c))')
    net.line = f.fix
    assert not found(model=net, dls=batches(), loss_func=nll)


def scaled(unscales):
    net = Net()
    opt,scaler = torch.optim.SGD(net.parameters(), 1.),torch.amp.GradScaler('cpu')
    def step(x, y):
        opt.zero_grad()
        scaler.scale(nll(net(x), y)).backward()
        if unscales: scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        scaler.step(opt)
        scaler.update()
    return dict(step_function=step, model=net, batches=batches())


@pytest.mark.parametrize('unscales', [False, True])
def test_gradients_that_are_clipped_while_they_are_scaled(unscales):
    torch.manual_seed(0)
    assert [(o.id, o.fix.partition('   #')[0]) for o in found(**scaled(unscales))] == [('O14', 'scaler.unscale_(opt)')]*(not unscales)


def test_a_loss_in_place_of_one_that_smooths_nearly_all_can_be_pasted():
    def smooth(p, y, eps=.9):
        logp = p.log_softmax(-1)
        return ((eps-1)*logp.gather(-1, y[...,None])[...,0] - eps*logp.mean(-1)).mean()
    torch.manual_seed(0)
    net = Net()
    f, = found(model=net, dls=batches(), loss_func=smooth)
    here = dict(F=F)
    exec(f.fix, here)
    assert f.id == 'L8' and not [o for o in found(model=net, dls=batches(), loss_func=here['loss_func']) if o.certainty != 'weak']


@pytest.mark.parametrize('power', [1, -1])
def test_weights_of_classes_are_compared_with_many_batches(power):
    weight = torch.bincount(ids, minlength=V).float()**power
    crit = nn.CrossEntropyLoss(weight=weight/weight.mean())
    said = found(model=Net(), dls=batches(20), loss_func=lambda p,y: crit(p.flatten(0, 1), y.flatten()))
    assert [o.title for o in said if o.id == 'L5'] == ['The class weights are upside down']*(power > 0)
