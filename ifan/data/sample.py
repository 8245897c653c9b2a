"""One face and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class FaceSample:
    """A picture with one face and the labels of the tasks its dataset knows.

    ``image`` (H, W, 3) uint8 RGB. ``box`` (x0, y0, x1, y1) in pixels: what is cropped (see `ifan.crop`);
    ``None`` = the whole image. ``parsing`` (H, W) uint8 class ids of the network's parsing task, 255 = ignored.
    ``points`` (P, 2) float32 x, y in pixels, in the order of the dataset's ``classes``, NaN = unlabelled. ``labels``
    maps a classification task's name to a class id.
    """

    key: str
    image: np.ndarray
    box: tuple[float, float, float, float] | None = None
    parsing: np.ndarray | None = None
    points: np.ndarray | None = None
    labels: dict[str, int] = field(default_factory=dict)
