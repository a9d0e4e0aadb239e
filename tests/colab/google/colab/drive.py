"Google Drive as a folder"
import os
import subprocess
import time
from pathlib import Path

from . import _message

__all__ = ['flush_and_unmount', 'mount']


def _mounts():
    "Mount points and types; a dead mount is listed too, although nothing can be read there"
    rows = [line.split(' ') for line in Path('/proc/self/mountinfo').read_text().split('\n') if line] # names may hold what `splitlines` takes for a line's end
    return {r[4]: r[r.index('-')+1] for r in rows}


def _start(mountpoint):
    "Make the mount real"
    if cmd := os.environ.get('FAKE_COLAB_MOUNT_CMD'):
        # In a session of its own, as Colab's: it outlives the kernel.
        return subprocess.Popen(['sh', '-c', cmd, 'sh', mountpoint], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    os.makedirs(mountpoint, exist_ok=True)
    backing = os.environ.get('FAKE_COLAB_DRIVE')
    subprocess.run(['mount', '--bind', backing, mountpoint] if backing else ['mount', '-t', 'tmpfs', 'drive', mountpoint], capture_output=True)
    if mountpoint in _mounts():
        os.makedirs(f'{mountpoint}/MyDrive', exist_ok=True)
        if not os.path.lexists(f'{mountpoint}/My Drive'): os.symlink('MyDrive', f'{mountpoint}/My Drive')


def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    "Mount Drive; asks the browser on every call, also when it is mounted"
    answer = _message.answer('MOUNT')
    if answer == 'not_implemented' or os.environ.get('VERTEX_PRODUCT') == 'COLAB_ENTERPRISE':
        raise NotImplementedError('google.colab.drive is unsupported in this environment.')
    if ' ' in mountpoint: raise ValueError('Mountpoint must not contain a space.')
    mountpoint = os.path.expanduser(mountpoint)
    _message.blocking_request('request_auth', {'authType': 'dfs_ephemeral'}, timeout_sec=timeout_ms/1000, answer=answer)
    at = os.path.normpath(mountpoint)
    # Colab's Drive has 'My Drive' under both names, though it lists one.
    if (os.path.isdir(f'{at}/My Drive') or at in _mounts() and os.path.isdir(f'{at}/MyDrive')) and not force_remount:
        print(f'Drive already mounted at {mountpoint}; to attempt to forcibly remount, call drive.mount("{mountpoint}", force_remount=True).')
        return
    if at in _mounts(): subprocess.run(['umount', '-l', mountpoint], capture_output=True)
    if os.path.islink(mountpoint): raise ValueError('Mountpoint must not be a symlink')
    if os.path.isdir(mountpoint) and os.listdir(mountpoint): raise ValueError('Mountpoint must not already contain files')
    if not os.path.isdir(mountpoint) and os.path.exists(mountpoint): raise ValueError('Mountpoint must either be a directory or not exist')
    if not os.path.exists(os.path.dirname(at)): raise ValueError('Mountpoint must be in a directory that exists')
    if answer == 'timeout':
        from pexpect import TIMEOUT
        raise TIMEOUT('Timeout exceeded.')
    if answer in ('value_error', 'no_answer'): raise ValueError('mount failed')
    p,end = _start(mountpoint),time.monotonic() + timeout_ms/1000
    while not (at in _mounts() and os.listdir(mountpoint)):
        if p is None or p.poll() not in (None, 0) or time.monotonic() > end: raise ValueError('mount failed')
        time.sleep(0.05)
    if readonly: subprocess.run(['mount', '-o', 'remount,ro', mountpoint], capture_output=True)
    print(f'Mounted at {mountpoint}')


def flush_and_unmount(timeout_ms=24*60*60*1000):
    "Wait for the uploads and unmount"
    answer = os.environ.get('FAKE_COLAB_FLUSH', 'ok')
    if answer == 'not_implemented': raise NotImplementedError('google.colab.drive is unsupported in this environment.')
    drives = [k for k,v in _mounts().items() if v == 'fuse.drive']
    if not drives: return print('Drive not mounted, so nothing to flush and unmount.')
    if answer == 'value_error': raise ValueError('flush_and_unmount failed')
    for o in drives:
        if subprocess.run(['umount', o], capture_output=True).returncode: raise ValueError('flush_and_unmount failed')
