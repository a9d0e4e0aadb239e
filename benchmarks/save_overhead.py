"""What checkpoints cost a training of five million parameters.

One fit in which spells with a save every ten seconds take turns with spells without one. Prints the time that a
save costs, as a share of a minute (at most 1 % is asked), the 99th percentile of batch times with and without
(ratio at most 1.5), and how long a resume takes beyond imports (at most 3 s).
python benchmarks/save_overhead.py [--spells 12] [--seconds 30] [--where DIR_OR_URL]
"""
import argparse, shutil, tempfile, time
from statistics import mean, median

import numpy as np
import torch
from fastai.callback.core import CancelFitException, Callback

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.learner import char_learner
from charrnn_fa.models import count_params


def learner(args):
    learn = char_learner(CharDataLoaders.from_text(load_corpus('pydocs'), seed=0), n_hid=args.n_hid, emb_sz=128)
    learn.remove_cbs(learn.progress)
    learn.logger = lambda *_: None
    return learn


class Spells(Callback):
    "Lets saves be due every ten seconds, or never, in turn; notes how long each batch took, saves included"
    order = Checkpoint.order+1
    def __init__(self, ckpt, spells, seconds, copy):
        self.ckpt,self.spells,self.seconds,self.copy = ckpt,spells,seconds,copy
    def before_fit(self): self.times,self.saves,self.spell = {True: [], False: []},0,-3
    def after_batch(self):
        if not self.training: return
        now = time.perf_counter()
        if self.spell >= 0:
            self.times[self.spell%2 == 1].append(now-self.last)
            self.saves += self.ckpt.saved > self.last
        if self.spell < 0 or now-self.began >= self.seconds:                         # the first batches are slow
            self.spell,self.began = self.spell+1,now
            if self.spell == self.spells: self.end()
            self.ckpt.minutes = 1/6 if self.spell%2 else float('inf')
            self.ckpt.saved = now
        self.last = time.perf_counter()
    def end(self):
        self.ckpt.saver.writer.wait(60)
        shutil.copytree(self.ckpt.folder.path, self.copy)                           # as a kill would leave it
        raise CancelFitException


class First(Callback):
    "Ends a fit where its first batch would begin; when that was"
    order = Checkpoint.order+1
    def before_batch(self):
        self.at = time.perf_counter()
        raise CancelFitException


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--spells', type=int, default=12)
    parser.add_argument('--seconds', type=float, default=30)
    parser.add_argument('--n-hid', type=int, default=1008)
    parser.add_argument('--where')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as d:
        where = args.where or f'{d}/run'
        learn,ckpt = learner(args),Checkpoint(where, minutes=float('inf'), quiet=True)
        spells = Spells(ckpt, args.spells, args.seconds, f'{d}/killed')
        learn.fit_steps(10**6, cbs=[ckpt, spells])
        size = ckpt.folder.newest()['size']
        again,first,t = learner(args),First(),time.perf_counter()
        again.fit_steps(10**6, cbs=[Checkpoint(f'{d}/killed', quiet=True), first])
        resume = first.at-t
    on,off = spells.times[True],spells.times[False]
    per_save = (mean(on)-mean(off))*len(on)/spells.saves
    p = lambda ts: np.percentile(ts, 99)
    print(f'{count_params(learn.model):,} parameters, checkpoint {size/1e6:.0f} MB, '
          f'{len(on)} batches with {spells.saves} saves, {len(off)} without; '
          f'medians {median(on)*1e3:.0f} and {median(off)*1e3:.0f} ms\n'
          f'a save takes {per_save*1e3:.0f} ms of training: {per_save/60:.2%} at one a minute\n'
          f'99th percentile of batch times {p(on)*1e3:.0f} and {p(off)*1e3:.0f} ms, ratio {p(on)/p(off):.2f}; '
          f'slowest {max(on)*1e3:.0f} and {max(off)*1e3:.0f} ms\n'
          f'a resume takes {resume:.2f} s up to its first batch; '
          f'{learn.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}')


if __name__ == '__main__': main()
