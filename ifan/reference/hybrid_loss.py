"""The masked multi-task loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.config import IGNORE, UNLABELLED
from ifan.reference.lanes import accumulation_dtype


class HybridLoss(NamedTuple):
    """``total ()`` weighted sum, ``losses (T,)`` of the tasks, ``counts (T,)`` sums of labelled elements' weights."""

    total: Tensor
    losses: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class LossPredictions:
    """Predictions that are judged, floating point. The row counts Bp, Bl and Bc are independent and may be 0.

    Attributes:
        parsing_logits: ``(Bp, K, h, w)``; upsampled bilinearly (``align_corners=False``) to the labels' size.
        points: ``(Bl, 2, P)`` predicted x and y in [-.5, .5], in crop sides from the centre.
        class_logits: ``(Bc, sum of class_sizes)`` of all classifications, one after another.
    """

    parsing_logits: Tensor
    points: Tensor
    class_logits: Tensor


@dataclass(frozen=True, slots=True)
class LossTargets:
    """Labels of the predictions' rows.

    Attributes:
        parsing: ``(Bp, H, W)`` uint8 class ids, `ifan.config.IGNORE` = ignored.
        points: ``(Bl, 2, P)``; may be NaN where the weight is 0.
        points_weight: ``(Bl, P)`` weight of each point, at least 0; 0 = unlabelled.
        classes: ``(Bc, n)`` int64 class ids, `ifan.config.UNLABELLED` = unlabelled.
    """

    parsing: Tensor
    points: Tensor
    points_weight: Tensor
    classes: Tensor


@dataclass(frozen=True, slots=True)
class LossOptions:
    """Settings of the loss. T counts the tasks that are present: parsing, points, n classifications.

    Attributes:
        class_sizes: the n numbers of classes, each at least 1.
        task_weights: ``(T,)``.
        parsing_class_weights: ``(K,)``, the weight of a pixel by its class; default 1.
        parsing_smoothing: share in [0, 1) of the cross-entropy against the uniform distribution.
        class_smoothing: the same for the classifications.
        point_loss: of the distance d in each coordinate, summed over x and y. ``"wing"`` is ``w log(1 + d / c)`` below
            the width w and ``d - w + w log(1 + w / c)`` above; ``"smooth_l1"`` is ``d**2 / 2w`` below and
            ``d - w / 2`` above; ``"l2"`` is ``d**2``.
        wing_width: w, in crop sides, positive.
        wing_curvature: c, in crop sides, positive.
        denominators: ``(T,)``, the counts of the whole batch where it is spread over processes; default counts.
    """

    class_sizes: Sequence[int]
    task_weights: Tensor
    parsing_class_weights: Tensor | None = None
    parsing_smoothing: float = 0.0
    class_smoothing: float = 0.0
    point_loss: str = "wing"
    wing_width: float = 0.1
    wing_curvature: float = 0.02
    denominators: Tensor | None = None


def hybrid_loss(predictions: LossPredictions, targets: LossTargets, options: LossOptions) -> HybridLoss:
    """See `ifan.ops.hybrid_loss`, which checks its arguments and calls this."""
    parsing, points, classes = predictions.parsing_logits, predictions.points, predictions.class_logits
    dtype = accumulation_dtype(parsing.dtype, points.dtype, classes.dtype)
    terms: list[tuple[Tensor, Tensor]] = []
    with torch.autocast(parsing.device.type, enabled=False):
        if parsing.shape[1]:
            logits, size = parsing.to(dtype), targets.parsing.shape[-2:]
            if logits.shape[-2:] != size:
                logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            weights = options.parsing_class_weights
            terms.append(_cross_entropy(logits, targets.parsing.long(), IGNORE, options.parsing_smoothing, weights))
        if points.shape[2]:
            terms.append(_points(points.to(dtype), targets, options))
        groups = classes.to(dtype).split(list(options.class_sizes), 1)
        for logits, labels in zip(groups, targets.classes.unbind(1), strict=True):
            terms.append(_cross_entropy(logits, labels, UNLABELLED, options.class_smoothing, None))
        sums = torch.stack([loss for loss, _ in terms])
        counts = torch.stack([count for _, count in terms]).detach()
        divisors = counts if options.denominators is None else options.denominators.detach().to(dtype)
        losses = sums * torch.where(divisors > 0, 1 / divisors, 0)
        return HybridLoss((options.task_weights.to(dtype) * losses).sum(), losses, counts)


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


def _points(points: Tensor, targets: LossTargets, options: LossOptions) -> tuple[Tensor, Tensor]:
    """Weighted sum over the points of both coordinates' losses, and the sum of the weights."""
    target, weight, width, curvature = targets.points, targets.points_weight, options.wing_width, options.wing_curvature
    labelled = weight > 0
    # Selecting before any arithmetic keeps an unlabelled point's NaN out of the loss and out of the gradient.
    distance = torch.where(labelled[:, None], points - target.detach().to(points.dtype), 0).abs()
    if options.point_loss == "l2":
        losses = distance.square()
    elif options.point_loss == "smooth_l1":
        losses = torch.where(distance < width, distance.square() / (2 * width), distance - width / 2)
    else:
        wing = width * torch.log1p(distance / curvature)
        offset = width - width * math.log1p(width / curvature)
        losses = torch.where(distance < width, wing, distance - offset)
    weights = torch.where(labelled, weight, 0).detach().to(points.dtype)
    return (weights * losses.sum(1)).sum(), weights.sum()
