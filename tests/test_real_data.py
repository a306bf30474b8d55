"The whole flow on real folders; needs the shared data and is skipped, visibly, without it."
import csv
import json
import time

import pytest
from lightly_curate.core.samples import count_samples, load_samples
from test_flow import finish, names

pytestmark = pytest.mark.smoke


def test_camvid(shared_data, tmp_path):
    "367 frames of three drives: 30 % are 110, with the rounding rule half up."
    begun = time.monotonic()
    run = finish(f'input_dir={shared_data/"camvid"}', f'output_dir={tmp_path}', 'run_directory=r', 'stopping_condition.n_samples=0.3')
    assert time.monotonic() - begun < 600, 'something hangs; the usual time is under three minutes'
    report = json.loads(run.report_json.read_text())
    counts = {kind: n for kind, n in report['counts'].items() if n}
    assert counts == dict(input=367, available=367, sampled=110, removed=257)
    assert len(names(run.sampled_filenames)) == 110
    after, before = report['distances']['after'], report['distances']['before']
    assert after['mean'] > before['mean'] and after['min'] > before['min'], 'the selection is more diverse than the input'


def test_odd(shared_data, tmp_path):
    "Unusual, broken, huge and misnamed files: every one a row, every broken one with a reason."
    run = finish(f'input_dir={shared_data/"odd"}', f'output_dir={tmp_path}', 'run_directory=r', 'steps=[embed,select]',
                 'stopping_condition.n_samples=1.')
    samples = load_samples(run.samples_parquet)
    with (shared_data/'odd'/'manifest.csv').open(newline='', encoding='utf-8') as file: manifest = [o['file'] for o in csv.DictReader(file)]
    assert sorted(manifest) == sorted(samples['filename'])
    status = samples.set_index('filename')['status'].to_dict()
    for name in manifest:
        expected = name.startswith(('broken/', 'huge/'))
        assert (status[name] == 'corrupt') == expected, name
    assert set(names(run.corrupt_filenames)) == {o for o in manifest if status[o] == 'corrupt'}


def test_dedupe(shared_data, tmp_path):
    "Copies by bytes and by pixels are found, and nothing else."
    run = finish(f'input_dir={shared_data/"dedupe"}', f'output_dir={tmp_path}', 'run_directory=r', 'steps=[embed,select]',
                 'stopping_condition.n_samples=1.')
    samples = load_samples(run.samples_parquet)
    with (shared_data/'dedupe'/'pairs.csv').open(newline='', encoding='utf-8') as file: pairs = list(csv.DictReader(file))
    groups = {}
    for o in pairs:
        if o['relation'].startswith('exact'): groups.setdefault(o['base'], {o['base']}).add(o['derived'])
    expected = {frozenset(o) for o in groups.values()}
    duplicate = samples[samples['status'] == 'duplicate']
    found = {frozenset({samples.loc[kept, 'filename'], *part['filename']}) for kept, part in duplicate.groupby('duplicate_of')}
    assert found == expected
    assert len(names(run.duplicate_filenames)) == sum(o['relation'].startswith('exact') for o in pairs)


def test_labelled(shared_data, tmp_path):
    "800 images in subfolders of subfolders; the weak label is the first folder."
    run = finish(f'input_dir={shared_data/"labelled"}', f'output_dir={tmp_path}', 'run_directory=r', 'steps=[embed,select]',
                 'stopping_condition.n_samples=100')
    samples = load_samples(run.samples_parquet)
    counts = count_samples(samples)
    assert (counts['input'], counts['corrupt'], counts['sampled']) == (800, 0, 100)
    assert samples.groupby('label').size().to_dict() == {0: 500, 1: 300}
