"""The native modules of `ifan.native`, and the tensors that their kernels take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.native import (
    CUDA_FIX,
    FIX,
    bf16_refusal,
    build_note,
    cpu_module,
    cpu_refusal,
    cuda_module,
    cuda_refusal,
    kernels_in_use,
)

__all__ = [
    "CUDA_FIX",
    "DTYPES",
    "FIX",
    "bf16_refusal",
    "build_note",
    "cpu_module",
    "cpu_refusal",
    "cuda_module",
    "cuda_refusal",
    "in_dtype",
    "in_dtypes_of",
    "input_refusal",
    "kernels_in_use",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that the kernels take; they read float32, so the others are converted before and after."""


def input_refusal(*tensors: Tensor) -> str | None:
    """Reason why the kernels cannot take these tensors; ``None`` if they can."""
    for x in tensors:
        if x.device.type != "cpu":
            return f"an input lies on {x.device}, not on the CPU"
        if x.dtype not in DTYPES:
            return f"an input's dtype is {x.dtype}, not float32, bfloat16 or float16"
    return None


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)`` without a call of PyTorch where nothing is to be done, which most often is so."""
    return x if x.dtype == dtype else x.to(dtype)


def in_dtypes_of(inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Each input's gradient, which the kernels make in float32, in the input's own dtype."""
    return [in_dtype(gradient, value.dtype) for value, gradient in zip(inputs, gradients, strict=True)]
