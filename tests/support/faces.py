"""Small in-memory datasets that label one task each, and a network small enough for tests."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

from ifan.config import EMOTIONS, PARSING_CLASSES, POINT_NAMES, Config, NetworkConfig, TrainingConfig
from ifan.data.sample import FaceSample

CLASSES = {"parsing": PARSING_CLASSES, "landmarks": POINT_NAMES, "emotion": EMOTIONS}


@dataclass(frozen=True)
class Faces:
    """``count`` random pictures with labels of one task that the pictures give away."""

    task: str
    count: int
    size: int = 40
    margin: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.task}_only"

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        return {self.task: CLASSES[self.task]}

    @property
    def tasks(self) -> frozenset[str]:
        return frozenset({self.task})

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> FaceSample:
        rng = self._rng(index)
        label = int(rng.integers(7))
        image = rng.integers(0, 255, (self.size, self.size, 3)).astype(np.uint8)
        image[8:24, 8:24] = 30 * label
        sample = FaceSample(f"{self.task}/{index}", image)
        if self.task == "parsing":
            return replace(sample, parsing=(image[..., 0] // 29).clip(0, 8).astype(np.uint8))
        if self.task == "landmarks":
            points = np.array([[12, 14], [28, 14], [20, 20], [14, 30], [27, 30]]) + rng.normal(0, 1, (5, 2))
            return replace(sample, points=points.astype(np.float32))
        return replace(sample, labels=self.labels_of(index))

    def labels_of(self, index: int) -> dict[str, int]:
        """The category without the picture."""
        return {"emotion": int(self._rng(index).integers(7))} if self.task == "emotion" else {}

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((zlib.crc32(self.task.encode()), index))


def three_datasets() -> dict[str, Faces]:
    """One a task, of unlike sizes."""
    return {"points": Faces("landmarks", 23), "parts": Faces("parsing", 11), "moods": Faces("emotion", 17)}


def small_config(**training: object) -> Config:
    """A network of 32 px and few channels, and a mixture of `three_datasets`."""
    network = NetworkConfig(size=32, growth=4, stem_channels=8, up_channels=8, iterations=2)
    settings = {
        "steps": 6,
        "batch_size": 7,
        "shares": {"points": 3.0, "parts": 1.0, "moods": 3.0},
        "iterations": (0.7, 0.3),
        "warmup_steps": 5,
        "log_every": 3,
        "checkpoint_every": 25,
    }
    return Config(network, TrainingConfig(**{**settings, **training}))  # type: ignore[arg-type]
