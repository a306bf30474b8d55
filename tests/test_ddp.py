"Training in two processes on one CPU (gloo), started as a user's four GPUs would be: the same as one process with all of the batch."
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import training

from lightly_curate.core.errors import CurateError
from lightly_curate.core.progress import listening
from lightly_curate.core.rundir import RunDir
from lightly_curate.learn.backbone import load_backbone

TWO = {'accelerator': 'cpu', 'devices': 2}
DOUBLE = '64-true'  # Lightning's name; a run has no such precision
LOSS, WEIGHT = 1e-4, 5e-3  # tolerances in float32 after two epochs: relative; absolute, of weights that go up to 1


pytestmark = pytest.mark.usefixtures('one_thread')


def processes(root: Path) -> list[int]:
    "Those that were given this run folder."
    found = []
    for entry in Path('/proc').iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid(): continue
        try:
            if str(root) in (entry/'cmdline').read_bytes().decode().split('\0') and 'State:\tZ' not in (entry/'status').read_text():
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended
    return found


def check_same(two, one, two_root, one_root, loss=LOSS, weight=WEIGHT):
    np.testing.assert_allclose(two.loss, one.loss, rtol=loss)
    assert (two.steps, two.epochs, two.checkpoint) == (one.steps, one.epochs, one.checkpoint)
    assert training.furthest(training.weights(two_root), training.weights(one_root)) < weight
    assert load_backbone(checkpoint=two_root/two.checkpoint).n_features == 8


def test_two_processes_are_one_with_the_whole_batch(sample_folder, tmp_path, caplog):
    "Two with 8 pictures each against one with 16, in double precision; log and progress come through."
    caplog.set_level(logging.INFO, logger='lightly_curate')
    ticks = []
    with listening(ticks.append):
        two = training.train(sample_folder, tmp_path/'two', training.keys(2, 8, optimizer={'momentum': .9}, precision=DOUBLE, **TWO))
    assert two.device == 'cpu, 2 processes'
    assert sum(o.startswith('epoch ') for o in caplog.messages) == 2
    told = [o for o in ticks if o.what.startswith('training')]
    assert (told[-1].n_done, told[-1].n_total) == (32, 32)
    one = training.train(sample_folder, tmp_path/'one', training.keys(2, 16, optimizer={'momentum': .9}, precision=DOUBLE))
    check_same(two, one, tmp_path/'two', tmp_path/'one', 1e-6, 1e-6)
    assert not processes(tmp_path/'two')
    assert not RunDir(tmp_path/'two').training_request.exists()


@pytest.mark.slow
@pytest.mark.parametrize(('recipe', 'precision'), [('original', 32), ('original', DOUBLE), ('modern', DOUBLE)])
def test_recipes_and_precisions(sample_folder, tmp_path, recipe, precision):
    """With a memory bank for the original recipe. What differs in float32 is rounding, for in float64 nothing does.
    The modern recipe is not compared in float32: the first steps of AdamW have the same size however small a gradient is,
    so where a gradient is nothing but rounding they go either way."""
    own = {'criterion': {'memory_bank_size': 64}} if recipe == 'original' else {}
    two = training.train(sample_folder, tmp_path/'two', training.keys(2, 8, precision=precision, **own, **TWO), recipe=recipe)
    one = training.train(sample_folder, tmp_path/'one', training.keys(2, 16, precision=precision, **own), recipe=recipe)
    tolerances = (LOSS, WEIGHT) if precision == 32 else (1e-6, 1e-6)
    check_same(two, one, tmp_path/'two', tmp_path/'one', *tolerances)


@pytest.mark.slow
def test_an_error_in_a_process_is_raised_here(sample_folder, tmp_path):
    with pytest.raises(CurateError, match='lower lightly.optimizer.lr'):
        training.train(sample_folder, tmp_path, training.keys(3, optimizer={'lr': 1e30}, **TWO))
    assert not processes(tmp_path)


@pytest.mark.slow
def test_killed_with_two_processes_and_gone_on_with(sample_folder, tmp_path):
    "SIGKILL for the process that the user sees; the others end by themselves, and a new start goes on."
    program = (f'import training; training.train(training.Path({str(sample_folder)!r}), training.Path({str(tmp_path/"run")!r}), '
               'training.keys(40, accelerator="cpu", devices=2))')
    user = subprocess.Popen([sys.executable, '-c', program], cwd=Path(training.__file__).parent, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    begun = time.monotonic()
    while not (tmp_path/'run'/'last.ckpt').exists() and time.monotonic() - begun < 300: time.sleep(.1)
    user.send_signal(signal.SIGKILL)
    user.wait()
    while processes(tmp_path/'run') and time.monotonic() - begun < 400: time.sleep(.5)
    assert not processes(tmp_path/'run')
    n_done = len(training.content(tmp_path/'run')['lightly_curate']['history'])
    assert 1 <= n_done < 40
    result = training.train(sample_folder, tmp_path/'run', training.keys(n_done + 1, **TWO))
    assert (result.resumed_at, result.epochs) == (n_done, n_done + 1)
    one = training.train(sample_folder, tmp_path/'one', training.keys(n_done + 1, 16))
    np.testing.assert_allclose(result.loss[:3], one.loss[:3], rtol=LOSS)


@pytest.mark.slow
def test_two_machines(sample_folder, tmp_path, monkeypatch):
    "Both on this one: the first is started as usual, the second by torchrun as the notebook says."
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', port)
    lightly, results = training.keys(2, 8, accelerator='cpu', devices=1, num_nodes=2), []
    first = threading.Thread(target=lambda: results.append(training.train(sample_folder, tmp_path/'two', lightly)))
    first.start()
    second = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2', '--node-rank', '1', '--nproc-per-node', '1', '--master-addr',
                             '127.0.0.1', '--master-port', port, '-m', 'lightly_curate.learn.train', str(tmp_path/'two')], capture_output=True, text=True)
    first.join()
    assert second.returncode == 0, second.stderr
    one = training.train(sample_folder, tmp_path/'one', training.keys(2, 16))
    check_same(results[0], one, tmp_path/'two', tmp_path/'one')


@pytest.mark.slow
def test_from_the_command_line(sample_folder, tmp_path):
    "Through Hydra, papermill and its kernel."
    words = ['lightly.model.name=resnet-9', 'lightly.model.width=0.125', 'lightly.model.num_ftrs=8', 'lightly.collate.input_size=32', 'lightly.pre_trained=False',
             'lightly.loader.batch_size=8', 'lightly.loader.num_workers=0', 'lightly.optimizer.lr=0.1', 'lightly.trainer.max_epochs=1',
             '+lightly.trainer.devices=2', '+lightly.trainer.accelerator=cpu']
    done = subprocess.run([str(Path(sys.executable).with_name('lightly-curate')), f'input_dir={sample_folder}', f'output_dir={tmp_path}', 'run_directory=run',
                           'steps=[train]', *words], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    assert 'on cpu, 2 processes' in done.stderr and 'epoch 0 (1 of 1)' in done.stderr
    assert (tmp_path/'run'/'lightly_epoch_0.ckpt').is_file()
