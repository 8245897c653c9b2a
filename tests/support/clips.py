"""Small clips made on the spot."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, count: int, rate: int = 10, size: tuple[int, int] = (64, 48)) -> Path:
    """A clip whose frame ``i`` is grey of brightness ``8 i``, but for a white upper left quarter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(count):
            picture = np.full((size[1], size[0], 3), 8 * i, np.uint8)
            picture[: size[1] // 2, : size[0] // 2] = 255
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
