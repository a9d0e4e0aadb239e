"""Programs with the habits of other tutorials: averaged copies, packed names, trainers that are called, tables by part"""
import ast
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
    fix = ast.unparse(ast.parse('h, c = self.cell(x, (h, c))')) # Python 3.10 puts brackets around a pair
    assert (f.id, f.certainty, f.fix) == ('S7', 'exact', fix)
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


def writer(choose=lambda p, i: i, encode=symbols.index, decode=symbols.__getitem__):
    "What writes with a network, and lets a choice of its own go in"
    @torch.no_grad()
    def sample(model, prompt, n):
        h,out,x = None,prompt,torch.tensor([[encode(c) for c in prompt]])
        for _ in range(n):
            o,h = model(x, h)
            p = o[0,-1].softmax(-1)
            i = torch.multinomial(p, 1).item()
            x,out = torch.tensor([[choose(p, i)]]),out+decode(i)
        return out
    return sample


class WithState(Net):
    def forward(self, x, h=None):
        o,h = self.rnn(self.emb(x), h)
        return self.out(o),h


def of_one_text(net, opt, loss=nll):
    "A training step that cuts inputs and targets from one text"
    def step(b):
        value = loss(net(b[:,:-1])[0], b[:,1:])
        opt.zero_grad()
        value.backward()
        opt.step()
        return value.item()
    return step


other_table = dict(encode=lambda c: (symbols.index(c)+5) % V, decode=lambda i: symbols[(i-5) % V])


@pytest.mark.parametrize('how,want', [({}, []), (dict(choose=lambda p, i: p.argmax().item()), ['G3']), (other_table, ['G4'])])
def test_what_is_written_with_a_network_that_learns_from_one_text(how, want):
    "Its loader gives no targets, but the text says which numbers it gave to characters"
    torch.manual_seed(0)
    net = WithState()
    opt = torch.optim.Adam(net.parameters(), 5e-3)
    rows,step = ids.unfold(0, 41, 40),of_one_text(net, opt)
    for b in rows.split(16): step(b)
    given = dict(step_function=step, batches=list(rows.split(16)[:5]), text=TEXT)
    assert [o.id for o in found(**given, sample=writer(**how))] == want


def test_a_mask_by_hand_that_gives_padding_the_id_of_a_rare_letter():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(V+1, 32, padding_idx=V), nn.Linear(32, V))
    rnn = nn.GRU(32, 32, batch_first=True)
    def scores(x): return net[1](rnn(net[0](x))[0])
    opt = torch.optim.Adam([*net.parameters(), *rnn.parameters()], 3e-3)
    def step(b):
        y,is_real = b[:,1:].clamp(max=V-1),(b[:,1:] != V).float()
        each = F.cross_entropy(scores(b[:,:-1]).transpose(1, 2), y, reduction='none')
        loss = (each*is_real).sum()/is_real.sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    lines = [ids[i:i+n].clamp(max=V-2) for i,n in enumerate((12, 20, 30)*16)]
    for i,o in enumerate(lines[15:]): o[i % 7 + 2] = V-1
    rows = pad_sequence(lines, batch_first=True, padding_value=V)
    assert found(step_function=step, batches=list(rows.split(12))) == []


@pytest.mark.parametrize('adds_up,want', [(True, []), (False, ['L6'])])
def test_a_loss_that_is_made_anew_in_a_loop_over_one_text(adds_up, want):
    torch.manual_seed(0)
    net = WithState()
    def over_letters(o, y):
        total = 0.
        for t in range(y.shape[1]):
            loss = F.cross_entropy(o[:,t], y[:,t])
            total = total + loss/y.shape[1]
        return total if adds_up else loss
    step = of_one_text(net, torch.optim.Adam(net.parameters(), 3e-3), over_letters)
    assert [o.id for o in found(step_function=step, batches=list(ids.unfold(0, 17, 16).split(16)[:5]))] == want


def test_a_state_that_explodes_is_no_shift():
    "Scores of the last steps are so large that what the first characters change is as nothing beside them"
    torch.manual_seed(0)
    net = WithState()
    net.rnn = nn.RNN(24, 48, nonlinearity='relu', batch_first=True)
    nn.init.normal_(net.rnn.weight_hh_l0, std=.4)
    said = found(step_function=of_one_text(net, torch.optim.SGD(net.parameters(), .1)), batches=list(ids.unfold(0, 41, 40).split(16)[:5]))
    assert said and 'D2' not in [o.id for o in said]


class Keeps(Net):
    "Its state is an attribute"
    h = None
    def forward(self, x):
        o,h = self.rnn(self.emb(x), self.h)
        self.h = h.detach()
        return self.out(o)


def test_a_state_that_validation_takes_over_in_the_step():
    torch.manual_seed(0)
    net,streams = Keeps(),ids[:16_000].view(16, -1)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, y):
        loss = nll(net(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        with torch.no_grad(): net(streams[:,-400:])
        return loss.item()
    pieces = [(streams[:,i:i+25], streams[:,i+1:i+26]) for i in range(0, 250, 25)]
    assert [o.id for o in found(step_function=step, batches=pieces)] == ['R6']


def test_a_closure_for_an_optimiser_that_asks_more_than_once():
    "What a function within the step speaks of is spoken of by the step"
    assert found(step_function=step_with_closure, batches=batches(4)) == []


of_closure = Net()
lbfgs = torch.optim.LBFGS(of_closure.parameters(), lr=.5, max_iter=3)


def step_with_closure(x, y):
    def closure():
        lbfgs.zero_grad()
        loss = nll(of_closure(x), y)
        loss.backward()
        return loss
    return lbfgs.step(closure).item()


def test_an_averaged_network_is_not_what_is_trained():
    torch.manual_seed(0)
    net = Net()
    mean,opt = torch.optim.swa_utils.AveragedModel(net),torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, y):
        loss = nll(net(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        mean.update_parameters(net)
        return loss.item()
    assert found(step_function=step, batches=batches(4)) == []


def pieces_of(order, n=26):
    "Batches of one text: streams that go on, with or without a character between, rows in any order, or one after the other"
    if order in ('go on', 'leave one out'):
        streams,step = ids[:16_000].view(16, -1),25 if order == 'go on' else 26
        return [streams[:,i:i+n] for i in range(0, 10*step, step)]
    rows = ids.unfold(0, n, n-1)
    if order == 'any': rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return list(rows[:160].split(16))


@pytest.mark.parametrize('time_first', [False, True])
@pytest.mark.parametrize('order,want', [('go on', []), ('leave one out', []), ('any', ['D4']), ('down', ['D5'])])
def test_a_state_that_is_carried_over_batches_of_one_text(order, want, time_first):
    torch.manual_seed(0)
    net = Keeps()
    net.rnn.batch_first = not time_first
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(b):
        x,y = (b[:-1], b[1:]) if time_first else (b[:,:-1], b[:,1:])
        loss = nll(net(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    batches = [b.T.contiguous() if time_first else b for b in pieces_of(order)]
    assert [o.id for o in found(step_function=step, batches=batches)] == want


@pytest.mark.parametrize('zeroed,want', [((0, 1), None), ((1,), 'of_body.zero_grad()'), ((0,), 'of_head.zero_grad()')])
def test_gradients_of_one_of_two_optimisers_that_add_up(zeroed, want):
    torch.manual_seed(0)
    net = Net()
    of_body = torch.optim.Adam([*net.emb.parameters(), *net.rnn.parameters()], 3e-3)
    of_head = torch.optim.Adam(net.out.parameters(), 3e-3)
    def step(x, y):
        for k in zeroed: (of_body, of_head)[k].zero_grad()
        nll(net(x), y).backward()
        of_body.step()
        of_head.step()
    said = found(step_function=step, batches=batches(4))
    assert [o.id for o in said] == ['O6']*bool(want) and all(o.fix.startswith(want) for o in said), said


def test_weights_that_a_step_loads_anew_are_no_bounds_of_scores():
    torch.manual_seed(0)
    net = Net()
    opt,first = torch.optim.Adam(net.parameters(), 3e-3),deepcopy(net.state_dict())
    def step(x, y):
        net.load_state_dict(first)
        loss = nll(net(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()
    assert [o.id for o in found(step_function=step, batches=batches(4))] == ['O8']


def test_scores_of_one_text_that_are_flattened_step_by_step():
    torch.manual_seed(0)
    net = WithState()
    net.rnn.batch_first = False
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def by_step(b):
        o = net.out(net.rnn(net.emb(b[:,:-1].T))[0])
        loss = F.cross_entropy(o.reshape(-1, V), b[:,1:].reshape(-1))
        loss.backward()
        opt.step()
        opt.zero_grad()
        return loss.item()
    said = found(step_function=by_step, model=net, batches=list(ids.unfold(0, 41, 40).split(16)[:5]))
    assert [o.id for o in said] == ['S3']


class OfWindows(nn.Module):
    "The letter after a window, from one-hot vectors"
    def __init__(self):
        super().__init__()
        self.lstm,self.dense = nn.LSTM(V, 48, batch_first=True),nn.Linear(48, V)
    def forward(self, x): return self.dense(self.lstm(x)[1][0][-1])


def test_one_hot_targets_of_one_class_for_each_row():
    "They are no rows of ids that are 0 or 1, most of which are left out"
    torch.manual_seed(0)
    net,vectors = OfWindows(),F.one_hot(ids, V).float()
    starts = torch.arange(0, 1536, 3).split(128)
    given = [(torch.stack([vectors[i:i+30] for i in o]), vectors[o+30]) for o in starts]
    opt = torch.optim.RMSprop(net.parameters(), lr=5e-3)
    assert not found(model=net, dls=given, loss_func=nn.CrossEntropyLoss(), opt=opt)


class WithStart(Net):
    "The state begins with what relu makes of zeros"
    def forward(self, x):
        start = F.relu(torch.zeros(1, len(x), 48)) + .5
        return self.out(self.rnn(self.emb(x), start)[0])


def test_a_constant_is_no_unit_that_is_off():
    torch.manual_seed(0)
    net = WithStart()
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    assert not found(model=net, dls=batches(), loss_func=nll, opt=opt)


class Autoencoder(Net):
    "A text goes through one state, and is written again from there"
    def __init__(self):
        super().__init__()
        self.enc,self.code,self.start = nn.GRU(24, 32, batch_first=True),nn.Linear(32, 16),nn.Linear(16, 48)
    def forward(self, x):
        h = torch.tanh(self.start(self.code(self.enc(self.emb(x))[1])))
        return self.out(self.rnn(self.emb(x[:,:-1]), h)[0])


def test_an_autoencoder_may_see_what_it_is_to_say():
    torch.manual_seed(0)
    net = Autoencoder()
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    def step(x):
        loss = F.cross_entropy(net(x).flatten(0, 1), x[:,1:].flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    assert not found(step_function=step, model=net, opt=opt, batches=[x for x,_ in batches()])


class OfAKind(nn.Module):
    "Scores of a text of some kind, which is read first"
    def __init__(self, batch_first):
        super().__init__()
        self.kind,self.emb,self.out = nn.Embedding(3, 24),nn.Embedding(V, 24),nn.Linear(48, V)
        self.rnn = nn.GRU(24, 48, batch_first=batch_first)
    def forward(self, kind, x): return self.out(self.rnn(self.emb(x) + self.kind(kind)[:,None])[0])


@pytest.mark.parametrize('is_learner', [True, False])
@pytest.mark.parametrize('batch_first,wanted', [(True, []), (False, ['S5'])])
def test_the_text_may_be_the_second_input(batch_first, wanted, is_learner):
    torch.manual_seed(0)
    net,kinds = OfAKind(batch_first),torch.arange(16) % 3
    given = [(kinds, x, y) for x,y in batches()]
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    if not is_learner: return assert_ids(found(model=net, dls=given, loss_func=nll, opt=opt), wanted)
    rows = [(k, x, y) for ks,xs,ys in given for k,x,y in zip(ks, xs, ys)]
    dls = DataLoaders(DataLoader(rows, bs=16, n_inp=2), DataLoader(rows[:16], bs=16, n_inp=2))
    assert_ids(found(learn=Learner(dls, net, loss_func=nll, lr=3e-3)), wanted)


def assert_ids(findings, wanted): assert [o.id for o in findings if o.id != 'D6'] == wanted


class ReadsItself(nn.Module):
    "Some of the letters that it reads are those that it holds for likeliest"
    def __init__(self):
        super().__init__()
        self.emb,self.cell,self.drop = nn.Embedding(V, 24),nn.GRUCell(24, 48),nn.Dropout(.3)
        self.out = nn.Linear(48, V)
    def forward(self, x, share=0.):
        h,res = torch.zeros(len(x), 48),[]
        for c in x.T:
            if res: c = torch.where(torch.rand(len(c)) < share, res[-1].argmax(-1), c)
            h = self.cell(self.emb(c), h)
            res.append(self.out(self.drop(h)))
        return torch.stack(res, 1)


@pytest.mark.parametrize('mode,wanted', [(True, []), (False, ['T2'])])
def test_letters_of_its_own_do_not_hide_the_mode(mode, wanted):
    torch.manual_seed(0)
    net = ReadsItself()
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, y):
        net.train(mode)
        opt.zero_grad()
        loss = nll(net(x, .2), y)
        loss.backward()
        opt.step()
        return loss
    assert_ids(found(step_function=step, model=net, opt=opt, batches=batches()), wanted)
