"""Packed datasets: the same samples, damage found, nothing half-written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ifan.config import NetworkConfig
from ifan.data import DataError, ShardDataset, ToyFaces, open_dataset
from ifan.data.mixture import evaluation_batches
from ifan.data.packing import pack
from ifan.data.sample import FaceSample
from tests.support import dataset_layouts as layouts


class Faces(ToyFaces):
    """Drawn faces in a larger picture, with a box."""

    def __getitem__(self, index: int) -> FaceSample:
        face = super().__getitem__(index)
        assert face.parsing is not None
        assert face.points is not None
        image = np.pad(face.image, ((100, 300), (200, 50), (0, 0)))
        parsing = np.pad(face.parsing, ((100, 300), (200, 50)))
        size = self.size
        box = (200.0, 100.0, 200.0 + size, 100.0 + size)
        return FaceSample(face.key, image, box, parsing, face.points + np.float32([200, 100]), face.labels)


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_packed_samples_equal_the_originals(tmp_path: Path) -> None:
    faces = ToyFaces(5, size=96)
    folder = pack(faces, tmp_path, "train")
    assert folder == tmp_path / "train"
    assert sorted(os.listdir(folder)) == ["data.bin", "index.npz", "manifest.json"]
    packed = open_dataset("toy", tmp_path, "train")
    assert len(packed) == 5
    assert packed.tasks == faces.tasks
    assert dict(packed.classes) == dict(faces.classes)
    for i in range(5):
        a, b = packed[i], faces[i]
        assert (a.key, a.labels, a.box) == (b.key, b.labels, b.box)
        assert packed.labels_of(i) == b.labels
        assert np.array_equal(a.parsing, b.parsing)
        assert np.array_equal(a.points, b.points)
        assert np.abs(a.image.astype(int) - b.image).mean() < 3
    with pytest.raises(IndexError):
        packed[5]


def test_grey_pictures_are_kept_exactly(tmp_path: Path) -> None:
    original = open_dataset("fer2013", layouts.fer2013_folders(tmp_path / "fer"), "val")
    pack(original, tmp_path / "out", "val")
    packed = open_dataset("fer2013", tmp_path / "out", "val")
    assert packed.margin == original.margin
    for i in range(7):
        assert np.array_equal(packed[i].image, original[i].image)


def test_shrinking_and_cutting_keep_the_crop(tmp_path: Path) -> None:
    """Crops of the packed photo and of the original show the same, with the same labels."""
    faces = Faces(3, size=256)
    packed = ShardDataset(pack(faces, tmp_path, "train", max_side=128))
    assert max(packed[0].image.shape) <= 200
    network = NetworkConfig(size=64)
    a, b = (next(iter(evaluation_batches(dataset, network, 3))) for dataset in (packed, faces))
    assert (a.images.float() - b.images.float()).abs().mean() < 3
    assert a.points is not None
    assert b.points is not None
    assert (a.points - b.points).abs().max() < 1e-5
    assert a.parsing is not None
    assert b.parsing is not None
    assert (a.parsing == b.parsing).float().mean() > 0.97


def test_survives_pickling_to_loader_processes(tmp_path: Path) -> None:
    packed = ShardDataset(pack(ToyFaces(2, size=32), tmp_path, "train"))
    first = packed[0].image
    copy = pickle.loads(pickle.dumps(packed))
    assert np.array_equal(copy[0].image, first)


def test_split_and_name_are_checked(tmp_path: Path) -> None:
    pack(ToyFaces(1, size=32), tmp_path, "train")
    with pytest.raises(DataError, match="holds the packed splits train, not 'val'"):
        open_dataset("toy", tmp_path, "val")
    with pytest.raises(DataError, match="holds toy train, not mtfl train"):
        open_dataset("mtfl", tmp_path, "train")
    assert len(open_dataset("toy", tmp_path / "train", "train")) == 1
    with pytest.raises(DataError, match="already there"):
        pack(ToyFaces(1, size=32), tmp_path, "train")


def test_every_damaged_byte_of_data_is_found(tmp_path: Path) -> None:
    folder = pack(ToyFaces(2, size=16), tmp_path, "train")
    good = (folder / "data.bin").read_bytes()
    for at in range(0, len(good), 97):
        bad = bytearray(good)
        bad[at] ^= 1
        (folder / "data.bin").write_bytes(bad)
        with pytest.raises(DataError, match=r"data\.bin: record \d \(train-\d\) is damaged; pack"):
            [ShardDataset(folder)[i] for i in range(2)]
    with pytest.raises(DataError, match="SHA-256"):
        ShardDataset(folder, verify=True)
    (folder / "data.bin").write_bytes(good[:-1])
    with pytest.raises(DataError, match="the copy is incomplete"):
        ShardDataset(folder)
    (folder / "data.bin").unlink()
    with pytest.raises(DataError, match="the file is missing"):
        ShardDataset(folder)


def test_damaged_index_is_found(tmp_path: Path) -> None:
    folder = pack(ToyFaces(2, size=16), tmp_path, "train")
    good = (folder / "index.npz").read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    (folder / "index.npz").write_bytes(bad)
    with pytest.raises(DataError, match=r"index\.npz: its SHA-256"):
        ShardDataset(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(image=index["image"] + np.array([10**9, 0, 0])),
        lambda index: index.update(image=index["image"] * np.array([1, 2**40, 1])),
        lambda index: index.update(parsing=-index["parsing"]),
        lambda index: index.update(key_ends=index["key_ends"][::-1].copy()),
        lambda index: index.update(points=index["points"][:1]),
        lambda index: index.update(labels=index["labels"] + 7),
        lambda index: index.update(image=index["image"].astype(float)),
        lambda index: index.pop("boxes"),
        lambda index: index.update(keys=np.array([{"a": 1}], object)),
    ],
    ids=["offset", "length", "negative", "keys", "count", "labels", "kind", "missing", "pickle"],
)
def test_hostile_index_is_refused(tmp_path: Path, change: object) -> None:
    """An index whose checksum is right but whose numbers lead outside the file."""
    folder = pack(ToyFaces(2, size=16), tmp_path, "train")
    path = folder / "index.npz"
    with np.load(path) as file:
        index = dict(file)
    change(index)  # type: ignore[operator]
    np.savez(path, **index)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["index.npz"] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    rewrite(folder, files=files)
    with pytest.raises(DataError, match=r"index\.npz: "):
        ShardDataset(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "zip"},
        {"version": 2},
        {"count": "2"},
        {"count": 0},
        {"files": {}},
        {"classes": {"a": 3}},
        {"margin": 0},
    ],
    ids=str,
)
def test_bad_manifest_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = pack(ToyFaces(2, size=16), tmp_path, "train")
    rewrite(folder, **changes)
    with pytest.raises(DataError, match=r"manifest\.json: "):
        ShardDataset(folder)
    (folder / "manifest.json").write_text("{" * 5000)
    with pytest.raises(DataError, match=r"manifest\.json: cannot read"):
        ShardDataset(folder)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    original = open_dataset("mtfl", layouts.mtfl(tmp_path / "mtfl"), "train")
    last = original[len(original) - 1].key
    (tmp_path / "mtfl" / last).write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a picture"):
        pack(original, tmp_path / "out", "train")
    assert list((tmp_path / "out").iterdir()) == []


def sealed(folder: Path, content: bytes) -> None:
    """Put ``content`` in the place of the index, and its checksum into the manifest."""
    (folder / "index.npz").write_bytes(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["index.npz"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(folder, files=files)


def test_data_cut_short_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    """Where the file was mapped into memory, the system ended the process."""
    folder = pack(ToyFaces(3, size=64), tmp_path, "train")
    packed = ShardDataset(folder)
    assert packed[0].key == "train-0"
    os.truncate(folder / "data.bin", 10)
    for index in range(3):
        with pytest.raises(DataError, match=r"data\.bin: record \d \(train-\d\) is damaged; pack"):
            packed[index]
    (folder / "data.bin").unlink()
    with pytest.raises(DataError, match=r"data\.bin: cannot be read"):
        packed[0]


def test_an_index_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    folder = pack(ToyFaces(2, size=16), tmp_path, "train")
    with np.load(folder / "index.npz") as file:
        index = dict(file)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**index, "keys": np.zeros(10**7, np.uint8)})
    sealed(folder, buffer.getvalue())
    with pytest.raises(DataError, match="is compressed"):
        ShardDataset(folder)


def test_an_index_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    folder = pack(ToyFaces(2, size=16), tmp_path, "train")
    good = (folder / "index.npz").read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b"(2, 4), }         ", b"(999999999, 4), } "))
    assert buffer.getvalue() != good
    sealed(folder, buffer.getvalue())
    with pytest.raises(DataError, match=r"boxes is not an array of 2 axes"):
        ShardDataset(folder)


@pytest.mark.parametrize(
    "changes",
    [{"label_names": [["emotion"]]}, {"label_names": [None]}, {"classes": {"emotion": [1, 2]}}, {"margin": 1e999}],
    ids=str,
)
def test_a_manifest_of_odd_types_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = pack(ToyFaces(2, size=16), tmp_path, "train")
    rewrite(folder, **changes)
    with pytest.raises(DataError, match=r"manifest\.json: keys are missing or of the wrong type"):
        ShardDataset(folder)


@pytest.mark.parametrize("name", ["image", "parsing", "keys", "key_ends", "points", "boxes", "labels"])
@pytest.mark.parametrize(
    "odd", [np.float64(1), np.zeros((1, 1, 1, 1)), np.array(["x"])], ids=["number", "axes", "text"]
)
def test_an_index_of_odd_types_is_refused(tmp_path: Path, name: str, odd: np.ndarray) -> None:
    folder = pack(ToyFaces(2, size=16), tmp_path, "train")
    with np.load(folder / "index.npz") as file:
        index = dict(file)
    buffer = io.BytesIO()
    np.savez(buffer, **{**index, name: odd})
    sealed(folder, buffer.getvalue())
    with pytest.raises(DataError, match=r"index\.npz: "):
        ShardDataset(folder)
