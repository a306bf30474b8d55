"Integrity and duplicates on real folders."
import csv
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lightly_curate.clean.duplicates import mark_duplicates, mark_equal_vectors
from lightly_curate.clean.integrity import check_integrity
from lightly_curate.core.errors import InputError
from lightly_curate.core.progress import listening
from lightly_curate.core.samples import count_samples, load_samples, make_samples, save_samples
from lightly_curate.data.scan import scan


def counted(samples: pd.DataFrame) -> dict[str, int]:
    "The counts that are not 0."
    return {o: n for o, n in count_samples(samples).items() if n}


def test_odd(shared_data, tmp_path):
    "What can be read and what cannot, as listed by hand in the manifest; the table survives the disk."
    samples = check_integrity(scan(shared_data/'odd'), shared_data/'odd', n_workers=4)
    with (shared_data/'odd'/'manifest.csv').open(encoding='utf-8', newline='') as file:
        loads = {o['file']: o['pil_load'] == 'ok' for o in csv.DictReader(file)}
    assert dict(zip(samples['filename'], samples['status'] == 'ok', strict=True)) == loads
    assert count_samples(samples)['corrupt'] == 39 + 4
    assert samples.loc[samples['status'] == 'corrupt', 'reason'].str.len().min() > 4
    save_samples(samples, tmp_path/'samples.parquet')
    pd.testing.assert_frame_equal(load_samples(tmp_path/'samples.parquet'), samples)


def test_odd_duplicates(shared_data):
    "The eight files that the README of the data names, and the two pictures that are stored twice in other formats."
    samples = mark_duplicates(check_integrity(scan(shared_data/'odd'), shared_data/'odd', n_workers=4))
    named = samples[samples['filename'].str.startswith('names/') | samples['filename'].eq('wrong_ext/jpeg_inside.png')]
    group = named[named['content'] == named['content'].mode()[0]]
    assert len(group) == 8
    assert group['status'].tolist() == ['ok'] + ['duplicate']*7
    assert set(group['duplicate_of'].dropna()) == {group.index[0]}


def test_dedupe(shared_data):
    "All exact copies of bytes and of pixels, and nothing else."
    root = shared_data/'dedupe'
    samples = mark_duplicates(check_integrity(scan(root), root, n_workers=4))
    parent = {o: o for o in samples['filename']}
    with (root/'pairs.csv').open(encoding='utf-8', newline='') as file:
        pairs = [o for o in csv.DictReader(file) if o['relation'] in ('exact_bytes', 'exact_pixels')]
    assert len(pairs) == 11
    for pair in pairs: parent[pair['derived']] = pair['base']
    groups = pd.Series(parent).groupby(list(parent.values())).apply(lambda o: sorted(o.index, key=str.encode))
    expected = {name: group[0] for group in groups for name in group[1:]}
    doubled = samples[samples['status'] == 'duplicate']
    found = dict(zip(doubled['filename'], samples['filename'][doubled['duplicate_of']], strict=True))
    assert found == expected
    assert counted(samples) == dict(input=38, duplicate=11, available=27, removed=27)
    assert all(doubled['reason'] == 'same pixels as ' + doubled['filename'].map(expected))


@pytest.mark.parametrize('folder, n', [('camvid', 367), ('labelled/caltech101', 500), ('labelled/clothing', 300)])
def test_clean_folders_are_clean(shared_data, folder, n):
    samples = mark_duplicates(check_integrity(scan(shared_data/folder), shared_data/folder, n_workers=2))
    with_size = samples[['width', 'height']].notna().all(axis=1)
    assert (len(samples), count_samples(samples)['corrupt'], int(with_size.sum())) == (n, 0, n)
    if folder == 'camvid':
        assert count_samples(samples)['duplicate'] == 0
        assert set(zip(samples['width'], samples['height'], strict=True)) == {(480, 360)}


def test_sample_data(sample_folder):
    samples = mark_duplicates(check_integrity(scan(sample_folder), sample_folder, n_workers=2))
    assert counted(samples) == dict(input=60, corrupt=1, duplicate=3, available=56, removed=56)


def test_threads_and_repeats_agree(sample_folder):
    found = scan(sample_folder)
    tables = [check_integrity(found, sample_folder, n_workers=o) for o in (1, 5, 5)]
    for table in tables[1:]: pd.testing.assert_frame_equal(table, tables[0])
    assert found['status'].eq('ok').all() and found['content'].isna().all(), 'the argument is not changed'


def test_progress_and_log(sample_folder, caplog):
    ticks = []
    with listening(ticks.append), caplog.at_level(logging.INFO, logger='lightly_curate'):
        mark_duplicates(check_integrity(scan(sample_folder), sample_folder, n_workers=2))
    assert (ticks[0].n_done, ticks[-1].n_done, ticks[-1].n_total) == (0, 60, 60)
    assert 'checked 60 images' in caplog.text and '1 cannot be read' in caplog.text
    assert 'found 3 exact duplicates' in caplog.text


def test_size_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new('RGB', (30, 20)).save(tmp_path/'a.jpg', exif=exif)
    Image.new('RGB', (20, 30)).save(tmp_path/'b.png')
    samples = mark_duplicates(check_integrity(scan(tmp_path), tmp_path, n_workers=1))
    assert samples[['width', 'height']].to_numpy().tolist() == [[20, 30]]*2
    assert samples['status'].tolist() == ['ok', 'duplicate'], 'a black picture on its side is the black picture upright'


def test_all_corrupt_is_an_error(shared_data, tmp_path):
    for path in (shared_data/'odd'/'broken').iterdir(): shutil.copy(path, tmp_path/path.name)
    with pytest.raises(InputError, match='none of the 39 files and frames'):
        check_integrity(scan(tmp_path), tmp_path, n_workers=2)


def test_faults_of_the_scan_stay(tmp_path):
    "A row the scan has refused is not opened and keeps its reason."
    Image.new('RGB', (4, 4)).save(tmp_path/'good.png')
    (tmp_path/'gone.jpg').symlink_to('nowhere')
    samples = check_integrity(scan(tmp_path), tmp_path, n_workers=1)
    assert samples['reason'].tolist()[0] == 'a link that leads to no file'
    assert samples['status'].tolist() == ['corrupt', 'ok']


def test_pixel_limit_is_passed_on(sample_folder):
    with pytest.raises(InputError, match='more than max_image_pixels allows .10.'):
        check_integrity(scan(sample_folder), sample_folder, n_workers=2, max_pixels=10)


def test_equal_vectors():
    rng = np.random.default_rng(0)
    emb = rng.normal(size=(50, 8)).astype(np.float32)
    emb[[10, 20, 30]] = emb[[3, 3, 7]]
    emb[40] = np.nextafter(emb[4], np.float32(9))
    marked = mark_equal_vectors(make_samples([f'{o:02}.jpg' for o in range(50)]), emb)
    assert marked['duplicate_of'].dropna().to_dict() == {10: 3, 20: 3, 30: 7}
    assert marked['reason'][10] == 'same embedding as 03.jpg'


def test_zero_has_no_sign():
    "0. and -0. are one number, so vectors that differ in nothing else are the same."
    emb = np.array([[0., 1.], [-0., 1.], [1., -0.], [1., 0.]], dtype=np.float32)
    assert emb[0].tobytes() != emb[1].tobytes()
    marked = mark_equal_vectors(make_samples([f'{o}.jpg' for o in 'abcd']), emb)
    assert marked['duplicate_of'].dropna().to_dict() == {1: 0, 3: 2}


def test_order_of_vectors_does_not_matter():
    "Rows in any order, the first in table order stays."
    emb = np.array([[1.], [2.], [1.], [2.], [3.]], dtype=np.float32)
    table = make_samples([f'{o}.jpg' for o in 'abcde'])
    rows = np.array([3, 0, 4, 2, 1])
    pd.testing.assert_frame_equal(mark_equal_vectors(table, emb[rows], rows), mark_equal_vectors(table, emb))


def test_log_of_one(tmp_path, caplog):
    "One image is no images."
    Image.new('RGB', (30, 20)).save(tmp_path/'a.png')
    with caplog.at_level(logging.INFO, logger='lightly_curate'): check_integrity(scan(tmp_path), tmp_path, n_workers=1)
    assert 'checked 1 image in' in caplog.text
    Image.new('RGB', (30, 20)).save(tmp_path/'b.png')
    with caplog.at_level(logging.INFO, logger='lightly_curate'):
        mark_duplicates(check_integrity(scan(tmp_path), tmp_path, n_workers=1))
    assert 'found 1 exact duplicate (same pixels)' in caplog.text
