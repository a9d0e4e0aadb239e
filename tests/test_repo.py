"The repository: notebooks and modules in step and clean, README.md as the notebook gives it, imports one way"
import ast
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

root = Path(__file__).resolve().parents[1]
bin = Path(sys.executable).parent


def test_notebooks_and_modules_are_in_step_and_clean(tmp_path):
    "Exporting and cleaning a copy changes nothing"
    for o in 'nbs', 'charrnn_fa': shutil.copytree(root/o, tmp_path/o, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'models'))
    for o in 'pyproject.toml', 'settings.ini', 'setup.py': shutil.copy(root/o, tmp_path)
    for cmd in 'nbdev-export', 'nbdev-clean': subprocess.run([bin/cmd], cwd=tmp_path, check=True, capture_output=True)
    files = [o.relative_to(tmp_path) for d in ('nbs', 'charrnn_fa') for o in (tmp_path/d).rglob('*') if o.suffix in ('.py', '.ipynb')]
    assert len(files) > 20
    assert [str(o) for o in files if (tmp_path/o).read_bytes() != (root/o).read_bytes()] == []


def test_readme_is_what_the_notebook_gives():
    from readme import render
    assert (root/'README.md').read_text(encoding='utf-8') == render()


def exported():
    "The modules that notebooks export, in the order of the notebooks"
    names = (re.search(r'#\| default_exp ([\w.]+)', nb.read_text(encoding='utf-8')) for nb in sorted((root/'nbs').glob('[0-9]*.ipynb')))
    return [o[1] for o in names if o]


def imported(name):
    "The modules of this library that module `name` imports, within functions too"
    path = root/'charrnn_fa'/(name.replace('.', '/') + '.py')
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.ImportFrom): continue
        module = node.module or ''
        if node.level: module = '.'.join(['charrnn_fa', *name.split('.')][:-node.level] + [o for o in [module] if o])
        if module.split('.')[0] != 'charrnn_fa': continue
        inner = module.removeprefix('charrnn_fa').strip('.')
        for alias in node.names:
            whole = '.'.join(o for o in (inner, alias.name) if o)
            yield whole if whole in exported() else inner


def test_imports_go_one_way():
    "A module imports only from modules whose notebooks come before its own"
    order = {name:i for i,name in enumerate(exported())}
    for name,i in order.items():
        for other in imported(name): assert order[other] < i, f'{name} imports {other}'


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
    code = 'import sys; from charrnn_fa import learner; bad = {"spacy", "gdown", "nbdev", "charrnn_fa.cli"} & set(sys.modules); assert not bad, bad'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_pages_lead_to_pages(tmp_path):
    "Read with a parser of its own: no link of the documentation is dead"
    from docs import build
    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag == 'a' and (href := dict(attrs).get('href')): links.append((page, href))
    build(tmp_path)
    links = []
    for page in tmp_path.rglob('*.html'): Links().feed(page.read_text(encoding='utf-8'))
    near = [(page, unquote(href.split('#')[0])) for page,href in links if not re.match(r'\w+:|#', href)]
    assert len(near) > 40 and [o for o in near if not (o[0].parent/o[1]).is_file()] == []
    assert (tmp_path/'tutorials/shakespeare.html').exists()
