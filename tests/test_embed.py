"Embedding a folder and writing it down, against lightly's own code and on real files."
from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from lightly.utils.io import load_embeddings, save_embeddings
from lightly_curate.core.errors import EmbeddingsError, InputError
from lightly_curate.core.parts import Parts
from lightly_curate.core.progress import Tick, listening
from lightly_curate.core.stages import read_mark
from lightly_curate.data.batches import Batch, load_batches
from lightly_curate.data.frames import VideoPass
from lightly_curate.data.sample_data import make_video, sample_photos
from lightly_curate.data.scan import scan
from lightly_curate.embed.embed import Busy, embed, embed_batch, embed_videos, least_side, run_batches
from lightly_curate.embed.embedding_csv import read_embeddings, read_fast, read_npy, read_slowly, write_embeddings
from lightly_curate.embed.vectors import Vectors, normalize
from lightly_curate.learn.backbone import Backbone, load_backbone, start_backbone
from lightly_curate.learn.inference import inference_module
from PIL import Image
from test_backbone import OWN_FILE
from test_flow import curate, finish

NAMES = ['a.jpg', 'b c.jpg', 'd,e.jpg', 'f"g.jpg', 'two\nlines.jpg', 'cr\r.jpg', '-x.jpg', "it's.jpg", 'semi;colon.jpg', '#1.jpg', ' lead.jpg',
         'maracuja\u0301.jpg', 'кот.png', '絵/文字.png', '', 'tab\t.jpg']


def numbers(n: int, d: int, seed: int = 0) -> np.ndarray:
    "Finite float32 of every size, half of them as embeddings are."
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, n*d, dtype=np.uint32).view(np.float32)
    x = np.where(np.isfinite(bits) & (rng.random(n*d) < .5), bits, rng.normal(size=n*d).astype(np.float32))
    return x.astype(np.float32).reshape(n, d)


@pytest.mark.parametrize(('n', 'd'), [(0, 3), (1, 1), (len(NAMES)*40, 32)])
def test_bytes_equal_lightly(tmp_path: Path, n: int, d: int) -> None:
    "The file is lightly's own, byte for byte, and comes back bit for bit."
    x, labels = numbers(n, d), [i % 7 for i in range(n)]
    filenames = [f'{i//len(NAMES)}/{NAMES[i % len(NAMES)]}' if i >= len(NAMES) else NAMES[i] for i in range(n)]
    write_embeddings(tmp_path/'ours.csv', filenames, x, labels)
    save_embeddings(str(tmp_path/'theirs.csv'), x, labels, filenames)
    assert (tmp_path/'ours.csv').read_bytes() == (tmp_path/'theirs.csv').read_bytes()
    if not n: return
    for read in (read_embeddings, read_slowly):
        table = read(tmp_path/'ours.csv')
        assert table.filenames == filenames
        assert table.emb.tobytes() == x.tobytes()
        assert table.labels is not None and table.labels.tolist() == labels
    theirs, their_labels, their_names = load_embeddings(str(tmp_path/'ours.csv'))
    assert their_names == filenames and their_labels == labels
    assert theirs.astype(np.float32).tobytes() == x.tobytes()


def test_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Where one block ends and the next begins does not show."
    x, filenames = numbers(50, 4), [f'{i}.jpg' for i in range(50)]
    write_embeddings(tmp_path/'one.csv', filenames, x, [0]*50)
    monkeypatch.setattr('lightly_curate.core.limits.NUMBERS_AT_ONCE', 7)
    write_embeddings(tmp_path/'many.csv', filenames, x, [0]*50)
    assert (tmp_path/'one.csv').read_bytes() == (tmp_path/'many.csv').read_bytes()


def test_order_of_lines(tmp_path: Path) -> None:
    "Lines in any order: each name keeps its own vector and label, in CSV and in Parquet."
    x, filenames, labels = numbers(40, 3), [f'{i:02}.jpg' for i in range(40)], np.arange(40)
    order = np.random.default_rng(1).permutation(40)
    names = [filenames[o] for o in order]
    write_embeddings(tmp_path/'a.csv', names, x[order], labels[order])
    columns = {'labels': labels[order], 'embedding_2': x[order, 2], 'embedding_0': x[order, 0], 'filenames': names, 'embedding_1': x[order, 1]}
    pa.parquet.write_table(pa.table(columns), tmp_path/'a.parquet')
    for name in ('a.csv', 'a.parquet'):
        table = read_embeddings(tmp_path/name)
        place = [table.filenames.index(o) for o in filenames]
        assert table.emb[place].tobytes() == x.tobytes()
        assert table.labels is not None and table.labels[place].tolist() == labels.tolist()


@pytest.mark.parametrize(('text', 'message'), [('1e39', 'not finite in float32'), ('1e400', 'not finite')])
def test_too_large_is_a_fault_of_the_file(tmp_path: Path, text: str, message: str) -> None:
    "Numbers above float32 are refused in words, also where warnings are errors."
    (tmp_path/'a.csv').write_text(f'filenames,embedding_0,labels\na.jpg,{text},0\n')
    with pytest.raises(EmbeddingsError, match=message): read_embeddings(tmp_path/'a.csv')
    np.save(tmp_path/'a.npy', np.float64([[1e39]]))
    with pytest.raises(EmbeddingsError, match='not finite'): read_npy(tmp_path/'a.npy', 1)
    pa.parquet.write_table(pa.table({'filenames': ['a'], 'embedding_0': [1e39]}), tmp_path/'a.parquet')
    with pytest.raises(EmbeddingsError, match='not finite'): read_embeddings(tmp_path/'a.parquet')


def test_log_names_the_backbone(sample_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger='lightly_curate'):
        embed(scan(sample_folder), load_backbone(), sample_folder, batch_size=16, n_workers=2)
    assert re.search(r'embedding 60 samples with the built-in backbone \(\d+ features, \d+ px\)', caplog.text)


KILLED = """
import os, signal, sys
from pathlib import Path
from lightly_curate.core.parts import Parts
from lightly_curate.data.frames import VideoPass
from lightly_curate.data.scan import scan
from lightly_curate.embed.embed import embed, embed_videos
from lightly_curate.learn.backbone import load_backbone

class Deadly(Parts):
    "Parts of a process that is killed by the system after some batches."
    def add(self, arrays):
        if self.n_written == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)
        super().add(arrays)

folder, kept, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4]
parts, backbone = Deadly(kept, what, seconds_between=0), load_backbone()
if what == 'images': embed(scan(folder), backbone, folder, 16, 2, parts=parts)
else: embed_videos(VideoPass(scan(folder), folder, 2, parts=parts), backbone, 16)
"""


@pytest.mark.slow
@pytest.mark.parametrize('what', ['images', 'videos'])
def test_killed(tmp_path: Path, sample_folder: Path, what: str) -> None:
    "Killed again and again by the system, it goes on and gives the same bytes in the end."
    folder, backbone = sample_folder, load_backbone()
    if what == 'videos':
        folder = tmp_path/'films'
        folder.mkdir()
        for i in range(3): make_video(folder/f'{i}.mp4', n_frames=20*(i + 1))
    def run(parts: Parts | None) -> Vectors:
        if what == 'images': return embed(scan(folder), backbone, folder, 16, 2, parts=parts)[1]
        return embed_videos(VideoPass(scan(folder), folder, 2, parts=parts), backbone, 16)[1]
    undisturbed = run(None)
    for n in (1, 2, 3):
        done = subprocess.run([sys.executable, '-c', KILLED, str(folder), str(tmp_path/'parts'), str(n), what], check=False)
        assert done.returncode == -signal.SIGKILL
        assert len(list((tmp_path/'parts').iterdir())) == n
    resumed = run(Parts(tmp_path/'parts', what))
    assert resumed.emb.tobytes() == undisturbed.emb.tobytes() and resumed.rows.tobytes() == undisturbed.rows.tobytes()


@pytest.mark.slow
def test_speed(tmp_path: Path) -> None:
    "A hundred thousand embeddings are written and read in seconds."
    x, filenames = np.random.default_rng(0).normal(size=(100_000, 32)).astype(np.float32), [f'folder/{i:06}.jpg' for i in range(100_000)]
    begun = time.perf_counter()
    write_embeddings(tmp_path/'a.csv', filenames, x, np.zeros(len(x), dtype=np.int64))
    written = time.perf_counter()
    table = read_fast(tmp_path/'a.csv')
    read_s, write_s = time.perf_counter() - written, written - begun
    assert table is not None and table.emb.tobytes() == x.tobytes()
    print(f'write {len(x)/write_s:,.0f} rows/s, read {len(x)/read_s:,.0f} rows/s')
    assert write_s < 30 and read_s < 15, (write_s, read_s)


def test_odd_files(shared_data: Path) -> None:
    "Broken files become rows with a reason; the others get the embedding they get alone."
    folder = shared_data/'odd'
    samples, vectors = embed(scan(folder), load_backbone(), folder, batch_size=16, n_workers=2)
    corrupt = samples.index[samples['status'] == 'corrupt'].to_numpy()
    assert sorted([*corrupt, *vectors.rows]) == list(range(len(samples)))
    assert samples.loc[corrupt, 'reason'].str.len().min() > 5
    assert not any(o.startswith(('valid/', 'names/', 'damaged/')) for o in samples['filename'][corrupt])
    assert not any(o.startswith('broken/') for o in samples['filename'][vectors.rows])
    row = int(vectors.rows[len(vectors)//2])
    one = embed(samples.assign(status=samples['status'].where(samples.index == row, 'corrupt'),
                               reason=samples['reason'].fillna('left out')), load_backbone(), folder, 1, 1)[1]
    np.testing.assert_allclose(one.emb[0], vectors.of(np.array([row])).emb[0], atol=1e-4)
    with pytest.raises(InputError, match='could be read'):
        embed(scan(folder/'broken'), load_backbone(), folder/'broken', batch_size=16, n_workers=2)


def test_twice(shared_data: Path) -> None:
    "The same folder gives the same bytes, whatever the number of threads, and torch is left as it was."
    folder = shared_data/'dedupe'
    before = torch.get_num_threads()
    first, second = (embed(scan(folder), load_backbone(), folder, batch_size=16, n_workers=o)[1] for o in (1, 4))
    assert first.emb.tobytes() == second.emb.tobytes()
    assert first.rows.tobytes() == second.rows.tobytes()
    assert torch.get_num_threads() == before


def cosines(folder: Path, backbone: Backbone, rows: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    "Of pictures decoded in part, with no side below `side`, to those decoded whole; and which of them it made any difference to."
    module = inference_module(backbone.module, backbone.input_size, torch.device('cpu'))
    def vectors(least: int) -> tuple[np.ndarray, np.ndarray]:
        batches = list(load_batches(scan(folder), rows, folder, backbone.input_size, 64, 2, least_side=least))
        emb = np.concatenate([embed_batch(o, backbone, module, torch.device('cpu'), None) for o in batches])
        return normalize(emb), np.concatenate([o.pixels for o in batches])
    (part, small), (whole, large) = vectors(side), vectors(0)
    return (part*whole).sum(axis=1), (small != large).any(axis=(1, 2, 3))


def test_part_of_a_picture(shared_data: Path, tmp_path: Path) -> None:
    "What `least_side` promises: at four times the input, 99 of 100 vectors of trained networks stay within a cosine of 0.999; at once it they do not."
    (tmp_path/'mine.py').write_text(OWN_FILE)
    weights, folder = shared_data/'weights'/'mobilenetv1_x0.25_imagenet.pth.tar', shared_data/'labelled'
    rows, found, parts = np.arange(0, len(scan(folder)), 4), list[np.ndarray](), list[np.ndarray]()
    for size in (20, 24, 28):
        for backbone in (load_backbone(f'{tmp_path}/mine.py:mobilenet', weights, input_size=size), load_backbone(input_size=size)):
            assert least_side(backbone) == (2 if backbone.name == 'builtin' else 4)*size
            near, is_part = cosines(folder, backbone, rows, 4*size)
            found.append(near)
            parts.append(is_part)
    assert (np.concatenate(found) >= .999).mean() >= .99 and np.concatenate(found).min() > .99
    assert np.mean(parts) > .5, 'most of them were decoded in part'
    assert (cosines(folder, backbone, rows, size)[0] >= .999).mean() < .6


def test_part_can_be_switched_off(tmp_path: Path) -> None:
    "A large photograph: with at_part=False the vector is that of every pixel, otherwise near it; a PNG is decoded whole either way."
    photo = sample_photos()['china'].resize((1600, 1067), Image.Resampling.BICUBIC)
    photo.save(tmp_path/'a.jpg', quality=92)
    Image.open(tmp_path/'a.jpg').save(tmp_path/'b.png')
    backbone, samples = load_backbone(), scan(tmp_path)
    part, whole = (embed(samples, backbone, tmp_path, 1, 1, at_part=o)[1].emb for o in (True, False))
    np.testing.assert_array_equal(whole[0], whole[1], 'the same pixels')
    np.testing.assert_array_equal(part[1], whole[1])
    assert .999 < float(normalize(part[:1])[0] @ normalize(whole[:1])[0]) < 1 - 1e-7


def test_one_network_for_all(sample_folder: Path) -> None:
    "Prepared once or for each call, with one thread or several: the same bytes, and near those of the network as it was trained."
    backbone = start_backbone(name='resnet-9', width=.25, pre_trained=False)[0]
    backbone.module.eval()
    samples, device = scan(sample_folder), torch.device('cpu')
    def load() -> list[Batch]: return list(load_batches(samples, np.arange(24), sample_folder, 64, 8, 2))
    module = inference_module(backbone.module, 64, device)
    one, two = (np.concatenate([emb for _, emb in run_batches(iter(load()), 24, backbone, '32', module=o, n_compute=n)]) for o, n in ((None, 1), (module, 3)))
    assert one.tobytes() == two.tobytes()
    trained = np.concatenate([embed_batch(o, backbone, backbone.module, device, None) for o in load()])
    np.testing.assert_allclose(one, trained, rtol=1e-4, atol=1e-5)
    norms = [type(o).__name__ for o in module.modules()].count('BatchNorm2d')
    assert norms == 1, 'only the one on the pictures is left'
    half = np.concatenate([emb for _, emb in run_batches(iter(load()), 24, backbone, 'bf16', module=module)])
    assert half.dtype == np.float32 and (normalize(half)*normalize(one)).sum(axis=1).min() > .99 and not np.array_equal(half, one)


def test_busy(tmp_path: Path) -> None:
    "Large pictures and a small network: decoding is named as the bottleneck, live and at the end."
    for i in range(6): sample_photos()['flower'].resize((2400, 1600)).save(tmp_path/f'{i}.png', compress_level=1)
    backbone, busy, ticks = load_backbone(input_size=32), Busy(), list[Tick]()
    with listening(ticks.append): embed(scan(tmp_path), backbone, tmp_path, 2, 2, busy=busy)
    told = busy.to_json()
    assert told is not None and told['bottleneck'] == 'decode' and told['n_images'] == 6, told
    assert 0 < told['busy']['network'] < told['busy']['decode'] <= 1 and 0 <= told['efficiency'] < 1
    assert ticks[-1].busy is not None and max(ticks[-1].busy, key=ticks[-1].busy.__getitem__) == 'decode'
    make_video(tmp_path/'a.mp4', n_frames=20)
    films = Busy()
    embed_videos(VideoPass(scan(tmp_path), tmp_path, 1), backbone, 8, busy=films)
    assert set(films.shares()) == {'decode', 'network', 'write'} and films.n_pictures == 20


@pytest.mark.slow
def test_busy_of_a_run(tmp_path: Path, sample_folder: Path) -> None:
    "The run keeps it, and goes on with another way of decoding only in another folder."
    words = [f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=r', 'steps=[embed]']
    run = finish(*words, 'decode_at_part=False', cwd=tmp_path)
    mark = read_mark(run, 'embed')
    assert mark is not None and set(mark.result['embedding']['busy']) == {'decode', 'network', 'write'}
    assert 'busy: ' in run.log.read_text()
    answer = curate(*words, cwd=tmp_path)
    assert answer.returncode == 2 and 'decode_at_part was False and is now True' in answer.stderr, answer.stderr
