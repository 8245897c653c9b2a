"""Faces as flat rows, one a face, with columns that a spreadsheet reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ifan.config import TaskConfig

PLACE: dict[str, type] = {
    "photo": str,
    "face": int,
    "id": int,
    "frame": int,
    "time": float,
    "width": int,
    "height": int,
    "box_x0": float,
    "box_y0": float,
    "box_x1": float,
    "box_y1": float,
    "score": float,
}
"""Columns of every table, with the kind of their values. ``face`` counts from 1 in each photo or frame; 0 stands in the
row of one without a face."""

Row = dict[str, Any]


def columns(tasks: Sequence[TaskConfig]) -> dict[str, type]:
    """Columns of a table of faces that were analysed for ``tasks``, in order, with the kind of their values.

    After `PLACE` come ``<point>_x`` and ``<point>_y`` in pixels of the photo, of each classification its most probable
    class and the probabilities ``<task>_<class>``, and ``share_<region>``: its part of the pixels of all regions but
    the background, which is the first class. The last is ``error``: why a photo was not read. Raises ``ValueError`` if
    two columns would have the same name.
    """
    points = [(f"{name}_{axis}", float) for task in tasks if task.kind == "landmarks" for name in task.classes
              for axis in "xy"]  # fmt: skip
    named: list[tuple[str, type]] = []
    for task in tasks:
        if task.kind == "classification":
            named += [(task.name, str), *((f"{task.name}_{name}", float) for name in task.classes)]
    shares = [(f"share_{name}", float) for task in tasks if task.kind == "parsing" for name in task.classes[1:]]
    found = [*PLACE.items(), *points, *named, *shares, ("error", str)]
    if len(dict(found)) < len(found):
        names = [name for name, _ in found]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected columns of different names; got {twice!r} twice; rename a task, point or class")
    return dict(found)


def flat_rows(about: Mapping[str, Any], faces: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of a photo or frame: ``about`` it, and each of its ``faces`` (`Face.to_dict`). Without a face it has one."""
    return [{**about, "face": number, **_of_face(face)} for number, face in enumerate(faces, 1)] or [
        {**about, "face": 0}
    ]


def _of_face(face: Mapping[str, Any]) -> Row:
    row = {"id": face.get("id"), **dict(zip(("box_x0", "box_y0", "box_x1", "box_y1"), face["box"], strict=True))}
    row["score"] = face["score"]
    for name, (x, y) in face.get("landmarks", {}).items():
        row |= {f"{name}_x": x, f"{name}_y": y}
    for task, probabilities in face.get("classes", {}).items():
        row[task] = max(probabilities, key=probabilities.__getitem__)
        row |= {f"{task}_{name}": value for name, value in probabilities.items()}
    if pixels := face.get("parsing", {}).get("pixels"):
        regions = dict(list(pixels.items())[1:])
        whole = max(1, sum(regions.values()))
        row |= {f"share_{name}": round(count / whole, 6) for name, count in regions.items()}
    return row
