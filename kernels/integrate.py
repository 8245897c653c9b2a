"""Task-interaction fusion: normalisation, ReLU and pooling of sources that are never concatenated.

    z = x scale + shift        y = average of relu(z) over POOL x POOL pixels
    gx = d scale               S0 = sum d        S1 = sum d (x - mean)        d = arriving gradient where z > 0

One launch a source, each writing its own channels of the result; a program covers CHANNELS x PIXELS values of one lane.
Forward reads each value once and writes 1 / POOL^2 of them; backward reads value and gradient and writes a value.
z is recomputed in backward. Sums are made a program, then over programs and lanes in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifan.concat import Concat, Norm

from .lanes import collect, per_lane, per_task, rows_of
from .launch import grid_of, launch, tile


def forward(x: Concat, norm: Norm, pool: int) -> Tensor:
    """Concatenation ``(N, C, H, W)``, norm ``(T, C)`` -> ``(N, C, H / pool, W / pool)`` of its dtype."""
    scale, shift, _ = affine(norm)
    scale, shift = per_lane(scale, x.lanes.segments), per_lane(shift, x.lanes.segments)
    height, width = x.shape[2:]
    out = scale.new_empty((*scale.shape, height // pool, width // pool), dtype=x.dtype)
    first = 0
    for source, rows in zip(x.tensors, rows_of(x), strict=True):
        tiles = tile(source, height // pool * width)
        launch(
            forward_kernel,
            grid_of(out.shape[0], source.shape[1], height // pool * width, tiles),
            *(source, rows, scale, shift, out),
            *(source.shape[1], first, out.shape[1], height // pool, width, *source.stride()),
            POOL=pool,
            **tiles,
        )
        first += source.shape[1]
    return out


def backward(gradient: Tensor, x: Concat, norm: Norm, pool: int) -> list[Tensor]:
    """Gradients of the sources, then of weight, bias, mean and var, for the output's ``gradient``."""
    segments, given = x.lanes.segments, norm.tensors
    scale, shift, inverse = affine(norm)
    by_lane = [per_lane(value, segments) for value in (scale, shift, given[2])]
    found, first, sums = [], 0, []
    for source, rows in zip(x.tensors, rows_of(x), strict=True):
        gx, part = _backward_of_source(gradient, source, rows, by_lane, first, pool)
        found.append(gx if rows is None else collect(gx, rows, source.shape[0], source.dtype))
        sums.append(part)
        first += source.shape[1]
    zero, one = per_task(torch.cat(sums, 2), segments).unbind(1) if gradient.shape[0] else [scale.double() * 0] * 2
    norms = one * inverse, zero, -zero * scale, one * scale * inverse.square() * -0.5
    return [*found, *(value.to(like.dtype) for value, like in zip(norms, given, strict=True))]


def _backward_of_source(
    gradient: Tensor, x: Tensor, rows: Tensor | None, by_lane: Sequence[Tensor], first: int, pool: int
) -> tuple[Tensor, Tensor]:
    """Gradient ``(N, C_i, H, W)`` of one source, a row a lane, and the sums S0, S1 ``(N, 2, C_i)``."""
    lanes, channels = gradient.shape[0], x.shape[1]
    height, width = x.shape[2:]
    tiles = tile(x, height // pool * width)
    gx = x.new_empty((lanes, *x.shape[1:]), dtype=x.dtype if rows is None else torch.float32)
    grid = grid_of(lanes, channels, height // pool * width, tiles)
    partial = x.new_empty((grid[1], lanes, 2, channels), dtype=torch.float32)
    launch(
        backward_kernel,
        grid,
        *(x, rows, *by_lane, gradient, gx, partial, lanes, channels, first, gradient.shape[1]),
        *(height // pool, width, *x.stride(), *gradient.stride()),
        POOL=pool,
        **tiles,
    )
    return gx, partial.double().sum(0)


def affine(norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """A norm ``(T, C)`` as scale and shift, and ``1 / sqrt(var + eps)``; float32."""
    weight, bias, mean, var = (value.float() for value in norm.tensors)
    inverse = torch.rsqrt(var + norm.eps)
    scale = weight * inverse
    return scale, bias - mean * scale, inverse


@triton.jit
def forward_kernel(
    x,
    rows,
    scale,
    shift,
    out,
    channels,
    first,
    total,
    out_height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    POOL: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    tiles = tl.cdiv(channels, CHANNELS)
    lane = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)[None, :]
    inside = (c < channels) & (pixel < out_height * width)
    row = lane
    if rows is not None:
        row = tl.load(rows + lane)
    column = lane * total + first + c
    s = tl.load(scale + column, mask=c < channels, other=0.0)
    t = tl.load(shift + column, mask=c < channels, other=0.0)
    source = x + row * stride_n + c * stride_c
    source += (pixel // width).to(tl.int64) * POOL * stride_h + (pixel % width).to(tl.int64) * stride_w
    y = tl.maximum(tl.load(source, mask=inside, other=0.0).to(tl.float32) * s + t, 0.0)
    if POOL == 2:
        y += tl.maximum(tl.load(source + stride_h, mask=inside, other=0.0).to(tl.float32) * s + t, 0.0)
        y = tl.sum(tl.reshape(y, (CHANNELS, PIXELS // 2, 2)), 2) * 0.25
        pixel = tl.program_id(1) * (PIXELS // 2) + tl.arange(0, PIXELS // 2)[None, :]
        inside = (c < channels) & (pixel < out_height * (width // 2))
    target = out + column * out_height * (width // POOL) + pixel
    tl.store(target, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    x,
    rows,
    scale,
    shift,
    mean,
    gradient,
    gx,
    partial,
    lanes,
    channels,
    first,
    total,
    out_height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    gradient_n,
    gradient_c,
    gradient_h,
    gradient_w,
    POOL: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    tiles = tl.cdiv(channels, CHANNELS)
    lane = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)[None, :]
    inside = (c < channels) & (pixel < out_height * width)
    row = lane
    if rows is not None:
        row = tl.load(rows + lane)
    column = lane * total + first + c
    s = tl.load(scale + column, mask=c < channels, other=0.0)
    t = tl.load(shift + column, mask=c < channels, other=0.0)
    centre = tl.load(mean + column, mask=c < channels, other=0.0)
    y = (pixel // width).to(tl.int64)
    z = (pixel % width).to(tl.int64)
    arriving = gradient + lane * gradient_n + (first + c) * gradient_c + y * gradient_h + z // POOL * gradient_w
    d = tl.load(arriving, mask=inside, other=0.0).to(tl.float32) * (1.0 / (POOL * POOL))
    source = x + row * stride_n + c * stride_c + y * POOL * stride_h + z * stride_w
    target = gx + (lane * channels + c) * out_height * POOL * width + y * POOL * width + z
    zero = tl.zeros([CHANNELS], tl.float32)
    one = tl.zeros([CHANNELS], tl.float32)
    for line in tl.static_range(POOL):
        value = tl.load(source + line * stride_h, mask=inside, other=0.0).to(tl.float32)
        passed = tl.where(value * s + t > 0, d, 0.0)
        tl.store(target + line * width, (passed * s).to(gx.dtype.element_ty), mask=inside)
        zero += tl.sum(passed, 1)
        one += tl.sum(passed * (value - centre), 1)
    c = tl.reshape(c, (CHANNELS,))
    sums = partial + (tl.program_id(1).to(tl.int64) * lanes + lane) * 2 * channels + c
    tl.store(sums, zero, mask=c < channels)
    tl.store(sums + channels, one, mask=c < channels)
