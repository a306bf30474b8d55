"Numbers and names that are kept in two places agree."
from dataclasses import asdict

import numpy as np
import pytest
from lightly_curate.core import config
from lightly_curate.core.errors import EmbeddingsError
from lightly_curate.core.rundir import RunDir
from lightly_curate.data import scan
from lightly_curate.data.images import MAX_IMAGE_PIXELS
from lightly_curate.deliver.dump import SAVED_AS
from lightly_curate.embed.embedding_csv import read_embeddings, read_npy
from lightly_curate.learn.backbone import RESNETS
from lightly_curate.report.stats import KG_CO2_PER_IMAGE, USD_PER_IMAGE
from lightly_curate.select.select import METHODS


def test_pixel_limit(): assert config.CurateConfig().max_image_pixels == MAX_IMAGE_PIXELS


def test_models(): assert config.MODELS == ('auto', 'builtin', *RESNETS)


def test_methods(): assert config.METHODS == tuple(METHODS)


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
