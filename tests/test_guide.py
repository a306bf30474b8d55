"The pages of the guide know every file, every column and every key, and say nothing that is not there."
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from lightly_curate.core.config import CurateConfig, leaves
from lightly_curate.core.rundir import RUN_MARK, RunData, RunDir, RunState
from lightly_curate.core.samples import COLUMNS
from lightly_curate.report.report import REPORT_SCHEMA
from lightly_curate.select.budget import SelectionCurve
from test_flow import DOCUMENTED

PAGES = ('structure_your_input', 'output_files', 'keys', 'choosing_how_many', 'scaling', 'troubleshooting', 'coming_from')


def page(root: Path, name: str) -> str:
    "A page as a reader sees it: prose and what its cells show."
    cells = json.loads((root/'nbs'/'guide'/f'{name}.ipynb').read_text(encoding='utf-8'))['cells']
    shown = [''.join(c['source']) for c in cells if c['cell_type'] == 'markdown']
    for output in (o for c in cells for o in c.get('outputs', [])):
        shown.append(''.join(output.get('text', '')) + ''.join(output.get('data', {}).get('text/markdown', '')))
    return '\n\n'.join(shown)


def first_cells(text: str) -> list[str]:
    "What stands in code type at the beginning of each line of a table."
    return [name for line in re.findall(r'^\| (`.*?) \|', text, re.M) for name in re.findall(r'`([^`]+)`', line)]


@pytest.fixture(scope='module')
def files(root) -> set[str]:
    "Every file of a run that the page on output files has a line for."
    named = [o for o in first_cells(page(root, 'output_files')) if '.' in o or o.endswith('/')]
    assert len(named) == len(set(named)), 'a file has two lines'
    return set(named)


def test_every_page_is_there(root):
    assert {o.stem for o in (root/'nbs'/'guide').glob('*.ipynb')} == set(PAGES)


def test_every_file_of_a_run_is_on_the_page(files):
    assert set(DOCUMENTED) - files == set()


def test_every_place_in_a_run_folder_is_on_the_page(files):
    "What the code can write, whether or not a plain run does."
    run = RunDir(Path('run'))
    named = [name for kind in (RunDir, RunData) for name, o in vars(kind).items() if isinstance(o, property)]
    for path in (getattr(run, o).relative_to(run.root).as_posix() for o in named):
        assert path in files or any(o.startswith(f'{path}/') or o == f'{path}/' for o in files), path


def test_every_file_on_the_page_is_one_of_a_run(root, files):
    run = RunDir(Path('run'))
    known = {getattr(run, name).relative_to(run.root).as_posix() for kind in (RunDir, RunData)
             for name, o in vars(kind).items() if isinstance(o, property)}
    code = ''.join(o.read_text(encoding='utf-8') for o in (root/'lightly_curate'/'report').glob('*.py'))
    for file in files - set(DOCUMENTED):
        if file.startswith('plots/'):
            pattern = re.escape(Path(file).stem).replace('<k>', '.+').replace('<map>', '.+')
            assert re.search(rf"'{pattern}'", code), f'no module of the report writes {file}'
        elif not file.endswith('.ckpt'): assert file.rstrip('/') in known, file
    assert {o for o in files if o.endswith('.ckpt')} == {'lightly_epoch_<n>.ckpt', 'last.ckpt'}


def test_what_a_run_keeps_for_itself_is_on_the_page(root):
    text = page(root, 'output_files')
    assert f'`{RUN_MARK}/`' in text
    run = RunState(Path('run'))
    passing = ('frames.npy', 'frame_rows.npy', 'cache', 'training.pt')  # gone when the run has ended
    for name in (getattr(run, o).name for o, kind in vars(RunState).items() if isinstance(kind, property)):
        assert f'`{name}`' in text or name in (RUN_MARK, *passing), name


def test_every_column_is_on_the_page(root):
    text = page(root, 'output_files')
    named = set(first_cells(text))
    assert set(COLUMNS) - named == set()
    curve = {o.name for o in fields(SelectionCurve) if o.type == 'np.ndarray'}
    assert curve - named == set()
    assert set(REPORT_SCHEMA['properties']) - named == set()


def test_every_key_is_on_the_page_once(root):
    text = page(root, 'keys')
    tables = [o for o in first_cells(text) if o in dict(leaves(CurateConfig()))]
    assert set(dict(leaves(CurateConfig()))) - set(tables) == set()
    for key in ('datapool.name', 'lightly.trainer.max_epochs', 'method'):
        assert len(re.findall(rf'^\| `{re.escape(key)}` \| [^|]+ \| [^|]+ \| [^|]+ \|', text, re.M)) == 1, key


@pytest.mark.parametrize('name', PAGES)
def test_keys_in_commands_exist(root, name):
    "Words of the form key=value in code type or in a command are words that the program knows."
    known, short = set(dict(leaves(CurateConfig()))), {'n_samples', 'min_distance', 'coverage_distance'}
    text = page(root, name)
    commands = re.findall(r'```sh\n(.*?)```', text, re.S) + re.findall(r'`([\w.]+=[^`]*)`', text)
    words = [key for o in commands if 'start_number' not in o for key in re.findall(r'(?<![\w.+-])([a-zA-Z_][\w.]*)=', o)]
    elsewhere = {'key', 'lightly.optimizer.momentum', 'ulimit', 'nofile', 'files', 'shm'}
    assert [o for o in words if o not in known | short | elsewhere and not o.startswith('MY')] == []
