"""One face of a photo, and the class map of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ifan.crop import Crop
from ifan.faces.detect import Box


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face; all places are in pixels of the photo.

    ``box``: what was found or asked for, ``score`` the detector's certainty in [0, 1] if it was found; ``crop``: the
    square the network saw. ``parsing`` (h, w) uint8 class ids at the photo's resolution inside ``region`` (x0, y0, x1,
    y1), the part of the crop within the photo, and ``parsing_classes`` their names. ``landmarks``: point name to (x,
    y). ``classes``: classification task to class name to probability. What a network does not predict, or was not asked
    for, is ``None`` or empty. ``id``: the same number in all frames of a clip in which the face was followed.
    """

    box: Box
    crop: Crop
    region: tuple[int, int, int, int]
    parsing: np.ndarray | None = None
    parsing_classes: tuple[str, ...] = ()
    landmarks: dict[str, tuple[float, float]] = field(default_factory=dict)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    score: float | None = None
    id: int | None = None

    @property
    def emotion(self) -> dict[str, float]:
        """Probability of each emotion; empty if the network does not predict them."""
        return self.classes.get("emotion", {})

    def best(self, task: str) -> tuple[str, float]:
        """The most probable class of a classification task, and its probability."""
        if task not in self.classes:
            raise ValueError(f"unknown classification {task!r}; this face has {list(self.classes)}")
        return max(self.classes[task].items(), key=lambda item: item[1])

    def to_dict(self, runs: bool = False) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only; the parsing map as its region and pixels a class.

        With ``runs`` also the map itself, row by row: class id, number of pixels, next id, next number, ...
        """
        out: dict[str, Any] = {
            "box": [_rounded(v) for v in self.box],
            "score": None if self.score is None else round(self.score, 4),
            "crop": {name: _rounded(getattr(self.crop, name)) for name in ("cx", "cy", "side", "angle_deg")},
            "landmarks": {name: [_rounded(x), _rounded(y)] for name, (x, y) in self.landmarks.items()},
            "classes": {task: {k: round(p, 6) for k, p in named.items()} for task, named in self.classes.items()},
        }
        if self.parsing is not None:
            counts = np.bincount(self.parsing.ravel(), minlength=len(self.parsing_classes))
            pixels = {name: int(n) for name, n in zip(self.parsing_classes, counts, strict=True)}
            out["parsing"] = {"region": list(self.region), "pixels": pixels}
            if runs:
                out["parsing"]["runs"] = _runs(self.parsing)
        return out


def compose(size: tuple[int, int], faces: Sequence[Face]) -> np.ndarray | None:
    """The class map (H, W) uint8 of a whole photo of ``size`` (width, height), see `PhotoResult.parsing`."""
    ids = None
    for face in sorted(faces, key=lambda f: -f.crop.side):
        if face.parsing is not None:
            ids = np.zeros(size[::-1], np.uint8) if ids is None else ids
            x0, y0, x1, y1 = face.region
            np.copyto(ids[y0:y1, x0:x1], face.parsing, where=face.parsing != 0)
    return ids


def _runs(ids: np.ndarray) -> list[int]:
    """(h, w) class ids as id, length, id, length, ... in rows from the upper left."""
    flat = ids.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(np.append(starts, flat.size))
    return [int(v) for pair in zip(flat[starts], lengths, strict=True) for v in pair]


def _rounded(value: float) -> float:
    return round(float(value), 3)
