"A real browser for the tests: Debian's and others' chromium, driven by Playwright"
import shutil
from contextlib import contextmanager
from importlib.util import find_spec

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
