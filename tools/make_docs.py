"A page in _docs for each notebook, in the order of _quarto.yml, with every public function; local links are checked."
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import nbformat
import yaml
from check_links import broken_links
from nbconvert import HTMLExporter
from nbdev.serve import proc_nbs

OUT = Path('_docs')
STYLE = Path(__file__).with_name('docs.css').read_text(encoding='utf-8')
CELL_OPTION = re.compile(r'^#\|.*\n?', re.M)


def title(nb, file: Path) -> str:
    text = '\n'.join(o.source for o in nb.cells if o.cell_type != 'code')
    return (re.findall(r'^(?:title: |# )(.*)', text, re.M) or [file.stem])[0]


def as_markdown(cell):
    "Front matter becomes the heading it was, a documented function its documentation."
    if cell.cell_type == 'raw':
        told = yaml.safe_load(cell.source.strip('-\n'))
        return nbformat.v4.new_markdown_cell(f"# {told['title']}\n\n> {told.get('description', '')}")
    if cell.cell_type == 'code' and re.search(r'^#\| ?echo: ?false', cell.source, re.M):
        return nbformat.v4.new_markdown_cell('\n\n'.join(o['data'].get('text/markdown', '') for o in cell.outputs))
    cell.source = CELL_OPTION.sub('', cell.source)
    return cell


def navigation(pages: dict[Path, str], here: Path) -> str:
    up, rooms = '../' * (len(here.parts) - 1), defaultdict(list)
    for file, name in pages.items():
        mark = ' class="here"' if file == here.with_suffix('.html') else ''
        rooms[file.parent.name].append(f'<a{mark} href="{up}{file}">{name}</a>')
    opened = ('', 'guide', here.parent.name)
    return '<nav>' + ''.join(f'<details{" open" * (room in opened)}><summary>{room or "start"}</summary>{"".join(links)}</details>'
                             for room, links in rooms.items()) + '</nav>'


def page(nb, pages: dict[Path, str], here: Path) -> str:
    resources = {'metadata': {'name': title(nb, here)}}
    nb.cells = [o for o in map(as_markdown, nb.cells) if o.source.strip() or o.get('outputs')]
    html, _ = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(nb, resources)
    html = re.sub(r'href="(?!\w+:)([^"#]+)\.ipynb', r'href="\1.html', html)
    html = re.sub(r'((?:<h\d id|href)="[^":]*#|<h\d id=")([^"]+)', lambda m: m[1] + m[2].lower(), html)  # as GitHub has them
    return re.sub(r'(<body[^>]*>)', lambda m: f'<style>{STYLE}</style>' + m[1] + navigation(pages, here), html, count=1)


def make_docs() -> list[str]:
    import torch.utils.data.dataloader
    shutil.rmtree(OUT, ignore_errors=True)
    torch.utils.data.dataloader.Iterable = Iterable  # torch annotates with it and imports it for type checkers only
    processed = Path(proc_nbs(n_workers=0, force=True))
    listed = re.findall(r'- nbs/(.+\.ipynb)$', Path('_quarto.yml').read_text(encoding='utf-8'), re.M)  # all, says a test
    nbs = {Path(o): nbformat.read(processed/o, as_version=4) for o in listed}
    pages = {o.with_suffix('.html'): title(nb, o) for o, nb in nbs.items()}
    for name, nb in nbs.items():
        target = OUT/name.with_suffix('.html')
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(nb, pages, name), encoding='utf-8')
    for file in [*Path('nbs').rglob('*.png'), *Path('nbs').glob('*.schema.json')]:
        target = OUT/file.relative_to('nbs')
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return broken_links(OUT)


if __name__ == '__main__':
    out = make_docs()
    print('\n'.join(out) or f'docs: {len(list(OUT.rglob("*.html")))} pages in {OUT}')
    sys.exit(bool(out))
