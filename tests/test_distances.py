"Distances on sizes, shapes and values that would bore in a notebook."
import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from lightly_curate.report.stats import neighbor_stats, pairwise_stats
from lightly_curate.select.distances import (BLOCK_BYTES, distances_of_pairs, nearest, nearest_at, nearest_other,
                                             pair_histogram)


def nearest_slowly(x, y):
    "One row at a time, the first of the smallest."
    found = [distances_of_pairs(np.broadcast_to(o, y.shape), y) for o in x]
    index = np.array([o.argmin() for o in found], dtype=np.int64)
    return index, np.array([o[i] for o, i in zip(found, index, strict=True)], dtype=np.float32)


def random_sets(seed):
    "Two sets of random sizes, dimensions, offsets, scales and shares of copies; every third time a lattice."
    rng = np.random.default_rng(seed)
    n, m, d = rng.integers(1, 60), rng.integers(1, 60), rng.integers(1, 40)
    scale, offset = 10.**rng.integers(-20, 4), 10.**rng.integers(-3, 4)*rng.integers(0, 2)
    pool = (offset + rng.normal(scale=scale, size=(rng.integers(1, 30), d))).astype(np.float32)
    x, y = pool[rng.integers(len(pool), size=n)], pool[rng.integers(len(pool), size=m)]
    if seed % 3 == 0: x = (x + rng.normal(scale=1e-7*max(scale, offset), size=x.shape)).astype(np.float32)
    if seed % 3 == 1: x, y = (np.round(rng.normal(size=(o, d))).astype(np.float32) for o in (n, m))
    return x, y


@pytest.mark.parametrize('seed', range(30))
def test_nearest_equals_the_slow_version(seed):
    "The answer is the same to the last bit."
    x, y = random_sets(seed)
    expected = nearest_slowly(x, y)
    for block_bytes in (1, 1000, BLOCK_BYTES):
        for ours, slow in zip(nearest(x, y, block_bytes), expected, strict=True):
            np.testing.assert_array_equal(ours, slow)


@pytest.mark.parametrize('seed', range(30))
def test_nearest_at_equals_the_slow_version(seed):
    "Random stops, with and without distances known from before."
    x, y = random_sets(seed)
    rng = np.random.default_rng(seed)
    stops = np.unique(rng.integers(1, len(y) + 1, size=rng.integers(1, 9)))
    for start in (None, nearest_slowly(x, y[rng.integers(len(y), size=2)] + np.float32(.1))[1]):
        known = np.full(len(x), np.inf, dtype=np.float32) if start is None else start
        expected = [np.minimum(known, nearest_slowly(x, y[:o])[1]) for o in stops]
        for block_bytes in (1000, BLOCK_BYTES):
            np.testing.assert_array_equal(nearest_at(x, y, stops, start=start, block_bytes=block_bytes), expected)


@pytest.mark.parametrize('seed', range(30))
def test_histogram_equals_the_slow_version(seed):
    "Bars and extremes to the last bit; percentiles and the mean as close as it says."
    x = np.concatenate(random_sets(seed))
    first, second = np.triu_indices(len(x), k=1)
    slow = distances_of_pairs(x[first], x[second])
    for n_bins in (1, 7, 160, 1000):
        width = (float(slow.max()) or 1.)/n_bins
        pairs = pair_histogram(x, width, BLOCK_BYTES if seed % 2 else 3000)
        edges = np.arange(len(pairs.counts) + 1)*width
        np.testing.assert_array_equal(pairs.counts, np.histogram(slow, edges)[0])
        assert (pairs.min, pairs.max, pairs.fine.sum()) == (slow.min(), slow.max(), len(slow))
        allowed = pairs.resolution + 1e-6*pairs.max
        assert abs(pairs.mean - slow.mean(dtype=np.float64)) <= allowed
        for q in (0, 10, 33, 90, 100):
            assert abs(pairs.percentile(q) - np.percentile(slow.astype(np.float64), q)) <= allowed


@pytest.mark.parametrize('n_dims', [2, 4])
def test_points_on_a_surface(n_dims):
    "Few degrees of freedom in many dimensions, where a filter that is too narrow loses winners; several tiles."
    rng = np.random.default_rng(n_dims)
    angles = rng.random((1400, n_dims))@rng.normal(scale=2, size=(n_dims, 40))
    x = np.sin(angles).astype(np.float32)
    y = np.concatenate([x[700:], x[:300] + np.float32(1e-5)])
    expected = nearest_slowly(x[:700], y)
    for ours, slow in zip(nearest(x[:700], y), expected, strict=True):
        np.testing.assert_array_equal(ours, slow)
    found = nearest_at(x[:700], y, [1, 31, 512, 513, 1000])
    np.testing.assert_array_equal(found[[0, 4]], [nearest_slowly(x[:700], y[:1])[1], expected[1]])
    np.testing.assert_array_equal(found[2], nearest_slowly(x[:700], y[:512])[1])


def test_whole_tiles_that_the_product_cannot_tell_apart():
    "Two clusters a million apart: every row of the own cluster passes the filter, and the answer stays right."
    rng = np.random.default_rng(6)
    x = (rng.normal(size=(1200, 16)) + 1e6*rng.integers(0, 2, size=(1200, 1))).astype(np.float32)
    for ours, slow in zip(nearest(x[:600], x[600:]), nearest_slowly(x[:600], x[600:]), strict=True):
        np.testing.assert_array_equal(ours, slow)
    first, second = np.triu_indices(600, k=1)
    slow = distances_of_pairs(x[first], x[second])
    pairs = pair_histogram(x[:600], 1000.)
    np.testing.assert_array_equal(pairs.counts, np.histogram(slow, np.arange(len(pairs.counts) + 1)*1000.)[0])
    assert (pairs.min, pairs.max) == (slow.min(), slow.max())


@pytest.mark.parametrize(('far', 'size'), [(1e21, 1), (1e22, 1), (1e23, 1), (1e15, 1e-6), (1e10, 1e-12)])
@pytest.mark.parametrize('n_far', [1, 2])
def test_a_vector_far_out(far, size, n_far):
    "Products of the other vectors underflow in float32; they are measured then."
    x = np.random.default_rng(8).normal(scale=size, size=(120, 24)).astype(np.float32)
    x[:n_far] = np.array([[far], [-far]])[:n_far]
    for ours, slow in zip(nearest(x[:60], x[60:]), nearest_slowly(x[:60], x[60:]), strict=True):
        np.testing.assert_array_equal(ours, slow)
    first, second = np.triu_indices(len(x), k=1)
    slow, pairs = distances_of_pairs(x[first], x[second]), pair_histogram(x, far/20)
    assert (pairs.min, pairs.max) == (slow.min(), slow.max())
    np.testing.assert_array_equal(pairs.counts, np.histogram(slow, np.arange(len(pairs.counts) + 1)*(far/20))[0])


def test_threads_change_nothing():
    "Several strips and tiles, one to four threads, the same to the last bit."
    x = np.random.default_rng(7).normal(size=(1700, 24)).astype(np.float32)
    expected, index = pair_histogram(x, .05, n_threads=1), nearest_other(x, np.arange(1700), n_threads=1)
    for n_threads in (2, 4):
        pairs = pair_histogram(x, .05, n_threads=n_threads)
        np.testing.assert_array_equal(pairs.fine, expected.fine)
        assert (pairs.mean, pairs.min, pairs.max) == (expected.mean, expected.min, expected.max)
        np.testing.assert_array_equal(nearest_other(x, np.arange(1700), n_threads=n_threads), index)


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


@pytest.mark.parametrize('block_bytes', [2**14, 2**19])
def test_memory_of_tiles(block_bytes):
    "Scratch memory stays near the budget, whatever the size of the answer would be, however many candidates pass."
    x = np.random.default_rng(2).normal(size=(3000, 16)).astype(np.float32)
    x[1000:] = x[0]
    fixed = 12*x.nbytes + 2*160*256*12  # copies of the vectors and the answers; fine bins
    y = x[::2].copy()
    for run in (lambda: nearest(x, y, block_bytes, 2), lambda: nearest_at(x, y, [3, 1500], block_bytes=block_bytes),
                lambda: pair_histogram(x, .05, block_bytes, 2)):
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3*block_bytes + fixed, f'{peak/2**10:.0f} KiB for a budget of {block_bytes/2**10:.0f}'


def test_copies_at_a_ten_thousandth():
    "The pairs that curation looks for, among unit vectors of the usual length."
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, 256))
    x = (x/np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    y = (x + 1e-4*rng.normal(size=x.shape)/16).astype(np.float32)
    expected = np.linalg.norm(x.astype(np.float64) - y, axis=1)
    np.testing.assert_allclose(distances_of_pairs(x, y), expected, rtol=1e-6)
    np.testing.assert_allclose(nearest(x, y)[1], expected, rtol=1e-6)
    both = np.concatenate([x, y])
    np.testing.assert_allclose(pairwise_stats(both, 2e9).min, expected.min(), rtol=1e-6)
    near = neighbor_stats(both, 2e9)
    np.testing.assert_allclose([near.min, near.max], [expected.min(), expected.max()], rtol=1e-6)


def test_statistics_keep_to_the_memory():
    "Exact in a tenth of the memory that the distances would take; a sample takes what it may."
    x = np.random.default_rng(4).normal(size=(4000, 8)).astype(np.float32)
    for max_bytes, max_pairs in ((3e6, 10**9), (3e6, 10**6)):
        tracemalloc.start()
        stats = pairwise_stats(x, max_bytes, max_pairs=max_pairs)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert stats.exact == (max_pairs == 10**9)
        assert peak < max_bytes + 30e6, f'{peak/1e6:.0f} MB for {max_bytes/1e6:.0f} MB'


def test_sampled_statistics_are_as_close_as_they_say():
    "The whole distribution of a sample against that of all pairs."
    x = np.random.default_rng(5).normal(size=(600, 8)).astype(np.float32)
    whole = pairwise_stats(x, 1e9)
    for seed in range(5):
        some = pairwise_stats(x, 1e9, seed, edges=whole.edges, max_pairs=20_000)
        error = np.abs(some.counts.cumsum()/some.n_pairs - whole.counts.cumsum()/whole.n_pairs).max()
        assert .05*some.cdf_error < error <= some.cdf_error
