"The job notebooks, started by hand with papermill, without the command line."
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from lightly_curate.core.rundir import RunDir
from test_flow import names

pytestmark = pytest.mark.smoke
BIN = Path(sys.executable).parent


def papermill(root: Path, job: str, cwd: Path, **parameters) -> subprocess.CompletedProcess:
    "papermill nbs/jobs/JOB.ipynb JOB-done.ipynb -p name value ..."
    words = [word for name, value in parameters.items() for word in ('-p', name, str(value))]
    return subprocess.run([BIN/'papermill', root/'nbs'/'jobs'/f'{job}.ipynb', f'{job}-done.ipynb', '-k', 'python3', *words],
                          capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize('job', ['curate', 'train', 'embed', 'select', 'report', 'compare'])
def test_papermill_sees_every_parameter(root, job):
    "It overlooks a line with a second equal sign, also in the comment, and then nobody can set that parameter."
    from papermill import inspect_notebook
    path = root/'nbs'/'jobs'/f'{job}.ipynb'
    cell = next(o for o in nbformat.read(path, as_version=4).cells if 'parameters' in o.metadata.get('tags', []))
    assert list(inspect_notebook(str(path))) == [o.partition(':')[0] for o in cell.source.splitlines()]


STARTS = """
import sys
from lightly_curate.run.jobs import check_parameters, job_path
check_parameters(job_path('curate'), {'run_dir': ''})
print(sorted({'rfc3987_syntax', 'boto3', 'botocore', 'gcsfs', 'github', 'pyarrow', 'pandas', 'torch'} & set(sys.modules)))
import pyarrow
"""


def test_starting_a_job_loads_nothing_in_vain():
    "Seconds of every run; what was left out can be imported afterwards."
    answer = subprocess.run([sys.executable, '-c', STARTS], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout.strip()) == (0, '[]'), answer.stderr


def test_embed_then_select_then_report_by_hand(root, sample_folder, tmp_path):
    answer = papermill(root, 'embed', tmp_path, input_dir=sample_folder, output_dir='out', run_directory='r')
    assert answer.returncode == 0, answer.stderr
    run = RunDir(tmp_path/'out'/'r')
    n = len(run.embeddings_csv.read_text(encoding='utf-8').splitlines()) - 1
    answer = papermill(root, 'select', tmp_path, input_dir=sample_folder, output_dir='out', run_directory='r', n_samples=5)
    assert answer.returncode == 0, answer.stderr
    assert len(names(run.sampled_filenames)) == 5
    assert n == len(names(run.sampled_filenames)) + len(names(run.removed_filenames))
    answer = papermill(root, 'report', tmp_path, run_dir=run.root)
    assert answer.returncode != 0 and 'run the report step' in answer.stderr, 'there is no report.json yet'


def test_curate_by_hand(root, sample_folder, tmp_path):
    answer = papermill(root, 'curate', tmp_path, input_dir=sample_folder, output_dir='out', run_directory='r', n_samples=0.5)
    assert answer.returncode == 0, answer.stderr
    run = RunDir(tmp_path/'out'/'r')
    counts = json.loads(run.report_json.read_text())['counts']
    assert abs(counts['sampled'] - .5*counts['available']) <= .5
    answer = papermill(root, 'report', tmp_path, run_dir=run.root)
    assert answer.returncode == 0, answer.stderr
    done = tmp_path/'report-done.ipynb'
    answer = subprocess.run([BIN/'jupyter', 'nbconvert', '--to', 'lightly-pdf', '--no-input', done], capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert done.with_suffix('.pdf').read_bytes().startswith(b'%PDF')


def test_a_wrong_request_by_hand_fails_in_its_cell(root, tmp_path):
    answer = papermill(root, 'curate', tmp_path, input_dir='no/such', method='corset')
    assert answer.returncode != 0
    for part in ("did you mean 'coreset'?", "input_dir is 'no/such'"): assert part in answer.stderr
    assert nbformat.read(tmp_path/'curate-done.ipynb', 4).metadata.papermill.exception
