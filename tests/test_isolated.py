"Worker processes: what they survive, what they leave behind, and what they never see."
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lightly_curate.clean.integrity import check_integrity
from lightly_curate.core.errors import CurateError
from lightly_curate.core.samples import with_columns
from lightly_curate.data import isolated
from lightly_curate.data.batches import load_batches
from lightly_curate.data.isolated import Gone, call, stop, stream
from lightly_curate.data.pictures import in_worker_each
from lightly_curate.data.scan import scan
from lightly_curate.deliver.dump import dump_selected
from lightly_curate.learn.cache import build_cache

DECODER = '''
import ctypes, json, os, sys, time
import numpy as np
from lightly_curate.data import isolated

def about(n=0): return {'process': os.getpid(), 'environment': dict(os.environ), 'folder': os.getcwd(), 'n': n}
def hang(): time.sleep(600)
def spin():
    while True: pass
def hang_after_note(path):
    with open(path, 'w') as note: note.write(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)  # holds the interpreter lock, as a native decoder may
def crash(): ctypes.string_at(0)
def talk():
    os.write(1, b'to standard output\\n')
    os.write(2, b'to standard error\\n')
    print('printed', flush=True)
    return {'said': True}
def lie(text):
    isolated.serving.answers.write(text.encode('latin-1'))
    isolated.serving.answers.flush()
    time.sleep(600)
def fill(n): return {'total': int(np.ones(n, dtype=np.uint8).sum(dtype=np.int64))}
def fill_for_ever():
    held = []
    while True: held.append(np.ones(10**7, dtype=np.uint8))
def limits():
    import resource
    return {'core': resource.getrlimit(resource.RLIMIT_CORE)[0]}
def dies_twice(path):
    n = int(open(path).read()) if os.path.exists(path) else 0
    with open(path, 'w') as note: note.write(str(n + 1))
    if n < 2: crash()
    return {'n': n}
def numbers(n):
    for i in range(n): yield {'i': i}
def turns(n):
    for i in range(n):
        with isolated.alone(): time.sleep(.01)
        yield {'i': i}
def echo(n): return {'n': n, 'pixels': np.full((n % 7, n % 5, 3), n % 256, dtype=np.uint8)}
'''


@pytest.fixture(autouse=True)
def decoder(tmp_path, monkeypatch):
    (tmp_path/'a_decoder.py').write_text(DECODER)
    monkeypatch.syspath_prepend(str(tmp_path))
    stop()
    yield
    stop()


def is_alive(process: int) -> bool:
    try: return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError: return False


def gone_within(process: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while is_alive(process) and time.monotonic() < until: time.sleep(.02)
    return not is_alive(process)


@pytest.mark.parametrize('function', ['hang', 'spin'])
def test_time_limit(function):
    began = time.monotonic()
    with pytest.raises(Gone, match=r'^the decoder gave nothing for 0.3 s \(max_seconds_per_file\)$'): call(f'a_decoder:{function}', seconds=.3)
    assert time.monotonic() - began < 5


def test_native_code_that_keeps_the_interpreter_lock(tmp_path):
    with pytest.raises(Gone, match='gave nothing for 0.3 s'): call('a_decoder:hang_after_note', str(tmp_path/'note'), seconds=.3)


def test_memory_limit():
    assert call('a_decoder:fill', 3*10**8, seconds=20, memory=5*10**8) == {'total': 3*10**8}
    for function, *args in [('fill', 10**9), ('fill_for_ever',)]:
        with pytest.raises(Gone, match=r'needs more memory than it may have \(0.5 GB\)'):
            call(f'a_decoder:{function}', *args, seconds=20, memory=5*10**8)
    assert call('a_decoder:fill', 10**9, seconds=20, memory=2*10**9) == {'total': 10**9}, 'the limit is that of the call'
    assert call('a_decoder:limits', seconds=5) == {'core': 0}


def test_crash_is_told_with_its_signal_and_no_other_file_is_lost():
    with ThreadPoolExecutor(3) as pool:
        def outcome(n):
            try: return call('a_decoder:crash', seconds=5) if n % 5 == 3 else call('a_decoder:echo', n, seconds=5)['n']
            except Gone as gone: return gone.reason
        found = list(pool.map(outcome, range(20)))
    assert found == ['the decoder crashed (SIGSEGV)' if n % 5 == 3 else n for n in range(20)]


def test_a_crash_is_tried_once_more_and_not_twice(tmp_path):
    with pytest.raises(Gone, match='SIGSEGV'): call('a_decoder:dies_twice', str(tmp_path/'n'), seconds=5)
    assert (tmp_path/'n').read_text() == '2'
    assert call('a_decoder:dies_twice', str(tmp_path/'n'), seconds=5) == {'n': 2}


def test_many_threads_get_their_own_answers():
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(lambda n: call('a_decoder:echo', n, seconds=20), range(400)))
    for n, answer in enumerate(found):
        assert answer['n'] == n and answer['pixels'].shape == (n % 7, n % 5, 3)
        assert (answer['pixels'] == n % 256).all()
    assert len(isolated.idle) <= 4 and not isolated.working


def test_worker_killed_between_calls_and_during_one(tmp_path):
    process = call('a_decoder:about', seconds=5)['process']
    os.kill(process, signal.SIGKILL)
    assert gone_within(process, 5)
    assert call('a_decoder:about', seconds=5)['process'] != process
    with ThreadPoolExecutor(1) as pool:
        note = tmp_path/'note'
        pending = pool.submit(call, 'a_decoder:hang_after_note', str(note), seconds=2)
        killed = set()
        while len(killed) < 2:
            time.sleep(.02)
            found = note.read_text() if note.is_file() else ''
            if found and int(found) not in killed:
                os.kill(int(found), signal.SIGKILL)
                killed.add(int(found))
        with pytest.raises(Gone, match='SIGKILL'): pending.result()


def test_signals_for_everybody_do_not_end_a_worker():
    process = call('a_decoder:about', seconds=5)['process']
    for name in ('SIGINT', 'SIGTERM', 'SIGHUP'): os.kill(process, getattr(signal, name))
    assert call('a_decoder:about', seconds=5)['process'] == process


def test_stop_ends_what_hangs(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(call, 'a_decoder:hang_after_note', str(tmp_path/'note'), seconds=60)
        while not (tmp_path/'note').is_file(): time.sleep(.02)
        began = time.monotonic()
        stop()
        with pytest.raises(KeyboardInterrupt, match='the work was stopped'): pending.result()
        assert time.monotonic() - began < 5
    assert not isolated.idle and not isolated.working
    assert call('a_decoder:echo', 1, seconds=5)['n'] == 1


def test_worker_knows_no_secret_and_holds_no_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('LIGHTLY_TOKEN', 'a-secret-token')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'a-secret-token')
    about = call('a_decoder:about', seconds=5)
    assert 'a-secret-token' not in json.dumps(about['environment'])
    for file in ('environ', 'cmdline'): assert b'a-secret-token' not in Path(f'/proc/{about["process"]}/{file}').read_bytes()
    assert about['folder'] == os.path.abspath(os.sep)


def test_current_folder_is_gone(tmp_path, monkeypatch):
    (tmp_path/'away').mkdir()
    monkeypatch.chdir(tmp_path/'away')
    (tmp_path/'away').rmdir()
    assert call('a_decoder:echo', 3, seconds=5)['n'] == 3


def test_what_libraries_print_goes_nowhere(capfd):
    assert call('a_decoder:talk', seconds=5) == {'said': True}
    assert call('a_decoder:talk', seconds=5) == {'said': True}
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('text', ['\xff\xff\xff\xff', '\2\0\0\0[]', '\2\0\0\0{}', '\5\0\0\0["a"]', '\1\0\0\0x',
                                  '\x2c\0\0\0["item", {}, [["x", "|O", [1]]]]             ' + ' '*20,
                                  '\x2e\0\0\0["item", {}, [["x", "<f8", [9999999999999]]]]   ' + ' '*20])
def test_an_answer_is_not_believed(text):
    with pytest.raises(Gone, match='answered what it should not'): call('a_decoder:lie', text, seconds=5)
    assert call('a_decoder:echo', 3, seconds=5)['n'] == 3


def test_process_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(sys, 'executable', '/nowhere/python')
    with pytest.raises(CurateError, match='a process to read files in cannot be started: .*No such file'): call('a_decoder:echo', 1, seconds=5)
    monkeypatch.undo()
    monkeypatch.setattr(isolated, 'BEGIN', 'import no_such_module')
    with pytest.raises(CurateError, match="cannot be started: ModuleNotFoundError: No module named 'no_such_module'"):
        call('a_decoder:echo', 1, seconds=5)
    assert not isolated.idle and not isolated.working


def test_forked_process_has_its_own_workers():
    before = call('a_decoder:about', seconds=5)['process']
    child = os.fork()
    if not child:
        other = call('a_decoder:about', seconds=5)['process']
        stop()
        os._exit(0 if other != before else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert call('a_decoder:about', seconds=5)['process'] == before


PARENT = '''
import sys
sys.path.append({folder!r})
from lightly_curate.data.isolated import call
print('begun')
print(call('a_decoder:about', seconds=5)['process'], flush=True)
{then}
'''


def start_parent(tmp_path: Path, then: str) -> tuple[subprocess.Popen, int]:
    "A script without a main guard that has one idle worker, and the worker."
    (tmp_path/'script.py').write_text(PARENT.format(folder=str(tmp_path), then=then))
    parent = subprocess.Popen([sys.executable, str(tmp_path/'script.py')], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == 'begun\n', 'the script is run once, not again by its worker'
    return parent, int(parent.stdout.readline())


def test_nothing_is_left_when_the_parent_is_killed(tmp_path):
    parent, worker = start_parent(tmp_path, 'input()')
    with parent:
        parent.kill()
        assert gone_within(worker, 5), 'an idle worker ends with its parent'
    note = tmp_path/'note'
    parent, worker = start_parent(tmp_path, f"call('a_decoder:hang_after_note', {str(note)!r}, seconds=1.5)")
    with parent:
        while not note.is_file(): time.sleep(.02)
        parent.kill()
        assert gone_within(worker, 6), 'a hanging one at the end of its time'


def test_nothing_is_left_when_the_parent_ends(tmp_path):
    parent, worker = start_parent(tmp_path, '')
    with parent: assert parent.wait(20) == 0
    assert not is_alive(worker)


def test_stream_that_is_left_early_leaves_nothing():
    items = stream('a_decoder:numbers', 10**6, seconds=.5)
    assert [next(items)['i'] for _ in range(3)] == [0, 1, 2]
    (worker,) = isolated.working
    time.sleep(.8)
    assert next(items)['i'] == 3, 'the time of the reader does not count'
    items.close()
    assert not isolated.working and not is_alive(worker.process.pid)
    assert [o['i'] for o in stream('a_decoder:numbers', 1000, seconds=5)] == list(range(1000))


BAD_DECODER = '''
import ctypes, time
from lightly_curate.data import images, pictures
def bad(decode):
    def decode_badly(file, *args):
        if file.name.startswith('crash'): ctypes.string_at(0)
        if file.name.startswith('hang'): ctypes.PyDLL(None).sleep(600)
        if file.name.startswith('fill'): bytearray(10**11)
        return decode(file, *args)
    return decode_badly
images.decode, pictures.decode_small = bad(images.decode), bad(pictures.decode_small)
'''
REASONS = {'crash': 'the decoder crashed (SIGSEGV)', 'hang': 'the decoder gave nothing for 0.8 s (max_seconds_per_file)',
           'fill': 'the picture does not fit into memory'}


def test_a_decoder_that_hangs_or_crashes_costs_its_file_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, 'BEGIN', isolated.BEGIN.replace('from lightly_curate.data.isolated import work;',
                                                                  f'exec({BAD_DECODER!r}); from lightly_curate.data.isolated import work;'))
    folder = tmp_path/'pictures'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ('a', 'b', 'crash1', 'crash2', 'fill', 'g', 'hang', 'z'):
        Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(folder/f'{name}.jpg')
    samples = scan(folder)
    expected = {row: words for row, name in samples['filename'].items() for kind, words in REASONS.items() if name.startswith(kind)}
    rows = samples.index.to_numpy()
    good = [row for row in rows.tolist() if row not in expected]
    checked = check_integrity(samples, folder, 2, 10**6, seconds=.8)
    assert checked['reason'].dropna().to_dict() == expected
    assert checked.loc[good, 'width'].tolist() == [40]*len(good) and checked.loc[good, 'content'].nunique() == len(good)
    pd.testing.assert_frame_equal(checked, check_integrity(samples, folder, 1, 10**6, seconds=.8))
    together = in_worker_each('content', [folder/o for o in samples['filename']], max_pixels=10**6, seconds=.8)
    assert {row: o['reason'] for row, o in enumerate(together) if 'reason' in o} == expected
    assert [together[row]['digest'] for row in good] == checked.loc[good, 'content'].tolist()
    batches = list(load_batches(samples, rows, folder, 8, 3, 2, 10**6, seconds=.8))
    assert {row: o for batch in batches for row, o in batch.failed.items()} == expected
    assert np.concatenate([o.rows for o in batches]).tolist() == good
    cached = build_cache(with_columns(samples, rows, width=40, height=50), rows, folder, 20, tmp_path/'cache', 2, 10**6, seconds=.8)
    assert cached.failed == expected and cached.rows.tolist() == good
    chosen = with_columns(samples, rows, selected=True, rank=np.arange(len(rows)))  # of given embeddings: nobody has decoded these yet
    dump = dump_selected(chosen, folder, tmp_path/'dump', image_format='png', n_workers=2, max_pixels=10**6, seconds=.8)
    assert {samples.index[samples['filename'] == name][0]: o for name, o in dump.failed.items()} == expected and dump.n_written == len(good)


def test_a_turn_ends_with_the_answer():
    first, second = (stream('a_decoder:turns', 3, seconds=5) for _ in range(2))
    assert [next(o)['i'] for o in (first, second, first, second, first, second)] == [0, 0, 1, 1, 2, 2], 'each has its turn, none keeps it'
    assert not list(first) and not list(second)


def test_worker_imports_little(tmp_path):
    (tmp_path/'look.py').write_text('import sys\n'
                                    'from lightly_curate.data import pictures\n'
                                    'def modules(): return {"names": sorted(sys.modules if pictures else [])}\n')
    names = call('look:modules', seconds=20)['names']
    assert not {'pandas', 'torch', 'av', 'matplotlib', 'sklearn', 'pyarrow'} & set(names)


def test_no_files_start_no_workers(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path/'a.png')
    samples = scan(tmp_path)
    assert list(load_batches(samples, np.empty(0, dtype=np.int64), tmp_path, 8, 4, 2)) == []
    assert len(build_cache(samples, np.empty(0, dtype=np.int64), tmp_path, 8, tmp_path/'cache', 2)) == 0
    assert not isolated.idle and not isolated.working
