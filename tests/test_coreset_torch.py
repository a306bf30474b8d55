"The choice on a torch device is the choice of `k_center`, on data made to be difficult; on a graphics card where there is one."
import numpy as np
import pytest
import torch

from lightly_curate.select.coreset import k_center
from lightly_curate.select.coreset_torch import Stop, check_given, k_center_torch, start_traversal, traverse

GPU = pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no graphics card'))
KINDS = ('lattice', 'copies', 'curve', 'surface', 'equal', 'binary', 'normal', 'unit lattice', 'tiny', 'far')
DEVICES = pytest.mark.parametrize('device', ['cpu', GPU])


def difficult(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    "Ties, copies, few intrinsic dimensions, odd scales."
    t, u = rng.uniform(size=(2, n, 1))
    if kind == 'lattice': x = rng.integers(0, 4, size=(n, 3))
    elif kind == 'copies': x = rng.normal(size=(6, 6))[rng.integers(6, size=n)]
    elif kind == 'curve': x = np.concatenate([np.cos(9*t), np.sin(7*t), t, t**2], axis=1)
    elif kind == 'surface': x = np.concatenate([np.cos(3*t + u), np.sin(3*t), np.cos(4*u), t*u, t - u], axis=1)
    elif kind == 'equal': x = np.full((n, 4), 1/3)
    elif kind == 'binary': x = rng.integers(0, 2, size=(n, 9))
    elif kind == 'unit lattice': x = rng.integers(-1, 2, size=(n, 7)) + 1e-9
    elif kind == 'tiny': x = 1e-21*rng.integers(0, 9, size=(n, 2)) + 1e-24*rng.normal(size=(n, 2))
    elif kind == 'far': x = 500 + rng.integers(0, 3, size=(n, 3))*.01
    else: x = rng.normal(size=(n, rng.integers(1, 20)))
    if kind == 'unit lattice': x = x/np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32)


def request(x: np.ndarray, rng: np.random.Generator) -> dict:
    "What is asked: sometimes all rows, limits that some pair meets exactly, vectors chosen earlier."
    n = len(x)
    gaps = k_center(x, n)[1][1:]
    limits = [0., 0.] if not len(gaps) else [0., 0., float(rng.choice(gaps)), float(gaps.max()*rng.uniform())]
    asked = {'n_samples': int(rng.choice([n, rng.integers(1, n + 1)])), 'first': int(rng.integers(n)),
             'min_distance': float(rng.choice(limits)), 'coverage_distance': float(rng.choice(limits))}
    if rng.integers(3): return asked
    given = x[rng.integers(n, size=rng.integers(1, 6))]
    return asked | {'chosen': given if rng.integers(2) else given + rng.normal(scale=.1, size=given.shape).astype(np.float32)}


@DEVICES
@pytest.mark.parametrize('kind', KINDS)
def test_same_rows_as_k_center(kind, device):
    "Thirty requests for each kind of data; phases so small that there are many, and as large as they are."
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x = difficult(kind, int(rng.integers(1, 80)), rng)
        asked = request(x, rng)
        rows, gaps = k_center(x, **asked)
        tensor = torch.from_numpy(x).to(device)
        ours = k_center_torch(tensor, **asked)
        np.testing.assert_array_equal(ours[0], rows)
        np.testing.assert_array_equal(ours[1], gaps)
        way = start_traversal(tensor, check_given(asked.get('chosen'), tensor), asked['n_samples'], asked['first'])
        n_awake = int(rng.integers(2, 20))
        traverse(way, Stop(asked['n_samples'], asked['min_distance'], asked['coverage_distance']), n_awake, int(rng.integers(1, n_awake + 1)),
                 int(rng.integers(1, 9)))
        np.testing.assert_array_equal(way.rows, rows)
        assert ours[0].dtype == np.int64 and ours[1].dtype == np.float32


@DEVICES
@pytest.mark.parametrize('kind', ['curve', 'surface', 'normal', 'lattice'])
def test_same_rows_through_real_phases(kind, device):
    "Enough rows that most of them sleep, with the constants as they are."
    rng = np.random.default_rng(0)
    x = difficult(kind, 5000, rng)
    for asked in ({'n_samples': 400}, {'n_samples': 300, 'chosen': x[::7][:300] + np.float32(1e-3), 'min_distance': 1e-3}):
        ours, theirs = k_center_torch(torch.from_numpy(x).to(device), **asked), k_center(x, **asked)
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


@DEVICES
def test_settings_of_others_change_nothing(device):
    "Fewer digits in products, allowed elsewhere in the program: the choice is the same."
    x = difficult('surface', 4000, np.random.default_rng(1))
    matmul = torch.backends.cuda.matmul if device == 'cuda' else torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = 'tf32' if device == 'cuda' else 'bf16'
        with torch.autocast(device, dtype=torch.bfloat16): ours = k_center_torch(torch.from_numpy(x).to(device), 300)
    finally:
        matmul.fp32_precision = before
    np.testing.assert_array_equal(ours[0], k_center(x, 300)[0])


@DEVICES
def test_other_types_and_layouts(device):
    "Half precision, double precision, a transposed view, gradients."
    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float16)
    want = k_center(x.astype(np.float32), 50)[0]
    tensor = torch.from_numpy(x).to(device)
    for other in (tensor, tensor.double(), tensor.float().T.contiguous().T, tensor.float().requires_grad_()):
        np.testing.assert_array_equal(k_center_torch(other, 50)[0], want)
