"The ways out of a fit that are not its end: errors, output that cannot be written, processes that were forked, weights that are no numbers"
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from fastai.callback.all import CancelFitException, Callback, GradientAccumulation, MixUp, SaveModelCallback, TerminateOnNaNCallback

import charrnn_fa.run.folder
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.run.folder import Lock, RunFolder
from kills import newest_step
from test_checkpoint import At, Noise, plain, small
from test_fits_again import other, ours

HERE = Path(__file__).parent


@pytest.fixture
def short(text): return text[:1000]


def script(d, body, **kwargs):
    "A Python process of its own that has a small Learner, `learn`, and a folder, `d`"
    head = f'''
        import os, sys, signal, time, multiprocessing
        sys.path.insert(0, {str(HERE)!r})
        from pathlib import Path
        from test_checkpoint import At, Callback, Checkpoint, small
        from charrnn_fa.text.corpus import load_corpus
        d = Path({str(d)!r})
        learn = small(d, load_corpus('pydocs')[:1000], 5)
    '''
    code = textwrap.dedent(head) + body
    return subprocess.Popen([sys.executable, '-c', code], env={**os.environ, 'OMP_NUM_THREADS': '1'}, text=True, **kwargs)


# Other processes

FORKS = '''
class Fork(Callback):
    def before_batch(self):
        if self.training and self.train_iter == 2:
            self._p = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,), daemon=True)
            self._p.start()
            (d/'pid').write_text(str(self._p.pid))

learn.fit(1, 1e-2, cbs=[Fork(), Checkpoint(d/'r', quiet=True)])
'''

def test_the_interpreter_ends_beside_a_daemon(tmp_path):
    "Python terminates daemons at its end, and waits for them"
    p = script(tmp_path, FORKS)
    try: assert p.wait(120) == 0
    finally:
        p.kill()
        try: os.kill(int((tmp_path/'pid').read_text()), signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError): pass
    assert RunFolder(tmp_path/'r').finished


@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT])
def test_a_forked_process_has_the_handlers_of_before(short, tmp_path, sig):
    "Two checkpoints stand in front of them; the parent keeps its own"
    seen = []
    class Fork(Callback):
        def before_batch(self):
            if not self.training or self.train_iter != 2: return
            r,w = os.pipe()
            if not os.fork():
                os.write(w, str(signal.getsignal(sig) is before).encode())
                os._exit(0)
            os.close(w)
            seen.append(os.read(r, 10))
            seen.append(signal.getsignal(sig) is before)
            os.close(r)
            os.wait()
    before = signal.default_int_handler if sig == signal.SIGINT else signal.getsignal(sig)
    old = signal.signal(sig, before)
    try: ours(tmp_path, short).fit(1, 1e-2, cbs=[Fork(), *(Checkpoint(tmp_path/o, quiet=True) for o in 'ab')])
    finally: signal.signal(sig, old)
    assert seen == [b'True', False] and RunFolder(tmp_path/'a').finished
