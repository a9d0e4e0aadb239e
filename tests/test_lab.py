"A lesson in JupyterLab, in a real browser: run all, see bar, sample and pictures; reload the page, and still see them"
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
SHOTS = os.environ.get('CHARRNN_SHOTS')       # a folder for pictures of what was seen; CI keeps it


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture
def lab(tmp_path, home):
    "A JupyterLab of its own; yields the address of a lesson"
    shutil.copy(root/'nbs/tutorials/seeing_inside.ipynb', tmp_path)
    port,token = free_port(),secrets.token_hex(8)
    env = {**os.environ, 'CHARRNN_TUTORIAL':'short', 'IPYTHONDIR':str(tmp_path/'.ipython'),
           'JUPYTER_CONFIG_DIR':str(tmp_path/'.jupyter'),
           'JUPYTER_DATA_DIR':str(tmp_path/'.data'), 'OMP_NUM_THREADS':'1'}
    args = ['lab', '--no-browser', '--allow-root', f'--port={port}',
            '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={tmp_path}',
            '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    with open(tmp_path/'lab.log', 'wb') as log:
        p = subprocess.Popen([sys.executable, '-m', 'jupyter', *args], cwd=tmp_path, env=env, stdout=log, stderr=log,
                             start_new_session=True)
        try:
            at = f'http://127.0.0.1:{port}'
            _wait_for(f'{at}/api?token={token}', p, tmp_path/'lab.log')
            yield f'{at}/lab/tree/seeing_inside.ipynb?token={token}'
        finally:
            os.killpg(p.pid, signal.SIGKILL)      # with its kernels; asked to end it takes a long time
            p.wait()


def _wait_for(url, process, log, seconds=90):
    until = time.monotonic()+seconds
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError: time.sleep(.2)
    raise AssertionError(log.read_text())


def shot(page, name):
    if not SHOTS: return
    Path(SHOTS).mkdir(parents=True, exist_ok=True)
    page.screenshot(path=f'{SHOTS}/{name}.png')


def run_all(page):
    "By the menu, as a person does"
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name=re.compile('^Run All Cells')).click()
    return page


def see(page, selector, seconds=600):
    "Leaf through the notebook until it is there: JupyterLab draws only what is in sight, and a lesson on a busy machine takes its time"
    place = page.locator(selector).first
    until = time.monotonic()+seconds
    while time.monotonic() < until:
        page.locator('.jp-WindowedPanel-outer').first.evaluate('o => o.scrollTop = 0')
        for _ in range(80):
            if place.count() and place.is_visible(): break
            page.mouse.move(600, 500)
            page.mouse.wheel(0, 400)
            page.wait_for_timeout(120)
        else: continue
        place.scroll_into_view_if_needed()
        return place
    raise AssertionError(f'Nothing like {selector} within {seconds} seconds, but {page.locator("body").inner_text()[-2_000:]}')


def test_a_lesson_runs_and_is_still_there_after_a_reload(lab, browser, tmp_path):
    context = browser.new_context(viewport=dict(width=1200, height=900))
    page = context.new_page()
    page.set_default_timeout(600_000)        # a lesson on a busy machine
    page.goto(lab)
    page.locator('.jp-Notebook').first.wait_for()
    # before that "run all" may find no kernel, and does nothing
    page.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
    run_all(page)
    see(page, '.jp-OutputArea-output pre:has-text("the network")')                   # a sample, beneath the bar
    see(page, '.jp-OutputArea-output table:has-text("valid_loss")')                  # what the bar leaves
    lens = see(page, '.lens')
    shot(page, 'lab')
    _answers(lens)
    page.keyboard.press('Control+s')
    page.wait_for_timeout(1500)
    page.reload()
    page.locator('.jp-Notebook').first.wait_for()
    _answers(see(page, '.lens'))                                                     # nothing was run again
    assert see(page, '.charrnn svg').is_visible()
    shot(page, 'lab-after-reload')
    context.close()


def _answers(lens):
    "The slider recolours, and a character tells what was expected"
    colours = lambda: lens.locator('.t i').evaluate_all('os => os.map(o => o.style.backgroundColor).join()')
    late = colours()
    lens.locator('input[type=range]').focus()
    lens.locator('input[type=range]').press('Home')
    assert lens.locator('.when').text_content().startswith('no training') and colours() != late
    lens.locator('.t i').nth(30).click()
    assert 'Expected here' in lens.locator('.said').text_content()
