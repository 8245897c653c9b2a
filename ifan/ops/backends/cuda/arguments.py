"""Addresses, sizes, types and streams as ``ifan._cuda`` takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ifan.concat import Concat, Norm
from ifan.ops import native

SourceFields = tuple[int, list[int], list[int], int]


def call(name: str, x: Tensor, *arguments: Any) -> None:
    """Start the kernels of ``ifan._cuda.<name>`` on the current stream of the device of ``x``."""
    function: Callable[..., None] = getattr(native.cuda_module(), name)
    with torch.cuda.device_of(x):
        function(*arguments, torch.cuda.current_stream().cuda_stream if x.is_cuda else 0)


def dtype_name(x: Tensor) -> str:
    """``float32``, ``float16`` or ``bfloat16``."""
    return str(x.dtype).removeprefix("torch.")


class ConcatFields:
    """The sources of a `Concat` in its dtype, kept alive while their addresses are in use."""

    def __init__(self, x: Concat) -> None:
        self.planes, self._rows = [plane.to(x.dtype) for plane in x.tensors], x.lanes.rows.contiguous()
        self.sources = [
            source_fields(plane, self._rows if flag else None)
            for plane, flag in zip(self.planes, x.per_sample, strict=True)
        ]


def source_fields(x: Tensor, rows: Tensor | None = None) -> SourceFields:
    """One source ``(N or R, C_i, H, W)``; ``rows``, int64 and contiguous, if it has a row a sample."""
    return x.data_ptr(), list(x.shape), list(x.stride()), 0 if rows is None else rows.data_ptr()


class NormFields:
    """Weight, bias, mean and var ``(T, C)`` as contiguous float32, kept alive while their addresses are in use."""

    def __init__(self, norm: Norm) -> None:
        self.values = [value.float().contiguous() for value in norm.tensors]
        self.eps = norm.eps

    @property
    def fields(self) -> tuple[int, int, int, int, float]:
        """Addresses of the four values, ``(T, C)`` each, and epsilon, as the kernels take them."""
        weight, bias, mean, var = (value.data_ptr() for value in self.values)
        return weight, bias, mean, var, self.eps
