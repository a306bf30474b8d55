"""A run that is killed again and again ends as if nothing had happened.

`python tests/test_kill.py [N_KILLS] [SEED]` prints the figures of the README: kills survived and work lost."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from lightly_curate.core.rundir import RunDir
from lightly_curate.data.sample_data import make_sample_data, make_video

COMMAND = Path(sys.executable).with_name('lightly-curate')
OFTEN = 'import lightly_curate.core.parts as parts\nparts.Parts.__init__.__defaults__ = (.2, None)\n'  # small data: a part after 0.2 s, not after 20
SMALL = ['lightly.model.name=resnet-9', 'lightly.model.width=0.125', 'lightly.model.num_ftrs=16', 'lightly.collate.input_size=32',
         'lightly.pre_trained=False', 'lightly.loader.batch_size=16']
KINDS = {'embedded': [], 'trained': [*SMALL, 'enable_training=True', 'lightly.trainer.max_epochs=2']}
AT_A_REPLACE = """
import os, signal, sys
from pathlib import Path
from lightly_curate.run.pipeline import curate
from lightly_curate.run.start import open_run
n, n_done, replace = int(sys.argv[1]), 0, os.replace
def count(source, target):
    global n_done
    n_done += 1
    if n_done == n: os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if n_done == -n: os.kill(os.getpid(), signal.SIGKILL)
os.replace = count
curate(open_run(overrides=sys.argv[2:]))
"""


def make_input(folder: Path) -> Path:
    "Pictures, some of them broken or there twice, and two videos."
    make_sample_data(folder, n_images=50)
    make_video(folder/'pan.mp4', n_frames=48)
    make_video(folder/'short.avi', n_frames=9)
    return folder


def differing(whole: RunDir, killed: RunDir) -> list[str]:
    "Files that are not those of the undisturbed run, byte for byte; of JSON all but times and what is said about the work."
    def files(run: RunDir) -> dict[str, Path]:
        found = {o.relative_to(run.root).as_posix(): o for o in run.root.rglob('*') if o.is_file()}
        apart = ('.lightly_curate/', 'config/', 'jobs/', 'log.txt', 'manifest.json', 'report.', 'data/training.csv', 'plots/training', 'training/')
        return {name: o for name, o in found.items() if not name.startswith(apart) and o.suffix != '.ckpt'}
    def told(run: RunDir) -> dict:
        report = json.loads(run.report_json.read_text())
        del report['job'], report['weights']['sha256']  # a checkpoint holds the seconds of its epochs
        for name in ('seconds', 'images_per_s', 'wait_share', 'resumed_at'): (report['training'] or {}).pop(name, None)
        return report
    a, b = files(whole), files(killed)
    wrong = sorted(a.keys() ^ b.keys()) + [o for o in sorted(a.keys() & b.keys()) if a[o].read_bytes() != b[o].read_bytes()]
    return wrong + (['report.json'] if told(whole) != told(killed) else []) + ([] if killed.manifest_json.is_file() else ['manifest.json'])


def leftovers(run: RunDir) -> list[str]:
    "What only a run that is under way has."
    passing = [run.lock, run.state_frames, run.state_frame_rows, run.training_cache, run.training_request, run.parts('x').parent]
    return [str(o) for o in passing if o.exists()] + [str(o) for o in run.root.rglob('.*-*') if o.is_file()]


def kill_all(process: subprocess.Popen, with_job: bool) -> None:
    "As a machine that is taken away does it; or the process group alone, and the job has to notice."
    children = psutil.Process(process.pid).children(recursive=True) if with_job else []
    os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        if child.is_running(): child.kill()
    process.communicate()
    psutil.wait_procs(children, timeout=10)


@dataclass
class Tally:
    "What was tried."
    n_kills: int = 0
    n_runs: int = 0
    whole_s: list[float] = field(default_factory=list)   # of undisturbed runs, one for each killed one
    spent_s: float = 0.                                  # in killed runs, with all their starts
    wrong: list[str] = field(default_factory=list)

    def words(self) -> str:
        lost = self.spent_s - sum(self.whole_s)
        return (f'{self.n_kills} kills over {self.n_runs} runs: {len(self.wrong)} wrong files. {self.spent_s:.0f} s were spent where {sum(self.whole_s):.0f} s '
                f'are needed undisturbed, so a kill cost {lost/max(1, self.n_kills):.1f} s on average, the new start included.')


class Killer:
    "Carries runs out and kills them."
    def __init__(self, place: Path, seed: int):
        self.place, self.random, self.tally = place, np.random.default_rng(seed), Tally()
        self.photos = make_input(place/'photos')
        (place/'often').mkdir()
        (place/'often'/'sitecustomize.py').write_text(OFTEN)
        path = os.pathsep.join([str(place/'often'), *filter(None, [os.environ.get('PYTHONPATH')])])
        self.environment: Mapping[str, str] = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}

    def words(self, name: str, kind: str) -> list[str]:
        return [f'input_dir={self.photos}', f'shared_dir={self.place}', f'output_dir={self.place}/out', f'run_directory={name}', 'stopping_condition.n_samples=0.3',
                'dump_dataset=True', 'output_image_size=32', *KINDS[kind]]

    def start(self, words: list[str]) -> subprocess.Popen:
        return subprocess.Popen([COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=self.environment, start_new_session=True)

    def undisturbed(self, kind: str) -> tuple[RunDir, float]:
        "A run of a kind, and its seconds."
        begun = time.monotonic()
        process = self.start(self.words(f'{kind}-whole', kind))
        _, said = process.communicate()
        assert process.returncode == 0, said
        return RunDir(self.place/'out'/f'{kind}-whole'), time.monotonic() - begun

    def killed(self, kind: str, name: str, whole_s: float, n_kills: int) -> RunDir:
        "Kill a run at random moments until it gets through or `n_kills` are reached."
        run, begun, n_starts = RunDir(self.place/'out'/name), time.monotonic(), 0
        while True:
            resumes = run.config_yaml.is_file() and bool(self.random.integers(2))
            process, after_s = self.start(['resume', str(run.root)] if resumes else self.words(name, kind)), self.random.uniform(.2, .6*whole_s)
            n_starts += 1
            try:
                _, said = process.communicate(timeout=after_s if self.tally.n_kills < n_kills else None)
            except subprocess.TimeoutExpired:
                kill_all(process, with_job=bool(self.random.integers(2)))
                self.tally.n_kills += 1
                continue
            assert process.returncode == 0, f'start {n_starts} of {name}: {said}'
            self.tally.spent_s += time.monotonic() - begun
            self.tally.whole_s.append(whole_s)
            self.tally.n_runs += 1
            return run

    def carry_out(self, n_kills: int) -> Iterator[str]:
        "Kill until there are enough, and tell each run."
        whole = {kind: self.undisturbed(kind) for kind in KINDS}
        while self.tally.n_kills < n_kills:
            kind = 'trained' if self.tally.n_runs % 3 == 2 else 'embedded'
            before, name = self.tally.n_kills, f'killed-{self.tally.n_runs}'
            run = self.killed(kind, name, whole[kind][1], n_kills)
            wrong = differing(whole[kind][0], run) + leftovers(run)
            self.tally.wrong += [f'{name}: {o}' for o in wrong]
            yield f'{name}, {kind}: {self.tally.n_kills - before} kills, {", ".join(wrong) or "as the undisturbed one"}'


def test_killed_at_a_file_that_is_being_written(tmp_path):
    "Before and after a file takes its place, at three of them."
    photos = make_sample_data(tmp_path/'photos', n_images=25)
    make_video(photos/'pan.mp4', n_frames=9)
    (tmp_path/'sitecustomize.py').write_text(OFTEN)
    def go(name: str, n: int) -> int:
        words = [f'input_dir={photos}', f'output_dir={tmp_path}', f'run_directory={name}', 'stopping_condition.n_samples=5', 'steps=[embed,select]', 'dump_dataset=True']
        return subprocess.run([sys.executable, '-c', AT_A_REPLACE, str(n), *words], stderr=subprocess.DEVNULL,
                              env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])}).returncode
    assert go('whole', 0) == 0
    for n in (12, -21, 27): assert go('killed', n) == -signal.SIGKILL, n
    assert go('killed', 0) == 0
    for path in (o for o in (tmp_path/'whole').rglob('*') if o.is_file()):
        name = path.relative_to(tmp_path/'whole').as_posix()
        if not name.startswith(('.lightly_curate/', 'config/', 'log.txt', 'manifest.json')): assert path.read_bytes() == (tmp_path/'killed'/name).read_bytes(), name
    assert not leftovers(RunDir(tmp_path/'killed'))


@pytest.mark.slow
def test_killed_forty_times(tmp_path):
    killer = Killer(tmp_path, seed=0)
    for line in killer.carry_out(40): print(line, flush=True)
    print(killer.tally.words())
    assert not killer.tally.wrong


if __name__ == '__main__':
    n_kills, seed = (int(o) for o in [*sys.argv[1:], '40', '0'][:2]) if len(sys.argv) != 2 else (int(sys.argv[1]), 0)
    with tempfile.TemporaryDirectory(prefix='curate-kills-') as place:
        killer = Killer(Path(place), seed)
        for line in killer.carry_out(n_kills): print(line, flush=True)
    print(killer.tally.words())
    sys.exit(1 if killer.tally.wrong else 0)
