"""Predictions drawn as planes: softmax of the parsing logits, discs of the points, constant planes of the classes.

A class's logits are parsing logits whose pixel strides are zero, so one kernel draws both; it reads K values a pixel
and writes K. A disc is 1 where (j - cx)^2 + (i - cy)^2 < radius^2 about c = round_half_even((p + .5) S).
Backward, with p the softmax made again and g what arrives: gx = p (g - sum p g); a class first sums g over its plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import config_of
from .launch import grid_of, launch, tile, whole_grid, whole_tile


def forward(
    parsing_logits: Tensor, points: Tensor, class_logits: Tensor, class_sizes: Sequence[int], radius: int
) -> Tensor:
    """``(B, K, S, S)``, ``(B, 2, P)``, ``(B, sum C)`` -> ``(B, K + P + sum C, S, S)`` of the parsing logits' dtype."""
    batch, classes, size = parsing_logits.shape[:3]
    count = points.shape[2]
    planes = parsing_logits.new_empty((batch, classes + count + class_logits.shape[1], size, size))
    _softmax(parsing_logits, planes[:, :classes])
    pixels = config_of(points.device).elements
    launch(
        disc_kernel,
        (batch * count, triton.cdiv(size * size, pixels)),
        *(points, planes[:, classes:], count, size, radius, *points.stride(), planes.stride(0)),
        PIXELS=pixels,
        num_warps=4,
        fuse=False,  # the centre must be rounded from the rounded product, as the reference's is
    )
    for logits, target in zip(
        class_logits.split(list(class_sizes), 1), planes[:, classes + count :].split(list(class_sizes), 1), strict=True
    ):
        _softmax(logits[:, :, None, None].expand(-1, -1, size, size), target)
    return planes


def backward(
    gradient: Tensor, parsing_logits: Tensor, points: Tensor, class_logits: Tensor, class_sizes: Sequence[int]
) -> list[Tensor]:
    """Gradients of the parsing logits and of the class logits, contiguous."""
    classes = parsing_logits.shape[1]
    parsing = torch.empty_like(parsing_logits, memory_format=torch.contiguous_format)
    _softmax_backward(parsing_logits, gradient[:, :classes], parsing)
    found = torch.empty_like(class_logits, memory_format=torch.contiguous_format)
    sums = _plane_sums(gradient[:, classes + points.shape[2] :])
    for logits, arriving, target in zip(
        *(values.split(list(class_sizes), 1) for values in (class_logits, sums, found)), strict=True
    ):
        _softmax_backward(*(value[:, :, None, None] for value in (logits, arriving, target)))
    return [parsing, found]


def _softmax(logits: Tensor, planes: Tensor) -> None:
    batch, classes, height, width = logits.shape
    tiles = whole_tile(logits, height * width)
    launch(
        softmax_kernel,
        whole_grid(batch if classes else 0, height * width, tiles),
        *(logits, planes, classes, height * width, width, *logits.stride(), *planes.stride()),
        **tiles,
    )


def _softmax_backward(logits: Tensor, gradient: Tensor, target: Tensor) -> None:
    batch, classes, height, width = logits.shape
    tiles = whole_tile(logits, height * width)
    launch(
        softmax_backward_kernel,
        whole_grid(batch if classes else 0, height * width, tiles),
        *(logits, gradient, target, classes, height * width, width),
        *(*logits.stride(), *gradient.stride(), *target.stride()),
        **tiles,
    )


def _plane_sums(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, C)`` float32: sums a tile, then over tiles in order."""
    batch, channels, height, width = x.shape
    tiles = tile(x, height * width)
    grid = grid_of(batch, channels, height * width, tiles)
    partial = x.new_empty((grid[1], batch, channels), dtype=torch.float32)
    launch(plane_sum_kernel, grid, *(x, partial, batch, channels, height * width, width, *x.stride()), **tiles)
    return partial.sum(0)


@triton.jit
def softmax_kernel(
    logits,
    planes,
    channels,
    pixels,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    target_n,
    target_c,
    target_h,
    target_w,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    lane = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, CHANNELS)[:, None].to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[None, :]
    inside = (c < channels) & (pixel < pixels)
    y = (pixel // width).to(tl.int64)
    x = (pixel % width).to(tl.int64)
    source = logits + lane * stride_n + c * stride_c + y * stride_h + x * stride_w
    p = _softmax_of(tl.load(source, mask=inside, other=0.0), c < channels)
    target = planes + lane * target_n + c * target_c + y * target_h + x * target_w
    tl.store(target, p.to(planes.dtype.element_ty), mask=inside)


@triton.jit
def softmax_backward_kernel(
    logits,
    gradient,
    target,
    channels,
    pixels,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    gradient_n,
    gradient_c,
    gradient_h,
    gradient_w,
    target_n,
    target_c,
    target_h,
    target_w,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    lane = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, CHANNELS)[:, None].to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[None, :]
    inside = (c < channels) & (pixel < pixels)
    y = (pixel // width).to(tl.int64)
    x = (pixel % width).to(tl.int64)
    source = logits + lane * stride_n + c * stride_c + y * stride_h + x * stride_w
    arriving = gradient + lane * gradient_n + c * gradient_c + y * gradient_h + x * gradient_w
    p = _softmax_of(tl.load(source, mask=inside, other=0.0), c < channels)
    g = tl.load(arriving, mask=inside, other=0.0).to(tl.float32)
    found = p * (g - tl.sum(p * g, 0)[None, :])
    place = target + lane * target_n + c * target_c + y * target_h + x * target_w
    tl.store(place, found.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _softmax_of(values, there):
    """Over the first axis, in float32; 0 where not ``there``."""
    values = tl.where(there, values.to(tl.float32), float("-inf"))
    powers = tl.exp(values - tl.max(values, 0)[None, :])
    return powers / tl.sum(powers, 0)[None, :]


@triton.jit
def disc_kernel(points, planes, count, size, radius, stride_b, stride_xy, stride_p, planes_b, PIXELS: tl.constexpr):
    b = (tl.program_id(0) // count).to(tl.int64)
    p = (tl.program_id(0) % count).to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    point = points + b * stride_b + p * stride_p
    dx = (pixel % size).to(tl.float32) - _centre(tl.load(point), size)
    dy = (pixel // size).to(tl.float32) - _centre(tl.load(point + stride_xy), size)
    disc = tl.where(dx * dx + dy * dy < radius * radius, 1.0, 0.0)
    target = planes + b * planes_b + p * size * size + pixel
    tl.store(target, disc.to(planes.dtype.element_ty), mask=pixel < size * size)


@triton.jit
def _centre(point, size):
    """``round_half_even((p + .5) size)``: below 2^22, adding and taking away 1.5 x 2^23 rounds; further is outside."""
    scaled = (point.to(tl.float32) + 0.5) * size
    return tl.minimum(tl.maximum(scaled, -4194304.0), 4194304.0) + 12582912.0 - 12582912.0


@triton.jit
def plane_sum_kernel(
    x,
    partial,
    batch,
    channels,
    pixels,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    tiles = tl.cdiv(channels, CHANNELS)
    lane = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)[None, :]
    inside = (c < channels)[:, None] & (pixel < pixels)
    source = x + lane * stride_n + c[:, None] * stride_c
    source += (pixel // width).to(tl.int64) * stride_h + (pixel % width).to(tl.int64) * stride_w
    total = tl.sum(tl.load(source, mask=inside, other=0.0).to(tl.float32), 1)
    tl.store(partial + (tl.program_id(1).to(tl.int64) * batch + lane) * channels + c, total, mask=c < channels)
