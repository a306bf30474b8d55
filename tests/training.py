"A training small enough for tests: 24 pictures, a resnet-9 of 79,000 parameters, seconds. Also run as a program that gets killed."
import os
import signal
import sys
from pathlib import Path

import torch

from lightly_curate.clean.integrity import check_integrity
from lightly_curate.core.config import TrainOptions, lightly_defaults
from lightly_curate.core.rundir import RunDir
from lightly_curate.core.samples import available
from lightly_curate.data.scan import scan
from lightly_curate.learn import train as learn
from lightly_curate.learn.backbone import start_backbone

MAX_PIXELS = 10**8


def keys(n_epochs=2, batch_size=8, criterion=None, optimizer=None, loader=None, kept=None, **trainer):
    tree = lightly_defaults()
    tree['model'] |= {'name': 'resnet-9', 'width': .125, 'num_ftrs': 8}
    tree['collate'] |= {'input_size': 32}
    tree['loader'] |= {'batch_size': batch_size, 'num_workers': 0, **(loader or {})}
    tree['optimizer'] |= {'lr': .1, **(optimizer or {})}
    tree['criterion'] |= criterion or {}
    tree['checkpoint_callback'] |= kept or {}
    tree['trainer'] |= {'max_epochs': n_epochs, **trainer}
    return tree


def start():
    return start_backbone('resnet-9', num_ftrs=8, width=.125, input_size=32, pre_trained=False)[0]


def table(folder: Path):
    samples = check_integrity(scan(folder), folder, 1, MAX_PIXELS)
    return samples.loc[available(samples)].head(24).reset_index(drop=True)


def train(folder: Path, root: Path, lightly=None, samples=None, begin=None, **options):
    return learn.train(table(folder) if samples is None else samples, begin or start(), folder, lightly or keys(),
                       TrainOptions(**{'logger': 'none', **options}), RunDir(root), MAX_PIXELS)


def content(root: Path, name='last.ckpt'): return torch.load(root/name, weights_only=True)


def weights(root: Path, name='last.ckpt'): return content(root, name)['state_dict']


def furthest(a, b):
    "Largest difference of any weight."
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


HARD = dict(n_epochs=4, optimizer={'momentum': .9}, criterion={'memory_bank_size': 32})  # much that must be kept

if __name__ == '__main__':  # folder, run folder, recipe, and when to be killed: step N or write N
    folder, root, recipe, when, n = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
    torch.set_num_threads(1)
    step, save, counts = learn.Learner.training_step, torch.save, {'step': 0, 'write': 0}

    def die(what):
        counts[what] += 1
        if what == when and counts[what] == n: os.kill(os.getpid(), signal.SIGKILL)

    def killed_step(self, *args):
        die('step')
        return step(self, *args)

    def killed_save(checkpoint, file):
        save(checkpoint, file)
        file.truncate(file.tell()//2)
        file.flush()
        die('write')
        file.seek(0)
        save(checkpoint, file)

    learn.Learner.training_step, torch.save = killed_step, killed_save
    train(folder, root, keys(**HARD), recipe=recipe)
