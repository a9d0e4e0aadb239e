"""The doctor on training steps that people write out: what a step hands on, and what it leaves behind"""
import ast

import pytest
import torch
import torch.nn.functional as F
from fastai.basics import DataLoaders, Learner
from torch import nn

from charrnn_fa.doctor.diagnose import diagnose
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.vocab import CharVocab

TEXT = load_corpus('pydocs')[:20_000]
VOCAB = CharVocab.from_text(TEXT)
IDS,V = VOCAB.encode(TEXT).long(),len(VOCAB)


def rows(bs=8, seq_len=20, n=6):
    x = IDS[:n*bs*seq_len+1]
    return [*zip(x[:-1].view(n, bs, seq_len), x[1:].view(n, bs, seq_len))]


def found(step, net, batches=None, **kwargs):
    return diagnose(step_function=step, model=net, batches=batches or rows(), **{'trials':False, **kwargs}).findings


class Reader(nn.Module):
    "Embedding, a recurrent layer, scores"
    def __init__(self, drop=0.):
        super().__init__()
        self.emb,self.rnn,self.drop,self.out = (nn.Embedding(V, 24),nn.GRU(24, 24, batch_first=True),
                                                nn.Dropout(drop),nn.Linear(24, V))

    def forward(self, x): return self.out(self.drop(self.rnn(self.emb(x))[0]))


def measured_step(drop, comes_back):
    "A step that looks at the network in evaluation mode when it is over"
    reader = Reader(drop)
    adam = torch.optim.Adam(reader.parameters(), 2e-3)
    def look():
        was = reader.training
        reader.eval()
        with torch.no_grad(): reader(IDS[:30][None])
        if comes_back: reader.train(was)
    def fit_one(x, y):
        adam.zero_grad()
        loss = F.cross_entropy(reader(x).flatten(0, 1), y.flatten())
        loss.backward()
        adam.step()
        look()
        return loss.item()
    return fit_one,reader


def test_a_step_that_leaves_evaluation_mode_on():
    f,*others = found(*measured_step(.3, False))
    assert (f.id, f.certainty) == ('T2', 'exact') and not others and 'reader.train()' in f.fix


@pytest.mark.parametrize('drop,comes_back', [(.3, True), (0., False)])
def test_a_mode_that_comes_back_or_changes_nothing_is_no_fault(drop, comes_back):
    assert not found(*measured_step(drop, comes_back))


class Teacher(nn.Module):
    "A letter and a state, to scores and the next state; with a kind that stays the same over the line, or without"
    def __init__(self, n_kinds=0, n_out=V, n=24):
        super().__init__()
        self.n,self.to_state,self.to_scores = n,nn.Linear(n_kinds+V+n, n),nn.Linear(n, n_out)

    def forward(self, *parts):
        state = torch.tanh(self.to_state(torch.cat(parts, 1)))
        return self.to_scores(state),state

    def start(self): return torch.zeros(1, self.n)


def lines(n_kinds, last):
    "Lines as one-hot letters, each with its kind or the letters after them"
    kinds = [torch.eye(3)[i % 3][None] for i in range(40)]
    xs = [F.one_hot(IDS[i*9:i*9+8], V).float()[:,None] for i in range(40)]
    ys = [torch.tensor([i % 3]) if last else IDS[i*9+1:i*9+9] for i in range(40)]
    return [*zip(kinds, xs, ys)] if n_kinds else [*zip(xs, ys)]


def loss_of(guesses, goal, last):
    return F.cross_entropy(guesses[-1], goal) if last else F.cross_entropy(torch.cat(guesses), goal)


def fitted(teacher, read, n_kinds, last):
    "A step that reads a line and learns from it"
    sgd = torch.optim.SGD(teacher.parameters(), .02)
    def learn_from(kind, line, goal):
        sgd.zero_grad()
        loss = loss_of(read(teacher, kind, line), goal, last)
        loss.backward()
        sgd.step()
        return loss.item()
    return learn_from if n_kinds else lambda line, goal: learn_from([], line, goal)


def one_line(n_kinds, last, read):
    teacher = Teacher(n_kinds, 3 if last else V)
    return fitted(teacher, read, n_kinds, last),teacher,lines(n_kinds, last)


def well(teacher, kind, line):
    memory,guesses = teacher.start(),[]
    for letter in line:
        guess,memory = teacher(*kind[None], letter, memory) if len(kind) else teacher(letter, memory)
        guesses.append(guess)
    return guesses


def from_zero(teacher, kind, line):
    guesses = []
    for letter in line:
        memory = teacher.start()
        guess,memory = teacher(*kind[None], letter, memory) if len(kind) else teacher(letter, memory)
        guesses.append(guess)
    return guesses


def detached(teacher, kind, line):
    memory,guesses = teacher.start(),[]
    for letter in line:
        guess,memory = teacher(*kind[None], letter, memory) if len(kind) else teacher(letter, memory)
        memory = memory.detach()
        guesses.append(guess)
    return guesses


@pytest.mark.parametrize('n_kinds', [0, 3])
@pytest.mark.parametrize('last', [True, False])
def test_a_state_made_anew_for_each_letter(n_kinds, last):
    f,*others = found(*one_line(n_kinds, last, from_zero))
    assert (f.id, f.certainty) == ('R5', 'exact') and not others


def test_the_line_that_makes_a_state_anew_goes_before_the_loop():
    net = Teacher()
    sgd = torch.optim.SGD(net.parameters(), .02)
    def fit_line(line, goal):
        sgd.zero_grad()
        loss = 0
        for i in range(len(line)):
            rnn = net.start()
            guess, rnn = net(line[i], rnn)
            loss = loss + F.cross_entropy(guess, goal[i:i+1])/len(line)
        loss.backward()
        sgd.step()
    f,*others = found(fit_line, net, lines(0, False))
    assert not others, others
    assert f.id == 'R5' and f.place.source == 'rnn = net.start()' and f.fix.splitlines()[1:] == [
        'for i in range(len(line)):', '    '+ast.unparse(ast.parse('guess, rnn = net(line[i], rnn)'))]


@pytest.mark.parametrize('last', [True, False])
def test_a_state_that_loses_its_graph_at_each_letter(last):
    f,*others = found(*one_line(3, last, detached))
    assert (f.id, f.certainty) == ('R1', 'exact') and not others


@pytest.mark.parametrize('n_kinds', [0, 3])
@pytest.mark.parametrize('last', [True, False])
def test_a_loop_over_letters_as_it_should_be(n_kinds, last):
    assert not found(*one_line(n_kinds, last, well))


class Cells(nn.Module):
    "A cell of PyTorch's within the model"
    def __init__(self, forgets, cls=nn.LSTMCell):
        super().__init__()
        self.emb,self.cell,self.out,self.forgets = nn.Embedding(V, 24),cls(24, 24),nn.Linear(24, 2),forgets

    def forward(self, x):
        zeros = torch.zeros(len(x), 24)
        state = (zeros, zeros)
        for t in range(x.shape[1]):
            if self.forgets: state = (zeros, zeros)
            state = self.cell(self.emb(x[:,t]), state)
        return self.out(state[0])


@pytest.mark.parametrize('forgets', [True, False])
def test_a_cell_that_begins_with_zeros_at_each_letter(forgets):
    net = Cells(forgets)
    adam = torch.optim.Adam(net.parameters())
    def fit(x, kind):
        adam.zero_grad()
        F.cross_entropy(net(x), kind).backward()
        adam.step()
    ids = [f.id for f in found(fit, net, [(x, (x[:,0] > 20).long()) for x,_ in rows()])]
    assert ids == ['R5']*forgets


def document_step(per):
    "A document is read in parts, each with a state of its own; or in pieces, with the graph cut between them"
    reader,out = nn.GRU(V, 16, batch_first=True),nn.Linear(16, V)
    both = nn.ModuleDict(dict(reader=reader, out=out))
    adam = torch.optim.Adam(both.parameters())
    def fit(x, y):
        adam.zero_grad()
        memory,loss = torch.zeros(1, len(x), 16),0
        for a,b in zip(x.split(5, 1), y.split(5, 1)):
            seen,after = reader(F.one_hot(a, V).float(), memory)
            loss = loss + F.cross_entropy(out(seen).flatten(0, 1), b.flatten())
            if per == 'piece': memory = after.detach()
        loss.backward()
        adam.step()
    return fit,both


@pytest.mark.parametrize('per', ['sentence', 'piece'])
def test_sentences_begin_anew_and_pieces_are_cut(per):
    assert not {'R5', 'R1'} & {f.id for f in found(*document_step(per)) if f.certainty == 'exact'}


def test_argmax_on_the_way_to_the_loss_is_the_cause_and_has_its_line():
    net = Cells(False)
    adam = torch.optim.Adam(net.parameters())
    def fit(x, kind):
        adam.zero_grad()
        best = net(x).argmax(1).float()
        loss = F.mse_loss(best, kind.float())
        loss.requires_grad_()
        loss.backward()
        adam.step()
    f, = found(fit, net, [(x, (x[:,0] > 20).long()) for x,_ in rows()])
    assert f.id == 'L7' and 'argmax' in f.place.source


class Answers(nn.Module):
    "A source to a state, and from it what a decoder writes, who is told something at each step"
    def __init__(self):
        super().__init__()
        self.words,self.reader,self.writer = (nn.Embedding(12, 24),nn.LSTM(24, 24, batch_first=True),
                                              nn.LSTM(24, 24, batch_first=True))
        self.scores = nn.Linear(24, 12)

    def forward(self, source, told):
        return self.scores(self.writer(self.words(told), self.reader(self.words(source))[1])[0])


@pytest.mark.parametrize('give,in_batch,ids',
                         [('late', False, []), ('late', True, []), ('same', False, ['D1']), ('same', True, ['D1'])])
def test_what_a_decoder_is_told(give, in_batch, ids):
    net = Answers()
    adam = torch.optim.Adam(net.parameters())
    def for_decoder(goal): return goal if give == 'same' else torch.cat([torch.ones_like(goal[:,:1]), goal[:,:-1]], 1)
    def fit(source, told, goal):
        adam.zero_grad()
        F.cross_entropy(net(source, told).flatten(0, 1), goal.flatten()).backward()
        adam.step()
    xs = torch.randint(2, 12, (6, 8, 7), generator=torch.Generator().manual_seed(1))
    pairs = [(x, x.flip(1)) for x in xs]
    three = [(x, for_decoder(y), y) for x,y in pairs]
    told = found(fit, net, three) if in_batch else found(lambda src, trg: fit(src, for_decoder(trg), trg), net, pairs)
    assert [o.id for o in told] == ids


def test_an_autoencoder_may_read_what_it_is_to_give_back():
    net = Answers()
    adam = torch.optim.Adam(net.parameters())
    def fit(source, goal):
        adam.zero_grad()
        late = torch.cat([torch.ones_like(goal[:,:1]), goal[:,:-1]], 1)
        F.cross_entropy(net(goal, late).flatten(0, 1), goal.flatten()).backward()
        adam.step()
    xs = torch.randint(2, 12, (6, 8, 7), generator=torch.Generator().manual_seed(1))
    assert 'D1' not in [o.id for o in found(fit, net, [(x.flip(1), x) for x in xs])]


@pytest.mark.parametrize('turn,ids', [('view', ['S4']), ('transpose', [])])
def test_scores_that_are_cut_anew_and_not_turned(turn, ids):
    "In a batch of three parts"
    net = Answers()
    adam = torch.optim.Adam(net.parameters())
    def fit(source, told, goal):
        adam.zero_grad()
        scores = net(source, told)
        scores = scores.view(len(goal), -1, goal.shape[1]) if turn == 'view' else scores.transpose(1, 2)
        F.cross_entropy(scores, goal).backward()
        adam.step()
    xs = torch.randint(2, 12, (6, 8, 7), generator=torch.Generator().manual_seed(1))
    batches = [(x, torch.cat([torch.ones_like(x[:,:1]), x.flip(1)[:,:-1]], 1), x.flip(1)) for x in xs]
    assert [o.id for o in found(fit, net, batches)] == ids


@pytest.mark.parametrize('turn,ids', [('view', ['S4']), ('transpose', [])])
def test_scores_of_a_text_that_are_cut_anew(turn, ids):
    "Its predictions see later characters then, but because they are made of several, and not because the network reads them"
    emb,rnn,out = nn.Embedding(30, 16),nn.GRU(16, 40, batch_first=True),nn.Linear(40, 30)
    net = nn.ModuleList([emb, rnn, out])
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    def fit(x, y):
        adam.zero_grad()
        scores = out(rnn(emb(x))[0])
        F.cross_entropy(scores.view(len(x), 30, -1) if turn == 'view' else scores.transpose(1, 2), y).backward()
        adam.step()
    ids_of_text = torch.randint(0, 30, (6, 8, 49), generator=torch.Generator().manual_seed(1))
    assert [o.id for o in found(fit, net, [(o[:,:-1], o[:,1:]) for o in ids_of_text])] == ids



def alters_targets(scores, y):
    "A loss that turns the targets it was given into a column, and counts from one on the way"
    y.unsqueeze_(-1).add_(1)
    return F.cross_entropy(scores.flatten(0, 1), y.flatten()-1)


def given_a_step(reader, batches):
    adam = torch.optim.Adam(reader.parameters(), 2e-3)
    def fit_one(x, y):
        adam.zero_grad()
        alters_targets(reader(x), y).backward()
        adam.step()
    return dict(step_function=fit_one, model=reader, batches=batches)


def given_parts(reader, batches):
    return dict(model=reader, dls=batches, loss_func=alters_targets, opt=torch.optim.Adam(reader.parameters(), 2e-3))


def given_a_learner(reader, batches):
    return dict(learn=Learner(DataLoaders(batches[:3], batches[3:]), reader, loss_func=alters_targets))


@pytest.mark.parametrize('give', [given_a_step, given_parts, given_a_learner])
def test_a_step_that_writes_into_its_batch(give):
    torch.manual_seed(0)
    batches = [(x.clone(), y.clone()) for x,y in rows()]
    before = [y.clone() for _,y in batches]
    assert not diagnose(**give(Reader(), batches), trials=False).findings
    assert all(map(torch.equal, before, [y for _,y in batches]))


@pytest.mark.parametrize('tells,ids', [('sum', ['L3']), ('mean', [])])
def test_losses_of_steps_that_are_added_up_on_purpose(tells, ids):
    "Whoever shows the mean knows that it is a sum that is trained"
    net = Reader()
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    def fit(x, y):
        adam.zero_grad()
        loss = F.cross_entropy(net(x).transpose(1, 2), y, reduction='none').sum(1).mean()
        loss.backward()
        adam.step()
        return loss.item()/x.shape[1] if tells == 'mean' else loss.item()
    ids_of_text = torch.randint(0, V, (6, 8, 25), generator=torch.Generator().manual_seed(1))
    assert [o.id for o in found(fit, net, [(o[:,:-1], o[:,1:]) for o in ids_of_text])] == ids


def test_a_mask_is_not_taken_for_the_model():
    "Where m is the second of three parts of a batch, and not the model"
    net = Reader()
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    def fit(x, m, y):
        adam.zero_grad()
        losses = F.cross_entropy(net(x).transpose(1, 2), y, reduction='none')
        ((losses*m).sum()/m.sum()).backward()
        adam.step()
    ids_of_text = torch.randint(0, V, (6, 8, 25), generator=torch.Generator().manual_seed(1))
    assert not found(fit, net, [(o[:,:-1], torch.ones(8, 24), o[:,1:]) for o in ids_of_text])


class OneHotCell(nn.Module):
    "A cell by hand that is called for each letter with one-hot rows"
    def __init__(self, bend=torch.tanh, enters=lambda x: x):
        super().__init__()
        self.to_state,self.to_scores,self.bend,self.enters = nn.Linear(V+32, 32),nn.Linear(32, V),bend,enters

    def forward(self, x, state):
        state = self.bend(self.to_state(torch.cat([self.enters(x), state], 1)))
        return self.to_scores(state),state


@pytest.mark.parametrize('ids,options,cuts', [
    (['R8'], dict(bend=lambda h: h), False), (['R1'], {}, True), ([], {}, False),
    ([], dict(enters=lambda x: x.data), False)])
def test_letters_that_the_loader_gives_one_hot(ids, options, cuts):
    "They are looked up nowhere, so it is at the model's call that they enter; if they are detached there, that is no fault"
    net = OneHotCell(**options)
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    def fit(x, y):
        adam.zero_grad()
        state,loss = torch.zeros(len(x), 32),0
        for t in range(x.shape[1]):
            scores,state = net(x[:,t], state.detach() if cuts else state)
            loss = loss + F.cross_entropy(scores, y[:,t])/x.shape[1]
        loss.backward()
        adam.step()
    assert [o.id for o in found(fit, net, [(F.one_hot(x, V).float(), y) for x,y in rows()])] == ids


@pytest.mark.parametrize('seq_len,ids', [(3, ['R7']), (12, [])])
def test_rows_without_a_state_that_are_no_words(seq_len, ids):
    net = Reader()
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    def fit(x, y):
        adam.zero_grad()
        F.cross_entropy(net(x).flatten(0, 1), y.flatten()).backward()
        adam.step()
    x,y = (o[:48*12*20].view(-1, seq_len) for o in (IDS, IDS[1:]))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert [o.id for o in found(fit, net, [*zip(x[order].split(48), y[order].split(48))][:12])] == ids


@pytest.mark.parametrize('letters,why', [(slice(None), False), (slice(-1, None), True)])
def test_a_second_head_is_the_reason_why_some_is_not_looked_at(letters, why):
    "If it says more than that of letters: the scores of both cannot be put together; that is not the same as no loss"
    net,kind = Reader(),nn.Linear(V, 3)
    adam = torch.optim.Adam([*net.parameters(), *kind.parameters()], 2e-3)
    def fit(x, y):
        adam.zero_grad()
        scores = net(x)
        of_letters = F.cross_entropy(scores[:,letters].flatten(0, 1), y[:,letters].flatten())
        loss = of_letters + F.cross_entropy(kind(scores).flatten(0, 1), y.flatten()%3)
        loss.backward()
        adam.step()
    r = diagnose(step_function=fit, model=nn.ModuleList([net, kind]), batches=rows(), trials=False)
    assert any('several losses' in o for o in r.skipped) == why and not any('no loss function' in o for o in r.skipped)


@pytest.mark.parametrize('more,ids', [(0., []), (.5, ['L8'])])
def test_a_step_may_return_a_smoothed_loss(more, ids):
    "What it trains on is the cross-entropy, or is not; what it shows is neither"
    net = Reader()
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    def fit(x, y):
        adam.zero_grad()
        loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten()) + more
        loss.backward()
        adam.step()
        return .7*loss.item() + .3*7
    assert [o.id for o in found(fit, net)] == ids


def test_gradients_are_clipped_where_there_are_some():
    "Before backward() there are none; a clipping that is left out is no finding"
    torch.manual_seed(0)
    reader = Reader()
    sgd = torch.optim.SGD(reader.parameters(), .1)
    def loss_of(x, y):
        sgd.zero_grad()
        return F.cross_entropy(reader(x).flatten(0, 1), y.flatten())
    def early(x, y):
        loss = loss_of(x, y)
        nn.utils.clip_grad_norm_(reader.parameters(), 1.)
        loss.backward()
        sgd.step()
    def late(x, y):
        loss_of(x, y).backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.)
        sgd.step()
    def not_at_all(x, y, clip=None):
        loss_of(x, y).backward()
        if clip: nn.utils.clip_grad_norm_(reader.parameters(), clip)
        sgd.step()
    assert [[o.id for o in found(step, reader)] for step in (early, late, not_at_all)] == [['O9'], [], []]
