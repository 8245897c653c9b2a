"""Bytes and FLOP of every CUDA kernel: a formula for each function of ``ifan._cuda``, with that function's arguments.

Tests hold the bytes against what the emulated kernels load and store (`tests/gpu/cuda/test_cuda_cost.py`). Every thread
counts for itself: a value that 32 lanes ask for at once is loaded 32 times. FLOP are counted from the source, and
products are whole fragments, of which the gate knows the number (`tests.gpu.tools.cuda_compile.PRODUCTS`).
Where a label decides what is loaded, every element counts as labelled; every row of a source has a lane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tests.gpu.tools.cuda_compile import PRODUCTS
from tests.gpu.tools.gpu_cost import Cost, cdiv

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
THREADS = 256
PIXELS_OF_A_BLOCK = 4096
FRAGMENT = 2 * 16 * 8 * 16
"""FLOP of one ``mma.m16n8k16``."""


def cost(name: str, arguments: Sequence[Any]) -> Cost:
    """What a call of ``ifan._cuda.<name>`` launches."""
    return FORMULAS[name](*arguments)


def _distinct(shape: Sequence[int], strides: Sequence[int]) -> int:
    return prod(size for size, stride in zip(shape, strides, strict=True) if stride)


def _lanes(segments: Sequence[int]) -> tuple[int, int]:
    """Lanes, and tasks that have any."""
    return sum(segments), sum(n > 0 for n in segments)


def _fusion(source: Any, e: int, pool: int, *addresses: int) -> tuple[int, int, int]:
    """Values of a plane, blocks a plane and threads a block: as `flatten` and `run` in integrate.cu."""
    address, (*_, height, width), strides, _ = source
    columns, strides = 16 // e, list(strides)
    if pool == 1 and (strides[3] == 1 or width == 1) and (strides[2] == width or height == 1):
        height, width, strides[3] = 1, height * width, 1
    whole = [*strides[:2], *([] if height == 1 else [strides[2]]), width]
    wide = strides[3] == 1 and all(n % columns == 0 for n in whole) and not any(a % 16 for a in (address, *addresses))
    at_once = columns if wide else pool
    items = height // pool * (width // at_once)
    threads = min(cdiv(items, 32) * 32, THREADS)
    return height * width, cdiv(items, PIXELS_OF_A_BLOCK // (at_once * pool)), threads


def _integrate_forward(
    source: Any, dtype: str, segments: Any, _first: int, _total: int, _norm: Any, pool: int, y: int, *rest: int
) -> Cost:
    """A thread makes scale and shift from four values."""
    _, shape, strides, rows = source
    (lanes, tasks), e, channels = _lanes(segments), BYTES[dtype], shape[1]
    pixels, tiles, threads = _fusion(source, e, pool, y, 0)
    values, started = lanes * channels * pixels, lanes * channels * tiles * threads
    written = values // pool**2 * e
    return Cost(
        values * e + started * (24 if rows else 16),
        written,
        _distinct(shape, strides) * e + 16 * tasks * channels + (8 * lanes if rows else 0),
        written,
        (3 if pool == 1 else 5) * values,
    )


def _integrate_backward(
    source: Any, dtype: str, segments: Any, _first: int, _total: int, _norm: Any, pool: int, y: int, gx: int, *_: int
) -> Cost:
    """A block goes through the lanes that read its row, and loads the row for each."""
    _, shape, strides, rows = source
    (lanes, tasks), e, channels = _lanes(segments), BYTES[dtype], shape[1]
    pixels, tiles, threads = _fusion(source, e, pool, y, gx)
    values, blocks = lanes * channels * pixels, shape[0] * channels * tiles
    written = shape[0] * channels * pixels * e + 8 * lanes * channels * tiles
    looked_up = 8 * lanes * blocks * threads if rows else 0
    return Cost(
        values * e + values // pool**2 * e + 16 * lanes * channels * tiles * threads + looked_up,
        written,
        _distinct(shape, strides) * e + values // pool**2 * e + 16 * tasks * channels + (8 * lanes if rows else 0),
        written,
        (8 if pool == 1 else 9) * values,
    )


def _norm_gradients(_sums: int, tiles: int, total: int, segments: Any, _norm: Any, _gradients: int, *_: int) -> Cost:
    entries, values = sum(segments) * tiles * total, len(segments) * total
    read, written = 8 * entries + 8 * values, 16 * values
    return Cost(read, written, read, written, 2 * entries)


def _cross_entropy(
    _logits: int,
    dtype: str,
    shape: Any,
    strides: Any,
    _labels: int,
    byte_labels: bool,
    fine: Any,
    _label_strides: Any,
    class_weights: int,
    *rest: Any,
) -> Cost:
    """Logits twice, for the log sum exp and for the gradient; where labels are finer, a second kernel gathers."""
    powers = rest[4]
    e, (batch, classes, height, width) = BYTES[dtype], shape
    pixels, values = batch * prod(fine), batch * classes * height * width
    a_pixel, sums = (1 if byte_labels else 8) + (4 if class_weights else 0), 8 * batch * cdiv(prod(fine), THREADS)
    read = pixels * (1 if byte_labels else 8) + (4 * classes if class_weights else 0)
    if not powers:
        moved = _distinct(shape, strides) * e
        return Cost(2 * values * e + pixels * a_pixel, values * e + sums, read + moved, values * e + sums, 13 * values)
    reads = values // (height * width) * _readers(height, fine[0]) * _readers(width, fine[1])
    return Cost(
        4 * pixels * classes * e + pixels * a_pixel + 9 * values * e + reads * (a_pixel + 4),
        4 * pixels + values * e + sums,
        read + _distinct(shape, strides) * e + 4 * pixels,
        4 * pixels + values * e + sums,
        17 * pixels * classes + 18 * reads,
        launches=2,
    )


def _readers(size: int, fine: int) -> int:
    """Pairs of a logit and a pixel between its first reader and the last pixel whose lower logit it can be."""
    lows = [max((2 * at + 1) * size - fine, 0) // (2 * fine) for at in range(fine)]
    firsts = [max((2 * i - 1) * fine + size, 0) // (2 * size) for i in range(size)]
    return sum(sum(low <= i for low in lows[first:]) for i, first in enumerate(firsts))


def _points(_points: int, dtype: str, _strides: Any, batch: int, count: int, *rest: Any) -> Cost:
    e, points = BYTES[dtype], batch * count
    read, written = points * (4 + 2 * (e + 4)), 2 * points * e + 8 * cdiv(points, THREADS)
    return Cost(read, written, read, written, 20 * points)


def _finish_loss(_sums: int, blocks: Any, _weights: int, denominators: int, *rest: int) -> Cost:
    tasks = len(blocks)
    read, written = 8 * sum(blocks) + (8 if denominators else 4) * tasks, 12 * tasks + 4
    return Cost(read, written, read, written, 2 * sum(blocks))


def _scale_gradient(made: int, gradient: int, dtype: str, elements: int, columns: Any, *rest: int) -> Cost:
    e = BYTES[dtype]
    wide = len(columns) == 1 and elements * e % 16 == 0 and made % 16 == 0 and gradient % 16 == 0
    threads, scalars = elements // (16 // e if wide else 1), 4 + 12 * len(columns)
    return Cost(elements * e + 16 * threads, elements * e, elements * e + scalars, elements * e, elements + 4 * threads)


def _dense_layer(sources: Any, dtype: str, segments: Any, _norm: Any, _filters: int, outputs: int, *rest: Any) -> Cost:
    """A block of 8 x 16 pixels brings its tile with a border of one, 16 channels at a time, and their filters;
    16 threads make a channel's scale and shift, each from four values."""
    (lanes, tasks), e = _lanes(segments), BYTES[dtype]
    channels, (height, width) = sum(shape[1] for _, shape, *_ in sources), sources[0][1][2:]
    groups, tiles = cdiv(outputs, 16), cdiv(height, 8) * cdiv(width, 16)
    bordered = lanes * groups * _bordered(height, 8) * _bordered(width, 16) * channels
    steps = sum(cdiv(shape[1], 16) for _, shape, *_ in sources)
    looked_up = [128 * 8 * cdiv(shape[1], 16) for _, shape, _, rows in sources if rows]
    filters, written = 9 * channels * outputs * e, lanes * outputs * height * width * e
    blocks = lanes * groups * tiles
    affine = 16 * blocks * channels
    return Cost(
        bordered * e + 16 * affine + lanes * tiles * filters + blocks * sum(looked_up),
        written,
        sum(_distinct(shape, strides) * e for _, shape, strides, _ in sources)
        + filters
        + 16 * tasks * channels
        + (8 * lanes if looked_up else 0),
        written,
        3 * bordered + 5 * affine,
        blocks * steps * 4 * PRODUCTS * FRAGMENT,
    )


def _bordered(size: int, tile: int) -> int:
    """Rows, or columns, that the tiles of one axis bring, with a border of one where there is a map."""
    return sum(min(at + tile + 1, size) - max(at - 1, 0) for at in range(0, size, tile))


FORMULAS: dict[str, Callable[..., Cost]] = {
    "integrate_forward": _integrate_forward,
    "integrate_backward": _integrate_backward,
    "norm_gradients": _norm_gradients,
    "cross_entropy": _cross_entropy,
    "points": _points,
    "finish_loss": _finish_loss,
    "scale_gradient": _scale_gradient,
    "dense_layer": _dense_layer,
}
