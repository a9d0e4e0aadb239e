"""Characters per second of `generate`, beside a plain loop of `nn.LSTM` and beside fastai's `LMLearner.predict`.

All take turns in one process; medians, with the lowest and highest of the turns. At least 20 times the plain
loop is asked of one stream, 6 times one stream of 256, and 100 times `predict` for 500 characters; the last row
has the cost of a character late in a long text over that of the first ones.
python benchmarks/generation.py [--turns 5]
"""
import argparse
import time
from itertools import islice
from statistics import median

import torch
from torch import nn

from charrnn_fa.generate import _drawn, generate
from charrnn_fa.models import CharRNN
from charrnn_fa.presets import get_preset
from charrnn_fa.text.vocab import CharVocab

symbols = [chr(40+i) for i in range(65)]


class Plain(nn.Module):
    "What a tutorial has: embedding, LSTM of 256, linear"
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(65, 64),nn.LSTM(64, 256, batch_first=True),nn.Linear(256, 65)

    def forward(self, x, state=None):
        h,state = self.rnn(self.emb(x), state)
        return self.out(h),state


@torch.no_grad()
def plain(model, n):
    "`n` characters, one after the other"
    x,state,ids = torch.zeros(1, 1, dtype=torch.long),None,[]
    for _ in range(n):
        logits,state = model(x, state)
        x = torch.multinomial((logits[0,-1]/0.8).softmax(-1), 1)[None]
        ids.append(x.item())
    return ''.join(symbols[i] for i in ids)


def predict(n):
    "A function that writes `n` characters as `LMLearner.predict` of fastai does: all of the text again for each"
    from fastai.text.all import (AWD_LSTM, BaseTokenizer, DataBlock, RandomSplitter, TextBlock, awd_lstm_lm_config,
                                 language_model_learner)
    import pandas as pd
    class Chars(BaseTokenizer):
        def __call__(self, items): return ([*o] for o in items)
    df = pd.DataFrame(dict(text=[''.join(symbols)*40]*4))
    block = TextBlock.from_df('text', is_lm=True, tok=Chars(), rules=[], seq_len=64, min_freq=1)
    dls = DataBlock(blocks=block, get_x=lambda r: r['text'], splitter=RandomSplitter(seed=0)).dataloaders(df, bs=2)
    config = {**awd_lstm_lm_config, 'n_hid':256, 'emb_sz':256, 'n_layers':1}
    learn = language_model_learner(dls, AWD_LSTM, config=config, pretrained=False)
    return lambda: learn.predict('a', n_words=n, no_bar=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--turns', type=int, default=5)
    args = p.parse_args()
    torch.manual_seed(0)
    preset = get_preset('cpu-minute')
    model,vocab,tutorial = CharRNN(65, **preset.model).eval(),CharVocab(symbols),Plain().eval()
    ways = {'plain loop of nn.LSTM(256)': (lambda: plain(tutorial, 1000), 1000),
            'generate, 1 stream': (lambda: generate(model, vocab, n=10_000, seed=0), 10_000),
            'generate, 32 streams': (lambda: generate(model, vocab, n=1000, bs=32, seed=0), 32_000),
            'generate, 256 streams': (lambda: generate(model, vocab, n=500, bs=256, seed=0), 128_000),
            'generate, 500 characters': (lambda: generate(model, vocab, n=500, seed=0), 500)}
    try: ways['LMLearner.predict, 500 characters'] = predict(500),500
    except ImportError as e: print(f'without LMLearner.predict: {e}')
    speeds = {k:[] for k in ways}
    for turn in range(args.turns+1):
        for k,(f,n) in ways.items():
            if 'predict' in k and turn > 2: continue # minutes
            t = time.perf_counter()
            f()
            if turn: speeds[k].append(n/(time.perf_counter()-t))
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}, model of cpu-minute; '
          'characters per second, median (lowest to highest)')
    for k,v in speeds.items(): print(f'{k:34} {median(v):>10,.0f}  ({min(v):,.0f} to {max(v):,.0f})')
    m = {k:median(v) for k,v in speeds.items()}
    print(f"one stream / plain loop {m['generate, 1 stream']/m['plain loop of nn.LSTM(256)']:.1f}; "
          f"256 streams / one {m['generate, 256 streams']/m['generate, 1 stream']:.1f}", end='')
    if (k := 'LMLearner.predict, 500 characters') in m:
        print(f"; 500 characters / predict {m['generate, 500 characters']/m[k]:.0f}", end='')
    ids,times = _drawn(model, torch.tensor([1]), seed=0),[]
    for _ in range(100):
        t = time.perf_counter()
        for _ in islice(ids, 1000): pass
        times.append(time.perf_counter()-t)
    print(f'; characters 90,001 to 100,000 / characters 1,001 to 11,000 {median(times[90:])/median(times[1:11]):.2f}')


if __name__ == '__main__': main()
