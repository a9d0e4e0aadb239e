"The repository: notebooks and modules in step and clean, README.md as the notebook gives it, imports one way"
import ast
import builtins
import dis
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections import defaultdict
from pathlib import Path
from zipfile import ZipFile

import pytest

root = Path(__file__).resolve().parents[1]
bin = Path(sys.executable).parent


def test_notebooks_and_modules_are_in_step_and_clean(tmp_path):
    "Exporting and cleaning a copy changes nothing"
    for o in 'nbs', 'charrnn_fa':
        shutil.copytree(root/o, tmp_path/o, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'models'))
    for o in 'pyproject.toml', 'settings.ini', 'setup.py': shutil.copy(root/o, tmp_path)
    for cmd in 'nbdev-export', 'nbdev-clean': subprocess.run([bin/cmd], cwd=tmp_path, check=True, capture_output=True)
    files = [o.relative_to(tmp_path) for d in ('nbs', 'charrnn_fa') for o in (tmp_path/d).rglob('*')
             if o.suffix in ('.py', '.ipynb')]
    assert len(files) > 20
    assert [str(o) for o in files if (tmp_path/o).read_bytes() != (root/o).read_bytes()] == []


def test_readme_is_what_the_notebook_gives():
    from readme import pictures, render
    assert (root/'README.md').read_text(encoding='utf-8') == render()
    assert pictures() == {o: (root/o).read_bytes() for o in pictures()}
    assert all(f'<img src="{o}"' in render() and len(b) < 60_000 for o,b in pictures().items())


def exported():
    "The modules that notebooks export, in the order of the notebooks"
    names = (re.search(r'#\| default_exp ([\w.]+)', nb.read_text(encoding='utf-8'))
             for nb in sorted((root/'nbs').glob('[0-9]*.ipynb')))
    return [o[1] for o in names if o]


def source(name):
    "Where module `name` is, such as `store.url`, or the package `store`"
    path = root/'charrnn_fa'/name.replace('.', '/')
    return path/'__init__.py' if path.is_dir() else path.with_suffix('.py')


def asked(node, package):
    "Full names that an import statement of a module in `package` may mean; what is after `from … import` can be a module too"
    if isinstance(node, ast.Import): return [o.name for o in node.names]
    if not isinstance(node, ast.ImportFrom): return []
    above = package.split('.')[:len(package.split('.')) + 1 - node.level] if node.level else []
    base = '.'.join([*above, *filter(None, [node.module])])
    return [f'{base}.{o.name}' for o in node.names]


def imported(name):
    "The modules and packages of this library that module `name` imports, within functions too"
    path = source(name)
    package = '.'.join(['charrnn_fa', *path.parent.relative_to(root/'charrnn_fa').parts])
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        for whole in asked(node, package):
            top,*parts = whole.split('.')
            if top != 'charrnn_fa': continue
            while parts and not source('.'.join(parts)).exists(): parts.pop()      # a name within a module
            if parts: yield '.'.join(parts)


def test_imports_go_one_way():
    "A module imports only from modules whose notebooks come before its own"
    order = {name:i for i,name in enumerate(exported())}
    for name,i in order.items():
        for other in imported(name): assert order[other] < i, f'{name} imports {other}'


def nowhere(code, known):
    "Names that functions look for in their module, of which `known` are there; what stands outside of functions has run at the import"
    yield from (o.argval for o in dis.get_instructions(code)
                if o.opname == 'LOAD_GLOBAL' and o.argval not in known and not hasattr(builtins, o.argval))
    for o in code.co_consts:
        if isinstance(o, types.CodeType): yield from nowhere(o, known)


def test_each_name_is_known_where_it_is_used():
    "A function that was moved to another room may look for what stayed behind, and nobody hears of it before it is called"
    lost = {name:o for name in exported()
            if (o := {*nowhere(compile(source(name).read_text(encoding='utf-8'), name, 'exec'),
                               vars(importlib.import_module(f'charrnn_fa.{name}')))})}
    assert lost == {}


def test_a_name_that_is_nowhere_is_seen():
    code = ('import math\ndef f(): return [math.pi+gone for _ in range(3)]\nclass A:\n    n = 3\n'
            '    def g(self, k=n): return lost\n')
    assert {*nowhere(compile(code, 'x', 'exec'), {'f', 'A', 'math'})} == {'gone', 'lost'}


# The wings in DESIGN.md's order. A wing may import from those before its own level; two of one level may not import
# each other in a circle.
LEVELS = (['core'], ['text', 'models', 'optim', 'numpy_step', 'generate', 'evaluate', 'presets', 'callback'],
          ['loop', 'doctor'], ['build'], ['run'], ['store', 'show'], ['learner'], ['checkpoint'],
          ['colab', 'options'], ['command'], ['cli'], ['all', '__main__'])


def wing(name): return name.split('.')[0]


def arrows():
    "The wings that each wing imports from, by all its modules and its `__init__`"
    res = {}
    for path in (root/'charrnn_fa').rglob('*.py'):
        name = '.'.join(path.relative_to(root/'charrnn_fa').with_suffix('').parts).removesuffix('.__init__')
        if name in ('__init__', '_modidx'): continue
        res.setdefault(wing(name), set()).update(wing(o) for o in imported(name) if wing(o) != wing(name))
    return res


def test_wings_import_one_way():
    "No arrow runs back, and none in a circle"
    level = {o:i for i,wings in enumerate(LEVELS) for o in wings}
    into = arrows()
    assert set(into) <= set(level), 'a wing without its place in LEVELS'
    # so that an empty table proves nothing
    assert {'text', 'core'} <= into['loop'] and {'run', 'store'} <= into['checkpoint']
    back = [f'{o} imports {p}' for o,others in into.items() for p in others if level[p] > level[o]]
    assert back == []
    # wings that import from free ones only: all of them, unless there is a circle
    free = []
    while now := [o for o in into if o not in free and into[o] <= {*free}]: free += now
    assert set(into) - {*free} == set(), 'these import each other'


@pytest.mark.parametrize('code,names', [
    ('from ..core import CharRNNError', ['core']), ('from .url import a, b', ['store.url']*2),
    ('import charrnn_fa.run.files', ['run.files']), ('from .. import learner as l', ['learner']),
    ('from charrnn_fa.checkpoint import Checkpoint', ['checkpoint']),
    ('def f():\n    if 1: from ..cli import main', ['cli']), ('import json\nfrom fastai.basics import *', [])])
def test_imports_are_seen(code, names, tmp_path, monkeypatch):
    "However they are written"
    (tmp_path/'charrnn_fa/store').mkdir(parents=True)
    for o in 'core', 'learner', 'cli', 'store/url', 'run/files', 'checkpoint/__init__':
        path = (tmp_path/'charrnn_fa'/o).with_suffix('.py')
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path/'charrnn_fa/store/mirror.py').write_text(code)
    monkeypatch.setitem(globals(), 'root', tmp_path)
    assert list(imported('store.mirror')) == names


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel as a release makes it: out of the source distribution"
    tmp = tmp_path_factory.mktemp('wheel')
    tree = tmp/'tree'
    shutil.copytree(root/'charrnn_fa', tree/'charrnn_fa', ignore=shutil.ignore_patterns('__pycache__'))
    for o in 'pyproject.toml', 'settings.ini', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE':
        shutil.copy(root/o, tree)
    run = lambda *args: subprocess.run([sys.executable, *map(str, args)], cwd=tree, check=True, capture_output=True)
    run('-c', f'from setuptools import build_meta; build_meta.build_sdist({str(tmp)!r})')
    run('-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', tmp, next(tmp.glob('*.tar.gz')))
    return next(tmp.glob('*.whl'))


def test_wheel_holds_every_module(wheel, tmp_path):
    "Unpacked in an empty folder and imported from there, without this repository"
    with ZipFile(wheel) as z: z.extractall(tmp_path)
    inside = lambda folder, kind: {o.relative_to(folder).as_posix() for o in (folder/'charrnn_fa').rglob(f'*.{kind}')}
    for kind,least in dict(py=40, js=3, css=2, html=1).items():
        assert inside(tmp_path, kind) == inside(root, kind) and len(inside(root, kind)) >= least
    names = [o.removesuffix('.py').removesuffix('/__init__').replace('/', '.') for o in sorted(inside(root, 'py'))]
    code = f"""
import sys
from importlib import import_module
from pathlib import Path
here,repo,names = Path({str(tmp_path)!r}),Path({str(root)!r}),{names}
sys.path = [str(here)] + [o for o in sys.path if o and Path(o).resolve() != repo]
for o in names: assert Path(import_module(o).__file__).is_relative_to(here), o
import charrnn_fa
print(charrnn_fa.__version__)"""
    env = {k:v for k,v in os.environ.items() if k != 'PYTHONPATH'}
    p = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    assert f"version = {p.stdout.strip()}\n" in (root/'settings.ini').read_text(encoding='utf-8')


def figures():
    "What tests/house.py says, as numbers"
    from house import house
    return {k.strip():[float(o.replace(',', '')) for o in re.findall(r'\d[\d.,]*', str(v))] for k,v in house(root).items()}


def test_the_house_is_built_in_small_steps():
    "STYLE.md's figures; `python tests/house.py` shows them, with a notebook's number those of a notebook"
    f = figures()
    mean,median,p90,longest = f['lines of an exported cell: mean / median / p90 / max']
    over_140,over_120 = f['lines over 140 / 120 characters']
    too_much = {k:(v, limit) for k,v,limit in [
        ('modules directly in charrnn_fa', f['modules directly in charrnn_fa'][0], 13),
        ('classes over 120 lines', f['classes over 120 lines'][0], 0),
        ('functions over 40 lines', f['functions over 40 lines'][0], 0),
        ('lines over 140 characters', over_140, 0),
        ('lines over 120 characters', over_120, 120),
        ('lines of an exported cell, mean', mean, 20),
        ('lines of an exported cell, median', median, 20),
        ('lines of an exported cell, 90th percentile', p90, 40),
        ('lines of the longest exported cell', longest, 110)] if v > limit}
    too_little = {k:(v, limit) for k,v,limit in [
        ('checks per exported cell', f['checks per exported cell'][0], 2.0),
        ('words of prose per exported cell', f['words of prose per exported cell'][0], 40),
        ('arguments of public functions explained, %', f['arguments of public functions explained'][0], 90)] if v < limit}
    assert {**too_much, **too_little} == {}


def test_the_doctor_keeps_its_budget():
    "At most twenty modules; a check needs its place, and what is not parsed stays unparsed"
    from house import package
    f = package(root, 'doctor')
    limits = dict(modules=20, code=4300, lines=5200, longest=380, called_once=150)
    assert {k:(f[k], limit) for k,limit in limits.items() if f[k] > limit} == {}
    assert f['parses'] == []


def test_metadata_is_stated_once():
    from importlib.metadata import metadata, version
    settings = dict(re.findall(r'^(\w+) = (.*)$', (root/'settings.ini').read_text(encoding='utf-8'), re.M))
    import charrnn_fa
    assert charrnn_fa.__version__ == version('charrnn_fa') == settings['version']
    assert metadata('charrnn_fa')['Summary'] == settings['description']


@pytest.mark.parametrize('module', ['core', 'text.corpus', 'presets', 'options', 'cli'])
def test_light_modules_stay_light(module):
    "--help and a mistyped option are answered without PyTorch"
    code = f'import sys, charrnn_fa.{module}; assert "torch" not in sys.modules and "fastai" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_learner_import_stays_light():
    code = ('import sys; from charrnn_fa import learner; '
            'bad = {"spacy", "gdown", "nbdev", "charrnn_fa.cli"} & set(sys.modules); assert not bad, bad')
    subprocess.run([sys.executable, '-c', code], check=True)


def test_what_a_machine_lacks_is_said_in_a_line(tmp_path):
    "One for each reason, however many tests are skipped"
    (tmp_path/'lacking.py').write_text("import faultfs, inject\n"
                                       "faultfs.missing,inject.missing = lambda: 'no FUSE', lambda: 'no strace'\n")
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (tmp_path, root/'tests', root)))}
    files = [root/'tests'/o for o in ('test_faultfs.py', 'test_inject.py', 'test_store.py::test_all_is_well',
                                      'test_store.py::test_mount_hangs')]
    p = subprocess.run([sys.executable, '-m', 'pytest', '-p', 'lacking', '-p', 'no:cacheprovider', '-rs', *files],
                       cwd=root, env=env, capture_output=True, text=True)
    lines = re.findall(r'^SKIPPED \[(\d+)\].*: (.*)$', p.stdout, re.M)
    assert sorted(o for _,o in lines) == ['no FUSE', 'no strace'] and 'passed' not in p.stdout, p.stdout
    assert sum(int(n) for n,_ in lines) > 40


def printed_by(code, *args):
    "The lines that a new process prints"
    p = subprocess.run([sys.executable, '-c', code, *args], cwd=root/'tests', env={**os.environ, 'PYTHONPATH':str(root)},
                       capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    return p.stdout.splitlines()


def test_an_import_leaves_what_comes_later():
    "`from charrnn_fa import learner` needs no doctor, no pictures, no hub and no drawings; a Learner has all that all the same"
    code = """import sys
from charrnn_fa import learner
later = 'doctor', 'show', 'run.hub', 'run.card', 'text.drawn', 'text.svg', 'store', 'checkpoint'
print([m for m in sys.modules if m.startswith(tuple(f'charrnn_fa.{o}' for o in later))])
from charrnn_fa.text.data import CharDataLoaders
import inspect
cls = learner.CharLearner
asked = CharDataLoaders.from_drawings, cls.share, cls.push_to_hub, learner.from_hub
args = [inspect.signature(o).parameters for o in asked]
print([o.__module__ for o in asked], 'seed' in args[0], 'prompt' in args[1])"""
    loaded,found = printed_by(code)
    assert loaded == '[]'
    assert found == "['charrnn_fa.text.drawn', 'charrnn_fa.show.share', 'charrnn_fa.run.hub', 'charrnn_fa.run.hub'] True True"


# A process that has imported what the library stands on, and nothing of it; a fork for each program
FORKS = """import json, os, sys, traceback
import fastai.basics, fastai.callback.all
assert not [o for o in sys.modules if o.startswith('charrnn_fa')]
for code in json.loads(sys.argv[1]):
    pid,status = os.fork(),1
    if pid: assert os.waitpid(pid, 0)[1] == 0
    else:
        try:
            exec(code, {})
            sys.stdout.flush()
            status = 0
        except BaseException: traceback.print_exc()
        finally: os._exit(status)"""


def test_a_learner_has_its_methods_whatever_was_imported_first():
    code = """from charrnn_fa import learner
from charrnn_fa.text.data import CharDataLoaders
print(*(o.__module__ for o in (learner.CharLearner.share, learner.CharLearner.push_to_hub, CharDataLoaders.from_drawings)))"""
    firsts = 'show', 'run.hub', 'text.drawn', 'all'
    lines = printed_by(FORKS, json.dumps([f"import charrnn_fa.{o}\nprint('{o}', end=' ')\n{code}" for o in firsts]))
    assert lines == [f'{o} charrnn_fa.show.share charrnn_fa.run.hub charrnn_fa.text.drawn' for o in firsts]


def test_a_learner_has_its_methods_wherever_it_comes_from():
    "From a run folder, from a pickle of fastai's, or from a callback: its class is there without the room that builds it"
    code = """import {first}
from charrnn_fa.loop.learner import CharLearner
from fastai.learner import Learner
here = 'validate', 'predict', 'lr_find', 'show_results', 'summary', 'no_bar', 'no_valid'
asked = [vars(CharLearner)[o].__module__.startswith('charrnn_fa') for o in here]
later = 'generate', 'stream', 'evaluate', 'draw', 'fit_steps', 'start_from', 'share', 'push_to_hub'
print(*{{getattr(CharLearner, o).__module__ for o in later}} - {{'charrnn_fa.build'}}, all(asked))"""
    firsts = 'loop.learner', 'loop.events', 'build', 'run.model', 'doctor', 'checkpoint'
    lines = printed_by(FORKS, json.dumps([code.format(first=f'charrnn_fa.{o}') for o in firsts]))
    assert [{*o.split()} for o in lines] == [{'charrnn_fa.show.share', 'charrnn_fa.run.hub', 'True'}]*len(firsts)


def test_a_resume_crosses_few_rooms():
    "`python tests/rooms.py -v` shows them"
    code = "import json,rooms; calls = rooms.crossings(); print(json.dumps([len(rooms.rooms(calls)), sum(calls.values())]))"
    n_rooms,n_calls = json.loads(printed_by(code)[-1])
    assert 10 < n_rooms <= 20 and 100 < n_calls <= 300


def test_no_syntax_is_newer_than_the_oldest_python():
    "ruff knows which Python each syntax came with, in notebooks as well; Python itself knows its own only"
    oldest = 'py'+re.search(r'min_python = (\S+)', (root/'settings.ini').read_text())[1].replace('.', '')
    where = [root/o for o in ('charrnn_fa', 'nbs', 'tests', 'benchmarks', 'docs')]
    res = subprocess.run([sys.executable, '-m', 'ruff', 'check', '-q', '--isolated', '--no-cache', '--select', 'E9',
                          '--target-version', oldest, *where],
                         capture_output=True, text=True)
    assert res.returncode == 0, res.stdout+res.stderr


def test_a_name_means_one_thing():
    "Two rooms that `charrnn_fa.all` takes everything from have no name for two things"
    import charrnn_fa.all
    src = (root/'charrnn_fa/all.py').read_text()
    rooms = [importlib.import_module(f'charrnn_fa.{o}') for o in re.findall(r'^from \.([\w.]+) import \*', src, re.M)]
    names = [(name, room) for room in rooms for name in room.__all__]
    assert len(names) > 150
    assert [f'{name} of {room.__name__}' for name,room in names if getattr(room, name) is not getattr(charrnn_fa.all, name)] == []


def test_what_people_use_without_a_prefix_is_in_all():
    import charrnn_fa.all
    names = """CharBlock CharDataLoaders CharVocab Checkpoint DataBlock Doctor DriveCheckpoint Learner char_learner doctor learner
               load_corpus load_drawings load_run presets save_run show strokes_to_text text_to_strokes""".split()
    assert [o for o in names if not hasattr(charrnn_fa.all, o)] == []


def test_each_mutant_has_its_place():
    "tests/mutants.py changes one line in each, and refuses them all if one of them is gone"
    from mutants_list import MUTANTS
    assert len(MUTANTS) > 100
    assert [o[:2] for o in MUTANTS if source(o[0].replace('/', '.')).read_text(encoding='utf-8').count(o[1]) != 1] == []


def test_a_class_has_a_name_of_its_own():
    "A page of the site cannot link to one of two"
    homes = defaultdict(set)
    for f in (root/'charrnn_fa').rglob('*.py'):
        for o in ast.parse(f.read_text()).body:
            if isinstance(o, ast.ClassDef) and o.name[0] != '_': homes[o.name].add(str(f.relative_to(root)))
    assert len(homes) > 80
    assert {k:v for k,v in homes.items() if len(v) > 1} == {}
