"Requests to the browser"
import os
import sys
import time
from pathlib import Path

from . import errors


class MessageError(errors.Error): "The browser answered with an error"


def in_kernel():
    "Whether this process is a notebook's kernel"
    ip = sys.modules.get('IPython')
    return ip is not None and hasattr(ip.get_ipython(), 'kernel')


def wait(timeout_sec=None):
    "Until the time limit, or for ever; `FAKE_COLAB_WAIT` shortens a limit"
    if timeout_sec is not None: timeout_sec = float(os.environ.get('FAKE_COLAB_WAIT', timeout_sec))
    end = None if timeout_sec is None else time.monotonic() + timeout_sec
    while end is None or time.monotonic() < end: time.sleep(0.02)


def blocking_request(request_type, request='', timeout_sec=5, parent=None, *, answer='ok'):
    "What the browser does with a request is `answer`; the request is logged in any case in which it leaves the kernel"
    if answer == 'attribute_error': raise AttributeError("'NoneType' object has no attribute 'kernel'")
    if log := os.environ.get('FAKE_COLAB_LOG'):
        with open(Path(log), 'a', encoding='utf-8') as f: f.write(f'{request_type} {request}\n')
    if answer == 'hang': wait()
    if answer == 'no_answer': return wait(timeout_sec)
    if answer == 'message_error': raise MessageError('Error: credential propagation was unsuccessful')
    return {}


def answer(name):
    "What `FAKE_COLAB_<name>` says, or what Colab does in a kernel and elsewhere"
    return os.environ.get(f'FAKE_COLAB_{name}') or ('ok' if in_kernel() else 'attribute_error')
