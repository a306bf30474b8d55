"""Time, memory and pages of a report by the number of samples: python benchmarks/report_render.py [--rows 1000 1000000]

Each size is run as a user would: embeddings as a file, 1,000 selected (a tenth of small sets) by k-center, then the report
on its own, a second command in the same run folder, whose memory is measured. Vectors of 32 numbers in many groups, one in a
hundred an exact copy, names in 100 folders. With --images N a folder of N sample images is embedded and reported as well.

What a report must do whatever the size: UMAP three times on at most 15,000 points, the figures, the typesetting. What grows:
reading the table and the vectors once (0.4 kB a sample), and counting.
"""
import os
import sys

# this folder holds a select.py, and Python has a module of that name: look for modules above it instead
if sys.path[0] == os.path.dirname(os.path.abspath(__file__)): sys.path[0] = os.path.dirname(sys.path[0])

import argparse  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pypdf  # noqa: E402
from benchmarks.vectors import make_vectors  # noqa: E402

PROGRAM = [str(Path(sys.executable).with_name('lightly-curate'))]
PEAK = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); " \
       "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"


def write_vectors(path: Path, n: int) -> None:
    x = make_vectors('clustered', n, 32)
    copies = np.random.default_rng(0).choice(np.arange(1, n), n//100, replace=False)
    x[copies] = x[copies - 1]
    names = pd.Series([f'folder_{i*100//n:02}/image_{i:07}.jpg' for i in range(n)])
    pd.DataFrame({'filenames': names, **{f'embedding_{i}': x[:, i] for i in range(32)}, 'labels': np.arange(n)*100//n}).to_parquet(path)


def run(*words: str) -> tuple[float, float]:
    "Seconds, and the most memory that one of its processes took in GB."
    begun = time.perf_counter()
    answer = subprocess.run([sys.executable, '-c', PEAK, *PROGRAM, *words], capture_output=True, text=True)
    if answer.returncode: sys.exit(answer.stderr)
    unit = 1 if sys.platform == 'darwin' else 1024
    return time.perf_counter() - begun, int(answer.stdout.split()[-1])*unit/1e9


def report(name: str, folder: Path, given: list[str], n_samples: int) -> None:
    "Select, then report; print a line of the table."
    words = [*given, f'output_dir={folder}/out', f'run_directory={name}', f'stopping_condition.n_samples={n_samples}']
    run(*words, 'steps=[select]' if any('embeddings=' in o for o in given) else 'steps=[embed,select]')
    seconds, memory = run(*words, 'steps=[report]')
    root = folder/'out'/name
    told = json.loads((root/'report.json').read_text())
    pages = len(pypdf.PdfReader(root/'report.pdf').pages)
    size = {o: (root/o).stat().st_size/1e6 for o in ('report.pdf', 'report.html', 'explore.html')}
    print(f'| {name} | {told["counts"]["available"]:,} | {seconds:.0f} s | {told["job"]["seconds"]["report"]:.0f} s | {memory:.2f} GB | {pages} | '
          + ' | '.join(f'{o:.1f} MB' for o in size.values()) + ' |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, nargs='*', default=[1_000, 1_000_000], help='sizes of the embeddings files')
    parser.add_argument('--images', type=int, default=0, help='also a folder of so many sample images')
    choice = parser.parse_args()
    print('| input | available | whole command | of it the report stage | peak memory | pages | report.pdf | report.html | explore.html |')
    print('|---|---|---|---|---|---|---|---|---|')
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if choice.images:
            from lightly_curate.data.sample_data import make_sample_data
            make_sample_data(folder/'images', n_images=choice.images)
            report('images', folder, [f'input_dir={folder}/images'], choice.images//10)
        for n in choice.rows:
            write_vectors(folder/f'{n}.parquet', n)
            report(f'vectors_{n}', folder, [f'shared_dir={folder}', f'embeddings={n}.parquet'], min(1_000, n//10))


if __name__ == '__main__':
    main()
