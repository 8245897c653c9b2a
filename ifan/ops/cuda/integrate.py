"""Task-interaction fusion on CUDA: one launch a source, each writing its own channels of the result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.ops import native
from ifan.ops.cuda.arguments import Norm, call, dtype_name, same_dtype, source_fields


def forward(
    sources: Sequence[Tensor],
    norm: Sequence[Tensor],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    pool: int,
    eps: float,
) -> Tensor:
    """Sources ``(N or R, C_i, H, W)``, norm = weight, bias, mean, var ``(T, C)`` -> ``(N, C, H / pool, W / pool)``."""
    sources, values = same_dtype(sources), Norm(norm, eps)
    height, width = sources[0].shape[2:]
    out = sources[0].new_empty((sum(segments), norm[0].shape[1], height // pool, width // pool))
    _each(sources, values, segments, rows, per_sample, pool, out)
    return out


def backward(
    gradient: Tensor,
    sources: Sequence[Tensor],
    norm: Sequence[Tensor],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    pool: int,
    eps: float,
) -> list[Tensor]:
    """Gradients of the sources, then of weight, bias, mean and var, for the output's ``gradient``."""
    read, values = same_dtype(sources), Norm(norm, eps)
    gradient = gradient.to(read[0].dtype).contiguous()
    tiles = native.cuda_module().integrate_tiles(*sources[0].shape[2:])
    shape = values.values[0].shape
    sums = gradient.new_empty((sum(segments), tiles, shape[1], 2), dtype=torch.float32)
    found = [x.new_empty(x.shape) for x in read]
    _each(read, values, segments, rows, per_sample, pool, gradient, found, sums)
    norms = values.values[0].new_empty((4, *shape))
    arguments = (sums.data_ptr(), tiles, shape[1], list(segments), values.fields, norms.data_ptr())
    call("norm_gradients", norms, *arguments)
    return [
        *(value.to(x.dtype) for value, x in zip(found, sources, strict=True)),
        *(value.to(given.dtype, copy=True) for value, given in zip(norms, norm, strict=True)),
    ]


def _each(
    sources: Sequence[Tensor],
    norm: Norm,
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    pool: int,
    y: Tensor,
    gradients: Sequence[Tensor] = (),
    sums: Tensor | None = None,
) -> None:
    """Forward into ``y``; with ``sums``, backward from the gradient ``y`` into ``gradients`` and ``sums``."""
    rows, first = None if rows is None else rows.contiguous(), 0
    for index, (x, flag) in enumerate(zip(sources, per_sample, strict=True)):
        call(
            "integrate_forward" if sums is None else "integrate_backward",
            y,
            *(source_fields(x, rows if flag else None), dtype_name(x), list(segments), first, norm.values[0].shape[1]),
            *(norm.fields, pool, y.data_ptr()),
            *((gradients[index].data_ptr(), sums.data_ptr()) if sums is not None else (0, 0)),
        )
        first += x.shape[1]
