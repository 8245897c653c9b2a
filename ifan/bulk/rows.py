"""From photos to rows of a table: a photo that cannot be read is a row with its reason."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import cv2

from ifan.bulk.tables import Row
from ifan.faces.analyzer import FaceAnalyzer, Prepared
from ifan.faces.face import Face
from ifan.faces.photo import as_rgb


def prepare(analyzer: FaceAnalyzer, photo: Any, name: str) -> tuple[Prepared | None, str | None]:
    """Decode, find and crop: what the network will see of ``photo`` (see `as_rgb`), or why not, in one line."""
    try:
        (found,) = analyzer.prepare([as_rgb(photo, name)], [None], [name])
        return found, None
    except (ValueError, OSError, MemoryError, cv2.error) as error:
        return None, reason_of(error)


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def spelled(name: str) -> str:
    """``name`` of a file as text: bytes that are none are spelled out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def as_row(
    name: str,
    size: tuple[int, int] | None,
    faces: Sequence[Face],
    reason: str | None = None,
    frame: int | None = None,
    time: float | None = None,
) -> Row:
    """The row of a photo or frame of ``size`` (width, height), see `ifan.bulk.tables.COLUMNS`."""
    width, height = size or (None, None)
    return {
        "input": spelled(name),
        "frame": frame,
        "time": time,
        "width": width,
        "height": height,
        "faces": [{"id": None, **face.to_dict()} for face in faces],
        "map": None,
        "error": reason and reason.encode("utf-8", "backslashreplace").decode(),
    }


def analyse(analyzer: FaceAnalyzer, photos: Sequence[Any], names: Sequence[str]) -> list[Row]:
    """The rows of ``photos`` (see `as_rgb`), all of whose faces share batches."""
    prepared = [prepare(analyzer, photo, name) for photo, name in zip(photos, names, strict=True)]
    predictions = analyzer.predict([found for found, _ in prepared if found])
    return [
        as_row(name, found.size if found else None, analyzer.faces(found, predictions) if found else (), reason)
        for name, (found, reason) in zip(names, prepared, strict=True)
    ]
