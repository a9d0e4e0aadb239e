"Files of every format that was ever released stay loadable; `python tests/make_golden.py` made them"
import json
import math
import shutil
from pathlib import Path

import pytest
from make_golden import fit, learner, values

from charrnn_fa.checkpoint.restore import inexact
from charrnn_fa.checkpoint.state import environment
from charrnn_fa.run.model import Run, load_run

data = Path(__file__).parent/'data'
kept = sorted(data.glob('v*'))


@pytest.fixture(params=kept, ids=lambda o: o.name)
def golden(request, tmp_path):
    "A copy, so that the kept files stay as they are"
    return Path(shutil.copytree(request.param, tmp_path/request.param.name))


def expected(d): return json.loads((d/'expected.json').read_text())


def test_finished(golden, tmp_path):
    "Verified, loaded, trained further; the same cell run again trains nothing"
    want,info = expected(golden)['finished'],Run(golden/'finished').info()
    assert {k:info[k] for k in want['info']} == want['info'] and info['damaged'] == {}
    learn = load_run(golden/'finished', 'cpu')
    got = values(learn)
    assert got['weights_sha256'] == want['weights_sha256'] == info['weights_sha256']
    assert got['nats'] == pytest.approx(want['nats'], abs=1e-5)
    if not inexact(expected(golden)['environment'], environment(learn)): assert got['text'] == want['text']
    learn.fit(1, 1e-3)
    again = fit(learner((golden/'text.txt').read_text(), tmp_path, 'finished'), golden/'finished', 'finished')
    assert values(again)['weights_sha256'] == want['weights_sha256']


def test_unfinished(golden, tmp_path):
    want,run = expected(golden)['unfinished'],Run(golden/'unfinished')
    info,meta,end = run.info(),run.newest_whole()[2],want['at_the_end']
    assert {k:info[k] for k in want['info']} == want['info'] and not info['finished'] and meta['at'][1] > 0 # in mid-epoch
    learn = fit(learner((golden/'text.txt').read_text(), tmp_path), golden/'unfinished')
    got,after = values(learn),run.info()
    assert after['finished'] and after['resumes'] == [info['step']] and after['weights_sha256'] == got['weights_sha256']
    losses = [float(o) for o in learn.recorder.losses[-5:]]
    assert len(learn.recorder.losses) == after['step'] # those before the kill too
    if inexact(meta['env'], environment(learn)):
        assert got['nats'] == pytest.approx(end['nats'], abs=.02) and len(got['text']) == len(end['text'])
        assert all(math.isclose(a, b, abs_tol=.05) for a,b in zip(losses, end['losses'], strict=True))
    else: assert {**got, 'losses':losses} == {k:end[k] for k in (*got, 'losses')}


