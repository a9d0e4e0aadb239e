"Who is at the browser"
import os

from . import _message
from .errors import AuthorizationError

__all__ = ['authenticate_user']


def authenticate_user(clear_output=True, project_id=None):
    "Ask for the user's credentials"
    _message.blocking_request('request_auth', {'authType': 'auth_user_ephemeral'}, timeout_sec=None)
    if os.environ.get('FAKE_COLAB_AUTH', 'ok') != 'ok': raise AuthorizationError('Failed to fetch user credentials')
