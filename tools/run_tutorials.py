"""Run the tutorials with papermill, each in an empty folder: says which ran, which were skipped, which failed.

    python tools/run_tutorials.py [NAME ...] [--keep FOLDER]     FOLDER receives the executed copies

Real images are looked for in ../shared/data or LIGHTLY_CURATE_SHARED_DATA; runs that need them are skipped without.
"""
import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from lightly_curate.core.errors import CurateError
from lightly_curate.run.jobs import JobError, execute

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get('LIGHTLY_CURATE_SHARED_DATA', ROOT.parent/'shared'/'data'))

# tutorial -> its runs, each the parameters that differ from the notebook's own; DATA/ stands for the real images.
# A tutorial that is not named here runs once, as it is, with data_dir=DATA/ if it has a parameter of that name.
RUNS: dict[str, list[dict]] = {
    'exploring_a_run': [{}, {'input_dir': 'DATA/camvid', 'n_samples': .1}, {'input_dir': 'DATA/videos', 'n_samples': .05}],
    'inspect_embeddings': [{}, {'input_dir': 'DATA/labelled'}, {'input_dir': 'DATA/camvid'}],
    'train_on_embeddings': [{'collections': ['digits'], 'n_splits': 4},
                            {'data_dir': 'DATA/labelled', 'collections': ['caltech101', 'clothing'], 'n_splits': 4}],
    'compare_before_after': [{}, {'input_dir': 'DATA/labelled/clothing', 'views': {}, 'n_epochs': 2}],
    'builtin_backbone': [{'data_dir': 'DATA/', 'n_steps': 2}],  # whole, it takes far too long for a check
}


def runs_of(notebook: Path) -> list[dict]:
    "Parameters of each run."
    if notebook.stem in RUNS: return RUNS[notebook.stem]
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    names = ''.join(o for c in cells if 'parameters' in c['metadata'].get('tags', []) for o in c['source'])
    return [{'data_dir': 'DATA/'} if 'data_dir' in names else {}]


def filled(value):
    "A parameter with the place of the real images in it."
    if isinstance(value, list): return [filled(o) for o in value]
    return value.replace('DATA/', f'{DATA.resolve()}/') if isinstance(value, str) else value


def run(notebook: Path, parameters: dict, record: Path) -> str:
    "Outcome in words: 'ran', 'skipped' with what is missing, or 'failed' with the traceback."
    told = ', '.join(f'{k}={v}' for k, v in parameters.items()) or 'as it is'
    if 'DATA/' in str(parameters) and not DATA.is_dir():
        return f'skipped {notebook.stem} ({told}): no real images in {DATA}; set LIGHTLY_CURATE_SHARED_DATA'
    begun = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            execute(notebook, record, {k: filled(v) for k, v in parameters.items()})
    except (CurateError, JobError) as error: return f'failed  {notebook.stem} ({told})\n{error}'
    return f'ran     {notebook.stem} ({told}), {time.perf_counter() - begun:.0f} s'


def main() -> int:
    "Run all tutorials, or those that are named; exit 1 if one fails."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help='tutorials, default: all')
    parser.add_argument('--keep', type=Path, help='folder for the executed copies')
    args = parser.parse_args()
    notebooks = {o.stem: o for o in sorted((ROOT/'nbs'/'tutorials').glob('*.ipynb'))}
    unknown = sorted(set(args.names) - set(notebooks))
    if unknown: parser.error(f'there is no tutorial {", ".join(unknown)}; there are {", ".join(notebooks)}')
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.names or notebooks:
            for i, parameters in enumerate(runs_of(notebooks[name])):
                outcomes.append(run(notebooks[name], parameters, (args.keep or Path(folder)).resolve()/f'{name}-{i}.ipynb'))
                print(outcomes[-1], flush=True)
    return any(o.startswith('failed') for o in outcomes)


if __name__ == '__main__': sys.exit(main())
