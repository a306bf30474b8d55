"""Frames per second from video file to vector, beside decoding alone, the network alone, and extracting PNG files first.

    python benchmarks/video_throughput.py [DATA_DIR] [--frames 20000] [--rounds 1] [--extract-frames 2000] [--hour] [--quick]

The videos of DATA_DIR (default ../shared/data/videos) are repeated to at least --frames frames: their packets are copied
into longer files with time stamps moved on, nothing is encoded. Then in turns, on as many cores as there are:
decode: PyAV alone, as many videos at a time and decoder threads as the pass. frames: `VideoReader`. reading: `VideoPass`, that
is decode, hash, score of uniform rows, scale, in batches. network: `run_batches` on pictures that are there already.
whole pass: `VideoPass` and `embed_videos`, from files to table and vectors.

Two bounds. A is the slower of decoding and the network: what a machine reaches whose network runs elsewhere, on a GPU.
B = 1/(1/decode + 1/network): where both run on the same cores, every frame costs the processor both, and no program goes
beyond B however it overlaps them. Shares are given by the clock, and for B also by processor seconds, which other programs
on the machine disturb less.

The usual way: every frame saved as PNG by PyAV (`frame.to_image().save`, a process for each core), then the folder embedded
by our own `embed` with the same network. It is measured on fewer frames, --extract-frames, of the same mixture. It neither
hashes nor scores the frames, and its files lie in the page cache when they are read. Memory is that of a process of its own.
"""
import os
import sys

# this folder holds a select.py, and Python has a module of that name: look for modules above it instead
if sys.path[0] == os.path.dirname(os.path.abspath(__file__)): sys.path[0] = os.path.dirname(sys.path[0])

import argparse  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import av  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from lightly_curate.core.config import count_cores  # noqa: E402
from lightly_curate.core.progress import listening  # noqa: E402
from lightly_curate.data.batches import Batch  # noqa: E402
from lightly_curate.data.pictures import square_pixels  # noqa: E402
from lightly_curate.data.frames import VideoPass, share_threads  # noqa: E402
from lightly_curate.data.scan import counted, scan  # noqa: E402
from lightly_curate.data.video import FrameScaler, VideoReader, frame_hash, frame_image, uniform_row_ratio  # noqa: E402
from lightly_curate.embed.embed import embed, embed_batch, embed_videos, run_batches  # noqa: E402
from lightly_curate.learn.backbone import Backbone, load_backbone  # noqa: E402

VIDEOS = Path(__file__).resolve().parent.parent.parent/'shared'/'data'/'videos'
EXTRACT = """import sys, av
with av.open(sys.argv[1]) as container:
    for number, frame in enumerate(container.decode(video=0)): frame.to_image().save(f'{sys.argv[2]}-{number:06}.png', compress_level=int(sys.argv[3]))
"""
HOUR = 108_000  # frames, an hour at 30 a second


@dataclass(frozen=True)
class Taken:
    "What a way took."
    n_frames: int
    seconds: float
    processor_s: float

    @property
    def rate(self) -> float: return self.n_frames/self.seconds
    @property
    def processor_ms(self) -> float: return 1000*self.processor_s/self.n_frames


def processor_s() -> float:
    "Processor seconds of this process and of those that it has waited for."
    return sum(os.times()[:4])


def timed(run: Callable[[], int]) -> Taken:
    "Time a way that returns its number of frames."
    begun, used = time.perf_counter(), processor_s()
    n_frames = run()
    return Taken(n_frames, time.perf_counter() - begun, processor_s() - used)


def middle(taken: list[Taken]) -> Taken:
    "Median of several rounds."
    return Taken(taken[0].n_frames, float(np.median([o.seconds for o in taken])), float(np.median([o.processor_s for o in taken])))


# Longer videos of the same packets


def video_stamps(path: Path) -> list[tuple[int, bool]]:
    "Time stamps of the packets of the first video stream."
    with av.open(str(path)) as container:
        return [(o.pts, o.is_keyframe) for o in container.demux(container.streams.video[0]) if o.size]


def loop_video(path: Path, target: Path, n_loops: int) -> None:
    "Write a video several times one after the other into one file, without audio."
    written = [o for o, _ in video_stamps(path)]
    in_order = sorted(written)
    delay = max(shown - stored for shown, stored in zip(in_order, written, strict=True))
    step = (in_order[-1] - in_order[0])/(len(in_order) - 1)
    with av.open(str(target), 'w') as output:
        stream = None
        for loop in range(n_loops):
            with av.open(str(path)) as container:
                source, moved = container.streams.video[0], round(loop*step*len(in_order))
                stream = stream or output.add_stream_from_template(source)
                packets = (o for o in container.demux(source) if o.size)
                for packet, shown in zip(packets, in_order, strict=True):
                    packet.pts, packet.dts, packet.stream = packet.pts + moved, shown - delay + moved, stream
                    output.mux(packet)


def videos_of(folder: Path) -> list[Path]:
    "The videos of a folder."
    files = scan(folder)
    return [folder/o for o in files['path'][files['source'] == 'video']]


def loop_videos(source: Path, folder: Path, n_least: int) -> int:
    "Fill a folder with longer videos, each of one of `source`; returns the number of their frames."
    counts = {o: len(video_stamps(o)) for o in videos_of(source)}
    n_loops = -(-n_least//sum(counts.values()))
    folder.mkdir()
    for path in counts: loop_video(path, folder/path.name, n_loops)
    return n_loops*sum(counts.values())


# The ways


def decode_all(folder: Path, count: Callable[[Path, int], int]) -> int:
    "Go through all videos, as many at a time and with as many decoder threads as the pass."
    paths = videos_of(folder)
    n_parallel, n_threads = share_threads(len(paths), count_cores())
    with ThreadPoolExecutor(n_parallel) as pool: return sum(pool.map(lambda o: count(o, n_threads), paths))


def plain_frames(path: Path, n_threads: int) -> int:
    "Decode with PyAV, nothing else."
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        codec.thread_count, codec.thread_type = n_threads, 'FRAME' if n_threads > 1 else 'SLICE'
        return sum(1 for _ in container.decode(video=0))


def reader_frames(path: Path, n_threads: int) -> int:
    "Decode with `VideoReader`, nothing else."
    with VideoReader(path, n_threads) as reader: return sum(1 for _ in reader)


def read_all(folder: Path, input_size: int, batch_size: int) -> int:
    "What the pass does before the network."
    reading = VideoPass(scan(folder), folder, count_cores())
    return sum(len(o.rows) for o in reading.batches(input_size, batch_size))


def compute(backbone: Backbone, n_frames: int, batch_size: int) -> int:
    "The network on pictures that are there already."
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, backbone.input_size, backbone.input_size, 3), dtype=np.uint8)
    starts = range(0, n_frames, batch_size)
    batches = (Batch(np.arange(o, min(n_frames, o + batch_size)), pixels[:n_frames - o], {}, 0.) for o in starts)
    return sum(len(emb) for _, emb in run_batches(batches, n_frames, backbone, '32'))


def whole_pass(folder: Path, backbone: Backbone, batch_size: int) -> int:
    "From files to table and vectors; every frame of every video is there."
    read, vectors = embed_videos(VideoPass(scan(folder), folder, count_cores()), backbone, batch_size)
    reasons = [o['reason'] for o in read.videos if o['reason']]
    if reasons: sys.exit(f'a video is not whole: {reasons[0]}')
    return len(vectors.emb)


def compare(folder: Path, n_frames: int, backbone: Backbone, batch_size: int, rounds: int) -> Taken:
    "Bounds and whole pass in turns, a table; returns the whole pass."
    ways: dict[str, Callable[[], int]] = {
        'decode (PyAV alone)': lambda: decode_all(folder, plain_frames),
        'frames (VideoReader)': lambda: decode_all(folder, reader_frames),
        'reading (decode, hash, score, scale)': lambda: read_all(folder, backbone.input_size, batch_size),
        'network': lambda: compute(backbone, n_frames, batch_size),
        'whole pass': lambda: whole_pass(folder, backbone, batch_size)}
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items(): taken[name].append(timed(run))
    wrong = {o.n_frames for found in taken.values() for o in found} - {n_frames}
    if wrong: sys.exit(f'{n_frames} frames are expected, {wrong} came')
    decode, _, _, network, whole = found = [middle(o) for o in taken.values()]
    n_videos = len(videos_of(folder))
    n_parallel, n_threads = share_threads(n_videos, count_cores())
    print(f'\n{backbone.name}, {backbone.input_size} px, batches of {batch_size}: {n_frames:,} frames in {counted(n_videos, "video")}, '
          f'{n_parallel} at a time, decoder threads for each: {n_threads}')
    print(f'{"":38}{"frames/s":>9}{"seconds":>9}{"processor s":>13}{"ms a frame":>12}')
    for name, o in zip(ways, found, strict=True): print(f'{name:38}{o.rate:9.0f}{o.seconds:9.1f}{o.processor_s:13.1f}{o.processor_ms:12.2f}')
    slower, shared = min(decode.rate, network.rate), 1/(1/decode.rate + 1/network.rate)
    print(f'{"bound A, the slower of the two":38}{slower:9.0f}   whole pass at {whole.rate/slower:.0%}')
    print(f'{"bound B, both on the same cores":38}{shared:9.0f}   whole pass at {whole.rate/shared:.0%}, by processor seconds '
          f'{(decode.processor_s + network.processor_s)/whole.processor_s:.0%}', flush=True)
    return whole


def extract(source: Path, folder: Path, png_level: int) -> int:
    "Every frame as a PNG, a process for each core; returns the bytes written."
    folder.mkdir()
    def run(path: Path) -> None:
        subprocess.run([sys.executable, '-c', EXTRACT, str(path), str(folder/path.stem), str(png_level)], check=True)
    with ThreadPoolExecutor(count_cores()) as pool: list(pool.map(run, videos_of(source)))
    return sum(o.stat().st_size for o in folder.iterdir())


def embed_folder(folder: Path, backbone: Backbone, batch_size: int) -> int:
    "Embed a folder of pictures."
    return len(embed(scan(folder), backbone, folder, batch_size, -1)[1].emb)


def compare_extracting(source: Path, folder: Path, n_frames: int, png_level: int, backbone: Backbone, batch_size: int, ours: Taken) -> None:
    "Extract and embed, a table and the ratio."
    sizes: list[int] = []
    def writing() -> int:
        sizes.append(extract(source, folder, png_level))
        return n_frames
    written, read = timed(writing), timed(lambda: embed_folder(folder, backbone, batch_size))
    shutil.rmtree(folder)
    both = Taken(read.n_frames, written.seconds + read.seconds, written.processor_s + read.processor_s)
    if read.n_frames != n_frames: sys.exit(f'{n_frames} frames are expected, {read.n_frames} were extracted')
    n_video = sum(o.stat().st_size for o in videos_of(source))
    print(f'\nthe usual way, {n_frames:,} frames as PNG of level {png_level}: {sizes[0]/1e6:,.0f} MB written, {sizes[0]/n_video:.0f} times the videos')
    for name, o in (('extracting', written), ('embedding the folder', read), ('both', both)):
        print(f'{name:38}{o.rate:9.0f}{o.seconds:9.1f}{o.processor_s:13.1f}{o.processor_ms:12.2f}')
    print(f'whole pass is {ours.rate/both.rate:.1f} times as fast, by processor seconds {both.processor_ms/ours.processor_ms:.1f} times', flush=True)


# Where the time goes, and what the shortcuts cost


def steps(source: Path, backbone: Backbone) -> None:
    "Processor time of each step of reading, in one thread."
    spent = dict.fromkeys(('decode', 'reader', 'hash', 'score', 'scale'), 0.)
    scores, squares, whole, clock = [], [], [], time.thread_time
    for path in videos_of(source):
        scaler, begun = FrameScaler(backbone.input_size), clock()
        plain_frames(path, 1)
        decoded = clock()
        reader_frames(path, 1)
        spent['decode'] += decoded - begun
        spent['reader'] += clock() - decoded - (decoded - begun)
        for frame in VideoReader(path):
            at = [clock()]
            for make in (frame_hash, uniform_row_ratio, scaler):
                found = make(frame)
                at.append(clock())
                if make is uniform_row_ratio: scores.append(found)
            for name, used in zip(('hash', 'score', 'scale'), np.diff(at), strict=True): spent[name] += float(used)
            squares.append(found)
            whole.append(square_pixels(frame_image(frame), backbone.input_size))
    print(f'\nsteps of reading {source.name}, one thread, ms a frame: '
          + ', '.join(f'{name} {1000*o/len(scores):.2f}' for name, o in spent.items()))
    cos = cosines(backbone, squares, whole)
    print(f'uniform_row_ratio of {len(scores):,} frames: max {max(scores):.4f}, mean {np.mean(scores):.5f}')
    print('cosine of embeddings, scaled by the decoder against full RGB and Pillow: '
          f'min {cos.min():.5f}, 1 % quantile {np.quantile(cos, .01):.5f}, median {np.median(cos):.5f}', flush=True)


def cosines(backbone: Backbone, some: list[np.ndarray], others: list[np.ndarray]) -> np.ndarray:
    "Cosine between the embeddings of two versions of the same pictures."
    def vectors(pixels: list[np.ndarray]) -> np.ndarray:
        parts = np.array_split(np.stack(pixels), max(1, len(pixels)//32))
        batches = (Batch(np.arange(len(o)), o, {}, 0.) for o in parts)
        emb = np.concatenate([embed_batch(o, backbone, backbone.module, torch.device('cpu'), None) for o in batches])
        return emb/np.linalg.norm(emb, axis=1, keepdims=True)
    return (vectors(some)*vectors(others)).sum(axis=1)


# Memory


def peak_mb() -> float:
    "Most memory that this process has held at a time."
    status = Path('/proc/self/status')  # of this program alone; what `getrusage` tells includes the process that started it
    if status.is_file(): return next(int(o.split()[1])/1e3 for o in status.read_text().splitlines() if o.startswith('VmHWM'))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(1e6 if sys.platform == 'darwin' else 1e3)


def measure_memory(folder: str, batch_size: int) -> None:
    "The whole pass in this process; prints what it took as JSON."
    backbone = load_backbone()
    before = peak_mb()
    taken = timed(lambda: whole_pass(Path(folder), backbone, batch_size))
    print(json.dumps({'n_frames': taken.n_frames, 'seconds': taken.seconds, 'before_mb': before, 'peak_mb': peak_mb()}))


def in_process(folder: Path, batch_size: int) -> None:
    "Peak memory of the whole pass, in a process of its own."
    command = [sys.executable, str(Path(__file__).resolve()), '--memory-of', str(folder), '--batch', str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode: sys.exit(f'the pass failed:\n{done.stderr[-3000:]}')
    told = json.loads(done.stdout.splitlines()[-1])
    print(f'peak memory of {told["n_frames"]:7,} frames in {counted(len(videos_of(folder)), "video")}: {told["peak_mb"]:5.0f} MB, '
          f'{told["before_mb"]:.0f} MB before the first frame; {told["n_frames"]/told["seconds"]:.0f} frames/s', flush=True)


def one_video(source: Path, folder: Path, n_least: int) -> int:
    "Fill a folder with one long video, made of the one of most frames for each keyframe; returns the number of its frames."
    stamps = {o: video_stamps(o) for o in videos_of(source)}
    path = max(stamps, key=lambda o: len(stamps[o])/sum(is_key for _, is_key in stamps[o]))
    folder.mkdir()
    n_loops = -(-n_least//len(stamps[path]))
    loop_video(path, folder/path.name, n_loops)
    return n_loops*len(stamps[path])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data_dir', nargs='?', type=Path, default=VIDEOS)
    parser.add_argument('--frames', type=int, default=20_000)
    parser.add_argument('--rounds', type=int, default=1, help='in turns; medians are shown')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--extract-frames', type=int, default=2000)
    parser.add_argument('--png-level', type=int, default=6, help="compression, 0 to 9; 6 is Pillow's own choice, 1 the fastest")
    parser.add_argument('--large-frames', type=int, default=1000, help='for the large network, which takes long; 0: without')
    parser.add_argument('--hour', action='store_true', help='memory also with one video of an hour')
    parser.add_argument('--quick', action='store_true', help='a tenth of the frames, no large network')
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)
    args = parser.parse_args()
    with listening(lambda _: None):
        if args.memory_of: return measure_memory(args.memory_of, args.batch)
        if not args.data_dir.is_dir(): sys.exit(f'{args.data_dir} is not there; name a folder of videos')
        with tempfile.TemporaryDirectory() as name: run(args, Path(name))


def run(args: argparse.Namespace, folder: Path) -> None:
    "All comparisons."
    portion = 10 if args.quick else 1
    n_all = loop_videos(args.data_dir, folder/'all', args.frames//portion)
    n_quarter = loop_videos(args.data_dir, folder/'quarter', args.frames//portion//4)
    n_some = loop_videos(args.data_dir, folder/'some', args.extract_frames//portion)
    backbone = load_backbone()
    print(f'{args.data_dir.name} looped without encoding; {count_cores()} cores, load {os.getloadavg()[0]:.1f}, rounds: {args.rounds}', flush=True)
    whole_pass(folder/'quarter', backbone, args.batch)  # what happens once: machine code, page cache
    ours = compare(folder/'all', n_all, backbone, args.batch, args.rounds)
    compare_extracting(folder/'some', folder/'png', n_some, args.png_level, backbone, args.batch, ours)
    n_one = one_video(args.data_dir, folder/'one', args.frames//portion//4)
    compare(folder/'one', n_one, backbone, args.batch, args.rounds)
    steps(args.data_dir, backbone)
    print(f'\n{n_quarter:,} and {n_all:,} frames: memory is flat when the second is not much more')
    for part in ('quarter', 'all'): in_process(folder/part, args.batch)
    if args.hour:
        one_video(args.data_dir, folder/'hour', HOUR)
        in_process(folder/'hour', args.batch)
    if args.quick or not args.large_frames: return
    n_large = loop_videos(args.data_dir, folder/'large', args.large_frames)
    large = load_backbone('resnet-18', num_ftrs=64, input_size=64, allow_random_weights=True)
    compare(folder/'large', n_large, large, args.batch, 1)


if __name__ == '__main__': main()
