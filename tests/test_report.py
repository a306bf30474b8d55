"The report as a whole: a run of our own pictures, made, written, shown."
import json
import re
import shutil
import time
import warnings
from html import escape

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import papermill
import pypdf
import pytest
from PIL import Image

from lightly_curate.core.errors import ReportError
from lightly_curate.core.rundir import RunDir
from lightly_curate.core.samples import available, make_samples, result_order, with_columns
from lightly_curate.data.images import read_rgb
from lightly_curate.data.sample_data import make_video
from lightly_curate.data.scan import scan
from lightly_curate.clean.duplicates import mark_duplicates
from lightly_curate.clean.integrity import check_integrity
from lightly_curate.embed.vectors import Vectors
from lightly_curate.report import report as report_module
from lightly_curate.report.page import SAVINGS, spoken
from lightly_curate.report.render import render_pdf
from lightly_curate.report.plots import BLUE, PALE, plot_selection, png
from lightly_curate.report.project import MAX_POINTS, Layout, pca, umap_layout
from lightly_curate.report.report import (
    build_report, describe_machine, describe_training, find_bottleneck, installed_versions, n_figures, read_report, validate_report,
    write_plots, write_report)
from lightly_curate.report.sections import TEXTS
from lightly_curate.report.stats import neighbor_stats, pairwise_stats, savings
from lightly_curate.report.videos import FACTS, describe_videos
from lightly_curate.report.warnings import doubt_training
from lightly_curate.report.words import in_words, words_for
from lightly_curate.select.budget import curve_choices, selection_curve
from lightly_curate.select.coreset import k_center
from lightly_curate.select.distances import nearest

MAPS = {f'scatter_{o}{p}' for o in ('pca', 'umap_k_5', 'umap_k_15', 'umap_k_50') for p in ('', '_no_overlay')}
NUMBERS = {'counts', 'distance_distr', 'distance_distr_before', 'distance_distr_after'}
PICTURES = {'contact_sheet', 'scatter_pca_pictures', 'scatter_umap_k_15_pictures', 'duplicate_groups'}

SPREAD = {'n': 31, 'd': 32, 'std': .7413, 'rank': 17.62, 'is_collapsed': False, 'condition': 'healthy', 'std_before': .4128,
          'rank_before': 8.21}
TRAINED = {'recipe': 'original', 'start': 'zoo: resnet-18/simclr/d32/w1', 'name': 'resnet-18', 'epochs_asked': 7, 'epochs': 5,
           'resumed_at': 3, 'batch_size': 16, 'n_images': 31, 'steps': 5, 'seconds': 93.25, 'images_per_s': 1.662,
           'wait_share': .0347, 'device': 'cpu', 'precision': 32, 'loss': [3.31, 3.02, 2.957, 2.86, 2.871],
           'checkpoint': 'lightly_epoch_3.ckpt', 'spread': SPREAD, 'cache_bytes': 12_345_678,
           'notices': ['Batches of 16 images are small.']}


def no_umap(x, n_neighbors, seed=1):
    "UMAP takes many seconds to compile; what is tested here is what is done with its points."
    return Layout(pca(x), 'UMAP', min(n_neighbors, len(x) - 1), '')


def curate(folder, share):
    "Sample table and vectors of a folder, with mean colours for a model and a share of the images selected."
    samples = mark_duplicates(check_integrity(scan(folder), folder, n_workers=2))
    rows = available(samples)
    small = [read_rgb(folder/samples.at[row, 'path']).resize((4, 4)) for row in rows]
    vectors = Vectors(np.stack([np.asarray(o, dtype=np.float32).ravel()/255 for o in small]), rows)
    chosen, gaps = k_center(vectors.emb, max(1, int(share*len(rows))))
    samples = with_columns(samples, rows[chosen], selected=True, rank=range(len(chosen)), gap=gaps)
    left = np.setdiff1d(rows, rows[chosen])
    if len(left):
        index, distance = nearest(vectors.of(left).emb, vectors.of(rows[chosen]).emb)
        samples = with_columns(samples, left, nearest_selected=rows[chosen][index], nearest_distance=distance)
    return samples, vectors


def make_report(run_dir, samples, vectors, input_dir, max_pairs=10**9, n_examples=6, ended_by='n_samples', source='images',
                pool=None, method='coreset', training=None, videos=None, timelines=True):
    "All that the pipeline does for the report."
    chosen = vectors.of(result_order(samples)).emb
    before = pairwise_stats(vectors.emb, 2e9, seed=1, max_pairs=max_pairs)
    after = pairwise_stats(chosen, 2e9, seed=1, edges=before.edges, max_pairs=max_pairs)
    near = neighbor_stats(vectors.emb, 2e9, max_pairs=max_pairs), neighbor_stats(chosen, 2e9, max_pairs=max_pairs)
    rows, gaps = k_center(vectors.emb, curve_choices(len(vectors), len(chosen)))
    curve = selection_curve(vectors.emb, rows, gaps)
    drawn = []
    made = write_plots(run_dir, samples, vectors, before, after, input_dir, n_examples, seed=1, curve=curve,
                       on_figure=lambda: drawn.append(1), n_selected=len(chosen), pool=pool, neighbors=near,
                       training=training, videos=videos, timelines=timelines)
    n_most = n_figures(n_examples, True, pool is not None and len(pool) > 0, True, bool(training and training['loss']),
                       bool(videos) and timelines, input_dir is not None, (samples['status'] == 'duplicate').any())
    assert len(drawn) == len(made.plots) == n_most - max(0, n_examples) + sum(o['plot'] is not None for o in made.examples)
    job = {'command': 'lightly-curate input_dir=images stopping_condition.n_samples=0.3', 'source': source,
        'started_at': '2026-07-01 12:00:00', 'finished_at': '2026-07-01 12:02:10', 'duration_s': 130.25,
        'seconds': {'scan': .25, 'embed': 101.5}, 'bottleneck': find_bottleneck({'scan': .25, 'embed': 101.5}),
        'embedding': {'n_images': 40, 'seconds': 99.5, 'efficiency': .6, 'busy': {'decode': .931, 'network': .552, 'write': .01}, 'bottleneck': 'decode'}, 'machine': describe_machine(), 'versions': installed_versions(),
        'config': {'token': 'secret', 'method': 'coreset', 'lightly': {'seed': 1},
                   'corruptness_check': {'corruption_threshold': .1}}}
    n_selected, n_features = int(samples['selected'].sum()), vectors.emb.shape[1]
    asked = {'n_samples': .3, 'min_distance': -1., 'coverage_distance': -1.}
    stopping = {'method': method, 'asked': asked, 'outlier_share': 0., 'n_samples': n_selected, 'ended_by': ended_by, 'engine': 'local', 'two_rounds': False}
    n_pool = 0 if pool is None else len(pool)
    datapool = {'name': 'roads', 'members_before': n_pool, 'new': n_selected, 'members_after': n_pool + n_selected,
                'members_in_input': 0, 'excluded': 0, 'count_members': False, 'keep_history': True}
    weights = {'origin': 'mean colours', 'sha256': None, 'name': None, 'n_features': n_features, 'input_size': 4}
    saved = savings(len(vectors) - n_selected)
    report = build_report(samples, job, stopping, weights, before, after, saved, made, curve=curve, neighbors=near,
                          datapool=None if pool is None else datapool, training=training, videos=videos)
    write_report(report, run_dir.report_json)
    return report


@pytest.fixture(scope='module')
def finished(sample_folder, tmp_path_factory):
    "A run folder with report.json and plots, and its report."
    run_dir = RunDir(tmp_path_factory.mktemp('report')/'run')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_module, 'umap_layout', no_umap)
        samples, vectors = curate(sample_folder, .3)
        return run_dir, make_report(run_dir, samples, vectors, sample_folder), samples, vectors


def test_files_and_counts(finished):
    "The documented names, and numbers that add up."
    run_dir, report, samples, _ = finished
    standing = samples.loc[result_order(samples)].index.isin(samples['nearest_selected'].dropna())
    n = int(standing.sum())
    pairs = {f'filter_decision_{i*-(-n//6)}' for i in range(6) if i*-(-n//6) < n}
    assert {o.stem for o in run_dir.plots.iterdir()} == NUMBERS | {'nearest_distr', 'selection_curve'} | MAPS | PICTURES | pairs
    assert {o['name'] for o in report['plots']} == {o.stem for o in run_dir.plots.iterdir()}
    assert len(report['examples']) == len(pairs)
    assert report['counts']['corrupt'] == report['corrupt']['n'] == sum(o['n'] for o in report['corrupt']['reasons']) > 0
    assert report['sheet'] == {'n_shown': report['counts']['sampled'], 'filenames': samples['filename'][result_order(samples)].tolist()}
    assert report['counts']['duplicate'] == report['duplicates']['n_files'] > 0
    for key in ('input', 'available', 'sampled'):
        assert sum(o[key] for o in report['folders']['shown']) == report['counts'][key]
    assert report['stopping']['covering_distance'] == pytest.approx(samples['nearest_distance'].max())
    assert report['distances']['after']['min'] >= report['distances']['before']['min']
    for when in ('before', 'after'):
        pair, near = report['distances'][when]['min'], report['neighbors'][when]['min']
        assert pair == pytest.approx(near, rel=1e-5), 'the closest pair is a pair of neighbours'
    assert 'secret' not in run_dir.report_json.read_text()


def test_same_again(finished, sample_folder, tmp_path, monkeypatch):
    "The same table gives the same bytes."
    run_dir, report, samples, vectors = finished
    monkeypatch.setattr(report_module, 'umap_layout', no_umap)
    assert make_report(RunDir(tmp_path), samples, vectors, sample_folder) == report
    for file in run_dir.plots.iterdir():
        assert (tmp_path/'plots'/file.name).read_bytes() == file.read_bytes(), file.name


def numbers_in(text):
    "Numbers as they are printed, and how many digits follow the point."
    return [(float(o.replace(',', '')), len(o.partition('.')[2])) for o in re.findall(r'\d[\d,]*(?:\.\d+)?', text)]


DENSE = ('histogram', 'points')  # so many numbers that one of them is near any other


def values_in(value):
    "All numbers in a report, those inside texts too."
    if isinstance(value, dict): return [o for k, v in value.items() if k not in DENSE for o in [*values_in(k), *values_in(v)]]
    if isinstance(value, list): return [o for v in value for o in values_in(v)]
    if isinstance(value, str): return [o for o, _ in numbers_in(value)]
    return [] if value is None or isinstance(value, bool) else [abs(float(value))]


def execute(root, result, run_dir):
    "Run the report notebook as a job."
    source = str(root/'nbs'/'jobs'/'report.ipynb')
    papermill.execute_notebook(source, str(result), {'run_dir': str(run_dir)}, progress_bar=False)


def page_of(root, folder):
    "What the report notebook shows, as markdown and HTML, and the text of its PDF."
    execute(root, folder/'report.ipynb', folder)
    cells = nbformat.read(folder/'report.ipynb', 4).cells
    shown = [o.data for cell in cells if cell.cell_type == 'code' for o in cell.outputs]
    render_pdf(folder/'report.ipynb', folder/'report.pdf')
    pages = [o.extract_text() for o in pypdf.PdfReader(folder/'report.pdf').pages]
    return [''.join(o.get('text/markdown', o.get('text/html', ''))) for o in shown], pages


def test_page(finished, root, tmp_path, monkeypatch):
    "The notebook runs, shows no code's names for objects, and no number that is not in report.json."
    run_dir, report, *_ = finished
    monkeypatch.setenv('PYTHONPATH', str(root))
    texts, pages = page_of(root, run_dir.root)
    assert_page(report, texts, pages)
    assert texts[0].startswith('# Curation report') and 6 <= len(pages) <= 12
    strip = next(o for o in texts if o.startswith('<dl class="cards"'))
    found = [str(report['counts'][o]) for o in ('input', 'corrupt', 'duplicate', 'sampled')]
    assert re.findall('</dt><dd>([^<]*)</dd>', strip)[:4] == found
    text = '\n'.join(texts)
    assert not re.search('datapool|(?i:## training|## videos)', text), 'what a run does not have is not spoken of'
    assert re.findall('(?m)^## (.*)', text) == [
        'What was selected', 'How many images are enough', 'How different the images are', 'Maps of the images',
        'Selected and removed images', 'Images that were not available', 'Folders', 'Estimated savings', 'The run',
        'How to repeat this run']


APART = {'distance_distr_before', 'distance_distr_after'}  # in plots/ only: the page shows both on one axis


def assert_page(report, texts, pages):
    "What every page keeps: all plots, words beside pictures, no number of its own, one word for one thing."
    assert all(texts), 'an output has neither markdown nor HTML'
    html = '\n'.join(texts)
    assert html.count('<img ') == len(re.findall('<img [^>]* alt="[^"]{20,}"', html)), 'a picture without words'
    named = {o['name'] for o in report['plots'] if f'alt="{escape(o["title"])}: {escape(o["caption"])}"' not in html}
    by_folder = {o for o in MAPS if o.endswith('_no_overlay') and report['folders']['n'] < 2}
    assert named <= APART | by_folder, named
    assert html.count('<img ') == len(report['plots']) - len(named), 'a plot is shown more than once'
    words = words_for(report['sources'])
    text = html
    for constant in (SAVINGS, *TEXTS.values()): text = text.replace(in_words(constant.strip(), words), '')
    text = re.sub(r'<[^>]*>', ' ', text)
    assert_known(report, text, [])
    fixed = [x for constant in (SAVINGS, *TEXTS.values()) for x, _ in numbers_in(constant)]
    printed = [re.sub(r'page \d+ of \d+', '', o) for o in pages]
    assert_known(report, '\n'.join(printed), fixed)
    assert len(' '.join(printed)) > 3000, 'the PDF has its text as text'
    assert not re.search('(?i)left out|retained', text), 'one word for one thing'


def assert_known(report, text, constants):
    "Every number in a text is in the report, rounded as it is printed, or one of some constants."
    times = [spoken(o) for o in (report['job']['duration_s'], *report['job']['seconds'].values())]
    percents = [100*o for o in (*report['shares'].values(), report['job']['bottleneck']['share']) if o is not None]
    percents += [100*o for o in (report['job']['embedding'] or {'busy': {}})['busy'].values() if o is not None]
    estimates = [float(f'{x:.2g}') for o in report['savings'] for x in (o['usd'], o['kg_co2'])]
    constants = [*constants, 10, 90, 99]  # percentiles
    if report['training'] is not None:
        times += [spoken(report['training']['seconds'])]
        percents += [100*o for o in [report['training']['wait_share']] if o is not None]
        estimates += [report['training']['cache_bytes']/1e6]
        constants += [64]  # images in a batch that are advised
    if report['videos'] is not None:
        times += [spoken(o['duration_s']) for o in [report['videos'], *report['videos']['shown']] if o['duration_s']]
    known = values_in(report) + values_in(times) + percents + estimates + constants
    points = (report['budget'] or {}).get('points', [])  # printed with four digits, and the numbers of images
    known = np.array(known + [x for point in points for k, x in point.items() if k == 'n'])
    fine = np.array([x for point in points for x in point.values()])
    def is_known(x, n): return (np.abs((np.append(known, fine) if n == 4 else known) - x) <= .5001*10.**-n + 1e-9*x).any()
    strange = [(x, n) for x, n in numbers_in(text) if not is_known(x, n)]
    assert not strange, strange
    parts = [numbers_in(o)[0] for o in re.findall(r'(\d[\d.]*) ?%', text)]  # a small whole number is soon found anywhere
    assert all(min(abs(o - x) for o in percents) <= .5001*10.**-n for x, n in parts), (parts, percents)


def test_page_of_a_run_with_everything(finished, sample_folder, root, tmp_path, monkeypatch):
    "A random choice of images of which some were masked, too near, outliers or chosen before, added to a datapool."
    _, _, samples, vectors = finished
    monkeypatch.setattr(report_module, 'umap_layout', no_umap)
    monkeypatch.setenv('PYTHONPATH', str(root))
    is_removed = (samples['status'] == 'ok') & ~samples['selected'] & ~samples.index.isin(samples['duplicate_of'].dropna())
    removed = np.flatnonzero(is_removed)
    for row, status in zip(removed, ('masked', 'member', 'excluded', 'outlier'), strict=False):
        samples = with_columns(samples, [row], status=status, reason='as asked', nearest_selected=None)
    samples = with_columns(samples, result_order(samples)[:1], preselected=True, gap=float('nan'))
    left = vectors.of(available(samples))
    report = make_report(RunDir(tmp_path), samples, left, sample_folder, pool=vectors.emb[:20], method='random',
                         training=TRAINED)
    texts, pages = page_of(root, tmp_path)
    assert_page(report, texts, pages)
    text = '\n'.join(texts)
    assert '1 masked in the embeddings file, 1 in the datapool already, 1 too near' in text and '1 had been chosen before' in text
    assert '## The datapool' in text and 'held 20 images' in text and 'beside the members of the datapool' in text
    assert {'Masked', 'Outliers', 'Selected before this run'} <= set(re.findall('<dt>([^<]*)</dt>', text))
    assert '## Training' in text and 'for 5 epochs of the 7 asked for, in 1 min 33 s' in text and 'with epoch 3;' in text
    assert 'The loss went from 3.3100 in epoch 0 to 2.8600 in epoch 3, the best' in text
    assert 'The embeddings of 31 images are spread out' in text and '* Batches of 16 images are small.' in text
    assert not [o for o in texts if o.startswith('>')], 'nothing is doubtful'


FLAT = {**SPREAD, 'std': .0123, 'rank': 1.52, 'is_collapsed': True, 'condition': 'complete'}
DIVERGED = {**SPREAD, 'std': None, 'rank': None, 'is_collapsed': True, 'condition': 'diverged'}
NOTHING = {'epochs_asked': 0, 'epochs': 0, 'steps': 0, 'seconds': 0., 'images_per_s': None, 'wait_share': None, 'loss': [],
           'checkpoint': '', 'spread': None, 'cache_bytes': 0, 'resumed_at': None}
NAN = float('nan')


@pytest.mark.parametrize('changed, n_figures_more, n_boxes, words', [
    (NOTHING, 0, 0, ['**Nothing was trained** (`lightly.trainer.max_epochs=0`)']),
    ({'epochs': 1, 'loss': [3.31], 'checkpoint': 'lightly_epoch_0.ckpt'}, 1, 0, ['After the only epoch the loss was 3.3100']),
    ({'epochs': 1000, 'epochs_asked': 1000, 'loss': np.linspace(3, 2, 1000).tolist(), 'checkpoint': 'lightly_epoch_999.ckpt'},
     1, 0, ['for 1,000 epochs, in', 'in epoch 999, the best. As that is the last']),
    ({'spread': FLAT}, 1, 2, ['> * The model collapsed: its embeddings', '> **The model collapsed:** it gives nearly the same']),
    ({'loss': [3.31, NAN, NAN, NAN, NAN], 'checkpoint': 'lightly_epoch_0.ckpt', 'spread': DIVERGED}, 1, 3,
     ['> * The training loss stopped being a finite number in epoch 1', '> **The training diverged:** some embeddings']),
    ({'loss': [NAN]*5, 'checkpoint': None, 'spread': None}, 1, 2, ['number in epoch 0.**'])])
def test_page_of_a_training(finished, changed, n_figures_more, n_boxes, words, root, tmp_path, monkeypatch):
    "No epoch, one, very many, a collapse, a loss that is no number: all are told, and valid JSON."
    run_dir, report, *_ = finished
    monkeypatch.setenv('PYTHONPATH', str(root))
    training, run = {**TRAINED, **changed}, RunDir(tmp_path/'run')
    shutil.copytree(run_dir.root, run.root)
    made = report_module.Illustrations(plots=list(report['plots']))
    report_module.write_loss(run, made, training)
    assert len(made.plots) == len(report['plots']) + n_figures_more
    told = describe_training(training)
    doubts = [*doubt_training(told), *report['warnings']]
    write_report({**report, 'plots': made.plots, 'training': told, 'warnings': doubts}, run.report_json)
    report = json.loads(run.report_json.read_text(), parse_constant=pytest.fail)
    texts, pages = page_of(root, run.root)
    assert_page(report, texts, pages)
    assert sum(o.startswith('>') for o in texts) == n_boxes
    for o in words: assert o in '\n'.join(texts), o


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    "Three videos of which one is not whole and one cannot be opened, an image, and what is known of them."
    folder = tmp_path_factory.mktemp('film')
    make_video(folder/'a_pan.mp4', n_frames=24)
    (folder/'b').mkdir()
    make_video(folder/'b'/'turn.mkv', n_frames=9, photo='flower')
    (folder/'gone.avi').write_bytes(b'')
    frames = [('a_pan.mp4', 'a_pan-{:02}-mp4.png', i, i/12) for i in range(24)]
    frames += [('b/turn.mkv', 'b/turn-{}-mkv.png', i, i/12) for i in range(9)]
    rows = [(path, name.format(i), 'frame', i, time_s, 'ok', None) for path, name, i, time_s in frames]
    rows += [('b/turn.mkv', 'b/turn.mkv', 'video', None, np.nan, 'corrupt', 'ends at 0.75 of 1.00 s'),
             ('gone.avi', 'gone.avi', 'video', None, np.nan, 'corrupt', 'the file is empty')]
    labels = {'a_pan.mp4': 0, 'b/turn.mkv': 1, 'gone.avi': 2}
    samples = make_samples([o[1] for o in rows], paths=[o[0] for o in rows], labels=[labels[o[0]] for o in rows])
    rows.sort(key=lambda o: o[1].encode())
    _, _, source, frame, time_s, status, reason = zip(*rows, strict=True)
    samples = with_columns(samples, range(len(rows)), source=source, frame=frame, time_s=time_s, status=status, reason=reason)
    facts = {'container': 'mp4', 'codec': 'h264', 'width': 96, 'height': 64, 'fps': 12., 'duration_s': 2., 'n_frames': 24,
             'n_lost': 0, 'reason': None, 'notes': []}
    videos = [{'path': 'a_pan.mp4', **facts},
              {'path': 'b/turn.mkv', **facts, 'duration_s': 1., 'n_frames': 9, 'n_lost': 3, 'reason': 'ends at 0.75 of 1.00 s',
               'notes': ['variable frame rate']},
              {'path': 'gone.avi', **dict.fromkeys(facts), 'n_frames': 0, 'reason': 'the file is empty', 'notes': []}]
    return folder, samples, videos


def choose(samples, share=.3):
    "A selection by the colour of nothing: vectors that are points on a line, a step for each frame."
    rows = available(samples)
    vectors = Vectors(np.column_stack([np.arange(len(rows)), np.arange(len(rows)) % 3]).astype(np.float32), rows)
    chosen, gaps = k_center(vectors.emb, max(1, int(share*len(rows))))
    return with_columns(samples, rows[chosen], selected=True, rank=range(len(chosen)), gap=gaps), vectors


def test_page_of_videos(film, root, tmp_path, monkeypatch):
    "Frames are called frames everywhere; videos, damage, timelines and pairs with times are told."
    folder, samples, videos = film
    monkeypatch.setattr(report_module, 'umap_layout', no_umap)
    monkeypatch.setenv('PYTHONPATH', str(root))
    samples = with_columns(samples, [4], status='corrupt', reason='looks damaged', uniform_row_ratio=.625)
    samples = with_columns(samples, [6, 7], status='duplicate', duplicate_of=5, reason='same pixels')
    samples, vectors = choose(samples)
    report = make_report(RunDir(tmp_path), samples, vectors, folder, videos=videos, training=TRAINED, pool=vectors.emb[:5])
    assert report['sources']['frames'] == {'input': 33, 'corrupt': 1, 'available': 30, 'sampled': 9}
    assert (report['counts']['input'], report['sources']['broken_videos'], report['videos']['n_broken']) == (35, 2, 2)
    assert [o['looked_at'] for o in report['videos']['shown']] == [24, 9, 0]
    for pair in report['examples']:
        at = samples.set_index('filename')['time_s']
        assert pair['plot'] and (pair['retained_time_s'], pair['removed_time_s']) == (at[pair['retained']], at[pair['removed']])
    texts, pages = page_of(root, tmp_path)
    assert_page(report, texts, pages)
    text = re.sub('src="[^"]*"', '', '\n'.join(texts).replace(report['job']['command'], ''))
    assert not re.search(r'\b[Ii]mages?\b', text), re.search(r'.{60}\b[Ii]mages?\b.{60}', text, re.S)
    assert re.search('alt="[^"]*frames were selected', text), 'words beside the pictures'
    for words in ('Of 33 frames, **9 were selected** (30% of those available) and 21 removed', '1 damaged and 2 exact copies',
                  '* 2 of 3 videos are not whole', '## Videos\n\nThe input holds 3 videos of 3.0 s together, with 33 frames',
                  'Lost are 3 frames', 'ends at 0.75 of 1.00 s', '**1 frame looks damaged**', 'variable frame rate'):
        assert words in text, words
    assert '## Frames by video' not in text and '## Folders' not in text, 'the table of the videos has it'


def test_page_of_images_and_videos(film, root, tmp_path, monkeypatch):
    "Images beside frames are samples; a wide input has more videos than a page shows; timelines may be switched off."
    folder, samples, videos = film
    monkeypatch.setattr(report_module, 'umap_layout', no_umap)
    monkeypatch.setenv('PYTHONPATH', str(root))
    Image.new('RGB', (40, 30), 'red').save(folder/'a.png')
    names = ['a.png', *samples['filename']]
    both = make_samples(names, paths=['a.png', *samples['path']], labels=[9, *samples['label']])
    told = ['source', 'frame', 'time_s', 'status', 'reason']
    both = with_columns(both, range(1, len(both)), **{o: samples[o].tolist() for o in told})
    both, vectors = choose(both)
    report = make_report(RunDir(tmp_path), both, vectors, folder, videos=videos*40, timelines=False)
    assert not RunDir(tmp_path).plot('video_sampling_timeline').exists()
    report = {**report, 'videos': {**report['videos'], 'shown': report['videos']['shown'][:3]}}
    write_report(report, tmp_path/'report.json')
    texts, pages = page_of(root, tmp_path)
    assert_page(report, texts, pages)
    text = '\n'.join(texts)
    assert 'There are 1 image and 33 frames of videos, here called samples. Of 34 samples, **10 were' in text
    assert '## Folders and videos' in text and '<td>(top folder)</td>' in text and '<td>b/turn.mkv</td>' in text
    assert 'These are the 3 videos with the most frames, of 120.' in text and 'When were frames selected' not in text


def test_pairs_show_the_frames_they_name(film, tmp_path, monkeypatch):
    "Selected on the left, removed on the right, each picture that of its frame, with its time."
    from lightly_curate.data.video import VideoReader, frame_image
    folder, samples, _ = film
    with VideoReader(folder/'a_pan.mp4') as reader: pan = {o.index: np.asarray(frame_image(o)) for o in reader}
    rows = samples.index[samples['path'] == 'a_pan.mp4']
    pairs = [report_module.Pair(0, int(rows[17]), int(rows[2]), .5), report_module.Pair(1, int(rows[2]), int(rows[23]), .25)]
    drawn, plot_pair = [], report_module.plot_pair
    monkeypatch.setattr(report_module, 'plot_pair', lambda *args: drawn.append(args) or plot_pair(*args))
    pictures = report_module.read_pictures(samples, rows[[2, 17, 23]].to_numpy(), folder)
    report_module.write_pairs(RunDir(tmp_path), report_module.Illustrations(), samples, pairs, pictures)
    for (selected, removed, names, _, times), (left, right) in zip(drawn, [(17, 2), (2, 23)], strict=True):
        assert np.array_equal(selected, pan[left]) and np.array_equal(removed, pan[right])
        assert names == (f'a_pan-{left:02}-mp4.png', f'a_pan-{right:02}-mp4.png')
        assert times == (f'{left/12:.2f} s', f'{right/12:.2f} s')


def test_time_of_many_videos(tmp_path):
    "A thousand videos of a hundred frames are counted and drawn in seconds, and the figure stays a page."
    n_videos, n_frames = 1000, 100
    names = [f'{v:03}-{i:03}-mp4.png' for v in range(n_videos) for i in range(n_frames)]
    samples = make_samples(names, paths=[f'{v:03}.mp4' for v in range(n_videos) for _ in range(n_frames)])
    samples['source'] = pd.Categorical(['frame']*len(samples), dtype=samples['source'].dtype)
    samples['time_s'] = np.tile(np.arange(n_frames)/10, n_videos)
    samples['frame'] = pd.array(np.tile(np.arange(n_frames), n_videos), dtype='Int64')
    samples['selected'] = np.random.default_rng(0).random(len(samples)) < .02
    facts = {**dict.fromkeys(FACTS), 'fps': 10., 'duration_s': 10., 'n_frames': n_frames, 'n_lost': 0, 'notes': []}
    videos = [{**facts, 'path': f'{v:03}.mp4'} for v in range(n_videos)]
    start = time.perf_counter()
    told = describe_videos(samples, videos)
    made = report_module.Illustrations()
    report_module.write_timelines(RunDir(tmp_path), made, samples, videos)
    assert time.perf_counter() - start < 60
    assert sum(o['sampled'] for o in told['shown']) == samples['selected'].sum()
    with Image.open(tmp_path/made.plots[0]['file']) as figure: width, height = figure.size
    assert height < 1.2*width and 'At most 200 videos' in made.plots[0]['caption']


def test_curve_of_the_report_is_the_one_of_the_choice(finished):
    "The covering distance at the end of the curve is that of the selection, and the bound is half of it."
    _, report, samples, vectors = finished
    points = report['budget']['points']
    assert points[-1]['n'] == report['counts']['sampled']
    assert points[-1]['covering_distance'] == pytest.approx(report['stopping']['covering_distance'], rel=1e-5)
    assert report['budget']['certificate']['lower_bound'] == pytest.approx(points[-1]['covering_distance']/2)
    chosen = result_order(samples)[:points[5]['n']]
    reach = np.linalg.norm(vectors.emb[:, None].astype(float) - vectors.of(chosen).emb[None], axis=-1).min(axis=1)
    expected = reach.max(), reach.mean(), np.percentile(reach, 99)
    told = tuple(points[5][o] for o in ('covering_distance', 'mean_distance', 'p99_distance'))
    assert told == pytest.approx(expected, rel=1e-4)


def test_old_report_and_old_figures(finished, tmp_path, monkeypatch):
    "A report of version 1.3 is told to be made again; figures that a run does not have any more are removed."
    run_dir, report, samples, vectors = finished
    shutil.copytree(run_dir.root, tmp_path/'run')
    old = RunDir(tmp_path/'run')
    old.report_json.write_text(json.dumps({**report, 'schema_version': '1.3'}))
    with pytest.raises(ReportError, match='schema version 1.3, this program reads 1.5; run the report step again'):
        read_report(old.report_json)
    for name in ('training_loss', 'video_sampling_timeline', 'contact_sheet', 'duplicate_groups'): old.plot(name).write_bytes(b'of an earlier run')
    monkeypatch.setattr(report_module, 'umap_layout', no_umap)
    before = pairwise_stats(vectors.emb, 2e9)
    write_plots(old, samples, vectors, before, before, None, 0, seed=1)
    assert {o.stem for o in old.plots.iterdir()} == MAPS | NUMBERS


def test_pairs_are_replacements(finished):
    "Each removed image of a pair is nearest to the selected one beside it, by the column that select fills."
    _, report, samples, vectors = finished
    by_name = samples.set_index('filename')
    for pair in report['examples']:
        retained, removed = (int(np.flatnonzero(samples['filename'] == pair[o])[0]) for o in ('retained', 'removed'))
        assert by_name.at[pair['removed'], 'nearest_selected'] == retained
        theirs = samples.index[(samples['nearest_selected'] == retained).fillna(False).astype(bool)]
        assert pair['distance'] == pytest.approx(samples.loc[theirs, 'nearest_distance'].min(), abs=1e-6)
        assert removed in theirs and len(vectors.of([removed]).emb) == 1


@pytest.mark.parametrize('source', ['images', 'embeddings'])
def test_page_with_nothing_removed(source, root, tmp_path, monkeypatch):
    "What did not happen is said once; vectors without images claim nothing about files."
    monkeypatch.setattr(report_module, 'umap_layout', no_umap)
    monkeypatch.setenv('PYTHONPATH', str(root))
    samples = with_columns(make_samples([f'{i}.jpg' for i in range(5)]), range(5), selected=True, rank=range(5))
    vectors = Vectors(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), np.arange(5))
    make_report(RunDir(tmp_path), samples, vectors, None, ended_by='none', source=source)
    execute(root, tmp_path/'page.ipynb', tmp_path)
    outputs = [o for cell in nbformat.read(tmp_path/'page.ipynb', 4).cells for o in cell.get('outputs', [])]
    text = '\n'.join(''.join(o.data.get('text/markdown', o.data.get('text/html', ''))) for o in outputs)
    assert text.count('No stopping condition was set') == 1
    assert 'nothing was saved' in text and 'USD' not in text and 'further than' not in text
    assert ('could be read' in text) == (source == 'images')
    assert ('Embeddings were given' in text) == (source == 'embeddings')
    assert text.count('<figure>') == 1 + 1 + 1 + 1 + 2, 'bar, curve, histogram, neighbours, two rows of maps'


def test_page_without_a_run(root, tmp_path, monkeypatch):
    "A folder that is no run is told in words."
    monkeypatch.setenv('PYTHONPATH', str(root))
    with pytest.raises(papermill.PapermillExecutionError, match='run the report step') as error:
        execute(root, tmp_path/'report.ipynb', tmp_path)
    assert error.value.ename == 'ReportError'


@pytest.mark.parametrize('n, n_selected', [(1, 1), (2, 1), (2, 2), (3, 1), (7, 6)])
def test_small_sets(n, n_selected, tmp_path, monkeypatch):
    "One image, two, all selected, fewer pairs than asked for: a report each time, and valid JSON without NaN."
    monkeypatch.setattr(report_module, 'umap_layout', umap_layout if n < 4 else no_umap)
    samples = make_samples([f'{i}.jpg' for i in range(n)])
    samples = with_columns(samples, range(n_selected), selected=True, rank=range(n_selected))
    vectors = Vectors(np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32), np.arange(n))
    report = make_report(RunDir(tmp_path), samples, vectors, None)
    assert json.loads((tmp_path/'report.json').read_text(), parse_constant=pytest.fail) == report
    assert (report['distances']['after']['mean'] is None) == (n_selected == 1)
    if n < 4: assert f'cannot arrange {n} images' in report['plots'][-1]['caption']
    if n == n_selected:
        assert report['warnings'][0].startswith('No available image was removed')
        assert not report['examples']
    if n > n_selected == 1:
        assert any(o.startswith('There is 1 example pair instead of 6, because they are spread evenly over the one selected image that '
                                'stands for') for o in report['notices']), report['notices']
    if n > n_selected:
        assert all(o['plot'] is None for o in report['examples'])
        assert any('no picture' in o for o in report['notices']), report['notices']


def test_odd_vectors(tmp_path):
    "Equal vectors, one dimension, a zero vector: drawn without a warning."
    for x in (np.ones((6, 3)), np.arange(6.)[:, None]*0, np.zeros((6, 2))):
        samples = with_columns(make_samples([f'{i}.jpg' for i in range(6)]), [2, 4], selected=True, rank=[0, 1])
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            report = make_report(RunDir(tmp_path), samples, Vectors(x.astype(np.float32), np.arange(6)), None)
        assert report['distances']['before']['max'] == 0
        assert all('all alike' in o['caption'] for o in report['plots'] if 'umap' in o['name'])


def test_names(tmp_path, monkeypatch):
    "Names that look like formulas, markup or another alphabet reach the picture and the table as they are."
    monkeypatch.setattr(report_module, 'umap_layout', no_umap)
    names = ['$\\frac{1}$/a_b^c.png', '<b>&amp;.png', 'a*b_c`d.png', '写真/🐱🏽.png', '%s{}.png', 'x'*200 + '.png']
    for i, name in enumerate(names):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (20 + i, 20), (40*i, 0, 0)).save(tmp_path/name)
    samples = make_samples(names, labels=[0, 1, 1, 2, 1, 1])
    samples = with_columns(samples, [0, 3, 5], selected=True, rank=[0, 1, 2])
    vectors = Vectors(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), np.arange(6))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        report = make_report(RunDir(tmp_path/'run'), samples, vectors, tmp_path)
    assert all(o['plot'] for o in report['examples'])
    assert {o['retained'] for o in report['examples']} <= set(samples['filename'][[0, 3, 5]])
    assert read_report(tmp_path/'run'/'report.json') == report


def test_sampled_pairs_and_points(finished, tmp_path, monkeypatch):
    "What was not looked at in full says so."
    _, _, samples, vectors = finished
    monkeypatch.setattr(report_module, 'umap_layout', no_umap)
    monkeypatch.setattr(report_module, 'rows_to_draw', lambda selected, seed: np.arange(0, len(selected), 2))
    report = make_report(RunDir(tmp_path), samples, vectors, None, max_pairs=100)
    assert not report['distances']['before']['exact'] and report['distances']['before']['n_pairs'] == 100
    assert report['distances']['before']['cdf_error'] > 0 and not report['neighbors']['before']['exact']
    assert sum('drawn at random' in o for o in report['notices']) >= 3, report['notices']
    assert any(f'off by {report["distances"]["before"]["cdf_error"]:.2g} at most' in o for o in report['notices'])


def test_schema_refuses(finished):
    "Each part of the report is closed: a key too many or one missing is found anywhere."
    facts = {**dict.fromkeys(FACTS), 'path': 'a.mp4', 'n_frames': 0, 'notes': []}
    videos = describe_videos(finished[2], [facts])
    videos['damaged']['shown'] = [{'filename': 'a-0-mp4.png', 'time_s': None, 'uniform_row_ratio': .5, 'reason': 'damaged'}]
    report = validate_report({**finished[1], 'training': describe_training(TRAINED), 'videos': videos})
    def broken(part, path):
        if isinstance(part, dict) and path not in ('job.config', 'job.seconds', 'job.versions'):
            for key in part: yield path, {k: v for k, v in part.items() if k != key}
            yield path, {**part, 'more': 1}
        for key, value in part.items() if isinstance(part, dict) else ():
            if path == 'job.config': continue
            for where, changed in broken(value, f'{path}.{key}'.lstrip('.')): yield where, {**part, key: changed}
    n_broken = 0
    for where, changed in broken(report, ''):
        n_broken += 1
        with pytest.raises(ReportError, match='does not have the shape'):
            validate_report(changed)
            pytest.fail(f'accepted a change at {where or "the top"}')
    assert n_broken > 60


def test_readable_in_grey():
    "Selected and other points differ in brightness, not only in colour."
    grey = [Image.new('RGB', (1, 1), o).convert('L').getpixel((0, 0)) for o in (BLUE, PALE)]
    assert grey[1] - grey[0] > 100, grey


def test_personal_style_is_ignored(monkeypatch):
    "A user's matplotlibrc changes nothing."
    points, selected = np.random.default_rng(0).random((50, 2)), np.arange(50) % 3 == 0
    plain = png(plot_selection(points, selected, 'PCA'))
    for key, value in (('font.size', 30.), ('axes.facecolor', 'black'), ('text.usetex', True)):
        monkeypatch.setitem(matplotlib.rcParams, key, value)
    assert png(plot_selection(points, selected, 'PCA')) == plain


@pytest.mark.slow
def test_time_of_the_layouts():
    "Three UMAP layouts of as many points as are drawn stay in about two minutes on two cores."
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 64))[rng.integers(30, size=MAX_POINTS)] + rng.normal(scale=.5, size=(MAX_POINTS, 64))
    start = time.perf_counter()
    layouts = [umap_layout(x.astype(np.float32), k) for k in (5, 15, 50)]
    seconds = time.perf_counter() - start
    assert all(np.isfinite(o.points).all() for o in layouts)
    assert seconds < 180, f'{seconds:.0f} s'


def test_the_published_schemas_are_those_in_use():
    "nbs/report-1.5.schema.json, nbs/compare-1.0.schema.json and nbs/manifest-1.0.schema.json, made by tools/make_schema.py; no older ones beside them."
    import make_schema
    for path, schema in make_schema.SCHEMAS.items():
        assert path.read_text(encoding='utf-8') == make_schema.schema_text(schema), 'run: python tools/make_schema.py'
    assert {*make_schema.NBS.glob('*.schema.json')} == {*make_schema.SCHEMAS}
