"""Characters trained on per second, from a text to a trained model: this library, \
and fastai's own text path (`TextBlock`, `LMDataLoader`), with the same model.

The text is in a file; imports, reading, tokenising, loaders, Learner and `--epochs` epochs count, or only the
first `--steps` steps: then reading weighs more, the longer the text is.
One process each, taking turns.   python benchmarks/fastai_text.py [--chars 500000] [--turns 3] [--steps 100]
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from fastai.callback.core import Callback, CancelFitException

from charrnn_fa.text.corpus import load_corpus


class Enough(Callback):
    "Ends a fit after `n` steps"
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.train_iter >= self.n: raise CancelFitException


def ours(path, epochs, steps):
    from charrnn_fa.learner import char_learner
    from charrnn_fa.text.data import CharDataLoaders
    learn = char_learner(CharDataLoaders.from_corpus(path, seed=0))
    with learn.no_bar(), learn.no_logging(), learn.no_valid():
        learn.fit(epochs, 4e-3, cbs=[Enough(steps)] if steps else None)
    return learn.steps_done*learn.dls.train.bs*learn.dls.train.seq_len


def fastai(path, epochs, steps):
    import pandas as pd
    from fastai.text.all import BaseTokenizer, DataBlock, IndexSplitter, Learner, TextBlock
    from torch import nn
    from charrnn_fa.models import CharRNN
    from charrnn_fa.presets import get_preset

    class Chars(BaseTokenizer):
        def __call__(self, items): return ([*o] for o in items)

    class Stateful(nn.Module):
        "Our model as fastai's loop wants one: scores alone, the state kept within"
        def __init__(self, n):
            super().__init__()
            self.model,self.state = CharRNN(n, **get_preset().model),None
        def reset(self): self.state = None
        def forward(self, x):
            if self.state is not None and self.state[0].shape[1] != len(x): self.state = None
            logits,state = self.model(x, self.state)
            self.state = tuple(o.detach() for o in state)
            return logits

    text,preset = Path(path).read_text(),get_preset()
    n = int(len(text)*0.9)
    df = pd.DataFrame(dict(text=[text[:n], text[n:]]))
    block = TextBlock.from_df('text', is_lm=True, tok=Chars(), rules=[], seq_len=preset.seq_len,
                              min_freq=1, max_vocab=1000)
    dls = DataBlock(blocks=block, get_x=lambda r: r['text'],
                    splitter=IndexSplitter([1])).dataloaders(df, bs=preset.bs, seq_len=preset.seq_len)
    learn = Learner(dls, Stateful(len(dls.vocab)),
                    loss_func=lambda p,y: nn.functional.cross_entropy(p.flatten(0, 1), y.flatten()))
    learn._do_epoch_validate = lambda *args: None
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 4e-3, cbs=[Enough(steps)] if steps else None)
    return (steps or epochs*len(dls.train))*preset.bs*preset.seq_len


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--chars', type=int, default=500_000)
    p.add_argument('--epochs', type=int, default=1)
    p.add_argument('--steps', type=int)
    p.add_argument('--turns', type=int, default=3)
    p.add_argument('--one', nargs=2, metavar=('WAY', 'FILE'))
    args = p.parse_args()
    if args.one:
        began = time.perf_counter()
        n = dict(ours=ours, fastai=fastai)[args.one[0]](args.one[1], args.epochs, args.steps)
        return print(json.dumps(n/(time.perf_counter()-began)))
    speeds = dict(ours=[], fastai=[])
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as f:
        text = load_corpus('pydocs')
        f.write((text*(args.chars//len(text)+1))[:args.chars])
        f.flush()
        for _ in range(args.turns):
            for k,v in speeds.items():
                line = [sys.executable, __file__, '--one', k, f.name, '--epochs', str(args.epochs),
                        *(['--steps', str(args.steps)] if args.steps else [])]
                v.append(float(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]))
                print(f'{k:7} {v[-1]:10,.0f} characters/s', flush=True)
    a,b = map(median, speeds.values())
    length = f'{args.steps} steps' if args.steps else f'{args.epochs} epochs'
    print(f'{args.chars:,} characters, {length}, imports included: ours {a:,.0f}, fastai {b:,.0f}, ratio {a/b:.1f}')


if __name__ == '__main__': main()
