"""Smoothing of tracked faces over time, for what people look at.

Points and boxes pass a One-Euro filter (Casiez et al., "1 Euro Filter", CHI 2012): a low-pass filter whose cut-off
grows with the speed, so that a still face does not tremble and a moving one does not lag. Probabilities of classes and
regions are moving averages; those of regions move along with the face.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ifan.faces.detect import Detection
from ifan.faces.surroundings import logarithms, warped
from ifan.faces.tracked_face import TrackedFace
from ifan.predictions import FacePredictions
from ifan.refine import softmax

STILL_HZ = 1.0
"""Cut-off frequency for a face that does not move; it then lags by 1 / (2 pi) s."""

HZ_PER_SPEED = 30.0
"""Growth of the cut-off for each crop side a second."""

SPEED_HZ = 1.0
"""Cut-off frequency of the speed itself."""

CLASS_SECONDS, REGION_SECONDS = 0.4, 0.08
"""Time constants of the moving averages of probabilities."""

USUAL_STEP = 1 / 25
"""Seconds between frames where the clip does not say."""


class Smoother:
    """A clip's tracked faces, smoothed; call it once a frame, in order. Memory is that of the faces in sight."""

    def __init__(self) -> None:
        self._faces: dict[int, _Smoothed] = {}
        self._time: float | None = None

    def __call__(self, time: float | None, faces: Sequence[TrackedFace]) -> list[TrackedFace]:
        """``faces`` of the frame at ``time`` seconds (``None`` = unknown) with smoothed points, boxes, probabilities.

        A face that was not in the last frame begins anew.
        """
        step = time - self._time if time is not None and self._time is not None else USUAL_STEP
        step = step if step > 0 else USUAL_STEP
        self._time = time
        before, self._faces = self._faces, {}
        for face in faces:
            state = before.get(face.id) if face.state != "new" else None
            self._faces[face.id] = _Smoothed(face) if state is None else state.followed(face, step)
        return [self._faces[face.id].face for face in faces]


class _Smoothed:
    """One face with the filter's state."""

    def __init__(self, face: TrackedFace) -> None:
        self.face = face
        self.places = _places(face)
        self.speed = np.zeros_like(self.places)
        self.raw = self.places

    def followed(self, face: TrackedFace, step: float) -> _Smoothed:
        """This state after the face's next frame, ``step`` seconds later."""
        places, side = _places(face), face.crop.side
        self.speed += _share(step, SPEED_HZ) * ((places - self.raw) / (step * side) - self.speed)
        cutoff = STILL_HZ + HZ_PER_SPEED * np.linalg.norm(self.speed, axis=1, keepdims=True)
        self.raw = places
        self.places = self.places + _share(step, cutoff) * (places - self.places)
        box = tuple(float(v) for v in self.places[-2:].ravel())
        self.face = replace(
            face,
            points=self.places[:-2],
            detection=Detection(box, face.detection.score),  # type: ignore[arg-type]
            found=_averaged(self.face, face, step),
        )
        return self


def _places(face: TrackedFace) -> np.ndarray:
    """Points and the corners of the box, (P + 2, 2) in pixels."""
    return np.concatenate([face.points, np.array(face.detection.box).reshape(2, 2)])


def _share(step: float, cutoff: np.ndarray | float) -> np.ndarray | float:
    """Weight of a new value in a low-pass filter of that cut-off frequency."""
    return 1 / (1 + 1 / (2 * math.pi * step * cutoff))


def _averaged(before: TrackedFace, face: TrackedFace, step: float) -> FacePredictions:
    """Predictions of ``face`` averaged with those before, as logits."""
    new, old = face.found, before.found
    classes = {
        name: _mixed(softmax(old.class_logits[name], 1), softmax(logits, 1), step / (step + CLASS_SECONDS))
        for name, logits in new.class_logits.items()
    }
    parsing = new.parsing_logits
    if parsing.size:
        moved = warped(softmax(old.parsing_logits[0]), before.crop, face.crop)
        parsing = _mixed(moved, softmax(parsing[0]), step / (step + REGION_SECONDS))[None]
    return FacePredictions(parsing, new.points, classes)


def _mixed(old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
    return logarithms(old + np.float32(share) * (new - old))
