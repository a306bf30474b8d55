"What the notebook on videos cannot show: real videos, real damage, open files, threads."
import csv
import os
import random
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from lightly_curate.data.pictures import square_pixels
from lightly_curate.data.sample_data import make_video
from lightly_curate.data.video import (FrameScaler, Look, Pass, UnreadableVideo, VideoReader, Wanted, find_frames,
                                       frame_hash, frame_image, read_through, seek_through)

VIDEOS = ('asl_bird.mkv', 'asl_book.mkv', 'asl_eat.mov', 'bottle.avi', 'car-detection.mp4', 'flower.webm', 'rotated_90.mov')


def read(path: Path, n_threads: int = 1, **look):
    "(index, pts, hash) of each frame, and the facts; (reason, None) of a video that cannot be read."
    reader = VideoReader(path, n_threads, Look(**look))
    try: frames = [(o.index, o.pts, frame_hash(o)) for o in reader]
    except UnreadableVideo as error: return error.reason, None
    return frames, reader.facts


def pixels(answers):
    return [(o.row, o.index, image if isinstance(image, str) else image.tobytes()) for o, image in answers]


@pytest.mark.parametrize('name', VIDEOS)
def test_every_frame_once(shared_data, name):
    "Counted by PyAV alone and by whoever collected the videos; the same with four threads."
    with (shared_data/'videos'/'manifest.csv').open() as file:
        known = {o['file']: o for o in csv.DictReader(file)}[name]
    path = shared_data/'videos'/name
    with av.open(str(path)) as container: stamps = [o.pts for o in container.decode(video=0)]
    frames, facts = read(path)
    assert [o[0] for o in frames] == list(range(int(known['frames_decoded'])))
    assert [o[1] for o in frames] == stamps
    assert (facts.n_frames, facts.n_lost, facts.reason, facts.notes) == (len(stamps), 0, None, ())
    assert facts.duration_s == pytest.approx(float(known['duration_s']), abs=.01)
    stored = (int(known['width']), int(known['height']))
    assert (facts.width, facts.height) == (stored[::-1] if known['rotation'] == '-90' else stored)
    assert read(path, 4) == (frames, facts)


@pytest.mark.parametrize('n_threads', (1, 3))
def test_broken_videos(shared_data, n_threads):
    folder = shared_data/'videos_broken'
    frames, facts = read(folder/'corrupted.mp4', n_threads)
    assert (len(frames), facts.n_frames, facts.n_lost) == (29, 29, 21)
    assert facts.reason == 'decoding fails at 2.9 of 5.0 s: invalid data found; 29 frames kept, 21 lost'
    frames, facts = read(folder/'corrupted.mp4', n_threads, stride=5)
    assert ([o[0] for o in frames], facts.n_lost) == ([0, 5, 10, 15, 20, 25], 21)
    frames, facts = read(folder/'cut_in_half.mkv', n_threads)
    assert (len(frames), facts.n_lost, facts.notes) == (31, 44, ())
    assert facts.reason == 'the video ends at 1.1 of 2.6 s; 31 frames kept, about 44 lost'
    assert read(folder/'empty.mp4', n_threads)[0] == 'the file is empty'
    assert 'index (moov) is missing' in read(folder/'no_index.mov', n_threads)[0]
    assert 'is text' in read(folder/'not_a_video.avi', n_threads)[0]


@pytest.mark.parametrize('name', VIDEOS)
def test_frames_are_found_again(shared_data, name):
    "Every seventh frame, with one thread and with three, by its hash and by its pixels."
    path, wanted, seen = shared_data/'videos'/name, [], {}
    for frame in VideoReader(path, look=Look(stride=7)):
        wanted.append(Wanted(len(wanted), frame.index, frame.pts, frame_hash(frame)))
        seen[frame.index] = frame_image(frame).tobytes()
    random.Random(0).shuffle(wanted)
    for n_threads in (1, 3):
        found = dict((o.index, image.tobytes()) for o, image in find_frames(path, wanted, n_threads))
        assert found == seen


@pytest.mark.parametrize('name', ('bottle.avi', 'car-detection.mp4'))
def test_seeking_is_proven_on_real_videos(shared_data, name):
    path = shared_data/'videos'/name
    frames, _ = read(path)
    wanted = [Wanted(o, o, *frames[o][1:]) for o in (2, len(frames) - 30, len(frames) - 1)]
    assert pixels(seek_through(path, wanted, 1)) == pixels(read_through(path, wanted, 1))


def test_seeks_are_fewer_frames(tmp_path, monkeypatch):
    "The last of 700 frames is reached by decoding less than two groups of frames."
    path = make_video(tmp_path/'long.mp4', n_frames=700, size=(32, 32), keyframe_every=50)
    frames, _ = read(path)
    hashed = []
    monkeypatch.setattr('lightly_curate.data.video.frame_hash', lambda o: hashed.append(o.pts) or frame_hash(o))
    (_, image), = find_frames(path, [Wanted(0, 690, *frames[690][1:])])
    assert not isinstance(image, str) and len(hashed) < 100


def test_a_file_that_changed_is_said(tmp_path):
    first, second = (make_video(tmp_path/f'{o}.mp4', n_frames=8, photo=o) for o in ('china', 'flower'))
    frames, _ = read(first)
    for _, answer in find_frames(second, [Wanted(o, o, *frames[o][1:]) for o in (1, 7)]):
        assert 'the video has changed' in answer


def test_scaler_within_tolerance(shared_data, one_thread):
    "As the built-in network sees it: cosine of 0.999 or more to the slow way for 99 % of the frames."
    import torch

    from lightly_curate.learn.backbone import load_backbone, scale_pixels
    backbone = load_backbone('builtin')
    scaler, quick, slow = FrameScaler(backbone.input_size), [], []
    for name in VIDEOS:
        for frame in VideoReader(shared_data/'videos'/name, look=Look(stride=10)):
            quick.append(scaler(frame))
            slow.append(square_pixels(frame_image(frame), backbone.input_size))
    a, b = np.stack(quick).astype(float).reshape(len(quick), -1), np.stack(slow).astype(float).reshape(len(slow), -1)
    assert ((a*b).sum(1)/np.linalg.norm(a, axis=1)/np.linalg.norm(b, axis=1)).min() > .9998
    with torch.inference_mode():
        seen = [backbone.module.eval()(scale_pixels(np.stack(o), backbone, torch.device('cpu'))) for o in (quick, slow)]
    cosines = torch.nn.functional.cosine_similarity(*seen).numpy()
    assert np.mean(cosines >= .999) >= .99, (cosines.min(), np.median(cosines))


def open_files() -> int:
    return len(os.listdir('/proc/self/fd'))


@pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='counts open files as Linux shows them')
def test_files_are_closed(tmp_path):
    "Read to the end, left early, closed by hand, refused, damaged: nothing stays open."
    path = make_video(tmp_path/'clip.mp4')
    cut = tmp_path/'cut.mp4'
    cut.write_bytes(path.read_bytes()[:2000])
    n_before = open_files()
    for _ in range(30):
        for _ in VideoReader(path): pass
        for _ in VideoReader(path, 2): break
        with VideoReader(path) as reader: next(iter(reader))
        VideoReader(path)
        assert read(cut)[1] is None
        list(find_frames(path, [Wanted(0, 3, None, None)]))
        next(find_frames(path, [Wanted(0, 3, None, None), Wanted(0, 9, None, None)]))
    assert open_files() == n_before


@pytest.mark.parametrize('n_threads', (1, 2, 4))
@pytest.mark.parametrize('name', ('clip.mp4', 'clip.webm', 'clip.avi'))
def test_leaving_early_does_not_hang(tmp_path, n_threads, name):
    path = make_video(tmp_path/name, n_frames=60)

    def leave():
        for n in (1, 2, 30):
            with VideoReader(path, n_threads) as reader:
                for frame in reader:
                    if frame.index == n: break
    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_an_index_first_file_that_is_cut(tmp_path):
    "An MP4 written for the web keeps its index in front, so the first half of the file opens."
    whole, web = make_video(tmp_path/'clip.mp4', n_frames=48, size=(192, 128)), tmp_path/'web.mp4'
    with av.open(str(whole)) as source, av.open(str(web), 'w', options={'movflags': 'faststart'}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if not packet.size: continue
            packet.stream = stream
            target.mux(packet)
    known, facts = read(web)
    assert (len(known), facts.reason) == (48, None)
    web.write_bytes(web.read_bytes()[:web.stat().st_size//2])
    for n_threads in (1, 3):
        frames, facts = read(web, n_threads)
        assert 0 < len(frames) < 48 and frames == known[:len(frames)]
        assert facts.n_frames + facts.n_lost == 48 and 'the video ends at' in facts.reason, facts.reason


@pytest.mark.parametrize('name, options', (
    ('a.mp4', {}), ('b.mkv', {}), ('c.webm', {}), ('d.avi', {}), ('e.mpg', {}), ('f.hevc', {}), ('g.mov', {'codec': 'mpeg4'}),
    ('h.mp4', {'codec': 'libx265', 'pixels': 'yuv420p10le'}), ('i.webm', {'codec': 'libvpx-vp9'})))
def test_damage_anywhere_is_survived(tmp_path, name, options):
    "Cut, overwritten and shortened files: no error but our own, and never more frames than there were."
    path, rng = make_video(tmp_path/name, **options), random.Random(0)
    whole, (frames, facts) = path.read_bytes(), read(path)
    assert (len(frames), facts.reason) == (24, None)
    for _ in range(12):
        content, start, n = bytearray(whole), rng.randrange(len(whole)), rng.choice((1, 30, 400))
        match rng.randrange(3):
            case 0: del content[start:]
            case 1: content[start:start + n] = rng.randbytes(len(content[start:start + n]))
            case 2: del content[start:start + n]
        path.write_bytes(content)
        found, facts = read(path)
        if facts is None: continue
        assert 0 < len(found) == facts.n_frames <= 25 and (facts.reason is None) == (facts.n_lost == 0)


def test_scalers_in_threads(tmp_path):
    "One scaler for each thread gives what one alone gives."
    frames = list(VideoReader(make_video(tmp_path/'clip.mp4', n_frames=12, size=(320, 240))))
    expected, found = [FrameScaler(32)(o) for o in frames], {}

    def scale(number):
        scaler = FrameScaler(32)
        found[number] = [scaler(o) for o in frames]
    threads = [threading.Thread(target=scale, args=(o,)) for o in range(3)]
    for o in threads: o.start()
    for o in threads: o.join()
    for number in range(3): np.testing.assert_array_equal(found[number], expected)


def test_seeks_that_lead_back_are_given_up(tmp_path, monkeypatch):
    "With a single keyframe every seek leads to the start; one is tried after the first, then the video is read on."
    from lightly_curate.data import video
    path = make_video(tmp_path/'one.mp4', n_frames=60, size=(32, 32), keyframe_every=1000)
    frames, _ = read(path)
    wanted, sought, real = [Wanted(o, o, *frames[o][1:]) for o in (15, 30, 45, 59)], [], video.Pass.frames_from
    monkeypatch.setattr(video, 'SEEK_GAP', 10)
    monkeypatch.setattr(video.Pass, 'frames_from', lambda self, pts: sought.append(pts) or real(self, pts))
    assert pixels(find_frames(path, wanted)) == pixels(read_through(path, wanted, 1))
    assert len(sought) == 2


def test_only_h264_is_given_several_threads(tmp_path):
    "The others were seen to hang or to hide damage; see the section on reading."
    for codec, n_threads in (('libx264', 3), ('mpeg4', 1), ('libvpx-vp9', 1)):
        one_pass = Pass(make_video(tmp_path/f'{codec}.mkv', n_frames=5, codec=codec), 3, 10**6)
        assert one_pass.stream.codec_context.thread_count == n_threads, codec
        one_pass.close()
