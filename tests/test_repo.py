"The repository: notebooks and modules agree and are clean, README.md follows from its notebook, imports go one way, budgets"
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
from house import cells, form, library, package, packages, root, tree

sys.path.append(str(root/'docs'))
from packages import arrows, exported, imported, picture, source

bin = Path(sys.executable).parent


def test_notebooks_and_modules_agree_and_are_clean(tmp_path):
    "Exporting and cleaning a copy changes nothing"
    for o in 'nbs', 'charrnn_fa':
        shutil.copytree(root/o, tmp_path/o, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'models'))
    for o in 'pyproject.toml', 'settings.ini', 'setup.py': shutil.copy(root/o, tmp_path)
    for cmd in 'nbdev-export', 'nbdev-clean': subprocess.run([bin/cmd], cwd=tmp_path, check=True, capture_output=True)
    files = [o.relative_to(tmp_path) for d in ('nbs', 'charrnn_fa') for o in (tmp_path/d).rglob('*')
             if o.suffix in ('.py', '.ipynb')]
    assert len(files) > 20
    assert [str(o) for o in files if (tmp_path/o).read_bytes() != (root/o).read_bytes()] == []


def test_readme_follows_from_its_notebook():
    from readme import pictures, render
    assert (root/'README.md').read_text(encoding='utf-8') == render()
    assert pictures() == {o: (root/o).read_bytes() for o in pictures()}
    assert all(f'<img src="{o}"' in render() and len(b) < 60_000 for o,b in pictures().items())


# Imports

def test_imports_go_one_way():
    "A module imports only from modules whose notebooks come before its own, a package never from one that imports from it"
    order = {name:i for i,name in enumerate(exported())}
    assert [f'{name} imports {o}' for name,i in order.items() for o in imported(name) if order[o] >= i] == []
    into,free = arrows(),[]
    assert {'text', 'errors'} <= into['loop'] and {'run', 'store'} <= into['checkpoint']    # an empty table proves nothing
    while now := [o for o in into if o not in free and into[o] <= {*free}]: free += now
    assert {*into} == {*free}, 'packages that import each other'


def test_the_picture_of_the_packages_is_that_of_the_code():
    path = 'nbs/images/packages.svg'
    assert (root/path).read_text(encoding='utf-8') == picture()
    assert all(path in (root/o).read_text(encoding='utf-8') for o in ('README.md', 'CONTRIBUTING.md'))


def nowhere(code, known):
    "Names that functions look for in their module, where they are not"
    yield from (o.argval for o in dis.get_instructions(code)
                if o.opname == 'LOAD_GLOBAL' and o.argval not in known and not hasattr(builtins, o.argval))
    for o in code.co_consts:
        if isinstance(o, types.CodeType): yield from nowhere(o, known)


def test_each_name_is_known_where_it_is_used():
    "A function that was moved to another module may need what stayed behind"
    lost = {name:o for name in exported()
            if (o := {*nowhere(compile(source(name).read_text(encoding='utf-8'), name, 'exec'),
                               vars(importlib.import_module(f'charrnn_fa.{name}')))})}
    assert lost == {}


@pytest.mark.parametrize('module', ['errors', 'output', 'text.corpus', 'presets', 'command.options', 'cli'])
def test_light_modules_stay_light(module):
    "--help and a mistyped option are answered without PyTorch"
    code = f'import sys, charrnn_fa.{module}; assert "torch" not in sys.modules and "fastai" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)


def printed_by(code, *args):
    "The lines that a new process prints"
    p = subprocess.run([sys.executable, '-c', code, *args], cwd=root/'tests', env={**os.environ, 'PYTHONPATH':str(root)},
                       capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    return p.stdout.splitlines()


def test_an_import_leaves_what_comes_later():
    "`from charrnn_fa import learner` loads no doctor, no pictures, no hub and no drawings; a Learner has their methods"
    code = """import inspect, sys
from charrnn_fa import learner
later = 'doctor', 'show', 'run.hub', 'text.svg', 'store', 'checkpoint', 'cli'
print([m for m in sys.modules if m.startswith((*[f'charrnn_fa.{o}' for o in later], 'spacy', 'gdown', 'pooch', 'nbdev'))])
from charrnn_fa.text.data import CharDataLoaders
cls = learner.CharLearner
asked = CharDataLoaders.from_drawings, cls.share, cls.push_to_hub, learner.from_hub
print([[*inspect.signature(o).parameters][:1] != ['args'] for o in asked])"""
    loaded,found = printed_by(code)
    assert loaded == '[]' and found == '[True, True, True, True]'


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
    "From a run folder, from a pickle of fastai's, from a callback: its class is there without the module that builds it"
    code = """import charrnn_fa.{first}
from charrnn_fa.loop.learner import CharLearner
here = 'validate', 'predict', 'lr_find', 'show_results', 'summary', 'no_bar', 'no_valid'
later = 'generate', 'stream', 'evaluate', 'draw', 'fit_steps', 'start_from', 'share', 'push_to_hub'
print(all(vars(CharLearner)[o].__module__.startswith('charrnn_fa') for o in here),
      all(getattr(CharLearner, o).__module__.startswith('charrnn_fa') for o in later))"""
    firsts = 'loop.learner', 'build', 'run.model', 'doctor', 'checkpoint', 'show', 'run.hub', 'all'
    assert printed_by(FORKS, json.dumps([code.format(first=o) for o in firsts])) == ['True True']*len(firsts)


def test_a_resume_crosses_few_modules():
    "`python tests/crossings.py -v` shows them"
    code = "import json,crossings as c; calls = c.crossings(); print(json.dumps([len(c.modules(calls)), sum(calls.values())]))"
    n_modules,n_calls = json.loads(printed_by(code)[-1])
    assert 8 < n_modules <= 18 and 60 < n_calls <= 205


# Names

def test_a_name_means_one_thing():
    "Two modules that `charrnn_fa.all` takes everything from have no name for two things, nor two modules a class of one name"
    import charrnn_fa.all
    src = (library/'all.py').read_text()
    modules = [importlib.import_module(f'charrnn_fa.{o}') for o in re.findall(r'^from \.([\w.]+) import \*', src, re.M)]
    names = [(name, o) for o in modules for name in o.__all__]
    assert len(names) > 150
    assert [f'{name} of {o.__name__}' for name,o in names if getattr(o, name) is not getattr(charrnn_fa.all, name)] == []
    homes = defaultdict(set)
    for f in library.rglob('*.py'):
        for o in tree(f).body:
            if isinstance(o, ast.ClassDef) and o.name[0] != '_': homes[o.name].add(f.name)
    assert {k:v for k,v in homes.items() if len(v) > 1} == {}
    needed = """CharBlock CharDataLoaders CharVocab Checkpoint DataBlock Doctor DriveCheckpoint Learner char_learner doctor learner
                load_corpus load_drawings load_run presets save_run show strokes_to_text text_to_strokes""".split()
    assert [o for o in needed if not hasattr(charrnn_fa.all, o)] == []


def test_each_mutant_has_its_place():
    "tests/mutants.py changes one line in each"
    from mutants_list import MUTANTS
    assert MUTANTS and [o[:2] for o in MUTANTS if source(o[0].replace('/', '.')).read_text(encoding='utf-8').count(o[1]) != 1] == []


# Size and form: `python tests/house.py` shows all figures

BUDGETS = {'text':1955, '.':1690, 'callback':670, 'loop':655, 'doctor':4300, 'run':1165, 'show':1690, 'store':910,
           'checkpoint':1525, 'command':710}


@pytest.mark.parametrize('name', BUDGETS)
def test_a_package_keeps_its_budget(name):
    f = package(name)
    assert f['code'] <= BUDGETS[name] and f['longest'] <= 385
    assert name != 'doctor' or f['modules'] <= 21 and f['called_once'] <= 150


def test_the_library_keeps_its_budget():
    f = package('')
    assert {*packages()} == {*BUDGETS}
    assert f['code'] <= 15_250 and f['modules'] <= 95
    tests = sum(len(o.read_text(encoding='utf-8').splitlines()) for o in (root/'tests').rglob('*.py'))
    assert tests <= 16_340


def test_the_library_keeps_its_form():
    f = cells()
    assert f['mean'] <= 21 and f['p90'] <= 40 and f['longest'] <= 110
    assert f['checks'] >= 2 and f['words'] >= 40
    g = form()
    assert g.pop('arguments explained') >= .9 and g.pop('lines over 120') <= 45 and {*g.values()} == {0}, g


# What is shipped

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel as a release makes it: out of the source distribution"
    tmp = tmp_path_factory.mktemp('wheel')
    tree = tmp/'tree'
    shutil.copytree(library, tree/'charrnn_fa', ignore=shutil.ignore_patterns('__pycache__'))
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
    for kind,least in dict(py=40, js=2, css=1, html=1).items():
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


def test_metadata_is_stated_once():
    from importlib.metadata import metadata, version
    settings = dict(re.findall(r'^(\w+) = (.*)$', (root/'settings.ini').read_text(encoding='utf-8'), re.M))
    import charrnn_fa
    assert charrnn_fa.__version__ == version('charrnn_fa') == settings['version']
    assert metadata('charrnn_fa')['Summary'] == settings['description']


def test_no_syntax_is_newer_than_the_oldest_python():
    "ruff knows which Python each syntax came with, in notebooks as well; Python itself knows its own only"
    oldest = 'py'+re.search(r'min_python = (\S+)', (root/'settings.ini').read_text())[1].replace('.', '')
    where = [root/o for o in ('charrnn_fa', 'nbs', 'tests', 'benchmarks', 'docs')]
    res = subprocess.run([sys.executable, '-m', 'ruff', 'check', '-q', '--isolated', '--no-cache', '--select', 'E9',
                          '--target-version', oldest, *where], capture_output=True, text=True)
    assert res.returncode == 0, res.stdout+res.stderr
