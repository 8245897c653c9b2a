"""Growth of the cost of inference: with the batch, the picture's side, the iterations, the threads and the faces.

    python -m benchmarks.cost

Milliseconds are the least of several calls, each setting in a process of its own. Memory is what that process has
grown by after them (Linux). What is written, benchmarks/results/cost-NAME.json, fills docs/results/cost.md. Nothing
else may run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ifan.config import NetworkConfig, load_config
from ifan.files import write_files

FOLDER = Path(__file__).parent / "results"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIDES = (64, 128, 192, 256)
ITERATIONS = (1, 2, 3)
THREADS = (1, 2)
FACES = (0, 1, 2, 5, 10, 20, 30)
SECONDS = 1.5
"""Spent on a setting, and at least three calls."""


def engine_case(config: NetworkConfig, batch: int) -> Callable[[], Any]:
    """Calls of the native engine with random weights, which cost what trained ones do."""
    from ifan.bench.network import random_network
    from ifan.engine.engine import Engine

    engine = Engine.from_network(random_network(config))
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, config.size, config.size), np.uint8)
    return lambda: engine(images)


def photo_case(faces: int) -> Callable[[], Any]:
    """Analyses of a photo of 1600 x 1200 with so many faces, the packaged portrait's, by the packaged weights."""
    import cv2

    import ifan
    from ifan.crop import Crop, crop_image
    from ifan.data.portrait import FACE, read_portrait

    face = crop_image(read_portrait(), Crop(*FACE), 200)
    photo = np.full((1200, 1600, 3), 90, np.uint8)
    for k in range(faces):
        y, x = 20 + 235 * (k // 6), 20 + 262 * (k % 6)
        photo[y : y + 200, x : x + 200] = cv2.convertScaleAbs(face, alpha=1 - 0.01 * k)
    analyzer = ifan.load()
    found = len(analyzer(photo).faces)
    if found != faces:
        raise RuntimeError(f"expected {faces} faces in the made photo; the detector found {found}")
    return lambda: analyzer(photo)


def cases() -> dict[str, dict[str, tuple[Any, ...]]]:
    """Settings by table and label: threads, then the arguments of `case`."""
    return {
        "batch": {str(batch): (2, "engine", 128, 1, batch) for batch in BATCHES},
        "side": {str(side): (2, "engine", side, 1, 1) for side in SIDES},
        "iterations": {str(n): (2, "engine", 128, n, 1) for n in ITERATIONS},
        "threads": {str(n): (n, "engine", 128, 1, 8) for n in THREADS},
        "faces": {str(n): (2, "photo", n) for n in FACES},
    }


def case(kind: str, *arguments: Any) -> Callable[[], Any]:
    """Calls of one setting, see `cases`."""
    if kind == "photo":
        return photo_case(*arguments)
    side, iterations, batch = arguments
    return engine_case(replace(load_config("paper-128").network, size=side, iterations=iterations), batch)


def measure(arguments: Sequence[Any]) -> dict[str, float]:
    """Least milliseconds of a call and megabytes that the calls took, in this process."""
    run = case(*arguments)
    before = _resident()
    run()
    times = [_timed(run) for _ in range(3)]
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        times.append(_timed(run))
    return {"ms": 1e3 * min(times), "mb": (_resident() - before) / 1e6, "calls": len(times)}


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def fitted(rows: dict[str, dict[str, float]], power: int = 1) -> dict[str, float]:
    """Milliseconds as ``fixed + each * x**power``, by least squares of relative errors; ``worst``: the largest."""
    x = np.array([float(label) ** power for label in rows])
    y = np.array([row["ms"] for row in rows.values()])
    (fixed, each), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones(len(y)), rcond=None)
    return {"fixed": float(fixed), "each": float(each), "worst": float(np.abs((fixed + each * x) / y - 1).max())}


def main() -> None:
    """Measure each setting in a process of its own, and write."""
    from ifan.processor import processor

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--name", help="the processor, as the file is called", default="amd-epyc-avx2-2threads")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return
    tables: dict[str, Any] = {}
    for table, settings in cases().items():
        tables[table] = {"rows": {}}
        for label, (threads, *arguments) in settings.items():
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            command = [sys.executable, "-m", "benchmarks.cost", "--case", json.dumps(arguments)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            tables[table]["rows"][label] = json.loads(done.stdout.splitlines()[-1])
            print(table, label, tables[table]["rows"][label], flush=True)
        tables[table]["fit"] = fitted(tables[table]["rows"], 2 if table == "side" else 1)
    found = {"processor": processor(), "tables": tables}
    write_files({FOLDER / f"cost-{options.name}.json": (json.dumps(found, indent=1) + "\n").encode()})


if __name__ == "__main__":
    main()
