"""Points of pictures in a table, with the columns of a table that ``ifan predict --out`` writes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ifan.config import POINT_NAMES
from ifan.crop import box_around
from ifan.data.dataset import DataError, Reader, choose, numbers, read_lines, three_way
from ifan.data.images import read_image
from ifan.data.sample import FaceSample

FILE = "points.csv"
BOX = "box_x0", "box_y0", "box_x1", "box_y1"


class PointsTable(Reader):
    """Pictures and ``points.csv``: a row a face, with the picture's path in the column ``photo``.

    Columns ``<point>_x`` and ``<point>_y`` are pixels of the picture, 0 to its sides. An empty cell is unlabelled, and
    a row without any point is left out. A face is cropped around the five points of `POINT_NAMES`; a table without
    them needs the crop as ``box_x0``, ``box_y0``, ``box_x1``, ``box_y1``. The key is the path, and ``#2`` and so on
    behind it from a picture's second row on. Splits: seeded tenths. Raises `DataError`.
    """

    name = "points"
    layout = f"a folder with pictures and {FILE}, columns photo, <point>_x, <point>_y"

    def __init__(self, root: Path, split: str, split_file: Path | None = None) -> None:
        super().__init__(root, split, split_file)
        self.require(FILE)
        rows = csv.reader(read_lines(self.root / FILE))
        header = next(rows, [])
        names = tuple(name.removesuffix("_x") for name in header if name.endswith("_x") and f"{name[:-1]}y" in header)
        self.framed = set(POINT_NAMES) <= set(names)
        wanted = ["photo", *(f"{name}_{axis}" for name in names for axis in "xy"), *(() if self.framed else BOX)]
        missing = [name for name in wanted if name not in header] or ([] if names else ["<point>_x"])
        if missing:
            raise DataError(f"{self.root / FILE}: expected a column {missing[0]!r}; got {header[:5]}...; add it")
        self.classes = {"landmarks": names}  # type: ignore[misc]
        at = [header.index(name) for name in wanted]
        records: dict[str, tuple[str, np.ndarray]] = {}
        for number, row in enumerate(rows, 2):
            where = f"{self.root / FILE}:{number}"
            if len(row) != len(header):
                raise DataError(f"{where}: expected {len(header)} cells; got {len(row)}; the table is damaged")
            photo, *cells = (row[i] for i in at)
            key, again = photo, 2
            while key in records:
                key, again = f"{photo}#{again}", again + 1
            values = np.full(len(cells), np.nan, np.float32)
            values[[bool(cell) for cell in cells]] = numbers([cell for cell in cells if cell], where)
            if np.isfinite(values[: 2 * len(names)]).any():  # ``ifan predict`` has a row for a photo without a face too
                records[key] = photo, values
        photos = dict.fromkeys(photo for photo, _ in records.values())
        here = choose(records, split_file) if split_file else three_way(photos, split)  # a picture is in one split
        chosen = {key: row for key, row in records.items() if (key if split_file else row[0]) in here}
        self.keys, self.rows = list(chosen), list(chosen.values())

    def __getitem__(self, index: int) -> FaceSample:
        photo, values = self.rows[index]
        count = len(self.classes["landmarks"])
        points = values[: 2 * count].reshape(count, 2)
        five = [self.classes["landmarks"].index(name) for name in POINT_NAMES] if self.framed else []
        x0, y0, x1, y1 = box_around(points[five]) if self.framed else values[2 * count :].tolist()
        return FaceSample(self.keys[index], read_image(self.root / photo), (x0, y0, x1, y1), points=points)
