"""A pass-through FUSE file system with faults, in a process of its own, that looks like Colab's Drive mount (`fuse.drive`)

`python tests/faultfs.py MOUNTPOINT BACKING CONTROL` ends with its parent or with SIGTERM. CONTROL is a JSON file;
it is read anew at each call, so faults come and go while the folder is mounted; counts start again when it
changes. `DriveMount` does all that for a test. All keys are off by default:

errno         {op: number or [number, after] or [number, after, times]}: the first `after` calls succeed, then `times` calls
              (default: all) fail.
              Ops: getattr (also each look-up of a name), readdir, opendir, open, create, read, write, truncate,
              flush (= close), fsync, fsyncdir, rename, unlink, mkdir, rmdir, chmod, chown, utimens, statfs, getxattr.
              An errno from `release` is seen by nobody, and ENOSYS (38) of fsync or getxattr lasts until the next mount.
delay         {op: seconds} before the op; ends early when its key goes. The kernel holds its own locks meanwhile:
              a create, mkdir, unlink, rename or readdir that hangs lets the folder's other changes, listings and
              look-ups of unknown names hang too, a write or truncate that file's changes
match         a pattern such as '*.json': errno and delay only for paths (from the mount's root, starting with /) that match it
kbps          write throughput in kB/s, for each call
zero          true: writes are accepted and thrown away
hollow        true: what is written becomes zeros, so that a file keeps its size and loses its contents
uncommitted   seconds after its last write for which `user.drive.uncommitted` of a file is 'true', or true for ever; otherwise ENODATA
ids           true: `user.drive.id` is 'local-...' until committed; otherwise ENODATA
trash         a folder to which unlinked files go; a file truncated before has 0 bytes there
readonly      true: EROFS for all that writes
"""
import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from fnmatch import fnmatch
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault('FUSE_LIBRARY_NAME', 'fuse3')     # mfusepy takes libfuse 2 first
try: from mfusepy import FUSE, Operations, fuse_version_major, fuse_version_minor
except (ImportError, OSError, AttributeError) as e:
    FUSE,Operations,fuse_version_major,no_fuse = object,object,0,f'mfusepy: {e}'
else: no_fuse = None if fuse_version_major == 3 else 'mfusepy found libfuse 2; this needs libfuse 3'


def missing():
    "Why a file system cannot be mounted here, or None"
    if not sys.platform.startswith('linux') or os.geteuid(): return 'faultfs needs Linux and root'
    caps = int(next(o for o in Path('/proc/self/status').read_text().splitlines() if o.startswith('CapEff')).split()[1], 16)
    if not caps >> 21 & 1: return 'faultfs needs CAP_SYS_ADMIN to mount'
    return 'faultfs needs /dev/fuse' if not os.path.exists('/dev/fuse') else no_fuse


def op(writes=False):
    "A call of the file system: faults first; `writes`: not in a read-only one"
    def _wrap(f):
        @wraps(f)
        def _f(self, path, *args):
            if path is None: path = self.opened[args[-1]].path
            self.fault(f.__name__, path)
            if writes and self.faults.get('readonly'): raise OSError(errno.EROFS, 'read-only')
            return f(self, path, *args)
        return _f
    return _wrap


class DriveFS(Operations):
    use_ns = True
    def __init__(self, backing, control):
        self.backing,self.control,self.mutex,self.now = backing,control,threading.RLock(),time.monotonic
        self.raw,self._faults,self.calls,self.counted = b'', {}, Counter(), Counter()
        self.opened,self.written = {}, {}

    def init_with_config(self, conn, config):
        # direct_io: each read and write arrives here; 1 << 28 is FUSE_CAP_DIRECT_IO_ALLOW_MMAP, without which shared
        # maps fail
        config.direct_io = config.nullpath_ok = config.hard_remove = 1
        conn.want |= conn.capable & 1 << 28
        print('mounted', flush=True)     # and the signal handlers are set

    @property
    def faults(self):
        with self.mutex: # what was read before a change is not taken for news after it
            raw = self.controlled()
            if raw != self.raw:
                try: self._faults = json.loads(raw)
                except ValueError: return self._faults
                self.raw = raw
                self.counted.clear()
            return self._faults

    def controlled(self):
        "What CONTROL holds, by two system calls and no more: this is asked thousands of times in a test"
        try: fd = os.open(self.control, os.O_RDONLY)
        except OSError: return b'{}'
        try: return os.read(fd, 1 << 16)
        finally: os.close(fd)

    def fault(self, name, path):
        faults = self.faults
        self.calls[name] += 1
        if 'match' in faults and not fnmatch(path, faults['match']): return
        if name in faults.get('delay', {}):
            self.wait(faults['delay'][name], lambda: self.faults.get('delay', {}).get(name))
        with self.mutex:
            self.counted[name] += 1
            n = self.counted[name]
        if name in faults.get('errno', {}): self.fail(n, *(e if isinstance(e := faults['errno'][name], list) else [e]))

    def fail(self, n, number, after=0, times=float('inf')):
        if after < n <= after+times: raise OSError(number, os.strerror(number))

    def wait(self, seconds, still):
        end = self.now() + seconds
        while (left := end-self.now()) > 0 and still(): time.sleep(min(left, 0.02))

    def real(self, path): return f'{self.backing}{path}'
    def exists(self, path): return os.path.lexists(self.real(path))

    # --- what is uploaded
    def committed(self, path):
        "Whether all of `path` had its time to be uploaded"
        seconds = self.faults.get('uncommitted')
        return path not in self.written or seconds is not True and self.now()-self.written[path] >= (seconds or 0)

    # --- the calls
    def handle(self, fd, path, writing=False):
        self.opened[fd] = SimpleNamespace(path=path, writing=writing)
        return fd

    @op()
    def getattr(self, path, fh=None):
        st = os.fstat(fh) if fh else os.lstat(self.real(path))
        return dict(st_mode=st.st_mode, st_nlink=st.st_nlink, st_uid=st.st_uid, st_gid=st.st_gid, st_size=st.st_size,
                    st_blocks=st.st_blocks, st_atime=st.st_atime_ns, st_mtime=st.st_mtime_ns, st_ctime=st.st_ctime_ns)

    @op()
    def opendir(self, path): return self.handle(os.open(self.real(path), os.O_RDONLY), path)
    @op()
    def readdir(self, path, fh): return ['.', '..', *sorted(os.listdir(self.real(path)))]
    @op()
    def fsyncdir(self, path, datasync, fh): return 0

    @op()
    def open(self, path, flags):
        writing = bool(flags & (os.O_WRONLY|os.O_RDWR|os.O_TRUNC))
        if writing and self.faults.get('readonly'): raise OSError(errno.EROFS, 'read-only')
        # the kernel gives the place of each write, and Linux's pwrite would not heed it with O_APPEND
        fd = os.open(self.real(path), flags & (os.O_WRONLY|os.O_RDWR|os.O_TRUNC))
        if flags & os.O_TRUNC: self.touch(path)
        return self.handle(fd, path, writing)

    @op(True)
    def create(self, path, mode):
        fd = os.open(self.real(path), os.O_RDWR|os.O_CREAT, mode)
        self.touch(path)
        return self.handle(fd, path, True)

    @op()
    def read(self, path, size, offset, fh): return os.pread(fh, size, offset)

    @op(True)
    def write(self, path, data, offset, fh):
        faults = self.faults
        if faults.get('kbps'): self.wait(len(data)/1000/faults['kbps'], lambda: self.faults.get('kbps'))
        if faults.get('hollow') is True: data = bytes(len(data))
        n = len(data) if faults.get('zero') is True else os.pwrite(fh, data, offset)
        self.touch(path)
        return n

    def touch(self, path):
        with self.mutex: self.written[path] = self.now()

    @op(True)
    def truncate(self, path, length, fh=None):
        os.truncate(fh or self.real(path), length)
        self.touch(path)

    @op()
    def flush(self, path, fh): return 0
    @op()
    def fsync(self, path, datasync, fh): return 0

    def release(self, path, fh):
        try: self.fault('release', self.opened.pop(fh).path)
        finally: os.close(fh)
    releasedir = release

    @op(True)
    def unlink(self, path):
        trash = self.faults.get('trash')
        if trash:
            os.makedirs(trash, exist_ok=True)
            shutil.move(self.real(path), Path(trash)/f'{uuid.uuid4().hex[:8]}-{os.path.basename(path)}')
        else: os.unlink(self.real(path))
        self.written.pop(path, None)

    @op(True)
    def rename(self, old, new):
        with self.mutex:
            os.rename(self.real(old), self.real(new))
            moved = lambda p: new+p[len(old):] if p == old or p.startswith(old+'/') else p
            self.written = {moved(k): v for k,v in self.written.items() if k != new}
            for o in list(self.opened.values()): o.path = moved(o.path)

    @op(True)
    def mkdir(self, path, mode): os.mkdir(self.real(path), mode)
    @op(True)
    def rmdir(self, path): os.rmdir(self.real(path))
    @op(True)
    def chmod(self, path, mode): os.chmod(self.real(path), mode)
    @op(True)
    def chown(self, path, uid, gid): os.chown(self.real(path), uid, gid)
    @op(True)
    def utimens(self, path, times=None): os.utime(self.real(path), ns=times)

    @op()
    def statfs(self, path):
        st = os.statvfs(self.real(path))
        return {o: getattr(st, o) for o in dir(st) if o.startswith('f_') and o not in ('f_fsid', 'f_flag')}

    def getxattr(self, path, name):
        if name == 'user.faultfs.calls': return json.dumps(self.calls).encode()
        # the kernel asks for security attributes on its own
        if name.startswith('user.'): self.fault('getxattr', path)
        faults = self.faults
        if name == 'user.drive.id' and faults.get('ids'):
            return ('1Ab' if self.committed(path) else 'local-7').encode()
        if name == 'user.drive.uncommitted' and faults.get('uncommitted') is not None:
            return ['true', 'false'][self.committed(path)].encode()
        raise OSError(errno.ENODATA, 'no such attribute')


class _FUSE(FUSE):
    # mfusepy loses the file handle of ftruncate
    def truncate_fuse_3(self, path, length, fip):
        return self.operations.truncate(path and os.fsdecode(path), length, fip.contents.fh if fip else None)


class DriveMount:
    "`DriveFS` on `tmp_path/'drive'`, kept in `tmp_path/'backing'`, in a process of its own; `faults` as in CONTROL"
    def __init__(self, tmp_path, **faults):
        tmp = Path(tmp_path).resolve()
        self.mountpoint,self.backing,self.file,self.process = tmp/'drive', tmp/'backing', tmp/'faults.json', None
        self.control(**faults)
        self.remount()

    def control(self, **faults):
        "These faults and no others from now on"
        tmp = self.file.with_suffix('.new')
        tmp.write_text(json.dumps(faults, default=str))
        os.replace(tmp, self.file)

    def mounted(self):
        where = os.fsencode(self.mountpoint)
        for o in b'\\', b' ', b'\t', b'\n': where = where.replace(o, b'\\%03o' % ord(o))
        return any(o.split(b' ')[4:5] == [where] and b' - fuse.drive ' in o
                   for o in Path('/proc/self/mountinfo').read_bytes().split(b'\n'))

    def remount(self, backing=None):
        "Mount (again), perhaps what another folder holds"
        self.close()
        if backing: self.backing = Path(backing)
        for o in self.mountpoint,self.backing: o.mkdir(exist_ok=True)
        self.process = subprocess.Popen([sys.executable, __file__, self.mountpoint, self.backing, self.file], cwd='/',
                                        stdout=subprocess.PIPE)
        if not (self.process.stdout.readline() and self.mounted()):
            self.close()
            raise RuntimeError('the file system did not mount')

    def calls(self):
        "How often each op was called since the mount; a fault of getattr meets this too"
        return Counter(json.loads(os.getxattr(self.mountpoint, 'user.faultfs.calls')))

    def kill(self):
        "SIGKILL: from now on errno 107, also for calls that hang"
        if self.process: self.process.kill(); self.process.wait(); self.process.stdout.close()

    def unmount(self, lazy=True):
        "`umount -l`, by the system call: the command may hang where the file system does"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(self.mountpoint), 2 if lazy else 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def close(self):
        self.kill()
        while self.mounted(): self.unmount()
    def __enter__(self): return self
    def __exit__(self, *args): self.close()


if __name__ == '__main__':
    mountpoint,backing,control = map(os.path.abspath, sys.argv[1:4])
    ctypes.CDLL(None).prctl(1, 15)     # SIGTERM, hence a clean unmount, when the parent ends
    threads = {'max_threads': 100} if fuse_version_minor >= 12 else {}     # 10 calls that hang would be the end
    _FUSE(DriveFS(backing, control), mountpoint, foreground=True, nothreads=False, fsname='drive', subtype='drive',
          allow_other=True,
          default_permissions=True, attr_timeout=0, entry_timeout=0, negative_timeout=0, ac_attr_timeout=0, **threads)
