"""From a face that was found to the crop that the network was trained on."""

from __future__ import annotations

import math

import numpy as np

from ifan.crop import Crop
from ifan.data.dataset import box_around
from ifan.faces.detect import Box, Detection

FACE_MARGIN = 1.45
"""Side of the crop / side of a square as large as the face's box, where only a box is known."""

FACE_DROP = 0.07
"""How far below the box's centre the crop's centre lies, in sides of that square: eyes, nose and mouth are lower than
the middle between hairline and chin. Both measured on CenterFace's boxes in MTFL's pictures, see docs/detector.md."""

SMALLEST_EXTENT = 2.0
"""Of a face's points in pixels; closer together they say nothing."""


def crop_of(face: Detection, margin: float = FACE_MARGIN) -> Crop:
    """The crop of a detection: by its points where there are five, else by its box."""
    points = np.array(face.points, np.float64)
    if points.shape == (5, 2) and np.isfinite(points).all() and np.ptp(points, 0).max() >= SMALLEST_EXTENT:
        return crop_of_points(points, margin / FACE_MARGIN)
    return crop_of_box(face.box, margin)


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


def crop_of_box(box: Box, margin: float = FACE_MARGIN) -> Crop:
    """An upright crop around a box (x0, y0, x1, y1) from hairline to chin."""
    x0, y0, x1, y1 = box
    side = math.sqrt((x1 - x0) * (y1 - y0))
    return Crop((x0 + x1) / 2, (y0 + y1) / 2 + FACE_DROP * side, side * margin)
