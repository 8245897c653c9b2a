"""Predictions for a batch of faces as numpy arrays, and the checks of what a runner is called with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ifan.config import NetworkConfig, TaskConfig


@dataclass(frozen=True, slots=True)
class FacePredictions:
    """Predictions of a network, float32 with a row a face.

    ``parsing_logits`` (N, K, S, S); ``points`` (N, 2, P), x's then y's in crop sides from the centre, [-0.5, 0.5]
    inside; ``class_logits`` maps a classification's name to (N, C). A task that was not asked for has zero rows.
    """

    parsing_logits: np.ndarray
    points: np.ndarray
    class_logits: dict[str, np.ndarray]

    def __getitem__(self, faces: slice | np.ndarray) -> FacePredictions:
        """The rows of some faces."""
        classes = {name: logits[faces] for name, logits in self.class_logits.items()}
        return FacePredictions(self.parsing_logits[faces], self.points[faces], classes)


def joined(parts: Sequence[FacePredictions]) -> FacePredictions:
    """Predictions of slices of a batch as those of the batch; ``parts`` has at least one."""
    if len(parts) == 1:
        return parts[0]
    return FacePredictions(
        np.concatenate([p.parsing_logits for p in parts]),
        np.concatenate([p.points for p in parts]),
        {name: np.concatenate([p.class_logits[name] for p in parts]) for name in parts[0].class_logits},
    )


def uninitialised(config: NetworkConfig, tasks: Collection[str], faces: int) -> FacePredictions:
    """Uninitialised predictions of the ``tasks`` of these names for so many faces."""

    def empty(task: TaskConfig | None, *shape: int) -> np.ndarray:
        return np.empty((faces if task is not None and task.name in tasks else 0, *shape), np.float32)

    parsing, landmarks = config.parsing, config.landmarks
    return FacePredictions(
        empty(parsing, parsing.width if parsing else 0, config.size, config.size),
        empty(landmarks, 2, landmarks.width if landmarks else 0),
        {t.name: empty(t, t.width) for t in config.classifications},
    )


def check_inputs(config: NetworkConfig, images: np.ndarray, begun: FacePredictions | None) -> None:
    """Raise ``ValueError`` unless ``images`` and ``begun`` are what a runner of that network takes.

    ``images``: (N, 3, I, I) uint8. ``begun``: predictions of all tasks for the same faces, at the network's own side.
    """
    side = config.image_size
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3, side, side):
        got = f"{images.shape} {images.dtype}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(
            f"images: expected a numpy array (N, 3, {side}, {side}) uint8; got {got}. Crop to that size first."
        )
    if begun is None:
        return
    names = [t.name for t in config.tasks]
    if begun.class_logits.keys() != {t.name for t in config.classifications}:
        raise ValueError(
            f"begun: expected class_logits of {[t.name for t in config.classifications]}; got "
            f"{list(begun.class_logits)}. Begin with predictions of all tasks of this network."
        )
    wanted = uninitialised(config, names if images.shape[0] else [], images.shape[0])
    pairs = {
        "parsing_logits": (begun.parsing_logits, wanted.parsing_logits),
        "points": (begun.points, wanted.points),
        **{f"class_logits[{n!r}]": (begun.class_logits[n], logits) for n, logits in wanted.class_logits.items()},
    }
    for name, (value, like) in pairs.items():
        if value.shape != like.shape or value.dtype != like.dtype:
            raise ValueError(
                f"begun: expected {name} {like.shape} {like.dtype}; got {value.shape} {value.dtype}. Begin with "
                "predictions of all tasks for the same faces."
            )
