"The tutorials from top to bottom, in their short form and in an empty folder; tests/colab/run.py does the same in a twin of Colab"
import os
import re
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

root = Path(__file__).resolve().parents[1]
tutorials = sorted((root/'nbs/tutorials').glob('*.ipynb'))


def said(path, cwd):
    "What the cells of a tutorial print"
    env = {**os.environ, 'CHARRNN_TUTORIAL':'short', 'IPYTHONDIR':str(cwd/'.ipython')}
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=300, kernel_name='python3', resources={'metadata':{'path':str(cwd)}}).execute(env=env)
    text = ''.join(o.get('text', '') for c in nb.cells for o in c.get('outputs', []))
    assert 'watching ends' not in text # a Doctor that met something that it does not know
    return text


@pytest.mark.parametrize('path', tutorials, ids=lambda o: o.stem)
def test_runs_and_runs_again(path, tmp_path, home):
    "A second time where something is left: else it would be the first time once more"
    assert 'A new run' in said(path, tmp_path) or path.stem != 'shakespeare'
    if {o.name for o in tmp_path.iterdir()} == {'.ipython'}: return
    again = said(path, tmp_path)
    assert 'A new run' not in again and 'goes on after' not in again   # all is there


@pytest.mark.parametrize('path', tutorials, ids=lambda o: o.stem)
def test_links_and_installation_are_those_of_settings_ini(path):
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini')
    cfg = cfg['DEFAULT']
    cells = nbformat.read(path, as_version=4).cells
    text = '\n'.join(''.join(o['data'].get('text/markdown', '') for o in c.get('outputs', []) if 'data' in o) + c.source
                     for c in cells)
    badge = f"https://colab.research.google.com/github/{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/nbs/tutorials/{path.name}"
    assert badge in text
    pips = re.findall(r'^\s*[!%]pip install (.*)$', '\n'.join(c.source for c in cells if c.cell_type == 'code'), re.M)
    assert all(o == f"-q git+https://github.com/{cfg['user']}/{cfg['repo']}" for o in pips)
    assert ('not public yet' in text) == (cfg['published'] != 'yes')
