"""The overlay: outlines and a light fill of the regions, points and boxes on the photo; labels beside the faces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from ifan.crop import covered
from ifan.faces.face import Face
from ifan.faces.lettering import INK, PAPER, SMALLEST, Item, label_faces, strip
from ifan.faces.palette import palette

FILL, LINE, RIM = 0.12, 0.9, 0.25
"""Opacity of a region's inside, of its outline, and of the dark rim that shows the outline on bright ground."""

BORDER = 4
"""Pixels of a region that are taken along around a class."""

BITS = 4
"""Of a place below one pixel."""

FADE = 0.08
"""Sides of the square that the network saw along its border, over which a region fades that ends there."""

LARGE = 220
"""Side of a crop in pixels of the picture from which a point has room for an open middle."""

FEW = 10
"""Points of a face up to which each is marked large; more of them are dots that show an outline."""

SMALLEST_SIDE, SMALLEST_FACE, LARGEST_SIDE = 640, 150, 2000
"""A photo is enlarged until its longer side and its smallest face have these sides, unless it grows beyond the last."""


def overlay(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """The picture of `PhotoResult.plot`, (H, W, 3) uint8 RGB: `labelled`, and a strip of names and numbers below it."""
    picture = labelled(image, faces)
    below = strip(picture.shape[1], _legend(faces) if faces else [], _text(picture))
    return np.concatenate([picture, below])


def labelled(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """The photo, enlarged if small, with all of ``faces``, a label beside each; (H, W, 3) uint8 RGB."""
    scale = enlargement(image, faces)
    picture = draw_faces(image, faces, scale)
    numbered = len(faces) > 1
    texts = [label_of(face, number if numbered else None) for number, face in enumerate(faces, 1)]
    heights = [min(_text(picture), max(SMALLEST, 0.12 * scale * (face.box[2] - face.box[0]))) for face in faces]
    label_faces(picture, [[v * scale for v in face.box] for face in faces], texts, heights)
    return picture


def annotate(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """A frame of a clip, (H, W, 3) uint8 RGB of its own size: regions, points and boxes, a label beside each box.

    The labels of faces that are followed begin with their ids.
    """
    picture = draw_faces(image, faces, 1, open_from=math.inf)  # a point keeps its form from frame to frame
    texts = [label_of(face, face.id) for face in faces]
    heights = [max(SMALLEST, 0.1 * (face.box[2] - face.box[0])) for face in faces]
    label_faces(picture, [face.box for face in faces], texts, heights)
    return picture


def draw_faces(image: np.ndarray, faces: Sequence[Face], scale: float, open_from: float = LARGE) -> np.ndarray:
    """The photo in its new size, and all of ``faces`` on it but their labels.

    ``open_from``: crops of this side in pixels of the picture have points with an open middle, smaller ones have dots.
    """
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if scale > 1 else image.copy()
    for face, ids in _visible(image.shape, faces):
        _regions(picture, face, ids, scale, _goes_on(face, image.shape))
    for face in faces:
        side = face.crop.side * scale
        few = len(face.landmarks) <= FEW
        _points(picture, np.array(list(face.landmarks.values())) * scale, side, few and side >= open_from)
        if face.box != (0, 0, width, height):  # a whole photo needs no frame
            _corners(picture, [v * scale for v in face.box])
    return picture


def _visible(shape: Sequence[int], faces: Sequence[Face]) -> Iterator[tuple[Face, np.ndarray]]:
    """Each face with a parsing and its class ids, 0 where a face in a smaller crop lies on top."""
    taken = np.zeros(shape[:2], bool)
    for face in sorted(faces, key=lambda f: f.crop.side):
        if face.parsing is not None:
            x0, y0, x1, y1 = face.region
            yield face, np.where(taken[y0:y1, x0:x1], np.uint8(0), face.parsing)
            taken[y0:y1, x0:x1] |= face.parsing != 0


def _regions(picture: np.ndarray, face: Face, ids: np.ndarray, scale: float, goes_on: bool) -> None:
    """Fill and outline the classes ``ids`` of the face's region, large ones first; see `_goes_on`."""
    width = max(1.0, face.crop.side * scale * 0.003)
    counts = np.bincount(ids.ravel(), minlength=1)
    colours = palette(max(len(counts), 1))
    fade = _fade(face, ids) if goes_on else None
    for k in sorted(np.flatnonzero(counts[1:]) + 1, key=lambda k: -counts[k]):
        x0, y0, x1, y1 = _around(ids == k, BORDER)
        inside = (ids[y0:y1, x0:x1] == k).astype(np.float32)
        left, top, right, bottom = (
            round((v + start) * scale) for v, start in zip((x0, y0, x1, y1), face.region[:2] * 2, strict=True)
        )
        inside = cv2.resize(inside, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
        inside = cv2.GaussianBlur(inside, (0, 0), max(0.8, 0.8 * scale), borderType=cv2.BORDER_REPLICATE)
        distance = _distance(inside)
        strength = 1.0 if fade is None else cv2.resize(fade[y0:y1, x0:x1], inside.shape[::-1])
        view = picture[top:bottom, left:right]
        _blend(view, INK, strength * (RIM * np.clip(width / 2 + 1.2 - distance, 0, 1)))
        line = np.maximum(FILL * inside, LINE * np.clip(width / 2 + 0.5 - distance, 0, 1))
        _blend(view, colours[k], strength * line)


def _goes_on(face: Face, shape: Sequence[int]) -> bool:
    """True if a photo of ``shape`` goes on beyond what the network saw of it."""
    square = face.seen or face.crop
    return covered(square, shape, pad=2) != covered(square, shape)


def _fade(face: Face, ids: np.ndarray) -> np.ndarray | None:
    """Strength of each pixel of ``ids``, less towards the border of what the network saw; ``None`` if no class ends
    there."""
    height, width = ids.shape
    square, (left, top) = face.seen or face.crop, face.region[:2]
    x, y = np.arange(width, dtype=np.float32) + left + 0.5, np.arange(height, dtype=np.float32) + top + 0.5
    matrix = square.matrix(1).astype(np.float32)
    across, down = (row[0] * x + (row[1] * y + row[2])[:, None] for row in matrix)
    border = np.minimum(np.minimum(across, 1 - across), np.minimum(down, 1 - down))
    ends = (border > 0) & (border < 1.5 / max(1.0, min(square.side, 200)))
    return np.clip(border * np.float32(1 / FADE), 0, 1) if ids[ends].any() else None


def _around(mask: np.ndarray, border: int) -> tuple[int, int, int, int]:
    """The rectangle x0, y0, x1, y1 around the true pixels of ``mask`` (h, w), ``border`` wider where there is room."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    x1, y1 = min(x + width + border, mask.shape[1]), min(y + height + border, mask.shape[0])
    return max(x - border, 0), max(y - border, 0), x1, y1


def _distance(inside: np.ndarray) -> np.ndarray:
    """About the distance in pixels from the line where ``inside``, between 0 and 1, is one half."""
    dx = cv2.Sobel(inside, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(inside, cv2.CV_32F, 0, 1, scale=1 / 8)
    return np.abs(inside - 0.5) / (cv2.magnitude(dx, dy) + 1e-6)


def _blend(view: np.ndarray, colour: Sequence[int], opacity: np.ndarray) -> None:
    """Lay ``colour`` over ``view`` (h, w, 3) uint8 with ``opacity`` (h, w) float32."""
    plain = np.empty_like(view)
    plain[:] = colour
    view[:] = cv2.blendLinear(np.ascontiguousarray(view), plain, 1 - opacity, opacity)


def _points(picture: np.ndarray, points: np.ndarray, side: float, with_ticks: bool) -> None:
    """Mark each of ``points`` (P, 2) by ticks that leave its middle free, or by a dot."""
    width, radius = max(1, round(side * 0.003)), max(1.4, side * 0.006) if len(points) <= FEW else max(1, side * 0.0035)
    for x, y in points.reshape(-1, 2):
        if not (np.isfinite((x, y)).all() and max(abs(x), abs(y)) < 1e6):
            continue  # a network far from trained can say anything
        for colour, wider in ((INK, 1), (PAPER, 0)):
            if not with_ticks:
                cv2.circle(
                    picture, _fixed(x, y), round((radius + wider) * 2**BITS), colour, cv2.FILLED, cv2.LINE_AA, BITS
                )
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)) if with_ticks else ():
                start, end = (_fixed(x + dx * r * side, y + dy * r * side) for r in (0.008, 0.022))
                cv2.line(picture, start, end, colour, width + 2 * wider, cv2.LINE_AA, BITS)


def _fixed(x: float, y: float) -> tuple[int, int]:
    """A place as OpenCV draws it: centres of pixels on integers, and so many bits after the point."""
    return round((x - 0.5) * 2**BITS), round((y - 0.5) * 2**BITS)


def _corners(picture: np.ndarray, box: Sequence[float]) -> None:
    """Mark the corners of ``box`` (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = (round(v) for v in box)
    side = min(x1 - x0, y1 - y0)
    length, width = max(4, round(0.16 * side)), max(1, round(side * 0.006))
    for colour, thick in ((INK, width + 2), (PAPER, width)):
        for x, dx in ((x0, length), (x1, -length)):
            for y, dy in ((y0, length), (y1, -length)):
                corner = np.array([(x + dx, y), (x, y), (x, y + dy)], np.int32)
                cv2.polylines(picture, [corner], False, colour, thick, cv2.LINE_AA)


def label_of(face: Face, number: int | None = None) -> str:
    """Text beside a face: its number, and its most probable emotion, or else the best of its first classification."""
    parts = [] if number is None else [str(number)]
    if face.classes:
        best, probability = face.best("emotion" if face.emotion else next(iter(face.classes)))
        parts.append(f"{best} {probability:.0%}")
    return " ".join(parts).replace("_", " ")


def _legend(faces: Sequence[Face]) -> list[list[Item]]:
    """Lines of the strip: the colours' names; of a single face also all its probabilities."""
    names = next((f.parsing_classes for f in faces if f.parsing is not None), ())
    colours = [(int(r), int(g), int(b)) for r, g, b in palette(max(len(names), 1))]
    lines = [[Item(name.replace("_", " "), swatch=colours[i]) for i, name in enumerate(names) if i]]
    for task, named in faces[0].classes.items() if len(faces) == 1 else ():
        best = faces[0].best(task)[0]
        items = [Item(f"{name.replace('_', ' ')} {p:.0%}", share=p, best=name == best) for name, p in named.items()]
        lines.append(items)
    return lines


def _text(picture: np.ndarray) -> int:
    """Height of the capitals beside and below a picture."""
    return max(SMALLEST, round(max(picture.shape[:2]) / 100))


def enlargement(image: np.ndarray, faces: Sequence[Face]) -> float:
    """Pixels of `labelled` across a pixel of the photo, at least 1."""
    longest = max(image.shape[:2])
    smallest = min((f.crop.side for f in faces), default=longest)
    wanted = max(SMALLEST_SIDE / longest, SMALLEST_FACE / smallest)
    return max(1.0, min(wanted, LARGEST_SIDE / longest))
