"""Predictions of a picture and of its mirror image, together: a little better for twice the time."""

from __future__ import annotations

from torch import Tensor

from ifan.config import NetworkConfig
from ifan.data.labels import mirrored
from ifan.network import Predictions


def mirror_mean(config: NetworkConfig, seen: Predictions, mirror: Predictions) -> Predictions:
    """The mean of what is ``seen`` in pictures and, turned back, in their ``mirror`` images; of logits and points.

    Left and right of class and point names trade places.
    """
    parsing, points = seen.parsing_logits, seen.points
    if config.parsing:
        parsing = (parsing + _swapped(mirror.parsing_logits.flip(3), config.parsing.classes, 1)) / 2
    if config.landmarks:
        back = mirror.points * mirror.points.new_tensor([[-1.0], [1.0]])
        points = (points + _swapped(back, config.landmarks.classes, 2)) / 2
    logits = {
        task.name: (seen.class_logits[task.name] + _swapped(mirror.class_logits[task.name], task.classes, 1)) / 2
        for task in config.classifications
    }
    return Predictions(parsing, points, logits, seen.rows)


def _swapped(values: Tensor, names: tuple[str, ...], dim: int) -> Tensor:
    return values.index_select(dim, values.new_tensor(mirrored(names)).long())
