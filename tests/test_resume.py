"Stopping, being killed and going on, from the command line as a user sees it."
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from lightly_curate.core.rundir import RunDir

pytestmark = pytest.mark.smoke
COMMAND = Path(sys.executable).with_name('lightly-curate')
ONE_THREAD = {**os.environ, 'OMP_NUM_THREADS': '1'}


def start(*words, cwd) -> subprocess.Popen:
    "The command line in a process group of its own, as a shell starts it."
    return subprocess.Popen([COMMAND, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=cwd, env=ONE_THREAD,
                            start_new_session=True)


def curate(*words, cwd) -> tuple[int, str]:
    "Exit code and what was said."
    process = start(*words, cwd=cwd)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def wait_for(question, process: subprocess.Popen, seconds: float = 60.) -> None:
    "Wait until something is so, while the process lives."
    until = time.monotonic() + seconds
    while not question():
        assert process.poll() is None and time.monotonic() < until, process.stderr.read() if process.poll() is not None else 'it did not happen'
        time.sleep(.02)


def says(run: RunDir, text: str) -> bool: return run.log.is_file() and text in run.log.read_text(encoding='utf-8')


def results(run: RunDir) -> dict[str, bytes]:
    "What a choice consists of."
    files = [run.sampled_filenames, run.removed_filenames, run.samples_parquet, run.embeddings_csv, run.state_embeddings]
    return {o.name: o.read_bytes() for o in files}


@pytest.fixture(scope='module')
def work(tmp_path_factory) -> Path: return tmp_path_factory.mktemp('resume')


@pytest.fixture(scope='module')
def words(sample_folder) -> list[str]:
    return [f'input_dir={sample_folder}', 'output_dir=out', 'stopping_condition.n_samples=0.3', 'steps=[embed,select]']


@pytest.fixture(scope='module')
def whole(work, words) -> RunDir:
    code, said = curate(*words, 'run_directory=whole', cwd=work)
    assert code == 0, said
    return RunDir(work/'out'/'whole')


@pytest.mark.parametrize(('number', 'place'), [(signal.SIGTERM, 'clean: started'), (signal.SIGINT, 'embed: started')])
def test_stopped_and_gone_on_with(work, words, whole, number, place):
    "A clean stop: nobody is left behind, the lock is free, the last line goes on."
    run = RunDir(work/'out'/f'stopped-{number}')
    process = start(*words, f'run_directory={run.root.name}', cwd=work)
    wait_for(lambda: says(run, place), process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children, 'the job runs in a process of its own'
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-2:] == ['stopped', f'to go on: lightly-curate resume {run.root}'], said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, 'a child outlived the run'
    assert not run.lock.exists()
    code, said = curate('resume', run.root, cwd='/')
    assert code == 0, said
    assert results(run) == results(whole)


@pytest.mark.slow
def test_the_job_is_killed_and_the_last_line_goes_on(work, words, whole):
    run = RunDir(work/'out'/'job')
    process = start(*words, 'run_directory=job', cwd=work)
    wait_for(lambda: says(run, 'clean: started'), process)
    kernel = next(o for o in psutil.Process(process.pid).children() if 'ipykernel' in ' '.join(o.cmdline()))
    kernel.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and 'ended by the system' in said
    assert said.splitlines()[-1] == f'to go on: lightly-curate resume {run.root}'
    shutil.move(run.root, work/'moved')
    code, said = curate('resume', 'moved', cwd=work)
    assert code == 0, said
    assert results(RunDir(work/'moved')) == results(whole)


def test_a_second_one_is_refused_and_a_dead_one_is_taken_over(work, words, whole):
    run = RunDir(work/'out'/'twice')
    first = start(*words, 'run_directory=twice', cwd=work)
    wait_for(lambda: says(run, 'started'), first)
    config = run.config_yaml.read_bytes()
    for other in ([*words, 'run_directory=twice', 'method=random'], ['resume', run.root]):
        began = time.monotonic()
        code, said = curate(*other, cwd=work)
        assert code == 2 and re.search(rf'twice is being worked on by process {first.pid} on \S+ since [\d-]+ [\d:]+; wait until', said), said
        assert 'to go on' not in said and time.monotonic() - began < 30
    assert run.config_yaml.read_bytes() == config
    assert first.poll() is None, 'it was to be live while the others were refused'
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert run.lock.is_file()
    code, said = curate(*words, 'run_directory=twice', cwd=work)
    assert code == 0, said
    assert says(run, f'took over the lock of process {first.pid}') and not run.lock.exists()
    assert results(run) == results(whole)


@pytest.mark.slow
def test_a_lock_from_elsewhere_is_waited_for(work, whole):
    "Another machine or container cannot be asked; a lock that was not touched for a minute is dead."
    run = RunDir(work/'out'/'whole')
    told = {'host': 'elsewhere', 'place': 'elsewhere', 'since': '2026-01-31 12:00:00', 'token': 'a', 'processes': [[1, 1.]]}
    run.lock.write_text(json.dumps(told))
    os.utime(run.lock, (time.time() - 57, time.time() - 57))
    code, said = curate('resume', run.root, cwd=work)
    assert code == 0 and 'for process 1 on elsewhere since 2026-01-31 12:00:00, which holds' in said, said
    assert says(run, 'took over the lock of process 1 on elsewhere')


@pytest.mark.slow
def test_a_new_choice_is_gone_on_with(work, whole):
    "`select` makes a run as well."
    code, said = curate('select', whole.root, 'n_samples=5', 'run_directory=few', 'steps=[select]', cwd=work)
    assert code == 0, said
    few = RunDir(work/'out'/'few')
    before = few.sampled_filenames.read_bytes()
    for stage in ('embed', 'select', 'deliver'): few.mark(stage).unlink()
    few.sampled_filenames.unlink()
    code, said = curate('resume', few.root, cwd='/')
    assert code == 0, said
    assert few.sampled_filenames.read_bytes() == before


def test_files_that_changed_between_two_starts(tmp_path, sample_folder):
    photos = tmp_path/'photos'
    shutil.copytree(sample_folder, photos)
    words = [f'input_dir={photos}', 'output_dir=out', 'run_directory=r', 'stopping_condition.n_samples=5', 'steps=[embed,select]']
    run = RunDir(tmp_path/'out'/'r')
    code, said = curate(*words, cwd=tmp_path)
    assert code == 0, said
    assert not says(run, 'Since input_dir was scanned')
    for stage in ('clean', 'embed', 'select', 'deliver'): run.mark(stage).unlink()
    names = sorted(o.relative_to(photos).as_posix() for o in photos.rglob('*.jpg'))
    (photos/names[0]).unlink()
    (photos/names[1]).write_bytes((photos/names[2]).read_bytes() + b'more')
    (photos/'new.jpg').write_bytes((photos/names[3]).read_bytes())
    code, said = curate('resume', run.root, cwd=tmp_path)
    assert code == 2 and 'Traceback' not in said
    told = f'1 file is new (new.jpg), 1 file is gone ({names[0]}), 1 file has changed ({names[1]}); put the files back'
    assert told in said and f'lightly-curate resume {run.root} changed_input=keep' in said, said
    code, said = curate('resume', run.root, 'changed_input=keep', cwd=tmp_path)
    assert code == 0, said
    assert {names[0], names[1]} <= set(run.corrupt_filenames.read_text().splitlines())
    lists = [o.read_text().splitlines() for o in (run.sampled_filenames, run.removed_filenames, run.duplicate_filenames, run.corrupt_filenames)]
    assert 'new.jpg' not in sum(lists, [])
    assert says(run, f'Since input_dir was scanned, 1 file is gone ({names[0]}), 1 file has changed ({names[1]}).')
    code, said = curate('resume', run.root, 'method=random', cwd=tmp_path)
    assert code == 2 and 'method=random cannot be used with resume' in said
