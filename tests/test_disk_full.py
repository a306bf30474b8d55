"A disk that is full: what was being written is told, nothing half is left, and the run goes on when there is room."
import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lightly_curate.core.errors import CurateError, OutputError
from lightly_curate.core.parts import Parts
from lightly_curate.core.progress import LogFile, Tick, logger, logging_to, read_status, write_status
from lightly_curate.core.rundir import RunDir, replacing
from lightly_curate.core.samples import make_samples, save_samples
from lightly_curate.core.stages import Mark, write_mark
from lightly_curate.deliver.export import write_corruptness, write_filename_lists, write_removed_samples
from lightly_curate.embed.embedding_csv import write_embeddings
from lightly_curate.embed.mapped import on_disk, write_npy
from test_kill import SMALL

NAMES = [f'folder_{i % 7}/image_{i:05}.jpg' for i in range(3000)]
EMB = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)


@pytest.fixture
def small_disk(tmp_path, request):
    "A disk of 4 MB, or of so many as the test asks for."
    place = tmp_path/'disk'
    place.mkdir()
    size = f'size={getattr(request, "param", 4)}m'
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', size, 'tmpfs', str(place)], capture_output=True, text=True)
    if made.returncode: pytest.skip(f'a small disk cannot be mounted here, needed is root: {made.stderr.strip()}')
    yield place
    subprocess.run(['umount', '-l', str(place)], check=True)


def leave(place, n_bytes: int) -> None:
    "Fill the disk but for so many bytes."
    (place/'ballast').unlink(missing_ok=True)
    (place/'ballast').write_bytes(bytes(max(0, shutil.disk_usage(place).free - n_bytes)//4096*4096))


def files_of(place) -> list[str]:
    return sorted(o.relative_to(place).as_posix() for o in place.rglob('*') if o.is_file() and o.name != 'ballast')


def write_parts(folder) -> None:
    parts = Parts(folder/'parts', 'any')
    parts.add({'emb': EMB})
    parts.flush()


def write_with_numpy(folder) -> None:
    from lightly_curate.run.pipeline import save_arrays
    save_arrays([(folder/'x.npy', EMB)])


WRITERS = {
    'table': lambda o: save_samples(make_samples(NAMES), o/'x.parquet'),
    'csv': lambda o: write_embeddings(o/'x.csv', NAMES, EMB, [0]*len(NAMES)),
    'npy in blocks': lambda o: write_npy(o/'x.npy', [EMB], EMB.shape),
    'npy': write_with_numpy,
    'parts': write_parts,
    'mark': lambda o: write_mark(RunDir(o), Mark('scan', {'names': NAMES}, '', 0., {})),
    'lists': lambda o: write_filename_lists(make_samples(NAMES), RunDir(o)),
    'removed': lambda o: write_removed_samples(make_samples(NAMES), o/'x.csv'),
    'json': lambda o: write_corruptness(make_samples(NAMES).assign(status='corrupt', reason='truncated'), o/'x.json'),
}


@pytest.mark.parametrize('name', WRITERS)
def test_a_writer_tells_a_full_disk_and_leaves_nothing_half(small_disk, name):
    for room in (0, 8192, 40_960):
        leave(small_disk, room)
        with pytest.raises(OutputError, match='cannot be written: the disk is full after'): WRITERS[name](small_disk)
        written = [o for o in files_of(small_disk) if (small_disk/o).stat().st_size]
        assert all(o.endswith('_filenames.txt') for o in written), written  # whole lists before the one that did not fit
        assert not [o for o in files_of(small_disk) if o.rpartition('/')[2].startswith('.')]
    (small_disk/'ballast').unlink()
    WRITERS[name](small_disk)
    assert files_of(small_disk)


def test_what_was_there_stays(small_disk):
    with replacing(small_disk/'list.txt') as temporary: temporary.write_text('as it was')
    leave(small_disk, 4096)
    with pytest.raises(OutputError, match=r'list.txt cannot be written: .*, 0.1 MB are missing; free space'), \
         replacing(small_disk/'list.txt', 100_000) as temporary:
        temporary.write_bytes(bytes(100_000))
    assert (small_disk/'list.txt').read_text() == 'as it was' and files_of(small_disk) == ['list.txt']


def test_no_room_for_vectors_that_are_only_passing(small_disk):
    leave(small_disk, 8192)
    with pytest.raises(OutputError, match='the disk is full'): on_disk([EMB], 16, small_disk)
    assert shutil.disk_usage(small_disk).free >= 8192


def test_log_and_status_end_nothing(small_disk, capsys):
    log, status = small_disk/'log.txt', small_disk/'status.json'
    leave(small_disk, 0)
    with logging_to(LogFile(log, encoding='utf-8')):
        logger.info('a line that does not fit')
        write_status(status, Tick('embedding', 'images', 1, 2, 1.))
        assert read_status(status) is None and files_of(small_disk) == ['log.txt']
        (small_disk/'ballast').unlink()
        logger.info('there is room again')
    assert 'does not fit' in log.read_text() and 'room again' in log.read_text()
    leave(small_disk, 0)
    with logging_to(LogFile(log, encoding='utf-8')): logger.info('x'*10_000)
    assert 'Traceback' not in capsys.readouterr().err and not logger.handlers


def test_the_record_of_a_job(small_disk):
    "papermill writes it in place: no half notebook is left of it."
    from lightly_curate.run.jobs import execute
    cells = [nbformat.v4.new_code_cell('n = 1', metadata={'tags': ['parameters']}), nbformat.v4.new_code_cell('print("x"*600_000)')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}), small_disk/'job.ipynb')
    leave(small_disk, 500_000)
    with pytest.raises(OutputError, match='record.ipynb cannot be written: the disk is full'):
        execute(small_disk/'job.ipynb', small_disk/'record.ipynb', {})
    assert files_of(small_disk) == ['job.ipynb']
    (small_disk/'ballast').unlink()
    execute(small_disk/'job.ipynb', small_disk/'record.ipynb', {})
    assert 'record.ipynb' in files_of(small_disk)


def half_files(root) -> list[str]:
    "Files that are not whole under a final name, and neighbours that were being written."
    def is_whole(path: Path) -> bool:
        data = path.read_bytes()
        if path.suffix in ('.png', '.jpg'): return bool(Image.open(path).convert('RGB').size)
        if path.suffix == '.parquet': return len(pd.read_parquet(path).columns) > 0
        if path.suffix == '.ckpt': return bool(torch.load(path, weights_only=True))
        if path.suffix == '.json': return isinstance(json.loads(data), dict | list)
        return data.rstrip().endswith({'.pdf': b'%%EOF', '.html': b'</html>'}.get(path.suffix, b''))
    def is_half(path: Path) -> bool:
        if re.match(r'\.\d+-', path.name): return True
        try: return not is_whole(path)
        except (OSError, ValueError, RuntimeError): return True
    return [o for o in files_of(root) if is_half(root/o)]


def result_of(root) -> dict[str, bytes]:
    "Files of a run that are the same each time."
    kept = ['data/*.csv', 'filenames/*.txt', '.lightly_curate/*.npy', 'removed_samples.csv', 'data/samples.parquet']
    return {o.relative_to(root).as_posix(): o.read_bytes() for pattern in kept for o in sorted(root.glob(pattern))}


def test_a_run_goes_on_when_there_is_room(small_disk, tmp_path, monkeypatch):
    monkeypatch.setattr('lightly_curate.run.pipeline.refuse_faults', lambda plan: None)  # which would refuse at the start
    from lightly_curate.run.pipeline import curate
    from lightly_curate.run.start import open_run
    table = pd.DataFrame({'filenames': NAMES, **{f'embedding_{k}': EMB[:, k] for k in range(16)}, 'labels': 0})
    table.to_parquet(tmp_path/'e.parquet')
    words = [f'input_dir={tmp_path}/none', f'shared_dir={tmp_path}', 'embeddings=e.parquet', 'stopping_condition.n_samples=30',
             'steps=[select]', 'run_directory=run']
    curate(open_run(overrides=[*words, f'output_dir={tmp_path}/out']))
    whole, told = result_of(tmp_path/'out'/'run'), []
    for room in range(20_480, 4_000_000, 160_000):
        leave(small_disk, room)
        try:
            curate(open_run(overrides=[*words, f'output_dir={small_disk}']))
            break
        except OutputError as error:
            told.append(str(error))
        there = result_of(small_disk/'run')
        assert {o: whole[o] for o in there} == there, 'a file under its final name is whole'
        assert not half_files(small_disk)
    assert len(told) > 1 and all('full' in o or 'free space' in o for o in told), told
    assert result_of(small_disk/'run') == whole


@pytest.mark.slow
@pytest.mark.parametrize('small_disk', [64], indirect=True)
def test_every_stage_tells_what_did_not_fit(small_disk, tmp_path, sample_folder, monkeypatch):
    "From the first look at the input to the rendered report, on a disk that has more room after each file that did not fit."
    monkeypatch.setattr('lightly_curate.run.pipeline.refuse_faults', lambda plan: None)  # which would refuse at the start
    from lightly_curate.run.pipeline import curate
    from lightly_curate.run.start import open_run
    words = [f'input_dir={sample_folder}', *SMALL, 'enable_training=True', 'lightly.trainer.max_epochs=2', 'dump_dataset=True',
             'stopping_condition.n_samples=8', 'run_directory=run']
    curate(open_run(overrides=[*words, f'output_dir={tmp_path}/out']))
    whole, told, room = RunDir(tmp_path/'out'/'run'), [], 8192
    for _ in range(400):
        leave(small_disk, room)
        try:
            curate(open_run(overrides=[*words, f'output_dir={small_disk}']))
            break
        except CurateError as error: told.append(str(error))
        is_new = not any(o.partition(' ')[0] == told[-1].partition(' ')[0] for o in told[:-1])
        room = 8192 if is_new else 3*room
        assert not half_files(small_disk/'run'), told[-1]
    files = {o.partition(' ')[0].removeprefix(f'{small_disk}/run/') for o in told}
    print(f'{len(told)} times no room, told for', *sorted(files))
    kinds = {Path(o).suffix for o in files}
    assert not [o for o in told if not re.search('the disk is full.*free space|free some space', o)]
    assert {'.npz', '.parquet', '.ckpt', '.pdf'} <= kinds, files
    assert result_of(small_disk/'run').keys() == result_of(whole.root).keys()
    assert result_of(small_disk/'run')['filenames/sampled_filenames.txt'] == result_of(whole.root)['filenames/sampled_filenames.txt']
