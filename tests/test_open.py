"A finished run opened in a notebook: what it tells and shows, in whatever state it is."
import html
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from lightly_curate import Run
from lightly_curate.core.errors import InputError, ReportError
from lightly_curate.core.rundir import RunDir
from lightly_curate.core.samples import available, load_samples
from lightly_curate.data.sample_data import make_video
from lightly_curate.data.video import VideoReader, frame_image
from lightly_curate.embed.embedding_csv import read_embeddings
from lightly_curate.run.pipeline import WORK, run_stage, stages_to_do
from lightly_curate.run.start import open_run
from PIL import Image

ODD_NAME = '<img src=x onerror=alert(1)> & "1" $x$.jpg'
TOKEN = 'k3Yn0tF0rY0urEyes'


def carry_out(*words) -> Path:
    "All stages of a run, without typesetting its report; its folder."
    planned = open_run(overrides=[f'token={TOKEN}', 'lightly.loader.num_workers=1', *map(str, words)])
    for stage in stages_to_do(planned.cfg): run_stage(planned, stage, partial(WORK[stage], planned))
    return planned.dir.root


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {o.relative_to(folder).as_posix(): (o.stat().st_size, o.stat().st_mtime_ns) for o in folder.rglob('*')}


@pytest.fixture(scope='module')
def work(tmp_path_factory) -> Path: return tmp_path_factory.mktemp('open')


@pytest.fixture(scope='module')
def images(work, sample_folder) -> Path:
    "Forty of the sample images, one of them with a name that is markup; a broken one and copies are among them."
    names = sorted(o.relative_to(sample_folder) for o in sample_folder.rglob('*.*'))[:40]
    for name in names:
        (work/'images'/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample_folder/name, work/'images'/name)
    shutil.copy(sample_folder/'portrait'/'001.jpg', work/'images'/ODD_NAME)
    return work/'images'


@pytest.fixture(scope='module')
def finished(work, images) -> Path:
    return carry_out(f'input_dir={images}', f'output_dir={work}/out', 'run_directory=2026-03-01/whole', 'stopping_condition.n_samples=12')


@pytest.fixture(scope='module')
def embedded(work, images) -> Path:
    return carry_out(f'input_dir={images}', f'output_dir={work}/out', 'run_directory=vectors', 'steps=[embed]')


def test_tells_what_the_files_say(finished):
    run, files = Run(finished), RunDir(finished)
    assert run.samples.equals(load_samples(files.samples_parquet))
    assert run.selected['filename'].tolist() == files.sampled_filenames.read_text().splitlines()
    assert run.report == json.loads(files.report_json.read_text())
    given = read_embeddings(files.normalized_embeddings_csv)
    assert run.samples['filename'][run.embeddings.rows].tolist() == given.filenames
    np.testing.assert_allclose(run.embeddings.emb, given.emb, atol=1e-6)
    assert run.curve.n[-1] == run.report['budget']['points'][-1]['n'] == 12
    assert run.config.token == '' and TOKEN not in repr(run.config) + run._repr_html_()
    assert repr(run) == f"Run('{finished}'): {len(run.samples)} images, 12 selected"


def test_shows_everything_and_writes_nothing(finished):
    before = files_below(finished)
    run = Run(finished)
    pictures = [run.show_selected(), run.show_pairs(3), run.show(run.samples.index[::7])]
    maps = [run.show_map(), run.show_map('pca', 'label'), run.show_map('umap_k_50', 'nearest_distance')]
    for shown, form in [*((o, 'JPEG') for o in pictures), *((o, 'PNG') for o in maps)]:
        (kind, data), = shown._repr_mimebundle_()[0].items()
        assert kind == f'image/{form.lower()}' and data
        with Image.open(io.BytesIO(shown.data)) as image: assert image.format == form and min(image.size) > 100
        assert len(shown.data) < 250_000
    assert html.escape(run.dir.explore_html.read_text()) in run.explore()._repr_html_()
    assert 5_000 < len(run._repr_html_()) < 100_000
    assert files_below(finished) == before


def test_works_where_nothing_may_be_written(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path/'run')
    for path in [folder, *folder.rglob('*')]: path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        run = Run(folder)
        assert run.embeddings.emb.shape[1] and run.show_map().data and run.show_pairs().data and run._repr_html_()
    finally:
        for path in [folder, *folder.rglob('*')]: path.chmod(0o755 if path.is_dir() else 0o644)


def test_names_are_text(finished):
    run = Run(finished)
    row = run.samples.index[run.samples['filename'] == ODD_NAME][0]
    assert run.show([row], ['<b>']).data
    shown = run._repr_html_()
    assert '<img src=x' not in shown and '<b>' not in shown
    everything = Run(finished)
    everything.samples['filename'] = everything.samples['filename'].radd('<script>"')
    told = everything._repr_html_()
    assert '<script>' not in told and told.count('title="&lt;script&gt;&quot;') == told.count('<img')


def test_maps_are_those_of_the_report(finished, tmp_path):
    "The points of data/maps.parquet are those of explore.html, and those that a run without the file computes."
    run, bare = Run(finished), Run(shutil.copytree(finished, tmp_path/'bare'))
    for path in (bare.dir.maps_parquet, bare.dir.explore_html): path.unlink()
    told = json.loads(re.search(r'id="data">(.*?)</script>', run.dir.explore_html.read_text(), re.DOTALL)[1])
    page = {o['name']: dict(zip(told['points']['name'], zip(o['x'], o['y'], strict=True), strict=True)) for o in told['maps']}
    assert list(run.maps) == list(page)
    for method, name in (('pca', 'PCA'), ('umap_k_15', 'UMAP, k = 15')):
        (rows, points), (again, computed) = run.points(method), bare.points(method)
        assert rows.tolist() == again.tolist() == available(run.samples).tolist()
        np.testing.assert_array_equal(points, computed)
        np.testing.assert_allclose([page[name][o] for o in run.samples['filename'][rows]], points*told['scale'], atol=.501)
    with pytest.raises(InputError, match='has no page explore.html'): bare.explore()


def test_only_embedded(embedded, images):
    "What is there is shown, what is not is an error with the command that makes it; and that command does."
    run = Run(embedded)
    assert len(run.embeddings) == (run.samples['status'] == 'ok').sum()
    assert run.show_map('pca').data and run.show(run.samples[:3]).data
    assert 'selected' not in run._repr_html_() and '<img' in run._repr_html_()
    for ask in ('selected', 'curve', 'report'):
        with pytest.raises(InputError, match='finished are scan, clean, embed'): getattr(run, ask)
    for ask in (run.show_selected, run.show_pairs, run.explore, lambda: run.show_map('pca', 'selected')):
        with pytest.raises(InputError): ask()
    with pytest.raises(InputError) as told: run.needs('select')
    words = shlex.split(str(told.value).split('to go on with it: ')[1])
    made = subprocess.run([Path(sys.executable).with_name(words[0]), *words[1:]], capture_output=True, text=True)
    assert made.returncode == 0 and 'embed: done already' in made.stderr, made.stderr
    assert len(Run(embedded).selected) == (run.samples['status'] == 'ok').sum(), 'no stopping condition was set'
    assert 'no pairs' in Run(embedded).show_pairs().data


def test_frames_of_videos(work):
    films = work/'films'
    films.mkdir()
    make_video(films/'pan.mp4', n_frames=20)
    make_video(films/'other.avi', n_frames=9, photo='flower')
    run = Run(carry_out(f'input_dir={films}', f'output_dir={work}/out', 'run_directory=films', 'stopping_condition.n_samples=5',
                        'steps=[embed,select]'))
    assert re.search(r': 29 frames, 5 selected$', repr(run))
    rows = run.selected.index[::-1]
    pictures = run.pictures(rows)
    assert list(pictures) == rows.tolist()
    for row, picture in pictures.items():
        path, index = run.samples.loc[row, ['path', 'frame']]
        with VideoReader(films/path) as reader: frame = next(o for o in reader if o.index == index)
        np.testing.assert_array_equal(picture, frame_image(frame))
    assert run.show_selected().data and run.show_pairs(2).data and run._repr_html_().count('<img') == 5


def test_images_that_have_gone(finished, images, tmp_path):
    run = Run(shutil.copytree(finished, tmp_path/'run'))
    moved = images.rename(tmp_path/'moved')
    try:
        for ask in (run.show_selected, run.show_pairs, lambda: run.pictures([0])):
            with pytest.raises(InputError, match='which is no folder now; say where they are: Run'): ask()
        assert 'which is no folder now' in run._repr_html_() and run.show_map().data
        there = Run(run.path, input_dir=moved)
        assert there.show_selected().data and '<img' in there._repr_html_()
        broken = there.samples.index[there.samples['status'] == 'corrupt'][0]
        assert there.pictures([broken]) == {broken: 'the file ends too early'} and there.show([broken]).data
    finally:
        moved.rename(images)


def test_report_of_another_version(finished, tmp_path):
    "The tables are shown all the same, with a sentence about the report."
    run = Run(shutil.copytree(finished, tmp_path/'run'))
    text = run.dir.report_json.read_text()
    run.dir.report_json.write_text(re.sub(r'"schema_version": "[\d.]+"', '"schema_version": "0.9"', text))
    with pytest.raises(ReportError, match='has schema version 0.9'): run.report  # noqa: B018
    assert 'has schema version 0.9' in run._repr_html_() and run._repr_html_().count('<img') > 3


def test_warnings_are_seen(finished, tmp_path):
    run = Run(shutil.copytree(finished, tmp_path/'run'))
    report = json.loads(run.dir.report_json.read_text())
    assert 'Half of it <is> odd.' not in run._repr_html_()
    run.dir.report_json.write_text(json.dumps({**report, 'warnings': ['Half of it <is> odd.']}))
    assert 'Half of it &lt;is&gt; odd.' in Run(run.path)._repr_html_()


def test_a_folder_that_is_no_run(finished, work, images):
    with pytest.raises(InputError, match=f"near it is .*Run\\('{finished}'\\)"): Run(work/'out')
    with pytest.raises(InputError, match=f"near it is Run\\('{finished}'\\)"): Run(finished.parent)
    with pytest.raises(InputError, match=f"near it is Run\\('{finished}'\\)"): Run(finished/'report.json')
    with pytest.raises(InputError, match='is no folder of a run.*give the run folder'): Run(images)
    with pytest.raises(InputError, match='is no folder, needed'): Run(work/'nowhere')


LIGHT = """
import sys, lightly_curate
assert not {'numpy', 'pandas', 'matplotlib', 'torch', 'hydra'} & set(sys.modules), 'import lightly_curate'
from lightly_curate import Run
run = Run(sys.argv[1])
run.samples, run.selected, run.embeddings, run.report, run.curve, run.show_selected(), run.show_pairs(), run.show_map(), run._repr_html_()
heavy = {'torch', 'torchvision', 'umap', 'papermill', 'nbconvert', 'lightly'} & set(sys.modules)
assert not heavy, heavy
"""


def test_nothing_heavy_is_loaded(finished):
    done = subprocess.run([sys.executable, '-c', LIGHT, finished], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
