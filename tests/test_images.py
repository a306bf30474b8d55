"Opening what real folders hold."
import csv
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightly_curate.core.samples import make_samples
from lightly_curate.data import images
from lightly_curate.data.batches import load_batches, square_pixels
from lightly_curate.data.images import MAX_IMAGE_PIXELS, UnreadableImage, content_hash, open_image, read_rgb, thumbnail, to_rgb
from lightly_curate.data.scan import scan


def manifest(shared_data: Path, *folders: str) -> list[dict[str, str]]:
    with (shared_data/'odd'/'manifest.csv').open(encoding='utf-8', newline='') as file:
        return [o for o in csv.DictReader(file) if o['file'].split('/')[0] in folders]


def test_good_pictures_are_read(shared_data):
    "Every valid, damaged, oddly named and misnamed file, with the size that the manifest says, upright."
    rows = manifest(shared_data, 'valid', 'damaged', 'names', 'wrong_ext')
    assert len(rows) == 41 + 1 + 17 + 4
    for row in rows:
        image = open_image(shared_data/'odd'/row['file'])
        size = int(row['width']), int(row['height'])
        assert image.size in (size, size[::-1]), row['file']
        rgb = to_rgb(image)
        assert (rgb.mode, rgb.size) == ('RGB', image.size), row['file']
        assert len(content_hash(image)) == 32


def test_broken_pictures_are_refused(shared_data):
    rows = manifest(shared_data, 'broken', 'huge')
    assert len(rows) == 39 + 4
    for row in rows:
        with pytest.raises(UnreadableImage) as refusal: open_image(shared_data/'odd'/row['file'])
        reason = refusal.value.reason
        assert 5 <= len(reason) <= 160 and '\n' not in reason, row['file']
        assert str(shared_data) not in reason and ' at 0x' not in reason, reason
        assert reason == pytest.raises(UnreadableImage, open_image, shared_data/'odd'/row['file']).value.reason


def test_reasons_are_plain(shared_data):
    "A handful of sentences; what the decoder said stands behind in brackets."
    plain = ('the file is empty', 'the file ends too early', 'the picture data is damaged (', 'begins as a picture, but the header is damaged',
             'the content is not a picture in a format that is read', 'HEIC, which is not read')
    for row in manifest(shared_data, 'broken'):
        reason = pytest.raises(UnreadableImage, open_image, shared_data/'odd'/row['file']).value.reason
        assert reason.startswith(plain), (row['file'], reason)
    for name in ('truncated_1.jpg', 'truncated_3.png', 'short.bmp'):
        with pytest.raises(UnreadableImage, match='^the file ends too early$'): open_image(shared_data/'odd'/'broken'/name)


def test_mode_is_part_of_the_hash():
    "The same size and the same bytes in another mode are another picture."
    assert Image.new('RGBA', (5, 4)).tobytes() == Image.new('CMYK', (5, 4)).tobytes() == Image.new('F', (5, 4)).tobytes()
    assert len({content_hash(Image.new(o, (5, 4))) for o in ('RGBA', 'CMYK', 'F', 'I')}) == 4
    assert content_hash(Image.new('LA', (5, 4))) != content_hash(Image.new('I;16', (5, 4)))


def test_huge_pictures_say_why(shared_data):
    for name, words in {'16384x16384.png': '268,435,456 pixels', 'bomb.gif': '4,364,696,535 pixels', 'reallybig.bmp': 'pixels',
                        'text_chunk_bomb.png': 'text block'}.items():
        with pytest.raises(UnreadableImage, match=words): open_image(shared_data/'odd'/'huge'/name)


def test_no_bomb_takes_the_memory(shared_data):
    "All of huge and broken, in four threads, in a process of its own: peak memory stays small."
    code = ('import resource, sys; from pathlib import Path; from concurrent.futures import ThreadPoolExecutor\n'
            'from lightly_curate.data.images import UnreadableImage, open_image\n'
            'def n_refused(path):\n'
            '    try: open_image(path)\n'
            '    except UnreadableImage: return 1\n'
            '    return 0\n'
            'before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
            'paths = [o for name in ("huge", "broken") for o in sorted((Path(sys.argv[1])/name).iterdir())]\n'
            'with ThreadPoolExecutor(4) as pool: n = sum(pool.map(n_refused, paths))\n'
            'print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n')
    done = subprocess.run([sys.executable, '-c', code, str(shared_data/'odd')], capture_output=True, text=True, check=True)
    n_refused, grown_kb = map(int, done.stdout.split())
    assert n_refused == 43
    assert grown_kb < 150_000, f'{grown_kb} kB'


def test_limit_above_pillows_own(shared_data):
    "A limit of 300 million pixels lets the header of a 268 million pixel file pass; the limit itself is put back."
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UnreadableImage, match='max_image_pixels allows .268,435,455'):
        open_image(shared_data/'odd'/'huge'/'16384x16384.png', max_pixels=268_435_455)
    assert Image.MAX_IMAGE_PIXELS == before
    assert 2*before == MAX_IMAGE_PIXELS, 'our limit is the one of Pillow'


@pytest.mark.slow
def test_huge_picture_can_be_allowed(shared_data):
    assert open_image(shared_data/'odd'/'huge'/'16384x16384.png', max_pixels=268_435_456).size == (16384, 16384)


def test_orientation(shared_data):
    "The eight orientations of one picture look alike when upright."
    valid = shared_data/'odd'/'valid'
    plain = np.asarray(read_rgb(valid/'exif_orientation_none.jpg')).astype(int)
    for path in sorted(valid.glob('exif_orientation_?.*')):
        assert np.abs(np.asarray(read_rgb(path)).astype(int) - plain).mean() < 8, path.name
    assert open_image(valid/'tiff_1bit_orientation_5.tif').size == (590, 88)


def test_deep_pictures_are_not_white(shared_data):
    for name, spread in {'png_16bit_gray.png': 5, 'tiff_float32.tiff': 5, 'tiff_16bit.tif': 0}.items():
        pixels = np.asarray(read_rgb(shared_data/'odd'/'valid'/name))
        assert pixels.std() > spread and (pixels == 255).mean() < .2, name


def test_big_pictures_one_at_a_time(tmp_path, monkeypatch):
    "However many threads ask, a single big picture is being decoded."
    Image.effect_noise((300, 300), 50).save(tmp_path/'a.png')
    inside, most = [], []
    def watched(image: Image.Image) -> Image.Image:
        inside.append(1)
        most.append(len(inside))
        time.sleep(.005)
        inside.pop()
        return image
    monkeypatch.setattr(images, 'upright', watched)
    for big_pixels, check in [(89_999, lambda o: o == 1), (90_000, lambda o: o > 1)]:
        monkeypatch.setattr(images, 'BIG_PIXELS', big_pixels)
        most.clear()
        with ThreadPoolExecutor(4) as pool: list(pool.map(open_image, [tmp_path/'a.png']*12))
        assert check(max(most)), (big_pixels, most)


def test_same_bytes_same_hash(shared_data):
    odd = shared_data/'odd'
    copies = ['image.jpg', 'image .jpg', 'image%20space.jpg', 'image.jpg%23something', 'image', 'maracujá.jpg',
              '15967251_212831_19242645_АгатавЗоопарке.jpg']
    hashes = {content_hash(open_image(odd/'names'/o)) for o in copies} | {content_hash(open_image(odd/'wrong_ext'/'jpeg_inside.png'))}
    assert len(hashes) == 1


def test_threads_agree(shared_data):
    paths = [shared_data/'odd'/o['file'] for o in manifest(shared_data, 'valid', 'wrong_ext')]*3
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda o: content_hash(open_image(o)), paths))
    assert together == [content_hash(open_image(o)) for o in paths]


@pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='counts open files by /proc')
def test_no_file_stays_open(shared_data):
    rows = manifest(shared_data, 'valid', 'broken', 'huge')
    before = len(os.listdir('/proc/self/fd'))
    kept = []
    for row in rows:
        try: kept.append(open_image(shared_data/'odd'/row['file']))
        except UnreadableImage: continue
    assert len(os.listdir('/proc/self/fd')) == before
    for image in kept: to_rgb(image)


def test_pipe_and_folder_do_not_block(tmp_path):
    os.mkfifo(tmp_path/'pipe.jpg')
    for path in (tmp_path, tmp_path/'pipe.jpg'):
        with pytest.raises(UnreadableImage, match='not a regular file'): open_image(path)
    with pytest.raises(UnreadableImage, match='no such file'): open_image(tmp_path/'absent.jpg')


def test_colour_profile_survives_turning(tmp_path):
    "Whoever saves an opened picture needs its profile, and must not turn it twice."
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (8, 4), (200, 30, 30)).save(tmp_path/'a.jpg', exif=exif, icc_profile=b'a profile')
    image = open_image(tmp_path/'a.jpg')
    assert image.size == (4, 8)
    assert image.info['icc_profile'] == b'a profile'
    for extension in ('jpg', 'png', 'webp', 'tiff'):
        image.save(tmp_path/f'b.{extension}')
        assert open_image(tmp_path/f'b.{extension}').size == (4, 8), extension


def test_resize_is_torchvisions(shared_data):
    "Same weights, same vectors: the pixels that a model sees are those of lightly's transform."
    from torchvision.transforms import Resize
    for name in ('camvid/0001TP_006690.jpg', 'odd/valid/thin_940x2.png', 'odd/valid/cmyk.jpg', 'odd/valid/tiny_1x1.png'):
        image = read_rgb(shared_data/name)
        with Image.open(shared_data/name) as opened: plain = opened.convert('RGB')
        for size in (32, 64, 224):
            np.testing.assert_array_equal(square_pixels(image, size), np.asarray(Resize((size, size))(plain)))


def test_batches_of_odd(shared_data):
    "Every row comes back once, read or failed, in order."
    samples = scan(shared_data/'odd')
    rows = samples.index.to_numpy()[::-1]
    batches = list(load_batches(samples, rows, shared_data/'odd', 32, 16, n_workers=4))
    n_good = 41 + 1 + 17 + 4
    assert sum(len(o.rows) for o in batches) == n_good
    assert [r for o in batches for r in sorted([*o.rows.tolist(), *o.failed], reverse=True)] == rows.tolist()
    assert all(o.pixels.shape == (len(o.rows), 32, 32, 3) for o in batches)


def test_batches_take_paths_not_names(tmp_path):
    "`path` is the file, `filename` only its name: frames of a video will share one."
    Image.new('RGB', (4, 4), (9, 9, 9)).save(tmp_path/'stored.png')
    samples = make_samples(['shown.png'], paths=['stored.png'])
    assert next(load_batches(samples, np.array([0]), tmp_path, 2, 1, 1)).pixels.tolist() == [[[[9]*3]*2]*2]


def test_thumbnail(shared_data):
    assert thumbnail(shared_data/'odd'/'valid'/'thin_940x2.png', 100).size == (100, 1)
    assert max(thumbnail(shared_data/'camvid'/'0001TP_006690.jpg', 120).size) == 120
