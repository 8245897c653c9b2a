"""The face detector's network against OpenCV and OpenVINO: milliseconds a picture, in turns in one process.

    OMP_NUM_THREADS=2 python -m benchmarks.detector              # 1024 x 768
    python -m benchmarks.detector --size 640 480 --seconds 5

Each contender is also measured alone first; its better figure counts. What is printed goes into docs/detector.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import resources

import cv2
import numpy as np
import openvino

from ifan.engine.centerface import CenterFaceEngine
from ifan.native import thread_count
from ifan.processor import processor

OUTPUTS = ("537", "538", "539", "540")
"""Heat map, size, offset and points, by their names in the file."""

Run = Callable[[np.ndarray], list[np.ndarray]]


def contenders(model: bytes, threads: int) -> dict[str, Run]:
    """The same network by each: a picture (3, H, W) float32 to its maps."""
    engine = CenterFaceEngine(model)
    cv2.setNumThreads(threads)
    opencv = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    read = core.read_model(model)
    compiled: dict[tuple[int, ...], openvino.CompiledModel] = {}

    def by_opencv(picture: np.ndarray) -> list[np.ndarray]:
        opencv.setInput(picture[None])
        return [output[0] for output in opencv.forward(list(OUTPUTS))]

    def by_openvino(picture: np.ndarray) -> list[np.ndarray]:
        if picture.shape not in compiled:
            read.reshape([1, *picture.shape])
            compiled[picture.shape] = core.compile_model(read, "CPU", options)
        found = compiled[picture.shape](picture[None])
        return [found[name][0] for name in OUTPUTS]

    return {"ifan": lambda picture: engine(picture, threads), "opencv": by_opencv, "openvino": by_openvino}


def timed(run: Run, picture: np.ndarray) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    run(picture)
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    """Print a line a contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 768), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--seconds", type=float, default=10.0, help="alone, and once more for all in turns")
    options = parser.parse_args()
    width, height = options.size
    model = (resources.files("ifan") / "assets" / "centerface.onnx").read_bytes()
    portrait = cv2.imread(str(resources.files("ifan") / "assets" / "astronaut.png"))[:, :, ::-1]
    picture = np.ascontiguousarray(cv2.resize(portrait, (width, height)).transpose(2, 0, 1), np.float32)
    runs = contenders(model, thread_count())
    expected = [run(picture) for run in (runs["opencv"], runs["openvino"], runs["ifan"])]
    alone: dict[str, list[float]] = {name: [] for name in runs}
    turns: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        end = time.perf_counter() + options.seconds / len(runs)
        while time.perf_counter() < end:
            alone[name].append(timed(run, picture))
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end:
        for name, run in runs.items():
            turns[name].append(timed(run, picture))
    best = {name: min(statistics.median(alone[name]), statistics.median(turns[name])) for name in runs}
    print(f"{processor()[0]}, {thread_count()} threads, {width} x {height}")
    for name in runs:
        print(
            f"{name:9} {best[name]:7.1f} ms   {best[name] / best['ifan']:5.2f} of ifan   "
            f"alone {statistics.median(alone[name]):.1f}, in turns {statistics.median(turns[name]):.1f} "
            f"({len(turns[name])} rounds)"
        )
    for other, maps in zip(("opencv", "openvino"), expected[:2], strict=True):
        away = max(float(np.abs(a - b).max()) for a, b in zip(maps, expected[2], strict=True))
        print(f"largest difference from {other}: {away:.1e}")


if __name__ == "__main__":
    main()
