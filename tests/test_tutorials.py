"The tutorials from top to bottom, in their short form and in an empty folder; tests/colab/run.py does the same in a twin of Colab"
import os
import re
from collections import Counter
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


def test_steps_do_not_flood_a_page(tmp_path):
    """Six hundred steps in a kernel: what is displayed, as a bar or as lines, goes by time, not by steps; a
    page that comes back replays all of it. So does the log"""
    code = """from charrnn_fa.all import *
import time
learn = char_learner(CharDataLoaders.from_text(load_corpus('pydocs')[:3_000], bs=2, seq_len=2, seed=1, device='cpu'), \
n_hid=2, emb_sz=2, head_sz=0)
learn.validates = False
t = time.time()
FIT
print(learn.steps_done, time.time()-t)"""
    fits = 'learn.fit(1)',"with learn.no_bar(2): learn.fit(1, cbs=Checkpoint('r', minutes=60, quiet=True))"
    class Counting(NotebookClient):
        n = Counter()
        def process_message(self, msg, cell, i):
            self.n[i] += msg['msg_type'] in ('display_data', 'update_display_data', 'stream')
            return super().process_message(msg, cell, i)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code.replace('FIT', o)) for o in fits])
    client = Counting(nb, timeout=300, kernel_name='python3', resources={'metadata':{'path':str(tmp_path)}})
    client.execute(env={**os.environ, 'IPYTHONDIR':str(tmp_path/'.ipython')})
    for i,cell in enumerate(nb.cells):
        *said,last = ''.join(o.text for o in cell.outputs if 'text' in o).splitlines()
        steps,seconds = map(float, last.split())
        assert steps > 600 and client.n[i] < 30 + seconds
        assert said or any(o.output_type == 'display_data' for o in cell.outputs) # beside the last line
    assert 2 < len((tmp_path/'r/log.txt').read_text().splitlines()) < 5 + seconds/10
