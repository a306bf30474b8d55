"Tables, checkpoints and names made to do harm: each is told with its place, none is carried out."
import builtins
import csv
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from bs4 import BeautifulSoup
from lightly_curate.core.errors import CurateError, EmbeddingsError, WeightsError
from lightly_curate.core.parts import Parts
from lightly_curate.core.rundir import RunDir
from lightly_curate.core.samples import load_samples, make_samples
from lightly_curate.data.sample_data import View, cut, make_video, sample_photos
from lightly_curate.embed.embedding_csv import MOST_COLUMNS, MOST_LETTERS, read_embeddings, read_npy
from lightly_curate.learn.checkpoints import read_checkpoint
from lightly_curate.run.pipeline import check_given_names
from lightly_curate.select.datapool import load_pool, pool_files
from pypdf import PdfReader

COMMAND = Path(sys.executable).with_name('lightly-curate')
HEADER = 'filenames,embedding_0,embedding_1,labels\r\n'
BAD_LINES = {
    'a.jpg,1,nan,0': r"line 2, column embedding_1: 'nan' is not finite", 'a.jpg,-inf,1,0': r'line 2, column embedding_0',
    'a.jpg,1,1e39,0': r'line 2, column embedding_1: .* not finite', 'a.jpg,1,,0': r"line 2, column embedding_1: '' is not a number",
    'a.jpg,"1,5",2,0': r"line 2, column embedding_0: '1,5' is not a number", 'a.jpg,1,2': 'line 2: 3 columns, needed are the 4',
    'a.jpg,1,2,0\r\nb.jpg,1,2,0,7': 'line 3: 5 columns, needed are the 4', 'a.jpg,1,2,0\r\n\r\nb.jpg,1,2,0': 'line 3: the line is empty',
    'a.jpg,1,2,0\r\na.jpg,1,2,0': "the filename 'a.jpg' comes 2 times, first as samples 1 and 2",
    'a.jpg,1,2,0.5': 'line 2, column labels: .* not a whole number', f'a.jpg,1,2,{"9"*5000}': r'line 2, column labels: .*5,000 characters',
    'a.jpg,1,2,99999999999999999999': 'line 2, column labels: .* too large', '"a.jpg,1,2,0\r\nb.jpg,1,2,0': 'line 3: 1 columns',
    f'{"a"*200_000},1,2,0': 'line 2: .*131,072 characters', 'a.jpg,1\0,2,0': 'line 2, column embedding_0',
    'a.jpg,\x1b[2J,2,0': r"line 2, column embedding_0: '\\x1b\[2J' is not a number", 'a.jpg,1_0,2,0': 'line 2, column embedding_0',
    f'a.jpg,1,2,0{"," * (MOST_LETTERS + 1)}': 'line 2: more than 16,777,216 characters',
}
BAD_HEADERS = {
    '': "line 1: the first column is ''", 'filenames;embedding_0;labels': "the first column is 'filenames;embedding_0;labels'",
    f'filenames{"," * MOST_COLUMNS}labels': 'line 1: there are 100,001 columns', 'x' * (MOST_LETTERS + 1): 'line 1: more than 16,777,216 characters',
    'filenames,embedding_99999999999999999999999,labels': 'line 1: the column', f'filenames,embedding_{"9"*5000},labels': r'5,010 characters',
    'filenames,embedding_0,embedding_0,labels': 'comes 2 times', 'filenames,embedding_0,\x1b]0;x\x07,labels': r"'\\x1b\]0;x\\x07' stands between",
    '\0' * 1000: r'\(1,000 characters\), needed is filenames', 'filenames,embedding_\u0661,labels': 'stands between',
}


def refused(path: Path, data: bytes | str) -> str:
    path.write_bytes(data if isinstance(data, bytes) else data.encode('utf-8'))
    with pytest.raises(EmbeddingsError) as error: read_embeddings(path)
    text = str(error.value)
    assert '\x1b' not in text and len(text) < 600, text
    return text


@pytest.mark.parametrize('line', BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines_are_told_with_their_place(tmp_path, line):
    assert re.search(BAD_LINES[line], refused(tmp_path/'a.csv', HEADER + line + '\r\n'))


@pytest.mark.parametrize('header', BAD_HEADERS, ids=range(len(BAD_HEADERS)))
def test_bad_headers_are_told(tmp_path, header):
    assert re.search(BAD_HEADERS[header], refused(tmp_path/'a.csv', header + '\r\na.jpg,1,2\r\n'))


def test_other_encodings_are_told(tmp_path):
    assert 'not valid UTF-8' in refused(tmp_path/'a.csv', (HEADER + 'a.jpg,1,2,0\r\n').encode('utf-16'))
    assert 'line 2' in refused(tmp_path/'a.csv', HEADER.encode() + b'\xe4.jpg,1,2,0\r\n')


@pytest.mark.parametrize('change', [lambda o: o, lambda o: '\ufeff' + o, lambda o: o.replace('\r\n', '\n'), lambda o: o.replace('\r\n', '\r')])
def test_what_is_no_fault_is_read(tmp_path, change):
    "A mark of byte order, any line end, quotes and commas in names."
    (tmp_path/'a.csv').write_bytes(change(HEADER + '"a, ""b"".jpg",1,-0.0,3\r\nc.jpg,2,1e-45,0\r\n').encode())
    table = read_embeddings(tmp_path/'a.csv')
    assert table.filenames == ['a, "b".jpg', 'c.jpg'] and table.emb.tolist() == [[1, 0], [2, float(np.float32(1e-45))]]


@pytest.mark.parametrize('columns, message', [
    ({'embedding_0': [1., None]}, 'column embedding_0: 1 values are missing, first that of sample 2'), ({'embedding_0': [1., np.inf]}, 'sample 2, embedding_0'),
    ({'embedding': [[1., 2.], [1.]]}, 'sample 2: a list of 1 numbers, the first one has 2'), ({'embedding': [[1.], None]}, 'column embedding: 1 values are missing'),
    ({'embedding_0': [1., 2.], 'labels': [0, None]}, 'column labels: 1 values'), ({'embedding_0': [b'1', b'2']}, 'it holds binary'),
    ({'embedding': [[[1.]], [[1.]]]}, 'needed are lists of numbers'), ({'embedding_0': [1., 2.], 'masked': [0, 2]}, 'sample 2, column masked'),
    ({'\x1b[2J': [1, 2]}, 'has the columns'), ({'embedding_0': [1., 2.], 'embedding_5': [1., 2.]}, 'column embedding_1: it is missing'),
], ids=range(10))
def test_bad_parquet_is_told(tmp_path, columns, message):
    pa.parquet.write_table(pa.table({'filenames': ['a', 'b'], **columns}), tmp_path/'a.parquet')
    with pytest.raises(EmbeddingsError, match=message) as error: read_embeddings(tmp_path/'a.parquet')
    assert '\x1b' not in str(error.value)


def npy(path: Path, header: str, body: bytes = b'') -> Path:
    "An .npy file of version 1 with any header."
    text = header.encode() + b'\n'
    path.write_bytes(b'\x93NUMPY\x01\0' + len(text).to_bytes(2, 'little') + text + body)
    return path


@pytest.mark.parametrize('header', [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 100000000000)}", "{'descr': '<f4', 'fortran_order': False, 'shape': (2, -1)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 9)}", '('*5000, "__import__('os').system('touch hit')",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2, 1)}", "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 1)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 1.5)}", "{'descr': '<f4', 'fortran_order': 7, 'shape': 2}", '{'], ids=range(10))
def test_bad_npy_is_told(tmp_path, header, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EmbeddingsError): read_npy(npy(tmp_path/'a.npy', header, bytes(8)), 2)
    assert [o.name for o in tmp_path.iterdir()] == ['a.npy']


class Bomb:
    "What unpickling turns into a file."
    def __init__(self, path: Path): self.path = path
    def __reduce__(self): return builtins.open, (str(self.path), 'w')


def bombs(folder: Path, hit: Path) -> dict[str, Path]:
    "The ways to hide a pickle in what a run reads."
    bomb = Bomb(hit)
    np.save(folder/'object.npy', np.array([[bomb], [bomb]], dtype=object), allow_pickle=True)
    (folder/'plain.npy').write_bytes(pickle.dumps(bomb))
    np.savez(folder/'archive.npz', emb=np.array([bomb], dtype=object), allow_pickle=True)
    (folder/'archive.npz').rename(folder/'archive.npy')
    torch.save({'state_dict': bomb}, folder/'new.ckpt')
    torch.save({'state_dict': bomb}, folder/'old.pt', _use_new_zipfile_serialization=False)
    (folder/'plain.pth').write_bytes(pickle.dumps({'state_dict': bomb}))
    torch.save({'state_dict': {'a': torch.zeros(2)}}, folder/'inside.ckpt')
    with zipfile.ZipFile(folder/'inside.ckpt', 'a') as file: file.writestr('constants.pkl', pickle.dumps(bomb))
    return {o.name: o for o in folder.iterdir()}


def test_no_pickle_is_loaded(tmp_path):
    hit = tmp_path/'hit'
    (tmp_path/'bombs').mkdir()
    for name, path in bombs(tmp_path/'bombs', hit).items():
        assert not hit.exists()
        if path.suffix == '.npy':
            with pytest.raises(EmbeddingsError): read_npy(path, 2)
        else:
            with pytest.raises(WeightsError): read_checkpoint(path)
        assert not hit.exists(), name
    pickle.loads((tmp_path/'bombs/plain.npy').read_bytes()).close()
    assert hit.exists(), 'the bomb itself does not work'


def test_nothing_in_the_package_unpickles(root):
    "Every torch.load with weights_only=True, every np.load without pickle, no pickle module but for the name of its error."
    for path in (root/'lightly_curate').rglob('*.py'):
        text = path.read_text()
        assert text.count('torch.load(') == len(re.findall(r'torch\.load\([^\n]*weights_only=True', text)), path
        assert 'allow_pickle=True' not in text and not re.search(r'read_pickle|joblib|dill|marshal|pickle\.loads?\b|yaml\.(unsafe_)?load\(', text), path


def test_a_part_of_a_run_is_no_pickle(tmp_path):
    "Not even in files that a run keeps for itself, which may have come from another machine."
    hit, parts = tmp_path/'hit', Parts(tmp_path/'parts', {'a': 1})
    parts.add({'x': np.arange(3)})
    parts.flush()
    written = [o for o in (tmp_path/'parts').iterdir() if o.suffix == '.npz']
    assert written
    for path in written: np.savez(path, x=np.array([Bomb(hit)], dtype=object), allow_pickle=True)
    try: list(Parts(tmp_path/'parts', {'a': 1}).found())
    except (CurateError, ValueError): pass
    assert not hit.exists()


@pytest.mark.parametrize('text', ['', '[]', '{', 'null', '{"schema": 1}', '{"schema": "1.0", "weights": 3, "updates": 4}', '[' * 100_000, '{"schema": "9.0"}',
                                  '{"schema": "1.0", "weights": {}, "updates": [{}]}', '"a"', '1e999', '{"schema": "1.0", "weights": null, "updates": null}'])
def test_bad_facts_of_a_pool_are_told(tmp_path, text):
    files = pool_files(tmp_path, 'pool')
    files.root.mkdir()
    files.facts.write_text(text)
    with pytest.raises(EmbeddingsError, match='damaged|schema'): load_pool(files)


@pytest.mark.parametrize('name', ['../a.jpg', '/etc/passwd', 'a/../../b.jpg', '', '.', 'a//b.jpg', './a.jpg', 'a\0.jpg', 'a\nb.jpg', 'a\x1b[2J.jpg', 'a\x85b.jpg', 'a/..'])
def test_names_stay_below_the_folders(name):
    with pytest.raises(EmbeddingsError, match='as sample 2, allowed is a path below') as error: check_given_names(['fine.jpg', name], 'a.csv')
    assert '\x1b' not in str(error.value) and '\n' not in str(error.value)


NAMES = ['<script>window.hit=1</script>.jpg', '"><img src=x onerror="hit=1">.jpg', '=HYPERLINK("http:hit","a").jpg', '+1.jpg', '-1.jpg', '@SUM(1).jpg', '\t=1.jpg',
         '#panic("hit") $x$ #sys.inputs.jpg', '*b* _i_ `c` [l](javascript:hit).jpg', '{{ hit }} {% raw %} ${hit}.jpg', '\x1b[2J\x1b]0;hit\x07.jpg', 'a\x9b31m.jpg',
         '%s%n%d {0}.jpg', "'; DROP TABLE x;--.jpg", '&lt;b&gt;&#60;hit&#62;.jpg', '\u202egpj.exe.jpg', '\\input{hit}\\u0000.jpg', 'NUL.jpg', '---.jpg', '~.jpg']


@pytest.fixture(scope='module')
def poisoned(tmp_path_factory) -> RunDir:
    "A run over names that are code somewhere; of the folder, of videos, of broken files and of copies as well."
    work = tmp_path_factory.mktemp('poisoned')
    folder = work/'in'/'<svg onload=hit=1>'
    folder.mkdir(parents=True)
    photos = list(sample_photos().values())
    for i, name in enumerate(NAMES):
        cut(photos[i % len(photos)], View(i/len(NAMES), .3, .5)).save(folder/'plain.jpg')
        place = work/'in' if name[0] in '=+-@\t' else folder
        (place/name).parent.mkdir(exist_ok=True)
        (folder/'plain.jpg').rename(place/name)
    shutil.copy(folder/NAMES[0], work/'in/=copy <i>.jpg')
    for name in ('<svg onload=hit=1>/<b>broken<b>.jpg', '=broken.jpg'): (work/'in'/name).write_bytes(b'\xff\xd8\xff broken')
    make_video(folder/'plain.mp4', n_frames=8)
    (folder/'plain.mp4').rename(work/'in'/'=<script>hit=2<script> #panic().mp4')
    answer = subprocess.run([COMMAND, f'input_dir={work}/in', f'output_dir={work}/out', 'run_directory=r', 'stopping_condition.n_samples=0.4', 'dump_dataset=True'],
                            capture_output=True, cwd=work, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert answer.returncode == 0, answer.stderr.decode()[-3000:]
    (work/'out/r.stderr').write_bytes(answer.stderr + answer.stdout)
    return RunDir(work/'out/r')


def test_names_are_no_markup(poisoned):
    "The pages hold the names as text, and no element, attribute or link that a name asked for."
    for path in (poisoned.report_html, poisoned.explore_html):
        page = BeautifulSoup(path.read_text(encoding='utf-8'), 'html.parser')
        assert not page.find_all(lambda o: any(k.startswith('on') and 'hit' in str(v) for k, v in o.attrs.items())), path
        assert not page.find_all(href=re.compile('^javascript|hit')) and not page.find_all('img', src='x') and not page.find_all('svg', onload=True)
        for script in page.find_all('script'): assert not re.search(r'^\s*(window\.)?hit', script.get_text()), path
    assert '<script>window.hit=1' in BeautifulSoup(poisoned.report_html.read_text(encoding='utf-8'), 'html.parser').get_text()
    assert '<script>window' not in poisoned.explore_html.read_text(encoding='utf-8')


def test_names_are_no_typst(poisoned):
    "The PDF was made, and shows what a name says instead of doing it."
    text = ''.join(o.extract_text() for o in PdfReader(poisoned.report_pdf).pages)
    assert '<script>hit=2' in re.sub(r'\s', '', text)


def test_names_are_no_commands_to_a_terminal(poisoned):
    for path in [*poisoned.root.rglob('*.txt'), *poisoned.root.rglob('*.ipynb'), *poisoned.root.rglob('*.json'), poisoned.removed_samples_csv,
                 poisoned.kernel_log, poisoned.root.with_suffix('.stderr')]:
        data = path.read_bytes()
        assert b'\x1b' not in data and b'\xc2\x9b' not in data and b'\x07' not in data, path
    samples = load_samples(poisoned.samples_parquet)
    reasons = samples['reason'][samples['filename'].str.contains('x1b')].tolist()
    assert reasons == ['the name holds a control character; rename the file']


def test_names_are_no_formulas(poisoned, tmp_path):
    for path in (poisoned.removed_samples_csv, poisoned.videos_csv):
        with path.open(newline='', encoding='utf-8') as file:
            for row in csv.reader(file):
                for cell in row: assert not re.match(r'[=+@\t]|-(?![\d.])', cell), cell
    assert './=broken.jpg' in poisoned.removed_samples_csv.read_text() and './=<script>' in poisoned.videos_csv.read_text()
    bare = make_samples(['=1.jpg', 'b.jpg'])
    from lightly_curate.deliver.export import write_people_table
    write_people_table(tmp_path/'a.csv', bare[['filename']], ['filename'])
    assert (tmp_path/'a.csv').read_text() == 'filename\n./=1.jpg\nb.jpg\n'


def test_names_come_back_as_they_are(poisoned):
    "In the lists, the table and the embeddings a name is the name."
    samples = load_samples(poisoned.samples_parquet)
    listed = poisoned.sampled_filenames.read_text(encoding='utf-8').splitlines()
    assert listed == samples[samples['selected']].sort_values('rank')['filename'].tolist()
    folder = poisoned.root.parent.parent/'in'
    images = samples[(samples['source'] == 'image') & (samples['status'] == 'ok')]
    assert all((folder/o).is_file() for o in images['filename']) and len(images) >= len(NAMES) - 2
    assert set(read_embeddings(poisoned.embeddings_csv).filenames) == set(samples['filename'][samples['status'] == 'ok'])
    report = json.loads(poisoned.report_json.read_text(encoding='utf-8'))
    assert report['counts']['corrupt'] == 4
