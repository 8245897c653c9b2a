"""Sets of landmark files: 300-W's 68 points (``.pts``), and Helen's 194 (``.txt``), reduced to our five.

The five are the means of fixed indices (`ifan.data.labels`); Helen's 194 mark no nose tip, which stays unlabelled
there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ifan.crop import box_around
from ifan.data.dataset import DataError, Reader, choose, numbers, official_split, read_lines, three_way
from ifan.data.images import read_image
from ifan.data.labels import LANDMARKS, LANDMARKS_68, POINTS_194, five_points, named_points
from ifan.data.sample import FaceSample

PICTURES = (".jpg", ".jpeg", ".png", ".JPG", ".bmp")
FIRST_PIXEL = 0.5
"""Excess of the files' coordinates over ours: there the centre of the first pixel is at 1, here at 0.5."""

TEST_FOLDERS = frozenset({"testset", "ibug", "test"})


class Points300W(Reader):
    """300-W (Sagonas et al., 2013): pictures with a ``.pts`` file beside them, anywhere under the root.

    Test = what lies under ``testset`` or ``ibug``, val = a seeded tenth of the rest. The key is the path without
    ending.
    """

    name = "300w"
    classes = LANDMARKS_68
    layout = "a folder with pictures and .pts files of 68 points beside them"

    def __init__(self, root: Path, split: str, split_file: Path | None = None) -> None:
        super().__init__(root, split, split_file)
        self.require()
        records = {str(p.relative_to(self.root).with_suffix("")): p for p in sorted(self.root.rglob("*.pts"))}
        if not records:
            raise self.wrong_path()
        if split_file:
            chosen = choose(records, split_file)
        else:
            test = {k: p for k, p in records.items() if TEST_FOLDERS & {part.lower() for part in Path(k).parts[:-1]}}
            train = {k: p for k, p in records.items() if k not in test}
            chosen = official_split(train, test, split) if test else three_way(records, split)
        self.keys, self.files = list(chosen), list(chosen.values())

    def __getitem__(self, index: int) -> FaceSample:
        path = self.files[index]
        points = named_points(read_points(path, 68)) - FIRST_PIXEL
        picture = next((p for p in map(path.with_suffix, PICTURES) if p.exists()), path.with_suffix(".jpg"))
        return FaceSample(self.keys[index], read_image(picture), box_around(points[:5]), points=points)


class Helen194(Reader):
    """Helen's own points (Le et al., 2012): ``annotation/<n>.txt`` with the picture's name on the first line, the
    pictures anywhere under the root; ``trainnames.txt`` and ``testnames.txt`` name the splits."""

    name = "helen194"
    classes = LANDMARKS
    layout = "the Helen folder with annotation/*.txt and the pictures"

    def __init__(self, root: Path, split: str, split_file: Path | None = None) -> None:
        super().__init__(root, split, split_file)
        self.require("annotation")
        records = {}
        for path in sorted((self.root / "annotation").glob("*.txt")):
            with path.open(encoding="utf-8", errors="replace") as file:
                records[file.readline().strip()] = path
        if not records:
            raise self.wrong_path()
        self.pictures = {p.stem: p for p in sorted(self.root.rglob("*")) if p.suffix in PICTURES}
        chosen = choose(records, split_file) if split_file else self._split(records)
        self.keys, self.files = list(chosen), list(chosen.values())

    def __getitem__(self, index: int) -> FaceSample:
        key = self.keys[index]
        points = five_points(read_points(self.files[index], 194), POINTS_194)
        image = read_image(self.pictures.get(key, self.root / f"{key}.jpg"))
        return FaceSample(key, image, box_around(points), points=points)

    def _split(self, records: dict[str, Path]) -> dict[str, Path]:
        lists = [self.root / name for name in ("trainnames.txt", "testnames.txt")]
        if not all(path.exists() for path in lists):
            return three_way(records, self.split)
        train, test = (choose(records, path) for path in lists)
        return official_split(train, test, self.split)


def read_points(path: Path, count: int) -> np.ndarray:
    """(count, 2) pixels from a landmark file: the lines with exactly two numbers, whatever stands around them.

    Fits ``.pts`` (version, n_points, braces), Helen's ``x , y`` lines and LaPa's plain pairs. Raises `DataError`.
    """
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        fields = line.replace(",", " ").split()
        if len(fields) == 2 and ":" not in line:
            pairs.append(numbers(fields, f"{path}:{number}"))
    if len(pairs) != count:
        raise DataError(
            f"{path}: expected {count} points; got {len(pairs)}; the file is cut short or of another markup"
        )
    return np.stack(pairs)
