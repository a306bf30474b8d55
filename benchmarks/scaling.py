"""How time and memory of each stage grow: python benchmarks/scaling.py [--rows 1000 10000 100000 1000000] [--images 1000 10000]

A user's command from a file of embeddings to the report (32 numbers a row, clustered, one in a hundred an exact copy), 1,000 selected
by k-center, a tenth of small sets; and from folders of sample images for --images. Seconds are those that the run itself counts, memory is the most
that all its processes hold together while a stage runs. The exponent is the slope of the logarithm of seconds over that of
rows, from the largest sizes at which a stage takes a time worth measuring: 1 is linear, N log N between 100,000 and a million
is 1.08. Where a stage grows faster than that, beyond what a clock can tell, the exit code is 1. Memory is told as bytes for each further row, between the two largest sizes.

What would grow faster is bounded: the k-center choice by the number asked for (each costs one look at the rows that it may be
near to), statistics of all pairs by a sample whose size the report states, maps by 15,000 points.
"""
import os
import sys

# this folder holds a select.py, and Python has a module of that name: look for modules above it instead
if sys.path[0] == os.path.dirname(os.path.abspath(__file__)): sys.path[0] = os.path.dirname(sys.path[0])

import argparse  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from benchmarks.memory import run, write_vectors  # noqa: E402

LEAST_S = .5   # a shorter stage tells of starting, not of growing
BOUND = 1.08   # exponent of N log N between 100,000 and a million
NOISE = .12    # of an exponent, on a machine that does other work too
N_FITTED = 3   # largest sizes that the exponent is from


def measure(n: int, images: bool, place: str | None) -> dict[str, tuple[float, int]]:
    "Seconds and most bytes of each stage of one run."
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        if images:
            from lightly_curate.data.sample_data import make_sample_data
            make_sample_data(folder/'images', n_images=n)
            given = [f'input_dir={folder}/images']
        else:
            write_vectors(folder/'given.parquet', n, 32)
            given = [f'shared_dir={folder}', 'embeddings=given.parquet']
        peaks = run(folder, [*given, f'stopping_condition.n_samples={min(1_000, n//10)}'])
        report = folder/'out'/'run'/'report.json'
        if not report.is_file(): sys.exit((folder/'said.txt').read_text())
        seconds = json.loads(report.read_text(encoding='utf-8'))['job']['seconds']
    seconds['render'] = next((o[0] for stage, o in peaks.items() if stage.startswith('making report')), 0.)
    peaks = {'render' if o.startswith('making report') else o: peak for o, peak in peaks.items()}
    return {o: (taken, int(peaks.get(o, [0., 0])[1])) for o, taken in seconds.items()}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    "Slope of the logarithms at the larger sizes, NaN when too few take long enough."
    pairs = [(n, s) for n, s in zip(sizes, seconds, strict=True) if s >= LEAST_S][-N_FITTED:]
    if len(pairs) < 2: return np.nan
    x, y = np.log(np.array(pairs)).T
    return float(np.polyfit(x, y, 1)[0])


def tell(title: str, sizes: list[int], runs: list[dict[str, tuple[float, int]]]) -> bool:
    "Print a table; whether no stage is worse than N log N."
    stages = [o for o in runs[-1] if all(o in r for r in runs)]
    print(f'\n| {title} | ' + ' | '.join(f'{n:,}' for n in sizes) + ' | exponent of time | peak memory | bytes for each further row |')
    print('|---'*(len(sizes) + 4) + '|')
    kept = True
    for stage in stages:
        seconds, memory = zip(*(o[stage] for o in runs), strict=True)
        slope = exponent(sizes, list(seconds))
        more = f'{max(0, memory[-1] - memory[-2])/(sizes[-1] - sizes[-2]):,.0f}' if len(sizes) > 1 and memory[-1] and memory[-2] else ''
        kept &= not slope > BOUND + NOISE
        print(f'| {stage} | ' + ' | '.join(f'{o:.2f} s' for o in seconds) + f' | {"" if np.isnan(slope) else f"{slope:.2f}"} | '
              + (f'{memory[-1]/1e9:.2f} GB' if memory[-1] else '') + f' | {more} |', flush=True)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, nargs='*', default=[1_000, 10_000, 100_000, 1_000_000], help='sizes of the embeddings files')
    parser.add_argument('--images', type=int, nargs='*', default=[1_000, 10_000], help='sizes of folders of sample images')
    parser.add_argument('--place', help='folder to work in, default: the temporary one')
    choice = parser.parse_args()
    kept = [tell(title, sizes, [measure(n, images, choice.place) for n in sizes])
            for title, sizes, images in (('vectors', choice.rows, False), ('images', choice.images, True)) if sizes]
    sys.exit(0 if all(kept) else 1)


if __name__ == '__main__':
    main()
