"""A clip as people look at it: the same clip with overlays, and a line of JSON a frame."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ifan.faces.draw import annotate
from ifan.faces.smooth import Smoother
from ifan.faces.sources import frame_rate, open_clip
from ifan.faces.streams import Stream, as_stream
from ifan.faces.video import name_of, tracked
from ifan.files import part_beside, remove_parts
from ifan.optional import require

if TYPE_CHECKING:
    from ifan.faces.analyzer import FaceAnalyzer

TICKS = 90_000
"""Of a film's clock in a second."""

LEFT_BEHIND = 3600.0
"""Seconds after which nobody writes to a part any more: each frame of a clip changes it."""

SOUND = ("aac", "ac3", "alac", "eac3", "flac", "mp3", "opus")
"""Codings of sound that an MP4 file takes as they are."""


def save_clip(
    analyzer: FaceAnalyzer,
    source: str | Stream,
    folder: str | Path,
    stem: str,
    every: int = 1,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Path], int, int]:
    """Write ``<stem>_overlay.mp4``, with the clip's sound, and ``<stem>.jsonl``.

    ``source`` is a clip's path, or a stream, whose sound is left out. The overlay shows smoothed faces, the lines have
    them as they were found. Of a clip that is damaged, breaks off or changes its size, the frames before are kept.
    ``progress`` is called with frames done.

    Returns the paths and the numbers of frames and faces. Raises ``ValueError`` for a clip that cannot be read to its
    end, ``OSError`` for a folder that cannot be written.
    """
    base, name = Path(folder), name_of(source)
    base.mkdir(parents=True, exist_ok=True)
    remove_parts(base, older=LEFT_BEHIND)
    targets = [base / f"{stem}_overlay.mp4", base / f"{stem}.jsonl"]
    waiting = [part_beside(target) for target in targets]
    count = faces = 0
    broken: ValueError | None = None
    try:
        with waiting[1].open("x", encoding="utf-8") as lines, _film(waiting[0], source, every) as film:
            smoother = Smoother()
            try:
                for frame in tracked(analyzer, source, every):
                    shown = frame.result(analyzer, name, smoother(frame.time, frame.faces))
                    row = frame.result(analyzer, name, frame.faces)
                    film.add(annotate(frame.image, shown.result.faces), frame.time)
                    lines.write(json.dumps(row.to_dict()) + "\n")
                    count, faces = count + 1, faces + len(row)
                    if progress:
                        progress(count)
            except ValueError as error:
                if count == 0:
                    raise
                broken = error
        for temporary, target in zip(waiting, targets, strict=True):
            temporary.replace(target)
    finally:
        for temporary in waiting:
            temporary.unlink(missing_ok=True)
    if broken is not None:
        raise ValueError(f"{broken}; {count} frames before that are in {targets[0]} and {targets[1]}") from broken
    return targets, count, faces


def _film(path: Path, source: str | Stream, every: int) -> _Film:
    stream = as_stream(source)
    return _Film(path, stream.rate / every) if stream else _Film(path, frame_rate(str(source)) / every, str(source))


class _Film:
    """An MP4 file that grows by RGB pictures of one size, ``rate`` a second unless they say when they are shown, with
    the sound of the clip ``heard``."""

    def __init__(self, path: Path, rate: float, heard: str | None = None) -> None:
        self.path, self.rate, self.heard = path, Fraction(rate).limit_denominator(1001), heard
        self.ticks = -1  # of the last picture

    def __enter__(self) -> _Film:
        av = require("writing a clip", "av", "PyAV", "av")
        with ExitStack() as stack:
            self.container = stack.enter_context(av.open(str(self.path), "w", format="mp4"))
            self.pictures = self.container.add_stream("libx264", self.rate)
            self.pictures.pix_fmt, self.pictures.codec_context.time_base = "yuv420p", Fraction(1, TICKS)
            clip = stack.enter_context(open_clip(self.heard)) if self.heard is not None else None
            sounds = [s for s in clip.streams.audio if s.codec_context] if clip else []
            heard = [s for s in sounds if s.codec_context.codec.canonical_name in SOUND]
            self.sound = self.container.add_stream_from_template(heard[0]) if heard else None
            self.packets = _packets(clip, heard[0]) if heard else iter(())
            self.packet = next(self.packets, None)
            self.open = stack.pop_all()
        return self

    def add(self, picture: np.ndarray, time: float | None) -> None:
        """Append a picture at ``time`` seconds; an odd row or column is cut off, as the codec wants it."""
        import av

        height, width = (n - n % 2 for n in picture.shape[:2])
        if self.ticks < 0:
            self.pictures.width, self.pictures.height = width, height
        usual = self.ticks + round(TICKS / self.rate) if self.ticks >= 0 else 0
        self.ticks = max(self.ticks + 1, usual if time is None else round(time * TICKS))
        frame = av.VideoFrame.from_ndarray(picture[:height, :width].copy(), format="rgb24")
        frame.pts, frame.time_base = self.ticks, Fraction(1, TICKS)
        self.container.mux(self.pictures.encode(frame))
        self._play(self.ticks / TICKS)

    def _play(self, seconds: float) -> None:
        """Append the sound up to there: whoever plays the file needs both close together."""
        while self.packet is not None and self.packet.dts * self.packet.time_base <= seconds:
            self.packet.stream = self.sound
            self.container.mux(self.packet)
            self.packet = next(self.packets, None)

    def __exit__(self, *_: object) -> None:
        with self.open:
            if self.ticks >= 0:
                self.container.mux(self.pictures.encode())
                self._play(self.ticks / TICKS + 1 / self.rate)


def _packets(clip: Any, stream: Any) -> Iterator[Any]:
    """Packets of sound as they are in the clip, up to its end or to damage, which the pictures report."""
    import av

    try:
        yield from (packet for packet in clip.demux(stream) if packet.dts is not None)
    except av.error.FFmpegError:
        return
