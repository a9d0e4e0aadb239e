"""Are the tests of a run worth anything? One mistake at a time is put into the library, and some test must fail: \
python tests/mutants.py [--only TEXT ...] [--workers 2] [--every N]

Each mutant takes away a check, a comparison or an fsync that guards a save or a stranger's file. It is tried in a copy of this
folder: by the checks of the notebook that it is in, then by the tests of its package, until one fails. Part of `make test-all`.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from mutants_list import MUTANTS
from tqdm import tqdm

root = Path(__file__).resolve().parents[1]
def tests_of(package, top):
    "The twelve test files that import most of a package, but those that play on a screen or a GPU"
    slow = 'test_lab', 'test_tutorials', 'test_card', 'test_gpu', 'test_colab', 'test_repo'
    uses = {o:o.read_text().count(f'charrnn_fa.{package}') for o in (top/'tests').glob('test_*.py') if o.stem not in slow}
    return [str(o) for o in sorted(uses, key=lambda o: (-uses[o], o))[:12] if uses[o]]


def shown(mutant): return '{}: {}  ->  {}'.format(mutant[0], mutant[1].strip(), mutant[2].strip() or 'nothing')


def changed(text, mutant):
    _,old,new = mutant
    if text.count(old) != 1: raise SystemExit(f'{text.count(old)} places for {shown(mutant)}')
    return text.replace(old, new)


def put(mutant, top):
    "Change the module and its notebook in the copy at `top`; the files that were changed"
    module = mutant[0]
    path,book = top/f'charrnn_fa/{module}.py',next((top/'nbs').glob(f"[0-9]*_{module.replace('/', '.')}.ipynb"))
    path.write_text(changed(path.read_text(), mutant))
    d = json.loads(book.read_text())
    cell, = [o for o in d['cells'] if o['cell_type'] == 'code' and mutant[1] in ''.join(o['source'])+'\n']
    cell['source'] = changed(''.join(cell['source'])+'\n', mutant).splitlines(True)
    book.write_text(json.dumps(d))
    return path,book


def fails(top, *args):
    env = {**os.environ, 'PYTHONPATH': str(top), 'OMP_NUM_THREADS': '1'}
    try: return subprocess.run(args, cwd=top, env=env, capture_output=True, text=True, timeout=1800).returncode
    except subprocess.TimeoutExpired: return 0 # half an hour: nothing has failed


def killed(mutant, top):
    "Whether a check of its notebook or a test fails with it"
    files = put(mutant, top)
    pytest = sys.executable, '-m', 'pytest', '-x', '-q', '-m', 'not hunt', '-p', 'no:cacheprovider', *tests_of(mutant[0].split('/')[0], top)
    try: return bool(fails(top, str(Path(sys.executable).parent/'nbdev-test'), str(files[1])) or fails(top, *pytest))
    finally:
        for o in files: shutil.copy(root/o.relative_to(top), o)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--only', nargs='+', default=[''], help='mutants with one of these texts')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--every', type=int, default=1, help='each n-th of them')
    args = p.parse_args()
    mutants = [m for m in MUTANTS if any(o in shown(m) for o in args.only)][::args.every]
    for m in mutants: changed((root/f'charrnn_fa/{m[0]}.py').read_text(), m) # before the first is tried
    files = subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    copies,alive = Queue(),[]
    with tempfile.TemporaryDirectory() as tmp, tqdm(total=len(mutants), unit='mutant', dynamic_ncols=True) as bar:
        for i in range(args.workers):
            for o in files:
                (Path(tmp)/f'{i}'/o).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root/o, Path(tmp)/f'{i}'/o)
            copies.put(Path(tmp)/f'{i}')

        def one(m):
            top = copies.get()
            try: is_killed = killed(m, top)
            finally: copies.put(top)
            if not is_killed: alive.append(m)
            bar.write(f"{'killed' if is_killed else 'ALIVE '} {shown(m)}", file=sys.stdout)
            bar.update()

        with ThreadPoolExecutor(args.workers) as ex: list(ex.map(one, mutants))
    print(f'{len(mutants)-len(alive)} of {len(mutants)} mutants killed')
    return len(alive) > 0.05*len(mutants)


if __name__ == '__main__': sys.exit(main())
