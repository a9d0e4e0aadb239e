"Character-level recurrent networks on fastai, for people who learn by doing"

def __getattr__(name): # few ask for it, and finding it out takes a while in which Ctrl-C is not answered yet
    if name != '__version__': raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib.metadata import PackageNotFoundError, version
    try: return version('charrnn_fa')
    except PackageNotFoundError: return '0+unknown' # a source tree on sys.path that was never installed
