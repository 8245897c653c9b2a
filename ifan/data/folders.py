"""Pictures in one folder a class: RAF-DB, AffectNet, or any classification of one's own.

``<root>/{train,val,test}/<class>/<picture>``. Without ``val`` it is a seeded tenth of ``train``; without ``test``
(AffectNet's is not public) ``val`` is the test and a tenth of ``train`` the validation; without any of them the split
is a seeded 80 / 10 / 10 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ifan.data.dataset import DataError, Reader, choose, official_split, three_way
from ifan.data.images import read_image
from ifan.data.labels import AFFECTNET, EMOTION, EMOTION_NAMES, RAF_DB
from ifan.data.sample import FaceSample

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class ClassFolders(Reader):
    """Folders of pictures, one a class.

    With expression names for folders the task is ``emotion``, and contempt, not among our classes, is left out. Folders
    of other names are the classes, in alphabetical order, of the classification ``task``; without ``task`` they raise
    `DataError`.
    """

    name = "folders"
    margin = 1.3
    classes = EMOTION
    layout = "a folder with train, val and test (or none of them), each with one folder of pictures a class"
    table: Mapping[str, str | None] = EMOTION_NAMES

    def __init__(self, root: Path, split: str, split_file: Path | None = None, task: str | None = None) -> None:
        super().__init__(root, split, split_file)
        self.require()
        found = _split_folders(self.root)
        if task:
            self.classes = self.classes_in(self.root, task)  # type: ignore[misc] # of this folder
        (self.task,) = self.classes
        if task and self.task == task:
            self.table = {name.lower(): name for name in self.classes[task]}
        parts = {part: self._scan(folder) for part, folder in found.items() if folder is not None}
        if not parts:
            parts = {part: three_way(self._scan(self.root), part) for part in SPLIT_FOLDERS}
        everything = {key: path for records in parts.values() for key, path in records.items()}
        chosen = choose(everything, split_file) if split_file else _split(parts, split)
        if not chosen:
            raise self.wrong_path()
        self.keys, self.files = list(chosen), list(chosen.values())
        known = self.classes[self.task]
        self.labels = [known.index(str(self.table[path.parent.name.lower()])) for path in self.files]

    def __getitem__(self, index: int) -> FaceSample:
        return FaceSample(self.keys[index], read_image(self.files[index]), labels=self.labels_of(index))

    def labels_of(self, index: int) -> dict[str, int]:
        """Class id of the task, from the folder's name."""
        return {self.task: self.labels[index]}

    @classmethod
    def classes_in(cls, root: Path, task: str) -> Mapping[str, tuple[str, ...]]:
        """Class names by task that the folders under ``root`` stand for: emotions, or classes of ``task``."""
        parts = [folder for folder in _split_folders(root).values() if folder]
        names = {group.name for folder in parts or [root] for group in _groups(folder)}
        if names and {name.lower() for name in names} <= set(cls.table):
            return cls.classes
        if len(names) < 2:
            raise DataError(f"{root}: expected a folder for each of two classes or more; got {sorted(names)}")
        return {task: tuple(sorted(names))}

    def _scan(self, folder: Path) -> dict[str, Path]:
        """Key = path from the root -> file, of the classes we have."""
        records = {}
        for group in _groups(folder):
            if group.name.lower() not in self.table:
                raise DataError(
                    f"{group}: unknown class; expected one of {', '.join(self.table)}; rename the folder, or"
                    " name a task of your own: --data TASK=folders=PATH"
                )
            if self.table[group.name.lower()] is not None:
                files = sorted(path for path in group.iterdir() if path.suffix.lower() in PICTURES)
                records.update({path.relative_to(self.root).as_posix(): path for path in files})
        return records


class RAFDB(ClassFolders):
    """RAF-DB's seven basic expressions, folders 1 .. 7."""

    name = "rafdb"
    table = RAF_DB


class AffectNet(ClassFolders):
    """AffectNet's folders 0 .. 7; contempt (7) is left out."""

    name = "affectnet"
    table = AFFECTNET


class PhotoEmotions(ClassFolders):
    """Emotions on photos with room around the face, as detectors leave it: the eyes are 0.175 of the side apart."""

    name = "photo_emotions"
    margin = 0.65
    layout = "a folder with one folder of pictures an expression"


def _split_folders(root: Path) -> dict[str, Path | None]:
    """Folder of each split, ``None`` where there is none."""
    return {
        part: next((root / name for name in names if (root / name).is_dir()), None)
        for part, names in SPLIT_FOLDERS.items()
    }


def _groups(folder: Path) -> list[Path]:
    """Folders of classes in ``folder``."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "splits")


def _split(parts: dict[str, dict[str, Path]], split: str) -> dict[str, Path]:
    if set(parts) == set(SPLIT_FOLDERS):
        return parts[split]
    test = parts.get("test") or parts.get("val") or {}
    return official_split(parts.get("train", {}), test, split)
