"Vectors like those of image collections, made from a seed: unit length, float32."
import numpy as np


def clustered(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    "A few large and many small groups (sizes by Zipf's law), each stretched along 8 directions of its own."
    n_groups = max(2, n//200)
    share = 1/np.arange(1, n_groups + 1)
    group = rng.choice(n_groups, size=n, p=share/share.sum())
    middle = rng.standard_normal((n_groups, d), dtype=np.float32)
    stretch = .25*rng.standard_normal((n_groups, 8, d), dtype=np.float32)
    x = np.empty((n, d), dtype=np.float32)
    for start in range(0, n, 20_000):
        own = group[start:start + 20_000]
        along = rng.standard_normal((len(own), 8), dtype=np.float32)
        noise = .05*rng.standard_normal((len(own), d), dtype=np.float32)
        x[start:start + 20_000] = middle[own] + np.einsum('nr,nrd->nd', along, stretch[own]) + noise
    return x


def video(n: int, d: int, rng: np.random.Generator, n_frames: int = 300) -> np.ndarray:
    "Random walks of 300 frames each, one frame in ten an exact repeat of the one before."
    n_videos = -(-n//n_frames)
    steps = .06*rng.standard_normal((n_videos, n_frames, d), dtype=np.float32)
    steps[:, 0] = rng.standard_normal((n_videos, d), dtype=np.float32)
    x = np.cumsum(steps, axis=1).reshape(-1, d)[:n].copy()
    repeats = 1 + np.flatnonzero(rng.random(n - 1) < .1)
    x[repeats] = x[repeats - 1]
    return x


def isotropic(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    "No structure at all: the worst case for any method that hopes for some."
    return rng.standard_normal((n, d), dtype=np.float32)


KINDS = {'clustered': clustered, 'video': video, 'isotropic': isotropic}


def make_vectors(kind: str, n: int, d: int, seed: int = 0) -> np.ndarray:
    "(n, d) float32 of unit length."
    x = KINDS[kind](n, d, np.random.default_rng(seed))
    return x/np.linalg.norm(x, axis=1, keepdims=True)
