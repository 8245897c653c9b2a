"""From a dataset's sample to a network's targets: the crop, and every label under the network's own class names."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ifan.config import IGNORE, UNLABELLED, NetworkConfig, TaskConfig, mirrored
from ifan.crop import Crop, crop_image, crop_labels, points_to_crop
from ifan.data.dataset import DataError, FaceDataset
from ifan.data.sample import FaceSample


@dataclass(frozen=True, slots=True)
class Targets:
    """One cropped sample: ``image`` (I, I, 3) uint8; ``parsing`` (I, I) uint8 and ``points`` (2, P) float32
    normalised, NaN = unlabelled, each None if its dataset does not label the task; ``classes`` (n,) int64 for the n
    classification tasks, -1 = unlabelled; ``lanes`` (T,) says which tasks of the network it takes part in. Where
    the step trains a closer crop, ``earlier`` (I, I, 3) is what the iteration before saw, and ``reframed`` this one's
    crop in sides of that one's."""

    image: np.ndarray
    parsing: np.ndarray | None
    points: np.ndarray | None
    classes: np.ndarray
    lanes: np.ndarray
    earlier: np.ndarray | None = None
    reframed: Crop | None = None


class TargetMap:
    """The labels of ``dataset`` in terms of ``network``'s tasks, matched by class name.

    A parsing class or point the network lacks is ignored, a category it lacks is unlabelled. Raises `DataError` when
    a task of both has no class name in common.
    """

    def __init__(self, dataset: FaceDataset, network: NetworkConfig) -> None:
        self.network = network
        self.margin = dataset.margin
        parsing, landmarks = network.parsing, network.landmarks
        self.parsing = _table(dataset, parsing, "parsing", IGNORE) if parsing and "parsing" in dataset.tasks else None
        self.points: np.ndarray | None = None
        if landmarks and "landmarks" in dataset.tasks:
            table = _table(dataset, landmarks, "landmarks", UNLABELLED)
            self.points = np.array([_index(table, k) for k in range(landmarks.width)])
            self.point_mirror = np.array(mirrored(landmarks.classes))
        self.classes = {
            task.name: (_table(dataset, task, task.name, UNLABELLED), np.array(mirrored(task.classes)))
            for task in network.classifications
            if task.name in dataset.tasks
        }

    def base_crop(self, sample: FaceSample) -> Crop:
        """The sample's box, or its whole picture, with the dataset's margin."""
        height, width = sample.image.shape[:2]
        return Crop.from_box(sample.box or (0, 0, width, height), self.margin)

    def __call__(self, sample: FaceSample, crop: Crop, border: int = cv2.BORDER_REPLICATE) -> Targets:
        """Crop the sample's picture and labels at the size of the network's images; ``border`` as for `crop_image`."""
        size = self.network.image_size
        return Targets(
            crop_image(sample.image, crop, size, border),
            None if self.parsing is None else self._parsing(sample.parsing, crop),
            None if self.points is None else self._points(sample.points, crop),
            self._classes(sample.labels, crop.flip),
            self.lanes(sample.labels),
        )

    def lanes(self, labels: dict[str, int]) -> np.ndarray:
        """(T,) bool: which of the network's tasks a sample of this dataset with these class ids takes part in."""
        dense = [found is not None for found, task in self._dense if task is not None]
        return np.array([*dense, *(self._classes(labels, flip=False) != UNLABELLED)], bool)

    @property
    def _dense(self) -> tuple[tuple[np.ndarray | None, TaskConfig | None], ...]:
        return (self.parsing, self.network.parsing), (self.points, self.network.landmarks)

    def _parsing(self, labels: np.ndarray | None, crop: Crop) -> np.ndarray:
        if labels is None or self.parsing is None:
            return np.full((self.network.image_size,) * 2, IGNORE, np.uint8)
        return np.asarray(self.parsing[crop_labels(labels, crop, self.network.image_size)])

    def _points(self, points: np.ndarray | None, crop: Crop) -> np.ndarray:
        if points is None or self.points is None:
            return np.full((2, len(self.point_mirror)), np.nan, np.float32)
        ours = np.where(self.points[:, None] >= 0, points[self.points], np.nan)
        moved = points_to_crop(ours, crop).astype(np.float32)
        return moved[:, self.point_mirror] if crop.flip else moved

    def _classes(self, labels: dict[str, int], flip: bool) -> np.ndarray:
        ids = np.full(len(self.network.classifications), UNLABELLED, np.int64)
        for i, task in enumerate(self.network.classifications):
            if task.name in self.classes and labels.get(task.name, UNLABELLED) != UNLABELLED:
                table, mirror = self.classes[task.name]
                found = table[labels[task.name]]
                ids[i] = mirror[found] if flip and found != UNLABELLED else found
        return ids


def _table(dataset: FaceDataset, task: TaskConfig, key: str, missing: int) -> np.ndarray:
    """Dataset id -> network id; 256 entries for parsing, one a class otherwise."""
    names = dataset.classes[key]
    found = [task.classes.index(name) if name in task.classes else missing for name in names]
    if all(k == missing for k in found):
        raise DataError(
            f"task {task.name!r}: the network's classes {task.classes} and those of dataset {dataset.name!r} {names} "
            "have no name in common; use the dataset's names in the configuration"
        )
    if key != "parsing":
        return np.array(found, np.int64)
    table = np.full(256, IGNORE, np.uint8)
    table[: len(found)] = found
    return table


def _index(table: np.ndarray, value: int) -> int:
    """Index of ``value`` in ``table``, -1 if it is not there."""
    at = np.flatnonzero(table == value)
    return int(at[0]) if at.size else UNLABELLED
