"Character-level recurrent networks on fastai, for people who learn by doing"
from importlib.metadata import PackageNotFoundError, version as _version

try: __version__ = _version('charrnn_fa')
except PackageNotFoundError: __version__ = '0+unknown'   # a source tree on sys.path that was never installed
