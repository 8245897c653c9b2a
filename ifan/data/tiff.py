"""Check of a TIFF's compressed pixels: OpenCV draws what libtiff makes of damaged ones and does not complain."""

from __future__ import annotations

import zlib

import numpy as np

from ifan.data.headers import HEIGHT, TILE_HEIGHT, TILE_WIDTH, WIDTH, tiff_number, tiff_numbers, tiff_tags

BITS, COMPRESSION, PHOTOMETRIC, STRIPS, SAMPLES, ROWS, STRIP_BYTES, PLANAR = 258, 259, 262, 273, 277, 278, 279, 284
TILES, TILE_BYTES = 324, 325
LZW, DEFLATE, YCBCR = 5, (8, 32946), 6
CLEAR, END = 256, 257

# Bits of each code after a table was cleared, and where they begin. More codes than this do not fit into a table.
_WIDTHS = np.repeat(np.arange(9, 13), [254, 512, 1024, 3072])
_BEGINS = np.cumsum(_WIDTHS) - _WIDTHS


def check_pixels(data: bytes) -> None:
    """Raise ``ValueError`` if a deflate or LZW stream of the first picture is damaged or too short for its pixels.

    Deflate has a checksum. LZW has none: found are codes that cannot be there and a wrong number of pixels.
    """
    tags = tiff_tags(data)
    compression = tiff_number(data, tags, COMPRESSION, 1)
    if compression not in (LZW, *DEFLATE) or tiff_number(data, tags, PHOTOMETRIC, 0) == YCBCR:
        return
    tiled = TILES in tags
    starts = tiff_numbers(data, tags, TILES if tiled else STRIPS)
    lengths = tiff_numbers(data, tags, TILE_BYTES if tiled else STRIP_BYTES)
    width, height = (tiff_number(data, tags, tag) for tag in ((TILE_WIDTH, TILE_HEIGHT) if tiled else (WIDTH, HEIGHT)))
    samples = tiff_number(data, tags, SAMPLES, 1)
    planes = samples if tiff_number(data, tags, PLANAR, 1) == 2 else 1
    bits = tiff_numbers(data, tags, BITS)[0] if BITS in tags else 1
    row = (width * bits * samples // planes + 7) // 8
    rows = height if tiled else min(height, max(1, tiff_number(data, tags, ROWS, height)))
    per_plane = len(starts) // planes if tiled else -(-height // rows)
    if not len(starts) == len(lengths) == per_plane * planes:
        raise ValueError("pieces are missing")
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        kept = rows if tiled else min(rows, height - number % per_plane * rows)
        piece = data[start : start + length]
        # Some writers fill the last strip up.
        if len(piece) < length or _unpacked(piece, compression, row * rows) not in (row * kept, row * rows):
            raise ValueError("another number of pixels")


def _unpacked(piece: bytes, compression: int, full: int) -> int:
    """Bytes that a stream unpacks to; counted little further than ``full``."""
    if compression == LZW:
        # A stream of the first edition begins with a zero byte. Its codes run the other way: libtiff's business.
        return full if piece[0] == 0 and piece[1] & 1 else lzw_length(piece, full)
    stream, size = zlib.decompressobj(), 0
    try:
        while not stream.eof and size <= full:
            got = len(stream.decompress(piece, 1 << 20))
            piece, size = stream.unconsumed_tail, size + got
            if not got and not piece:  # the end, with the checksum, is missing
                break
    except zlib.error as error:
        raise ValueError("deflate") from error
    return size if stream.eof else -1


def lzw_length(piece: bytes, full: int) -> int:
    """Bytes that an LZW stream unpacks to, counted little further than ``full``.

    Between two clear codes the width of each code is known from its number, so a whole table is read at once. Raises
    ``IndexError`` for a code that is not in the table yet.
    """
    stream = np.frombuffer(piece + bytes(3), np.uint8).astype(np.uint32)
    total, at, end = 0, 0, 8 * len(piece)
    while total <= full:
        whole = np.searchsorted(_BEGINS + _WIDTHS, end - at, "right")
        begins, widths = at + _BEGINS[:whole], _WIDTHS[:whole]
        first = begins >> 3
        codes = (stream[first] << 16 | stream[first + 1] << 8 | stream[first + 2]) >> (24 - (begins & 7) - widths)
        codes = codes & (1 << widths) - 1
        stops = np.flatnonzero((codes == CLEAR) | (codes == END))
        count = int(stops[0]) if len(stops) else len(codes)
        lengths: list[int] = []
        for code in codes[:count].tolist():  # the string of an earlier code and one byte more
            lengths.append(1 if code < CLEAR else lengths[code - END - 1] + 1)
        total += sum(lengths)
        if count == len(codes) or codes[count] == END:
            break
        at = int(begins[count] + widths[count])
    return total
