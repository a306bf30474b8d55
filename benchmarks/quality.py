"""Which method chooses what: distances, classes found, accuracy of a linear probe, with random as baseline.

    python benchmarks/quality.py [DATA_DIR] [--cache FOLDER]

DATA_DIR holds labelled/caltech101, labelled/clothing and camvid, or is itself a folder with one folder for each class.
Classes of camvid are stretches of 20 consecutive frames of a drive. All pictures are embedded with the built-in backbone
at unit length. covering and mean distance: largest and mean distance of any sample to its nearest chosen one, those left
out as outliers included. coverage: share of classes with a chosen sample. probe: logistic regression on the embeddings of
the chosen samples, accuracy on all others. Methods that draw: mean and standard deviation over 10 seeds.
"""
import os
import sys

# beside this file lies a select.py, and Python has a module of that name: look for modules above this folder instead
if sys.path[0] == os.path.dirname(os.path.abspath(__file__)): sys.path[0] = os.path.dirname(sys.path[0])

import argparse  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from lightly_curate.data.scan import scan  # noqa: E402
from lightly_curate.embed.embed import embed  # noqa: E402
from lightly_curate.embed.vectors import normalize  # noqa: E402
from lightly_curate.learn.backbone import load_backbone  # noqa: E402
from lightly_curate.select.coreset import k_center, random_choice  # noqa: E402
from lightly_curate.select.distances import nearest  # noqa: E402
from lightly_curate.select.outliers import find_outliers  # noqa: E402
from lightly_curate.select.stopping import n_to_add  # noqa: E402
from lightly_curate.select.threshold_cover import threshold_cover  # noqa: E402
from lightly_curate.select.typical import typical  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

SHARED = Path(__file__).resolve().parent.parent.parent/'shared'/'data'
SETS = {'caltech101': 'labelled/caltech101', 'clothing': 'labelled/clothing', 'camvid': 'camvid'}
SHARES, SEEDS, OUTLIER_SHARE, STRETCH = (.05, .1, .3), range(1, 11), .05, 20
COLUMNS = ('covering distance', 'mean distance', 'class coverage', 'probe accuracy')
Method = Callable[[np.ndarray, int, int], np.ndarray]


def without_outliers(x: np.ndarray, n_samples: int, seed: int) -> np.ndarray:
    "k-center among the samples that are no outliers."
    inner = np.flatnonzero(~find_outliers(x, OUTLIER_SHARE))
    return inner[k_center(x[inner], min(n_samples, len(inner)))[0]]


METHODS: dict[str, tuple[Method, bool]] = {  # method, whether it draws
    'random': (lambda x, n, seed: random_choice(x, n, seed=seed)[0], True),
    'coreset': (lambda x, n, seed: k_center(x, n)[0], False),
    f'coreset, outlier_share {OUTLIER_SHARE}': (without_outliers, False),
    'threshold_cover': (lambda x, n, seed: threshold_cover(x, n)[0], False),
    'typical': (lambda x, n, seed: typical(x, n, seed=seed)[0], True)}


def find_sets(folder: Path) -> dict[str, Path]:
    "The three sets, or the folder itself when it holds class folders."
    sets = {name: folder/path for name, path in SETS.items() if (folder/path).is_dir()}
    if sets: return sets
    if folder.is_dir() and sum(o.is_dir() for o in folder.iterdir()) > 1: return {folder.name: folder}
    sys.exit(f'{folder} holds none of {", ".join(SETS.values())} and no class folders; give a folder that has one folder '
             'of pictures for each class: python benchmarks/quality.py my_pictures')


def classes_of(filenames: list[str]) -> np.ndarray:
    "First folder of each name; without folders: drive and stretch of frames."
    if all('/' in o for o in filenames): return np.array([o.split('/')[0] for o in filenames])
    drives, counts, names = [o.split('_')[0] for o in filenames], dict[str, int](), []
    for drive in drives:
        names.append(f'{drive}-{counts.get(drive, 0)//STRETCH}')
        counts[drive] = counts.get(drive, 0) + 1
    return np.array(names)


def read_set(name: str, folder: Path, cache: Path | None) -> tuple[np.ndarray, np.ndarray]:
    "Embeddings of unit length and class of each picture."
    stored = cache/f'{name}.npz' if cache else None
    if stored is None or not stored.exists():
        samples, vectors = embed(scan(folder), load_backbone(), folder, 16, -1)
        x, y = normalize(vectors.emb), classes_of(samples['filename'].tolist())[vectors.rows]
        order = np.argsort(vectors.rows)
        if stored is None: return x[order], y[order]
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(stored, x=x[order], y=y[order])
    content = np.load(stored)
    return content['x'], content['y']


def judge(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> list[float]:
    "The four columns of one choice."
    distance, others = nearest(x, x[rows])[1], np.setdiff1d(np.arange(len(x)), rows)
    found = set(y[rows])
    accuracy = float(np.mean(y[others] == y[rows[0]]))
    if len(found) > 1: accuracy = LogisticRegression(C=10, max_iter=500).fit(x[rows], y[rows]).score(x[others], y[others])
    return [float(distance.max()), float(distance.mean()), len(found)/len(set(y)), accuracy]


def measure(x: np.ndarray, y: np.ndarray, share: float) -> dict[str, np.ndarray]:
    "method = (seeds, 4) table."
    n = n_to_add(share, len(x))
    return {name: np.array([judge(x, y, method(x, n, seed)) for seed in (SEEDS if draws else [1])])
            for name, (method, draws) in METHODS.items()}


def meets(values: np.ndarray, random: np.ndarray) -> bool:
    "At or above random in coverage and probe, below in covering distance."
    ours, theirs = values.mean(0), random.mean(0)
    return bool(ours[0] < theirs[0] and ours[2] >= theirs[2] and ours[3] >= theirs[3])


def main() -> None:
    "Print the table."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data_dir', nargs='?', type=Path, default=SHARED)
    parser.add_argument('--cache', type=Path, help='folder that keeps the embeddings; without it they are computed each time')
    args = parser.parse_args()
    warnings.filterwarnings('ignore', category=ConvergenceWarning)
    warnings.filterwarnings('ignore', message='The number of unique classes')  # few samples for many classes: that is asked
    sets = find_sets(args.data_dir)
    print(f'| set | share | method | {" | ".join(COLUMNS)} | meets |')
    print('|---|---|---|---|---|---|---|---|')
    verdicts: dict[str, dict[float, list[str]]] = {name: {share: [] for share in SHARES} for name in METHODS if name != 'random'}
    for name, folder in sets.items():
        x, y = read_set(name, folder, args.cache)
        for share in SHARES:
            table = measure(x, y, share)
            for method, values in table.items():
                mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else None
                cells = [f'{mean[i]:.3f}' + (f' ± {spread[i]:.3f}' if spread is not None else '') for i in range(4)]
                is_met = method != 'random' and meets(values, table['random'])
                if is_met: verdicts[method][share].append(name)
                mark = '' if method == 'random' else 'yes' if is_met else 'no'
                print(f'| {name} ({len(x)}, {len(set(y))} classes) | {share:.0%} | {method} | {" | ".join(cells)} | {mark} |')
    words = [f'{method}: ' + ', '.join(f'{share:.0%} on {len(met)} of {len(sets)} sets' for share, met in by_share.items())
             for method, by_share in verdicts.items()]
    print('\nAt or above random in class coverage and probe accuracy and below it in covering distance: ' + '; '.join(words))


if __name__ == '__main__': main()
