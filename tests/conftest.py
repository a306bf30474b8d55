"What several test files share."
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def root() -> Path:
    "The repository."
    return ROOT


@pytest.fixture(scope='session')
def shared_data() -> Path:
    "Real images that are not part of the repository; never write here."
    folder = Path(os.environ.get('LIGHTLY_CURATE_SHARED_DATA', ROOT.parent/'shared'/'data'))
    if not folder.is_dir(): pytest.skip(f'no real images in {folder}; set LIGHTLY_CURATE_SHARED_DATA')
    return folder


@pytest.fixture
def one_thread():
    "Small networks have nothing to share."
    from lightly_curate.embed.embed import one_torch_thread
    with one_torch_thread(): yield


@pytest.fixture(scope='session')
def sample_folder(tmp_path_factory) -> Path:
    "A small folder of our own sample images, made once: crops, a pan, planted duplicates, a broken file. Read only."
    from lightly_curate.data.sample_data import make_sample_data
    return make_sample_data(tmp_path_factory.mktemp('sample')/'images', n_images=60)
