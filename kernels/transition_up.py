"""Transition up: 3x3 convolution, ReLU, phase shift, 3x3 convolution, ReLU; two launches, no concatenation.

The first convolution writes its result where the phase shift sends it. Backward, with d what arrives where the output
is positive: gradients of the second convolution, the shift undone where the middle is positive, those of the first.
The middle is made again rather than kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .convolution import convolve, input_gradient, promoted, weight_gradient
from .lanes import collect


def forward(
    sources: Sequence[Tensor],
    weight_a: Tensor,
    weight_b: Tensor,
    rows: Tensor | None,
    per_sample: Sequence[bool],
) -> Tensor:
    """Sources ``(N or R, C_i, H, W)`` -> ``(N, A', 2H, 2W)`` of their promoted dtype."""
    middle = _middle(sources, weight_a, rows, per_sample)
    out = middle.new_empty((middle.shape[0], weight_b.shape[0], *middle.shape[2:]))
    return convolve([middle], weight_b, out, relu=True)


def backward(
    gradient: Tensor,
    out: Tensor,
    sources: Sequence[Tensor],
    weight_a: Tensor,
    weight_b: Tensor,
    rows: Tensor | None,
    per_sample: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the sources, then of both weights."""
    middle = _middle(sources, weight_a, rows, per_sample)
    gradient = torch.where(out > 0, gradient, 0)
    of_b = weight_gradient([middle], gradient)
    arriving = torch.where(middle > 0, input_gradient(gradient, weight_b, middle.dtype), 0)
    lanes, quarter, height, width = middle.shape
    cells = arriving.view(lanes, quarter, height // 2, 2, width // 2, 2).permute(0, 1, 5, 3, 2, 4)
    arriving = cells.reshape(lanes, 4 * quarter, height // 2, width // 2)
    of_a = weight_gradient(sources, arriving, rows=_rows(rows, per_sample))
    found = []
    for x, part, flag in zip(sources, weight_a.split([x.shape[1] for x in sources], 1), per_sample, strict=True):
        shared = flag and rows is not None
        gx = input_gradient(arriving, part, torch.float32 if shared else x.dtype)
        found.append(collect(gx, rows, x.shape[0], x.dtype) if flag and rows is not None else gx)
    return [*found, of_a.to(weight_a.dtype), of_b.to(weight_b.dtype)]


def _middle(sources: Sequence[Tensor], weight: Tensor, rows: Tensor | None, per_sample: Sequence[bool]) -> Tensor:
    by_lane = [x.shape[0] for x, flag in zip(sources, per_sample, strict=True) if not flag]
    lanes = by_lane[0] if by_lane or rows is None else rows.shape[0]
    height, width = sources[0].shape[2:]
    shape = (lanes, weight.shape[0] // 4, 2 * height, 2 * width)
    out = sources[0].new_empty(shape, dtype=promoted(sources))
    return convolve(sources, weight, out, rows=_rows(rows, per_sample), relu=True, phase_shift=True)


def _rows(rows: Tensor | None, per_sample: Sequence[bool]) -> list[Tensor | None]:
    return [rows if flag else None for flag in per_sample]
