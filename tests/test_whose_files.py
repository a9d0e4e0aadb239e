"Runs, stores and settings of strangers: nothing is followed, nothing hangs, nothing secret is kept, and each mistake is one sentence"
import os
import traceback

import inject
import pytest
import torch

from charrnn_fa.errors import CharRNNError
from charrnn_fa.run.files import RunError, open_log, pack_json
from charrnn_fa.run.folder import Lock
from charrnn_fa.run.model import Run, save_run
from charrnn_fa.run.records import owner_name, owner_record
from charrnn_fa.store.place import Place
from charrnn_fa.store.mount import StoreError, in_thread
from charrnn_fa.store.filesystem import Store, probe

KINDS = 'run.json', 'text-*.safetensors', 'step-*.safetensors', 'step-*.json'


@pytest.fixture
def run(make, tmp_path):
    learn = make(n_hid=8, emb_sz=8, head_sz=0)
    learn.fit(1, 1e-2)
    return save_run(learn, tmp_path/'run', corpus='pydocs')


def everything(path): return Run(path).info()


# Links, FIFOs, devices

@pytest.mark.parametrize('what', ['link', 'fifo', 'device'])
@pytest.mark.parametrize('pattern', KINDS)
def test_only_plain_files_are_opened(run, tmp_path, pattern, what):
    "Even where what a link leads to would do; nothing hangs"
    (f,) = run.path.glob(pattern)
    f.rename(tmp_path/'elsewhere')
    try:
        if what == 'link': f.symlink_to(tmp_path/'elsewhere')
        elif what == 'fifo': os.mkfifo(f)
        else: os.mknod(f, 0o20666, os.makedev(1, 5)) # as /dev/zero
    except OSError: pytest.skip('devices need root')
    with pytest.raises(RunError, match=f'{f.name} is a link'): in_thread(lambda: everything(run.path), 60)


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


def test_an_owner_names_no_files_elsewhere(run):
    "The file of an owner has its token in its name"
    o = dict(owner_record(run.id, '0123abcd', 7, []), token='/../../../../etc/x')
    (run.path/'owner-000007-0123abcd-0.json').write_bytes(pack_json(o))
    found = run.owner()
    assert found is None or '/' not in owner_name(found)


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
    with pytest.raises(StoreError) as e: probe(Store(URL.format(tmp_path.name), token=TOKEN))
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

@pytest.mark.parametrize('local', [False, True])
@pytest.mark.parametrize('url', ['ftp://127.0.0.1:1/r', 'github://a/b', 'dbfs://x', 'dir://x', 'generic://x',
                                 'nope://x', 'no\x1bpe://x'])
def test_urls_that_cannot_be_used(url, local, tmp_path, home):
    "One sentence each, or with `local` a warning and the folder here"
    told = []
    try: Place(url, 5, local, told.append, told.append).close()
    except CharRNNError as e: told.append(str(e))
    assert len(told) == 1 and '\n' not in told[0] and ';' in told[0] and '\x1b' not in told[0], told


@pytest.mark.usefixtures('strace')
def test_a_checkpoint_is_on_the_disk_before_its_manifest_has_a_name(run):
    "Data, their name in the folder, and the manifest itself: each forced there before the next is done"
    rc,calls = inject.calls_of(lambda: run.save(dict(w=torch.ones(2)), {}, step=9, epoch=1), ('fsync', ('rename', 'renameat', 'renameat2')))
    did = ['folder' if f'<{run.path}>' in line and name == 'fsync' else ('data' if '.safetensors' in line else 'manifest', name[:6])
           for name,_,line in calls]
    assert rc == 0 and did == [('data', 'fsync'), ('data', 'rename'), 'folder', ('manifest', 'fsync'), ('manifest', 'rename'), 'folder']
