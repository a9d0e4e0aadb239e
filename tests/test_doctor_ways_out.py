"""Ways out that were wrong, and faults that steps make with what they fetch or pass by themselves"""
import io

import pytest
from fastai.basics import Callback, DataLoaders, F, Learner, nn, torch
from fastai.callback.schedule import ParamScheduler, SchedLin

from charrnn_fa import doctor
from charrnn_fa.doctor.watch import Doctor
from charrnn_fa.learner import char_learner
from charrnn_fa.text.data import CharDataLoaders
from test_doctor_reading import V, text, windows


def report(**kwargs): return doctor.diagnose(**{'trials':False, 'seconds':600, **kwargs})


def found(**kwargs): return [(o.id, o.certainty) for o in report(**kwargs).findings]


def over_all(p, y): return F.cross_entropy(p.flatten(0, 1), y.flatten())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(V, 16),nn.GRU(16, 32, batch_first=True),nn.Linear(32, V)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


def watched(fit, n=120):
    "What a Doctor says of the fits of a Learner"
    torch.manual_seed(0)
    dr = Doctor(quiet=True, file=io.StringIO())
    learn = Learner(DataLoaders(windows(n, 4, 8), windows(2, 4, 8)), Net(), over_all, cbs=dr)
    with learn.no_bar(), learn.no_logging(): fit(learn)
    return [o.id for o in dr.findings]


def rises(learn): learn.fit(1, cbs=ParamScheduler({'lr':SchedLin(1e-5, 1e-2)}))


class Rises(Callback):
    "By hand, up to the last steps"
    def before_batch(self): self.opt.set_hyper('lr', 1e-4*(self.train_iter+1) if self.train_iter < 115 else 1e-5)


@pytest.mark.parametrize('fit,want', [
    (lambda learn: learn.fine_tune(1, 3e-3), []),
    (lambda learn: learn.fit(1, cbs=Rises()), []),
    (rises, ['O10']),
    (lambda learn: learn.fit_one_cycle(1, 3e-3, pct_start=1.), ['O10']),
])
def test_a_schedule_that_comes_down_at_its_end(fit, want): assert watched(fit) == want


def test_a_rate_below_zero_is_no_schedule():
    "fastai takes it, and the loss goes up; the line that is given mends it"
    learn = Learner(DataLoaders(windows(70, 4, 8), windows(2, 4, 8)), Net(), over_all, lr=-1e-2)
    f, = (o for o in report(learn=learn, trials=True).findings if o.id == 'O10')
    assert f.certainty == 'exact' and f.message.startswith('The learning rate is -0.01, below 0'), f
    exec(f.fix)
    assert not any(o.id == 'O10' for o in report(learn=learn).findings)


def test_a_batch_that_is_larger_than_what_there_is_gets_a_size_that_fits():
    rows = windows(1, 30, 8)[0]
    made = lambda bs: DataLoaders.from_dsets([*zip(*rows)], [*zip(*rows)], bs=bs)
    f, = report(learn=Learner(made(64), Net(), over_all)).findings
    assert (f.id, f.evidence['items']) == ('D10', 30) and '30 items' in f.message
    exec(f.fix, given := {})
    assert 'D10' not in [o.id for o in report(learn=Learner(made(given['bs']), Net(), over_all)).findings]


def with_another_model(learn, made=False):
    learn.fit(1, 1e-3)
    learn.model = Net()
    if made: learn.create_opt()
    learn.fit(1, 1e-3)


@pytest.mark.parametrize('made,want', [(False, ['O7']), (True, [])])
def test_another_model_in_a_learner(made, want): assert watched(lambda learn: with_another_model(learn, made)) == want


class FromNothing(Net):
    "Divides by the length of a state that is 0 at first"
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(16))
    def forward(self, x):
        n = self.first/((self.first*self.first).sum().sqrt() + 1e-6)
        return self.out(self.rnn(self.emb(x) + n)[0])


def clipped(net, opt, early=False):
    def step(x, y):
        opt.zero_grad()
        over_all(net(x), y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        opt.step()
    def too_early(x, y):
        opt.zero_grad()
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        over_all(net(x), y).backward()
        opt.step()
    return too_early if early else step


@pytest.mark.parametrize('cls,early,want', [(FromNothing, False, 'O4'), (Net, True, 'O9'), (Net, False, None)])
def test_gradients_that_are_no_numbers_are_not_long(cls, early, want):
    torch.manual_seed(0)
    net = cls()
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    res = found(model=net, opt=opt, step_function=clipped(net, opt, early), batches=windows(), trials=want == 'O4')
    assert [i for i,_ in res] == [want]*bool(want)


class Guesses(nn.Module):
    "Goes on from its own guess now and then"
    def __init__(self, p):
        super().__init__()
        self.emb,self.cell,self.out,self.p = nn.Embedding(V, 16),nn.GRUCell(16, 32),nn.Linear(32, V),p
    def forward(self, x, own=0.):
        h,res = torch.zeros(len(x), 32),[]
        for i in x.unbind(1):
            if own and res: i = torch.where(torch.rand(len(x)) < own, res[-1].detach().argmax(1), i)
            h = F.dropout(self.cell(self.emb(i), h), self.p)
            res.append(self.out(h))
        return torch.stack(res, 1)


@pytest.mark.parametrize('p,want', [(.2, [('T1', 'exact')]), (0., [])])
def test_a_probability_that_only_the_training_step_passes(p, want):
    torch.manual_seed(0)
    net = Guesses(p)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, y):
        opt.zero_grad()
        over_all(net(x, own=.1), y).backward()
        opt.step()
    assert found(model=net, opt=opt, step_function=step, batches=windows()) == want


def trained(net, opt, loss_of):
    "A training step, with the targets as `loss_of` takes them"
    def step(x, y):
        opt.zero_grad()
        loss_of(net(x), y).backward()
        opt.step()
    return step


def own_batches(step):
    "The same, of a step that fetches its batches"
    at = [0]
    def fetched():
        at[0] += 1
        return step(*windows()[at[0] % 8])
    return fetched


@pytest.mark.parametrize('loss_of,given,own', [
    (lambda p, y: over_all(p[:,:-1], y[:,1:]), [('D2', 'exact')], [('D2', 'exact')]),
    (lambda p, y: F.cross_entropy(p[:,:-1].mT, y[:,1:]), [('D2', 'exact')], [('D2', 'exact')]),
    (lambda p, y: over_all(p[:,1:], y[:,1:]), [], []),
    (lambda p, y: over_all(p, y.roll(-1, 1)), [('D2', 'exact')], [('D2', 'exact')]),
    (lambda p, y: over_all(p, y.roll(1, 1)), [('D1', 'exact')], [('D1', 'exact')]),
    (lambda p, y: over_all(p, y.roll(2, 1)), [('D2', 'exact')], [('D2', 'weak')]),
    (lambda p, y: over_all(p.transpose(0, 1), y), [('S3', 'exact')], None),
])
def test_a_step_that_moves_its_targets(loss_of, given, own):
    "Whether its batches are given or it fetches them"
    torch.manual_seed(0)
    net = Net()
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    step = trained(net, opt, loss_of)
    assert found(model=net, opt=opt, step_function=step, batches=windows()) == given
    if own is not None: assert found(model=net, opt=opt, step_function=own_batches(step)) == own


def test_a_step_that_makes_its_targets_of_what_it_fetches():
    torch.manual_seed(0)
    net = Net()
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    step = trained(net, opt, lambda p, x: over_all(p[:,:-1], x[:,1:]))
    assert found(model=net, opt=opt, step_function=own_batches(lambda x, y: step(x, x))) == []


class Mixed(Net):
    "A view in place of a transpose, and dropout"
    def forward(self, x):
        h = self.emb(x).view(x.shape[1], x.shape[0], -1).transpose(0, 1)
        return self.out(F.dropout(self.rnn(h)[0], .5, self.training))


def test_rows_that_are_mixed_are_no_norm_where_there_is_dropout():
    torch.manual_seed(0)
    net = Mixed()
    assert (found(model=net, dls=windows(), loss_func=over_all, opt=torch.optim.Adam(net.parameters(), 3e-3))
            == [('S4', 'exact')])


class GuessesHalf(Guesses):
    "The same, half of the time if nothing is said"
    def forward(self, x, own=.5): return super().forward(x, own)


@pytest.mark.parametrize('p,want', [(.2, [('T1', 'exact')]), (0., [])])
def test_a_probability_that_is_a_default(p, want):
    torch.manual_seed(0)
    net = GuessesHalf(p)
    assert found(model=net, dls=windows(), loss_func=over_all, opt=torch.optim.Adam(net.parameters(), 3e-3)) == want


class Forbids(Net):
    "A symbol for padding, which is never predicted"
    def __init__(self, how):
        super().__init__()
        self.out,self.how = nn.Linear(32, V+1),how
    def forward(self, x): return super().forward(x).masked_fill(torch.arange(V+1) == V, self.how)


@pytest.mark.parametrize('how', [-torch.inf, -1e9])
def test_a_symbol_that_is_forbidden(how):
    torch.manual_seed(0)
    net = Forbids(how)
    assert found(model=net, dls=windows(), loss_func=over_all, opt=torch.optim.Adam(net.parameters(), 3e-3)) == []


@pytest.mark.filterwarnings('ignore:.torch.nn.utils.weight_norm. is deprecated')
@pytest.mark.parametrize('norm', [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_are_made_of_others_are_no_state(norm):
    def fit(learn):
        learn.model.out = norm(learn.model.out)
        learn.create_opt()
        learn.fit(2, 3e-3)
    assert watched(fit, 12) == []


@pytest.mark.parametrize('max_size,want', [(6, [('D8', 'exact')]), (None, [])])
def test_a_mark_for_the_unknown_is_no_damage(max_size, want):
    letters = ''.join('abcde FGH'[i] for i in text.tolist())
    dls = CharDataLoaders.from_text(letters, bs=8, seq_len=16, seed=1, max_size=max_size)
    assert found(learn=char_learner(dls, n_hid=16, emb_sz=8, n_layers=1, precision='fp32', seed=1)) == want


class Letters(torch.utils.data.Dataset):
    "Pieces of a text, with a table of its own or of another"
    def __init__(self, s, itos=None):
        self.itos = itos or sorted(set(s))
        self.ids = torch.tensor([self.itos.index(c) for c in s])
    def __len__(self): return len(self.ids)//20 - 1
    def __getitem__(self, i): return self.ids[i*20:i*20+20],self.ids[i*20+1:i*20+21]


@pytest.mark.parametrize('is_one,want', [(False, [('D7', 'strong')]), (True, [])])
def test_two_data_sets_with_a_table_each(is_one, want):
    letters = ''.join('abcdefghi'[i] for i in text.tolist())
    train = Letters(letters[:5000])
    valid = torch.utils.data.Subset(Letters(letters[5000:].replace('b', 'a'), train.itos if is_one else None), range(40))
    dls = [torch.utils.data.DataLoader(o, batch_size=8, drop_last=True) for o in (train, valid)]
    net = Net()
    assert found(model=net, dls=dls, loss_func=over_all, opt=torch.optim.Adam(net.parameters(), 3e-3)) == want


def made(net, opt_func=torch.optim.Adam, lr=3e-3):
    return dict(model=net, dls=windows(), loss_func=over_all, opt=opt_func(net.parameters(), lr))


def fix(**kwargs): return report(**kwargs).findings[0].fix


class Cells(Net):
    "A cell that goes along an axis, and may be given its state"
    def __init__(self, kind=nn.GRUCell, axis=1, goes_on=True):
        super().__init__()
        self.rnn,self.kind,self.axis,self.goes_on = kind(16, 32),kind,axis,goes_on
    def forward(self, x):
        state,res = None,[]
        for e in self.emb(x).unbind(self.axis):
            state = self.rnn(e, state if self.goes_on else None)
            res.append(state[0] if self.kind is nn.LSTMCell else state)
        return self.out(torch.stack(res, self.axis))


@pytest.mark.parametrize('axis,goes_on,kind,want', [
    (0, True, nn.GRUCell, 'for x_t in x.unbind(1)'),
    (1, False, nn.LSTMCell, 'state = None   # once, before all steps\nh,c = state = self.rnn(x_t, state)'),
    (1, False, nn.GRUCell, 'state = None   # once, before all steps\nstate = self.rnn(x_t, state)'),
])
def test_what_mends_a_cell(axis, goes_on, kind, want):
    assert fix(**made(Cells(kind, axis, goes_on))).startswith(want)
    assert found(**made(Cells(kind))) == []


class Convolved(Net):
    "A convolution first, that may be padded in front alone"
    def __init__(self, is_even):
        super().__init__()
        self.conv,self.is_even = nn.Conv1d(16, 16, 3, padding=is_even),is_even
    def forward(self, x):
        h = self.emb(x).transpose(1, 2)
        h = self.conv(h) if self.is_even else self.conv(F.pad(h, (2, 0)))
        return self.out(self.rnn(h.transpose(1, 2))[0])


def test_what_mends_a_padded_convolution():
    assert fix(**made(Convolved(1))).startswith('h = self.conv(F.pad(h, (2, 0)))')
    assert found(**made(Convolved(0))) == []


def test_what_opens_a_forget_gate():
    "However its two biases were closed"
    net = Net()
    net.rnn = nn.LSTM(16, 32, 2, batch_first=True)
    for k,p in net.rnn.named_parameters():
        if 'bias' in k: p.data[32:64] = -3.
    f, = report(**made(net)).findings
    assert f.id == 'R10'
    exec(f.fix, dict(model=net))
    assert found(**made(net)) == []


def test_what_mends_a_weight_of_nothing():
    net,weight = Net(),torch.ones(V)
    weight[1] = 0.
    f, = report(**{**made(net), 'loss_func':lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten(), weight)}).findings
    assert (f.id, 'weight' in f.message, 'ignore_index' in f.fix) == ('L5', True, False)


def rate_at(i): return 3e-3


def test_what_mends_a_schedule_that_gives_a_rate():
    torch.manual_seed(0)
    net = Net()
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, rate_at)
    def step(x, y):
        opt.zero_grad()
        over_all(net(x), y).backward()
        opt.step()
        scheduler.step()
    f = report(model=net, opt=opt, step_function=step, batches=windows(), trials=True).findings[0]
    assert (f.id, f.place) == ('O2', None) and 'LambdaLR(opt, lambda i: rate_at(i)/0.003)' in f.fix


def test_what_mends_an_optimiser_of_a_learner():
    learn = Learner(DataLoaders(windows(), windows(2)), Net(), over_all)
    learn.create_opt()
    learn.model.rnn = nn.GRU(16, 32, 2, batch_first=True)
    assert fix(learn=learn).startswith('learn.create_opt()')


def test_what_mends_steps_that_never_come():
    net,every = Net(),8
    opt = torch.optim.SGD(net.parameters(), 1.)
    def step(x, y):
        over_all(net(x), y).backward()
        if 1 % every == 0: opt.step()
    assert '% every == 0' in fix(model=net, opt=opt, step_function=step, batches=windows())


large = Net()
large.out.weight.data *= 60


def test_a_model_is_called_as_its_file_calls_it():
    "Also where nothing that is given speaks of it"
    asked = dict(model=large, dls=windows(), loss_func=over_all)
    namespace = dict(diagnose=doctor.diagnose, asked=asked)
    exec('res = diagnose(**asked, trials=False)', namespace)
    assert 'large.out.weight' in namespace['res'].findings[0].fix


def test_all_names_of_weights_are_of_the_model():
    net = Net()
    for p in net.parameters(): p.data.fill_(.1)
    assert 'model.emb.weight, model.out.weight' in fix(**made(net))


def test_a_state_in_a_list_that_is_empty_at_first():
    "When the error comes it is empty again"
    torch.manual_seed(0)
    net,state = Net(),[None]
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    def step(x, y):
        out,state[0] = net.rnn(net.emb(x), state[0])
        opt.zero_grad()
        over_all(net.out(out), y).backward()
        opt.step()
    f, = report(model=net, opt=opt, step_function=step, batches=windows()).findings
    assert (f.id, f.fix) == ('R2', 'state[:] = [o.detach() for o in state]')


class ByHand(nn.Module):
    "A cell that goes along the second axis"
    def __init__(self):
        super().__init__()
        self.emb,self.cell,self.out = nn.Embedding(V, 16),nn.GRUCell(16, 32),nn.Linear(32, V)
    def forward(self, x):
        h,hs = torch.zeros(len(x), 32),[]
        for i in x.unbind(1): hs.append(h := self.cell(self.emb(i), h))
        return self.out(torch.stack(hs, 1))


@pytest.mark.parametrize('cls,fix', [(Net, 'batch_first=False'), (ByHand, 'x.unbind(0)')])
def test_batches_whose_steps_come_first(cls, fix):
    "A recurrence along the second axis would be right for others"
    torch.manual_seed(0)
    net = cls()
    f, = report(model=net, dls=[(x.T, y.T) for x,y in windows()], loss_func=over_all, opt=torch.optim.Adam(net.parameters(), 3e-3)).findings
    assert f.id == 'S5' and fix in f.fix


@pytest.mark.parametrize('loss', [lambda p, y: F.mse_loss(p[...,0], y.float()), lambda p, y: F.l1_loss(p, y[...,None].float())])
def test_one_number_for_each_symbol_is_no_vector_of_classes(loss):
    torch.manual_seed(0)
    net = Net()
    net.out = nn.Linear(32, 1)
    f, = report(model=net, dls=windows(), loss_func=loss, opt=torch.optim.Adam(net.parameters(), 3e-3)).findings
    assert f.id == 'L4' and 'several characters' in f.message and f.fix.endswith('y.flatten())')
    assert 'nn.Linear(32, n_symbols)' in f.fix
