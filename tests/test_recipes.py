"The original recipe against lightly's own training code, to the last bit."
from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from lightly.cli._cli_simclr import _SimCLR
from lightly.embedding import SelfSupervisedEmbedding
from lightly.loss import NTXentLoss
from lightly.models import ResNetGenerator
from lightly.models.batchnorm import get_norm_layer
from lightly_curate.core.config import lightly_defaults
from lightly_curate.learn.backbone import head_state
from lightly_curate.learn.recipes import Recipe, build_model, build_optimizer, load_head
from torch import nn

NAME, WIDTH, N_FEATURES = 'resnet-9', .125, 16


def lightly_features() -> nn.Sequential:
    "The backbone as lightly/cli/train_cli.py 1.6 builds it, line by line."
    resnet = ResNetGenerator(NAME, WIDTH)
    last_conv_channels = list(resnet.children())[-1].in_features
    return nn.Sequential(get_norm_layer(3, 0), *list(resnet.children())[:-1],
                         nn.Conv2d(last_conv_channels, N_FEATURES, 1), nn.AdaptiveAvgPool2d(1))


def config(**groups: dict) -> dict:
    "lightly's defaults with the keys of some groups changed."
    lightly = lightly_defaults()
    for name, keys in groups.items(): lightly[name].update(keys)
    return lightly


def batches(n: int, size: int = 8) -> Iterator[list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(3)
    for _ in range(n):
        image = torch.randn(size, 3, 32, 32, generator=draw)
        yield [image + .3*torch.randn(image.shape, generator=draw) for _ in range(2)]


def train_lightly(encoder: SelfSupervisedEmbedding, optimizer: torch.optim.Optimizer, n_steps: int) -> list[float]:
    "What Lightning does with lightly's own module: training_step, zero_grad, backward, step."
    encoder.log = lambda *args, **kwargs: None
    losses = []
    for views in batches(n_steps):
        loss = encoder.training_step((views, None, None), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_ours(model: nn.Module, optimizer: torch.optim.Optimizer, n_steps: int) -> list[float]:
    losses = []
    for views in batches(n_steps):
        loss = model(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def pair(lightly: dict, bank: tuple[int, int] | int = 0) -> tuple[SelfSupervisedEmbedding, nn.Module]:
    "lightly's module and ours with the same weights, and the same memory bank where there is one."
    torch.manual_seed(0)
    features = lightly_features()
    theirs = _SimCLR(features, num_ftrs=N_FEATURES, out_dim=lightly['model']['out_dim'])
    ours = build_model(Recipe.ORIGINAL, nn.Sequential(*copy.deepcopy(features), nn.Flatten()), N_FEATURES, lightly)
    state = theirs.state_dict()
    ours.load_state_dict(state)
    criterion = NTXentLoss(**{**lightly['criterion'], 'memory_bank_size': bank})
    for name, buffer in criterion.named_buffers():
        if bank: buffer.copy_(dict(ours.criterion.named_buffers())[name])
    optimizer = torch.optim.SGD(theirs.parameters(), **lightly['optimizer'])
    return SelfSupervisedEmbedding(theirs, criterion, optimizer, None), ours


@pytest.mark.parametrize('groups, bank', [
    ({}, 0),
    ({'optimizer': {'lr': .06, 'momentum': .9, 'weight_decay': 5e-4, 'nesterov': True}}, 0),
    ({'criterion': {'temperature': .1}, 'model': {'out_dim': 24}}, 0),
    ({'criterion': {'memory_bank_size': 20}, 'model': {'out_dim': 24}, 'optimizer': {'lr': .1}}, (20, 24)),
], ids=['defaults', 'optimizer', 'criterion', 'memory bank'])
def test_original_is_lightlys_training(groups: dict, bank: tuple[int, int] | int) -> None:
    lightly = config(**groups)
    theirs, ours = pair(lightly, bank)
    optimizer, schedule = build_optimizer(Recipe.ORIGINAL, ours, lightly, n_steps=5)
    assert schedule is None
    assert train_ours(ours, optimizer, 5) == train_lightly(theirs, theirs.optimizer, 5)
    for name, value in theirs.model.state_dict().items(): assert torch.equal(ours.state_dict()[name], value), name


def test_lightlys_strict_loader_takes_what_original_made() -> None:
    from lightly.cli._helpers import load_from_state_dict
    lightly = config(criterion={'memory_bank_size': 20})
    theirs, ours = pair(lightly, (20, 128))
    train_ours(ours, build_optimizer(Recipe.ORIGINAL, ours, lightly, 2)[0], 2)
    load_from_state_dict(theirs.model, {f'model.{k}': v for k, v in ours.state_dict().items()})
    for name, value in ours.state_dict().items(): assert torch.equal(theirs.model.state_dict()[name], value), name


def test_head_comes_from_lightlys_checkpoints_old_and_new() -> None:
    theirs, ours = pair(config())
    new = {f'model.{k}': v for k, v in theirs.model.state_dict().items()}
    old = {k.replace('backbone', 'features').replace('.layers.', '.'): v for k, v in new.items()}
    for state in (new, old):
        with torch.no_grad():
            for parameter in ours.projection_head.parameters(): parameter.zero_()
        assert load_head(ours, head_state(state)) == []
        for name, value in theirs.model.projection_head.state_dict().items():
            assert torch.equal(ours.projection_head.state_dict()[name], value), name


@pytest.mark.parametrize('recipe', list(Recipe))
def test_resumed_is_uninterrupted(recipe: Recipe) -> None:
    "Weights, optimiser and schedule stored after three of six steps."
    lightly = config(optimizer={'lr': .02})

    def start(seed: int) -> tuple:
        torch.manual_seed(seed)
        model = build_model(recipe, nn.Sequential(*lightly_features(), nn.Flatten()), N_FEATURES, lightly | {'seed': seed})
        return model, *build_optimizer(recipe, model, lightly, 6)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: object, which: range) -> None:
        for i, views in enumerate(batches(6)):
            if i not in which: continue
            optimizer.zero_grad()
            model(views).backward()
            optimizer.step()
            if schedule is not None: schedule.step()

    whole, first, second = start(1), start(1), start(2)
    steps(*whole, range(6))
    steps(*first, range(3))
    second[0].load_state_dict(copy.deepcopy(first[0].state_dict()))
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
    if second[2] is not None: second[2].load_state_dict(first[2].state_dict())
    steps(*second, range(3, 6))
    for name, value in whole[0].state_dict().items(): assert torch.equal(second[0].state_dict()[name], value), name
