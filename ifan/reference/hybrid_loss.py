"""The masked multi-task loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.reference.lanes import accumulation_dtype

IGNORED_PIXEL = 255
UNLABELLED_CLASS = -1


class HybridLoss(NamedTuple):
    """``total ()`` weighted sum, ``losses (T,)`` of the tasks, ``counts (T,)`` sums of labelled elements' weights."""

    total: Tensor
    losses: Tensor
    counts: Tensor


def hybrid_loss(
    parsing_logits: Tensor,
    parsing_target: Tensor,
    points: Tensor,
    points_target: Tensor,
    points_weight: Tensor,
    class_logits: Tensor,
    class_targets: Tensor,
    class_sizes: Sequence[int],
    task_weights: Tensor,
    *,
    parsing_class_weights: Tensor | None = None,
    parsing_smoothing: float = 0.0,
    class_smoothing: float = 0.0,
    point_loss: str = "wing",
    wing_width: float = 0.1,
    wing_curvature: float = 0.02,
    denominators: Tensor | None = None,
) -> HybridLoss:
    """See `ifan.ops.hybrid_loss`, which checks its arguments and calls this."""
    dtype = accumulation_dtype(parsing_logits.dtype, points.dtype, class_logits.dtype)
    terms: list[tuple[Tensor, Tensor]] = []
    with torch.autocast(parsing_logits.device.type, enabled=False):
        if parsing_logits.shape[1]:
            logits = parsing_logits.to(dtype)
            if logits.shape[-2:] != parsing_target.shape[-2:]:
                logits = F.interpolate(logits, parsing_target.shape[-2:], mode="bilinear", align_corners=False)
            labels = parsing_target.long()
            terms.append(_cross_entropy(logits, labels, IGNORED_PIXEL, parsing_smoothing, parsing_class_weights))
        if points.shape[2]:
            terms.append(
                _points(points.to(dtype), points_target, points_weight, point_loss, wing_width, wing_curvature)
            )
        for logits, labels in zip(
            class_logits.to(dtype).split(list(class_sizes), 1), class_targets.unbind(1), strict=True
        ):
            terms.append(_cross_entropy(logits, labels, UNLABELLED_CLASS, class_smoothing, None))
        sums = torch.stack([loss for loss, _ in terms])
        counts = torch.stack([count for _, count in terms]).detach()
        divisors = counts if denominators is None else denominators.detach().to(dtype)
        losses = sums * torch.where(divisors > 0, 1 / divisors, 0)
        return HybridLoss((task_weights.to(dtype) * losses).sum(), losses, counts)


def _cross_entropy(
    logits: Tensor, labels: Tensor, ignored: int, smoothing: float, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weighted sum over the labelled elements, and the sum of their weights: 1, or that of the element's class."""
    losses = F.cross_entropy(logits, labels, ignore_index=ignored, reduction="none", label_smoothing=smoothing)
    labelled = labels != ignored
    if class_weights is None:
        return losses.sum(), labelled.sum().to(losses.dtype)
    weights = class_weights.detach().to(losses.dtype)[labels.masked_fill(~labelled, 0)] * labelled
    return (weights * losses).sum(), weights.sum()


def _points(
    points: Tensor, target: Tensor, weight: Tensor, kind: str, width: float, curvature: float
) -> tuple[Tensor, Tensor]:
    """Weighted sum over the points of both coordinates' losses, and the sum of the weights."""
    labelled = weight > 0
    # Selecting before any arithmetic keeps an unlabelled point's NaN out of the loss and out of the gradient.
    distance = torch.where(labelled[:, None], points - target.detach().to(points.dtype), 0).abs()
    if kind == "l2":
        losses = distance.square()
    elif kind == "smooth_l1":
        losses = torch.where(distance < width, distance.square() / (2 * width), distance - width / 2)
    else:
        wing = width * torch.log1p(distance / curvature)
        offset = width - width * math.log1p(width / curvature)
        losses = torch.where(distance < width, wing, distance - offset)
    weights = torch.where(labelled, weight, 0).detach().to(points.dtype)
    return (weights * losses.sum(1)).sum(), weights.sum()
