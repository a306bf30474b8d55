"The scan on real and on hostile folders."
import csv
import logging
import os
import shutil

import pytest

from lightly_curate.core.errors import InputError
from lightly_curate.core.samples import check_samples
from lightly_curate.data.scan import scan


def test_all_of_odd_is_found(shared_data):
    "Every file of the manifest under its own name, whatever its name, and nothing else."
    with (shared_data/'odd'/'manifest.csv').open(encoding='utf-8', newline='') as file:
        expected = sorted((o['file'] for o in csv.DictReader(file)), key=str.encode)
    samples = scan(shared_data/'odd')
    assert samples['filename'].tolist() == expected
    assert (samples['status'] == 'ok').all()
    folders = ['broken', 'damaged', 'huge', 'names', 'valid', 'wrong_ext']
    assert samples['label'].tolist() == [folders.index(o.split('/')[0]) for o in expected]


@pytest.mark.parametrize('folder, n_images, n_labels', [
    ('camvid', 367, 1), ('labelled/caltech101', 500, 20), ('labelled/clothing', 300, 10), ('dedupe', 38, 2)])
def test_counts(shared_data, folder, n_images, n_labels):
    samples = scan(shared_data/folder)
    assert (len(samples), samples['label'].nunique()) == (n_images, n_labels)
    assert samples['filename'].tolist() == sorted(samples['filename'], key=str.encode)


def test_label_is_folder(shared_data):
    samples = scan(shared_data/'labelled'/'caltech101')
    folders = sorted(o.name for o in (shared_data/'labelled'/'caltech101').iterdir() if o.is_dir())
    assert [folders[o] for o in samples['label']] == [o.split('/')[0] for o in samples['filename']]


def test_videos_are_found(shared_data):
    samples = scan(shared_data/'videos')
    assert len(samples) == 7 and (samples['source'] == 'video').all()
    assert samples['label'].tolist() == list(range(7))


def test_videos_beside_images(tmp_path, caplog):
    for name in ('a.jpg', 'b.MP4', 'sub/c.jpg', 'sub/d.mkv'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_bytes(b'')
    with caplog.at_level(logging.INFO, logger='lightly_curate'):
        samples = scan(tmp_path)
    assert samples['source'].tolist() == ['image', 'video', 'image', 'video']
    assert samples['label'].tolist() == [0, 1, 2, 3]
    assert 'found 2 images and 2 videos in 2 folders' in caplog.text
    (tmp_path/'pipe.mp4').symlink_to('nowhere')
    assert scan(tmp_path).set_index('filename')['reason']['pipe.mp4'] == 'a link that leads to no file'


def test_log_counts_all_folders(tmp_path, caplog):
    "Every folder that holds an image, at any depth, and nothing of what there is none of."
    for name in ('1.jpg', 'a/2.jpg', 'a/b/3.jpg', 'a/b/4.jpg'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_bytes(b'')
    with caplog.at_level(logging.INFO, logger='lightly_curate'): scan(tmp_path)
    assert [o.getMessage() for o in caplog.records] == ['found 4 images in 3 folders']


def test_empty_folder_says_so(tmp_path):
    with pytest.raises(InputError, match=' is empty; allowed are'): scan(tmp_path)


def test_loops_of_links_end(tmp_path):
    "Links to self, to the parent, to each other; broken and circular links to files."
    (tmp_path/'a'/'b').mkdir(parents=True)
    (tmp_path/'a'/'b'/'1.jpg').write_bytes(b'')
    (tmp_path/'a'/'b'/'up').symlink_to(tmp_path)
    (tmp_path/'a'/'self').symlink_to(tmp_path/'a')
    (tmp_path/'round.jpg').symlink_to(tmp_path/'round.jpg')
    samples = scan(tmp_path)
    assert samples['filename'].tolist() == ['a/b/1.jpg', 'round.jpg']
    assert samples['status'].tolist() == ['ok', 'corrupt']


def test_input_dir_may_be_a_link(tmp_path):
    (tmp_path/'real').mkdir()
    (tmp_path/'real'/'1.jpg').write_bytes(b'')
    (tmp_path/'link').symlink_to(tmp_path/'real')
    assert scan(tmp_path/'link').equals(scan(tmp_path/'real'))


def test_own_runs_are_skipped(tmp_path):
    for name in ('1.jpg', 'out/2026-01-01/10-00-00/data/sampled/1.jpg', 'out/keep/2.jpg'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_bytes(b'')
    (tmp_path/'out/2026-01-01/10-00-00/.lightly_curate').mkdir()
    assert scan(tmp_path)['filename'].tolist() == ['1.jpg', 'out/keep/2.jpg']


def test_names_that_no_list_can_hold(tmp_path):
    for name in (b'caf\xe9.jpg', b'two\nlines.jpg', b'tab\there.jpg', b'fine.jpg', 'sep\u2028.jpg'.encode()):
        with open(os.path.join(os.fsencode(tmp_path), name), 'wb'): pass
    samples = check_samples(scan(tmp_path))
    assert samples['filename'].tolist() == ['caf\\xe9.jpg', 'fine.jpg', 'sep\\u2028.jpg', 'tab\there.jpg', 'two\\nlines.jpg']
    assert samples['status'].tolist() == ['corrupt', 'ok', 'corrupt', 'ok', 'corrupt']
    assert samples['reason'][0] == 'the name is not valid UTF-8; rename the file'
    '\n'.join(samples['filename']).encode('utf-8')
    assert len('\n'.join(samples['filename']).splitlines()) == len(samples)


def test_label_of_a_folder_that_is_not_utf8(tmp_path):
    for folder in (b'a', b'\xff', b'z'):
        os.mkdir(os.path.join(os.fsencode(tmp_path), folder))
        with open(os.path.join(os.fsencode(tmp_path), folder, b'1.jpg'), 'wb'): pass
    samples = scan(tmp_path)
    assert sorted(samples['label']) == [0, 1, 2]
    assert samples['status'].tolist().count('corrupt') == 1


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may list every folder')
def test_folder_that_cannot_be_listed(tmp_path):
    (tmp_path/'1.jpg').write_bytes(b'')
    (tmp_path/'closed').mkdir(mode=0o000)
    with pytest.raises(InputError, match='closed cannot be listed .permission denied.'):
        scan(tmp_path)
    (tmp_path/'closed').chmod(0o700)


def test_many_levels(tmp_path):
    "Deeper than Python's recursion limit would allow for a recursive walk is not needed, but deep is fine."
    deep = tmp_path
    for _ in range(120): deep = deep/'d'
    deep.mkdir(parents=True)
    (deep/'1.jpg').write_bytes(b'')
    assert scan(tmp_path)['filename'].tolist() == ['d/'*120 + '1.jpg']


def test_folder_with_too_long_a_path(tmp_path, caplog):
    "What cannot be opened by anybody is told in a short line and does not hold up its neighbours."
    (tmp_path/'a.jpg').write_bytes(b'')
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir('x'*250, dir_fd=here)
        inner = os.open('x'*250, os.O_RDONLY, dir_fd=here)
        for name in ('b.jpg', 'c'*240 + '.jpg'): os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.close(here)
        here = inner
    os.close(here)
    with caplog.at_level(logging.INFO, logger='lightly_curate'): samples = scan(tmp_path)
    assert 'a.jpg' in samples['filename'].tolist() and len(samples) > 21
    told = [o.getMessage() for o in caplog.records if o.levelname == 'WARNING']
    assert len(told) == 1 and 'left out 1 folder with all that lies in it, because the path is too long' in told[0] and len(told[0]) < 400
    with pytest.raises(InputError, match='which does not exist') as error: scan(tmp_path/'/'.join(['x'*250]*20))
    assert len(str(error.value)) < 400
    check_samples(samples)
    shutil.rmtree(tmp_path)
