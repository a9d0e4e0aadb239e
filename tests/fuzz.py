"""Damaged and hostile checkpoint files: a typed error or a correct load, whatever is in them

`python tests/fuzz.py N [--seed S] [--only SEED]` mutates the files of a finished and an unfinished
run N times, with checksums mended in most cases, and loads them through `Run`, `State` and the whole
`Checkpoint`; now and then a file becomes a link, a pipe or a folder. Each seed is one trial and can be
repeated with --only. Trials run in children with a limit on memory and one on time. A finding is anything but a
`CharRNNError` or a load in which the Learner's tensors are
those of the file, nothing outside the folder was read or written, and of callbacks nothing but plain state was
replaced. A fit that goes on from a file nobody has changed must end where it does without the fuzzer.
"""
import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from unittest import mock

import torch
from fastai.callback.core import Callback
from make_golden import extras, fit, learner, make_runs

from charrnn_fa.errors import CharRNNError
from charrnn_fa.run.files import digest
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.run.model import Run, load_run, weights_sha256
from charrnn_fa.checkpoint.restore import State
from charrnn_fa.checkpoint.state import from_json, is_plain
from charrnn_fa.checkpoint.state import named_callbacks

SECONDS,MEMORY = 120,2**30           # of a trial; what a child may take beyond what it starts with
TEXT = ''.join(random.Random(0).choices('the rain in Spain, stays mainly; ', k=1500))
CANARY = 'canary-outside-the-folder'


# Values

def nested(n, kind):
    res = 1
    for _ in range(n): res = {kind: [res]} if kind else [res]
    return res

NAMES = ['__class__', '__dict__', '__init__', 'learn', 'model', 'opt', 'dls', 'run', 'order', 'name', 'path', 'file', 'state_dict',
         'before_batch', 'loss', 'loss_func', 'recorder', 'metrics', 'func', 'vocab', 'train/x', 'emb.weight', 'x', '', '\0',
         'sha256', 'tensors', f'../{CANARY}', f'../../{CANARY}', '/etc/passwd', 'float', 'tensor', 'dict', 'list', 'seen', 'lr']
VALUES = [None, True, False, 0, 1, -1, 2, 7, 2**31, 2**62, 2**63, 2**64, -2**63, 10**30, 10**400, 0.5, -0.0, 1e308, float('nan'),
          float('inf'), '1', 'nan', 'x'*100_000, '\ud800', '\u202e\x1b[2J', [], {}, [[]], [None], [0]*100_000, {'a': 1}, {'float': 'nan'},
          {'float': []}, {'float': '9'*10_000}, {'list': []}, {'tuple': []}, {'list': 5}, {'dict': []}, {'dict': [[1, 2]]},
          {'dict': [[{'list': []}, 1]]}, {'dict': 5}, {'tensor': []}, {'tensor': 'nope'}, {'tensor': 'emb.weight'}, {'__class__': 1},
          {'array': 'emb.weight'}, {'scalars': 'emb.weight'}, {'list': [{'tensor': 'emb.weight'}]*50_000}]

def hostile(rng, known=()):
    "A value that nobody expects; `known` are names of tensors"
    r = rng.random()
    if r < 0.05: return nested(rng.choice([5, 100, 400, 900]), rng.choice([None, 'list', 'tuple', 'x']))
    if r < 0.2: return rng.choice(NAMES)
    if r < 0.35 and known: return {rng.choice(['tensor', 'array', 'floats', 'scalars']): rng.choice(known)}
    if r < 0.4: return rng.getrandbits(rng.choice([8, 32, 64, 200]))
    return rng.choice(VALUES)

def spread(rng, j):
    "A place in `j`, each depth as likely as the next; random generators have most of the places"
    while True:
        keys = list(j) if isinstance(j, dict) else range(len(j))
        if not keys: return None
        k = rng.choice(keys)
        if not isinstance(j[k], (dict, list)) or not j[k] or rng.random() < 0.2: return j, k
        j = j[k]

def mutate_json(rng, j, known=()):
    at = spread(rng, j)
    if at is None: return
    o,k = at
    what = rng.choice('replace replace replace delete add rename tweak swap'.split())
    if what == 'replace': o[k] = hostile(rng, known)
    elif what == 'delete': del o[k]
    elif what == 'add':
        if isinstance(o, dict): o[rng.choice(NAMES)] = hostile(rng, known) if rng.random() < 0.7 else o[k]
        else: o.insert(rng.randrange(len(o)+1), hostile(rng, known) if rng.random() < 0.7 else o[k])
    elif what == 'rename' and isinstance(o, dict): o[rng.choice(NAMES)] = o.pop(k)
    elif what == 'tweak' and isinstance(o[k], (int, float)):
        o[k] = rng.choice([o[k]+1, o[k]-1, -o[k], o[k]*1000, float(o[k]), str(o[k])])
    elif what == 'swap':
        p,q = spread(rng, j) or at
        if k in o if isinstance(o, dict) else k < len(o):
            a,b = json.loads(json.dumps(o[k])),json.loads(json.dumps(p[q]))
            p[q],o[k] = a,b

def add_attrs(rng, meta, known):
    "Attributes that a callback or metric should not get from a file"
    cb = rng.choice(list(meta['cbs']))
    rng.choice([meta['cbs'][cb], meta['learn']])['dict'] += [rng.choice(NAMES), hostile(rng, known)]


# Files

def parse(b):
    n, = struct.unpack('<Q', b[:8])
    return json.loads(b[8:8+n]),b[8+n:]

def build(head, body):
    h = json.dumps(head).encode()
    return struct.pack('<Q', len(h)) + h + body

def raw(rng, b):
    "Bytes as a disk, a network or a quota leaves them"
    i,j = sorted((rng.randrange(len(b)+1), rng.randrange(len(b)+1)))
    what = rng.choice('flip flip flip flips cut empty insert double drop html zeros random head'.split())
    if what.startswith('flip'):
        b = bytearray(b)
        for _ in range(1 if what == 'flip' else rng.randrange(2, 200)):
            if b: b[rng.randrange(len(b))] ^= 1 << rng.randrange(8)
        return bytes(b)
    return dict(cut=b[:i], empty=b'', insert=b[:i]+rng.randbytes(rng.randrange(1, 100))+b[i:],
                double=b[:j]+b[i:], drop=b[:i]+b[j:], html=b'<!DOCTYPE html><html>quota exceeded</html>',
                zeros=b[:i]+bytes(j-i)+b[j:], random=rng.randbytes(len(b)),
                head=struct.pack('<Q', rng.getrandbits(rng.choice([8, 16, 32, 63])))+b[8:])[what]

def names(files, start, end): return sorted(o for o in files if o.startswith(start) and o.endswith(end))

def mend(files, data):
    "Let the manifest of file `data`, or the settings, describe what is in it now"
    b = files[data]
    where = 'run.json' if data.startswith('text-') else data.replace('.safetensors', '.json')
    with suppress(KeyError, ValueError, TypeError, AttributeError):                  # it may hold no object by now
        d = json.loads(files[where])
        if data.startswith('text-'): d['text'].update(size=len(b), sha256=hashlib.sha256(b).hexdigest())
        else: d.update(size=len(b), file_sha256=hashlib.sha256(b).hexdigest())
        files[where] = sealed(d)

def sealed(d): return json.dumps({**d, 'sha256': digest(d)}).encode()

def mutate_raw(rng, files):
    o = rng.choice(sorted(files))
    files[o] = raw(rng, files[o])
    if o.endswith('.safetensors') and rng.random() < 0.5: mend(files, o)

def mutate_sealed(rng, files):
    "Run, manifest or owner with another value and the right checksum"
    o = rng.choice(names(files, '', '.json'))
    with suppress(ValueError):
        d = json.loads(files[o])
        mutate_json(rng, d)
        files[o] = sealed(d)

def mutate_meta(rng, files):
    data = rng.choice(names(files, 'step-', '.safetensors'))
    with suppress(ValueError, struct.error, KeyError, TypeError, AttributeError):
        head,body = parse(files[data])
        meta = json.loads(head['__metadata__']['json'])
        known = [k for k in head if k != '__metadata__']
        (add_attrs if rng.random() < 0.3 and 'cbs' in meta else mutate_json)(rng, meta, known)
        head['__metadata__']['json'] = json.dumps(meta)
        files[data] = build(head, body)
        mend(files, data)

def mutate_tensors(rng, files):
    "Names, types, shapes and contents of tensors, in checkpoints and the text"
    data = rng.choice(names(files, '', '.safetensors'))
    with suppress(ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError):
        head,body = parse(files[data])
        if head.keys() <= {'__metadata__'}: return
        k = rng.choice([k for k in head if k != '__metadata__'])
        d,what = head[k],rng.choice('dtype shape shape rename swap bytes nan drop key'.split())
        if what == 'dtype':
            d['dtype'] = rng.choice(['F32', 'I32', 'U32', 'F64', 'I64', 'BF16', 'I16', 'U8', 'I8', 'BOOL', 'F16',
                                     'F8_E4M3', 'C64'])
        elif what == 'shape':
            d['shape'] = rng.choice([d['shape'][::-1], [*d['shape'], 1], [1, *d['shape']], [], [0], d['shape'][:-1],
                                     [2**62, 0], [-1], [2**63, 2], [sum(d['shape'])]])
        elif what == 'rename': head[rng.choice(NAMES)] = head.pop(k)
        elif what == 'swap':
            q = rng.choice([k for k in head if k != '__metadata__'])
            head[k],head[q] = head[q],head[k]
        elif what in ('bytes', 'nan'):
            i,j = d['data_offsets']
            body = body[:i] + (rng.randbytes(j-i) if what == 'bytes' else (b'\xff'*(j-i))) + body[j:]
        elif what == 'drop' and d['data_offsets'][1] == len(body): body = body[:head.pop(k)['data_offsets'][0]]
        else: mutate_json(rng, d)
        files[data] = build(head, body)
        mend(files, data)

def mutate_folder(rng, files):
    "Files swapped, lost, doubled, under other names"
    o,p = rng.choice(sorted(files)),rng.choice(sorted(files))
    what = rng.choice('swap lose stray stray manifest copy'.split())
    if what == 'swap': files[o],files[p] = files[p],files[o]
    elif what == 'lose': del files[o]
    elif what == 'stray':
        files[o.replace('.', f'{rng.choice([" ", ""])}({rng.randrange(1, 9)}).', 1)] = (
            files[o] if rng.random() < 0.7 else files.pop(o))
    elif what == 'copy': files[p] = files[o]
    else:    # a manifest that describes another file
        ms,ds = names(files, 'step-', '.json'),names(files, 'step-', '.safetensors')
        if not ms or not ds: return
        with suppress(ValueError):
            m,data = rng.choice(ms),rng.choice(ds)
            d = json.loads(files[m])
            d.update(file=data, size=len(files[data]), file_sha256=hashlib.sha256(files[data]).hexdigest())
            files[m] = sealed(d)

def mutate(rng, files):
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if files and names(files, '', '.json') and names(files, 'step-', '.safetensors'):
            # json cannot write what is nested twice
            with suppress(RecursionError, OverflowError):
                rng.choices([mutate_raw, mutate_sealed, mutate_meta, mutate_tensors, mutate_folder],
                            [2, 3, 3, 3, 1])[0](rng, files)

LINKS = (f'../{CANARY}', f'../../{CANARY}', '/etc/passwd', '/dev/zero', 'step-00000045-00000000.safetensors', '.',
         'log.txt', '../start.py')

def odd_files(rng, files):
    "Names to what stands there instead of a file, or besides: a link, a pipe, a folder"
    if rng.random() < 0.85: return {}
    o = rng.choice([*sorted(files), 'log.txt', '.lock', 'step-00000099-0123abcd.safetensors',
                    'owner-000009-0123abcd-1.json'])
    return {o: rng.choice(['pipe', 'folder', *LINKS])}

def put_odd(path, what):
    path.unlink(missing_ok=True)
    if what == 'pipe': os.mkfifo(path)
    elif what == 'folder': path.mkdir()
    else: path.symlink_to(what)

def mutate_state(rng, tensors, meta):
    "The same for what has been read"
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        # a value that json or a type cannot hold
        with suppress(RecursionError, RuntimeError, OverflowError): _mutate_state(rng, tensors, meta)

def _mutate_state(rng, tensors, meta):
    r,k,q = rng.random(),*rng.choices(list(tensors), k=2)
    if r < 0.45: return mutate_json(rng, meta, list(tensors))
    if r < 0.65 and isinstance(meta.get('cbs'), dict) and meta['cbs'] and isinstance(meta.get('learn'), dict):
        with suppress(AttributeError, TypeError, KeyError): add_attrs(rng, meta, list(tensors))
        return
    t,types = tensors[k],[torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool, torch.bfloat16]
    changes = dict(dtype=lambda: t.to(rng.choice(types)), flat=lambda: t.reshape(-1), row=lambda: t[None], column=lambda: t[...,None],
                   scalar=lambda: torch.ones((), dtype=t.dtype), empty=lambda: t.reshape(-1)[:0], other=lambda: tensors[q],
                   long=lambda: torch.zeros(200_000, dtype=t.dtype), nan=lambda: torch.full_like(t, rng.choice([float('nan'), 1e38])),
                   huge=lambda: torch.full_like(t, torch.iinfo(t.dtype).max), noise=lambda: torch.empty_like(t).random_())
    what = rng.choice(['drop', 'rename', 'add', *changes])
    if what == 'drop' and len(tensors) > 1: tensors.pop(k)
    elif what == 'rename': tensors[rng.choice(NAMES)] = tensors.pop(k)
    elif what == 'add': tensors[rng.choice(NAMES)] = t
    elif what in changes:
        with suppress(TypeError): tensors[k] = changes[what]() # a type has no such number


# What must not happen

class Finding(Exception): "Something that must not happen"

class _Watch:
    "Which files are opened, removed or renamed: an audit hook cannot be taken away, so there is one"
    inside = None
    def __call__(self, event, args):
        if self.inside is None or event not in ('open', 'os.remove', 'os.rename', 'os.truncate', 'os.mkdir', 'os.rmdir'): return
        path = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ''
        folder,name = os.path.split(path)
        is_link_itself = event in ('os.remove', 'os.rename')
        path = path and (os.path.join(os.path.realpath(folder), name) if is_link_itself else os.path.realpath(path))
        if not path or path == '/dev/null' or event == 'os.mkdir' and os.path.isdir(path): return
        writes = event != 'open' or (args[2] or 0) & (os.O_WRONLY|os.O_RDWR|os.O_CREAT|os.O_TRUNC)
        if (CANARY in path or path == '/etc/passwd' or writes) and not any(path.startswith(o) for o in self.inside):
            self.inside = None
            raise Finding(f'{event} of {path} outside the folder')

_watch = _Watch()

@contextmanager
def watched(*folders, hooked=[]):
    if not hooked: hooked.append(sys.addaudithook(_watch))
    _watch.inside = [os.path.realpath(o) for o in folders]
    try: yield
    finally: _watch.inside = None

def body_of(t):
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b''

def check(ok, what):
    if not ok: raise Finding(what)


# Entry points

class Base:
    "The files that are mutated"
    def __init__(self, d):
        self.dir = Path(d)
        (self.dir/'scratch').mkdir()
        rng = random.Random(1)
        with (warnings.catch_warnings(), mock.patch('secrets.token_hex', lambda n=8: rng.randbytes(n).hex()),
              redirect_stdout(open(os.devnull, 'w'))):
            warnings.simplefilter('ignore')
            make_runs(self.dir, TEXT, self.dir/'scratch')
        self.files = {o:{p.name:p.read_bytes() for p in (self.dir/o).iterdir()} for o in ('finished', 'unfinished')}
        run = RunFolder(self.dir/'unfinished')
        self.tensors,meta = run.read(run.newest())
        self.meta = json.dumps(meta)
        self.run = self.dir/'a/b/run'
        self.run.mkdir(parents=True)
        for o in self.dir/'a'/CANARY, self.dir/'a/b'/CANARY: shutil.copy(next((self.dir/'finished').glob('text-*')), o)
        self.unchanged = {hashlib.sha256(b).hexdigest() for files in self.files.values() for b in files.values()}
        self.ends = {o:self.end(o) for o in self.files}

    def write(self, files, odd=()):
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir(parents=True)
        for k,b in files.items(): (self.run/k).write_bytes(b)
        for k,what in dict(odd).items(): put_odd(self.run/k, what)

    def end(self, which):
        "The weights to which the same fit leads that nobody interrupts or stores"
        with redirect_stdout(StringIO()):
            return weights_sha256(fit(learner(TEXT, self.dir/'scratch', which, seed=7), None, which).model)


def trial_run(base, rng):
    "`Run(path).info()`, `load_model`, `load_run`"
    files = dict(base.files[rng.choice(['finished', 'unfinished'])])
    mutate(rng, files)
    base.write(files, odd := odd_files(rng, files))
    with watched(base.run):
        run = Run(base.run)
        info = run.info()
        model = run.load_model()
        learn = load_run(base.run, 'cpu') if rng.random() < 0.2 else None
    c = run.newest_whole()[0]
    found = [b for o,b in files.items() if o not in odd and hashlib.sha256(b).hexdigest() == c['file_sha256']]
    check(found, f'no file has the checksum of the manifest; instead of files there were {odd}')
    head,body = parse(found[0])
    for m in [model, *([learn.model] if learn else [])]:
        ps = dict(m.named_parameters())
        check(ps.keys() == {k for k in head if k != '__metadata__' and not k.startswith('train/')}, 'other names')
        for k,p in ps.items():
            i,j = head[k]['data_offsets']
            check(head[k]['dtype'] == 'F32' and head[k]['shape'] == list(p.shape) and body[i:j] == body_of(p),
                  f'{k} is not what the file holds')
    check(info['weights_sha256'] == weights_sha256(model), 'weights_sha256')
    check(len(json.dumps(info)) < 10_000_000, 'a huge answer')


def trial_state(base, rng, learn):
    "`State(...)` and `restore` within a fit"
    tensors,meta = dict(base.tensors),json.loads(base.meta)
    mutate_state(rng, tensors, meta)
    if rng.random() < 0.01: tensors,meta = dict(base.tensors),json.loads(base.meta)
    objects = [('learn', learn), *named_callbacks(learn).items(),
               *((f'metric {i}', o) for i,o in enumerate([*learn.metrics, learn.recorder.loss, learn.recorder.smooth_loss]))]
    before = {n:dict(vars(o)) for n,o in objects}
    weights = [body_of(p) for p in learn.model.parameters()]
    learn_has = {k for k in NAMES if k and '\0' not in k and hasattr(learn, k)}
    try:
        with watched(base.dir/'scratch'): state = State(learn, tensors, meta, 'mutated')
    except CharRNNError:
        check(weights == [body_of(p) for p in learn.model.parameters()], 'weights were changed before the error')
        for n,o in objects:
            check(vars(o).keys() == before[n].keys() and all(vars(o)[k] is v for k,v in before[n].items()),
                  f'{n} was changed before the error')
        raise
    try:
        with watched(base.dir/'scratch'): state.restore()
    except CharRNNError as e: raise Finding(f'not found before anything was changed: {e}') from e
    mine = {'carried', 'loss', 'smooth_loss', 'final_record', 'run_epoch', 'steps_done', 'chars_seen', 'seed',
            'epoch', 'train_iter', 'pct_train'}
    for n,o in objects:
        for k,v in before[n].items(): check(k in vars(o) and (vars(o)[k] is v or is_plain(v)), f'{n}.{k} was replaced')
        for k in vars(o).keys() - before[n].keys():
            # a callback of one's own that is switched off
            if k == 'run' and not type(o).__module__.startswith(('fastai.', 'charrnn_fa.')): continue
            check(k in mine if o is learn else not k.startswith('_') and k not in learn_has and not hasattr(type(o), k),
                  f'{n}.{k} was added')
        if o is learn:
            check(all(vars(o)[k] is v or k in mine or k in ('model', 'opt') for k,v in before[n].items()),
                  'another attribute of the Learner was replaced')
    for k,p in learn.model.named_parameters():
        check(body_of(p) == body_of(tensors[k]) and p.dtype == tensors[k].dtype and p.shape == tensors[k].shape,
              f'{k} is not what was given')
    opt = from_json(meta['opt'], dict(tensors))
    for p,s in zip((p for ps in learn.opt.param_lists for p in ps), opt['state']):
        check(all(body_of(v) == body_of(learn.opt.state[p][k]) for k,v in s.items() if isinstance(v, torch.Tensor)),
              'the state of the optimiser is not what was given')


class _Resumed(Callback):
    "Compares weights with what the file holds from which a fit goes on, before the first batch"
    order = 2000
    def __init__(self, files): self.files,self.file,self.folder = files,None,None
    def before_batch(self):
        if self.file or not self.training: return
        self.file = self.learn.checkpoint.found.manifest['file']
        self.folder = self.learn.checkpoint.folder.path # for a further fit another one
        path = self.folder/self.file
        head,body = parse((path if path.exists() else next(path.parent.glob(f'{path.stem}*{path.suffix}'))).read_bytes())
        for k,p in self.model.named_parameters():
            i,j = head[k]['data_offsets']
            check(body[i:j] == body_of(p), f'{k} is not what the file holds')


def trial_fit(base, rng):
    "The same call of `fit` with the whole callback, to its end"
    which = rng.choice(['finished', 'unfinished', 'unfinished', 'unfinished'])
    files = dict(base.files[which])
    mutate(rng, files)
    base.write(files, odd_files(rng, files))
    learn,resumed = learner(TEXT, base.dir/'scratch', which),_Resumed(files)
    with watched(base.run, base.dir/'scratch'): fit(learn, base.run, which, steps=40, cbs=[resumed])
    run = Run(resumed.folder or base.run)
    m,ts,_ = run.newest_whole()
    check(m['finished'], 'a fit that came to its end is not finished')
    for k,p in learn.model.named_parameters():
        check(body_of(p) == body_of(ts[k]), f'{k} is not what was stored at the end')
    begun = files.get(resumed.file or m['file'], b'')
    if hashlib.sha256(begun).hexdigest() in base.unchanged:
        check(weights_sha256(learn.model) == base.ends[which], 'it ends elsewhere than without the fuzzer')


class _Trials(Callback):
    "Trials of `State` in the `before_fit` of one fit, until one succeeds"
    order = 1001
    def __init__(self, f): self.f = f
    def before_fit(self): self.f(self.learn)
class _Stop(Exception): pass


@contextmanager
def limit(seconds):
    def late(*args): raise Finding(f'more than {seconds} seconds')
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


SHARES = dict(state=64, run=35, fit=1)
TRIALS = dict(run=trial_run, fit=trial_fit)

def kind_of(seed): return random.Random(f'kind {seed}').choices(list(SHARES), list(SHARES.values()))[0]


class Report:
    def __init__(self): self.counts,self.findings,self.slowest = Counter(),[],(0., None)
    def __iadd__(self, o):
        self.counts += o.counts
        self.findings += o.findings
        self.slowest = max(self.slowest, o.slowest, key=lambda s: s[0])
        return self
    def run(self, f, seed, kind):
        "One trial; whether it loaded"
        t,outcome = time.perf_counter(),'loaded'
        try:
            with limit(SECONDS): f(random.Random(seed))
        except CharRNNError as e:
            outcome = type(e).__name__
            if not 0 < len(str(e)) <= 2000: self.found(seed, kind, Finding(f'a message of {len(str(e))} characters: {str(e)[:100]}'))
        except BaseException as e:
            outcome = 'FINDING'
            self.found(seed, kind, e)
        self.counts[kind,outcome] += 1
        self.slowest = max(self.slowest, (time.perf_counter()-t, seed), key=lambda s: s[0])
        return outcome in ('loaded', 'FINDING')
    def found(self, seed, kind, e):
        self.findings.append((seed, kind, f'{type(e).__name__}: {str(e)[:300]}', ''.join(traceback.format_exception(e))[-3000:]))
    def show(self):
        print(f'{sum(self.counts.values()):,} trials')
        for (kind,outcome),n in sorted(self.counts.items()): print(f'  {kind:6} {outcome:20} {n:8,}')
        print(f'slowest {self.slowest[0]:.2f} s (seed {self.slowest[1]}), {len(self.findings)} findings')
        for seed,kind,what,_ in self.findings[:40]: print(f'  {kind:6} {what[:120]}   (seed {seed})')


def trials(base, seeds, at=lambda s: None)->Report:
    "Run the trials of `seeds` in this process"
    rep,states = Report(),[]
    warnings.simplefilter('ignore')
    with redirect_stdout(open(os.devnull, 'w')):
        for s in seeds:
            kind = kind_of(s)
            if kind == 'state': states.append(s); continue
            at(s)
            rep.run(lambda rng: TRIALS[kind](base, rng), s, kind)
        while states:
            def one_learner(learn):
                while states:
                    s = states.pop()
                    at(s)
                    if rep.run(lambda rng: trial_state(base, rng, learn), s, 'state'): break
                raise _Stop('enough')
            with suppress(_Stop):
                learner(TEXT, base.dir/'scratch', seed=3).fit_one_cycle(3, 1e-2, cbs=[*extras(), _Trials(one_learner)])
    return rep


def in_child(base, seeds)->Report:
    "The same in a child with a limit on memory; its death is a finding"
    import mmap, pickle
    shared = mmap.mmap(-1, 8)
    r,w = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(r)
        try:
            size = int(Path('/proc/self/statm').read_text().split()[0])*os.sysconf('SC_PAGE_SIZE')
            resource.setrlimit(resource.RLIMIT_AS, (size+MEMORY, size+MEMORY))
            rep = trials(base, seeds, lambda s: shared.__setitem__(slice(0, 8), struct.pack('<q', s)))
            with os.fdopen(w, 'wb') as f: pickle.dump(rep, f)
        except BaseException: traceback.print_exc()
        finally: os._exit(0)
    os.close(w)
    with os.fdopen(r, 'rb') as f: b = f.read()
    status = os.waitpid(pid, 0)[1]
    if b: return pickle.loads(b)
    rep,s = Report(),struct.unpack('<q', shared[:8])[0]
    rep.findings.append((s, kind_of(s), f'the process died with status {status}', ''))
    rep.counts[kind_of(s),'FINDING'] += 1
    return rep


def fuzz(n, seed=0, chunk=500)->Report:
    "`n` trials from `seed` on"
    from tqdm import tqdm
    rep = Report()
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None) as d:
        base = Base(d)
        with tqdm(total=n, disable=None, unit=' trials') as bar:                     # on a terminal only
            for i in range(seed, seed+n, chunk):
                rep += in_child(base, range(i, min(i+chunk, seed+n)))
                bar.update(min(chunk, seed+n-i))
                bar.set_postfix(findings=len(rep.findings))
    return rep


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('n', type=int, nargs='?', default=1000)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--only', type=int)
    args = p.parse_args()
    torch.set_num_threads(1)
    rep = fuzz(1, args.only) if args.only is not None else fuzz(args.n, args.seed)
    rep.show()
    if args.only is not None:
        for o in rep.findings: print(o[-1])
    sys.exit(bool(rep.findings))
