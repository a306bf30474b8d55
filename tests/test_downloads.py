"Downloads against a server on this machine that misbehaves in the ways that servers do."
from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from lightly_curate.core.errors import WeightsError
from lightly_curate.core.progress import Tick, listening
from lightly_curate.learn import downloads
from lightly_curate.learn.downloads import Download, download_of, fetch

CONTENT = b''.join(hashlib.sha256(str(i).encode()).digest() for i in range(40_000))  # 1.28 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Moved:
    "An answer that says where the file is."
    to: str
    headers: dict[str, str] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    "Files from memory, with Range; what goes wrong is set on the server."
    def do_GET(self) -> None:
        server, path = self.server, self.path.partition('?')[0]
        server.asked.append((path, self.headers.get('Range'), self.headers.get('If-Range')))
        found = server.files.get(path)
        if found is None: return self.tell(404, {'Content-Length': '0'})
        if isinstance(found, Moved): return self.tell(302, {'Location': found.to, 'Content-Length': '0', **found.headers})
        if server.codes: return self.tell(server.codes.pop(0), {'Content-Length': '0'})
        start = 0
        if self.headers.get('Range') and server.has_range and self.headers.get('If-Range') in (None, server.etag):
            start = int(self.headers['Range'].removeprefix('bytes=').removesuffix('-'))
            if start >= len(found): return self.tell(416, {'Content-Range': f'bytes */{len(found)}', 'Content-Length': '0'})
        headers = {'ETag': server.etag} if server.etag else {}
        if start: headers['Content-Range'] = f'bytes {start}-{len(found) - 1}/{len(found)}'
        if server.has_length: headers['Content-Length'] = str(len(found) - start)
        self.tell(206 if start else 200, headers)
        stop = start + server.cuts.pop(0) if server.cuts else len(found)
        self.wfile.write(found[start:stop])
        if server.stall_s and stop < len(found): time.sleep(server.stall_s)

    def tell(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items(): self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None: pass


@contextmanager
def serving(files: dict[str, bytes | Moved] | None = None, *, cuts: tuple[int, ...] = (), codes: tuple[int, ...] = (), has_range: bool = True,
            has_length: bool = True, etag: str = '"one"', stall_s: float = 0) -> Iterator[ThreadingHTTPServer]:
    "A server while the block runs; `cuts`: bytes after which a connection breaks, `codes`: answers before the first good one."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.files, server.cuts, server.codes, server.asked = files or {'/w.pt': CONTENT}, list(cuts), list(codes), []
    server.has_range, server.has_length, server.etag, server.stall_s = has_range, has_length, etag, stall_s
    server.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': .01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def left(folder: Path) -> list[str]:
    "Names in a folder, but locks."
    return sorted(o.name for o in folder.iterdir() if o.suffix != '.lock')


@pytest.mark.parametrize('options', [
    {}, {'cuts': (1, 500_000, 300_000)}, {'cuts': (700_000,), 'has_range': False}, {'codes': (503, 429)}, {'cuts': (700_000,), 'etag': ''},
    {'cuts': (700_000,), 'codes': (), 'etag': 'W/"weak"'}, {'has_length': False}])
def test_arrives(tmp_path: Path, options: dict) -> None:
    "Whatever happens on the way, the file is whole and nothing else is left."
    with serving(**options) as server: path = fetch(Download(f'{server.url}/w.pt', f'w-{DIGEST[:10]}.pt'), tmp_path, pause_s=0)
    assert path.read_bytes() == CONTENT
    assert left(tmp_path) == [path.name]


def test_goes_on_in_the_next_run(tmp_path: Path) -> None:
    "Three failures in a row end a run; the next asks for the rest only, and the log shows no secret."
    with serving(cuts=(600_000, 0, 0)) as server:
        file = Download(f'{server.url}/w.pt?sig=secret', 'w.pt')
        with pytest.raises(WeightsError, match='broke off after 600,000 of 1,280,000 bytes') as error: fetch(file, tmp_path, pause_s=0)
        assert left(tmp_path) == ['w.pt.part', 'w.pt.part.mark'] and 'secret' not in str(error.value)
        server.asked.clear()
        assert fetch(file, tmp_path, pause_s=0).read_bytes() == CONTENT
    assert [o[1:] for o in server.asked] == [('bytes=600000-', '"one"')]


def test_version_changes_between_runs(tmp_path: Path) -> None:
    "A part of an older version is not sewn to a newer one."
    with serving({'/w.pt': b'x'*900_000}, cuts=(600_000, 0, 0), etag='"old"') as server:
        with pytest.raises(WeightsError): fetch(download_of(f'{server.url}/w.pt'), tmp_path, pause_s=0)
    with serving() as server: assert fetch(download_of(f'{server.url}/w.pt'), tmp_path).read_bytes() == CONTENT
    assert [o[1:] for o in server.asked] == [('bytes=600000-', '"old"')]


def test_part_is_longer_than_the_file(tmp_path: Path) -> None:
    "The server has nothing to add to a part that is too long (416): from the start."
    (tmp_path/f'w-{DIGEST[:8]}.pt.part').write_bytes(CONTENT + b'more')
    with serving() as server: path = fetch(Download(f'{server.url}/w.pt', f'w-{DIGEST[:8]}.pt'), tmp_path, pause_s=0)
    assert path.read_bytes() == CONTENT


def test_wrong_hash(tmp_path: Path) -> None:
    "A server that sends something else leaves no file."
    with serving({'/w.pt': CONTENT[:-1] + b'?'}) as server:
        with pytest.raises(WeightsError, match=f'expected is {DIGEST[:8]}...: nothing was kept'):
            fetch(Download(f'{server.url}/w.pt', f'w-{DIGEST[:8]}.pt'), tmp_path)
        with pytest.raises(WeightsError, match='nothing was kept'): fetch(Download(f'{server.url}/w.pt', 'w.pt', sha256=DIGEST), tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize(('path', 'codes', 'words', 'n_asked'), [
    ('/none.pt', (), 'the server answers 404, there is no such file', 1), ('/w.pt', (401,), 'it asks for a login', 1),
    ('/w.pt', (403,), 'it is not open to everyone', 1), ('/w.pt', (500, 502, 503), 'the server answers 503', 3)])
def test_refused(tmp_path: Path, path: str, codes: tuple[int, ...], words: str, n_asked: int) -> None:
    "What will not change is not tried again; the message says what to do by hand."
    with serving(codes=codes) as server:
        with pytest.raises(WeightsError) as error: fetch(download_of(f'{server.url}{path}'), tmp_path/'weights', pause_s=0)
    for part in (words, f'put the file {path[1:]} into the folder {tmp_path}/weights', 'used without a network', f'{server.url}{path}'):
        assert part in str(error.value), part
    assert len(server.asked) == n_asked


def test_no_network(tmp_path: Path) -> None:
    "A name that is not resolved, a port that is closed; and a file put by hand that needs neither."
    for url in ('http://nowhere.invalid/w.pt', 'http://127.0.0.1:9/w.pt'):
        with pytest.raises(WeightsError, match='no connection: .*put the file w.pt into'): fetch(download_of(url), tmp_path, pause_s=0)
    (tmp_path/'w.pt').write_bytes(CONTENT)
    assert fetch(Download(url, 'w.pt', DIGEST), tmp_path).read_bytes() == CONTENT
    with pytest.raises(WeightsError, match='damaged or another file; delete it'): fetch(Download(url, 'w.pt', '00112233'), tmp_path)
    assert (tmp_path/'w.pt').is_file()


def test_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A server that falls silent counts as a broken connection, and the rest comes in the next attempt."
    monkeypatch.setattr(downloads, 'TIMEOUT_S', .2)
    with serving(cuts=(500_000,), stall_s=2) as server: assert fetch(download_of(f'{server.url}/w.pt'), tmp_path, pause_s=0).read_bytes() == CONTENT
    assert [o[1] for o in server.asked] == [None, server.asked[1][1]] and server.asked[1][1].startswith('bytes=')


def test_two_at_once(tmp_path: Path) -> None:
    "Several that want the same file wait for each other."
    with serving() as server, ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(download_of(f'{server.url}/w.pt'), tmp_path), range(4)))
    assert len(server.asked) == 1 and {o.read_bytes() == CONTENT for o in paths} == {True}


def test_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    "The log has where from and where to without the signature; the progress counts to the end."
    ticks: list[Tick] = []
    with serving() as server, listening(ticks.append), caplog.at_level(logging.INFO, logger='lightly_curate'):
        fetch(Download(f'{server.url}/w.pt?X-Signature=secret', 'w.pt'), tmp_path)
    assert f'downloading w.pt from {server.url}/w.pt into {tmp_path}' in caplog.text and 'secret' not in caplog.text
    assert (ticks[-1].n_done, ticks[-1].n_total, ticks[-1].unit) == (1280, 1280, 'kB')


def test_hash_from_a_redirect(tmp_path: Path) -> None:
    "The Hugging Face hub tells the hash on the way; a file that does not have it is refused, and its signature is not shown."
    for digest, fits in ((DIGEST, True), ('0'*64, False)):
        files = {'/repo/model.safetensors': Moved('/cdn?sig=secret', {'X-Linked-Etag': f'"{digest}"'}), '/cdn': CONTENT}
        with serving(files, cuts=(300_000,)) as server:
            file = Download(f'{server.url}/repo/model.safetensors', f'{fits}.safetensors')
            if fits: fetch(file, tmp_path, pause_s=0)
            else:
                with pytest.raises(WeightsError, match='nothing was kept') as error: fetch(file, tmp_path, pause_s=0)
                assert 'secret' not in str(error.value)
    assert left(tmp_path) == ['True.safetensors', 'True.safetensors.sha256']
