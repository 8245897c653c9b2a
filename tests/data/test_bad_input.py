"""Bad datasets: one clear line each, with the file and the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ifan.data import DATASETS, DataError, open_dataset
from tests.support import dataset_layouts as layouts


def message(name: str, path: Path, split: str = "train", read: bool = False, splits: Path | None = None) -> str:
    def use() -> None:
        dataset = open_dataset(name, path, split, splits)
        if read:
            dataset[0]

    with pytest.raises(DataError) as caught:
        use()
    text = str(caught.value)
    assert "\n" not in text
    assert ";" in text, "the way out follows a semicolon"
    return text


@pytest.mark.parametrize("name", DATASETS)
def test_path_of_the_wrong_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    assert "got no such folder" in message(name, tmp_path / "none")
    assert "got a file" in message(name, tmp_path / "file.txt")
    assert str(tmp_path / "empty") in message(name, tmp_path / "empty")


def test_unknown_names(tmp_path: Path) -> None:
    assert "unknown dataset 'mnist'" in message("mnist", tmp_path)
    assert "unknown split" in message("mtfl", tmp_path, "training")
    assert "expected a folder of lists" in message("mtfl", tmp_path, splits=tmp_path / "none")
    assert "expected toy:COUNT" in message("toy", Path("toy:many"))


def test_truncated_mtfl_line(tmp_path: Path) -> None:
    root = layouts.mtfl(tmp_path)
    text = (root / "training.txt").read_bytes()
    (root / "training.txt").write_bytes(text[:-30])
    found = message("mtfl", root)
    assert f"{root / 'training.txt'}:20: expected 15 columns" in found
    assert "cut short" in found


@pytest.mark.parametrize("codes", ["3 1 2 4", "0 1 2 4", "1 1 2 6", "1.5 1 2 3", "1 x 2 3", "1 nan 2 3"])
def test_out_of_range_mtfl_label(tmp_path: Path, codes: str) -> None:
    root = layouts.mtfl(tmp_path)
    with (root / "training.txt").open("a") as file:
        file.write(layouts.mtfl_line("lfw_5590\\late.jpg", codes))
    assert "training.txt:21: " in message("mtfl", root)


def test_missing_and_corrupt_pictures(tmp_path: Path) -> None:
    root = layouts.mtfl(tmp_path)
    for path in (root / "lfw_5590").iterdir():
        path.unlink()
    assert "does not exist" in message("mtfl", root, read=True)
    for path in (root / "AFLW").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    found = message("mtfl", root, "test", read=True)
    assert "0000-image.jpg" in found
    assert "cut short" in found


def test_empty_label_files_and_lists(tmp_path: Path) -> None:
    root = layouts.mtfl(tmp_path)
    (root / "splits").mkdir()
    (root / "splits" / "mtfl_train.txt").write_text("\n")
    assert "the list is empty" in message("mtfl", root)
    (root / "splits" / "mtfl_train.txt").write_text("lfw_5590/nobody.jpg\n")
    assert "mtfl_train.txt:1: 'lfw_5590/nobody.jpg' is not in the dataset" in message("mtfl", root)
    (root / "training.txt").write_text("")
    assert "training.txt: the label file is empty" in message("mtfl", root)


def test_bad_celebamask_maps(tmp_path: Path) -> None:
    root = layouts.celebamask(tmp_path / "a", tuple(range(20)))
    for path in (root / "mask").iterdir():
        layouts.palette_png(path, np.full((64, 64), 19, np.uint8))
    assert "expected ids 0..18; got 19" in message("celebamask", root, read=True)
    root = layouts.celebamask_parts(tmp_path / "b", tuple(range(20)))
    for path in (root / "CelebAMask-HQ-mask-anno").rglob("*_hair.png"):
        layouts.save(path, np.full((30, 30), 255, np.uint8))
    assert "other parts have" in message("celebamask", root, read=True)
    layouts.save(root / "CelebAMask-HQ-mask-anno" / "0" / "00000_beard.png", np.zeros((4, 4), np.uint8))
    assert "00000_beard.png: expected <id>_<part>.png" in message("celebamask", root)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("7,{pixels},Training", "emotion 0..6; got '7'"),
        ("-1,{pixels},Training", "got '-1'"),
        ("3,1 2 3,Training", "expected 2304 pixels"),
        ("3,{pixels} 9,Training", "expected 2304 pixels; got 2305"),
        ("3,256 {pixels},Training", "expected pixels of 0..255"),
        ("3,-1 {pixels},Training", "expected pixels of 0..255"),
        ("3,a b c,Training", "expected pixels of 0..255"),
        ("3,{pixels}", "cut short"),
        ("3,{pixels},Train", "cut short"),
    ],
)
def test_bad_fer2013_rows(tmp_path: Path, row: str, expected: str) -> None:
    root = layouts.fer2013_csv(tmp_path)
    pixels = " ".join(["0"] * 48 * 48)
    with (root / "fer2013.csv").open("a") as file:
        file.write(row.format(pixels=pixels) + "\n")
    found = message("fer2013", root)
    assert "fer2013.csv:23: " in found
    assert expected in found


def test_bad_fer2013_folders_and_header(tmp_path: Path) -> None:
    root = layouts.fer2013_folders(tmp_path / "a")
    (root / "Training" / "bored").mkdir()
    assert "unknown expression" in message("fer2013", root)
    (tmp_path / "fer2013.csv").write_text("emotion,pixels\n")
    assert "fer2013.csv:1: expected the header" in message("fer2013", tmp_path)


def test_bad_landmark_files(tmp_path: Path) -> None:
    root = layouts.pts(tmp_path / "a")
    for path in root.rglob("*.pts"):
        path.write_text("\n".join(path.read_text().splitlines()[:40]))
    assert "expected 68 points; got 37" in message("300w", root, read=True)
    root = layouts.lapa(tmp_path / "b")
    (root / "train" / "landmarks" / "0_0.txt").unlink()
    assert "0_0.txt: cannot read the label file" in message("lapa", root, read=True)
    layouts.save(root / "val" / "labels" / "1_0.png", np.full((64, 64), 11, np.uint8))
    assert "expected ids 0..10" in message("lapa", root, "val", read=True)


def test_bad_helen_maps(tmp_path: Path) -> None:
    root = layouts.helen(tmp_path)
    (root / "labels" / "1000_1" / "1000_1_lbl03.png").unlink()
    assert "1000_1_lbl03.png: the picture does not exist" in message("helen", root, read=True)
    layouts.save(root / "labels" / "1001_1" / "1001_1_lbl03.png", np.zeros((5, 5), np.uint8))
    assert "its photo has (64, 64)" in message("helen", root, "val", read=True)


def test_unknown_class_folder(tmp_path: Path) -> None:
    layouts.folders(tmp_path, ("happy", "bored"), ("train", "test"), each=1)
    assert "bored: unknown class" in message("folders", tmp_path)
