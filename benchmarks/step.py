"""A training step of `cpu-minute` in `fit`, by precision of the model and of Muon's own products: \
what takes the time, beside the matrix rate of the machine.

The ways take turns in one process; milliseconds a step, medians of turns, lowest and highest.

    python benchmarks/step.py [TEXT] [--turns 5] [--steps 40] [--profile]
"""
import argparse
import time
from statistics import median

import torch
import torch.nn.functional as F

from charrnn_fa.callback.precision import ns_dtype
from charrnn_fa.learner import char_learner
from charrnn_fa.models import product
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders

ways = {'fp32, Muon in fp32': ('fp32', None), 'bf16, Muon in fp32': ('bf16', None),
        'bf16, Muon in bf16': ('bf16', torch.bfloat16)}


def rate(dtype, by=F.linear, n=30):
    "GFLOP/s of the largest product of a step, (2048 x 256) by (256 x 1024)"
    x,W = torch.ones(2048, 256, dtype=dtype),torch.ones(1024, 256, dtype=dtype)
    times = []
    for _ in range(n):
        t = time.perf_counter()
        by(x, W)
        times.append(time.perf_counter()-t)
    return 2*2048*256*1024/median(times)/1e9


def products(learn):
    "GFLOP of a step: forward and backward of the model, and Newton-Schulz"
    p,tokens = learn.preset,learn.preset.bs*learn.preset.seq_len
    n = sum(o.numel() for k,o in learn.model.named_parameters() if o.ndim == 2 and 'emb' not in k)
    ns = 0
    for o in learn.opt.n_gates:
        a,b = sorted(o.shape)
        ns += 2*(2*a*a*b + (4*p.ns_steps-3)*a**3)      # all steps at once, as in single precision
    return 6*n*tokens/1e9,ns/1e9


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('text', nargs='?', default='pydocs',
                   help='a corpus, as load_corpus takes it; the preset has dropout for a short one')
    p.add_argument('--turns', type=int, default=5)
    p.add_argument('--steps', type=int, default=40)
    p.add_argument('--profile', action='store_true')
    args = p.parse_args()
    learn = char_learner(CharDataLoaders.from_text(load_corpus(args.text), seed=0), precision='fp32')
    learn.create_opt()
    times = {k:[] for k in ways}
    for turn in range(args.turns+1):
        for k,(precision,dtype) in ways.items():
            learn.set_precision(precision)
            learn.opt.ns_dtype = dtype
            t = time.perf_counter()
            with learn.no_bar(), learn.no_logging(), learn.no_valid(): learn.fit_steps(args.steps)
            if turn: times[k].append(1000*(time.perf_counter()-t)/args.steps)
    model,ns = products(learn)
    mkl,onednn,bf16 = rate(torch.float32),rate(torch.float32, product),rate(torch.bfloat16)
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}; '
          f'GFLOP/s in fp32 {mkl:.0f} by PyTorch, {onednn:.0f} by oneDNN, in bf16 {bf16:.0f}; '
          f'a step has {model:.1f} GFLOP in the model and {ns:.1f} in Muon')
    first = median(next(iter(times.values())))
    for k,v in times.items():
        print(f'{k:20} {median(v):6.1f} ms  ({min(v):.1f} to {max(v):.1f})  {first/median(v):.2f}')
    if not args.profile: return
    from torch.profiler import ProfilerActivity, profile
    for precision in 'fp32','bf16':
        learn.set_precision(precision)
        with profile(activities=[ProfilerActivity.CPU]) as prof, learn.no_bar(), learn.no_logging(), learn.no_valid():
            learn.fit_steps(args.steps)
        print(f'\n{precision}: milliseconds a step by operation')
        rows = sorted(prof.key_averages(), key=lambda o: -o.self_cpu_time_total)[:18]
        for o in rows:
            print(f'{o.self_cpu_time_total/1000/args.steps:7.2f}  {o.count/args.steps:6.1f} calls  {o.key[:60]}')


if __name__ == '__main__': main()
