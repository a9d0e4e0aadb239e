"""What the `Doctor` callback costs: a step of cpu-minute with it, over one without

    python benchmarks/doctor_cost.py [--turns 6] [--steps 150]

One Learner each, in one process, trained in turns; the medians of their turns are compared. A turn with the callback has all that a minute has of it:
a look at gradients at every tenth step, a whole step looked at, ten measures of the validation part.
"""
import argparse
import statistics
import time

from charrnn_fa.doctor.watch import Doctor
from charrnn_fa.learner import char_learner
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.presets import presets


def learner(with_doctor):
    dls = CharDataLoaders.from_text(load_corpus('pydocs'), seed=0, **presets['cpu-minute'].dls)
    learn = char_learner(dls, preset='cpu-minute')
    if not with_doctor: learn.remove_cbs(learn._grab_cbs(Doctor))
    return learn.remove_cb(learn.progress)


def turn(learn, n):
    began = time.perf_counter()
    with learn.no_logging(), learn.no_valid(): learn.fit_steps(n)
    return (time.perf_counter()-began)/n*1000


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--turns', type=int, default=6)
    p.add_argument('--steps', type=int, default=150)
    args = p.parse_args()
    learners = {'without':learner(False), 'with':learner(True)}
    for learn in learners.values(): turn(learn, 20)
    times = {k:[] for k in learners}
    for i in range(args.turns):
        for k in sorted(learners, reverse=bool(i % 2)): times[k].append(turn(learners[k], args.steps))
    med = {k:statistics.median(v) for k,v in times.items()}
    for k,v in times.items(): print(f"{k:8} {med[k]:6.2f} ms a step   ({min(v):.2f} to {max(v):.2f})")
    print(f"ratio    {med['with']/med['without']:.3f}")


if __name__ == '__main__': main()
