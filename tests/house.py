"""Figures of the library: python tests/house.py [BEGINNING OF A NOTEBOOK'S NAME]

Lines of code are lines of modules without blanks, comments, cell markers and the names that nbdev lists. Exported
cells are counted without their line `#| export`; a check is a call of `test_*`, an `assert` or an expected failure.
"""
import ast
import json
import re
import statistics
import sys
from collections import Counter
from pathlib import Path

root = Path(__file__).resolve().parents[1]
library = root/'charrnn_fa'


def modules(package=''):
    "Paths of the modules of a package (`.` is the top level), or of all"
    found = library.glob('*.py') if package == '.' else (library/package).rglob('*.py')
    return sorted(o for o in found if o.name != '_modidx.py')


def tree(path): return ast.parse(path.read_text(encoding='utf-8'))


def functions(path): return [o for o in ast.walk(tree(path)) if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node): return node.end_lineno - node.lineno + 1


def lines(path): return re.sub(r'^__all__ = \[.*?\]$', '', path.read_text(encoding='utf-8'), count=1, flags=re.M|re.S).splitlines()


def code_lines(path): return sum(bool(o.strip()) and not o.strip().startswith('#') for o in lines(path))


def arguments(path):
    "For each argument of a public function or constructor: does a comment explain it?"
    text = path.read_text(encoding='utf-8').splitlines()
    for f in functions(path):
        if f.name.startswith('_') and f.name != '__init__': continue
        a = f.args
        for arg in [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]:
            if arg.arg not in ('self', 'cls'): yield '#' in text[arg.end_lineno-1][arg.end_col_offset:]


def called_once(paths):
    "Functions of a package that one place calls; what a decorator registers is called by a table"
    used = Counter(getattr(o, 'id', getattr(o, 'attr', None)) for f in paths for o in ast.walk(tree(f)))
    registered = lambda f: any(ast.unparse(o).startswith(('check', 'evidence')) for o in f.decorator_list)
    return [f.name for o in paths for f in functions(o) if used[f.name] == 1 and not registered(f)]


def package(name):
    "Figures of a package"
    paths = modules(name)
    return dict(modules=len(paths), code=sum(map(code_lines, paths)), longest=max(map(code_lines, paths)),
                called_once=len(called_once(paths)))


def packages(): return sorted({o.parent.name if o.parent != library else '.' for o in modules()})


def notebooks(only=''):
    "Cells, as pairs of kind and source, of all notebooks that export a module"
    for path in sorted((root/'nbs').glob(f'{only}[0-9]*.ipynb' if not only else f'{only}*.ipynb')):
        yield path,[(o['cell_type'], ''.join(o['source'])) for o in json.loads(path.read_text(encoding='utf-8'))['cells']]


def checks(source):
    "How many there are in a cell"
    try: nodes = [*ast.walk(ast.parse(re.sub(r'^[%!].*$', '', source, flags=re.M)))]
    except SyntaxError: return 0
    names = [o.func.id for o in nodes if isinstance(o, ast.Call) and isinstance(o.func, ast.Name)]
    return sum(o.startswith('test_') or o in ('expect_fail', 'ExceptionExpected') for o in names) \
        + sum(isinstance(o, ast.Assert) for o in nodes)


def cells(only=''):
    "Figures of exported cells"
    every = [o for _,cs in notebooks(only) for o in cs]
    exported = [s for kind,s in every if kind == 'code' and re.match(r'#\|\s*export\b', s)]
    sizes = sorted(len(re.sub(r'^#\|.*\n?', '', s, flags=re.M).strip('\n').splitlines()) for s in exported)
    n = len(exported)
    return dict(exported=n, mean=statistics.mean(sizes), median=statistics.median(sizes), p90=sizes[int(.9*n)], longest=sizes[-1],
                checks=sum(checks(s) for kind,s in every if kind == 'code' and s not in exported)/n,
                words=sum(len(s.split()) for kind,s in every if kind == 'markdown')/n)


def form():
    "Figures of all modules: how many are too long or too wide, and the share of arguments that are explained"
    nodes = [o for f in modules() for o in ast.walk(tree(f))]
    explained = [o for f in modules() for o in arguments(f)]
    return {'lines over 120': sum(len(l) > 120 for f in modules() for l in lines(f)),
            'classes over 120 lines': sum(isinstance(o, ast.ClassDef) and length(o) > 120 for o in nodes),
            'functions over 40 lines': sum(isinstance(o, ast.FunctionDef) and length(o) > 40 for o in nodes),
            'arguments explained': sum(explained)/len(explained)}


def main(only=''):
    row = lambda name, d: print(f'{name:<12}', *(f'{k} {v:.2f}' if isinstance(v, float) else f'{k} {v}' for k,v in d.items()), sep='  ')
    row('cells', cells(only))
    if only: return
    for o in packages(): row(o, package(o))
    row('all', package(''))
    row('form', form())


if __name__ == '__main__': main(*sys.argv[1:])
