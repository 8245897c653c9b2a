"""A labelled dataset in memory, and a network that knows its answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ifan.config import EMOTIONS, IGNORE, PAPER_TASKS, PARSING_CLASSES, POINT_NAMES, NetworkConfig, TaskConfig
from ifan.crop import points_to_crop
from ifan.data.dataset import FaceDataset
from ifan.data.evaluation import evaluation_batches
from ifan.data.sample import FaceSample
from ifan.network import Lanes, Predictions

SIZE = 32
POSES = ("left", "frontal", "right")
CLASSES = {"parsing": PARSING_CLASSES, "landmarks": POINT_NAMES, "emotion": EMOTIONS, "pose": POSES}


class Faces:
    """Noise labelled for ``tasks``; every pixel of picture i has the value i."""

    margin = 1.0

    def __init__(self, count: int = 7, tasks: tuple[str, ...] = tuple(CLASSES), side: int = SIZE) -> None:
        self.name, self.count, self.side = "faces", count, side
        self.classes = {task: CLASSES[task] for task in tasks}

    @property
    def tasks(self) -> frozenset[str]:
        return frozenset(self.classes)

    def __len__(self) -> int:
        return self.count

    def labels_of(self, index: int) -> dict[str, int]:
        ids = {"emotion": index % 3, "pose": index % 2}
        return {task: i for task, i in ids.items() if task in self.classes}

    def __getitem__(self, index: int) -> FaceSample:
        rng, side = np.random.default_rng(index), self.side
        parsing = rng.integers(0, 9, (side, side), dtype=np.uint8)
        parsing[0, :5] = IGNORE
        return FaceSample(
            key=str(index),
            image=np.full((side, side, 3), index, np.uint8),
            parsing=parsing if "parsing" in self.classes else None,
            points=rng.uniform(0, side, (5, 2)).astype(np.float32) if "landmarks" in self.classes else None,
            labels=self.labels_of(index),
        )


class Oracle(torch.nn.Module):
    """Says the truth about `Faces` in the last iteration, and something wrong about every task before it."""

    def __init__(self, dataset: FaceDataset, pose: bool = False) -> None:
        super().__init__()
        extra = (TaskConfig("pose", "classification", POSES),) if pose else ()
        self.config = NetworkConfig(size=SIZE, tasks=(*PAPER_TASKS, *extra))
        self.class_sizes = tuple(t.width for t in self.config.classifications)
        self.answers = next(evaluation_batches(dataset, self.config, len(dataset)))
        pairs = zip(self.answers.samples, self.answers.crops, strict=True)
        self.points = [points_to_crop(sample.points, crop) for sample, crop in pairs]
        self.register_buffer("mean_parsing", torch.eye(9)[0].view(9, 1, 1).expand(9, SIZE, SIZE))
        self.register_buffer("mean_points", torch.zeros(2, 5))
        self.register_buffer("mean_classes", torch.eye(sum(self.class_sizes))[1])
        self.asked: list[Lanes] = []

    def forward(self, images: torch.Tensor, lanes: Lanes, iterations: int) -> list[Predictions]:
        assert not self.training
        assert not torch.is_grad_enabled()
        assert images.dtype == torch.uint8
        self.asked.append(lanes)
        everything = Lanes.all_tasks(len(images), self.config)
        index = images[:, 0, 0, 0].long()
        return [self.predict(index, everything, 1)] * (iterations - 1) + [self.predict(index, lanes, 0)]

    def predict(self, index: torch.Tensor, lanes: Lanes, error: int) -> Predictions:
        parsing, points, *classes = (index[rows] for rows in lanes.split())
        maps = self.answers.parsing[parsing].long()
        maps = torch.where(maps == IGNORE, 3, maps)
        return Predictions(
            one_hot((maps + error) % 9, 9).permute(0, 3, 1, 2),
            torch.tensor(np.array([self.points[i] for i in points])).float().reshape(-1, 2, 5) + error,
            {
                task.name: one_hot((self.answers.class_targets[samples, i] + error) % task.width, task.width)
                for i, (task, samples) in enumerate(zip(self.config.classifications, classes, strict=True))
            },
            dict(zip((t.name for t in self.config.tasks), lanes.split(), strict=True)),
        )


def one_hot(ids: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits that are sure of ``ids``."""
    return 20 * torch.nn.functional.one_hot(ids, classes).float()


@pytest.fixture
def faces() -> type[Faces]:
    return Faces


@pytest.fixture
def oracle() -> type[Oracle]:
    return Oracle
