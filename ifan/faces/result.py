"""What an analyzer returns: frozen records that know how to be read, drawn and saved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ifan.crop import Crop
from ifan.faces.detect import Box
from ifan.faces.draw import overlay
from ifan.files import write_files
from ifan.optional import require
from ifan.png import encode_label_png, encode_png


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face; all places are in pixels of the photo.

    ``box``: what was found or asked for, ``score`` the detector's certainty in [0, 1] if it was found; ``crop``: the
    square the network saw. ``parsing`` (h, w) uint8 class ids at the photo's resolution inside ``region`` (x0, y0, x1,
    y1), the part of the crop within the photo, and ``parsing_classes`` their names. ``landmarks``: point name to (x,
    y). ``classes``: classification task to class name to probability. What a network does not predict, or was not asked
    for, is ``None`` or empty.
    """

    box: Box
    crop: Crop
    region: tuple[int, int, int, int]
    parsing: np.ndarray | None = None
    parsing_classes: tuple[str, ...] = ()
    landmarks: dict[str, tuple[float, float]] = field(default_factory=dict)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    score: float | None = None

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


@dataclass(frozen=True, slots=True, eq=False)
class PhotoResult:
    """All faces of one photo. ``path`` is ``None`` for a photo that came from memory; ``size`` is (width, height);
    ``image`` (H, W, 3) uint8 RGB is the photo itself, kept for drawing."""

    path: str | None
    size: tuple[int, int]
    faces: tuple[Face, ...]
    image: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.faces)

    def __iter__(self) -> Iterator[Face]:
        return iter(self.faces)

    def __getitem__(self, index: int) -> Face:
        return self.faces[index]

    @property
    def parsing(self) -> np.ndarray | None:
        """(H, W) uint8 class ids of the whole photo; where faces overlap, the one in the smaller crop is on top.

        ``None`` if the network does not parse.
        """
        return compose(self.size, self.faces)

    def to_dict(self, runs: bool = False) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only: ``photo``, ``width``, ``height``, ``faces`` (see `Face.to_dict`)."""
        width, height = self.size
        return {"photo": self.path, "width": width, "height": height, "faces": [f.to_dict(runs) for f in self.faces]}

    def to_supervision(self) -> Any:
        """The faces as ``supervision.Detections``: ``xyxy``, ``confidence`` (1 for given boxes), and in ``data`` the
        points (N, P, 2) and the most probable class of each classification. Raises ``ImportError`` without it."""
        detections = require("to_supervision", "supervision", "supervision", "supervision").Detections
        data: dict[str, Any] = {}
        if self.faces and self.faces[0].landmarks:
            data["landmarks"] = np.array([list(f.landmarks.values()) for f in self.faces], np.float32)
        for task in self.faces[0].classes if self.faces else ():
            data[task] = np.array([f.best(task)[0] for f in self.faces])
        return detections(
            xyxy=np.array([f.box for f in self.faces], np.float32).reshape(-1, 4),
            confidence=np.array([1.0 if f.score is None else f.score for f in self.faces], np.float32),
            data=data,
        )

    def plot(self) -> np.ndarray:
        """The overlay, (H, W, 3) uint8 RGB: the photo (enlarged if small) with parsing colours, points and boxes, and
        at its right a panel with the probabilities of each face and the colours' names."""
        return overlay(self)

    def files(self, folder: str | Path, stem: str | None = None) -> dict[Path, bytes]:
        """What `save` writes, by path: the overlay, the parsing map where there is one, and last the JSON."""
        name = stem or (Path(self.path).stem if self.path else "photo")
        base, parsing = Path(folder), self.parsing
        out = {base / f"{name}_overlay.png": encode_png(self.plot())}
        if parsing is not None:
            out[base / f"{name}_parsing.png"] = encode_label_png(parsing)
        out[base / f"{name}.json"] = json.dumps(self.to_dict(), indent=1).encode()
        return out

    def save(self, folder: str | Path, stem: str | None = None) -> list[Path]:
        """Write ``<stem>_overlay.png``, ``<stem>_parsing.png`` (a palette picture of class ids) and ``<stem>.json``.

        ``stem`` is the photo's own by default. Files are whole or not there. Returns the paths; raises ``OSError``.
        """
        files = self.files(folder, stem)
        write_files(files)
        return list(files)


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
