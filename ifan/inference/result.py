"""What an analyzer returns: frozen records that know how to be read, drawn and saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ifan.data.crop import Crop
from ifan.inference.draw import overlay
from ifan.inference.files import encode_label_png, encode_png, write_files

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the photo."""


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face; all places are in pixels of the photo.

    ``box``: what was asked for; ``crop``: the square the network saw. ``parsing`` (h, w) uint8 class ids at the photo's
    resolution inside ``region`` (x0, y0, x1, y1), the part of the crop within the photo, and ``parsing_classes`` their
    names. ``landmarks``: point name to (x, y). ``classes``: classification task to class name to probability. What a
    network does not predict, or was not asked for, is ``None`` or empty.
    """

    box: Box
    crop: Crop
    region: tuple[int, int, int, int]
    parsing: np.ndarray | None = None
    parsing_classes: tuple[str, ...] = ()
    landmarks: dict[str, tuple[float, float]] = field(default_factory=dict)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def emotion(self) -> dict[str, float]:
        """Probability of each emotion; empty if the network does not predict them."""
        return self.classes.get("emotion", {})

    def best(self, task: str) -> tuple[str, float]:
        """The most probable class of a classification task, and its probability."""
        if task not in self.classes:
            raise ValueError(f"unknown classification {task!r}; this face has {list(self.classes)}")
        return max(self.classes[task].items(), key=lambda item: item[1])

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only; the parsing map as its region and pixels a class."""
        out: dict[str, Any] = {
            "box": [_rounded(v) for v in self.box],
            "crop": {name: _rounded(getattr(self.crop, name)) for name in ("cx", "cy", "side", "angle_deg")},
            "landmarks": {name: [_rounded(x), _rounded(y)] for name, (x, y) in self.landmarks.items()},
            "classes": {task: {k: round(p, 6) for k, p in named.items()} for task, named in self.classes.items()},
        }
        if self.parsing is not None:
            counts = np.bincount(self.parsing.ravel(), minlength=len(self.parsing_classes))
            pixels = {name: int(n) for name, n in zip(self.parsing_classes, counts, strict=True)}
            out["parsing"] = {"region": list(self.region), "pixels": pixels}
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
        ids = None
        for face in sorted(self.faces, key=lambda f: -f.crop.side):
            if face.parsing is not None:
                ids = np.zeros(self.image.shape[:2], np.uint8) if ids is None else ids
                x0, y0, x1, y1 = face.region
                np.copyto(ids[y0:y1, x0:x1], face.parsing, where=face.parsing != 0)
        return ids

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only: ``photo``, ``width``, ``height``, ``faces`` (see `Face.to_dict`)."""
        width, height = self.size
        return {"photo": self.path, "width": width, "height": height, "faces": [f.to_dict() for f in self.faces]}

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


def _rounded(value: float) -> float:
    return round(float(value), 3)
