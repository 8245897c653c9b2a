"""Sample tensors and the error allowed in them; needs nothing but PyTorch, so that a bare GPU machine can use it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

VECTOR_ERROR = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest relative L2 error of a gradient."""


def arrange(x: Tensor, layout: str) -> Tensor:
    """The same values ``(N, C, H, W)`` in another memory layout; a leaf of its own."""
    x = x.detach()
    if layout == "channels_last":
        return x.clone(memory_format=torch.channels_last)
    if layout == "slice":
        n, c, h, w = x.shape
        big = torch.full((n + 1, c + 2, h + 3, w + 1), torch.nan, dtype=x.dtype)
        big[1:, 1:-1, 2:-1, :-1] = x
        return big[1:, 1:-1, 2:-1, :-1]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x.clone()


def leaf(*shape: int, dtype: torch.dtype = torch.float64, positive: bool = False) -> Tensor:
    """A random tensor that requires a gradient."""
    values = torch.rand(shape, dtype=dtype) + 0.5 if positive else torch.randn(shape, dtype=dtype)
    return values.requires_grad_()


def outputs_of(result: Any) -> list[Tensor]:
    """The outputs of an operation as a list."""
    return [result] if isinstance(result, Tensor) else list(result)
