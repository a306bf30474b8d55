"""Where the seconds of a small run go: python benchmarks/startup.py [--images 10] [--warm-up]

A user's command on ten images, twice: once as it is, with the time that passes before each line of its log; once with the time of
every import of its processes (python -X importtime), summed by package. The machine code that is compiled at the first run on a
machine is made before, with --warm-up. The bound is 15 s beyond the import of torch; the exit code is 1 when it is broken. Processor seconds stand beside the clock,
for machines that do other work too.
"""
import os
import sys

# this folder holds a select.py, and Python has a module of that name: look for modules above it instead
if sys.path[0] == os.path.dirname(os.path.abspath(__file__)): sys.path[0] = os.path.dirname(sys.path[0])

import argparse  # noqa: E402
import collections  # noqa: E402
import resource  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

PROGRAM = str(Path(sys.executable).with_name('lightly-curate'))
BOUND_S = 15.
POLL_S = .02
LEAST_S = .1  # packages and lines that take less are put together
TORCH = 'import time; begun = time.perf_counter(), time.process_time(); import torch; ' \
        'print(time.perf_counter() - begun[0], time.process_time() - begun[1])'


def make_images(folder: Path, n: int) -> None:
    from lightly_curate.data.sample_data import MIN_IMAGES, make_sample_data
    with tempfile.TemporaryDirectory() as place:
        made = make_sample_data(Path(place)/'made', n_images=max(n, MIN_IMAGES))
        files = sorted(o for o in made.rglob('*') if o.suffix in ('.jpg', '.png'))[:n]
        folder.mkdir()
        for i, file in enumerate(files): (folder/f'{i:05}{file.suffix}').write_bytes(file.read_bytes())


def start(folder: Path, name: str, with_imports: bool) -> subprocess.Popen:
    words = [f'input_dir={folder}/images', f'output_dir={folder}/out', f'run_directory={name}', 'stopping_condition.n_samples=0.3']
    environment = {**os.environ, 'PYTHONPROFILEIMPORTTIME': '1'} if with_imports else None
    with (folder/f'{name}.txt').open('w') as said:
        return subprocess.Popen([PROGRAM, *words], stdout=said, stderr=said, env=environment)


def time_lines(folder: Path) -> tuple[list[tuple[float, str]], float, float]:
    "When each line of the log was there; seconds and processor seconds of the whole command."
    log, lines, begun, before = folder/'out'/'timed'/'log.txt', [], time.perf_counter(), children_s()
    process = start(folder, 'timed', False)
    while True:
        code = process.poll()
        now = log.read_text(encoding='utf-8').splitlines() if log.exists() else []
        lines += [(time.perf_counter() - begun, o.partition('] ')[2]) for o in now[len(lines):]]
        if code is not None: break
        time.sleep(POLL_S)
    if code: sys.exit((folder/'timed.txt').read_text())
    return lines, time.perf_counter() - begun, children_s() - before


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def import_seconds(folder: Path) -> collections.Counter:
    "Seconds that packages took to load, over all processes of a run."
    start(folder, 'imports', True).wait()
    own: collections.Counter = collections.Counter()
    for file in [folder/'imports.txt', *(folder/'out'/'imports').rglob('kernel.log')]:
        for line in file.read_text(errors='replace').splitlines():
            parts = line.removeprefix('import time:').split('|')
            if len(parts) == 3 and parts[0].strip().isdigit(): own[parts[2].strip().partition('.')[0]] += int(parts[0])/1e6
    return own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=10)
    parser.add_argument('--warm-up', action='store_true', help='one run before, which compiles')
    choice = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_images(folder/'images', choice.images)
        if choice.warm_up: start(folder, 'warm', False).wait()
        torch_s, torch_cpu_s = map(float, subprocess.run([sys.executable, '-c', TORCH], capture_output=True, text=True, check=True).stdout.split())
        lines, whole_s, cpu_s = time_lines(folder)
        imports = import_seconds(folder)
    print('| until this line of the log | seconds |\n|---|---|')
    before = 0.
    for at, line in [*lines, (whole_s, 'the command has ended')]:
        if at - before >= LEAST_S: print(f'| {line[:90]} | {at - before:.1f} |')
        before = at if at - before >= LEAST_S else before
    print('\n| imports, all processes | seconds |\n|---|---|')
    for name, seconds in imports.most_common():
        if seconds >= LEAST_S: print(f'| {name} | {seconds:.1f} |')
    print(f'| all others | {sum(o for o in imports.values() if o < LEAST_S):.1f} |')
    beyond = whole_s - torch_s
    print(f'\n{choice.images} images: {whole_s:.1f} s ({cpu_s:.1f} s of processors), the import of torch {torch_s:.1f} s ({torch_cpu_s:.1f} s); '
          f'beyond it {beyond:.1f} s ({cpu_s - torch_cpu_s:.1f} s), allowed {BOUND_S:.0f} s')
    sys.exit(0 if beyond <= BOUND_S else 1)


if __name__ == '__main__':
    main()
