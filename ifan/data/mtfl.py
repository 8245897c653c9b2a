"""MTFL (Zhang et al., Facial Landmark Detection by Deep Multi-task Learning, ECCV 2014): five points and four
attributes.

``training.txt`` and ``testing.txt`` hold lines ``path x1 .. x5 y1 .. y5 gender smile glasses pose``; points are named
as seen in the picture, so the left eye has the smaller x. Paths of the training file have backslashes. Coordinates
count pixels from 1 at their centres, as MATLAB does. No document says so: a network that learns from mirrored pictures
too, and so cannot learn an offset along x, puts its points half a pixel left of the labels (``docs/training.md``).
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
BEFORE_FIRST = 0.5
"""What a coordinate of the files is more than ours, by which the first pixel's centre is 0.5."""


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
        return FaceSample(key, read_image(self.root / key), points=self.points[index], labels=self.labels_of(index))

    def labels_of(self, index: int) -> dict[str, int]:
        """Class ids of a sample, known without reading its picture."""
        return {task: int(code) for task, code in zip(MTFL_ATTRIBUTES, self.codes[index], strict=True)}


def _read(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Key -> points (5, 2) float32, class ids (4,)."""
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
        points = values[:10].reshape(2, 5).T.astype(np.float32) - BEFORE_FIRST
        records[fields[0].replace("\\", "/")] = points, codes.astype(np.int64) - 1
    if not records:
        raise DataError(f"{path}: the label file is empty; restore it from the dataset")
    return records
