"""Is a minute a minute? `charrnn train --minutes M` quiet, disturbed in its first ten seconds, \
in its second half, and throughout, by as many busy processes as processors.

Prints the seconds from the first step, the steps, and the loss.   python benchmarks/on_time.py [FILE] [--minutes 1] [--seed 0]
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

busy = [sys.executable, '-c', 'while True: pass']
cases = {'quiet': (0, 0), 'first ten seconds': (0, 10), 'second half': (.5, 1), 'throughout': (0, 1)}


def disturb(start, end):
    "Busy processes between two times; less than 1 is a share of the minute"
    time.sleep(start)
    others = [subprocess.Popen(busy) for _ in range(os.cpu_count())]
    time.sleep(end-start)
    for o in others: o.kill()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('file', nargs='?', default='shakespeare')
    p.add_argument('--minutes', type=float, default=1.)
    p.add_argument('--seed', type=int, default=0)
    args,more = p.parse_known_args()
    whole = 60*args.minutes
    for name,ends in cases.items():
        start,end = (o*whole if o <= 1 else o for o in ends)
        with tempfile.TemporaryDirectory() as d:
            line = [sys.executable, '-m', 'charrnn_fa', 'train', args.file, '--run', f'{d}/r',
                    '--minutes', str(args.minutes), '--seed', str(args.seed), '--json', *more]
            child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for told in child.stderr:
                if 'seed' in told: break                               # the first step is near
            threading.Thread(target=child.stderr.read, daemon=True).start()
            if end: threading.Thread(target=disturb, args=(start, end), daemon=True).start()
            res = json.loads(child.stdout.read())
        print(f"{name:18} {res['seconds']:6.1f} s ({res['seconds']/whole:.2f})  {res['steps']:6,} steps  {res['nats']:.4f} nats",
              flush=True)


if __name__ == '__main__': main()
