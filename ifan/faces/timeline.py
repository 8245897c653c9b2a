"""A clip's faces over time in one picture: classes, mouths and eyes (``pip install 'ifan[plot]'``)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ifan.optional import require_matplotlib

MOUTH = "upper_lip", "inside_mouth", "lower_lip"
"""Regions of a mouth; its opening is the part that is inside, in per cent of all three."""

EYES = "left_eye", "right_eye"
"""Points between which the distance is; the opening of the eyes is their area in per cent of its square."""

DRAWN = 6
"""Faces that are drawn: those that are seen in most frames."""

Face = Mapping[str, Any]


def mouth_opening(face: Face) -> float:
    """Opening of the mouth in per cent of its area; NaN where it has no pixels. ``face`` is a `Face.to_dict`."""
    pixels = face.get("parsing", {}).get("pixels", {})
    whole = sum(pixels.get(name, 0) for name in MOUTH)
    return 100 * pixels.get("inside_mouth", 0) / whole if whole else float("nan")


def eye_opening(face: Face) -> float:
    """Area of both eyes in per cent of the squared distance of their points; NaN without eyes or points."""
    area, points = face.get("parsing", {}).get("pixels", {}).get("eye"), face.get("landmarks", {})
    if area is None or not set(EYES) <= set(points):
        return float("nan")
    squared = float(np.square(np.subtract(points[EYES[0]], points[EYES[1]])).sum())
    return 100 * area / squared if squared else float("nan")


def draw_timeline(frames: Iterable[Mapping[str, Any]]) -> bytes:
    """PNG of a clip's ``frames`` (`VideoFrame.to_dict`), a column a face: the probabilities of each classification,
    the mouth's opening and that of the eyes over seconds, or over frames where a time is unknown.

    Hidden faces leave gaps. Raises ``ValueError`` without any face, ``ImportError`` without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    rows = list(frames)
    timed = all(row["time"] is not None for row in rows)
    ids = [face["id"] for row in rows for face in row["faces"] if face["state"] != "occluded"]
    if not ids:
        raise ValueError("a plot over time: expected a clip with a face; got none; leave --plot out")
    often = sorted(set(ids), key=lambda number: (-ids.count(number), number))[:DRAWN]
    times = np.array([row["time"] if timed else row["frame"] for row in rows], float)
    first = next(face for row in rows for face in row["faces"])
    tasks = list(first.get("classes", {}))
    panels = [*tasks, *(["mouth open, % of its area", "eyes, % of eye distance²"] if "parsing" in first else [])]
    if not panels:
        raise ValueError("a plot over time: expected classes or regions; got neither; ask for such --tasks")
    figure = Figure(figsize=(1.5 + 4 * len(often), 0.6 + 2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(often), squeeze=False, sharex=True, sharey="row")
    for column, number in zip(axes.T, sorted(often), strict=True):
        faces = [_of(row["faces"], number) for row in rows]
        for axis, task in zip(column, tasks, strict=False):
            for name in first["classes"][task]:
                axis.plot(times, [face["classes"][task][name] if face else np.nan for face in faces], label=name)
            axis.set_ylim(0, 1)
        for axis, measure in zip(column[len(tasks) :], (mouth_opening, eye_opening), strict=False):
            axis.plot(times, [measure(face) if face else np.nan for face in faces], color="black")
            axis.set_ylim(bottom=0)
        column[0].set_title(f"face {number}")
        column[-1].set_xlabel("seconds" if timed else "frame")
    for axis, name in zip(axes[:, 0], panels, strict=True):
        axis.set_ylabel(name, fontsize="small")
    for axis in axes[: len(tasks), -1]:
        axis.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _of(faces: Sequence[Face], number: int) -> Face | None:
    """The face with that id, if it is seen."""
    return next((face for face in faces if face["id"] == number and face["state"] != "occluded"), None)
