"""The masked multi-task loss on CUDA; its gradients are made in the forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ifan.config import IGNORE, UNLABELLED
from ifan.ops import native
from ifan.ops.backends.cuda.arguments import call, dtype_name

KINDS = {"wing": 0, "smooth_l1": 1, "l2": 2}


def forward(
    predictions: Sequence[Tensor],
    targets: Sequence[Any],
    sizes: Sequence[int],
    settings: Sequence[float],
    point_loss: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """total, losses ``(T,)``, counts ``(T,)`` and ``[divisors (T,)``, the sums' gradients of parsing logits, points and
    class logits]; arguments as those of the operation ``ifan::hybrid_loss``."""
    parsing, points, classes, task_weights = predictions
    labels, points_target, points_weight, class_targets, class_weights, denominators = targets
    parsing_smoothing, class_smoothing, width, curvature = settings
    made = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (parsing, points, classes)]
    blocks, groups = _blocks(parsing, labels, points, classes, sizes), iter(_groups(sizes))
    sums = task_weights.new_empty((sum(blocks), 2), dtype=torch.float32)
    parts = iter(sums.split(blocks))
    if parsing.shape[1]:
        weights = None if class_weights is None else class_weights.float().contiguous()
        _cross_entropy(parsing, labels, weights, parsing_smoothing, IGNORE, made[0], next(parts))
    if points.shape[2]:
        target, weight = points_target.float(), points_weight.float()
        _points(points, target, weight, (KINDS[point_loss], width, curvature), made[1], next(parts))
    for (start, end), label in zip(groups, class_targets.unbind(1), strict=True):
        images = [value[:, start:end].t()[None, :, None, :] for value in (classes, made[2])]
        _cross_entropy(images[0], label[None, None], None, class_smoothing, UNLABELLED, images[1], next(parts))
    given = None if denominators is None else denominators.float().contiguous()
    found = [task_weights.new_empty(shape, dtype=torch.float32) for shape in ((), *[task_weights.shape] * 3)]
    by_task = task_weights.float().contiguous()
    addresses = (value.data_ptr() for value in found)
    call("finish_loss", sums, sums.data_ptr(), blocks, by_task.data_ptr(), _address(given), *addresses)
    return found[0], found[1], found[2], [found[3], *made]


def backward(
    upstream: Sequence[Tensor],
    predictions: Sequence[Tensor],
    losses: Tensor,
    made: Sequence[Tensor],
    sizes: Sequence[int],
) -> list[Tensor]:
    """Gradients of the predictions and the task weights for those of total and losses, from what `forward` made."""
    total, of_losses, task_weights = (value.float().contiguous() for value in (*upstream, predictions[3]))
    divisors, *sums = made
    found, task = [torch.empty_like(value) for value in sums], 0
    shared = [value.data_ptr() for value in (total, of_losses, task_weights, divisors)]
    present = predictions[0].shape[1] > 0, predictions[1].shape[2] > 0, len(sizes) > 0
    for source, target, columns, there in zip(sums, found, ([1], [1], list(sizes)), present, strict=True):
        if there:
            fields = (source.data_ptr(), target.data_ptr(), dtype_name(source), source.numel(), columns, task)
            call("scale_gradient", source, *fields, *shared)
            task += len(columns)
    return [*found, (total * losses).to(predictions[3].dtype)]


def _blocks(parsing: Tensor, labels: Tensor, points: Tensor, classes: Tensor, sizes: Sequence[int]) -> list[int]:
    """Numbers of blocks that leave a sum for each task, in the tasks' order."""
    count = native.cuda_module().loss_blocks
    of_parsing = [count(labels.shape[0], labels[:1].numel())] if parsing.shape[1] else []
    of_points = [count(1, points.shape[0] * points.shape[2])] if points.shape[2] else []
    return [*of_parsing, *of_points, *[count(1, classes.shape[0])] * len(sizes)]


def _groups(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """First column of each classification and the one behind its last."""
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return list(pairwise(ends))


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    smoothing: float,
    ignored: int,
    gradient: Tensor,
    sums: Tensor,
) -> None:
    """Fill the gradient ``(N, K, H, W)`` of the weighted sum, and each block's sums of losses and weights."""
    fine = tuple(labels.shape[1:])
    powers = None
    if fine != tuple(logits.shape[2:]):
        powers = logits.new_empty(labels.shape, dtype=torch.float32)
    call(
        "cross_entropy",
        logits,
        *(logits.data_ptr(), dtype_name(logits), list(logits.shape), list(logits.stride())),
        *(labels.data_ptr(), labels.dtype == torch.uint8, list(fine), list(labels.stride()), _address(class_weights)),
        *(smoothing, ignored, gradient.data_ptr(), list(gradient.stride()), _address(powers), sums.data_ptr()),
    )


def _points(
    points: Tensor,
    target: Tensor,
    weight: Tensor,
    loss: tuple[int, float, float],
    gradient: Tensor,
    sums: Tensor,
) -> None:
    """Fill the gradient of the weighted sum, and each block's sums; ``loss``: kind, width and curvature."""
    kind, width, curvature = loss
    call(
        "points",
        points,
        *(points.data_ptr(), dtype_name(points), list(points.stride()), points.shape[0], points.shape[2]),
        *(target.data_ptr(), list(target.stride()), weight.data_ptr(), list(weight.stride())),
        *(kind, width, curvature, width - width * math.log1p(width / curvature), gradient.data_ptr(), sums.data_ptr()),
    )
