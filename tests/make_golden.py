"""The kept files of a format version: `python tests/make_golden.py tests/data/v1` makes them anew

A finished run, one that was killed in mid-epoch, the text of both, and `expected.json` with what they held and where they led at that time.
Only for a format that has not been released: from then on its files stay as they are, and the next version gets a folder of its own.
"""
import json
import os
import shutil
import signal
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import torch
from fastai.callback.all import Callback, CSVLogger, EarlyStoppingCallback, GradientAccumulation, SaveModelCallback

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.learner import char_learner
from charrnn_fa.run.model import Run, load_run, weights_sha256
from charrnn_fa.checkpoint.state import environment

shapes = dict(finished=dict(arch='gru', n_hid=12, emb_sz=12, head_sz=0, tie=True),
              unfinished=dict(arch='lstm', n_hid=12, emb_sz=6, head_sz=8, dropout=0.2))


class Tally(Callback):
    "A callback of somebody's own, with plain attributes"
    def before_fit(self): self.seen,self.last = 0,[]
    def after_batch(self):
        # a file may have put anything plain there
        if self.training:
            self.seen,self.last = (self.seen+1 if type(self.seen) is int else 1),[self.iter, self.loss.item()]


class Kill(Callback):
    "SIGKILL before a training step"
    order = 999
    def __init__(self, n): self.n = n
    def before_batch(self):
        if self.training and self.train_iter == self.n:
            self.learn.checkpoint.saver.writer.wait(30)
            os.kill(os.getpid(), signal.SIGKILL)


def learner(text, path, kind='unfinished', seed=None, **kwargs):
    dls = CharDataLoaders.from_text(text, bs=4, seq_len=16, valid_pct=0.2, seed=seed, path=path, device='cpu')
    learn = char_learner(dls, precision='fp32', **{**shapes[kind], **kwargs})
    learn.logger = lambda log: None
    return learn.remove_cbs(learn.progress)


def extras():
    return [GradientAccumulation(8), SaveModelCallback(), EarlyStoppingCallback(patience=9), CSVLogger(), Tally()]


def fit(learn, where, kind='unfinished', cbs=(), **kwargs):
    "The fit that is stored: the same call goes on with it"
    cbs = [*(extras() if kind == 'unfinished' else ()),
           *([Checkpoint(where, **{**dict(steps=5, keep=2, quiet=True), **kwargs})] if where else ()), *cbs]
    if kind == 'unfinished': learn.fit_one_cycle(3, 1e-2, cbs=cbs)
    else: learn.fit_steps(20, cbs=cbs)
    return learn


def make_runs(d, text, scratch):
    "Both runs in folder `d`; what the callbacks write goes to `scratch`"
    fit(learner(text, scratch, 'finished', 7), d/'finished', 'finished')
    pid = os.fork()
    if not pid:
        try: fit(learner(text, scratch, seed=7), d/'unfinished', cbs=[Kill(48)])
        finally: os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    for o in 'finished', 'unfinished':
        for k in '.lock', 'log.txt': (d/o/k).unlink(missing_ok=True)                  # the log names the folder


def values(learn)->dict:
    "What can be compared: weights to the bit, a text, a loss"
    return dict(weights_sha256=weights_sha256(learn.model), text=learn.generate('The', n=100, seed=1),
                nats=learn.evaluate()['nats'])


def make_golden(d):
    import tempfile
    torch.set_num_threads(1)
    shutil.rmtree(d, ignore_errors=True)
    d.mkdir(parents=True)
    text = (Path(__file__).parents[1]/'LICENSE').read_text()[:2500]
    (d/'text.txt').write_text(text)
    with (tempfile.TemporaryDirectory() as tmp, warnings.catch_warnings(), redirect_stdout(open(os.devnull, 'w')),
          mock.patch('socket.gethostname', lambda: 'a-machine')):
        warnings.simplefilter('ignore')
        make_runs(d, text, Path(tmp))
        shutil.copytree(d/'unfinished', f'{tmp}/copy')
        end = fit(learner(text, tmp), f'{tmp}/copy')
        alone = fit(learner(text, tmp, seed=7), None)
        assert weights_sha256(end.model) == weights_sha256(alone.model)
        info = lambda o: {k:v for k,v in Run(d/o).info().items()
                          if k in ('step', 'epoch', 'finished', 'weights_sha256', 'n_params', 'vocab_size')}
        res = dict(environment=environment(end), finished={**values(load_run(d/'finished', 'cpu')), 'info':info('finished')},
                   unfinished={'info':info('unfinished'),
                               'at_the_end':{**values(end), 'losses':[float(o) for o in end.recorder.losses[-5:]]}})
    (d/'expected.json').write_text(json.dumps(res, indent=1)+'\n')


if __name__ == '__main__': make_golden(Path(sys.argv[1]))
