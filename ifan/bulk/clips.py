"""Rows of a clip, whose faces are followed from frame to frame.

A frame's faces depend on all frames before it. So whoever goes on with a clip gives how many rows there are already:
the clip is followed again from its first frame, those rows are left out, and the others are what they would have been.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2

from ifan.bulk.rows import as_row, reason_of
from ifan.bulk.tables import Row
from ifan.faces.analyzer import FaceAnalyzer
from ifan.faces.png import encode_label_png
from ifan.faces.smooth import Smoother
from ifan.faces.sources import ClipError
from ifan.faces.video import Source, name_of, tracked


def clip_rows(
    analyzer: FaceAnalyzer, source: Source, every: int = 1, *, smooth: bool = False, maps: bool = False, skip: int = 0
) -> Iterator[tuple[Row, bytes | None]]:
    """The row of each frame of a clip with its class map as PNG if ``maps`` asks for it, less the first ``skip``.

    Faces that the network does not see, as they are hidden, are left out. What cannot be read to its end has a last row
    with the reason. Raises ``ValueError`` when the weights are so damaged that a prediction is not finite.
    """
    name, smoother, done = name_of(source), Smoother() if smooth else None, 0
    try:
        for frame in tracked(analyzer, source, every):
            faces = smoother(frame.time, frame.faces) if smoother else frame.faces
            done += 1
            if done > skip:
                seen = [face for face in faces if face.state != "occluded"]
                result = frame.result(analyzer, name, seen).result
                ids = result.parsing if maps else None
                row = as_row(name, result.size, result.faces, None, frame.number, frame.time)
                yield row, None if ids is None else encode_label_png(ids)
    except (ClipError, MemoryError, cv2.error) as error:
        if done >= skip:
            yield as_row(name, None, (), reason_of(error)), None
