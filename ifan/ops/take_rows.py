"""Rows of a tensor, picked by index, as one operation that torch.compile does not take apart.

Where several threads run it on channels-last values, Inductor's kernel for the backward of `torch.index_select` writes
beside its place, and past the end of its output (pytorch/pytorch 191837, seen in 2.13).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ifan.ops.call import operation


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """``x (B, ...)`` and ``rows (N,)`` int64 -> ``(N, ...)``, contiguous. Differentiable in ``x``.

    A row may be taken several times; the gradient sums over them.
    """
    taken: Tensor = _forward(x, rows)
    return taken


@operation("ifan::take_rows")
def _forward(x: Tensor, rows: Tensor) -> Tensor:
    return torch.index_select(x, 0, rows, out=_empty(x, rows))


@_forward.register_fake
def _empty(x: Tensor, rows: Tensor) -> Tensor:
    return x.new_empty((rows.shape[0], *x.shape[1:]))


@operation("ifan::take_rows_backward")
def _backward(gradient: Tensor, rows: Tensor, count: int) -> Tensor:
    return gradient.new_zeros((count, *gradient.shape[1:])).index_add_(0, rows, gradient)


@_backward.register_fake
def _(gradient: Tensor, rows: Tensor, count: int) -> Tensor:
    return gradient.new_empty((count, *gradient.shape[1:]))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.count = inputs[0].shape[0]
    ctx.save_for_backward(inputs[1])


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (rows,) = ctx.saved_tensors
    return _backward(gradient, rows, ctx.count), None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
