"""Analyse a photo: print what is in it, write the overlay and the regions.

python examples/photo.py ifan/assets/astronaut.png out
"""

from __future__ import annotations

import sys

import ifan


def main(photo: str, out: str = "out") -> None:
    """Analyse ``photo``; its pictures and its JSON go to the folder ``out``."""
    result = ifan.load()(photo)
    for number, face in enumerate(result, 1):
        emotion, probability = face.best("emotion")
        x, y = face.landmarks["nose"]
        print(f"face {number}: {emotion} {probability:.0%}, nose at {x:.0f}, {y:.0f}")
    for path in result.save(out):
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
