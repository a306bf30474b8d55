"""Distances of all pairs and nearest rows, side by side with the usual ways, on the same vectors in one run.

    python benchmarks/distances.py [--rows 50000] [--dims 32] [--targets 5000] [--repeats 3]
"""
import os
import sys

# this folder holds a select.py, and Python has a module of that name: look for modules above it instead
if sys.path[0] == os.path.dirname(os.path.abspath(__file__)): sys.path[0] = os.path.dirname(sys.path[0])

import argparse  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

import numpy as np  # noqa: E402
from benchmarks.vectors import make_vectors  # noqa: E402
from sklearn.metrics import pairwise_distances_argmin_min  # noqa: E402

from lightly_curate.core.compiled import in_threads  # noqa: E402
from lightly_curate.core.config import count_cores  # noqa: E402
from lightly_curate.select.distances import nearest, pair_histogram  # noqa: E402

N_BINS, TOP = 160, 2.  # bins of the histogram, largest distance of unit vectors


def histogram_on_blocks(x: np.ndarray) -> np.ndarray:
    "The obvious way in a bounded memory: product, root and np.histogram on blocks of rows, BLAS with all threads."
    norms, counts = np.einsum('nd,nd->n', x, x), np.zeros(N_BINS, dtype=np.int64)
    for start in range(0, len(x), 256):
        rows = slice(start, start + 256)
        squared = norms[rows, None] + norms[start:] - 2*(x[rows]@x[start:].T)
        upper = np.sqrt(np.maximum(squared, 0))[np.triu(np.ones(squared.shape, dtype=bool), k=1)]
        counts += np.histogram(upper, bins=N_BINS, range=(0, TOP))[0]
    return counts


def faiss_nearest(x: np.ndarray, y: np.ndarray) -> Callable[[], object] | None:
    "Search with faiss, None where it is not installed."
    try: import faiss
    except ImportError: return None
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(y)
    return lambda: index.search(x, 1)


def seconds(ways: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], list]:
    "Median seconds of each, taken in turns, and the last answer of each."
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        answers = []
        for name, run in ways.items():
            start = time.perf_counter()
            answers.append(run())
            taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(o)) for name, o in taken.items()}, answers


def product_seconds(x: np.ndarray, y: np.ndarray, n_pairs: int) -> float:
    "The bound: only the float32 products of that many pairs, tile by tile on all cores."
    product = np.empty((count_cores(), 512, 256), dtype=np.float32)

    def multiply(core: int) -> None:
        for _ in range(200): np.matmul(y[:512], x[:256].T, out=product[core])

    cores = range(count_cores())
    in_threads(multiply, cores)
    start = time.perf_counter()
    in_threads(multiply, cores)
    return (time.perf_counter() - start)*n_pairs/(200*product.size)


def show(title: str, taken: dict[str, float], n_pairs: int, bound: float) -> None:
    "A table, each line with its ratio to ours, the first."
    ours = next(iter(taken.values()))
    print(f'\n{title}, {n_pairs:,} pairs')
    print(f'{"":44}{"seconds":>9}{"Gpairs/s":>10}{"ours is":>9}')
    for name, value in taken.items():
        print(f'{name:44}{value:9.3f}{n_pairs/value/1e9:10.2f}{value/ours:8.1f}x')
    print(f'{"bound: the matrix products alone":44}{bound:9.3f}{n_pairs/bound/1e9:10.2f}{bound/ours:8.1f}x')


def main() -> None:
    parser = argparse.ArgumentParser(description='Pair histogram and nearest rows against the usual ways.')
    for name, default in (('rows', 50_000), ('dims', 32), ('targets', 5_000), ('repeats', 3)):
        parser.add_argument(f'--{name}', type=int, default=default)
    asked = parser.parse_args()
    vectors = make_vectors('clustered', asked.rows + asked.targets, asked.dims)
    x, y = vectors[:asked.rows], vectors[asked.rows:]
    print(f'{asked.rows:,} x {asked.dims} float32, {count_cores()} cores, medians of {asked.repeats}')
    pair_histogram(x[:600], TOP/N_BINS), nearest(x[:600], y[:600])  # machine code is made at the first call

    n_pairs = len(x)*(len(x) - 1)//2
    taken, (ours, theirs) = seconds({'pair_histogram (exact bars and extremes)': lambda: pair_histogram(x, TOP/N_BINS),
        'np.histogram on blocks': lambda: histogram_on_blocks(x)}, asked.repeats)
    show('Histogram of all distances', taken, n_pairs, product_seconds(x, y, n_pairs))
    moved = np.abs(np.pad(ours.counts, (0, N_BINS - len(ours.counts))) - theirs).sum()//2
    print(f'pairs in another bin of np.histogram on blocks: {moved:,}')

    ways = {'nearest (exact, ties to the lowest row)': lambda: nearest(x, y),
            'scikit-learn pairwise_distances_argmin_min': lambda: pairwise_distances_argmin_min(x, y)}
    search = faiss_nearest(x, y)
    if search is not None: ways['faiss IndexFlatL2'] = search
    taken, (ours, theirs, *_) = seconds(ways, asked.repeats)
    show(f'Nearest of {len(y):,}', taken, len(x)*len(y), product_seconds(x, y, len(x)*len(y)))
    if search is None: print('faiss: not installed')
    print(f'rows where scikit-learn agrees: {(ours[0] == theirs[0]).mean():.4%}, '
          f'its largest error: {np.abs(ours[1] - theirs[1]).max():.1e}')


if __name__ == '__main__':
    main()
