"""Writing results: pictures as PNG, and files that are whole or not there."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from ifan.faces.palette import palette

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files or none: to temporary names beside their places first, then renamed in order.

    Folders are made as needed; a file that was there is replaced. Raises ``OSError``, which names the file, and leaves
    nothing half-written.
    """
    waiting: dict[Path, Path] = {}
    try:
        for number, (path, data) in enumerate(files.items()):
            path.parent.mkdir(parents=True, exist_ok=True)
            waiting[path] = path.with_name(f".{os.getpid()}-{number}.part")
            try:
                with waiting[path].open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        for path, temporary in waiting.items():
            temporary.replace(path)
    finally:
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes ``folder`` and keeps other processes that ask the same out of it, while it lasts or the process lives.

    Raises ``ValueError`` if one is there, ``OSError`` if it cannot be made. Where the system has no such locks, nobody
    is kept out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another process is writing there; wait for it, or choose another name"
            ) from None
        except OSError:  # some network file systems
            pass
        yield
    finally:
        os.close(descriptor)


def remove_parts(*folders: Path) -> None:
    """Remove what a killed `write_files` left in ``folders``, as far as these are there."""
    for folder in folders:
        for part in folder.glob(".*.part"):
            part.unlink()


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
