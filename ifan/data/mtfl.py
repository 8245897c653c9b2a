"""MTFL (Zhang et al., Facial Landmark Detection by Deep Multi-task Learning, ECCV 2014): five points and four
attributes.

``training.txt`` and ``testing.txt`` hold lines ``path x1 .. x5 y1 .. y5 gender smile glasses pose``; points are named
as seen in the picture, so the left eye has the smaller x. Paths of the training file have backslashes. Coordinates
count pixels from 1 at their centres, as MATLAB does. No document says so: a network that learns from mirrored pictures
too, and so cannot learn an offset along x, puts its points half a pixel left of the labels (``docs/training_log.md``).

Coordinates of training pictures are multiples of a quarter. In a copy whose pictures were shrunk, coordinates with
them, that grid is finer, and says by how much: half a pixel of the original is then less than half of the copy's.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from ifan.data.dataset import DataError, Reader, choose, numbers, official_split, read_lines
from ifan.data.images import read_image
from ifan.data.labels import LANDMARKS, MTFL_ATTRIBUTES, Classes
from ifan.data.sample import FaceSample

COLUMNS = 1 + 10 + len(MTFL_ATTRIBUTES)
GRID = 4
"""Steps a pixel in the coordinates of training pictures."""
MOST_SHRUNK = 8
"""Pictures are taken to be shrunk by no more than this."""


class MTFL(Reader):
    """``training.txt`` less a seeded tenth (train), that tenth (val), ``testing.txt`` (test), or the keys of a list."""

    name = "mtfl"
    classes: ClassVar[Classes] = {**LANDMARKS, **MTFL_ATTRIBUTES}
    layout = "the MTFL folder with training.txt and testing.txt"

    def __init__(self, root: Path, split: str, split_file: Path | None = None) -> None:
        super().__init__(root, split, split_file)
        self.require("training.txt", "testing.txt")
        train, test = (_read(self.root / f"{part}.txt") for part in ("training", "testing"))
        records = choose({**train, **test}, split_file) if split_file else official_split(train, test, split)
        self.keys = list(records)
        self.points = np.stack([points for points, _ in records.values()])
        self.codes = np.stack([codes for _, codes in records.values()])

    def __getitem__(self, index: int) -> FaceSample:
        key = self.keys[index]
        image = read_image(self.root / key)
        points = (self.points[index] - offset(self.points[index], image.shape[:2])).astype(np.float32)
        return FaceSample(key, image, points=points, labels=self.labels_of(index))

    def labels_of(self, index: int) -> dict[str, int]:
        """Class ids of a sample, known without reading its picture."""
        return {task: int(code) for task, code in zip(MTFL_ATTRIBUTES, self.codes[index], strict=True)}


def offset(points: np.ndarray, shape: tuple[int, int]) -> float:
    """Pixels by which file coordinates ``points`` (5, 2) exceed ours, in a picture of ``shape`` (height, width).

    Ours reach from 0 to the side, so the first pixel's centre is at 0.5 where the files of the release say 1: 0.5. A
    picture shrunk from ``side`` to ``s * side``, its file coordinates v taken as pixels that count from 0, has
    (v + 0.5) * s - 0.5 in place of v and needs s - 0.5. Then s is that of the smallest original on whose grid they lie.
    """
    height, width = shape
    side, along = max(height, width), points[:, 0 if width >= height else 1]
    if _on_grid(along[:, None]).all():
        return 0.5
    originals = np.arange(side + 1, MOST_SHRUNK * side)
    fits = _on_grid((along[:, None] + 0.5) * originals / side - 0.5).all(0)
    return float(side / originals[fits.argmax()]) - 0.5 if fits.any() else 0.5


def _on_grid(values: np.ndarray) -> np.ndarray:
    """Mask of coordinates that are multiples of a step, as far as six decimals of a shrunk picture's tell."""
    return np.abs(GRID * values - np.round(GRID * values)) < 1e-4


def _read(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Key -> points (5, 2) in the file's coordinates, class ids (4,)."""
    records = {}
    sizes = np.array([len(names) for names in MTFL_ATTRIBUTES.values()])
    for number, line in enumerate(read_lines(path), 1):
        fields, where = line.split(), f"{path}:{number}"
        if len(fields) != COLUMNS:
            raise DataError(f"{where}: expected {COLUMNS} columns; got {len(fields)}; the file is cut short or damaged")
        values = numbers(fields[1:], where)
        codes = values[10:]
        if ((codes != codes.round()) | (codes < 1) | (codes > sizes)).any():
            raise DataError(
                f"{where}: expected {', '.join(f'{n} 1..{len(names)}' for n, names in MTFL_ATTRIBUTES.items())}; "
                f"got {' '.join(fields[11:])}; correct the line"
            )
        points = values[:10].reshape(2, 5).T
        records[fields[0].replace("\\", "/")] = points, codes.astype(np.int64) - 1
    if not records:
        raise DataError(f"{path}: the label file is empty; restore it from the dataset")
    return records
