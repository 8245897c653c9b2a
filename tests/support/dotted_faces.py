"""Faces of five coloured dots, with a network and a detector that read them: a tracker can be tested exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ifan.config import EMOTIONS, PARSING_CLASSES, POINT_NAMES, NetworkConfig, TaskConfig
from ifan.faces.analyzer import FaceAnalyzer
from ifan.faces.detect import Detection, Detector
from ifan.predictions import FacePredictions, uninitialised

CONFIG = NetworkConfig(
    size=32,
    iterations=1,
    growth=4,
    block_layers=1,
    stem_channels=8,
    up_channels=16,
    tasks=(
        TaskConfig("parsing", "parsing", PARSING_CLASSES),
        TaskConfig("landmarks", "landmarks", POINT_NAMES),
        TaskConfig("emotion", "classification", EMOTIONS),
    ),
)
SHAPE = np.array([(-10, -8), (10, -8), (0, 2), (-8, 12), (8, 12)], float)
"""Points of a face from its place."""

COLOURS = np.array([(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)])
REGIONS = [PARSING_CLASSES.index(name) for name in ("eye", "eye", "nose", "upper_lip", "lower_lip")]

Place = tuple[float, float]


def draw(
    places: Sequence[Place], size: tuple[int, int] = (240, 160), plate: tuple[int, int] | None = None
) -> np.ndarray:
    """A frame with faces from back to front, and a grey plate over the columns ``plate``."""
    frame = np.full((size[1], size[0], 3), 60, np.uint8)
    y, x = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    for place in places:
        frame[np.hypot(x - place[0], y - place[1]) < 24] = 120
        for point, colour in zip(SHAPE + place, COLOURS, strict=True):
            frame[np.hypot(x - point[0], y - point[1]) < 3.5] = colour
    if plate:
        frame[:, max(plate[0], 0) : max(plate[1], 0)] = 60
    return frame


class Network:
    """A runner that finds each dot as the mean place of its colour in the middle of the crop, the nose ``lies`` crop
    sides away from it; ``calls``: faces in each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.lies: Place = 0.0, 0.0

    def __call__(self, images: np.ndarray, begun: FacePredictions | None = None) -> FacePredictions:
        self.calls.append(len(images))
        found = uninitialised(CONFIG, [task.name for task in CONFIG.tasks], len(images))
        found.parsing_logits[:], found.points[:] = 0, 0
        found.parsing_logits[:, 0] = 8
        found.class_logits["emotion"][:] = np.arange(7)
        side = images.shape[-1]
        y, x = (np.mgrid[0:side, 0:side] + 0.5) / side - 0.5
        middle = np.hypot(x, y) < 0.42
        for row, image in enumerate(images):
            for k, colour in enumerate(COLOURS):
                near = (np.abs(image - colour[:, None, None]).max(0) < 110) & middle
                if near.any():
                    found.points[row, :, k] = x[near].mean(), y[near].mean()
                    found.parsing_logits[row, REGIONS[k]][near] = 20
            found.points[row, :, 2] += self.lies
        return found


class Eyes:
    """A detector that is told where the faces are; ``runs`` counts its calls."""

    def __init__(self) -> None:
        self.places: Sequence[Place] = ()
        self.runs = 0

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        self.runs += 1
        return [[_detection(*place) for place in self.places]]


def _detection(x: float, y: float) -> Detection:
    points = SHAPE + np.array((x, y))
    return Detection((x - 22, y - 26, x + 22, y + 26), 0.9, tuple((px, py) for px, py in points.tolist()))


def watching(analyzer: FaceAnalyzer, monkeypatch: pytest.MonkeyPatch, detector: Detector) -> FaceAnalyzer:
    """``analyzer`` with a network that sees faces of five dots, and a detector of them."""
    monkeypatch.setattr(analyzer, "one_pass", Network)
    analyzer.predictor.tasks = tuple(task for task in analyzer.predictor.tasks if task.name != "smile")
    analyzer.detector = detector
    return analyzer
