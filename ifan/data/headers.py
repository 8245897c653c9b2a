"""Sizes of pictures from their headers, stricter than any decoder.

A header that a decoder could read in another way (a doubled tag, a marker without a place, a stream of the wrong kind)
raises ``ValueError``. So what these functions return is what is decoded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

MAX_CHUNKS = 1 << 17
"""Largest number of parts of a PNG; one of 100 megapixels of 16 bits in parts of 8 KB has 75,000."""

MAX_TAGS = 4096
"""Largest number of tags of a TIFF; a camera writes some dozens."""

WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT = 256, 257, 322, 323
"""Tags of a TIFF."""


def header_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of the picture in ``data``, before a rotation; ``None`` for a format that is not read.

    Raises ``ValueError``, ``LookupError`` or ``struct.error`` for a header that is damaged, cut short or ambiguous.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return png_size(data)
    if data.startswith(b"\xff\xd8"):
        return jpeg_size(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return struct.unpack("<HH", data[6:10])
    if data.startswith(b"BM"):
        return bmp_size(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return webp_size(data[:32])
    if data[:4] in (b"II*\0", b"MM\0*"):
        return tiff_size(data)
    if {b"avif", b"avis"} & set(brands(data)):
        return avif_size(data)
    return None


def png_size(data: bytes) -> tuple[int, int]:
    """Size of a PNG whose critical chunks are whole: libpng would print its own complaint."""
    view, at, kind = memoryview(data), 8, b""
    for number in range(MAX_CHUNKS):
        (length,) = struct.unpack(">I", view[at : at + 4])
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if (kind == b"IHDR") != (number == 0) or (number == 0 and length != 13):
            raise ValueError("the header is not first, or not alone")
        if kind[:1].isupper():
            check = zlib.crc32(view[at + 8 : end], zlib.crc32(kind))
            if check != int.from_bytes(view[end : end + 4], "big") or end + 4 > len(data):
                raise ValueError("checksum")
        if kind == b"IEND":
            return struct.unpack(">II", data[16:24])
        at = end + 4
    raise ValueError(f"more than {MAX_CHUNKS} chunks")


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Size of a JPEG whose markers, as far as the frame's, are all segments."""
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:
            at += 1
        marker, (length,) = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])
        # Markers without a body (TEM, restarts, a second start or an end) have no place before the frame.
        if data[at] != 0xFF or marker < 0xC0 or 0xD0 <= marker <= 0xDA or length < 2:
            raise ValueError("no segment")
        if marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            # libjpeg fills what is missing with grey and does not complain: look for the end marker ourselves.
            if data.find(b"\xff\xd9", at) < 0:
                raise ValueError("no end marker")
            return width, height
        at += 2 + length


def bmp_size(data: bytes) -> tuple[int, int]:
    """Size of a BMP with the header of OS/2 (12 bytes) or of Windows (36 bytes or more as OpenCV reads it)."""
    (length,) = struct.unpack("<I", data[14:18])
    width, height = struct.unpack("<HH", data[18:22]) if length == 12 else struct.unpack("<ii", data[18:26])
    return width, abs(height)


def webp_size(head: bytes) -> tuple[int, int]:
    """Size of a WebP from its first 32 bytes; its first chunk must be a picture's or the extended header."""
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("the first chunk is not a picture")


def brands(data: bytes) -> list[bytes]:
    """Names of what a file of boxes, such as AVIF and HEIC, says that it is; none of another file."""
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4], "big"), 4 * MAX_TAGS)
    return [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]


def avif_size(data: bytes) -> tuple[int, int]:
    """Size of an AVIF: the largest that a picture in it has."""
    (meta,) = (body for name, body in _boxes(data) if name == b"meta")
    properties = dict(_boxes(dict(_boxes(meta[4:]))[b"iprp"]))[b"ipco"]
    sizes: list[tuple[int, int]] = [
        struct.unpack(">II", body[4:12]) for name, body in _boxes(properties) if name == b"ispe"
    ]
    return max(sizes, key=lambda size: size[0] * size[1])


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of the boxes that ``data`` consists of; ``ValueError`` where one is not whole."""
    at = 0
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        start = at + 8
        if length == 1:
            (length,) = struct.unpack(">Q", data[at + 8 : at + 16])
            start = at + 16
        end = at + length if length else len(data)
        if end < start or end > len(data):
            raise ValueError("a box is not whole")
        yield name, data[start:end]
        at = end


def tiff_size(data: bytes) -> tuple[int, int]:
    """Size of the first picture of a TIFF; tiles, which are decoded whole, must not be much larger than it."""
    tags = tiff_tags(data)
    width, height = tiff_number(data, tags, WIDTH), tiff_number(data, tags, HEIGHT)
    if TILE_WIDTH in tags or TILE_HEIGHT in tags:
        for side, tag in ((width, TILE_WIDTH), (height, TILE_HEIGHT)):
            if not 0 < tiff_number(data, tags, tag) < side + 4096:
                raise ValueError("a tile is larger than the picture")
    return width, height


def tiff_tags(data: bytes) -> dict[int, tuple[int, int, int]]:
    """Kind, count and place of the value of each tag of a TIFF's first folder, each tag once."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack(order + "I", data[4:8])
    (count,) = struct.unpack(order + "H", data[start : start + 2])
    if count > MAX_TAGS:
        raise ValueError("too many tags")
    tags: dict[int, tuple[int, int, int]] = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack(order + "HHI", data[at : at + 8])
        if tag in tags or at + 12 > len(data):
            raise ValueError("a tag is there twice, or cut short")
        tags[tag] = kind, length, at + 8
    return tags


def tiff_number(data: bytes, tags: dict[int, tuple[int, int, int]], tag: int, default: int | None = None) -> int:
    """The one number of a tag; ``default`` where the tag is not there, else ``ValueError``."""
    if tag not in tags and default is not None:
        return default
    (number,) = tiff_numbers(data, tags, tag)
    return number


def tiff_numbers(data: bytes, tags: dict[int, tuple[int, int, int]], tag: int) -> tuple[int, ...]:
    """All numbers of a tag of 16 or 32 bits a number; ``ValueError`` for another kind."""
    if tag not in tags or tags[tag][0] not in (3, 4):
        raise ValueError(f"no tag {tag} of whole numbers")
    order, (kind, count, at) = "<" if data[:2] == b"II" else ">", tags[tag]
    width = 2 if kind == 3 else 4
    if count * width > 4:
        (at,) = struct.unpack(order + "I", data[at : at + 4])
    return struct.unpack(f"{order}{count}{'H' if width == 2 else 'I'}", data[at : at + count * width])
