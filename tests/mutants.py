"""Are the tests of a run worth anything? One mistake at a time is put into the library, and some test must fail: \
python tests/mutants.py [--only TEXT ...] [--workers 2]

Each mutant takes away a check, a comparison, a bound or an fsync of the wings `run`, `store` and `checkpoint`.
It is tried in a copy of this folder: first by the checks of the notebook that it is in, then by the tests of
its wing, until one fails. A mutant that behaves as the library does says so in `same`. `make mutants` is not
part of `make test`.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from mutants_list import MUTANTS
from tqdm import tqdm

root = Path(__file__).resolve().parents[1]
TESTS = dict(
    run='test_whose_files test_runs test_formats test_fuzz test_checkpoint test_store',
    store='test_doubt test_whose_files test_urls test_store',
    checkpoint='test_ways_out test_callback_state test_other_learners test_fingerprint_fit test_fits_again '
               'test_checkpoint test_fuzz test_store',
)


@dataclass
class Mutant:
    "One line of a module, changed"
    module: str
    old: str
    new: str
    same: str = ''                                          # why no test can tell them apart

    def __str__(self): return f'{self.module}: {self.old.strip()}  ->  {self.new.strip() or "nothing"}'
    def path(self, top): return top/'charrnn_fa'/f'{self.module}.py'
    def notebook(self, top): return next((top/'nbs').glob(f"[0-9]*_{self.module.replace('/', '.')}.ipynb"))


def changed(text, m):
    if text.count(m.old) != 1: raise SystemExit(f'{text.count(m.old)} places for {m}')
    return text.replace(m.old, m.new)


def put(m, top):
    "Change the module and its notebook in a copy"
    path,book = m.path(top),m.notebook(top)
    path.write_text(changed(path.read_text(), m))
    d = json.loads(book.read_text())
    whole = lambda cell: ''.join(cell['source']) + '\n'
    cells = [o for o in d['cells'] if o['cell_type'] == 'code' and m.old in whole(o)]
    if len(cells) != 1: raise SystemExit(f'{len(cells)} cells for {m}')
    cells[0]['source'] = changed(whole(cells[0]), m).splitlines(True)
    book.write_text(json.dumps(d))


def take_back(m, top):
    for f in m.path, m.notebook: shutil.copy(f(root), f(top))


def run(top, *args):
    env = {**os.environ, 'PYTHONPATH': str(top), 'OMP_NUM_THREADS': '1'}
    try: return subprocess.run(args, cwd=top, env=env, capture_output=True, text=True, timeout=1800)
    except subprocess.TimeoutExpired: return subprocess.CompletedProcess(args, 0) # half an hour: nothing has failed


def killer(m, top):
    "What fails with a mutant; None if nothing does"
    put(m, top)
    try:
        if run(top, str(Path(sys.executable).parent/'nbdev-test'), str(m.notebook(top))).returncode: return 'notebook'
        tests = [o for t in TESTS[m.module.split('/')[0]].split() if (o := top/'tests'/f'{t}.py').exists()]
        p = run(top, sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *map(str, tests))
        return p.returncode and next((l for l in p.stdout.splitlines() if l.startswith(('FAILED', 'ERROR'))),
                                     f'status {p.returncode}') or None
    finally: take_back(m, top)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--only', nargs='+', default=[''], help='mutants with one of these texts')
    p.add_argument('--workers', type=int, default=2)
    args = p.parse_args()
    mutants = [m for o in MUTANTS if any(t in str(m := Mutant(*o)) for t in args.only)]
    for m in mutants: changed(m.path(root).read_text(), m) # none that has lost its place, before the first is tried
    files = subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    copies,alive = Queue(),[]
    with tempfile.TemporaryDirectory() as tmp, tqdm(total=len(mutants), unit='mutant', dynamic_ncols=True) as bar:
        for i in range(args.workers):
            for o in files:
                (Path(tmp)/f'{i}'/o).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root/o, Path(tmp)/f'{i}'/o)
            copies.put(Path(tmp)/f'{i}')

        def one(m):
            top,began = copies.get(),time.monotonic()
            try: by = killer(m, top)
            finally: copies.put(top)
            if not by: alive.append(m)
            bar.write(f"{'killed' if by else 'same' if m.same else 'ALIVE'} {time.monotonic()-began:4.0f} s  {m}  "
                      f"({by or m.same})", file=sys.stdout)
            sys.stdout.flush()
            bar.update()

        with ThreadPoolExecutor(args.workers) as ex: list(ex.map(one, mutants))
    judged = [m for m in mutants if not m.same]
    lost = [m for m in alive if not m.same]
    print(f'{len(judged)-len(lost)} of {len(judged)} mutants killed; {len(mutants)-len(judged)} behave as the library does')
    return len(lost) > 0.05*len(judged)


if __name__ == '__main__': sys.exit(main())
