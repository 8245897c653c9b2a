"""Results as PNG files: pictures, and class maps in the classes' colours."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

from ifan.faces.palette import palette


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
