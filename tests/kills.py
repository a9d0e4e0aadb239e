"""Training that is killed at random, resumed until it is finished, and compared to the bit with the same run left alone

    python tests/kills.py [--forks 900] [--fresh 100] [--long 20] [--machines 60] [--seed S]

A run is killed by SIGKILL at a moment drawn from all of its duration (that of a fresh process with its
start-up), resumed, killed again, and so on until it is through. Then every file system call of a save is met by
a SIGKILL, through strace. At the end a table says how many runs were lost or differ.

Forks come from a process that has imported everything and run no torch operation; `Clean` is such a process for
somebody else, such as pytest. What a process of a run does is a `Case`; what is left of it to be compared is
`result.json` in its folder.
"""
import argparse
import hashlib
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from fsspec import register_implementation
from fsspec.implementations.local import LocalFileSystem
from fastai.basics import DataLoaders, Learner, MSELossFlat, TfmdDL, nn
from fastai.callback.all import CSVLogger, GradientAccumulation, SaveModelCallback
from fastai.callback.core import Callback
from fastai.metrics import mae
from fastcore.foundation import L
from tqdm import tqdm

import charrnn_fa.doctor  # noqa: F401  else each fork would, as its Learner is made, for half of its time
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.run.files import RunError
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.store.filesystem import Store
from charrnn_fa.learner import char_learner
from inject import CALLS, at_every_call, calls_of, changes, gate, missing, run_with_fault

# what this processor has; asked without an operation of torch
BF16 = 'bf16' if torch.backends.cpu.get_cpu_capability() == 'AVX512' else 'fp32'

torch.set_num_threads(1)
SEED = 11 # of the run left alone


# A process of a run

class Seen(Callback):
    "Writes down every batch: its step, and a hash of it"
    order = -50
    def __init__(self, path): self._path = path
    def before_fit(self): self._file = open(self._path, 'a', buffering=1)
    def state_dict(self): return {}                         # an open file is none
    def load_state_dict(self, d): pass
    def before_batch(self):
        if self.training:
            self._file.write(
                f'{self.train_iter} '
                f'{hashlib.sha256(self.xb[0].numpy().tobytes() + self.yb[0].numpy().tobytes()).hexdigest()[:16]}\n')


class Noise(Callback):
    "Draws from all three random generators in every batch, and trains on what comes out"
    order = 5
    def before_step(self):
        for p in self.model.parameters():
            p.grad.add_(torch.randn(())*1e-3 + random.gauss(0, 1e-3) + np.random.randn()*1e-3)


class Hidden(Callback):
    "Holds its state where it is hard to see: in private attributes, arguments, and the model's own settings"
    order = 6
    def __init__(self, left=20, rate=0.3): self.left,self.rate,self._sum,self._seen = left,rate,0.,[]
    def before_step(self):
        self.left -= 1
        self.rate *= 0.99
        self._sum += self.loss.item()
        self._seen.append(self.train_iter)
        if self.left == 0: self.model.emb.requires_grad_(True)
        if self.train_iter % 10 == 0: self.model.drops[0].p = 0.1 + self.train_iter/200
        for p in self.model.parameters():
            if p.grad is not None: p.grad.add_(1e-5*(self._sum + self.rate + self.left + len(self._seen)))


def plain(d):
    "A Learner that fastai made, whose loaders shuffle"
    x = torch.randn(56, 3, generator=torch.Generator().manual_seed(0))
    items = list(zip(x, x.sum(1, keepdim=True) + 1))
    dls = DataLoaders(TfmdDL(items, bs=4, shuffle=True, num_workers=0), TfmdDL(items[:9], bs=4, num_workers=0), path=d)
    return Learner(dls, nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.Linear(8, 1)),
                   loss_func=MSELossFlat(), metrics=mae)


@dataclass
class Case:
    "What a process does"
    fit: object = lambda learn, cbs: learn.fit_one_cycle(3, 1e-2, cbs=cbs)
    cbs: object = lambda: []                                # further callbacks
    learner: dict = field(default_factory=dict)
    before: object = None                                   # called with the Learner before `fit`
    make: object = None                                     # makes another Learner than ours, from a folder
    chars: int = 1000
    dls: dict = field(default_factory=dict)


CASES = dict(
    lstm=Case(learner=dict(dropout=0.2)),
    best=Case(cbs=lambda: [SaveModelCallback(with_opt=True), CSVLogger(), Noise()], learner=dict(dropout=0.2, n_layers=2)),
    steps=Case(lambda learn, cbs: learn.fit_steps(45, cbs=cbs), learner=dict(arch='gru', reset_pct=0.2, precision=BF16)),
    sums=Case(lambda learn, cbs: learn.fit_flat_cos(3, 1e-2, cbs=cbs), lambda: [GradientAccumulation(12)],
              dict(arch='rnn', emb_drop=0.1)),
    hidden=Case(cbs=lambda: [Hidden()], learner=dict(dropout=0.2),
                before=lambda learn: learn.model.emb.requires_grad_(False)),
    lines=Case(lambda learn, cbs: learn.fit_steps(45, cbs=cbs), learner=dict(dropout=0.2), dls=dict(by_line=True)),
    plain=Case(lambda learn, cbs: learn.fit_one_cycle(4, 1e-2, cbs=cbs),
               lambda: [SaveModelCallback(), CSVLogger(), Noise()], make=plain),
    # more than a run folder keeps
    long=Case(lambda learn, cbs: learn.fit_steps(45, cbs=cbs), learner=dict(dropout=0.2), chars=50_100_000,
              dls=dict(valid_pct=1e-5)),
)

SHORT = [o for o in CASES if o != 'long']


def learner(case, d, seed, **kwargs):
    "A small Learner without a bar in folder `d`"
    if case.make: learn = case.make(d)
    else:
        text = load_corpus('pydocs')
        text = (text*(case.chars//len(text)+1))[:case.chars]
        dls = CharDataLoaders.from_text(text, bs=4, seq_len=16, seed=seed, path=d, device='cpu', **case.dls)
        learn = char_learner(dls, **{**dict(n_hid=16, emb_sz=8, head_sz=0, precision='fp32'), **case.learner, **kwargs})
    learn.remove_cbs(learn.progress)
    learn.logger = lambda log: None
    if case.before: case.before(learn)
    return learn


def set_generators(seed):
    random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)


def train(case, d, ckpt=None, cbs=(), seed=SEED, where=None):
    "One process of a run in folder `d`. One that goes on has no seed, and random generators that stand anywhere"
    d = Path(d)
    d.mkdir(exist_ok=True)
    if ckpt is not None and reached(d) is not None: seed = None
    set_generators(int.from_bytes(os.urandom(4), 'little') if seed is None else seed)
    learn = learner(case, d, seed)
    cbs = [Seen(d/'batches'), *case.cbs(), *cbs]
    case.fit(learn, cbs if ckpt is None else [*cbs, Checkpoint(where or d/'run', quiet=True, **ckpt)])
    leave(learn, d)


def digest(o):
    "SHA-256 of anything, to the bit"
    h = hashlib.sha256()
    def add(o):
        if isinstance(o, torch.Tensor):
            h.update(f'{o.dtype}{tuple(o.shape)}'.encode()
                     + o.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(o, float): h.update(struct.pack('<d', o))
        elif isinstance(o, dict): [add(x) for kv in (('dict', len(o)), *o.items()) for x in kv]
        elif isinstance(o, (list, tuple, L)): [add(x) for x in ('list', len(o), *o)]
        else: h.update(repr(o).encode())
    add(o)
    return h.hexdigest()[:16]


def state_of(learn):
    "All by which two runs are compared"
    rec = learn.recorder
    res = dict(weights=dict(learn.model.named_parameters()), opt=learn.opt.state_dict(), losses=rec.losses,
               lrs=rec.lrs, values=rec.values, iters=rec.iters, hps=getattr(rec, 'hps', None),
               random=[random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()],
               **{o: getattr(learn, o, None) for o in ('steps_done', 'chars_seen', 'run_epoch', 'seed', 'carried',
                                                       'train_iter', 'pct_train', 'epoch')})
    if hasattr(learn, 'generate'): res['text'] = learn.generate('The ', n=60, seed=1)
    return {k: digest(v) for k,v in res.items()}


def leave(learn, d):
    "Leave `result.json`, with the files of a log and the best model"
    res = state_of(learn)
    for o in sorted(Path(d).glob('*.csv')):
        res[o.name] = digest([l.rpartition(',')[0] for l in o.read_text().splitlines()])
    for o in sorted(Path(d).glob('models/*.pth')): res[o.name] = digest(torch.load(o, weights_only=False))
    (Path(d)/'result.json').write_text(json.dumps(res))


def batches(d):
    "Steps and the batches that were seen there, by one process or another"
    res = {}
    for l in (Path(d)/'batches').read_text().splitlines():
        step,h = l.split()
        res.setdefault(int(step), set()).add(h)
    return res


def differences(alone, d):
    "Names of what differs between the run left alone in folder `alone` and that in `d`"
    a,b = (json.loads((Path(o)/'result.json').read_text()) for o in (alone, d))
    return [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)] + ['batches']*(batches(alone) != batches(d))


# Forks

class Child:
    "A process that runs a function, in a session of its own; what it prints goes to `log`"
    def __init__(self, f, log):
        self.log,self.rc = Path(log),None
        self.pid = os.fork()
        if self.pid: return
        status = 1
        try:
            os.setsid()
            out = os.open(log, os.O_WRONLY|os.O_CREAT|os.O_APPEND)
            for fd in 1,2: os.dup2(out, fd)
            sys.stdout,sys.stderr = (open(fd, 'w', buffering=1, closefd=False) for fd in (1, 2))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            f()
            status = 0
        except SystemExit as e: status = e.code
        except BaseException: traceback.print_exc()
        finally: os._exit(status)
    def wait(self, seconds=600):
        "The exit status, as subprocess gives it; None if it still runs after `seconds`"
        end,pause = time.monotonic()+seconds, 0.0005
        while self.rc is None:
            pid,status = os.waitpid(self.pid, os.WNOHANG)
            if pid: self.rc = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end: return None
            else: time.sleep(pause := min(0.01, 1.2*pause))
        return self.rc
    def kill(self, sig=signal.SIGKILL):
        if self.rc is None: os.kill(self.pid, sig)


class Clean:
    "A process that forks for somebody else, to whom its forks look like a `Child`"
    def __init__(self, **env): # further variables of its environment
        self.p = subprocess.Popen([sys.executable, __file__, '--serve'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  env={**os.environ, **env})
    def ask(self, *what):
        pickle.dump(what, self.p.stdin)
        self.p.stdin.flush()
        res = pickle.load(self.p.stdout)
        if isinstance(res, BaseException): raise res
        return res
    def start(self, log, f, *args, **kwargs): return Remote(self, self.ask('start', log, f, args, kwargs), log)
    def run(self, log, f, *args, **kwargs): return self.start(log, f, *args, **kwargs).wait()
    def close(self):
        self.p.stdin.close()
        self.p.wait()


class Remote:
    def __init__(self, clean, pid, log): self.clean,self.pid,self.log,self.rc = clean,pid,Path(log),None
    def wait(self, seconds=600):
        if self.rc is None: self.rc = self.clean.ask('wait', self.pid, seconds)
        return self.rc
    def kill(self, sig=signal.SIGKILL): os.kill(self.pid, sig)


def serve():
    import kills # what is unpickled belongs to this module
    children = {}
    while True:
        try: do,*args = pickle.load(sys.stdin.buffer)
        except EOFError: return
        try:
            if do == 'start':
                log,f,a,k = args
                child = kills.Child(lambda: f(*a, **k), log)
                children[child.pid] = child
                res = child.pid
            else: res = children[args[0]].wait(args[1])
        except Exception as e: res = e
        pickle.dump(res, sys.stdout.buffer)
        sys.stdout.buffer.flush()


# Kills

CKPT = dict(steps=4, keep=2)

def fresh(name, d):
    "A fresh process of a run"
    code = (f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import kills; '
            f'kills.train(kills.CASES[{name!r}], {str(d)!r}, kills.CKPT)')
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL, stderr=open(f'{d}.log', 'a'),
                            env={**os.environ, 'OMP_NUM_THREADS': '1'})


class Shared(LocalFileSystem):
    "A bucket that all machines see"
    protocol = 'shared'

register_implementation('shared', Shared, clobber=True)


def on_machine(name, d, machine, ahead):
    "A process of a run in a bucket, on a machine whose clock is `ahead` seconds ahead"
    real = time.time
    time.time = lambda: real() + ahead
    os.environ['CHARRNN_HOME'] = f'{d}/{machine}'
    Store.beat = 0.2
    train(CASES[name], d, dict(CKPT, wait=60), where=f'shared://{d}/there')


class Count(Counter):
    "Kills, runs and what became of them"
    def __init__(self, kind): super().__init__(); self.kind,self.bad = kind,[]
    def killed(self, step):
        "One more; `step` of the newest checkpoint, from which the next process goes on"
        self['kills'] += 1
        self['no run yet' if step is None else 'at step 0' if step == 0 else 'further on'] += 1
    def check(self, alone, d, failed=None):
        self['runs'] += 1
        if failed: what,why = 'lost',failed
        elif why := differences(alone, d): what = 'differ'
        else: return shutil.rmtree(d)
        self[what] += 1
        self.bad.append(f'{d}: {why}')


def random_kills(n, kind, names, top, rng, bar):
    "SIGKILL at `n` random moments; every run is brought to its end"
    count,alone,seconds = Count(kind),{},{}
    def start(name, d):
        if kind == 'fresh': return fresh(name, d)
        at = rng.choice([('a', 0), ('b', 900), ('c', -900)])
        return Child(lambda: on_machine(name, d, *at) if kind == 'machines' else train(CASES[name], d, CKPT), f'{d}.log')

    for name in names:
        alone[name] = top/f'alone-{name}'
        if not (alone[name]/'result.json').exists():
            assert Child(lambda name=name: train(CASES[name], alone[name]), f'{alone[name]}.log').wait() == 0
        t = time.monotonic()
        assert start(name, top/f'{kind}-{name}').wait(300) == 0
        seconds[name] = time.monotonic()-t
        count.check(alone[name], top/f'{kind}-{name}')
    while count['kills'] < n:
        name,d,failed = rng.choice(list(alone)),top/f"{kind}-{count['runs']}",None
        d.mkdir()
        while True:
            p = start(name, d)
            # another machine is waited for
            rc = wait(p, rng.uniform(0, 1.05*seconds[name] + (8 if kind == 'machines' else 0)))
            if rc is None:
                p.kill(); p.wait(10)
                count.killed(reached(d))
                failed = failed or torn(d/'run')
                bar.update()
            else:
                if rc: failed = f"status {rc}: {Path(f'{d}.log').read_text().strip().splitlines()[-1:]}"
                break
        count.check(alone[name], d, failed)
    return count


def wait(p, seconds):
    "The exit status of a `Child` or a `Popen`; None if it still runs after `seconds`"
    try: return p.wait(seconds)
    except subprocess.TimeoutExpired: return None


def newest_step(run):
    "The step of the newest checkpoint; None before there is a run whose settings are whole"
    try: folder = RunFolder(run) if RunFolder.is_run(run) else None
    except RunError: return None # a kill has cut them; the next process has to manage
    return folder and folder.newest()['step']


def torn(run):
    "What whoever looks into a run folder between two processes is told of damage; a kill leaves none"
    return RunFolder(run).info()['damaged'] if RunFolder.is_run(run) else None


def reached(d):
    "The same of the run in folder `d`, in its bucket if it has one"
    return max((o for o in map(newest_step, (d/'run', d/'there')) if o is not None), default=None)


class Between(Callback):
    "Calls `f` where the save of step `n` is about to begin, or has been done; step 0 is that in `before_fit`"
    def __init__(self, n, f, order):
        self._n,self._f,self.order = n,f,order
        setattr(self, 'after_batch' if n else 'before_fit', self._call)
    def _call(self):
        if not self._n or self.training and self.train_iter == self._n: self._f()
    def leave(self):
        self.learn.checkpoint.saver.writer.wait(30)
        os._exit(0)


def about(n): return Between(n, gate, 999)
def done(n):
    cb = Between(n, None, 1001)
    cb._f = cb.leave
    return cb


BRIEF = Case(lambda learn, cbs: learn.fit_one_cycle(1, 1e-2, cbs=cbs),
             lambda: [CSVLogger(), SaveModelCallback()], dict(dropout=0.2))

def brief(d, n, *cbs):
    "A process of a short run that ends when the save of step `n` is done"
    train(BRIEF, d, CKPT, [*cbs, done(n)])


def every_call(kind, n, top, bar, brisk=False):
    "SIGKILL at every file system call of the save of step `n`; `brisk`: at those that change something"
    count,d,alone,begun = Count(f'every call of {kind}'),top/'every',top/'alone',top/'begun'
    calls = *CALLS,'truncate',('mkdir', 'mkdirat')
    if not alone.exists(): assert Child(lambda: train(BRIEF, alone), f'{alone}.log').wait() == 0
    if n: assert Child(lambda: brief(begun, n-CKPT['steps']), f'{begun}.log').wait() == 0
    def one():
        if n: shutil.copytree(begun, d, dirs_exist_ok=True)
        brief(d, n, about(n))
    def trials():
        if not brisk: return at_every_call(one, syscalls=calls, gate=True)
        rc,all_calls = calls_of(one, calls, gate=True)
        found = changes(all_calls, d)
        def at(call, i): return call,i,*run_with_fault(one, call, i, 'signal=SIGKILL', gate=True)
        return itertools.chain([('no call', 0, rc, False)], (at(call, i) for call,i,_ in found))
    for call,i,rc,hit in trials():
        failed = None
        if hit:
            count.killed(reached(d))
            if o := torn(d/'run'): failed = f'{o} after {call} {i}'
        if rc != (-9 if hit else 0): failed = f'status {rc} at {call} {i}'
        elif rc := Child(lambda: train(BRIEF, d, CKPT), f'{d}.log').wait():
            failed = f"status {rc} after {call} {i}: {Path(f'{d}.log').read_text().strip().splitlines()[-1:]}"
        n_bad = len(count.bad)
        count.check(alone, d, failed)
        if len(count.bad) > n_bad: d.rename(top/f'every-{n}-{n_bad}')
        bar.update()
    return count


def table(counts):
    keys = 'kills','no run yet','at step 0','further on','runs','lost','differ'
    rows = [('SIGKILL', *(f'resumed {k}' if k[:2] in ('at', 'fu') else k for k in keys)),
            *((c.kind, *(f'{c[k]:,}' for k in keys)) for c in counts)]
    ws = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return '\n'.join('  '.join(o.ljust(w) if i == 0 else o.rjust(w) for i,(o,w) in enumerate(zip(r, ws))) for r in rows)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--forks', type=int, default=900, help='kills of forks')
    p.add_argument('--fresh', type=int, default=100, help='kills of fresh processes')
    p.add_argument('--long', type=int, default=20, help='kills of forks with a text of more than 50 MB')
    p.add_argument('--machines', type=int, default=60,
                   help='kills of forks that share a bucket, with clocks 15 minutes apart')
    p.add_argument('--seed', type=int, default=None, help='of the moments')
    p.add_argument('--cases', type=int, default=len(SHORT), help='how many of them, drawn at random, the forks run')
    p.add_argument('--saves', type=int, nargs='*', default=[12, 0], help='the steps whose saves are killed at every call')
    p.add_argument('--brisk', action='store_true', help='of these calls, only those that change something on the disk')
    p.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.serve: return serve()
    seed = random.randrange(10**6) if args.seed is None else args.seed
    print(f'seed {seed}', flush=True)
    began,rng,counts = time.monotonic(),random.Random(seed),[]
    top = Path(tempfile.mkdtemp())
    kinds = [('forks', args.forks, rng.sample(SHORT, args.cases)), ('fresh', args.fresh, ['best']), ('long texts', args.long, ['long']),
             ('machines', args.machines, ['lstm', 'steps'])]
    with tqdm(total=sum(n for _,n,_ in kinds), unit='kill', disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        for kind,n,names in kinds:
            if n: counts.append(random_kills(n, kind, names, top, rng, bar))
        if missing(): print(f'calls of a save are left out: {missing()}')
        else: counts += [every_call('a save' if n else 'the first save', n, top, bar, args.brisk) for n in args.saves]
    print(table(counts), f'{time.monotonic()-began:.0f} s', sep='\n')
    bad = [o for c in counts for o in c.bad]
    for o in bad: print(o)
    if not bad: shutil.rmtree(top)
    return bool(bad)


if __name__ == '__main__': sys.exit(main())
