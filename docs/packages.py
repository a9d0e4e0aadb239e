"""The packages of the library and which imports from which, read from the code: python docs/packages.py > nbs/images/packages.svg

A package stands above those that it imports from. An arrow that follows from two others is left out.
"""
import ast
import re
from pathlib import Path

root = Path(__file__).resolve().parents[1]
library = root/'charrnn_fa'
ABOUT = dict(errors='errors and their remedies', output='what is printed', text='texts and drawings to batches',
             models='RNN, GRU, LSTM', presets='settings for a purpose', optim='Muon and AdamW',
             numpy_step='one time step in NumPy', callback='precision, schedule, progress', generate='sampling',
             evaluate='loss of a text', loop='fit with a hidden state', doctor='finds mistakes',
             build='a Learner from its parts', run="a run's folder, the Hub", learner='char_learner',
             show='pictures, share page', store='Drive or any URL', checkpoint='save and resume',
             colab='Drive and idle kills', command='the commands', cli='charrnn')


def exported():
    "The modules that notebooks export, in the order of the notebooks"
    names = (re.search(r'#\| default_exp ([\w.]+)', o.read_text(encoding='utf-8')) for o in sorted((root/'nbs').glob('[0-9]*.ipynb')))
    return [o[1] for o in names if o]


def source(name):
    "Where module `name` is, such as `store.worker`, or the package `store`"
    path = library/name.replace('.', '/')
    return path/'__init__.py' if path.is_dir() else path.with_suffix('.py')


def mentioned(node, package):
    "Full names that an import statement may mean: what stands after `import` can be a module too"
    if isinstance(node, ast.Import): return [o.name for o in node.names]
    if not isinstance(node, ast.ImportFrom): return []
    above = package.split('.')[:len(package.split('.')) + 1 - node.level] if node.level else []
    return ['.'.join([*above, *filter(None, [node.module]), o.name]) for o in node.names]


def imported(name):
    "The modules of this library that module `name` imports, within functions too"
    path = source(name)
    package = '.'.join(['charrnn_fa', *path.parent.relative_to(library).parts])
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        for whole in mentioned(node, package):
            top,*parts = whole.split('.')
            if top != 'charrnn_fa': continue
            while parts and not source('.'.join(parts)).exists(): parts.pop()      # a name within a module
            if parts: yield '.'.join(parts)


def arrows():
    "Each package, or module at the top, to those that it imports from"
    res = {}
    for path in sorted(library.rglob('*.py')):
        name = '.'.join(path.relative_to(library).with_suffix('').parts).removesuffix('.__init__')
        if name in ('__init__', '_modidx', 'all', '__main__'): continue
        package = name.split('.')[0]
        res.setdefault(package, set()).update(o.split('.')[0] for o in imported(name))
        res[package].discard(package)
    return res


def levels(into):
    "Packages that import from lower levels only, from below"
    res = []
    while rest := {*into} - {o for row in res for o in row}:
        row = sorted(o for o in rest if not into[o] & rest)
        if not row: raise SystemExit(f"These import each other: {', '.join(sorted(rest))}")
        res.append(row)
    return res


def below(name, into): return into[name] | {o for p in into[name] for o in below(p, into)}


def direct(name, into):
    "What `name` imports from and no import of its own leads to"
    return sorted(into[name] - {o for p in into[name] for o in below(p, into)})


def picture():
    "An SVG file"
    into = arrows()
    rows = levels(into)[::-1]
    width,height,w,h = 1000,68*len(rows),164,40
    at = {o:((i+.5)*width/len(row), 34 + 68*y) for y,row in enumerate(rows) for i,o in enumerate(row)}
    lines = [f'<path d="M{x:.0f} {y+h/2:.0f} L{at[p][0]:.0f} {at[p][1]-h/2-3:.0f}"/>'
             for o,(x,y) in at.items() for p in direct(o, into)]
    boxes = [f'<rect x="{x-w/2:.0f}" y="{y-h/2:.0f}" width="{w}" height="{h}" rx="6"/><text x="{x:.0f}" y="{y-2:.0f}">{o}</text>'
             f'<text class="s" x="{x:.0f}" y="{y+14:.0f}">{ABOUT.get(o, "")}</text>' for o,(x,y) in at.items()]
    style = ('rect{fill:#fff;stroke:#567}path{stroke:#89a;fill:none;marker-end:url(#a)}'
             'text{font:600 14px sans-serif;text-anchor:middle;fill:#123}.s{font:10px sans-serif;fill:#567}')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n'
            f'<title>Packages of charrnn_fa; an arrow leads to what a package imports from</title>\n<style>{style}</style>\n'
            '<marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<polygon points="0 0 8 4 0 8" fill="#89a"/></marker>\n'
            f'<rect width="{width}" height="{height}" style="fill:#f7f9fa;stroke:none"/>\n'+'\n'.join(lines+boxes)+'\n</svg>\n')


if __name__ == '__main__': print(picture(), end='')
