"""Datasets by name: our readers, packed folders, and readers of others."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ifan.data.celebamask import CelebAMaskHQ
from ifan.data.dataset import DataError, FaceDataset, Reader, check_split
from ifan.data.fer2013 import FER2013Reader
from ifan.data.folders import RAFDB, AffectNet, ClassFolders, PhotoEmotions
from ifan.data.helen import Helen
from ifan.data.lapa import LaPa
from ifan.data.mtfl import MTFL
from ifan.data.points_table import PointsTable
from ifan.data.pts import Helen194, Points300W
from ifan.data.shards import ShardDataset, shard_folder
from ifan.data.toy import ToyFaces, open_toy

READERS = (
    MTFL,
    CelebAMaskHQ,
    FER2013Reader,
    Helen,
    LaPa,
    Points300W,
    Helen194,
    RAFDB,
    AffectNet,
    ClassFolders,
    PhotoEmotions,
    PointsTable,
)
DATASETS: dict[str, type[Reader]] = {reader.name: reader for reader in READERS}
"""Reader of each dataset name. The drawn faces, ``toy``, need no folder."""

ENTRY_POINTS = "ifan.datasets"
"""Group of entry points by which other packages add readers."""

_CHOSEN = re.compile(r"(?P<reader>[A-Za-z_][\w.-]*(:[A-Za-z_]\w*)?)=(?P<path>.+)", re.DOTALL)


def open_dataset(name: str, path: str | Path, split: str, splits: str | Path | None = None) -> FaceDataset:
    """Open a split (train, val or test) of the dataset ``name``.

    ``path`` is the dataset's own folder (or FER2013's csv), or a folder written by ``ifan pack``. ``READER=PATH`` names
    a reader for the dataset: a known one, or ``module:Class`` of one's own, which is called with the folder,
    the split and the split's list or ``None``, and returns a `FaceDataset`. Without it the reader is that of the name:
    a built-in one, else an entry point of the group ``ifan.datasets``. ``splits`` is a folder of lists
    ``<name>_<split>.txt``, one key a line, that overrule the official split; without it, ``path``/splits is looked for.
    Raises `DataError` with the file and the way out.
    """
    check_split(name, split)
    if name == ToyFaces.name and not Path(path).is_dir():
        return open_toy(str(path), split)
    reader, path = _chosen(name, path)
    packed = shard_folder(path, split)
    if packed is not None:
        dataset = ShardDataset(packed)
        if dataset.name != name or dataset.split != split:
            raise DataError(f"{packed}: holds {dataset.name} {dataset.split}, not {name} {split}; correct name or path")
        return dataset
    lists = _split_file(name, path, split, None if splits is None else Path(splits))
    make: Any = _reader(reader)
    options = {"task": name} if make is ClassFolders and reader != name else {}
    opened: FaceDataset = make(path, split, lists, **options)
    if reader != name and isinstance(opened, Reader):
        opened.name = name  # type: ignore[misc] # as the data is called in this run, and where it is packed
    missing = [part for part in ("classes", "margin", "labels_of", "__len__") if not hasattr(opened, part)]
    if missing:
        raise DataError(f"dataset {name!r}: {reader} lacks {', '.join(missing)}; derive it from ifan.data.Reader")
    return opened


def class_names(name: str, path: str | Path) -> Mapping[str, tuple[str, ...]]:
    """Class names by task of a dataset of `open_dataset`, as far as they are known before it is read."""
    if name == ToyFaces.name and not Path(path).is_dir():
        return open_toy(str(path), "train").classes
    reader, path = _chosen(name, path)
    packed = shard_folder(path, "train")
    if packed is not None:
        return ShardDataset(packed).classes
    make = _reader(reader)
    if make is ClassFolders and reader != name and path.is_dir():
        return ClassFolders.classes_in(path, name)
    found: Mapping[str, tuple[str, ...]] = getattr(make, "classes", {})
    return found if isinstance(found, Mapping) else {}


def _chosen(name: str, path: str | Path) -> tuple[str, Path]:
    """Reader and path of ``PATH`` or ``READER=PATH``; a path that exists is one."""
    chosen = None if Path(path).exists() else _CHOSEN.fullmatch(str(path))
    return (chosen["reader"], Path(chosen["path"])) if chosen else (name, Path(path))


def _reader(name: str) -> Any:
    """The class that reads a dataset: ours of that name, ``module:Class``, or another package's entry point."""
    if name in DATASETS:
        return DATASETS[name]
    module, colon, attribute = name.partition(":")
    try:
        if colon:
            return getattr(importlib.import_module(module), attribute)
        found = next(iter(metadata.entry_points(group=ENTRY_POINTS, name=name)), None)
        if found is not None:
            return found.load()
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"dataset reader {name!r}: cannot be imported ({error}); check its name and PYTHONPATH"
        ) from error
    others = metadata.entry_points(group=ENTRY_POINTS).names
    known = ", ".join(sorted({*DATASETS, *others, ToyFaces.name}))
    raise DataError(
        f"unknown dataset {name!r}; expected one of {known}, or NAME=module:Class=PATH with a reader of yours"
    )


def _split_file(name: str, path: Path, split: str, splits: Path | None) -> Path | None:
    """The list of a split, None if the folder has no lists for this dataset."""
    folder = splits or path / "splits"
    if splits is not None and not splits.is_dir():
        raise DataError(f"{splits}: expected a folder of lists <name>_<split>.txt; got none; check the path")
    file = folder / f"{name}_{split}.txt"
    if file.is_file():
        return file
    others = sorted(p.name for p in folder.glob(f"{name}_*.txt"))
    if others:
        raise DataError(f"{file}: no such list, but there are {', '.join(others)}; add it or leave the folder out")
    return None
