"""A training step of `cpu-minute` alone, beside one and two busy processes, and beside another training: \
as PyTorch does it, in a run by steps, and in one by the clock.

Each case is a fresh process that trains for some seconds; the cases take turns. Prints milliseconds a step
(median over turns of the mean of a turn, lowest and highest) and the ratios to the quiet step.
python benchmarks/neighbours.py [--turns 3] [--seconds 12] [--precision bf16]
"""
import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

busy = [sys.executable, '-c', 'while True: pass']
ways = dict(bare='as PyTorch', steps='by steps', clock='by the clock')


def train(seconds, precision, how):
    "Milliseconds a step, after the first two seconds"
    import contextlib
    from fastai.callback.core import Callback, CancelFitException
    from charrnn_fa.learner import char_learner
    from charrnn_fa.loop import fit
    from charrnn_fa.text.corpus import load_corpus
    from charrnn_fa.text.data import CharDataLoaders
    if how == 'bare': fit.sharing_processors = lambda device: contextlib.nullcontext()

    class Clock(Callback):
        order,at,n = 100,None,0
        def after_batch(self):
            now = time.perf_counter()
            if self.at is None: self.at = now
            if now-self.at < 2: self.n,self.began = 0,now
            else: self.n += 1
            if now-self.at > seconds: raise CancelFitException

    clock = Clock()
    learn = char_learner(CharDataLoaders.from_text(load_corpus('pydocs'), seed=0), precision=precision)
    length = dict(minutes=600) if how == 'clock' else dict(n_steps=10**6)
    with learn.no_bar(), learn.no_logging(), learn.no_valid(): learn.fit_steps(**length, cbs=clock)
    print(json.dumps(dict(ms=1000*(time.perf_counter()-clock.began)/clock.n)))


def one(args, how):
    return [sys.executable, __file__, '--one', how, '--seconds', str(args.seconds), '--precision', args.precision]


def measured(args, how, others):
    env = dict(os.environ)
    others = [subprocess.Popen(o, stdout=subprocess.DEVNULL, env=env) for o in others]
    try:
        return json.loads(subprocess.run(one(args, how), check=True, capture_output=True, text=True, env=env).stdout)['ms']
    finally:
        for o in others: o.kill()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--turns', type=int, default=3)
    p.add_argument('--seconds', type=float, default=12)
    p.add_argument('--precision', default='bf16')
    p.add_argument('--one', choices=ways)
    args = p.parse_args()
    if args.one: return train(args.seconds, args.precision, args.one)
    long = argparse.Namespace(**{**vars(args), 'seconds':10**4})
    cases = {'alone': [], 'beside one busy process': [busy], 'beside two': [busy]*2, 'beside another training': None}
    ms = {(k, how):[] for k in cases for how in ways}
    for _ in range(args.turns):
        for k,others in cases.items():
            for how in ways: ms[k,how].append(measured(args, how, [one(long, how)] if others is None else others))
    quiet = median(ms['alone','bare'])
    print(f'{args.precision}, {os.cpu_count()} processors; '
          f'ms a step, median (lowest to highest), and over the quiet step as PyTorch does it ({quiet:.1f})')
    for (k,how),v in ms.items():
        print(f"{k:26} {ways[how]:14} {median(v):7.1f}  ({min(v):.1f} to {max(v):.1f})  {median(v)/quiet:.2f}")


if __name__ == '__main__': main()
