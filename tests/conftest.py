"Shared by the tests: small texts, small Learners, a real web server"
import importlib
import os
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import browser as browsers
import faultfs
import inject
import kills
import pytest
import torch
import torch._dynamo  # noqa: F401: the first optimiser of a process imports it, for seconds, and some tests give a doctor a second or two

from charrnn_fa.checkpoint.writer import Saver
from charrnn_fa.text.corpus import load_corpus
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.learner import char_learner

torch.set_num_threads(1)
importlib.import_module('charrnn_fa.doctor.registry').raises_own_errors = True # which a report would only mention


@pytest.fixture(scope='session')
def text(): return load_corpus('pydocs')[:6000]


@pytest.fixture
def dls(text, tmp_path): return CharDataLoaders.from_text(text, bs=4, seq_len=16, seed=7, path=tmp_path, device='cpu')


@pytest.fixture
def make(dls):
    "A small Learner without a bar; keyword arguments go to `char_learner`"
    def _make(dls=dls, **kwargs):
        learn = char_learner(dls, **{**dict(n_hid=16, emb_sz=8, head_sz=0, precision='fp32'), **kwargs})
        learn.remove_cbs(learn.progress)
        return learn
    return _make


@pytest.fixture
def learn(make): return make()


@pytest.fixture
def settled(monkeypatch):
    """Training waits for each save. Else a snapshot that still waits for the writer is replaced by the next,
    and which ones get to the disk is a matter of speed."""
    give = Saver.give
    def _give(self, job):
        give(self, job)
        assert self.writer.wait(60)
    monkeypatch.setattr(Saver, 'give', _give)


# What a machine may lack

# fixtures, and why their tests are skipped here, or None
LACKS = dict(fuse=faultfs.missing, strace=inject.missing, browser=browsers.missing)
HAVE = dict(fuse='apt-get install fuse3, as root on Linux with /dev/fuse', strace='apt-get install strace',
            browser='apt-get install chromium; pip install playwright')


@pytest.fixture(scope='session')
def fuse(): "For a test that mounts a file system"


@pytest.fixture(scope='session')
def strace(): "For a test that lets system calls fail"


@pytest.fixture(scope='session')
def browser():
    "A chromium without a window"
    if why := browsers.missing(): pytest.skip(why)
    with browsers.launched() as b: yield b


def pytest_runtest_setup(item):
    "Skip from here, not in a fixture or by a mark, which pytest's summary would give a line for each test"
    for o,missing in LACKS.items():
        if o in item.fixturenames and (why := missing()): pytest.skip(why)


def pytest_terminal_summary(terminalreporter):
    "The last word is what was not tested, and how to have it: a store that nobody tried must not look like one that works"
    whys = Counter(o.longrepr[2].removeprefix('Skipped: ') for o in terminalreporter.stats.get('skipped', []))
    for what,missing in LACKS.items():
        if n := whys[missing()]:
            terminalreporter.write_line(f'NOT TESTED: {n} tests, as {missing()}; to have them: {HAVE[what]}.',
                                        red=True, bold=True)


@pytest.fixture
def same():
    "Whether two models have equal weights, to the bit"
    return lambda a, b: all(torch.equal(p, q) for p,q in zip(a.model.parameters(), b.model.parameters(), strict=True))


@pytest.fixture(scope='session')
def clean():
    "A process that has run no torch operation, and forks for the test"
    c = kills.Clean()
    yield c
    c.close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        self.server.asked.append(self.path)
        answer = self.server.answers[self.path.split('?')[0]]
        if callable(answer): return answer(self)
        status,body = answer if isinstance(answer, tuple) else (200, answer)
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server():
    """A web server on this machine: `server.answers[path]` is what it gives, `server.asked` what it was asked
    for; an answer that hangs waits for `server.over`"""
    s = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
    s.answers,s.asked,s.over,s.url = {},[],threading.Event(),f'http://127.0.0.1:{s.server_port}'
    # looks every 10 ms whether it is to end
    threading.Thread(target=s.serve_forever, args=[0.01], daemon=True).start()
    yield s
    s.over.set()
    s.shutdown()
    s.server_close()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('CHARRNN_HOME', str(tmp_path/'home'))
    return tmp_path/'home'


def pytest_collection_modifyitems(config, items):
    "With EVERY=n in the environment, of the tests that hunt each n-th (.ci/run has no hours)"
    every = int(os.environ.get('EVERY', 1))
    hunts = [o for o in items if o.get_closest_marker('hunt')]
    left_out = {*hunts} - {*hunts[::every]}
    items[:] = [o for o in items if o not in left_out]
    config.hook.pytest_deselected(items=[*left_out])
