"""How long `charrnn sample` takes until it has answered, beside `import torch` in a fresh process (at most 1.3 times is asked).

The processes take turns; medians, lowest and highest.   python benchmarks/start.py [--turns 9]
"""
import argparse
import subprocess
import sys
import tempfile
import time
from statistics import median

from charrnn_fa.learner import char_learner
from charrnn_fa.run.model import save_run
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--turns', type=int, default=9)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        save_run(char_learner(CharDataLoaders.from_text(load_corpus('pydocs'), seed=0), precision='fp32'), f'{d}/run')
        ways = {'import torch': ['-c', 'import torch'],
                'charrnn sample': ['-m', 'charrnn_fa', 'sample', f'{d}/run', '-n', '300']}
        times = {k:[] for k in ways}
        for turn in range(args.turns+1):
            for k,line in ways.items():
                t = time.perf_counter()
                subprocess.run([sys.executable, *line], check=True, stdout=subprocess.DEVNULL)
                if turn: times[k].append(time.perf_counter()-t)
    for k,v in times.items(): print(f'{k:15} {median(v):.2f} s  ({min(v):.2f} to {max(v):.2f})')
    torch,sample = map(median, times.values())
    print(f'ratio {sample/torch:.2f}')


if __name__ == '__main__': main()
