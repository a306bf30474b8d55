"The command line from a folder of images to the report, as a user runs it."
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jsonschema import Draft202012Validator
from lightly_curate.core.rundir import RunDir
from lightly_curate.core.samples import check_samples, count_samples, load_samples
from lightly_curate.embed.embedding_csv import read_embeddings, write_embeddings
from lightly_curate.report.report import REPORT_SCHEMA

pytestmark = pytest.mark.smoke
COMMAND = Path(sys.executable).with_name('lightly-curate')
TOKEN = 'k3Yn0tF0rY0urEyes'


def curate(*words, cwd=None, env=None) -> subprocess.CompletedProcess:
    "Run the command line; `words` are what a user types."
    return subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, cwd=cwd, env={**os.environ, **(env or {})})


def finish(*words, **keys) -> RunDir:
    "A run that must end well; its folder is out/r below `cwd` unless the words say otherwise."
    answer = curate(*words, **keys)
    assert answer.returncode == 0, answer.stderr
    root = re.search(r'run folder (.*)', answer.stderr)[1]
    return RunDir(Path(root))


def names(path: Path) -> list[str]: return path.read_text(encoding='utf-8').splitlines()


@pytest.fixture(scope='module')
def work(tmp_path_factory) -> Path: return tmp_path_factory.mktemp('flow')


@pytest.fixture(scope='module')
def run(work, sample_folder) -> RunDir:
    return finish(f'token={TOKEN}', f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=first',
                  'stopping_condition.n_samples=0.3', 'dump_dataset=True', 'output_image_size=64', cwd=work)


def all_distances(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return np.linalg.norm(x[:, None] - x[None], axis=-1)[np.triu_indices(len(x), 1)]


DOCUMENTED = """config/config.yaml config/hydra.yaml config/overrides.yaml data/corruptness_check_information.json data/embeddings.csv data/normalized_embeddings.csv
data/selected_embeddings.csv data/selection_curve.csv data/samples.parquet data/maps.parquet filenames/corrupt_filenames.txt filenames/duplicate_filenames.txt
filenames/removed_filenames.txt filenames/sampled_filenames.txt jobs/curate.ipynb jobs/report.ipynb log.txt removed_samples.csv
explore.html manifest.json report.html report.json report.pdf plots/distance_distr_after.png plots/distance_distr_before.png plots/nearest_distr.png
plots/selection_curve.png plots/scatter_pca.png plots/counts.png plots/distance_distr.png plots/contact_sheet.png plots/duplicate_groups.png
plots/scatter_pca_no_overlay.png plots/scatter_pca_pictures.png plots/scatter_umap_k_15_pictures.png""".split()
DOCUMENTED += [f'plots/scatter_umap_k_{k}{o}.png' for k in (5, 15, 50) for o in ('', '_no_overlay')]


def test_tree_is_the_documented_one(run):
    pairs = [o['plot'] for o in json.loads(run.report_json.read_text())['examples']]
    assert 1 <= len(pairs) <= 6
    assert all(re.fullmatch(r'plots/filter_decision_\d+\.png', o) for o in pairs), pairs
    found = {o.relative_to(run.root).as_posix() for o in run.root.rglob('*') if o.is_file()}
    found = {o for o in found if not o.startswith(('.lightly_curate/', 'data/sampled/'))}
    assert found == {*DOCUMENTED, *pairs}


def test_report_keeps_the_standards(run):
    "PDF/A-3a and PDF/UA-1: to be read in thirty years, and aloud."
    pdf = run.report_pdf.read_bytes()
    assert b'pdfaid:part>3<' in pdf and b'pdfuaid:part>1<' in pdf


def test_counts_agree_in_all_files(run, sample_folder):
    samples = load_samples(run.samples_parquet)
    counts = count_samples(samples)
    assert counts['input'] == sum(o.is_file() for o in sample_folder.rglob('*'))
    assert counts['corrupt'] >= 1 and counts['duplicate'] >= 2, counts
    lists = {o: names(getattr(run, f'{o}_filenames')) for o in ('sampled', 'removed', 'duplicate', 'corrupt')}
    assert {o: len(v) for o, v in lists.items()} == {o: counts[o] for o in lists}
    assert sorted(sum(lists.values(), [])) == sorted(samples['filename'])
    assert json.loads(run.report_json.read_text())['counts'] == counts
    for path, n in [(run.embeddings_csv, 'available'), (run.normalized_embeddings_csv, 'available'), (run.selected_embeddings_csv, 'sampled')]:
        assert len(read_embeddings(path).filenames) == counts[n], path
    assert read_embeddings(run.selected_embeddings_csv).filenames == lists['sampled']
    assert len(pd.read_csv(run.removed_samples_csv)) == counts['input'] - counts['sampled']
    assert sum(o.is_file() for o in run.sampled.rglob('*')) == counts['sampled']


def test_choice_is_the_greedy_one(run):
    "The order of choice, checked by a plain loop over the vectors in the CSV."
    table = read_embeddings(run.normalized_embeddings_csv)
    x = table.emb.astype(np.float64)
    chosen = [0]
    while len(chosen) < len(names(run.sampled_filenames)):
        nearest = np.linalg.norm(x[:, None] - x[chosen][None], axis=-1).min(axis=1)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    assert [table.filenames[o] for o in chosen] == names(run.sampled_filenames)


def test_report_has_the_published_shape(run):
    report = json.loads(run.report_json.read_text())
    Draft202012Validator(REPORT_SCHEMA).validate(report)
    assert report['stopping']['ended_by'] == 'n_samples'
    assert report['weights']['name'] == 'builtin' and len(report['weights']['sha256']) == 64
    assert all((run.root/o['file']).is_file() for o in report['plots'])
    assert run.report_pdf.read_bytes().startswith(b'%PDF')


def test_token_is_nowhere(run):
    for path in run.root.rglob('*'):
        if path.is_file(): assert TOKEN.encode() not in path.read_bytes(), path


def test_the_same_run_twice_is_the_same(run, work, sample_folder):
    again = finish(f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=again',
                   'stopping_condition.n_samples=0.3', 'dump_dataset=True', 'output_image_size=64', cwd=work)
    differing = []
    for path in sorted(o for o in run.root.rglob('*') if o.is_file()):
        name = path.relative_to(run.root)
        if name.parts[0] in ('config', 'jobs', '.lightly_curate') or name.name.startswith(('report.', 'log.', 'manifest.')): continue
        if path.read_bytes() != (again.root/name).read_bytes(): differing.append(str(name))
    assert not differing
    first, second = (json.loads(o.report_json.read_text()) for o in (run, again))
    for report in (first, second): del report['job']
    assert first == second


def test_finished_run_is_not_done_again(run, work, sample_folder):
    before = {o: o.stat().st_mtime_ns for o in run.root.rglob('*') if o.is_file() and o.parent.name in ('data', 'filenames', 'plots', 'first')}
    finish(f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=first', 'stopping_condition.n_samples=0.3',
           'dump_dataset=True', 'output_image_size=64', cwd=work)
    changed = {o.name for o, t in before.items() if o.stat().st_mtime_ns != t}
    assert changed == {'log.txt'}


def test_other_request_in_the_same_folder_is_refused(run, work, sample_folder):
    answer = curate(f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=first', 'stopping_condition.n_samples=0.2', cwd=work)
    assert answer.returncode == 2
    assert 'stopping_condition.n_samples was 0.3 and is now 0.2' in answer.stderr
    assert 'n_samples: 0.3' in run.config_yaml.read_text()


@pytest.mark.slow
def test_steps_one_by_one(run, work, sample_folder):
    words = [f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=steps', 'stopping_condition.n_samples=0.3']
    finish(*words, 'steps=[embed]', cwd=work)
    finish(*words, 'steps=[select]', cwd=work)
    steps = finish(*words, 'steps=[report]', cwd=work)
    assert names(steps.sampled_filenames) == names(run.sampled_filenames)
    assert steps.report_pdf.is_file()


def shuffle_lines(source: Path, target: Path) -> None:
    "The same table of embeddings with its rows in another order: nothing may depend on it."
    head, *rows = source.read_bytes().splitlines(keepends=True)
    order = np.random.default_rng(0).permutation(len(rows))
    target.write_bytes(head + b''.join(rows[i] for i in order))


@pytest.mark.parametrize('form', ['csv', 'parquet', 'npy'])
def test_embeddings_from_a_file(run, work, sample_folder, form):
    "The same vectors, given, lead to the same choice without a look at the images."
    shared = work/'shared'
    shared.mkdir(exist_ok=True)
    images = work/'available'
    table = read_embeddings(run.embeddings_csv)
    if form == 'csv': shuffle_lines(run.embeddings_csv, shared/'given.csv')
    if form == 'parquet': pd.read_csv(run.embeddings_csv).to_parquet(shared/'given.parquet')
    if form == 'npy':
        np.save(shared/'given.npy', table.emb)
        for name in table.filenames:
            (images/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(sample_folder/name, images/name)
    steps = [] if form == 'csv' else ['steps=[select]']
    given = finish(f'input_dir={images if form == "npy" else "none"}', f'shared_dir={shared}', 'output_dir=out', f'run_directory={form}',
                   f'embeddings=given.{form}', 'stopping_condition.n_samples=0.3', 'enable_corruptness_check=False', *steps, cwd=work)
    assert names(given.sampled_filenames) == names(run.sampled_filenames)
    if form == 'csv':
        report = json.loads(given.report_json.read_text())
        assert 'given.csv' in report['weights']['origin'] and report['job']['source'] == 'embeddings'
        assert given.embeddings_csv.read_bytes() == run.embeddings_csv.read_bytes(), 'names, vectors and labels, in table order again'
        before, after = (report['distances'][o]['histogram']['edges'] for o in ('before', 'after'))
        assert before == after
        assert all(o['plot'] is None for o in report['examples']) and any('no picture' in o for o in report['notices'])


def test_minimum_distance_and_neither(run, work, sample_folder):
    shared = work/'shared'
    shared.mkdir(exist_ok=True)
    shutil.copy(run.embeddings_csv, shared/'given.csv')
    words = [f'shared_dir={shared}', 'output_dir=out', 'embeddings=given.csv', 'steps=[select]']
    table = read_embeddings(run.normalized_embeddings_csv)
    smallest = float(np.quantile(all_distances(table.emb), .3).round(3))
    far = finish(*words, 'run_directory=far', f'stopping_condition.min_distance={smallest}', cwd=work)
    chosen = [table.filenames.index(o) for o in names(far.sampled_filenames)]
    assert 2 <= len(chosen) < len(table.filenames)
    assert all_distances(table.emb[chosen]).min() >= smallest
    others = np.setdiff1d(np.arange(len(table.filenames)), chosen)
    reach = np.linalg.norm(table.emb[others][:, None] - table.emb[chosen][None], axis=-1).min(axis=1)
    assert reach.max() < smallest, 'more would have been allowed'
    everything = finish(*words, 'run_directory=all', cwd=work)
    assert sorted(names(everything.sampled_filenames)) == sorted(read_embeddings(run.embeddings_csv).filenames)
    assert 'No stopping condition is set' in everything.log.read_text()


def test_faults_are_told_at_once_and_together(work):
    answer = curate('n_sample=3', 'metod=random', 'stopping_condition.min_distance=3', 'input_dir=no/such', 'output_dir=out', cwd=work)
    assert answer.returncode == 2
    assert answer.stderr.count('error: ') == 4, answer.stderr
    assert 'did you mean stopping_condition.n_samples?' in answer.stderr
    assert 'Traceback' not in answer.stderr


def test_empty_folder_is_a_request_that_cannot_be_met(work):
    (work/'empty').mkdir()
    answer = curate(f'input_dir={work/"empty"}', 'output_dir=out', 'run_directory=empty', cwd=work)
    assert answer.returncode == 2
    assert 'Traceback' not in answer.stderr and 'error: ' in answer.stderr


def test_broken_job_is_our_fault(work, sample_folder, monkeypatch):
    "A fault of the program: exit 1 and the place of the traceback."
    answer = curate(f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=broken', cwd=work, env={'PYTHONPATH': str(break_stage(work))})
    assert answer.returncode == 1
    assert 'jobs/curate.ipynb' in answer.stderr


def break_stage(work: Path) -> Path:
    "A folder that, on the path of Python, makes every selection fail with a bug."
    folder = work/'bug'
    folder.mkdir(exist_ok=True)
    (folder/'sitecustomize.py').write_text('import pandas\npandas.DataFrame.to_parquet = lambda *a, **k: 1/0\n')
    return folder


def test_what_the_manual_prints(work):
    "Literals of the original's manual, pasted."
    for words in (['stopping_condition.n_samples=1.'], ["stopping_condition.n_samples=50'000"], ['output_image_format=’jpg’'],
                  ['lightly.loader.num_workers=8'], ['lightly.loader.batch_size=512']):
        answer = curate(*words, 'input_dir=no/such', 'output_dir=out', cwd=work)
        assert answer.stderr.count('error: ') == 1 and 'input_dir' in answer.stderr, answer.stderr


@pytest.mark.parametrize('name', ['/etc/passwd', '../up.jpg', 'a/../../up.jpg', 'two\nlines.jpg'])
def test_names_from_a_file_stay_below_the_folders(run, work, sample_folder, name):
    shared = work/'evil'
    shared.mkdir(exist_ok=True)
    with (shared/'given.csv').open('w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([['filenames', 'embedding_0', 'labels'], [name, 1, 0]])
    answer = curate(f'input_dir={sample_folder}', f'shared_dir={shared}', 'output_dir=out', 'run_directory=evil', 'embeddings=given.csv',
                    'steps=[select]', 'dump_dataset=True', cwd=work)
    assert answer.returncode == 2, answer.stderr
    assert 'allowed is a path below input_dir' in answer.stderr


def test_dump_of_images_that_are_not_there_is_refused(run, work):
    shutil.copy(run.embeddings_csv, work/'shared'/'there.csv')
    (work/'nothing').mkdir()
    answer = curate(f'input_dir={work/"nothing"}', f'shared_dir={work/"shared"}', 'output_dir=out', 'run_directory=gone', 'embeddings=there.csv',
                    'steps=[select]', 'dump_dataset=True', cwd=work)
    assert answer.returncode == 2 and 'have no image in input_dir' in answer.stderr


@pytest.mark.slow
def test_a_lost_result_is_made_again(run, work, sample_folder):
    before, page = run.sampled_filenames.read_bytes(), run.report_pdf.stat().st_mtime_ns
    for lost in (run.sampled_filenames, run.report_json): lost.unlink()
    finish(f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=first', 'stopping_condition.n_samples=0.3',
           'dump_dataset=True', 'output_image_size=64', cwd=work)
    assert run.sampled_filenames.read_bytes() == before
    assert run.report_json.is_file()
    assert run.report_pdf.stat().st_mtime_ns != page, 'the page shows the new report.json, not the lost one'


def test_killed_and_started_again(run, work, sample_folder):
    "SIGKILL of the whole group while it works; the same command then ends as if nothing had happened."
    words = [COMMAND, f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=killed', 'stopping_condition.n_samples=0.3', 'steps=[embed,select]']
    process = subprocess.Popen(words, cwd=work, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    marks = work/'out'/'killed'/'.lightly_curate'/'stages'
    deadline = time.monotonic() + 60
    while not (marks/'scan.json').exists() and time.monotonic() < deadline: time.sleep(.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (work/'out'/'killed'/'filenames').exists(), 'it was to be killed before it had finished'
    killed = finish(*words[1:], cwd=work)
    for path in (run.sampled_filenames, run.samples_parquet, run.embeddings_csv):
        assert path.read_bytes() == (killed.root/path.relative_to(run.root)).read_bytes(), path


def test_stopped_by_sigterm(work, sample_folder):
    "`docker stop`: exit 130, one sentence, no job left behind."
    process = subprocess.Popen([COMMAND, f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=stopped', 'steps=[embed]'], cwd=work,
                               stderr=subprocess.PIPE, text=True)
    while 'starting' not in process.stderr.readline(): pass
    time.sleep(1.5)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith('to go on: lightly-curate resume ') and 'Traceback' not in said, said


def test_two_runs_at_once_in_one_working_directory(work, sample_folder):
    words = [COMMAND, f'input_dir={sample_folder}', 'output_dir=out', 'steps=[embed]']
    both = [subprocess.Popen([*words, f'run_directory=twin{i}'], cwd=work, stderr=subprocess.PIPE, text=True) for i in range(2)]
    for process in both:
        said = process.communicate()[1]
        assert process.returncode == 0, said
    assert not list(work.glob('kernel-ipc*'))


def test_sanity_check(work):
    answer = curate('sanity_check=True', cwd=work)
    assert answer.returncode == 0, answer.stdout
    assert 'Everything a run needs works.' in answer.stdout


@pytest.mark.slow
def test_multirun(work, sample_folder):
    words = [f'input_dir={sample_folder}', 'output_dir=many', 'steps=[embed,select]', 'run_directory=n${stopping_condition.n_samples}']
    answer = curate('--multirun', *words, 'stopping_condition.n_samples=2,3', cwd=work)
    assert answer.returncode == 0, answer.stderr
    assert [len(names(RunDir(work/'many'/f'n{n}').sampled_filenames)) for n in (2, 3)] == [2, 3]
    answer = curate('--multirun', *words, 'stopping_condition.n_samples=2,4', 'lightly.seed=7', 'method=random', cwd=work)
    assert answer.returncode == 2, 'n2 holds another selection'
    assert len(names(RunDir(work/'many'/'n4').sampled_filenames)) == 4, 'the other run is done all the same'


def test_removed_samples_say_what_stands_for_them(run):
    samples = check_samples(load_samples(run.samples_parquet))
    with run.removed_samples_csv.open(newline='', encoding='utf-8') as file: rows = {o['filename']: o for o in csv.DictReader(file)}
    for _, sample in samples[(samples['status'] == 'ok') & ~samples['selected']].iterrows():
        row = rows[sample['filename']]
        assert row['step'] == 'removed'
        assert row['kept_instead'] == samples.loc[sample['nearest_selected'], 'filename']
        assert float(row['distance']) == pytest.approx(sample['nearest_distance'])


def write_marked(path: Path, n: int, masked=(), selected=()) -> np.ndarray:
    "A file of n embeddings of the plane with the columns masked and selected, as a person edits one; (n, 2) float32."
    x = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    with path.open('w', newline='', encoding='utf-8') as file:
        rows = [[f'{i:03}.jpg', *x[i], int(i in masked), int(i in selected), 0] for i in range(n)]
        csv.writer(file).writerows([['filenames', 'embedding_0', 'embedding_1', 'masked', 'selected', 'labels'], *rows])
    return x


def plain_greedy(x: np.ndarray, chosen: list[int], n: int) -> list[int]:
    "Farthest first, the plain way, from rows chosen before to n rows in all."
    x = x.astype(np.float64)
    while len(chosen) < n:
        nearest = np.linalg.norm(x[:, None] - x[chosen][None], axis=-1).min(axis=1)
        nearest[chosen] = -1
        chosen = [*chosen, int(nearest.argmax())]
    return chosen


def test_what_was_selected_before_counts(work):
    "The example of the original's manual: 100 rows, 60 pre-selected, target 50: nothing is added."
    shared = work/'marked'
    shared.mkdir()
    before = list(range(20, 80))
    x = write_marked(shared/'given.csv', 100, selected=before)
    words = [f'shared_dir={shared}', 'output_dir=out', 'embeddings=given.csv', 'steps=[select]', 'normalize_embeddings=False']
    met = finish(*words, 'run_directory=met', 'stopping_condition.n_samples=50', cwd=work)
    assert names(met.sampled_filenames) == [f'{i:03}.jpg' for i in before]
    assert len(names(met.removed_filenames)) == 40
    more = RunDir(work/'out'/'more')
    finish('select', met.root, 'n_samples=65', 'run_directory=more', 'steps=[select]', cwd=work)
    assert names(more.sampled_filenames) == [f'{i:03}.jpg' for i in plain_greedy(x, before, 65)]


def test_masked_samples_have_no_influence(work, tmp_path):
    "With rows masked the choice is that among the others alone."
    masked = list(range(0, 100, 3))
    x = write_marked(tmp_path/'given.csv', 100, masked=masked)
    others = np.setdiff1d(np.arange(100), masked)
    write_embeddings(tmp_path/'others.csv', [f'{i:03}.jpg' for i in others], x[others], [0]*len(others))
    for name in ('given', 'others'): choose_in_process(tmp_path, f'{name}.csv', name, 'stopping_condition.n_samples=0.5')
    given, alone = (RunDir(tmp_path/o) for o in ('given', 'others'))
    assert names(given.sampled_filenames) == names(alone.sampled_filenames)
    assert len(names(given.sampled_filenames)) == len(others)/2
    removed = pd.read_csv(given.removed_samples_csv)
    assert removed.loc[removed['step'] == 'masked', 'filename'].tolist() == [f'{i:03}.jpg' for i in masked]
    assert not set(names(given.removed_filenames)) & {f'{i:03}.jpg' for i in masked}


def choose_in_process(folder: Path, embeddings: str, name: str, *words) -> pd.DataFrame:
    "Select from a file of embeddings of a folder into folder/name, without a process of its own."
    from lightly_curate.run.pipeline import curate as carry_out
    from lightly_curate.run.start import open_run
    keys = [f'shared_dir={folder}', f'output_dir={folder}', f'embeddings={embeddings}', f'run_directory={name}', 'steps=[select]',
            'normalize_embeddings=False']
    return carry_out(open_run(overrides=[*keys, *words]))


@pytest.mark.parametrize('method', ['coreset', 'threshold_cover', 'typical', 'random'])
def test_stops_when_everything_is_covered(tmp_path, method):
    x = write_marked(tmp_path/'given.csv', 200)
    samples = choose_in_process(tmp_path, 'given.csv', 'r', f'method={method}', 'stopping_condition.coverage_distance=0.6')
    chosen = np.flatnonzero(samples['selected'])
    reach = np.linalg.norm(x[:, None] - x[chosen], axis=2).min(axis=1)
    assert reach.max() <= .6 and 2 <= len(chosen) < 200
    assert 'ended by coverage_distance' in (tmp_path/'r'/'log.txt').read_text()
    last = int(samples['rank'].idxmax())
    without = np.linalg.norm(x[:, None] - x[np.setdiff1d(chosen, last)], axis=2).min(axis=1)
    assert without.max() > .6, 'one sample fewer would not have been enough'


@pytest.mark.slow
def test_choose_again_from_images(run, work):
    "lightly-curate select RUN: the first of the ranking, in a folder beside RUN, from the same vectors, with a report."
    again = finish('select', 'out/first', 'n_samples=7', cwd=work)
    assert again.root == work/'out'/'first-select-n_samples-7'
    assert names(again.sampled_filenames) == names(run.sampled_filenames)[:7]
    assert again.state_embeddings.samefile(run.state_embeddings)
    assert not again.sampled.exists(), 'images are dumped only when asked for again'
    log = again.log.read_text()
    assert all(f'{o}: started' not in log for o in ('scan', 'clean', 'embed')) and 'select: started' in log
    report = json.loads(again.report_json.read_text())
    assert report['counts']['sampled'] == 7 and report['job']['source'] == 'images'
    assert any('Chosen again from the vectors of the run' in o for o in report['notices'])
    assert any(o['plot'] for o in report['examples']), 'the pictures are still found'
    assert len(names(run.sampled_filenames)) > 7 and load_samples(run.samples_parquet)['selected'].sum() > 7


def test_choose_again_by_other_means(run, work):
    "Keys of earlier steps, other faults, and a run that has not come to vectors are refused, all at once."
    answer = curate('select', 'out/first', 'input_dir=x', 'checkpoint=y', 'n_sampels=3', cwd=work)
    assert answer.returncode == 2 and answer.stderr.count('error: ') == 3, answer.stderr
    assert 'did you mean stopping_condition.n_samples?' in answer.stderr
    answer = curate('select', work, 'n_samples=3', cwd=work)
    assert answer.returncode == 2 and 'is no folder of a run' in answer.stderr
    answer = curate('n_samples=3', 'input_dir=x', cwd=work)
    assert answer.returncode == 2 and 'n_samples is no known key' in answer.stderr, 'short names are for select RUN alone'


@pytest.mark.slow
def test_two_runs_with_a_datapool(run, work, sample_folder):
    "The second run adds to what the first one chose, and its report tells of both."
    shared = work/'pools'
    shared.mkdir()
    pooled = ['datapool.name=pool', f'shared_dir={shared}', 'n_samples=5']
    first = finish('select', run.root, *pooled, 'run_directory=monday', 'steps=[select]', cwd=work)
    second = finish('select', run.root, *pooled, 'run_directory=tuesday', cwd=work)
    chosen = [names(o.sampled_filenames) for o in (first, second)]
    assert [*chosen[0], *chosen[1]] == names(run.sampled_filenames)[:10], 'members steer the choice as if just chosen'
    assert read_embeddings(shared/'pool'/'datapool_latest.csv').filenames == [*chosen[0], *chosen[1]]
    counts = count_samples(load_samples(second.samples_parquet))
    assert (counts['member'], counts['sampled']) == (5, 5)
    report = json.loads(second.report_json.read_text())
    assert report['counts'] == counts
    told = report['datapool']
    assert (told['name'], told['members_before'], told['new'], told['members_after']) == ('pool', 5, 5, 10)
    finish('select', run.root, *pooled, 'run_directory=tuesday', cwd=work)
    assert len(read_embeddings(shared/'pool'/'datapool_latest.csv').filenames) == 10
    smaller = finish('select', second.root, 'n_samples=3', 'steps=[select]', cwd=work)
    assert names(smaller.sampled_filenames) == chosen[1][:3], 'the same choice against the pool as it was on tuesday'
    assert count_samples(load_samples(smaller.samples_parquet))['member'] == 5
    assert len(read_embeddings(shared/'pool'/'datapool_latest.csv').filenames) == 10, 'nothing is added'


def test_nothing_new_is_needed(tmp_path):
    "A pool that covers everything: an empty choice, and a run that ends well."
    write_marked(tmp_path/'given.csv', 50)
    choose_in_process(tmp_path, 'given.csv', 'first', 'datapool.name=pool', 'stopping_condition.coverage_distance=0.5')
    samples = choose_in_process(tmp_path, 'given.csv', 'second', 'datapool.name=pool', 'stopping_condition.coverage_distance=0.5')
    counts = count_samples(samples)
    assert counts['sampled'] == 0 and counts['removed'] == counts['available'] > 0
    assert names(RunDir(tmp_path/'second').sampled_filenames) == []


def test_checkpoint_of_the_datapool_is_used_again(tmp_path, sample_folder):
    "The first run names a checkpoint, the second does not: its vectors come from the same weights. Built-in ones are refused."
    from lightly_curate.core.errors import EmbeddingsError
    from lightly_curate.run.pipeline import curate as carry_out
    from lightly_curate.run.start import open_run
    from test_backbone import save_lightly_checkpoint
    for i, path in enumerate(sorted(o for o in sample_folder.rglob('*.jpg'))[:12]):
        (tmp_path/f'photos{i % 2}').mkdir(exist_ok=True)
        shutil.copy(path, tmp_path/f'photos{i % 2}'/f'{i}.jpg')
    save_lightly_checkpoint(tmp_path/'mine.ckpt', 'resnet-9', .125, 8)
    def add(i, *words):
        keys = [f'input_dir={tmp_path}/photos{i}', f'shared_dir={tmp_path}', f'output_dir={tmp_path}/out', 'stopping_condition.n_samples=2',
                'datapool.name=pool', 'lightly.collate.input_size=32', 'steps=[embed,select]', 'lightly.loader.num_workers=1']
        run = open_run(overrides=[*keys, *words])
        carry_out(run)
        return json.loads(run.dir.mark('embed').read_text())['result']['weights']
    first = add(0, 'checkpoint=mine.ckpt', 'run_directory=a')
    (tmp_path/'mine.ckpt').unlink()
    second = add(1, 'run_directory=b')
    assert second['sha256'] == first['sha256'] and second['n_features'] == 8
    assert len(read_embeddings(tmp_path/'pool'/'datapool_latest.csv').filenames) == 4
    save_lightly_checkpoint(tmp_path/'other.ckpt', 'resnet-9', .25, 8)
    with pytest.raises(EmbeddingsError): add(1, 'checkpoint=other.ckpt', 'run_directory=c')
    assert not RunDir(tmp_path/'out'/'c').embeddings_csv.exists(), 'refused before an image was read'
