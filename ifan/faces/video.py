"""A clip, camera or stream as frames with tracked faces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np

from ifan.config import POINT_NAMES
from ifan.crop import points_to_crop
from ifan.faces.box_tracker import BoxTracker
from ifan.faces.face import Face
from ifan.faces.photo import as_rgb
from ifan.faces.predictor import probabilities
from ifan.faces.result import PhotoResult
from ifan.faces.smooth import Smoother
from ifan.faces.sources import ClipError, frames
from ifan.faces.streams import Stream, as_stream
from ifan.faces.surroundings import with_surroundings
from ifan.faces.track import DETECT_EVERY, Tracker
from ifan.faces.tracked_face import TrackedFace

if TYPE_CHECKING:
    from ifan.faces.analyzer import FaceAnalyzer

Source = Union[str, "os.PathLike[str]", int, Stream, Iterable[Any]]
"""A clip's path, a camera's number, the address of a stream, a `Stream`, or any pictures that an analyzer takes, one
after the other."""


@dataclass(frozen=True, slots=True, eq=False)
class VideoFrame:
    """One frame of a clip: its ``number`` from 0, its ``time`` in seconds (``None`` = unknown), its ``result``, and
    for each of the result's faces what the tracker knows of it, ``tracks``."""

    number: int
    time: float | None
    result: PhotoResult
    tracks: tuple[TrackedFace, ...]

    def __len__(self) -> int:
        return len(self.tracks)

    def __iter__(self) -> Iterator[tuple[TrackedFace, Face]]:
        return zip(self.tracks, self.result.faces, strict=True)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only: ``frame``, ``time``, then as `PhotoResult.to_dict`; each face also
        has its ``id``, ``state`` and ``trust``."""
        out = {"frame": self.number, "time": self.time, **self.result.to_dict()}
        known = [{"id": t.id, "state": t.state, "trust": round(t.trust, 4)} for t in self.tracks]
        return {**out, "faces": [{**a, **b} for a, b in zip(known, out["faces"], strict=True)]}


@dataclass(frozen=True, slots=True, eq=False)
class Tracked:
    """One frame before its results are made: ``image`` (H, W, 3) uint8 RGB and its ``faces``."""

    number: int
    time: float | None
    image: np.ndarray
    faces: list[TrackedFace]

    def result(self, analyzer: FaceAnalyzer, path: str | None, faces: Sequence[TrackedFace]) -> VideoFrame:
        """Results of ``faces``, those of this frame as they are or smoothed."""
        size, tasks = (self.image.shape[1], self.image.shape[0]), analyzer.predictor.tasks
        made: list[Face] = []
        parsed = any(task.kind == "parsing" for task in tasks)
        for face in faces:
            crop, found = with_surroundings(face) if parsed else (face.crop, face.found)
            if analyzer.config.landmarks:  # perhaps smoothed
                found = replace(found, points=points_to_crop(face.points, crop)[None])
            predicted = {name: value[0] for name, value in probabilities(tasks, found).items()}
            made.append(replace(analyzer.face(size, face.detection, crop, predicted), id=face.id))
        return VideoFrame(self.number, self.time, PhotoResult(path, size, tuple(made), self.image), tuple(faces))


def video(
    analyzer: FaceAnalyzer, source: Source, every: int = 1, smooth: bool = False, detect_every: int = DETECT_EVERY
) -> Iterator[VideoFrame]:
    """See `FaceAnalyzer.video`."""
    path = os.fspath(source) if isinstance(source, (str, os.PathLike)) and not as_stream(source) else None
    smoother = Smoother() if smooth else None
    for frame in tracked(analyzer, source, every, detect_every):
        faces = smoother(frame.time, frame.faces) if smoother else frame.faces
        yield frame.result(analyzer, path, faces)


def tracked(
    analyzer: FaceAnalyzer, source: Source, every: int = 1, detect_every: int = DETECT_EVERY
) -> Iterator[Tracked]:
    """Every ``every``-th frame of ``source`` with its faces; arguments and errors are those of `FaceAnalyzer.video`."""
    if every < 1:
        raise ValueError(f"every: expected at least 1 frame; got {every}")
    tracker = tracker_of(analyzer, detect_every)
    name = name_of(source)
    first: tuple[int, ...] = ()
    for number, time, image in _read(source, every):
        first = first or image.shape[:2]
        if image.shape[:2] != first:
            (h, w), (height, width) = image.shape[:2], first
            raise ClipError(
                f"{name}: frame {number}: expected {width} x {height} pixels as before; got {w} x {h}; cut the clip "
                "there"
            )
        yield Tracked(number, time, image, tracker(image))
    if not first:
        raise ClipError(f"{name}: the clip has no frames; check it")


def name_of(source: Source) -> str:
    """Name of a source in results and messages."""
    if stream := as_stream(source):
        return stream.name
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "video"


def tracker_of(analyzer: FaceAnalyzer, detect_every: int = DETECT_EVERY) -> Callable[[np.ndarray], list[TrackedFace]]:
    """A new tracker with an analyzer's network and detector; it is given the frames of one size in order."""
    config, run, detector = analyzer.config, analyzer.one_pass(), analyzer.detector
    if detector is None or not (config.landmarks and set(POINT_NAMES) <= set(config.landmarks.classes)):
        return BoxTracker(config, run, detector, analyzer.margin)
    return Tracker(config, run, detector, detect_every)


def _read(source: Source, every: int) -> Iterator[tuple[int, float | None, np.ndarray]]:
    if stream := as_stream(source):
        return stream.frames(every)
    if isinstance(source, (str, os.PathLike)):
        return frames(os.fspath(source), every)
    pictures = cast("Iterable[Any]", source)
    return ((i, None, as_rgb(image, f"frame {i}")) for i, image in enumerate(pictures) if i % every == 0)
