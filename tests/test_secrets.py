"A token is in no file, line, notebook, process or error, however it was given."
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from lightly_curate.core.config import without_token
from lightly_curate.core.rundir import RunDir
from lightly_curate.data.sample_data import make_sample_data

pytestmark = pytest.mark.smoke
COMMAND = Path(sys.executable).with_name('lightly-curate')
SECRET = 'k3Yn0tF0rY0urEyes'
SIGNED = f'https://me:{SECRET}@bucket.host/photos?X-Amz-Signature={SECRET}&x=1'


def seen_in(process: psutil.Process) -> list[str]:
    "Where the secret stands in the processes below one, which itself was given it."
    found, own = [], Path(f'/proc/{process.pid}/cmdline').read_bytes()
    for child in process.children(recursive=True):
        for what in ('cmdline', 'environ'):
            try: data = Path(f'/proc/{child.pid}/{what}').read_bytes()
            except OSError: continue  # it has ended
            if data == own: break  # forked, and not yet the program that it is to be
            if SECRET.encode() in data: found.append(f'{what} of {data[:200]!r}')
    return found


def run(work: Path, *words: str, code: int = 0) -> str:
    "Run the command line where the secret is in the environment and among the words; what it said. Its processes are looked at all the while."
    environment = {**os.environ, 'LIGHTLY_TOKEN': SECRET, 'HOME': str(work/'home'), 'TMPDIR': str(work/'tmp'), 'OMP_NUM_THREADS': '1'}
    with subprocess.Popen([COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=work, env=environment) as process:
        found, watched = [], psutil.Process(process.pid)
        while process.poll() is None:
            found += seen_in(watched) if time.sleep(.05) is None and watched.is_running() else []
        said = process.stdout.read()
    assert process.returncode == code, said
    assert not found and SECRET not in said, (found, said)
    return said


def check_files(work: Path) -> None:
    files = [o for o in work.rglob('*') if o.is_file() and not o.is_symlink()]
    assert len(files) > 10
    for path in files: assert SECRET.encode() not in path.read_bytes() and SECRET not in path.name, path


@pytest.fixture(scope='module')
def work(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp('secrets')
    make_sample_data(work/'in', n_images=20)
    for name in ('home', 'tmp'): (work/name).mkdir()
    run(work, f'token={SECRET}', 'input_dir=in', 'output_dir=out', 'run_directory=r', 'stopping_condition.n_samples=5', 'n_example_images=2', f'+lightly.token={SECRET}')
    return work


def test_a_whole_run(work):
    assert RunDir(work/'out/r').report_pdf.is_file()
    check_files(work)


@pytest.mark.slow
def test_what_comes_after(work):
    "Chosen again, gone on with, rendered again, and several runs at once."
    run(work, 'select', 'out/r', f'token={SECRET}', 'n_samples=3', 'steps=[select]')
    run(work, 'input_dir=in', 'output_dir=out', 'run_directory=r', 'stopping_condition.n_samples=5', 'n_example_images=2', '--token', SECRET)
    run(work, '--multirun', f'token={SECRET},b', 'input_dir=in', 'output_dir=out', 'run_directory=m-${lightly.seed}', 'lightly.seed=1,2', 'steps=[embed]')
    check_files(work)


def test_errors(work):
    "Requests that are refused, by words, by files, and in the job."
    for words in (('tokken=1', f'token={SECRET}'), (f'+lightly.a={{token: {SECRET}}}', 'nothing=1'), (f'TOKEN={SECRET}', 'input_dir=none'),
                  (f'input_dir={SIGNED}',), ('input_dir=in', f'checkpoint={SIGNED}'), ('select', SIGNED, f'token={SECRET}')):
        run(work, *words, 'output_dir=out', code=2)
    (work/'net.py').write_text('raise RuntimeError("broken on purpose")\n')
    run(work, f'token={SECRET}', 'input_dir=in', 'output_dir=out', 'shared_dir=.', 'run_directory=e', 'lightly.model.name=net.py:Net', 'steps=[embed]', code=2)
    check_files(work)


@pytest.mark.parametrize('word', [f'token={SECRET}', f'TOKEN = {SECRET}', f'++token={SECRET}', f"'token={SECRET}'", f'--token={SECRET}', f'+lightly.token={SECRET}', f'LIGHTLY_TOKEN={SECRET}',
                                  f'api_token={SECRET}', f'+lightly={{token: {SECRET}}}', f'+lightly.a={{b: {{token: {SECRET}}}}}', f'token:{SECRET}'])
def test_every_way_to_write_it(word):
    assert without_token(['method=random', word]) == ['method=random']
