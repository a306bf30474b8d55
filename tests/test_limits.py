"What a run may use, and input that is hardly there."
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lightly_curate.core.config import CurateConfig
from lightly_curate.core.errors import ConfigError, CurateError, InputError, OutputError
from lightly_curate.core.limits import free_shared_memory, given_memory, memory_limit, most_open_files
from lightly_curate.embed.embedding_csv import read_embeddings, write_embeddings


def test_limits_of_this_machine_are_kept_to():
    assert 0 < memory_limit(CurateConfig()) < given_memory()
    with pytest.raises(ConfigError, match='this machine or container gives'): memory_limit(CurateConfig(memory_limit_in_GB=1e6))
    assert most_open_files() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert free_shared_memory() is None or free_shared_memory() <= given_memory()*2


def test_embeddings_are_read_within_memory(tmp_path):
    "100,000 x 64 numbers, 26 MB, as CSV of 70 MB: in a process that may have little more than that."
    emb = np.random.default_rng(0).normal(size=(100_000, 64)).astype(np.float32)
    names = [f'{i:06}.jpg' for i in range(len(emb))]
    write_embeddings(tmp_path/'e.csv', names, emb, np.zeros(len(emb), dtype=np.int64))
    code = ('import resource, sys; from pathlib import Path; from lightly_curate.embed.embedding_csv import read_embeddings\n'
            'before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nfound = read_embeddings(Path(sys.argv[1]))\n'
            'print(len(found.emb), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)//1024)')
    said = subprocess.run([sys.executable, '-c', code, str(tmp_path/'e.csv')], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == '100000' and int(said[1]) < 350, f'{said[1]} MB more for vectors of 26 MB'
    np.testing.assert_array_equal(read_embeddings(tmp_path/'e.csv').emb, emb)


def start(tmp_path, input_dir, **more):
    from lightly_curate.run.start import open_run
    words = {'input_dir': input_dir, 'output_dir': tmp_path/'out', 'run_directory': 'run', 'stopping_condition.n_samples': 1} | more
    return open_run(overrides=[f'{o}={value}' for o, value in words.items()])


def scanned(tmp_path, input_dir, **more):
    "The table after clean."
    from lightly_curate.run.pipeline import clean_stage, run_stage, scan_stage
    run = start(tmp_path, input_dir, **more)
    run_stage(run, 'scan', lambda: scan_stage(run))
    return clean_stage(run)[0]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path/'in'
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder/'a.png')
    return folder


def test_input_that_is_hardly_there(tmp_path, pictures):
    assert scanned(tmp_path, pictures)['status'].tolist() == ['ok']
    (pictures/'b.png').write_bytes((pictures/'a.png').read_bytes())
    assert scanned(tmp_path, pictures, run_directory='two')['status'].tolist() == ['ok', 'duplicate']
    (tmp_path/'none').mkdir()
    with pytest.raises(InputError, match='none'): scanned(tmp_path, tmp_path/'none', run_directory='empty')
    (tmp_path/'broken').mkdir()
    for name in 'ab': (tmp_path/'broken'/f'{name}.jpg').write_bytes(b'no picture')
    with pytest.raises(InputError, match='2'): scanned(tmp_path, tmp_path/'broken', run_directory='broken')


def test_folders_that_are_none(tmp_path, pictures):
    with pytest.raises(ConfigError, match='input_dir is'): start(tmp_path, pictures/'a.png')
    with pytest.raises(CurateError, match='output_dir is|cannot be made'): start(tmp_path, pictures, output_dir=pictures/'a.png')


def test_results_inside_the_input_are_no_input(tmp_path, pictures):
    first = scanned(tmp_path, pictures, output_dir=pictures/'out')
    again = scanned(tmp_path, pictures, output_dir=pictures/'out', run_directory='again')
    assert first['filename'].tolist() == again['filename'].tolist() == ['a.png']


def test_a_folder_that_is_only_read(tmp_path, pictures):
    if os.geteuid() == 0: pytest.skip('root may write everywhere')
    before = sorted(os.listdir(pictures))
    pictures.chmod(0o555)
    assert scanned(tmp_path, pictures)['status'].tolist() == ['ok'] and sorted(os.listdir(pictures)) == before
    tmp_path.joinpath('locked').mkdir(mode=0o555)
    with pytest.raises(OutputError): start(tmp_path, pictures, output_dir=tmp_path/'locked')
