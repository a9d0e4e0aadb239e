"""README.md out of nbs/index.ipynb, with the outputs stored there: python tests/readme.py > README.md

Cells marked `#| hide` are left out, of `#| echo: false` cells only the output is kept, and lines that are directives to nbdev are dropped.
"""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]


def render(path=root/'nbs/index.ipynb')->str:
    "The notebook as Markdown"
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*hide\b', c.source, re.M)]
    for c in nb.cells:
        if c.cell_type != 'code': continue
        if re.search(r'^#\|\s*echo:\s*false', c.source, re.M): c.metadata['tags'] = ['remove_input']
        c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip()
    exporter = MarkdownExporter(config={'TagRemovePreprocessor': {'enabled': True, 'remove_input_tags': ['remove_input']},
                                        'MarkdownExporter': {'preprocessors': ['nbconvert.preprocessors.TagRemovePreprocessor']}})
    text = exporter.from_notebook_node(nb)[0]
    text = re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return '<!-- made from nbs/index.ipynb by `make readme`: edit the notebook -->\n' + text


if __name__ == '__main__': print(render(), end='')
