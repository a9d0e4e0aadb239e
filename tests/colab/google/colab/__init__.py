"""A stand-in for Colab's own package: the signatures and exceptions of `google.colab`, answers as environment variables say

Put `tests/colab` first on the path. `google` has no `__init__.py`, so that it stays the namespace that it shares with google-auth and protobuf.
What the person at the browser does is set by

- `FAKE_COLAB_MOUNT`, for Drive: `ok`, `hang`, `no_answer`, `message_error`, `value_error`, `timeout`, `attribute_error` or `not_implemented`.
  Unset: `ok` in a kernel and `attribute_error` elsewhere, as in Colab.
- `FAKE_COLAB_MOUNT_CMD`, a shell command that makes the mount, given the mount point as `$1`. Without one, root gets a bind mount of the folder
  `FAKE_COLAB_DRIVE`, or a tmpfs. These two are not of type `fuse.drive`.
- `FAKE_COLAB_FLUSH`: `ok`, `value_error` or `not_implemented`.
- `FAKE_COLAB_SECRETS`, a JSON object of names and values, and `FAKE_COLAB_SECRET_ERROR`: `not_found`, `no_access`, `timeout` or `hang` for every name.
- `FAKE_COLAB_JS`: the JSON value that `eval_js` returns, or `hang`, `message_error` or `attribute_error`.
- `FAKE_COLAB_RUNTIME` and `FAKE_COLAB_AUTH`: `ok` or `error`.
- `FAKE_COLAB_WAIT`: seconds to wait instead of the real time limits.
- `FAKE_COLAB_LOG`: a file that gets one line for each request to the browser.
"""
from . import auth, drive, errors, files, output, runtime, userdata

__all__ = ['auth', 'drive', 'files', 'output', 'runtime', 'userdata']
