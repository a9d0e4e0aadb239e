"A real browser for the tests: Debian's and others' chromium, driven by Playwright"
import shutil
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

NAMES = 'chromium', 'chromium-browser', 'google-chrome'


def path(): return next(filter(None, map(shutil.which, NAMES)), None)


def missing():
    "Why there is no browser, or None"
    if find_spec('playwright') is None: return 'there is no Playwright'
    return None if path() else 'there is no chromium'


@contextmanager
def launched():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path(), args=['--no-sandbox'])
        try: yield b
        finally: b.close()


@pytest.fixture
def opened(browser):
    "Opens a file as a page, offline; nothing else may be requested, and nothing complained of"
    bad,contexts = [],[]
    def _opened(file, **context):
        contexts.append(c := browser.new_context(offline=True, **context))
        page = c.new_page()
        page.on('console', lambda o: bad.append(o.text))
        page.on('pageerror', lambda o: bad.append(str(o)))
        page.on('request', lambda o: bad.append(o.url) if o.url != file.as_uri() else None)
        page.goto(file.as_uri())
        return page
    yield _opened
    for c in contexts: c.close()
    assert bad == []
