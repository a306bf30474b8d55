"Checkpoints of lightly's own, and the accuracy of the built-in backbone."
from __future__ import annotations

import hashlib
import io
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
from lightly_curate.learn import networks
from lightly_curate.learn.backbone import load_backbone, start_backbone
from lightly_curate.learn.builtin import builtin_weights
from lightly_curate.learn.downloads import download_of
from lightly_curate.learn.networks import lightly_module

from test_downloads import Moved, serving


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
    "An ImageNet checkpoint of another project is refused with what was found and what to do."
    with pytest.raises(WeightsError) as error: load_backbone(checkpoint=shared_data/'weights'/'mobilenetv1_x0.25_imagenet.pth.tar')
    for words in ('164 tensors of 28 layers, all names begin with module.', 'first module.stage1.0.0.weight (8, 3, 3, 3)',
                  'last module.fc.bias (1000,)', 'MobileNetV1 of width 0.25', 'a classifier of 1000 classes',
                  'lightly.model.name=FILE.py:NAME', 'tutorial own_backbone'):
        assert words in str(error.value), words


OWN_FILE = """
from torch import nn
from lightly_curate.learn.networks import register_backbone

def block(n_in, n_out, stride):
    return nn.Sequential(
        nn.Conv2d(n_in, n_in, 3, stride, 1, groups=n_in, bias=False), nn.BatchNorm2d(n_in), nn.ReLU(),
        nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())

class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        sizes = [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.stage1 = nn.Sequential(stem, *(block(*o) for o in sizes))
        self.stage2 = nn.Sequential(block(64, 128, 2), *(block(128, 128, 1) for _ in range(5)))
        self.stage3 = nn.Sequential(block(128, 256, 2), block(256, 256, 1))

    def forward(self, x):
        return self.stage3(self.stage2(self.stage1(x))).mean(dim=(2, 3))

register_backbone('mobilenet', MobileNet, input_size=128, n_features=256)
"""


def test_own_network(shared_data: Path, tmp_path: Path) -> None:
    "The same file, with the network that it is for named beside it; one class less in the file than in the network is refused."
    (tmp_path/'mine.py').write_text(OWN_FILE)
    weights = shared_data/'weights'/'mobilenetv1_x0.25_imagenet.pth.tar'
    backbone = load_backbone(f'{tmp_path}/mine.py:mobilenet', weights)
    assert (backbone.name, backbone.n_features, backbone.input_size) == ('mobilenet', 256, 128)
    assert backbone.sha256 == 'caa79d9269daeabcf5711b54e3a580f8c9249139e5aa5af1bfece54c144b3c07'
    assert backbone.origin == 'checkpoint mobilenetv1_x0.25_imagenet.pth.tar (mobilenet, width 1, 256 features)'
    theirs = torch.load(weights, weights_only=True)['state_dict']
    for name, value in backbone.module.state_dict().items(): assert torch.equal(value, theirs[f'module.{name}']), name
    with pytest.raises(WeightsError, match=r'less than half of its layers are in mobilenet'): load_backbone('torchvision/squeezenet1_1', weights)


def test_prefixes(tmp_path: Path) -> None:
    "Wrappers in front of the names, a second network and a classifier beside it, and a ResNet whose children stand in a row."
    from torchvision.models import resnet18
    theirs = resnet18(weights=None)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(): expected = torch.nn.Sequential(*list(theirs.eval().children())[:-1])(x).flatten(1)
    named = theirs.state_dict()
    row = torch.nn.Sequential(*list(theirs.children())[:-1]).state_dict()
    layouts = {'plain': named, 'ddp': {'state_dict': {f'module.{k}': v for k, v in named.items()}},
               'dino': {'student': {f'module.backbone.{k}': v for k, v in named.items()}, 'teacher': {f'backbone.{k}': v + 1 for k, v in named.items()}},
               'moco': {'state_dict': {f'module.encoder_q.{k}': v for k, v in named.items() if not k.startswith('fc.')}, 'optimizer': {'x': 1}},
               'lightly': {'state_dict': {f'backbone.{k}': v for k, v in row.items()} | {'projection_head.layers.0.weight': torch.ones(2, 2)}}}
    for name, content in layouts.items():
        torch.save(content, tmp_path/f'{name}.pth')
        backbone = load_backbone('torchvision/resnet18', tmp_path/f'{name}.pth', input_size=64)
        torch.testing.assert_close(backbone.module(x), expected, rtol=1e-5, atol=1e-5, msg=name)
        if name not in ('plain', 'ddp', 'moco', 'lightly'): continue
        with pytest.raises(WeightsError, match='lightly.model.name=torchvision/resnet18 with this checkpoint'): load_backbone(checkpoint=tmp_path/f'{name}.pth')
    torch.save({k: v for k, v in named.items() if k != 'layer3.0.conv1.weight'}, tmp_path/'lacks.pth')
    with pytest.raises(WeightsError, match=r'1 missing \(layer3.0.conv1.weight\)'): load_backbone('torchvision/resnet18', tmp_path/'lacks.pth')
    with pytest.raises(WeightsError, match='not known'):
        deeper = named | {f'layer4.2.{k}': v for k, v in theirs.layer4[1].state_dict().items()}
        torch.save(deeper, tmp_path/'deeper.pth')
        load_backbone('torchvision/resnet18', tmp_path/'deeper.pth')


def test_torchvision_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Weights that go with a name are fetched once, checked, and used without the server afterwards."
    from torchvision.models import squeezenet1_1
    content = io.BytesIO()
    torch.save(squeezenet1_1(weights=None).state_dict(), content)
    name = f'squeezenet1_1-{hashlib.sha256(content.getvalue()).hexdigest()[:8]}.pth'
    with serving({f'/models/{name}': content.getvalue()}) as server:
        monkeypatch.setattr(networks, 'weights_download', lambda _: download_of(f'{server.url}/models/{name}?token=secret'))
        first = load_backbone('torchvision/squeezenet1_1', weights_dir=tmp_path)
    assert first.origin == f'torchvision weights {name} (torchvision/squeezenet1_1, width 1, 512 features)'
    again = load_backbone('torchvision/squeezenet1_1', weights_dir=tmp_path)
    assert again.sha256 == first.sha256 == hashlib.sha256(content.getvalue()).hexdigest()
    (tmp_path/name).unlink()
    monkeypatch.setattr('lightly_curate.learn.downloads.PAUSE_S', 0)
    with pytest.raises(WeightsError) as error: start_backbone('torchvision/squeezenet1_1', weights_dir=tmp_path)
    for words in (name, str(tmp_path), f'{server.url}/models/{name}', 'used without a network', 'lightly.pre_trained=False'):
        assert words in str(error.value), words
    assert 'secret' not in str(error.value)
    start, words = start_backbone('torchvision/squeezenet1_1', weights_dir=tmp_path, pre_trained=False, num_ftrs=8)
    assert start.n_features == 8 and 'a linear layer to 8' in words[-1]
    with pytest.raises(WeightsError, match='num_ftrs is 8, torchvision/squeezenet1_1 gives 512'):
        (tmp_path/name).write_bytes(content.getvalue())
        load_backbone('torchvision/squeezenet1_1', num_ftrs=8, weights_dir=tmp_path)


def test_timm_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "timm's weights come from the hub, whose redirect tells the hash; the file may as well be put by hand."
    timm = pytest.importorskip('timm')
    from safetensors.torch import save
    whole = timm.create_model('test_vit', pretrained=False)
    content = save({k: v.contiguous() for k, v in whole.state_dict().items()})
    digest = hashlib.sha256(content).hexdigest()
    name, moved = 'test_vit.r160_in1k.safetensors', Moved('/cdn/blob?signature=secret', {'X-Linked-Etag': f'"{digest}"'})
    with serving({'/timm/test_vit.r160_in1k/resolve/main/model.safetensors': moved, '/cdn/blob': content}) as server:
        monkeypatch.setenv('HF_ENDPOINT', server.url)
        backbone = load_backbone('timm/test_vit', weights_dir=tmp_path)
    assert (backbone.n_features, backbone.input_size, backbone.sha256) == (64, 160, digest)
    assert (tmp_path/f'{name}.sha256').read_text() == f'{digest}  {name}\n'
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(): torch.testing.assert_close(backbone.module(x), whole.eval().forward_head(whole.forward_features(x), pre_logits=True))
    by_hand = load_backbone('timm/test_vit.r160_in1k', weights_dir=tmp_path, input_size=96)
    assert by_hand.module(x[:, :, :96, :96]).shape == (2, 64)
    (tmp_path/name).write_bytes(content[:-9] + b'otherbyte')
    with pytest.raises(WeightsError, match='damaged or another file'): load_backbone('timm/test_vit', weights_dir=tmp_path)


def test_dinov2_names() -> None:
    "DINOv2 and DINOv3 build with their own sizes, and take others that are multiples of the patch."
    pytest.importorskip('timm')
    for name, size, patch in (('timm/vit_small_patch14_dinov2.lvd142m', 518, 14), ('timm/vit_small_patch16_dinov3.lvd1689m', 256, 16)):
        assert networks.timm_config(name).input_size[-1] == size
        network = networks.build_network(name, input_size=6*patch)
        assert (network.n_features, network.input_size) == (384, 6*patch)
        with pytest.raises(WeightsError, match=f'multiple of {patch}'): networks.build_network(name, input_size=6*patch + 1)


def test_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A network of lightly's zoo is fetched and checked; a file of another hash is refused."
    import lightly.models
    state = lightly_module('resnet-9', .125, 16).state_dict()
    content = io.BytesIO()
    torch.save({'state_dict': {f'model.features.{k}': v for k, v in state.items()} | {'model.projection_head.0.weight': torch.ones(16, 16)}}, content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    with serving({f'/zoo-i-{digest[:8]}.pth': content.getvalue(), '/zoo-i-0123abcd.pth': content.getvalue()}) as server:
        monkeypatch.setitem(lightly.models.ZOO, 'resnet-9/simclr/d16/w0.125', f'{server.url}/zoo-i-{digest[:8]}.pth')
        backbone = load_backbone('resnet-9', num_ftrs=16, width=.125, weights_dir=tmp_path)
        monkeypatch.setitem(lightly.models.ZOO, 'resnet-9/simclr/d16/w0.125', f'{server.url}/zoo-i-0123abcd.pth')
        with pytest.raises(WeightsError, match='expected is 0123abcd...: nothing was kept'):
            load_backbone('resnet-9', num_ftrs=16, width=.125, weights_dir=tmp_path)
    assert backbone.origin == 'lightly zoo resnet-9/simclr/d16/w0.125 (resnet-9, width 0.125, 16 features)'
    assert (backbone.sha256, list(backbone.head)) == (digest, ['layers.0.weight'])


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
