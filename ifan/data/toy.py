"""Drawn faces with exact labels for every task: for tests, and for a machine without data.

The expression is drawn by brows, eyes and mouth, the pose by how far the features slide across the face, the gender
by long or short hair; so a network can learn every task from a few hundred of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ifan.config import EMOTIONS, IGNORE, PARSING_CLASSES
from ifan.data.dataset import DataError, check_split
from ifan.data.labels import EMOTION, LANDMARKS, MTFL_ATTRIBUTES, PARSING, Classes
from ifan.data.sample import FaceSample

FRACTION_BITS = 4
"""Fixed-point bits of OpenCV's drawing coordinates."""


@dataclass(frozen=True, slots=True)
class _Expression:
    """Heights in half face widths, up positive: brow lift, how far the inner brow ends rise, eye opening, mouth
    corners' rise, mouth opening, mouth half width."""

    brow: float
    inner: float
    eye: float
    smile: float
    opening: float
    width: float


EXPRESSIONS = {
    "angry": _Expression(-0.04, -0.12, 0.08, -0.08, 0.05, 0.34),
    "disgust": _Expression(-0.06, -0.06, 0.06, -0.14, 0.14, 0.28),
    "fear": _Expression(0.08, 0.16, 0.17, -0.08, 0.16, 0.40),
    "happy": _Expression(0.00, 0.00, 0.09, 0.20, 0.14, 0.46),
    "sad": _Expression(0.02, 0.16, 0.08, -0.18, 0.02, 0.32),
    "surprise": _Expression(0.18, 0.02, 0.18, 0.00, 0.36, 0.24),
    "neutral": _Expression(0.00, 0.00, 0.12, 0.00, 0.02, 0.34),
}
CLASSES: Classes = {**PARSING, **LANDMARKS, **EMOTION, **MTFL_ATTRIBUTES}


class ToyFaces:
    """``count`` drawn faces of ``size`` x ``size`` pixels; each is a pure function of (seed, split, index).

    ``tasks`` leaves the labels of all other tasks out, as datasets that label one task do. Raises `DataError`.
    """

    name = "toy"
    margin = 1.0

    def __init__(
        self, count: int, seed: int = 0, size: int = 128, split: str = "train", tasks: Iterable[str] = tuple(CLASSES)
    ) -> None:
        check_split(self.name, split)
        self.classes = {task: CLASSES[task] for task in tasks if task in CLASSES}
        if not self.classes or len(self.classes) < len(set(tasks)):
            raise DataError(f"toy: expected tasks among {', '.join(CLASSES)}; got {list(tasks)}")
        if count < 1 or size < 16:
            raise DataError(f"toy: expected at least 1 face of at least 16 pixels; got {count} of {size}")
        self.count, self.seed, self.size, self.split = count, seed, size, split

    @property
    def tasks(self) -> frozenset[str]:
        """Tasks the samples are labelled for."""
        return frozenset(self.classes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> FaceSample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        face = _Drawing(self._rng(index, 1), self.size, self._labels(index)).sample(f"{self.split}-{index}")
        return replace(
            face,
            parsing=face.parsing if "parsing" in self.classes else None,
            points=face.points if "landmarks" in self.classes else None,
            labels=self.labels_of(index),
        )

    def labels_of(self, index: int) -> dict[str, int]:
        """Class ids of a sample, known without drawing it."""
        return {task: label for task, label in self._labels(index).items() if task in self.classes}

    def _labels(self, index: int) -> dict[str, int]:
        rng = self._rng(index, 0)
        labels = {task: int(rng.integers(len(names))) for task, names in MTFL_ATTRIBUTES.items() if task != "smile"}
        labels["emotion"] = int(rng.integers(len(EMOTIONS)))
        smiles = EMOTIONS[labels["emotion"]] == "happy"
        labels["smile"] = MTFL_ATTRIBUTES["smile"].index("smiling" if smiles else "not_smiling")
        return labels

    def _rng(self, index: int, use: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, zlib.crc32(self.split.encode()), index, use))


def open_toy(path: str, split: str) -> ToyFaces:
    """``toy:COUNT`` (or a number alone) as a dataset of that many faces."""
    count = str(path).removeprefix("toy:")
    if not count.isdigit() or int(count) < 1:
        raise DataError(
            f"toy: expected toy:COUNT with a positive count; got {str(path)!r}; write for example toy=toy:500"
        )
    return ToyFaces(int(count), split=split)


class _Drawing:
    """One face on its canvas: picture and label map are painted together, in coordinates of the face.

    Face coordinates: the origin is the middle of the face, x to the picture's right and y down, half the face's width
    = 1.
    """

    def __init__(self, rng: np.random.Generator, size: int, labels: dict[str, int]) -> None:
        self.rng, self.size, self.labels = rng, size, labels
        self.scale = size * rng.uniform(0.27, 0.33)
        self.middle = size * (0.5 + rng.uniform(-0.04, 0.04, 2))
        angle = np.deg2rad(rng.uniform(-12, 12))
        self.turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        # Poses are 0.5 apart; the jitter keeps a gap between them.
        self.yaw = (labels["pose"] - 2) / 2 + rng.uniform(-0.15, 0.15)
        self.image = _background(rng, size)
        self.map = np.zeros((size, size), np.uint8)
        self.skin = _colour(rng, (110, 80, 60), (245, 205, 180))
        self.hair = _colour(rng, (15, 10, 5), (200, 160, 90))
        self.points = np.zeros((5, 2), np.float32)

    def sample(self, key: str) -> FaceSample:
        """Paint everything, from the back to the front."""
        expression = EXPRESSIONS[EMOTIONS[self.labels["emotion"]]]
        self._head()
        self._eyes(expression)
        self._nose()
        self._mouth(expression)
        if MTFL_ATTRIBUTES["glasses"][self.labels["glasses"]] == "glasses":
            self._glasses()
        noise = self.rng.normal(0, self.rng.uniform(0, 6), self.image.shape)
        image = np.clip(self.image + noise, 0, 255).astype(np.uint8)
        return FaceSample(key, image, parsing=self.map, points=self.points, labels=self.labels)

    def _head(self) -> None:
        long = MTFL_ATTRIBUTES["gender"][self.labels["gender"]] == "female"
        bottom = self.rng.uniform(1.0, 1.5) if long else self.rng.uniform(-0.5, -0.2)
        self._paint(_ellipse(0, -0.25, 1.25, 1.25), self.hair, "hair")
        if long:
            self._paint(np.array([[-1.25, -0.3], [1.25, -0.3], [1.2, bottom], [-1.2, bottom]]), self.hair, "hair")
        else:
            self._paint(_ellipse(0, 0.3, 1.12, 1.1), self.hair * 0.6, "background")
        self._paint(np.array([[-0.45, 0.6], [0.45, 0.6], [0.6, 2.0], [-0.6, 2.0]]), self.skin * 0.8, "background")
        self._paint(_ellipse(0, 0.1, 1.0, 1.3), self.skin, "skin")
        line = self.rng.uniform(-0.85, -0.65)
        arc = _ellipse(0, 0.1, 1.02, 1.32)
        self._paint(arc[arc[:, 1] <= line], self.hair, "hair")

    def _eyes(self, e: _Expression) -> None:
        dark = _colour(self.rng, (20, 20, 20), (110, 90, 130))
        for side, name in ((-1, 0), (1, 1)):
            x, y = self._slide(0.42 * side, 0.15), -0.18
            half = 0.19
            self._paint(_ellipse(x, y, half, e.eye), np.array([245.0, 245, 240]), "eye")
            self._paint(_ellipse(x + 0.05 * self.yaw, y, min(0.09, e.eye), min(0.09, e.eye)), dark, "eye")
            self.points[name] = self._place(np.array([[x, y]]))[0]
            inner, outer = -0.2 * side, 0.24 * side
            top = y - 0.28 - e.brow
            brow = np.array([[x + inner, top - e.inner], [x + outer, top + 0.05], [x + outer, top + 0.12]])
            brow = np.vstack([brow, [[x + inner, top + 0.09 - e.inner]]])
            self._paint(brow, self.hair * 0.7, "brow")

    def _nose(self) -> None:
        tip = self._slide(0, 0.45)
        top, base = self._slide(0, 0.1), 0.32
        shape = np.array([[top - 0.06, -0.15], [top + 0.06, -0.15], [tip + 0.2, base - 0.02], [tip, base + 0.08]])
        self._paint(np.vstack([shape, [[tip - 0.2, base - 0.02]]]), self.skin * 0.82, "nose")
        self.points[2] = self._place(np.array([[tip, base]]))[0]

    def _mouth(self, e: _Expression) -> None:
        x, y, half = self._slide(0, 0.3), 0.72, e.width
        s = np.linspace(-1, 1, 17)
        corner = y - e.smile
        middle = y + 0.25 * e.smile
        bow = corner + (middle - corner) * (1 - s**2)
        lips = _colour(self.rng, (150, 40, 50), (215, 110, 110))
        opening = e.opening / 2 * (1 - s**2)
        thick = 0.09 * np.sqrt(np.maximum(0, 1 - s**2)) + 0.004

        def band(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
            line = np.concatenate([s, s[::-1]]) * half + x
            return np.column_stack([line, np.concatenate([upper, lower[::-1]])])

        self._paint(band(bow - opening - thick, bow - opening), lips, "upper_lip")
        self._paint(band(bow + opening, bow + opening + 1.2 * thick), lips * 0.92, "lower_lip")
        if e.opening > 0.04:
            self._paint(band(bow - opening, bow + opening), np.array([70.0, 15, 20]), "inside_mouth")
        self.points[3:] = self._place(np.array([[x - half, corner], [x + half, corner]]))

    def _glasses(self) -> None:
        colour = _colour(self.rng, (5, 5, 5), (90, 70, 60))
        width = max(1, round(0.06 * self.scale))
        rings = [_ellipse(self._slide(0.42 * side, 0.15), -0.18, 0.29, 0.25) for side in (-1, 1)]
        for line in (*rings, np.array([[rings[0][0, 0], -0.2], [rings[1][16, 0], -0.2]])):
            drawn, closed = self._fixed(line), len(line) > 2
            cv2.polylines(self.image, [drawn], closed, colour.tolist(), width, cv2.LINE_AA, FRACTION_BITS)
            cv2.polylines(self.map, [drawn], closed, IGNORE, width, cv2.LINE_8, FRACTION_BITS)

    def _slide(self, x: float, depth: float) -> float:
        """Place of a feature when the head turns: forward ones (nose) move further."""
        return x * float(np.cos(0.9 * self.yaw)) + self.yaw * (0.12 + depth)

    def _place(self, shape: np.ndarray) -> np.ndarray:
        """Face coordinates (n, 2) -> continuous pixels (n, 2)."""
        return np.asarray(shape @ self.turn.T * self.scale + self.middle)

    def _fixed(self, shape: np.ndarray) -> np.ndarray:
        # OpenCV's integers are pixel centres: half a pixel less than our continuous coordinates.
        return np.round((self._place(shape) - 0.5) * 2**FRACTION_BITS).astype(np.int32)

    def _paint(self, shape: np.ndarray, colour: np.ndarray, label: str) -> None:
        drawn = self._fixed(shape)
        cv2.fillPoly(self.image, [drawn], colour.tolist(), cv2.LINE_AA, FRACTION_BITS)
        cv2.fillPoly(self.map, [drawn], PARSING_CLASSES.index(label), cv2.LINE_8, FRACTION_BITS)


def _ellipse(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.column_stack([x + half_width * np.cos(angle), y + half_height * np.sin(angle)])


def _colour(rng: np.random.Generator, low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    """A colour between two, with a little independent change of each channel."""
    mix = np.clip(rng.random() + rng.uniform(-0.06, 0.06, 3), 0, 1)
    return np.asarray(low + mix * (np.array(high) - low))


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A smooth random pattern, as no two photos have the same wall."""
    coarse = rng.integers(0, 256, (3, 3, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC))
