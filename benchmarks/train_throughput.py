"""Images per second of a training, against lightly-ssl-train with the same keys, on the same files in one run.

    python benchmarks/train_throughput.py [--quick] [--rounds 2]

Network-bound: resnet-18 at 64 px, batches of 16, pictures of camvid (sample pictures without ../shared/data).
Decode-bound: resnet-9 of width 0.25 at 64 px, batches of 8, photographs of 12 megapixels made by enlarging.
Both programs run in processes of their own, in turns, from random weights with the same keys; the watch is around
Lightning's Trainer.fit in both. Ours first decodes into the training cache, which is counted and also shown alone.
Bounds, for comparison: the network on a batch that is there already, and decoding alone on all cores.
"""
import os
import sys

# this folder holds a select.py, and Python has a module of that name: look for modules above it instead
if sys.path[0] == os.path.dirname(os.path.abspath(__file__)): sys.path[0] = os.path.dirname(sys.path[0])

import argparse  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from lightly_curate.core.config import TrainOptions, count_cores, lightly_defaults  # noqa: E402
from lightly_curate.core.rundir import RunDir  # noqa: E402
from lightly_curate.core.samples import available  # noqa: E402
from lightly_curate.data.batches import map_in_threads  # noqa: E402
from lightly_curate.data.images import MAX_IMAGE_PIXELS, read_rgb  # noqa: E402
from lightly_curate.data.sample_data import make_sample_data, sample_photos  # noqa: E402
from lightly_curate.data.scan import scan  # noqa: E402
from PIL import Image  # noqa: E402

SHARED = Path(__file__).resolve().parent.parent.parent/'shared'/'data'
LARGE = (4000, 3000)  # 12 megapixels
LIMIT_S = 200         # seconds, for one training


@dataclass
class Task:
    "What both programs are to do."
    name: str
    input_dir: str
    model: str
    width: float
    batch_size: int
    epochs: int
    num_workers: int


def small_pictures(folder: Path, n: int) -> None:
    "Pictures as they come from a camera in a car, 480 by 360 pixels."
    found = sorted((SHARED/'camvid').glob('*.*'))
    if len(found) < n:
        made = make_sample_data(folder.parent/'made', n_images=n + 20)
        found = sorted(o for o in made.rglob('*.jpg') if 'broken' not in o.parts)
    folder.mkdir()
    for number, path in enumerate(found[:n]): shutil.copyfile(path, folder/f'{number:03}{path.suffix}')


def large_pictures(folder: Path, n: int) -> None:
    "Photographs of 12 megapixels; a few, each several times, which to a decoder is the same."
    folder.mkdir()
    rng, photos = np.random.default_rng(0), [sample_photos()[o] for o in ('china', 'flower')]
    for number in range(min(n, 4)):
        photo = photos[number % 2].transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number > 1 else photos[number % 2]
        noise = rng.integers(-6, 7, LARGE[::-1], dtype=np.int16)[..., None]
        pixels = np.asarray(photo.resize(LARGE, Image.Resampling.BICUBIC)) + noise
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder/f'{number:03}.jpg', quality=90)
    for number in range(4, n): shutil.copyfile(folder/f'{number % 4:03}.jpg', folder/f'{number:03}.jpg')


def processor_s() -> float:
    "Processor seconds of this process and of those that it has waited for, such as loaders."
    return sum(os.times()[:4])


def watched() -> dict[str, float]:
    "What Lightning's Trainer.fit takes, from now on in this process: seconds, and processor seconds, which other programs do not disturb."
    import pytorch_lightning
    taken, fit = {'seconds': 0., 'processor_s': 0.}, pytorch_lightning.Trainer.fit

    def timed(*arguments, **keys):
        start, used = time.perf_counter(), processor_s()
        fit(*arguments, **keys)
        taken['seconds'] += time.perf_counter() - start
        taken['processor_s'] += processor_s() - used

    pytorch_lightning.Trainer.fit = timed
    return taken


def run_theirs(task: Task) -> dict:
    "The command lightly-ssl-train."
    from lightly.cli.train_cli import entry
    taken = watched()
    sys.argv = ['lightly-ssl-train', f'input_dir={task.input_dir}', 'pre_trained=False', f'model.name={task.model}', f'model.width={task.width}',
                f'loader.batch_size={task.batch_size}', f'loader.num_workers={task.num_workers}', f'trainer.max_epochs={task.epochs}',
                'trainer.enable_model_summary=False', '+trainer.enable_progress_bar=False', 'hydra.run.dir=lightly']
    entry()
    return taken


def run_ours(task: Task) -> dict:
    "The same by learn.train, which finds the cache that was built before it."
    from lightly_curate.learn.backbone import start_backbone
    from lightly_curate.learn.cache import build_cache, cache_side
    from lightly_curate.learn.train import train
    lightly, run_dir = lightly_defaults(), RunDir(Path('run').resolve())
    lightly['model'] |= {'name': task.model, 'width': task.width, 'num_ftrs': 32}
    lightly['collate']['input_size'] = 64
    lightly['loader'] |= {'batch_size': task.batch_size, 'num_workers': task.num_workers}
    lightly['trainer'] |= {'max_epochs': task.epochs, 'enable_model_summary': False}
    samples = scan(Path(task.input_dir))
    start, _ = start_backbone(task.model, None, 32, task.width, 64, pre_trained=False)
    side = cache_side(-1, 64, lightly['collate']['min_scale'])
    begun, used = time.perf_counter(), processor_s()
    pictures = build_cache(samples, available(samples), Path(task.input_dir), side, run_dir.training_cache, task.num_workers, MAX_IMAGE_PIXELS)
    cache = {'cache_s': time.perf_counter() - begun, 'cache_processor_s': processor_s() - used}
    taken = watched()
    trained = train(samples, start, Path(task.input_dir), lightly, TrainOptions(), run_dir, MAX_IMAGE_PIXELS)
    return {**taken, **cache, 'cache_bytes': pictures.n_bytes, 'wait_share': trained.wait_share}


def run_network(task: Task) -> dict:
    "The bound: network, loss and optimizer on one batch that is there already."
    import torch
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly_curate.learn.networks import lightly_module
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net = torch.nn.Sequential(lightly_module(task.model, task.width, 32), SimCLRProjectionHead(32, 32, 128, batch_norm=False)).to(device)
    optimizer, loss = torch.optim.SGD(net.parameters(), lr=.01), NTXentLoss()
    views, taken = [torch.randn(task.batch_size, 3, 64, 64, device=device) for _ in range(2)], []
    while len(taken) < 3 or (sum(taken) < 5 and len(taken) < 100):
        begun = time.perf_counter()
        optimizer.zero_grad()
        loss(*map(net, views)).backward()
        optimizer.step()
        if device == 'cuda': torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return {'seconds': float(np.median(taken[1:]))}


RUNS = {'ours': run_ours, 'theirs': run_theirs, 'network': run_network}


def in_process(what: str, task: Task) -> dict | None:
    "One of `RUNS` in a process and a folder of its own; None when it took longer than `LIMIT_S`."
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), '--run', what, json.dumps(asdict(task))]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode: sys.exit(f'{what} failed:\n{done.stderr[-3000:]}')
        return json.loads(done.stdout.splitlines()[-1])


def decode_rate(folder: Path) -> float:
    "Pictures per second when they are only decoded, whole, on all cores."
    paths, begun = sorted(folder.iterdir()), time.perf_counter()
    for _ in map_in_threads(read_rgb, paths, count_cores()): pass
    return len(paths)/(time.perf_counter() - begun)


def compare(task: Task, rounds: int) -> None:
    "Both in turns, a table and the ratio."
    n = len(list(Path(task.input_dir).iterdir()))
    n_seen = n//task.batch_size*task.batch_size*task.epochs
    print(f'\n{task.name}: {task.model} of width {task.width:g}, {n} pictures, {task.epochs} epochs, batches of {task.batch_size}', flush=True)
    results: dict[str, list[dict]] = {'theirs': [], 'ours': []}
    for _ in range(rounds):
        for what, so_far in results.items():
            got = in_process(what, task)
            if got is None: return print(f'  {what} took more than {LIMIT_S} s: no figure')
            so_far.append(got)
    theirs, theirs_used = (float(np.median([o[key] for o in results['theirs']])) for key in ('seconds', 'processor_s'))
    ours, cache, used, cache_used = (float(np.median([o[key] for o in results['ours']]))
                                     for key in ('seconds', 'cache_s', 'processor_s', 'cache_processor_s'))
    wait, size = results['ours'][-1]['wait_share'], results['ours'][-1]['cache_bytes']
    print(f'{"":44}{"seconds":>9}{"images/s":>10}')
    for name, value in (('lightly-ssl-train', theirs), ('lightly_curate, cache and training', ours + cache), ('  training alone', ours)):
        print(f'{name:44}{value:9.1f}{n_seen/value:10.1f}')
    print(f'{"  cache alone (pictures decoded)":44}{cache:9.1f}{n/cache:10.1f}   {size/1e6:.1f} MB')
    step = in_process('network', task)
    if step: print(f'{"bound: the network alone":44}{"":9}{task.batch_size/step["seconds"]:10.1f}')
    print(f'{"bound: decoding alone, whole":44}{"":9}{decode_rate(Path(task.input_dir)):10.1f}')
    print(f'ratio {theirs/(ours + cache):.2f} (training alone {theirs/ours:.2f}); of our training {wait:.0%} was waiting for data')
    print(f'ratio of processor seconds {theirs_used/(used + cache_used):.2f} (training alone {theirs_used/used:.2f})', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description='Training throughput against lightly-ssl-train.')
    parser.add_argument('--quick', action='store_true', help='under a minute: less of everything, one round')
    parser.add_argument('--rounds', type=int, default=2, help='of both programs, in turns; medians are shown')
    parser.add_argument('--run', nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        warnings.simplefilter('ignore')
        result = RUNS[asked.run[0]](Task(**json.loads(asked.run[1])))
        return print(f'\n{json.dumps(result)}')
    rounds, cores = 1 if asked.quick else asked.rounds, count_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small_pictures(folder/'small', 16 if asked.quick else 64)
        large_pictures(folder/'large', 16 if asked.quick else 24)
        print(f'{cores} cores, {rounds} rounds in turns, medians')
        compare(Task('Network-bound', str(folder/'small'), 'resnet-18', 1, 8 if asked.quick else 16, 1, cores), rounds)
        compare(Task('Decode-bound', str(folder/'large'), 'resnet-9', .25, 8, 2 if asked.quick else 6, cores), rounds)


if __name__ == '__main__':
    main()
