"The command line where the caller has closed a stream, gone away, or removed the folder it stands in."
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name('lightly-curate')


def shell(line: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(['bash', '-c', line, 'bash', str(COMMAND)], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize('words', ['--help', '--version'])
@pytest.mark.parametrize('streams', ['>&-', '>&- 2>&-', '<&- >&- 2>&-', '| true'])
def test_nobody_listens(tmp_path, words, streams):
    done = shell(f'set -o pipefail; "$1" {words} {streams}', tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('words', ['input_dir=. output_dir=out', 'plan input_dir=.', 'verify run'])
def test_removed_folder(tmp_path, words):
    (tmp_path/'gone').mkdir()
    done = shell(f'cd gone && rmdir ../gone && "$1" {words}', tmp_path)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'error: the current folder has been removed; change to one that is there (cd), and start again\n'


def test_refusal_without_streams(tmp_path):
    "An empty input is refused with the same code when nobody can be told."
    (tmp_path/'in').mkdir()
    done = shell('"$1" input_dir=in output_dir=out >&- 2>&-', tmp_path)
    assert done.returncode == 2
