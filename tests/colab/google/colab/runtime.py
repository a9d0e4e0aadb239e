"The virtual machine"
import os

from . import _message
from .errors import RuntimeManagementError

__all__ = ['unassign']


def unassign():
    "End this virtual machine; here it is only written to the log"
    if os.environ.get('FAKE_COLAB_RUNTIME', 'ok') != 'ok': raise RuntimeManagementError('Unable to request VM unassignment.')
    _message.blocking_request('unassign')
