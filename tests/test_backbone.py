"Checkpoints of lightly's own, and the accuracy of the built-in backbone."
from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightly_curate.core.errors import WeightsError
from lightly_curate.core.samples import available
from lightly_curate.data.sample_data import sample_photos
from lightly_curate.data.scan import scan
from lightly_curate.embed.embed import embed
from lightly_curate.embed.vectors import normalize
from lightly_curate.learn.backbone import builtin_weights, lightly_module, load_backbone


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Twelve pictures of several sizes in two folders, as lightly's data set wants them."
    folder = tmp_path_factory.mktemp('photos')
    for i, photo in enumerate(list(sample_photos().values())[:1]*12):
        (folder/f'class{i % 2}').mkdir(exist_ok=True)
        crop = photo.convert('RGB').crop((10*i, 5*i, 10*i + 90 + 7*i, 5*i + 80 + 3*i))
        crop.save(folder/f'class{i % 2}'/f'{i:02}.png')
    return folder


def lightly_config(**model: object) -> dict:
    "Configuration of lightly's command line with a few keys changed."
    from lightly.cli.config.get_config import get_lightly_config
    from omegaconf import OmegaConf
    cfg = OmegaConf.to_container(OmegaConf.create(get_lightly_config()))
    cfg['model'].update(model)
    cfg['loader'].update(num_workers=0, batch_size=5)
    return cfg


def save_lightly_checkpoint(path: Path, name: str, width: float, num_ftrs: int) -> None:
    "Checkpoint of lightly's SimCLR model as Lightning lays it out, with moved batch norm statistics."
    from lightly.cli._cli_simclr import _SimCLR
    from lightly.embedding import SelfSupervisedEmbedding
    from lightly.models import ResNetGenerator
    torch.manual_seed(0)
    resnet = ResNetGenerator(name, width)
    features = torch.nn.Sequential(torch.nn.BatchNorm2d(3), *list(resnet.children())[:-1],
                                   torch.nn.Conv2d(resnet.linear.in_features, num_ftrs, 1), torch.nn.AdaptiveAvgPool2d(1))
    model = _SimCLR(features, num_ftrs=num_ftrs, out_dim=16)
    model(torch.rand(8, 3, 32, 32)*3 - 1)
    encoder = SelfSupervisedEmbedding(model, None, None, None)
    torch.save({'epoch': 0, 'state_dict': encoder.state_dict(), 'callbacks': {}}, path)


def compare(photos: Path, checkpoint: Path, name: str, width: float, num_ftrs: int) -> None:
    "Our embeddings of a folder against those of lightly's own command."
    from lightly.cli.embed_cli import _embed_cli
    cfg = lightly_config(name=name, width=width, num_ftrs=num_ftrs, out_dim=16) | {'input_dir': str(photos), 'checkpoint': str(checkpoint)}
    theirs, _, filenames = _embed_cli(cfg, is_cli_call=False)
    samples = scan(photos)
    backbone = load_backbone(checkpoint=checkpoint)
    _, vectors = embed(samples, backbone, photos, batch_size=5, n_workers=2)
    assert (backbone.name, backbone.n_features, backbone.input_size) == (name, num_ftrs, 64)
    assert [samples['filename'][o] for o in vectors.rows] == filenames
    np.testing.assert_allclose(vectors.emb, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(('name', 'width', 'num_ftrs'), [('resnet-18', 1, 32), ('resnet-9', .125, 16), ('resnet-50', .125, 8)])
def test_equals_lightly(photos: Path, tmp_path: Path, name: str, width: float, num_ftrs: int) -> None:
    "A checkpoint of lightly's layout gives lightly's embeddings."
    save_lightly_checkpoint(tmp_path/'simclr.ckpt', name, width, num_ftrs)
    compare(photos, tmp_path/'simclr.ckpt', name, width, num_ftrs)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_lightly_training(photos: Path, tmp_path: Path) -> None:
    "A checkpoint that lightly's training command wrote loads and gives lightly's embeddings."
    command = [str(Path(sys.executable).with_name('lightly-ssl-train')), f'input_dir={photos}', 'trainer.max_epochs=1', 'trainer.gpus=0',
               'loader.batch_size=4', 'loader.num_workers=0', 'model.name=resnet-9', 'model.width=0.125', 'model.num_ftrs=16',
               'model.out_dim=16', 'pre_trained=False']
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    checkpoint = next(o for o in sorted(tmp_path.rglob('*.ckpt')) if 'epoch' in o.name)
    compare(photos, checkpoint, 'resnet-9', .125, 16)


def test_default_width_asks_for_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    "A name alone does not ask for width 1; and nothing is told twice of layers that are not used."
    module = lightly_module('resnet-9', 2, 8)
    state = {f'model.backbone.{k}': v for k, v in module.state_dict().items()} | {'model.projection_head.0.weight': torch.zeros(2)}
    torch.save({'state_dict': state}, tmp_path/'wide.ckpt')
    with caplog.at_level(logging.INFO, logger='lightly_curate'):
        assert load_backbone('resnet-9', tmp_path/'wide.ckpt').n_features == 8
    assert caplog.text == ''
    with pytest.raises(WeightsError, match='width is 0.5, wide.ckpt holds 2'): load_backbone('resnet-9', tmp_path/'wide.ckpt', width=.5)


def test_foreign_checkpoint(shared_data: Path) -> None:
    "An ImageNet checkpoint of another project is refused with what was found."
    with pytest.raises(WeightsError, match=r'found 164 layers \(module\.stage1.*lightly-ssl-train'):
        load_backbone(checkpoint=shared_data/'weights'/'mobilenetv1_x0.25_imagenet.pth.tar')


def test_damaged_builtin(tmp_path: Path) -> None:
    "A built-in file of which bytes are missing or exchanged does not load, or loads as another file."
    whole = builtin_weights().read_bytes()
    for name, content in (('cut.pt', whole[:len(whole)//2]), ('empty.pt', b''), ('zeros.pt', bytes(len(whole)))):
        (tmp_path/name).write_bytes(content)
        with pytest.raises(WeightsError, match='not a checkpoint that torch can read'):
            load_backbone(checkpoint=tmp_path/name)


def knn_accuracy(x: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    "Leave one out, majority of the nearest by cosine."
    unit = normalize(x)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = labels[np.argsort(-similarity, axis=1, kind='stable')[:, :k]]
    votes = (nearest[:, :, None] == np.arange(labels.max() + 1)).sum(axis=1)
    return float((votes.argmax(axis=1) == labels).mean())


@pytest.mark.parametrize(('name', 'least'), [('caltech101', .5), ('clothing', .25)])
def test_accuracy(shared_data: Path, name: str, least: float) -> None:
    "Neighbours of an embedding are of its class often enough; no label was used in training."
    folder = shared_data/'labelled'/name
    samples, vectors = embed(scan(folder), load_backbone(), folder, batch_size=64, n_workers=2)
    assert len(vectors) == len(available(samples)) == len(samples)
    labels = samples['label'][vectors.rows].to_numpy(dtype=np.int64)
    accuracy = knn_accuracy(vectors.emb, labels)
    assert accuracy >= least, f'{accuracy:.3f} on {name}'


@pytest.mark.parametrize(('layer', 'change', 'words'), [
    ('1.weight', lambda o: o.to(torch.complex64), '1.weight is complex'), ('1.weight', lambda o: o.to('meta'), 'without values'),
    ('1.weight', lambda o: o[0, 0, 0, 0], r'1.weight has the shape \(\)'), ('7.weight', lambda o: 0*o, r'all zero \(7.weight\)'),
    ('4.0.bn1.running_var', lambda o: o - 9, 'negative variance'), ('7.bias', lambda o: o.int(), 'whole numbers'),
    ('2.weight', lambda o: o*np.nan, r'not finite \(2.weight\)')])
def test_odd_weights_are_refused(tmp_path: Path, layer: str, change: object, words: str) -> None:
    "Weights that would embed nonsense stop in words."
    state = lightly_module('resnet-9', .125, 16).state_dict()
    torch.save({f'backbone.{k}': change(v) if k == layer else v for k, v in state.items()}, tmp_path/'a.ckpt')
    with pytest.raises(WeightsError, match=words): load_backbone(checkpoint=tmp_path/'a.ckpt')


def test_program_is_refused_in_our_words(tmp_path: Path) -> None:
    "An exported program, without the advice that torch gives."
    module = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(module, tmp_path/'a.pt2')
    with pytest.raises(WeightsError, match='a.pt2') as error: load_backbone(checkpoint=tmp_path/'a.pt2')
    assert 'weights_only' not in str(error.value) and len(str(error.value)) < 200
