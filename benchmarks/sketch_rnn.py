"""A duel: letters against Gaussians. The same drawings, the same grid, the same LSTM, optimiser, schedule and
minutes; nats for each point.

sketch-rnn (Ha and Eck, arXiv 1704.03477, section 3, decoder only, written here from the paper) predicts where
the pen goes as a mixture of 20 Gaussians of two correlated variables, and what it does there (down, lifted,
end) as one of three. The character network predicts letters. A density is made a probability on the grid by the
area of a cell: with steps divided by their standard deviation `sigma`, a cell has the area (1/sigma)², so 2
ln(sigma) nats are added for each point. Points of a grid would let a Gaussian become infinitely narrow; so
sketch-rnn's steps get noise of one cell's width (uniform), in training and in measuring, which makes its loss
an upper bound of what it gives to the cell (Theis et al., arXiv 1511.01844).

    python benchmarks/sketch_rnn.py [faces|FILE.ndjson.gz] [--minutes 1 | --steps N] [--seed 0] [--out SHEETS.png]
"""
import argparse
import math
import time

import numpy as np
import torch
from torch import nn

from charrnn_fa.callback.schedule import lr_factor
from charrnn_fa.learner import char_learner
from charrnn_fa.models import CharRNN
from charrnn_fa.optim import Muon
from charrnn_fa.presets import get_preset
from charrnn_fa.show.drawings import _figure
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.text.strokes import box, fit_drawing, text_to_strokes


def rows_of(text, size):
    "Points of all drawings as rows (dx, dy, state), in cells; 0 the pen stays down after it, 1 it lifts, 2 the drawing ends"
    res = []
    for d in text_to_strokes(text.strip('\n'), size):
        pen = np.zeros(2)
        for s in d:
            cells = np.rint(np.array(s)*(size-1)/box)
            steps = np.diff(cells, axis=0, prepend=pen[None])
            state = np.zeros(len(s))
            state[-1] = 1
            res.append(np.column_stack([steps, state]))
            pen = cells[-1]
        res[-1][-1,2] = 2
    return torch.from_numpy(np.concatenate(res)).float()


class SketchRNN(nn.Module):
    "An LSTM that reads (dx, dy, one of three states) and gives a mixture for the next point"
    def __init__(self, n_hid, n_mix=20):
        super().__init__()
        self.rnn,self.out,self.n_mix = nn.LSTM(5, n_hid, batch_first=True),nn.Linear(n_hid, 6*n_mix+3),n_mix
        self.rnn.weight_ih_l0.n_gates = self.rnn.weight_hh_l0.n_gates = 4

    def forward(self, x, state=None):
        h,state = self.rnn(x, state)
        return self.out(h),state


def read(rows): return torch.cat([rows[...,:2], nn.functional.one_hot(rows[...,2].long(), 3).float()], -1)


def densities(y, to, n):
    "Log densities of the steps `to` under the mixtures (equations 3 and 4 of the paper)"
    pi,mx,my,sx,sy,rho = y[...,:6*n].unflatten(-1, (6, n)).unbind(-2)
    sx,sy,rho = sx.clamp(-7, 7).exp(),sy.clamp(-7, 7).exp(),rho.tanh()*.999
    a,b = (to[...,:1]-mx)/sx,(to[...,1:2]-my)/sy
    z,c = a**2+b**2-2*rho*a*b,1-rho**2
    return (pi.log_softmax(-1)-z/(2*c)-math.log(2*math.pi)-sx.log()-sy.log()-c.log()/2).logsumexp(-1)


def nats(model, x, to, state=None):
    "Of each point: its place and what the pen does"
    y,state = model(read(x), state)
    pen = nn.functional.cross_entropy(y[...,-3:].flatten(0, 1), to[...,2].long().flatten(),
                                      reduction='none').view(to.shape[:2])
    return pen-densities(y, to, model.n_mix),state


def scaled(rows, sigma, g):
    "Steps with the noise of a cell, over their standard deviation"
    res = rows.clone()
    res[...,:2] = (rows[...,:2]+torch.rand(rows[...,:2].shape, generator=g)-.5)/sigma
    return res


def train(rows, p, minutes, steps, seed, valid):
    "A SketchRNN after some minutes or steps, with the optimiser and schedule of the preset `p`"
    torch.manual_seed(seed)
    g,model = torch.Generator().manual_seed(seed),SketchRNN(p.n_hid)
    sigma = rows[:,:2].std().item()
    opt = Muon(list(model.parameters()), p.lr, muon_ratio=p.muon_ratio, ns_steps=p.ns_steps, wd=p.wd)
    sl,n = p.seq_len//2,len(rows)//p.bs                      # as many points as there are in the letters of a batch
    streams,state,began,i = rows[:n*p.bs].view(p.bs, n, 3),None,time.perf_counter(),0
    while i < steps if steps else time.perf_counter()-began < 60*minutes:
        at = i*sl % (n-sl-1)
        if at < sl: state = None
        x,to = (scaled(streams[:,at+k:at+k+sl], sigma, g) for k in (0, 1))
        total = steps or int((i+1)*60*minutes/max(1e-3, time.perf_counter()-began)) or 1
        opt.set_hyper('lr', p.lr*lr_factor(i, max(total, i+1), p.warmup))
        loss,state = nats(model, x, to, state)
        state = tuple(o.detach() for o in state)
        opt.zero_grad()
        loss.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), p.clip)
        opt.step()
        i += 1
    return model,sigma,i,time.perf_counter()-began


@torch.no_grad()
def measure(model, rows, sigma, seed=1, draws=4):
    "Nats for each point on the grid, as one stream that begins after a drawing's end; the mean over draws of the noise, and their spread"
    start,found = torch.tensor([[[0., 0., 2.]]]),[]
    for k in range(draws):
        to = scaled(rows[None], sigma, torch.Generator().manual_seed(seed+k))
        x = torch.cat([start, to[:,:-1]], 1)
        found.append(nats(model, x, to)[0].mean().item() + 2*math.log(sigma))
    return float(np.mean(found)),float(np.ptp(found))


@torch.no_grad()
def draw(model, sigma, size, n, temperature, seed, most=300):
    "New drawings: the temperature divides the scores and scales the variances (equation 8)"
    g,res = torch.Generator().manual_seed(seed),[]
    while len(res) < n:
        x,state,pen,strokes,what = torch.tensor([[[0., 0., 2.]]]),None,np.zeros(2),[[]],1
        for _ in range(most):
            y,state = model(read(x), state)
            pi,mx,my,sx,sy,rho = y[0,0,:6*model.n_mix].view(6, model.n_mix)
            k = torch.multinomial((pi/temperature).softmax(-1), 1, generator=g)
            a,b = torch.randn(2, generator=g)*temperature**.5
            r = rho[k].tanh()*.999
            dx = mx[k]+sx[k].exp()*a
            dy = my[k]+sy[k].exp()*(r*a+(1-r**2).sqrt()*b)
            what = torch.multinomial((y[0,0,-3:]/temperature).softmax(-1), 1, generator=g)
            pen = pen+np.rint(np.array([dx.item(), dy.item()])*sigma)
            strokes[-1].append(tuple(pen))
            if what == 2: break
            if what == 1: strokes.append([])
            x = torch.tensor([[[dx.item(), dy.item(), float(what)]]])
        strokes = [s for s in strokes if s]
        if len({*(p for s in strokes for p in s)}) > 1: res.append(fit_drawing(strokes))
    return res


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('what', nargs='?', default='faces')
    ap.add_argument('--minutes', type=float, default=1.)
    ap.add_argument('--steps', type=int)
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--out')
    args = ap.parse_args()
    p = get_preset('drawings-minute')
    dls = CharDataLoaders.from_drawings(args.what, seed=args.seed, **p.dls)
    size,texts = dls.strokes.size,[dls.vocab.textify(o.ids) for o in dls.loaders]
    rows = [rows_of(o, size) for o in texts]
    print(f'{args.what}: {len(rows[0]):,} points to train on, {len(rows[1]):,} to validate; '
          f'{torch.get_num_threads()} threads, torch {torch.__version__}')

    model,sigma,steps,seconds = train(rows[0], p, args.minutes, args.steps, args.seed, rows[1])
    gaussian,spread = measure(model, rows[1], sigma)
    n_params = sum(o.numel() for o in model.parameters())
    print(f'Gaussians  {gaussian:.3f} nats a point (noise: {spread:.3f})   {n_params:,} parameters, '
          f'{steps:,} steps in {seconds:.0f} s', flush=True)

    learn = char_learner(dls, preset=p, seed=args.seed)
    began = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): steps = learn.fit_steps(args.steps, None if args.steps else args.minutes)
    r = learn.evaluate()
    n_params = sum(o.numel() for o in learn.model.parameters())
    assert type(learn.model) is CharRNN
    print(f"letters    {r['nats_per_point']:.3f} nats a point                  {n_params:,} parameters, "
          f"{steps:,} steps in {time.perf_counter()-began:.0f} s")
    if args.out:
        sheets = draw(model, sigma, size, 40, .4, args.seed),learn.draw(40, temperature=.7, seed=args.seed)
        for name,ds in zip(('gaussians', 'letters'), sheets):
            _figure(ds, []).savefig(args.out.replace('.png', f'_{name}.png'), dpi=80, facecolor='white')


if __name__ == '__main__': main()
