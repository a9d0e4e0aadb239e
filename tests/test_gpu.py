"""Exact on a GPU, with deterministic settings: killed, taken up by a fresh process on the same card, and the same to the bit

Without a GPU only the row on a CPU runs, which shows that the test itself works.
"""
import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from fastai.callback.core import Callback

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.learner import char_learner

gpu = lambda *args: pytest.param(*args, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here'))


class Die(Callback):
    order = 2000
    def __init__(self, step): self.step = step
    def after_batch(self):
        if not self.training or self.learn.steps_done != self.step: return
        self.checkpoint.saver.writer.wait(20)
        os.kill(os.getpid(), signal.SIGKILL)


def train(d, arch, device, precision, die):
    "Two layers with dropout, by Muon, in one cycle of three epochs"
    torch.use_deterministic_algorithms(True)
    dls = CharDataLoaders.from_text(load_corpus('pydocs')[:20_000], bs=8, seq_len=32, seed=5, device=device)
    learn = char_learner(dls, arch=arch, n_hid=64, n_layers=2, dropout=0.3, precision=precision)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 1e-2, cbs=[Checkpoint(f'{d}/run', steps=10), *([Die(die)] if die else [])])
    sha = lambda ts: hashlib.sha256(b''.join(t.detach().cpu().float().contiguous().numpy().tobytes() for t in ts)).hexdigest()
    opt = [v for s in learn.opt.state_dict()['state'] for _,v in sorted(s.items()) if torch.is_tensor(v)]
    with open(f'{d}/result.json', 'w') as f:
        json.dump(dict(weights=sha(learn.model.parameters()), losses=sha(learn.recorder.losses), opt=sha(opt),
                       carried=sha(learn.carried), text=learn.generate('The', n=80, seed=1)), f)


def process(clean, d, arch, device, *args):
    "A fresh process, or on a CPU a fork of one that has imported everything and run no torch operation; its status, and what it said"
    d.mkdir(exist_ok=True)
    if device == 'cpu':
        rc,said = clean.run(log := d/'log', train, d, arch, device, *args),log.read_text()
        log.unlink()
        return subprocess.CompletedProcess(args, rc, said, said)
    args = arch,device,*args
    env = {**os.environ, 'CUBLAS_WORKSPACE_CONFIG': ':16:8'}
    return subprocess.run([sys.executable, __file__, str(d), *map(str, args)], env=env, capture_output=True, text=True)


@pytest.mark.parametrize('arch,device,precision', [
    ('lstm', 'cpu', 'fp32'), *(gpu(a, 'cuda', p) for a in ('lstm', 'gru', 'rnn') for p in ('fp32', 'fp16')),
    gpu('lstm', 'cuda', 'bf16')])
def test_killed_twice_and_the_same(clean, tmp_path, arch, device, precision):
    p = process(clean, tmp_path/'alone', arch, device, precision, 0)
    assert p.returncode == 0, p.stderr
    for die in 47, 118:
        p = process(clean, tmp_path/'killed', arch, device, precision, die)
        assert p.returncode == -signal.SIGKILL, p.stderr
    p = process(clean, tmp_path/'killed', arch, device, precision, 0)
    assert p.returncode == 0 and 'No longer exact' not in p.stdout, p.stdout + p.stderr
    assert (tmp_path/'killed/result.json').read_text() == (tmp_path/'alone/result.json').read_text()
    assert RunFolder(tmp_path/'killed/run').resumes() == [40, 110]


@pytest.mark.parametrize('then,now', [gpu('cuda', 'cpu'), gpu('cpu', 'cuda')])
def test_the_other_device_goes_on_and_says_so(clean, tmp_path, then, now):
    "An fp16 run goes on in fp32 where there is no GPU"
    assert process(clean, tmp_path/'r', 'lstm', then, 'fp16' if then == 'cuda' else 'fp32', 118).returncode == -signal.SIGKILL
    p = process(clean, tmp_path/'r', 'lstm', now, 'fp32', 0)
    assert (p.returncode == 0 and f'device {then} -> {now}' in p.stdout
            and (then == 'cpu' or 'fp16 -> fp32' in p.stdout)), p.stdout + p.stderr


if __name__ == '__main__': train(*sys.argv[1:5], int(sys.argv[5]))
