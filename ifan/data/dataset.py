"""The dataset as the rest of the package sees it, and the code that readers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import numpy as np

from ifan.data.sample import FaceSample

SPLITS = ("train", "val", "test")


class DataError(ValueError):
    """A dataset that is not what its reader expects; the message names the file and the way out."""


class FaceDataset(Protocol):
    """Indexed face samples. ``classes`` names the ids of each task the samples are labelled for (points by name);
    ``margin`` multiplies the box to frame the face as the network expects it."""

    @property
    def name(self) -> str: ...

    @property
    def margin(self) -> float: ...

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]: ...

    @property
    def tasks(self) -> frozenset[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> FaceSample: ...

    def labels_of(self, index: int) -> dict[str, int]:
        """The sample's ``labels`` without reading its picture."""
        ...


class Reader(ABC):
    """Base of the readers: names, and the checks of path and split.

    ``root`` is the dataset's folder, ``split`` one of train, val, test; ``split_file`` lists one key a line and
    overrules the official split. Raises `DataError` for a path of the wrong kind.
    """

    name: ClassVar[str]
    margin: ClassVar[float] = 1.0
    classes: ClassVar[Mapping[str, tuple[str, ...]]]
    layout: ClassVar[str]
    """Contents of the folder, for error messages."""

    def __init__(self, root: Path, split: str, split_file: Path | None = None) -> None:
        self.root, self.split, self.split_file = Path(root), split, split_file
        self.keys: list[str] = []
        check_split(self.name, split)

    @property
    def tasks(self) -> frozenset[str]:
        """Tasks the samples are labelled for."""
        return frozenset(self.classes)

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def __getitem__(self, index: int) -> FaceSample: ...

    def labels_of(self, index: int) -> dict[str, int]:
        """Class ids of a sample, known without reading its picture."""
        return {}

    def wrong_path(self) -> DataError:
        """The error for a root that is not the dataset's folder."""
        kind = "a file" if self.root.is_file() else "no such folder" if not self.root.exists() else "another folder"
        return DataError(f"{self.root}: expected {self.layout}; got {kind}; pass the folder that holds them")

    def require(self, *parts: str) -> None:
        """Raise unless every one of ``parts`` lies in the root."""
        if not self.root.is_dir() or not all((self.root / part).exists() for part in parts):
            raise self.wrong_path()


def check_split(name: str, split: str) -> None:
    """Raise `DataError` for a split that no dataset has."""
    if split not in SPLITS:
        raise DataError(f"{name}: unknown split {split!r}; expected one of {', '.join(SPLITS)}")


T = TypeVar("T")


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not blank, stripped (leading blanks and CR LF are common in label files)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the label file ({error}); restore it from the dataset") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def choose(records: dict[str, T], split_file: Path) -> dict[str, T]:
    """The records that ``split_file`` lists, in its order; raises `DataError` for a key the dataset does not have."""
    keys = read_lines(split_file)
    for number, key in enumerate(keys, 1):
        if key not in records:
            raise DataError(f"{split_file}:{number}: {key!r} is not in the dataset; use the list that belongs to it")
    if not keys:
        raise DataError(f"{split_file}: the list is empty; expected one key a line")
    return {key: records[key] for key in keys}


def hold_out(keys: Iterable[str], share: float = 0.1, seed: int = 0) -> set[str]:
    """A seeded share of ``keys``: the validation part of a training split that has none of its own."""
    ordered = sorted(keys)
    chosen = np.random.default_rng(seed).permutation(len(ordered))[: int(len(ordered) * share)]
    return {ordered[i] for i in chosen}


def official_split(train: dict[str, T], test: dict[str, T], split: str) -> dict[str, T]:
    """``test`` as it is, ``val`` = a seeded tenth of ``train``, ``train`` = the rest."""
    if split == "test":
        return test
    held = hold_out(train)
    return {key: value for key, value in train.items() if (key in held) == (split == "val")}


def three_way(records: dict[str, T], split: str) -> dict[str, T]:
    """A seeded 80 / 10 / 10 % of a dataset without an official split."""
    held = hold_out(records, 0.2)
    test = hold_out(held, 0.5, seed=1)
    part = {key: "test" if key in test else "val" if key in held else "train" for key in records}
    return {key: value for key, value in records.items() if part[key] == split}


def numbers(fields: Sequence[str], where: str) -> np.ndarray:
    """Fields of a label line as float64; raises `DataError` at ``where`` when one is not a finite number."""
    try:
        values = np.array([float(field) for field in fields])
    except ValueError as error:
        raise DataError(f"{where}: {error}; the label file is damaged, restore it from the dataset") from error
    if not np.isfinite(values).all():
        raise DataError(f"{where}: a number is not finite; the label file is damaged, restore it from the dataset")
    return values
