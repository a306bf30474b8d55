"What is installed: entry points, version, and what the wheel carries."
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from zipfile import ZipFile

import lightly_curate
import pytest


def run(*words, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([str(o) for o in words], capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs)


def program() -> Path: return Path(sys.executable).with_name('lightly-curate')


def test_version_has_one_source(root):
    told = re.search(r'^version = (.*)', (root/'settings.ini').read_text(), re.M)[1]
    assert version('lightly_curate') == lightly_curate.__version__ == told


def test_console_script():
    (script,) = entry_points(group='console_scripts', name='lightly-curate')
    assert callable(script.load())


def test_exporter_is_known_to_nbconvert():
    from nbconvert.exporters import get_exporter
    assert get_exporter('lightly-pdf').__name__ == 'TypstExporter'


@pytest.mark.smoke
def test_help_and_faults_need_no_heavy_package(tmp_path):
    "Both answer at once: neither loads torch, umap, papermill or nbconvert."
    trace = {**os.environ, 'PYTHONPROFILEIMPORTTIME': '1'}
    for word, code in (('--help', 0), ('n_sampels=3', 2)):
        out = run(program(), word, cwd=tmp_path, env=trace)
        assert out.returncode == code, out.stderr[-2000:]
        for heavy in ('torch', 'umap', 'papermill', 'nbconvert', 'lightly.models'):
            assert not re.search(rf'\| +{re.escape(heavy)}$', out.stderr, re.M), f'{word} loads {heavy}'
    assert list(tmp_path.iterdir()) == []


def test_requirements_are_explained(root):
    "Every dependency has its line in CONTRIBUTING."
    settings = (root/'settings.ini').read_text()
    lines = re.split(r'^(?:\w+_)?requirements =\n', settings, flags=re.M)[1:]
    names = [re.match(r'[\w-]+', o.strip())[0] for part in lines for o in re.findall(r'^    (.+)', part, re.M)]
    explained = (root/'CONTRIBUTING.md').read_text()
    assert len(names) > 20
    assert [o for o in names if f'| {o} ' not in explained] == []


@pytest.mark.slow
def test_wheel(root, tmp_path):
    "The wheel has weights, job notebooks and types, nothing of tests and tools, and every module that is imported."
    source = tmp_path/'source'
    shutil.copytree(root, source, ignore=shutil.ignore_patterns('.git', '.venv', 'build', 'dist', '*.egg-info', 'demo'))
    made = run(sys.executable, '-m', 'build', '--wheel', '--outdir', tmp_path/'dist', source)
    assert made.returncode == 0, made.stderr[-2000:]
    (wheel,) = (tmp_path/'dist').iterdir()
    with ZipFile(wheel) as z: names = z.namelist()
    assert wheel.stat().st_size < 12e6, 'the built-in weights are to stay under 10 MB'
    assert 'lightly_curate/py.typed' in names
    assert {f'lightly_curate/jobs/{o}.ipynb' for o in ('curate', 'embed', 'select', 'report', 'compare')} <= set(names)
    assert [o for o in names if o.startswith('lightly_curate/learn/weights/')]
    assert {f'lightly_curate/report/assets/explore.{o}' for o in ('html', 'css', 'js')} <= set(names)
    modules = {str(o.relative_to(root)) for o in (root/'lightly_curate').rglob('*.py') if '__pycache__' not in o.parts}
    assert modules <= set(names)
    assert {o.split('/')[0] for o in names} == {'lightly_curate', wheel.name.split('-py3')[0] + '.dist-info'}


def test_readme_explains_every_key(root):
    from lightly_curate.core.config import CurateConfig, leaves
    text = (root/'README.md').read_text()
    told = set(re.findall(r'`([\w.*]+)`', text))
    ours = [name for name, _ in leaves(CurateConfig()) if not name.startswith('lightly.')]
    assert [o for o in ours if o not in told and f'{o.rpartition(".")[0]}.*' not in told] == []
