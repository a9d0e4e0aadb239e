"""Which modules a resumed run enters, and how often one calls another: python tests/crossings.py [-v]

A small run on this disk is cut short within an epoch, and resumed by a new Learner. While
`Checkpoint.before_fit` finds, reads, checks and restores the run, each call of a function of the library counts
whose caller, the nearest function of the library above it, stands in another module.
"""
import sys
import tempfile
from collections import Counter
from pathlib import Path

from fastai.basics import Callback, noop

import charrnn_fa
from charrnn_fa.checkpoint import Checkpoint
from charrnn_fa.learner import char_learner
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders

library = str(Path(charrnn_fa.__file__).parent)


def learner(seed=None):
    dls = CharDataLoaders.from_text(load_corpus('pydocs')[:4000], bs=4, seq_len=16, seed=seed)
    learn = char_learner(dls, n_hid=16, emb_sz=8, head_sz=0, dropout=0.2, precision='fp32')
    learn.logger = noop
    return learn.remove_cbs(learn.progress)


class Cut(Callback):
    "Ends a fit in its second epoch, after the last checkpoint is written"
    order = 2000
    def after_batch(self):
        if self.learn.steps_done == 76:
            self.learn.checkpoint.saver.finish()
            raise KeyboardInterrupt


def module_of(frame): return frame.f_code.co_filename.removeprefix(library+'/')


def caller(frame):
    "The nearest function of the library above"
    while (frame := frame.f_back) and not frame.f_code.co_filename.startswith(library): pass
    return frame


def crossings():
    "Counts (module, module that it calls)"
    calls = Counter()

    def watch(frame, event, _):
        if event != 'call' or not frame.f_code.co_filename.startswith(library): return
        above = caller(frame)
        if above and module_of(above) != module_of(frame): calls[module_of(above), module_of(frame)] += 1

    class Watched(Checkpoint):
        def before_fit(self):
            sys.setprofile(watch)
            try: super().before_fit()
            finally: sys.setprofile(None)
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as d:
        for cbs in [Checkpoint(d+'/r', steps=10, quiet=True), Cut()], [Watched(d+'/r', steps=10, quiet=True)]:
            try: learner(5).fit_one_cycle(3, 1e-2, cbs=cbs)
            except KeyboardInterrupt: pass
    return calls


def modules(calls): return sorted({o for pair in calls for o in pair})


if __name__ == '__main__':
    calls = crossings()
    print(f'{len(modules(calls))} modules, {sum(calls.values())} calls from one to another')
    if '-v' in sys.argv:
        print(*modules(calls), *(f'{n:4}  {a} -> {b}' for (a,b),n in calls.most_common()), sep='\n')
