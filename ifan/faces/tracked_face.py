"""Records of one face over time, and who is who among several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ifan.crop import Crop, crop_of_points, points_from_crop
from ifan.faces.detect import Box, Detection
from ifan.faces.framing import crop_of_box
from ifan.predictions import FacePredictions

FALL, LEAST = 0.6, 0.1
"""A face is followed while its trust is at least this share of what it was when the detector last confirmed it, and at
least so much: sunglasses are no occlusion."""

JUMP = 0.15
"""Largest distance between where a face was expected and where the network finds it, in sides of the usual crop."""

BENT, GROWN, LOOSER = 0.05, 1.15, 0.01
"""Largest mean change of where the five points lie about their centre, in the same sides, largest factor between two of
these sides, and so much more for each frame that a face was hidden: eyes of one face and the mouth of another are none.
"""

STRAY, STRAYS, HELD = 0.05, 2, 10
"""Distance, in the same sides, by which a point leaves the others' motion in one frame when something hides it; so many
of five points are held back at most, for so many frames."""

WIDE_SLACK = 0.02
"""Distance that a face moves before the regions around it follow, in sides of the crop that they were found in."""

DOUBLE = 0.2
"""Distance between two faces' points, in the same sides, below which they are one."""

TOUCH = 0.8
"""Distance between two faces' points, in the same sides, below which one may hide part of the other."""

FIT = 1.6
"""Largest factor between a face's size by its points and by the detector's box."""

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
    ``around``: the wider crop that was seen when the detector last ran, carried along, and the logits of regions
    (K, S, S) found there: hair is wider than a face.
    """

    id: int
    state: State
    trust: float
    crop: Crop
    found: FacePredictions
    points: np.ndarray
    detection: Detection
    around: tuple[Crop, np.ndarray] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """Findings of one pass about a face; ``index``: which of its ``points`` (P, 2) are the `POINT_NAMES`."""

    crop: Crop
    found: FacePredictions
    points: np.ndarray
    index: Sequence[int]
    trust: float

    @property
    def five(self) -> np.ndarray:
        """The five points (5, 2) in pixels."""
        return self.points[self.index]

    @property
    def side(self) -> float:
        """Side of the usual crop around the points."""
        return crop_of_points(self.five).side

    def fits(self, detection: Detection) -> bool:
        """True if it is about as large as the detector says."""
        return 1 / FIT < self.side / crop_of_box(detection.box).side < FIT

    def shifted(self, by: np.ndarray) -> Sighting:
        """The same face elsewhere."""
        crop = replace(self.crop, cx=self.crop.cx + float(by[0]), cy=self.crop.cy + float(by[1]))
        return replace(self, crop=crop, points=self.points + by)


class Track:
    """A face over time. ``last``: the last sighting, carried on by ``motion`` (pixels a frame) in the ``missed``
    frames since."""

    def __init__(self, number: int, sighting: Sighting, detection: Detection) -> None:
        self.id, self.motion = number, np.zeros(2)
        self._around: tuple[Crop, np.ndarray] | None = None
        self._held = 0  # frames in which points have been held back
        self.begin(sighting, detection)

    def begin(self, sighting: Sighting, detection: Detection) -> None:
        """Start to follow, for the first time or again."""
        self.last, self.missed = sighting, 0
        self.state: State = "new"
        self.confirm(detection)

    def confirm(self, detection: Detection) -> None:
        """Take over the detector's box and score; the network's present trust is this face's usual one."""
        usual = crop_of_points(self.last.five)
        corners = np.array(detection.box).reshape(2, 2)
        self._corners = (corners - (usual.cx, usual.cy)) / usual.side
        self._score, self._usual_trust = detection.score, self.last.trust

    def keep_surroundings(self, wide: Sighting) -> None:
        """Keep the regions of a wider crop of the same frame."""
        if len(wide.found.parsing_logits):
            self._around = wide.crop.seen_from(crop_of_points(self.last.five)), wide.found.parsing_logits[0]
            self._wide = wide.crop

    def is_believed(self, sighting: Sighting) -> bool:
        """True if this is the face, seen where it was expected."""
        least = max(LEAST, FALL * self._usual_trust)
        bent = (sighting.five - sighting.five.mean(0)) - (self.last.five - self.last.five.mean(0))
        looser = LOOSER * self.missed
        return (
            sighting.trust >= least
            and self.distance(sighting) <= JUMP
            and np.linalg.norm(bent, axis=1).mean() <= (BENT + looser) * self.last.side
            and abs(math.log(sighting.side / self.last.side)) <= math.log(GROWN) + looser
        )

    def distance(self, sighting: Sighting) -> float:
        """From where this face is expected, in sides of the usual crop around it."""
        expected = self.last.five.mean(0) + self.motion
        return float(np.linalg.norm(sighting.five.mean(0) - expected)) / self.last.side

    def steadied(self, sighting: Sighting) -> Sighting:
        """The sighting with points that jump carried on by the motion of the others."""
        steps = sighting.five - self.last.five
        common = np.median(steps, 0)
        stray = np.linalg.norm(steps - common, axis=1) > STRAY * self.last.side
        if not 0 < stray.sum() <= STRAYS or self._held >= HELD:
            self._held = 0
            return sighting
        self._held += 1
        points = sighting.points.copy()
        points[np.array(sighting.index)[stray]] = (self.last.five + common)[stray]
        return replace(sighting, points=points)

    def touches(self, other: Track) -> bool:
        """True if the other face's points are so near that they may be taken for this one's."""
        away = self.last.five.mean(0) - other.last.five.mean(0)
        return float(np.linalg.norm(away)) < TOUCH * max(self.last.side, other.last.side)

    def see(self, sighting: Sighting, alone: bool) -> None:
        """Go on with what a pass found; the motion of a face that is not ``alone`` is that from before."""
        if alone and self.missed == 0:
            self.motion = self.motion + INERTIA * (sighting.five.mean(0) - self.last.five.mean(0) - self.motion)
        self.last, self.missed, self.state = sighting, 0, "followed"
        self._carry_surroundings()

    def carry_on(self) -> None:
        """Go on without."""
        self.last = self.last.shifted(self.motion)
        self.motion = self.motion * SLOWING
        self.missed, self.state = self.missed + 1, "occluded"
        self._carry_surroundings()

    def _carry_surroundings(self) -> None:
        if self._around is not None:
            self._wide = settled(_placed(self._around[0], crop_of_points(self.last.five)), self._wide, WIDE_SLACK)

    @property
    def box(self) -> Box:
        """The detector's box, carried along with the points."""
        usual = crop_of_points(self.last.five)
        (x0, y0), (x1, y1) = (self._corners * usual.side + (usual.cx, usual.cy)).tolist()
        return x0, y0, x1, y1

    def face(self) -> TrackedFace:
        """The face as others see it."""
        last, around = self.last, None if self._around is None else (self._wide, self._around[1])
        detection = Detection(self.box, self._score)
        return TrackedFace(self.id, self.state, last.trust, last.crop, last.found, last.points, detection, around)


def settled(wanted: Crop, held: Crop, slack: float) -> Crop:
    """``held`` as long as its corners are within about ``slack`` sides of those of the ``wanted`` crop, else that."""
    away = math.hypot(wanted.cx - held.cx, wanted.cy - held.cy) / held.side
    turned = abs((wanted.angle_deg - held.angle_deg + 180) % 360 - 180)
    return held if max(away, abs(math.log(wanted.side / held.side)) / 2, math.radians(turned) / 2) < slack else wanted


def _placed(crop: Crop, other: Crop) -> Crop:
    """A crop that is given in sides of ``other`` from its centre, in pixels."""
    ((x, y),) = points_from_crop(np.array([[crop.cx], [crop.cy]]), other).tolist()
    return Crop(x, y, crop.side * other.side, crop.angle_deg + other.angle_deg)


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
