"""The page for exploring a run, in a browser: opened from disk, with nothing else to ask."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightly_curate.core.samples import available, make_samples, result_order, with_columns
from lightly_curate.data.images import read_rgb
from lightly_curate.data.sample_data import make_sample_data
from lightly_curate.data.scan import scan
from lightly_curate.embed.vectors import Vectors
from lightly_curate.report.explore import rows_shown, write_explore
from lightly_curate.report.maps import MAX_SHOWN, Map
from lightly_curate.report.project import Layout, pca
from lightly_curate.select.select import curve_of, select

websocket = pytest.importorskip('websocket', reason='websocket-client is not installed')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here')
ODD_NAME = '</script><img src=x onerror=alert(1)>.png'


class Browser:
    "A headless Chromium, driven through its DevTools."

    def __init__(self, profile: Path, size: tuple[int, int] = (1400, 900)):
        self.size, self.seen = size, []
        flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--remote-debugging-port=0', '--remote-allow-origins=*',
                 '--no-first-run', '--disable-background-networking', '--disable-component-update', f'--user-data-dir={profile}']
        self.process = subprocess.Popen([str(CHROMIUM), *flags, 'about:blank'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self.wait(lambda: (profile/'DevToolsActivePort').is_file() and (profile/'DevToolsActivePort').read_text().split())[0]
        pages = json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/json/list'))
        self.socket = websocket.create_connection(next(o for o in pages if o['type'] == 'page')['webSocketDebuggerUrl'], timeout=30)
        self.numbers = itertools.count(1)
        for domain in ('Page', 'Runtime', 'Log', 'Network'): self.call(f'{domain}.enable')
        self.call('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(profile))
        self.resize(size)

    @staticmethod
    def wait(happened, limit_s: float = 20.):
        "What a call gives as soon as it gives something."
        end = time.monotonic() + limit_s
        while not (found := happened()):
            assert time.monotonic() < end, 'waited in vain'
            time.sleep(.05)
        return found

    def call(self, method: str, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({'id': number, 'method': method, 'params': parameters}))
        while True:
            told = json.loads(self.socket.recv())
            if told.get('id') == number:
                assert 'error' not in told, told
                return told['result']
            self.seen.append(told)

    def resize(self, size: tuple[int, int], mobile: bool = False):
        self.call('Emulation.setDeviceMetricsOverride', width=size[0], height=size[1], deviceScaleFactor=1, mobile=mobile)

    def open(self, path: Path) -> float:
        "Open a page from disk; seconds until its map is painted."
        begun = time.monotonic()
        self.seen.clear()
        self.call('Page.navigate', url=path.as_uri())
        self.wait(lambda: self.js('document.readyState === "complete" && typeof state !== "undefined" && canvas.width > 1'), 60)
        self.js('new Promise(o => requestAnimationFrame(() => requestAnimationFrame(o)))')
        return time.monotonic() - begun

    def js(self, expression: str):
        "Value of an expression in the page."
        told = self.call('Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True)
        assert 'exceptionDetails' not in told, told
        return told['result'].get('value')

    def mouse(self, kind: str, x: float, y: float, **more):
        self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, **more)

    def key(self, key: str):
        for kind in ('keyDown', 'keyUp'): self.call('Input.dispatchKeyEvent', type=kind, key=key)

    def text(self, name: str) -> str:
        return self.js(f'byId("{name}").textContent')

    def faults(self) -> list:
        "Complaints of the console, exceptions, and addresses outside the page and the disk."
        self.js('1')
        kinds = {'Runtime.exceptionThrown', 'Log.entryAdded', 'Runtime.consoleAPICalled'}
        asked = [o['params']['request']['url'] for o in self.seen if o['method'] == 'Network.requestWillBeSent']
        return [o for o in self.seen if o['method'] in kinds] + [o for o in asked if not o.startswith(('file:', 'data:', 'blob:'))]

    def shoot(self, path: Path):
        path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp('profile'))
    yield made
    made.close()


@pytest.fixture(scope='module')
def page(tmp_path_factory) -> Path:
    "A page of 80 pictures, 20 of them selected, one with a hostile name and so few bytes that most are linked."
    root = tmp_path_factory.mktemp('explore')
    folder = make_sample_data(root/'input', 80)
    first = next(o for o in sorted(folder.rglob('*.jpg')) if 'broken' not in o.name)
    shutil.copy(first, folder/ODD_NAME.replace('/', '_'))
    samples = scan(folder)
    broken = [o for o in samples.index if 'broken' in samples['filename'][o]]
    samples = with_columns(samples, broken, status='corrupt', reason='broken')
    rows = available(samples)
    small = [read_rgb(folder/samples['path'][row]).resize((4, 4)) for row in rows]
    vectors = Vectors(np.stack([np.asarray(o, dtype=np.float32).ravel()/255 for o in small]), rows)
    done = select(samples, vectors, 'coreset', 20, -1.)
    layout = Layout(pca(vectors.emb), 'PCA', 0, '')
    path = root/'run'/'explore.html'
    made = write_explore(path, done.samples, [Map('PCA', rows, layout)], folder, title='A <b>run</b>',
                         curve=curve_of(done, vectors, 'coreset'), n_bytes=60_000)
    assert 0 < made.n_pictures < made.n_points == len(rows)
    return path


@pytest.fixture
def opened(browser, page):
    browser.resize(browser.size)
    browser.open(page)
    return browser


def spot(browser, i: int) -> tuple[float, float]:
    "Where a point is on the screen."
    return tuple(browser.js(f'(() => {{ const o = canvas.getBoundingClientRect(); return [o.left + screenX({i}), o.top + screenY({i})]; }})()'))


def test_opens_without_a_complaint(opened):
    assert opened.js('document.contentType') == 'text/html'
    assert opened.text('title') == 'A <b>run</b>'
    assert opened.js('document.querySelectorAll("h1 b, img[onerror]").length') == 0
    assert opened.faults() == []


def test_hover_shows_the_picture(opened):
    i = opened.js('points.tile.findIndex(o => o >= 0)')
    opened.mouse('mouseMoved', *spot(opened, i))
    assert opened.js('byId("tip").hidden') is False
    shown = opened.js('state.hover')
    assert opened.js(f'document.querySelector("#tip .name").textContent === points.name[{shown}]')
    n_values = '(o => new Set(o.getContext("2d").getImageData(0, 0, o.width, o.height).data).size)(document.querySelector("#tip canvas"))'
    Browser.wait(lambda: opened.js(n_values) > 20)  # an empty canvas has one value
    assert opened.faults() == []


def test_tiles_are_those_of_their_points(opened, page):
    mean = 'Array.from(o.getContext("2d").getImageData(0, 0, o.width, o.height).data)'
    for tile in (0, 9, opened.js('data.sheets.sizes.length - 1')):
        i = opened.js(f'points.tile.indexOf({tile})')
        opened.js(f'hover({i})')
        size = opened.js('(o => [o.width, o.height])(document.querySelector("#tip canvas"))')
        opened.js('sheet(0).then(() => 0)')
        shown = np.array(opened.js(f'(o => {mean})(document.querySelector("#tip canvas"))')).reshape(size[1], size[0], 4)[..., :3]
        picture = read_rgb(page.parent.parent/'input'/opened.js(f'points.name[{i}]'))
        picture.thumbnail((96, 96), Image.Resampling.LANCZOS, reducing_gap=2.)
        assert np.abs(shown - np.asarray(picture, dtype=float)).mean() < 8, tile


def test_hover_shows_a_linked_picture(opened):
    i = opened.js('points.tile.findIndex(o => o < 0)')
    opened.js(f'hover({i})')
    Browser.wait(lambda: opened.js('document.querySelector("#tip img")?.naturalWidth'))
    assert opened.faults() == []


def test_slider_grows_the_selection(opened):
    before = opened.text('chosen'), opened.text('covering')
    n_before = opened.js('nChosen()')
    opened.js('byId("number").focus()')
    for _ in range(5):
        for kind in ('rawKeyDown', 'keyUp'): opened.call('Input.dispatchKeyEvent', type=kind, key='ArrowLeft', windowsVirtualKeyCode=37)
    after = opened.text('chosen'), opened.text('covering')
    assert (before[0], after[0], n_before, opened.js('nChosen()')) == ('20', '15', 20, 15)
    assert before[1] != after[1]
    distances = [float(o[1].split('Covering distance ')[1].split(':')[0]) for o in (before, after)]
    assert distances[1] > distances[0] > 0
    Browser.wait(lambda: opened.js('byId("strip").childElementCount') == 15)
    nested = opened.js('[3, 9, 20].map(n => { state.n = n; return points.name.filter((_, i) => isChosen(i)); })')
    assert set(nested[0]) < set(nested[1]) < set(nested[2])


def test_lasso_lists_what_is_inside(opened, tmp_path):
    box = opened.js('(() => { const o = canvas.getBoundingClientRect(); return [o.left, o.top, o.width, o.height]; })()')
    opened.js('byId("lasso").click()')
    corners = [(.02, .02), (.5, .02), (.5, .98), (.02, .98), (.02, .05)]
    places = [(box[0] + x*box[2], box[1] + y*box[3]) for x, y in corners]
    opened.mouse('mousePressed', *places[0], button='left', clickCount=1)
    for place in places[1:]: opened.mouse('mouseMoved', *place, button='left', buttons=1)
    opened.mouse('mouseReleased', *places[-1], button='left', clickCount=1)
    names = opened.js('byId("names").value').splitlines()
    inside = opened.js(f'points.name.filter((_, i) => screenX(i) > {.02*box[2]} && screenX(i) < {.5*box[2]})')
    assert 0 < len(names) < opened.js('N')
    assert names == inside
    assert opened.text('said').startswith(f'Lasso: {len(names)} images')
    opened.js('byId("part").value = "selected"; byId("part").onchange()')
    chosen = opened.js('byId("names").value').splitlines()
    assert 0 < len(chosen) < len(names)
    opened.call('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(tmp_path))
    opened.js('byId("save").click()')
    Browser.wait(lambda: (tmp_path/'filenames.txt').is_file())
    assert (tmp_path/'filenames.txt').read_text(encoding='utf-8').splitlines() == chosen
    assert opened.faults() == []


def test_keyboard_alone(opened):
    opened.js('canvas.focus()')
    for key in ('ArrowRight', 'ArrowRight', 'Enter'): opened.key(key)
    assert opened.js('state.hover >= 0 && state.kept === state.hover')
    assert opened.js('byId("kept").childElementCount') > 0
    opened.key('+')
    assert opened.js('state.zoom') > 1
    opened.js('byId("in-view").click()')
    assert 0 < len(opened.js('byId("names").value').splitlines()) < opened.js('N')
    opened.js('canvas.focus()')
    opened.key('0')
    opened.key('Escape')
    assert opened.js('[state.zoom, state.hover, state.kept]') == [1, -1, -1]


def test_every_colour_and_tab(opened):
    for value in opened.js('data.colourings'):
        opened.js(f'byId("colour").value = "{value}"; byId("colour").onchange({{target: byId("colour")}})')
        assert opened.js('byId("legend").childNodes.length') > 0, value
        assert opened.js('(() => { dots = null; paint(); const d = pen.getImageData(0, 0, canvas.width, canvas.height).data; '
                         'return new Set(d).size; })()') > 4, value
    for tab in ('list', 'chosen', 'pairs'): opened.js(f'byId("tab-{tab}").click()')
    assert opened.js('document.querySelectorAll("#strip .pair").length') == min(48, opened.js('pairs.length'))
    distances = opened.js('pairs.map(i => points.distance[i])')
    assert distances == sorted(distances, reverse=True)
    assert opened.faults() == []


def test_search_finds_a_hostile_name(opened):
    opened.js('byId("search").value = "onerror"; byId("search").oninput({target: byId("search")})')
    assert opened.js('byId("names").value') == ODD_NAME.replace('/', '_')
    assert opened.js('document.querySelectorAll("img[onerror]").length') == 0
    assert opened.faults() == []


def test_policy_forbids_what_a_name_could_start(opened):
    refused = opened.js('fetch("http://127.0.0.1:9/").then(() => false, () => true)')
    opened.js('(() => { const o = document.createElement("script"); o.textContent = "window.broken = 1"; document.body.append(o); })()')
    assert (refused, opened.js('window.broken === undefined')) == (True, True)


def test_narrow_screen(opened):
    opened.resize((390, 800), mobile=True)
    assert opened.js('document.documentElement.scrollWidth <= 390')
    assert opened.js('byId("stage").getBoundingClientRect().height') > 300


@pytest.mark.parametrize(('n', 'n_selected'), [(1, 0), (1, 1), (3, 1)])
def test_tiny_runs(browser, tmp_path, n, n_selected):
    samples = make_samples([f'{i}.png' for i in range(n)])
    samples = with_columns(samples, range(n_selected), selected=True, rank=np.arange(n_selected))
    points = np.linspace(0, 1, 2*n, dtype=np.float32).reshape(n, 2)
    path = tmp_path/'explore.html'
    write_explore(path, samples, [Map('PCA', np.arange(n), Layout(points, 'PCA', 0, ''))], None, title='Tiny')
    browser.resize(browser.size)
    browser.open(path)
    for tab in ('list', 'pairs', 'chosen'): browser.js(f'byId("tab-{tab}").click()')
    assert browser.text('chosen') == str(n_selected)
    assert browser.js('byId("number").disabled') is True
    browser.mouse('mouseMoved', *spot(browser, 0))
    assert browser.js('document.querySelector("#tip .name").textContent') == '0.png'
    assert browser.faults() == []


def test_copies_only_as_far_as_there_is_room():
    n = MAX_SHOWN + 1
    samples = make_samples([f'{i:06}.png' for i in range(n)])
    samples = with_columns(samples, [n - 2, n - 1], status='duplicate', reason='a copy', duplicate_of=[0, 0])
    shown = rows_shown(samples, [Map('all', np.arange(n - 2), Layout(np.zeros((n - 2, 2), dtype=np.float32), 'PCA', 0, ''))])
    assert (len(shown), shown[-1]) == (MAX_SHOWN, n - 2)


def test_many_points(browser, tmp_path):
    n, n_chosen, rng = 100_000, 20_000, np.random.default_rng(0)
    samples = make_samples([f'camera_{i % 12:02}/recording/frame_{i:06}.jpg' for i in range(n)], labels=[i % 12 for i in range(n)])
    gaps = np.sort(rng.random(n_chosen).astype(np.float32))[::-1]
    samples = with_columns(samples, rng.permutation(n)[:n_chosen], selected=True, rank=np.arange(n_chosen), gap=gaps)
    others = np.flatnonzero(~samples['selected'])
    samples = with_columns(samples, others, nearest_selected=rng.choice(result_order(samples), len(others)),
                           nearest_distance=rng.random(len(others)).astype(np.float32))
    groups = rng.normal(size=(40, 2))[rng.integers(40, size=n)] + .15*rng.normal(size=(n, 2))
    points = ((groups - groups.min(axis=0))/np.ptp(groups, axis=0)).astype(np.float32)
    path = tmp_path/'explore.html'
    made = write_explore(path, samples, [Map('made', np.arange(n), Layout(points, 'PCA', 0, ''))], None, title='Many')
    browser.resize(browser.size)
    seconds = browser.open(path)
    painted_ms = browser.js('(() => { drawDots(); const begun = performance.now(); drawDots(); return performance.now() - begun; })()')
    print(f'{made.n_bytes/1e6:.1f} MB, opened in {seconds:.1f} s, painted in {painted_ms:.0f} ms')
    assert made.n_bytes < 15e6
    assert browser.js('nearestTo(...[screenX(5), screenY(5)], 14) >= 0')
    assert browser.faults() == []
