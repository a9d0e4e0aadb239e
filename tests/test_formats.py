"Files of every format that was ever released stay loadable; `python tests/make_golden.py` made them"
import json
import math
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from make_golden import fit, learner, values

from charrnn_fa.run.records import format_version
from charrnn_fa.run.model import Run, load_run
from charrnn_fa.checkpoint.state import environment, inexact

data = Path(__file__).parent/'data'
kept = sorted(o for o in data.glob('v*'))


def exact(then, learn): return not inexact(then, environment(learn))


def close(a, b):
    assert a['nats'] == pytest.approx(b['nats'], abs=0.02) and len(a['text']) == len(b['text'])


def test_the_format_of_today_is_kept(): assert f'v{format_version}' in [o.name for o in kept]


@pytest.fixture(params=kept, ids=lambda o: o.name)
def golden(request, tmp_path):
    "A copy, so that the kept files stay as they are"
    d = tmp_path/request.param.name
    shutil.copytree(request.param, d)
    return d


def expected(d): return json.loads((d/'expected.json').read_text())


def test_finished(golden):
    want = expected(golden)
    info = Run(golden/'finished').info()
    assert {k:info[k] for k in want['finished']['info']} == want['finished']['info'] and info['damaged'] == {}
    learn = load_run(golden/'finished', 'cpu')
    got = values(learn)
    assert got['weights_sha256'] == want['finished']['weights_sha256'] == info['weights_sha256']
    assert got['nats'] == pytest.approx(want['finished']['nats'], abs=1e-5)
    if exact(want['environment'], learn): assert got['text'] == want['finished']['text']
    learn.fit(1, 1e-3)                                                               # and it can be trained further


def test_finished_by_the_same_call(golden, tmp_path):
    "The cell run again loads the run and trains nothing"
    text = (golden/'text.txt').read_text()
    learn = fit(learner(text, tmp_path, 'finished'), golden/'finished', 'finished')
    assert values(learn)['weights_sha256'] == expected(golden)['finished']['weights_sha256']


def test_unfinished(golden, tmp_path):
    want,text = expected(golden),(golden/'text.txt').read_text()
    run = Run(golden/'unfinished')
    info = run.info()
    assert {k:info[k] for k in want['unfinished']['info']} == want['unfinished']['info'] and not info['finished']
    _,_,meta = run.newest_whole()
    assert meta['at'][1] > 0                                                         # in mid-epoch
    learn = fit(learner(text, tmp_path), golden/'unfinished')
    got,end = values(learn),want['unfinished']['at_the_end']
    after = Run(golden/'unfinished').info()
    assert after['finished'] and after['resumes'] == [info['step']] and after['weights_sha256'] == got['weights_sha256']
    losses = [float(o) for o in learn.recorder.losses[-5:]]
    assert len(learn.recorder.losses) == after['step']                               # those before the kill too
    if exact(meta['env'], learn):
        assert ({k:got[k] for k in ('weights_sha256', 'text', 'nats')}
                == {k:end[k] for k in ('weights_sha256', 'text', 'nats')} and losses == end['losses'])
    else:
        close(got, end)
        assert all(math.isclose(a, b, abs_tol=0.05) for a,b in zip(losses, end['losses'], strict=True))


def test_kept_files_are_small():
    files = [o for o in data.rglob('*') if o.is_file()]
    assert files and sum(o.stat().st_size for o in files) < 400_000
    # nothing of a machine
    assert not [o for o in files for s in (b'/tmp/', b'/home/') if s in o.read_bytes()]
    # a short name may stand in tensors by chance
    assert not [o for o in files if o.suffix == '.json' and f'"{socket.gethostname()}"' in o.read_text()]


def test_kept_files_are_tracked():
    "Nothing in them is ignored by git, nor changed at line ends"
    files = [str(o) for o in data.rglob('*') if o.is_file()]
    try: p = subprocess.run(['git', 'check-ignore', *files], cwd=data, capture_output=True, text=True)
    except FileNotFoundError: pytest.skip('git is not installed')
    if p.returncode == 128: pytest.skip('not in a git repository')
    assert p.stdout == ''
    attrs = subprocess.run(['git', 'check-attr', 'text', *files], cwd=data, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    assert len(attrs) == len(files) and all(o.endswith('text: unset') for o in attrs)
