"Inputs that are no folder: a real S3 protocol on loopback, web servers that fail, archives, and kills while fetching."
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lightly_curate.core.errors import InputError, OutputError
from lightly_curate.core.rundir import RunDir
from lightly_curate.data import sources
from lightly_curate.data.sample_data import make_sample_data
from lightly_curate.data.sources import DONE, bring_near, home_of

COMMAND = Path(sys.executable).with_name('lightly-curate')
KEY, SECRET = 'AKIAK3YN0TF0RY0U', 's3cr3tN0tF0rY0urEyes'
STEPS = ('steps=[embed,select]', 'stopping_condition.n_samples=5', 'lightly.loader.num_workers=1')


def free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def in_folder(folder: Path) -> dict[str, bytes]:
    return {o.relative_to(folder).as_posix(): o.read_bytes() for o in sorted(folder.rglob('*')) if o.is_file()}


def results(root: Path) -> dict[str, bytes]:
    "The lists and tables of a run."
    return in_folder(root/'filenames') | {o.name: o.read_bytes() for o in (root/'data').glob('*.csv')}


def run(work: Path, *words: str, code: int = 0) -> str:
    "The command line; what it said."
    done = subprocess.run([COMMAND, *map(str, words)], cwd=work, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert SECRET not in said and KEY not in said
    return said


def bring_elsewhere(text: str, folder: Path) -> subprocess.Popen:
    "A process that brings a source near, in a process group of its own."
    program = 'import sys; from pathlib import Path; from lightly_curate.data.sources import bring_near; bring_near(sys.argv[1], Path(sys.argv[2]))'
    return subprocess.Popen([sys.executable, '-c', program, text, str(folder)], start_new_session=True)


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    "Pictures, a broken one, text beside them, a name that needs care."
    folder = make_sample_data(tmp_path_factory.mktemp('sources')/'photos', n_images=24)
    first = next(folder.rglob('*.jpg'))
    for name in ('white space & more.jpg', 'ä/ö+%41.jpg'):
        (folder/name).parent.mkdir(exist_ok=True)
        shutil.copyfile(first, folder/name)
    (folder/'notes.txt').write_text('beside')
    (folder/'.hidden.jpg').write_bytes(first.read_bytes())
    return folder


def near_files(photos: Path) -> dict[str, bytes]:
    return {name: data for name, data in in_folder(photos).items() if not name.endswith('.txt') and '/.' not in f'/{name}'}


# S3


@pytest.fixture(scope='module')
def bucket(photos):
    "The address of the pictures on a server of moto, whose credentials are in the environment."
    pytest.importorskip('moto', reason="pip install 'moto[server]' to test s3://")
    pytest.importorskip('s3fs', reason='pip install s3fs to test s3://')
    import boto3
    port = free_port()
    server = subprocess.Popen([sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f'http://127.0.0.1:{port}'
    told = {'AWS_ENDPOINT_URL': endpoint, 'AWS_ACCESS_KEY_ID': KEY, 'AWS_SECRET_ACCESS_KEY': SECRET, 'AWS_DEFAULT_REGION': 'us-east-1',
            'AWS_EC2_METADATA_DISABLED': 'true'}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items(): patch.setenv(name, value)
        for _ in range(300):
            try:
                with urlopen(f'{endpoint}/moto-api/', timeout=1): break
            except OSError: time.sleep(.1)
        client = boto3.client('s3')
        client.create_bucket(Bucket='box')
        for name, data in in_folder(photos).items(): client.put_object(Bucket='box', Key=f'a/photos/{name}', Body=data)
        yield 's3://box/a/photos', client
        client.close()
    server.terminate()
    server.wait()


def test_a_bucket_is_fetched_whole(bucket, photos, tmp_path):
    came = bring_near(bucket[0], tmp_path/'run')
    assert in_folder(came.folder) == near_files(photos) and not came.faults and not came.notices
    states = {o: o.stat().st_mtime_ns for o in came.folder.rglob('*')  if o.is_file()}
    sources.remove_near(tmp_path/'run')
    again = bring_near(bucket[0], tmp_path/'run')
    assert {o: o.stat().st_mtime_ns for o in again.folder.rglob('*') if o.is_file()} == states  # known again by all that is written down


def test_odd_names_in_a_bucket(bucket, photos, tmp_path):
    data = next(photos.rglob('*.jpg')).read_bytes()
    for name in ('good.jpg', 'x'*300 + '.jpg', 'clip', 'clip/in.jpg', 'run/.lightly_curate/x', 'run/plot.png'):
        bucket[1].put_object(Bucket='box', Key=f'odd/{name}', Body=data)
    came = bring_near('s3://box/odd', tmp_path/'run')
    here = set(in_folder(came.folder))
    assert 'good.jpg' in here and 'run/plot.png' not in here
    assert 'the name cannot be used as a file' in came.faults['x'*300 + '.jpg'], came.faults
    assert len({'clip', 'clip/in.jpg'} & here) == 1 and len({'clip', 'clip/in.jpg'} & set(came.faults)) == 1


def test_archives_in_a_bucket(bucket, photos, tmp_path):
    for i in range(2):
        with tarfile.open(tmp_path/f'{i}.tar', 'w') as tar: tar.add(photos, '.')
        bucket[1].upload_file(str(tmp_path/f'{i}.tar'), 'box', f'shards/{i}.tar')
    wanted = near_files(photos)
    several = bring_near('s3://box/shards/*.tar', tmp_path/'several')
    assert in_folder(several.folder) == {f'{i}.tar/{name}': data for i in range(2) for name, data in wanted.items()}
    assert not list((tmp_path/'several').rglob('*.tar')) or all(o.is_dir() for o in (tmp_path/'several').rglob('*.tar'))  # the shards are gone
    one = bring_near('s3://box/shards/1.tar', tmp_path/'one')
    assert in_folder(one.folder) == wanted


def test_what_is_wrong_with_a_bucket(bucket, tmp_path):
    for text, said in [('s3://nobody/x', 'nothing at that place'), ('s3://box/none', 'nothing at that place'), ('s3://box/a/photos/notes.txt', 'is a file'),
                       ('s3://box/none.tar', 'nothing at that place')]:
        with pytest.raises(InputError, match=said): bring_near(text, tmp_path/'run')


def check_secrets(work: Path) -> None:
    for path in (o for o in work.rglob('*') if o.is_file()):
        data = path.read_bytes()
        assert SECRET.encode() not in data and KEY.encode() not in data, path


def test_the_same_lists_as_from_a_folder(bucket, photos, tmp_path):
    run(tmp_path, f'input_dir={photos}', 'output_dir=out', 'run_directory=folder', *STEPS)
    run(tmp_path, f'input_dir={bucket[0]}', 'output_dir=out', 'run_directory=s3', *STEPS)
    folder, s3 = (results(tmp_path/'out'/o) for o in ('folder', 's3'))
    assert folder == s3 and len(folder) >= 6
    check_secrets(tmp_path)


@pytest.mark.slow
def test_going_on(bucket, photos, tmp_path):
    with tarfile.open(tmp_path/'photos.tgz', 'w:gz') as tar: tar.add(photos, '.')
    for name, text in (('s3', bucket[0]), ('tgz', 'photos.tgz')):
        words = (f'input_dir={text}', 'output_dir=out', f'run_directory={name}', 'stopping_condition.n_samples=5', 'lightly.loader.num_workers=1')
        run(tmp_path, *words, 'steps=[embed]')
        assert 'scan: done already' in (run(tmp_path, *words, 'steps=[embed,select]') or (tmp_path/f'out/{name}/log.txt').read_text())
        run(tmp_path, 'resume', f'out/{name}')
    assert results(tmp_path/'out'/'s3') == results(tmp_path/'out'/'tgz')
    run(tmp_path, 'input_dir=photos.tgz', 'output_dir=out', 'run_directory=kept', 'keep_input=True', 'stopping_condition.n_samples=5')
    kept, again = RunDir(tmp_path/'out'/'kept'), RunDir(tmp_path/'out'/'again')
    assert f'{kept.input.name}/' in kept.explore_html.read_text() and kept.input.is_dir()
    run(tmp_path, 'select', 'out/kept', 'n_samples=3', 'run_directory=again', 'dump_dataset=True')
    assert kept.input.is_dir() and len(list(again.sampled.rglob('*.png'))) == 3
    from lightly_curate.run.open import Run
    assert not isinstance(Run(kept.root).pictures([int(Run(kept.root).selected.index[0])]).popitem()[1], str)


@pytest.mark.slow
def test_a_whole_run_and_what_follows(bucket, photos, tmp_path):
    words = ('stopping_condition.n_samples=5', 'n_example_images=2', 'lightly.loader.num_workers=1')
    run(tmp_path, f'input_dir={bucket[0]}', 'output_dir=out', 'run_directory=s3', *words)
    files = RunDir(tmp_path/'out'/'s3')
    assert files.report_pdf.is_file() and not files.input.exists()
    assert json.loads(files.report_json.read_text())['job']['config']['input_dir'] == bucket[0]
    assert 'brought near and decoded again' in run(tmp_path, 'verify', 'out/s3', 'with_inputs=True')
    assert 'identical' in run(tmp_path, 'repeat', 'out/s3', 'again')
    run(tmp_path, 'report', 'out/s3')
    run(tmp_path, 'select', 'out/s3', 'n_samples=3', 'run_directory=dumped', 'dump_dataset=True')
    assert len(list(RunDir(tmp_path/'out'/'dumped').sampled.rglob('*.png'))) == 3
    from lightly_curate.run.open import Run
    with pytest.raises(InputError, match='keep_input=True'): Run(files.root).pictures([0])
    check_secrets(tmp_path)


# Web servers


class Server(SimpleHTTPRequestHandler):
    "Serves a folder; what it does wrong is set on the class."
    wait_s, failures, asked, turn = 0., {}, [], threading.Lock()  # seconds for a file, one after the other
    def log_message(self, *args): pass
    def do_GET(self):
        Server.asked.append(self.path)
        if self.wait_s and not self.path.endswith('/'):
            with self.turn: time.sleep(self.wait_s)
        if Server.failures.get(self.path, 0) > 0:
            Server.failures[self.path] -= 1
            return self.send_error(503)
        super().do_GET()


@pytest.fixture
def web(photos):
    Server.wait_s, Server.failures, Server.asked = 0., {}, []
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Server, directory=str(photos)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def test_a_web_page_that_links_files(web, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'FIRST_WAIT_S', .01)
    Server.failures = {f'/{next(o for o in near_files(photos) if o.isascii() and " " not in o)}': 2}
    came = bring_near(web, tmp_path/'run')
    assert in_folder(came.folder) == near_files(photos) and not came.faults
    assert set(Server.failures.values()) == {0}


def test_a_server_that_is_gone(web, tmp_path, monkeypatch, photos):
    monkeypatch.setattr(sources, 'FIRST_WAIT_S', .001)
    monkeypatch.setattr(sources, 'GIVE_UP_AFTER', 10)
    Server.failures = {f'/{o}': 10**6 for o in near_files(photos) if o.isascii() and ' ' not in o}
    with pytest.raises(InputError, match='no answer for 10 files in a row'): bring_near(web, tmp_path/'run')
    Server.failures = {}
    assert not bring_near(web, tmp_path/'run').faults


def test_killed_while_fetching(web, photos, tmp_path):
    "What has been fetched is not asked for again."
    Server.wait_s = .2
    process, folder = bring_elsewhere(web, tmp_path/'run'), home_of(web, tmp_path/'run')/'input'
    while len([o for o in folder.rglob('*') if o.is_file()]) < 6: time.sleep(.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    Server.wait_s, kept, Server.asked = 0., {name for name in in_folder(folder) if '/.' not in f'/{name}'}, []
    assert 1 <= len(kept) < len(near_files(photos))
    came = bring_near(web, tmp_path/'run')
    assert {name: data for name, data in in_folder(came.folder).items() if '/.' not in f'/{name}'} == near_files(photos)
    assert not [o for o in Server.asked if o.endswith('/')]  # the listing was kept
    assert not kept & {o.lstrip('/') for o in Server.asked}


def test_a_listing_goes_on(web, photos, tmp_path, monkeypatch):
    "Folders that have been listed are not asked for again."
    monkeypatch.setattr('lightly_curate.core.parts.SECONDS_BETWEEN', 0.)
    monkeypatch.setattr(sources, 'FIRST_WAIT_S', .001)
    folders = sorted(f'/{o.name}/' for o in photos.iterdir() if o.is_dir() and o.name.isascii())
    Server.failures = {folders[-1]: 10**6}
    with pytest.raises(InputError, match='start again'): bring_near(web, tmp_path/'run')
    Server.failures, Server.asked = {}, []
    came = bring_near(web, tmp_path/'run')
    assert in_folder(came.folder) == near_files(photos)
    assert folders[-1] in Server.asked and folders[0] not in Server.asked
    assert not (home_of(web, tmp_path/'run')/'listing').exists()


def test_an_archive_behind_an_address(photos, tmp_path, monkeypatch):
    shutil.make_archive(str(tmp_path/'web'/'all'), 'zip', photos)
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Server, directory=str(tmp_path/'web')))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    came = bring_near(f'http://127.0.0.1:{server.server_port}/all.zip', tmp_path/'run')
    server.shutdown()
    server.server_close()
    assert in_folder(came.folder) == near_files(photos)


# Files that change, disks that are full, packages that are missing


def test_a_file_that_changes_or_goes_after_the_listing(web, photos, tmp_path):
    copy = shutil.copytree(photos, tmp_path/'copy')
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Server, directory=str(copy)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}'
    bring_near(address, tmp_path/'run')
    home = home_of(address, tmp_path/'run')
    gone, changed = sorted(near_files(photos))[:2]
    for name in (gone, changed): (home/'input'/name).unlink()
    (home/DONE).unlink()
    (copy/gone).unlink()
    (copy/changed).write_bytes(b'another')
    came = bring_near(address, tmp_path/'run')
    server.shutdown()
    server.server_close()
    assert came.faults == {gone: 'not at the source any more'} and (came.folder/changed).read_bytes() == b'another'


def test_a_disk_that_is_too_small(photos, tmp_path, monkeypatch):
    shutil.make_archive(str(tmp_path/'all'), 'tar', photos)
    monkeypatch.setattr('lightly_curate.data.packed.free_disk', lambda folder: 1000)
    with pytest.raises(OutputError, match='MB are free'): bring_near(str(tmp_path/'all.tar'), tmp_path/'run')
    assert not in_folder(tmp_path/'run') or all(o.endswith('.parquet') for o in in_folder(tmp_path/'run'))


@pytest.mark.parametrize('text, extra', [('s3://box/x', 's3'), ('gs://box/x', 'gcs'), ('az://box/x', 'azure')])
def test_a_package_that_is_missing(text, extra, monkeypatch):
    for name in ('s3fs', 'gcsfs', 'adlfs'): monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules['fsspec.registry']._registry, text.partition(':')[0], raising=False)
    with pytest.raises(InputError, match=rf"pip install 'lightly_curate\[{extra}\]'"): sources.open_source(text)


# Archives through the command line


def test_secrets_in_an_address(tmp_path):
    for text in (f'https://me:{SECRET}@127.0.0.1:1/x', f's3://{SECRET}@box/x', f'https://127.0.0.1:1/x.tar?X-Amz-Signature={SECRET}'):
        assert 'would be written down' in run(tmp_path, f'input_dir={text}', 'output_dir=out', *STEPS, code=2)
    assert 'would be written down' in run(tmp_path, 'plan', f'input_dir={text}', 'output_dir=out', code=2)
    assert not in_folder(tmp_path)


def test_several_kinds_of_archives(photos, tmp_path):
    wanted = near_files(photos)
    images = {name: data for name, data in wanted.items() if name.endswith('.jpg')}
    pq.write_table(pa.table({'image': [{'bytes': data, 'path': name} for name, data in images.items()], 'label': list(range(len(images)))}), tmp_path/'all.parquet')
    shutil.make_archive(str(tmp_path/'all'), 'zip', photos)
    assert in_folder(bring_near(str(tmp_path/'all.parquet'), tmp_path/'p').folder) == images
    assert in_folder(bring_near(str(tmp_path/'all.zip'), tmp_path/'z').folder) == wanted


def test_faults_become_rows(photos, tmp_path):
    from lightly_curate.run.pipeline import folder_to_plan, scan_stage
    from lightly_curate.run.start import open_run
    with zipfile.ZipFile(tmp_path/'all.zip', 'w') as archive:
        for name, data in near_files(photos).items(): archive.writestr(name, data)
        archive.writestr('../../evil.jpg', b'x')
    opened = open_run(overrides=[f'input_dir={tmp_path}/all.zip', f'output_dir={tmp_path}/out', 'run_directory=r', *STEPS])
    with pytest.raises(InputError, match='a plan looks at images that are here'): folder_to_plan(opened)
    samples, told = scan_stage(opened)
    bad = samples.set_index('filename').loc['%2E%2E/%2E%2E/evil.jpg']
    assert bad['status'] == 'corrupt' and 'no plain path' in bad['reason'] and len(samples) == len(near_files(photos)) + 1
    assert told['notices'] == ['1 file of input_dir could not be brought near and counts as corrupt: %2E%2E/%2E%2E/evil.jpg: the name is no plain path '
                               'below a folder; rename the file.']
    assert not list(tmp_path.parent.rglob('evil.jpg')) and folder_to_plan(opened).is_dir()
