"Fill in the outputs of library notebooks with one executor, so that the same notebook gives the same bytes."
import os
import re
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.clean import nbdev_clean
from PIL import Image

SKIPPED = re.compile(r'^#\| ?(slow|gpu|net|eval: ?false)', re.M)
ADDRESS = re.compile(r' at 0x[0-9a-f]+')


def small_png(encoded: str) -> str:
    "A PNG in base64 that is light enough for git: a large one is brought to 640 pixels a side and 64 colours."
    if len(encoded) < 20_000: return encoded
    image = Image.open(BytesIO(b64decode(encoded))).convert('RGB')
    image.thumbnail((640, 640))
    small = BytesIO()
    image.quantize(64, dither=Image.Dither.NONE).save(small, 'PNG', optimize=True)
    return min(b64encode(small.getvalue()).decode() + '\n', encoded, key=len)


def steady(output: dict) -> dict | None:
    "The output without what changes from run to run; None for what is written to stderr."
    if output['output_type'] == 'stream': return None if output['name'] == 'stderr' else output
    if output['output_type'] == 'error': raise RuntimeError(''.join(output['traceback']))
    data = {k: v for k, v in output['data'].items() if not k.startswith('application/vnd.jupyter.widget')}
    for k in [o for o in data if o.startswith('text/')]: data[k] = [ADDRESS.sub('', o) for o in data[k]]
    if 'image/png' in data: data = {**data, 'image/png': small_png(data['image/png'])}
    if 'image/png' in data: data.pop('image/jpeg', None)
    return {**output, 'data': data, 'metadata': {}}


def fill(path: Path) -> None:
    nb = read_nb(path)
    if path.parent.name == 'jobs': raise SystemExit(f'{path}: jobs are committed without outputs')
    shell, here = CaptureShell(mpl_format='png'), Path.cwd()
    os.chdir(path.parent)
    try:
        for cell in [o for o in nb.cells if o.cell_type == 'code']:
            kept = [] if SKIPPED.search(cell.source) else [steady(o) for o in shell.run(cell.source)]
            cell.outputs = [o for o in kept if o]
            cell.execution_count = None
    finally: os.chdir(here)
    write_nb(nb, path)
    nbdev_clean(str(path))


if __name__ == '__main__':
    if not sys.argv[1:]: sys.exit('name the notebooks: make outputs NB=nbs/50_select/51_coreset.ipynb')
    for name in sys.argv[1:]: fill(Path(name))
