"""Pictures of the documents, all made from the packaged portrait: a photo, a photo of nine faces, a clip.

    python tools/make_pictures.py

Writes docs/images/portrait.jpg, nine.jpg and clip.webp (needs Pillow).
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

import ifan
from ifan.cli.demo import nine_of
from ifan.crop import Crop, crop_image
from ifan.data.portrait import FACE, read_portrait
from ifan.faces.draw import annotate
from ifan.faces.jpeg import encode_jpeg
from ifan.files import write_files

ROOT = Path(__file__).resolve().parents[1]
SIDE, FRAMES, MILLISECONDS = 300, 32, 80
"""Of the clip: pixels, pictures, and how long each is shown."""


def camera(portrait: np.ndarray) -> list[np.ndarray]:
    """Frames of a camera that sways, nods and comes closer, and returns to where it began."""
    x, y, side = FACE
    frames = []
    for phase in np.arange(FRAMES) * (2 * math.pi / FRAMES):
        near = 1.25 - 0.25 * math.cos(phase)
        place = x + 22 * math.sin(phase), y + 14 * math.sin(2 * phase) + 30 * (near - 1)
        frames.append(crop_image(portrait, Crop(*place, side * near, 14 * math.sin(phase)), SIDE))
    return frames


def animation(frames: list[np.ndarray]) -> bytes:
    """An animated WebP file that repeats."""
    file, (first, *rest) = io.BytesIO(), [Image.fromarray(frame) for frame in frames]
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=MILLISECONDS, loop=0, quality=70, method=6)
    return file.getvalue()


def main() -> None:
    """Write the pictures and say how large they are."""
    analyzer = ifan.load()
    portrait = read_portrait()
    clip = [annotate(result.image, result.faces) for result in analyzer(camera(portrait))]
    pictures = {
        "portrait.jpg": encode_jpeg(analyzer(portrait).plot()),
        "nine.jpg": encode_jpeg(analyzer(nine_of(portrait)).plot(), quality=80),
        "clip.webp": animation(clip),
    }
    write_files({ROOT / "docs/images" / name: data for name, data in pictures.items()})
    for name, data in pictures.items():
        print(f"docs/images/{name}: {len(data) // 1000} KB")


if __name__ == "__main__":
    main()
