"A lesson in JupyterLab, in a real browser: run all, see bar, sample and pictures; reload the page, and still see them"
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from charrnn_fa.store.mount import wait_until

root = Path(__file__).resolve().parents[1]
SHOTS = os.environ.get('CHARRNN_SHOTS')       # a folder for pictures of what was seen; CI keeps it


@pytest.fixture
def lab(tmp_path, home):
    "A JupyterLab of its own; yields the address of a lesson"
    shutil.copy(root/'nbs/tutorials/seeing_inside.ipynb', tmp_path)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port,token = s.getsockname()[1],secrets.token_hex(8)
    env = {**os.environ, 'CHARRNN_TUTORIAL':'short', 'OMP_NUM_THREADS':'1',
           **{k:str(tmp_path/k) for k in ('IPYTHONDIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR')}}
    args = ['lab', '--no-browser', '--allow-root', f'--port={port}',
            '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={tmp_path}',
            '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    at = f'http://127.0.0.1:{port}'
    def _answers():
        assert p.poll() is None, (tmp_path/'lab.log').read_text()
        try: return urllib.request.urlopen(f'{at}/api?token={token}', timeout=5)
        except OSError: return False
    with open(tmp_path/'lab.log', 'wb') as log:
        p = subprocess.Popen([sys.executable, '-m', 'jupyter', *args], cwd=tmp_path, env=env, stdout=log, stderr=log,
                             start_new_session=True)
        try:
            assert wait_until(_answers, 90), (tmp_path/'lab.log').read_text()
            yield f'{at}/lab/tree/seeing_inside.ipynb?token={token}'
        finally:
            os.killpg(p.pid, signal.SIGKILL)      # with its kernels; asked to end it takes a long time
            p.wait()


def see(page, selector, seconds=600):
    "Leaf through the notebook until it is there: JupyterLab draws only what is in sight, and draws again what has changed"
    from playwright.sync_api import Error
    place = page.locator(selector).first
    def _is_seen():
        page.locator('.jp-WindowedPanel-outer').first.evaluate('o => o.scrollTop = 0')
        for _ in range(80):
            if place.count() and place.is_visible(): break
            page.mouse.move(600, 500)
            page.mouse.wheel(0, 400)
            page.wait_for_timeout(120)
        try: place.scroll_into_view_if_needed(timeout=5000)
        except Error: return False
        return True
    assert wait_until(_is_seen, seconds), f'Nothing like {selector}, but {page.locator("body").inner_text()[-2_000:]}'
    return place


def shot(page, name):
    if SHOTS: page.screenshot(path=f'{SHOTS}/{name}.png')


def answers(lens):
    "The slider recolours, and a character shows what was expected"
    colours = lambda: lens.locator('.t i').evaluate_all('os => os.map(o => getComputedStyle(o).backgroundColor).join()')
    late = colours()
    lens.locator('input[type=range]').focus()
    lens.locator('input[type=range]').press('Home')
    assert lens.locator('.when').text_content().startswith('no training') and colours() != late
    lens.locator('.t i').nth(30).click()
    assert 'Expected here' in lens.locator('.said').text_content()


def test_a_lesson_runs_and_is_still_there_after_a_reload(lab, browser):
    context = browser.new_context(viewport=dict(width=1200, height=900))
    page = context.new_page()
    page.set_default_timeout(600_000)        # a lesson on a busy machine
    page.goto(lab)
    page.locator('.jp-Notebook').first.wait_for()
    page.get_by_text('Python 3 (ipykernel) | Idle').wait_for() # before that "run all" may find no kernel, and does nothing
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name=re.compile('^Run All Cells')).click()
    see(page, '.charrnn:has-text("nats =")')                                                   # a sample, beneath the bar
    see(page, '.jp-OutputArea-output table:has-text("valid_loss")')                  # what the bar leaves
    answers(see(page, '.charrnn:has(input[type=range])'))
    shot(page, 'lab')
    page.keyboard.press('Control+s')
    page.wait_for_timeout(1500)
    page.reload()
    page.locator('.jp-Notebook').first.wait_for()
    answers(see(page, '.charrnn:has(input[type=range])'))                                                      # nothing was run again
    assert see(page, '.charrnn svg').is_visible()
    shot(page, 'lab-after-reload')
    context.close()
