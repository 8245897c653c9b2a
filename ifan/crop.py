"""The crop convention: one square window of a picture, shared by training, evaluation and inference.

Coordinates are continuous: pixel (i, j) covers [j, j+1) x [i, i+1) and its centre is (j + 0.5, i + 0.5). OpenCV's
warps put centres on integers; that half pixel is corrected here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ifan.config import IGNORE

SHRINK_ABOVE = 1.2
"""Source pixels a drawn pixel above which areas are averaged."""

PIXELS_AT_ONCE = 1 << 22
"""Pixels of a picture whose classes are drawn together: a face may fill 100 million, and each takes 30 bytes here."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A square of ``side`` pixels around (``cx``, ``cy``), turned clockwise by ``angle_deg``; ``flip`` mirrors its
    content.

    Raises ``ValueError`` when a number is not finite or the side is not positive.
    """

    cx: float
    cy: float
    side: float
    angle_deg: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.cx, self.cy, self.side, self.angle_deg))) or self.side <= 0:
            raise ValueError(
                f"crop: expected finite numbers and a positive side; got {self}; check the box or the points"
            )

    @classmethod
    def from_box(cls, box: Sequence[float], margin: float = 1.0) -> Crop:
        """The square around the centre of ``box`` (x0, y0, x1, y1) with its longer side times ``margin``."""
        x0, y0, x1, y1 = (float(v) for v in box)
        if not (x1 > x0 and y1 > y0):
            raise ValueError(f"crop: expected a box x0 < x1, y0 < y1; got {(x0, y0, x1, y1)}; order its corners")
        return cls((x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0) * margin)

    def seen_from(self, other: Crop) -> Crop:
        """The same square in sides of ``other`` from its centre, as ``other`` is drawn."""
        (cx,), (cy,) = points_to_crop(np.array([[self.cx, self.cy]]), other)
        turn = (self.angle_deg - other.angle_deg) * (-1 if other.flip else 1)
        return Crop(float(cx), float(cy), self.side / other.side, turn, self.flip != other.flip)

    def matrix(self, size: int) -> np.ndarray:
        """(2, 3) float64: continuous picture pixels -> continuous pixels of the crop drawn at ``size`` x ``size``."""
        angle, scale = math.radians(self.angle_deg), size / self.side
        c, s = scale * math.cos(angle), scale * math.sin(angle)
        across = -1 if self.flip else 1
        top = (across * c, across * s, size / 2 - across * (c * self.cx + s * self.cy))
        return np.array([top, (-s, c, size / 2 + s * self.cx - c * self.cy)])


def crop_of_points(points: np.ndarray, scale: float = 1.0) -> Crop:
    """``points`` (5, 2) turned until the face is upright and framed as training pictures are (`box_around`).

    Upright: the line between the eyes and the one from the eyes down to the mouth count by their lengths, so a profile,
    whose eyes are close together, is judged by the other one.
    """
    eyes, down = points[1] - points[0], (points[3] + points[4] - points[0] - points[1]) / 2
    angle = math.atan2(eyes[1] - down[0], eyes[0] + down[1])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    x0, y0, x1, y1 = box_around(points @ turn.T)
    cx, cy = np.array([x0 + x1, y0 + y1]) / 2 @ turn
    return Crop(float(cx), float(cy), (x1 - x0) * scale, math.degrees(angle))


def box_around(points: np.ndarray, factor: float = 3.2) -> tuple[float, float, float, float]:
    """The square around the middle of a face's points (P, 2), ``factor`` times their larger extent."""
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    (cx, cy), half = (low + high) / 2, float((high - low).max()) * factor / 2
    return float(cx - half), float(cy - half), float(cx + half), float(cy + half)


def crop_image(image: np.ndarray, crop: Crop, size: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """The crop of ``image`` (H, W, 3) uint8 as (size, size, 3) uint8; outside the picture its border pixel repeats.

    ``border``: another of OpenCV's ways to go on there. A crop that shrinks is drawn at twice its size, from areas
    averaged to about that size, and halved: nothing aliases and the warp's interpolation blurs little.
    """
    drawn = 2 * size if crop.side > SHRINK_ABOVE * size else size
    ratio, matrix = crop.side / drawn, crop.matrix(drawn)
    x0, y0, x1, y1 = covered(crop, image.shape, 2 + 2 * ratio)
    image = image[y0:y1, x0:x1]
    matrix[:, 2] += matrix[:, :2] @ (x0, y0)
    if ratio > SHRINK_ABOVE:
        height, width = image.shape[:2]
        small = max(1, round(width / ratio)), max(1, round(height / ratio))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        matrix[:, :2] *= (width / small[0], height / small[1])
    if image.shape[:2] != (drawn, drawn) or np.abs(matrix - np.eye(2, 3)).max() > 1e-9:
        image = cv2.warpAffine(
            image, _centres_on_integers(matrix), (drawn, drawn), flags=cv2.INTER_LINEAR, borderMode=border
        )
    if drawn != size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)


def crop_labels(labels: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """The crop of a label map (H, W) uint8 as (size, size) uint8: the label under each centre, IGNORE outside."""
    height, width = labels.shape
    inverse = cv2.invertAffineTransform(crop.matrix(size))
    centres = np.arange(size) + 0.5
    x, y = (
        np.floor(row[0] * centres[None, :] + row[1] * centres[:, None] + row[2] + 1e-9).astype(np.int64)
        for row in inverse
    )
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = labels[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return np.where(inside, found, np.uint8(IGNORE))


def points_to_crop(points: np.ndarray, crop: Crop) -> np.ndarray:
    """(P, 2) picture pixels -> (2, P) normalised to the crop: [-0.5, 0.5] inside. Order is kept, also when it flips."""
    matrix = crop.matrix(1)
    return np.asarray(matrix[:, :2] @ np.asarray(points, np.float64).T + matrix[:, 2:] - 0.5)


def points_from_crop(points: np.ndarray, crop: Crop) -> np.ndarray:
    """(2, P) normalised crop points -> (P, 2) picture pixels; the inverse of `points_to_crop`."""
    inverse = cv2.invertAffineTransform(crop.matrix(1))
    return np.asarray((inverse[:, :2] @ (np.asarray(points, np.float64) + 0.5) + inverse[:, 2:]).T)


def map_to_image(probabilities: np.ndarray, crop: Crop, shape: tuple[int, int]) -> np.ndarray:
    """(K, S, S) class probabilities of a crop -> (H, W) uint8 class ids at the picture's resolution.

    Probabilities are interpolated, then the largest wins; pixels outside the crop are 0.
    """
    ids = np.zeros(shape, np.uint8)
    x0, y0, x1, y1 = covered(crop, shape)
    matrix = crop.matrix(probabilities.shape[-1])
    rows = max(1, PIXELS_AT_ONCE // (x1 - x0))
    for top in range(y0, y1, rows):
        shifted = matrix.copy()
        shifted[:, 2] += matrix[:, :2] @ (x0, top)
        _draw_ids(ids[top : min(top + rows, y1), x0:x1], probabilities, shifted)
    return ids


def _draw_ids(ids: np.ndarray, probabilities: np.ndarray, matrix: np.ndarray) -> None:
    """Write the most probable classes under ``matrix``, pixels of ``ids`` to those of the crop."""
    height, width = ids.shape
    size, warp = probabilities.shape[-1], _centres_on_integers(matrix)
    best = np.full(ids.shape, -np.inf, np.float32)
    for k, plane in enumerate(probabilities):
        drawn = cv2.warpAffine(
            np.ascontiguousarray(plane, np.float32),
            warp,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        better = drawn > best
        ids[better] = k
        best[better] = drawn[better]
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for row in matrix:
        position = row[0] * x[None, :] + row[1] * y[:, None] + row[2]
        ids[(position < 0) | (position > size)] = 0


def covered(crop: Crop, shape: Sequence[int], pad: float = 0.0) -> tuple[int, int, int, int]:
    """Pixels x0, y0, x1, y1 of the picture that the crop and ``pad`` around it touch, at least one."""
    angle = math.radians(crop.angle_deg)
    reach = crop.side / 2 * (abs(math.cos(angle)) + abs(math.sin(angle))) + pad
    height, width = shape[:2]
    x0, y0 = (min(max(math.floor(c - reach), 0), n - 1) for c, n in ((crop.cx, width), (crop.cy, height)))
    x1, y1 = (max(min(math.ceil(c + reach), n), a + 1) for c, a, n in ((crop.cx, x0, width), (crop.cy, y0, height)))
    return x0, y0, x1, y1


def _centres_on_integers(matrix: np.ndarray) -> np.ndarray:
    """The same map for OpenCV, whose coordinates are ours less a half."""
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return shifted
