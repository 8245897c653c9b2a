"""Task-interaction fusion by the native kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.concat import Concat, Norm
from ifan.ops.backends.cpu.arguments import ConcatFields, NormFields
from ifan.ops.native import cpu_module, in_dtype


def forward(x: Concat, norm: Norm, pool: int) -> Tensor:
    """``(N, C, H / pool, W / pool)`` of the concatenation's dtype."""
    fields, affine = ConcatFields(x), NormFields(norm)
    lanes, channels, height, width = fields.shape
    out = affine.scale.new_empty((lanes, channels, height // pool, width // pool))
    cpu_module().integrate_forward(
        *fields.arguments,
        pool,
        affine.scale.data_ptr(),
        affine.shift.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return in_dtype(out, x.dtype)


def backward(gradient: Tensor, x: Concat, norm: Norm, pool: int, firsts: Sequence[int]) -> list[Tensor]:
    """float32 gradients of the sources, a doubled one's once (`ifan.ops.repeats`), then of the norm's tensors."""
    gradient, affine, fields = gradient.float().contiguous(), NormFields(norm), ConcatFields(x, firsts)
    sums = norm.weight.new_empty((*fields.shape[:2], 2), dtype=torch.float32)
    cpu_module().integrate_backward(
        *fields.arguments,
        fields.targets,
        pool,
        affine.scale.data_ptr(),
        affine.shift.data_ptr(),
        affine.mean.data_ptr(),
        gradient.data_ptr(),
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    of_moments = [torch.zeros_like(affine.scale), torch.zeros_like(affine.scale)]
    return [*fields.source_gradients(), *affine.gradients(sums, x.lanes.segments, *of_moments), *of_moments]
