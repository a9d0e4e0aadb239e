"""What Sphinx reads, made from the notebooks: python docs/pages.py FOLDER

A page for each notebook, in which stands, after each cell that is exported, what the cell defines;
one for each package; one that says where to begin.
"""
import ast
import configparser
import inspect
import json
import re
import shutil
import sys
from copy import deepcopy
from importlib import import_module
from pathlib import Path

from fastcore.docments import docments
from nbdev.doclinks import patch_name

here = Path(__file__).resolve().parent
root = here.parent
nbs = root/'nbs'
cfg = configparser.ConfigParser(delimiters=['='], interpolation=None)
cfg.read(root/'settings.ini', encoding='utf-8')
github = 'https://github.com/{user}/{repo}/blob/{branch}/'.format(**cfg['DEFAULT'])


def fenced(kind, arg='', *body):
    "A directive, whose fence is longer than those within it"
    text = '\n'.join(body)
    fence = '`'*(max(map(len, re.findall('^`{3,}', text, re.M)), default=2) + 1)
    return f'{fence}{{{kind}}} {arg}\n{text}\n{fence}\n'


# Links

def link(href:str, nb:Path)->str:
    "Where a link in a notebook leads on its page: to a page, or to another file of the project in its repository"
    name,mark,part = href.partition('#')
    if not name or re.match(r'\w+:', name): return href
    # index.ipynb is written for the top, as README.md
    target = ((root if nb.name == 'index.ipynb' else nb.parent)/name).resolve()
    if not target.exists(): raise FileNotFoundError(f'{nb} has a link to {name}, which is not there')
    if target.suffix in ('.ipynb', '.png', '.svg'): return '/' + target.relative_to(nbs).as_posix() + mark + part
    return github + target.relative_to(root).as_posix() + mark + part


def linked(text, nb): return re.sub(r'(\]\()([^()\s]+)(\))', lambda m: m[1] + link(m[2], nb) + m[3], text)


# What a cell defines

def prose(text):
    "A comment or docstring as Markdown, in which only code and formulas are marked"
    return re.sub(r'(`[^`]*`|\$[^$`]+\$)|([*_<$\[\\])', lambda m: m[1] or '\\' + m[2], ' '.join(text.split()))


def unwrapped(o):
    "The function within a method or property, whatever its kind"
    o = getattr(o, '__func__', None) or getattr(o, 'fget', None) or getattr(o, 'func', None) or o
    return getattr(o, 'func', o)


def explained(o, node, code):
    "The arguments of `o` that have a comment, and what is returned, as a list of fields"
    docs = docments(o, args_kwargs=True)
    # docments sees what is returned only where a type is
    if last := re.search(r'^\)\s*:\s*# (.*)$', ast.get_source_segment(code, node) or '', re.M): docs['return'] = last[1]
    return [f':returns: {prose(v)}' if k == 'return' else f':param {k}: {prose(v)}' for k,v in docs.items() if v]


def signature(node):
    "As it is written, without `self`"
    args = deepcopy(node.args)
    if args.args and (args.args[0].arg in ('self', 'cls') or patch_name(node) != node.name): del args.args[0]
    return f'({ast.unparse(args)})' + (f' -> {ast.unparse(node.returns)}' if node.returns else '')


def fields(node):
    "What a class is made with: the arguments of `__init__`, or the fields of a dataclass"
    for o in node.body:
        if isinstance(o, ast.FunctionDef) and o.name == '__init__': return signature(o)
    if not any('dataclass' in ast.unparse(o) for o in node.decorator_list): return ''
    return '(' + ', '.join(ast.unparse(o) for o in node.body if isinstance(o, ast.AnnAssign)) + ')'


def public(nodes):
    "The functions and classes among them that are for others"
    return [o for o in nodes if isinstance(o, (ast.FunctionDef, ast.ClassDef)) and not o.name.startswith('_')]


def entry(node, owner, code, module):
    "One name with its signature, docstring and arguments; a class with its methods"
    what = ' '.join(map(ast.unparse, node.decorator_list))
    o = inspect.getattr_static(owner, node.name)
    kind,name,options,inner = 'function',node.name,[],[]
    if isinstance(node, ast.ClassDef):
        kind,inner = 'class',[entry(m, o, code, module) for m in public(node.body)]
    elif inspect.isclass(owner):
        kind,name = 'property' if 'prop' in what else 'method',f'{owner.__qualname__}.{node.name}'
        if 'cls_method' in what or 'classmethod' in what: options.append(':classmethod:')
        if 'static' in what: options.append(':staticmethod:')
        if owner.__module__.startswith('charrnn_fa.'): options.append(f':module: {owner.__module__}')
    sig = '' if kind == 'property' else fields(node) if kind == 'class' else signature(node)
    args = explained(o if kind == 'class' else unwrapped(o), node, code)
    return fenced(f'py:{kind}', name + sig, *options, '', prose(ast.get_docstring(node) or ''), '', *args, '', *inner)


def constants(node):
    "Public names that an assignment makes"
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [o.id for t in targets for o in ast.walk(t) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)]
    return [o for o in names if not o.startswith('_')]


def owners(node, mod):
    "What has the name: the module, or the classes that it is patched into"
    names = patch_name(node)
    names = [names] if isinstance(names, str) else names
    return [getattr(mod, o.rpartition('.')[0]) if '.' in o else mod for o in names]


def defined(code, module):
    "The public names that a cell of `module` defines, as directives"
    mod,tree = import_module(module),ast.parse(code)
    yield from (entry(o, owner, code, module) for o in public(tree.body) for owner in owners(o, mod))
    yield from (fenced('py:data', o) for node in tree.body for o in constants(node))


# Pages

def markdown(text): return dict(cell_type='markdown', metadata={}, source=text)


def code_page(cell, module):
    "A code cell as cells of a page"
    source = ''.join(cell['source'])
    marks = dict(re.findall(r'^#\| *([\w-]+):? *(.*)$', source, re.M))
    source = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')
    if 'hide' in marks or not source: return
    shown = [''.join(o['data']['text/markdown']) for o in cell['outputs'] if 'text/markdown' in o.get('data', {})]
    if marks.get('echo') == 'false' and shown: yield from map(markdown, shown)
    else:
        names = [*defined(source, module)] if 'export' in marks else []
        tags = ['remove-input'] if marks.get('echo') == 'false' else ['hide-input'] if names else []
        image = dict(mystnb=dict(image=dict(alt=marks['fig-alt']))) if 'fig-alt' in marks else {}
        yield {**cell, 'source':source, 'metadata':{'tags':tags, **image}}
        yield from map(markdown, names)


def page(nb:Path)->dict:
    "A notebook as Sphinx is to read it"
    data = json.loads(nb.read_text(encoding='utf-8'))
    module = re.search(r'#\| default_exp ([\w.]+)', '\n'.join(''.join(o['source']) for o in data['cells']))
    module = f'charrnn_fa.{module[1]}' if module else ''
    cells = []
    for o in data['cells']:
        if o['cell_type'] == 'code': cells += code_page(o, module)
        elif text := linked(''.join(o['source']), nb).strip(): cells.append(markdown(text))
    if module: cells[0]['source'] += '\n\n' + fenced('py:module', module)
    return {**data, 'cells':cells}


def subtitle(nb):
    "The line beneath its title"
    sources = [''.join(o['source']) for o in json.loads(nb.read_text(encoding='utf-8'))['cells']]
    return next(m[1] for o in sources if (m := re.match(r'# .*\n+> (.*)', o)))


def packages():
    "The notebooks of each package, in their order"
    res = {}
    for nb in sorted(nbs.glob('[0-9]*.ipynb')): res.setdefault(nb.stem.split('_', 1)[1].split('.')[0], []).append(nb)
    return res


def listed(modules): return '\n'.join(f"- [{o.stem.split('_', 1)[1]}](/{o.name}): {subtitle(o)}" for o in modules)


def toctree(pages, *options): return fenced('toctree', '', ':hidden:', *options, '', *pages)


def package_page(name, modules):
    "The page of a package"
    says = import_module(f'charrnn_fa.{name}').__doc__ or ''
    return f'# {name}\n\n{says}\n\n{listed(modules)}\n\n' + toctree([f'/{o.stem}' for o in modules])


def pages():
    "What each file of Sphinx's folder holds"
    books = {o.relative_to(nbs):page(o) for o in sorted(nbs.rglob('*.ipynb')) if '.ipynb_checkpoints' not in o.parts}
    reading = (here/'reading.md').read_text(encoding='utf-8')
    lessons = re.findall(r'\(/(tutorials/\w+)\.ipynb\)', reading)
    modules = [o[0].stem if len(o) == 1 else f'packages/{k}' for k,o in packages().items()]
    parts = dict(Lessons=['reading', *lessons], Modules=modules, Reference=['Names <genindex>'])
    books[Path('index.ipynb')]['cells'] += [markdown(toctree(o, f':caption: {k}')) for k,o in parts.items()]
    for v in books.values(): v['cells'] = [{**o, 'id':f'cell-{i}'} for i,o in enumerate(v['cells'])]
    yield from ((k, json.dumps(v)) for k,v in books.items())
    yield Path('reading.md'),reading + ''.join(f'\n### {k}\n\n{listed(o)}\n' for k,o in packages().items())
    yield from ((Path(f'packages/{k}.md'), package_page(k, o)) for k,o in packages().items() if len(o) > 1)


def write(out:Path):
    for k,v in pages():
        (out/k).parent.mkdir(parents=True, exist_ok=True)
        (out/k).write_text(v, encoding='utf-8')
    shutil.copytree(nbs/'images', out/'images', dirs_exist_ok=True)


if __name__ == '__main__': write(Path(sys.argv[1]))
