"Training from the command line, as a user runs it."
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from jsonschema import Draft202012Validator
from lightly_curate.core.rundir import RunDir
from lightly_curate.core.stages import read_mark
from lightly_curate.embed.embedding_csv import read_embeddings
from lightly_curate.embed.vectors import normalize
from lightly_curate.report.report import REPORT_SCHEMA
from test_flow import COMMAND, curate, finish

pytestmark = pytest.mark.smoke
SMALL = ['lightly.model.name=resnet-9', 'lightly.model.width=0.125', 'lightly.model.num_ftrs=16', 'lightly.collate.input_size=32',
         'lightly.pre_trained=False', 'lightly.loader.batch_size=16']
ONE_EPOCH = [*SMALL, 'lightly.trainer.max_epochs=1']


@pytest.fixture(scope='module')
def work(tmp_path_factory) -> Path: return tmp_path_factory.mktemp('training')


@pytest.fixture(scope='module')
def trained(work, sample_folder) -> RunDir:
    "The whole flow with training."
    return finish(f'input_dir={sample_folder}', f'shared_dir={work}', 'output_dir=out', 'run_directory=whole', 'enable_training=True',
                  *SMALL, 'lightly.trainer.max_epochs=2', 'stopping_condition.n_samples=0.3', cwd=work)


def test_whole_flow(trained):
    "The report tells what was trained, the vectors come from it, and nothing of the work is left behind."
    report = json.loads(trained.report_json.read_text())
    Draft202012Validator(REPORT_SCHEMA).validate(report)
    told, curve = report['training'], pd.read_csv(trained.training_csv)
    assert (told['epochs'], told['epochs_asked'], told['recipe'], told['name']) == (2, 2, 'original', 'resnet-9')
    np.testing.assert_allclose(curve['loss'], told['loss'], rtol=1e-5)
    assert report['weights']['name'] == 'resnet-9' and told['checkpoint'] in report['weights']['origin']
    assert read_embeddings(trained.embeddings_csv).emb.shape[1] == 16
    assert trained.plot('training_loss').is_file() and not trained.training_cache.exists()
    checkpoint = torch.load(trained.root/told['checkpoint'], weights_only=True)
    assert {'model.backbone.1.weight', 'model.projection_head.layers.0.weight'} <= checkpoint['state_dict'].keys()
    assert trained.last_checkpoint.is_file()


@pytest.mark.slow
def test_cut_again_keeps_what_was_trained(trained, work):
    "A new choice from the vectors of a trained run tells of the training, and does none."
    again = finish('select', trained.root, 'n_samples=7', 'lightly.seed=5', cwd=work)
    first, second = (json.loads(o.report_json.read_text())['training'] for o in (trained, again))
    assert first == second
    finish('select', trained.root, 'n_samples=7', 'lightly.seed=5', cwd=work)  # a second time goes on in the same folder
    assert not list(again.root.glob('*.ckpt'))


@pytest.mark.slow
def test_checkpoint_from_the_shared_folder(trained, work, sample_folder):
    "The second command of the manual: train on, from a checkpoint of an earlier run, only its weights."
    name = read_mark(trained, 'train').result['checkpoint']
    (work/'mine.ckpt').write_bytes((trained.root/name).read_bytes())
    words = [f'input_dir={sample_folder}', f'shared_dir={work}', 'output_dir=out', 'checkpoint=mine.ckpt']
    on = finish(*words, 'run_directory=on', 'steps=[train]', 'lightly.trainer.max_epochs=1', 'lightly.loader.batch_size=16', cwd=work)
    told = read_mark(on, 'train').result
    assert (told['name'], told['epochs'], told['checkpoint']) == ('resnet-9', 1, 'lightly_epoch_0.ckpt') and 'mine.ckpt' in told['start']
    embedded = finish(*words, 'run_directory=same', 'steps=[embed]', cwd=work)
    a, b = read_embeddings(trained.embeddings_csv), read_embeddings(embedded.embeddings_csv)
    assert a.filenames == b.filenames
    np.testing.assert_array_equal(a.emb, b.emb)


@pytest.mark.slow
def test_steps_one_by_one(work, sample_folder):
    "steps=[train], then the rest with the same keys; other keys are refused, and a step before its time too."
    words = [f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=steps', *ONE_EPOCH]
    early = curate(*words, 'enable_training=True', 'steps=[embed]', cwd=work)
    assert early.returncode == 2 and 'holds no finished train; add train to steps' in early.stderr
    run = finish(*words, 'steps=[train]', cwd=work)
    assert not run.embeddings_csv.exists() and (run.root/'jobs'/'train.ipynb').is_file()
    other = curate(*words, 'enable_training=True', 'lightly.optimizer.lr=0.5', 'steps=[embed]', cwd=work)
    assert other.returncode == 2 and 'lightly.optimizer.lr was 1.0 and is now 0.5' in other.stderr
    run = finish(*words, 'enable_training=True', 'steps=[embed]', cwd=work)
    assert read_mark(run, 'embed').result['weights']['name'] == 'resnet-9'


@pytest.mark.slow
def test_no_epochs(work, sample_folder):
    "max_epochs=0 trains nothing, says so, and embeds with the weights that training would have started from."
    words = [f'input_dir={sample_folder}', 'output_dir=out', 'stopping_condition.n_samples=5']
    none = finish(*words, 'run_directory=none', 'enable_training=True', 'lightly.trainer.max_epochs=0', 'steps=[train,embed]', cwd=work)
    plain = finish(*words, 'run_directory=plain', 'steps=[embed]', cwd=work)
    assert 'max_epochs' in none.log.read_text()
    np.testing.assert_array_equal(*(read_embeddings(o.embeddings_csv).emb for o in (none, plain)))


def test_wrong_keys_are_told_before_any_work(work, sample_folder):
    "All faults at once, exit 2, and no run folder."
    answer = curate(f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=wrong', 'enable_training=True', 'lightly.collate.cj_hue=0.9',
                    '+lightly.optimizer.momentun=0.9', 'train.recipe=moderne', 'lightly.trainer.precision=8', cwd=work)
    assert answer.returncode == 2
    for said in ('cj_hue is 0.9', 'did you mean momentum?', "did you mean 'modern'?", "precision is '8'"): assert said in answer.stderr
    assert not (work/'out'/'wrong').exists()


@pytest.mark.parametrize(('words', 'said'), [
    (['lightly.trainer.gpus=99'], 'lightly.trainer.gpus is 99'), (['+lightly.trainer.num_nodes=2'], 'MASTER_ADDR'),
    (['lightly.model.name={work}/ends.py:x'], 'ends.py cannot be run (SystemExit: 0)'),
    (['lightly.model.name={work}/own.py:refuses'], 'name=refuses cannot be trained')])
def test_what_cannot_be_trained_is_told_before_an_image_is_read(work, sample_folder, words, said):
    "Exit 2 and no table of samples, not even for a file of one's own that ends the program."
    (work/'ends.py').write_text('raise SystemExit(0)')
    (work/'own.py').write_text('''
from torch import nn
from lightly_curate.learn.networks import register_backbone
class Refuses(nn.Module):
    def __init__(self): super().__init__(); self.layer = nn.Conv2d(3, 8, 3)
    def forward(self, x): return self.layer(x).mean((2, 3)) if not self.training else 1/0
register_backbone('refuses', Refuses, input_size=32, n_features=8)
''')
    words = [o.format(work=work) for o in words]
    answer = curate(f'input_dir={sample_folder}', 'output_dir=out', 'run_directory=early', 'steps=[train]', 'lightly.trainer.max_epochs=1', *words, cwd=work)
    assert answer.returncode == 2 and said in answer.stderr, answer.stderr
    assert not RunDir(work/'out'/'early').table('scan').exists()


@pytest.mark.slow
def test_half_precision_embeds(work, sample_folder):
    "precision=bf16 without training: on a CPU the vectors are near those of float32, and precision=16 gives exactly those."
    words = [f'input_dir={sample_folder}', 'output_dir=out', 'steps=[embed]']
    runs = [finish(*words, f'run_directory=p{o}', f'lightly.trainer.precision={o}', cwd=work) for o in ('bf16', '16', '32')]
    brain, half, plain = (normalize(np.asarray(read_embeddings(o.embeddings_csv).emb)) for o in runs)
    np.testing.assert_array_equal(half, plain)
    assert .995 < (brain*plain).sum(axis=1).min() < 1 - 1e-6, 'computed in 16 bits, and near'


def test_killed_and_started_again(work, sample_folder):
    "SIGKILL in the middle of training: the same command goes on, and ends with the weights of a run that was left alone."
    words = [f'input_dir={sample_folder}', 'output_dir=out', 'steps=[train]', *SMALL, 'lightly.trainer.max_epochs=12']
    alone = finish(*words, 'run_directory=alone', cwd=work)
    killed = RunDir(work/'out'/'killed')
    process = subprocess.Popen([COMMAND, *words, 'run_directory=killed'], cwd=work, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not killed.last_checkpoint.exists() and time.monotonic() < deadline: time.sleep(.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert read_mark(killed, 'train') is None, 'training was over before it could be killed'
    finish(*words, 'run_directory=killed', cwd=work)
    told = [read_mark(o, 'train').result for o in (alone, killed)]
    assert told[0]['loss'] == told[1]['loss'] and told[1]['resumed_at'] is not None
    states = [torch.load(o.last_checkpoint, weights_only=True)['state_dict'] for o in (alone, killed)]
    assert states[0].keys() == states[1].keys()
    for name in states[0]: assert torch.equal(states[0][name], states[1][name]), name


@pytest.mark.slow
def test_commands_of_the_manual(work, sample_folder):
    "As printed, with our command for the docker words; one epoch where the manual says ten, and where it says nothing (100)."
    folders = [f'input_dir={sample_folder}', f'shared_dir={work}', 'output_dir=manual']
    first = finish(*folders, 'run_directory=first', 'token=MYAWESOMETOKEN', 'enable_training=True', 'lightly.trainer.max_epochs=1', cwd=work)
    (work/'lightly_epoch_99.ckpt').write_bytes((first.root/'lightly_epoch_0.ckpt').read_bytes())
    second = finish(*folders, 'run_directory=second', 'token=MYAWESOMETOKEN', 'stopping_condition.n_samples=0.3', 'enable_training=True',
                    'checkpoint=lightly_epoch_99.ckpt', 'lightly.trainer.max_epochs=1', cwd=work)
    third = finish(*folders, 'run_directory=third', 'token=MYAWESOMETOKEN', 'remove_exact_duplicates=True', 'enable_corruptness_check=True',
                   'stopping_condition.n_samples=0.3', 'enable_training=True', 'lightly.trainer.max_epochs=1', 'lightly.collate.input_size=64',
                   'lightly.loader.batch_size=256', 'lightly.trainer.precision=16', 'lightly.model.name=resnet-101', cwd=work)
    told = [json.loads(o.report_json.read_text())['training'] for o in (first, second, third)]
    assert [o['name'] for o in told] == ['builtin', 'builtin', 'resnet-101']
    assert 'lightly_epoch_99.ckpt' in told[1]['start'] and told[2]['precision'] == 'bf16-mixed'
    assert any('starts from scratch' in o for o in told[2]['notices']), told[2]['notices']
