"""Checkpoints at URLs: a real S3 server in a process of its own, `memory://`, `file://`; the server goes away,
the machine too, keys stay secret"""
import hashlib
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
import warnings

import fsspec.asyn
import pytest
import torch
from fastai.callback.core import Callback

from charrnn_fa.store import lease
from charrnn_fa.checkpoint.callback import Checkpoint
from charrnn_fa.core import CharRNNError
from charrnn_fa.text.data import CharDataLoaders
from charrnn_fa.run.files import RunError, RunWarning
from charrnn_fa.run.folder import RunFolder
from charrnn_fa.learner import char_learner
from charrnn_fa.store.remote import Remote
from charrnn_fa.run.model import Run
from charrnn_fa.store.mount import StoreError
from charrnn_fa.store.retain import is_whole
from charrnn_fa.store.url import UrlStore
from machine import dawdle, ended, machine, until

forks = pytest.mark.skipif(not hasattr(fsspec.asyn, 'reset_after_fork'),
                           reason='this fsspec does not survive a fork, which is a test of two machines here')

KEY,SECRET,PASSWORD = 'AKIAQZ7XKNOTAREALKEY','9qVerySecretIndeed/Zx31+kept+nowhere0000','p@ssw0rd:of:mine'


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
    def post(self, path, data=b''):
        urllib.request.urlopen(urllib.request.Request(f'{self.url}{path}', data, {'Content-Type': 'text/plain'},
                                                      method='POST'), timeout=10).close()
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
    where,store = url,UrlStore(url, **s3.options)
    assert ended(machine(tmp_path/'a', lambda: fit(fresh(), where, [At(settle, *range(5, 75, 10)), At(killed, 75)],
                                                   **s3.options))) == -signal.SIGKILL
    assert steps_at(store) == [70, 60, 50]                                          # rotation: three stay
    shutil.rmtree(tmp_path/'a')
    monkeypatch.setattr(lease, 'silent', 1); monkeypatch.setattr(UrlStore, 'beat', 0.3)
    monkeypatch.setenv('CHARRNN_HOME', str(tmp_path/'b'))
    again = fit(fresh(None), where, quiet=False, **s3.options)
    out = capfd.readouterr().out
    assert 'goes on after step 70' in out and f'in {url}, uploaded' in out
    assert same(alone, again) and torch.equal(torch.stack(alone.recorder.losses), torch.stack(again.recorder.losses))
    assert Remote(store).checkpoints()[0]['finished'] and len(steps_at(store)) == 3
    names = store.names()
    assert (len([o for o in names if o.startswith('owner-')]) == 1 and not [o for o in names if o.startswith('.')]
            and len(names) == 2*3+3)

    # a third machine loads it, and trains nothing; a fit with other arguments goes on from there
    monkeypatch.setenv('CHARRNN_HOME', str(tmp_path/'c'))
    third = fit(fresh(None), where, [At(lambda l: pytest.fail('trained'), 1)], **s3.options)
    assert same(alone, third)
    more = fit(third, where, n_epoch=1, **s3.options)
    alone.fit_one_cycle(1, 1e-2)
    assert same(alone, more) and Remote(UrlStore(f'{where}/2', **s3.options)).checkpoints()[0]['finished']


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
        assert Run(tmp_path/'run').info()['resumes'] == [36] and not (home/'runs').exists()
        assert len(RunFolder(tmp_path/'run').checkpoints()) == 3
    else: assert len(steps_at(UrlStore(where))) == 3


@pytest.mark.parametrize('how', ['killed', 'hangs'])
def test_the_server_goes_away_and_comes_back(how, s3, url, fresh, same, home, monkeypatch, capfd):
    "Training goes on, one warning, and the copy follows"
    monkeypatch.setattr('s3fs.core.S3FileSystem.retries', 1)                          # it would try for half a minute
    options = {**s3.options, 'config_kwargs': {**s3.options['config_kwargs'], 'read_timeout': 2 if how == 'hangs' else 60}}
    alone = fresh()
    alone.fit_one_cycle(2, 1e-2)
    store,seen = UrlStore(url, **s3.options),{}
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


@pytest.mark.filterwarnings('ignore::charrnn_fa.run.files.RunWarning')
def test_a_server_that_was_emptied_gets_everything_again(s3, url, fresh, same, home, tmp_path, monkeypatch):
    def lost(learn):
        settle(learn)
        s3.kill()
        s3.start()
    learn = fit(fresh(), url, [At(lost, 25)], **s3.options)
    monkeypatch.setenv('CHARRNN_HOME', str(tmp_path/'other'))
    assert same(learn, fit(fresh(None), url, **s3.options))


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
    cs = Remote(UrlStore(url)).checkpoints()
    assert cs[0]['finished'] and len(cs) == 2
    assert len(RunFolder(learn.ckpt.place.path).checkpoints()) <= 4


def test_ctrl_c_ends_the_wait_for_a_store(memory, fresh, home, tmp_path, monkeypatch):
    "At the end of a fit, where the last checkpoint is still on its way"
    import fsspec.implementations.memory
    go = threading.Event()
    class Stuck(fsspec.implementations.memory.MemoryFileSystem):
        protocol = 'stuckmem'
        def open(self, path, mode='rb', **kwargs):
            if 'w' in mode and 'probe' not in path: go.wait(120)
            return super().open(path, mode, **kwargs)
    fsspec.register_implementation('stuckmem', Stuck, clobber=True)
    class Press(Callback):
        order = 999
        def after_fit(self): threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    old,t = signal.signal(signal.SIGINT, signal.default_int_handler),time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(fresh(), f'stuckmem://{tmp_path.name}/run', [Press()], n_epoch=1, wait=90)
    finally:
        signal.signal(signal.SIGINT, old)
        go.set()
    assert time.monotonic()-t < 60


def test_a_server_that_is_away_at_the_end_does_not_hold_up_fit(s3, url, fresh, home):
    def gone(learn):
        settle(learn)
        s3.stop()
    t = time.monotonic()
    with pytest.warns(RunWarning, match='does not take copies'): fit(fresh(), url, [At(gone, 75)], wait=3, **s3.options)
    # not for as long as the server is away
    assert time.monotonic()-t < 120
    s3.start()
    assert Remote(UrlStore(url, **s3.options)).checkpoints()[0]['finished'] is False
    fit(fresh(None), url, **s3.options)                                             # the same cell again
    assert Remote(UrlStore(url, **s3.options)).checkpoints()[0]['finished']


@pytest.fixture
def strict(s3):
    "The server checks keys: (key, secret) of a user that may do everything with S3"
    s3.kill()
    os.environ['INITIAL_NO_AUTH_ACTION_COUNT'] = '1000'
    try: s3.start()
    finally: del os.environ['INITIAL_NO_AUTH_ACTION_COUNT']
    iam = s3.client('iam')
    iam.create_user(UserName='u')
    iam.put_user_policy(UserName='u', PolicyName='p', PolicyDocument=(
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'))
    k = iam.create_access_key(UserName='u')['AccessKey']
    s3.post('/moto-api/reset-auth', b'0')
    yield k['AccessKeyId'],k['SecretAccessKey']
    s3.kill()


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


def test_wrong_keys_and_missing_buckets(strict, s3, url, fresh, home, tmp_path, capfd):
    key,secret = strict
    msg = refused(fresh(), url, capfd, **s3.options)
    assert 'cannot be written to' in msg and 'key' in msg.lower()
    msg = refused(fresh(), url, capfd, **{**s3.options, 'key': key, 'secret': SECRET})
    assert 'cannot be written to' in msg
    msg = refused(fresh(), 's3://nowhere/run', capfd, **{**s3.options, 'key': key, 'secret': secret})
    assert 'bucket' in msg
    s3.post('/moto-api/reset-auth', b'1000')
    assert [o['Name'] for o in s3.client().list_buckets()['Buckets']] == ['bucket']  # a mistyped name makes none
    assert s3.objects(tmp_path.name) == {} and not [o for o in (home/'runs').rglob('*') if o.is_file()]


def test_no_keys_and_no_server(s3, url, fresh, home, capfd, monkeypatch, tmp_path):
    for o in 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_PROFILE': monkeypatch.delenv(o, raising=False)
    for o in 'AWS_SHARED_CREDENTIALS_FILE', 'AWS_CONFIG_FILE': monkeypatch.setenv(o, str(tmp_path/'none'))
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    msg = refused(fresh(), url, capfd, **{k:v for k,v in s3.options.items() if k not in ('key', 'secret')})
    assert 'credentials' in msg
    s3.stop()
    msg = refused(fresh(), url, capfd, **s3.options)
    assert 'local=True' in msg
    # local=True goes on, and a later fit brings the run there
    with pytest.warns(RunWarning, match='until it can be used'):
        fit(fresh(), url, local=True, wait=1, **s3.options)
    s3.start()


@forks
def test_two_machines(s3, url, fresh, same, tmp_path, monkeypatch):
    "The second is refused while the first is alive; one that is silent is overridden, and keeps its copies to itself"
    alone = fresh()
    alone.fit_one_cycle(2, 1e-2)
    # two signs end the wait, however slow they are
    monkeypatch.setattr(lease, 'silent', 60); monkeypatch.setattr(UrlStore, 'beat', 0.3)
    where,store,log = url,UrlStore(url, **s3.options),tmp_path/'log'
    slow = At(dawdle(tmp_path/'go'), *range(12, 10_000))
    first = machine(tmp_path/'a', lambda: fit(fresh(), where, [slow, At(settle, 20)], quiet=False, **s3.options), log)
    try:
        until(lambda: 20 in steps_at(store), 60, 'the first checkpoint')
        monkeypatch.setenv('CHARRNN_HOME', str(tmp_path/'b'))
        with pytest.raises(RunError, match='is being trained on another machine'): fit(fresh(None), where, **s3.options)
        os.kill(first, signal.SIGSTOP)
        monkeypatch.setattr(lease, 'silent', 2)
        t = time.monotonic()
        second = fit(fresh(None), where, **s3.options)
        assert time.monotonic()-t > 2 and same(alone, second)
        newest = Remote(store).checkpoints()[0]
        assert newest['finished'] and newest['generation'] == 1 and newest['resumes']
        there = s3.objects(tmp_path.name)
        (tmp_path/'go').touch()
        os.kill(first, signal.SIGCONT)                                              # it wakes up and has more to copy
        assert ended(first) == 0
        first = None
    finally:
        if first:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)
    assert 'another process has taken over the run' in log.read_text()
    # at most the copy that it was busy with has come after
    now = s3.objects(tmp_path.name)
    assert there.items() <= now.items() and len([o for o in now.keys() - there.keys() if o.endswith('.json')]) <= 2
    assert Remote(store).checkpoints()[0] == newest and Remote(store).owner()['generation'] == 1


def test_missing_back_end(fresh, home, monkeypatch):
    "The message names the version that fits the fsspec that is there"
    import fsspec
    monkeypatch.setattr(fsspec, '__version__', '2025.3.0')
    for o in 's3fs', 'gcsfs': monkeypatch.setitem(sys.modules, o, None)              # as if it were not installed
    for o in 's3', 'gs': monkeypatch.delitem(sys.modules['fsspec.registry']._registry, o, raising=False)
    for url,fits in ('s3://b/r', "pip install 's3fs==2025.3.0'"), ('gs://b/r', "pip install 'gcsfs==2025.3.0'"):
        with pytest.raises(StoreError, match=re.escape(fits)) as e: fit(fresh(), url)
        assert '2025.3.0' in str(e.value) and e.value.__suppress_context__
    with pytest.raises(StoreError, match='no store for nope://'): fit(fresh(), 'nope://b/r')
    assert not home.exists()


def test_keys_are_kept_nowhere(s3, url, fresh, home, tmp_path, capfd):
    "Neither in the run's files here and there, nor in what is printed, shown or exported"
    import fsspec.implementations.memory
    class Odd(fsspec.implementations.memory.MemoryFileSystem):
        protocol = 'oddmem'
        def __init__(self, token=None, **kwargs): super().__init__(**kwargs)
    fsspec.register_implementation('oddmem', Odd, clobber=True)
    for where,options in (url, s3.options), (f'oddmem://user:{PASSWORD}@host/{tmp_path.name}', dict(token=SECRET)):
        learn = fresh()
        ckpt = Checkpoint(where, steps=10, **options)
        learn.fit_one_cycle(2, 1e-2, cbs=ckpt)
        learn.fit_one_cycle(1, 1e-2, cbs=ckpt)                                       # a further fit under the same name
        files = [o for o in tmp_path.rglob('*') if o.is_file()]
        there = s3.objects(tmp_path.name) if where.startswith('s3') else {k.split('@')[-1]:v.getvalue()
                                                                          for k,v in Odd.store.items()}
        assert len(files) > 10 and len(there) > 10
        for b in [*(o.read_bytes() for o in files), *there.values(), *(str(o).encode() for o in files),
                  *map(str.encode, there)]:
            assert not [o for o in (KEY, SECRET, PASSWORD) if o.encode() in b]
        shown = repr(ckpt) + str(learn.cbs) + ''.join(capfd.readouterr())
        assert not [o for o in (KEY, SECRET, PASSWORD) if o in shown], shown


def test_the_checksum_of_a_bucket_proves_a_copy(s3, url, fresh, home, monkeypatch):
    "What S3 says of an object is enough, so nothing is read back; an object of zeros in its place is found out"
    read,pieces = [],UrlStore.pieces
    monkeypatch.setattr(UrlStore, 'pieces', lambda self, name: read.append(name) or pieces(self, name))
    learn = fit(fresh(), url, **s3.options)
    assert 'uploaded' in learn.ckpt.states().values() and not [o for o in read if o.endswith('.safetensors')]
    store = UrlStore(url, **s3.options)
    store.write('a', [b'abc', b'de'])
    sha = hashlib.sha256(b'abcde').hexdigest()
    assert is_whole(store, 'a', 5, sha) and 'a' not in read
    s3.client().put_object(Bucket='bucket', Key=f"{url.removeprefix('s3://bucket/')}/a", Body=bytes(5))
    assert not is_whole(store, 'a', 5, sha) and 'a' in read
    other = UrlStore(url, **s3.options)                                              # did not write it: reads it
    store.write('b', [b'abcde'])
    assert is_whole(other, 'b', 5, sha) and 'b' in read


def test_what_others_write_to_a_bucket_is_seen(s3, url):
    "Although s3fs keeps what it has listed"
    store = UrlStore(url, **s3.options)
    store.write('a', [b'x'])
    assert store.names() == ['a'] and store.size('b') is None
    s3.client().put_object(Bucket='bucket', Key=f"{url.removeprefix('s3://bucket/')}/b", Body=b'yz')
    assert store.names() == ['a', 'b'] and store.size('b') == 2


def test_a_file_that_cannot_be_looked_at_is_not_missing(tmp_path):
    "Whatever a back end raises; a store that is away as a whole is an error"
    class Odd(UrlStore):
        error,bad = None,''
        def size(self, name):
            if name == self.bad: raise self.error
            return super().size(name)
    run,s = RunFolder(tmp_path/'r', dict(info={}, text={})),Odd('memory://odd/r')
    run.create(None, dict(w=torch.zeros(2)), {}, step=0, epoch=0)
    m,new = run.newest(),run.save(dict(w=torch.ones(2)), {}, step=5, epoch=0)
    for o in run.names(): s.write(o, [(run.path/o).read_bytes()])
    s.bad = m['file']
    for s.error in RuntimeError('503'), OSError(5, 'Input/output error'), ConnectionError():
        remote = Remote(s)
        assert remote.present() == [new] and remote.has(m) is None and remote.unsure == {m['file']}
    s.error = StoreError('is not mounted')
    with pytest.raises(StoreError): Remote(s).present()
    s.bad = ''
    s.remove(m['file'])
    remote = Remote(s)
    assert remote.has(m) is False and not remote.unsure
