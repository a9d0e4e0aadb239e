"""Programs with two faults of different families: the cause of more harm first"""
import torch
import torch.nn.functional as F
from torch import nn
from fastai.basics import DataLoader, DataLoaders
from . import program
from .parts import (V, ElmanByHand, GRUByHand, KeepsState, LSTMByHand, Net, Scores, awd_learner, carried_step, learner,
                    loss_over_all, our_learner, seed, stateless_step, streams, text, train, train_ids, vocab,
                    window_dls, windows)

Adam,SGD = torch.optim.Adam,torch.optim.SGD


@program('D1 O2')
def not_shifted_and_too_slow():
    "The targets are the inputs, and a rate of 1e-6 hides that the loss would fall to nothing"
    seed(1)
    model = Scores('gru', n_hid=64)
    dls = [(x, x.clone()) for x,_ in windows(16, 24)]
    return dict(model=model, dls=dls, loss_func=loss_over_all, opt=Adam(model.parameters(), lr=1e-6))


@program('S10 O6')
def bidirectional_without_zero_grad():
    "The network sees the future, and the gradients are never emptied"
    seed(2)
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.out = nn.Embedding(V, 32),nn.Linear(96, V)
            self.rnn = nn.LSTM(32, 48, batch_first=True, bidirectional=True)
        def forward(self, x): return self.out(self.rnn(self.emb(x))[0])
    model = Both()
    opt = Adam(model.parameters(), lr=4e-3)
    def step(x, y):
        loss = loss_over_all(model(x), y)
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program('S5 L1')
def axes_and_softmax():
    "batch_first is missing, and a softmax stands before cross-entropy"
    seed(3)
    class CharLSTM(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.lstm,self.fc = nn.Embedding(V, 32),nn.LSTM(32, 64),nn.Linear(64, V)
        def forward(self, x): return torch.softmax(self.fc(self.lstm(self.emb(x))[0]), dim=-1)
    model = CharLSTM()
    return dict(model=model, dls=windows(16, 24), loss_func=loss_over_all, opt=Adam(model.parameters(), lr=5e-3))


@program('R1 O5', 'by hand')
def detached_each_step_and_adam_anew():
    "The state is detached after each letter, and Adam is made in the loop"
    seed(4)
    class Detaching(ElmanByHand):
        def forward(self, x):
            h,out = torch.zeros(x.shape[0], self.n_hid),[]
            for t in range(x.shape[1]):
                h = torch.tanh(self.i2h(self.emb(x[:,t])) + self.h2h(h.detach()))
                out.append(self.h2o(h))
            return torch.stack(out, 1)
    rnn = Detaching(n_hid=64)
    def train_step(inputs, targets):
        optimizer = Adam(rnn.parameters(), lr=3e-3)
        loss = loss_over_all(rnn(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss
    return dict(step_function=train_step, model=rnn, batches=windows(16, 20))


@program('L6 O1', 'by hand')
def one_letter_counts_at_a_high_rate():
    "The loss is that of the last letter of a window of 20, and Adam runs at 0.3"
    seed(5)
    model = GRUByHand(n_hid=56)
    opt = Adam(model.parameters(), lr=0.3)
    def step(x, y):
        out,_ = model(x)
        loss = F.cross_entropy(out[:,-1], y[:,-1])
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 20), opt=opt)


@program('D4 O7')
def shuffled_with_state_and_half_an_optimiser():
    "The state is carried over windows from random places, and the optimiser lacks the decoder"
    seed(6)
    net = Net('lstm', n_hid=64)
    opt = Adam([*net.emb.parameters(), *net.rnn.parameters()], lr=5e-3)
    return dict(step_function=carried_step(net, opt, clip=1.), model=net, batches=windows(16, 24), opt=opt)


@program('L3 S4', also='O1')
def summed_and_viewed():
    "The loss is a sum, and view stands where a transpose should"
    seed(7)
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.rnn,self.out = nn.Embedding(V, 32),nn.GRU(32, 64),nn.Linear(64, V)
        def forward(self, x):
            bs,seq_len = x.shape
            o,_ = self.rnn(self.emb(x).view(seq_len, bs, 32))
            return self.out(o).view(bs, seq_len, V)
    model = Viewed()
    def loss_func(scores, y): return F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction='sum')
    return dict(model=model, dls=windows(16, 24), loss_func=loss_func, opt=SGD(model.parameters(), lr=0.5))


@program('D2 L5')
def two_ahead_and_spaces_ignored():
    "The loader shifts and the program shifts once more, and ignore_index is the id of the space"
    seed(8)
    space = vocab.stoi[' ']
    dls = [(x[:,:-1], y[:,1:]) for x,y in windows(16, 25)]
    model = Scores('gru', n_hid=64)
    def loss_func(scores, y): return F.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=space)
    return dict(model=model, dls=dls, loss_func=loss_func, opt=Adam(model.parameters(), lr=4e-3))


@program('O8 T2')
def frozen_and_in_eval_mode():
    "The embedding is frozen at random values, and eval() stands in the training step"
    seed(9)
    class WithDropout(Scores):
        def __init__(self):
            super().__init__('lstm', n_hid=64)
            self.drop = nn.Dropout(0.3)
        def forward(self, x): return self.out(self.drop(self.rnn(self.drop(self.emb(x)))[0]))
    model = WithDropout()
    model.emb.weight.requires_grad_(False)
    opt = Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    def step(x, y):
        model.eval()
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program('R8 I1', 'by hand')
def linear_and_loud():
    "There is no tanh in the recurrence, and the head's weights are drawn from N(0, 1)"
    seed(10)
    class Linear(nn.Module):
        def __init__(self, n=48):
            super().__init__()
            self.emb,self.i2h,self.h2h,self.h2o = nn.Embedding(V, 24),nn.Linear(24, n),nn.Linear(n, n),nn.Linear(n, V)
            nn.init.normal_(self.h2o.weight)
        def forward(self, x):
            h,out = torch.zeros(len(x), self.h2h.in_features),[]
            for t in range(x.shape[1]):
                h = self.i2h(self.emb(x[:,t])) + self.h2h(h)
                out.append(self.h2o(h))
            return torch.stack(out, 1)
    model = Linear()
    opt = Adam(model.parameters(), lr=2e-3)
    return dict(step_function=stateless_step(model, opt, clip=1.), model=model, batches=windows(16, 20), opt=opt)


@program('R4 O9', 'by hand')
def one_state_for_all_and_emptied_early():
    "One row of state serves all rows of the batch, and zero_grad comes between backward and step"
    seed(11)
    class OneState(KeepsState):
        def forward(self, x):
            h,out = torch.zeros(1, self.n_hid) if self.h is None else self.h,[]
            for t in range(x.shape[1]):
                e = self.i2h(self.emb(x[:,t]))
                h = torch.tanh(e + self.h2h(h)).mean(0, keepdim=True)
                out.append(self.h2o(torch.tanh(e + h)))
            self.h = h.detach()
            return torch.stack(out, 1)
    model = OneState(n_hid=64)
    opt = Adam(model.parameters(), lr=4e-3)
    def step(x, y):
        loss = loss_over_all(model(x), y)
        loss.backward()
        opt.zero_grad()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=streams(16, 20), opt=opt)


@program('O1 D6', 'AWD-LSTM')
def awd_too_fast_over_overlapping_parts():
    "A rate of 0.8, and the validation part is a piece of the training part"
    seed(12)
    def items(o): return [(o[i:i+20], o[i+1:i+21]) for i in range(0, len(o)-21, 20)]
    both = train_ids[:16_000],train_ids[8000:11_000]
    dls = DataLoaders(*[DataLoader(items(o), bs=16, num_workers=0) for o in both])
    return dict(learn=awd_learner(dls, lr=0.8))


@program('I7 R11', 'AWD-LSTM')
def awd_drops_most_and_pads_a_letter():
    "drop_mult=3.8, and the space is taken for padding"
    seed(13)
    learn = awd_learner(drop_mult=3.8, config=dict(pad_token=vocab.stoi[' '], tie_weights=False))
    with learn.no_bar(): learn.fit(1)
    return dict(learn=learn)


@program('O2 I6', 'ours')
def ours_tiny_and_slow():
    "Two units and a rate of 1e-6"
    return dict(learn=our_learner(16, 24, n_hid=2, emb_sz=4, lr=1e-6))


@program('D8 O13')
def lower_case_and_decay():
    "The text is put in lower case while its vocabulary has capitals, and wd=20 with AdamW"
    seed(14)
    lower = vocab.encode(text[:54_000].lower())
    model = Scores('lstm', n_hid=64)
    opt = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=20.)
    return dict(model=model, dls=windows(16, 24, source=lower), loss_func=loss_over_all, opt=opt, text=text)


@program('G3 L8', 'by hand')
def forgets_while_it_writes_and_pays_for_weights():
    "The state is thrown away when it writes, and the loss in training holds the squares of all weights"
    seed(15)
    model = LSTMByHand(n_hid=56)
    opt = Adam(model.parameters(), lr=1e-2)
    def loss_func(scores, y):
        return loss_over_all(scores, y) + 1e-3*sum((p**2).sum() for p in model.parameters())
    step,batches = stateless_step(model, opt, loss_func),windows(16, 20)
    train(step, batches, 120)
    @torch.no_grad()
    def sample(model, prompt, n):
        scores,_ = model(vocab.encode(prompt)[None])
        for _ in range(n):
            i = torch.multinomial(scores[:,-1].softmax(-1), 1)
            prompt += vocab[i.item()]
            scores,_ = model(i)
        return prompt
    return dict(step_function=step, model=model, batches=batches, opt=opt, sample=sample, text=text)


@program('D3 O10')
def wraps_and_never_warms_up():
    "The last target of a row is its own first letter, and the warm-up is divided by whole numbers"
    seed(16)
    model = Scores('gru', n_hid=64)
    opt = Adam(model.parameters(), lr=5e-3)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min(1, i//500))
    batches = [(x, x.roll(-1, 1)) for x,_ in windows(16, 24)]
    def step(x, y):
        loss = loss_over_all(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        return loss
    return dict(step_function=step, model=model, batches=batches, opt=opt)


@program('R5 T1')
def no_memory_and_dropout_for_ever():
    "Each letter begins with an empty state, and F.dropout is on in validation too"
    seed(17)
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.cell,self.out = nn.Embedding(V, 32),nn.GRUCell(32, 64),nn.Linear(64, V)
        def forward(self, x):
            hs = [self.cell(self.emb(x[:,t])) for t in range(x.shape[1])]
            return self.out(F.dropout(torch.stack(hs, 1), 0.3))
    return dict(learn=learner(window_dls(16, 20), Forgetful(), lr=4e-3))
