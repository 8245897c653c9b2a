"""Checks of what `ifan.ops.hybrid_loss` is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.config import IGNORE, UNLABELLED
from ifan.ops import checks

NAME = "hybrid_loss"
POINT_LOSSES = ("wing", "smooth_l1", "l2")


def check_all_but_labels(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor | None],
    class_sizes: Sequence[int],
    settings: Sequence[float],
    point_loss: str,
) -> None:
    """``ValueError`` for a wrong shape, dtype, device or setting; the arguments are those of the operation
    ``ifan::hybrid_loss``. No tensor's values are looked at."""
    if len(predictions) != 4 or len(targets) != 6 or len(settings) != 4 or any(x is None for x in targets[:4]):
        checks.fail(
            NAME,
            f"expected 4 predictions, 4 targets with 2 optional tensors, and 4 settings; got {len(predictions)}, "
            f"{len(targets)}, {len(settings)}. Call ifan.ops.hybrid_loss.",
        )
    _check_predictions(predictions, class_sizes)
    _check_targets(predictions, [x for x in targets[:4] if x is not None], class_sizes)
    _check_weights(predictions, targets[4:], class_sizes)
    _check_settings(point_loss, *settings)


def check_labels(parsing_logits: Tensor, parsing: Tensor, classes: Tensor, class_sizes: Sequence[int]) -> None:
    """``ValueError`` for a class id that is out of range, on the CPU."""
    if parsing_logits.shape[1]:
        checks.index_range(NAME, "parsing targets", parsing, 0, parsing_logits.shape[1] - 1, IGNORE)
    for index, size in enumerate(class_sizes):
        checks.index_range(NAME, f"class targets[:, {index}]", classes[:, index], 0, size - 1, UNLABELLED)


def check_made(upstream: Sequence[Tensor], predictions: Sequence[Tensor], backend: str) -> None:
    """``ValueError`` unless ``upstream`` fits the predictions: gradients of total and losses, then the losses and what
    forward made for this backend."""
    shapes = [(), *[tuple(predictions[3].shape)] * 2]
    if backend != "reference":
        shapes += [tuple(predictions[3].shape), *(tuple(value.shape) for value in predictions[:3])]
    checks.same_shapes(NAME, "upstream", upstream, shapes)


def _check_predictions(predictions: Sequence[Tensor], class_sizes: Sequence[int]) -> None:
    parsing_logits, points, class_logits, _ = predictions
    checks.dimensions(NAME, "parsing_logits", parsing_logits, "(Bp, K, h, w)")
    checks.dimensions(NAME, "points", points, "(Bl, 2, P)")
    checks.shape(NAME, "points", points, (points.shape[0], 2, points.shape[2]), "(Bl, 2, P)")
    checks.dimensions(NAME, "class_logits", class_logits, "(Bc, sum(class_sizes))")
    checks.class_sizes(NAME, class_sizes, class_logits)
    values = {"parsing_logits": parsing_logits, "points": points, "class_logits": class_logits}
    checks.floating(NAME, parsing_logits.device, **values)


def _check_targets(predictions: Sequence[Tensor], targets: Sequence[Tensor], class_sizes: Sequence[int]) -> None:
    parsing_logits, points, class_logits, _ = predictions
    parsing, points_target, points_weight, classes = targets
    checks.dimensions(NAME, "parsing targets", parsing, "(Bp, H, W)")
    expected = (parsing_logits.shape[0], *parsing.shape[1:])
    checks.shape(NAME, "parsing targets", parsing, expected, "(Bp, H, W)")
    coarse, fine = parsing_logits.shape[2:], parsing.shape[1:]
    if coarse != fine and 0 in (*coarse, *fine):
        checks.fail(
            NAME,
            f"parsing_logits cannot be resized to parsing targets without pixels; got {tuple(coarse)} and "
            f"{tuple(fine)}. Drop the rows.",
        )
    checks.shape(NAME, "points targets", points_target, tuple(points.shape), "(Bl, 2, P)")
    checks.shape(NAME, "points_weight", points_weight, (points.shape[0], points.shape[2]), "(Bl, P)")
    checks.dimensions(NAME, "class targets", classes, "(Bc, n)")
    checks.shape(NAME, "class targets", classes, (class_logits.shape[0], len(class_sizes)), "(Bc, n)")
    values = {"points targets": points_target, "points_weight": points_weight}
    checks.floating(NAME, points.device, **values)
    for name, tensor, dtype in (
        ("parsing targets", parsing, torch.uint8),
        ("class targets", classes, torch.int64),
    ):
        checks.on_device(NAME, points.device, **{name: tensor})
        if tensor.dtype != dtype:
            checks.fail(NAME, f"{name} must be {dtype}; got {tensor.dtype}. Convert with .to().")


def _check_weights(
    predictions: Sequence[Tensor], optional: Sequence[Tensor | None], class_sizes: Sequence[int]
) -> None:
    parsing_logits, points, _, task_weights = predictions
    tasks = int(parsing_logits.shape[1] > 0) + int(points.shape[2] > 0) + len(class_sizes)
    checks.require(tasks > 0, NAME, "expected at least one task; got K = 0, P = 0, n = 0. Pass one task's predictions.")
    for name, tensor, length, meaning in (
        ("task_weights", task_weights, tasks, "(T,)"),
        ("parsing_class_weights", optional[0], parsing_logits.shape[1], "(K,)"),
        ("denominators", optional[1], tasks, "(T,)"),
    ):
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
