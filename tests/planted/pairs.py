"""Programs with two faults of different families: the cause of more harm first"""
import torch
import torch.nn.functional as F
from fastai.basics import DataLoader, DataLoaders
from torch import nn

from . import program
from .parts import (ElmanByHand, LSTMByHand, Net, Scores, V, adam, awd_learner, carried_step, in_parts, in_steps,
                    loss_over_all, stateless_step, text, train, train_ids, update, vocab, windows)


@program('D1 O2', seed=1)
def not_shifted_and_too_slow():
    "The targets are the inputs, and a rate of 1e-6 hides that the loss would fall to nothing"
    model = Scores('gru')
    return in_parts(model, [(x, x.clone()) for x,_ in windows(16, 24)], adam(model, 1e-6))


@program('S10 O6', seed=2)
def bidirectional_without_zero_grad():
    "The network sees the future, and the gradients are never emptied"
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.out = nn.Embedding(V, 32),nn.Linear(96, V)
            self.rnn = nn.LSTM(32, 48, batch_first=True, bidirectional=True)
        def forward(self, x): return self.out(self.rnn(self.emb(x))[0])
    model = Both()
    opt = adam(model, 4e-3)
    def step(x, y):
        loss = loss_over_all(model(x), y)
        loss.backward()
        opt.step()
        return loss
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program('S5 L1', seed=3)
def axes_and_softmax():
    "batch_first is missing, and a softmax stands before cross-entropy"
    class CharLSTM(Scores):
        def forward(self, x): return torch.softmax(self.out(self.rnn(self.emb(x))[0]), dim=-1)
    return in_parts(CharLSTM('lstm', batch_first=False), windows(16, 24))


@program('R1 O5', 'by hand', seed=4)
def detached_each_step_and_adam_anew():
    "The state is detached after each letter, and Adam is made in the loop"
    class Detaching(ElmanByHand):
        def cell(self, e, h): return torch.tanh(self.i2h(e) + self.h2h(h.detach()))
    rnn = Detaching()
    def train_step(inputs, targets):
        optimizer = torch.optim.Adam(rnn.parameters(), lr=3e-3)
        return update(optimizer, loss_over_all(rnn(inputs)[0], targets))
    return dict(step_function=train_step, model=rnn, batches=windows(16, 20))


@program('D4 O7', seed=6)
def shuffled_with_state_and_half_an_optimiser():
    "The state is carried over windows from random places, and the optimiser lacks the decoder"
    net = Net('lstm')
    opt = torch.optim.Adam([*net.emb.parameters(), *net.rnn.parameters()], lr=5e-3)
    return in_steps(carried_step, net, windows(16, 24), opt, clip=1.)


@program('D2 L5', seed=8)
def two_ahead_and_spaces_ignored():
    "The loader shifts and the program shifts once more, and ignore_index is the id of the space"
    model = Scores('gru')
    dls = [(x[:,:-1], y[:,1:]) for x,y in windows(16, 25)]
    def loss_func(scores, y): return F.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=vocab.stoi[' '])
    return in_parts(model, dls, adam(model, 4e-3), loss_func)


@program('O8 T2', seed=9)
def frozen_and_in_eval_mode():
    "The embedding is frozen at random values, and eval() stands in the training step"
    class WithDropout(Scores):
        def __init__(self):
            super().__init__('lstm')
            self.drop = nn.Dropout(0.3)
        def forward(self, x): return self.out(self.drop(self.rnn(self.drop(self.emb(x)))[0]))
    model = WithDropout()
    model.emb.weight.requires_grad_(False)
    opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    def step(x, y):
        model.eval()
        return update(opt, loss_over_all(model(x), y))
    return dict(step_function=step, model=model, batches=windows(16, 24), opt=opt)


@program('O1 D6', 'AWD-LSTM', seed=12)
def awd_too_fast_over_overlapping_parts():
    "A rate of 0.8, and the validation part is a piece of the training part"
    def items(o): return [(o[i:i+20], o[i+1:i+21]) for i in range(0, len(o)-21, 20)]
    both = train_ids[:16_000],train_ids[8000:11_000]
    return dict(learn=awd_learner(DataLoaders(*[DataLoader(items(o), bs=16, num_workers=0) for o in both]), lr=0.8))


@program('D8 O13', seed=14)
def lower_case_and_decay():
    "The text is put in lower case while its vocabulary has capitals, and wd=20 with AdamW"
    model = Scores('lstm')
    opt = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=20.)
    return dict(in_parts(model, windows(16, 24, source=vocab.encode(text[:54_000].lower())), opt), text=text)


@program('G3 L8', 'by hand', seed=15)
def forgets_while_it_writes_and_pays_for_weights():
    "The state is thrown away when it writes, and the loss in training holds the squares of all weights"
    model = LSTMByHand(n_hid=56)
    def loss_func(scores, y): return loss_over_all(scores, y) + 1e-3*sum((p**2).sum() for p in model.parameters())
    made = in_steps(stateless_step, model, windows(16, 20), adam(model, 1e-2), loss_func=loss_func)
    train(made['step_function'], made['batches'], 120)
    @torch.no_grad()
    def sample(model, prompt, n):
        scores,_ = model(vocab.encode(prompt)[None])
        for _ in range(n):
            i = torch.multinomial(scores[:,-1].softmax(-1), 1)
            prompt += vocab[i.item()]
            scores,_ = model(i)
        return prompt
    return dict(made, sample=sample, text=text)
