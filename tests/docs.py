"""The notebooks as pages: python tests/docs.py FOLDER

Links between notebooks lead from page to page, those to other files of the project to its repository; one that leads nowhere is an error.
"""
import configparser
import os
import re
import sys
from pathlib import Path

from nbconvert import HTMLExporter
from tqdm import tqdm

root = Path(__file__).resolve().parents[1]
nbs = root/'nbs'


def link(href:str, nb:Path)->str:
    "Where a link in a notebook leads on its page"
    name,mark,part = href.partition('#')
    if not name or re.match(r'\w+:', name): return href
    target = ((root if nb.name == 'index.ipynb' else nb.parent)/name).resolve()             # index.ipynb is written for the top, as README.md
    if not target.exists(): raise FileNotFoundError(f'{nb} has a link to {name}, which is not there')
    if target.suffix == '.ipynb': return os.path.relpath(target.with_suffix('.html'), nb.parent) + mark + part
    cfg = configparser.ConfigParser()
    cfg.read(root/'settings.ini')
    return 'https://github.com/{user}/{repo}/blob/{branch}/'.format(**cfg['DEFAULT']) + f'{target.relative_to(root)}{mark}{part}'


def notebooks(): return sorted(o for o in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)


def build(out:Path, **options):
    "A page for each notebook; `options` go to nbconvert"
    exporter = HTMLExporter(**options)
    for nb in tqdm(notebooks(), disable=None):
        html = exporter.from_filename(nb)[0]
        html = re.sub(r'(<a href=")([^"]+)(")', lambda m: m[1] + link(m[2], nb) + m[3], html)
        page = out/nb.relative_to(nbs).with_suffix('.html')
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(html, encoding='utf-8')


if __name__ == '__main__': build(Path(sys.argv[1]))
