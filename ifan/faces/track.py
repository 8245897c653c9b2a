"""Faces of a clip or stream, followed from frame to frame.

The last points of a face, carried on by its motion, frame its next crop; one pass of the network for all faces finds
them there. The detector runs at the first frame, every `DETECT_EVERY`-th one, and more often while a face is hidden or
nobody is there. `ifan.faces.trust` says how far the network can be believed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from ifan.config import POINT_NAMES, NetworkConfig
from ifan.crop import Crop, crop_image, crop_of_points, points_from_crop
from ifan.faces.detect import Detection, Detector
from ifan.faces.framing import FACE_MARGIN, SMALLEST_EXTENT, crop_of
from ifan.faces.tracked_face import LEAST, Sighting, Track, TrackedFace, matched, settled, without_doubles
from ifan.faces.trust import point_trust
from ifan.predictions import FacePredictions, joined
from ifan.refine import WIDER, Runner, moved

DETECT_EVERY = 15
"""Frames between two runs of the detector while all goes well."""

RETRY = 3
"""Frames between them while a face is hidden or nobody is there."""

SIDE = 0.85
"""Side of a followed face's crop, in sides of the usual one around its points."""

SLACK = 0.04
"""Distance that a face moves in its crop, in crop sides, before the crop follows: a crop at rest keeps its pixels, and
the network's small errors, in place."""

SHOWN, REMEMBERED = 5, 90
"""Frames for which a hidden face is still given, carried on by its motion, and for which it may return with its id."""

CUT = 30.0
"""Mean difference of two frames' small grey pictures of the same brightness, in grey levels, above which the scene is
another one."""

NEAR, NEAR_GROWTH, RESIZED = 0.4, 0.02, 2.2
"""A hidden face returns within this distance of where it is expected, in sides of the usual crop, and so much more for
each frame it was away, if its size has changed by less than the last, a factor."""


class Tracker:
    """The faces of one clip or stream, frame by frame.

    Args:
        config: the network's; it finds the five points (`POINT_NAMES`).
        run: one pass of all tasks (`ifan.refine.Runner`).
        detector: finds the faces.
        detect_every: frames between two runs of the detector while all goes well.
        carry: begin a pass with what the last one found. The packaged weights are steadier without.

    Memory does not grow with the clip. Raises ``ValueError`` for another network or a number out of range.
    """

    def __init__(
        self,
        config: NetworkConfig,
        run: Runner,
        detector: Detector,
        detect_every: int = DETECT_EVERY,
        carry: bool = False,
    ) -> None:
        names = config.landmarks.classes if config.landmarks else ()
        if not set(POINT_NAMES) <= set(names):
            raise ValueError(
                f"tracking: expected a network that finds {', '.join(POINT_NAMES)}; got points {list(names)}; use "
                "weights that find them"
            )
        if detect_every < 1:
            raise ValueError(f"detect_every: expected at least 1 frame; got {detect_every}")
        self.config, self.run, self.detector = config, run, detector
        self.detect_every, self.carry = detect_every, carry
        self._five = [names.index(name) for name in POINT_NAMES]
        self._tracks: list[Track] = []
        self._ids = itertools.count(1)
        self._since = detect_every  # frames since the detector ran
        self._small: np.ndarray | None = None
        self._shape: tuple[int, ...] | None = None

    def __call__(self, frame: np.ndarray) -> list[TrackedFace]:
        """The faces of the next ``frame`` (H, W, 3) uint8 RGB, in the order of their ids.

        Raises ``ValueError`` for a frame of another size than the first, or weights whose predictions are not finite.
        """
        if self._shape not in (None, frame.shape):
            raise ValueError(
                f"frame: expected {self._shape} as before; got {frame.shape}; begin another tracker for another size"
            )
        self._shape = frame.shape
        self._since += 1
        if self._is_cut(frame):
            self._tracks.clear()
            self._since = self.detect_every
        hidden = self._follow(frame)
        all_well = self._tracks and not any(track.missed for track in self._tracks)
        if hidden or self._since >= (self.detect_every if all_well else min(RETRY, self.detect_every)):
            self._detect(frame)
        self._tracks = [track for track in self._tracks if track.missed <= REMEMBERED]
        return sorted((track.face() for track in self._tracks if track.missed <= SHOWN), key=lambda face: face.id)

    def _is_cut(self, frame: np.ndarray) -> bool:
        grey = cv2.cvtColor(cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        small = grey.astype(np.float32) - grey.mean()  # a flash is no cut
        before, self._small = self._small, small
        return before is not None and float(np.abs(before - small).mean()) > CUT

    def _follow(self, frame: np.ndarray) -> bool:
        """One pass for all faces; True if one that was followed is hidden now."""
        tracks = self._tracks
        found = self._seen(frame, [self._framed(track) for track in tracks], tracks if self.carry else [])
        found = [track.steadied(sighting) for track, sighting in zip(tracks, found, strict=True)]
        good = [pair for pair in zip(tracks, found, strict=True) if pair[0].is_believed(pair[1])]
        seen = without_doubles(good)
        hidden = False
        alone = [not any(track.touches(other) for other in tracks if other is not track) for track in tracks]
        for track, sighting, by_itself in zip(tracks, found, alone, strict=True):
            if track in seen:
                track.see(sighting, by_itself)
            else:
                hidden |= track.missed == 0
                track.carry_on()
        return hidden

    def _framed(self, track: Track) -> Crop:
        """Crop of the next pass: the last one as long as the face has moved little in it."""
        return settled(crop_of_points(track.last.five + track.motion, SIDE), track.last.crop, SLACK)

    def _seen(self, frame: np.ndarray, crops: Sequence[Crop], begun: Sequence[Track] = ()) -> list[Sighting]:
        """One pass at ``crops`` of a frame, begun with what was last found of ``begun`` if these are given."""
        if not crops:
            return []
        size = self.config.image_size
        pixels = np.stack([crop_image(frame, crop, size).transpose(2, 0, 1) for crop in crops])
        starts = [
            moved(self.config, track.last.found, [crop.seen_from(track.last.crop)])
            for track, crop in zip(begun, crops, strict=bool(begun))
        ]
        rows = self.run(pixels, joined(starts) if starts else None)
        return [self._sighting(frame, crop, rows[i : i + 1]) for i, crop in enumerate(crops)]

    def _sighting(self, frame: np.ndarray, crop: Crop, found: FacePredictions) -> Sighting:
        points = points_from_crop(found.points[0], crop)
        if not np.isfinite(points).all():
            raise ValueError("the network's points are not finite: its weights are damaged; use others")
        sighting = Sighting(crop, found, points, self._five, float(np.median(point_trust(self.config, found))))
        centre, extent = sighting.five.mean(0), float(np.ptp(sighting.five, 0).max())
        inside = (centre > 0).all() and (centre < frame.shape[1::-1]).all() and extent >= SMALLEST_EXTENT
        return sighting if inside else replace(sighting, trust=0.0)

    def _detect(self, frame: np.ndarray) -> None:
        """Let the detector confirm faces, bring hidden ones back, and find new ones."""
        self._since = 0
        (detections,) = self.detector.detect([frame])
        followed = [track for track in self._tracks if track.missed == 0]
        pairs = matched([track.box for track in followed], [d.box for d in detections])
        for i, j in pairs:
            followed[i].confirm(detections[j])
        taken = {j for _, j in pairs}
        fresh = [detection for j, detection in enumerate(detections) if j not in taken]
        known = [followed[i] for i, _ in pairs] if self.config.parsing else []
        wide = [crop_of_points(track.last.five, WIDER) for track in known]
        seen = self._seen(frame, wide + [crop_of(detection, FACE_MARGIN * WIDER) for detection in fresh])
        for track, sighting in zip(known, seen, strict=False):
            track.keep_surroundings(sighting)
        first = seen[len(known) :]
        sound = [i for i, sighting in enumerate(first) if sighting.trust >= LEAST]
        found = self._seen(frame, [crop_of_points(first[i].five, SIDE) for i in sound])
        for i, sighting in zip(sound, found, strict=True):
            if sighting.trust >= LEAST and sighting.fits(fresh[i]):
                self._begin(sighting, fresh[i]).keep_surroundings(first[i])

    def _begin(self, sighting: Sighting, detection: Detection) -> Track:
        """Follow a face that the detector found: a hidden one by place and size, or a new one."""
        away = {
            track: track.distance(sighting)
            for track in self._tracks
            if track.missed and 1 / RESIZED < sighting.side / track.last.side < RESIZED
        }
        near = [track for track, distance in away.items() if distance < NEAR + NEAR_GROWTH * track.missed]
        if near:
            found = min(near, key=away.__getitem__)
            found.begin(sighting, detection)
        else:
            found = Track(next(self._ids), sighting, detection)
            self._tracks.append(found)
        return found
