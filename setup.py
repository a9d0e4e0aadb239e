"Package metadata for pip, read from settings.ini so that nothing is stated twice."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(here/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
url = f"https://github.com/{cfg['user']}/{cfg['repo']}"

setup(
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license=cfg['license'],
    keywords=cfg['keywords'].split(),
    url=url,
    project_urls={'Source': url},
    classifiers=['Programming Language :: Python :: 3', 'Programming Language :: Python :: 3 :: Only'],
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    package_data={'charrnn_fa.show': ['*.html', '*.css', '*.js']},
    extras_require={o: cfg[f'{o}_requirements'].split() for o in ('dev', 'docs')},
    entry_points={'console_scripts': [cfg['console_script']], 'nbdev': [f"{cfg['lib_name']} = {cfg['lib_name']}._modidx:d"]},
)
