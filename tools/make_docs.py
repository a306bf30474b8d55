"A page for each notebook in _docs, with the documentation of every public function; every local link is checked."
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbdev.serve import proc_nbs

OUT = Path('_docs')
LINK = re.compile(r'<\w+\b[^<>]*?\s(?:href|src)="([^"]+)"')
CELL_OPTION = re.compile(r'^#\|.*\n?', re.M)


def title(nb, file: Path) -> str:
    text = '\n'.join(o.source for o in nb.cells if o.cell_type != 'code')
    return (re.findall(r'^(?:title: |# )(.*)', text, re.M) or [file.stem])[0]


def as_markdown(cell):
    "Front matter becomes the heading it was, a documented function its documentation."
    if cell.cell_type == 'raw':
        told = dict(re.findall(r'^(title|description): (.*)', cell.source, re.M))
        return nbformat.v4.new_markdown_cell(f"# {told['title']}\n\n> {told.get('description', '')}")
    if cell.cell_type == 'code' and re.search(r'^#\| ?echo: ?false', cell.source, re.M):
        return nbformat.v4.new_markdown_cell('\n\n'.join(o['data'].get('text/markdown', '') for o in cell.outputs))
    cell.source = CELL_OPTION.sub('', cell.source)
    return cell


def navigation(pages: dict[Path, str], here: Path) -> str:
    up = '../' * (len(here.parts) - 1)
    rooms = defaultdict(list)
    for file, name in pages.items(): rooms[file.parent.name].append(f'<a href="{up}{file}">{name}</a>')
    return '<nav>' + ''.join(f'<p><b>{o}</b> {" · ".join(links)}</p>' for o, links in rooms.items()) + '</nav>'


def page(nb, pages: dict[Path, str], here: Path) -> str:
    resources = {'metadata': {'name': title(nb, here)}}
    nb.cells = [o for o in map(as_markdown, nb.cells) if o.source.strip() or o.get('outputs')]
    html, _ = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(nb, resources)
    html = re.sub(r'href="(?!\w+:)([^"#]+)\.ipynb', r'href="\1.html', html)
    return re.sub(r'(<body[^>]*>)', lambda m: m[1] + navigation(pages, here), html, count=1)


def broken_links(root: Path) -> list[str]:
    found = []
    for html in sorted(root.rglob('*.html')):
        text = re.sub(r'<(script|style)\b.*?</\1>', '', html.read_text(encoding='utf-8'), flags=re.S)
        for link in sorted(set(LINK.findall(text))):
            if re.match(r'\w+:|//', link): continue
            file, _, anchor = link.partition('#')
            target = html if not file else (html.parent/file).resolve()
            if not target.exists(): found.append(f'{html}: {link} does not exist')
            elif anchor and target.suffix == '.html' and f'id="{anchor}"' not in target.read_text(encoding='utf-8'):
                found.append(f'{html}: no heading {link}')
    return found


def make_docs() -> list[str]:
    shutil.rmtree(OUT, ignore_errors=True)
    processed = Path(proc_nbs(n_workers=0, force=True))
    nbs = {o.relative_to(processed): nbformat.read(o, as_version=4) for o in sorted(processed.rglob('*.ipynb'))}
    pages = {o.with_suffix('.html'): title(nb, o) for o, nb in nbs.items()}
    for name, nb in nbs.items():
        target = OUT/name.with_suffix('.html')
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(nb, pages, name), encoding='utf-8')
    for file in [*Path('nbs').rglob('*.png'), *Path('nbs').glob('*.schema.json')]:
        (OUT/file.relative_to('nbs')).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, OUT/file.relative_to('nbs'))
    return broken_links(OUT)


if __name__ == '__main__':
    out = make_docs()
    print('\n'.join(out) or f'docs: {len(list(OUT.rglob("*.html")))} pages in {OUT}')
    sys.exit(bool(out))
