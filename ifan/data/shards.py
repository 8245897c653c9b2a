"""Reading packed datasets: small pictures in one file, an index beside it, checksums over both.

``<folder>/<split>/`` holds ``data.bin`` (JPEG pictures and PNG label maps, one after the other), ``index.npz`` (numpy
arrays, no pickle) and ``manifest.json`` (names, counts, sizes, SHA-256). Every record has a CRC-32 that is checked
before it is decoded.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ifan.config import UNLABELLED
from ifan.data.dataset import SPLITS, DataError
from ifan.data.images import read_image, read_label_image
from ifan.data.sample import FaceSample

FORMAT, VERSION = "ifan-shards", 1
DATA, INDEX, MANIFEST = "data.bin", "index.npz", "manifest.json"
ARRAYS = {"image": 2, "parsing": 2, "keys": 1, "key_ends": 1, "points": 3, "boxes": 2, "labels": 2}
"""The index's arrays and their numbers of axes."""
REPACK = "pack the dataset again with `ifan pack`"


class ShardDataset:
    """A split written by `ifan.data.packing.pack`, read like the dataset it was packed from.

    Opening checks the manifest, the files' sizes and the index's checksum; ``verify=True`` also the checksum of all
    data. Raises `DataError` for whatever does not fit.
    """

    def __init__(self, folder: Path, verify: bool = False) -> None:
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder)
        self.name, self.split = manifest["dataset"], manifest["split"]
        self.margin = float(manifest["margin"])
        self.classes = {task: tuple(names) for task, names in manifest["classes"].items()}
        for file, facts in manifest["files"].items():
            _check_file(self.folder / file, facts, checksum=verify or file == INDEX)
        self.index = _read_index(self.folder / INDEX, manifest["count"], manifest["files"][DATA]["bytes"])
        self.label_names = list(manifest["label_names"])
        sizes = [len(self.classes.get(name, ())) for name in self.label_names]
        labels = self.index["labels"]
        if labels.shape[1] != len(sizes) or (labels < UNLABELLED).any() or (labels >= np.array(sizes, int)).any():
            raise DataError(f"{self.folder / INDEX}: its labels do not fit {MANIFEST}; {REPACK}")

    @property
    def tasks(self) -> frozenset[str]:
        """Tasks the samples are labelled for."""
        return frozenset(self.classes)

    def __len__(self) -> int:
        return len(self.index["image"])

    def __getitem__(self, index: int) -> FaceSample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        key = self._text(index)
        picture, labels = self._record("image", index), self._record("parsing", index)
        name = f"{self.folder / DATA} ({key})"
        points, box = self.index["points"][index], self.index["boxes"][index]
        return FaceSample(
            key,
            read_image(picture, name),
            box=None if np.isnan(box).any() else (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            parsing=read_label_image(labels, name) if len(labels) else None,
            points=points if len(points) else None,
            labels=self.labels_of(index),
        )

    def labels_of(self, index: int) -> dict[str, int]:
        """Class ids of a sample, known without reading its picture."""
        row = self.index["labels"][index]
        return {name: int(label) for name, label in zip(self.label_names, row, strict=True) if label != UNLABELLED}

    def _record(self, kind: str, index: int) -> np.ndarray:
        """The bytes of a picture or label map (maybe none), checked."""
        start, length, check = (int(v) for v in self.index[kind][index])
        # Read, not mapped: a file that is cut short meanwhile is an error then, and not the end of the process.
        try:
            with (self.folder / DATA).open("rb", buffering=0) as file:
                file.seek(start)
                record = file.read(length)
        except OSError as error:
            raise DataError(f"{self.folder / DATA}: cannot be read ({error.strerror}); {REPACK}") from error
        if len(record) != length or zlib.crc32(record) != check:
            raise DataError(f"{self.folder / DATA}: record {index} ({self._text(index)}) is damaged; {REPACK}")
        return np.frombuffer(record, np.uint8)

    def _text(self, index: int) -> str:
        ends = self.index["key_ends"]
        return bytes(self.index["keys"][ends[index - 1] if index else 0 : ends[index]]).decode("utf-8", "replace")


def shard_folder(path: Path, split: str) -> Path | None:
    """The folder of a packed split under ``path``, None if it is no packed dataset; raises if the split is missing."""
    if (path / MANIFEST).is_file():
        return path
    packed = [name for name in SPLITS if (path / name / MANIFEST).is_file()]
    if packed and split not in packed:
        raise DataError(f"{path}: holds the packed splits {', '.join(packed)}, not {split!r}; pack that one too")
    return path / split if packed else None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot read the manifest ({error}); {REPACK}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise DataError(f"{path}: expected format {FORMAT!r} version {VERSION}; got something else; {REPACK}")
    kinds: dict[str, type | tuple[type, ...]] = {
        "dataset": str,
        "split": str,
        "count": int,
        "margin": (int, float),
        "classes": dict,
        "label_names": list,
    }
    files: Any = manifest.get("files")
    sound = (
        all(isinstance(manifest.get(key), kind) for key, kind in kinds.items())
        and manifest["count"] > 0
        and 0 < manifest["margin"] < math.inf
    )
    sound = sound and all(_texts(names) for names in (*manifest["classes"].values(), manifest["label_names"]))
    sound = sound and isinstance(files, dict) and set(files) == {DATA, INDEX}
    if not sound or not all(
        isinstance(f, dict) and isinstance(f.get("bytes"), int) and f["bytes"] > 0 for f in files.values()
    ):
        raise DataError(f"{path}: keys are missing or of the wrong type; {REPACK}")
    return manifest


def _texts(value: Any) -> bool:
    """True for a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check_file(path: Path, facts: dict[str, Any], checksum: bool) -> None:
    if not path.is_file():
        raise DataError(f"{path}: the file is missing; {REPACK}")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise DataError(
            f"{path}: expected {facts['bytes']} bytes; got {size}; the copy is incomplete, copy or {REPACK}"
        )
    if checksum and sha256(path) != facts.get("sha256"):
        raise DataError(f"{path}: its SHA-256 is not the manifest's, the file is damaged; {REPACK}")


def _check_arrays(path: Path) -> None:
    """Raise ``ValueError`` unless the arrays are as large as their headers say, and not compressed: nothing larger
    than the file is allocated."""
    with zipfile.ZipFile(path) as archive:
        for name, axes in ARRAYS.items():
            member = archive.getinfo(f"{name}.npy")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                size = file.tell() + math.prod(shape) * dtype.itemsize
            if len(shape) != axes or member.file_size != size or dtype.hasobject:
                raise ValueError(f"{name} is not an array of {axes} axes in {member.file_size} bytes")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed")


def _read_index(path: Path, count: int, data_bytes: int) -> dict[str, np.ndarray]:
    """The index's arrays, with every offset inside ``data.bin``."""
    try:
        _check_arrays(path)
        with np.load(path, allow_pickle=False) as file:
            index = {name: file[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot read the index ({error}); {REPACK}") from error
    same = index["image"].shape == index["parsing"].shape == (count, 3)
    spans = np.concatenate([index["image"], index["parsing"]]) if same else np.zeros((0, 3))
    ends = index["key_ends"]
    fits = (
        all(len(index[name]) == count for name in index if name != "keys")
        and spans.shape == (2 * count, 3)
        and spans.dtype == ends.dtype == np.int64
        and (spans[:, :2] >= 0).all()
        and (spans[:, 0] <= data_bytes).all()
        and (spans[:, 1] <= data_bytes - spans[:, 0]).all()
        and ends.shape == (count,)
        and (np.diff(ends, prepend=0) >= 0).all()
        and ends[-1] == len(index["keys"])
        and index["keys"].dtype == np.uint8
        and index["points"].dtype == index["boxes"].dtype == np.float32
        and index["points"].shape[2] == 2
        and index["boxes"].shape == (count, 4)
        and index["labels"].dtype.kind == "i"
    )
    if not fits:
        raise DataError(f"{path}: its arrays do not fit the manifest and {DATA}; {REPACK}")
    return index


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
