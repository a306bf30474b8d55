"Two finished runs compared, and the report of a run rendered again."
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lightly_curate.core.config import compose_config, config_yaml
from lightly_curate.core.errors import CurateError
from lightly_curate.core.rundir import RunDir
from lightly_curate.core.samples import load_samples, make_samples, result_order, save_samples, with_columns
from lightly_curate.data.sample_data import make_video
from lightly_curate.report.comparison import COMPARISON_SCHEMA, read_side
from lightly_curate.report.report import validate_report
from lightly_curate.run.compare import compare_runs, comparison_text, make_comparison, sentences
from lightly_curate.run.pipeline import curate as carry_out
from lightly_curate.run.start import open_run, recut

BIN = Path(sys.executable).parent


def command(*words, cwd=None) -> subprocess.CompletedProcess:
    "What a user types."
    return subprocess.run([BIN/'lightly-curate', *map(str, words)], capture_output=True, text=True, cwd=cwd)


def tree(folder: Path) -> dict[str, bytes]:
    "Every file of a folder with its contents."
    return {o.relative_to(folder).as_posix(): o.read_bytes() for o in sorted(folder.rglob('*')) if o.is_file()}


def page_of(html: bytes) -> bytes:
    "A page without the number that papermill draws for the cell with the parameters."
    return re.sub(rb'cell-id=\w+', b'', html)


def run_of(root: Path, names, emb, chosen, method='coreset', normalized=False, **columns) -> RunDir:
    "A made run folder: what a comparison reads, `chosen` are names in order of choice."
    run, samples = RunDir(root), make_samples(names)
    samples = with_columns(samples, samples.index, **columns) if columns else samples
    row = dict(zip(samples['filename'], samples.index, strict=True))
    samples = with_columns(samples, [row[o] for o in chosen], selected=True, rank=range(len(chosen)))
    run.config.mkdir(parents=True)
    run.state.mkdir()
    run.config_yaml.write_text(config_yaml(compose_config([f'method={method}', f'normalize_embeddings={normalized}'])))
    save_samples(samples, run.samples_parquet)
    order = [list(names).index(o) for o in samples['filename']]
    np.save(run.state_embeddings, np.asarray(emb, dtype=np.float32)[order])
    np.save(run.state_rows, np.arange(len(names)))
    return run


def slow_cover(x, y) -> list[float]: return [min(float(np.linalg.norm(o - p)) for p in y) for o in x]


def test_by_hand(tmp_path):
    "Five points of a line and four of the same line, three of them the same."
    a = run_of(tmp_path/'a', ['p0', 'p1', 'p2', 'p3', 'p10'], [[0], [1], [2], [3], [10]], ['p0', 'p10'])
    b = run_of(tmp_path/'b', ['p2', 'p3', 'p10', 'p13'], [[2], [3], [10], [13]], ['p10', 'p2'])
    told = compare_runs(a, b)
    assert [told['input'][o]['n'] for o in ('only_a', 'only_b')] == [2, 1] and told['input']['n_both'] == 3
    part = told['selection']
    assert (part['n_both'], part['jaccard']) == (1, 1/3)
    assert part['only_a'] == {'n': 1, 'shown': [{'filename': 'p0', 'distance': 2.}]}
    assert part['only_b'] == {'n': 1, 'shown': [{'filename': 'p2', 'distance': 2.}]}
    assert part['order'] == {'n_first': 0, 'spearman': None}
    by_hand = {'a_by_a': [0, 1, 2, 3, 0], 'a_by_b': [2, 1, 0, 1, 0], 'b_by_b': [0, 1, 0, 3], 'b_by_a': [2, 3, 0, 3],
               'selected_a_by_b': [2, 0], 'selected_b_by_a': [0, 2]}
    for name, distances in by_hand.items():
        found = told['covering'][name]
        assert (found['n'], found['mean'], found['max']) == (len(distances), np.mean(distances), max(distances)), name
        np.testing.assert_allclose(found['p99'], np.percentile(distances, 99))
    assert [told['covering'][o]['n_farther'] for o in by_hand] == [0, 0, 0, 0, None, None]
    assert 'B would leave no image of the input of A farther from a selected one than 3.0000' in comparison_text(told)


@pytest.mark.parametrize('seed', range(4))
def test_against_a_slow_version(tmp_path, seed):
    rng = np.random.default_rng(seed)
    names = np.array([f'{i:02}.jpg' for i in range(40)])
    emb = rng.normal(size=(40, 3)).astype(np.float32)
    rows = [np.sort(rng.choice(40, n, replace=False)) for n in (25, 30)]
    chosen = [rng.choice(o, n, replace=False) for o, n in zip(rows, (6, 9), strict=True)]
    is_unit = bool(seed % 2)
    a, b = (run_of(tmp_path/o, names[r].tolist(), emb[r], names[c].tolist(), normalized=is_unit) for o, r, c in zip('ab', rows, chosen, strict=True))
    told = compare_runs(a, b)
    x = (emb/np.linalg.norm(emb, axis=1)[:, None] if is_unit else emb).astype(np.float64)
    parts = {'a': rows[0], 'b': rows[1], 'selected_a': chosen[0], 'selected_b': chosen[1]}
    selections = {'a': chosen[0], 'b': chosen[1]}
    for name, found in told['covering'].items():
        of, _, by = name.partition('_by_')
        distances = slow_cover(x[parts[of]], x[selections[by]])
        np.testing.assert_allclose([found['mean'], found['max']], [np.mean(distances), max(distances)], rtol=1e-5)
        if of in selections:
            limit = max(slow_cover(x[parts[of]], x[selections[of]]))
            assert found['n_farther'] == sum(o > limit*(1 + 1e-6) for o in distances)
    both = [o for o in chosen[0] if o in chosen[1]]
    assert told['selection']['n_both'] == len(both) == len({*chosen[0]} & {*chosen[1]})
    assert told['selection']['jaccard'] == len(both)/len({*chosen[0]} | {*chosen[1]})
    if len(both) > 1:
        ranks = pd.DataFrame({'a': [list(chosen[0]).index(o) for o in both], 'b': [list(chosen[1]).index(o) for o in both]})
        np.testing.assert_allclose(told['selection']['order']['spearman'], ranks.corr(method='spearman').iloc[0, 1])
    farthest = [o['distance'] for o in told['selection']['only_a']['shown']]
    np.testing.assert_allclose(farthest, sorted(slow_cover(x[[o for o in chosen[0] if o not in both]], x[chosen[1]]), reverse=True), rtol=1e-5)


def test_other_pixels_and_other_status(tmp_path):
    emb = np.eye(4)
    a = run_of(tmp_path/'a', list('wxyz'), emb, ['w'], content=list('1234'))
    b = run_of(tmp_path/'b', list('wxyz'), emb[[1, 0, 2, 3]], ['w'], content=list('5634'))
    told = compare_runs(a, b)
    assert told['input']['changed']['shown'] == ['w', 'x'] and told['space']['is_shared'] and told['space']['n_compared'] == 2
    assert told['selection']['only_a']['n'] == 0 and told['covering']['selected_a_by_b']['max'] == np.float32(2**.5), 'the same name, another picture'
    c = run_of(tmp_path/'c', list('wxyz'), emb, ['w'], status=['ok', 'corrupt', 'ok', 'excluded'], reason=[pd.NA, 'cut off', pd.NA, 'too near'])
    told = compare_runs(a, c)
    assert told['input']['status']['kinds'] == [{'a': 'ok', 'b': 'corrupt', 'n': 1}, {'a': 'ok', 'b': 'excluded', 'n': 1}]
    assert told['covering']['a_by_b']['n'] == 4 and told['covering']['b_by_a']['n'] == 2 and told['input']['n_unknown'] == 4


@pytest.fixture(scope='module')
def work(tmp_path_factory) -> Path: return tmp_path_factory.mktemp('compare')


@pytest.fixture(scope='module')
def whole(work, sample_folder) -> RunDir:
    "A run of images with everything."
    answer = command(f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=whole', 'stopping_condition.n_samples=8', 'token=s3cr3t', cwd=work)
    assert answer.returncode == 0, answer.stderr
    return RunDir(work/'out'/'whole')


@pytest.fixture(scope='module')
def more(work, whole) -> RunDir:
    "Chosen again, more of them; it only selects."
    run = recut(str(whole.root), ['n_samples=20', 'steps=[select]', 'run_directory=more'])
    carry_out(run)
    return run.dir


def read_pdf(path: Path) -> str:
    if shutil.which('pdftotext') is None: pytest.skip('pdftotext (poppler-utils) is not installed')
    return subprocess.run(['pdftotext', '-layout', path, '-'], capture_output=True, text=True, check=True).stdout


def numbers_in(told) -> list[float]:
    if isinstance(told, dict): return [n for o in told.values() for n in numbers_in(o)]
    if isinstance(told, list): return [n for o in told for n in numbers_in(o)]
    return [told] if isinstance(told, (int, float)) and not isinstance(told, bool) else []


@pytest.mark.smoke
def test_compare_as_typed(work, whole, more, tmp_path):
    before = tree(whole.root), tree(more.root)
    answer = command('compare', 'out/whole', 'out/more', cwd=work)
    assert answer.returncode == 0, answer.stderr
    folder = work/'out'/'compare-whole-more'
    assert sorted(o.name for o in folder.iterdir()) == ['compare.ipynb', 'compare.json', 'compare.pdf']
    assert (tree(whole.root), tree(more.root)) == before, 'the runs are as they were'
    told = validate_report(json.loads((folder/'compare.json').read_text()), COMPARISON_SCHEMA)
    assert answer.stdout == comparison_text(told) and str(folder/'compare.pdf') in answer.stderr
    assert told == compare_runs(whole, more)
    assert told['a']['folder'] == str(whole.root) and 's3cr3t' not in answer.stdout + (folder/'compare.json').read_text()
    samples = load_samples(whole.samples_parquet)
    first = samples['filename'][result_order(samples)].tolist()
    assert told['selection']['only_a']['n'] == 0 and told['selection']['only_b']['n'] == 20 - len(first) == 12
    assert told['selection']['order'] == {'n_first': 8, 'spearman': 1.}
    np.testing.assert_allclose(told['covering']['a_by_a']['max'], samples['nearest_distance'].max(), rtol=1e-5)
    assert told['a']['distances']['after']['n_samples'] == 8 and told['b']['distances'] is None and told['versions'] is None
    assert 'before' in answer.stdout, 'one report is enough for a table'
    text = read_pdf(folder/'compare.pdf')
    for part in ('Two runs compared', 'What each selection covers', 'Where the selections lie', 'Only by B', 'stopping_condition.n_samples'): assert part in text, part
    known = {f'{o:.4f}' for o in numbers_in(told)}
    assert len(found := re.findall(r'\b\d\.\d{4}\b', text)) > 20 and set(found) <= known
    subprocess.run(['pdfdetach', '-saveall', '-o', tmp_path, folder/'compare.pdf'], check=True)
    assert (tmp_path/'compare.json').read_bytes() == (folder/'compare.json').read_bytes()


@pytest.mark.smoke
def test_papermill_by_hand(root, whole, more, tmp_path):
    words = [w for name, value in {'run_a': whole.root, 'run_b': more.root, 'output_dir': 'here'}.items() for w in ('-p', name, str(value))]
    answer = subprocess.run([BIN/'papermill', root/'nbs'/'jobs'/'compare.ipynb', 'done.ipynb', '-k', 'python3', *words], capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert json.loads((tmp_path/'here'/'compare.json').read_text()) == compare_runs(whole, more)


def test_other_folder_with_some_of_the_images(work, whole, sample_folder):
    folder = work/'some'
    shutil.copytree(sample_folder, folder, ignore=shutil.ignore_patterns('pan', 'china'))
    shutil.copytree(sample_folder/'pan', folder/'extra')
    run = open_run(overrides=[f'input_dir={folder}', f'output_dir={work}/out', 'run_directory=some', 'steps=[embed,select]', 'stopping_condition.n_samples=8'])
    carry_out(run)
    told = compare_runs(whole, run.dir)
    names = [set(load_samples(o.samples_parquet)['filename']) for o in (whole, run.dir)]
    assert [told['input'][o]['n'] for o in ('only_a', 'only_b')] == [len(names[0] - names[1]), len(names[1] - names[0])]
    assert told['input']['n_both'] == len(names[0] & names[1]) and told['input']['changed']['n'] == 0
    assert told['space']['is_shared'] and told['space']['same_weights'] and told['space']['largest_difference'] < 1e-4
    assert {o['name'] for o in told['config']} >= {'input_dir', 'steps'} and not {o['name'] for o in told['config']} & {'token', 'output_dir'}
    assert {o['name']: (o['a'] is None, o['b'] is None) for o in told['folders']['shown']} | {'pan': (False, True), 'extra': (True, False)} == \
        {o['name']: (o['a'] is None, o['b'] is None) for o in told['folders']['shown']}
    assert told['covering']['b_by_b']['max'] > 0 and 'alone' in comparison_text(told)


def test_vectors_of_an_image_run_given_as_a_file(work, whole):
    "Other weights by name, the same by their vectors."
    words = [f'embeddings={whole.embeddings_csv.name}', f'shared_dir={whole.data}', f'output_dir={work}/out', 'steps=[select]', 'stopping_condition.n_samples=8']
    given = open_run(overrides=[*words, 'run_directory=given', 'method=random'])
    carry_out(given)
    told = compare_runs(whole, given.dir)
    assert told['space']['is_shared'] and told['space']['same_weights'] is False and told['selection']['order'] is None
    assert told['b']['source'] == 'embeddings' and told['input']['n_unknown'] == told['input']['n_both']
    assert told['covering']['a_by_b']['n_farther'] > 0, 'a random choice covers worse'
    assert 'B would leave' in comparison_text(told) and 'weights' in comparison_text(told)


def test_videos(work):
    films = work/'films'
    films.mkdir()
    make_video(films/'pan.mp4', n_frames=20)
    make_video(films/'short.avi', n_frames=9)
    run = open_run(overrides=[f'input_dir={films}', f'output_dir={work}/out', 'run_directory=films', 'steps=[embed,select]', 'stopping_condition.n_samples=4'])
    carry_out(run)
    again = recut(str(run.dir.root), ['n_samples=6', 'steps=[select]', 'run_directory=films-6'])
    carry_out(again)
    files = make_comparison(run.dir, again.dir)
    told = json.loads(files.json.read_text())
    assert told['a']['sources']['frames']['sampled'] == 4 and 'Both selected 4 frames, A alone 0, B alone 2' in sentences(told)[1]
    text = read_pdf(files.pdf)
    assert 'each frame' in text and 'image' not in text.replace('lightly_curate', '') and 'by video' in text


def test_the_same_run_twice(whole):
    told = compare_runs(whole, whole)
    assert told['same_folder'] and told['selection']['jaccard'] == 1 and told['config'] == [] and told['versions'] == []
    assert told['covering']['selected_a_by_b']['max'] == 0 and told['covering']['a_by_b'] == told['covering']['a_by_a']
    assert sentences(told)[0] == 'A and B are the same run.'


def test_without_vectors_and_without_images(work, whole, more, tmp_path):
    shutil.copytree(whole.root, tmp_path/'bare', ignore=shutil.ignore_patterns('.lightly_curate'))
    told = compare_runs(RunDir(tmp_path/'bare'), more)
    assert told['covering']['a_by_b'] is None and told['covering']['a_by_a'] is None and told['covering']['b_by_b']['max'] > 0
    assert told['space']['why'] == 'A has no vectors: its folder .lightly_curate does not hold them' and told['a']['weights'] is None
    assert told['selection']['only_b']['shown'][0]['distance'] is None and 'cannot be compared: A has no vectors' in comparison_text(told)
    files = make_comparison(more, RunDir(tmp_path/'bare'), str(tmp_path/'to'))
    assert 'Where the selections lie' not in (text := read_pdf(files.pdf)) and 'Only by A' in text


def test_nothing_selected(tmp_path):
    "As when a datapool holds all there is."
    a, b = (run_of(tmp_path/o, ['x', 'y'], [[1, 0], [0, 1]], []) for o in 'ab')
    told = compare_runs(a, b)
    assert told['selection']['jaccard'] is None and set(told['covering'].values()) == {None}
    assert 'Neither run selected anything.' in comparison_text(told)


@pytest.mark.smoke
def test_refusals(work, whole, tmp_path):
    embedded = open_run(overrides=[f'input_dir={tmp_path}', f'output_dir={tmp_path}/out', 'run_directory=e', 'steps=[embed]'])
    words = {('compare', tmp_path, whole.root): 'is no folder of a run', ('compare', whole.root, embedded.dir.root): 'has no selection',
             ('compare', whole.root, whole.root, whole.root): 'takes two runs', ('compare', whole.root): 'needed are the folders of two',
             ('compare', whole.root, whole.root, f'output_dir={whole.root}/x'): 'would be written into the run',
             ('compare', whole.root, whole.root, 'n_samples=5'): 'n_samples=5 cannot be used with compare',
             ('report', tmp_path): 'is no folder of a run', ('report', embedded.dir.root): 'there is no report.json'}
    for line, text in words.items():
        answer = command(*line, cwd=tmp_path)
        assert (answer.returncode, answer.stdout) == (2, '') and text in answer.stderr and 'Traceback' not in answer.stderr, (line, answer)
    assert not [o for o in tmp_path.rglob('compare*')]


@pytest.fixture
def copied(whole, tmp_path) -> RunDir:
    "What `report` needs, elsewhere."
    shutil.copytree(whole.plots, tmp_path/'copy'/'plots')
    shutil.copy(whole.report_json, tmp_path/'copy')
    return RunDir(tmp_path/'copy')


@pytest.mark.smoke
def test_report_again_elsewhere(whole, copied, tmp_path):
    answer = command('report', 'copy', cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert set(tree(copied.root)) == {'report.json', 'report.pdf', 'report.html', *(f'plots/{o.name}' for o in whole.plots.iterdir())}
    assert copied.report_pdf.read_bytes() == whole.report_pdf.read_bytes()
    assert page_of(copied.report_html.read_bytes()) == page_of(whole.report_html.read_bytes())
    assert str(copied.report_pdf) in answer.stderr


def test_report_again_in_place(whole, tmp_path):
    shutil.copytree(whole.root, tmp_path/'run')
    before = tree(tmp_path/'run')
    (tmp_path/'run'/'report.html').write_text('old')
    (tmp_path/'run'/'report.pdf').unlink()
    assert command('report', tmp_path/'run').returncode == 0
    after = tree(tmp_path/'run')
    assert page_of(after.pop('report.html')) == page_of(before.pop('report.html')) and after == before


def test_interrupted_rendering_leaves_the_old_pages(copied, monkeypatch, tmp_path):
    from lightly_curate.report import render
    from lightly_curate.run.pipeline import render_run
    def stopped(*words, **keys): raise KeyboardInterrupt
    monkeypatch.setattr(render, 'to_pdf', stopped)
    copied.report_pdf.write_text('old'), copied.report_html.write_text('old')
    with pytest.raises(KeyboardInterrupt): render_run(copied, tmp_path/'report.ipynb')
    assert copied.report_pdf.read_text() == copied.report_html.read_text() == 'old'
    assert {o.name for o in copied.root.iterdir()} == {'plots', 'report.json', 'report.pdf', 'report.html'}


@pytest.mark.slow
@pytest.mark.smoke
def test_report_of_another_version_is_made_anew_as_told(whole, tmp_path):
    "The command in the message works when it is pasted."
    run = RunDir(tmp_path/'out'/'whole')
    shutil.copytree(whole.root, run.root)
    run.plot('scatter_pca').unlink()
    answer = command('report', run.root)
    assert answer.returncode == 2 and 'the first is plots/scatter_pca.png' in answer.stderr
    told = json.loads(run.report_json.read_text()) | {'schema_version': '0.9'}
    run.report_json.write_text(json.dumps(told))
    answer = command('report', run.root)
    assert answer.returncode == 2 and 'has schema version 0.9' in answer.stderr
    run.report_json.unlink()
    line = re.search(r"use lightly-curate (.*)$", answer.stderr, re.M)[1]
    assert 'steps=[report]' in line and f'output_dir={tmp_path}/out' in line and 's3cr3t' not in line
    answer = subprocess.run(f'{BIN}/lightly-curate {line}', shell=True, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert run.plot('scatter_pca').is_file() and run.report_pdf.is_file()


def test_half_a_vector_file_is_told(whole, tmp_path):
    "Rows and vectors that do not fit are an error of the run folder, not a wrong number."
    shutil.copytree(whole.root, tmp_path/'run')
    run = RunDir(tmp_path/'run')
    np.save(run.state_rows, np.load(run.state_rows)[:-1])
    with pytest.raises(CurateError, match='row numbers for'): read_side(run)
    assert replace(read_side(whole), vectors=None).vectors is None
