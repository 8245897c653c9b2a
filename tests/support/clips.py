"""Small clips made on the spot."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path, count: int, rate: int = 10, size: tuple[int, int] = (64, 48), options: dict[str, str] | None = None
) -> Path:
    """A clip whose frame ``i`` is grey of brightness ``8 i``, but for a white upper left quarter; ``options`` of the
    container."""
    pictures = [np.full((size[1], size[0], 3), 8 * i, np.uint8) for i in range(count)]
    for picture in pictures:
        picture[: size[1] // 2, : size[0] // 2] = 255
    return write_pictures(path, pictures, rate, options)


def write_pictures(
    path: Path, pictures: Sequence[np.ndarray], rate: int = 10, options: dict[str, str] | None = None
) -> Path:
    """A clip of ``pictures`` (H, W, 3) uint8 RGB; ``options`` of the container."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate)
        (stream.height, stream.width), stream.pix_fmt = pictures[0].shape[:2], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def turn_clip(path: Path) -> None:
    """Tell players to turn the clip by 90 degrees clockwise, as telephones do."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30)
    path.write_bytes(data)


def trim_clip(path: Path, ticks: int) -> None:
    """Hide the first ``ticks`` of the clip's time base by its edit list, as editors trim without coding anew."""
    data = bytearray(path.read_bytes())
    begin = data.index(b"elst") + 16
    (now,) = struct.unpack_from(">i", data, begin)
    struct.pack_into(">i", data, begin, now + ticks)
    path.write_bytes(data)
