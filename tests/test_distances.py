"Distances on sizes, shapes and values that would bore in a notebook."
import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from lightly_curate.report.stats import all_distances, pairwise_stats
from lightly_curate.select.distances import BLOCK_BYTES, distances_between, distances_of_pairs, nearest, pairwise_blocks


def nearest_slowly(x, y):
    "One row at a time, the first of the smallest."
    found = [distances_of_pairs(np.broadcast_to(o, y.shape), y) for o in x]
    index = np.array([o.argmin() for o in found], dtype=np.int64)
    return index, np.array([o[i] for o, i in zip(found, index, strict=True)], dtype=np.float32)


@pytest.mark.parametrize('seed', range(30))
def test_nearest_equals_the_slow_version(seed):
    "Random sizes, dimensions, offsets, scales and shares of copies; the answer is the same to the last bit."
    rng = np.random.default_rng(seed)
    n, m, d = rng.integers(1, 60), rng.integers(1, 60), rng.integers(1, 40)
    scale, offset = 10.**rng.integers(-20, 4), 10.**rng.integers(-3, 4)*rng.integers(0, 2)
    pool = (offset + rng.normal(scale=scale, size=(rng.integers(1, 30), d))).astype(np.float32)
    x, y = pool[rng.integers(len(pool), size=n)], pool[rng.integers(len(pool), size=m)]
    if seed % 3 == 0: x = (x + rng.normal(scale=1e-7*max(scale, offset), size=x.shape)).astype(np.float32)
    if seed % 3 == 1: x, y = (np.round(rng.normal(size=(o, d))).astype(np.float32) for o in (n, m))
    expected = nearest_slowly(x, y)
    for block_bytes in (1, 1000, BLOCK_BYTES):
        for ours, slow in zip(nearest(x, y, block_bytes), expected, strict=True):
            np.testing.assert_array_equal(ours, slow)


def test_ties_that_the_product_blurs():
    "Mirror images of one point are equally near; rounding of the product must not pick a later one."
    rng = np.random.default_rng(0)
    centre = rng.normal(size=48).astype(np.float32)
    step = np.zeros((96, 48), dtype=np.float32)
    step[np.arange(96), np.arange(96) % 48] = np.where(np.arange(96) < 48, .5, -.5)
    around = np.round(centre*256)/256 + step
    for turn in range(0, 96, 7):
        index, distance = nearest(np.round(centre*256)[None]/256, np.roll(around, turn, axis=0).astype(np.float32))
        assert (index[0], distance[0]) == (0, .5)


def test_nearest_against_scikit_learn():
    "Another implementation, thousands of rows."
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(3000, 32)).astype(np.float32), rng.normal(size=(700, 32)).astype(np.float32)
    search = NearestNeighbors(n_neighbors=1, algorithm='brute').fit(y.astype(np.float64))
    distance, index = search.kneighbors(x.astype(np.float64))
    ours = nearest(x, y)
    np.testing.assert_array_equal(ours[0], index[:, 0])
    np.testing.assert_allclose(ours[1], distance[:, 0], rtol=1e-6)


@pytest.mark.parametrize('block_bytes', [2**20, 8*2**20])
def test_memory_of_blocks(block_bytes):
    "Scratch memory stays near the budget, whatever the size of the answer would be."
    x = np.random.default_rng(2).normal(size=(3000, 16)).astype(np.float32)
    x[1000:] = x[0]
    copies = 20*x.nbytes  # of the vectors, in float64, and of the answers
    def pairs(): return max(len(o) for o in pairwise_blocks(x, block_bytes))
    for run in (lambda: nearest(x, x[::2].copy(), block_bytes), pairs):
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4*block_bytes + copies, f'{peak/2**20:.1f} MiB for a budget of {block_bytes/2**20:.0f}'


def test_copies_at_a_ten_thousandth():
    "The pairs that curation looks for, among unit vectors of the usual length."
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, 256))
    x = (x/np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    y = (x + 1e-4*rng.normal(size=x.shape)/16).astype(np.float32)
    expected = np.linalg.norm(x.astype(np.float64) - y, axis=1)
    np.testing.assert_allclose(np.diag(distances_between(x, y)), expected, rtol=1e-6)
    np.testing.assert_allclose(nearest(x, y)[1], expected, rtol=1e-6)
    np.testing.assert_allclose(pairwise_stats(np.concatenate([x, y]), 2e9).min, expected.min(), rtol=1e-6)


def test_statistics_keep_to_the_memory():
    "The distances are the only large array, and a sample takes less."
    x = np.random.default_rng(4).normal(size=(4000, 8)).astype(np.float32)
    n_bytes = 4*4000*3999//2
    for max_bytes in (n_bytes, n_bytes//10):
        tracemalloc.start()
        stats = pairwise_stats(x, max_bytes)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert stats.exact == (max_bytes == n_bytes)
        assert peak < max_bytes + 4*BLOCK_BYTES, f'{peak/1e6:.0f} MB for {max_bytes/1e6:.0f} MB'
    assert len(all_distances(x[:2])) == 1
