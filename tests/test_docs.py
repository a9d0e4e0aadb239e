"The documentation: every public name is on a page, every link leads somewhere, a stored picture answers"
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

from charrnn_fa import show
from charrnn_fa._modidx import d as index

root = Path(__file__).resolve().parents[1]
GITHUB = 'https://github.com/charrnn/charrnn_fa/blob/main/'      # as settings.ini has it


@pytest.fixture
def docs(monkeypatch):
    monkeypatch.syspath_prepend(root/'docs')
    import pages
    return pages


def listed(text):
    "The full names that the directives of a page define, by a reading of its own"
    cells = [o['source'] for o in json.loads(text)['cells'] if o['cell_type'] == 'markdown']
    module = ''
    for kind,name,options in re.findall(r'`{3,}\{py:(\w+)\} ([\w.]+).*\n((?::\w+:.*\n)*)', '\n'.join(cells)):
        if kind == 'module': module = name
        own = re.search(r'^:module: (.*)$', options, re.M)
        yield f'{own[1] if own else module}.{name}'


def test_every_public_name_is_on_a_page(docs):
    "All that nbdev has put into its index of the modules; a method may be in another module than its class"
    names = [o for path,text in docs.pages() if path.suffix == '.ipynb' for o in listed(text)]
    there = {*names}
    assert [o for o,n in Counter(names).items() if n > 1] == []      # Sphinx refuses a name that stands twice
    last = {'.'.join(o.split('.')[-2:]) for o in there}
    wanted = [(o, o[len(mod)+1:]) for mod,names in index['syms'].items() for o in names]
    wanted = [(o, name) for o,name in wanted if not any(part.startswith('_') for part in name.split('.'))]
    assert len(wanted) > 600
    assert [o for o,name in wanted if o not in there and name not in last] == []
    assert [o for o,name in wanted if o not in there and '.' not in name] == []


CODE = """
from dataclasses import dataclass
from fastcore.basics import patch

@dataclass
class Row:
    "One row of a `table`"
    n:int = 1 # Which one, 1 < n < *all*

@patch
def times(self:Row,
    by:float=2., # How often; $k$
)->float: # `n` times `by`
    "So much of it"
    return self.n*by

def _own(): pass
"""


def test_what_a_cell_defines(docs, tmp_path, monkeypatch):
    "By hand: a dataclass with its field, a patched method with its argument and what it returns"
    (tmp_path/'example.py').write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    row,times = docs.defined(CODE, 'example')
    lines = lambda o: [l for l in o.splitlines() if l.strip('`').strip()]
    assert lines(row) == ['```{py:class} Row(n: int = 1)', 'One row of a `table`', ':param n: Which one, 1 \\< n \\< \\*all\\*']
    assert lines(times) == ['```{py:method} Row.times(by: float=2.0) -> float', 'So much of it', ':param by: How often; $k$',
                            ':returns: `n` times `by`']


@pytest.mark.parametrize('nb,href,to', [
    ('14_text.streams.ipynb', '31_loop.learner.ipynb#why', '/31_loop.learner.ipynb#why'),
    ('tutorials/shakespeare.ipynb', '../31_loop.learner.ipynb', '/31_loop.learner.ipynb'),
    ('index.ipynb', 'nbs/31_loop.learner.ipynb', '/31_loop.learner.ipynb'),
    ('index.ipynb', 'CHANGELOG.md', GITHUB+'CHANGELOG.md'),
    ('31_loop.learner.ipynb', '../tests/house.py', GITHUB+'tests/house.py'),
    ('31_loop.learner.ipynb', '#why', '#why'),
    ('31_loop.learner.ipynb', 'https://a.b/c.ipynb', 'https://a.b/c.ipynb')])
def test_a_link_leads_to_a_page_or_to_the_repository(docs, nb, href, to): assert docs.link(href, docs.nbs/nb) == to


def test_a_link_to_nothing_is_an_error(docs):
    with pytest.raises(FileNotFoundError, match='31_loop.*no_such'):
        docs.link('no_such.ipynb', docs.nbs/'31_loop.learner.ipynb')


def prose(path):
    "The Markdown of a notebook, without what stands between fences"
    cells = [''.join(o['source']) for o in json.loads(path.read_text(encoding='utf-8'))['cells'] if o['cell_type'] == 'markdown']
    return re.sub(r'^```.*?^```', '', '\n\n'.join(cells), flags=re.M | re.S)


@pytest.mark.parametrize('path', sorted((root/'nbs').rglob('*.ipynb')), ids=lambda o: o.stem)
def test_headings_leave_no_level_out_and_are_where_links_say(path):
    "Else Sphinx refuses the page"
    heads = re.findall(r'^(#+) (.*)$', text := prose(path), re.M)
    levels = [len(o) for o,_ in heads]
    assert all(b <= a+1 for a,b in zip(levels, levels[1:])), heads
    slugs = {re.sub(r'[^\w -]', '', o).strip().replace(' ', '-').lower() for _,o in heads}
    assert {*re.findall(r'\]\(#([^)]*)\)', text)} <= slugs


# A small site in a real browser

TEXT = 'ROMEO:\nSay "no", or go.\n\n'


@pytest.fixture(scope='module')
def lens():
    "As a notebook keeps it"
    from charrnn_fa.learner import char_learner
    from charrnn_fa.text.data import CharDataLoaders
    learn = char_learner(CharDataLoaders.from_text(TEXT*40, bs=4, seq_len=32, seed=3), n_hid=16, emb_sz=8,
                         head_sz=0, precision='fp32')
    learn.remove_cbs(learn.progress)
    watch = show.Watch(TEXT, share=1)
    learn.fit_steps(60, cbs=watch)
    return show.lens(learn, TEXT, watch, units=['cell 3'])


def notebook(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = dict(name='python3', display_name='python3', language='python')
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))


def markdown(source): return dict(cell_type='markdown', metadata={}, source=source)


@pytest.fixture(scope='module')
def site(lens, tmp_path_factory):
    "A front page, a module, a package of two more and a lesson with a picture, made by the project's own settings"
    if find_spec('sphinx') is None or find_spec('myst_nb') is None:
        pytest.skip('Sphinx is not here; `make docs` installs it')
    tmp = tmp_path_factory.mktemp('site')
    code = dict(cell_type='code', metadata={}, source='lens', execution_count=1, outputs=[dict(
        output_type='execute_result', execution_count=1, metadata={},
        data={'text/html':lens._repr_html_(), 'text/plain':str(lens)})])
    notebook(tmp/'nbs/index.ipynb', markdown('# Front\n\nA [lesson](nbs/tutorials/a.ipynb), [house rules](tests/house.py)'))
    lesson = '# A lesson\n\n> In one line\n\n[module](../30_evaluate.ipynb), [part](../30_evaluate.ipynb#two-protocols)'
    notebook(tmp/'nbs/tutorials/a.ipynb', markdown(lesson), code)
    shutil.copy(root/'nbs/30_evaluate.ipynb', tmp/'nbs')
    shutil.copytree(root/'nbs/images', tmp/'nbs/images')
    for o in '01_text.a', '02_text.b': notebook(tmp/f'nbs/{o}.ipynb', markdown(f'# {o[3:]}\n\n> A module'))
    shutil.copytree(root/'docs', tmp/'docs', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(root/'settings.ini', tmp)
    (tmp/'tests').mkdir()
    (tmp/'tests/house.py').touch()
    (tmp/'docs/reading.md').write_text('# Where to begin\n\n## Lessons\n\n[A lesson](/tutorials/a.ipynb)\n')
    for cmd in ['docs/pages.py', 'pages'], ['-m', 'sphinx', '-q', '-W', '--keep-going', '-c', 'docs', 'pages', 'html']:
        p = subprocess.run([sys.executable, *cmd], cwd=tmp, capture_output=True, text=True)
        assert p.returncode == 0, p.stderr
    return tmp/'html'


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.ids,self.links = set(),[]
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get('id'))
        self.links += [attrs[o] for o in ('href', 'src') if attrs.get(o)]


def test_every_link_leads_somewhere(site):
    "To a file that is there, and to a place in it"
    pages = {o:Page(o) for o in site.rglob('*.html')}
    near = [(path, o) for path,page in pages.items() for o in page.links if not re.match(r'\w+:|//', o)]
    where = lambda path, o: (path.parent/unquote(urlsplit(o).path)).resolve() if urlsplit(o).path else path
    assert len(near) > 100 and [o for path,o in near if not where(path, o).is_file()] == []
    parts = [(where(path, o), o) for path,o in near if urlsplit(o).fragment]
    assert len(parts) > 20 and [o for to,o in parts if to in pages and unquote(urlsplit(o).fragment) not in pages[to].ids] == []
    assert {'packages/text.html', 'tutorials/a.html', GITHUB+'tests/house.py'} <= {*pages[site/'index.html'].links}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def address(site):
    "Where a server has the pages"
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site))
    Thread(target=server.serve_forever, args=[.01], daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(browser, address):
    "With nothing asked of another server, and without a complaint"
    bad,contexts = [],[]
    def _visit(name, **context):
        contexts.append(c := browser.new_context(**context))
        page = c.new_page()
        page.on('console', lambda o: bad.append(o.text) if o.type in ('error', 'warning') else None)
        page.on('pageerror', lambda o: bad.append(str(o)))
        page.on('request', lambda o: bad.append(o.url) if not o.url.startswith((address, 'data:')) else None)
        page.goto(address + name)
        return page
    yield _visit
    for c in contexts: c.close()
    assert bad == []


def colours(page): return page.locator('.charrnn .t i').evaluate_all('os => os.map(o => getComputedStyle(o).backgroundColor)')


@pytest.mark.parametrize('scheme,width', [('light', 1200), ('dark', 390)])
def test_a_stored_picture_answers(visit, lens, scheme, width):
    "The slider recolours the text, a click shows what was expected; the theme reaches it; nothing is wider than the page"
    page = visit('tutorials/a.html', color_scheme=scheme, viewport=dict(width=width, height=800))
    late,slider = colours(page),page.locator('.charrnn input[type=range]')
    slider.focus()
    for _ in range(9): page.keyboard.press('ArrowLeft')
    assert colours(page) != late
    page.locator('.charrnn .t i').nth(5).click()
    assert page.locator('.charrnn .said div').count() >= 3
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    ink = page.locator('.charrnn .t').first.evaluate('o => getComputedStyle(o).color')
    assert (sum(map(int, re.findall(r'\d+', ink)[:3])) > 384) == (scheme == 'dark')


def test_a_name_is_explained_and_found(visit):
    "On its page, in the index of names, and by the search"
    page = visit('30_evaluate.html')
    name = page.locator('dt[id="charrnn_fa.evaluate.evaluate_ids"]')
    entry = name.locator('xpath=..').text_content()
    source = (root/'charrnn_fa/evaluate.py').read_text(encoding='utf-8')
    told = re.search(r'^def evaluate_ids\(.*?^\)', source, re.M | re.S)[0]
    assert told.count('# ') >= 3 and all(o.replace('`', '') in entry for o in re.findall(r'# (.*)$', told, re.M))
    visit('genindex.html').locator('a[href="30_evaluate.html#charrnn_fa.evaluate.evaluate_ids"]').wait_for()
    visit('search.html?q=evaluate_ids').locator('.search a[href^="30_evaluate.html#charrnn_fa.evaluate.evaluate_ids"]').first.wait_for()
