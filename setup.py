"Build settings: everything about the package is in settings.ini, this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(HERE/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']


def lines(key: str) -> list[str]: return [o.strip() for o in cfg[key].splitlines() if o.strip()]


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(HERE/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    url=cfg['git_url'],
    keywords=cfg['keywords'],
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Developers', 'Natural Language :: English',
                 'Programming Language :: Python :: 3 :: Only', 'Operating System :: POSIX'],
    python_requires=f">={cfg['min_python']}",
    install_requires=lines('requirements'),
    extras_require={o: lines(f'{o}_requirements') for o in ('dev', 'timm', 'tensorboard', 'ray', 's3', 'gcs', 'azure')},
    # The job notebooks in nbs/jobs are shipped as the package lightly_curate.jobs: one source, no copy.
    packages=[*find_packages(include=['lightly_curate', 'lightly_curate.*']), 'lightly_curate.jobs'],
    package_dir={'lightly_curate.jobs': 'nbs/jobs'},
    package_data={'lightly_curate': ['py.typed', '**/*.json', 'learn/weights/*', 'report/assets/*'],
                  'lightly_curate.jobs': ['*.ipynb']},
    include_package_data=False,
    entry_points={
        'console_scripts': lines('console_scripts'),
        'nbconvert.exporters': ['lightly-pdf = lightly_curate.report.render:TypstExporter'],
    },
    zip_safe=False,
)
