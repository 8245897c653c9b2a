"""Limits of packaged weights: accuracy by groups of people, and on pictures made worse step by step.

    python -m benchmarks.limits --data mtfl=MTFL --data celebamask=CelebAMask-HQ --data fer2013=fer2013

Validation splits only. What is written, docs/results/limits.json, fills docs/results/limits.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ifan.config import IGNORE
from ifan.crop import Crop
from ifan.data import FaceDataset, FaceSample, open_dataset
from ifan.evaluation import Subset, evaluate
from ifan.files import write_files
from ifan.weights import load_network

FILE = Path(__file__).parents[1] / "docs/results/limits.json"
FIGURES = {"landmarks": "nme", "parsing": "mean_f", "classification": "accuracy"}

Change = Callable[[FaceSample, Crop], FaceSample]
"""A worse sample of a sample and its usual crop."""


class Changed:
    """A dataset whose samples ``change`` makes worse; crops are framed as before."""

    def __init__(self, dataset: FaceDataset, change: Change) -> None:
        self.name, self.margin, self.classes = dataset.name, dataset.margin, dataset.classes
        self.tasks, self.dataset, self.change = dataset.tasks, dataset, change

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> FaceSample:
        sample = self.dataset[index]
        height, width = sample.image.shape[:2]
        return self.change(sample, Crop.from_box(sample.box or (0, 0, width, height), self.margin))

    def labels_of(self, index: int) -> dict[str, int]:
        """Class ids by task of sample ``index``, without reading its picture."""
        return self.dataset.labels_of(index)


def smaller(pixels: int) -> Change:
    """The crop has a side of so many pixels, enlarged again; what is smaller already stays."""

    def change(sample: FaceSample, crop: Crop) -> FaceSample:
        height, width = sample.image.shape[:2]
        scale = min(1.0, pixels / crop.side)
        small = cv2.resize(sample.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return replace(sample, image=cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))

    return change


def blurred(share: float) -> Change:
    """Blurred by a Gaussian whose standard deviation is a share of the crop's side."""
    return lambda sample, crop: replace(sample, image=cv2.GaussianBlur(sample.image, (0, 0), share * crop.side))


def lit(factor: float) -> Change:
    """So many times the light, with the noise of a sensor (standard deviation 4 of 255) and clipped."""

    def change(sample: FaceSample, crop: Crop) -> FaceSample:
        noise = np.random.default_rng(round(crop.side)).normal(0, 4, sample.image.shape)
        linear = (sample.image / 255.0) ** 2.2 * factor
        return replace(sample, image=np.clip(255 * linear ** (1 / 2.2) + noise, 0, 255).round().astype(np.uint8))

    return change


def turned(degrees: float) -> Change:
    """Turned in the picture's plane around the crop's centre, labels too."""

    def change(sample: FaceSample, crop: Crop) -> FaceSample:
        height, width = sample.image.shape[:2]
        matrix = cv2.getRotationMatrix2D((crop.cx - 0.5, crop.cy - 0.5), degrees, 1)
        image = cv2.warpAffine(
            sample.image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        points = None if sample.points is None else (sample.points - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5
        parsing = sample.parsing
        if parsing is not None:
            scale = parsing.shape[1] / width
            assert math.isclose(scale, 1), "labels at the picture's size"
            parsing = cv2.warpAffine(parsing, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=IGNORE)
        return replace(
            sample, image=image, points=None if points is None else points.astype(np.float32), parsing=parsing
        )

    return change


def covered(top: float, bottom: float) -> Change:
    """A grey bar over the crop's whole width, from one share of its height to another."""

    def change(sample: FaceSample, crop: Crop) -> FaceSample:
        image, start = sample.image.copy(), crop.cy - crop.side / 2
        y0, y1 = (round(start + share * crop.side) for share in (top, bottom))
        x0, x1 = round(crop.cx - crop.side / 2), round(crop.cx + crop.side / 2)
        image[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 128
        return replace(sample, image=image)

    return change


CHANGES: dict[str, dict[str, Change]] = {
    "size of the crop": {f"{pixels} px": smaller(pixels) for pixels in (96, 64, 48, 32, 24)},
    "blur, part of the crop": {f"{share:.0%}": blurred(share) for share in (0.01, 0.02, 0.04)},
    "light": {f"{factor:g} times": lit(factor) for factor in (4, 0.25, 0.06, 0.02)},
    "turn": {f"{degrees}°": turned(degrees) for degrees in (15, 30, 45)},
    "covered": {"mouth and chin": covered(0.62, 1.0), "eyes": covered(0.3, 0.5)},
}


def figures(model: Any, datasets: Mapping[str, FaceDataset]) -> dict[str, float | None]:
    """One figure a dataset: the first of its best known task."""
    report = evaluate(model, datasets)["datasets"]
    return {name: _figure(dataset["tasks"]) for name, dataset in report.items()}


def _figure(tasks: Mapping[str, Any]) -> float | None:
    first = next(iter(tasks.values()))
    value: float | None = first[FIGURES[first["kind"]]]
    return value


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="ifan-128")
    parser.add_argument("--data", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--splits", type=Path)
    parser.add_argument("--limit", type=int, default=150, help="faces a dataset for the pictures made worse")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    model = load_network(options.weights)
    paths = dict(item.split("=", 1) for item in options.data)
    whole = {name: open_dataset(name, path, "val", options.splits) for name, path in paths.items()}
    report = evaluate(model, whole)["datasets"]
    groups: dict[str, Any] = {}
    for dataset in report.values():
        for task in dataset["tasks"].values():
            groups |= task.get("groups", {})
    some = {name: Subset(dataset, options.limit) for name, dataset in whole.items()}
    found: dict[str, Any] = {
        "weights": options.weights,
        "faces": {name: len(dataset) for name, dataset in whole.items()},
        "limit": options.limit,
        "groups": groups,
        "classes": {n: t["classes"] for d in report.values() for n, t in d["tasks"].items() if "classes" in t},
        "calibration": {
            name: {
                key: task[key] for key in ("calibration_error", "best_temperature", "calibration_error_at_best", "bins")
            }
            for dataset in report.values()
            for name, task in dataset["tasks"].items()
            if "bins" in task
        },
        "changes": {"": {"as they are": figures(model, some)}},
    }
    for kind, steps in CHANGES.items():
        found["changes"][kind] = {}
        for step, change in steps.items():
            found["changes"][kind][step] = figures(model, {n: Changed(d, change) for n, d in some.items()})
            print(kind, step, found["changes"][kind][step], flush=True)
    write_files({options.out: (json.dumps(found, indent=1) + "\n").encode()})


if __name__ == "__main__":
    main()
