"Each gate for notebooks is seen to fail on a bad notebook, and to pass a good one."
import json
import shutil
from hashlib import sha1
from pathlib import Path

import check_imports
import check_nbs
import check_sync
import make_docs
import make_outputs
import make_readme
import nbformat
import pytest
import yaml
from notebooks import read_notebooks

HEAD = '# name\n\n> One sentence.'
PROSE = 'Words that say why. ' * 30


def cell(source: str, kind: str = 'code', tags=(), outputs=()) -> dict:
    out = {'cell_type': kind, 'id': sha1(source.encode()).hexdigest()[:8], 'source': source.splitlines(keepends=True),
           'metadata': {'tags': list(tags)} if tags else {}}
    return out | ({'execution_count': None, 'outputs': list(outputs)} if kind == 'code' else {})


def write(root: Path, name: str, *cells: dict, head: str = HEAD) -> Path:
    path = root/'nbs'/name
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [cell(head, 'markdown'), cell(PROSE, 'markdown'), *cells]
    meta = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    nb = {'cells': cells, 'metadata': meta, 'nbformat': 4, 'nbformat_minor': 5}
    path.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + '\n', encoding='utf-8')
    return path


def library(root: Path, name: str, module: str, *cells: dict, **kwargs) -> Path:
    return write(root, name, cell(f'#| default_exp {module}'), *cells, **kwargs)


def export(source: str) -> dict: return cell(f'#| export\n{source}')
def display(**data) -> dict: return {'output_type': 'display_data', 'metadata': {}, 'data': data}


GOOD = export('def double(x):\n    "Twice `x`."\n    return 2*x')
PARAMETERS = cell("run_dir: str = ''", tags=['parameters'])


def test_good_notebooks_pass(tmp_path):
    library(tmp_path, '00_core/00_a.ipynb', 'core.a', GOOD)
    imports = 'from lightly_curate.core import a\nfrom lightly_curate.core.a import double'
    library(tmp_path, '10_data/10_b.ipynb', 'data.b', export(imports), GOOD)
    write(tmp_path, 'jobs/curate.ipynb', PARAMETERS)
    assert check_nbs.faults(tmp_path) == []
    assert check_imports.faults(tmp_path) == []


BAD_CELLS = {
    'imports mixed': cell('import os\nos.getcwd()'),
    'star import': cell('from os.path import *'),
    'export cell of 61 lines': export('\n'.join(f'a{i} = {i}' for i in range(61))),
    'body of long has 31 lines': export('def long():\n    "Long."\n' + '    x = 1\n' * 31),
    'invalid syntax': cell('def'),
    'bytes of outputs': cell('1', outputs=[display(**{'image/png': 'A' * 150_000})]),
    'a widget': cell('1', outputs=[display(**{'application/vnd.jupyter.widget-view+json': {}})]),
    'absolute path': cell('1', outputs=[display(**{'text/plain': ["PosixPath('/home/someone/x')"]})]),
}


@pytest.mark.parametrize('fault', BAD_CELLS)
def test_bad_cell(tmp_path, fault):
    library(tmp_path, '00_core/00_a.ipynb', 'core.a', BAD_CELLS[fault])
    assert [o for o in check_nbs.faults(tmp_path) if fault in o], check_nbs.faults(tmp_path)


def test_documented_mounts_are_no_absolute_paths(tmp_path):
    shown = cell('1', outputs=[display(**{'text/plain': ["'/home/input_dir' https://example.org/tmp/x"]})])
    library(tmp_path, '00_core/00_a.ipynb', 'core.a', shown)
    assert check_nbs.faults(tmp_path) == []


def test_head_is_missing(tmp_path):
    library(tmp_path, '00_core/00_a.ipynb', 'core.a', head='# name')
    assert 'first cell must be' in check_nbs.faults(tmp_path)[0]


def test_too_little_prose(tmp_path):
    cells = [export('\n'.join(f'a{j}_{i} = {i}' for i in range(50))) for j in range(4)]
    library(tmp_path, '00_core/00_a.ipynb', 'core.a', *cells)
    assert 'words of prose for 200 exported lines' in check_nbs.faults(tmp_path)[0]


BAD_JOBS = {
    '0 cells tagged': [cell("run_dir = ''")],
    '2 cells tagged': [PARAMETERS, PARAMETERS],
    '13 code cells': [PARAMETERS] + [cell(f'{i}') for i in range(12)],
    'exports nothing': [PARAMETERS, GOOD],
    'without outputs': [PARAMETERS, cell('1', outputs=[display(**{'text/plain': ['1']})])],
}


@pytest.mark.parametrize('fault', BAD_JOBS)
def test_bad_job(tmp_path, fault):
    write(tmp_path, 'jobs/curate.ipynb', *BAD_JOBS[fault])
    assert [o for o in check_nbs.faults(tmp_path) if fault in o], check_nbs.faults(tmp_path)


def test_import_from_a_higher_number(tmp_path):
    lazy = export('def f():\n    from lightly_curate.data.b import g\n    g()')
    library(tmp_path, '00_core/00_a.ipynb', 'core.a', lazy)
    library(tmp_path, '10_data/10_b.ipynb', 'data.b', GOOD)
    assert 'only lower numbers' in check_imports.faults(tmp_path)[0]


def test_import_of_what_no_notebook_exports(tmp_path):
    library(tmp_path, '00_core/00_a.ipynb', 'core.a', export('import lightly_curate.core.gone'))
    assert 'no notebook exports core.gone' in check_imports.faults(tmp_path)[0]


def test_two_owners(tmp_path):
    for name in ('00_a', '01_b'): library(tmp_path, f'00_core/{name}.ipynb', 'core.a', GOOD)
    assert 'module core.a is exported by' in check_imports.faults(tmp_path)[0]


def test_orphan_module(tmp_path):
    library(tmp_path, '00_core/00_a.ipynb', 'core.a', GOOD)
    (tmp_path/'lightly_curate').mkdir()
    (tmp_path/'lightly_curate/old.py').write_text('# AUTOGENERATED! DO NOT EDIT!\n')
    assert 'lightly_curate/old.py' in check_imports.faults(tmp_path)[0]


@pytest.fixture
def project(tmp_path, root) -> Path:
    "A repository of one notebook with its module, in sync."
    shutil.copy(root/'settings.ini', tmp_path)
    (tmp_path/'lightly_curate').mkdir()
    library(tmp_path, '00_core/00_a.ipynb', 'core.a', GOOD)
    (tmp_path/'copy').mkdir()
    check_sync.fresh_copy(tmp_path, tmp_path/'copy')
    check_sync.write(tmp_path, tmp_path/'copy')
    assert check_sync.faults(tmp_path) == []
    return tmp_path


def test_module_differs_from_its_notebook(project):
    module = project/'lightly_curate/core/a.py'
    module.write_text(module.read_text().replace('2*x', '3*x'))
    assert 'lightly_curate/core/a.py: differs' in check_sync.faults(project)[0]


def test_module_is_missing_or_too_many(project):
    module = project/'lightly_curate/core/a.py'
    shutil.move(module, project/'lightly_curate/core/b.py')
    faults = '\n'.join(check_sync.faults(project))
    assert 'a.py: missing' in faults and 'b.py: no notebook exports it' in faults


def test_notebook_is_not_clean(project):
    path = project/'nbs/00_core/00_a.ipynb'
    nb = json.loads(path.read_text())
    nb['cells'][0]['metadata'] = {'collapsed': True}
    path.write_text(json.dumps(nb))
    before = path.read_bytes()
    assert 'not clean' in check_sync.faults(project)[0]
    assert path.read_bytes() == before


def test_clean_keeps_the_parameters_tag(project):
    path = write(project, 'jobs/curate.ipynb', PARAMETERS)
    (project/'again').mkdir()
    check_sync.fresh_copy(project, project/'again')
    assert json.loads((project/'again/nbs/jobs/curate.ipynb').read_text()) == json.loads(path.read_text())


def test_readme_leaves_out_hidden_cells_and_finds_pictures(tmp_path):
    path = write(tmp_path, 'index.ipynb', cell('#| hide\nimport os'), cell('![page](images/page.png)', 'markdown'))
    text = make_readme.readme(path)
    assert 'import os' not in text and '![page](nbs/images/page.png)' in text and '# name' in text


def test_broken_links_in_the_docs_are_found(tmp_path):
    links = '<a href="b.html">b</a> <a class="x" href="#here">c</a> <a href="https://example.org">d</a>'
    (tmp_path/'a.html').write_text(f'{links} <pre>&lt;a href="no-link.html"&gt;</pre>')
    assert [o.split(': ')[1] for o in make_docs.broken_links(tmp_path)] == ['no heading #here', 'b.html does not exist']


def test_a_page_has_its_whole_lead_and_headings_as_github_has_them():
    lead = nbformat.v4.new_raw_cell('---\ndescription: the first line and\n  the second\ntitle: A page\n---\n')
    nb = nbformat.v4.new_notebook(cells=[lead, nbformat.v4.new_markdown_cell('## Which method\n\n[there](other.ipynb#a-heading)')])
    html = make_docs.page(nb, {Path('guide/a.html'): 'A page', Path('core/b.html'): 'b'}, Path('guide/a.ipynb'))
    assert 'the first line and the second' in html
    assert '<h2 id="which-method">' in html and 'href="other.html#a-heading"' in html
    assert '<a class="here" href="../guide/a.html">A page</a>' in html and '<a href="../core/b.html">b</a>' in html


def test_outputs_are_steady():
    shown = {'output_type': 'execute_result', 'metadata': {}, 'data': {'text/plain': ['<A at 0x7f00aa>']}}
    assert make_outputs.steady(shown)['data']['text/plain'] == ['<A>']
    assert make_outputs.steady({'output_type': 'stream', 'name': 'stderr', 'text': ['12 s']}) is None
    with pytest.raises(RuntimeError, match='boom'):
        make_outputs.steady({'output_type': 'error', 'traceback': ['boom']})


def test_sidebar_lists_every_notebook(root):
    sidebar = yaml.safe_load((root/'_quarto.yml').read_text())['website']['sidebar']['contents']
    listed = [o for part in sidebar for o in (part['contents'] if isinstance(part, dict) else [part])]
    there = {str(o.name) for o in read_notebooks(root)}
    assert len(listed) == len(set(listed))
    assert (there - set(listed), set(listed) - there) == (set(), set()), 'missing in and too many in _quarto.yml'
    assert sidebar[1]['section'] == 'guide', 'what a reader needs first comes first'


def test_tools_are_small(root):
    for tool in (root/'tools').glob('*.py'):
        assert len(tool.read_text().splitlines()) <= 80, f'{tool.name} is over 80 lines'
