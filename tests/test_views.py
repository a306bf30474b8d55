"Views and batches: lightly's views, and the same ones whatever runs around them."
from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightly.transforms import SimCLRTransform
from lightly_curate.core.samples import make_samples
from lightly_curate.learn.views import (
    Crops,
    DeviceViews,
    EpochSampler,
    FilePictures,
    Pictures,
    UnreadablePicture,
    ViewDataset,
    file_pictures,
    item_seed,
    make_loader,
    make_transform,
    seeded_all,
    stack_arrays,
)
from PIL import Image

DEFAULTS = dict(input_size=64, cj_prob=.8, cj_bright=.7, cj_contrast=.7, cj_sat=.7, cj_hue=.2, min_scale=.15, random_gray_scale=.2,
                gaussian_blur=.5, sigmas=[.2, 2], vf_prob=0., hf_prob=.5, rr_prob=0., rr_degrees=None)
OTHERS = dict(input_size=48, cj_prob=0., cj_bright=.1, cj_contrast=.1, cj_sat=.1, cj_hue=.5, min_scale=.9, random_gray_scale=1.,
              gaussian_blur=0., sigmas=[1.9, 2], vf_prob=1., hf_prob=0., rr_prob=1.)


@pytest.fixture(scope='module')
def pictures(sample_folder: Path) -> Pictures:
    names = sorted(o.relative_to(sample_folder).as_posix() for o in sample_folder.rglob('*.*') if 'broken' not in o.parts)[::2]
    samples = make_samples(names)
    return file_pictures(samples, samples.index.to_numpy(), sample_folder)


class Squares:
    "Pictures of one kind, many of them."
    def __init__(self, picture: Image.Image, n: int):
        self.rows, self.kept = np.arange(n), picture

    def __len__(self) -> int: return len(self.rows)
    def picture(self, i: int) -> Image.Image: return self.kept


def load(pictures: Pictures, transform, epoch: int = 0, rank: int = 0, world_size: int = 1, num_workers: int = 0, batch_size: int = 4) -> list:
    loader = make_loader(pictures, transform, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=num_workers, seed=7, rank=rank,
                         world_size=world_size)
    loader.sampler.set_epoch(epoch)
    return [torch.stack(o) for o in loader]


@pytest.mark.parametrize('changed', [{}, *({name: o} for name, o in OTHERS.items()), {'rr_prob': .5, 'rr_degrees': 30.},
                                     {'rr_prob': 1., 'rr_degrees': [80, 100]}])
def test_every_key_acts_as_in_lightly(pictures: Pictures, changed: dict) -> None:
    "Each key gives lightly's views, others than the default, and on the device the same."
    keys, picture = DEFAULTS | changed, pictures.picture(3)
    theirs = SimCLRTransform(**{**keys, 'sigmas': tuple(keys['sigmas'])})
    row = int(pictures.rows[3])
    with seeded_all(item_seed(1, 0, row)): expected = torch.stack(theirs(picture))
    assert torch.equal(torch.stack(ViewDataset(pictures, make_transform(keys), 1)[0, 3]), expected)
    plain = torch.stack(ViewDataset(pictures, make_transform(DEFAULTS), 1)[0, 3])
    assert not changed or plain.shape != expected.shape or not torch.equal(plain, expected), 'the key has no effect'
    crops = ViewDataset(pictures, Crops(keys), 1)[0, 3]
    completed = torch.stack(DeviceViews(keys)([[o[None] for o in view] for view in crops]))[:, 0]
    assert (completed - expected).abs().mean() < .08, 'the device makes another view'  # in units of the standard deviation


def test_shares() -> None:
    "Grey, flips and crops come as often and as large as asked for."
    ramp = np.zeros((60, 60, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(60)*4, np.arange(60)[:, None]*4  # red grows to the right, green downwards
    keys = dict(input_size=16, cj_prob=0., gaussian_blur=0., min_scale=.25, random_gray_scale=.3, hf_prob=.4, vf_prob=.1)
    dataset = ViewDataset(Squares(Image.fromarray(ramp), 300), make_transform(keys, mean=(0, 0, 0), std=(1, 1, 1)), 1)
    views = torch.cat([torch.stack(dataset[0, i]) for i in range(300)])
    grey = (views[:, 0] - views[:, 2]).abs().amax((1, 2)) < .01
    assert abs(grey.float().mean() - .3) < .05
    red, green = views[~grey, 0], views[~grey, 1]
    assert abs((red[:, 0, 0] > red[:, 0, -1]).float().mean() - .4) < .08
    assert abs((green[:, 0, 0] > green[:, -1, 0]).float().mean() - .1) < .04
    width = (red[:, 0, -1] - red[:, 0, 0]).abs()*255/4*16/15
    height = (green[:, -1, 0] - green[:, 0, 0]).abs()*255/4*16/15
    area = width*height/3600
    assert .23 < area.min() < .3 and .95 < area.max() < 1.1, (area.min(), area.max())
    assert .7 < (width/height).min() and (width/height).max() < 1.45


@pytest.mark.parametrize('shuffle', [True, False])
@pytest.mark.parametrize('drop_last', [True, False])
def test_positions(shuffle: bool, drop_last: bool) -> None:
    "Every position once, in global batches that do not depend on the number of processes."
    for n in (1, 7, 16, 31, 48):
        for size in (1, 3, 4):
            for w in (1, 2, 4):
                parts = []
                for rank in range(w):
                    sampler = EpochSampler(n, size, shuffle, drop_last, 3, rank, w)
                    sampler.set_epoch(5)
                    parts.append([i for _, i in sampler])
                    assert len(parts[-1]) == len(sampler)
                assert len({len(o) for o in parts}) == 1, 'the processes make different numbers of steps'
                seen = [i for together in zip(*parts, strict=True) for i in together]
                one = EpochSampler(n, size*w, shuffle, drop_last, 3)
                one.set_epoch(5)
                alone = [i for _, i in one]
                assert seen[:len(alone)] == alone
                if drop_last: assert seen == alone and len(set(alone)) == len(alone) == n - n % (size*w)
                else: assert sorted(alone) == list(range(n)) and len(seen) - n < w


def test_left_out_change() -> None:
    "What does not fill a batch is another part of the pictures in another epoch."
    sampler, seen = EpochSampler(10, 4, True, True, 0), set()
    for epoch in range(10):
        sampler.set_epoch(epoch)
        seen |= {i for _, i in sampler}
    assert seen == set(range(10))


def test_same_views_everywhere(pictures: Pictures) -> None:
    "Number of workers, number of processes, and where one begins change nothing."
    transform = make_transform(DEFAULTS)
    alone = load(pictures, transform, epoch=2)
    assert len(alone) == len(pictures)//4
    for n_workers in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(alone, load(pictures, transform, 2, num_workers=n_workers), strict=True))
    halves = [load(pictures, transform, 2, rank, 2, batch_size=2) for rank in (0, 1)]
    for step, batch in enumerate(alone):
        assert torch.equal(batch[:, 0::2], halves[0][step]) and torch.equal(batch[:, 1::2], halves[1][step])


def test_long_lived_workers(pictures: Pictures) -> None:
    "Workers that live for several epochs make each epoch's own views."
    loader = make_loader(pictures, make_transform(DEFAULTS), batch_size=4, shuffle=True, drop_last=True, num_workers=2, seed=7)
    for epoch in (0, 3, 1):
        loader.sampler.set_epoch(epoch)
        expected = load(pictures, make_transform(DEFAULTS), epoch)
        assert all(torch.equal(torch.stack(a), b) for a, b in zip(loader, expected, strict=True)), epoch


def test_caller_is_undisturbed(pictures: Pictures) -> None:
    "The sources of chance of the process go on as if no batch had been made, also after an error."
    def broken(picture: Image.Image) -> list: raise ZeroDivisionError
    for num_workers in (0, 1):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        expected = torch.rand(3), np.random.rand(3), random.random()
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        load(pictures, make_transform(DEFAULTS), num_workers=num_workers)
        with pytest.raises(ZeroDivisionError): load(pictures, broken)
        assert torch.equal(torch.rand(3), expected[0]) and (np.random.rand(3) == expected[1]).all() and random.random() == expected[2]


@pytest.mark.parametrize('make', [make_transform, Crops])
def test_pipe(pictures: Pictures, make, monkeypatch: pytest.MonkeyPatch) -> None:
    "Where shared memory is small, batches come through a pipe and are the same, tensor for tensor."
    def batches() -> list:
        loader = make_loader(pictures, make(DEFAULTS), batch_size=4, shuffle=True, drop_last=True, num_workers=1, seed=7)
        assert (loader.collate_fn is stack_arrays) == is_small
        return [[o if isinstance(o, torch.Tensor) else torch.cat([p.flatten().float() for p in o]) for o in batch] for batch in loader]
    is_small = False
    expected = batches()
    is_small = True
    monkeypatch.setattr('lightly_curate.learn.views.free_shared_memory', lambda: 1000)
    for ours, other in zip(batches(), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))


def test_unreadable_in_a_worker(pictures: Pictures) -> None:
    "A file that vanished is told in one sentence, without the traceback of the worker."
    gone = FilePictures((*pictures.filenames[:3], 'no/such.jpg'), pictures.rows[:4], pictures.input_dir)
    with pytest.raises(UnreadablePicture, match='^no/such.jpg can no longer be read') as raised: load(gone, make_transform(DEFAULTS), num_workers=1)
    assert '\n' not in str(raised.value)
