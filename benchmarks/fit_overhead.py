"""What fastai's loop costs: characters per second of `learn.fit` against a bare PyTorch loop.

Same model, optimiser, batches, clipping and precision; the two take turns in one process, and each turn is one epoch.
Prints both medians and their ratio (at least 0.95 is asked).   python benchmarks/fit_overhead.py [--turns 7]
"""
import argparse, contextlib, io, time
from statistics import median

import torch
import torch.nn.functional as F

from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.learner import char_learner
from charrnn_fa.callback.precision import precisions


def bare_epoch(learn):
    "One epoch as one would write it by hand"
    model,opt,dl,dtype = learn.model,learn.opt,learn.dls.train,precisions[learn.precision]
    model.train()
    state = None
    for x,y in dl:
        with torch.autocast('cpu', dtype, enabled=dtype is not torch.float32): logits,state = model(x, state)
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
        opt.zero_grad()
        state = tuple(o.detach() for o in state)


def fit_epoch(learn):
    "One epoch of the Learner; the validation part is as good as empty"
    with contextlib.redirect_stdout(io.StringIO()): learn.fit(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--turns', type=int, default=7)
    parser.add_argument('--chars', type=int, default=200_000)
    args = parser.parse_args()
    text = load_corpus('pydocs')[:args.chars]
    learn = char_learner(CharDataLoaders.from_text(text, seed=0, valid_pct=65/len(text)), reset_pct=0., metrics=[])
    learn.create_opt()
    times = {bare_epoch: [], fit_epoch: []}
    for turn in range(args.turns+1):
        for f,ts in times.items():
            t = time.perf_counter()
            f(learn)
            if turn: ts.append(time.perf_counter()-t)
    n = sum(y.numel() for _,y in learn.dls.train)
    fit,bare = n/median(times[fit_epoch]),n/median(times[bare_epoch])
    spread = [f/b for f,b in zip(times[bare_epoch], times[fit_epoch])]
    print(f'learn.fit {fit:,.0f} characters/s, bare loop {bare:,.0f} characters/s, ratio {fit/bare:.3f} '
          f'(turn by turn {min(spread):.3f} to {max(spread):.3f}), '
          f'{learn.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}')


if __name__ == '__main__': main()
