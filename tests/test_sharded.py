"Choosing from shards: by two and three processes (gloo) exactly what one chooses, and in two rounds the same on Ray as without."
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightly_curate.core.errors import SelectionError
from lightly_curate.core.progress import listening
from lightly_curate.select.coreset import k_center
from lightly_curate.select.sharded import choose_in_shard, in_turn, k_center_in_processes, k_center_in_two_rounds, on_ray, shards_of


def clusters(n: int, d: int = 8, n_ties: int = 0) -> np.ndarray:
    "Vectors in clusters that lie one after the other, as frames of videos do, with copies of the first ones at the end."
    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(scale=4, size=(40, 1)), axis=0)[np.sort(rng.integers(0, 40, n))] + rng.normal(size=(n, d))
    x[n - n_ties:] = x[:n_ties]
    return x.astype(np.float32)


def check_same(found, x, *args, **kwargs):
    rows, gaps = k_center(x, *args, **kwargs)
    np.testing.assert_array_equal(found[0], rows)
    np.testing.assert_array_equal(found[1], gaps)


def test_two_processes(tmp_path):
    "Vectors chosen earlier, copies, a distance to stop at; progress comes through, and nothing is left."
    x, ticks = clusters(3000, n_ties=700), []
    with listening(ticks.append):
        found = k_center_in_processes(x, 3000, 1.5, chosen=x[::50] + .1, folder=tmp_path/'new', n_processes=2)
    assert 30 < len(found[0]) < 2900
    check_same(found, x, 3000, 1.5, chosen=x[::50] + .1)
    assert {o.what for o in ticks} == {'selecting'} and ticks[-1].n_done == len(found[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_three_processes_on_vectors_of_a_file(tmp_path):
    "Mapped into memory, more rows than wake in a phase."
    np.save(tmp_path/'x.npy', clusters(20_000))
    x = np.load(tmp_path/'x.npy', mmap_mode='r')
    found = k_center_in_processes(x, 1500, folder=tmp_path/'new', n_processes=3)
    check_same(found, x, 1500)


@pytest.mark.slow
def test_an_error_in_a_process_is_raised_here(tmp_path):
    "The vectors of the second process hold what no distance can be computed from; the first one waits for it in vain."
    x = clusters(100)
    x[80, 3] = np.inf
    with pytest.raises(SelectionError, match='1 of 50 embeddings hold NaN or Inf, the first in row 30'):
        k_center_in_processes(x, 10, folder=tmp_path/'new', n_processes=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_coverage_distance_and_a_process_for_every_row(tmp_path):
    x = clusters(2000, 3)
    found = k_center_in_processes(x, 2000, coverage_distance=2., folder=tmp_path/'new', n_processes=2)
    assert 10 < len(found[0]) < 1500
    check_same(found, x, 2000, coverage_distance=2.)
    found = k_center_in_processes(x[:2], 2, folder=tmp_path/'new', n_processes=5)
    check_same(found, x[:2], 2)


@pytest.mark.slow
def test_two_machines(tmp_path, monkeypatch):
    "Both on this one: the first is started as usual, the second by torchrun as the notebook says."
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', port)
    x, found = clusters(3000), []
    first = threading.Thread(target=lambda: found.extend(k_center_in_processes(x, 200, folder=tmp_path/'new', n_processes=1, n_nodes=2)))
    first.start()
    second = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2', '--node-rank', '1', '--nproc-per-node', '1', '--master-addr',
                             '127.0.0.1', '--master-port', port, '-m', 'lightly_curate.select.sharded', str(tmp_path/'new')], capture_output=True, text=True)
    first.join()
    assert second.returncode == 0, second.stderr
    check_same(found, x, 200)


def processes(text: str) -> list[int]:
    "Those with a text among their words."
    found = []
    for entry in Path('/proc').iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid(): continue
        try:
            if text in (entry/'cmdline').read_bytes().decode() and 'State:\tZ' not in (entry/'status').read_text(): found.append(int(entry.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.slow
def test_stopped_with_ctrl_c(tmp_path):
    "No process stays behind, and no file."
    np.save(tmp_path/'x.npy', clusters(60_000))
    program = ('import numpy as np; from pathlib import Path; from lightly_curate.select.sharded import k_center_in_processes; '
               f'k_center_in_processes(np.load({str(tmp_path/"x.npy")!r}), 50_000, folder=Path({str(tmp_path/"new")!r}), n_processes=2)')
    user = subprocess.Popen([sys.executable, '-c', program], stderr=subprocess.PIPE)
    begun = time.monotonic()
    while len(processes(str(tmp_path/'new'))) < 4 and time.monotonic() - begun < 120: time.sleep(.1)
    user.send_signal(signal.SIGINT)
    _, said = user.communicate(timeout=60)
    assert user.returncode and b'KeyboardInterrupt' in said
    assert not (tmp_path/'new').exists()
    while processes(str(tmp_path/'new')) and time.monotonic() - begun < 180: time.sleep(.2)
    assert not processes(str(tmp_path/'new'))


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # Ray leaves iterators open
@pytest.mark.parametrize('n_workers', [2, 3])
def test_on_ray_as_without_it(tmp_path, n_workers):
    "The same rows in two rounds, mapped into memory too; and the shard of a worker that is killed is done again."
    pytest.importorskip('ray')
    from lightly_curate.embed.engines import ray_session
    np.save(tmp_path/'x.npy', clusters(4000))
    x, mark = np.load(tmp_path/'x.npy', mmap_mode='r'), tmp_path/'killed'

    def dies_once(part, n_samples, chosen):
        if np.array_equal(part[0], second) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return choose_in_shard(part, n_samples, chosen)

    parts, given = [x[o] for o in shards_of(len(x), 5)], x[:3] + .5
    second = np.array(parts[1][0])
    with ray_session('', n_workers):
        there = k_center_in_two_rounds(x, 60, n_shards=5, chosen=given, run=on_ray)
        again = on_ray(dies_once, parts, 60, given)
    gc.collect()
    here = k_center_in_two_rounds(x, 60, n_shards=5, chosen=given)
    for found, expected in zip(there, here, strict=True): np.testing.assert_array_equal(found, expected)
    assert mark.exists()
    for found, expected in zip(again, in_turn(choose_in_shard, parts, 60, given), strict=True): np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope='module')
def given(tmp_path_factory) -> Path:
    "A folder with embeddings in a file, and nothing else."
    folder = tmp_path_factory.mktemp('given')
    x = clusters(500, 4, 60)
    table = pd.DataFrame({'filenames': [f'{i:04}.jpg' for i in range(len(x))]} | {f'embedding_{k}': x[:, k] for k in range(4)} | {'labels': 0})
    table.to_csv(folder/'e.csv', index=False)
    return folder


def choose_by(given: Path, name: str, *words: str) -> Path:
    command = [str(Path(sys.executable).with_name('lightly-curate')), f'input_dir={given}', f'shared_dir={given}', f'output_dir={given/"out"}', 'embeddings=e.csv',
               f'run_directory={name}', 'stopping_condition.n_samples=70', 'remove_exact_duplicates=False', *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    return given/'out'/name


RESULTS = ('filenames/sampled_filenames.txt', 'data/selected_embeddings.csv', 'data/selection_curve.csv', 'removed_samples.csv')


@pytest.mark.slow
def test_from_the_command_line(given):
    "The same files from one process and from three, and nothing of the exchange stays; other rows in two rounds, the same on Ray."
    one, three = choose_by(given, 'one', 'steps=[select]'), choose_by(given, 'three', 'steps=[select]', 'engine=torchrun', 'engine_workers=3')
    for file in RESULTS: assert (three/file).read_bytes() == (one/file).read_bytes(), file
    assert {o.name for o in (three/'.lightly_curate').iterdir()} == {o.name for o in (one/'.lightly_curate').iterdir()}
    assert 'choosing by 3 processes' in (three/'log.txt').read_text()
    rounds = choose_by(given, 'rounds', 'select.two_round_shards=4')
    told = json.loads((rounds/'report.json').read_text())
    assert (told['stopping']['engine'], told['stopping']['two_rounds'], told['budget']) == ('local', True, None)
    assert any('4 times the best possible' in o for o in told['notices'])
    assert (rounds/RESULTS[0]).read_bytes() != (one/RESULTS[0]).read_bytes() and not (rounds/RESULTS[2]).exists()
    pytest.importorskip('ray')
    on_cluster = choose_by(given, 'cluster', 'steps=[select]', 'select.two_round_shards=4', 'engine=ray', 'engine_workers=2')
    for file in (RESULTS[0], RESULTS[1], RESULTS[3]): assert (on_cluster/file).read_bytes() == (rounds/file).read_bytes(), file
