"""Cameras, addresses and pipes as inputs of ``ifan predict``."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifan.faces import FaceAnalyzer
    from ifan.faces.streams import Stream

Say = Callable[[str], None]


def stream_of(inputs: Sequence[str], size: str | None = None, rate: float | None = None) -> Stream | None:
    """The camera, address or pipe that ``inputs`` name; ``None`` for files.

    Raises ``ValueError`` for several of them, and for a pipe without ``size`` and ``rate``.
    """
    from ifan.faces.streams import Address, Camera, RawVideo, is_address

    named = [text for text in inputs if text == "-" or is_address(text) or _is_number(text)]
    if named and len(inputs) > 1:
        raise ValueError(
            f"{named[0]}: expected a camera, address or pipe alone; got {len(inputs)} inputs; give it alone"
        )
    if named != ["-"]:
        if size or rate is not None:
            raise ValueError("--size, --rate: expected raw frames, the input -; leave them out for other inputs")
        return None if not named else Camera(int(named[0])) if _is_number(named[0]) else Address(named[0])
    match = re.fullmatch(r"(\d+)x(\d+)", size or "")
    if match is None or rate is None:
        raise ValueError(
            f"-: expected raw RGB frames with --size and --rate, such as --size 640x360 --rate 25; got --size {size} "
            f"and --rate {rate}"
        )
    return RawVideo(sys.stdin.buffer, (int(match[1]), int(match[2])), rate)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and not os.path.exists(text)


def stem_of(stream: Stream) -> str:
    """Name of the files that are made of a stream."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", stream.name.split("://")[-1]).strip("._")[:100] or "stream"


def follow(
    analyzer: FaceAnalyzer, stream: Stream, out: Path, table: bool, every: int, smooth: bool, say: Say
) -> list[str]:
    """Analyse a stream into a folder or ``table`` until it ends, or Ctrl-C ends it; returns lines about what failed."""
    from ifan.bulk.flat import stream_table
    from ifan.faces.clip import save_clip

    with ended_by_key(stream):
        if table:
            summary = stream_table(analyzer, stream, out, every=every, smooth=smooth)
            say(f"{out}: {summary.faces} faces in {summary.rows - len(summary.failures)} frames")
            return [f"error: {failure['error']}; rows before that are in {out}" for failure in summary.failures]
        files, frames, faces = save_clip(analyzer, stream, out, stem_of(stream), every)
        say(f"{stream.name}: {faces} faces in {frames} frames -> {files[0]}")
        return []


@contextmanager
def ended_by_key(stream: Stream) -> Iterator[None]:
    """Ctrl-C ends the stream, so that what came of it is kept; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    usual = signal.getsignal(signal.SIGINT)

    def end(*_: Any) -> None:
        stream.stop()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
