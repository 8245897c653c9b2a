"""Writing packed datasets: small pictures in one file that loads fast (`ifan.data.shards` reads them)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ifan.config import UNLABELLED
from ifan.data.dataset import DataError, FaceDataset, check_split
from ifan.data.sample import FaceSample
from ifan.data.shards import DATA, FORMAT, INDEX, MANIFEST, VERSION, sha256

QUALITY = 95
CONTEXT = 1.5
"""Box sides of a larger picture that are kept around a face: augmentation shifts, turns and enlarges its crop."""


def pack(
    dataset: FaceDataset,
    out: Path,
    split: str,
    max_side: int = 160,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write ``dataset`` to the folder ``out``/``split`` and return that folder.

    Faces whose box (or whole picture) is larger are shrunk to ``max_side`` pixels, labels with them; of a picture
    much larger than its face only the surroundings are kept. ``progress`` is called with the number of samples done.
    Written beside and renamed at the end, so an interrupted call leaves nothing half-written. Raises `DataError` when
    the folder exists, or for a sample that cannot be read.
    """
    check_split(dataset.name, split)
    target = Path(out) / split
    if target.exists():
        raise DataError(f"{target}: already there; remove it or choose another folder")
    if len(dataset) == 0:
        raise DataError(f"{dataset.name}: no samples in split {split!r}; check its path and split list")
    if max_side < 1:
        raise DataError(f"max_side: expected at least 1 pixel; got {max_side}")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{split}.", dir=target.parent))
    try:
        with (work / DATA).open("wb") as file:
            index = _write_samples(dataset, file, max_side, progress)
            _sync(file)
        with (work / INDEX).open("wb") as file:
            np.savez(file, allow_pickle=False, **index)
            _sync(file)
        with (work / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(_manifest(dataset, split, max_side, work), file, indent=1)
            _sync(file)
        work.chmod(0o755)
        try:
            work.rename(target)
        except OSError as error:  # another process was faster
            raise DataError(f"{target}: already there; remove it or choose another folder") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _write_samples(
    dataset: FaceDataset, file: Any, max_side: int, progress: Callable[[int], None] | None
) -> dict[str, np.ndarray]:
    records: dict[str, list[tuple[int, int, int]]] = {"image": [], "parsing": []}
    keys, ends, points, boxes, labels = bytearray(), [], [], [], []
    names = sorted(task for task in dataset.classes if task not in ("parsing", "landmarks"))
    count = len(dataset.classes.get("landmarks", ()))
    for i in range(len(dataset)):
        sample = _shrink(dataset[i], dataset.margin, max_side)
        for kind, encoded in (("image", _encode(sample.image)), ("parsing", _encode_labels(sample.parsing))):
            records[kind].append((file.tell(), len(encoded), zlib.crc32(encoded)))
            file.write(encoded)
        keys += sample.key.encode()
        ends.append(len(keys))
        points.append(np.full((count, 2), np.nan) if sample.points is None else sample.points)
        boxes.append(np.full(4, np.nan) if sample.box is None else sample.box)
        labels.append([sample.labels.get(name, UNLABELLED) for name in names])
        if progress:
            progress(i + 1)
    return {
        **{kind: np.array(rows, np.int64) for kind, rows in records.items()},
        "keys": np.frombuffer(bytes(keys), np.uint8),
        "key_ends": np.array(ends, np.int64),
        "points": np.array(points, np.float32).reshape(len(ends), count, 2),
        "boxes": np.array(boxes, np.float32),
        "labels": np.array(labels, np.int64).reshape(len(ends), len(names)),
    }


def _shrink(sample: FaceSample, margin: float, max_side: int) -> FaceSample:
    """Cut away what no crop will reach, then shrink so that the box's longer side is at most ``max_side``."""
    image, parsing = sample.image, sample.parsing
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box = np.array(sample.box or (0, 0, width, height), np.float64)
    reach = max(x1 - x0, y1 - y0) * margin * CONTEXT
    middle = (box[:2] + box[2:]) / 2
    left, top = (int(np.clip(np.floor(c - reach / 2), 0, n - 1)) for c, n in zip(middle, (width, height), strict=True))
    right, bottom = (
        int(np.clip(np.ceil(c + reach / 2), a + 1, n))
        for c, a, n in zip(middle, (left, top), (width, height), strict=True)
    )
    image = image[top:bottom, left:right]
    parsing = None if parsing is None else parsing[top:bottom, left:right]
    scale = min(1.0, max_side / max(x1 - x0, y1 - y0))
    old = np.array(image.shape[1::-1])
    new = np.maximum(1, np.round(old * scale)).astype(int)
    if scale < 1:
        image = cv2.resize(image, tuple(int(n) for n in new), interpolation=cv2.INTER_AREA)
        if parsing is not None:
            parsing = cv2.resize(parsing, tuple(int(n) for n in new), interpolation=cv2.INTER_NEAREST_EXACT)
    factor, corner = new / old, np.array([left, top])
    points = None if sample.points is None else ((sample.points - corner) * factor).astype(np.float32)
    moved = ((box.reshape(2, 2) - corner) * factor).reshape(4)
    kept = None if sample.box is None else (float(moved[0]), float(moved[1]), float(moved[2]), float(moved[3]))
    return FaceSample(sample.key, np.ascontiguousarray(image), kept, parsing, points, sample.labels)


def _encode(image: np.ndarray) -> bytes:
    """Grey pictures without loss (those of FER2013 are tiny), others as JPEG with full colour resolution."""
    if (image == image[..., :1]).all():
        return _imencode(".png", image[..., 0], [])
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY, *sampling])


def _encode_labels(labels: np.ndarray | None) -> bytes:
    return b"" if labels is None else _imencode(".png", labels, [])


def _imencode(kind: str, image: np.ndarray, options: list[int]) -> bytes:
    return bytes(cv2.imencode(kind, image, options)[1])


def _manifest(dataset: FaceDataset, split: str, max_side: int, work: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "dataset": dataset.name,
        "split": split,
        "count": len(dataset),
        "max_side": max_side,
        "margin": dataset.margin,
        "classes": {task: list(names) for task, names in dataset.classes.items()},
        "label_names": sorted(task for task in dataset.classes if task not in ("parsing", "landmarks")),
        "files": {
            name: {"bytes": (work / name).stat().st_size, "sha256": sha256(work / name)} for name in (DATA, INDEX)
        },
    }


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
