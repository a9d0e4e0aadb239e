"""Checkpoints at URLs: a real S3 server in a process of its own, `memory://`, `file://`; the server goes away,
the machine too, keys stay secret"""
import hashlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
import warnings

import fsspec.asyn
import pytest
import torch
from fastai.callback.core import Callback

from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.errors import CharRNNError
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.run.files import RunWarning
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.learner import char_learner
from charrnn_fa.store.copies import Remote
from charrnn_fa.run.model import Run
from charrnn_fa.store.copies import is_whole
from charrnn_fa.store.filesystem import Store
from machine import ended, machine, until

forks = pytest.mark.skipif(not hasattr(fsspec.asyn, 'reset_after_fork'),
                           reason='this fsspec does not survive a fork, which is a test of two machines here')

KEY,SECRET = 'AKIAQZ7XKNOTAREALKEY','9qVerySecretIndeed/Zx31+kept+nowhere0000'


SERVER = """
import pathlib, pickle, sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
from werkzeug.test import Client
app = DomainDispatcherApplication(create_backend_app)
c = Client(app)
for k,b in {'': b'', **pickle.loads(pathlib.Path(sys.argv[2]).read_bytes())}.items(): \
assert c.put(f'/bucket/{k}', data=b, base_url='http://127.0.0.1').status_code == 200
run_simple('127.0.0.1', int(sys.argv[1]), app, threaded=True)
"""


class S3:
    "moto's S3 server in a process; `stop` and `start` keep what is in it, `kill` does not"
    def __init__(self, log):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        self.url,self.log,self.kept,self.process = f'http://127.0.0.1:{self.port}',log,{},None
        self.start()
    def client(self, service='s3', key=KEY, secret=SECRET):
        import boto3
        return boto3.client(service, endpoint_url=self.url, aws_access_key_id=key, aws_secret_access_key=secret,
                            region_name='us-east-1')
    def start(self):
        self.log.with_suffix('.kept').write_bytes(pickle.dumps(self.kept))
        with open(self.log, 'ab') as f:
            self.process = subprocess.Popen([sys.executable, '-c', SERVER, str(self.port), self.log.with_suffix('.kept')],
                                            stdout=f, stderr=f)
        until(self.answers, 300, 'the server')
    def answers(self):
        assert self.process.poll() is None, self.log.read_text()
        try: urllib.request.urlopen(f'{self.url}/moto-api/', timeout=5).close()
        except OSError: return False
        return True
    def stop(self):
        self.kept = self.objects()
        self.kill()
    def kill(self):
        self.process.send_signal(signal.SIGCONT)        # not to one that has ended
        self.process.kill()
        self.process.wait()
    def objects(self, prefix=''):
        s3 = self.client()
        pages = s3.get_paginator('list_objects_v2').paginate(Bucket='bucket', Prefix=prefix)
        return {o['Key']:s3.get_object(Bucket='bucket', Key=o['Key'])['Body'].read() for p in pages
                for o in p.get('Contents', [])}
    @property
    def options(self):
        return dict(key=KEY, secret=SECRET, endpoint_url=self.url,
                    config_kwargs=dict(connect_timeout=30, read_timeout=60, retries=dict(max_attempts=0)))


@pytest.fixture(scope='module')
def _s3(tmp_path_factory):
    for o in 's3fs', 'moto', 'flask_cors': pytest.importorskip(o)
    s = S3(tmp_path_factory.mktemp('s3')/'log')
    yield s
    s.kill()


@pytest.fixture
def s3(_s3):
    _s3.kept = {}
    if _s3.process.poll() is not None: _s3.start()
    return _s3


@pytest.fixture
def url(tmp_path):
    "Another folder for each test: what a test leaves behind may still write to its own"
    return f's3://bucket/{tmp_path.name}/run'


@pytest.fixture
def memory():
    import fsspec
    fs = fsspec.filesystem('memory')
    yield fs
    fs.store.clear(); fs.pseudo_dirs[:] = ['']


@pytest.fixture
def fresh(text, tmp_path):
    "Learners as a new process would make them, but for the seed"
    def _fresh(seed=5, n=2800, **kwargs):
        dls = CharDataLoaders.from_text(text[:n], bs=4, seq_len=16, seed=seed, path=tmp_path, device='cpu')
        learn = char_learner(dls, **{**dict(n_hid=16, emb_sz=8, head_sz=0, dropout=0.2, precision='fp32'), **kwargs})
        learn.logger = lambda log: None
        return learn.remove_cbs(learn.progress)
    return _fresh


class At(Callback):
    "Call `f` at each training step of `steps`, in front of the checkpoint"
    order,run_valid = 999,False
    def __init__(self, f, *steps): self.f,self.steps = f,steps
    def after_batch(self):
        if self.train_iter+1 in self.steps: self.f(self.learn)


def settle(learn):
    ckpt = learn.checkpoint
    assert ckpt.saver.writer.wait(60) and (ckpt.saver.mirror is None or ckpt.saver.mirror.wait(60))


def killed(learn):
    "SIGKILL, after what was saved has been copied"
    settle(learn)
    os.kill(os.getpid(), signal.SIGKILL)


def fit(learn, where, cbs=(), n_epoch=2, **kwargs):
    learn.ckpt = Checkpoint(where, **{**dict(steps=10, quiet=True), **kwargs})
    learn.fit_one_cycle(n_epoch, 1e-2, cbs=[learn.ckpt, *cbs])
    return learn


def steps_at(store): return [m['step'] for m in Remote(store).checkpoints()]


@forks
def test_the_machine_is_lost_and_the_bucket_brings_the_run_back(s3, url, fresh, same, tmp_path, monkeypatch, capfd):
    alone = fresh()
    alone.fit_one_cycle(2, 1e-2)
    where,store = url,Store(url, **s3.options)
    assert ended(machine(tmp_path/'a', lambda: fit(fresh(), where, [At(settle, *range(5, 75, 10)), At(killed, 75)],
                                                   **s3.options))) == -signal.SIGKILL
    assert steps_at(store) == [70, 60, 50]                                          # rotation: three stay
    shutil.rmtree(tmp_path/'a')
    monkeypatch.setenv('CHARRNN_HOME', str(tmp_path/'b'))
    again = fit(fresh(None), where, quiet=False, **s3.options)
    out = capfd.readouterr().out
    assert 'goes on after step 70' in out and f'in {url}, uploaded' in out
    assert same(alone, again) and torch.equal(torch.stack(alone.recorder.losses), torch.stack(again.recorder.losses))
    assert Remote(store).checkpoints()[0]['finished'] and len(steps_at(store)) == 3
    names = store.names()
    assert (len([o for o in names if o.startswith('owner-')]) == 1 and not [o for o in names if o.startswith('.')]
            and len(names) == 2*3+3)


@pytest.mark.parametrize('scheme', ['memory', 'file'])
def test_other_urls(scheme, memory, fresh, same, tmp_path, home):
    alone = fresh()
    alone.fit_one_cycle(2, 1e-2)
    where = f'memory://{tmp_path.name}/run' if scheme == 'memory' else f'file://{tmp_path}/run'
    class Stop(Exception): pass
    def stop(learn):
        settle(learn)
        raise Stop('stopped')
    with pytest.raises(Stop): fit(fresh(), where, [At(stop, 37)], n_epoch=2)
    shutil.rmtree(home, ignore_errors=True)
    again = fit(fresh(None), where, n_epoch=2)
    assert same(alone, again)
    assert same(alone, fit(fresh(None), where, n_epoch=2))
    if scheme == 'file':
        assert Run(tmp_path/'run').info()['resumes'] == [30] and not (home/'runs').exists()
        assert len(RunFolder(tmp_path/'run').checkpoints()) == 3
    else: assert len(steps_at(Store(where))) == 3


@pytest.mark.parametrize('how', ['killed', 'hangs'])
def test_the_server_goes_away_and_comes_back(how, s3, url, fresh, same, home, monkeypatch, capfd):
    "Training goes on, one warning, and the copy follows"
    monkeypatch.setattr('s3fs.core.S3FileSystem.retries', 1)                          # it would try for half a minute
    options = {**s3.options, 'config_kwargs': {**s3.options['config_kwargs'], 'read_timeout': 2 if how == 'hangs' else 60}}
    alone = fresh()
    alone.fit_one_cycle(2, 1e-2)
    store,seen = Store(url, **s3.options),{}
    def gone(learn):
        settle(learn)
        s3.stop() if how == 'killed' else os.kill(s3.process.pid, signal.SIGSTOP)
    def back(learn):
        until(lambda: learn.checkpoint.saver.mirror.trouble, 60, 'the trouble')
        seen['states'] = set(learn.checkpoint.states().values())
        s3.start() if how == 'killed' else os.kill(s3.process.pid, signal.SIGCONT)
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        learn = fit(fresh(), url, [At(gone, 25), At(back, 60)], quiet=False, **options)
    told = [str(w.message) for w in ws if issubclass(w.category, RunWarning)]
    assert len(told) == 1 and 'does not take copies' in told[0] and 'is back' in capfd.readouterr().out, told
    assert same(alone, learn) and 'local' in seen['states']
    m = Remote(store).checkpoints()[0]
    assert m['finished'] and learn.ckpt.states()[m['file']] == 'uploaded'


def test_a_slow_store_gets_whole_copies(memory, fresh, home, tmp_path):
    "What is being copied stays on this machine until that is done, however many saves come in between"
    import fsspec.implementations.memory
    class Slow(fsspec.implementations.memory.MemoryFileSystem):
        protocol = 'slowmem'
        def open(self, path, mode='rb', **kwargs):
            if 'w' in mode: time.sleep(0.15)
            return super().open(path, mode, **kwargs)
    fsspec.register_implementation('slowmem', Slow, clobber=True)
    url = f'slowmem://{tmp_path.name}/run'
    with warnings.catch_warnings():
        warnings.simplefilter('error', RunWarning)
        learn = fit(fresh(), url, [At(lambda l: l.ckpt.saver.writer.wait(60), *range(1, 999))], steps=2, keep=2)
    cs = Remote(Store(url)).checkpoints()
    assert cs[0]['finished'] and len(cs) == 2
    assert len(RunFolder(learn.ckpt.place.path).checkpoints()) <= 4


def refused(learn, where, capfd, **options):
    "The one sentence with which a fit is refused; keys must not be in it, nor in anything else that is shown"
    capfd.readouterr()
    with pytest.raises(CharRNNError) as e, warnings.catch_warnings():
        warnings.simplefilter('error', RunWarning)
        fit(learn, where, quiet=False, **options)
    shown = ''.join(traceback.format_exception(e.value)) + ''.join(capfd.readouterr())
    for o in (KEY, SECRET, options.get('key'), options.get('secret')): assert not o or o not in shown
    msg = str(e.value)
    assert '\n' not in msg and msg.endswith('.') and ';' in msg, msg
    return msg


def test_no_keys_and_no_server(s3, url, fresh, home, capfd, monkeypatch, tmp_path):
    for o in 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_PROFILE': monkeypatch.delenv(o, raising=False)
    for o in 'AWS_SHARED_CREDENTIALS_FILE', 'AWS_CONFIG_FILE': monkeypatch.setenv(o, str(tmp_path/'none'))
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    msg = refused(fresh(), url, capfd, **{k:v for k,v in s3.options.items() if k not in ('key', 'secret')})
    assert 'credentials' in msg
    assert 'bucket' in refused(fresh(), 's3://nowhere/run', capfd, **s3.options)
    assert [o['Name'] for o in s3.client().list_buckets()['Buckets']] == ['bucket']  # a mistyped name makes none
    s3.stop()
    assert 'local=True' in refused(fresh(), url, capfd, **s3.options)
    # local=True goes on, and a later fit brings the run there
    with pytest.warns(RunWarning, match='until it can be used'):
        fit(fresh(), url, local=True, wait=1, **s3.options)
    s3.start()


def test_the_checksum_of_a_bucket_proves_a_copy(s3, url, fresh, home, monkeypatch):
    "What S3 says of an object is enough, so nothing is read back; an object of zeros in its place is found out"
    read,pieces = [],Store.pieces
    monkeypatch.setattr(Store, 'pieces', lambda self, name: read.append(name) or pieces(self, name))
    learn = fit(fresh(), url, **s3.options)
    assert 'uploaded' in learn.ckpt.states().values() and not [o for o in read if o.endswith('.safetensors')]
    store = Store(url, **s3.options)
    store.write('a', [b'abc', b'de'])
    sha = hashlib.sha256(b'abcde').hexdigest()
    assert is_whole(store, 'a', 5, sha) and 'a' not in read
    s3.client().put_object(Bucket='bucket', Key=f"{url.removeprefix('s3://bucket/')}/a", Body=bytes(5))
    other = Store(url, **s3.options)                                              # did not write it: reads it
    assert not is_whole(other, 'a', 5, sha) and 'a' in read
    store.write('b', [b'abcde'])
    assert is_whole(other, 'b', 5, sha) and 'b' in read


