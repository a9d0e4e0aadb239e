"The notebook's secrets"
import json
import os
import threading

from . import _message, errors


class NotebookAccessError(errors.Error):
    "The secret is there, but this notebook may not read it"
    def __init__(self, key): super().__init__(f'Notebook does not have access to secret {key}')


class SecretNotFoundError(errors.Error):
    "There is no such secret"
    def __init__(self, key): super().__init__(f'Secret {key} does not exist.')


class TimeoutException(errors.Error):
    "The browser did not answer, or there is none"
    def __init__(self, key): super().__init__(f'Requesting secret {key} timed out. Secrets can only be fetched when running from the Colab UI.')


_lock = threading.Lock()


def get(key):
    "The value of secret `key`"
    if any(c.isspace() for c in key): raise ValueError('Secret names must not contain whitespace.')
    error,known = os.environ.get('FAKE_COLAB_SECRET_ERROR'),os.environ.get('FAKE_COLAB_SECRETS')
    answer = 'ok' if error or known else _message.answer('SECRETS')
    with _lock: _message.blocking_request('GetSecret', {'key': key}, timeout_sec=10, answer={'timeout': 'no_answer', 'hang': 'hang'}.get(error, answer))
    if error == 'timeout': raise TimeoutException(key)
    if error == 'no_access': raise NotebookAccessError(key)
    secrets = json.loads(known or '{}')
    if error == 'not_found' or key not in secrets: raise SecretNotFoundError(key)
    return secrets[key]
