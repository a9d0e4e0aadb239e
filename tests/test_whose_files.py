"Runs, stores and settings of strangers: nothing is followed, nothing hangs, nothing secret is kept, and each mistake is one sentence"
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace

import inject
import pytest
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import SaveModelCallback

from charrnn_fa.checkpoint import Checkpoint, hooks
from charrnn_fa.core import CharRNNError
from charrnn_fa.run.files import RunError, digest, open_log, pack_json, size_of
from charrnn_fa.run.folder import Lock, RunFolder
from charrnn_fa.run.model import Run, save_run
from charrnn_fa.run.records import owner_name, owner_record
from charrnn_fa.store.lease import next_signs
from charrnn_fa.store.locate import Place
from charrnn_fa.store.mount import StoreError
from charrnn_fa.store.threads import in_thread
from charrnn_fa.store.url import UrlStore, probe

KINDS = 'run.json', 'text-*.safetensors', 'step-*.safetensors', 'step-*.json'


@pytest.fixture
def run(make, tmp_path):
    learn = make(n_hid=8, emb_sz=8, head_sz=0)
    learn.fit(1, 1e-2)
    return save_run(learn, tmp_path/'run', corpus='pydocs')


def everything(path): return Run(path).info()


# Links, FIFOs, devices

@pytest.mark.parametrize('pattern', KINDS)
def test_a_link_is_not_followed(run, tmp_path, pattern):
    "Even where what it leads to would do"
    (f,) = run.path.glob(pattern)
    f.rename(tmp_path/'elsewhere')
    f.symlink_to(tmp_path/'elsewhere')
    with pytest.raises(RunError, match='link or no regular file'): everything(run.path)


@pytest.mark.parametrize('pattern', KINDS)
def test_a_fifo_does_not_hang(run, pattern):
    (f,) = run.path.glob(pattern)
    f.unlink()
    os.mkfifo(f)
    with pytest.raises(RunError, match='link or no regular file'): in_thread(lambda: everything(run.path), 60)


@pytest.mark.parametrize('pattern', KINDS)
def test_a_device_is_not_opened(run, pattern):
    (f,) = run.path.glob(pattern)
    f.unlink()
    try: os.mknod(f, 0o20666, os.makedev(1, 5))                                    # as /dev/zero
    except OSError: pytest.skip('devices need root')
    with pytest.raises(RunError, match='link or no regular file'): everything(run.path)


def test_a_folder_of_links_may_be_the_run_itself(run, tmp_path):
    "The person names the folder: a link to it is followed"
    (tmp_path/'link').symlink_to(run.path)
    assert everything(tmp_path/'link') == everything(run.path)


@pytest.mark.parametrize('there', ['link', 'dangling', 'fifo'])
def test_the_lock_empties_nobodys_file(tmp_path, there):
    mine,lock = tmp_path/'mine',tmp_path/'.lock'
    if there == 'fifo': os.mkfifo(lock)
    else: lock.symlink_to(mine)
    if there == 'link': mine.write_text('mine')
    with pytest.raises(RunError, match='link or no regular file'): in_thread(lambda: Lock(lock), 60)
    assert not mine.exists() or mine.read_text() == 'mine'


def test_the_log_is_appended_to_no_other_file(tmp_path):
    (tmp_path/'profile').write_text('mine\n')
    (tmp_path/'log.txt').symlink_to(tmp_path/'profile')
    with pytest.raises(RunError): open_log(tmp_path/'log.txt')
    assert (tmp_path/'profile').read_text() == 'mine\n'
    os.mkfifo(tmp_path/'fifo')
    with pytest.raises(RunError): in_thread(lambda: open_log(tmp_path/'fifo'), 60)


def test_size_is_that_of_a_file(tmp_path):
    (tmp_path/'a').write_bytes(b'abc')
    (tmp_path/'link').symlink_to(tmp_path/'a')
    assert [size_of(tmp_path/o) for o in ('a', 'link', 'no', '.')] == [3, None, None, None]


def test_an_owner_names_no_files_elsewhere(run):
    "The next signs of an owner are asked for by name, and its token is part of that"
    o = dict(owner_record(run.id, '0123abcd', 7, []), token='/../../../../etc/x')
    (run.path/'owner-000007-0123abcd-0.json').write_bytes(pack_json(o))
    found = run.owner()
    assert found is None or '/' not in ''.join(next_signs(found)) + owner_name(found)


# Secrets

URL,TOKEN = 'leaky://me:pass%40word@host/{}?sig=AbCdEf123','tok-secret-9'
SECRETS = 'pass%40word', 'pass@word', 'AbCdEf123', TOKEN


@pytest.fixture
def leaky():
    "A back end that puts all it knows into its errors"
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem
    class Leaky(MemoryFileSystem):
        protocol,fails,store,pseudo_dirs = 'leaky',True,{},['']
        def __init__(self, token=None, **kwargs):
            super().__init__(**kwargs)
            self.token = token
        @classmethod
        def _strip_protocol(cls, path):
            return MemoryFileSystem._strip_protocol('memory://'+path.split('@')[-1].split('?')[0])
        def _open(self, path, *args, **kwargs):
            if self.fails: raise ConnectionError(f'403 for {URL.format("r")} with {self.token}, pass@word\x1b[31m')
            return super()._open(path, *args, **kwargs)
    fsspec.register_implementation('leaky', Leaky, clobber=True)
    yield Leaky
    Leaky.store.clear()


def test_errors_of_a_back_end_tell_no_secrets(leaky, tmp_path, home, capfd):
    with pytest.raises(StoreError) as e: probe(UrlStore(URL.format(tmp_path.name), token=TOKEN))
    told = []
    Place(URL.format(tmp_path.name), 5, True, told.append, told.append, dict(token=TOKEN)).close()
    shown = ''.join(traceback.format_exception(e.value)) + ''.join(told) + ''.join(capfd.readouterr())
    assert '403' in shown and told and not [o for o in (*SECRETS, '\x1b') if o in shown], shown


def test_a_signed_url_is_kept_nowhere(leaky, make, tmp_path, home):
    "Neither in names nor in files, here or there; the same run is found with another signature"
    from charrnn_fa.checkpoint.callback import Checkpoint
    leaky.fails = False
    where = URL.format(tmp_path.name)
    make().fit(1, 1e-2, cbs=Checkpoint(where, steps=2, quiet=True, token=TOKEN))
    files = [o for o in home.rglob('*') if o.is_file()]
    there = [v.getvalue() for v in leaky.store.values()]
    assert len(files) > 4 and len(there) > 4
    for b in [*(o.read_bytes() for o in files), *there, *(str(o).encode() for o in files), *map(str.encode, leaky.store)]:
        assert not [o for o in SECRETS if o.encode() in b]
    again = Place(where.replace('AbCdEf123', 'Other456'), options=dict(token='other'))
    assert again.folder.finished and len(list((home/'runs').iterdir())) == 1
    again.close()


# Mistakes in one sentence

def as_nobody(code):
    "What a process without rights prints"
    code = f"import os\nfrom charrnn_fa.run.model import Run\nos.geteuid() or os.setresuid(65534, 65534, 65534)\n{code}"
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout


def test_settings_that_may_not_be_read_are_not_damaged(run):
    with tempfile.TemporaryDirectory() as d:
        shutil.copytree(run.path, f'{d}/r')
        os.chmod(d, 0o755)
        os.chmod(f'{d}/r/run.json', 0)
        said = as_nobody(f"try: Run('{d}/r')\nexcept ValueError as e: print(e)")
    assert 'run.json cannot be read (Permission denied); ask for the right to read it.' in said and 'damaged' not in said, said


BAD = dict(corpus=['x'], encoding=3, preset={}, n_steps='9', minutes=[1], epochs=-1, valid_pct='0.1')

@pytest.mark.parametrize('key', BAD)
def test_settings_of_other_kinds(run, key):
    "What the commands go on with is of the kind that they expect"
    f = run.path/'run.json'
    s = json.loads(f.read_text())
    s['info'][key] = BAD[key]
    f.write_text(json.dumps({**s, 'sha256': digest(s)}))
    with pytest.raises(RunError, match=f'info.{key} is not what it may be'): Run(run.path)


def test_settings_of_a_new_run_are_not_damaged(tmp_path):
    with pytest.raises(RunError, match=r'settings of this run cannot be kept \(info.corpus') as e:
        RunFolder(tmp_path/'r', dict(info=dict(corpus=7)))
    assert 'damaged' not in str(e.value)


@pytest.mark.usefixtures('strace')
def test_a_file_system_without_locks(tmp_path):
    "Each `flock` fails with ENOLCK, as on an NFS that has lost its lock daemon"
    def lock():
        try: Lock(tmp_path/'.lock')
        except RunError as e: (tmp_path/'said').write_text(str(e))
    assert inject.run_with_fault(lock, 'flock', '1+', 'error=ENOLCK') == (0, True)
    assert (tmp_path/'said').read_text() == f'The file system of {tmp_path} has no locks; keep the run on another disk.'


@pytest.mark.parametrize('local', [False, True])
@pytest.mark.parametrize('url', ['ftp://127.0.0.1:1/r', 'github://a/b', 'dbfs://x', 'dir://x', 'generic://x',
                                 'nope://x', 'no\x1bpe://x'])
def test_urls_that_cannot_be_used(url, local, tmp_path, home):
    "One sentence each, or with `local` a warning and the folder here"
    told = []
    try: Place(url, 5, local, told.append, told.append).close()
    except CharRNNError as e: told.append(str(e))
    assert len(told) == 1 and '\n' not in told[0] and ';' in told[0] and '\x1b' not in told[0], told


def test_a_long_name(tmp_path):
    "300 letters: no file can have that name, and a shorter one is the remedy"
    assert not RunFolder.is_run('x'*300)
    for where in 'x'*300, tmp_path/('x'*300):
        with pytest.raises(RunError, match='File name too long.; give a shorter name'): Place(where)
        with pytest.raises(RunError, match='no folder'): RunFolder(where)


def test_a_link_in_the_store_is_no_file_of_the_run(run, tmp_path):
    "The reader for all stores leaves it out, and notes why"
    m = run.newest()
    (run.path/m['file']).rename(tmp_path/'away')
    (run.path/m['file']).symlink_to(tmp_path/'away')
    assert not run.has(m) and not list(run.whole()) and 'link' in str(run.damaged[m['file']])


def test_a_half_written_model_of_another_run_stays(make, tmp_path):
    "Which that one is just writing, under a name that begins like ours"
    learn,half = make(n_hid=8),lambda name, run: tmp_path/f'models/{hooks._name_of_new(name, tmp_path/run)}.pth'
    of_us,of_other = half('model', 'r'),half('model2', 'q')
    of_us.parent.mkdir()
    for o in of_us,of_other: o.write_bytes(b'half')
    learn.path = tmp_path
    learn.fit(1, 1e-2, cbs=[SaveModelCallback(), Checkpoint(tmp_path/'r', quiet=True)])
    assert of_other.exists() and not of_us.exists()


def test_a_log_with_letters_of_the_world_in_a_plain_locale(tmp_path):
    "What is written in UTF-8 is read in it, and each checkpoint has it"
    code = f"""
from fastai.callback.progress import CSVLogger
from charrnn_fa.all import *
dls = CharDataLoaders.from_text(load_corpus('pydocs')[:3000], bs=4, seq_len=16, seed=1, device='cpu')
def größe(p, y): return p.mean()
learn = char_learner(dls, n_hid=8, metrics=größe)
with learn.no_bar(): learn.fit(1, 1e-2, cbs=[CSVLogger({str(tmp_path/'l.csv')!r}), Checkpoint({str(tmp_path/'r')!r}, steps=5)])
"""
    env = {**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONIOENCODING': 'utf-8'}
    (tmp_path/'fit.py').write_text(code, 'utf-8')
    p = subprocess.run([sys.executable, tmp_path/'fit.py'], env=env, capture_output=True, text=True, encoding='utf-8')
    assert p.returncode == 0 and 'could not be taken' not in p.stdout + p.stderr, p.stdout + p.stderr
    assert 'größe' in (tmp_path/'l.csv').read_text('utf-8')


def test_a_log_that_somebody_adds_on_the_way(make, tmp_path):
    "A run that was begun without one has no lines to give back"
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.learn.train_iter == 7: raise KeyboardInterrupt
    def fit(*cbs):
        learn = make(n_hid=8, emb_sz=8, head_sz=0)
        learn.path = tmp_path
        learn.fit(3, 1e-2, cbs=[Checkpoint(tmp_path/'r', steps=5, quiet=True), *cbs])
    with pytest.raises(KeyboardInterrupt): fit(Stop())
    fit(CSVLogger())
    lines = (tmp_path/'history.csv').read_text().splitlines()
    assert lines[0].startswith('epoch,train_loss') and lines[-1].startswith('2,')


@pytest.mark.skipif(sys.platform != 'linux', reason='others write into a program that runs')
def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    "It may be of another user, in a folder that is everybody's; a program that runs cannot be written to even by root"
    shutil.copy(shutil.which('sleep'), tmp_path/'.lock')
    with subprocess.Popen([tmp_path/'.lock', '60']) as p:
        try:
            with pytest.raises(RunError, match=r'/\.lock cannot be written to \(Text file busy\)'):
                Place._lock(SimpleNamespace(path=tmp_path, store=None))
        finally: p.kill()
