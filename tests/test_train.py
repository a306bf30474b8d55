"What the notebook of learn.train cannot show: being killed, lightly's own programs, and what a training leaves alone."
import copy
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import training

from lightly_curate.core.errors import ConfigError, CurateError, OutputError, WeightsError
from lightly_curate.core.rundir import RunDir
from lightly_curate.learn import train as learn
from lightly_curate.learn.backbone import load_backbone

ONE_THREAD = {**os.environ, 'OMP_NUM_THREADS': '1'}


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def whole(sample_folder, tmp_path_factory):
    "A run of much that must be kept, by recipe; trained once."
    runs = {}
    def made(recipe):
        if recipe not in runs:
            runs[recipe] = tmp_path_factory.mktemp(recipe)
            runs[recipe, 'result'] = training.train(sample_folder, runs[recipe], training.keys(**training.HARD), recipe=recipe)
        return runs[recipe], runs[recipe, 'result']
    return made


def killed(folder, root, recipe, when, n):
    program = [sys.executable, training.__file__, str(folder), str(root), recipe, when, str(n)]
    done = subprocess.run(program, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def check_same_run(root, folder, whole_root, whole_result, resumed_at, recipe):
    result = training.train(folder, root, training.keys(**training.HARD), recipe=recipe)
    assert (result.resumed_at, result.epochs, result.steps) == (resumed_at, 4, 12)
    assert result.loss == whole_result.loss
    assert pd.read_csv(RunDir(root).training_csv)['epoch'].tolist() == [0, 1, 2, 3]
    ours, theirs = training.content(root), training.content(whole_root)
    for name, tensor in theirs['state_dict'].items(): assert torch.equal(ours['state_dict'][name], tensor), name
    for name, tensor in theirs['lightly_curate']['buffers'].items(): assert torch.equal(ours['lightly_curate']['buffers'][name], tensor), name
    states = [o['optimizer_states'][0]['state'] for o in (ours, theirs)]
    for a, b in zip(*(o.values() for o in states), strict=True):
        for name in b: assert torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])), name
    files = [sorted(o.name for o in folder.iterdir()) for folder in (root, whole_root)]
    assert files[0] == files[1]  # no second best checkpoint, nothing half written


def test_killed_in_an_epoch_and_gone_on_with(sample_folder, tmp_path, whole):
    "The weights, the optimizer and the memory bank are those of a run that was never stopped, to the last bit."
    killed(sample_folder, tmp_path, 'original', 'step', 5)  # the second of epoch 1
    assert len(training.content(tmp_path)['lightly_curate']['history']) == 1
    check_same_run(tmp_path, sample_folder, *whole('original'), 1, 'original')


@pytest.mark.slow
@pytest.mark.parametrize(('recipe', 'n'), [('original', 1), ('original', 2), ('original', 3), ('modern', 4), ('modern', 5)])
def test_killed_while_a_checkpoint_is_written(sample_folder, tmp_path, whole, recipe, n):
    killed(sample_folder, tmp_path, recipe, 'write', n)
    last = tmp_path/'last.ckpt'
    n_done = len(training.content(tmp_path)['lightly_curate']['history']) if last.exists() else None
    check_same_run(tmp_path, sample_folder, *whole(recipe), n_done, recipe)


@pytest.mark.slow
def test_killed_three_times_with_the_modern_recipe(sample_folder, tmp_path, whole):
    for n in (4, 2, 5): killed(sample_folder, tmp_path, 'modern', 'step', n)  # in epochs 1, 1 and 2
    check_same_run(tmp_path, sample_folder, *whole('modern'), 2, 'modern')


def test_a_checkpoint_is_data_that_both_programs_read(whole):
    "As data only; strictly by lightly's command, whose network then gives our vectors."
    from lightly.cli._helpers import get_model_from_config
    root, result = whole('original')
    ours = load_backbone(checkpoint=root/result.checkpoint)
    theirs = get_model_from_config({'checkpoint': str(root/result.checkpoint), 'model': {'name': 'resnet-9', 'width': .125, 'num_ftrs': 8, 'out_dim': 128}})
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): torch.testing.assert_close(theirs.model.backbone.eval()(x).flatten(1), ours.module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_lightly_embed_gives_our_vectors(sample_folder, tmp_path, whole):
    from lightly_curate.core.samples import available
    from lightly_curate.embed.embed import embed
    root, result = whole('original')
    folder = tmp_path/'images'
    folder.mkdir()
    samples = training.table(sample_folder).head(8)
    for name in samples['path']: (folder/name.replace('/', '-')).write_bytes((sample_folder/name).read_bytes())
    subprocess.run([str(Path(sys.executable).with_name('lightly-embed')), f'input_dir={folder}', f'checkpoint={root/result.checkpoint}', 'model.name=resnet-9',
                    'model.width=0.125', 'model.num_ftrs=8', 'collate.input_size=32', 'loader.num_workers=0', f'hydra.run.dir={tmp_path}/out'],
                   check=True, capture_output=True, env=ONE_THREAD, cwd=tmp_path)
    theirs = pd.read_csv(next(tmp_path.rglob('embeddings.csv')), index_col='filenames')
    _, vectors = embed(samples, load_backbone(checkpoint=root/result.checkpoint), sample_folder, 8, 1)
    assert len(vectors.rows) == len(available(samples)) == 8
    for row, vector in zip(vectors.rows, vectors.emb, strict=True):
        name = samples['path'][row].replace('/', '-')
        np.testing.assert_allclose(theirs.loc[name, [o for o in theirs if o.startswith('embedding_')]].to_numpy(float), vector, atol=2e-5, err_msg=name)


def test_the_same_as_lightlys_own_loop(sample_folder, tmp_path):
    "Fed with our views, lightly's model, loss and optimizer end with our weights and our losses; in double precision, for rounding grows fast here."
    from lightly.cli._cli_simclr import _SimCLR
    from lightly.loss import NTXentLoss
    from lightly_curate.learn.views import file_pictures, make_loader, make_transform
    lightly, samples, begin = training.keys(2, optimizer={'weight_decay': 1e-3}, precision='64-true'), training.table(sample_folder), training.start()
    result = training.train(sample_folder, tmp_path, lightly, samples, begin, cache=False)
    job = learn.Job(file_pictures(samples, samples.index.to_numpy(), sample_folder), begin, lightly, learn.TrainOptions(), RunDir(tmp_path), {})
    ours = learn.new_model(job)
    theirs = _SimCLR(copy.deepcopy(ours.backbone), num_ftrs=8, out_dim=128)
    theirs.projection_head.load_state_dict(ours.projection_head.state_dict())
    theirs.double()
    optimizer, criterion = torch.optim.SGD(theirs.parameters(), **lightly['optimizer']), NTXentLoss(**lightly['criterion'])
    loader = make_loader(job.pictures, make_transform(job.collate), batch_size=8, shuffle=True, drop_last=True, num_workers=0, seed=1)
    losses = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for views in loader:
            loss = criterion(*theirs(*(o.double() for o in views)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    np.testing.assert_allclose(result.loss, np.reshape(losses, (2, 3)).mean(1), rtol=1e-6)
    state = {f'model.{k}': v for k, v in theirs.state_dict().items()}
    assert training.furthest(training.weights(tmp_path), state) < 1e-6


def test_a_training_leaves_everything_as_it_was(sample_folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    def state():
        return (dict(os.environ), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), torch.get_num_threads(), signal.getsignal(signal.SIGINT),
                signal.getsignal(signal.SIGTERM), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark,
                logging.getLogger('pytorch_lightning').level, torch.are_deterministic_algorithms_enabled(), sys.excepthook)
    before, begin = state(), training.start()
    digest = learn.weights_digest(begin.module)
    training.train(sample_folder, tmp_path/'run', training.keys(1), begin=begin, logger='csv')
    after = state()
    for a, b in zip(before, after, strict=True): assert a == b
    assert learn.weights_digest(begin.module) == digest
    assert os.listdir(tmp_path) == ['run']
    assert capfd.readouterr() == ('', '')


def test_interrupted_in_the_middle_and_gone_on_with(sample_folder, tmp_path, monkeypatch):
    step, n = learn.Learner.training_step, []
    def interrupted(self, *args):
        n.append(1)
        if len(n) == 4: raise KeyboardInterrupt
        return step(self, *args)
    monkeypatch.setattr(learn.Learner, 'training_step', interrupted)
    with pytest.raises(KeyboardInterrupt): training.train(sample_folder, tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert training.train(sample_folder, tmp_path).resumed_at == 1


def test_workers_and_a_cache_change_what_they_should(sample_folder, tmp_path):
    "Nothing by the number of workers."
    a = training.train(sample_folder, tmp_path/'a', training.keys(1))
    b = training.train(sample_folder, tmp_path/'b', training.keys(1, loader={'num_workers': 2}))
    assert a.loss == b.loss
    assert training.furthest(training.weights(tmp_path/'a'), training.weights(tmp_path/'b')) == 0


def test_half_precision_on_a_cpu_is_bfloat16_and_said(sample_folder, tmp_path):
    result = training.train(sample_folder, tmp_path, training.keys(1, precision=16))
    assert result.precision == 'bf16-mixed'
    assert 'lightly.trainer.precision is 16; a CPU trains in bfloat16 instead.' in result.notices
    assert all(o.dtype == torch.float32 for o in training.weights(tmp_path).values() if o.is_floating_point())


def test_the_modern_recipe_trains_and_is_told(sample_folder, whole):
    root, result = whole('modern')
    assert (result.recipe, result.epochs, len(result.loss)) == ('modern', 4, 4)
    rates = pd.read_csv(RunDir(root).training_csv)['lr']
    assert rates.iloc[-1] < .2*rates.max()  # its schedule goes by steps, and has come to its end
    assert load_backbone(checkpoint=root/result.checkpoint).n_features == 8
    assert json.loads(json.dumps(result.to_json()))['spread']['n'] == 24


def test_every_epoch_kept_or_only_the_best(sample_folder, tmp_path):
    every = training.train(sample_folder, tmp_path/'every', training.keys(3, kept={'save_top_k': -1, 'save_last': False}))
    assert sorted(o.name for o in (tmp_path/'every').glob('*.ckpt')) == [f'lightly_epoch_{o}.ckpt' for o in range(3)]
    assert every.checkpoint == f'lightly_epoch_{np.argmin(every.loss)}.ckpt'
    none = training.train(sample_folder, tmp_path/'none', training.keys(1, kept={'save_top_k': 0}))
    assert none.checkpoint == 'last.ckpt' and [o.name for o in (tmp_path/'none').glob('*.ckpt')] == ['last.ckpt']


def test_accumulated_steps_and_a_limit_act(sample_folder, tmp_path):
    assert training.train(sample_folder, tmp_path/'a', training.keys(2, accumulate_grad_batches=3)).steps == 2
    assert training.train(sample_folder, tmp_path/'b', training.keys(2, limit_train_batches=1)).steps == 2


def test_a_loss_that_is_no_number_ends_the_training(sample_folder, tmp_path):
    with pytest.raises(CurateError, match='lower lightly.optimizer.lr'):
        training.train(sample_folder, tmp_path, training.keys(4, optimizer={'lr': 1e30}))


def test_a_full_disk_is_told(sample_folder, tmp_path, monkeypatch):
    save = torch.save
    def full(what, file):
        file.write(b'0')
        raise OSError(28, 'No space left on device')
    training.train(sample_folder, tmp_path, training.keys(1))
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OutputError, match='the disk is full.*what it has finished is kept'):
        training.train(sample_folder, tmp_path, training.keys(2))
    monkeypatch.setattr(torch, 'save', save)
    assert training.train(sample_folder, tmp_path, training.keys(2)).resumed_at == 1


@pytest.mark.parametrize('change', ['seed', 'batch', 'images', 'start', 'recipe', 'cache', 'collate'])
def test_another_training_is_refused(sample_folder, whole, tmp_path, change, monkeypatch):
    root, _ = whole('original')
    monkeypatch.setattr(learn, 'look', lambda *_: pytest.fail('pictures were embedded before the refusal'))
    (tmp_path/'last.ckpt').write_bytes((root/'last.ckpt').read_bytes())
    lightly, samples, begin, options = training.keys(**training.HARD), training.table(sample_folder), training.start(), {}
    if change == 'seed': lightly['seed'] = 2
    if change == 'batch': lightly['loader']['batch_size'] = 4
    if change == 'images': samples = samples.head(20)
    if change == 'start': next(begin.module.parameters()).data += 1
    if change == 'recipe': options['recipe'] = 'modern'
    if change == 'cache': options['cache'] = False
    if change == 'collate': lightly['collate']['min_scale'] = .5
    with pytest.raises(ConfigError, match='last.ckpt is of a training with other values: .* was .* and is now'):
        training.train(sample_folder, tmp_path, lightly, samples, begin, **options)


def test_a_foreign_last_checkpoint_is_refused(sample_folder, tmp_path):
    torch.save({'state_dict': {}}, tmp_path/'last.ckpt')
    with pytest.raises(WeightsError, match='not of a training of this package'): training.train(sample_folder, tmp_path)


def test_the_network_is_told_once_and_as_deep_as_asked(sample_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger='lightly_curate')
    lightly = training.keys(1, enable_model_summary=True)
    lightly['summary_callback']['max_depth'] = 2
    training.train(sample_folder, tmp_path, lightly)
    assert sum('projection_head' in o for o in caplog.messages) == 1
    assert any('parameters, of which' in o for o in caplog.messages)


def test_notices_are_told_and_kept(sample_folder, tmp_path, caplog):
    "Those about the start weights as information, what the user should act on as a warning."
    caplog.set_level(logging.INFO, logger='lightly_curate')
    result = learn.train(training.table(sample_folder), training.start(), sample_folder, training.keys(1), learn.TrainOptions(logger='none'),
                         RunDir(tmp_path), training.MAX_PIXELS, ['It starts from scratch.'])
    levels = {o.getMessage(): o.levelno for o in caplog.records}
    assert [levels[o] for o in result.notices] == [logging.INFO, logging.WARNING]
    assert 'A batch of 8 images is small' in result.notices[1]


def test_what_a_gpu_would_be_fed_trains_on_a_cpu_too(sample_folder, tmp_path, monkeypatch):
    "Crops with their chances, made to views beside the network: the same losses within the rounding of pixels."
    monkeypatch.setattr(learn, 'makes_views_on', lambda device: True)
    a = training.train(sample_folder, tmp_path/'a', training.keys(2, optimizer={'lr': 0.}))
    monkeypatch.undo()
    b = training.train(sample_folder, tmp_path/'b', training.keys(2, optimizer={'lr': 0.}))
    np.testing.assert_allclose(a.loss, b.loss, rtol=.01)
    assert (a.n_images, a.steps) == (b.n_images, b.steps)


def test_what_draws_while_training_draws_the_same_after_a_stop(sample_folder, tmp_path):
    begin = training.start()
    begin = learn.replace(begin, module=torch.nn.Sequential(begin.module, torch.nn.Dropout(.5)))
    training.train(sample_folder, tmp_path/'whole', training.keys(2), begin=begin)
    for n_epochs in (1, 2): training.train(sample_folder, tmp_path/'stopped', training.keys(n_epochs), begin=begin)
    assert training.furthest(training.weights(tmp_path/'whole'), training.weights(tmp_path/'stopped')) == 0


def test_the_optimizer_is_made_for_all_images_of_a_step(sample_folder, tmp_path, monkeypatch):
    asked, build = [], learn.build_optimizer
    def spy(recipe, model, lightly, n_steps, n_images, start_is_pretrained):
        asked.append((n_steps, n_images, start_is_pretrained))
        return build(recipe, model, lightly, n_steps, n_images, start_is_pretrained)
    monkeypatch.setattr(learn, 'build_optimizer', spy)
    training.train(sample_folder, tmp_path, training.keys(4, 6, accumulate_grad_batches=2))
    assert asked == [(1, None, False), (8, 12, False)]  # the first one is made for its refusals, before an image is read


def test_the_modern_recipe_cannot_be_made_longer(sample_folder, tmp_path):
    "Its learning rate has fallen to 0 over the epochs asked for; further ones would learn nothing."
    training.train(sample_folder, tmp_path, training.keys(2), recipe='modern')
    with pytest.raises(ConfigError, match='lightly.trainer.max_epochs was 2 and is now 4'):
        training.train(sample_folder, tmp_path, training.keys(4), recipe='modern')
    assert training.train(sample_folder, tmp_path, training.keys(2), recipe='modern').epochs == 2


@pytest.mark.parametrize('recipe', ['original', 'modern'])
def test_no_batch_of_a_single_image(sample_folder, tmp_path, recipe):
    "24 images in batches of 23: the last one is left out, and said to be; batches of 22 leave two, which are trained on."
    alone = training.train(sample_folder, tmp_path/'alone', training.keys(1, 23, loader={'drop_last': False}), recipe=recipe)
    assert alone.steps == 1 and any('leave a batch of one image' in o for o in alone.notices)
    two = training.train(sample_folder, tmp_path/'two', training.keys(1, 22, loader={'drop_last': False}), recipe=recipe)
    assert two.steps == 2 and not any('leave a batch of one image' in o for o in two.notices)


def test_an_end_before_the_last_epoch_is_told(sample_folder, tmp_path, caplog):
    result = training.train(sample_folder, tmp_path, training.keys(4, max_steps=3))
    assert (result.epochs, result.steps) == (1, 3)
    assert result.notices[-1].startswith('The training ended after 1 of 4 epochs') and result.notices[-1] in caplog.messages


def test_an_end_before_the_first_epoch_is_no_success(sample_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(learn, 'carry_out', lambda *_: None)  # as Lightning's Timer does when max_time is over at once
    with pytest.raises(CurateError, match='no epoch was finished.*max_time'): training.train(sample_folder, tmp_path)
    assert not RunDir(tmp_path).training_cache.exists()


def test_a_flipped_bit_in_the_last_checkpoint_is_found(sample_folder, tmp_path):
    training.train(sample_folder, tmp_path, training.keys(1))
    whole = bytearray((tmp_path/'last.ckpt').read_bytes())
    whole[len(whole)//2] ^= 1
    (tmp_path/'last.ckpt').write_bytes(whole)
    with pytest.raises(WeightsError, match='last.ckpt is damaged.*cannot go on'): training.train(sample_folder, tmp_path, training.keys(2))
