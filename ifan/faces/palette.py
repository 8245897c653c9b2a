"""Colours of the parsing classes, told apart by colour-blind readers too."""

from __future__ import annotations

import numpy as np

# Okabe and Ito, "Color Universal Design" (2008), with white for the inside of the mouth, between two lips.
COLOURS = (
    (0, 0, 0),  # background, never drawn over a photo
    (86, 180, 233),  # skin
    (230, 159, 0),  # brow
    (240, 228, 66),  # eye
    (0, 158, 115),  # nose
    (213, 94, 0),  # upper lip
    (255, 255, 255),  # inside mouth
    (0, 114, 178),  # lower lip
    (204, 121, 167),  # hair
)


def palette(classes: int) -> np.ndarray:
    """Colours of class ids 0 to ``classes - 1``, (classes, 3) uint8 RGB; beyond nine they repeat, darker each time."""
    foreground = np.array(COLOURS[1:], np.float32)
    turns = -(-max(classes - 1, 0) // len(foreground))
    repeated = [foreground * 0.6**turn for turn in range(turns)]
    return np.concatenate([np.zeros((1, 3)), *repeated])[:classes].round().astype(np.uint8)
