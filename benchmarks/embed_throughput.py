"""Images per second from JPEG to vector with the built-in backbone, beside its two parts alone.

    python benchmarks/embed_throughput.py [DATA_DIR] [--images 1468] [--repeats 5] [--batch 32] [--input-size -1]

DATA_DIR is a folder of small JPEG (default: camvid, 367 of 480x360), used again and again until there are enough. decode:
read, decode and squeeze to the input size, with a thread for each core, as before embedding. network: the network over
pictures that are decoded already, one thread for each core. embed: `lightly_curate.embed`, all of it. Both parts use the
same cores, so what embedding can reach at most is bound = 1/(1/decode + 1/network). The files lie in the page cache.
Taken in turns; the median, and the best in brackets, which a machine that does other things at the same time disturbs least.
"""
import os
import sys

# this folder holds a select.py, and Python has a module of that name: look for modules above it instead
if sys.path[0] == os.path.dirname(os.path.abspath(__file__)): sys.path[0] = os.path.dirname(sys.path[0])

import argparse  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from lightly_curate.core.config import count_cores  # noqa: E402
from lightly_curate.data.batches import Batch, load_batches, map_in_threads  # noqa: E402
from lightly_curate.data.scan import scan  # noqa: E402
from lightly_curate.embed.embed import embed, embed_batch, least_side, one_torch_thread  # noqa: E402
from lightly_curate.learn.backbone import load_backbone  # noqa: E402

CAMVID = Path(__file__).resolve().parent.parent.parent/'shared'/'data'/'camvid'


def repeated(samples: pd.DataFrame, n_images: int) -> pd.DataFrame:
    "The table over again until it has that many rows, each with a name of its own."
    rows = np.arange(n_images) % len(samples)
    longer = samples.iloc[rows].reset_index(drop=True)
    return longer.assign(filename=[f'{i:06}/{o}' for i, o in enumerate(longer['filename'])])


def rates(ways: dict[str, Callable[[], object]], n_images: int, repeats: int) -> dict[str, np.ndarray]:
    "Images per second of each way, taken in turns."
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            taken[name].append(n_images/(time.perf_counter() - start))
    return {name: np.array(o) for name, o in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data_dir', nargs='?', type=Path, default=CAMVID)
    parser.add_argument('--images', type=int, default=1468)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--input-size', type=int, default=-1, help='pixels, default: that of the weights')
    args = parser.parse_args()
    if not args.data_dir.is_dir(): sys.exit(f'{args.data_dir} is not there; name a folder of small JPEG')
    backbone, n_cores = load_backbone(input_size=args.input_size), count_cores()
    samples = repeated(scan(args.data_dir), args.images)
    rows, module = np.arange(args.images), backbone.module.to(memory_format=torch.channels_last)
    def load() -> Iterator[Batch]:
        side = least_side(backbone)
        return load_batches(samples, rows, args.data_dir, backbone.input_size, args.batch, n_cores, least_side=side)
    decoded = list(load())
    def network() -> None:
        run = lambda batch: embed_batch(batch, backbone, module, torch.device('cpu'), None)  # noqa: E731
        with one_torch_thread():
            for _ in map_in_threads(run, decoded, n_cores): pass
    ways: dict[str, Callable[[], object]] = {
        'decode': lambda: list(load()), 'network': network,
        'embed': lambda: embed(samples, backbone, args.data_dir, args.batch, n_cores)}
    taken = rates(ways, args.images, args.repeats)
    taken['bound'] = 1/(1/taken['decode'] + 1/taken['network'])
    print(f'{backbone.origin}, {backbone.input_size} px, {n_cores} cores, load {os.getloadavg()[0]:.1f}, {args.images} images/s of:')
    for name, found in taken.items(): print(f'{name:>8} {np.median(found):7.0f}  ({found.max():.0f})')
    print(f'embed reaches {np.median(taken["embed"]/taken["bound"]):.0%} of the bound')


if __name__ == '__main__': main()
