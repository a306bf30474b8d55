"Embedding by other processes: the same vectors, also when one of them is killed, and nothing of it stays behind."
from __future__ import annotations

import filecmp
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from lightly_curate.core.errors import WeightsError
from lightly_curate.core.parts import Arrays, Parts
from lightly_curate.core.rundir import RunDir
from lightly_curate.data.sample_data import make_video
from lightly_curate.data.scan import scan
from lightly_curate.embed.embed import embed
from lightly_curate.embed.engines import Work, in_processes, in_ray, ray_session
from lightly_curate.embed.vectors import Vectors
from lightly_curate.learn.backbone import load_backbone

BATCH = 4
Embedded = tuple[pd.DataFrame, Vectors]
pytestmark = pytest.mark.usefixtures('one_thread')


def processes(word: str) -> list[psutil.Process]:
    "Those that were started, by us or by those, with a word in their command line."
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(word in o for o in process.cmdline()): found.append(process)
        except psutil.Error:
            continue  # it has ended
    return [o for o in found if o.pid != os.getpid()]


def kill_one(word: str, may_begin: threading.Event, killed: list[int]) -> None:
    "SIGKILL for one process once it may begin."
    may_begin.wait()
    begun = time.monotonic()
    while not killed and time.monotonic() - begun < 60:
        for process in processes(word)[:1]:
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)
        time.sleep(.01)


@pytest.fixture(scope='module')
def local(sample_folder: Path) -> Embedded:
    return embed(scan(sample_folder), load_backbone(), sample_folder, BATCH, 1)


@pytest.fixture
def work(sample_folder: Path) -> Work:
    return Work(load_backbone(), sample_folder, BATCH, 1, '32', 10**8, 60.)


@pytest.fixture(scope='module')
def ray_here() -> Iterator[None]:
    "Ray with room for three workers, started where the environment holds a token."
    pytest.importorskip('ray')
    before = signal.getsignal(signal.SIGTERM)
    os.environ['LIGHTLY_TOKEN'] = 'a-secret'
    try:
        with ray_session('', 3):
            assert os.environ.pop('LIGHTLY_TOKEN') == 'a-secret'
            assert signal.getsignal(signal.SIGTERM) is before
            yield
    finally:
        os.environ.pop('LIGHTLY_TOKEN', None)


def check_same(ours: Embedded, local: Embedded) -> None:
    "Bit for bit, with the same reasons."
    pd.testing.assert_frame_equal(ours[0], local[0])
    np.testing.assert_array_equal(ours[1].rows, local[1].rows)
    assert ours[1].emb.tobytes() == local[1].emb.tobytes()


def embed_by(spread: Callable, folder: Path, parts: Parts | None = None) -> Embedded:
    return embed(scan(folder), load_backbone(), folder, BATCH, 1, parts=parts, spread=spread)


@pytest.mark.slow
@pytest.mark.parametrize('n_workers', [2, 3])
def test_ray(ray_here, work: Work, local: Embedded, sample_folder: Path, n_workers: int) -> None:
    check_same(embed_by(partial(in_ray, work, '', n_workers), sample_folder), local)


def test_ray_survives_the_death_of_a_worker(ray_here, work: Work, local: Embedded, sample_folder: Path) -> None:
    taken, killed = threading.Event(), list[int]()
    thread = threading.Thread(target=kill_one, args=('ray::embed_on_worker', taken, killed))
    def spread(table: pd.DataFrame, rows: np.ndarray, take: Callable[[Arrays], None]) -> None:
        def noticing(part: Arrays) -> None:
            taken.set()
            take(part)
        in_ray(work, '', 3, table, rows, noticing)
    thread.start()
    ours = embed_by(spread, sample_folder)
    thread.join()
    assert len(killed) == 1, 'no worker was caught at work'
    check_same(ours, local)


def test_ray_tells_nobody(ray_here) -> None:
    "Neither the token to its processes, nor anything to its makers."
    told = [Path(f'/proc/{o.pid}/environ').read_bytes().split(b'\0') for word in ('raylet', 'gcs_server') for o in processes(word)]
    assert any(b'RAY_USAGE_STATS_ENABLED=0' in o for o in told)
    assert not any(b'LIGHTLY_TOKEN=a-secret' in o for o in told)


def test_an_error_on_a_worker_is_raised_here(ray_here, work: Work, sample_folder: Path) -> None:
    "Under its own name, without Ray's frames."
    lying = Work(**{**vars(work), 'backbone': load_backbone()})
    object.__setattr__(lying.backbone, 'n_features', 5)
    with pytest.raises(WeightsError) as raised: embed_by(partial(in_ray, lying, '', 2), sample_folder)
    assert 'Traceback' not in str(raised.value)


def test_two_processes(work: Work, local: Embedded, sample_folder: Path, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    parts = Parts(run_dir.parts('embed'), 'a')
    check_same(embed_by(partial(in_processes, work, run_dir, 2, 1), sample_folder, parts), local)
    check_same(embed(scan(sample_folder), load_backbone(), sample_folder, BATCH, 1, parts=parts), local)  # nothing is left to do
    assert not processes(str(tmp_path)) and not run_dir.parts('shards').exists()


@pytest.mark.slow
def test_two_processes_one_killed(work: Work, local: Embedded, sample_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    "The rest is begun anew."
    taken, killed = threading.Event(), list[int]()
    def worker_dies() -> None:
        taken.wait()
        own = [o for o in processes(str(tmp_path)) if 'torch.distributed.run' not in ' '.join(o.cmdline())]
        own[0].send_signal(signal.SIGKILL)
        killed.append(own[0].pid)
    threading.Thread(target=worker_dies).start()
    def spread(table: pd.DataFrame, rows: np.ndarray, take: Callable[[Arrays], None]) -> None:
        def noticing(part: Arrays) -> None:
            taken.set()
            while not killed: time.sleep(.01)
            take(part)
        in_processes(work, RunDir(tmp_path), 2, 1, table, rows, noticing)
    check_same(embed_by(spread, sample_folder), local)
    assert killed and 'a process of the embedding has ended' in caplog.text
    assert not processes(str(tmp_path))


@pytest.mark.slow
def test_two_machines(work: Work, local: Embedded, sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Both on this one: the first is started by the run, the second by torchrun as the notebook says."
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', port)
    words = ['--nnodes', '2', '--node-rank', '1', '--nproc-per-node', '1', '--master-addr', '127.0.0.1', '--master-port', port]
    with subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', *words, '-m', 'lightly_curate.embed.engines', str(tmp_path)]) as second:
        check_same(embed_by(partial(in_processes, work, RunDir(tmp_path), 1, 2), sample_folder), local)
    assert second.returncode == 0


@pytest.fixture(scope='module')
def with_video(sample_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('input')
    for path in sorted(sample_folder.rglob('*.jpg'))[:24]: (folder/path.name).write_bytes(path.read_bytes())
    make_video(folder/'film.mp4', n_frames=24)
    make_video(folder/'other.mp4', n_frames=12, photo='flower')
    return folder


def run(folder: Path, output: Path, *words: str) -> list[str]:
    "Command of a run of the folder."
    program = str(Path(sys.executable).with_name('lightly-curate'))
    return [program, f'input_dir={folder}', f'output_dir={output}', 'stopping_condition.n_samples=20', 'lightly.loader.batch_size=4', *words]


def compare(one: Path, two: Path) -> None:
    "Lists, vectors and tables of two runs."
    names = [o.relative_to(one) for o in sorted((one/'filenames').iterdir())]
    names += [Path(o) for o in ('removed_samples.csv', 'data/embeddings.csv', 'data/selected_embeddings.csv', 'data/samples.parquet', 'data/videos.csv')]
    assert [str(o) for o in names if not filecmp.cmp(one/o, two/o, shallow=False)] == []


@pytest.mark.slow
def test_command_line(with_video: Path, tmp_path: Path) -> None:
    "Images and videos: the same lists, whoever embeds."
    pytest.importorskip('ray')
    asked = {'one': [], 'two': ['engine=torchrun', 'engine_workers=2'], 'three': ['engine=ray', 'engine_workers=2']}
    for name, words in asked.items():
        done = subprocess.run(run(with_video, tmp_path, f'run_directory={name}', *words), capture_output=True, text=True,
                              env={**os.environ, 'OMP_NUM_THREADS': '1', 'LIGHTLY_TOKEN': 'a-secret'})
        assert done.returncode == 0, done.stderr
        if name != 'one': compare(tmp_path/'one', tmp_path/name)
    for path in tmp_path.rglob('*'):
        if path.is_file(): assert b'a-secret' not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.parametrize('engine', ['torchrun', 'ray'])
def test_interrupted_and_gone_on_with(with_video: Path, tmp_path: Path, engine: str) -> None:
    "Ctrl-C while others embed: all of them end, and resume goes on to the same vectors."
    pytest.importorskip('ray')
    words, text = run(with_video, tmp_path, 'run_directory=a', f'engine={engine}', 'engine_workers=2'), ''
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}) as process:
        assert process.stderr is not None
        for line in process.stderr:
            text += line
            if 'shards' in line: break
        time.sleep(5)
        process.send_signal(signal.SIGINT)
        text += process.stderr.read()
    assert process.returncode == 130, text
    begun = time.monotonic()
    while processes(str(tmp_path)) + processes('ray::') and time.monotonic() - begun < 60: time.sleep(.5)
    assert not processes(str(tmp_path)) and not processes('ray::')
    assert subprocess.run([words[0], 'resume', str(tmp_path/'a')], capture_output=True).returncode == 0
    assert subprocess.run(run(with_video, tmp_path, 'run_directory=b'), capture_output=True).returncode == 0
    compare(tmp_path/'b', tmp_path/'a')
