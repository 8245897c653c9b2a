"""Results of an analyzer: frozen records that know how to be read, drawn and saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ifan.faces.columns import PLACE, flat_rows
from ifan.faces.draw import overlay
from ifan.faces.face import Face, compose
from ifan.faces.jpeg import encode_jpeg
from ifan.faces.png import encode_label_png, encode_png
from ifan.files import write_files
from ifan.optional import require

NOTEBOOK_SIDE = 1200
"""Longer side in pixels of a picture that a notebook keeps."""

NAMED = 3
"""Faces that a result names when it is printed."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PhotoResult:
    """All faces of one photo. ``path`` is ``None`` for a photo that came from memory; ``size`` is (width, height);
    ``image`` (H, W, 3) uint8 RGB is the photo itself, kept for drawing."""

    path: str | None
    size: tuple[int, int]
    faces: tuple[Face, ...]
    image: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "faces", tuple(replace(face, photo=self.image) for face in self.faces))

    def __repr__(self) -> str:
        name = "" if self.path is None else repr(f"...{self.path[-50:]}" if len(self.path) > 53 else self.path) + ", "
        moods = ["{} {:.0%}".format(*face.best("emotion")) for face in self.faces[:NAMED] if face.emotion]
        if moods and len(self) > NAMED:
            moods.append("...")
        count = f"{len(self)} face{'' if len(self) == 1 else 's'}"
        found = f"{count}: {', '.join(moods)}" if moods else count
        return f"PhotoResult({name}{self.size[0]} x {self.size[1]}, {found})"

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

    def to_json(self, runs: bool = False) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(runs), indent=1)

    def to_pandas(self) -> Any:
        """The faces as a ``pandas.DataFrame``, a row a face with the columns of `ifan.faces.columns.columns`.

        A photo without a face has one row, whose ``face`` is 0. Raises ``ImportError`` without pandas.
        """
        pandas = require("to_pandas", "pandas", "pandas", "pandas")
        about = {"photo": self.path, "width": self.size[0], "height": self.size[1]}
        rows = flat_rows(about, [face.to_dict() for face in self.faces])
        table = pandas.DataFrame(rows, columns=list(dict.fromkeys([*PLACE, *rows[0]])))
        kinds = {str: "object", int: "Int64", float: "float64"}
        return table.astype({name: kinds[kind] for name, kind in PLACE.items()})

    def to_supervision(self) -> Any:
        """The faces as ``supervision.Detections``.

        ``xyxy`` are the boxes, ``confidence`` the scores (1 for given boxes), ``mask`` (N, H, W) bool the regions but
        the background, ``tracker_id`` the ids of a followed clip. ``class_id`` and ``data["class_name"]`` are the most
        probable class of the first classification, else 0 and "face". ``data`` also holds the points (N, P, 2) and of
        each classification the most probable class. Raises ``ImportError`` without supervision.
        """
        detections = require("to_supervision", "supervision", "supervision", "supervision").Detections
        faces = self.faces
        if not faces:
            return detections.empty()
        data: dict[str, Any] = {task: np.array([f.best(task)[0] for f in faces]) for task in faces[0].classes}
        first = next(iter(faces[0].classes), None)
        named = list(faces[0].classes[first]) if first else ["face"]
        data["class_name"] = data[first] if first else np.array(named * len(faces))
        if faces[0].landmarks:
            data["landmarks"] = np.array([list(f.landmarks.values()) for f in faces], np.float32)
        return detections(
            xyxy=np.array([f.box for f in faces], np.float32),
            mask=None if faces[0].parsing is None else np.stack([f.mask() for f in faces]),
            confidence=np.array([1.0 if f.score is None else f.score for f in faces], np.float32),
            class_id=np.array([named.index(name) for name in data["class_name"]]),
            tracker_id=None if any(f.id is None for f in faces) else np.array([f.id for f in faces]),
            data=data,
        )

    def plot(self) -> np.ndarray:
        """The overlay, (H, W, 3) uint8 RGB: the photo, enlarged if small, with regions, points and boxes.

        Beside each face stands its number and its strongest emotion. A strip below has the names of the colours, and of
        a single face all probabilities.
        """
        return overlay(self.image, self.faces)

    def show(self) -> Path:
        """Open the overlay in the system's viewer; returns the temporary picture, which stays. In a notebook the result
        shows itself."""
        import tempfile
        import webbrowser

        with tempfile.NamedTemporaryFile(prefix="ifan-", suffix=".png", delete=False) as file:
            file.write(encode_png(self.plot()))
        webbrowser.open(Path(file.name).as_uri())
        return Path(file.name)

    def _repr_png_(self) -> bytes:
        """The overlay for notebooks, shrunk if it is large."""
        picture = self.plot()
        height, width = picture.shape[:2]
        scale = NOTEBOOK_SIDE / max(height, width)
        if scale < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return encode_png(picture)

    def files(self, folder: str | Path, stem: str | None = None) -> dict[Path, bytes]:
        """Files that `save` writes, by path: the overlay, the parsing map where there is one, and last the JSON."""
        name = stem or (Path(self.path).stem if self.path else "photo")
        base, parsing = Path(folder), self.parsing
        out = {base / f"{name}_overlay.jpg": encode_jpeg(self.plot())}
        if parsing is not None:
            out[base / f"{name}_parsing.png"] = encode_label_png(parsing)
        out[base / f"{name}.json"] = self.to_json().encode()
        return out

    def save(self, folder: str | Path, stem: str | None = None) -> list[Path]:
        """Write ``<stem>_overlay.jpg``, ``<stem>_parsing.png`` (a palette picture of class ids) and ``<stem>.json``.

        ``stem`` is the photo's own by default. Files are whole or not there. Returns the paths; raises ``OSError``.
        """
        files = self.files(folder, stem)
        write_files(files)
        return list(files)
