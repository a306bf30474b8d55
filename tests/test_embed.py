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
from lightly_curate.data.frames import VideoPass
from lightly_curate.data.sample_data import make_video
from lightly_curate.data.scan import scan
from lightly_curate.embed.embed import embed, embed_videos
from lightly_curate.embed.embedding_csv import read_embeddings, read_fast, read_npy, read_slowly, write_embeddings
from lightly_curate.embed.vectors import Vectors
from lightly_curate.learn.backbone import load_backbone

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
