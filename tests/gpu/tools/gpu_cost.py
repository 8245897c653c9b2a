"""Bytes and FLOP of every Triton kernel as formulas of what its launch is given: shapes, sizes, tiles and grid.

`cost` of a `Started` launch. Tests hold the formulas against the loads and stores that the interpreter executes
(`tests/gpu/triton/test_cost.py`) and against the compiler's own code (`tests/gpu/test_gpu_cost.py`): a kernel that
begins to read something twice fails a test. `tests.gpu.tools.roofline` predicts times from them.

Where a label decides what is loaded, every pixel counts as labelled. Names in formulas: e bytes a value, N lanes, C
channels or classes, values = those of a whole map. FLOP of the vector units: each addition, multiplication, division,
maximum, exponential or logarithm of a value is one; what happens once a channel or a program is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from tests.gpu.tools.launches import Started

Formula = Callable[[Any], "Cost"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a launch moves and computes.

    ``loaded`` and ``stored`` are all bytes that its programs ask for, ``read`` and ``written`` the distinct ones: what
    must cross the memory bus at least once. ``products`` are the FLOP of matrix products, two a multiply-add, on whole
    tiles: what lies beyond a map or its channels is multiplied too.
    """

    loaded: int = 0
    stored: int = 0
    read: int = 0
    written: int = 0
    flop: int = 0
    products: int = 0
    launches: int = 1

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def moved(self) -> int:
        """Distinct bytes read and written."""
        return self.read + self.written


NOTHING = Cost(launches=0)


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def cost(launch: Started) -> Cost:
    """Bytes and FLOP of one launch."""
    return FORMULAS[launch.name](SimpleNamespace(**launch.values, grid=launch.grid))


def distinct(*tensors: Tensor | None) -> int:
    """Bytes of the tensors' elements; one that is repeated by a stride of 0, or listed twice, counts once."""
    total = 0
    for x in {id(x): x for x in tensors if x is not None}.values():
        elements = 1
        for size, stride in zip(x.shape, x.stride(), strict=True):
            elements *= size if stride else 1
        total += elements * x.element_size()
    return total


def _by_tile(a: Any) -> tuple[int, int]:
    """(lanes, programs' channels in all) of a kernel with one program a lane, tile of channels and tile of pixels."""
    lanes = a.grid[0] // cdiv(a.channels, a.CHANNELS)
    return lanes, lanes * a.channels * a.grid[1]


def _moments_partial(a: Any) -> Cost:
    lanes, channels = _by_tile(a)
    values = lanes * a.channels * a.pixels
    e, sums = a.x.element_size(), 8 * channels
    return Cost(values * e, sums, distinct(a.x), sums, 4 * values)


def _moments_join(a: Any) -> Cost:
    """The means twice: the deviations are joined about the joined mean."""
    values, out = a.entries * a.channels, 8 * a.channels
    return Cost(12 * values, out, 8 * values, out, 9 * values)


def _moments_backward(a: Any) -> Cost:
    lanes, channels = _by_tile(a)
    values = lanes * a.channels * a.pixels
    e, written = a.x.element_size(), values * a.result.element_size()
    return Cost(values * e + 12 * channels, written, distinct(a.x) + 12 * a.channels, written, 3 * values)


def _rows(rows: Tensor | None, lanes: int, programs: int) -> tuple[int, int]:
    """Bytes of the samples of lanes: loaded by every program, and distinct."""
    return (0, 0) if rows is None else (8 * programs, 8 * lanes)


def _fusion_forward(a: Any) -> Cost:
    lanes, channels = _by_tile(a)
    values, e = lanes * a.channels * a.out_height * a.POOL * a.width, a.x.element_size()
    loaded, rows = _rows(a.rows, lanes, a.grid[0] * a.grid[1])
    written = values // a.POOL**2 * a.out.element_size()
    return Cost(
        values * e + 8 * channels + loaded,
        written,
        distinct(a.x) + 8 * lanes * a.channels + rows,
        written,
        3 * values if a.POOL == 1 else 17 * values // 4,
    )


def _fusion_backward(a: Any) -> Cost:
    """With the pool an arriving value is loaded once for each of its two columns, and serves both rows."""
    lanes, channels = _by_tile(a)
    items = lanes * a.channels * a.out_height * a.width
    values, e = items * a.POOL, a.gradient.element_size()
    loaded, rows = _rows(a.rows, lanes, a.grid[0] * a.grid[1])
    written = values * a.gx.element_size() + 8 * channels
    return Cost(
        values * a.x.element_size() + items * e + 12 * channels + loaded,
        written,
        distinct(a.x) + items // a.POOL * e + 12 * lanes * a.channels + rows,
        written,
        7 * values + (items if a.POOL > 1 else 0),
    )


def _collect(a: Any) -> Cost:
    samples, e, written = a.grid[0], a.by_lane.element_size(), a.grid[0] * a.size * a.result.element_size()
    values = a.lanes * a.size
    return Cost(
        values * e + 8 * a.lanes * samples * a.grid[1], written, values * e + 8 * a.lanes, written, samples * values
    )


def _softmax(a: Any) -> Cost:
    values = a.grid[1] * a.channels * a.pixels
    written = values * a.planes.element_size()
    return Cost(values * a.logits.element_size(), written, distinct(a.logits), written, 5 * values)


def _softmax_backward(a: Any) -> Cost:
    values = a.grid[1] * a.channels * a.pixels
    loaded, written = values * (a.logits.element_size() + a.gradient.element_size()), values * a.target.element_size()
    return Cost(loaded, written, distinct(a.logits, a.gradient), written, 9 * values)


def _disc(a: Any) -> Cost:
    e, pixels = a.points.element_size(), a.grid[0] * a.size**2
    written = pixels * a.planes.element_size()
    return Cost(2 * e * a.grid[0] * a.grid[1], written, distinct(a.points), written, 5 * pixels)


def _plane_sum(a: Any) -> Cost:
    lanes, channels = _by_tile(a)
    values = lanes * a.channels * a.pixels
    return Cost(values * a.x.element_size(), 4 * channels, distinct(a.x), 4 * channels, values)


def _weights(class_weights: Tensor | None, pixels: int) -> tuple[int, int]:
    """Bytes of the classes' weights: one a labelled pixel, and distinct."""
    return (0, 0) if class_weights is None else (class_weights.element_size() * pixels, distinct(class_weights))


def _cross_entropy(a: Any) -> Cost:
    pixels = a.grid[1] * a.pixels
    values, (loaded, weights) = pixels * a.channels, _weights(a.class_weights, pixels)
    labels, sums = pixels * a.labels.element_size(), 8 * a.grid[0] * a.grid[1]
    written = values * a.gradient.element_size() + sums
    return Cost(
        values * a.logits.element_size() + labels + loaded,
        written,
        distinct(a.logits) + labels + weights,
        written,
        11 * values + 10 * pixels,
    )


def taps(size: int, fine: int) -> set[int]:
    """The logits along one axis that any of ``fine`` pixels reads when ``size`` logits are upsampled bilinearly."""
    lows = [max((2 * at + 1) * size - fine, 0) // (2 * fine) for at in range(fine)]
    return {tap for low in lows for tap in (low, min(low + 1, size - 1))}


def readers(size: int, fine: int, reach: int) -> int:
    """Pairs of a logit and one of the ``reach`` pixels from its first reader on, along one axis."""
    firsts = [max((2 * i - 1) * fine + size, 0) // (2 * size) for i in range(size)]
    return sum(max(min(reach, fine - first), 0) for first in firsts)


def _touched(a: Any) -> int:
    """Distinct bytes of the logits that the pixels of the labels read."""
    planes = a.grid[1] * a.channels * len(taps(a.height, a.fine_height)) * len(taps(a.width, a.fine_width))
    return planes * a.logits.element_size()


def _fine(a: Any) -> Cost:
    pixels = a.grid[1] * a.fine_height * a.fine_width
    values, (loaded, weights) = pixels * a.channels, _weights(a.class_weights, pixels)
    labels, written = pixels * a.labels.element_size(), 4 * pixels + 8 * a.grid[0] * a.grid[1]
    return Cost(
        4 * values * a.logits.element_size() + labels + loaded,
        written,
        _touched(a) + labels + weights,
        written,
        15 * values + 12 * pixels,
    )


def _gather(a: Any) -> Cost:
    """Every pixel that reads a logit is upsampled again for it: ``reads``, or ``steps`` with those outside the map."""
    reads = a.grid[1] * readers(a.height, a.fine_height, a.reach_y) * readers(a.width, a.fine_width, a.reach_x)
    logits, fine = a.grid[1] * a.height * a.width, a.grid[1] * a.fine_height * a.fine_width
    steps, (loaded, weights) = logits * a.reach_y * a.reach_x, _weights(a.class_weights, reads)
    e, label = a.logits.element_size(), a.labels.element_size()
    written = logits * a.channels * a.gradient.element_size()
    return Cost(
        reads * (4 * a.channels * e + label + 4) + loaded,
        written,
        _touched(a) + fine * (label + 4) + weights,
        written,
        steps * (15 * a.channels + 8),
    )


def _points(a: Any) -> Cost:
    e, target, weight = (x.element_size() for x in (a.points, a.targets, a.weights))
    written = 2 * a.count * a.gradient.element_size() + 8 * a.grid[0]
    read = a.count * (weight + 2 * (e + target))
    return Cost(read, written, read, written, a.count * (23, 17, 13)[a.KIND])


def _finish(a: Any) -> Cost:
    read = 8 * a.entries + (0 if a.denominator is None else a.denominator.element_size())
    return Cost(read, 12, read, 12, 4 * a.entries)


def _scale(a: Any) -> Cost:
    values, factor = a.grid[0] * a.size, a.factor.element_size()
    read, written = values * a.source.element_size(), values * a.target.element_size()
    return Cost(read + factor * a.grid[0] * a.grid[1], written, read + factor, written, values)


def _tapped(height: int, width: int, covered: int = 0) -> int:
    """Pairs of a pixel and one of its nine neighbours inside the map. Of ``covered`` pixels those behind the last row
    count as well: the row below it has its neighbours in it."""
    below = min(max(covered - height * width, 0), width)
    return (3 * height - 2) * (3 * width - 2) + (3 * below - 1 - (below == width) if below else 0)


def _convolution(a: Any) -> Cost:
    """A program loads nine shifted tiles of each source and nine of weights for its tile of outputs."""
    lanes, blocks, across = a.grid
    programs, e = lanes * blocks * across, [x.element_size() for x in a.sources]
    tapped = _tapped(a.height, a.width, blocks * a.PIXELS)
    maps = sum(c * each for c, each in zip(a.channels, e, strict=True)) * lanes * across * tapped
    packed = 9 * sum(a.channels) * a.outputs * a.weight.element_size()
    norms = (8 if a.scale is not None else 0) * sum(a.channels)
    rows = [_rows(row, lanes, programs) for row in a.rows]
    written = lanes * a.outputs * a.height * a.width * a.out.element_size()
    gathered = programs * a.PIXELS * 9 * sum(cdiv(c, a.DEPTH) * a.DEPTH for c in a.channels)
    return Cost(
        maps + packed * lanes * blocks + norms * programs + sum(row[0] for row in rows),
        written,
        distinct(*a.sources) + packed + norms * lanes + max(row[1] for row in rows),
        written,
        (3 * gathered if norms else 0) + (programs * a.PIXELS * a.OUTPUTS if a.RELU else 0),
        2 * gathered * a.OUTPUTS,
    )


def _convolution_weight(a: Any) -> Cost:
    """A program has one tap of 32 channels; its pixels, in steps of PIXELS, are every `parts`-th of all lanes'."""
    across, down, parts = cdiv(a.outputs, a.OUTPUTS), cdiv(a.channels, a.CHANNELS), a.grid[2]
    pixels, entries = a.height * a.width, a.lanes * cdiv(a.height * a.width, a.PIXELS)
    norms = 8 if a.scale is not None else 0
    loaded, rows = _rows(a.rows, a.lanes, entries * a.grid[0] * 9)
    maps = a.lanes * a.channels * _tapped(a.height, a.width) * across * a.source.element_size()
    arriving = 9 * a.lanes * a.outputs * pixels * down * a.gradient.element_size()
    written = 4 * parts * 9 * a.channels * a.outputs
    gathered = entries * 9 * across * down * a.CHANNELS * a.PIXELS
    return Cost(
        maps + arriving + norms * a.channels * entries * 9 * across + loaded,
        written,
        distinct(a.source, a.gradient) + norms * a.lanes * a.channels + rows,
        written,
        3 * gathered if norms else 0,
        2 * gathered * a.OUTPUTS,
    )


FORMULAS: dict[str, Formula] = {
    "channel_moments.partial_kernel": _moments_partial,
    "channel_moments.join_kernel": _moments_join,
    "channel_moments.backward_kernel": _moments_backward,
    "integrate.forward_kernel": _fusion_forward,
    "integrate.backward_kernel": _fusion_backward,
    "lanes.collect_kernel": _collect,
    "encode_predictions.softmax_kernel": _softmax,
    "encode_predictions.softmax_backward_kernel": _softmax_backward,
    "encode_predictions.disc_kernel": _disc,
    "encode_predictions.plane_sum_kernel": _plane_sum,
    "cross_entropy.cross_entropy_kernel": _cross_entropy,
    "cross_entropy.fine_kernel": _fine,
    "cross_entropy.gather_kernel": _gather,
    "hybrid_loss.points_kernel": _points,
    "hybrid_loss.finish_kernel": _finish,
    "hybrid_loss.scale_kernel": _scale,
    "convolution.convolution_kernel": _convolution,
    "convolution.weight_kernel": _convolution_weight,
}
