"""Iterations: what the next pass of a network sees, and what it begins with.

A pass feeds the next one. Where ``network.reframe`` says so, the points found so far also frame the face anew: upright,
centred and as large as in training, or larger, with the photo's own pixels. Later crops differ in side, and every other
one sees the mirror image, so that their errors differ too; what they find is averaged. What was found is moved into the
next crop and fed back there, as the paper's iterations feed it back into the same one. Regions beyond the later crops
are the first iteration's.

Any runner will do, and `moved` takes predictions into any crop: that of the next frame of a clip as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np

from ifan.config import POINT_NAMES, NetworkConfig, mirrored
from ifan.crop import Crop, crop_image, crop_of_points, points_from_crop, points_to_crop
from ifan.predictions import FacePredictions

SIDES = 0.75, 0.95
"""Sides of the closest and the widest later crop, in sides of the usual crop around a face's points."""

REACH = 0.3
"""Largest distance of a later crop's centre from the first one's, in its sides; points farther away are wrong."""

NEAREST, FARTHEST = 0.4, 1.4
"""Bounds of a later crop's side, in sides of the first."""

WINDOW = 1.6
"""Side of the source window around the first crop, in its sides; later crops are cut from it."""

WIDER = 1.3
"""Side of the first of several crops, in sides of the usual one, where a face was found: hair is wider than a face."""

FIRST = 0.2
"""Weight of the first iteration's parsing beside a later one's."""

FEATHER = 0.06
"""Sides of a later crop along its border over which its parsing counts less and less."""

HAIR = "hair"
"""Class that often goes on beyond the first crop."""

TOUCHING = 0.02
"""Share of the first crop's border that is hair where it goes on beyond it."""

AROUND = 1.45
"""Side of the crop that such a face is seen in once more, in sides of the first; at most `WINDOW`."""

TINY = np.finfo(np.float32).tiny

Runner = Callable[[np.ndarray, FacePredictions | None], FacePredictions]
"""Any number of images (N, 3, I, I) uint8 RGB to predictions, a row a face: all iterations that see these images, or
one that begins with the predictions given."""


def softmax(logits: np.ndarray, axis: int = 0) -> np.ndarray:
    """Probabilities along ``axis``; those of logits that are not finite are not either."""
    with np.errstate(invalid="ignore"):
        powers = logits - logits.max(axis, keepdims=True, initial=-np.inf)
        np.exp(powers, out=powers)
        powers /= powers.sum(axis, keepdims=True)
    return powers


def source_window(image: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """Pixels that later crops are cut from: `WINDOW` times as much of ``image`` (H, W, 3) uint8 as the first ``crop``
    of ``size`` pixels, twice as fine: (V, V, 3) uint8."""
    return crop_image(image, replace(crop, side=crop.side * WINDOW), round(2 * size * WINDOW))


def closer_crop(config: NetworkConfig, points: np.ndarray, iteration: int, iterations: int) -> Crop:
    """Crop of ``iteration`` (1 = the second) of ``iterations`` around ``points`` (2, P), in sides of the first crop
    from its centre."""
    assert config.landmarks
    five = points[:, [config.landmarks.classes.index(name) for name in POINT_NAMES]].T.astype(np.float64)
    sound = np.isfinite(five).all() and np.ptp(five, 0).max() > 0
    usual = crop_of_points(five) if sound else Crop(0, 0, 1)
    cx, cy = np.clip((usual.cx, usual.cy), -REACH, REACH)
    sides = np.linspace(*SIDES, iterations - 1) if iterations > 2 else [sum(SIDES) / 2]
    side = np.clip(usual.side * sides[iteration - 1], NEAREST, FARTHEST)
    return Crop(float(cx), float(cy), float(side), usual.angle_deg, iteration % 2 == 1)


def refine(
    config: NetworkConfig, run: Runner, images: np.ndarray, windows: Sequence[np.ndarray], iterations: int
) -> list[FacePredictions]:
    """Predictions after each of ``iterations`` that reframe a face, in terms of the first crops; with one, those of
    ``run``.

    Args:
        config: of a network with ``reframe``.
        run: makes one iteration of all tasks.
        images: (N, 3, I, I) uint8 RGB, the first crops.
        windows: an image's source window (see `source_window`) each; not used with one iteration.
        iterations: at least 1.

    Returns:
        An entry an iteration. After the first, points and logits of classes are means over the later crops, and
        parsing comes as logarithms of probabilities (N, K, 2S, 2S), averaged over all where later crops reach.

    Raises:
        ValueError: several iterations without a window for each image, or of a network that cannot frame a face.
    """
    if config.check_iterations(iterations) > 1 and len(windows) != len(images):
        raise ValueError(
            f"iterations: expected a source window for each of {len(images)} crops to make {iterations} iterations; "
            f"got {len(windows)}; pass one each"
        )
    found = [run(images, None)]
    if iterations == 1 or not len(images):
        return found
    mean = _Mean(config, found[0])
    for iteration in range(1, iterations):
        crops = [closer_crop(config, points, iteration, iterations) for points in found[-1].points]
        closer = np.stack([_cut(window, crop, images.shape[-1]) for window, crop in zip(windows, crops, strict=True)])
        found.append(mean.with_later(run(closer, moved(config, found[-1], crops)), crops))
    return found


def reaching_out(config: NetworkConfig, found: FacePredictions) -> np.ndarray:
    """True for each face whose hair reaches the border of the first crop: (N,) bool."""
    if not config.parsing or HAIR not in config.parsing.classes or not len(found.parsing_logits):
        return np.zeros(len(found.points), bool)
    hair = found.parsing_logits.argmax(1) == config.parsing.classes.index(HAIR)
    border = np.concatenate([hair[:, 0], hair[:, -1], hair[:, :, 0], hair[:, :, -1]], 1)
    return np.asarray(border.mean(1) > TOUCHING)


def around(
    config: NetworkConfig, run: Runner, windows: Sequence[np.ndarray], found: FacePredictions, size: int
) -> np.ndarray:
    """Logits of regions (N, K, S, S) in the crops `AROUND` times as large as the first ones, in one pass that begins
    with what was ``found`` in these; ``size``: pixels of the network's images."""
    crops = [Crop(0.0, 0.0, AROUND)] * len(windows)
    images = np.stack([_cut(window, crop, size) for window, crop in zip(windows, crops, strict=True)])
    return run(images, moved(config, found, crops)).parsing_logits


def moved(config: NetworkConfig, found: FacePredictions, crops: Sequence[Crop]) -> FacePredictions:
    """Predictions of all tasks as a pass at ``crops``, one a face, begins with them: parsing (N, K, S, S) from that of
    any side. Each crop is in sides of the one that was seen, from its centre (`Crop.seen_from`)."""
    parsing, points, classes = found.parsing_logits, found.points, found.class_logits
    if config.parsing:
        parsing = np.empty((len(crops), config.parsing.width, config.size, config.size), np.float32)
        for row, logits, crop in zip(parsing, found.parsing_logits, crops, strict=True):
            side = logits.shape[-1]
            matrix = side * cv2.invertAffineTransform(crop.matrix(config.size)) + np.array([0, 0, side / 2])
            drawn = _sampled(softmax(logits), *_places(matrix, config.size))
            row[:] = _log(_named(drawn, config.parsing.classes, crop))
    if config.landmarks:
        points = np.empty((len(crops), 2, config.landmarks.width), np.float32)
        for row, face, crop in zip(points, found.points, crops, strict=True):
            row[:] = _named(points_to_crop(face.T, crop), config.landmarks.classes, crop, axis=1)
    named = {
        task.name: np.array(
            [_named(logits, task.classes, crop) for logits, crop in zip(classes[task.name], crops, strict=True)],
            np.float32,
        ).reshape(len(crops), task.width)
        for task in config.classifications
    }
    return FacePredictions(parsing, points, named)


class _Mean:
    """Mean over the iterations so far, in terms of the first crops."""

    def __init__(self, config: NetworkConfig, first: FacePredictions) -> None:
        self.config, self.first, self.later = config, first, 0
        self.points = np.zeros(first.points.shape)
        self.classes = {name: np.zeros_like(logits) for name, logits in first.class_logits.items()}
        if config.parsing:
            side = 2 * config.size
            self.parsing = np.empty((*first.parsing_logits.shape[:2], side, side), np.float32)
            for row, logits in zip(self.parsing, first.parsing_logits, strict=True):
                for drawn, plane in zip(row, softmax(logits) * np.float32(FIRST), strict=True):
                    drawn[:] = cv2.resize(plane, (side, side), interpolation=cv2.INTER_LINEAR)
            self.weight = np.full((len(self.parsing), side, side), FIRST, np.float32)

    def with_later(self, found: FacePredictions, crops: Sequence[Crop]) -> FacePredictions:
        """The mean with what another iteration found in its ``crops``."""
        config, self.later = self.config, self.later + 1
        for i, crop in enumerate(crops):
            if config.landmarks:
                self.points[i] += points_from_crop(_named(found.points[i], config.landmarks.classes, crop, 1), crop).T
            for task in config.classifications:
                self.classes[task.name][i] += _named(found.class_logits[task.name][i], task.classes, crop)
            if config.parsing:
                planes = _named(softmax(found.parsing_logits[i]), config.parsing.classes, crop)
                self._draw_back(i, planes, crop)
        parsing = _log(self.parsing / self.weight[:, None]) if config.parsing else self.first.parsing_logits
        classes = {name: total / np.float32(self.later) for name, total in self.classes.items()}
        return FacePredictions(parsing, (self.points / self.later).astype(np.float32), classes)

    def _draw_back(self, face: int, planes: np.ndarray, crop: Crop) -> None:
        """Add planes (K, S, S) of a later crop where it reaches the first, on a grid twice as fine."""
        size = self.config.size
        matrix = crop.matrix(size)  # sides of the first crop from its centre -> pixels of the later one
        matrix[:, 2] -= matrix[:, :2].sum(1) / 2
        matrix[:, :2] /= 2 * size
        x, y = _places(matrix, 2 * size)
        border = np.minimum(np.minimum(x, size - x), np.minimum(y, size - y))
        weight = np.clip(border * np.float32(1 / (size * FEATHER)), 0, 1)
        rows, columns = (np.flatnonzero(weight.any(axis)) for axis in (1, 0))
        if rows.size:
            reached = np.s_[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            self.parsing[face][reached] += weight[reached] * _sampled(planes, x[reached], y[reached])
            self.weight[face] += weight


def _cut(window: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """``crop``, in sides of the first one, from a source window: (3, I, I)."""
    unit, middle = window.shape[0] / WINDOW, window.shape[0] / 2
    there = replace(crop, cx=crop.cx * unit + middle, cy=crop.cy * unit + middle, side=crop.side * unit)
    return crop_image(window, there, size).transpose(2, 0, 1)


def _named(values: np.ndarray, names: Sequence[str], crop: Crop, axis: int = 0) -> np.ndarray:
    """``values`` with left and right traded along ``axis`` if the crop is mirrored."""
    return values.take(_mirror(tuple(names)), axis) if crop.flip else values


@lru_cache
def _mirror(names: tuple[str, ...]) -> np.ndarray:
    return np.array(mirrored(names))


def _log(probabilities: np.ndarray) -> np.ndarray:
    """Logarithms of fresh ``probabilities``, in their place."""
    np.maximum(probabilities, TINY, out=probabilities)
    return np.log(probabilities, out=probabilities)


def _places(matrix: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the centres of ``size`` x ``size`` pixels under ``matrix`` (2, 3): x and y, continuous, float32."""
    centres = np.arange(size) + 0.5
    x, y = ((row[0] * centres + (row[1] * centres + row[2])[:, None]).astype(np.float32) for row in matrix)
    return x, y


def _sampled(planes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Planes (K, H, W) float32 at continuous places, bilinear, the border pixel repeated: (K, *x.shape).

    In full precision, where OpenCV's warps round places to 1/32 of a pixel.
    """
    height, width = planes.shape[1:]
    (columns, x), (rows, y) = _cells(x, width), _cells(y, height)
    corners = [rows * width + columns + step for step in (0, 1, width, width + 1)]
    out = np.empty((len(planes), *x.shape), np.float32)
    for plane, drawn in zip(planes.reshape(len(planes), -1), out, strict=True):  # one stays in the caches
        upper, right, lower, lower_right = (plane.take(at, mode="clip") for at in corners)  # all within: no checks
        _lerp(upper, right, x)
        _lerp(lower, lower_right, x)
        _lerp(upper, lower, y)
        drawn[:] = upper
    return out


def _lerp(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> None:
    """Move ``start`` by ``share`` of the way to ``end``, which is overwritten."""
    end -= start
    end *= share
    start += end


def _cells(places: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Index of the pixel whose centre comes before each place, and how far the place is from there to the next."""
    places = np.clip(places - np.float32(0.5), 0, pixels - 1)
    before = np.minimum(places.astype(np.intp), pixels - 2)
    return before, places - before.astype(np.float32)
