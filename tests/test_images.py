"Opening what real folders hold."
import csv
import io
import os
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightly_curate.core.samples import make_samples
from lightly_curate.data import images
from lightly_curate.data.batches import load_batches
from lightly_curate.data.images import MAX_IMAGE_PIXELS, UnreadableImage, content_hash, open_image, read_rgb, thumbnail, to_rgb
from lightly_curate.data.isolated import idle, stop
from lightly_curate.data.pictures import in_worker, square_pixels
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


N_FRAMES, LONG = 100_000, 100_000_000  # frames; bytes
TEXT_TOO_LONG = 'a text block in the file unpacks to more than Pillow allows'


def chunk(kind: bytes, data: bytes) -> bytes:
    "Of a PNG."
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(extra: bytes, pixels: bytes = bytes(8*9), after: bytes = b'') -> bytes:
    "8 by 8 pixels, grey."
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 8, 8, 8, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + extra + chunk(b'IDAT', zlib.compress(pixels, 1)) + after + chunk(b'IEND', b'')


def saved(image: Image.Image, kind: str, **options) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def animated_png() -> bytes:
    control = struct.pack('>IIIIHHBB', 8, 8, 0, 0, 1, 10, 0, 0)
    frame = zlib.compress(bytes(8*9))
    later = [chunk(b'fcTL', struct.pack('>I', 2*i + 1) + control) + chunk(b'fdAT', struct.pack('>I', 2*i + 2) + frame) for i in range(N_FRAMES - 1)]
    return png(chunk(b'acTL', struct.pack('>II', N_FRAMES, 0)) + chunk(b'fcTL', struct.pack('>I', 0) + control), after=b''.join(later))


def animated_gif() -> bytes:
    one = saved(Image.new('P', (8, 8)), 'GIF')
    at = one.index(b',')
    return one[:at] + (b'\x21\xf9\x04\0\1\0\0\0' + one[at:-1])*N_FRAMES + b';'


def animated_webp() -> bytes:
    one = saved(Image.new('RGB', (8, 8)), 'WEBP', lossless=True)[12:]
    frame = b'ANMF' + struct.pack('<I', 16 + len(one)) + bytes(6) + b'\7\0\0\7\0\0\x0a\0\0\0' + one
    body = b'WEBPVP8X\x0a\0\0\0\2\0\0\0\7\0\0\7\0\0ANIM\6\0\0\0' + bytes(6) + frame*N_FRAMES
    return b'RIFF' + struct.pack('<I', len(body)) + body


def many_pages(is_loop: bool) -> bytes:
    "A TIFF whose pages share their pixels, the last followed by none or by the first."
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 64)]
    page = struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *o) for o in tags)
    n_pages, begin, step = 1 if is_loop else N_FRAMES, 8 + 64, len(page) + 4
    nexts = [begin + step*(i + 1) for i in range(n_pages - 1)] + [begin if is_loop else 0]
    return b'II*\0' + struct.pack('<I', begin) + bytes(64) + b''.join(page + struct.pack('<I', o) for o in nexts)


def looped_exif() -> bytes:
    "A JPEG whose EXIF block refers to itself 5,000 times."
    entries = struct.pack('>HHII', 0x8769, 4, 1, 8)*5000
    block = b'Exif\0\0MM\0*\0\0\0\x08' + struct.pack('>H', 5000) + entries + bytes(4)
    plain = saved(Image.new('L', (8, 8)), 'JPEG')
    return plain[:2] + b'\xff\xe1' + struct.pack('>H', 2 + len(block)) + block + plain[2:]


def with_comments() -> bytes:
    plain = saved(Image.new('L', (8, 8)), 'JPEG')
    return plain[:2] + (b'\xff\xfe\xff\xff' + bytes(65_533))*(LONG//65_537) + plain[2:]


HOSTILE = {  # name: what makes the file, the reason or None, most memory of the worker in MB
    'profile.png': (lambda: png(chunk(b'iCCP', b'p\0\0' + zlib.compress(bytes(LONG), 1))), TEXT_TOO_LONG, 150),
    'packed_text.png': (lambda: png(chunk(b'zTXt', b'c\0\0' + zlib.compress(bytes(LONG), 1))), TEXT_TOO_LONG, 150),
    'packed_unicode.png': (lambda: png(chunk(b'iTXt', b'c\0\1\0\0\0' + zlib.compress(bytes(LONG), 1))), TEXT_TOO_LONG, 150),
    'text.png': (lambda: png(chunk(b'tEXt', b'c\0' + b'a'*LONG)), TEXT_TOO_LONG, 700),
    'exif.png': (lambda: png(chunk(b'eXIf', b'MM\0*\0\0\0\x08' + bytes(LONG))), None, 700),
    'unknown_chunk.png': (lambda: png(chunk(b'vpAg', bytes(LONG))), None, 500),
    'more_pixels_than_told.png': (lambda: png(b'', bytes(LONG)), None, 150),
    'exif_loop.jpg': (looped_exif, None, 150),
    'comments.jpg': (with_comments, None, 400),
    'frames.png': (animated_png, None, 150),
    'frames.gif': (animated_gif, None, 150),
    'frames.webp': (animated_webp, None, 200),
    'pages.tif': (lambda: many_pages(False), None, 150),
    'page_loop.tif': (lambda: many_pages(True), None, 150),
    'fax_bomb.tif': (lambda: saved(Image.new('1', (6000, 6000)), 'TIFF', compression='group4'), None, 400),
    'token.ppm': (lambda: b'P6\n' + b'1'*10**7 + b' 1 255\n', 'the picture data is damaged (ValueError: b\'Token too long in file header: 11111111111\')', 150),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_files(tmp_path, name):
    "Bombs, blocks of 100 MB and 100,000 frames: an answer within seconds, in bounded memory, of the first frame alone."
    make, reason, most_mb = HOSTILE[name]
    (tmp_path/name).write_bytes(make())
    stop()
    began = time.perf_counter()
    told = in_worker('content', tmp_path/name, seconds=30.)
    assert told.get('reason') == reason
    if reason is None: assert (told['width'], told['height']) == ((6000, 6000) if 'bomb' in name else (8, 8))
    assert time.perf_counter() - began < 10
    (worker,) = idle
    (peak,) = (o for o in Path(f'/proc/{worker.process.pid}/status').read_text().splitlines() if o.startswith('VmHWM'))
    assert int(peak.split()[1]) < 1000*most_mb, f'{peak}, allowed is {most_mb} MB'
