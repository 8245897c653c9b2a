"""Writing results: pictures as PNG, and files that are whole or not there."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from ifan.inference.palette import palette


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files or none: to temporary names beside their places first, then renamed in order.

    Folders are made as needed; a file that was there is replaced. Raises ``OSError`` and leaves nothing half-written.
    """
    waiting: dict[Path, Path] = {}
    try:
        for number, (path, data) in enumerate(files.items()):
            path.parent.mkdir(parents=True, exist_ok=True)
            waiting[path] = path.with_name(f".{os.getpid()}-{number}.part")
            with waiting[path].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in waiting.items():
            temporary.replace(path)
    finally:
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)


def encode_png(image: np.ndarray) -> bytes:
    """An (H, W, 3) uint8 RGB picture as a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def encode_label_png(labels: np.ndarray) -> bytes:
    """An (H, W) uint8 class map as a palette PNG: the pixels are the class ids, viewers show the classes' colours."""
    height, width = labels.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row starts with its filter, 0 = none
    rows[:, 1:] = labels
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette(256).tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 6)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
