"A video decoder that crashes or hangs costs the frames after that place, and nothing else."
from functools import partial

import pytest
from lightly_curate.core.parts import Parts
from lightly_curate.data import records
from lightly_curate.data.frames import VideoPass, finish, load_frames, pictures_of
from lightly_curate.data.isolated import idle, stop, stream, working
from lightly_curate.data.sample_data import make_video
from lightly_curate.data.scan import scan
from lightly_curate.data.video import Look, VideoReader

DECODER = '''
import ctypes, time
from lightly_curate.data import records

def spoilt(told, path):
    for o in told:
        if 'bad' in path and o.get('index') == 23: ctypes.string_at(0)
        if 'slow' in path and o.get('index') == 11: time.sleep(60)
        yield o

def tell_video(path, *rest): yield from spoilt(records.tell_video(path, *rest), path)
def tell_again(path, *rest): yield from spoilt(records.tell_again(path, *rest), path)
'''


@pytest.fixture
def films(tmp_path, monkeypatch):
    "Three videos, and a decoder that crashes in the second and hangs in the third."
    (tmp_path/'code').mkdir()
    (tmp_path/'code'/'odd_decoder.py').write_text(DECODER)
    monkeypatch.syspath_prepend(str(tmp_path/'code'))
    def odd_stream(function, *args, **options):
        name = function.partition(':')[2]
        return stream(f'odd_decoder:{name}' if name in ('tell_video', 'tell_again') else function, *args, **options)
    stop()
    monkeypatch.setattr(records, 'stream', odd_stream)
    (tmp_path/'films').mkdir()
    for name in ('good', 'bad', 'slow'): make_video(tmp_path/'films'/f'{name}.mp4', n_frames=40)
    yield tmp_path/'films'
    stop()


def read_all(folder, n_workers, parts=None, most=10**6):
    "Read a folder of videos, or some batches of it."
    done = VideoPass(scan(folder), folder, n_workers, parts=parts, seconds=10.)
    for number, batch in enumerate(done.batches(32, 8)):
        if number == most: break
        done.add(batch)
    return done


@pytest.mark.slow
def test_a_crash_costs_the_frames_after_it(films, tmp_path):
    found = [finish(read_all(films, n)) for n in (1, 2)]
    make = partial(Parts, tmp_path/'parts', 'films', seconds_between=0)
    for most in (3, 4, 2): read_all(films, 2, make(), most)
    found.append(finish(read_all(films, 2, make())))
    for read in found:
        assert read.samples.equals(found[0].samples) and read.videos == found[0].videos
    samples = found[0].samples
    frames = samples[samples['source'] == 'frame']
    assert frames['path'].value_counts().to_dict() == {'good.mp4': 40, 'bad.mp4': 23, 'slow.mp4': 11}
    reasons = samples.loc[samples['source'] == 'video'].set_index('path')['reason'].to_dict()
    assert set(reasons) == {'bad.mp4', 'slow.mp4'}
    assert reasons['bad.mp4'].startswith('the video decoder crashed (SIGSEGV)') and reasons['bad.mp4'].endswith('23 frames kept, about 17 lost')
    assert reasons['slow.mp4'].startswith('the video decoder gave nothing for 10 s (max_seconds_per_file)')
    assert {o['path']: (o['codec'], o['n_frames'], o['n_lost']) for o in found[0].videos if o['reason']} == {
        'bad.mp4': ('h264', 23, 17), 'slow.mp4': ('h264', 11, 29)}
    rows = frames.index.to_numpy()
    again = list(load_frames(samples, rows, films, 32, 8, 2, seconds=10.))
    assert sorted(row for o in again for row in o.rows) == rows.tolist() and not any(o.failed for o in again)
    assert len(dict(pictures_of(samples, rows[:2], films))) == 2
    assert not working


def test_the_worker_is_kept(tmp_path):
    "A video that is read to its end leaves its worker for the next."
    path = make_video(tmp_path/'clip.mp4', n_frames=40)
    found = list(records.read_records(path, Look(stride=39)))
    assert [o.index for o in found[:-1]] == [0, 39] and found[-1].facts['reason'] is None
    worker = idle[-1].process.pid
    (index, content, pixels), = records.read_again(path, [39], True, 32)
    assert idle[-1].process.pid == worker
    assert (index, content, pixels.shape) == (39, found[1].content, (32, 32, 3))


def test_every_frame_is_a_sign_of_life(tmp_path, monkeypatch):
    "The time limit begins anew with each frame that is decoded, wanted or not: few frames of a long video may take long."
    told = []
    monkeypatch.setattr('lightly_curate.data.video.still_working', lambda: told.append(1))
    path = make_video(tmp_path/'clip.mp4', n_frames=40)
    assert [o.index for o in VideoReader(path, look=Look(stride=39))] == [0, 39]
    assert len(told) >= 40
    told.clear()
    assert [o.index for o in VideoReader(path, look=Look(end=.1))] == [0, 1]
    assert len(told) >= 30, 'packets after the end that was asked for'
