"""Muon on gates of equal length, on each apart, on parameters as they are, and PyTorch's own: loss after some steps on pydocs, and
milliseconds per optimiser step.

Same model, seed, batches and learning rates for all; medians over seeds.   python benchmarks/muon.py [--steps 600] [--seeds 0 1 2]
"""
import argparse, time
from statistics import median

import torch

from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.learner import char_learner
from charrnn_fa.models import char_splitter
from charrnn_fa.optim import AdamW, Muon, mark_gates, newton_schulz


def whole(model):
    "A splitter that takes each parameter as one matrix"
    for o in model.rnns,model.head:
        for p in o.parameters():
            if p.ndim == 2: p.n_gates = 1
    return char_splitter(model)


class Apart(Muon):
    "Each gate is made orthogonal by itself"
    def _muon(self, ps, h):
        lr = h['lr']*h['muon_ratio']
        for p in ps:
            gates = newton_schulz(self._direction(p, h).unflatten(0, (self.n_gates[p], -1)),
                                  int(h['ns_steps']), self.ns_dtype)
            p.mul_(1 - lr*h['wd']).add_(gates.flatten(0, 1), alpha=-lr*max(1, gates.shape[-2]/gates.shape[-1])**0.5)


class TorchMuon(AdamW):
    "torch.optim.Muon on the same matrices, AdamW on the rest"
    def __init__(self, params, lr, muon_ratio=10., ns_steps=5, **hypers):
        super().__init__(params, lr, muon_ratio=muon_ratio, **hypers)
        gates = [p for ps in self.param_lists for p in ps if hasattr(p, 'n_gates')]
        self.muon = torch.optim.Muon(gates, lr=lr*muon_ratio, momentum=0.95, ns_steps=ns_steps)
    def step_group(self, ps, h):
        super().step_group([p for p in ps if not hasattr(p, 'n_gates')], h)
    def step(self, closure=None):
        super().step()
        h = self.hypers[-1]
        for g in self.muon.param_groups: g.update(lr=h['lr']*h['muon_ratio'], weight_decay=h['wd'])
        self.muon.step()


forms = {f'{name}, {n} steps': (splitter, opt, n) for n in (3, 4, 5)
         for name,splitter,opt in (('equally long', mark_gates, Muon), ('apart', mark_gates, Apart),
                                   ('as it is', whole, Muon))}
forms['torch.optim.Muon, 5 steps, bf16'] = whole,TorchMuon,5


def run(form, seed, steps, text):
    "Validation loss after `steps`, and the median time of an optimiser step"
    splitter,opt,ns_steps = forms[form]
    learn = char_learner(CharDataLoaders.from_text(text, seed=seed), splitter=splitter, precision='fp32')
    p = learn.preset
    learn.opt_func = lambda params, lr: opt(params, lr=lr, muon_ratio=p.muon_ratio, ns_steps=ns_steps)
    learn.create_opt()
    times,step = [],learn.opt.step
    def timed():
        t = time.perf_counter()
        step()
        times.append(time.perf_counter()-t)
    learn.opt.step = timed
    with learn.no_bar(), learn.no_logging(), learn.no_valid(): learn.fit_steps(steps)
    return learn.evaluate()['nats'],median(times)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--steps', type=int, default=600)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    text = load_corpus('pydocs')
    print(f'{args.steps} steps, {len(args.seeds)} seeds, {torch.get_num_threads()} threads, torch {torch.__version__}\n')
    print('| form | nats, median (all) | ms per optimiser step |\n|---|---|---|')
    for form in forms:
        rs = [run(form, s, args.steps, text) for s in args.seeds]
        print(f"| {form} | {median(r[0] for r in rs):.4f} ({', '.join(f'{r[0]:.4f}' for r in rs)}) | "
              f"{median(r[1] for r in rs)*1e3:.1f} |", flush=True)


if __name__ == '__main__': main()
