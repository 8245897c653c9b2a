"""FER2013 (Goodfellow et al., Challenges in Representation Learning, 2013): seven expressions, 48 x 48 grey faces.

Two layouts: the official ``fer2013.csv`` (emotion,pixels,Usage), or folders ``<Usage>/<class>/<Usage>_<id>.png`` (the
upper ones may be called train and test, then the file's prefix tells).
Train = Training, val = PublicTest, test = PrivateTest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ifan.config import EMOTIONS
from ifan.data.dataset import DataError, Reader, choose
from ifan.data.images import read_image
from ifan.data.labels import EMOTION, FER2013
from ifan.data.sample import FaceSample

USAGE = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
HEADER = "emotion,pixels,Usage"
SIDE = 48


class FER2013Reader(Reader):
    """``root`` is the folder, or the csv itself. A list of keys ``<Usage>/<class>/<id>`` needs the folders: the csv
    has no ids, so there the list is left unused. Faces are cut tightly; the margin frames them as the other datasets
    do."""

    name = "fer2013"
    margin = 1.3
    classes = EMOTION
    layout = "the FER2013 folder with Training, PublicTest and PrivateTest, or with fer2013.csv"

    def __init__(self, root: Path, split: str, split_file: Path | None = None) -> None:
        super().__init__(root, split, split_file)
        self.pixels: np.ndarray | None = None
        table = self.root if self.root.suffix == ".csv" else self.root / "fer2013.csv"
        if any((self.root / folder).is_dir() for folder in (USAGE["train"], "train")):
            files = self._files()
            records = choose(files, split_file) if split_file else _of_usage(files, USAGE[split])
            self.keys, self.paths = list(records), list(records.values())
            self.labels = [EMOTIONS.index(path.parent.name) for path in self.paths]
        elif table.is_file():
            self.keys, self.labels, self.pixels = _read_csv(table, USAGE[split])
        else:
            raise self.wrong_path()
        if not self.keys:
            raise DataError(f"{self.root}: no pictures of {USAGE[split]}; unpack the dataset anew")

    def __getitem__(self, index: int) -> FaceSample:
        if self.pixels is None:
            image = read_image(self.paths[index])
        else:
            image = np.repeat(self.pixels[index, :, :, None], 3, axis=2)
        return FaceSample(self.keys[index], image, labels=self.labels_of(index))

    def labels_of(self, index: int) -> dict[str, int]:
        """Class ids of a sample, known without reading its picture."""
        return {"emotion": self.labels[index]}

    def _files(self) -> dict[str, Path]:
        """Key ``<Usage>/<class>/<id>`` -> file; the usage is the upper folder's name or the file's prefix."""
        files = {}
        for folder in sorted(path for path in self.root.glob("*/*") if path.is_dir()):
            if folder.name not in FER2013:
                raise DataError(
                    f"{folder}: unknown expression; expected one of {', '.join(FER2013)}; rename the folder"
                )
            for path in sorted(folder.iterdir()):
                prefix, _, number = path.stem.rpartition("_")
                usage = prefix if prefix in USAGE.values() else folder.parent.name
                files[f"{usage}/{folder.name}/{number}"] = path
        return files


def _of_usage(files: dict[str, Path], usage: str) -> dict[str, Path]:
    return {key: path for key, path in files.items() if key.startswith(usage + "/")}


def _read_csv(path: Path, usage: str) -> tuple[list[str], list[int], np.ndarray]:
    """Keys, class ids and pixels (N, 48, 48) uint8 of one usage."""
    keys, labels, rows = [], [], []
    with path.open(encoding="utf-8") as file:
        if file.readline().strip() != HEADER:
            raise DataError(f"{path}:1: expected the header {HEADER!r}; use the official file")
        for number, line in enumerate(file, 2):
            fields = line.rstrip().split(",")
            if len(fields) != 3 or fields[2] not in USAGE.values():
                raise DataError(f"{path}:{number}: expected {HEADER}; the file is cut short or damaged, restore it")
            if fields[2] != usage:
                continue
            if not fields[0].isdigit() or int(fields[0]) >= len(FER2013):
                raise DataError(
                    f"{path}:{number}: expected an emotion 0..{len(FER2013) - 1}; got {fields[0]!r}; correct the line"
                )
            keys.append(f"{usage}/{number - 2}")
            labels.append(EMOTIONS.index(FER2013[int(fields[0])]))
            rows.append(_pixels(fields[1], f"{path}:{number}"))
    return keys, labels, np.stack(rows) if rows else np.zeros((0, SIDE, SIDE), np.uint8)


def _pixels(text: str, where: str) -> np.ndarray:
    try:
        values = bytes(map(int, text.split()))
    except ValueError as error:
        raise DataError(f"{where}: expected pixels of 0..255 ({error}); the file is damaged, restore it") from error
    if len(values) != SIDE * SIDE:
        raise DataError(f"{where}: expected {SIDE * SIDE} pixels; got {len(values)}; the file is damaged, restore it")
    return np.frombuffer(values, np.uint8).reshape(SIDE, SIDE)
