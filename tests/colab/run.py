"""A twin of a Colab runtime: its Python, its package versions, a stand-in for `google.colab`, and the tutorials in it: make test-colab

    tests/colab/run.py [NOTEBOOK ...] [--kill NOTEBOOK] [--install]

1. `.venv-colab` gets the versions in constraints.txt; this package then has to fit in without replacing one of them, with and without constraints.
2. Every tutorial runs from top to bottom, in its short form (CHARRNN_TUTORIAL=short).
3. Beside that, the tutorial after `--kill` is killed while it trains and run again: first with the machine still there, then with only Drive left.
   The weights have to be those of a run that nobody disturbed.

PYTHON313 names the Python, PIP_FLAGS goes to pip. Steps 2 and 3 need root, for the mounts; they happen in a mount namespace that nobody else sees.
"""
import argparse
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path

here = Path(__file__).resolve().parent
root = here.parents[1]
venv = root/'.venv-colab'
python = venv/'bin/python'
constraints = here/'constraints.txt'
tutorials = root/'nbs/tutorials'
faultfs = root/'tests/faultfs.py'
tools = venv/'tools'               # what the file system needs; not among Colab's packages
mountpoint = Path('/content/drive')
# How the stand-in mounts Drive. The file system ends with its parent; as in Colab this shall not be the kernel, so that it is handed over to this process.
mount_cmd = 'mkdir -p "$1"; (PYTHONPATH={tools} setsid {python} {faultfs} "$1" {drive} {control} & echo $! > {pid})'
fuse_package = 'mfusepy==3.1.1'


# The environment

def sh(*args, **kwargs): return subprocess.run(list(map(str, args)), check=True, text=True, stdout=subprocess.PIPE, **kwargs).stdout
def pip(*args): return sh(python, '-m', 'pip', '--disable-pip-version-check', *args)
def fail(msg): raise SystemExit(f'test-colab: {msg}')


def find_python():
    "Python 3.13, as Colab has it"
    name = os.environ.get('PYTHON313') or 'python3.13'
    try: version = sh(name, '-c', 'import sys; print(*sys.version_info[:2])', stderr=subprocess.DEVNULL).split()
    except (OSError, subprocess.CalledProcessError): version = None
    if version != ['3', '13']:
        fail(f'{name} is not a Python 3.13, which is what Colab has; install it (Debian 13, Ubuntu 25.04: apt install python3.13-venv) or name one: make test-colab PYTHON313=/path/to/python3.13')
    return name


def same(name): return re.sub(r'[-_.]+', '-', name).lower()

def freeze():
    "Installed packages and their versions"
    return dict(re.split('==| @ ', o, maxsplit=1) for o in pip('freeze', '--all').splitlines())


def make_env():
    "`.venv-colab` with Colab's versions, and a list of what they are; made once for each constraints.txt"
    stamp,mark = venv/'colab-freeze.json',hashlib.sha256(constraints.read_bytes()).hexdigest()
    if stamp.exists():
        d = json.loads(stamp.read_text())
        if d['constraints'] == mark: return d['packages']
    print('Installing the versions of a Colab runtime into .venv-colab: some minutes, and 6 GB with the CUDA libraries of torch', flush=True)
    name = find_python()
    shutil.rmtree(venv, ignore_errors=True)
    try:
        sh(name, '-m', 'venv', venv)
        pins = dict(o.split('==') for o in constraints.read_text().splitlines() if '==' in o)
        pip('install', '-q', f"pip=={pins['pip']}")                       # the rest is installed by Colab's pip
        pip('install', '-q', *os.environ.get('PIP_FLAGS', '').split(), '-r', constraints)
        pip('uninstall', '-q', '-y', 'jedi')                              # IPython asks for it, Colab does without
    except subprocess.CalledProcessError:
        shutil.rmtree(venv, ignore_errors=True)
        fail('the versions of a Colab runtime could not be installed; see above (Debian and Ubuntu: apt install python3.13-venv; PIP_FLAGS goes to pip)')
    packages = freeze()
    assert 'nbdev' not in packages
    stamp.write_text(json.dumps(dict(constraints=mark, packages=packages), indent=1))
    return packages


def source_files():
    "What a wheel is made of, data of the pictures included"
    top = [root/o for o in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in')]
    return top + sorted(o for o in (root/'charrnn_fa').rglob('*.*') if o.suffix in ('.py', '.js', '.css', '.html'))


def install_package(base):
    "Install this package as Colab's users do, and see what that does to the `base` packages"
    if extra := [o for o in freeze() if o not in base]: pip('uninstall', '-q', '-y', *extra)
    with tempfile.TemporaryDirectory() as tmp:
        for o in source_files():                                          # in a copy, as a build leaves files behind
            (Path(tmp)/'tree'/o.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(o, Path(tmp)/'tree'/o.relative_to(root))
        pip('wheel', '-q', '--no-deps', '-w', tmp, Path(tmp)/'tree')
        wheel, = Path(tmp).glob('*.whl')
        free = {o['metadata']['name']: o['metadata']['version'] for o in json.loads(pip('install', '-q', '--dry-run', '--report', '-', wheel))['install']}
        replaced = [f'{k} by {v}' for k,v in free.items() if same(k) in map(same, base)]
        if replaced: fail(f'without constraints, installing the package would replace what Colab has: {", ".join(replaced)}; widen the requirement in settings.ini')
        try: pip('install', '-q', '-c', constraints, wheel)
        except subprocess.CalledProcessError: fail('the package cannot be installed with the versions that Colab has; see above')
    after = freeze()
    changed = [f'{k} {v} by {after.get(k)}' for k,v in base.items() if after.get(k) != v]
    if changed: fail(f'installing the package replaced what Colab has: {", ".join(changed)}')
    print(f'Installed: {len(base)} packages were there and stayed as they were, added: {", ".join(k for k in after if k not in base)}')


# The machine

@contextmanager
def colab_folders():
    "`/var/colab/hostname`, by which Colab is known, and an empty `/content`, for this process and its children only"
    os.unshare(os.CLONE_NEWNS)
    sh('mount', '--make-rprivate', '/')
    try:
        for o in '/var/colab', '/content': sh('mount', '-t', 'tmpfs', 'colab', o)
        Path('/var/colab/hostname').write_text('twin\n')
        yield
    finally:
        for o in mountpoint, '/content', '/var/colab': subprocess.run(['umount', '-l', o], stderr=subprocess.DEVNULL)


@contextmanager
def places_for_mounts():
    "Empty folders in which each process mounts what is its own; made once for all, for one that is removed is gone from under the others"
    made = [o for o in map(Path, ('/var/colab', '/content')) if not o.exists()]
    for o in made: o.mkdir()
    try: yield
    finally:
        for o in made: o.rmdir()


def why_not():
    "Why a Drive cannot be mounted here, or None"
    if os.getuid() != 0: return 'mounts need root: sudo make test-colab'
    if not tools.exists(): pip('install', '-q', '--no-deps', '--target', tools, fuse_package)
    said = sh(python, '-c', 'import faultfs; print(faultfs.missing() or "")', env={**os.environ, 'PYTHONPATH': f'{tools}:{faultfs.parent}'}).strip()
    return said or None


class Machine:
    "A virtual machine with its own disk, and a Drive that outlives it"
    def __init__(self, work):
        self.work = Path(tempfile.mkdtemp(dir=work))
        self.drive,self.disk,self.log,self.pid,self.control = (self.work/o for o in ('drive', 'disk', 'browser.log', 'drive.pid', 'drive.json'))
        (self.drive/'MyDrive').mkdir(parents=True)
        self.control.write_text(json.dumps(dict(ids=True, uncommitted=1)))
        self.log.write_text('')
        self.renew()

    def renew(self):
        "Another machine with an empty disk: of what was, only Drive is left"
        self.unmount()
        for o in Path('/content').iterdir(): shutil.rmtree(o) if o.is_dir() else o.unlink()
        shutil.rmtree(self.disk, ignore_errors=True)
        for o in 'root', 'tmp', 'ipython/profile_default/startup': (self.disk/o).mkdir(parents=True)
        # In Colab the package is there before the first cell; fastcore looks for it when it is imported.
        (self.disk/'ipython/profile_default/startup/00-colab.py').write_text('import google.colab\ndel google\n')

    def unmount(self):
        if self.pid.exists():
            try: os.kill(int(self.pid.read_text()), signal.SIGKILL)
            except ProcessLookupError: pass
            self.pid.unlink()
        while subprocess.run(['umount', '-l', mountpoint], stderr=subprocess.DEVNULL).returncode == 0: pass

    def __enter__(self): return self
    def __exit__(self, *args): self.unmount()

    @property
    def env(self):
        cache = os.environ.get('XDG_CACHE_HOME') or Path.home()/'.cache'
        env = {k: v for k,v in os.environ.items() if not k.startswith(('JUPYTER_', 'IPYTHON', 'FAKE_COLAB_', 'PYTHON'))}
        env |= dict(PATH=f"{python.parent}:{env['PATH']}", PYTHONPATH=here, HOME=self.disk/'root', TMPDIR=self.disk/'tmp', IPYTHONDIR=self.disk/'ipython', XDG_CACHE_HOME=cache,
                    JUPYTER_NO_CONFIG='1', JUPYTER_RUNTIME_DIR=self.disk/'tmp', COLAB_RELEASE_TAG='release-colab-twin', COLAB_GPU='', CUDA_VISIBLE_DEVICES='',
                    CHARRNN_TUTORIAL='short', FAKE_COLAB_MOUNT='ok', FAKE_COLAB_LOG=self.log,
                    FAKE_COLAB_MOUNT_CMD=mount_cmd.format(tools=tools, python=python, faultfs=faultfs, drive=self.drive, control=self.control, pid=self.pid))
        env.setdefault('OMP_NUM_THREADS', '1')
        return {k: str(v) for k,v in env.items()}

    def asked(self, what='request_auth'): return sum(o.startswith(what) for o in self.log.read_text().splitlines())

    def steps(self, *where):
        "Steps after the first of which there are whole checkpoints below `where`"
        for top in where:
            for folder,dirs,names in os.walk(top):
                if Path(folder) == mountpoint: dirs[:],names = [],[]
                for o in names:
                    if (m := re.fullmatch(r'(step-(\d+)-\w+)\.json', o)) and int(m[2]) and f'{m[1]}.safetensors' in names: yield int(m[2])

    def info(self, run):
        p = subprocess.run([python.parent/'charrnn', 'info', run, '--json'], env=self.env, capture_output=True, text=True)
        if p.returncode: fail(f'charrnn info {run} failed\n{p.stderr}')
        return json.loads(p.stdout)

    def runs(self):
        "What `charrnn info` says about each run: those in Drive, or those on the disk if there are none"
        for top in mountpoint/'MyDrive', Path('/content'), self.disk/'root':
            found = {str(o.parent.relative_to(top)): self.info(o.parent) for o in sorted(top.rglob('run.json'))}
            if found: return found
        return {}


def without_installs(nb):
    "The notebook without its `pip install` lines: the package is installed, and comes from this checkout"
    for c in nb.cells:
        if c.cell_type == 'code': c.source = re.sub(r'^([ \t]*)([!%][ \t]*pip3?[ \t]+install\b.*)$', r'\1pass # \2', c.source, flags=re.M)
    return nb


def run_notebook(path, machine, kill_when=None, before=None):
    "Run all cells, and the code `before` them; with `kill_when`, kill the kernel as soon as that is true and say whether it was"
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    nb = without_installs(nbformat.read(path, as_version=4)) if isinstance(path, Path) else path
    if before: nb.cells.insert(0, nbformat.v4.new_code_cell(before))
    client = NotebookClient(nb, timeout=900, kernel_name='python3', resources={'metadata': {'path': '/content'}})
    killed,done = threading.Event(),threading.Event()
    def watch():
        while not done.is_set():
            if client.km is not None and client.km.has_kernel and kill_when():
                killed.set()
                os.kill(client.km.provisioner.pid, signal.SIGKILL)
                return
            time.sleep(0.02)
    if kill_when: threading.Thread(target=watch, daemon=True).start()
    # What the kernel itself says (not its cells) goes to a file: warnings of its packages
    try:
        with open(machine.work/'kernel.log', 'a') as f: client.execute(env=machine.env, stdout=f, stderr=f)
    except DeadKernelError:
        if not killed.is_set(): fail(f'the kernel died in {getattr(path, "name", path)}\n{(machine.work/"kernel.log").read_text()}')
    except CellExecutionError as e: fail(f'{getattr(path, "name", "the first notebook")} failed\n' + re.sub(r'\x1b\[[0-9;]*m', '', str(e)))
    finally:
        done.set()
        if isinstance(path, Path):
            (venv/'notebooks').mkdir(exist_ok=True)
            nbformat.write(nb, venv/'notebooks'/path.name)
    return killed.is_set() if kill_when else nb


# The tests

first_cell = """
import sys, os, importlib.util
from importlib.metadata import version
assert 'google.colab' in sys.modules and os.path.exists('/var/colab/hostname') and os.getcwd() == '/content'
import google.auth, google.protobuf                       # the rest of the namespace is still there
from fastcore.imports import IN_COLAB
assert IN_COLAB
assert importlib.util.find_spec('nbdev') is None and importlib.util.find_spec('jedi') is None
from google.colab import drive, userdata, output
drive.mount('/content/drive')
assert os.listdir('/content/drive/MyDrive') == []
drive.mount('/content/drive')
try: userdata.get('TOKEN')
except userdata.SecretNotFoundError: pass
else: raise AssertionError
assert 'spacy' not in sys.modules
import charrnn_fa.all
assert charrnn_fa.__file__.startswith(sys.prefix)
print('Python', sys.version.split()[0], *[f'{o} {version(o)}' for o in ('torch', 'fastai', 'fastcore', 'numpy', 'IPython', 'ipykernel')], sep=', ')
print('Drive is', *{o.split()[o.split().index('-')+1] for o in open('/proc/self/mountinfo') if ' /content/drive ' in o})
"""


def test_twin(machine):
    "The machine is what it should be"
    import nbformat
    nb = run_notebook(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(first_cell)]), machine)
    for o in nb.cells[0].outputs: print(o.get('text', '').replace('Python,', 'Python').strip())
    assert machine.asked() == 2


def test_tutorial(path, machine, before=None):
    "All cells run, and Drive is asked for once at most"
    t = time.time()
    nb = run_notebook(path, machine, before=before)
    outputs = [o for c in nb.cells for o in c.get('outputs', [])]
    print(f'{path.name}: {len(nb.cells)} cells, {time.time()-t:.0f} s, {len(outputs)} outputs of {len(json.dumps(outputs))/1000:.0f} kB, asked for Drive {machine.asked()} times', flush=True)
    if machine.asked() > 1: fail(f'{path.name} asked the person at the browser for Drive {machine.asked()} times')


# Which precision is the faster one is measured; beside other work two runs may not come to the same.
settled = """
from charrnn_fa.callback import precision
precision.gains_by_bf16 = lambda *args: True
"""


def test_kill(path, new_machine):
    "Killed and run again, it ends where it would have ended"
    with new_machine() as machine:
        test_tutorial(path, machine, before=settled)
        alone = machine.runs()
    if not alone: fail(f'{path.name} left no run')
    epoch = max(d['step']//d['epoch'] for d in alone.values())                # steps; the second kill is in a later one
    for lost in False, True:
        with new_machine() as machine:
            where = [machine.drive] if lost else [machine.drive, '/content', machine.disk]
            has_come = lambda: max(machine.steps(*where), default=0) > lost*epoch
            if not run_notebook(path, machine, has_come, settled):
                fail(f'{path.name} came to its end before it could be killed: its short form is too short')
            what = f'{path.name}, killed after step {max(machine.steps(*where))}' + ', with only Drive left'*lost
            if lost: machine.renew()
            run_notebook(path, machine, before=settled)
            again,asked = machine.runs(),machine.asked()
        if {k: d['weights_sha256'] for k,d in again.items()} != {k: d['weights_sha256'] for k,d in alone.items()}: fail(f'{what}: other weights than undisturbed\n{again}\n{alone}')
        steps = [o for d in again.values() for o in d['resumes']]
        if not any(steps): fail(f'{what}: began anew instead of going on, or had ended before (then its short form is too short)\n{again}')
        if not all(d['finished'] for d in again.values()): fail(f'{what}: not finished\n{again}')
        if asked > 1+lost: fail(f'{what}: asked for Drive {asked} times')
        print(f'{what}: went on at step {max(steps)}, same weights ({", ".join(d["weights_sha256"][:12] for d in again.values())})', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='*', type=Path, help='which to run (default: nbs/tutorials)')
    parser.add_argument('--kill', type=Path, help='which to kill (default: nbs/tutorials/shakespeare.ipynb)')
    parser.add_argument('--install', action='store_true', help='only the installation')
    args = parser.parse_args()
    if os.path.exists('/var/colab/hostname'): fail('this is a Colab machine; the twin is for others')
    if Path(sys.prefix).resolve() != venv.resolve():
        install_package(make_env())
        sys.stdout.flush()
        os.environ['PYDEVD_DISABLE_FILE_VALIDATION'] = '1'                # a warning of debugpy at each start
        os.execv(python, [str(python), *sys.argv])
    if args.install: return
    if reason := why_not(): return print(f'SKIPPED, notebooks in the twin: {reason}')
    notebooks = [o.resolve() for o in args.notebooks] or sorted(tutorials.glob('*.ipynb'))
    kill = args.kill or (tutorials/'shakespeare.ipynb')
    if not args.kill and (args.notebooks or not kill.exists()): kill = None
    kill = kill and kill.resolve()
    with places_for_mounts():
        at_once = [partial(run_all, [o for o in notebooks if o != kill])] + [partial(run_killed, kill)]*(kill is not None)
        children = [in_child(o) for o in at_once]
        codes = [os.waitstatus_to_exitcode(os.waitpid(o, 0)[1]) for o in children]
    if any(codes): raise SystemExit(1)


def run_all(notebooks, new_machine):
    "The machine is what it should be, and every notebook runs in one"
    with new_machine() as machine: test_twin(machine)
    for o in notebooks:
        with new_machine() as machine: test_tutorial(o, machine)


def run_killed(notebook, new_machine): test_kill(notebook, new_machine)


def in_child(run):
    "Another process, with mounts of its own, for `run`, which is given a function that makes machines; its number"
    sys.stdout.flush()
    if pid := os.fork(): return pid
    ctypes.CDLL(None).prctl(36, 1)     # PR_SET_CHILD_SUBREAPER: processes that lose their parent become children of this one
    code = 1
    try:
        with colab_folders(), tempfile.TemporaryDirectory(prefix='colab-') as work: run(lambda: Machine(work))
        code = 0
    except SystemExit as e: print(e, file=sys.stderr)
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == '__main__': main()
