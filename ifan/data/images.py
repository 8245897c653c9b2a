"""Reading pictures: whatever comes in, 8-bit RGB comes out, or one line that says what is wrong with the file."""

from __future__ import annotations

import stat
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from ifan.data.dataset import DataError

MAX_SIDE = 20_000
MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 30
"""A picture of so many pixels, 16 bits each and unpacked, has 600 MB."""
FORMATS = "JPEG, PNG, WebP, BMP, GIF or TIFF"


class ImageError(DataError):
    """A picture that cannot be read; the message names the file and the way out."""


def read_image(source: str | Path | bytes | np.ndarray, name: str | None = None) -> np.ndarray:
    """Decode a picture file (or its bytes) to (H, W, 3) uint8 RGB.

    Grey, palette, alpha (dropped), 16-bit and CMYK pictures are converted; an EXIF rotation is applied. The size is
    read from the header before anything is decoded: at most 20,000 px a side and 100 megapixels. ``name`` stands for
    the file in messages when bytes come. Raises `ImageError`.
    """
    data, name = _bytes_of(source, name)
    check_header(data, name)
    return np.asarray(cv2.cvtColor(_decode(data, name, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def read_label_image(source: str | Path | bytes | np.ndarray, name: str | None = None) -> np.ndarray:
    """Decode a label map to (H, W) uint8 ids: a grey picture's values, or a palette PNG's indices (not its colours)."""
    data, name = _bytes_of(source, name)
    check_header(data, name)
    data, step = _without_palette(data)
    ids = _decode(data, name, cv2.IMREAD_UNCHANGED)
    if ids.ndim == 3 and (ids == ids[..., :1]).all():
        ids = ids[..., 0]
    if ids.ndim != 2 or ids.dtype not in (np.uint8, np.uint16) or ids.max() > 255:
        raise ImageError(
            f"{name}: expected a label map of ids 0..255 (grey or palette); got {ids.dtype} {ids.shape}; save ids"
        )
    return (ids // step).astype(np.uint8)


def check_header(data: bytes | np.ndarray, name: str) -> tuple[int, int]:
    """Width and height from the header of ``data``; raises `ImageError` when unknown, cut short or too large."""
    head = bytes(data[:32])
    if len(data) == 0:
        raise ImageError(f"{name}: the file is empty; replace it")
    try:
        size = _header_size(data, head)
    except (struct.error, IndexError, ValueError) as error:
        raise ImageError(f"{name}: the picture is cut short or damaged; replace it") from error
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


def _decode(data: bytes | np.ndarray, name: str, flags: int) -> np.ndarray:
    buffer = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    level = cv2.utils.logging.getLogLevel()
    # One line of ours instead of several of the decoders'.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        image = cv2.imdecode(buffer, flags)
    except cv2.error as error:
        raise ImageError(f"{name}: the picture cannot be decoded ({error.err}); replace it") from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if image is None:
        raise ImageError(f"{name}: the picture is damaged or of a kind OpenCV cannot decode; replace or convert it")
    return np.asarray(image)


def _header_size(data: bytes | np.ndarray, head: bytes) -> tuple[int, int] | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_size(bytes(data))
    if head.startswith(b"\xff\xd8"):
        return _jpeg_size(bytes(data))
    if head.startswith((b"GIF87a", b"GIF89a")):
        return struct.unpack("<HH", head[6:10])
    if head.startswith(b"BM"):
        width, height = struct.unpack("<ii", head[18:26])
        return width, abs(height)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp_size(bytes(data[:32]))
    if head[:4] in (b"II*\0", b"MM\0*"):
        return _tiff_size(bytes(data))
    return None


def _png_size(data: bytes) -> tuple[int, int]:
    """Size of a PNG whose critical chunks are whole: libpng would print its own complaint."""
    kind, at = b"", 8
    while kind != b"IEND":
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body, end = data[at + 4 : at + 8], memoryview(data)[at + 8 : at + 8 + length], at + 8 + length
        if kind[:1].isupper() and zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError("checksum")
        at = end + 4
    return struct.unpack(">II", data[16:24])


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:
            at += 1
        if data[at] != 0xFF:
            raise ValueError("no marker")
        marker, (length,) = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            # libjpeg fills what is missing with grey and does not complain: look for the end marker ourselves.
            if data.find(b"\xff\xd9", at) < 0:
                raise ValueError("no end marker")
            return width, height
        if length < 2:
            raise ValueError("segment without length")
        at += 2 + length


def _webp_size(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", head[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _tiff_size(data: bytes) -> tuple[int, int]:
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack(order + "I", data[4:8])
    (count,) = struct.unpack(order + "H", data[start : start + 2])
    found = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack(order + "HH", data[at : at + 4])
        (found[tag],) = struct.unpack(
            order + ("H" if kind == 3 else "I"), data[at + 8 : at + (10 if kind == 3 else 12)]
        )
    if 256 not in found or 257 not in found:
        raise ValueError("no size")
    return found[256], found[257]


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
