"""The packaged portrait: NASA's of Eileen Collins (public domain)."""

from __future__ import annotations

from importlib import resources

import numpy as np

from ifan.data.images import read_image

PORTRAIT = "astronaut.png"
"""Its file's name."""

FACE = 225.0, 118.0, 220.0
"""Centre and side of a square around the portrait's face, in its pixels."""


def read_portrait() -> np.ndarray:
    """The portrait, (H, W, 3) uint8 RGB."""
    return read_image((resources.files("ifan") / "assets" / PORTRAIT).read_bytes())
