"""The masked multi-task loss; its gradients are made in the forward pass.

Cross-entropy of a labelled element with weight w, smoothing s, K classes and its label t:

    loss = w (log sum exp z - (1 - s) z_t - s mean z)        gradient = w (softmax z - (1 - s) [k = t] - s / K)

Parsing at the labels' own size reads each logit once and writes its gradient once. Where the labels are finer, the
logits are upsampled on the fly: one kernel makes the loss and the log sum exp of every label's pixel, another gathers
for each logit the pixels that read it, so nothing is added atomically and nothing of the labels' size but the log sum
exp is stored. A classification is parsing of one image with a pixel a row. Sums: a program, then a task, in order.

The gradients kept are those of a task's *sum*; backward multiplies them by (total's gradient x task weight + loss's
gradient) / denominator, which is known on the device only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import config_of
from .launch import launch, whole_tile

IGNORED_PIXEL = 255
UNLABELLED_CLASS = -1
KINDS = {"wing": 0, "smooth_l1": 1, "l2": 2}


def forward(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    class_weights: Tensor | None,
    denominators: Tensor | None,
    sizes: Sequence[int],
    settings: Sequence[float],
    point_loss: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """total, losses ``(T,)``, counts ``(T,)`` and ``[divisors (T,)``, the sums' gradients of parsing logits, points and
    class logits]; arguments as those of the operation ``ifan::hybrid_loss``."""
    parsing, points, classes, task_weights = predictions
    labels, points_target, points_weight, class_targets = targets
    parsing_smoothing, class_smoothing, width, curvature = settings
    made = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (parsing, points, classes)]
    partials = []
    if parsing.shape[1]:
        partials.append(_parsing(parsing, labels, class_weights, parsing_smoothing, made[0]))
    if points.shape[2]:
        partials.append(_points(points, points_target, points_weight, KINDS[point_loss], width, curvature, made[1]))
    groups = [values.split(list(sizes), 1) for values in (classes, made[2])]
    for logits, gradient, label in zip(*groups, class_targets.unbind(1), strict=True):
        images = [value.t()[None, :, None, :] for value in (logits, gradient)]
        partials.append(
            _cross_entropy(images[0], label[None, None], None, class_smoothing, UNLABELLED_CLASS, images[1])
        )
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


def _parsing(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, gradient: Tensor
) -> Tensor:
    size, fine = tuple(logits.shape[2:]), tuple(labels.shape[1:])
    if size == fine:
        return _cross_entropy(logits, labels, class_weights, smoothing, IGNORED_PIXEL, gradient)
    tiles = whole_tile(logits, fine[0] * fine[1], share=2)
    batch, classes = logits.shape[:2]
    blocks = triton.cdiv(fine[0] * fine[1], tiles["PIXELS"])
    partial = logits.new_empty((batch * blocks, 2), dtype=torch.float32)
    powers = logits.new_empty((batch, *fine), dtype=torch.float32)
    shared = (classes, *size, *fine, smoothing, *logits.stride(), *labels.stride())
    launch(fine_kernel, (batch, blocks), logits, labels, class_weights, powers, partial, *shared, **tiles)
    tiles = whole_tile(logits, size[0] * size[1], share=4)
    grid = (batch, triton.cdiv(size[0] * size[1], tiles["PIXELS"]))
    reach = [_reach(*pair) for pair in zip(size, fine, strict=True)]
    launch(gather_kernel, grid, logits, labels, class_weights, powers, gradient, *reach, *shared, **tiles)
    return partial


@lru_cache(maxsize=64)
def _reach(size: int, fine: int) -> int:
    """The most pixels along one axis that read one logit when ``size`` logits are upsampled to ``fine`` pixels."""
    first = [max((2 * i - 1) * fine + size, 0) // (2 * size) for i in range(size)]
    last = [min(((2 * i + 3) * fine - size - 1) // (2 * size), fine - 1) for i in range(size)]
    return max((b - a + 1 for a, b in zip(first, last, strict=True)), default=0)


def _cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, ignored: int, gradient: Tensor
) -> Tensor:
    """Writes the gradient ``(N, K, H, W)`` of the weighted sum; returns the sums and counts of the programs."""
    batch, classes, height, width = logits.shape
    tiles = whole_tile(logits, height * width, share=2)
    blocks = triton.cdiv(height * width, tiles["PIXELS"])
    partial = logits.new_empty((batch * blocks, 2), dtype=torch.float32)
    launch(
        cross_entropy_kernel,
        (batch, blocks),
        *(logits, labels, class_weights, gradient, partial, classes, height * width, width, smoothing, ignored),
        *(*logits.stride(), *labels.stride(), *gradient.stride()),
        **tiles,
    )
    return partial


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
def cross_entropy_kernel(
    logits,
    labels,
    class_weights,
    gradient,
    partial,
    channels,
    pixels,
    width,
    smoothing,
    ignored,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    label_n,
    label_h,
    label_w,
    gradient_n,
    gradient_c,
    gradient_h,
    gradient_w,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CHANNELS)[:, None].to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    y = (pixel // width).to(tl.int64)
    x = (pixel % width).to(tl.int64)
    place = labels + lane * label_n + y * label_h + x * label_w
    label = tl.load(place, mask=pixel < pixels, other=ignored).to(tl.int32)
    inside = (c < channels) & (pixel < pixels)[None, :]
    source = logits + lane * stride_n + c * stride_c + (y * stride_h + x * stride_w)[None, :]
    z = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    labelled = label != ignored
    weight = _weight_of(class_weights, label, labelled, channels)
    power = _log_sum_exp(z, c < channels)
    loss = power - _target_of(z, label, c, channels, smoothing)
    d = (tl.exp(z - power[None, :]) - _target(label, c, channels, smoothing)) * weight[None, :]
    d = tl.where(labelled[None, :], d, 0.0)
    target = gradient + lane * gradient_n + c * gradient_c + (y * gradient_h + x * gradient_w)[None, :]
    tl.store(target, d.to(gradient.dtype.element_ty), mask=inside)
    sums = partial + (lane * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(sums, tl.sum(tl.where(labelled, loss * weight, 0.0), 0))
    tl.store(sums + 1, tl.sum(weight, 0))


@triton.jit
def fine_kernel(
    logits,
    labels,
    class_weights,
    powers,
    partial,
    channels,
    height,
    width,
    fine_height,
    fine_width,
    smoothing,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    label_n,
    label_h,
    label_w,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CHANNELS)[:, None].to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    there = pixel < fine_height * fine_width
    y = pixel // fine_width
    x = pixel % fine_width
    place = labels + lane * label_n + y.to(tl.int64) * label_h + x.to(tl.int64) * label_w
    label = tl.load(place, mask=there, other=255).to(tl.int32)
    base = logits + lane * stride_n + c * stride_c
    inside = (c < channels) & there[None, :]
    z = _upsampled(base, y, x, height, width, fine_height, fine_width, stride_h, stride_w, inside)
    labelled = label != 255
    weight = _weight_of(class_weights, label, labelled, channels)
    power = _log_sum_exp(z, c < channels)
    loss = power - _target_of(z, label, c, channels, smoothing)
    tl.store(powers + lane * fine_height * fine_width + pixel, power, mask=there)
    sums = partial + (lane * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(sums, tl.sum(tl.where(labelled, loss * weight, 0.0), 0))
    tl.store(sums + 1, tl.sum(weight, 0))


@triton.jit
def gather_kernel(
    logits,
    labels,
    class_weights,
    powers,
    gradient,
    reach_y,
    reach_x,
    channels,
    height,
    width,
    fine_height,
    fine_width,
    smoothing,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    label_n,
    label_h,
    label_w,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CHANNELS)[:, None].to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    there = pixel < height * width
    i = pixel // width
    j = pixel % width
    base = logits + lane * stride_n + c * stride_c
    first_y = tl.maximum((2 * i - 1) * fine_height + height, 0) // (2 * height)
    first_x = tl.maximum((2 * j - 1) * fine_width + width, 0) // (2 * width)
    total = tl.zeros([CHANNELS, PIXELS], tl.float32)
    for step in range(reach_y * reach_x):
        y = first_y + step // reach_x
        x = first_x + step % reach_x
        read = there & (y < fine_height) & (x < fine_width)
        share = _share(y, i, height, fine_height) * _share(x, j, width, fine_width)
        place = labels + lane * label_n + y.to(tl.int64) * label_h + x.to(tl.int64) * label_w
        label = tl.load(place, mask=read, other=255).to(tl.int32)
        labelled = label != 255
        weight = _weight_of(class_weights, label, labelled, channels) * share
        inside = (c < channels) & labelled[None, :]
        z = _upsampled(base, y, x, height, width, fine_height, fine_width, stride_h, stride_w, inside)
        spot = (lane * fine_height + y) * fine_width + x
        power = tl.load(powers + spot, mask=labelled, other=0.0)
        d = (tl.exp(z - power[None, :]) - _target(label, c, channels, smoothing)) * weight[None, :]
        total += tl.where(labelled[None, :], d, 0.0)
    inside = (c < channels) & there[None, :]
    target = gradient + (lane * channels + c) * height * width + pixel[None, :]
    tl.store(target, total.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def _taps(at, size, fine):
    """The two logits a fine pixel reads along one axis and the second's share; whole numbers, so nothing is rounded."""
    twice = tl.maximum((2 * at + 1) * size - fine, 0)
    low = twice // (2 * fine)
    share = (twice - low * (2 * fine)).to(tl.float32) / (2.0 * fine)
    return low, tl.minimum(low + 1, size - 1), share


@triton.jit
def _share(at, index, size, fine):
    """The part of logit ``index`` in fine pixel ``at`` along one axis."""
    low, high, share = _taps(at, size, fine)
    return tl.where(low == index, 1.0 - share, 0.0) + tl.where(high == index, share, 0.0)


@triton.jit
def _upsampled(base, y, x, height, width, fine_height, fine_width, stride_h, stride_w, inside):
    top, bottom, down = _taps(y, height, fine_height)
    left, right, across = _taps(x, width, fine_width)
    first = base + (top.to(tl.int64) * stride_h)[None, :]
    second = base + (bottom.to(tl.int64) * stride_h)[None, :]
    left = (left.to(tl.int64) * stride_w)[None, :]
    right = (right.to(tl.int64) * stride_w)[None, :]
    a = tl.load(first + left, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(first + right, mask=inside, other=0.0).to(tl.float32)
    upper = a + (b - a) * across[None, :]
    a = tl.load(second + left, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(second + right, mask=inside, other=0.0).to(tl.float32)
    lower = a + (b - a) * across[None, :]
    return upper + (lower - upper) * down[None, :]


@triton.jit
def _weight_of(class_weights, label, labelled, channels):
    if class_weights is None:
        weight = tl.where(labelled, 1.0, 0.0)
    else:
        known = labelled & (label >= 0) & (label < channels)
        weight = tl.load(class_weights + label, mask=known, other=0.0).to(tl.float32)
    return weight


@triton.jit
def _log_sum_exp(z, there):
    z = tl.where(there, z, float("-inf"))
    top = tl.max(z, 0)
    return top + tl.log(tl.sum(tl.exp(z - top[None, :]), 0))


@triton.jit
def _target(label, c, channels, smoothing):
    return tl.where(c == label[None, :], 1.0 - smoothing, 0.0) + smoothing / channels


@triton.jit
def _target_of(z, label, c, channels, smoothing):
    """``(1 - s) z_t + s mean z``; NaN for a label that is no class, which cannot raise here."""
    chosen = tl.sum(tl.where(c == label[None, :], z, 0.0), 0)
    chosen = tl.where((label >= 0) & (label < channels), chosen, float("nan"))
    return (1.0 - smoothing) * chosen + smoothing * (tl.sum(tl.where(c < channels, z, 0.0), 0) / channels)


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
