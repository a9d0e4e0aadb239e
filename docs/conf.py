"Sphinx's settings; `make docs` makes the pages that it reads"
import re
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from docutils.writers._html_base import HTMLTranslator

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(Path(__file__).parents[1]/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

project,author,release = cfg['title'],cfg['author'],cfg['version']
copyright = author
extensions = ['myst_nb']
nb_execution_mode = 'off'                       # the outputs that notebooks keep are shown
nb_code_prompt_show = nb_code_prompt_hide = 'Code'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'fieldlist']
myst_heading_anchors = 4
add_module_names = False
toc_object_entries = False
maximum_signature_line_length = 90
highlight_language = 'python3'

html_theme = 'furo'
html_title = f'{project} {release}'
html_static_path = ['static']
html_css_files = ['pages.css']
html_favicon = 'static/icon.svg'
html_copy_source = False
html_show_sphinx = False
html_math_renderer = 'mathml'                   # of browsers: no script, and nothing from elsewhere
github = f"https://github.com/{cfg['user']}/{cfg['repo']}"
html_theme_options = dict(source_view_link=f"{github}/blob/{cfg['branch']}/nbs/{{filename}}")

# An address that will lead somewhere once the repository is public
ours = re.escape(f"{cfg['user']}/{cfg['repo']}")
linkcheck_ignore = [] if cfg['published'] == 'yes' else [rf'https://.*\b{ours}\b.*']


def visit_math(self, node):
    "As docutils does it, which knows `\\ldots` only"
    self.math_output,self.math_options,self.math_output_options = 'mathml','',[]
    node[:] = [nodes.Text(re.sub(r'\\dots\b', r'\\ldots', node.astext()))]
    HTMLTranslator.visit_math(self, node)


def depart_math(self, node): pass


def made(app, name, template, context, doctree):
    "No notebook to view where the page has none"
    if context.get('page_source_suffix') == '.md': context['page_source_suffix'] = ''


def setup(app):
    app.add_html_math_renderer('mathml', (visit_math, depart_math), (visit_math, depart_math))
    app.connect('html-page-context', made)
