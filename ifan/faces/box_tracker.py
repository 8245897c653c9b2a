"""Faces followed by their boxes alone: for networks that find no points, and clips whose frames are crops of a face."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ifan.config import NetworkConfig
from ifan.crop import Crop, crop_image, points_from_crop
from ifan.faces.detect import Detection, Detector
from ifan.faces.framing import FACE_MARGIN, crop_of
from ifan.faces.tracked_face import State, TrackedFace, matched
from ifan.refine import Runner


class BoxTracker:
    """The faces of one clip, looked for in each frame; a box that overlaps one of the last frame has its id.

    Args:
        config: the network's.
        run: one pass of all tasks (`ifan.refine.Runner`).
        detector: finds the faces; ``None``: each frame is the crop of one face.
        margin: see `ifan.faces.framing.FACE_MARGIN`.
    """

    def __init__(
        self, config: NetworkConfig, run: Runner, detector: Detector | None, margin: float = FACE_MARGIN
    ) -> None:
        self.config, self.run, self.detector, self.margin = config, run, detector, margin
        self._ids = itertools.count(1)
        self._last: list[TrackedFace] = []

    def __call__(self, frame: np.ndarray) -> list[TrackedFace]:
        """The faces of the next ``frame`` (H, W, 3) uint8 RGB, in the order of their ids; none is ever occluded, and
        all are trusted."""
        detections, crops = self._framed(frame)
        pairs = matched([face.detection.box for face in self._last], [detection.box for detection in detections])
        before = {new: self._last[old].id for old, new in pairs}
        size = self.config.image_size
        pixels = [crop_image(frame, crop, size).transpose(2, 0, 1) for crop in crops]
        found = self.run(np.stack(pixels), None) if pixels else None
        self._last = []
        for i, (detection, crop) in enumerate(zip(detections, crops, strict=True)):
            assert found is not None
            row = found[i : i + 1]
            points = points_from_crop(row.points[0], crop) if self.config.landmarks else np.empty((0, 2))
            state: State = "followed" if i in before else "new"
            number = before.get(i) or next(self._ids)
            self._last.append(TrackedFace(number, state, 1.0, crop, row, points, detection))
        self._last.sort(key=lambda face: face.id)
        return list(self._last)

    def _framed(self, frame: np.ndarray) -> tuple[Sequence[Detection], list[Crop]]:
        if self.detector is None:
            height, width = frame.shape[:2]
            whole = Detection((0.0, 0.0, float(width), float(height)), None)
            return [whole], [Crop.from_box(whole.box)]
        (detections,) = self.detector.detect([frame])
        return detections, [crop_of(detection, self.margin) for detection in detections]
