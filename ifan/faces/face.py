"""One face of a photo, and the class map of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ifan.crop import Crop
from ifan.faces.detect import Box
from ifan.faces.png import encode_png


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Face:
    """One face; all places are in pixels of the photo.

    ``box``: what was found or asked for, ``score`` the detector's certainty in [0, 1] if it was found; ``crop``: the
    square the network saw, ``seen`` a larger one that it saw once more because hair goes on there. ``parsing`` (h, w)
    uint8 class ids at the photo's resolution inside ``region`` (x0, y0, x1, y1), the part of the larger square within
    the photo, and ``parsing_classes`` their names. ``landmarks``: point name to (x, y). ``classes``: classification
    task to class name to probability. What a network does not predict, or was not asked for, is ``None`` or empty.
    ``id``: the same number in all frames of a clip in which the face was followed.
    ``photo`` (H, W, 3) uint8 RGB is the picture that it was found in, where a `PhotoResult` holds both.
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
    photo: np.ndarray | None = None
    seen: Crop | None = None

    def __repr__(self) -> str:
        score = "" if self.score is None else f", score={self.score:.2f}"
        best = [f"{self.best(task)[0]} {self.best(task)[1]:.0%}" for task in list(self.classes)[:3]]
        found = [*best, f"{len(self.landmarks)} points", *([] if self.parsing is None else ["regions"])]
        name = "" if self.id is None else f"id={self.id}, "
        return f"Face({name}box=({', '.join(f'{v:.0f}' for v in self.box)}){score}, {', '.join(found)})"

    @property
    def emotion(self) -> dict[str, float]:
        """Probability of each emotion; empty if the network does not predict them."""
        return self.classes.get("emotion", {})

    def best(self, task: str) -> tuple[str, float]:
        """The most probable class of a classification task, and its probability."""
        if task not in self.classes:
            raise ValueError(f"unknown classification {task!r}; this face has {list(self.classes)}")
        return max(self.classes[task].items(), key=lambda item: item[1])

    def mask(self, *regions: str) -> np.ndarray:
        """Pixels of the photo that belong to ``regions`` such as ``"hair"``, (H, W) bool; without names all but the
        background.

        Raises ``ValueError`` for a region that there is not, and for a face without parsing or without its photo.
        """
        photo, inside = self._seen(), self._inside(regions)
        x0, y0, x1, y1 = self.region
        mask = np.zeros(photo.shape[:2], bool)
        mask[y0:y1, x0:x1] = inside
        return mask

    def cutout(self, *regions: str) -> np.ndarray:
        """The face without what is around it, (h, w, 4) uint8 RGBA, transparent outside ``regions``; see `mask`.

        It is as large as `region`, so it fits back into the photo there.
        """
        photo, inside = self._seen(), self._inside(regions)
        x0, y0, x1, y1 = self.region
        return np.dstack([photo[y0:y1, x0:x1], np.where(inside, 255, 0).astype(np.uint8)])

    def _seen(self) -> np.ndarray:
        if self.photo is None:
            raise ValueError("expected a face of a PhotoResult; got one without its photo; take it from an analyzer")
        return self.photo

    def _inside(self, regions: Sequence[str]) -> np.ndarray:
        if self.parsing is None:
            raise ValueError("expected a face with regions; got one without; ask the analyzer for the parsing task too")
        unknown = [name for name in regions if name not in self.parsing_classes]
        if unknown:
            raise ValueError(f"expected regions of {', '.join(self.parsing_classes)}; got {unknown[0]!r}")
        ids = [self.parsing_classes.index(name) for name in regions]
        return np.isin(self.parsing, ids) if ids else self.parsing != 0

    def _repr_png_(self) -> bytes | None:
        """The face's part of the photo, for notebooks."""
        if self.photo is None:
            return None
        x0, y0, x1, y1 = self.region
        return encode_png(self.photo[y0:y1, x0:x1])

    def to_dict(self, runs: bool = False) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only; the parsing map as its region and pixels a class; the id if any.

        With ``runs`` also the map itself, row by row: class id, number of pixels, next id, next number, ...
        """
        out: dict[str, Any] = {
            "box": [_rounded(v) for v in self.box],
            "score": None if self.score is None else round(self.score, 4),
            "crop": {name: _rounded(getattr(self.crop, name)) for name in ("cx", "cy", "side", "angle_deg")},
            "landmarks": {name: [_rounded(x), _rounded(y)] for name, (x, y) in self.landmarks.items()},
            "classes": {task: {k: round(p, 6) for k, p in named.items()} for task, named in self.classes.items()},
        }
        if self.id is not None:
            out["id"] = self.id
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
