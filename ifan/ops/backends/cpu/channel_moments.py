"""Channel moments by the native kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.ops.native import cpu_module

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Dtypes that the kernels read; others are converted."""


def forward(x: Tensor, segments: Sequence[int], mean: Tensor, var: Tensor) -> None:
    """Fill float32 ``mean`` and ``var (T, C)``."""
    x = readable(x)
    cpu_module().channel_moments_forward(
        x.data_ptr(),
        DTYPES[x.dtype],
        x.shape,
        x.stride(),
        segments,
        mean.data_ptr(),
        var.data_ptr(),
        torch.get_num_threads(),
    )


def backward(
    upstream: Sequence[Tensor],
    x: Tensor,
    mean: Tensor,
    segments: Sequence[int],
    gradient: Tensor,
    before: Tensor | None = None,
) -> None:
    """Write the gradient of a `readable` ``x (N, C, H, W)`` for those of its moments to ``gradient``.

    ``upstream``: gradients of mean and variance, ``(T, C)`` each. ``gradient`` has the shape and dtype of ``x``. With
    ``before`` of the same layout, which may be ``gradient`` itself, the gradient is added to that.
    """
    values = [value.contiguous() for value in (mean, *upstream)]
    cpu_module().channel_moments_backward(
        x.data_ptr(),
        DTYPES[x.dtype],
        x.shape,
        x.stride(),
        segments,
        *[value.data_ptr() for value in values],
        gradient.data_ptr(),
        gradient.stride(),
        0 if before is None else before.data_ptr(),
        torch.get_num_threads(),
    )


def readable(x: Tensor) -> Tensor:
    """``x`` in a dtype that the kernels read."""
    return x if x.dtype in DTYPES else x.float()
