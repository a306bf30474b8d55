"Strange and damaged videos: each gives its frames, or a reason in words, or both; never a traceback, never a wait, never another frame."
import faulthandler
import os
import signal
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from lightly_curate.core.samples import make_samples, with_columns
from lightly_curate.data.frames import VideoPass, finish, pictures_of
from lightly_curate.data.scan import scan
from lightly_curate.data.video import (
    Tally, UnreadableVideo, VideoFacts, VideoReader, Wanted, expected_frames, find_frames, frame_hash, frame_image, frame_name, video_packets)
from lightly_curate.deliver.dump import dump_selected

SIZE = (64, 48)     # width, height, pixels
PATIENCE_S = 20     # for one test
X264 = {'preset': 'ultrafast', 'threads': '1', 'sc_threshold': '0', 'bf': '0'}
X265 = {'preset': 'ultrafast', 'x265-params': 'log-level=none:pools=1:bframes=2'}
VPX = {'deadline': 'realtime', 'cpu-used': '8'}
ALTREF = {'deadline': 'good', 'cpu-used': '8', 'auto-alt-ref': '1', 'lag-in-frames': '16', 'arnr-maxframes': '5'}
AV1 = {'preset': '12', 'svtav1-params': 'lp=1'}
MPEG2 = {'bf': '2', 'b': '2M', 'minrate': '2M', 'maxrate': '2M', 'qmin': '1', 'qmax': '2'}
UNEVEN_MS = [0, 40, 80, 200, 240, 280, 900, 940, 980, 1000, 1300, 1340, 1380, 1400, 1440, 1480, 1500, 1600, 1700, 1800]


@pytest.fixture(autouse=True)
def patience():
    "A test that waits for ever fails; one that waits inside of FFmpeg ends the run."
    def stop(*_): raise TimeoutError(f'no result after {PATIENCE_S} s')
    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE_S)
    faulthandler.dump_traceback_later(3*PATIENCE_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


# ---- making videos

def drawn(number, size=SIZE):
    "Picture of a frame: no two numbers give the same."
    width, height = size
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x*3 + 7*number, y*5 + 11*number, (x + y)*2 + 3*number], axis=-1) % 256
    picture[height//4:height//2] = np.random.default_rng(number).integers(0, 256, (height//2 - height//4, 1, 3))
    return picture.astype(np.uint8)


def film(path, codec='libx264', n=20, size=SIZE, pixels='yuv420p', fps=10, gop=5, options=None, container=None, mux=None, ms=None,
         n_streams=1, cover=False, sound_s=0., first=0):
    "Write a video; `ms` are the times of its frames."
    kind = {'libx264': X264, 'libx264rgb': X264, 'libx265': X265, 'libvpx': VPX, 'libvpx-vp9': VPX, 'libsvtav1': AV1}.get(codec, {})
    tick = Fraction(1, fps) if ms is None else Fraction(1, 1000)
    with av.open(str(path), 'w', format=container, options=mux or {}) as out:
        streams = []
        for _ in range(n_streams):
            stream = out.add_stream(codec, rate=fps, options={**kind, **(options or {})})
            stream.width, stream.height, stream.pix_fmt = *size, pixels
            stream.codec_context.time_base, stream.codec_context.gop_size, stream.codec_context.thread_count = tick, gop, 1
            streams.append(stream)
        sound = out.add_stream('aac', rate=8000, layout='mono') if sound_s else None
        if cover: add_cover(out)
        for number, stream in enumerate(streams):
            for i in range(n):
                frame = av.VideoFrame.from_ndarray(drawn(first + i + 100*number, size), format='rgb24').reformat(format=pixels)
                frame.pts, frame.time_base = i if ms is None else ms[i], tick
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        if sound: add_sound(out, sound, sound_s)
    return path


def add_sound(out, stream, seconds):
    for i in range(0, int(seconds*8000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
        frame.sample_rate, frame.pts, frame.time_base = 8000, i, Fraction(1, 8000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def add_cover(out):
    stream = out.add_stream('mjpeg', rate=1)
    stream.width, stream.height, stream.pix_fmt, stream.disposition = 16, 16, 'yuvj420p', av.stream.Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(drawn(0, (16, 16)), format='rgb24').reformat(format='yuvj420p')
    frame.pts = 0
    out.mux(stream.encode(frame) + stream.encode(None))


def shifted(path, source, stamps):
    "Copy a video of keyframes; packet i gets the time stamp stamps[i], backwards or not."
    with av.open(str(source)) as old, av.open(str(path), 'w') as out:
        stream = out.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(o for o in old.demux(video=0) if o.size):
            packet.pts, packet.dts, packet.stream = stamps[i], min(stamps[i:]), stream
            out.mux(packet)
    return path


def with_matrix(path, matrix):
    "Write a display matrix (a, b, c, d) into the first track of an MP4 file."
    a, b, c, d = (round(o*65_536) for o in matrix)
    content = bytearray(path.read_bytes())
    start = content.index(b'tkhd') + 44
    content[start:start + 36] = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.fixture(scope='session')
def zoo(tmp_path_factory):
    "Function that makes a video on first use: name, and arguments of `film`."
    folder, made = tmp_path_factory.mktemp('zoo'), {}
    def get(name, **arguments):
        if name not in made: made[name] = film(folder/name, **arguments)
        return made[name]
    return get


# ---- looking at them

@dataclass
class Outcome:
    "What reading a video gives."
    hashes: list = field(default_factory=list)
    stamps: list = field(default_factory=list)
    images: list = field(default_factory=list)
    facts: VideoFacts | None = None
    reason: str | None = None      # of the facts, or why nothing can be read


def read(path, n_threads=1, **arguments):
    found = Outcome()
    with VideoReader(path, n_threads, **arguments) as reader:
        try:
            for frame in reader:
                assert frame.index == len(found.hashes)
                found.hashes.append(frame_hash(frame))
                found.stamps.append(frame.pts)
                found.images.append(frame_image(frame))
            found.facts, found.reason = reader.facts, reader.facts.reason
        except UnreadableVideo as error:
            found.reason = error.reason
    return found


def assert_words(reason):
    "A reason is one line for people."
    assert reason and reason[:1].islower() or reason[:1].isdigit(), reason
    assert '\n' not in reason and 'Error' not in reason and '/tmp' not in reason and len(reason) < 300, reason


def table_of(path, n_workers=2):
    done = VideoPass(make_samples([path.name], labels=[0], source=['video']), path.parent, n_workers)
    for batch in done.batches(0, 16): done.add(batch)
    return finish(done)


def check(path):
    "Read a video in every way there is; all have to agree."
    found, three = read(path), read(path, 3)
    assert (found.hashes, found.stamps, found.facts, found.reason) == (three.hashes, three.stamps, three.facts, three.reason)
    assert expected_frames(path) >= 0
    if found.reason is not None: assert_words(found.reason)
    n = len(found.hashes)
    told = table_of(path)
    frames = told.samples[told.samples['source'] == 'frame'].sort_values('frame')
    assert frames['content'].tolist() == found.hashes and frames['frame'].tolist() == list(range(n))
    assert frames['filename'].tolist() == [frame_name(path.name, i, n) for i in range(n)]
    assert (frames['status'] != 'corrupt').all()
    videos = told.samples[told.samples['source'] == 'video']
    assert videos['reason'].tolist() == ([] if found.reason is None else [found.reason]) and (videos['status'] == 'corrupt').all()
    assert found.facts is None or (found.facts.n_frames == n and 0 <= found.facts.n_lost)
    wanted = [Wanted(i, i, found.stamps[i], found.hashes[i]) for i in sorted({0, n//2, n - 1}) if 0 <= i < n]
    for one, picture in find_frames(path, wanted):
        assert isinstance(picture, Image.Image), picture
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(found.images[one.index]))
    return found


def is_like(image, number, size=SIZE, at_most=40):
    "Whether an image shows what was drawn, within what a codec loses."
    return image.size == size and np.abs(np.asarray(image).astype(float) - drawn(number, size)).mean() < at_most


# ---- whole, if strange

WHOLE = {  # name = arguments of `film`; 20 frames
    'plain.mp4': {}, 'raw.h264': {}, 'frames_b.h264': {'options': {'bf': '2'}}, 'raw.h265': {'codec': 'libx265'},
    'ten_bits.mp4': {'codec': 'libx265', 'pixels': 'yuv420p10le'}, 'new.mp4': {'codec': 'libsvtav1'}, 'new.mkv': {'codec': 'libsvtav1'},
    'nine.webm': {'codec': 'libvpx-vp9'}, 'eight.webm': {'codec': 'libvpx'},
    'eight_altref.webm': {'codec': 'libvpx', 'n': 40, 'gop': 40, 'options': ALTREF},
    'nine_altref.webm': {'codec': 'libvpx-vp9', 'n': 40, 'gop': 40, 'options': ALTREF},
    'motion.avi': {'codec': 'mjpeg', 'pixels': 'yuvj420p'}, 'four.avi': {'codec': 'mpeg4', 'options': {'bf': '2'}},
    'interlaced.mpg': {'codec': 'mpeg2video', 'fps': 25, 'options': {'flags': '+ilme+ildct', 'bf': '2', 'top': '1'}},
    'pro.mov': {'codec': 'prores_ks', 'pixels': 'yuv422p10le'}, 'rgb.mp4': {'codec': 'libx264rgb', 'pixels': 'rgb24'},
    'grey.mp4': {'pixels': 'gray'}, 'full.mp4': {'pixels': 'yuv444p'}, 'grey16.mkv': {'codec': 'ffv1', 'pixels': 'gray16le'},
    'alpha.webm': {'codec': 'libvpx-vp9', 'pixels': 'yuva420p', 'options': {'auto-alt-ref': '0'}},
    'alpha.mov': {'codec': 'qtrle', 'pixels': 'argb'}, 'alpha_png.mov': {'codec': 'png', 'pixels': 'rgba'},
    'late.mp4': {'ms': [100*i + 5000 for i in range(20)]}, 'late.mkv': {'ms': [100*i + 5000 for i in range(20)]},
    'early.mkv': {'ms': [100*i - 300 for i in range(20)]},
    'open_gop.mkv': {'n': 40, 'gop': 10, 'options': {'bf': '3', 'x264-params': 'open-gop=1:keyint=10'}},
    'open_gop.mpg': {'codec': 'mpeg2video', 'fps': 25, 'n': 40, 'gop': 10, 'options': {'bf': '2'}},
    'pieces.mp4': {'mux': {'movflags': 'frag_keyframe+empty_moov'}}, 'fast.mp4': {'mux': {'movflags': 'faststart'}},
    'stream.mkv': {'mux': {'live': '1'}}, 'stream.webm': {'codec': 'libvpx', 'mux': {'live': '1'}},
    'camera.mts': {'container': 'mpegts'}, 'camera.m2ts': {'container': 'mpegts', 'mux': {'mpegts_m2ts_mode': '1'}},
    'windows.wmv': {'codec': 'wmv2'}, 'flash.flv': {}, 'phone.3gp': {'codec': 'h263', 'size': (128, 96)},
    'one_pixel.mkv': {'codec': 'ffv1', 'size': (1, 1), 'pixels': 'gray'}, 'one_pixel.avi': {'codec': 'rawvideo', 'size': (1, 1), 'pixels': 'bgr24'},
    'one_pixel.mp4': {'size': (1, 1), 'pixels': 'yuv444p'}, 'four_pixels.mkv': {'codec': 'ffv1', 'size': (2, 2)},
    'four_pixels.avi': {'codec': 'rawvideo', 'size': (2, 2)}, 'wide.mkv': {'codec': 'ffv1', 'size': (4000, 2)},
    'tall.avi': {'codec': 'mjpeg', 'size': (2, 4000), 'pixels': 'yuvj444p'}, 'alone.mp4': {'n': 1}, 'alone.mkv': {'n': 1},
    'long_sound.mp4': {'sound_s': 8}, 'long_sound.mkv': {'sound_s': 8}, 'short_sound.mp4': {'sound_s': 1},
    'covered.mp4': {'cover': True},
}
RARE = {'camera.m2ts', 'windows.wmv', 'flash.flv', 'phone.3gp', 'grey16.mkv', 'alpha_png.mov', 'late.mkv', 'alone.mkv', 'new.mkv', 'four_pixels.avi',
        'rgb.mp4', 'stream.webm', 'frames_b.h264', 'tall.avi', 'one_pixel.avi'}


@pytest.mark.parametrize('name', [pytest.param(o, marks=[pytest.mark.slow] if o in RARE else []) for o in WHOLE])
def test_whole(zoo, name):
    arguments = WHOLE[name]
    size, n = arguments.get('size', SIZE), arguments.get('n', 20)
    found = check(zoo(name, **arguments))
    assert found.reason is None and len(found.hashes) == n == len(set(found.hashes))
    assert (found.facts.width, found.facts.height, found.facts.n_lost) == (*size, 0)
    is_flat = min(size) < 8 or arguments.get('pixels', '').startswith('gray')
    if not is_flat: assert all(is_like(image, i, size) for i, image in enumerate(found.images))
    assert ('without time stamp' in ' '.join(found.facts.notes)) == name.endswith(('.h264', '.h265')), found.facts.notes
    if not name.endswith('.mpg'): assert not any('variable' in o or 'backwards' in o for o in found.facts.notes), found.facts.notes


@pytest.mark.parametrize('name', ['uneven.mp4', 'uneven.mkv'])
def test_variable_frame_rate(zoo, name):
    found = check(zoo(name, ms=UNEVEN_MS))
    assert found.reason is None and found.facts.notes == ('variable frame rate',)
    told = table_of(zoo(name)).samples
    np.testing.assert_allclose(told.sort_values('frame')['time_s'], np.array(UNEVEN_MS)/1000, atol=.0011)


@pytest.mark.parametrize('stamps, note', [([0, 100, 200, 300, 150, 250, 350, 450, 550, 650], 'time stamps go backwards at frame 4'),
                                          ([0, 100, 100, 200, 300, 400, 500, 600, 700, 800], 'time stamps repeat at frame 2'),
                                          ([9000, 9100, 9200, 100, 200, 300, 400, 500, 600, 700], 'time stamps go backwards at frame 3')])
def test_time_stamps_go_backwards(zoo, tmp_path, stamps, note):
    source = zoo('pictures.mkv', codec='mjpeg', pixels='yuvj420p', n=10)
    found = check(shifted(tmp_path/'shifted.mkv', source, stamps))
    assert found.hashes == read(source).hashes and note in found.facts.notes and found.reason is None


def test_size_changes(zoo, tmp_path):
    small, large = zoo('small.h264', n=10), zoo('large.h264', n=10, size=(96, 64))
    both = tmp_path/'both.h264'
    both.write_bytes(small.read_bytes() + large.read_bytes())
    found = check(both)
    assert found.hashes == read(small).hashes + read(large).hashes
    assert [o.size for o in found.images] == 10*[SIZE] + 10*[(96, 64)]
    assert 'size changes at frame 10' in found.facts.notes and (found.facts.width, found.facts.height) == SIZE and found.reason is None


def test_size_changes_in_a_transport_stream(zoo, tmp_path):
    parts = [zoo('small.mts', n=10, container='mpegts'), zoo('large.mts', n=10, size=(96, 64), container='mpegts')]
    both = tmp_path/'both.mts'
    both.write_bytes(b''.join(o.read_bytes() for o in parts))
    found = check(both)
    expected = [h for o in parts for h in read(o).hashes]
    assert is_part_of(found.hashes, expected) and found.hashes[:8] == expected[:8] and found.hashes[-10:] == expected[-10:]
    assert any(o.startswith('size changes') for o in found.facts.notes)


@pytest.mark.parametrize('matrix', ['YCgCo', 'bt2020c', 'GBR'])
def test_unusual_colours(zoo, matrix):
    found = check(zoo(f'{matrix}.mp4', n=3, pixels='yuv444p', options={'x264-params': f'colormatrix={matrix}'}))
    assert len(found.images) == 3 and found.reason is None
    assert any('colours' in o for o in found.facts.notes) == (matrix != 'GBR'), found.facts.notes


def test_subtitles(zoo, tmp_path):
    named(tmp_path, 'words.srt', b'1\n00:00:00,000 --> 00:00:09,000\nhello\n\n')
    with av.open(str(zoo('plain.mp4'))) as video, av.open(str(tmp_path/'words.srt')) as words, av.open(str(tmp_path/'words.mkv'), 'w') as out:
        streams = {o: out.add_stream_from_template(o.streams[0]) for o in (words, video)}
        for source, stream in streams.items():
            for packet in source.demux():
                if not packet.size: continue
                packet.stream = stream
                out.mux(packet)
    found = check(tmp_path/'words.mkv')
    assert found.hashes == read(zoo('plain.mp4')).hashes and found.reason is None


def test_only_the_first_stream_is_read(zoo):
    found = check(zoo('two.mkv', n_streams=2, n=10))
    assert found.hashes == read(zoo('first.mkv', n=10)).hashes and '2 video streams, the first is read' in found.facts.notes


@pytest.mark.parametrize('matrix, turn', [((1, 0, 0, 1), 0), ((0, 1, -1, 0), 270), ((-1, 0, 0, -1), 180), ((0, -1, 1, 0), 90)])
def test_turned(zoo, tmp_path, matrix, turn):
    path = tmp_path/'turned.mp4'
    path.write_bytes(zoo('plain3.mp4', n=3).read_bytes())
    found = check(with_matrix(path, matrix))
    for image, upright in zip(found.images, read(zoo('plain3.mp4')).images, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.rot90(np.asarray(upright), turn//90))
    assert (found.facts.width, found.facts.height) == found.images[0].size


def test_negative_start_is_cut_by_the_edit_list(zoo):
    whole, found = read(zoo('plain.mp4')), check(zoo('early.mp4', ms=[100*i - 300 for i in range(20)]))
    assert found.hashes == whole.hashes[3:] and found.reason is None, 'the three frames before zero are not shown by a player either'


# ---- not a video at all

def named(folder, name, content):
    path = folder/name
    path.write_bytes(content)
    return path


def picture_bytes(folder, kind):
    Image.fromarray(drawn(0)).save(folder/'picture', kind)
    return (folder/'picture').read_bytes()


PICTURE, TEXT, OTHER = 'a picture under the name of a video', 'text, not a video', 'not a video that is read'


@pytest.mark.parametrize('kind, name', [('JPEG', 'a.mp4'), ('GIF', 'a.mp4'), ('PNG', 'a.webm'), ('WEBP', 'a.mov'), ('BMP', 'a.avi'), ('TIFF', 'a.mkv'),
                                        ('AVIF', 'a.mp4'), ('PPM', 'a.mpg')])
def test_picture_named_like_a_video(tmp_path, kind, name):
    found = check(named(tmp_path, name, picture_bytes(tmp_path, kind)))
    assert not found.hashes and PICTURE in found.reason


@pytest.mark.parametrize('name, content, reason', [
    ('text.avi', b'hello\nthis is a text\n'*50, TEXT), ('page.mkv', b'<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n'*20, TEXT),
    ('empty.mp4', b'', 'empty'), ('zeros.mp4', bytes(1 << 20), OTHER), ('zeros.mpg', bytes(1 << 20), OTHER),
    ('random.mp4', np.random.default_rng(0).bytes(1 << 20), OTHER), ('random.mts', np.random.default_rng(0).bytes(1 << 20), OTHER),
    ('random.m4v', np.random.default_rng(0).bytes(1 << 18), 'invalid data found'), ('ones.mkv', b'\xff'*5000, OTHER),
    ('zip.mp4', b'PK\x03\x04' + bytes(200), OTHER), ('playlist.mp4', b'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nplain.mp4\n#EXT-X-ENDLIST\n', ''),
    ('list.mp4', b"ffconcat version 1.0\nfile 'plain.mp4'\n", ''), ('subtitles.mkv', b'1\n00:00:01,000 --> 00:00:02,000\nhello\n\n', 'only subtitle')])
def test_other_content(zoo, tmp_path, name, content, reason):
    (tmp_path/'plain.mp4').write_bytes(zoo('plain.mp4').read_bytes())  # a list that was followed would lead here
    found = check(named(tmp_path, name, content))
    assert not found.hashes and reason in found.reason


def test_sound_only(tmp_path):
    found = check(film(tmp_path/'sound.mp4', n_streams=0, sound_s=1))
    assert found.reason == 'the file holds no video, only audio'


def test_cover_only(tmp_path):
    found = check(film(tmp_path/'cover.mp4', n_streams=0, sound_s=1, cover=True))
    assert not found.hashes and 'cover picture' in found.reason


def special_files(folder):
    (folder/'folder.mp4').mkdir()
    os.mkfifo(folder/'fifo.mp4')
    (folder/'loop.mp4').symlink_to('loop2.mp4')
    (folder/'loop2.mp4').symlink_to('loop.mp4')
    (folder/'device.mp4').symlink_to('/dev/zero')
    (folder/'gone.mp4').symlink_to('nothing.mp4')


def test_files_that_are_none(tmp_path):
    special_files(tmp_path)
    for name, reason in {'folder': 'regular', 'fifo': 'regular', 'device': 'regular', 'loop': 'symbolic links', 'gone': 'no such file'}.items():
        found = check(tmp_path/f'{name}.mp4')
        assert not found.hashes and reason in found.reason, (name, found.reason)


def test_no_frame(zoo, tmp_path):
    empty = b'\0\0\0\x14ftypisom\0\0\0\0isom' + b'\0\0\0\x08moov'
    found = check(named(tmp_path, 'none.mp4', empty))
    assert not found.hashes and found.reason
    whole = zoo('fast.mp4', **WHOLE['fast.mp4']).read_bytes()
    found = check(named(tmp_path, 'header.mp4', whole[:whole.index(b'mdat') + 4]))
    assert not found.hashes and '20 lost' in found.reason


def test_header_promises_more(zoo, tmp_path):
    "The table of sizes says 1,000 frames, the tables beside it 20."
    content = bytearray(zoo('plain.mp4').read_bytes())
    start = content.index(b'stsz') + 12
    assert struct.unpack('>I', content[start:start + 4]) == (20,)
    content[start:start + 4] = struct.pack('>I', 1000)
    found, whole = check(named(tmp_path, 'promises.mp4', bytes(content))), read(zoo('plain.mp4'))
    assert found.hashes == whole.hashes[:len(found.hashes)]
    assert found.reason is not None or len(found.hashes) == 20


def test_too_many_pixels(zoo):
    path = zoo('plain.mp4')
    found = read(path, max_pixels=SIZE[0]*SIZE[1] - 1)
    assert not found.hashes and found.reason == '3,072 pixels, more than max_image_pixels allows (3,071)'
    assert len(read(path, max_pixels=SIZE[0]*SIZE[1]).hashes) == 20


@pytest.mark.parametrize('n_threads', [1, 3])
def test_too_many_pixels_later(zoo, tmp_path, n_threads):
    small, large = zoo('small.h264', n=10), zoo('large.h264', n=10, size=(96, 64))
    path = named(tmp_path, 'grows.h264', small.read_bytes() + large.read_bytes() + small.read_bytes())
    found = read(path, n_threads, max_pixels=SIZE[0]*SIZE[1])
    assert found.hashes == 2*read(small).hashes and '6,144 pixels' in found.reason and found.facts.n_lost == 10


# ---- damaged

DAMAGED = {  # name = arguments of `film`; 30 or 60 frames
    'd.mp4': {'options': {'bf': '2'}}, 'fast_d.mp4': {'options': {'bf': '2'}, 'mux': {'movflags': 'faststart'}}, 'd.mkv': {'options': {'bf': '2'}},
    'd.webm': {'codec': 'libvpx'}, 'nine_d.webm': {'codec': 'libvpx-vp9'}, 'd.avi': {'codec': 'mjpeg', 'pixels': 'yuvj420p'}, 'four_d.avi': {'codec': 'mpeg4'},
    'd.mpg': {'codec': 'mpeg2video', 'fps': 25, 'n': 60, 'gop': 6, 'options': MPEG2}, 'd.mov': {}, 'd.mts': {'container': 'mpegts', 'options': {'bf': '2'}},
    'five_d.mkv': {'codec': 'libx265'}, 'new_d.mkv': {'codec': 'libsvtav1'}, 'pieces_d.mp4': {'mux': {'movflags': 'frag_keyframe+empty_moov'}},
    'stream_d.mkv': {'mux': {'live': '1'}}, 'd.flv': {}, 'pro_d.mov': {'codec': 'prores_ks', 'pixels': 'yuv422p10le'},
}
RARELY_DAMAGED = {'five_d.mkv', 'new_d.mkv', 'nine_d.webm', 'd.flv', 'pro_d.mov', 'stream_d.mkv'}
STATES_LENGTH = {'fast_d.mp4', 'd.mkv', 'd.webm', 'nine_d.webm', 'd.avi', 'four_d.avi', 'five_d.mkv', 'new_d.mkv'}  # so what is missing can be told
INDEX_LAST = {'d.mp4', 'd.mov', 'pro_d.mov'}
HIDES_DAMAGE = {'five_d.mkv', 'nine_d.webm'}  # where the decoder marks nothing, threads may differ in frames that are damaged
damaged = pytest.mark.parametrize('name', [pytest.param(o, marks=[pytest.mark.slow] if o in RARELY_DAMAGED else []) for o in DAMAGED])


def intact_before(path, whole, place):
    "Hashes of the frames whose packets end before a place in the file, for sure."
    with av.open(str(path)) as container:
        packets = [(o.pts, o.pos) for o in container.demux(video=0) if o.size]
    started = [pos is not None and pos <= place for _, pos in packets]
    complete = {pts for i, (pts, _) in enumerate(packets) if any(started[i + 2:])}  # the next but one begins before it
    return [h for h, pts in zip(whole.hashes, whole.stamps, strict=True) if pts in complete]


def is_part_of(some, all_of_them):
    "Whether a list is another one with left-outs, in the same order."
    rest = iter(all_of_them)
    return all(o in rest for o in some)


@damaged
@pytest.mark.parametrize('percent', [10, 50, 90])
def test_cut_off(zoo, tmp_path, name, percent):
    path = zoo(name, **{'n': 30, **DAMAGED[name]})
    whole, content = read(path), path.read_bytes()
    place = len(content)*percent//100
    found = check(named(tmp_path, name, content[:place]))
    n, n_kept = len(whole.hashes), len(found.hashes)
    assert is_part_of(found.hashes, whole.hashes), 'a frame that is not one of the video'
    if name in INDEX_LAST:
        assert not found.hashes and 'moov' in found.reason
        return
    assert set(intact_before(path, whole, place)) <= set(found.hashes), 'good frames before the cut are lost'
    assert n_kept < n
    if name in STATES_LENGTH:
        assert found.reason, 'the cut is not noticed'
        if n_kept: assert abs(n_kept + found.facts.n_lost - n) <= 2, found.reason
    elif found.facts is not None: assert n_kept + found.facts.n_lost <= n


def bent(content, rng, end, is_block):
    "Content with about one percent of its bytes overwritten in the middle, in one block or scattered."
    new, n_bytes = bytearray(content), max(4, len(content)//100)
    if is_block:
        start = int(rng.integers(end//3, 2*end//3))
        new[start:start + n_bytes] = rng.bytes(n_bytes)
    else:
        for i in rng.integers(end//3, end, n_bytes//4).tolist(): new[i] = int(rng.integers(256))
    return bytes(new)


def check_bent(path, folder, seed):
    whole, content = read(path), path.read_bytes()
    end = content.rindex(b'moov') if path.name in INDEX_LAST else len(content)
    new = bent(content, np.random.default_rng(seed), end, seed % 2 == 0)
    first = next(i for i, (old, now) in enumerate(zip(content, new, strict=True)) if old != now)
    bad = named(folder, path.name, new)
    found = read(bad) if path.name in HIDES_DAMAGE else check(bad)
    read(bad, 3)  # whatever it gives, it comes to an end
    before = intact_before(path, whole, first)
    assert is_part_of(before, found.hashes), f'seed {seed}: {found.reason}'
    assert set(found.hashes) != set(whole.hashes) or found.reason is None, f'seed {seed}: {found.reason}'
    assert found.facts is None or found.facts.n_lost <= len(whole.hashes), f'seed {seed}: {found.reason}'
    return found


@damaged
def test_overwritten(zoo, tmp_path, name):
    path = zoo(name, **{'n': 30, **DAMAGED[name]})
    for seed in range(4): check_bent(path, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['d.mp4', 'fast_d.mp4', 'd.mkv', 'd.mov', 'd.mts', 'd.mpg', 'four_d.avi'])
def test_overwritten_often(zoo, tmp_path, name):
    path = zoo(name, **{'n': 30, **DAMAGED[name]})
    for seed in range(4, 40): check_bent(path, tmp_path, seed)


def test_holes_in_frames_that_stand_alone(zoo, tmp_path):
    "What a decoder leaves unwritten is the same each time, however many threads look at frames."
    path = zoo('d.avi', **{'n': 30, **DAMAGED['d.avi']})
    bad = named(tmp_path, 'd.avi', bent(path.read_bytes(), np.random.default_rng(1), path.stat().st_size, False))
    seen = {tuple(table_of(bad, 4).samples['content'].fillna('')) for _ in range(12)}
    assert len(seen) == 1 and read(bad).reason


@damaged
def test_left_early(zoo, tmp_path, name):
    "Several threads are at work when the file is closed; FFmpeg's VP9 decoder waits for itself if it is emptied at the wrong moment."
    path = zoo(name, **{'n': 30, **DAMAGED[name]})
    for seed in range(10):
        bad = named(tmp_path, name, bent(path.read_bytes(), np.random.default_rng(seed), path.stat().st_size*9//10, seed % 2 == 0))
        for n_wanted in (1, 12, 100):
            with VideoReader(bad, 3) as reader:
                try:
                    for _ in zip(reader, range(n_wanted), strict=False): pass
                except UnreadableVideo as error:
                    assert_words(error.reason)


def test_streams_that_appear_on_the_way():
    "PyAV ends with an IndexError when a damaged transport stream seemed to hold more streams than at its beginning."
    def demux():
        yield from packets
        raise IndexError
    packets = [SimpleNamespace(size=9, pos=9*i, pts=i, dts=i, duration=1, stream_index=0) for i in range(3)]
    tally = Tally()
    assert list(video_packets(SimpleNamespace(demux=demux), SimpleNamespace(index=0), tally)) == [*packets, None]
    assert (tally.n_packets, tally.cut_off) == (3, None)


def test_starts_in_the_middle(zoo, tmp_path):
    path = zoo('d.mts', n=30, **DAMAGED['d.mts'])
    whole, content = read(path), path.read_bytes()
    for part in (.3, .45, .6):
        found = check(named(tmp_path, 'tail.mts', content[round(len(content)*part)//188*188:]))
        assert found.hashes and is_part_of(found.hashes, whole.hashes) and found.hashes[-5:] == whole.hashes[-5:], part


# ---- all of them at once

def test_a_folder_of_everything(zoo, tmp_path):
    "Scan, read and dump: every frame that is written is the one that was read; whatever is not whole stays listed."
    folder = tmp_path/'input'
    folder.mkdir()
    for name in ('plain.mp4', 'raw.h264', 'ten_bits.mp4', 'motion.avi', 'interlaced.mpg', 'camera.mts', 'nine.webm'):
        (folder/name).write_bytes(zoo(name, **WHOLE[name]).read_bytes())
    for name in ('d.mp4', 'fast_d.mp4', 'd.mkv', 'd.avi'):
        content = zoo(name, **{'n': 30, **DAMAGED[name]}).read_bytes()
        (folder/f'cut_{name}').write_bytes(content[:len(content)//2])
    special_files(folder)
    named(folder, 'text.avi', b'hello\n'*100)
    named(folder, 'empty.mov', b'')
    files = scan(folder)
    done = VideoPass(files, folder, n_workers=3)
    for batch in done.batches(0, 16): done.add(batch)
    n_frames = sum(done.n_known.values())
    samples = finish(done).samples
    frames = samples.index[samples['source'] == 'frame'].to_numpy()
    videos = samples[samples['source'] == 'video']
    assert len(frames) == n_frames > 150 and (videos['status'] == 'corrupt').all() and videos['reason'].notna().all()
    assert {'cut_d.mp4', 'cut_d.mkv', 'cut_d.avi', 'cut_fast_d.mp4', 'text.avi', 'empty.mov'} <= set(videos['path'])
    chosen = frames[::9]
    selected = with_columns(samples, chosen, selected=True, rank=np.arange(len(chosen)))
    dump = dump_selected(selected, folder, tmp_path/'dump', n_workers=3)
    assert dump.failed == {} and dump.n_written == len(chosen)
    for row, picture in pictures_of(samples, chosen, folder):
        with Image.open(tmp_path/'dump'/samples['filename'][row]) as written:
            np.testing.assert_array_equal(np.asarray(written), np.asarray(picture))
