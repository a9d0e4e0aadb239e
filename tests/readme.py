"""README.md out of nbs/index.ipynb, with the outputs stored there: python tests/readme.py > README.md

Cells marked `#| hide` are left out, of `#| echo: false` cells only the output is kept, and lines that are
directives to nbdev are dropped. GitHub shows no picture that is not a file, so that of a cell with `#| label:
NAME` and `#| fig-alt: TEXT` is written to nbs/images/NAME.png.
"""
import base64
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]
index = root/'nbs/index.ipynb'


def directive(cell, name): return (re.findall(rf'^#\|\s*{name}:\s*(.+)$', cell.source, re.M) or [None])[0]


def picture_of(cell):
    "The PNG among the outputs of a cell, or None"
    pngs = [o.data['image/png'] for o in cell.get('outputs', []) if 'image/png' in o.get('data', {})]
    return base64.b64decode(pngs[0]) if pngs else None


def pictures(path=index)->dict:
    "Files of the pictures, from the top of the repository, and what is in them"
    cells = nbformat.read(path, as_version=4).cells
    return {f"nbs/images/{directive(c, 'label')}.png": b for c in cells if (b := picture_of(c))}


def as_file(cell):
    "An output that shows the file of the cell's picture, as wide as a phone or a bit more"
    src,alt = f"nbs/images/{directive(cell, 'label')}.png",directive(cell, 'fig-alt')
    return nbformat.v4.new_output('display_data', {'text/markdown': f'<img src="{src}" alt="{alt}" width="520">'})


def render(path=index)->str:
    "The notebook as Markdown"
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*hide\b', c.source, re.M)]
    for c in nb.cells:
        if c.cell_type != 'code': continue
        if re.search(r'^#\|\s*echo:\s*false', c.source, re.M): c.metadata['tags'] = ['remove_input']
        if picture_of(c): c.outputs = [as_file(c)]
        c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip()
    exporter = MarkdownExporter(config={'TagRemovePreprocessor': {'enabled': True, 'remove_input_tags': ['remove_input']},
                                        'MarkdownExporter': {'preprocessors': ['nbconvert.preprocessors.TagRemovePreprocessor']}})
    text = exporter.from_notebook_node(nb)[0]
    text = re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return '<!-- made from nbs/index.ipynb by `make readme`: edit the notebook -->\n' + text


if __name__ == '__main__':
    for name,b in pictures().items():
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(b)
    print(render(), end='')
