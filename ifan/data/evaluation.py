"""Un-augmented crops: what evaluation walks through, and the label means of the first iteration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ifan.config import IGNORE, UNLABELLED, NetworkConfig
from ifan.crop import Crop
from ifan.data.dataset import FaceDataset
from ifan.data.sample import FaceSample
from ifan.data.targets import TargetMap


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """Whole crops of one dataset with labels under the network's names.

    ``images`` (B, 3, I, I) uint8 RGB; ``parsing`` (B, I, I) uint8, 255 = ignored, and ``points`` (B, 2, P) float32
    normalised to the crop, NaN = unlabelled, each None if the dataset does not label the task; ``class_targets`` (B, n)
    int64, -1 = unlabelled. ``crops`` lead back to the pixels of ``samples``, which are as the reader gave them.
    """

    images: Tensor
    keys: list[str]
    crops: list[Crop]
    samples: list[FaceSample]
    parsing: Tensor | None
    points: Tensor | None
    class_targets: Tensor


def evaluation_batches(dataset: FaceDataset, network: NetworkConfig, batch_size: int = 32) -> Iterator[EvaluationBatch]:
    """Every sample of ``dataset`` once, in order, cropped to its box or whole picture with the dataset's margin."""
    mapping = TargetMap(dataset, network)
    for start in range(0, len(dataset), batch_size):
        samples = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        crops = [mapping.base_crop(sample) for sample in samples]
        targets = [mapping(sample, crop) for sample, crop in zip(samples, crops, strict=True)]
        images = np.stack([t.image for t in targets]).transpose(0, 3, 1, 2)
        parsing = [t.parsing for t in targets if t.parsing is not None]
        points = [t.points for t in targets if t.points is not None]
        yield EvaluationBatch(
            images=torch.from_numpy(np.ascontiguousarray(images)),
            keys=[sample.key for sample in samples],
            crops=crops,
            samples=samples,
            parsing=torch.from_numpy(np.stack(parsing)) if parsing else None,
            points=torch.from_numpy(np.stack(points)) if points else None,
            class_targets=torch.from_numpy(np.stack([t.classes for t in targets])),
        )


def label_means(
    datasets: Mapping[str, FaceDataset], network: NetworkConfig, limit: int = 2000, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean labels of un-augmented crops, the first iteration's predictions.

    At most ``limit`` samples a dataset, chosen by ``seed``. Returns parsing (K, S, S) probabilities, points (2, P)
    normalised and classes (sum C,) probabilities of all classification tasks in order, float32; uniform (points: the
    centre) where nothing is labelled.
    """
    size, fold = network.image_size, network.image_fold
    parsing = np.zeros((network.parsing.width if network.parsing else 0, size, size))
    points, known = np.zeros((2, 2, network.landmarks.width if network.landmarks else 0))
    classes = [np.zeros(task.width) for task in network.classifications]
    for dataset in datasets.values():
        mapping = TargetMap(dataset, network)
        chosen = np.random.default_rng(seed).permutation(len(dataset))[:limit]
        for index in np.sort(chosen):
            sample = dataset[int(index)]
            targets = mapping(sample, mapping.base_crop(sample))
            if targets.parsing is not None:
                rows, columns = (targets.parsing != IGNORE).nonzero()
                parsing[targets.parsing[rows, columns], rows, columns] += 1
            if targets.points is not None:
                points += np.nan_to_num(targets.points)
                known += np.isfinite(targets.points)
            for counts, label in zip(classes, targets.classes, strict=True):
                if label != UNLABELLED:
                    counts[label] += 1
    parsing = parsing.reshape(-1, network.size, fold, network.size, fold).sum((2, 4))
    shares = [_normalised(parsing), points / np.maximum(known, 1), *(_normalised(counts) for counts in classes)]
    tensors = [torch.from_numpy(values).float() for values in shares]
    return tensors[0], tensors[1], torch.cat([*tensors[2:], torch.empty(0)])


def _normalised(counts: np.ndarray) -> np.ndarray:
    """Counts over the first axis as probabilities; uniform where there are none."""
    total = counts.sum(0, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), 1 / max(len(counts), 1))
