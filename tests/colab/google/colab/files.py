"Files to and from the browser"
import os

from . import _message

__all__ = ['download']


def download(filename):
    "Send a file to the browser"
    if not os.path.exists(filename): raise FileNotFoundError(f'Cannot find file: {filename}')
    _message.blocking_request('download', {'name': os.path.basename(filename), 'size': os.path.getsize(filename)})
