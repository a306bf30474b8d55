"Choices that are better than k-center at something: what they promise, on more cases than a notebook shows."
import subprocess
import sys

import numpy as np
import pytest
from lightly_curate.core import compiled
from lightly_curate.embed.vectors import normalize
from lightly_curate.select.coreset import k_center, random_choice
from lightly_curate.select.distances import nearest
from lightly_curate.select.outliers import find_outliers, outlier_distances
from lightly_curate.select.threshold_cover import threshold_cover
from lightly_curate.select.typical import typical
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

METHODS = (threshold_cover, typical)


def case(seed: int) -> tuple[np.ndarray, np.random.Generator]:
    "Lattices, lines, copies, clusters, one point, all equal."
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(1, 120)), int(rng.integers(1, 6))
    kind = seed % 5
    if kind == 0: x = rng.integers(0, 4, size=(n, d))
    elif kind == 1: x = rng.normal(size=(n, d))
    elif kind == 2: x = np.repeat(rng.normal(size=(n, d)), 3, axis=0) + 1e-5*rng.normal(size=(3*n, d))
    elif kind == 3: x = np.sort(rng.uniform(size=(n, 1)), axis=0)*np.ones(d) + 100
    else: x = np.ones((n, d))
    return x.astype(np.float32), rng


def distances(x, y): return np.sqrt(((x[:, None].astype(np.float64) - y[None])**2).sum(-1))


@pytest.mark.parametrize('method', METHODS)
def test_promises(method):
    "Rows differ, gaps are true, both distances hold, earlier vectors steer, on 200 cases."
    for seed in range(200):
        x, rng = case(seed)
        n_samples = int(rng.integers(1, len(x) + 1))
        scale = float(np.median(distances(x, x))) or 1.
        min_distance = float(rng.choice([0., .3, 1.]))*scale
        coverage = float(rng.choice([0., .2, .7]))*scale
        earlier = None if seed % 3 else (x[rng.integers(0, len(x), 4)] + .01*scale).astype(np.float32)
        rows, gaps = method(x, n_samples, min_distance, chosen=earlier, coverage_distance=coverage)
        assert len(rows) == len(np.unique(rows)) == len(gaps) <= n_samples, seed
        everything = x[rows] if earlier is None else np.concatenate([earlier, x[rows]])
        n_earlier = len(everything) - len(rows)
        before = [distances(x[[o]], everything[:n_earlier + i]).min(initial=np.inf) for i, o in enumerate(rows)]
        np.testing.assert_allclose(gaps, before, rtol=1e-5, atol=1e-6*scale, err_msg=str(seed))
        assert (np.array(before) >= min_distance*(1 - 1e-7)).all(), seed
        reach = distances(x, everything).min(axis=1).max()
        if len(rows) < n_samples: assert reach <= max(coverage, min_distance)*(1 + 1e-6), seed
        if not coverage and not min_distance: assert len(rows) == n_samples, seed


def test_cover_is_never_worse():
    "The largest distance is at most that of k-center for as many rows."
    for seed in range(150):
        x, rng = case(seed)
        n_samples = int(rng.integers(1, len(x) + 1))
        ours, theirs = (distances(x, x[f(x, n_samples)[0]]).min(axis=1).max() for f in (threshold_cover, k_center))
        assert ours <= theirs*(1 + 1e-6) + 1e-12, seed


@pytest.mark.parametrize('method', (*METHODS, lambda x, n: (np.flatnonzero(find_outliers(x, .1)), None)))
def test_any_number_of_threads(method, monkeypatch):
    "The same choice with one thread and with five."
    x = np.random.default_rng(0).normal(size=(6000, 16)).astype(np.float32)
    found = []
    for n_threads in (1, 5):
        monkeypatch.setattr(compiled, 'count_cores', lambda n_threads=n_threads: n_threads)
        found.append(method(x, 600)[0])
    np.testing.assert_array_equal(*found)


def test_arguments_are_left_alone():
    "Nothing that is handed in is written to."
    x, earlier = (np.random.default_rng(o).normal(size=(300, 8)).astype(np.float32) for o in (0, 1))
    before, earlier_before = x.copy(), earlier.copy()
    for method in METHODS: method(x, 30, .1, chosen=earlier, coverage_distance=.5)
    find_outliers(x, .1)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(earlier, earlier_before)


@pytest.mark.parametrize('share', (.01, .02, .05, .1, .3))
def test_typical_teaches_more(share):
    "On handwritten digits: nearer to all samples than chance, and a linear probe reads better, over five seeds."
    digits = load_digits()
    x, y = normalize(digits.data.astype(np.float32)), digits.target

    def judge(method, seed):
        rows = method(x, int(share*len(x)), seed=seed)[0]
        distance, others = nearest(x, x[rows])[1], np.setdiff1d(np.arange(len(x)), rows)
        probe = LogisticRegression(C=10, max_iter=1000).fit(x[rows], y[rows])
        return distance.max(), distance.mean(), -len(set(y[rows])), -probe.score(x[others], y[others])
    ours, theirs = (np.mean([judge(method, seed) for seed in range(5)], axis=0) for method in (typical, random_choice))
    assert (ours <= theirs).all() and (ours[:2] < theirs[:2]).all(), (ours, theirs)


def test_outliers_against_everything():
    "A sample of the rows to compare with ranks planted outliers as the full comparison does."
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(9000, 16)), 4*rng.normal(size=(90, 16))]).astype(np.float32)
    exact, sampled = outlier_distances(x, n_reference=len(x)), outlier_distances(x)
    assert np.corrcoef(exact, sampled)[0, 1] > .95
    for n_reference in (len(x), 4096, 500):
        assert find_outliers(x, 90/len(x), n_reference=n_reference)[9000:].mean() > .95


@pytest.mark.smoke
def test_table_needs_data(root, tmp_path):
    "Without pictures the table says what to give."
    done = subprocess.run([sys.executable, root/'benchmarks'/'quality.py', tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and 'one folder of pictures for each class' in done.stderr, done.stderr
