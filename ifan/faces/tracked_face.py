"""What is known of one face over time, and who is who among several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ifan.crop import Crop, crop_of_points
from ifan.faces.detect import Box, Detection
from ifan.predictions import FacePredictions

FALL, LEAST = 0.6, 0.1
"""A face is followed while its trust is at least this share of what it was when the detector last confirmed it, and at
least so much: sunglasses are no occlusion."""

JUMP = 0.15
"""Largest distance between where a face was expected and where the network finds it, in sides of the usual crop."""

DOUBLE = 0.2
"""Distance between two faces' points, in the same sides, below which they are one."""

SAME = 0.3
"""Intersection over union of two boxes from which they are the same face."""

INERTIA, SLOWING = 0.4, 0.97
"""Share of a new step in a face's motion; share of its motion that a hidden face keeps in each frame."""

State = Literal["new", "followed", "occluded"]


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFace:
    """One face of a frame.

    ``id``: its number in the clip, from 1. ``state``: ``"new"`` in the first frame after it came or came back,
    ``"occluded"`` where the network is not to be trusted and it was carried on by its motion, else ``"followed"``.
    ``trust`` in [0, 1]: see `ifan.faces.trust`. ``crop``: the square that the network saw; ``found``: what it predicts
    there, one row; ``points`` (P, 2) in pixels; ``detection``: the box carried along, and the detector's last score.
    """

    id: int
    state: State
    trust: float
    crop: Crop
    found: FacePredictions
    points: np.ndarray
    detection: Detection


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """What one pass found of a face; ``five``: its `POINT_NAMES` (5, 2) in pixels."""

    crop: Crop
    found: FacePredictions
    points: np.ndarray
    five: np.ndarray
    trust: float

    @property
    def side(self) -> float:
        """Side of the usual crop around the points."""
        return crop_of_points(self.five).side

    def shifted(self, by: np.ndarray) -> Sighting:
        """The same face elsewhere."""
        crop = replace(self.crop, cx=self.crop.cx + float(by[0]), cy=self.crop.cy + float(by[1]))
        return replace(self, crop=crop, points=self.points + by, five=self.five + by)


class Track:
    """A face over time. ``last``: the last sighting, carried on by ``motion`` (pixels a frame) in the ``missed``
    frames since."""

    def __init__(self, number: int, sighting: Sighting, detection: Detection) -> None:
        self.id = number
        self.begin(sighting, detection)

    def begin(self, sighting: Sighting, detection: Detection) -> None:
        """Start to follow, for the first time or again."""
        self.last, self.motion, self.missed = sighting, np.zeros(2), 0
        self.state: State = "new"
        self.confirm(detection)

    def confirm(self, detection: Detection) -> None:
        """Take over the detector's box and score; the network's present trust is this face's usual one."""
        usual = crop_of_points(self.last.five)
        corners = np.array(detection.box).reshape(2, 2)
        self._corners = (corners - (usual.cx, usual.cy)) / usual.side
        self._score, self._usual_trust = detection.score, self.last.trust

    def is_believed(self, sighting: Sighting) -> bool:
        """True if this is the face, seen where it was expected."""
        least = max(LEAST, FALL * self._usual_trust)
        return sighting.trust >= least and self.distance(sighting) <= JUMP

    def distance(self, sighting: Sighting) -> float:
        """From where this face is expected, in sides of the usual crop around it."""
        expected = self.last.five.mean(0) + self.motion
        return float(np.linalg.norm(sighting.five.mean(0) - expected)) / self.last.side

    def see(self, sighting: Sighting) -> None:
        """Go on with what a pass found."""
        step = sighting.five.mean(0) - self.last.five.mean(0)
        self.motion = self.motion + INERTIA * (step - self.motion) if self.missed == 0 else self.motion
        self.last, self.missed, self.state = sighting, 0, "followed"

    def carry_on(self) -> None:
        """Go on without."""
        self.last = self.last.shifted(self.motion)
        self.motion = self.motion * SLOWING
        self.missed, self.state = self.missed + 1, "occluded"

    @property
    def box(self) -> Box:
        """The detector's box, carried along with the points."""
        usual = crop_of_points(self.last.five)
        (x0, y0), (x1, y1) = (self._corners * usual.side + (usual.cx, usual.cy)).tolist()
        return x0, y0, x1, y1

    def face(self) -> TrackedFace:
        """The face as others see it."""
        last = self.last
        detection = Detection(self.box, self._score)
        return TrackedFace(self.id, self.state, last.trust, last.crop, last.found, last.points, detection)


def without_doubles(pairs: Sequence[tuple[Track, Sighting]]) -> set[Track]:
    """Tracks that keep their sighting. Of several that see one face it is the one in sight longest without a gap, then
    the one that expected it there."""
    kept: list[tuple[Track, Sighting]] = []
    for track, sighting in sorted(pairs, key=lambda pair: (pair[0].missed, pair[0].distance(pair[1]))):
        centre = sighting.five.mean(0)
        if all(np.linalg.norm(centre - other.five.mean(0)) >= DOUBLE * other.side for _, other in kept):
            kept.append((track, sighting))
    return {track for track, _ in kept}


def matched(ours: Sequence[Box], theirs: Sequence[Box]) -> list[tuple[int, int]]:
    """Pairs of boxes, the largest overlaps first; each box at most once."""
    overlaps = sorted(((_overlap(a, b), i, j) for i, a in enumerate(ours) for j, b in enumerate(theirs)), reverse=True)
    pairs: list[tuple[int, int]] = []
    for overlap, i, j in overlaps:
        if overlap >= SAME and all(i != a and j != b for a, b in pairs):
            pairs.append((i, j))
    return pairs


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)
