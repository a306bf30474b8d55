"""k-center against lightly-mundig: same vectors, same number of choices, one run.

    python benchmarks/select.py                  the headline cases, some minutes
    python benchmarks/select.py --all            three kinds x 10k, 100k, 1M rows x 32, 128 dimensions x 1, 5, 30 %
    python benchmarks/select.py --rows 100000 --dims 128 --shares 0.05 --kinds clustered

Every case runs in a process of its own. Compiling is not counted: machine code is kept on disk after the first run.
lightly-mundig's time to take over the vectors is not counted either; more than --peer-picks choices are extrapolated
(it makes one pass over all vectors for each) and marked with ~. `bound` is the least time any method with one pass for each
choice can take at the memory bandwidth measured here. Memory is the peak beyond the vectors, as a share of them.
"""
import os
import sys

# this folder holds a select.py, and Python has a module of that name: look for modules above it instead
if sys.path[0] == os.path.dirname(os.path.abspath(__file__)): sys.path[0] = os.path.dirname(sys.path[0])

import argparse  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from benchmarks.vectors import KINDS, make_vectors  # noqa: E402

HEADLINE = [(kind, n, d, share) for n, d, share in ((1_000_000, 32, .05), (100_000, 128, .05)) for kind in KINDS]
ALL = [(kind, n, d, share) for n in (10_000, 100_000, 1_000_000) for d in (32, 128) for kind in KINDS
       for share in (.01, .05, .3)]
STATUS, CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')


def peak_bytes() -> float:
    "Largest resident memory since `forget_peak`; NaN where the system does not tell."
    if not STATUS.exists(): return float('nan')
    return 1024*int(next(o for o in STATUS.read_text().splitlines() if o.startswith('VmHWM')).split()[1])


def forget_peak() -> float:
    "Start a new peak; gives the present memory, NaN where the system does not let us."
    try: CLEAR.write_text('5')
    except OSError: return float('nan')
    return peak_bytes()


def ours(x: np.ndarray, n_picks: int) -> np.ndarray:
    from lightly_curate.select.coreset import k_center
    return k_center(x, n_picks)[0]


def mundig(x: np.ndarray, n_picks: int):
    from lightly_mundig import Selection
    selection = Selection()
    selection.add_diversifying_strategy(x, 1.)
    begun = time.perf_counter()
    rows = np.array(selection.run_selection([0], len(x), n_picks))
    return rows, time.perf_counter() - begun


def work(who: str, path: Path, n_picks: int, out: Path) -> None:
    "In a process of its own: choose, and save rows, seconds and bytes."
    x = np.load(path)
    small = np.ascontiguousarray(x[:2000])
    if who == 'ours':
        from lightly_curate.select.coreset import k_center
        for lazily in (True, False): k_center(small, 50, lazily=lazily)
    else: mundig(small, 50)
    before, begun = forget_peak(), time.perf_counter()
    rows, seconds = (ours(x, n_picks), time.perf_counter() - begun) if who == 'ours' else mundig(x, n_picks)
    np.savez(out, rows=rows, seconds=seconds, extra=(peak_bytes() - before)/x.nbytes)


def run(who: str, path: Path, n_picks: int, folder: Path) -> dict:
    out = folder/f'{who}.npz'
    subprocess.run([sys.executable, __file__, '--work', who, str(path), str(n_picks), str(out)], check=True)
    with np.load(out) as found: return dict(found)


def covering(x: np.ndarray, rows: np.ndarray) -> float:
    from lightly_curate.select.distances import nearest
    return float(nearest(x, x[rows])[1].max())


def bandwidth(n_bytes: int = 2**28, n_repeats: int = 5) -> float:
    "Bytes a second that all cores read from memory together."
    from lightly_curate.core.compiled import in_threads
    from lightly_curate.core.config import count_cores
    parts, times = np.array_split(np.ones(n_bytes//4, dtype=np.float32), count_cores()), []
    for _ in range(n_repeats):
        begun = time.perf_counter()
        in_threads(np.max, parts)
        times.append(time.perf_counter() - begun)
    return n_bytes/min(times)


def compare(kind: str, n: int, d: int, share: float, peer_picks: int, speed: float, folder: Path) -> str:
    n_picks, path = round(share*n), folder/'x.npy'
    n_peer = min(n_picks, peer_picks)
    np.save(path, make_vectors(kind, n, d))
    mine, peer = run('ours', path, n_picks, folder), run('mundig', path, n_peer, folder)
    x = np.load(path)
    seconds, is_whole = float(peer['seconds'])*n_picks/n_peer, n_peer == n_picks
    radii = [covering(x, o['rows'][:n_peer]) for o in (mine, peer)]
    return (f'{kind:10} {n:9,} {d:4} {n_picks:8,} {mine["seconds"]:9.2f} {"" if is_whole else "~":>2}{seconds:9.2f} '
            f'{seconds/mine["seconds"]:7.1f} {n*d*4*n_picks/speed:9.2f} {mine["extra"]:7.2f} {peer["extra"]:7.2f} '
            f'{radii[0]:8.4f} {radii[1]:8.4f}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--all', action='store_true', help='the whole table')
    parser.add_argument('--kinds', nargs='+', choices=list(KINDS), default=list(KINDS))
    for name, kind in {'rows': int, 'dims': int, 'shares': float}.items(): parser.add_argument(f'--{name}', nargs='+', type=kind)
    parser.add_argument('--peer-picks', type=int, default=2000, help='choices of lightly-mundig that are really made')
    parser.add_argument('--work', nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work: return work(asked.work[0], Path(asked.work[1]), int(asked.work[2]), Path(asked.work[3]))
    wanted = [asked.rows, asked.dims, asked.shares]
    cases = [o for o in (ALL if asked.all or any(wanted) else HEADLINE) if o[0] in asked.kinds]
    if any(wanted):
        rows, dims, shares = (o or default for o, default in zip(wanted, ([100_000], [32], [.05]), strict=True))
        cases = [(kind, n, d, share) for n in rows for d in dims for kind in asked.kinds for share in shares]
    speed = bandwidth()
    print(f'{os.cpu_count()} cores, {speed/1e9:.0f} GB/s; covering distances after the choices both have made')
    print('kind            rows dims    picks    ours s    mundig s   ratio   bound s  memory  mundig covering   mundig')
    with tempfile.TemporaryDirectory() as folder:
        for case in cases: print(compare(*case, asked.peer_picks, speed, Path(folder)), flush=True)


if __name__ == '__main__': main()
