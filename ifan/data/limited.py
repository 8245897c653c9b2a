"""Pictures of strangers, decoded in a process of their own: its memory and time end before the machine's do."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from ifan.data.images import ImageError, read_image

MEMORY = 2 << 30
"""Bytes of addresses: the largest picture of any format needs two thirds."""

SECONDS = 20
"""Of the processor. The clock may show three times as much: other work may be in the way."""

_HEAD = struct.Struct("<?II")


def read_limited(source: str | Path | bytes, name: str) -> np.ndarray:
    """`ifan.data.images.read_image` within `MEMORY` and `SECONDS`; ``name`` stands for the file in messages.

    Systems without limits for a process (Windows) limit the time alone. Raises `ImageError`.
    """
    command = [sys.executable, "-m", __name__, name, str(MEMORY), str(SECONDS)]
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # each takes addresses
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=3 * SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise _beyond(name) from None
    except OSError as error:
        raise ImageError(f"{name}: cannot read the picture ({error.strerror}); check path and rights") from error
    if len(done.stdout) < _HEAD.size:
        raise _beyond(name)
    good, height, width = _HEAD.unpack_from(done.stdout)
    if not good:
        raise ImageError(done.stdout[_HEAD.size :].decode(errors="replace"))
    return np.frombuffer(done.stdout, np.uint8, offset=_HEAD.size).reshape(height, width, 3)


def _beyond(name: str) -> ImageError:
    return ImageError(f"{name}: the picture needs more than {MEMORY >> 20} MB or {SECONDS} s to decode; shrink it")


def _limit(memory: int, seconds: int) -> None:
    """Bound this process, before it sees a byte of the file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, most in (("AS", memory), ("CPU", seconds), ("CORE", 0), ("FSIZE", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))


def main() -> None:
    """The process: a file on standard input, its pixels or what is wrong with it on standard output."""
    name, memory, seconds = sys.argv[1:]
    out = sys.stdout.buffer
    _limit(int(memory), int(seconds))
    try:
        image = read_image(sys.stdin.buffer.read(), name)
    except MemoryError:
        sys.exit(1)
    except ImageError as error:
        if isinstance(error.__cause__, cv2.error) and error.__cause__.code == cv2.Error.StsNoMem:
            sys.exit(1)
        out.write(_HEAD.pack(False, 0, 0) + str(error).encode(errors="replace"))
    else:
        out.write(_HEAD.pack(True, *image.shape[:2]))
        out.write(image.data)


if __name__ == "__main__":
    main()
