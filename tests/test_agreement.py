"Numbers and names that are kept in two places agree."
from dataclasses import asdict

import numpy as np
import pytest
from lightly_curate.core import config
from lightly_curate.core.errors import EmbeddingsError, InputError
from lightly_curate.core.rundir import RunDir
from lightly_curate.data import scan
from lightly_curate.data.images import MAX_IMAGE_PIXELS
from lightly_curate.deliver.dump import SAVED_AS
from lightly_curate.embed.embedding_csv import read_embeddings, read_npy
from lightly_curate.learn.backbone import RESNETS
from lightly_curate.report.report import STOPPING
from lightly_curate.report.stats import KG_CO2_PER_IMAGE, USD_PER_IMAGE
from lightly_curate.select.datapool import held_out, pool_files
from lightly_curate.select.select import METHODS
from lightly_curate.select.stopping import EndedBy


def test_pixel_limit(): assert config.CurateConfig().max_image_pixels == MAX_IMAGE_PIXELS


def test_models(): assert config.MODELS == ('auto', 'builtin', *RESNETS)


def test_methods(): assert config.METHODS == tuple(METHODS)


def test_ended_by():
    "What can end a selection is what the report may say: the conditions by their keys, and two words more."
    conditions = [o for o, _ in config.leaves(config.StoppingCondition())]
    assert sorted(EndedBy) == sorted([*conditions, 'exhausted', 'none'])
    assert sorted(STOPPING['properties']['ended_by']['enum']) == sorted(EndedBy)


@pytest.mark.parametrize('name', ['pool', 'my pool', 'a.b', '絵', '..', '.', '.a', 'a/b', 'a\\b', 'a\n', ' a', 'a ', '/a', 'pool/', 'a\0b'])
def test_datapool_names(tmp_path, name):
    "A name that the configuration allows is one that the datapool can be kept under, and the other way round."
    try: pool_files(tmp_path, name)
    except InputError: assert not config.is_plain_name(name)
    else: assert config.is_plain_name(name)


def test_exclude_formats(tmp_path):
    for suffix in (*config.EXCLUDE_FORMATS, '.npy', '.txt'):
        path = tmp_path/f'a{suffix}'
        path.write_bytes(b'')
        with pytest.raises(EmbeddingsError) as refusal: held_out(path, 2)
        assert ('allowed is .csv' in str(refusal.value)) == (suffix not in config.EXCLUDE_FORMATS), suffix


def test_image_formats():
    assert config.IMAGE_FORMATS == (*SAVED_AS, 'original')
    assert config.CurateConfig().output_image_format in SAVED_AS


def test_embedding_formats(tmp_path):
    "A file of every format that the configuration allows is looked into, one of another is not."
    for suffix in (*config.EMBEDDING_FORMATS, '.pq', '.txt'):
        path = tmp_path/f'a{suffix}'
        path.write_bytes(b'')
        with pytest.raises(EmbeddingsError) as refusal: read_npy(path, 1) if suffix == '.npy' else read_embeddings(path)
        assert ('allowed is .csv of the layout' in str(refusal.value)) == (suffix not in config.EMBEDDING_FORMATS), suffix
    np.save(tmp_path/'b.npy', np.float32([[1]]))
    assert read_npy(tmp_path/'b.npy', 1).shape == (1, 1)


def test_savings():
    savings = config.Savings()
    assert asdict(savings.usd_per_image) == USD_PER_IMAGE
    assert asdict(savings.kg_co2_per_image) == KG_CO2_PER_IMAGE


def test_run_mark(tmp_path):
    "The folder that a run leaves is the one by which the scan passes a run over."
    assert RunDir(tmp_path).state.name == scan.RUN_MARK
