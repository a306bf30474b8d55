"The datapool under real processes: several at once, one that is killed, and members against a slow obvious rule."
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightly_curate.core.errors import OutputError
from lightly_curate.embed.embedding_csv import write_embeddings
from lightly_curate.learn.downloads import sha256_of
from lightly_curate.select.datapool import (NOISE, Datapool, PoolUpdate, find_members, pool_files, read_pool,
                                            update_pool)

WEIGHTS = {'origin': 'built-in weights', 'sha256': 'a1', 'name': 'builtin', 'n_features': 2, 'input_size': 64}
START = f"""
import os, signal, sys
from pathlib import Path
import numpy as np
from lightly_curate.select.datapool import pool_files, read_pool, update_pool
files = pool_files(Path(sys.argv[1]), 'pool')
def add(run, names, x, **kwargs):
    return update_pool(files, run, names, np.array(x, dtype=np.float32), [0]*len(names), {WEIGHTS!r}, **kwargs)
"""


def start(folder: Path, script: str, *args: str) -> subprocess.Popen:
    "A process of its own."
    return subprocess.Popen([sys.executable, '-W', 'error', '-c', START + script, str(folder), *args], stderr=subprocess.PIPE, text=True)


def ended_well(process: subprocess.Popen) -> bool:
    "Wait, and show what went wrong."
    error = process.communicate(timeout=120)[1]
    print(error, file=sys.stderr)
    return process.returncode == 0


def test_processes_at_once_lose_nothing(tmp_path):
    "Three processes with eight updates each, begun together; one picture is common to all of them."
    script = """
who = sys.argv[2]
print('ready', file=sys.stderr, flush=True)
while not Path(sys.argv[1], 'go').exists(): pass
for k in range(8):
    add(f'{who}-{k}', ['common.jpg', f'{who}-{k}.jpg', 'same name.jpg'], [[9, 9], [ord(who), k], [-ord(who), -k - 1]])
    assert len(read_pool(files)) >= 2*k + 3
"""
    processes = [start(tmp_path, script, who) for who in 'abc']
    for process in processes: assert process.stderr.readline() == 'ready\n'
    (tmp_path/'go').touch()
    assert all([ended_well(o) for o in processes])
    files = pool_files(tmp_path, 'pool')
    pool = read_pool(files)
    assert len(pool) == 1 + 2*24 and len(set(pool.filenames)) == len(pool) and pool.inputs.count('same name.jpg') == 24
    place = {o: i for i, o in enumerate(pool.filenames)}
    for who in 'abc':
        for k in range(8): assert pool.emb[place[f'{who}-{k}.jpg']].tolist() == [ord(who), k]
    assert [o.n_total for o in pool.updates] == np.cumsum([o.n_added for o in pool.updates]).tolist()
    archived = sorted(files.history.iterdir())
    assert [sha256_of(o) for o in archived] == [o.state for o in pool.updates[:-1]]
    assert [int(o.name.split('_')[1]) for o in archived] == list(range(1, 24))


KILLED_AT_A_STEP = """
n, replace_file = iter(range(100)), os.replace
def replace_or_die(*paths):
    if next(n) == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
    replace_file(*paths)
os.replace = replace_or_die
"""


@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGKILL')
@pytest.mark.parametrize('step', range(6))
def test_killed_for_good_at_any_step(tmp_path, step):
    "SIGKILL right before a file takes its place, when a pool is begun and when one grows: whole, free, and the next run goes on."
    script = KILLED_AT_A_STEP + """
add(sys.argv[3], [f'{sys.argv[3]}.jpg'], [[1, int(sys.argv[3])]])
"""
    files = pool_files(tmp_path, 'pool')
    for week in range(2):
        killed = start(tmp_path, script, str(step), str(week))
        killed.communicate(timeout=120)
        assert killed.returncode in (0, -signal.SIGKILL)
        assert len(read_pool(files)) == week + (killed.returncode == 0)
        add = update_pool(files, str(week), [f'{week}.jpg'], np.array([[1, week]], dtype=np.float32), [0], WEIGHTS)
        assert (add.n_added, add.n_total) == (1, week + 1)
    assert len(list(files.history.iterdir())) == 1
    expected = {'datapool_latest.csv', 'datapool.json', '.lock', 'history'}
    left = {o.name for o in files.root.iterdir()} - expected
    assert not left or killed.returncode == 0, 'half-written files go away with the next update'


@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGKILL')
@pytest.mark.parametrize('step', range(5))
def test_killed_for_good_at_any_step_of_taking_over(tmp_path, step):
    "The same for a pool from elsewhere, a CSV with a checkpoint beside it, whose first state is in the history afterwards."
    script = KILLED_AT_A_STEP + """
update_pool(files, 'run', ['2.jpg'], np.array([[2, 2]], dtype=np.float32), [0], json.loads(sys.argv[3]))
"""
    files = pool_files(tmp_path, 'pool')
    files.root.mkdir()
    write_embeddings(files.embeddings, ['1.jpg'], np.array([[1, 1]], dtype=np.float32), [0])
    files.checkpoint.write_bytes(b'weights')
    weights, before = {**WEIGHTS, 'sha256': sha256_of(files.checkpoint)}, read_pool(files)
    killed = start(tmp_path, 'import json' + script, str(step), json.dumps(weights))
    killed.communicate(timeout=120)
    assert killed.returncode == (-signal.SIGKILL if step < 4 else 0), 'history, new CSV, facts, CSV in its place'
    found = read_pool(files)
    assert found.filenames == (['1.jpg'] if step < 4 else ['1.jpg', '2.jpg'])
    assert found.weights == (before.weights if step < 4 else {**before.weights, 'input_size': WEIGHTS['input_size']})
    for _ in range(2):
        change = update_pool(files, 'run', ['2.jpg'], np.array([[2, 2]], dtype=np.float32), [0], weights)
        assert (change.n_before, change.n_total) == (1, 2)
        assert [o.run for o in read_pool(files).updates] == ['', 'run']
        first, = files.history.iterdir()
        shutil.copyfile(first, files.embeddings)
        assert read_pool(files).filenames == ['1.jpg'] and read_pool(files).weights == before.weights


def test_a_run_waits_for_another(tmp_path):
    "A process holds the lock until it is killed; the one that waits goes on at once."
    script = """
from lightly_curate.select.datapool import locked
with locked(files):
    print('held', file=sys.stderr, flush=True)
    signal.pause()
"""
    holder = start(tmp_path, script)
    assert holder.stderr.readline() == 'held\n'
    waiter = start(tmp_path, "print('ready', file=sys.stderr, flush=True)\nadd('run', ['1.jpg'], [[1, 1]])")
    assert waiter.stderr.readline() == 'ready\n'
    with pytest.raises(subprocess.TimeoutExpired): waiter.wait(timeout=.3)
    holder.kill()
    holder.communicate()
    assert ended_well(waiter)
    assert len(read_pool(pool_files(tmp_path, 'pool'))) == 1


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match='needed is a shared_dir that can'): read_pool(pool_files(tmp_path, 'pool'))


def members_slowly(pool, filenames, emb):
    "The rule word by word."
    rows, taken = [], []
    for name, x in zip(filenames, emb, strict=True):
        same = [i for i in range(len(pool)) if name in (pool.filenames[i], pool.inputs[i])]
        near = [i for i in same if np.linalg.norm(pool.emb[i].astype(float) - x) <= NOISE*np.linalg.norm(x.astype(float))]
        exact = [i for i in range(len(pool)) if (pool.emb[i] == x).all()]
        rows.append((near + exact + [-1])[0])
        taken.append(rows[-1] == -1 and bool(same))
    return rows, taken


@pytest.mark.parametrize('seed', range(40))
def test_members_equal_the_slow_rule(seed):
    "Few names and few vectors, so that names and vectors meet in every way."
    rng = np.random.default_rng(seed)
    n, p, vectors = rng.integers(1, 30), rng.integers(0, 20), rng.integers(-1, 2, size=(8, 3)).astype(np.float32)
    stored = [f'{o}.jpg' for o in rng.permutation(40)[:p]]
    renamed = {f'{k}.jpg': o for k, o in enumerate(stored[:p//2])}
    updates = (PoolUpdate('id', 'run', '', p, p, 'state', renamed),)
    pool = Datapool(stored, vectors[rng.integers(8, size=p)], np.zeros(p, dtype=np.int64), None, updates, 'state')
    names, emb = [f'{o}.jpg' for o in rng.permutation(40)[:n]], vectors[rng.integers(8, size=n)]
    emb = (emb*(1 + rng.choice([0, 2e-3, 5e-4, -5e-4], size=(n, 1)))).astype(np.float32)
    found = find_members(pool, names, emb)
    rows, taken = members_slowly(pool, names, emb)
    assert found.row.tolist() == rows and found.is_taken.tolist() == taken


def test_the_file_is_lightlys(tmp_path):
    "Names with everything that a CSV has to quote, and the vectors to the last bit."
    files = pool_files(tmp_path, 'pool')
    names = ['a,b/1.jpg', '"quoted".jpg', 'umlaut ü/日本.jpg', ' blank .jpg']
    emb = np.array([[1/3, -51.535], [1e-8, 3e7], [0, 1], [-0., 2]], dtype=np.float32)
    update_pool(files, 'run', names, emb, [3, 2, 1, 0], WEIGHTS)
    assert files.embeddings.read_bytes().startswith(b'filenames,embedding_0,embedding_1,labels\r\n"a,b/1.jpg",0.33333334,-51.535,3\r\n')
    pool = read_pool(files)
    assert pool.filenames == names and pool.labels.tolist() == [3, 2, 1, 0] and pool.emb.tobytes() == emb.tobytes()
    facts = json.loads(files.facts.read_text(encoding='utf-8'))
    assert facts['schema'] == '1.0' and facts['weights'] == WEIGHTS and len(facts['updates']) == 1
