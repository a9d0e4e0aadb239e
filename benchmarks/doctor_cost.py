"""What the `Doctor` callback costs: a training with it, over one without

    python benchmarks/doctor_cost.py [--minutes 1] [--pairs 3] [--model minute|tiny]

Whole runs of equally many steps, as many as a minute has, one without the callback and one with it, in one
process and in turns. Each pair gives a ratio of processor times; the median of the ratios is what it costs.
Other programs on the machine disturb that by more than the callback costs, so its own time is taken too: that
within its events, over that of all else, by one clock.
"""
import argparse
import io
import statistics
import time

from fastai.basics import F, Learner, OptimWrapper, nn, partial, torch

from charrnn_fa.doctor.watch import Doctor
from charrnn_fa.learner import char_learner
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.presets import presets


class Timed(Doctor):
    "Knows how long its events took"
    seconds = 0.
    def __call__(self, event_name):
        began = time.perf_counter()
        try: return super().__call__(event_name)
        finally: self.seconds += time.perf_counter()-began


class Tiny(nn.Module):
    "A step of a millisecond"
    def __init__(self, n):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(n, 16),nn.GRU(16, 16, batch_first=True),nn.Linear(16, n)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


def loss_of_tiny(p, y): return F.cross_entropy(p.flatten(0, 1), y.flatten())


def minute(cbs):
    dls = CharDataLoaders.from_text(load_corpus('pydocs'), seed=0, **presets['cpu-minute'].dls)
    learn = char_learner(dls, preset='cpu-minute', cbs=cbs)
    learn.remove_cb(learn.progress)
    if not cbs: learn.remove_cbs(learn._grab_cbs(Doctor))
    return learn,lambda n: learn.fit_steps(n)


def tiny(cbs):
    dls = CharDataLoaders.from_text(load_corpus('pydocs')[:100_000], bs=8, seq_len=8, seed=0)
    learn = Learner(dls, Tiny(len(dls.vocab)), loss_of_tiny, opt_func=partial(OptimWrapper, opt=torch.optim.SGD), cbs=cbs)
    return learn.remove_cb(learn.progress),lambda n: learn.fit(max(1, round(n/len(dls.train))), .1)


def run(make, n, cbs):
    learn,fit = make(cbs)
    cpu,wall = time.process_time(),time.perf_counter()
    with learn.no_logging(): fit(n)
    return time.process_time()-cpu,time.perf_counter()-wall,learn.train_iter


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--minutes', type=float, default=1.)
    p.add_argument('--pairs', type=int, default=3)
    p.add_argument('--model', choices=['minute', 'tiny'], default='minute')
    args = p.parse_args()
    make = globals()[args.model]
    torch.set_num_threads(1)
    seconds,_,n = run(make, 500, [])
    pace = seconds/n
    n,ratios = max(100, round(60*args.minutes/pace)),[]
    print(f"{n:,} steps of {pace*1000:.2f} ms")
    for i in range(args.pairs):
        res = {}
        for has in (False, True) if i%2 else (True, False):
            cb = Timed(quiet=True, file=io.StringIO())
            res[has],wall,_ = run(make, n, [cb]*has)
            if has: share = cb.seconds/(wall-cb.seconds)
        ratios.append(res[True]/res[False])
        print(f"without {res[False]:6.1f} s, with {res[True]:6.1f} s: {ratios[-1]:.3f}; within its events {share:.2%}",
              flush=True)
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == '__main__': main()
