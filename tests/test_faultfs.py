"The file system with faults itself: each fault shows at once and goes at once"
import errno
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import faultfs
import pytest
from faultfs import DriveMount

pytestmark = pytest.mark.usefixtures('fuse')


@pytest.fixture
def drive(tmp_path):
    with DriveMount(tmp_path) as d: yield d


@pytest.fixture
def old(drive):
    f = drive.mountpoint/'f.txt'
    f.write_bytes(b'old')
    return f


def fails(number, f, *args):
    with pytest.raises(OSError) as e: f(*args)
    return e.value.errno == number


def uncommitted(path): return os.getxattr(path, 'user.drive.uncommitted').decode()
def drive_id(path): return os.getxattr(path, 'user.drive.id').decode()
def names(path): return sorted(os.listdir(path))


def eventually(f, seconds=30):
    end = time.monotonic() + seconds
    while not f() and time.monotonic() < end: time.sleep(0.01)
    return f()


def test_passes_through_and_looks_like_drive(drive):
    m,data = drive.mountpoint, os.urandom(3_000_000)
    assert drive.mounted() and os.path.ismount(m)
    (m/'d').mkdir()
    (m/'d/a').write_bytes(data)
    assert (m/'d/a').read_bytes() == (drive.backing/'d/a').read_bytes() == data
    with open(m/'d/a', 'ab') as f: f.write(b'more')
    with open(m/'d/a', 'r+b') as f:
        f.seek(2)
        f.write(b'xx')
        f.truncate(10)
        os.fsync(f.fileno())
        assert os.fstat(f.fileno()).st_size == 10
    assert (m/'d/a').read_bytes() == data[:2]+b'xx'+data[4:10]
    os.replace(m/'d/a', m/'b')
    os.rename(m/'d', m/'e')
    os.utime(m/'b', ns=(10**9, 2*10**9))
    assert names(m) == ['b', 'e'] and (m/'b').stat().st_mtime_ns == 2*10**9 and not (m/'d').exists()
    with open(m/'b', 'rb') as f, mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mm:
        assert mm[2:4] == b'xx'
    with open(m/'b', 'rb') as f:
        (m/'b').unlink()
        assert f.read(2) == data[:2] and names(m) == names(drive.backing) == ['e']            # no .fuse_hidden file
    (m/'e').rmdir()
    fd = os.open(m, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    assert names(m) == [] and shutil.disk_usage(m).total > 0 and drive.calls()['rename'] == 2
    for o in 'id', 'uncommitted': assert fails(errno.ENODATA, os.getxattr, m, f'user.drive.{o}')


@pytest.mark.parametrize('op,call', [
    ('write', lambda f: f.write_bytes(b'x')), ('open', lambda f: f.read_bytes()),
    ('read', lambda f: f.read_bytes()), ('getattr', lambda f: f.stat()), ('flush', lambda f: f.write_bytes(b'x')),
    ('create', lambda f: (f.parent/'new').write_bytes(b'')), ('readdir', lambda f: os.listdir(f.parent)),
    ('opendir', lambda f: os.listdir(f.parent)), ('unlink', lambda f: f.unlink()),
    ('truncate', lambda f: os.truncate(f, 1)), ('rename', lambda f: os.replace(f, f.parent/'g')),
    ('mkdir', lambda f: (f.parent/'d').mkdir()), ('utimens', lambda f: os.utime(f)),
    ('getxattr', lambda f: drive_id(f)), ('chmod', lambda f: f.chmod(0o600)), ('statfs', lambda f: os.statvfs(f))])
def test_errno(drive, old, op, call):
    for n in errno.EIO, errno.EDQUOT:
        drive.control(errno={op: n})
        assert fails(n, call, old)
    drive.control(ids=True)
    old.write_bytes(b'old')
    call(old)


def test_errno_of_fsync(drive, old):
    drive.control(errno={'fsync': errno.EIO, 'fsyncdir': errno.ENOSPC})
    for path,n in (old, errno.EIO), (drive.mountpoint, errno.ENOSPC):
        fd = os.open(path, os.O_RDONLY)
        assert fails(n, os.fsync, fd)
        os.close(fd)


def test_errno_after_some_calls_and_for_some_files(drive):
    m = drive.mountpoint
    drive.control(errno={'write': [errno.ENOSPC, 2, 1]})
    with open(m/'a', 'wb', 0) as f:
        f.write(b'1')
        f.write(b'2')
        assert fails(errno.ENOSPC, f.write, b'3')
        f.write(b'4')
    assert (m/'a').read_bytes() == b'124'
    drive.control(errno={'create': errno.EIO}, match='*.json')
    (m/'b.bin').write_bytes(b'')
    assert fails(errno.EIO, (m/'b.json').write_bytes, b'')


def test_delay_hangs_one_call_only(drive, old):
    drive.control(delay={'write': 30})
    t = threading.Thread(target=old.write_bytes, args=[b'new'])
    t.start()
    t.join(0.2)
    (drive.mountpoint/'d').mkdir()
    assert t.is_alive() and names(drive.mountpoint) == ['d', 'f.txt']
    drive.control()
    t.join(20)
    assert not t.is_alive() and old.read_bytes() == b'new'


def test_kbps(drive):
    drive.control(kbps=100)
    t = time.monotonic()
    (drive.mountpoint/'a').write_bytes(bytes(30_000))
    assert 0.3 <= time.monotonic()-t < 20


def test_zero(drive, old):
    drive.control(zero=True)
    old.write_bytes(b'new')
    assert old.stat().st_size == 0 and old.read_bytes() == b''
    drive.control(zero=60)
    old.write_bytes(b'new')
    assert old.read_bytes() == b'new'
    drive.control(zero=0.1)
    assert eventually(lambda: old.stat().st_size == 0)


def test_hollow(drive, old):
    drive.control(hollow=True)
    old.write_bytes(b'new')
    assert old.stat().st_size == 3 and old.read_bytes() == bytes(3)
    drive.control(hollow=60)
    old.write_bytes(b'newer')
    assert old.read_bytes() == b'newer'
    drive.control(hollow=0.1)
    assert eventually(lambda: old.read_bytes() == bytes(5))


def test_uncommitted_and_ids(drive, old):
    drive.control(uncommitted=60, ids=True)
    old.write_bytes(b'new')
    assert uncommitted(old) == 'true' and drive_id(old).startswith('local-')
    os.replace(old, old.parent/'g')
    drive.control(uncommitted=0.1, ids=True)
    assert eventually(lambda: uncommitted(old.parent/'g') == 'false')
    new = drive_id(old.parent/'g')
    assert not new.startswith('local-')
    drive.control(uncommitted=True, ids=True, uncommitted_says=['1', '0'])
    old.write_bytes(b'')
    assert uncommitted(old) == '1' and drive_id(old)[6:] not in new
    drive.control(errno={'getxattr': errno.ENOTSUP})
    assert fails(errno.ENOTSUP, uncommitted, old)


def test_trash(drive, old, tmp_path):
    drive.control(trash=tmp_path/'trash')
    def size(): return sum(o.stat().st_size for o in (tmp_path/'trash').iterdir())
    old.unlink()
    assert size() == 3 and names(drive.mountpoint) == []
    old.write_bytes(b'old')
    os.truncate(old, 0)
    old.unlink()
    assert size() == 3 and len(names(tmp_path/'trash')) == 2


def test_duplicates(drive, old):
    drive.control(duplicates=True)
    for i in 1,2:
        (old.parent/'new').write_bytes(b'new')
        os.replace(old.parent/'new', old)
    assert (names(old.parent) == ['f (1).txt', 'f (2).txt', 'f.txt'] and old.read_bytes() == b'old'
            and (old.parent/'f (1).txt').read_bytes() == b'new')


def test_torn_rename(drive, old):
    (old.parent/'new').write_bytes(b'new')
    drive.control(torn_rename=30)
    t = threading.Thread(target=os.replace, args=[old.parent/'new', old])
    t.start()
    assert eventually(lambda: names(drive.backing) == ['new'])
    drive.control()
    t.join(20)
    assert old.read_bytes() == b'new'


def test_stale(drive, old):
    "What must be stale is looked at while a minute is given, and what must come after it with half a second"
    m = drive.mountpoint
    (m/'gone').write_bytes(b'')
    drive.control(stale=60)
    (m/'new').write_bytes(b'new one')
    (m/'gone').unlink()
    os.replace(m/'new', old)
    (m/'other').write_bytes(b'mine')
    (drive.backing/'theirs').write_bytes(b'')
    assert names(m) == ['f.txt', 'gone'] and old.read_bytes() == b'old' and old.stat().st_size == 3
    assert not (m/'gone').exists() and (m/'other').read_bytes() == b'mine'
    drive.control(stale=0.5)
    assert eventually(lambda: names(m) == ['f.txt', 'other', 'theirs'] and old.read_bytes() == b'new one'
                      and old.stat().st_size == 7)
    for change in (lambda: (drive.backing/'f.txt').write_bytes(b'elsewhere'), lambda: old.write_bytes(b'in place')):
        drive.control(stale=60)
        before = old.read_bytes()
        change()
        assert old.read_bytes() == before
        drive.control(stale=0.5)
        assert eventually(lambda: old.read_bytes() not in (before, b''))
    assert old.read_bytes() == b'in place'
    drive.control(stale=60)
    old.write_bytes(b'x')
    assert old.read_bytes() == b'in place'
    drive.control()
    assert old.read_bytes() == b'x'


def test_readonly(drive, old):
    drive.control(readonly=True)
    for f in (lambda: old.write_bytes(b''), lambda: (old.parent/'new').write_bytes(b''), old.unlink,
              lambda: os.replace(old, old.parent/'g'),
              (old.parent/'d').mkdir, lambda: os.truncate(old, 0), lambda: os.utime(old)):
        assert fails(errno.EROFS, f)
    assert old.read_bytes() == b'old' and names(old.parent) == ['f.txt']


def test_only_what_was_uploaded_is_left(drive, old, tmp_path):
    "The VM is lost: its folder goes, the cloud's is mounted"
    m,cloud = drive.mountpoint, tmp_path/'cloud'
    cloud.mkdir()
    drive.control(cloud=cloud, uncommitted=60, ids=True)
    (m/'run').mkdir()
    (m/'run/1').write_bytes(b'one')
    assert uncommitted(m/'run/1') == 'true' and not (cloud/'run/1').exists()
    drive.control(cloud=cloud, uncommitted=0.1, ids=True)
    assert eventually(lambda: uncommitted(m/'run/1') == 'false') and (cloud/'run/1').read_bytes() == b'one'
    one = drive_id(m/'run/1')
    f = open(m/'run/open', 'wb', 0)
    f.write(b'x')
    old.unlink()
    drive.control(cloud=cloud, uncommitted=True, ids=True)
    (m/'run/2').write_bytes(b'two')
    assert eventually(lambda: not (cloud/'f.txt').exists())
    drive.kill()
    assert fails(errno.ENOTCONN, os.stat, m)
    shutil.rmtree(drive.backing)
    drive.remount(cloud)
    assert names(m) == ['run'] and names(m/'run') == ['1'] and drive_id(m/'run/1') == one and not one.startswith('local-')
    for call in lambda: f.write(b'x'), f.close: assert fails(errno.ENOTCONN, call)


def test_kill_and_remount(drive, old):
    m = drive.mountpoint
    drive.control(delay={'read': 30})
    def read(): errs.append(pytest.raises(OSError, old.read_bytes).value.errno)
    errs,t = [], threading.Thread(target=read)
    t.start()
    assert eventually(lambda: drive.calls()['read'])
    drive.kill()
    t.join(20)
    assert errs in ([errno.ENOTCONN], [errno.ECONNABORTED])
    for f in os.stat, os.listdir, lambda o: os.makedirs(o/'d', exist_ok=True), lambda o: (o/'x').write_bytes(b''):
        assert fails(errno.ENOTCONN, f, m)
    assert fails(errno.EEXIST, lambda: os.makedirs(m, exist_ok=True))
    assert drive.mounted() and not os.path.ismount(m) and not os.path.exists(m)
    drive.control()
    drive.remount()
    assert old.read_bytes() == b'old'


def test_unmount_leaves_a_local_folder(drive, old):
    f = open(old, 'rb')
    assert fails(errno.EBUSY, drive.unmount, False)
    drive.unmount()
    assert not drive.mounted() and names(drive.mountpoint) == [] and f.read() == b'old'      # who has it open keeps it
    f.close()
    drive.process.wait(30)      # libfuse 3 calls an unmount beside a read that waits an end (0) or an abort (1)


def test_a_child_that_hangs_dies_with_the_mount(drive, old):
    "Not even SIGKILL ends a call that the file system has taken on"
    drive.control(delay={'open': 60})
    p = subprocess.Popen(['cat', old], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert eventually(lambda: drive.calls()['open'])
    p.kill()
    with pytest.raises(subprocess.TimeoutExpired): p.wait(0.2)
    drive.kill()
    assert p.wait(20) < 0


def test_ends_with_its_parent(tmp_path):
    code = (f'import os, sys; sys.path.insert(0, {str(Path(faultfs.__file__).parent)!r}); '
            f'from faultfs import DriveMount; d = DriveMount({str(tmp_path)!r}); os._exit(0)')
    subprocess.run([sys.executable, '-c', code], check=True)
    gone = eventually(lambda: str(tmp_path/'drive') not in Path('/proc/self/mountinfo').read_text())
    if not gone: subprocess.run(['umount', '-l', tmp_path/'drive'])
    assert gone


def test_a_bad_start_says_so(tmp_path):
    (tmp_path/'backing').write_bytes(b'')
    with pytest.raises(OSError): DriveMount(tmp_path)
