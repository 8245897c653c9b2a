"""A clip as people look at it: the same clip with overlays, and a line of JSON a frame."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifan.faces.draw import annotate
from ifan.faces.result import PhotoResult
from ifan.faces.sources import frame_rate, frames
from ifan.files import part_beside

if TYPE_CHECKING:
    from ifan.faces.analyzer import FaceAnalyzer

PIXELS_AT_ONCE = 1 << 25
"""Of the frames that are in memory together: four of 3840 x 2160."""

Frame = tuple[int, float | None, PhotoResult]


def analyse_clip(analyzer: FaceAnalyzer, path: str, every: int = 1) -> Iterator[Frame]:
    """Number, seconds and result of every ``every``-th frame; as many frames at once as the analyzer's batch has faces,
    fewer of large ones.

    Raises ``ValueError`` for what cannot be read.
    """
    stream = frames(path, every)
    first = next(stream, None)
    at_once = min(analyzer.batch_size, max(1, PIXELS_AT_ONCE // (first[2].size // 3))) if first else 1
    stream = chain([first] if first else [], stream)
    while chunk := list(islice(stream, at_once)):
        results = analyzer([image for _, _, image in chunk])
        yield from ((number, time, result) for (number, time, _), result in zip(chunk, results, strict=True))


def save_clip(
    analyzer: FaceAnalyzer,
    path: str,
    folder: str | Path,
    stem: str,
    every: int = 1,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Path], int, int]:
    """Write ``<stem>_overlay.mp4`` and ``<stem>.jsonl``, whole or not at all; ``progress`` is called with frames done.

    Returns their paths and the numbers of frames and faces. Raises ``ValueError`` for a clip that cannot be read,
    ``OSError`` for a folder that cannot be written.
    """
    base = Path(folder)
    base.mkdir(parents=True, exist_ok=True)
    targets = [base / f"{stem}_overlay.mp4", base / f"{stem}.jsonl"]
    waiting = [part_beside(target) for target in targets]
    count = faces = 0
    try:
        with waiting[1].open("x", encoding="utf-8") as lines, _Film(waiting[0], frame_rate(path) / every) as film:
            for number, time, result in analyse_clip(analyzer, path, every):
                film.add(annotate(result.image, result.faces))
                row = {"frame": number, "time": time, **result.to_dict()}
                lines.write(json.dumps({**row, "photo": path}) + "\n")
                count, faces = count + 1, faces + len(result)
                if progress:
                    progress(count)
        if count == 0:
            raise ValueError(f"{path}: the clip has no frames; check it")
        for temporary, target in zip(waiting, targets, strict=True):
            temporary.replace(target)
    finally:
        for temporary in waiting:
            temporary.unlink(missing_ok=True)
    return targets, count, faces


class _Film:
    """An MP4 file that grows by RGB pictures of one size."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.stream: Any = None

    def __enter__(self) -> _Film:
        import av

        self.container = av.open(str(self.path), "w", format="mp4")
        return self

    def add(self, picture: Any) -> None:
        """Append a picture; an odd row or column is cut off, as the codec wants it."""
        from fractions import Fraction

        import av

        height, width = (n - n % 2 for n in picture.shape[:2])
        if self.stream is None:
            self.stream = self.container.add_stream("libx264", Fraction(self.rate).limit_denominator(1001))
            self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(picture[:height, :width].copy(), format="rgb24")
        self.container.mux(self.stream.encode(frame))

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode())
        self.container.close()
