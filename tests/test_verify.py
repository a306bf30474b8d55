"A finished run that somebody has tampered with is found out, and a run that is repeated is the same."
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jsonschema import Draft202012Validator
from lightly_curate.core.errors import ConfigError, InputError
from lightly_curate.core.rundir import RunDir
from lightly_curate.core.samples import load_samples, save_samples, with_columns
from lightly_curate.data.sample_data import make_video
from lightly_curate.embed.embedding_csv import write_embeddings
from lightly_curate.embed.vectors import normalize
from lightly_curate.run.manifest import MANIFEST_SCHEMA, read_manifest, write_manifest
from lightly_curate.run.pipeline import WORK, run_stage, stages_to_do
from lightly_curate.run.repeat import OTHER, TIMED, compare_outputs, plan_again
from lightly_curate.run.start import open_run, recut
from lightly_curate.run.verify import Evidence, check_files, verify

COMMAND = Path(sys.executable).with_name('lightly-curate')
TOKEN = 'k3Yn0tF0rY0urEyes'


def carry_out(run) -> RunDir:
    "All stages of a run and its manifest, without typesetting the report."
    for stage in stages_to_do(run.cfg): run_stage(run, stage, partial(WORK[stage], run))
    write_manifest(run)
    return run.dir


def wrong(files: RunDir, with_inputs: bool = False) -> dict[str, str]:
    "What verify finds, by check."
    return {o.name: o.found for o in verify(files, with_inputs) if not o.ok}


@pytest.fixture(scope='module')
def work(tmp_path_factory) -> Path: return tmp_path_factory.mktemp('verify')


@pytest.fixture(scope='module')
def media(work, sample_folder) -> Path:
    "Images, among them copies and a broken one, and a video."
    for name in sorted(o.relative_to(sample_folder) for o in sample_folder.rglob('*.*'))[:40]:
        (work/'media'/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample_folder/name, work/'media'/name)
    make_video(work/'media'/'walk.mp4', 12)
    return work/'media'


@pytest.fixture(scope='module')
def finished(work, media) -> RunDir:
    return carry_out(open_run(overrides=[f'token={TOKEN}', f'input_dir={media}', f'output_dir={work}/out', 'run_directory=first', 'dump_dataset=True',
                                         'output_image_format=png', 'stopping_condition.n_samples=12', 'stopping_condition.min_distance=0.05', 'lightly.loader.num_workers=1']))


@pytest.fixture
def copy(finished, tmp_path) -> RunDir: return RunDir(shutil.copytree(finished.root, tmp_path/'copy'))


def test_a_run_as_it_is_passes(finished):
    checks = verify(finished, with_inputs=True)
    assert all(o.ok for o in checks), [o for o in checks if not o.ok]
    assert {o.name for o in checks} >= {'files', 'manifest', 'lists', 'embeddings', 'covering', 'min_distance', 'curve', 'counts', 'maps', 'inputs'}
    manifest = read_manifest(finished)
    Draft202012Validator(MANIFEST_SCHEMA).validate(manifest)
    assert TOKEN not in finished.manifest_json.read_text()
    named = set(manifest['outputs'])
    there = {o.relative_to(finished.root).as_posix() for o in finished.root.rglob('*') if o.is_file()}
    assert {o for o in there - named if not o.startswith('.lightly_curate/')} == {'manifest.json'}
    answer = subprocess.run(['sha256sum', 'report.json'], cwd=finished.root, capture_output=True, text=True)
    assert answer.stdout.split()[0] == manifest['outputs']['report.json']['sha256']


def test_a_moved_run_passes(copy):
    assert not wrong(copy)


def wrong_files(files: RunDir) -> list[str]: return check_files(Evidence(files))[0]


def test_every_flipped_bit_is_found(copy):
    "One bit of one byte, at a place drawn for each file, in every file that the manifest names."
    rng, names = np.random.default_rng(0), [name for name, o in read_manifest(copy)['outputs'].items() if o['bytes']]
    assert len(names) > 50 and not wrong_files(copy)
    for name in names:
        data = bytearray((copy.root/name).read_bytes())
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        (copy.root/name).write_bytes(data)
    assert wrong_files(copy) == [f'{o} has other content than when the run ended' for o in names]


def test_every_missing_and_every_new_file_is_found(copy):
    names = list(read_manifest(copy)['outputs'])
    for name in names: (copy.root/name).unlink()
    new = ['config/new.png', 'data/new.png', 'data/sampled/new.png', 'filenames/new.png', 'plots/new.png']
    for name in new: (copy.root/name).touch()
    assert wrong_files(copy) == [f'{o} is missing' for o in names] + [f'{o} is not from this run' for o in new]


def drop_line(path: Path, number: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(lines[:number] + lines[number + 1:]))


def swap_lines(path: Path) -> None:
    head, one, two, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join([head, two, one, *others]))


def change_table(**values):
    "A change of the sample table, wherever the run has it."
    def change(files: RunDir) -> None:
        for path in (files.samples_parquet, files.table('deliver'), files.table('report')):
            samples = load_samples(path)
            row = samples.index[(samples['status'] == 'ok') & ~samples['selected']][0]
            save_samples(with_columns(samples, [row], **{k: value(samples, row) for k, value in values.items()}), path)
    return change


def change_json(path: str, key: str, value):
    "A change of one value of a JSON file."
    def change(files: RunDir) -> None:
        told = json.loads((files.root/path).read_text())
        *above, last = key.split('.')
        node = told
        for o in above: node = node[o]
        node[last] = value(node[last])
        (files.root/path).write_text(json.dumps(told))
    return change


def move_vector(files: RunDir) -> None:
    emb = np.load(files.state_embeddings)
    emb[3] = -emb[3]
    np.save(files.state_embeddings, emb)


def change_map(files: RunDir) -> None:
    maps = pd.read_parquet(files.maps_parquet)
    maps['filename'] = maps['filename'].iloc[::-1].to_numpy()
    maps.loc[0, 'filename'] = 'none.png'
    maps.to_parquet(files.maps_parquet, index=False)


FORGED = {  # how = (what is done, the checks that must see it)
    **{f'a line less in {o}': (lambda f, o=o: drop_line(getattr(f, o), 0), {'lists'}) for o in (
        'sampled_filenames', 'removed_filenames', 'duplicate_filenames', 'corrupt_filenames')},
    'two lines of a list': (lambda f: swap_lines(f.removed_filenames), {'lists'}),
    'another order of choice': (lambda f: swap_lines(f.sampled_filenames), {'lists'}),
    'removed_samples.csv': (lambda f: drop_line(f.removed_samples_csv, 3), {'tables'}),
    'removed_samples.csv, two rows': (lambda f: swap_lines(f.removed_samples_csv), {'tables'}),
    'embeddings.csv, a row less': (lambda f: drop_line(f.embeddings_csv, 5), {'embeddings'}),
    'embeddings.csv, two rows': (lambda f: swap_lines(f.embeddings_csv), {'embeddings'}),
    'normalized_embeddings.csv': (lambda f: swap_lines(f.normalized_embeddings_csv), {'embeddings'}),
    'selected_embeddings.csv': (lambda f: swap_lines(f.selected_embeddings_csv), {'embeddings'}),
    'the vectors': (move_vector, {'embeddings'}),
    'the curve': (lambda f: swap_lines(f.selection_curve_csv), {'curve'}),
    'videos.csv': (lambda f: f.videos_csv.write_text(re.sub(r'\d+\n$', '99\n', f.videos_csv.read_text())), {'tables'}),
    'corruptness': (change_json('data/corruptness_check_information.json', 'corrupt_samples', lambda o: {'a.png': 'why'}), {'tables'}),
    'a count': (change_json('report.json', 'counts.available', lambda n: n + 1), {'counts'}),
    'the covering distance': (change_json('report.json', 'stopping.covering_distance', lambda d: d*.99), {'covering'}),
    'the maps': (change_map, {'maps'}),
    'a distance of the table': (change_table(nearest_distance=lambda s, row: s.at[row, 'nearest_distance']*.9), {'covering', 'tables'}),
    'a neighbour of the table': (change_table(nearest_selected=lambda s, row: [o for o in s.index[s['selected']] if o != s.at[row, 'nearest_selected']][0]),
                                 {'covering', 'tables'}),
}


@pytest.mark.parametrize('how', FORGED)
def test_forgery_with_a_new_manifest_is_found(copy, how):
    "Whoever writes the manifest anew after the change has still to make everything agree."
    change, seen_by = FORGED[how]
    change(copy)
    write_manifest(open_run(str(copy.root)))
    assert set(wrong(copy)) >= seen_by, how


def test_inputs_are_decoded_again(work, media, tmp_path):
    folder = shutil.copytree(media, tmp_path/'media')
    run = carry_out(open_run(overrides=[f'input_dir={folder}', f'output_dir={tmp_path}', 'run_directory=r', 'steps=[select]',
                                        'stopping_condition.n_samples=3', f'shared_dir={given(work, folder, tmp_path)}', 'embeddings=vectors.csv']))
    assert not wrong(run, with_inputs=True)
    (tmp_path/'vectors.csv').write_text('other')
    assert 'vectors.csv' in wrong(run, with_inputs=True)['inputs']


def given(work: Path, folder: Path, place: Path) -> Path:
    names = sorted(o.relative_to(folder).as_posix() for o in folder.rglob('*.jpg'))
    write_embeddings(place/'vectors.csv', names, np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32), [0]*len(names))
    return place


def test_changed_inputs_are_named(finished, media, tmp_path):
    "A changed, a vanished and a new file; the video stays what it is."
    from lightly_curate.core.stages import Mark, read_mark, write_mark
    files = RunDir(shutil.copytree(finished.root, tmp_path/'copy'))
    folder = shutil.copytree(media, tmp_path/'media')  # keeps the times of the files
    mark = read_mark(files, 'scan')
    write_mark(files, Mark(**{**vars(mark), 'given': {**mark.given, 'input_dir': str(folder)}}))
    run = open_run(str(files.root))
    write_manifest(replace(run, cfg=replace(run.cfg, input_dir=str(folder))))
    names = load_samples(files.samples_parquet).query("status == 'ok' and source == 'image'")['filename'].tolist()
    changed, gone = names[:2]
    shutil.copy(folder/names[2], folder/changed)
    (folder/gone).unlink()
    shutil.copy(folder/names[2], folder/'new.jpg')
    told = wrong(files, with_inputs=True)['inputs']
    assert 'new.jpg is new' in told and changed in told and gone in told and 'walk' not in told, told


SETTINGS = {'random': ['method=random'], 'typical': ['method=typical'], 'threshold_cover': ['method=threshold_cover', 'stopping_condition.coverage_distance=0.3'],
            'not normalized': ['normalize_embeddings=False'], 'all': ['stopping_condition.n_samples=1.'], 'one': ['stopping_condition.n_samples=1'],
            'outliers': ['select.outlier_share=0.1'],
            'min_distance': ['stopping_condition.min_distance=0.4'], 'random far': ['method=random', 'stopping_condition.min_distance=0.3'],
            'typical far': ['method=typical', 'stopping_condition.min_distance=0.2']}


@pytest.mark.parametrize('setting', SETTINGS)
def test_every_way_to_choose_passes(finished, work, setting):
    "No false alarm, whatever was asked."
    words = SETTINGS[setting]
    if not any('stopping' in o for o in words): words = [*words, 'n_samples=7']
    run = recut(str(finished.root), [*words, f'run_directory=cut-{setting.replace(" ", "-")}', 'steps=[select]'])
    assert not wrong(carry_out(run))


def test_pool_and_sequences_pass(work, media, tmp_path):
    names = sorted(o.relative_to(media).as_posix() for o in media.rglob('*.jpg'))
    x = np.random.default_rng(1).normal(size=(len(names), 8)).astype(np.float32)
    write_embeddings(tmp_path/'a.csv', names[:20], x[:20], [0]*20)
    write_embeddings(tmp_path/'b.csv', names[10:], x[10:], [0]*(len(names) - 10))
    words = [f'shared_dir={tmp_path}', f'output_dir={tmp_path}', f'input_dir={media}', 'steps=[select]', 'stopping_condition.n_samples=5']
    pooled = [carry_out(open_run(overrides=[*words, 'datapool.name=pool', f'embeddings={o}.csv', f'run_directory={o}',
                                            'stopping_condition.min_distance=0.1'])) for o in 'ab']
    for files in pooled: assert not wrong(files)
    pool = np.load(pooled[1].state_pool)
    np.save(pooled[1].state_pool, np.concatenate([pool, normalize(np.load(pooled[1].state_embeddings))]))
    write_manifest(open_run(str(pooled[1].root)))
    assert 'min_distance' in wrong(pooled[1])
    with pytest.raises(ConfigError, match='cannot be repeated'): plan_again(pooled[0], tmp_path/'again')
    files = carry_out(open_run(overrides=[*words[:4], 'embeddings=a.csv', 'run_directory=s', 'selected_sequence_length=2', 'remove_exact_duplicates=False',
                                          'stopping_condition.n_samples=6']))
    assert not wrong(files)


def test_unfinished_and_foreign_folders(tmp_path, media, copy):
    with pytest.raises(InputError, match='no manifest.json'): verify(RunDir(tmp_path))
    copy.manifest_json.write_text('{')
    for words, code in [(['verify', copy.root], 2), (['verify'], 2), (['verify', copy.root, 'inputs=True'], 2)]:
        answer = subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True)
        assert answer.returncode == code and 'Traceback' not in answer.stderr, answer.stderr


@pytest.mark.smoke
@pytest.mark.slow
def test_repeated_run_is_identical(finished, tmp_path):
    "The whole program, by the command line, from a run that was carried out without it."
    out = tmp_path/'deeper'/'again'
    answer = subprocess.run([COMMAND, 'repeat', finished.root, out], capture_output=True, text=True)
    assert answer.returncode == 1, answer.stderr  # the pages of the report, which the first run was not asked to typeset
    told = [o for o in compare_outputs(finished, RunDir(out)) if o.verdict == OTHER]
    assert [(o.name, o.found) for o in told] == [(f'report.{o}', 'not in the run') for o in ('html', 'pdf')]
    timed = {o.name for o in compare_outputs(finished, RunDir(out)) if o.verdict == TIMED}
    assert timed == {'config/config.yaml', 'explore.html', 'report.json'}
    checked = subprocess.run([COMMAND, 'verify', out], capture_output=True, text=True)
    assert checked.returncode == 0 and 'checks passed' in checked.stdout, checked.stdout
    (out/'filenames'/'sampled_filenames.txt').write_text('')
    checked = subprocess.run([COMMAND, 'verify', out], capture_output=True, text=True)
    assert checked.returncode == 1 and 'sampled_filenames.txt has 0 bytes instead of' in checked.stdout
