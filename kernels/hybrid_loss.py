"""The masked multi-task loss; its gradients are made in the forward pass.

Cross-entropy of a labelled element with weight w, smoothing s, K classes and its label t:

    loss = w (log sum exp z - (1 - s) z_t - s mean z)        gradient = w (softmax z - (1 - s) [k = t] - s / K)

A classification is parsing of one image with a pixel a row. Sums: a program, then a task, in order.

The gradients kept are those of a task's *sum*; backward multiplies them by (total's gradient x task weight + loss's
gradient) / denominator, which is known on the device only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifan.config import IGNORE, UNLABELLED

from .configs import config_of
from .cross_entropy import cross_entropy, upsampled_cross_entropy
from .launch import launch

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
    partials = []
    if parsing.shape[1]:
        if parsing.shape[2:] == labels.shape[1:]:
            partial = cross_entropy(parsing, labels, class_weights, parsing_smoothing, IGNORE, made[0])
        else:
            partial = upsampled_cross_entropy(parsing, labels, class_weights, parsing_smoothing, made[0])
        partials.append(partial)
    if points.shape[2]:
        partials.append(_points(points, points_target, points_weight, KINDS[point_loss], width, curvature, made[1]))
    groups = [values.split(list(sizes), 1) for values in (classes, made[2])]
    for logits, gradient, label in zip(*groups, class_targets.unbind(1), strict=True):
        images = [value.t()[None, :, None, :] for value in (logits, gradient)]
        partials.append(cross_entropy(images[0], label[None, None], None, class_smoothing, UNLABELLED, images[1]))
    losses, counts, divisors = task_weights.new_empty((3, len(partials)), dtype=torch.float32).unbind(0)
    for task, partial in enumerate(partials):
        given = None if denominators is None else denominators[task]
        launch(
            finish_kernel,
            (1,),
            *(partial, partial.shape[0], given, losses[task], counts[task], divisors[task]),
            BLOCK=1024,
            num_warps=4,
        )
    # Each output owns its memory: an operation's outputs may not be views of one another.
    kept = [value.clone() for value in (losses, counts, divisors)]
    return (task_weights.float() * losses).sum(), kept[0], kept[1], [kept[2], *made]


def backward(
    upstream: Sequence[Tensor],
    predictions: Sequence[Tensor],
    losses: Tensor,
    made: Sequence[Tensor],
    sizes: Sequence[int],
) -> list[Tensor]:
    """Gradients of the predictions and the task weights for those of total and losses, from what `forward` made."""
    total, of_losses = (value.float() for value in upstream)
    divisors, parsing, points, classes = made
    task_weights = predictions[3]
    factors = torch.where(divisors > 0, (total * task_weights.float() + of_losses) / divisors, 0)
    found = [torch.empty_like(value) for value in (parsing, points, classes)]
    present = [(parsing, found[0])] if parsing.shape[1] else []
    present += [(points, found[1])] if points.shape[2] else []
    groups = zip(*(value.split(list(sizes), 1) for value in (classes, found[2])), strict=True)
    for task, (source, target) in enumerate([*present, *groups]):
        _scale(source, factors[task], target)
    return [*found, (total * losses).to(task_weights.dtype)]


def _points(
    points: Tensor, target: Tensor, weight: Tensor, kind: int, width: float, curvature: float, gradient: Tensor
) -> Tensor:
    count = points.shape[0] * points.shape[2]
    block = min(config_of(points.device).elements // 4, triton.next_power_of_2(max(count, 16)))
    partial = points.new_empty((triton.cdiv(count, block), 2), dtype=torch.float32)
    launch(
        points_kernel,
        (partial.shape[0],),
        *(points, target, weight, gradient, partial, count, points.shape[2]),
        *(width, curvature, width - width * math.log1p(width / curvature)),
        *(*points.stride(), *target.stride(), *weight.stride(), *gradient.stride()),
        KIND=kind,
        BLOCK=block,
        num_warps=4,
    )
    return partial


def _scale(source: Tensor, factor: Tensor, target: Tensor) -> None:
    """``target = source * factor`` of two tensors that are contiguous but for their rows' distance; factor on the
    device."""
    config, rows = config_of(source.device), source.shape[0]
    size = source[:1].numel()
    launch(
        scale_kernel,
        (rows, triton.cdiv(size, config.elements)),
        *(source, factor, target, size, source.stride(0), target.stride(0)),
        BLOCK=config.elements,
        num_warps=config.warps,
    )


@triton.jit
def points_kernel(
    points,
    targets,
    weights,
    gradient,
    partial,
    count,
    per_row,
    width,
    curvature,
    offset,
    stride_b,
    stride_xy,
    stride_p,
    target_b,
    target_xy,
    target_p,
    weight_b,
    weight_p,
    gradient_b,
    gradient_xy,
    gradient_p,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    b = (index // per_row).to(tl.int64)
    p = (index % per_row).to(tl.int64)
    weight = tl.load(weights + b * weight_b + p * weight_p, mask=inside, other=0.0).to(tl.float32)
    weight = tl.where(weight > 0, weight, 0.0)
    total = tl.zeros([BLOCK], tl.float32)
    for xy in tl.static_range(2):
        point = tl.load(points + b * stride_b + xy * stride_xy + p * stride_p, mask=inside, other=0.0)
        target = tl.load(targets + b * target_b + xy * target_xy + p * target_p, mask=inside, other=0.0)
        # Chosen before any arithmetic: an unlabelled point's target may be NaN.
        away = tl.where(weight > 0, point.to(tl.float32) - target.to(tl.float32), 0.0)
        d = tl.abs(away)
        if KIND == 0:
            loss = tl.where(d < width, width * tl.log(1.0 + d / curvature), d - offset)
            slope = tl.where(d < width, width / (curvature + d), 1.0)
        elif KIND == 1:
            loss = tl.where(d < width, d * d / (2.0 * width), d - width * 0.5)
            slope = tl.where(d < width, d / width, 1.0)
        else:
            loss = d * d
            slope = 2.0 * d
        total += loss
        slope = tl.where(away > 0, slope, tl.where(away < 0, -slope, 0.0)) * weight
        place = gradient + b * gradient_b + xy * gradient_xy + p * gradient_p
        tl.store(place, slope.to(gradient.dtype.element_ty), mask=inside)
    sums = partial + tl.program_id(0).to(tl.int64) * 2
    tl.store(sums, tl.sum(total * weight, 0))
    tl.store(sums + 1, tl.sum(weight, 0))


@triton.jit
def finish_kernel(partial, entries, denominator, loss, count, divisor, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    counts = tl.zeros([BLOCK], tl.float32)
    for start in range(0, entries, BLOCK):
        entry = (start + index).to(tl.int64) * 2
        sums += tl.load(partial + entry, mask=start + index < entries, other=0.0)
        counts += tl.load(partial + entry + 1, mask=start + index < entries, other=0.0)
    labelled = tl.sum(counts, 0)
    by = labelled
    if denominator is not None:
        by = tl.load(denominator).to(tl.float32)
    tl.store(count, labelled)
    tl.store(divisor, by)
    tl.store(loss, tl.where(by > 0, tl.sum(sums, 0) / by, 0.0))


@triton.jit
def scale_kernel(source, factor, target, size, source_row, target_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(source + row * source_row + index, mask=index < size, other=0.0).to(tl.float32)
    found = (value * tl.load(factor)).to(target.dtype.element_ty)
    tl.store(target + row * target_row + index, found, mask=index < size)
