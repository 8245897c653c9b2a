"""The command line: one file a command, gathered in `ifan.cli.main`; no logic of its own."""

from __future__ import annotations

import os

# Of this process, read when OpenCV is loaded: one line of ours instead of several of the decoders', and no larger
# picture than the library's own limit, whatever a header hides.
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "100000000")


def one_line(text: object) -> str:
    """``text`` for a terminal: without line breaks, and with a ? for each byte of a path that is not text."""
    return " ".join(str(text).split()).encode("utf-8", "replace").decode()
