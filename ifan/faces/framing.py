"""From a face that was found to the crop that the network was trained on."""

from __future__ import annotations

import math

import numpy as np

from ifan.crop import Crop, crop_of_points
from ifan.faces.detect import Box, Detection

FACE_MARGIN = 1.45
"""Side of the crop / side of a square as large as the face's box, where only a box is known."""

FACE_DROP = 0.07
"""Distance of the crop's centre below the box's, in sides of that square: eyes, nose and mouth are lower than
the middle between hairline and chin. Both measured on CenterFace's boxes in MTFL's pictures, see docs/detector.md."""

SMALLEST_EXTENT = 2.0
"""Of a face's points in pixels; closer together they say nothing."""


def crop_of(face: Detection, margin: float = FACE_MARGIN) -> Crop:
    """The crop of a detection: by its points where there are five, else by its box."""
    points = np.array(face.points, np.float64)
    if points.shape == (5, 2) and np.isfinite(points).all() and np.ptp(points, 0).max() >= SMALLEST_EXTENT:
        return crop_of_points(points, margin / FACE_MARGIN)
    return crop_of_box(face.box, margin)


def crop_of_box(box: Box, margin: float = FACE_MARGIN) -> Crop:
    """An upright crop around a box (x0, y0, x1, y1) from hairline to chin."""
    x0, y0, x1, y1 = box
    side = math.sqrt((x1 - x0) * (y1 - y0))
    return Crop((x0 + x1) / 2, (y0 + y1) / 2 + FACE_DROP * side, side * margin)
