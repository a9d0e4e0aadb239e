"""The tests with the oldest or the newest versions of what settings.ini asks for: make test-oldest, make test-newest

    tests/versions.py oldest|newest [TEST ...]

An environment of its own, `.venv-oldest` or `.venv-newest`, of the Python that runs this. `oldest` takes the
lowest release that each requirement admits (`>=2.9` becomes `==2.9.*`), `newest` the highest; uv finds in half
a minute what pip seeks for many. Then the tests run that touch what others made: without more words, those in
TESTS. PIP_FLAGS goes to uv, which reads nothing of pip's own settings.
"""
import configparser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
TESTS = ['data', 'models', 'learner', 'generate', 'runs', 'fits_again', 'callback_state', 'other_learners',
         'checkpoint', 'doctor_watch', 'show', 'share',
         'hub', 'drawings', 'hostile_texts', 'urls']


def requirements(which):
    "What pip is asked for"
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini')
    asked = cfg['DEFAULT']['requirements'].split()
    if which == 'newest': return asked
    lowest = [re.fullmatch(r'([\w.-]+)>=([\d.]+)(,.*)?', o) for o in asked]
    return [f'{m[1]}=={m[2]}.*' for m in lowest]


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in ('oldest', 'newest'): raise SystemExit(__doc__)
    which,*names = sys.argv[1:]
    venv = root/f'.venv-{which}'
    python,flags = venv/'bin/python',shlex.split(os.environ.get('PIP_FLAGS', ''))
    if not python.exists(): subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    subprocess.run([python, '-m', 'pip', 'install', '-q', 'uv'], check=True)
    if flags: flags += ['--index-strategy', 'unsafe-best-match'] # of all places the best version, as pip does
    what = ['--upgrade', '-e', '.[dev]'] if which == 'newest' else ['-e', '.[dev]', *requirements(which)]
    subprocess.run([venv/'bin/uv', 'pip', 'install', '-q', '--python', python, *flags, *what], check=True, cwd=root)
    show = ('import sys, torch, fastai, numpy, platform; print(platform.python_version(), "torch", '
            'torch.__version__, "fastai", fastai.__version__, "numpy", numpy.__version__)')
    subprocess.run([python, '-c', show], check=True)
    tests = names or [f'tests/test_{o}.py' for o in TESTS]
    env = dict(os.environ, OMP_NUM_THREADS='1', PATH=f'{venv}/bin{os.pathsep}{os.environ["PATH"]}')
    raise SystemExit(subprocess.run([python, '-m', 'pytest', '-q', '-n', '2', '--dist', 'worksteal', *tests],
                                    cwd=root, env=env).returncode)


if __name__ == '__main__': main()
