"""Mean and biased variance of every channel over the lanes of each task.

A program reduces CHANNELS x PIXELS values of one lane to a mean and a sum of squared deviations from it; a second
kernel joins those of a task: mean = sum n_i m_i / n, var = sum (M_i + n_i (m_i - mean)^2) / n, in a fixed order.
Reads each value once; backward reads a value and writes one, gx = gmean / n + 2 gvar (x - mean) / n.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import grid_of, launch, tile


def forward(x: Tensor, segments: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``x (N, C, H, W)`` -> mean, var ``(T, C)`` float32; 0 and 1 for a task without lanes."""
    lanes, channels, height, width = x.shape
    tiles = tile(x, height * width)
    grid = grid_of(lanes, channels, height * width, tiles)
    partial = x.new_empty((2, lanes, grid[1], channels), dtype=torch.float32)
    launch(
        partial_kernel, grid, *(x, *partial.unbind(0), channels, height * width, width, grid[1], *x.stride()), **tiles
    )
    mean = x.new_zeros((len(segments), channels), dtype=torch.float32)
    var = torch.ones_like(mean)
    start = 0
    for task, count in enumerate(segments):
        means, deviations = partial[:, start : start + count].unbind(0)
        launch(
            join_kernel,
            (triton.cdiv(channels, 16) if count else 0,),
            *(means, deviations, mean[task], var[task], channels, count * grid[1], grid[1], height * width),
            PIXELS=tiles["PIXELS"],
            num_warps=4,
        )
        start += count
    return mean, var


def backward(
    mean_gradient: Tensor,
    var_gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    segments: Sequence[int],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Gradient of ``x``, in its memory layout and, unless ``dtype`` is given, its dtype."""
    result = torch.empty_like(x, dtype=dtype)
    channels, height, width = x.shape[1:]
    tiles = tile(x, height * width)
    mean, mean_gradient, var_gradient = (v.float().contiguous() for v in (mean, mean_gradient, var_gradient))
    start = 0
    for task, count in enumerate(segments):
        lanes = slice(start, start + count)
        launch(
            backward_kernel,
            grid_of(count, channels, height * width, tiles),
            *(x[lanes], mean[task], mean_gradient[task], var_gradient[task], result[lanes]),
            *(channels, height * width, width, count * height * width, *x.stride(), *result.stride()),
            **tiles,
        )
        start += count
    return result


@triton.jit
def partial_kernel(
    x,
    means,
    deviations,
    channels,
    pixels,
    width,
    blocks,
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
    value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 1) / tl.minimum(pixels - tl.program_id(1) * PIXELS, PIXELS).to(tl.float32)
    away = tl.where(inside, value - mean[:, None], 0.0)
    target = (lane * blocks + tl.program_id(1)) * channels + c
    tl.store(means + target, mean, mask=c < channels)
    tl.store(deviations + target, tl.sum(away * away, 1), mask=c < channels)


@triton.jit
def join_kernel(means, deviations, mean, var, channels, entries, blocks, pixels, PIXELS: tl.constexpr):
    c = tl.program_id(0) * 16 + tl.arange(0, 16)[None, :]
    index = tl.arange(0, 64)[:, None]
    count = entries // blocks * 1.0 * pixels
    total = tl.zeros([64, 16], tl.float32)
    for start in range(0, entries, 64):
        entry = start + index
        inside = (entry < entries) & (c < channels)
        size = tl.minimum(pixels - entry % blocks * PIXELS, PIXELS).to(tl.float32)
        m = tl.load(means + entry.to(tl.int64) * channels + c, mask=inside, other=0.0)
        total += m * size
    centre = tl.sum(total, 0)[None, :] / count
    total = tl.zeros([64, 16], tl.float32)
    for start in range(0, entries, 64):
        entry = start + index
        inside = (entry < entries) & (c < channels)
        size = tl.minimum(pixels - entry % blocks * PIXELS, PIXELS).to(tl.float32)
        m = tl.load(means + entry.to(tl.int64) * channels + c, mask=inside, other=0.0)
        squares = tl.load(deviations + entry.to(tl.int64) * channels + c, mask=inside, other=0.0)
        total += tl.where(inside, squares + size * (m - centre) * (m - centre), 0.0)
    tl.store(mean + c, centre, mask=c < channels)
    tl.store(var + c, tl.sum(total, 0)[None, :] / count, mask=c < channels)


@triton.jit
def backward_kernel(
    x,
    mean,
    mean_gradient,
    var_gradient,
    result,
    channels,
    pixels,
    width,
    count,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    result_n,
    result_c,
    result_h,
    result_w,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    tiles = tl.cdiv(channels, CHANNELS)
    lane = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)[None, :]
    inside = (c < channels) & (pixel < pixels)
    y = (pixel // width).to(tl.int64)
    z = (pixel % width).to(tl.int64)
    value = tl.load(x + lane * stride_n + c * stride_c + y * stride_h + z * stride_w, mask=inside, other=0.0)
    centre = tl.load(mean + c, mask=c < channels, other=0.0)
    first = tl.load(mean_gradient + c, mask=c < channels, other=0.0) / count
    second = tl.load(var_gradient + c, mask=c < channels, other=0.0) * 2.0 / count
    found = first + second * (value.to(tl.float32) - centre)
    target = result + lane * result_n + c * result_c + y * result_h + z * result_w
    tl.store(target, found.to(result.dtype.element_ty), mask=inside)
