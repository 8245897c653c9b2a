"""Results of an analyzer: frozen records that know how to be read, drawn and saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ifan.faces.draw import overlay
from ifan.faces.face import Face, compose
from ifan.faces.jpeg import encode_jpeg
from ifan.faces.png import encode_label_png
from ifan.files import write_files
from ifan.optional import require


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
        """The overlay, (H, W, 3) uint8 RGB: the photo, enlarged if small, with regions, points and boxes.

        Beside each face stands its number and its strongest emotion. A strip below has the names of the colours, and of
        a single face all probabilities.
        """
        return overlay(self.image, self.faces)

    def files(self, folder: str | Path, stem: str | None = None) -> dict[Path, bytes]:
        """Files that `save` writes, by path: the overlay, the parsing map where there is one, and last the JSON."""
        name = stem or (Path(self.path).stem if self.path else "photo")
        base, parsing = Path(folder), self.parsing
        out = {base / f"{name}_overlay.jpg": encode_jpeg(self.plot())}
        if parsing is not None:
            out[base / f"{name}_parsing.png"] = encode_label_png(parsing)
        out[base / f"{name}.json"] = json.dumps(self.to_dict(), indent=1).encode()
        return out

    def save(self, folder: str | Path, stem: str | None = None) -> list[Path]:
        """Write ``<stem>_overlay.jpg``, ``<stem>_parsing.png`` (a palette picture of class ids) and ``<stem>.json``.

        ``stem`` is the photo's own by default. Files are whole or not there. Returns the paths; raises ``OSError``.
        """
        files = self.files(folder, stem)
        write_files(files)
        return list(files)
