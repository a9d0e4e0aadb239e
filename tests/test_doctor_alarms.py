"""Healthy programs that look like something else, each beside one that has the fault"""
import math
import random

import pytest
import torch
from fastai.basics import Callback, DataLoaders, Learner
from torch import nn
from torch.nn import functional as F

from charrnn_fa import doctor
from charrnn_fa.doctor.sampling import sampling_findings
from charrnn_fa.doctor.given import parts_subject
from charrnn_fa.doctor.written import Written
from charrnn_fa.doctor.written_text import check_text, usual_shares
from charrnn_fa.text.corpus import load_corpus

TEXT = load_corpus('pydocs')[:24_000]
symbols = sorted({*TEXT})
ids = torch.tensor([symbols.index(c) for c in TEXT])
V = len(symbols)


class Net(nn.Module):
    "Scores for each step, (rows, steps, classes)"
    def __init__(self, n_out=V, drop=0., n_hid=64):
        super().__init__()
        self.emb,self.drop = nn.Embedding(V, 32),nn.Dropout(drop)
        self.rnn,self.out = nn.GRU(32, n_hid, batch_first=True),nn.Linear(n_hid, n_out)
    def forward(self, x): return self.out(self.drop(self.rnn(self.drop(self.emb(x)))[0]))


def nll(scores, y): return F.cross_entropy(scores.flatten(0, 1), y.flatten())


def rows(x, y, n=24, bs=8):
    "Batches of rows one after the other"
    m = len(x)//n*n
    pairs = list(zip(x[:m].view(-1, n).split(bs), y[:m].view(-1, n).split(bs)))
    return [o for o in pairs if len(o[0]) == bs]


def said(**given): return [(o.id, o.certainty) for o in doctor.diagnose(**given).findings]


def test_tags_are_no_text():
    "Whether each letter is a capital, which is 0 nearly everywhere; and a validation part that is a copy"
    tags = torch.tensor([c.isupper() for c in TEXT]).long()
    batches = rows(ids, tags)
    for valid,has_leak in (batches[60:], False),(batches[:20], True):
        torch.manual_seed(0)
        dls = DataLoaders(batches[:60], valid)
        model = Net(2)
        found = said(model=model, dls=dls, loss_func=nll, opt=torch.optim.Adam(model.parameters(), 3e-3), trials=False)
        assert found == [('D6', 'strong')]*has_leak


def losses_of_steps(lr):
    "A step that adds up the losses of its letters, and shows their mean"
    torch.manual_seed(0)
    cell,emb,out = nn.GRUCell(24, 48),nn.Embedding(V, 24),nn.Linear(48, V)
    net = nn.ModuleDict(dict(cell=cell, emb=emb, out=out))
    opt = torch.optim.SGD(net.parameters(), lr, momentum=.9)
    def step(x, y):
        h,loss = torch.zeros(len(x), 48),0.
        opt.zero_grad()
        for t in range(x.shape[1]):
            h = cell(emb(x[:,t]), h)
            loss = loss + F.cross_entropy(out(h), y[:,t])
        loss.backward()
        opt.step()
        return loss.item()/x.shape[1]
    return dict(step_function=step, model=net, opt=opt, batches=rows(ids[:-1], ids[1:])[:30])


@pytest.mark.parametrize('lr,found', [(.002, []), (.5, ['L3'])])
def test_a_sum_is_a_fault_where_the_rate_is_that_of_a_mean(lr, found):
    report = doctor.diagnose(**losses_of_steps(lr))
    assert [o.id for o in report.findings] == found
    if found: assert 'O1' in [o.id for o in report.findings[0].follows] and 'loss/24' in report.findings[0].fix


def one_stream(opt, n=25):
    "As min-char-rnn does: one row, whose losses are added up, and clipped gradients"
    torch.manual_seed(0)
    net = Net()
    opt = opt(net.parameters(), 1e-2)
    def step(x, y):
        loss = F.cross_entropy(net(x[None])[0], y, reduction='sum')
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(net.parameters(), 5)
        opt.step()
        return loss.item()
    return dict(step_function=step, model=net, opt=opt, batches=[(ids[i:i+n], ids[i+1:i+n+1]) for i in range(0, 20*n, n)])


@pytest.mark.parametrize('opt,found', [(torch.optim.Adagrad, []), (torch.optim.SGD, [('L3', 'weak')])])
def test_a_sum_of_one_row_is_none_for_an_optimiser_that_does_not_mind(opt, found):
    assert said(**one_stream(opt), trials=False) == found


@pytest.mark.parametrize('drop,found', [(.4, []), (.93, [('I7', 'strong')])])
def test_dropout_that_only_slows_down(drop, found):
    torch.manual_seed(0)
    model = Net(drop=drop, n_hid=96)
    assert said(model=model, batches=rows(ids[:-1], ids[1:])[:30], loss_func=nll,
                opt=torch.optim.Adam(model.parameters(), 2e-2)) == found


def two_kinds_of_batches(later):
    "A number a step: small ones at first, and then as large as `later`"
    torch.manual_seed(0)
    net = nn.Linear(1, 1)
    xs = torch.tensor([.1]*40+[later]*200)*(1+1e-4*torch.rand(240))
    batches = [(x.view(1, 1), 300*x.view(1, 1)-20) for x in xs]
    return dict(model=net, batches=batches, loss_func=F.mse_loss, opt=torch.optim.SGD(net.parameters(), 1e-6))


@pytest.mark.parametrize('later,is_low', [(.1, True), (200., False)])
def test_a_rate_that_is_low_for_the_first_batches(later, is_low):
    "A hundred times as much does better for as long as these last"
    found = doctor.diagnose(**two_kinds_of_batches(later)).findings
    assert ('O2' in [o.id for o in found]) == is_low


class Table(nn.Module):
    "Scores of a symbol after another, or after any"
    def __init__(self, scores):
        super().__init__()
        self.emb = nn.Embedding.from_pretrained(scores, freeze=False)
    def forward(self, x): return self.emb(x)


@pytest.mark.parametrize('knows_pairs', [True, False])
def test_a_network_that_says_the_same_everywhere_has_learned_no_other_table(knows_pairs):
    "Its scores are uneven by chance"
    pairs = torch.bincount(ids[:-1]*V+ids[1:], minlength=V*V).view(V, V)+.05
    p = pairs/pairs.sum(1, keepdim=True) if knows_pairs else (pairs.sum(0)/pairs.sum()).expand(V, V)
    anew = torch.randperm(V, generator=torch.Generator().manual_seed(1))
    model = Table(p.log()[anew][:,anew])
    opt = torch.optim.Adam(model.emb.parameters(), 1e-3)
    found = said(model=model, batches=rows(ids[:-1], ids[1:])[:12], loss_func=nll, opt=opt, trials=False)
    assert ('D7' in [o for o,_ in found]) == knows_pairs


def written(texts):
    "What is said of a function that writes one text or another"
    torch.manual_seed(0)
    model = Net()
    subject = parts_subject(model, rows(ids[:-1], ids[1:])[:4], nll, torch.optim.Adam(model.parameters()))
    def sample(model, prompt, n): return prompt+texts[int(torch.randint(len(texts), (1,)))][:n]
    return [o.id for o in sampling_findings(sample, subject, TEXT)]


def test_one_text_in_circles_is_bad_luck():
    "The first of two is written by the first seed"
    alike,other = 'the same again '*20,TEXT[500:800]
    torch.manual_seed(0)
    first = int(torch.randint(2, (1,)))
    torch.manual_seed(1)
    assert int(torch.randint(2, (1,))) != first
    assert 'G7' not in written([alike, other]) and 'G7' not in written([other, alike]) and 'G7' in written([alike, alike])


def test_a_few_blanks_are_as_good_as_one():
    code = 'def area(x):\n'+' '*120+'return 3*x\n# of a disc, and not of what is around it, which is another'
    assert 'G7' not in written([code])
    assert 'G7' in written(['the same again '*20]) and 'G7' in written([' '*300])


@pytest.mark.parametrize('at,found', [(0, [('D9', 'strong')]), (9000, [])])
def test_a_byte_order_mark_is_one_at_the_beginning_of_a_text(at, found):
    torch.manual_seed(0)
    text = TEXT[:at]+'\ufeff'+TEXT[at:]
    vocab = sorted({*text})
    numbers = torch.tensor([vocab.index(c) for c in text])
    dls = DataLoaders(rows(numbers[:-4000], numbers[1:-3999]), rows(numbers[-4000:-1], numbers[-3999:]))
    dls.vocab = vocab
    model = nn.Sequential(nn.Embedding(len(vocab), 16), nn.Linear(16, len(vocab)))
    assert [o for o in said(model=model, dls=dls, loss_func=nll, trials=False) if o[0] == 'D9'] == found


def test_two_loaders_are_those_for_training_and_validation():
    model = Net()
    given = dict(model=model, loss_func=nll, opt=torch.optim.Adam(model.parameters(), 3e-3), trials=False)
    batches = rows(ids[:-1], ids[1:])
    assert said(dls=(batches[:60], batches[60:]), **given) == []
    assert said(dls=[batches[:60], batches[:20]], **given) == [('D6', 'strong')]


class Own:
    "A loader of somebody's own"
    def __init__(self, batches): self.batches = batches
    def __iter__(self): return iter(self.batches)


def test_two_loaders_of_ones_own_are_a_pair():
    model = Net()
    given = dict(model=model, loss_func=nll, opt=torch.optim.Adam(model.parameters(), 3e-3), trials=False)
    batches = rows(ids[:-1], ids[1:])
    assert said(dls=(Own(batches[:60]), Own(batches[60:])), **given) == []
    assert said(dls=(Own(batches[:60]), Own(batches[:20])), **given) == [('D6', 'strong')]


@pytest.mark.parametrize('flat,found', [(lambda y: y.view(-1), ['E1']), (lambda y: y.reshape(-1), [])])
def test_a_batch_that_is_a_piece_of_something_is_copied_as_such(flat, found):
    "view() fails on it"
    torch.manual_seed(0)
    net = Net()
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    wholes = ids[:8*25*40].view(40, 8, 25)
    batches = [(w[:,:-1], w[:,1:]) for w in wholes]
    def step(x, y):
        opt.zero_grad()
        F.cross_entropy(net(x).flatten(0, 1), flat(y)).backward()
        opt.step()
    assert [o.id for o in doctor.diagnose(step_function=step, model=net, opt=opt, batches=batches,
                                          trials=False).findings] == found


def test_who_writes_formulas_copies_them():
    rng = random.Random(0)
    amounts,things = ['two', 'three', 'four'],['flour', 'sugar', 'butter']
    formula = lambda: f"Take {rng.choice(amounts)} spoons of the {rng.choice(things)} and stir until all of it is smooth.\n"
    free = lambda: ''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=60))+'\n'
    corpus = ''.join(rng.choice([formula, free])() for _ in range(600))
    written = ''.join(formula() for _ in range(4))
    assert .3 < usual_shares(corpus, len(written))[1] < .7 and check_text(Written(text=written), corpus) == []
    assert [o.id for o in check_text(Written(text=TEXT[3000:3300]), TEXT)] == ['G8']


@pytest.mark.parametrize('written', [' '*600, 'qzx vkw jjq '*2 + ' '*570, '-'*600, '= '*300, ('q'+' '*39)*15])
def test_blanks_and_lines_are_not_copied(written):
    "They stand in the corpus, as in many a text; what is written goes in circles"
    corpus = TEXT[:3000] + ' '*600 + TEXT[3000:6000] + '-'*600 + TEXT[6000:] + '= '*300 + ('q'+' '*39)
    assert [o.id for o in check_text(Written(text=written), corpus)] == ['G7']


class KeepsBest(Callback):
    "Reads what the recorder has of an epoch, which a validation that stands alone has not"
    order = 60
    def before_fit(self): self.best = math.inf
    def before_validate(self):
        if self.in_training_mode: self.model.train()
    def after_epoch(self): self.best = min(self.best, self.learn.recorder.values[-1][1])
    def __init__(self, in_training_mode): self.in_training_mode = in_training_mode


@pytest.mark.parametrize('in_training_mode,found', [(False, []), (True, [('T1', 'exact')])])
def test_a_callback_that_wants_an_epoch(in_training_mode, found):
    torch.manual_seed(0)
    batches = rows(ids[:-1], ids[1:])
    dls = DataLoaders(batches[:60], batches[60:])
    learn = Learner(dls, Net(drop=.2), loss_func=nll, lr=3e-3, cbs=KeepsBest(in_training_mode))
    assert said(learn=learn, trials=False) == found


def trains_and_writes(comes_back, every, n_hid=48):
    "A step that lets the network write now and then, before it trains"
    torch.manual_seed(0)
    net,count = Net(drop=.3, n_hid=n_hid),[0]
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    @torch.no_grad()
    def write():
        net.eval()
        net(ids[None,:1])
        if comes_back: net.train()
    def step(x, y):
        count[0] += 1
        if count[0] % every == 0: write()
        opt.zero_grad()
        nll(net(x), y).backward()
        opt.step()
    return dict(step_function=step, model=net, opt=opt, batches=rows(ids[:-1], ids[1:])[:30])


@pytest.mark.parametrize('every', [1, 5])
@pytest.mark.parametrize('comes_back,found', [(True, []), (False, [('T2', 'exact')])])
def test_the_mode_is_that_of_what_is_trained(comes_back, found, every):
    assert said(**trains_and_writes(comes_back, every), trials=False) == found
