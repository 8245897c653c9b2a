"""Sources that are no files: cameras, addresses of streams, and raw frames from a pipe."""

from __future__ import annotations

import re
import threading
import time as clock
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, BinaryIO

import cv2
import numpy as np

from ifan.data.images import MAX_PIXELS
from ifan.faces.sources import FORMATS, ClipError, decoded
from ifan.optional import require

PATIENCE = 10.0
"""Seconds to wait for a stream to open, and for each of its packets."""

PROTOCOLS = "http,https,httpproxy,rtmp,rtmps,rtmpt,rtp,rtsp,rtsps,srt,tcp,tls,udp,crypto"
"""Ways to a stream, and what it may lead to; no files of this machine."""

STREAM_FORMATS = f"{FORMATS},hls,mjpeg,mpjpeg,rtp,rtsp,sdp"
"""FFmpeg's names of what may come from an address."""

UNTIMED = "mjpeg", "mpjpeg"
"""Formats without times, as web cameras send them: the clock says when a frame came."""

_ADDRESS = re.compile(r"(https?|rtmp[st]?|rtsps?|rtp|srt|tcp|udp)://", re.IGNORECASE)

Numbered = tuple[int, "float | None", np.ndarray]
"""Number of a frame from 0, its seconds, and its (H, W, 3) uint8 RGB pixels."""


class Stream(ABC):
    """Frames that come one after the other, ``rate`` a second, until they end or somebody calls `stop`."""

    name: str
    rate: float = 25.0

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let `frames` end after the frame that is being read. May be called from another thread."""
        self._stopped.set()

    def frames(self, every: int = 1) -> Iterator[Numbered]:
        """Every ``every``-th frame. Raises `ClipError` where the stream breaks off; frames before have been given."""
        for frame in self._read(every):
            if self._stopped.is_set():
                return
            yield frame

    @abstractmethod
    def _read(self, every: int) -> Iterator[Numbered]:
        """Every ``every``-th frame, without an end if the stream has none."""


class Camera(Stream):
    """The camera with that ``index``; times are seconds since its first frame."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index, self.name = index, f"camera {index}"

    def _read(self, every: int) -> Iterator[Numbered]:
        camera = cv2.VideoCapture(self.index)
        try:
            start, number = clock.monotonic(), 0
            while True:
                ok, picture = camera.read()
                if not ok:
                    state = f"it gave no more frames after {number}" if number else "it cannot be opened"
                    raise ClipError(
                        f"{self.name}: {state}; check that it is connected and that no other program uses it"
                    )
                if number % every == 0:
                    yield number, clock.monotonic() - start, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
                number += 1
        finally:
            camera.release()


class Address(Stream):
    """A stream or clip at an ``address`` such as ``rtsp://...`` or ``http://...``; its name leaves out passwords."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address, self.name = address, re.sub(r"//[^/@]*@", "//", address)

    def _read(self, every: int) -> Iterator[Numbered]:
        av = require("reading a stream", "av", "PyAV", "av")
        options = {
            "protocol_whitelist": PROTOCOLS,
            "format_whitelist": STREAM_FORMATS,
            "rtsp_transport": "tcp",  # UDP loses packets
        }
        count = 0
        try:
            with av.open(self.address, options=options, timeout=PATIENCE, metadata_errors="replace") as clip:
                start = 0.0
                for number, time, image in decoded(clip, self.name, every):
                    now = clock.monotonic()
                    start = start if count else now
                    count += 1
                    yield number, now - start if clip.format.name in UNTIMED else time, image
        except av.error.FFmpegError as error:
            state = f"it broke off after {count} frames" if count else "it cannot be opened"
            raise ClipError(
                f"{self.name}: {state} ({error.strerror or error}); check the address and the network"
            ) from error


class RawVideo(Stream):
    """Raw frames from an open ``file``, such as a pipe: RGB, a byte a channel, of ``size`` (width, height).

    Raises ``ValueError`` for a size or rate that cannot be.
    """

    name = "pipe"

    def __init__(self, file: BinaryIO, size: tuple[int, int], rate: float) -> None:
        super().__init__()
        if min(size) < 1 or size[0] * size[1] > MAX_PIXELS or not 0 < rate <= 1000:
            raise ValueError(
                f"raw frames: expected at least 1 x 1 and at most {MAX_PIXELS // 10**6} million pixels, and 0 to 1000 "
                f"frames a second; got {size[0]} x {size[1]} and {rate}"
            )
        self.file, self.size, self.rate = file, size, rate

    def _read(self, every: int) -> Iterator[Numbered]:
        (width, height), number = self.size, 0
        expected = width * height * 3
        while data := _exactly(self.file, expected):
            if len(data) < expected:
                raise ClipError(
                    f"{self.name}: frame {number}: expected {expected} bytes, {width} x {height} RGB; got {len(data)}; "
                    "check the size, and whether the program before stopped early"
                )
            if number % every == 0:
                yield number, number / self.rate, np.frombuffer(data, np.uint8).reshape(height, width, 3)
            number += 1


def _exactly(file: BinaryIO, count: int) -> bytes:
    """The next ``count`` bytes of a file, fewer only at its end."""
    parts: list[bytes] = []
    while count and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def is_address(text: str) -> bool:
    """True if ``text`` is the address of a stream and not the name of a file."""
    return _ADDRESS.match(text) is not None


def as_stream(source: Any) -> Stream | None:
    """The stream that a camera's number, an address or a `Stream` stands for; ``None`` for anything else."""
    if isinstance(source, Stream):
        return source
    if isinstance(source, int):
        return Camera(source)
    return Address(source) if isinstance(source, str) and is_address(source) else None
