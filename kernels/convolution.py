"""3x3 convolutions as matrix products that gather their input: no patches and no concatenation are written.

A program makes OUTPUTS channels at PIXELS places of one lane: for each source, DEPTH channels and tap it multiplies
(PIXELS, DEPTH) values by (DEPTH, OUTPUTS) weights, accumulated in float32. Before: normalisation and ReLU of the value
(the padding stays 0). After: ReLU and the phase shift that sends channel 4c + 2i + j to row 2y + j, column 2x + i.
The gradient of the input is a convolution with the weights turned round; that of the weights is cut into SPLITS parts
over lanes and pixels, which are added in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifan.concat import promoted

from .configs import Config, config_of
from .launch import interpreted, launch

TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
SPLITS = 32


def convolve(
    sources: Sequence[Tensor],
    weight: Tensor,
    out: Tensor,
    *,
    rows: Sequence[Tensor | None] | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
    relu: bool = False,
    phase_shift: bool = False,
) -> Tensor:
    """Fill ``out (N, O, H, W)``, or ``(N, O / 4, 2H, 2W)`` after the phase shift, and return it.

    Sources ``(N or R, C_i, H, W)`` with their ``rows``, weight ``(O, C, 3, 3)``, norm = scale and shift ``(N, C)``.
    """
    outputs, channels = weight.shape[:2]
    height, width = sources[0].shape[2:]
    packed = weight.permute(2, 3, 1, 0).to(promoted(sources)).contiguous()
    config, pixels, depth = _tile(sources)
    across = max(16, min(config.outputs, triton.next_power_of_2(outputs)))
    launch(
        convolution_kernel,
        (out.shape[0], triton.cdiv(height * width, pixels), triton.cdiv(outputs, across)),
        *(tuple(sources), tuple(rows or [None] * len(sources)), tuple(x.shape[1] for x in sources)),
        *(tuple(tuple(x.stride()) for x in sources), packed, *(norm or (None, None)), out),
        *(channels, outputs, height, width, *out.stride()),
        RELU=relu,
        PHASE_SHIFT=phase_shift,
        DOT=_dot_type(sources),
        PIXELS=pixels,
        OUTPUTS=across,
        DEPTH=depth,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return out


def input_gradient(gradient: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient ``(N, C, H, W)`` of the input of a convolution with ``weight (O, C, 3, 3)``."""
    out = gradient.new_empty((gradient.shape[0], weight.shape[1], *gradient.shape[2:]), dtype=dtype)
    return convolve([gradient], weight.flip(2, 3).transpose(0, 1).to(gradient.dtype), out)


def weight_gradient(
    sources: Sequence[Tensor],
    gradient: Tensor,
    *,
    rows: Sequence[Tensor | None] | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Gradient ``(O, C, 3, 3)`` float32 of a convolution's weight for the ``gradient (N, O, H, W)`` of its output."""
    lanes, outputs, height, width = gradient.shape
    channels = sum(x.shape[1] for x in sources)
    config, _, depth = _tile(sources)
    parts = min(SPLITS, max(lanes * triton.cdiv(height * width, depth), 1))
    partial = (gradient.new_empty if lanes else gradient.new_zeros)((parts, 9, channels, outputs), dtype=torch.float32)
    across, first = 16 if outputs <= 16 else 32, 0
    for x, row in zip(sources, rows or [None] * len(sources), strict=True):
        launch(
            weight_kernel,
            (triton.cdiv(x.shape[1], 32) * triton.cdiv(outputs, across), 9, parts if lanes else 0),
            *(x, row, *(norm or (None, None)), gradient, partial, lanes, x.shape[1], first, channels, outputs),
            *(height, width, *x.stride(), *gradient.stride()),
            DOT=_dot_type(sources),
            PIXELS=depth,
            OUTPUTS=across,
            CHANNELS=32,
            num_warps=config.warps,
            num_stages=config.stages,
        )
        first += x.shape[1]
    return partial.sum(0).view(3, 3, channels, outputs).permute(3, 2, 0, 1).contiguous()


def _tile(sources: Sequence[Tensor]) -> tuple[Config, int, int]:
    """The configuration with its pixels and depth; float32 takes twice the registers, so half of both and one stage.

    Triton 3.6 multiplies no matrix less than 16 deep.
    """
    config = config_of(sources[0].device)
    if promoted(sources) != torch.float32:
        return config, config.pixels, config.depth
    return replace(config, stages=1), config.pixels // 2, max(config.depth // 2, 16)


def _dot_type(sources: Sequence[Tensor]) -> tl.dtype:
    """Type that the matrix units multiply; the interpreter cannot multiply bfloat16."""
    return tl.float32 if interpreted() else TYPES[promoted(sources)]


@triton.jit
def convolution_kernel(
    sources,
    rows,
    channels,
    strides,
    weight,
    scale,
    shift,
    out,
    total,
    outputs,
    height,
    width,
    out_n,
    out_c,
    out_h,
    out_w,
    RELU: tl.constexpr,
    PHASE_SHIFT: tl.constexpr,
    DOT: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)[:, None]
    o = tl.program_id(2) * OUTPUTS + tl.arange(0, OUTPUTS)[None, :]
    y = pixel // width
    x = pixel % width
    sums = tl.zeros([PIXELS, OUTPUTS], tl.float32)
    first = 0
    for s in tl.static_range(len(sources)):
        row = lane
        if rows[s] is not None:
            row = tl.load(rows[s] + lane)
        base = sources[s] + row * strides[s][0]
        for start in range(0, channels[s], DEPTH):
            c = start + tl.arange(0, DEPTH)
            known = (c < channels[s])[None, :]
            if scale is not None:
                a = tl.load(scale + lane * total + first + c, mask=c < channels[s], other=0.0)[None, :]
                b = tl.load(shift + lane * total + first + c, mask=c < channels[s], other=0.0)[None, :]
            for tap in range(9):
                iy = y + tap // 3 - 1
                ix = x + tap % 3 - 1
                inside = (iy >= 0) & (iy < height) & (ix >= 0) & (ix < width) & known
                place = c.to(tl.int64)[None, :] * strides[s][1]
                place += iy.to(tl.int64) * strides[s][2] + ix.to(tl.int64) * strides[s][3]
                value = tl.load(base + place, mask=inside, other=0.0)
                if scale is not None:
                    value = tl.where(inside, tl.maximum(value.to(tl.float32) * a + b, 0.0), 0.0)
                # Weights are packed (tap, channel, output).
                at = (tap * total + first + c).to(tl.int64)[:, None] * outputs + o
                w = tl.load(weight + at, mask=(c < channels[s])[:, None] & (o < outputs), other=0.0)
                value = value.to(weight.dtype.element_ty).to(DOT)
                sums = tl.dot(value, w.to(DOT), sums, input_precision="ieee")
        first += channels[s]
    if RELU:
        sums = tl.maximum(sums, 0.0)
    mask = (pixel < height * width) & (o < outputs)
    target = out + lane * out_n
    if PHASE_SHIFT:
        target += (o // 4).to(tl.int64) * out_c
        target += (2 * y + o % 2).to(tl.int64) * out_h + (2 * x + o // 2 % 2).to(tl.int64) * out_w
    else:
        target += o.to(tl.int64) * out_c + y.to(tl.int64) * out_h + x.to(tl.int64) * out_w
    tl.store(target, sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def weight_kernel(
    source,
    rows,
    scale,
    shift,
    gradient,
    partial,
    lanes,
    channels,
    first,
    total,
    outputs,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    gradient_n,
    gradient_c,
    gradient_h,
    gradient_w,
    DOT: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    tiles = tl.cdiv(outputs, OUTPUTS)
    c = tl.program_id(0) // tiles * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    o = tl.program_id(0) % tiles * OUTPUTS + tl.arange(0, OUTPUTS)[None, :]
    tap = tl.program_id(1)
    blocks = tl.cdiv(height * width, PIXELS)
    sums = tl.zeros([CHANNELS, OUTPUTS], tl.float32)
    for entry in range(tl.program_id(2), lanes * blocks, tl.num_programs(2)):
        lane = (entry // blocks).to(tl.int64)
        pixel = entry % blocks * PIXELS + tl.arange(0, PIXELS)
        there = pixel < height * width
        y = pixel // width
        x = pixel % width
        iy = y + tap // 3 - 1
        ix = x + tap % 3 - 1
        inside = (c < channels) & (there & (iy >= 0) & (iy < height) & (ix >= 0) & (ix < width))[None, :]
        row = lane
        if rows is not None:
            row = tl.load(rows + lane)
        place = row * stride_n + c.to(tl.int64) * stride_c
        place += (iy.to(tl.int64) * stride_h + ix.to(tl.int64) * stride_w)[None, :]
        value = tl.load(source + place, mask=inside, other=0.0)
        if scale is not None:
            a = tl.load(scale + lane * total + first + c, mask=c < channels, other=0.0)
            b = tl.load(shift + lane * total + first + c, mask=c < channels, other=0.0)
            value = tl.where(inside, tl.maximum(value.to(tl.float32) * a + b, 0.0), 0.0)
        place = lane * gradient_n + o.to(tl.int64) * gradient_c
        place += (y.to(tl.int64) * gradient_h + x.to(tl.int64) * gradient_w)[:, None]
        d = tl.load(gradient + place, mask=there[:, None] & (o < outputs), other=0.0)
        value = value.to(gradient.dtype.element_ty).to(DOT)
        sums = tl.dot(value, d.to(DOT), sums, input_precision="ieee")
    at = ((tl.program_id(2) * 9 + tap).to(tl.int64) * total + first + c) * outputs + o
    tl.store(partial + at, sums, mask=(c < channels) & (o < outputs))
