"""What people watch: the newest picture with its faces drawn."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from ifan.faces import FaceAnalyzer
from ifan.faces.live import Live, newest
from ifan.faces.sources import ClipError
from ifan.faces.streams import Numbered, Stream


class Counter(Stream):
    """Frames 0, 1, ..., each as soon as ``go`` is set, and then the camera vanishes."""

    name = "counter"

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.go, self.given = count, threading.Event(), threading.Event()

    def _read(self, every: int) -> Iterator[Numbered]:
        for number in range(self.count):
            yield number, number / 25, np.zeros((4, 4, 3), np.uint8)
            if number == 0:
                self.go.wait(10)
        self.given.set()
        raise ClipError("counter: it gave no more frames")


def test_only_the_newest_frame_waits() -> None:
    stream = Counter(9)
    frames = newest(stream)
    assert next(frames)[0] == 0
    stream.go.set()
    stream.given.wait(10)
    assert next(frames)[0] == 8
    with pytest.raises(ClipError, match="it gave no more frames"):
        next(frames)


def test_leaving_the_loop_stops_the_stream() -> None:
    stream = Counter(10**9)
    stream.go.set()
    frames = newest(stream)
    next(frames)
    frames.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ifan-camera"]


def test_pictures_are_drawn_and_another_size_begins_anew(analyzer: FaceAnalyzer, photo: np.ndarray) -> None:
    live = Live(analyzer)
    first, count = live(photo, 0.0)
    assert (first.shape, count) == (photo.shape, 1)
    assert not np.array_equal(first, photo)
    live(photo, 0.1)
    assert live(photo[:40], 0.2)[0].shape == (40, 90, 3)
