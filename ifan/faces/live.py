"""A camera as people watch it: the faces of the newest picture, followed, smoothed and drawn."""

from __future__ import annotations

import threading
from collections.abc import Generator

import numpy as np

from ifan.faces.analyzer import FaceAnalyzer
from ifan.faces.draw import annotate
from ifan.faces.smooth import Smoother
from ifan.faces.streams import Numbered, Stream
from ifan.faces.video import Tracked, tracker_of


class Live:
    """Pictures that come one after the other, with their faces drawn; where their size changes, ids begin anew."""

    def __init__(self, analyzer: FaceAnalyzer) -> None:
        self.analyzer = analyzer
        self._shape: tuple[int, ...] | None = None

    def __call__(self, image: np.ndarray, time: float | None = None) -> tuple[np.ndarray, int]:
        """The next ``image`` (H, W, 3) uint8 RGB, seen at ``time`` seconds, with its faces; and how many these are."""
        if image.shape != self._shape:
            self._shape, self._track, self._smooth = image.shape, tracker_of(self.analyzer), Smoother()
        faces = self._smooth(time, self._track(image))
        result = Tracked(0, time, image, faces).result(self.analyzer, None, faces).result
        return annotate(image, result.faces), len(faces)


def newest(stream: Stream) -> Generator[Numbered, None, None]:
    """The newest frame of a stream whenever one is asked for; those that come meanwhile are left out.

    Raises what the stream raises, after its last frame. Leaving the loop stops the stream.
    """
    ready = threading.Condition()
    waiting: list[Numbered] = []
    ended: list[BaseException | None] = []

    def read() -> None:
        error: BaseException | None = None
        try:
            for frame in stream.frames():
                with ready:
                    waiting[:] = [frame]
                    ready.notify()
        except BaseException as raised:  # handed to the reader, whatever it is
            error = raised
        with ready:
            ended.append(error)
            ready.notify()

    thread = threading.Thread(target=read, name="ifan-camera", daemon=True)
    thread.start()
    try:
        while True:
            with ready:
                ready.wait_for(lambda: waiting or ended)
                if not waiting:
                    break
                frame = waiting.pop()
            yield frame
        if ended[0] is not None:
            raise ended[0]
    finally:
        stream.stop()
        thread.join()
