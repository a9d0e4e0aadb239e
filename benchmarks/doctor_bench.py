"""What the doctor finds in the programs of `tests/planted`, and what three other tools find in them

Each program is looked at in a process of its own, once by the doctor and once by each tool of `doctor_rivals.py`; time
begins when the program is made. An error or a timeout of the doctor is a miss. The tools are installed apart, in the
versions named there (or --skip-rivals). A finding's rank is its place among the causes; a consequence stands behind
its cause, so it is never first. A pair is found if both its faults are among the first three.

python benchmarks/doctor_bench.py [--only NAMES] [--skip-rivals] [--others-from FILE] [--seconds 60] [--jobs 2] [--out FILE] [--json FILE]
"""
import argparse
import importlib
import itertools
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from collections import Counter, defaultdict
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
PLANTED = HERE.parent/'tests'
ours = [str(o) for o in (HERE, PLANTED, HERE.parent)]
sys.path[:0] = [o for o in ours if o not in sys.path]
certainties = 'exact','strong','weak'
MAKE,GRACE = 60,30 # seconds to make a program; and beyond what was given, before a process is ended


def programs(only):
    "Those of the modules that are there, as (module, name, ids, also, kind)"
    import planted
    for o in planted.MODULES:
        try: importlib.import_module(f'planted.{o}')
        except ModuleNotFoundError as e:
            if e.name != f'planted.{o}': raise
            print(f'There is no tests/planted/{o}.py', file=sys.stderr)
    res = [dict(module=p.make.__module__, name=p.name, ids=[*p.ids], also=[*p.also], kind=p.kind)
           for p in planted.PROGRAMS]
    wanted = {*only.replace(',', ' ').split()}
    return [p for p in res if not wanted or wanted & {p['name'], *p['ids'], p['module'].split('.')[-1]}]


# In the child

def as_dict(f):
    return dict(id=f.id, certainty=f.certainty, message=f.message, follows=[as_dict(o) for o in f.follows])


def is_doctors(e):
    "Does an error come from the doctor, and not from the program's training?"
    return any(Path(o.filename).parent.name == 'doctor' for o in traceback.extract_tb(e.__traceback__))


def by_doctor(given, seconds):
    "As a user asks it"
    from charrnn_fa import doctor
    importlib.import_module('charrnn_fa.doctor.registry').raises_own_errors = True # so that they are counted
    if 'watch' not in given: return [as_dict(o) for o in doctor.diagnose(**given, seconds=seconds).findings]
    cb = doctor.Doctor()
    try: given['watch'](given['learn'], [cb])
    except Exception as e:
        if is_doctors(e): raise
    return [as_dict(o) for o in cb.findings]


def by_rival(who, given, seconds):
    import doctor_rivals as R
    try: said = R.rivals[who](given, seconds)
    except R.NotApplicable as e: return dict(not_applicable=str(e))
    return [dict(check=o.check, level=o.level, words=' '.join(o.words.split())[:300], names=sorted(R.named(who, o)))
            for o in said]


def look(conn, module, name, who, seconds):
    "The child: make a program, let `who` look at it, and say what came out"
    null = os.open(os.devnull, os.O_WRONLY)
    for o in 1, 2: os.dup2(null, o)
    try:
        given = getattr(importlib.import_module(module), name)()
        conn.send('made')
        began = time.perf_counter()
        said = by_doctor(given, seconds) if who == 'doctor' else by_rival(who, given, seconds)
        conn.send(dict(said=said, seconds=time.perf_counter()-began))
    except BaseException as e:
        words = ' '.join(str(e).split())[:300]
        conn.send(dict(error=f'{type(e).__name__}: {words}', at=traceback.format_exc()[-1500:]))


# In the parent

class Job:
    "A child at work"
    def __init__(self, ctx, program, who, seconds):
        self.program,self.who,self.seconds,self.made = program,who,seconds,False
        self.conn,theirs = ctx.Pipe(duplex=False)
        given = theirs,program['module'],program['name'],who,seconds
        self.process = ctx.Process(target=look, args=given, daemon=True)
        self.process.start()
        theirs.close()
        self.until = time.monotonic()+MAKE

    def result(self):
        "What came out, or None if it is still at work"
        if self.conn.poll():
            try: o = self.conn.recv()
            except EOFError: return dict(error='its process ended')
            if o != 'made': return o
            self.made,self.until = True,time.monotonic()+self.seconds+GRACE
        if time.monotonic() > self.until:
            return dict(error='was not done in time' if self.made else 'the program was not made in time')

    def end(self, wait=0):
        "It may have something to tidy up"
        self.process.join(wait)
        if self.process.is_alive(): self.process.kill()
        self.process.join()
        self.conn.close()


def run(todo, n_jobs):
    "All of `todo`, pairs of a program and a way to start it; yields each with what came out"
    jobs,todo = [],iter(todo)
    try:
        while True:
            jobs += [Job(*o) for o in itertools.islice(todo, n_jobs-len(jobs))]
            if not jobs: return
            wait([o.conn for o in jobs], timeout=.5)
            for o in [*jobs]:
                if (res := o.result()) is None: continue
                o.end(0 if 'time' in res.get('error', '') else 3)
                jobs.remove(o)
                yield o.program,o.who,res
    finally:
        for o in jobs: o.end()


def looked_at(args, todo, whos):
    "Each program with what all said of it, as far as there was time"
    from tqdm import tqdm
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1)//args.jobs)))
    os.environ['PYTHONPATH'] = os.pathsep.join([*ours, os.environ.get('PYTHONPATH', '')])
    can_fork = 'forkserver' in multiprocessing.get_all_start_methods()
    ctx = multiprocessing.get_context('forkserver' if can_fork else 'spawn')
    if can_fork: ctx.set_forkserver_preload(['fastai.text.all', 'charrnn_fa.learner'])
    seconds = {who:args.seconds if who == 'doctor' else args.rival_seconds for who in whos}
    jobs = [(ctx, p, who, seconds[who]) for p in todo for who in whos]
    try:
        with tqdm(total=len(jobs), file=sys.stderr, smoothing=.1) as bar:
            for p,who,res in run(jobs, args.jobs):
                p.setdefault('by', {})[who] = res
                bar.set_postfix_str(f"{p['name'][:30]} ({who})")
                bar.update()
    except KeyboardInterrupt: print('Interrupted: what follows is of the programs that were done', file=sys.stderr)
    return [p for p in todo if all(o in p.get('by', ()) for o in whos)]


def add_others(todo, file, others):
    "What the others said in an earlier run; a program that was not there then has no part"
    known = {p['name']:p['by'] for p in json.loads(file.read_text())}
    for p in todo: p['by'] = {k:v for k,v in known.get(p['name'], {}).items() if k in others}
    return [p for p in todo if len(p['by']) == len(others)]


# What it comes to

def flat(findings): return [o for f in findings for o in [f, *flat(f['follows'])]]


def ranked(findings):
    "Pairs of rank and finding: causes in order, each consequence behind its cause"
    for i,f in enumerate(findings):
        for j,o in enumerate([f, *flat(f['follows'])]): yield 1+i+j,o


def said_of(p, who='doctor'):
    said = p['by'][who].get('said', [])
    return said if isinstance(said, list) else []


def place(p, ids):
    "Rank and finding of the first of `ids` that the doctor names, or None"
    return min(((r, f) for r,f in ranked(said_of(p)) if f['id'] in ids), key=lambda o: o[0], default=None)


def answers(p, id):
    "Ids that name a planted fault: for one of a pair only those of its own kind"
    return {id, *(o for o in p['also'] if len(p['ids']) == 1 or o[0] == id[0])}


def places(p): return [place(p, answers(p, o)) for o in p['ids']]

def is_first(p): return any(o and o[0] == 1 for o in places(p))

def is_found(p): return all(o and o[0] <= 3 for o in places(p))

def is_applied(p, who): return isinstance(p['by'][who].get('said'), list)

def finds(p, who):
    named = {o for s in said_of(p, who) for o in s['names']}
    return all(answers(p, o) & named for o in p['ids'])


def share(n, of): return f'{n} of {of}' + (f' ({n/of:.0%})' if of else '')


def table(head, rows, left=1):
    "In Markdown; columns from `left` on to the right"
    lines = [head, ['---' if i < left else '---:' for i in range(len(head))], *rows]
    return '\n'.join(f"| {' | '.join(str(o) for o in row)} |" for row in lines)


def machine():
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [o.split(':', 1)[1].strip() for o in lines if o.startswith('model name')]
    name = names[0] if names else platform.processor() or platform.machine()
    n = os.environ['OMP_NUM_THREADS']
    return (f"{name}, {os.cpu_count()} processors, Python {platform.python_version()}, PyTorch {version('torch')}, "
            f"fastai {version('fastai')}, {n} thread{'s'*(n != '1')} a process")


def certainty_of(ps):
    n = Counter(o[1]['certainty'] for p in ps for o in places(p) if o and o[0] <= 3)
    return ', '.join(f'{k} {n[k]}' if len(n) > 1 else k for k in certainties if n[k])


def seconds_of(ps, who='doctor'):
    s = [p['by'][who]['seconds'] for p in ps if 'seconds' in p['by'][who]]
    return f'{median(s):.1f}' if s else '-'


def rival_cell(ps, who):
    "How many it found, and of how many if it cannot look at all of them"
    applied = [p for p in ps if is_applied(p, who)]
    n = sum(finds(p, who) for p in ps)
    return '-' if not applied else f'{n}' + (f' of {len(applied)}' if len(applied) < len(ps) else '')


def entry_row(k, title, ps, others):
    return [k, title, len(ps), sum(map(is_first, ps)), sum(map(is_found, ps)), sum(not is_found(p) for p in ps),
            certainty_of(ps), seconds_of(ps), *(rival_cell(ps, o) for o in others)]


def by_entry(single, others):
    from charrnn_fa.doctor.report import catalogue
    of = defaultdict(list)
    for p in single: of[p['ids'][0]].append(p)
    head = ['', 'entry', 'programs', 'first', 'first three', 'missed', 'certainty', 'median s', *others]
    rows = [entry_row(k, title, of[k], others) for k,title in catalogue.items() if of[k]]
    rows.append(entry_row('', 'all', single, others))
    without = [k for k in catalogue if not of[k]]
    return table(head, rows, 2) + (f"\n\nWithout a program: {', '.join(without)}." if without else '')


def by_kind(single, others):
    kinds = sorted({p['kind'] for p in single})
    head = ['kind', 'programs', 'first', 'first three', 'missed', 'median s', *others]
    rows = []
    for k in kinds:
        n,first,three,missed,_,*rest = entry_row('', '', [p for p in single if p['kind'] == k], others)[2:]
        rows.append([k, n, first, three, missed, *rest])
    return table(head, rows)


def rank_text(o): return str(o[0]) if o else 'not named'


def by_pair(pairs, others):
    rows = [[p['name'], ' '.join(p['ids']), *(rank_text(o) for o in places(p)), 'yes' if is_found(p) else 'no',
             *('yes' if finds(p, o) else 'no' if is_applied(p, o) else '-' for o in others)] for p in pairs]
    return table(['program', 'planted', 'rank of one', 'of the other', 'found', *others], rows, 2)


def of_healthy(healthy, others):
    "How many healthy programs are told of a fault"
    n = len(healthy)
    lines,rows = [],[]
    for k in certainties:
        bad = [p for p in healthy if any(f['certainty'] == k for f in flat(said_of(p)))]
        rows.append(['doctor', k, share(len(bad), n)])
        for p in bad:
            ids = ', '.join(f['id'] for f in flat(said_of(p)) if f['certainty'] == k)
            lines.append(f"- {k}: {ids} in `{p['name']}` ({p['kind']})")
    for who in others:
        applied = [p for p in healthy if is_applied(p, who)]
        levels = Counter(level for p in applied for level in {s['level'] for s in said_of(p, who)})
        rows += [[who, level, share(c, len(applied))] for level,c in sorted((levels or {'any':0}).items())]
        checks = Counter(c for p in applied for c in {s['check'] for s in said_of(p, who)})
        if checks: lines.append(f'- {who}: ' + ', '.join(f'{k} in {c}' for k,c in checks.most_common()))
    return '\n\n'.join([table(['who', 'level', 'healthy programs'], rows, 2), '\n'.join(lines)]).strip()


def short(f):
    more = f", with {', '.join(o['id'] for o in flat(f['follows']))}" if f['follows'] else ''
    return f"{f['id']} ({f['certainty']}{more})"


def miss_line(p):
    "A program whose fault is not among the first three, and what was said instead"
    later = [f'{k} has rank {o[0]}' for k,o in zip(p['ids'], places(p)) if o and o[0] > 3]
    said = p['by']['doctor'].get('error') or '; '.join(map(short, said_of(p))) or 'nothing'
    if found := said_of(p): said += f". {' '.join(found[0]['message'].split())[:160]}"
    return f"- {' '.join(p['ids'])} `{p['name']}` ({p['kind']}): {said}" + (f" ({', '.join(later)})" if later else '')


def why_not(p, who):
    "Why a rival did not look at a program"
    return ' '.join((p['by'][who].get('error') or p['by'][who]['said']['not_applicable']).split())[:90]


def rival_notes(done, others):
    import doctor_rivals as R
    lines = []
    for who in others:
        n,why = len(done),Counter(why_not(p, who) for p in done if not is_applied(p, who))
        at = f'looked at {share(n-sum(why.values()), n)} programs, median {seconds_of(done, who)} s.'
        lines.append(f'- {who} {R.versions[who]}: {at}')
        lines += [f'  - not at {c}: {k}' for k,c in why.most_common(8)]
    tables = [table([f'{who}: its check', 'names'], R.names[who].items(), 2) for who in others]
    return '\n\n'.join(['\n'.join(lines), *tables])


def totals(single, pairs, healthy, errors, others):
    first,three = (sum(map(f, single)) for f in (is_first, is_found))
    both,one = (sum(map(f, pairs)) for f in (is_found, is_first))
    lines = [
        f'One fault: {share(first, len(single))} first, {share(three, len(single))} among the first three.',
        f'Pairs: {share(both, len(pairs))} both among the first three, {share(one, len(pairs))} one of them first.',
        f'Healthy: {share(sum(bool(said_of(p)) for p in healthy), len(healthy))} with a finding.',
        f"Errors and timeouts of the doctor: {len(errors)}, of which {sum(bool(p['ids']) for p in errors)} are misses."]
    for o in others:
        a,b = (sum(finds(p, o) for p in ps) for ps in (single, pairs))
        lines.append(f'{o}: {share(a, len(single))} with one fault, {share(b, len(pairs))} pairs.')
    return '\n'.join(f'- {o}' for o in lines)


def how(done, others, args, seconds):
    command = ' '.join(['python benchmarks/doctor_bench.py', *sys.argv[1:]])
    limits = f'The doctor has {args.seconds:g} seconds for each' + f', the others {args.rival_seconds:g}'*bool(others)
    earlier = ' What the others said is of an earlier run, of the same programs.'*bool(args.others_from)
    return (f'`{command}`: {len(done)} programs of `tests/planted`, {args.jobs} at a time, '
            f'in {seconds/60:.0f} minutes. {limits}.{earlier}')


def report(done, others, args, seconds):
    "All of it in Markdown"
    healthy,single,pairs = ([p for p in done if min(len(p['ids']), 2) == n] for n in range(3))
    errors = [p for p in done if 'error' in p['by']['doctor']]
    timed = sorted((p for p in done if p not in errors), key=lambda p: -p['by']['doctor']['seconds'])
    missed = [p for p in single+pairs if not is_found(p)]
    parts = ['# The doctor beside others', machine() + '.', how(done, others, args, seconds),
             totals(single, pairs, healthy, errors, others)]
    if single: parts += ['## By entry', by_entry(single, others), '## By kind of program', by_kind(single, others)]
    if pairs: parts += ['## Pairs', by_pair(pairs, others)]
    if healthy: parts += ['## Healthy programs', of_healthy(healthy, others)]
    rows = [[p['name'], f"{p['by']['doctor']['seconds']:.1f}"] for p in timed[:10]]
    parts += ['## Slowest', table(['program', 'seconds'], rows)]
    parts += [f'## Missed ({len(missed)}), and what was said', '\n'.join(map(miss_line, missed)) or 'None.']
    if bad := [p for p in errors if not p['ids']]:
        lines = [f"- `{p['name']}`: {p['by']['doctor']['error']}" for p in bad]
        parts += ['## Errors in healthy programs', '\n'.join(lines)]
    if others: parts += ['## What the others looked at', rival_notes(done, others)]
    return '\n\n'.join(parts) + '\n'


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--only', default='', help='names of programs, ids or modules, with commas or spaces between')
    p.add_argument('--skip-rivals', action='store_true')
    p.add_argument('--others-from', type=Path, help='the --json of an earlier run: only the doctor is asked anew')
    p.add_argument('--seconds', type=float, default=60)
    p.add_argument('--rival-seconds', type=float, default=20,
                   help='for each of the others; it cuts short the last check of neural-net-checklist')
    p.add_argument('--jobs', type=int, default=1)
    p.add_argument('--out', type=Path, help='default: doctor_bench.md, if all programs are asked')
    p.add_argument('--json', type=Path, help='all that was said')
    args = p.parse_args()
    others = [] if args.skip_rivals else ['torchtest2', 'neural-net-checklist', 'torch-audit']
    began = time.perf_counter()
    if not (todo := programs(args.only)): sys.exit('There are no such programs')
    if args.others_from: todo = add_others(todo, args.others_from, others)
    done = looked_at(args, todo, ['doctor'] if args.others_from else ['doctor', *others])
    text = report(done, others, args, time.perf_counter()-began)
    if out := args.out or (None if args.only else HERE/'doctor_bench.md'): out.write_text(text)
    if args.json: args.json.write_text(json.dumps(done, indent=1))
    print(text)


if __name__ == '__main__': main()
