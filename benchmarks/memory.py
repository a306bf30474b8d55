"""Peak memory of choosing from given embeddings: python benchmarks/memory.py [--rows 1000000] [--dims 32 512] [--format parquet]

A user's command, from a file of embeddings to the report: read, find equal vectors, choose 1,000 by k-center, write the lists and
the CSVs, draw, render. Vectors in many groups, one in a hundred an exact copy, names in 100 folders. While it runs, the resident memory of all
its processes together is read ten times a second (pages that several of them share count once), and so is the part of it that
is no cache of a file on disk, which the kernel cannot take back. Bounds: the size of the vectors and 1.5 GB more for 32
numbers a row, 8 GB for 512; the exit code is 1 when one is broken. --limit sets memory_limit_in_GB.
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
import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.csv  # noqa: E402
import pyarrow.parquet  # noqa: E402
from benchmarks.vectors import make_vectors  # noqa: E402

PROGRAM = str(Path(sys.executable).with_name('lightly-curate'))
BOUNDS = {32: lambda own: own + 1.5e9, 512: lambda own: 8e9}  # bytes; others are only measured
EVERY_S = .1


def write_vectors(path: Path, n: int, d: int) -> None:
    x = make_vectors('clustered', n, d)
    copies = np.sort(np.random.default_rng(0).choice(np.arange(1, n), n//100, replace=False))
    x[copies] = x[copies - 1]
    writer = None
    for start in range(0, n, 50_000):
        part, numbers = x[start:start + 50_000], range(start, min(n, start + 50_000))
        columns = {'filenames': [f'folder_{i*100//n:02}/image_{i:07}.jpg' for i in numbers],
                   **{f'embedding_{k}': np.ascontiguousarray(part[:, k]) for k in range(d)}, 'labels': [i*100//n for i in numbers]}
        table = pa.table(columns)
        if writer is None: writer = (pa.csv.CSVWriter if path.suffix == '.csv' else pa.parquet.ParquetWriter)(path, table.schema)
        writer.write_table(table)
    writer.close()


def memory_of(process: psutil.Process) -> tuple[int, int]:
    "Bytes of a process and of those it has started: resident, and the part that is no cache of a file."
    total = own = 0
    try: family = [process, *process.children(recursive=True)]
    except psutil.Error: return 0, 0
    for member in family:
        try:
            fields = dict(line.split(':') for line in Path(f'/proc/{member.pid}/smaps_rollup').read_text().splitlines()[1:])
        except (OSError, ValueError):
            continue
        resident, file = (int(fields[o].split()[0])*1024 for o in ('Pss', 'Pss_File'))
        total, own = total + resident, own + resident - file
    return total, own


def stage_of(log: Path) -> str:
    "What a run does now, by its log."
    lines = log.read_text(encoding='utf-8').splitlines() if log.exists() else []
    stages = [o.partition('] ')[2] for o in lines if o.endswith(': started') or 'making report' in o]
    return stages[-1].removesuffix(': started') if stages else 'start'


def run(folder: Path, words: list[str]) -> dict[str, list[float]]:
    "Most memory by stage: [seconds, resident, no cache of a file]."
    log, peaks, begun = folder/'out'/'run'/'log.txt', {}, time.perf_counter()
    with (folder/'said.txt').open('w') as said:
        process = psutil.Popen([PROGRAM, *words, f'output_dir={folder}/out', 'run_directory=run'], stdout=said, stderr=said)
        while process.poll() is None:
            now, (total, own), stage = time.perf_counter() - begun, memory_of(process), stage_of(log)
            peak = peaks.setdefault(stage, [0., 0, 0])
            peak[:] = peak[0], max(peak[1], total), max(peak[2], own)
            time.sleep(EVERY_S)
            peak[0] += time.perf_counter() - begun - now
    if process.returncode: print(f'the run ended with {process.returncode}:', *(folder/'said.txt').read_text().splitlines()[-5:], sep='\n')
    return peaks


def measure(n: int, d: int, suffix: str, limit: float, place: str | None, given: Path | None) -> bool:
    "Run one size and print its lines; whether it kept to its bound."
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder, file = Path(name), f'embeddings.{suffix}'
        if given: (folder/file).symlink_to(given.absolute())
        else: subprocess.run([sys.executable, __file__, '--write', str(folder/file), '--rows', str(n), '--dims', str(d)], check=True)
        peaks = run(folder, [f'shared_dir={folder}', f'embeddings={file}', 'stopping_condition.n_samples=1000',
                             f'memory_limit_in_GB={limit}'])
    own, most = 4.*n*d, max(o[1] for o in peaks.values())
    bound = BOUNDS[d](own) if d in BOUNDS else np.inf
    for stage, (seconds, total, private) in peaks.items():
        print(f'| {n:,} x {d} {suffix} | {stage} | {seconds:.0f} s | {total/1e9:.2f} GB | {private/1e9:.2f} GB |', flush=True)
    print(f'{n:,} x {d}: vectors {own/1e9:.2f} GB, peak {most/1e9:.2f} GB, allowed {bound/1e9:.2f} GB', flush=True)
    return most <= bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, default=1_000_000)
    parser.add_argument('--dims', type=int, nargs='*', default=[32, 512])
    parser.add_argument('--format', default='parquet', choices=['parquet', 'csv'])
    parser.add_argument('--limit', type=float, default=-1., help='memory_limit_in_GB')
    parser.add_argument('--place', help='folder to work in, default: the temporary one')
    parser.add_argument('--given', type=Path, help='a file made before by --write, of the one size asked for')
    parser.add_argument('--write', type=Path, help='only make a file')
    choice = parser.parse_args()
    if choice.write: return write_vectors(choice.write, choice.rows, choice.dims[0])
    print('| input | stage | time | peak memory | of it no cache of a file |\n|---|---|---|---|---|')
    kept = [measure(choice.rows, d, choice.format, choice.limit, choice.place, choice.given) for d in choice.dims]
    sys.exit(0 if all(kept) else 1)


if __name__ == '__main__':
    main()
