"""Text on pictures: its size, labels beside faces that keep out of one another's way, and a strip of short items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

PAPER, INK, FAINT, ACCENT = (250, 250, 250), (28, 28, 30), (222, 222, 222), (0, 114, 178)
FONT = cv2.FONT_HERSHEY_SIMPLEX
SMALLEST = 11
"""Height in pixels of the smallest capitals."""

SHADE = 0.72
"""Opacity of a label's ground."""

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]


def text_width(text: str, height: float) -> int:
    """Pixels that ``text`` takes across, its capitals ``height`` pixels high."""
    return int(cv2.getTextSize(text, FONT, height / 22, _thickness(height))[0][0])


def write(picture: np.ndarray, text: str, at: tuple[int, int], height: float, colour: Colour = INK) -> None:
    """Write ``text`` into ``picture``, capitals about ``height`` pixels high, its base line starting at ``at``."""
    cv2.putText(picture, text, at, FONT, height / 22, colour, _thickness(height), cv2.LINE_AA)


def label_faces(
    picture: np.ndarray, boxes: Sequence[Sequence[float]], texts: Sequence[str], heights: Sequence[float]
) -> None:
    """Write each text beside its box (x0, y0, x1, y1): below, above, right or left, where it hides least.

    The smallest boxes choose first. A label stays inside the picture.
    """
    solid = np.array(boxes).round().reshape(-1, 4)
    weights = np.full(len(solid), 1.0)
    placed = np.empty((0, 4))
    for i in np.argsort(solid[:, 2] - solid[:, 0], kind="stable"):
        if not texts[i]:
            continue
        size = text_width(texts[i], heights[i]) + round(heights[i]), round(1.9 * heights[i])
        places = _places(solid[i], size, picture.shape)
        weights[:] = 1
        weights[i] = 2
        hidden = _overlap(places, solid) @ weights + 4 * _overlap(places, placed).sum(1)
        x0, y0, x1, y1 = best = places[hidden.argmin()]
        placed = np.vstack([placed, best])
        _label(picture, texts[i], (int(x0), int(y0), int(x1), int(y1)), heights[i])


@dataclass(frozen=True)
class Item:
    """An entry of a strip: a text; with ``swatch`` a square of that colour before it; with ``share`` a bar below."""

    text: str
    swatch: Colour | None = None
    share: float | None = None
    best: bool = False


def strip(width: int, lines: Iterable[Sequence[Item]], height: int) -> np.ndarray:
    """Lines of items, broken where they are longer than ``width``, as a picture (H, width, 3) uint8.

    ``height`` is that of capitals.
    """
    rows = [row for line in lines for row in _broken(line, width - 2 * height, height)]
    step = round(2.4 * height)
    canvas = np.full((len(rows) * step + height if rows else 0, width, 3), PAPER, np.uint8)
    for number, row in enumerate(rows):
        x, base = height, number * step + 2 * height
        for item in row:
            _draw_item(canvas, item, (x, base), height)
            x += _item_width(item, height) + _gap(height)
    return canvas


def _places(box: np.ndarray, size: tuple[int, int], shape: Sequence[int]) -> np.ndarray:
    """Rectangles of ``size`` beside ``box``, the best ones first, moved into a picture of ``shape``."""
    (x0, y0, x1, y1), (width, height), gap = box, size, 3
    centre, middle = (x0 + x1 - width) // 2, (y0 + y1 - height) // 2
    above, below = y0 - gap - height, y1 + gap
    corners = np.array(
        [(x, y) for y in (below, above) for x in (centre, x0, x1 - width)]
        + [(x1 + gap, middle), (x0 - gap - width, middle), (centre, below + height), (centre, above - height)]
    )
    room = max(shape[1] - width, 0), max(shape[0] - height, 0)
    corners = np.clip(corners, 0, room)
    return np.hstack([corners, corners + size])


def _overlap(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Common pixels of each of ``places`` (P, 4) and each of ``others`` (Q, 4), (P, Q)."""
    low = np.maximum(places[:, None, :2], others[None, :, :2])
    high = np.minimum(places[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(-1)


def _label(picture: np.ndarray, text: str, place: Rectangle, height: float) -> None:
    x0, y0, x1, y1 = place
    ground = picture[y0:y1, x0:x1]
    ground[:] = cv2.addWeighted(ground, 1 - SHADE, np.full_like(ground, INK), SHADE, 0)
    write(picture, text, (x0 + round(height / 2), y1 - round(0.45 * height)), height, PAPER)


def _broken(line: Sequence[Item], width: int, height: int) -> list[list[Item]]:
    rows: list[list[Item]] = []
    used = width + 1
    for item in line:
        wide = _item_width(item, height) + _gap(height)
        if used + wide > width + _gap(height):
            rows.append([])
            used = 0
        rows[-1].append(item)
        used += wide
    return rows


def _draw_item(canvas: np.ndarray, item: Item, at: tuple[int, int], height: int) -> None:
    x, base = at
    if item.swatch is not None:
        cv2.rectangle(canvas, (x, base - height), (x + height, base), item.swatch, cv2.FILLED)
        cv2.rectangle(canvas, (x, base - height), (x + height, base), INK, 1)
        x += round(1.5 * height)
    if item.share is not None:
        top, thick = base + round(0.4 * height), max(2, height // 4)
        end = x + _item_width(item, height)
        canvas[top : top + thick, x:end] = FAINT
        canvas[top : top + thick, x : x + round((end - x) * item.share)] = ACCENT if item.best else INK
    write(canvas, item.text, (x, base), height)


def _item_width(item: Item, height: int) -> int:
    return text_width(item.text, height) + (round(1.5 * height) if item.swatch else 0)


def _gap(height: int) -> int:
    return round(1.4 * height)


def _thickness(height: float) -> int:
    return max(1, round(height / 14))
