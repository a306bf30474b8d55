"""Seeded mutations of files and words that a run reads: each outcome must be a row, a refusal or success.

`python tests/fuzz.py --cases 20000 --seed 0` tries them in worker processes that are killed when they take too long or too much
memory, prints a line for each kind, and keeps every case that failed in a folder. A case is made from its number alone, so
`--first 1234 --cases 1` makes it again.
"""
import argparse
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from lightly_curate.core.config import CurateConfig, leaves, tidy_override, without_token
from lightly_curate.core.errors import CurateError
from lightly_curate.data.isolated import Gone, call

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get('LIGHTLY_CURATE_SHARED_DATA', ROOT.parent/'shared'/'data'))
SECONDS, FILE_SECONDS = 180., 20.  # of a batch; of a file in it
MEMORY = 8_000_000_000            # bytes of addresses that a batch may take; torch maps five of them when it is imported
MOST_PIXELS = 4_000_000
MOST_REASON = 400  # letters
BATCH = 20         # cases
INTEGERS = (0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffffffe, 1 << 24)
TEXTS = (b'nan', b'inf', b'-0', b'1e309', b'9'*400, b'"', b'""', b',', b',,', b'\r', b'\n', b'\r\n', b'\0', b'\xff\xfe', b'\xef\xbb\xbf', b'../', b'/', b'\x1b[2J',
         b'embedding_0', b'embedding_2', b'labels', b'filenames', b'masked', b'selected', b'{', b'[', b']', b'}', b':', b'null', b'true', '\u2028'.encode(), b'=1+1', b'\xe4', b'[' * 2000)
WORDS = ('', '-1', '0', '1', '1e999', 'nan', '-inf', '0x10', '1_000', "1'000", '[]', '{}', '[1,2]', '[[[[', '{a:1}', '{a: {b: ???}}', '???', 'null', 'True', '${input_dir}',
         '${oc.env:HOME}', '${x.y}', '${${x}}', '${oc.env:NO_SUCH,${oc.env:NO}}', "'", '"', '\\', "a'b", '../..', '/', '/dev/null', '/proc/self/mem', 'a\0b', 'a\nb', '\x1b[2J',
         'é日本', 'a'*5000, '1,2', '1,2,3', '~', '+', '%s', '$(id)', ' ', '\t', 'glob(*)', 'range(1,3)', 'choice(1,2)', 'int(x)', 'json_str(1)', '9'*5000, '\udcff', '...', '1.', '.5')


# ---- what is changed -------------------------------------------------------------------------------------------------------------------------

@cache
def parents() -> dict[str, list[tuple[str, bytes]]]:
    "Sound files of every kind: ours, and where there are some, small ones of the shared data."
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {'image': image_parents(), 'video': video_parents(folder), 'checkpoint': checkpoint_parents(), **table_parents(folder)}
    if SHARED.is_dir():
        for kind, folders, most in (('image', ('odd',), 100_000), ('video', ('videos', 'videos_broken'), 160_000), ('checkpoint', ('weights',), 3_000_000)):
            files = sorted(o for f in folders for o in (SHARED/f).rglob('*') if o.is_file() and 0 < o.stat().st_size <= most and o.suffix not in ('', '.csv'))
            found[kind] += [(o.suffix.lower(), o.read_bytes()) for o in files]
    return found


def image_parents() -> list[tuple[str, bytes]]:
    from lightly_curate.data.sample_data import View, cut, sample_photos
    photo = cut(next(iter(sample_photos().values())), View(.3, .3, .5)).resize((80, 60))
    made = []
    for suffix, kind, mode, options in [
            ('.jpg', 'JPEG', 'RGB', {}), ('.jpg', 'JPEG', 'L', {'progressive': True}), ('.jpg', 'JPEG', 'CMYK', {}), ('.png', 'PNG', 'RGB', {}), ('.png', 'PNG', 'P', {}),
            ('.png', 'PNG', 'RGBA', {'save_all': True, 'append_images': [photo.convert('RGBA')]}), ('.gif', 'GIF', 'P', {'save_all': True, 'append_images': [photo.convert('P')]*3}),
            ('.webp', 'WEBP', 'RGB', {}), ('.webp', 'WEBP', 'RGBA', {'lossless': True}), ('.bmp', 'BMP', 'RGB', {}), ('.tif', 'TIFF', 'RGB', {'compression': 'tiff_lzw'}),
            ('.tif', 'TIFF', 'RGB', {'compression': 'jpeg'}), ('.tif', 'TIFF', 'L', {}), ('.jp2', 'JPEG2000', 'RGB', {}), ('.ico', 'ICO', 'RGBA', {}), ('.ppm', 'PPM', 'RGB', {}),
            ('.avif', 'AVIF', 'RGB', {})]:
        file = io.BytesIO()
        try: photo.convert(mode).save(file, kind, **options)
        except (OSError, KeyError): continue  # a format that this Pillow does not write
        made.append((suffix, file.getvalue()))
    return made


def video_parents(folder: Path) -> list[tuple[str, bytes]]:
    from lightly_curate.data.sample_data import make_video
    made = []
    for name in ('a.mp4', 'b.mkv', 'c.avi', 'd.mov', 'e.webm', 'f.mpg'):
        try: make_video(folder/name, n_frames=6, size=(48, 32), keyframe_every=3)
        except (ValueError, OSError, RuntimeError): continue  # an encoder that this FFmpeg does not have
        made.append((Path(name).suffix, (folder/name).read_bytes()))
    return made


def checkpoint_parents() -> list[tuple[str, bytes]]:
    import torch
    from lightly_curate.learn.backbone import backbone_entry, start_backbone
    whole, _ = start_backbone('resnet-9', num_ftrs=8, width=.125, input_size=32, pre_trained=False)
    loadable = {'state_dict': {f'model.backbone.{k}': o for k, o in whole.module.state_dict().items()}, 'backbone': backbone_entry(whole)}
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 4, 3, groups=4), torch.nn.Linear(4, 2))
    made = []
    for content in (loadable, loadable, {'state_dict': net.state_dict()}, {'epoch': 3, 'state_dict': net.state_dict(), 'hyper_parameters': {'a': [1, 2.5, 'x']}}):
        for is_zip in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=is_zip)
            made.append(('.ckpt', file.getvalue()))
    head = json.dumps({'a.weight': {'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 16]}}).encode()
    return [*made, ('.safetensors', struct.pack('<Q', len(head)) + head + bytes(16))]


def table_parents(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    import pyarrow as pa
    import pyarrow.parquet
    from lightly_curate.embed.embedding_csv import write_embeddings
    rng = np.random.default_rng(0)
    emb, names = rng.normal(size=(9, 3)).astype(np.float32), ['a.jpg', 'b/c.jpg', 'd, "e".jpg', *(f'{i}.png' for i in range(6))]
    write_embeddings(folder/'a.csv', names, emb, rng.integers(3, size=9))
    plain = (folder/'a.csv').read_bytes()
    marked = plain.replace(b',labels\r\n', b',masked,selected,labels\r\n').replace(b',0\r\n', b',0,1,0\r\n').replace(b',1\r\n', b',1,0,1\r\n').replace(b',2\r\n', b',0,0,2\r\n')
    parquet = []
    for columns in ({f'embedding_{k}': emb[:, k] for k in range(3)}, {'embedding': emb.tolist(), 'masked': [False]*9}, {'embedding': pa.FixedSizeListArray.from_arrays(emb.ravel(), 3)}):
        for compression in ('snappy', 'none', 'zstd'):
            file = io.BytesIO()
            pa.parquet.write_table(pa.table({'filenames': names, **columns, 'labels': range(9)}), file, compression=compression)
            parquet.append(('.parquet', file.getvalue()))
    arrays = []
    for array in (emb, emb.astype('>f8'), np.asfortranarray(emb), emb.astype(np.float16)):
        file = io.BytesIO()
        np.save(file, array)
        arrays.append(('.npy', file.getvalue()))
    update = {'id': 'x', 'run': 'r', 'time': '2026-01-01T00:00:00Z', 'n_added': 9, 'n_total': 9, 'state': '', 'renamed': {'a.jpg': 'b.jpg'}}
    weights = {'origin': 'built in', 'sha256': 'f'*64, 'name': 'builtin', 'n_features': 3, 'input_size': 32}
    facts = json.dumps({'schema': '1.0', 'weights': weights, 'updates': [update]}).encode()
    return {'csv': [('.csv', plain), ('.csv', marked)], 'parquet': parquet, 'npy': arrays, 'json': [('.json', facts)]}


# ---- how it is changed -----------------------------------------------------------------------------------------------------------------------

def place(rng: np.random.Generator, data: bytes) -> int:
    "Somewhere, and every other time in the first hundred bytes, where the headers are."
    return int(rng.integers(max(1, len(data) if rng.random() < .5 else min(100, len(data)))))


def bits(rng, data, other):
    i = place(rng, data)
    return data[:i] + bytes([data[i] ^ 1 << int(rng.integers(8))]) + data[i + 1:] if data else b'a'


def noise(rng, data, other):
    i, n = place(rng, data), int(rng.integers(1, 40))
    return data[:i] + rng.bytes(n) + data[i + n:]


def integer(rng, data, other):
    i, form = place(rng, data), str(rng.choice(['<B', '<H', '>H', '<I', '>I', '<Q', '>Q']))
    value = int(rng.choice(INTEGERS)) & (1 << 8*struct.calcsize(form)) - 1
    return data[:i] + struct.pack(form, value) + data[i + struct.calcsize(form):]


def cut_out(rng, data, other):
    i = place(rng, data)
    return data[:i] + data[i + int(rng.integers(1, 200)):]


def insert(rng, data, other):
    i = place(rng, data)
    return data[:i] + rng.bytes(int(rng.integers(1, 60))) + data[i:]


def repeat(rng, data, other):
    i, n = place(rng, data), int(rng.integers(1, 300))
    return data[:i] + data[i:i + n]*int(rng.integers(2, 50)) + data[i + n:]


def zeros(rng, data, other):
    i, n = place(rng, data), int(rng.integers(1, 500))
    return data[:i] + bytes(min(n, len(data) - i)) + data[i + n:]


def text(rng, data, other):
    i = place(rng, data)
    return data[:i] + TEXTS[int(rng.integers(len(TEXTS)))] + data[i + int(rng.integers(4)):]


def cut_end(rng, data, other): return data[:int(rng.integers(len(data) + 1))]
def splice(rng, data, other): return data[:place(rng, data)] + other[place(rng, other):]


MUTATORS: tuple[Callable[[np.random.Generator, bytes, bytes], bytes], ...] = (bits, bits, noise, integer, integer, cut_end, cut_out, insert, repeat, splice, zeros, text)


def mend_png(data: bytes) -> bytes:
    "The same chunks with right checksums, so that a decoder looks into them."
    out, i = data[:8], 8
    while i + 12 <= len(data):
        n = int.from_bytes(data[i:i + 4], 'big')
        if i + 12 + n > len(data): break
        body = data[i + 4:i + 8 + n]
        out, i = out + data[i:i + 4] + body + zlib.crc32(body).to_bytes(4, 'big'), i + 12 + n
    return out + data[i:]


def change_members(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    "A zip file in which one member is changed and its checksum is right."
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as file, zipfile.ZipFile(out, 'w') as new:
        names = file.namelist()
        chosen = names[int(rng.integers(len(names)))] if rng.random() < .4 else next(o for o in names if o.endswith('data.pkl'))
        for name in names: new.writestr(name, mutated(rng, file.read(name), other) if name == chosen else file.read(name))
    return out.getvalue()


def mutated(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    "Bytes changed in one to four ways."
    for _ in range(int(rng.integers(1, 5))): data = MUTATORS[int(rng.integers(len(MUTATORS)))](rng, data, other)
    return data


def words(rng: np.random.Generator) -> bytes:
    "One to four words of a command line, a JSON list."
    known = [o for o, _ in leaves(CurateConfig())]
    made = []
    for _ in range(int(rng.integers(1, 5))):
        key, value = str(rng.choice(known)), WORDS[int(rng.integers(len(WORDS)))]
        way = rng.random()
        if way < .1: key = key.rpartition('.')[0] or key
        elif way < .2: key = key[:-1]
        elif way < .25: key = mutated(rng, key.encode(), b'').decode('latin-1')
        if rng.random() < .2: value = mutated(rng, value.encode('utf-8', 'surrogateescape'), b'[]{}').decode('latin-1')
        made.append(str(rng.choice(['', '', '', '', '+', '++', '~'])) + key + str(rng.choice(['=', '=', '=', '=', '', '==', ' = ', '@'])) + value)
    return json.dumps(made).encode()


KINDS = ('image',)*8 + ('video',)*2 + ('checkpoint',)*2 + ('csv',)*3 + ('parquet',)*2 + ('npy', 'json', 'words')  # of 20 batches


def make_case(kind: str, seed: int, number: int) -> tuple[str, bytes]:
    "Suffix and content of a case."
    rng = np.random.default_rng([seed, number])
    if kind == 'words': return '.json', words(rng)
    files = parents()[kind]
    suffix, data = files[int(rng.integers(len(files)))]
    other = files[int(rng.integers(len(files)))][1]
    if data[:2] == b'PK' and rng.random() < .8: return suffix, change_members(rng, data, other)
    data = mutated(rng, data, other)
    if suffix == '.png' and rng.random() < .8: data = mend_png(data)
    return suffix, data


# ---- trying it, in a worker process ----------------------------------------------------------------------------------------------------------

def told(reason: str | None) -> str:
    "'row' for a reason that can be read, else what is wrong with it."
    if reason is None: return 'ok'
    fine = reason and reason.isprintable() and len(reason) <= MOST_REASON and '/tmp/' not in reason and 'Traceback' not in reason
    return 'row' if fine else f'a reason that cannot be shown: {reason!r}'


def try_samples(samples, names: list[str]) -> dict[str, str]:
    "Outcome of each file of a table."
    from lightly_curate.data.scan import Kind, kind_of
    by_file = samples[samples['source'] != 'frame'].set_index('filename')
    frames = set(samples['path'][samples['source'] == 'frame'])
    reasons = {o: by_file['reason'][o] if o in by_file.index else None for o in names}
    lost = [o for o in names if o not in by_file.index and o not in frames and kind_of(o) in (Kind.IMAGE, Kind.VIDEO)]  # others may be no picture any more
    return {o: told(None if reasons[o] is None or reasons[o] is not reasons[o] or str(reasons[o]) == '<NA>' else str(reasons[o])) for o in names} | dict.fromkeys(lost, 'no row')


def try_images(folder: str, names: list[str]) -> dict[str, str]:
    from lightly_curate.clean.duplicates import mark_duplicates
    from lightly_curate.clean.integrity import check_integrity
    from lightly_curate.data.scan import scan
    from PIL import Image
    Image.new('RGB', (8, 8)).save(Path(folder)/'sound.png')
    return try_samples(mark_duplicates(check_integrity(scan(Path(folder)), Path(folder), 1, MOST_PIXELS, seconds=FILE_SECONDS)), names)


def try_videos(folder: str, names: list[str]) -> dict[str, str]:
    from lightly_curate.data.frames import VideoPass, finish
    from lightly_curate.data.scan import scan
    reading = VideoPass(scan(Path(folder)), Path(folder), 1, max_pixels=MOST_PIXELS)
    for batch in reading.batches(16, 16): reading.add(batch)
    return try_samples(finish(reading).samples, names)


def try_words(path: Path) -> None:
    from lightly_curate.run.cli import checked
    with tempfile.TemporaryDirectory() as folder:
        given = json.loads(path.read_bytes())
        checked([tidy_override(o) for o in without_token([*given, f'input_dir={folder}', f'output_dir={folder}'])])


def try_facts(path: Path) -> None:
    from lightly_curate.select.datapool import load_pool, pool_files
    with tempfile.TemporaryDirectory() as folder:
        files = pool_files(Path(folder), 'pool')
        files.root.mkdir()
        shutil.copyfile(path, files.facts)
        load_pool(files)


def try_checkpoint(path: Path) -> None:
    from lightly_curate.learn.backbone import load_backbone
    load_backbone(checkpoint=path)


def try_table(path: Path) -> None:
    from lightly_curate.embed.embedding_csv import read_embeddings
    from lightly_curate.run.pipeline import check_given_names
    check_given_names(read_embeddings(path).filenames, path.name)


def try_npy(path: Path) -> None:
    from lightly_curate.embed.embedding_csv import read_npy
    read_npy(path, 9)


TRY_ONE: dict[str, Callable[[Path], None]] = {'checkpoint': try_checkpoint, 'csv': try_table, 'parquet': try_table, 'npy': try_npy, 'json': try_facts, 'words': try_words}


def take_memory(n_gb: int) -> dict[str, int]: return {'n': len(np.ones(n_gb*125_000_000))}


def try_batch(kind: str, folder: str, names: list[str]) -> dict[str, str]:
    "Outcome of each file: ok, row, refused, or what is wrong; anything else that is raised is a finding, too."
    if kind == 'image': return try_images(folder, names)
    if kind == 'video': return try_videos(folder, names)
    outcomes = {}
    for name in names:
        try:
            TRY_ONE[kind](Path(folder)/name)
            outcomes[name] = 'ok'
        except CurateError as error:
            faults = str(error)
            outcomes[name] = 'refused' if faults and '\x1b' not in faults and len(faults) < 20_000 else f'a message that cannot be shown: {faults[:300]!r}'
    return outcomes


# ---- the runner ------------------------------------------------------------------------------------------------------------------------------

@dataclass
class Outcome:
    "What came of all cases."
    counts: dict[str, Counter] = field(default_factory=dict)       # kind -> ok, row, refused, FAILED
    findings: list[tuple[str, int, str]] = field(default_factory=list)  # kind, number, what was wrong
    seconds: float = 0.

    def add(self, kind: str, number: int, said: str) -> None:
        is_fine = said in ('ok', 'row', 'refused')
        self.counts.setdefault(kind, Counter())[said if is_fine else 'FAILED'] += 1
        if not is_fine: self.findings.append((kind, number, said))

    def text(self) -> str:
        columns = ('ok', 'row', 'refused', 'FAILED')
        lines = [f'{"kind":12}{"tried":>8}' + ''.join(f'{o:>9}' for o in columns)]
        for kind, n in [*sorted(self.counts.items()), ('all', sum(self.counts.values(), Counter()))]:
            lines.append(f'{kind:12}{n.total():8}' + ''.join(f'{n[o]:9}' for o in columns))
        return '\n'.join([*lines, *(f'{kind} {number}: {said}' for kind, number, said in self.findings)])


@contextmanager
def written(kind: str, seed: int, numbers: list[int]) -> Iterator[tuple[str, dict[str, int]]]:
    "A folder with the files of some cases."
    with tempfile.TemporaryDirectory(prefix='fuzz-') as folder:
        names = {}
        for number in numbers:
            suffix, data = make_case(kind, seed, number)
            (Path(folder)/f'{number}{suffix}').write_bytes(data)
            names[f'{number}{suffix}'] = number
        yield folder, names


def try_cases(kind: str, seed: int, numbers: list[int], seconds: float = SECONDS) -> dict[int, str]:
    "Outcomes of some cases; when the batch as a whole fails, each is tried alone."
    try:
        with written(kind, seed, numbers) as (folder, names):
            said = call('fuzz:try_batch', kind, folder, list(names), seconds=seconds, what='the case', memory=MEMORY)
            return {number: said[name] for name, number in names.items()}
    except (Gone, RuntimeError) as error:
        if len(numbers) == 1: return {numbers[0]: f'{type(error).__name__}: {str(error)[-600:]}'}
    return {o: said for number in numbers for o, said in try_cases(kind, seed, [number], seconds).items()}


def fuzz(n_cases: int, seed: int = 0, first: int = 0, n_workers: int = 2, kinds: tuple[str, ...] = KINDS, say: Callable[[str], object] = lambda _: None) -> Outcome:
    "Try many cases; the kind of a case follows from its number."
    batches = {}
    for number in range(first, first + n_cases): batches.setdefault(number//BATCH, []).append(number)
    outcome, begun = Outcome(), time.monotonic()
    parents()
    with ThreadPoolExecutor(n_workers) as pool:
        jobs = {batch: pool.submit(try_cases, kinds[batch % len(kinds)], seed, numbers) for batch, numbers in batches.items()}
        for done, (batch, job) in enumerate(jobs.items(), 1):
            for number, said in job.result().items():
                before = len(outcome.findings)
                outcome.add(kinds[batch % len(kinds)], number, said)
                if len(outcome.findings) > before: say(f'FAILED {kinds[batch % len(kinds)]} {number}: {said}')
            if done % 25 == 0: say(f'{done*BATCH:,} of {n_cases:,} cases, {len(outcome.findings)} failed, {time.monotonic() - begun:.0f} s')
    outcome.seconds = time.monotonic() - begun
    return outcome


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('--cases', 20_000), ('--seed', 0), ('--first', 0), ('--workers', 2)): arguments.add_argument(name, type=int, default=default)
    arguments.add_argument('--kind', choices=sorted(set(KINDS)), help='only cases of this kind')
    arguments.add_argument('--keep', type=Path, help='folder for the files of failed cases')
    asked = arguments.parse_args()
    kinds = (asked.kind,) if asked.kind else KINDS
    outcome = fuzz(asked.cases, asked.seed, asked.first, asked.workers, kinds, lambda text: print(text, file=sys.stderr, flush=True))
    if asked.keep and outcome.findings:
        asked.keep.mkdir(parents=True, exist_ok=True)
        for kind, number, _ in outcome.findings:
            suffix, data = make_case(kind, asked.seed, number)
            (asked.keep/f'{kind}-{asked.seed}-{number}{suffix}').write_bytes(data)
    print(outcome.text())
    print(f'{outcome.seconds:.0f} s')
    return 1 if outcome.findings else 0


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT/'tests'))
    sys.exit(main())
