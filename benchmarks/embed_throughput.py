"""Images per second from JPEG to vector, against lightly-embed with the same weights on the same files, and against what is possible.

    python benchmarks/embed_throughput.py [DATA_DIR] [--only abc] [--photos 4000] [--images 1468] [--rounds 3]

(a) network-bound: DATA_DIR (a folder of small JPEG, default: camvid, 367 of 480x360) by a resnet-18 of lightly at 64 px.
(b) decode-bound: photographs of 12 megapixels, made by enlarging, by a resnet-9 of width 0.25 of lightly at 64 px.
    Both programs run in processes of their own, in turns, with the same checkpoint (random weights), batches of 16 and
    as many workers as cores. The watch begins when everything is imported and ends when the CSV is written. Beside the
    clock: processor seconds of the process and its workers, which a machine that does other things disturbs less.
    The vectors are compared, by cosine.
(c) the built-in backbone on DATA_DIR, used again and again, beside its parts alone. decode: read, decode and squeeze, with a
    worker for each core; network: the network over pictures that are decoded already, a thread for each core; embed: all of it.
    The slower part is what could be reached if each had cores of its own; as both share the cores, it is 1/(1/decode + 1/network).
The files lie in the page cache. Medians, in brackets the best.

    python benchmarks/embed_throughput.py --only w [--site FOLDER]

(w) ways to compute a resnet-18 at 64 px on one core, one batch after the other: as it is, folded, compiled by inductor, in
    bfloat16, and by ONNX Runtime and OpenVINO where they can be imported (FOLDER: of pip install --target).
"""
import os
import sys

# this folder holds a select.py, and Python has a module of that name: look for modules above it instead
if sys.path[0] == os.path.dirname(os.path.abspath(__file__)): sys.path[0] = os.path.dirname(sys.path[0])

import argparse  # noqa: E402
import copy  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from lightly_curate.core.config import count_cores  # noqa: E402
from lightly_curate.data.batches import Batch, load_batches, map_in_threads  # noqa: E402
from lightly_curate.data.isolated import stop  # noqa: E402
from lightly_curate.data.sample_data import sample_photos  # noqa: E402
from lightly_curate.data.scan import scan  # noqa: E402
from lightly_curate.embed.embed import embed, embed_batch, least_side, one_torch_thread  # noqa: E402
from lightly_curate.embed.embedding_csv import read_embeddings, write_embeddings  # noqa: E402
from lightly_curate.embed.vectors import normalize  # noqa: E402
from lightly_curate.learn.backbone import load_backbone, scale_pixels, start_backbone  # noqa: E402
from lightly_curate.learn.inference import inference_module  # noqa: E402
from PIL import Image  # noqa: E402

CAMVID = Path(__file__).resolve().parent.parent.parent/'shared'/'data'/'camvid'
LARGE = (4000, 3000)  # 12 megapixels
N_DIFFERENT = 8       # photographs; the others are the same files under other names, which to a decoder is the same
SIZE, BATCH = 64, 16  # pixels, pictures


def processor_seconds() -> float:
    "Of this process and of those it has waited for."
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


def make_photos(folder: Path, n: int) -> None:
    "Photographs of 12 megapixels with the noise of a camera."
    rng, photos = np.random.default_rng(0), list(sample_photos().values())
    for number in range(min(n, N_DIFFERENT)):
        large = np.asarray(photos[number % len(photos)].convert('RGB').resize(LARGE, Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(large + rng.integers(-6, 7, (*LARGE[::-1], 1), dtype=np.int16), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder/f'{number:05}.jpg', quality=90)
    for number in range(N_DIFFERENT, n): os.link(folder/f'{number % N_DIFFERENT:05}.jpg', folder/f'{number:05}.jpg')


def make_checkpoint(path: Path, name: str, width: str) -> None:
    "Random weights as lightly saves them."
    from lightly.models.modules.heads import SimCLRProjectionHead
    backbone = start_backbone(name=name, width=float(width), pre_trained=False)[0]
    parts = {'backbone': backbone.module, 'projection_head': SimCLRProjectionHead(backbone.n_features, backbone.n_features, 128, batch_norm=False)}
    torch.save({'state_dict': {f'model.{part}.{k}': v for part, module in parts.items() for k, v in module.state_dict().items()}}, path)


def run_ours(data_dir: Path, checkpoint: Path) -> None:
    "From files to embeddings.csv, in the current folder."
    samples = scan(data_dir)
    samples, vectors = embed(samples, load_backbone(checkpoint=checkpoint), data_dir, BATCH, count_cores())
    write_embeddings(Path('embeddings.csv'), samples['filename'][vectors.rows].tolist(), vectors.emb, [0]*len(vectors))
    stop()


def run_theirs(data_dir: Path, checkpoint: Path, name: str, width: str) -> None:
    "The command lightly-embed, in the current folder."
    from lightly.cli.embed_cli import entry
    sys.argv = ['lightly-embed', f'input_dir={data_dir}', f'checkpoint={checkpoint}', f'model.name={name}', f'model.width={width}', f'collate.input_size={SIZE}',
                f'loader.batch_size={BATCH}', f'loader.num_workers={count_cores()}', 'hydra.run.dir=.']
    entry()


def run_one(who: str, data_dir: Path, checkpoint: Path, name: str, width: str) -> None:
    "What a process of its own does; its last line tells clock and processor seconds."
    if who == 'theirs': import lightly.cli.embed_cli  # noqa: F401  # before the watch begins
    begun, worked = time.perf_counter(), processor_seconds()
    if who == 'ours': run_ours(data_dir, checkpoint)
    else: run_theirs(data_dir, checkpoint, name, width)
    print(json.dumps([time.perf_counter() - begun, processor_seconds() - worked]))


def side_by_side(title: str, data_dir: Path, name: str, width: str, rounds: int) -> None:
    "Both programs in turns."
    n_images, taken = len(scan(data_dir)), {'theirs': list[list[float]](), 'ours': list[list[float]]()}
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(place)/'weights.ckpt'
        make_checkpoint(checkpoint, name, width)
        for _ in range(rounds):
            for who, times in taken.items():
                Path(place, who).mkdir(exist_ok=True)
                words = [sys.executable, str(Path(__file__).resolve()), '--one', who, str(data_dir.resolve()), str(checkpoint), name, width]
                times.append(json.loads(subprocess.run(words, cwd=Path(place, who), check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
        tables = {who: read_embeddings(Path(place, who, 'embeddings.csv')) for who in taken}
    place_of = {name: i for i, name in enumerate(tables['theirs'].filenames)}
    theirs = normalize(np.asarray(tables['theirs'].emb))[[place_of[o] for o in tables['ours'].filenames]]
    cosine = (theirs*normalize(np.asarray(tables['ours'].emb))).sum(axis=1)
    print(f'{title}: {n_images} images, {name} of width {width} at {SIZE} px, {count_cores()} cores, load {os.getloadavg()[0]:.1f}')
    rates = {who: n_images/np.array(times) for who, times in taken.items()}
    for who, found in rates.items():
        print(f'  {who:>6} {np.median(found[:, 0]):7.1f} ({found[:, 0].max():.1f}) images/s, {np.median(found[:, 1]):7.1f} ({found[:, 1].max():.1f}) a processor second')
    clock, work = (np.median(rates['ours'][:, o]/rates['theirs'][:, o]) for o in (0, 1))
    print(f'  ours is {clock:.2f} times as fast by the clock, {work:.2f} times by processor seconds; cosine of the vectors at least {cosine.min():.6f}, '
          f'{(cosine >= .999).mean():.1%} are 0.999 or more')


def repeated(samples: pd.DataFrame, n_images: int) -> pd.DataFrame:
    "The table over again until it has that many rows, each with a name of its own."
    rows = np.arange(n_images) % len(samples)
    longer = samples.iloc[rows].reset_index(drop=True)
    return longer.assign(filename=[f'{i:06}/{o}' for i, o in enumerate(longer['filename'])])


def rates_of(ways: dict[str, Callable[[], object]], n_images: int, rounds: int) -> dict[str, np.ndarray]:
    "Images per second of each way, taken in turns."
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            taken[name].append(n_images/(time.perf_counter() - start))
    return {name: np.array(o) for name, o in taken.items()}


def share_of_bound(data_dir: Path, n_images: int, rounds: int, batch_size: int = 32) -> None:
    "The built-in backbone beside its parts."
    backbone, n_cores = load_backbone(), count_cores()
    samples, rows = repeated(scan(data_dir), n_images), np.arange(n_images)
    module = inference_module(backbone.module, backbone.input_size, torch.device('cpu'))
    def load() -> Iterator[Batch]:
        return load_batches(samples, rows, data_dir, backbone.input_size, batch_size, n_cores, least_side=least_side(backbone))
    decoded = list(load())
    def network() -> None:
        run = lambda batch: embed_batch(batch, backbone, module, torch.device('cpu'), None)  # noqa: E731
        with one_torch_thread():
            for _ in map_in_threads(run, decoded, n_cores): pass
    ways: dict[str, Callable[[], object]] = {
        'decode': lambda: list(load()), 'network': network, 'embed': lambda: embed(samples, backbone, data_dir, batch_size, n_cores)}
    taken = rates_of(ways, n_images, rounds)
    taken['both'] = 1/(1/taken['decode'] + 1/taken['network'])
    print(f'(c) {backbone.origin}, {backbone.input_size} px, {n_cores} cores, load {os.getloadavg()[0]:.1f}, {n_images} images/s of:')
    for name, found in taken.items(): print(f'  {name:>7} {np.median(found):7.0f}  ({found.max():.0f})')
    slower = np.minimum(taken['decode'], taken['network'])
    print(f'  embed reaches {np.median(taken["embed"]/taken["both"]):.0%} of what both parts on the same cores allow, '
          f'{np.median(taken["embed"]/slower):.0%} of the slower part alone')


def with_runtimes(folded: torch.nn.Module, x: torch.Tensor) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    "The same network by others, where they are installed."
    plain, site = np.ascontiguousarray(x.numpy()), tempfile.TemporaryDirectory()
    path = f'{site.name}/network.onnx'
    try:
        import onnxruntime
        torch.onnx.export(folded, (x,), path, dynamo=False, input_names=['x'], output_names=['y'], dynamic_axes={'x': {0: 'b'}, 'y': {0: 'b'}})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        yield 'ONNX Runtime', lambda: session.run(None, {'x': plain})[0]
        import openvino
        asked = {'INFERENCE_NUM_THREADS': 1, 'NUM_STREAMS': 1, 'INFERENCE_PRECISION_HINT': 'f32'}
        request = openvino.Core().compile_model(openvino.convert_model(path), 'CPU', asked).create_infer_request()
        yield 'OpenVINO', lambda: request.infer({0: plain})[0].copy()
    except ImportError as error:
        print(f'  left out: {error}')


def ways_to_compute(rounds: int) -> None:
    "Images per second of one core by each way, taken in turns."
    backbone = start_backbone(name='resnet-18', pre_trained=False, input_size=SIZE)[0]
    module, cpu = backbone.module.eval(), torch.device('cpu')
    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    folded = inference_module(module, SIZE, cpu)
    x = scale_pixels(np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8), backbone, cpu)
    def half() -> np.ndarray:
        with torch.autocast('cpu', torch.bfloat16): return folded(x).float().numpy()
    ways: dict[str, Callable[[], np.ndarray]] = {
        'as it is': lambda: module(x.contiguous()).numpy(), 'channels last': lambda: last(x).numpy(),
        'folded, channels last': lambda: folded(x).numpy(), 'the same in bfloat16': half}
    ways |= dict(with_runtimes(folded, x))
    import torch._inductor.config as inductor
    inductor.freezing = True
    compiled, begun = torch.compile(folded), time.perf_counter()
    with torch.inference_mode(), one_torch_thread():
        compiled(x)
        print(f'(w) resnet-18 at {SIZE} px, one core, load {os.getloadavg()[0]:.1f}; inductor compiled in {time.perf_counter() - begun:.0f} s')
        ways['inductor, frozen'] = lambda: compiled(x).numpy()
        wanted = ways['as it is']()
        off = {name: np.abs(run() - wanted).max()/np.abs(wanted).max() for name, run in ways.items()}
        for name, found in rates_of(ways, BATCH, 3*rounds).items():
            print(f'  {name:>21} {np.median(found):6.1f} ({found.max():.1f}) images/s, off by {off[name]:.0e}')


def main() -> None:
    if sys.argv[1:2] == ['--one']: return run_one(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), *sys.argv[5:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data_dir', nargs='?', type=Path, default=CAMVID)
    parser.add_argument('--only', default='abc', help='parts to run')
    parser.add_argument('--photos', type=int, default=4000)
    parser.add_argument('--images', type=int, default=1468, help='of (c)')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--site', default='', help='folder with further packages, for (w)')
    args = parser.parse_args()
    if set(args.only) & {'a', 'c'} and not args.data_dir.is_dir(): sys.exit(f'{args.data_dir} is not there; name a folder of small JPEG')
    if args.site: sys.path.append(args.site)
    if 'a' in args.only: side_by_side('(a)', args.data_dir, 'resnet-18', '1', args.rounds)
    if 'b' in args.only:
        with tempfile.TemporaryDirectory() as folder:
            make_photos(Path(folder), args.photos)
            side_by_side('(b)', Path(folder), 'resnet-9', '0.25', args.rounds)
    if 'c' in args.only: share_of_bound(args.data_dir, args.images, args.rounds)
    if 'w' in args.only: ways_to_compute(args.rounds)


if __name__ == '__main__': main()
