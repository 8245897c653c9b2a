"""Reading pictures: whatever comes in, 8-bit RGB comes out, or one line that says what is wrong with the file."""

from __future__ import annotations

import stat
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from ifan.data.dataset import DataError
from ifan.data.headers import brands, header_size
from ifan.data.tiff import check_pixels

MAX_SIDE = 20_000
MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 30
"""A picture of so many pixels, 16 bits each and unpacked, has 600 MB."""
FORMATS = "JPEG, PNG, WebP, AVIF, BMP, GIF or TIFF"
HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
"""Brands of pictures coded by HEVC: OpenCV does not decode them, FFmpeg their tiles alone."""


class ImageError(DataError):
    """A picture that cannot be read; the message names the file and the way out."""


def read_image(source: str | Path | bytes | np.ndarray, name: str | None = None) -> np.ndarray:
    """Decode a picture file (or its bytes) to (H, W, 3) uint8 RGB.

    Grey, palette, alpha (dropped), 16-bit and CMYK pictures are converted; an EXIF rotation is applied. The size is
    read from the header before anything is decoded: at most 20,000 px a side and 100 megapixels. ``name`` stands for
    the file in messages when bytes come. Raises `ImageError`.
    """
    data, name = _bytes_of(source, name)
    size = check_header(data, name)
    return np.asarray(cv2.cvtColor(_decode(data, name, size, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def read_label_image(source: str | Path | bytes | np.ndarray, name: str | None = None) -> np.ndarray:
    """Decode a label map to (H, W) uint8 ids: a grey picture's values, or a palette PNG's indices (not its colours)."""
    data, name = _bytes_of(source, name)
    size = check_header(data, name)
    data, step = _without_palette(data)
    ids = _decode(data, name, size, cv2.IMREAD_UNCHANGED)
    if ids.ndim == 3 and (ids == ids[..., :1]).all():
        ids = ids[..., 0]
    if ids.ndim != 2 or ids.dtype not in (np.uint8, np.uint16) or ids.max() > 255:
        raise ImageError(
            f"{name}: expected a label map of ids 0..255 (grey or palette); got {ids.dtype} {ids.shape}; save ids"
        )
    return (ids // step).astype(np.uint8)


def check_header(data: bytes | np.ndarray, name: str) -> tuple[int, int]:
    """Width and height from the header of ``data``; raises `ImageError` when unknown, cut short or too large."""
    if len(data) == 0:
        raise ImageError(f"{name}: the file is empty; replace it")
    try:
        size = header_size(bytes(data))
    except (struct.error, LookupError, ValueError) as error:
        raise ImageError(f"{name}: the picture is cut short or damaged; replace it") from error
    if size is None and HEIC & set(brands(bytes(data[:4096]))):
        raise ImageError(f"{name}: HEIC is not read here ({FORMATS} are); convert it, or let the phone export JPEG")
    if size is None:
        raise ImageError(f"{name}: not a picture this program reads ({FORMATS}); convert it")
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the header says {width} x {height} pixels; the file is damaged, replace it")
    if max(size) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height} pixels is beyond the limit of {MAX_SIDE} a side and "
            f"{MAX_PIXELS // 10**6} megapixels; shrink the picture first"
        )
    return size


def _bytes_of(source: str | Path | bytes | np.ndarray, name: str | None) -> tuple[bytes | np.ndarray, str]:
    if isinstance(source, (bytes, np.ndarray)):
        return source, name or "picture"
    path = Path(source)
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # a pipe would wait for ever, a device never end
            raise ImageError(f"{path}: expected a file with a picture; got a folder, pipe or device; check the path")
        if facts.st_size > MAX_BYTES:
            raise ImageError(
                f"{path}: {facts.st_size} bytes is beyond the limit of {MAX_BYTES}; shrink the picture first"
            )
        return path.read_bytes(), str(path)
    except FileNotFoundError:
        raise ImageError(f"{path}: the picture does not exist; check the path") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot read the picture ({error.strerror}); check path and rights") from error


def _decode(data: bytes | np.ndarray, name: str, size: tuple[int, int], flags: int) -> np.ndarray:
    """The picture as OpenCV decodes it; ``size`` is what its header said."""
    buffer = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    try:
        if bytes(buffer[:2]) in (b"II", b"MM"):
            check_pixels(bytes(buffer))
        image = cv2.imdecode(buffer, flags)
    except cv2.error as error:
        raise ImageError(f"{name}: the picture cannot be decoded ({error.err}); replace it") from error
    except (struct.error, IndexError, ValueError) as error:
        raise ImageError(f"{name}: the picture is cut short or damaged; replace it") from error
    if image is None:
        raise ImageError(f"{name}: the picture is damaged or of a kind OpenCV cannot decode; replace or convert it")
    if sorted(image.shape[:2]) != sorted(size):  # a rotation may have been applied
        raise ImageError(
            f"{name}: expected {size[0]} x {size[1]} pixels, as its header says; got {image.shape[1]} x"
            f" {image.shape[0]}; the file is damaged, replace it"
        )
    return np.asarray(image)


def _without_palette(data: bytes | np.ndarray) -> tuple[bytes | np.ndarray, int]:
    """A palette PNG rewritten as a grey one, so that its indices are decoded, and the step between two of them.

    OpenCV always expands a palette to colours. Grey of fewer than 8 bits is stretched to 0..255 by the decoder.
    """
    raw = bytes(data)
    if not raw.startswith(b"\x89PNG") or raw[25] != 3:
        return data, 1
    kept, at = [raw[:8]], 8
    while at + 12 <= len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        kind, body = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            body = body[:9] + b"\0" + body[10:]
        if kind not in (b"PLTE", b"tRNS", b"bKGD", b"hIST"):
            kept.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
        at += 12 + length
    return b"".join(kept), 255 // (2 ** raw[24] - 1)
