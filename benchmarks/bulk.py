"""Bulk prediction in figures: its share of the bare engine's speed, its memory, and more than one process.

    python -m benchmarks.bulk share             # ready crops, interleaved with the bare engine on the same faces
    python -m benchmarks.bulk memory            # resident memory from image 1,000 to 20,000
    python -m benchmarks.bulk processes         # faces/s of 1 and 2 processes and several batches, bytes a photo

Faces are drawn (`ifan.data.toy`), so that nothing need be there; ``processes --photos DIR`` takes photos and detects.
Every process has ``--threads`` threads. What is printed goes into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from ifan.bulk.run import predict_bulk
from ifan.data.toy import ToyFaces
from ifan.faces import FaceAnalyzer
from ifan.faces.sources import expand
from ifan.ops.native import cpu_module, cpu_refusal
from ifan.weights import DEFAULT, load_network


def draw(folder: Path, count: int, side: int) -> list[str]:
    """``count`` drawn faces as PNG files of ``side`` pixels, at most 512 different ones."""
    folder.mkdir(exist_ok=True)
    faces = ToyFaces(min(count, 512), seed=0, size=side)
    for i in range(count):
        if i < len(faces):
            cv2.imwrite(str(folder / f"{i:06}.png"), faces[i].image[..., ::-1])
        else:
            os.link(folder / f"{i % len(faces):06}.png", folder / f"{i:06}.png")
    return expand([str(folder)])[0]


def table_tasks(analyzer: FaceAnalyzer) -> list[str]:
    """Tasks of `ifan predict` for a table: all but parsing."""
    return [task.name for task in analyzer.config.tasks if task.kind != "parsing"]


def share(options: argparse.Namespace, folder: Path) -> None:
    """Bulk prediction and the bare engine by turns over the same faces; the median of the pairs' ratios."""
    network = load_network(options.weights)
    paths = draw(folder / "in", options.count, network.config.image_size)
    crops = np.stack([cv2.imread(path)[..., ::-1].transpose(2, 0, 1) for path in paths])
    full = FaceAnalyzer(network, detector=None, iterations=options.iterations)
    kinds = (("points and emotion", table_tasks(full)), ("parsing too", None))
    for what, tasks in kinds[: 1 if options.tables_only else 2]:
        analyzer = FaceAnalyzer(
            network, detector=None, iterations=options.iterations, tasks=tasks, batch_size=options.batch
        )

        def bare(analyzer: FaceAnalyzer = analyzer) -> None:
            for first in range(0, len(crops), options.batch):
                analyzer.predictor(crops[first : first + options.batch])

        pairs = []
        for turn in range(options.rounds + 1):
            out = folder / f"{bool(tasks)}-{turn}.jsonl"
            pairs.append((timed(bare), timed(lambda: predict_bulk(analyzer, paths, out, threads=options.decoders))))  # noqa: B023
        del pairs[0]  # warms up
        rates = [len(paths) / statistics.median(pair[way][0] for pair in pairs) for way in (0, 1)]
        shares = [sorted(engine[kind] / bulk[kind] for engine, bulk in pairs) for kind in (0, 1)]
        print(f"{what}: engine {rates[0]:.0f} faces/s, bulk {rates[1]:.0f} faces/s; {len(paths)} faces a round")
        for kind, ratios in zip(("time", "processor time, decoding included"), shares, strict=True):
            print(f"  share by {kind}: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call, and seconds of processor time of all threads."""
    start, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - used


def memory(options: argparse.Namespace, folder: Path) -> None:
    """Resident memory at every thousandth image."""
    network = load_network(options.weights)
    tasks = table_tasks(FaceAnalyzer(network, detector=None))
    analyzer = FaceAnalyzer(
        network, detector=None, iterations=options.iterations, tasks=tasks, batch_size=options.batch
    )
    sizes: dict[int, int] = {}

    def note(done: int, *_: int) -> None:
        if done % 1000 == 0 and done:
            sizes[done] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    paths = draw(folder / "in", 512, network.config.image_size)
    paths = (paths * (options.count // len(paths) + 1))[: options.count]
    start = time.perf_counter()
    predict_bulk(analyzer, paths, folder / "out.parquet", shard_rows=500, progress=note)
    print(f"{options.count / (time.perf_counter() - start):.0f} faces/s")
    for done, size in sizes.items():
        print(f"image {done}: {size / 2**20:.1f} MiB, {size / sizes[1000] - 1:+.1%}")


def processes(options: argparse.Namespace, folder: Path) -> None:
    """`ifan predict` in 1 and 2 processes, each on its part of the inputs; time from the start of the first image."""
    network = load_network(options.weights)
    paths = (
        expand([options.photos])[0] if options.photos else draw(folder / "in", options.count, network.config.image_size)
    )
    paths = paths[: options.count]
    print("| processes | batch | photos/s | read, bytes a photo | written, bytes a photo |\n|---|---|---|---|---|")
    for batch in options.batches:
        for count in (1, 2):
            outs = [folder / f"{batch}-{count}-{i}.parquet" for i in range(count)]
            workers = [start(options, paths[i::count], out, batch) for i, out in enumerate(outs)]
            seconds = [float(worker.communicate()[0]) for worker in workers]
            if any(worker.returncode for worker in workers):
                sys.exit("a process failed")
            written = sum(part.stat().st_size for out in outs for part in out.glob("part-*"))
            read = sum(Path(path).stat().st_size for path in paths)
            print(
                f"| {count} | {batch} | {len(paths) / max(seconds):.1f} | {read / len(paths):.0f} | "
                f"{written / len(paths):.0f} |",
                flush=True,
            )


WORKER = """
import sys, time, torch
from benchmarks.bulk import table_tasks
from ifan.faces import FaceAnalyzer
from ifan.bulk.run import predict_bulk
from ifan.weights import load_network
threads, batch, weights, iterations, detector, out = sys.argv[1:7]
torch.set_num_threads(int(threads))
network = load_network(weights)
options = {"iterations": int(iterations) or None, "detector": detector or None, "batch_size": int(batch)}
tasks = table_tasks(FaceAnalyzer(network, detector=None))
analyzer = FaceAnalyzer(network, tasks=tasks, **options)
start = time.perf_counter()
predict_bulk(analyzer, sys.stdin.read().splitlines(), out)
print(time.perf_counter() - start)
"""


def start(options: argparse.Namespace, paths: Sequence[str], out: Path, batch: int) -> subprocess.Popen[str]:
    """A process that analyses ``paths`` and prints the seconds that took."""
    detector = "centerface" if options.photos else ""
    arguments = [options.threads, batch, options.weights, options.iterations or 0, detector, out]
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
        cwd=Path(__file__).parents[1],
    )
    assert worker.stdin is not None
    worker.stdin.write("\n".join(paths))
    worker.stdin.close()
    worker.stdin = None
    return worker


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["share", "memory", "processes"])
    parser.add_argument("--weights", default=DEFAULT)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--count", type=int, default=2000, help="images; 20,000 for memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables-only", action="store_true", help="share: leave out the runs with parsing")
    parser.add_argument("--decoders", type=int, help="threads that decode; as many as processors if left out")
    parser.add_argument("--photos", help="folder of photos, for processes")
    options = parser.parse_args()
    if options.what == "memory":
        options.count = max(options.count, 20_000)
    torch.set_num_threads(options.threads)
    kernels = cpu_module().features() if cpu_refusal() is None else {"processor": "?", "isa": "none"}
    print(f"{kernels['processor']}, kernels {kernels['isa']}, torch {torch.__version__}, {options.threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        {"share": share, "memory": memory, "processes": processes}[options.what](options, Path(folder))


if __name__ == "__main__":
    main()
