"""Structure of a Matroska or WebM file: FFmpeg goes on at the next sound place after damage, and does not complain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

HEADER, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_VOID, _CRC = 0xEC, 0xBF
_FILE = frozenset({HEADER, SEGMENT, _VOID})
# Index, facts, tracks, clusters, cues, attachments, chapters, tags.
_IN_SEGMENT = frozenset(
    {0x114D9B74, 0x1549A966, 0x1654AE6B, CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, _VOID, _CRC}
)
# Time, blocks of three kinds, place, size of the cluster before, silent tracks.
_IN_CLUSTER = frozenset({0xE7, 0xA0, 0xA3, 0xAF, 0xA7, 0xAB, 0x5854, _VOID, _CRC})


class _Unsized(Exception):
    """An element that goes on until another one begins, as recordings that are sent at once have them."""


def is_torn(path: str) -> bool:
    """True if parts of a Matroska file, or blocks of a cluster in it, do not follow one another to their end.

    False for other formats, and for files whose parts have no sizes. Source: RFC 8794 and RFC 9559.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(4) != HEADER.to_bytes(4, "big"):
            return False
        try:
            for kind, begin, end in _elements(file, 0, size, _FILE):
                if kind == SEGMENT:
                    for inner, start, stop in _elements(file, begin, end, _IN_SEGMENT):
                        if inner == CLUSTER:
                            for _ in _elements(file, start, stop, _IN_CLUSTER):
                                pass
                    return False  # what comes after it is not the clip's
        except _Unsized:
            return False
        except (ValueError, IndexError):
            return True
    return True


def _elements(file: BinaryIO, at: int, stop: int, known: frozenset[int]) -> Iterator[tuple[int, int, int]]:
    """Kind, begin and end of each element from ``at`` to ``stop``; ``ValueError`` or ``IndexError`` for another."""
    while at < stop:
        file.seek(at)
        head = file.read(12)
        name = 9 - head[0].bit_length()  # leading zeros say how many bytes follow
        width = 9 - head[name].bit_length()
        kind, size = int.from_bytes(head[:name], "big"), int.from_bytes(head[name : name + width], "big")
        size -= 1 << 7 * width
        if kind not in known or width > 8:
            raise ValueError("an element that has no place here")
        if size == (1 << 7 * width) - 1:
            raise _Unsized
        begin, at = at + name + width, at + name + width + size
        if at > stop:
            raise ValueError("an element that is longer than what it is in")
        yield kind, begin, at
