"A notebook as the checks read it."
import json
import re
from pathlib import Path


class Notebook:
    def __init__(self, path: Path, root: Path):
        self.name, self.is_job = path.relative_to(root), path.parent.name == 'jobs'
        self.number = re.match(r'\d*', path.name)[0]
        self.cells = [(i, o, ''.join(o['source'])) for i, o in enumerate(json.loads(path.read_text())['cells'])]
        self.code = [(i, o, s) for i, o, s in self.cells if o['cell_type'] == 'code' and s.strip()]
        self.exported = [(i, s) for i, _, s in self.code if re.search(r'^#\| ?export', s, re.M)]
        self.modules = re.findall(r'^#\| ?default_exp (\S+)', '\n'.join(s for _, _, s in self.code), re.M)


def read_notebooks(root: Path) -> list[Notebook]:
    paths = sorted(o for o in (root/'nbs').rglob('*.ipynb') if not re.search(r'/[._]', f'/{o.relative_to(root)}'))
    return [Notebook(o, root) for o in paths]
