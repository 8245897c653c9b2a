"""What `ifan.ops.hybrid_loss` asks of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.ops import checks
from ifan.reference.hybrid_loss import IGNORED_PIXEL, UNLABELLED_CLASS

NAME = "hybrid_loss"
POINT_LOSSES = ("wing", "smooth_l1", "l2")


def check_all_but_labels(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    parsing_class_weights: Tensor | None,
    denominators: Tensor | None,
    sizes: list[int],
    settings: Sequence[float],
    point_loss: str,
) -> None:
    """``ValueError`` for a wrong shape, dtype, device or setting. No tensor's values are looked at."""
    parsing_logits, points, class_logits, task_weights = predictions
    parsing_target, points_target, points_weight, class_targets = targets
    _check_predictions(parsing_logits, points, class_logits, sizes)
    _check_targets(parsing_logits, parsing_target, points, points_target, points_weight, class_targets, sizes)
    _check_weights(parsing_logits, points, sizes, task_weights, parsing_class_weights, denominators)
    _check_settings(point_loss, *settings)


def check_labels(parsing_logits: Tensor, parsing_target: Tensor, class_targets: Tensor, sizes: Sequence[int]) -> None:
    """``ValueError`` for a class id that is out of range, on the CPU."""
    if parsing_logits.shape[1]:
        checks.index_range(NAME, "parsing_target", parsing_target, 0, parsing_logits.shape[1] - 1, IGNORED_PIXEL)
    for index, size in enumerate(sizes):
        labels = class_targets[:, index]
        checks.index_range(NAME, f"class_targets[:, {index}]", labels, 0, size - 1, UNLABELLED_CLASS)


def _check_predictions(parsing_logits: Tensor, points: Tensor, class_logits: Tensor, sizes: list[int]) -> None:
    checks.dimensions(NAME, "parsing_logits", parsing_logits, "(Bp, K, h, w)")
    checks.dimensions(NAME, "points", points, "(Bl, 2, P)")
    checks.dimensions(NAME, "class_logits", class_logits, "(Bc, sum(class_sizes))")
    checks.shape(NAME, "points", points, (points.shape[0], 2, points.shape[2]), "(Bl, 2, P)")
    width = (class_logits.shape[0], sum(sizes))
    checks.shape(NAME, "class_logits", class_logits, width, "(Bc, sum(class_sizes))")
    values = {"parsing_logits": parsing_logits, "points": points, "class_logits": class_logits}
    checks.floating(NAME, parsing_logits.device, **values)


def _check_targets(
    parsing_logits: Tensor,
    parsing_target: Tensor,
    points: Tensor,
    points_target: Tensor,
    points_weight: Tensor,
    class_targets: Tensor,
    sizes: list[int],
) -> None:
    checks.dimensions(NAME, "parsing_target", parsing_target, "(Bp, H, W)")
    expected = (parsing_logits.shape[0], *parsing_target.shape[1:])
    checks.shape(NAME, "parsing_target", parsing_target, expected, "(Bp, H, W)")
    coarse, fine = parsing_logits.shape[2:], parsing_target.shape[1:]
    if coarse != fine and 0 in (*coarse, *fine):
        checks.fail(
            NAME,
            f"parsing_logits cannot be resized to parsing_target without pixels; got {tuple(coarse)} and "
            f"{tuple(fine)}. Drop the rows.",
        )
    checks.shape(NAME, "points_target", points_target, tuple(points.shape), "(Bl, 2, P)")
    checks.shape(NAME, "points_weight", points_weight, (points.shape[0], points.shape[2]), "(Bl, P)")
    checks.dimensions(NAME, "class_targets", class_targets, "(Bc, n)")
    checks.shape(NAME, "class_targets", class_targets, (class_targets.shape[0], len(sizes)), "(Bc, n)")
    checks.floating(NAME, points.device, points_target=points_target, points_weight=points_weight)
    checks.on_device(NAME, points.device, parsing_target=parsing_target, class_targets=class_targets)
    for name, tensor, dtype in (
        ("parsing_target", parsing_target, torch.uint8),
        ("class_targets", class_targets, torch.int64),
    ):
        if tensor.dtype != dtype:
            checks.fail(NAME, f"{name} must be {dtype}; got {tensor.dtype}. Convert it with .to().")


def _check_weights(
    parsing_logits: Tensor,
    points: Tensor,
    sizes: list[int],
    task_weights: Tensor,
    parsing_class_weights: Tensor | None,
    denominators: Tensor | None,
) -> None:
    tasks = int(parsing_logits.shape[1] > 0) + int(points.shape[2] > 0) + len(sizes)
    checks.require(tasks > 0, NAME, "expected at least one task; got K = 0, P = 0, n = 0. Pass one task's predictions.")
    optional = {
        "task_weights": (task_weights, tasks, "(T,)"),
        "parsing_class_weights": (parsing_class_weights, parsing_logits.shape[1], "(K,)"),
        "denominators": (denominators, tasks, "(T,)"),
    }
    for name, (tensor, length, meaning) in optional.items():
        if tensor is not None:
            checks.shape(NAME, name, tensor, (length,), meaning)
            checks.floating(NAME, points.device, **{name: tensor})


def _check_settings(
    point_loss: str, parsing_smoothing: float, class_smoothing: float, wing_width: float, wing_curvature: float
) -> None:
    if point_loss not in POINT_LOSSES:
        checks.fail(NAME, f"point_loss must be one of {POINT_LOSSES}; got {point_loss!r}. Choose one.")
    for name, value in (("parsing_smoothing", parsing_smoothing), ("class_smoothing", class_smoothing)):
        if not 0 <= value < 1:
            checks.fail(NAME, f"{name} must be in [0, 1); got {value}. Use 0 for none.")
    for name, value in (("wing_width", wing_width), ("wing_curvature", wing_curvature)):
        if not value > 0:
            checks.fail(NAME, f"{name} must be positive; got {value}. Use 0.1 and 0.02 of a crop side.")
