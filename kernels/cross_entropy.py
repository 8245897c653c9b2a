"""Cross-entropy of maps of logits with labels, and its gradient, in one pass; the loss and the labels as `hybrid_loss`.

At the labels' own size each logit is read once and its gradient written once. Where the labels are finer, the logits
are upsampled on the fly: one kernel makes the loss and the log sum exp of every label's pixel, another gathers for each
logit the pixels that read it, so nothing is added atomically and nothing of the labels' size but the log sum exp is
stored. Places are computed in whole numbers, so that both agree about every pixel.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifan.config import IGNORE

from .launch import launch, whole_grid, whole_tile

IGNORED = tl.constexpr(IGNORE)


def cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, ignored: int, gradient: Tensor
) -> Tensor:
    """Writes the gradient ``(N, K, H, W)`` of the weighted sum; returns the sums and counts of the programs."""
    batch, classes, height, width = logits.shape
    tiles = whole_tile(logits, height * width, share=2)
    grid = whole_grid(batch, height * width, tiles)
    partial = logits.new_empty((batch * grid[0], 2), dtype=torch.float32)
    launch(
        cross_entropy_kernel,
        grid,
        *(logits, labels, class_weights, gradient, partial, classes, height * width, width, smoothing, ignored),
        *(*logits.stride(), *labels.stride(), *gradient.stride()),
        **tiles,
    )
    return partial


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, gradient: Tensor
) -> Tensor:
    """The same for labels ``(N, H', W')`` of another size, `ifan.config.IGNORE` ignored, and a contiguous gradient."""
    size, fine = tuple(logits.shape[2:]), tuple(labels.shape[1:])
    batch, classes = logits.shape[:2]
    tiles = whole_tile(logits, fine[0] * fine[1], share=2)
    grid = whole_grid(batch, fine[0] * fine[1], tiles)
    partial = logits.new_empty((batch * grid[0], 2), dtype=torch.float32)
    powers = logits.new_empty((batch, *fine), dtype=torch.float32)
    reach = [_reach(*pair) for pair in zip(size, fine, strict=True)]
    shared = (classes, *size, *fine, smoothing, *logits.stride(), *labels.stride())
    launch(fine_kernel, grid, logits, labels, class_weights, powers, partial, *shared, **tiles)
    tiles = whole_tile(logits, size[0] * size[1], share=4)
    grid = whole_grid(batch, size[0] * size[1], tiles)
    launch(gather_kernel, grid, logits, labels, class_weights, powers, gradient, *reach, *shared, **tiles)
    return partial


@lru_cache(maxsize=64)
def _reach(size: int, fine: int) -> int:
    """The most pixels along one axis that read one logit when ``size`` logits are upsampled to ``fine`` pixels."""
    if 2 * size * fine >= 2**31:
        raise ValueError(
            "hybrid_loss: expected sides of logits and labels with a product below 2^30, for places are counted in 32 "
            f"bits; got {size} and {fine}. Use smaller images or backend='reference'."
        )
    first = [max((2 * i - 1) * fine + size, 0) // (2 * size) for i in range(size)]
    last = [min(((2 * i + 3) * fine - size - 1) // (2 * size), fine - 1) for i in range(size)]
    return max((b - a + 1 for a, b in zip(first, last, strict=True)), default=0)


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
    lane = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, CHANNELS)[:, None].to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
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
    sums = partial + (lane * tl.num_programs(0) + tl.program_id(0)) * 2
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
    lane = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, CHANNELS)[:, None].to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    there = pixel < fine_height * fine_width
    y = pixel // fine_width
    x = pixel % fine_width
    place = labels + lane * label_n + y.to(tl.int64) * label_h + x.to(tl.int64) * label_w
    label = tl.load(place, mask=there, other=IGNORED).to(tl.int32)
    base = logits + lane * stride_n + c * stride_c
    inside = (c < channels) & there[None, :]
    z = _upsampled(base, y, x, height, width, fine_height, fine_width, stride_h, stride_w, inside)
    labelled = label != IGNORED
    weight = _weight_of(class_weights, label, labelled, channels)
    power = _log_sum_exp(z, c < channels)
    loss = power - _target_of(z, label, c, channels, smoothing)
    tl.store(powers + lane * fine_height * fine_width + pixel, power, mask=there)
    sums = partial + (lane * tl.num_programs(0) + tl.program_id(0)) * 2
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
    lane = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, CHANNELS)[:, None].to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
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
        label = tl.load(place, mask=read, other=IGNORED).to(tl.int32)
        labelled = label != IGNORED
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
