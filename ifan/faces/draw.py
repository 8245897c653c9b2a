"""The overlay: parsing colours, points and boxes on the photo; probabilities and the colours' names beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ifan.config import IGNORE
from ifan.faces.face import Face, compose
from ifan.faces.palette import palette

PAPER, INK, FAINT = (250, 250, 250), (32, 32, 32), (222, 222, 222)
BAR, BEST_BAR = (0, 114, 178), (213, 94, 0)
OPACITY = 0.5
SMALLEST_SIDE, SMALLEST_FACE, LARGEST_SIDE = 420, 150, 1800
"""A photo is enlarged until its longer side and its smallest face have these sides, unless it grows beyond the last."""

Colour = tuple[int, int, int]


def overlay(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """The picture of `PhotoResult.plot`, (H, W, 3) uint8 RGB: the photo, enlarged if small, and the panel."""
    scale = _enlargement(image, faces)
    picture = _blend(image, faces, scale)
    for face in faces:
        _draw_face(picture, face, scale)
    if len(faces) > 1:
        for number, face in enumerate(faces, 1):
            _draw_label(picture, face, scale, str(number), face.crop.side * scale * 0.09)
    return _beside(picture, faces)


def annotate(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """A frame of a clip, (H, W, 3) uint8 RGB of its own size: colours, points and boxes, the emotion below each box."""
    picture = _blend(image, faces, 1)
    for face in faces:
        _draw_face(picture, face, 1)
        if face.emotion:
            _draw_label(picture, face, 1, "{} {:.0%}".format(*face.best("emotion")), face.crop.side * 0.07)
    return picture


def contact_sheet(pictures: list[list[np.ndarray]], titles: list[str], gap: int = 8) -> np.ndarray:
    """Rows of RGB pictures of one size with a title over each column, (H, W, 3) uint8."""
    height, width = pictures[0][0].shape[:2]
    text = max(width // 12, 11)
    rows, columns = len(pictures), len(pictures[0])
    sheet = np.full((2 * text + rows * (height + gap), gap + columns * (width + gap), 3), PAPER, np.uint8)
    for column, title in enumerate(titles):
        write(sheet, title, (gap + column * (width + gap), round(1.4 * text)), text)
    for row, line in enumerate(pictures):
        for column, picture in enumerate(line):
            y, x = 2 * text + row * (height + gap), gap + column * (width + gap)
            sheet[y : y + height, x : x + width] = picture
    return sheet


def paint(photo: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``photo`` (H, W, 3) uint8 RGB in the colours of ``labels`` (H, W) uint8; background and ignored pixels stay."""
    mixed = cv2.addWeighted(photo, 1 - OPACITY, palette(256)[labels], OPACITY, 0)
    shown = (labels > 0) & (labels != IGNORE)
    return np.where(shown[..., None], mixed, photo)


def rings(picture: np.ndarray, points: np.ndarray, face_side: float) -> None:
    """Draw a white ring with a dark rim at each of ``points`` (P, 2) in pixels, sized by the face, into ``picture``."""
    radius, width = max(2, round(face_side * 0.014)), max(1, round(face_side * 0.005))
    for x, y in np.asarray(points).reshape(-1, 2):
        if not (np.isfinite((x, y)).all() and max(abs(x), abs(y)) < 1e6):
            continue  # a network far from trained can say anything
        centre = (round(float(x) - 0.5), round(float(y) - 0.5))
        cv2.circle(picture, centre, radius, INK, 2 * width + 1, cv2.LINE_AA)
        cv2.circle(picture, centre, radius, PAPER, width, cv2.LINE_AA)


def write(picture: np.ndarray, text: str, at: tuple[int, int], height: float, colour: Colour = INK) -> None:
    """Write ``text``, capitals about ``height`` pixels high, its base line starting at ``at``."""
    scale, thickness = height / 22, max(1, round(height / 14))
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)


def _enlargement(image: np.ndarray, faces: Sequence[Face]) -> float:
    longest = max(image.shape[:2])
    smallest = min((f.crop.side for f in faces), default=longest)
    wanted = max(SMALLEST_SIDE / longest, SMALLEST_FACE / smallest)
    return max(1.0, min(wanted, LARGEST_SIDE / longest))


def _blend(image: np.ndarray, faces: Sequence[Face], scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    photo, labels = image, compose((width, height), faces)
    if scale > 1:
        photo = cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC)
    if labels is None:
        return photo.copy()
    return paint(photo, cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST) if scale > 1 else labels)


def _draw_face(picture: np.ndarray, face: Face, scale: float) -> None:
    side = face.crop.side * scale
    rings(picture, np.array(list(face.landmarks.values())) * scale, side)
    x0, y0, x1, y1 = (round(v * scale) for v in face.box)
    if (x0, y0, x1, y1) != (0, 0, picture.shape[1], picture.shape[0]):  # a whole photo needs no frame
        width = max(1, round(side * 0.006))
        cv2.rectangle(picture, (x0, y0), (x1, y1), INK, width + 2, cv2.LINE_AA)
        cv2.rectangle(picture, (x0, y0), (x1, y1), PAPER, width, cv2.LINE_AA)


def _draw_label(picture: np.ndarray, face: Face, scale: float, label: str, text: float) -> None:
    """A dark label under the face's box, inside the photo, its capitals ``text`` pixels high but at least 11."""
    text = max(11.0, text)
    left, bottom = max(0, round(face.box[0] * scale)), round(face.box[3] * scale + 1.3 * text)
    left, bottom = min(left, picture.shape[1] - round(2 * text)), min(bottom, picture.shape[0])
    right, top = left + round((0.3 + 0.7 * len(label)) * text), bottom - round(1.3 * text)
    cv2.rectangle(picture, (left, bottom), (right, top), INK, cv2.FILLED)
    write(picture, label, (left + round(0.15 * text), bottom - round(0.2 * text)), text, PAPER)


@dataclass(frozen=True)
class Row:
    """A line of the panel: a text; with ``share`` a bar of that length and its percentage; with ``swatch`` a colour."""

    text: str
    share: float | None = None
    best: bool = False
    swatch: Colour | None = None


def _beside(picture: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """The picture and, at its right, the panel with a block a face and one for the colours."""
    blocks = [_face_rows(face, number if len(faces) > 1 else 0) for number, face in enumerate(faces, 1)]
    names = next((f.parsing_classes for f in faces if f.parsing is not None), ())
    colours = [(int(r), int(g), int(b)) for r, g, b in palette(max(len(names), 1))]
    legend = [Row(name.replace("_", " "), swatch=colours[i]) for i, name in enumerate(names) if i]
    blocks = [b for b in (*blocks, legend) if b]
    if not blocks:
        return picture
    text = _text_height(picture, blocks)
    columns = _columns(blocks, picture.shape[0], text)
    line, column_width = _line(text), round(17 * text)
    height = max(picture.shape[0], *(sum(len(b) + 1 for b in column) * line for column in columns))
    canvas = np.full((height, picture.shape[1] + len(columns) * column_width, 3), PAPER, np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    for i, column in enumerate(columns):
        _write_column(canvas, column, picture.shape[1] + i * column_width, text)
    return canvas


def _write_column(canvas: np.ndarray, column: list[list[Row]], left: int, text: int) -> None:
    line, x = _line(text), left + text
    y = line
    for block in column:
        for row in block:
            base = y + text // 2
            if row.share is not None:
                start, length = x + round(6.6 * text), round(5.4 * text)
                colour = BEST_BAR if row.best else BAR
                top = base - text
                cv2.rectangle(canvas, (start, top), (start + length, base), FAINT, cv2.FILLED)
                cv2.rectangle(canvas, (start, top), (start + round(length * row.share), base), colour, cv2.FILLED)
                write(canvas, f"{row.share:.0%}", (start + length + text // 2, base), text)
            if row.swatch is not None:
                cv2.rectangle(canvas, (x, base - text), (x + text, base), row.swatch, cv2.FILLED)
                cv2.rectangle(canvas, (x, base - text), (x + text, base), INK, 1)
            write(canvas, row.text, (x + (round(1.7 * text) if row.swatch else 0), base), text)
            y += line
        y += line


def _face_rows(face: Face, number: int) -> list[Row]:
    """Bars for the emotions, and for any other classification its best class."""
    rows = [Row(f"face {number}")] if number and face.classes else []
    for task, named in face.classes.items():
        best = face.best(task)[0]
        if task == "emotion":
            rows += [Row(name.replace("_", " "), p, name == best) for name, p in named.items()]
        else:
            rows.append(Row(f"{task}: {best} {named[best]:.0%}".replace("_", " ")))
    return rows


def _line(text: int) -> int:
    return round(1.6 * text)


def _text_height(picture: np.ndarray, blocks: list[list[Row]]) -> int:
    """The largest text with which the panel takes no more than 60 % of the picture's width, or 9 px."""
    height, width = picture.shape[:2]
    for text in range(min(64, max(9, min(height, width) // 34)), 9, -1):
        if len(_columns(blocks, height, text)) * 17 * text <= 0.6 * width:
            return text
    return 9


def _columns(blocks: list[list[Row]], height: int, text: int) -> list[list[list[Row]]]:
    """Blocks from top to bottom; a new column where the next one would not fit."""
    columns: list[list[list[Row]]] = [[]]
    for block in blocks:
        used = sum(len(b) + 1 for b in columns[-1])
        if columns[-1] and (used + len(block) + 1) * _line(text) > height:
            columns.append([])
        columns[-1].append(block)
    return columns
