"""The doctor on networks that give amounts, or one answer a row: healthy, and with one fault"""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from charrnn_fa.doctor.diagnose import diagnose

torch.manual_seed(0)
WAVE = torch.sin(torch.arange(900)/4) + .4*torch.cos(torch.arange(900)/1.7)
STEPS = 14


def pieces(n=24, steps=STEPS, n_batches=6, target=lambda y: y):
    "Series, (rows, steps, 1), and the value after each, (rows,)"
    order = torch.randperm(800, generator=torch.Generator().manual_seed(0))
    rows = order[:n*n_batches].view(n_batches, n).tolist()
    return [(torch.stack([WAVE[i:i+steps] for i in r])[...,None], target(torch.stack([WAVE[i+steps] for i in r])))
            for r in rows]


def column(y): return y[:,None]


def is_positive(y): return (y > 0).float()[:,None]


class Forecast(nn.Module):
    "A recurrent layer, and one number"
    def __init__(self, last=lambda p: p, cls=nn.GRU):
        super().__init__()
        self.layer,self.head,self.last = cls(1, 16, batch_first=True),nn.Linear(16, 1),last
    def forward(self, series): return self.last(self.head(self.layer(series)[0][:,-1]))


def given(model, batches, loss=nn.MSELoss()):
    return dict(model=model, dls=batches, loss_func=loss, opt=torch.optim.Adam(model.parameters(), lr=3e-3))


def written(model, batches, loss):
    "The same with a training step of one's own"
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    def train(series, wanted):
        opt.zero_grad()
        guess = model(series)
        cost = loss(guess, wanted)
        cost.backward()
        opt.step()
    return dict(step_function=train, model=model, batches=batches)


def said(program): return diagnose(**program, trials=False).findings


def exact(program): return [o.id for o in said(program) if o.certainty == 'exact']


def mean_square(p, y): return ((p-y)**2).mean()


@pytest.mark.parametrize('loss', [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), mean_square])
def test_each_prediction_meets_all_targets(loss):
    first = said(given(Forecast(), pieces(), loss))[0]
    assert first.id == 'S3' and first.certainty == 'exact' and '(24, 1)' in first.message
    assert exact(given(Forecast(), pieces(target=column), loss)) == []


def test_all_targets_in_own_names():
    first = said(written(Forecast(), pieces(), nn.MSELoss()))[0]
    assert first.fix.startswith('wanted = wanted[:, None] ')
    first = said(written(Forecast(lambda p: p[:,0]), pieces(target=column), nn.MSELoss()))[0]
    assert first.fix.startswith('wanted = wanted.squeeze(-1) ')


@pytest.mark.parametrize('loss', [
    lambda p,y: 2*(p-y).abs().mean() - (p-p.T).abs().mean(), # of distributions
    lambda p,y: F.mse_loss(p-p.T, y[:,None]-y[None]), # of pairs
    lambda p,y: mean_square(p.squeeze(), y), lambda p,y: F.mse_loss(p, y.unsqueeze(1)),
])
def test_pairs_on_purpose(loss): assert exact(given(Forecast(), pieces(), loss)) == []


@pytest.mark.parametrize('last', [torch.sigmoid, torch.tanh])
def test_squashed_before_a_loss_with_logits(last):
    first = said(given(Forecast(last), pieces(target=is_positive), nn.BCEWithLogitsLoss()))[0]
    assert (first.id, first.certainty) == ('L1', 'exact') and first.evidence['floor'] > .3


def test_the_floor_is_that_of_the_best_scores():
    batches = pieces(target=is_positive)
    first = said(given(Forecast(torch.sigmoid), batches, nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.]))))[0]
    best = F.binary_cross_entropy_with_logits(batches[0][1], batches[0][1], pos_weight=torch.tensor([3.]))
    assert abs(first.evidence['floor']-best) < 1e-3


@pytest.mark.parametrize('last,loss', [
    (lambda p: p, nn.BCEWithLogitsLoss()), (torch.sigmoid, nn.BCELoss()), (lambda p: 12*p.tanh(), nn.BCEWithLogitsLoss()),
    (lambda p: p.clamp(-5, 5), nn.BCEWithLogitsLoss()), (lambda p: p-p.detach().mean(), nn.BCEWithLogitsLoss()),
])
def test_scores_that_can_be_any(last, loss): assert exact(given(Forecast(last), pieces(target=is_positive), loss)) == []


@pytest.mark.parametrize('last,times', [(F.relu, 1), (torch.sigmoid, 1), (torch.tanh, 4), (F.softplus, 1),
                                        (lambda p: -p.exp(), 1)])
def test_targets_out_of_reach(last, times):
    found = said(given(Forecast(last), pieces(target=lambda y: times*column(y))))
    first = next(o for o in found if o.id == 'I4')
    assert first.certainty == 'exact' and first.evidence['share'] > .2 and '%' in first.message


@pytest.mark.parametrize('last,to', [
    (lambda p: p, lambda y: y), (F.relu, lambda y: y.abs()), (torch.tanh, lambda y: y/2), (F.softplus, lambda y: y+2),
    (torch.sigmoid, lambda y: (y+2)/4), (F.leaky_relu, lambda y: y), (lambda p: 2*p.tanh(), lambda y: y),
    (torch.sigmoid, lambda y: (y > 0).float()), # yes or no, with squared differences
])
def test_targets_in_reach(last, to): assert exact(given(Forecast(last), pieces(target=lambda y: column(to(y))))) == []


def test_a_few_targets_out_of_reach_are_outliers():
    def wild(y): return column(torch.where(torch.arange(len(y)) == 3, 8., y/2))
    assert exact(given(Forecast(torch.tanh), pieces(target=wild), nn.HuberLoss())) == []


def of_rows(last, cls=nn.GRU):
    "A step function over as many rows as steps, with what `last` takes of the outputs"
    class Taken(Forecast):
        def forward(self, series): return self.head(last(self.layer(series)[0]))
    return written(Taken(cls=cls), pieces(n=STEPS, target=column), nn.MSELoss())


@pytest.mark.parametrize('cls', [nn.GRU, nn.LSTM, nn.RNN])
def test_the_last_row_for_the_last_step(cls):
    first = said(of_rows(lambda out: out[-1], cls))[0]
    assert (first.id, first.certainty) == ('S4', 'exact') and 'last row' in first.message
    assert first.fix.startswith('out = out[:, -1]')


def test_rows_in_another_order_than_targets():
    first = said(of_rows(lambda out: out[:,-1].roll(3, 0)))
    assert [o.id for o in first if o.certainty == 'exact'][0] == 'S4'


@pytest.mark.parametrize('last', [lambda o: o[:,-1], lambda o: o.mean(1), lambda o: o.max(1)[0],
                                  lambda o: o[:,-1]-o[:,-1].mean(0)])
def test_rows_that_are_their_own(last): assert exact(of_rows(last)) == []


def test_steps_first_with_as_many_rows():
    class StepsFirst(Forecast):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(1, 16)
        def forward(self, series): return self.head(self.layer(series)[0][-1])
    batches = [(x.transpose(0, 1).contiguous(), y) for x,y in pieces(n=STEPS, target=column)]
    assert exact(written(StepsFirst(), batches, nn.MSELoss())) == []


def test_batch_norm_over_rows():
    class Normed(Forecast):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(16)
        def forward(self, series): return self.head(self.norm(self.layer(series)[0][:,-1]))
    assert exact(written(Normed(), pieces(target=column), nn.MSELoss())) == []


class Loop(nn.Module):
    "A loop over the steps of a series, by a cell or by layers of one's own"
    def __init__(self, between, cell=True, each=True):
        super().__init__()
        self.cell = nn.GRUCell(1, 16) if cell else nn.Linear(17, 16)
        self.head,self.between,self.is_cell,self.each = nn.Linear(16, 1),between,cell,each
    def forward(self, series):
        h,res = torch.zeros(len(series), 16),[]
        for t,x in enumerate(series.unbind(1)):
            h = self.between(h, t)
            h = self.cell(x, h) if self.is_cell else torch.tanh(self.cell(torch.cat([x, h], 1)))
            res.append(self.head(h))
        return torch.cat(res, 1) if self.each else res[-1]


def looping(between, cell, each):
    batches = pieces(target=column)
    if each: batches = [(x, torch.cat([x[:,1:,0], y], 1)) for x,y in batches]
    return given(Loop(between, cell, each), batches)


@pytest.mark.parametrize('cell', [True, False])
@pytest.mark.parametrize('each', [True, False])
def test_a_state_that_is_detached_in_each_step(cell, each):
    assert exact(looping(lambda h,t: h.detach(), cell, each))[0] == 'R1'
    assert exact(looping(lambda h,t: h, cell, each)) == []
    assert exact(looping(lambda h,t: h.detach() if t % 5 == 0 else h, cell, each)) == []


class Pairs(nn.Module):
    "A loop over the steps of a series by an `nn.LSTMCell`, whose state is a pair"
    def __init__(self, between):
        super().__init__()
        self.cell,self.head,self.between = nn.LSTMCell(1, 16),nn.Linear(16, 1),between
    def forward(self, series):
        state = torch.zeros(len(series), 16),torch.zeros(len(series), 16)
        for x in series.unbind(1): state = self.cell(x, self.between(state))
        return self.head(state[0])


def test_the_fix_for_a_pair_that_is_detached_in_each_step_is_one_for_pairs():
    first = said(given(Pairs(lambda s: tuple(o.detach() for o in s)), pieces(target=column)))[0]
    assert (first.id, first.certainty) == ('R1', 'exact')
    state = {'state':(torch.ones(1, requires_grad=True)*2, torch.ones(1, requires_grad=True)*3)}
    exec(first.fix, {}, state)
    assert [(o.item(), o.requires_grad) for o in state['state']] == [(2, False), (3, False)]
    assert exact(given(Pairs(lambda s: s), pieces(target=column))) == []


def test_a_reservoir_has_no_gradient_on_purpose():
    model = Loop(lambda h,t: h.detach(), True, True)
    model.cell.requires_grad_(False)
    batches = [(x, torch.cat([x[:,1:,0], y], 1)) for x,y in pieces(target=column)]
    assert 'R1' not in exact(given(model, batches))


def documents(n=20, n_batches=6):
    "Texts of several lengths, how long they are, and a yes or no"
    gen = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 16, (n*n_batches,), generator=gen)
    x = torch.randint(1, 30, (len(lengths), 15), generator=gen)*(torch.arange(15) < lengths[:,None])
    return [*zip(x.split(n), lengths.split(n), (x > 20).any(1).float().split(n))]


class Packed(nn.Module):
    def __init__(self, pick):
        super().__init__()
        self.emb,self.layer,self.head,self.pick = (nn.Embedding(30, 16, padding_idx=0),
                                                   nn.GRU(16, 16, batch_first=True),nn.Linear(16, 1),pick)
    def forward(self, words, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(self.emb(words), lengths, batch_first=True, enforce_sorted=False)
        out,state = self.layer(packed)
        out,_ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        return self.head(self.pick(out, state, lengths))[:,0]


def packing(pick, batches=None):
    model = Packed(pick)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    def train(words, lengths, labels):
        opt.zero_grad()
        F.binary_cross_entropy_with_logits(model(words, lengths), labels).backward()
        opt.step()
    return dict(step_function=train, model=model, batches=batches or documents())


def test_padding_after_the_end_is_all_that_is_used():
    first = next(o for o in said(packing(lambda out,state,lengths: out[:,-1])) if o.certainty == 'exact')
    lengths = documents()[0][1]
    assert first.id == 'Z1' and first.evidence['unread'] == (lengths < lengths.max()).sum()


@pytest.mark.parametrize('pick', [
    lambda out,state,lengths: state[-1], lambda out,state,lengths: out[torch.arange(len(out)),lengths-1],
    lambda out,state,lengths: out.sum(1)/lengths[:,None], lambda out,state,lengths: out.max(1)[0],
])
def test_packed_rows_that_are_read(pick): assert exact(packing(pick)) == []


def test_rows_of_one_length():
    assert exact(packing(lambda out,state,lengths: out[:,-1],
                         [(x[:,:4].clamp(min=1), l*0+4, y) for x,l,y in documents()])) == []


@pytest.mark.parametrize('shape', [column, lambda y: y])
def test_the_last_value_of_a_window_as_its_target(shape):
    "A forecast that is cut off by one learns to copy"
    def cut(batches): return [(x, shape(x[:,-1,0])) for x,_ in batches]
    net = Forecast() if shape is column else Forecast(last=lambda p: p[:,0])
    first = said(given(net, cut(pieces())))[0]
    assert (first.id, first.certainty) == ('D1', 'strong') and 'last value of its window' in first.message
    assert 'D1' not in [o.id for o in said(given(net, pieces(target=shape)))]


def test_inputs_and_targets_that_were_shuffled_apart():
    "Two loaders, each in an order of its own"
    ids = torch.randint(9, (6001,), generator=torch.Generator().manual_seed(0))
    x,y = ids[:-1].view(300, 20),ids[1:].view(300, 20)
    class Letters(nn.Module):
        def __init__(self):
            super().__init__()
            self.table,self.layer,self.head = nn.Embedding(9, 16),nn.GRU(16, 16, batch_first=True),nn.Linear(16, 9)
        def forward(self, ids): return self.head(self.layer(self.table(ids))[0])
    def program(order):
        loss = lambda p,t: F.cross_entropy(p.flatten(0, 1), t.flatten())
        return given(Letters(), [*zip(x.split(12), y[order].split(12))], loss)
    first = said(program(torch.randperm(300)))[0]
    assert (first.id, first.certainty) == ('S4', 'strong') and 'shuffled apart' in first.message
    assert 'S4' not in [o.id for o in said(program(torch.arange(300)))]


@pytest.mark.parametrize('times', [1e2, 1e5, 1e9])
def test_a_rate_at_which_numbers_are_lost_at_once(times):
    "The rate is to blame, and one at which the network learns is named, without nats for what is no loss of classes"
    batches = pieces(target=column)
    def trained(lr):
        torch.manual_seed(1)
        net = Forecast()
        opt = torch.optim.SGD(net.parameters(), lr=lr)
        return diagnose(model=net, dls=batches, loss_func=nn.MSELoss(), opt=opt)
    first,*_ = trained(.1*times).findings
    assert first.id == 'O1' and 'nats' not in str(first), first
    assert 'O3' not in [o.id for o in trained(.1*times).findings]
    lr = float(first.fix.split('=')[1].split('#')[0])
    assert not trained(lr).findings, lr
