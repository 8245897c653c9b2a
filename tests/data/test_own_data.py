"""Data of one's own: readers named on the command line or by entry points, and folders of any classes."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ifan.data import DataError, FaceSample, Reader, open_dataset
from ifan.data.packing import pack


class Mine(Reader):
    """Two samples with a label each."""

    name = "reader"
    classes = {"smile": ("no", "yes")}  # noqa: RUF012
    layout = "a folder"

    def __init__(self, root: Path, split: str, split_file: Path | None = None) -> None:
        super().__init__(root, split, split_file)
        self.keys = ["a", "b"]

    def __getitem__(self, index: int) -> FaceSample:
        return FaceSample(self.keys[index], np.full((40, 40, 3), 90, np.uint8), labels=self.labels_of(index))

    def labels_of(self, index: int) -> dict[str, int]:
        return {"smile": index}


class Bare:
    """A reader that is none."""

    def __init__(self, *_: Any) -> None: ...


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for split, name, count in (("train", "cat", 20), ("train", "Dog", 10), ("test", "cat", 1), ("test", "Dog", 2)):
        (tmp_path / split / name).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(tmp_path / split / name / f"{i}.png"), np.full((24, 24, 3), 9 * i, np.uint8))
    return tmp_path


def test_class_of_ones_own(tmp_path: Path) -> None:
    dataset = open_dataset("mine", f"{__name__}:Mine={tmp_path}", "train")
    assert (dataset.name, dataset.classes["smile"], len(dataset)) == ("mine", ("no", "yes"), 2)
    assert Mine.name == "reader"
    packed = pack(dataset, tmp_path / "packed", "train")
    again = open_dataset("mine", packed.parent, "train")
    assert [again.labels_of(i) for i in range(2)] == [{"smile": 0}, {"smile": 1}]


def test_known_reader_under_another_name(folders: Path) -> None:
    dataset = open_dataset("animal", f"folders={folders}", "test")
    assert dataset.classes == {"animal": ("Dog", "cat")}
    assert sorted(dataset.labels_of(i)["animal"] for i in range(len(dataset))) == [0, 0, 1]
    assert dataset[0].labels == dataset.labels_of(0)
    with pytest.raises(DataError, match=r"unknown class; .* --data TASK=folders=PATH"):
        open_dataset("folders", folders, "test")


def test_folders_of_emotions_stay_emotions(tmp_path: Path) -> None:
    for name in ("happy", "sad"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(10):
            cv2.imwrite(str(tmp_path / "train" / name / f"{i}.png"), np.zeros((24, 24, 3), np.uint8))
    dataset = open_dataset("mood", f"folders={tmp_path}", "train")
    assert (dataset.name, set(dataset.classes)) == ("mood", {"emotion"})


def test_one_class_is_none(tmp_path: Path) -> None:
    (tmp_path / "train" / "only").mkdir(parents=True)
    with pytest.raises(DataError, match="expected a folder for each of two classes or more"):
        open_dataset("task", f"folders={tmp_path}", "train")


def test_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("installed", f"{__name__}:Mine", "ifan.datasets")
    monkeypatch.setattr(metadata, "entry_points", lambda **wanted: metadata.EntryPoints([point]).select(**wanted))
    assert len(open_dataset("installed", tmp_path, "train")) == 2
    assert open_dataset("other", f"installed={tmp_path}", "train").name == "other"
    with pytest.raises(DataError, match=r"unknown dataset 'none'; expected one of .*installed"):
        open_dataset("none", tmp_path, "train")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_module:Mine=x", "cannot be imported"),
        (f"{__name__}:Nothing=x", "cannot be imported"),
        (f"{__name__}:Bare=x", "lacks classes, margin"),
        ("nonsense=x", "unknown dataset 'nonsense'"),
    ],
)
def test_readers_that_are_none(path: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_dataset("mine", path, "train")


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("happy", "sad"):
        (tmp_path / "v=1" / "train" / name).mkdir(parents=True)
        for i in range(10):
            cv2.imwrite(str(tmp_path / "v=1" / "train" / name / f"{i}.png"), np.zeros((24, 24, 3), np.uint8))
    assert len(open_dataset("folders", "v=1", "train")) == 18
