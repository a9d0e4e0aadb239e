"""How the library is built, in figures: python tests/house.py [BEGINNING OF A NOTEBOOK'S NAME]

Cells are those that notebooks export, without the line `#| export`. A check is a call of `test_*`, `assert` or
an expected failure; prose is the words of Markdown cells. The checkpoint side is `run` (without what was added
to share runs and to look at them), `store`, `checkpoint` and what `core` has of them, in nodes of Python's
syntax tree (`ast.expr` and `ast.stmt`), so that lines and comments cost nothing.
"""
import ast
import json
import re
import statistics
import sys
from collections import Counter
from pathlib import Path

wings = 'run', 'store', 'checkpoint'
added_later = 'card', 'health', 'hub'
# definitions of `core` that serve the checkpoint side
from_wings = {'reason', 'remedy', 'is_number', 'check_number', 'wait_until'}


def notebooks(root):
    "Path and cells of each notebook that exports a module"
    for path in sorted((root/'nbs').glob('[0-9]*.ipynb')):
        cells = [dict(kind=o['cell_type'], source=''.join(o['source']))
                 for o in json.loads(path.read_text(encoding='utf-8'))['cells']]
        if any('#| default_exp' in o['source'] for o in cells): yield path,cells


def exports(cells): return next(m[1] for o in cells if (m := re.search(r'#\| default_exp ([\w.]+)', o['source'])))


def dotted(root, path): return '.'.join(path.relative_to(root/'charrnn_fa').with_suffix('').parts)


def is_exported(cell): return cell['kind'] == 'code' and re.match(r'#\|\s*export\b', cell['source'])


def code_of(cell): return re.sub(r'^#\|.*\n?|^[%!].*$', '', cell['source'], flags=re.M).strip('\n')


def modules(root):
    return [o for o in (root/'charrnn_fa').rglob('*.py')
            if o.name not in ('_modidx.py', 'all.py', '__init__.py', '__main__.py')]


def tree(path): return ast.parse(path.read_text(encoding='utf-8'))


def nodes(node): return sum(isinstance(o, (ast.expr, ast.stmt)) for o in ast.walk(node))


def name_of(node): return getattr(node, 'name', None)


def side(root):
    "Nodes of the checkpoint side"
    n = sum(nodes(tree(o)) for o in modules(root) if o.parent.name in wings and o.stem not in added_later)
    return n + sum(nodes(o) for o in tree(root/'charrnn_fa/core.py').body if name_of(o) in from_wings)


def is_check(node):
    name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ''
    return isinstance(node, ast.Assert) or name.startswith('test_') or name in ('expect_fail', 'ExceptionExpected')


def checks(cell):
    try: return sum(map(is_check, ast.walk(ast.parse(code_of(cell)))))
    except SyntaxError: return 0


def quantiles(ns):
    ns = sorted(ns)
    return statistics.mean(ns), statistics.median(ns), ns[int(0.9*len(ns))], ns[-1]


def functions(path): return [o for o in ast.walk(tree(path)) if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node): return node.end_lineno - node.lineno + 1


def arguments(path):
    "(explained, all) arguments of public functions and constructors"
    lines = path.read_text(encoding='utf-8').splitlines()
    yes = n = 0
    for f in functions(path):
        if f.name.startswith('_') and f.name != '__init__': continue
        a = f.args
        for arg in [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]:
            if arg.arg in ('self', 'cls'): continue
            n += 1
            yes += '#' in lines[arg.end_lineno-1][arg.end_col_offset:]
    return yes,n


def written(path):
    "Lines of a module, without the names that nbdev lists"
    text = path.read_text(encoding='utf-8')
    return re.sub(r'^__all__ = \[.*?\]$', '', text, count=1, flags=re.M|re.S).splitlines()


def code_lines(path):
    "Lines of code of a module, and all its lines: without names that nbdev lists, blanks, comments and cell markers"
    lines = written(path)
    return sum(bool(o.strip()) and not o.strip().startswith('#') for o in lines), len(path.read_text(encoding='utf-8').splitlines())


def package(root, name):
    "Figures of a package: modules, lines of code, lines in all, its longest module, and functions that one place calls"
    files = sorted((root/'charrnn_fa'/name).glob('*.py'))
    sizes = [code_lines(o) for o in files]
    used = Counter(getattr(o, 'id', getattr(o, 'attr', None)) for f in files for o in ast.walk(tree(f)))
    rows = ('check', 'evidence') # what these decorate is called by the table
    is_row = lambda f: any(ast.unparse(o).startswith(rows) for o in f.decorator_list)
    once = [f for o in files for f in functions(o) if used[f.name] == 1 and not is_row(f)]
    return dict(modules=len(files)-1, code=sum(a for a,_ in sizes), lines=sum(b for _,b in sizes), longest=max(b for _,b in sizes),
                called_once=len(once), parses=[o.name for o in files if re.search(r'^\s*(import|from) ast\b', o.read_text(), re.M)])


def house(root, only=''):
    "Names to figures; `only` restricts them to notebooks whose name begins so"
    books = [o for o in notebooks(root) if o[0].name.startswith(only)]
    files = [o for o in modules(root) if not only or any(exports(cells) == dotted(root, o) for _,cells in books)]
    cells = [o for _,cs in books for o in cs]
    exported = [o for o in cells if is_exported(o)]
    with_blank = [len(code_of(o).splitlines()) for o in exported]
    without = [sum(bool(l.strip()) for l in code_of(o).splitlines()) for o in exported]
    words = sum(len(o['source'].split()) for o in cells if o['kind'] == 'markdown')
    n_checks = sum(checks(o) for o in cells if o['kind'] == 'code' and not is_exported(o))
    lines = [l for o in files for l in written(o)]
    classes = [n for o in files for n in ast.walk(tree(o)) if isinstance(n, ast.ClassDef)]
    explained,args = map(sum, zip(*map(arguments, files)))
    show = lambda q: ' / '.join(f'{o:.1f}' if isinstance(o, float) and o % 1 else f'{o:.0f}' for o in q)
    return {
        'modules directly in charrnn_fa': sum(o.parent == root/'charrnn_fa' for o in files),
        'modules, largest in lines': f'{len(files)}, {max(len(o.read_text(encoding="utf-8").splitlines()) for o in files)}',
        'syntax nodes of the checkpoint side': f'{side(root):,} of {sum(nodes(tree(o)) for o in files):,}',
        'exported cells': len(exported),
        'lines of an exported cell: mean / median / p90 / max': show(quantiles(with_blank)),
        '  without blank lines': show(quantiles(without)),
        'checks per exported cell': f'{n_checks/len(exported):.2f}',
        'words of prose per exported cell': f'{words/len(exported):.0f}',
        'classes over 120 lines': sum(length(o) > 120 for o in classes),
        'lines over 140 / 120 characters': f'{sum(len(l) > 140 for l in lines)} / {sum(len(l) > 120 for l in lines)}',
        'functions over 40 lines': sum(length(f) > 40 for o in files for f in functions(o)),
        'arguments of public functions explained': f'{explained/max(1, args):.0%} of {args}',
    }


def table(figures): return '\n'.join(f'{k:<60} {v}' for k,v in figures.items())


if __name__ == '__main__': print(table(house(Path(__file__).resolve().parents[1], *sys.argv[1:])))
