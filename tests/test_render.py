"""The report's pages: a notebook with everything that ever went wrong on paper, rendered by the exporter."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from traitlets.config import Config

from lightly_curate.core.errors import ReportError
from lightly_curate.report.render import TypstExporter, render_html, render_pdf

ODD_NAME = r'#import "x": *_$a$_@b\n`c`<d>&e.png'

MARKDOWN = r'''# Stress report
Money: $210** at \$1 and $5; formula $r = \sqrt{x_1^2}$ and

$$
\sum_{i=1}^{n} \frac{x_i}{n}
$$

$$
\begin{aligned} a &= b \\ c &= d \end{aligned}
$$

> **Warning**: 3 files could not be read.
> - one
> - two

- [x] done
- [ ] to do

1. first
   - nested with `code/that_is_quite_long/and_has_a_path_inside/it_should_break_somewhere/near_the_end_of_line.png`
     - deeper
2. second[^1]

[^1]: A footnote with a [link](https://example.org).

```python
print("a code block")
```

![missing](plots/nothing_here.png) inline, and alone:

![missing plot](plots/nothing_here.png)

![attached](attachment:dot.png)

Japanese 日本語のファイル名, emoji 😀, Greek αβγ, Cyrillic Привет, signs ≤ ≥ ± → ✓.

### A skipped level
'''


def png(width: int = 60, height: int = 40, colour: tuple[int, int, int] = (11, 95, 115)) -> str:
    file = io.BytesIO()
    Image.new('RGB', (width, height), colour).save(file, 'png')
    return base64.b64encode(file.getvalue()).decode()


def shown(**forms: str):
    return new_output(
        'display_data', {name.replace('_', '/').replace('svg', 'svg+xml'): text for name, text in forms.items()}
    )


def table_cells() -> list:
    path = 'front_camera/2026-03-01_recording/sequence_000123/frame_{:06d}.png'
    wide = pd.DataFrame({f'very_long_column_name_{j}': [path.format(i * 14 + j) for i in range(6)] for j in range(14)})
    middle = pd.DataFrame(
        {
            'filename': [path.format(i) for i in range(5)],
            'reason': ['truncated: image file ends after 12,345 of 90,000 bytes'] * 5,
            'n': range(5),
            'share': np.linspace(0, 1, 5),
        }
    )
    long = pd.DataFrame(
        {
            'filename': [f'cats/cat_{i:04d}.jpg' for i in range(1000)],
            'distance': np.arange(1000) / 7,
            'rank': range(1000),
        }
    )
    index = pd.MultiIndex.from_product([['cat', 'dog'], ['black', 'white', 'red']], names=['kind', 'colour'])
    columns = pd.MultiIndex.from_product([['before', 'after'], ['mean', 'max']])
    multi = pd.DataFrame(np.arange(24).reshape(6, 4) / 10, index=index, columns=columns)
    odd = pd.DataFrame({'name': [ODD_NAME, 'b'], 'n': [1, 2]})
    grouped = pd.DataFrame({'n': range(80)}, index=pd.MultiIndex.from_product([['group one', 'group two'], range(40)]))
    styled = multi.style.set_caption('A styled table').map(
        lambda x: 'background-color: #ffe08a; color: #7a0000' if x > 1.5 else ''
    )
    titles = {
        'Fourteen columns': wide,
        'Four columns': middle,
        'A thousand rows': long,
        'Two levels': multi,
        'Odd names': odd,
        'Long groups': grouped,
    }
    cells = []
    for title, frame in titles.items():
        cells += [
            new_markdown_cell(f'## {title}'),
            new_code_cell('df', outputs=[shown(text_html=frame.to_html(max_rows=None), text_plain='x')]),
        ]
    return [
        *cells,
        new_markdown_cell('## Styler'),
        new_code_cell('df.style', outputs=[shown(text_html=styled.to_html(), text_plain='x')]),
    ]


def stress_notebook():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="120"><circle cx="60" cy="60" r="50"/></svg>'
    figure = new_output(
        'display_data',
        {'image/png': png(600, 300)},
        metadata={'image/png': {'alt': 'a plain field', 'caption': 'Figure with a caption'}},
    )
    grid = (
        '<table><tr>'
        + f'<td><img src="data:image/png;base64,{png()}" alt="dot" width="140"><br>{ODD_NAME.replace("<", "&lt;")}</td>'
        * 6
        + '</tr></table>'
    )
    lines = ''.join(f'line {i} of a long log {"x" * (i % 9 * 20)}\n' for i in range(120))
    first = new_markdown_cell(MARKDOWN, attachments={'dot.png': {'image/png': png()}})
    code = new_code_cell(
        'secret_code = 1',
        execution_count=3,
        outputs=[
            new_output('stream', name='stdout', text='10%\r90%\r100%\n'),
            new_output('stream', name='stderr', text='a warning'),
            new_output('execute_result', {'text/plain': "'\x1b[31mplain\x1b[0m result'"}, execution_count=3),
            shown(text_markdown='*Markdown* from code'),
            shown(text_latex=r'$\displaystyle e^{i\pi}$'),
            shown(text_html='<script>no()</script>', text_plain='fallback text'),
            new_output('error', ename='ValueError', evalue='bad', traceback=['\x1b[31mValueError\x1b[0m: bad "value"']),
        ],
    )
    pictures = new_code_cell(
        'plots',
        outputs=[
            shown(image_svg=svg),
            figure,
            shown(image_png=png(400, 6000)),
            shown(image_png=png(5000, 300)),
            shown(text_html=grid),
        ],
    )
    return new_notebook(
        cells=[
            first,
            code,
            new_markdown_cell('## Pictures'),
            pictures,
            *table_cells(),
            new_markdown_cell('## Long output'),
            new_code_cell('log', outputs=[new_output('stream', name='stdout', text=lines)]),
        ],
        metadata={'authors': [{'name': 'A. Author'}], 'keywords': ['curation']},
    )


@pytest.fixture(scope='module')
def stress(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('stress') / 'stress.ipynb'
    nbformat.write(stress_notebook(), path)
    render_pdf(path, path.with_suffix('.pdf'))
    return path


def read_text(pdf: Path, *options: str) -> str:
    if shutil.which('pdftotext') is None:
        pytest.skip('pdftotext (poppler-utils) is not installed')
    return subprocess.run(['pdftotext', *options, str(pdf), '-'], capture_output=True, check=True).stdout.decode()


def convert(nb, **traits) -> bytes:
    return TypstExporter(**traits).from_notebook_node(nb)[0]


def text_of(nb, tmp_path: Path, **traits) -> str:
    pdf = tmp_path / 'x.pdf'
    pdf.write_bytes(convert(nb, **traits))
    return read_text(pdf)


def test_same_bytes(stress: Path):
    again = stress.with_name('again.pdf')
    render_pdf(stress, again)
    assert again.read_bytes() == stress.with_suffix('.pdf').read_bytes()


def test_structure(stress: Path):
    data = stress.with_suffix('.pdf').read_bytes()
    for mark in (b'/StructTreeRoot', b'/Outlines', b'/MarkInfo', b'/Lang'):
        assert mark in data, mark


def test_text(stress: Path):
    text = read_text(stress.with_suffix('.pdf'))
    flat = re.sub(r'\s+', '', text)
    for there in (
        'Stressreport',
        '$210**at$1and$5',
        'Imagenotfound:plots/nothing_here.png',
        'ValueError:bad"value"',
        'fallbacktext',
        'Astyledtable',
        'Figurewithacaption',
        'page1of',
        re.sub(r'\s', '', ODD_NAME),
    ):
        assert there in flat, there
    for absent in ('secret_code', '10%', '\x1b', 'no()'):
        assert absent not in text, absent
    assert '100%' in text


def test_no_row_is_lost_and_heads_repeat(stress: Path):
    text = read_text(stress.with_suffix('.pdf'), '-layout')
    assert len(set(re.findall(r'cats/cat_(\d{4})\.jpg', text))) == 1000
    pages = [o for o in text.split('\f') if 'cats/cat_' in o]
    assert len(pages) > 5 and all('distance' in o and 'rank' in o for o in pages)


def test_spans_do_not_shift(stress: Path):
    text = read_text(stress.with_suffix('.pdf'), '-layout')
    part = text[text.index('Two levels\n') : text.index('Odd names\n')]
    rows = [re.findall(r'\d\.\d', o) for o in part.splitlines()]
    assert [[float(o) for o in row] for row in rows if row] == (np.arange(24).reshape(6, 4) / 10).tolist()


def test_wide_cells_do_not_overlap(stress: Path):
    text = read_text(stress.with_suffix('.pdf'), '-bbox')
    page = next(o for o in text.split('<page ') if 'very_long_' in o)
    width = float(re.search(r'width="([\d.]+)"', page)[1])
    words = [
        tuple(float(o) for o in box)
        for box in re.findall(r'xMin="([\d.]+)" yMin="([\d.]+)" xMax="([\d.]+)" yMax="([\d.]+)"', page)
    ]
    assert width > 800 and len(words) > 300 and max(o[2] for o in words) < width - 50
    lines: dict[float, list] = {}
    for box in words:
        lines.setdefault(round(box[1], 1), []).append(box)
    for line in lines.values():
        line.sort()
        gaps = [right[0] - left[2] for left, right in zip(line, line[1:], strict=False)]
        assert min(gaps, default=0) > -0.5, 'words lie on each other'


@pytest.mark.parametrize(
    'traits, code, prompt',
    [({}, True, True), ({'exclude_input': True}, False, False), ({'exclude_input_prompt': True}, True, False)],
)
def test_switches(tmp_path: Path, traits: dict, code: bool, prompt: bool):
    text = text_of(new_notebook(cells=[new_code_cell('my_code()', execution_count=7)]), tmp_path, **traits)
    assert ('my_code' in text, 'In [7]' in text) == (code, prompt)


def test_tags(tmp_path: Path):
    config = Config(
        {
            'TagRemovePreprocessor': {
                'remove_cell_tags': ['gone'],
                'remove_input_tags': ['quiet'],
                'remove_all_outputs_tags': ['mute'],
            }
        }
    )
    cells = [
        new_code_cell(f'code_{o}', metadata={'tags': [o]}, outputs=[new_output('stream', text=f'out_{o}')])
        for o in ('gone', 'quiet', 'mute')
    ]
    text = text_of(new_notebook(cells=cells), tmp_path, config=config)
    assert {o for o in re.findall(r'(?:code|out)_\w+', text)} == {'out_quiet', 'code_mute'}


def test_command_line(tmp_path: Path):
    nbformat.write(new_notebook(cells=[new_markdown_cell('# By hand'), new_code_cell('hidden')]), tmp_path / 'x.ipynb')
    name = 'lightly_curate.report.render.TypstExporter'
    subprocess.run(
        [sys.executable, '-m', 'nbconvert', '--no-input', '--to', name, 'x.ipynb'],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / 'x.pdf').read_bytes().startswith(b'%PDF')


def test_attachment(tmp_path: Path):
    nbformat.write(new_notebook(cells=[new_markdown_cell('# a')]), tmp_path / 'x.ipynb')
    (tmp_path / 'report.json').write_text('{"n": 1}')
    render_pdf(tmp_path / 'x.ipynb', tmp_path / 'x.pdf', [tmp_path / 'report.json'])
    assert b'report.json' in (tmp_path / 'x.pdf').read_bytes()
    if shutil.which('pdfdetach') is None:
        return
    (tmp_path / 'out').mkdir()
    subprocess.run(['pdfdetach', '-saveall', '-o', 'out', 'x.pdf'], cwd=tmp_path, check=True)
    assert next((tmp_path / 'out').iterdir()).read_text() == '{"n": 1}'


@pytest.mark.parametrize(
    'data',
    [
        {'image/png': 'bm90IGEgcGljdHVyZQ=='},
        {'image/svg+xml': '<svg><'},
        {'image/png': 'x'},
        {'text/html': '<div>' * 5000 + 'a'},
    ],
)
def test_broken_outputs_name_the_cell(tmp_path: Path, data: dict):
    nbformat.write(
        new_notebook(cells=[new_markdown_cell('# a'), new_code_cell('b', outputs=[new_output('display_data', data)])]),
        tmp_path / 'x.ipynb',
    )
    with pytest.raises(ReportError, match='cell 2'):
        render_pdf(tmp_path / 'x.ipynb', tmp_path / 'x.pdf')
    assert [o.name for o in tmp_path.iterdir()] == ['x.ipynb']


@pytest.mark.parametrize('text', ['', '{', '[]', '{"cells": 3, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}'])
def test_no_notebook(tmp_path: Path, text: str):
    (tmp_path / 'x.ipynb').write_text(text)
    for render, name in ((render_pdf, 'x.pdf'), (render_html, 'x.html')):
        with pytest.raises(ReportError):
            render(tmp_path / 'x.ipynb', tmp_path / name)
    assert [o.name for o in tmp_path.iterdir()] == ['x.ipynb']


def test_html_needs_nothing(stress: Path):
    render_html(stress, stress.with_suffix('.html'))
    page = stress.with_suffix('.html').read_text(encoding='utf-8')
    addresses = re.findall(r'(?:src|href)="([^"]{1,60})', page)
    assert {o for o in addresses if not o.startswith(('data:image/', '#'))} == {'https://example.org'}
    assert '<script' not in page and 'secret_code' not in page
    assert 'Image not found: plots/nothing_here.png' in page
