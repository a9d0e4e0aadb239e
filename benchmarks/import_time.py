"""What `from charrnn_fa import learner` costs beside `import fastai.basics` (at most 1.2 times is asked).

Fresh processes taking turns, medians.   python benchmarks/import_time.py [--turns 7]
"""
import argparse, subprocess, sys, time
from statistics import median

statements = {'ours': 'from charrnn_fa import learner', 'fastai': 'import fastai.basics'}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--turns', type=int, default=7)
    args = parser.parse_args()
    times = {k: [] for k in statements}
    for turn in range(args.turns+1):
        for k,s in statements.items():
            t = time.perf_counter()
            subprocess.run([sys.executable, '-c', s], check=True)
            if turn: times[k].append(time.perf_counter()-t)
    ours,fastai = (median(times[k]) for k in statements)
    print(f'from charrnn_fa import learner {ours:.2f} s, import fastai.basics {fastai:.2f} s, ratio {ours/fastai:.3f}')


if __name__ == '__main__': main()
