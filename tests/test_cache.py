"The training cache: as good as the files, and right after whatever happened to it."
from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightly_curate.core.errors import InputError
from lightly_curate.core.samples import make_samples
from lightly_curate.data.images import UnreadableImage, read_rgb
from lightly_curate.data.pictures import decode_small, read_small, shrink
from lightly_curate.data.sample_data import sample_photos
from lightly_curate.learn.cache import build_cache, cache_bytes, cache_side, open_cache
from PIL import ExifTags, Image
from torchvision.transforms import v2

SIDE = cache_side(-1, 64, .15)


def photograph(path: Path, width: int, height: int, **options: object) -> Path:
    "A photograph of that size, enlarged, with the noise of a sensor."
    photo = sample_photos()['china'].resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).integers(-6, 7, (height, width, 1))
    Image.fromarray(np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8)).save(path, **options)
    return path


def view_differences(whole: Image.Image, small: Image.Image, n_views: int = 12) -> np.ndarray:
    "How far lightly's crops of the cached picture are from the same parts of the whole one, 0 to 255."
    crop, differences = v2.RandomResizedCrop(64, scale=(.15, 1.)), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(n_views):
            at = crop.make_params([small])
            of_small = np.asarray(v2.functional.resized_crop(small, **at, size=[64, 64]), dtype=float)
            by = whole.width/small.width
            box = (at['left']*by, at['top']*by, min(whole.width, (at['left'] + at['width'])*by), min(whole.height, (at['top'] + at['height'])*by))
            differences.append(np.abs(of_small - np.asarray(whole.resize((64, 64), Image.Resampling.BILINEAR, box=box))))
    return np.array(differences)


@pytest.mark.parametrize(('width', 'height', 'mean'), [(4000, 3000, 2.), (1600, 1200, 2.), (480, 360, 3.)])
def test_views_are_close(tmp_path: Path, width: int, height: int, mean: float) -> None:
    "A view from the cache is the view from the file within a level or two of 255."
    path = photograph(tmp_path/'photo.jpg', width, height, quality=90)
    off = view_differences(read_rgb(path), read_small(path, SIDE))
    print(f'{width}x{height}: mean {off.mean():.2f}, 99th percentile {np.percentile(off, 99):.0f}, largest {off.max():.0f} of 255')
    assert off.mean() < mean and np.percentile(off, 99) < 15


def test_small_pictures_are_themselves(sample_folder: Path) -> None:
    "What needs no shrinking is bit-identical."
    for path in sorted(o for o in sample_folder.rglob('*.*') if 'broken' not in o.parts)[:12]:
        image = read_rgb(path)
        np.testing.assert_array_equal(read_small(path, min(image.size)), image)


@pytest.mark.parametrize('turn', range(1, 9))
def test_orientation(tmp_path: Path, turn: int) -> None:
    "A turned JPEG is as upright, and in the same place, when it was decoded at a part of its size."
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    path = photograph(tmp_path/'photo.jpg', 801, 533, quality=92, exif=exif)  # no multiple of 8: the last block is padded
    small, slow = read_small(path, 60), shrink(read_rgb(path), 60)
    assert decode_small(path, 60, 10**6) is not None and small.size == slow.size
    assert np.abs(np.asarray(small, dtype=float) - np.asarray(slow)).mean() < 3.5


@pytest.mark.parametrize(('name', 'mode'), [('a.jpg', 'CMYK'), ('a.jpg', 'L'), ('a.png', 'RGBA'), ('a.png', 'P'), ('a.png', 'I;16'), ('a.png', '1'),
                                            ('a.gif', 'P'), ('a.webp', 'RGB'), ('a.tif', 'F')])
def test_modes(tmp_path: Path, name: str, mode: str) -> None:
    photo = sample_photos()['china'].resize((320, 214))
    if mode == 'I;16': Image.fromarray(np.asarray(photo.convert('L')).astype(np.uint16)*200).save(tmp_path/name)
    else: photo.convert(mode).save(tmp_path/name)
    small, slow = read_small(tmp_path/name, 50), shrink(read_rgb(tmp_path/name), 50)
    assert (small.mode, small.size) == ('RGB', (75, 50))
    assert np.abs(np.asarray(small, dtype=float) - np.asarray(slow)).mean() < 3.5


def test_odd_files(shared_data: Path, tmp_path: Path) -> None:
    "What cannot be read has the same reason as without a cache, and everything else is as large as was told."
    names = sorted(o.relative_to(shared_data).as_posix() for o in (shared_data/'odd').rglob('*') if o.is_file())
    samples = make_samples(names)
    pictures = build_cache(samples, samples.index.to_numpy(), shared_data, 40, tmp_path/'cache', 2, max_pixels=30_000_000)
    failed = pictures.failed
    for row, name in samples['filename'].items():
        try:
            whole = read_rgb(shared_data/name, 30_000_000)
        except UnreadableImage as error:
            assert failed[row] == error.reason, name
            continue
        assert row not in failed, name
        small = pictures.picture(int(np.flatnonzero(pictures.rows == row)[0]))
        assert small.size == shrink(whole, 40).size, name
    assert pictures.n_bytes == cache_bytes(samples, pictures.rows, 40, shared_data)


def test_threads_and_speed(sample_folder: Path, tmp_path: Path) -> None:
    "The cache does not depend on the number of threads, and a picture is there at once."
    samples = make_samples(sorted(o.relative_to(sample_folder).as_posix() for o in sample_folder.rglob('*.*')))
    rows = samples.index.to_numpy()
    one = build_cache(samples, rows, sample_folder, SIDE, tmp_path/'one', 1)
    three = build_cache(samples, rows, sample_folder, SIDE, tmp_path/'three', 3)
    assert (tmp_path/'one'/'pixels.bin').read_bytes() == (tmp_path/'three'/'pixels.bin').read_bytes()
    assert (one.offsets == three.offsets).all() and len(one) == len(rows) - 1
    taken = []
    for i in range(len(one)):
        begun = time.perf_counter()
        one.picture(i)
        taken.append(time.perf_counter() - begun)
    assert np.median(taken) < .002, f'{np.median(taken)*1e6:.0f} microseconds'


KILLED = '''
import sys, os, signal
from pathlib import Path
import lightly_curate.learn.cache as cache
from lightly_curate.core.samples import make_samples
add = cache.PixelFile.add
def add_some(self, row, pixels):
    if len(self.places) == 20: os.kill(os.getpid(), signal.SIGKILL)
    add(self, row, pixels)
    if len(self.places) == 15: self.parts.flush()
cache.PixelFile.add = add_some
root, folder = map(Path, sys.argv[1:])
samples = make_samples(sorted(o.relative_to(root).as_posix() for o in root.rglob('*.*')))
cache.build_cache(samples, samples.index.to_numpy(), root, 100, folder, 1)
'''


def test_killed_in_the_middle(sample_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    "After a kill there is no cache; the next start goes on from the last part, and makes the right one."
    folder = tmp_path/'cache'
    done = subprocess.run([sys.executable, '-c', KILLED, str(sample_folder), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (folder/'pixels.bin').exists(), 'nothing was left, so nothing is tested'
    with pytest.raises(InputError, match='no finished training cache'): open_cache(folder)
    samples = make_samples(sorted(o.relative_to(sample_folder).as_posix() for o in sample_folder.rglob('*.*')))
    rows = samples.index.to_numpy()
    with caplog.at_level('INFO', logger='lightly_curate'): pictures = build_cache(samples, rows, sample_folder, 100, folder, 2)
    assert '15 of them are cached already' in caplog.text
    fresh = build_cache(samples, rows, sample_folder, 100, tmp_path/'fresh', 2)
    assert (folder/'pixels.bin').read_bytes() == (tmp_path/'fresh'/'pixels.bin').read_bytes()
    assert fresh.failed == pictures.failed and list(pictures.failed.values()) == ['the file ends too early'] and len(pictures) == len(rows) - 1
    assert sorted(o.name for o in folder.iterdir()) == ['index.npz', 'pixels.bin']
