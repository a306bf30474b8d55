"""k-center from shards: exactly by several processes, and in two rounds, beside `k_center` in one process.

    python benchmarks/sharded.py                                    100,000 rows, then 1,000,000; 1 % chosen; some minutes
    python benchmarks/sharded.py --rows 100000 --kinds clustered --shards 2 8 32 --processes 2

`radius` is the covering distance, `ratio` that over the one of the exact choice; two rounds promise 4 times the best possible,
exact choices 2 times. `parallel s` is what the two rounds would take with a machine for each shard: the longest of the first
round and the second. The exact choice by processes is compared row by row; its seconds hold the start of the processes.
Compiling is not counted. Other work on the machine makes seconds longer; `cpu s` are seconds of processors.
"""
import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

# this folder holds a select.py, and Python has a module of that name: look for modules above it instead
if sys.path[0] == os.path.dirname(os.path.abspath(__file__)): sys.path[0] = os.path.dirname(sys.path[0])

import numpy as np  # noqa: E402
from benchmarks.vectors import KINDS, make_vectors  # noqa: E402
from lightly_curate.select.coreset import k_center  # noqa: E402
from lightly_curate.select.distances import nearest  # noqa: E402
from lightly_curate.select.sharded import balancing_shards, k_center_in_processes, k_center_in_two_rounds  # noqa: E402

DIMS, SHARE = 32, .01


def covering(x: np.ndarray, rows: np.ndarray) -> float:
    return float(nearest(x, x[rows])[1].max())


def timed(work, *args, **kwargs):
    "Result, seconds on the clock, seconds of the processors, also those of processes that it started."
    begun, before = time.perf_counter(), os.times()
    result = work(*args, **kwargs)
    after = os.times()
    return result, time.perf_counter() - begun, sum(after[:4]) - sum(before[:4])


def one_by_one(seconds: list, work, parts, *same):
    "The first round in turn, and how long each shard took."
    found = []
    for part in parts:
        rows, clock, _ = timed(work, part, *same)
        found.append(rows)
        seconds.append(clock)
    return found


def line(name: str, clock: float, cpu: float, parallel: float | None, radius: float, ratio: float) -> str:
    told = ' '.join('       -' if o is None else f'{o:8.2f}' for o in (clock, cpu, parallel))
    return f'  {name:22} {told} {radius:9.4f} {ratio:7.3f}'


def compare(kind: str, n: int, shards: list[int], n_processes: int, folder: Path) -> None:
    n_picks = round(SHARE*n)
    print(f'{kind}, {n:,} x {DIMS}, {n_picks:,} chosen\n  {"":22} {"s":>8} {"cpu s":>8} {"parallel":>8} {"radius":>9} {"ratio":>7}', flush=True)
    np.save(folder/'x.npy', make_vectors(kind, n, DIMS))
    x = np.load(folder/'x.npy', mmap_mode='r')
    (exact, _), clock, cpu = timed(k_center, x, n_picks)
    best = covering(x, exact)
    print(line('exact, one process', clock, cpu, None, best, 1.), flush=True)
    if n_processes > 1:
        (rows, _), clock, cpu = timed(k_center_in_processes, x, n_picks, folder=folder/'exchange', n_processes=n_processes)
        assert np.array_equal(rows, exact), 'other rows than in one process'
        print(line(f'exact, {n_processes} processes', clock, cpu, None, best, 1.), flush=True)
    for n_shards in [*shards, balancing_shards(n, n_picks)]:
        seconds: list[float] = []
        (rows, _), clock, cpu = timed(k_center_in_two_rounds, x, n_picks, n_shards=n_shards, run=partial(one_by_one, seconds))
        radius = covering(x, rows)
        print(line(f'two rounds, {n_shards} shards', clock, cpu, clock - sum(seconds) + max(seconds), radius, radius/best), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', nargs='+', type=int, default=[100_000, 1_000_000])
    parser.add_argument('--kinds', nargs='+', choices=list(KINDS), default=list(KINDS))
    parser.add_argument('--shards', nargs='+', type=int, default=[2, 8, 32])
    parser.add_argument('--processes', type=int, default=2, help='of the exact choice; 1: leave it out')
    asked = parser.parse_args()
    for lazily in (True, False): k_center(np.random.default_rng(0).normal(size=(2000, DIMS)).astype(np.float32), 50, lazily=lazily)
    print(f'{os.cpu_count()} cores; ratio: covering distance over that of the exact choice')
    with tempfile.TemporaryDirectory() as folder:
        for n in asked.rows:
            for kind in asked.kinds: compare(kind, n, asked.shards, asked.processes, Path(folder))


if __name__ == '__main__': main()
