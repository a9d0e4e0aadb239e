"""Loss on tiny Shakespeare (nanoGPT's split) after a given time, by both protocols, for several seeds; a table in Markdown.

    python benchmarks/shakespeare.py [FILE] [--minutes 1] [--seeds 0 1 2] [further options of `charrnn train`]

Each seed is a process of its own, one after the other; nothing else should run. FILE defaults to the download.
`--tune` measures on the last tenth of the training part instead, and never reads the validation part: for choosing settings.
"""
import argparse, json, os, platform, subprocess, sys, tempfile
from pathlib import Path
from statistics import median

from charrnn_fa.text.corpus import load_corpus


def charrnn(*args):
    "The JSON that a command prints"
    out = subprocess.run([sys.executable, '-m', 'charrnn_fa', *map(str, args), '--json'], check=True,
                         capture_output=True, text=True).stdout
    return json.loads(out)


def cpu():
    "The processor and what it has for bf16"
    info = Path('/proc/cpuinfo').read_text() if os.path.exists('/proc/cpuinfo') else ''
    name = next((o.split(':')[1].strip() for o in info.splitlines() if o.startswith('model name')), platform.processor())
    return (f"{name}, {os.cpu_count()} cores, "
            f"{', '.join(o for o in ('avx512f', 'avx512_bf16', 'amx_bf16') if o in info.split()) or 'no AVX-512'}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('file', nargs='?', default='shakespeare')
    parser.add_argument('--minutes', type=float, default=1.)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--tune', action='store_true')
    args,more = parser.parse_known_args()
    import torch
    print(f"{cpu()}; Python {platform.python_version()}, torch {torch.__version__}; "
          f"{args.minutes:g} minutes {' '.join(more)}{' (tuning part)' if args.tune else ''}\n")
    print('| seed | carry, nats (bits) | windows of 256, nats | steps | characters/s | seconds |\n|---|---|---|---|---|---|')
    rows = []
    with tempfile.TemporaryDirectory() as d:
        corpus = args.file
        if args.tune:
            text = load_corpus(args.file)
            corpus = f'{d}/train.txt'
            Path(corpus).write_bytes(text[:int(len(text)*0.9)].encode())
        for seed in args.seeds:
            run = f'{d}/{seed}'
            t = charrnn('train', corpus, '--run', run, '--minutes', args.minutes, '--seed', seed, '--quiet', *more)
            c,w = charrnn('eval', run),charrnn('eval', run, '--context', 256)
            rows.append((c['nats'], w['nats']))
            print(f"| {seed} | {c['nats']:.4f} ({c['bits']:.4f}) | {w['nats']:.4f} | {t['steps']:,} | "
                  f"{t['chars_per_s']:,.0f} | {t['seconds']:.1f} |", flush=True)
    print(f"| median | {median(o[0] for o in rows):.4f} | {median(o[1] for o in rows):.4f} | | | |")


if __name__ == '__main__': main()
