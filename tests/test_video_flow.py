"The command line on folders of videos, as a user runs it, and the stages where they meet videos."
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import av
import numpy as np
import pandas as pd
import pytest
from lightly_curate.core.rundir import RunDir
from lightly_curate.core.samples import available, count_samples, load_samples, result_order
from lightly_curate.data.images import content_hash
from lightly_curate.data.sample_data import make_video, sample_photos
from lightly_curate.learn.backbone import load_backbone
from lightly_curate.run.pipeline import clean_stage, curate, known_vectors, run_stage, scan_stage, training_facts
from lightly_curate.run.start import open_run
from PIL import Image
from test_flow import finish, names


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    "A pan, a clip in a subfolder, a film cut in half and a picture. Read only."
    folder = tmp_path_factory.mktemp('films')/'films'
    (folder/'cam').mkdir(parents=True)
    make_video(folder/'pan.mp4', n_frames=40)
    make_video(folder/'cam'/'short.avi', n_frames=9)
    make_video(folder/'cut.mkv', n_frames=40)
    whole = (folder/'cut.mkv').read_bytes()
    (folder/'cut.mkv').write_bytes(whole[:len(whole)//2])
    sample_photos()['flower'].resize((96, 64)).save(folder/'flower.png')
    return folder


def run_of(films, out, name, *words):
    return open_run(overrides=[f'input_dir={films}', f'output_dir={out}', f'run_directory={name}', *words])


def count_decoded(path) -> int:
    "Frames of a video, counted by a plain loop over PyAV's own decoder."
    with av.open(str(path)) as container: return sum(1 for _ in container.decode(video=0))


def test_thinned_out(films, tmp_path):
    thin = curate(run_of(films, tmp_path, 'thin', 'steps=[embed]', 'video.stride=4'))
    assert thin.loc[thin['path'] == 'pan.mp4', 'frame'].dropna().tolist() == list(range(0, 40, 4))
    slow = curate(run_of(films, tmp_path, 'slow', 'steps=[embed]', 'video.fps=2', 'video.start=1', 'video.end=3'))
    part = slow[slow['path'] == 'pan.mp4']
    assert part['frame'].tolist() == [12, 18, 24, 30], '12 frames a second, two of them looked at'
    assert part['filename'].tolist() == [f'pan-{o}-mp4.png' for o in (12, 18, 24, 30)]


def test_the_same_with_any_number_of_workers(films, tmp_path):
    made = []
    for n in (1, 2, 5):
        run = run_of(films, tmp_path, f'w{n}', 'steps=[embed,select]', 'stopping_condition.n_samples=8', f'lightly.loader.num_workers={n}')
        made.append((curate(run), pd.read_csv(run.dir.embeddings_csv)))
    for samples, embeddings in made[1:]:
        pd.testing.assert_frame_equal(samples, made[0][0], atol=1e-4)
        pd.testing.assert_frame_equal(embeddings, made[0][1], atol=1e-4)


def test_sequences(films, tmp_path):
    words = ['steps=[embed,select]', 'selected_sequence_length=5', 'remove_exact_duplicates=False']
    run = run_of(films, tmp_path, 'five', 'stopping_condition.n_samples=10', *words)
    samples = curate(run)
    assert count_samples(samples)['sampled'] == 10
    told = json.loads(run.dir.sequence_information.read_text())
    assert [len(o['frame_names']) for o in told] == [5, 5]
    assert [o for part in told for o in part['frame_names']] == names(run.dir.sampled_filenames)
    for part in told:
        assert np.diff(part['frame_indices']).tolist() == [1]*4
        assert part['frame_timestamps_sec'] == sorted(part['frame_timestamps_sec'])


def test_vectors_of_other_weights_are_not_taken(films, tmp_path):
    run = run_of(films, tmp_path, 'wide', 'steps=[embed]')
    for stage, work in (('scan', scan_stage), ('clean', clean_stage)): run_stage(run, stage, partial(work, run))
    backbone = load_backbone()
    samples = load_samples(run.dir.table('clean'))
    assert len(known_vectors(run, backbone)) == (samples['source'] == 'frame').sum()
    assert len(known_vectors(run, replace(backbone, sha256='of others'))) == 0
    samples = curate(run)
    assert len(available(samples)) == len(np.load(run.dir.state_rows))


def test_trained_on_frames(films, tmp_path):
    "The frames are read once, cached for training, and embedded with what came of it."
    run = run_of(films, tmp_path, 'learned', 'steps=[train,embed]', 'lightly.model.name=resnet-9', 'lightly.model.width=0.125',
                 'lightly.model.num_ftrs=16', 'lightly.collate.input_size=32', 'lightly.pre_trained=False', 'lightly.trainer.max_epochs=1')
    samples = curate(run)
    assert training_facts(run)['n_images'] == len(available(samples)) >= 50
    assert np.load(run.dir.state_embeddings).shape == (len(available(samples)), 16)
    assert not run.dir.state_frames.exists() and not run.dir.training_cache.exists()


def test_frames_named_in_a_file_of_embeddings(films, tmp_path):
    first = run_of(films, tmp_path, 'first', 'steps=[embed]')
    curate(first)
    run = run_of(films, tmp_path, 'named', f'shared_dir={first.dir.data}', 'embeddings=embeddings.csv', 'steps=[select]',
                 'stopping_condition.n_samples=12', 'dump_dataset=True')
    samples = curate(run)
    seen = {}
    with av.open(str(films/'pan.mp4')) as container:
        for i, frame in enumerate(container.decode(video=0)): seen[f'pan-{i:02}-mp4.png'] = content_hash(frame.to_image())
    written = {o.relative_to(run.dir.sampled).as_posix(): o for o in run.dir.sampled.rglob('*.png')}
    assert sorted(written) == sorted(samples['filename'][result_order(samples)])
    of_pan = [o for o in written if o.startswith('pan-')]
    assert of_pan
    for name in of_pan:
        with Image.open(written[name]) as image: assert content_hash(image) == seen[name]


def test_npy_and_videos_are_refused(films, tmp_path):
    np.save(tmp_path/'x.npy', np.zeros((4, 2), dtype=np.float32))
    run = run_of(films, tmp_path, 'npy', f'shared_dir={tmp_path}', 'embeddings=x.npy', 'stopping_condition.n_samples=2')
    with pytest.raises(Exception, match=r'input_dir holds videos.*give the embeddings as \.csv'): curate(run)


def test_nothing_but_broken_videos(tmp_path):
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'a.mp4').write_text('hello')
    with pytest.raises(Exception, match='none of the 1 files and frames of input_dir in can be used'):
        curate(run_of(tmp_path/'in', tmp_path/'out', 'r', 'steps=[embed]'))


def test_frames_beside_the_video_they_are_of(films, tmp_path):
    "Frames extracted before, beside the film: found as duplicates or not, but nothing is lost and no name is twice."
    folder = tmp_path/'in'
    folder.mkdir()
    shutil.copy(films/'pan.mp4', folder)
    with av.open(str(films/'pan.mp4')) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in (3, 7): frame.to_image().save(folder/f'pan-{i:02}-mp4.png')
    samples = curate(run_of(folder, tmp_path/'out', 'r', 'steps=[embed]'))
    assert len(samples) == 42 and samples['filename'].is_unique
    assert {'pan-03-mp4.png', 'pan-03-mp4.png~', 'pan-07-mp4.png~'} <= set(samples['filename'])


@pytest.fixture(scope='module')
def clips(tmp_path_factory, shared_data) -> RunDir:
    return finish('token=abc', f'input_dir={shared_data/"videos"}', 'output_dir=out', 'run_directory=clips', 'stopping_condition.n_samples=0.3',
                  'dump_dataset=True', cwd=tmp_path_factory.mktemp('clips'))


@pytest.mark.slow
def test_commands_of_the_manual(clips, shared_data):
    "1,197 frames of seven clips, by an independent count; three tenths of them are written, and they are the right ones."
    samples = load_samples(clips.samples_parquet)
    counts = samples['path'].value_counts()
    assert counts.to_dict() == {o.name: count_decoded(o) for o in (shared_data/'videos').iterdir() if o.suffix != '.csv'}
    assert len(samples) == 1197 and samples['selected'].sum() == round(.3*count_samples(samples)['available'])
    written = {o.name: o for o in clips.sampled.iterdir()}
    assert set(written) == set(names(clips.sampled_filenames))
    for path, chosen in samples[samples['selected']].groupby('path'):
        wanted = dict(zip(chosen['frame'], chosen['filename'], strict=True))
        with av.open(str(shared_data/'videos'/path)) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i not in wanted: continue
                with Image.open(written[wanted[i]]) as image:
                    seen = frame.to_image().rotate(frame.rotation, expand=True)
                    assert content_hash(image) == content_hash(seen), wanted[i]


@pytest.mark.slow
def test_single_video_as_jpeg(shared_data, tmp_path):
    "The first and the third command: one video, and the faster format."
    (tmp_path/'in').mkdir()
    shutil.copy(shared_data/'videos'/'bottle.avi', tmp_path/'in'/'my_video.avi')
    run = finish('token=abc', f'input_dir={tmp_path/"in"}', 'output_dir=out', 'stopping_condition.n_samples=0.3', 'dump_dataset=True',
                 "output_image_format='jpg'", 'output_image_size=100', cwd=tmp_path)
    assert len(names(run.sampled_filenames)) == round(.3*448)
    first = names(run.sampled_filenames)[0]
    with Image.open(run.sampled/first.replace('.png', '.jpg')) as image: assert min(image.size) == 100


@pytest.mark.slow
def test_broken_videos_end_well(shared_data, tmp_path):
    run = finish(f'input_dir={shared_data/"videos_broken"}', 'output_dir=out', 'stopping_condition.n_samples=0.5', cwd=tmp_path)
    told = json.loads(run.corruptness_information.read_text())
    assert sorted(told['corrupt_videos']) == ['corrupted.mp4', 'cut_in_half.mkv', 'empty.mp4', 'no_index.mov', 'not_a_video.avi']
    assert told['corrupt_samples'] == {}
    samples = load_samples(run.samples_parquet)
    assert samples.loc[samples['source'] == 'frame', 'path'].value_counts().to_dict() == {'cut_in_half.mkv': 31, 'corrupted.mp4': 29}
    report = json.loads(run.report_json.read_text())
    assert (report['videos']['n'], report['videos']['n_broken'], report['videos']['n_frames']) == (5, 5, 60)
    assert sum(o['sampled'] for o in report['videos']['shown']) == samples['selected'].sum()


@pytest.mark.slow
def test_fixed_cameras_are_thinned_out(shared_data, tmp_path):
    "Frames of a camera that does not move are alike; with a smallest distance hardly any are left, and none is near another."
    (tmp_path/'in').mkdir()
    for name in ('bottle.avi', 'car-detection.mp4'): shutil.copy(shared_data/'videos'/name, tmp_path/'in')
    run = open_run(overrides=[f'input_dir={tmp_path/"in"}', f'output_dir={tmp_path/"out"}', 'run_directory=r', 'steps=[embed,select]',
                              'stopping_condition.min_distance=0.1'])
    samples = curate(run)
    emb = np.load(run.dir.state_embeddings)[np.isin(np.load(run.dir.state_rows), result_order(samples))]
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    distances = np.linalg.norm(emb[:, None] - emb[None], axis=-1)[np.triu_indices(len(emb), 1)]
    assert distances.min() >= .1 - 1e-5
    assert len(emb) < .5*len(samples)


def loop_video(source, target, n_loops):
    "The packets of a video several times one after the other; it must be without B-frames."
    with av.open(str(target), 'w') as output:
        made = None
        for loop in range(n_loops):
            with av.open(str(source)) as container:
                stream = container.streams.video[0]
                made = made or output.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if not packet.size: continue
                    packet.pts += loop*stream.duration
                    packet.dts += loop*stream.duration
                    packet.stream = made
                    output.mux(packet)


HOUR = '''
import resource, sys
from lightly_curate.run.pipeline import curate
from lightly_curate.run.start import open_run
samples = curate(open_run(overrides=[*sys.argv[1:], 'steps=[embed]']))
print(len(samples), (samples['status'] == 'ok').sum(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)
'''


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path):
    "An hour at 30 frames a second takes hardly more memory than a minute."
    make_video(tmp_path/'clip.mp4', n_frames=1800, fps=30, codec='mpeg4')
    used = {}
    for name, n_loops in (('minute', 1), ('hour', 60)):
        (tmp_path/name).mkdir()
        loop_video(tmp_path/'clip.mp4', tmp_path/name/'long.mp4', n_loops)
        words = [f'input_dir={tmp_path/name}', f'output_dir={tmp_path/"out"}', f'run_directory={name}', 'remove_exact_duplicates=False',
                 'enable_corruptness_check=False']
        told = subprocess.run([sys.executable, '-c', HOUR, *words], capture_output=True, text=True, check=True)
        n_rows, n_ok, used[name] = map(int, told.stdout.split()[-3:])
        assert n_rows == n_ok == 1800*n_loops
    assert used['hour'] < 1500, used
    assert used['hour'] - used['minute'] < 500, used  # megabytes: the table, the vectors and their CSV
