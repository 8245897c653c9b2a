"""Transition up: 3x3 convolution, ReLU, phase shift, 3x3 convolution, ReLU; two launches, no concatenation.

The first convolution writes its result where the phase shift sends it. Backward, with d what arrives where the output
is positive: gradients of the second convolution, the shift undone where the middle is positive, those of the first.
The middle is made again rather than kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ifan.concat import Concat

from .convolution import convolve, input_gradient, weight_gradient
from .lanes import collect, rows_of


def forward(x: Concat, a: Tensor, b: Tensor) -> Tensor:
    """Concatenation ``(N, C, H, W)`` -> ``(N, A', 2H, 2W)`` of its dtype."""
    middle = _middle(x, a)
    out = middle.new_empty((middle.shape[0], b.shape[0], *middle.shape[2:]))
    return convolve([middle], b, out, relu=True)


def backward(gradient: Tensor, out: Tensor, x: Concat, a: Tensor, b: Tensor) -> list[Tensor]:
    """Gradients of the sources, then of both weights."""
    middle = _middle(x, a)
    gradient = torch.where(out > 0, gradient, 0)
    of_b = weight_gradient([middle], gradient)
    arriving = torch.where(middle > 0, input_gradient(gradient, b, middle.dtype), 0)
    lanes, quarter, height, width = middle.shape
    cells = arriving.view(lanes, quarter, height // 2, 2, width // 2, 2).permute(0, 1, 5, 3, 2, 4)
    arriving = cells.reshape(lanes, 4 * quarter, height // 2, width // 2)
    of_a = weight_gradient(x.tensors, arriving, rows=rows_of(x))
    found = []
    columns = a.split([source.shape[1] for source in x.tensors], 1)
    for source, part, rows in zip(x.tensors, columns, rows_of(x), strict=True):
        gx = input_gradient(arriving, part, source.dtype if rows is None else torch.float32)
        found.append(gx if rows is None else collect(gx, rows, source.shape[0], source.dtype))
    return [*found, of_a.to(a.dtype), of_b.to(b.dtype)]


def _middle(x: Concat, a: Tensor) -> Tensor:
    lanes, _, height, width = x.shape
    out = x.tensors[0].new_empty((lanes, a.shape[0] // 4, 2 * height, 2 * width), dtype=x.dtype)
    return convolve(x.tensors, a, out, rows=rows_of(x), relu=True, phase_shift=True)
