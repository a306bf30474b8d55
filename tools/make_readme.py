"README.md from nbs/index.ipynb, without Quarto; `--check` compares instead of writing."
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

NOTE = '<!-- made by `make readme` from nbs/index.ipynb: change that -->\n'


def is_shown(cell) -> bool: return not re.search(r'^#\| ?(hide|default_exp|export)', cell.source, re.M)


def readme(notebook: Path) -> str:
    nb = nbformat.read(notebook, as_version=4)
    nb.cells = [o for o in nb.cells if is_shown(o)]
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r'\]\((?!https?:|\.\./|#)', '](nbs/', text)  # links beside the notebook
    text = re.sub(r'\]\(\.\./', '](', text)                    # links to the top
    return NOTE + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


if __name__ == '__main__':
    target, text = Path('README.md'), readme(Path('nbs/index.ipynb'))
    if '--check' not in sys.argv: target.write_text(text, encoding='utf-8')
    elif not target.exists() or target.read_text(encoding='utf-8') != text:
        sys.exit('README.md is not what nbs/index.ipynb says, run: make readme')
