"""Task-interaction fusion on CUDA: one launch a source, each writing its own channels of the result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.concat import Concat, Norm
from ifan.ops import native
from ifan.ops.backends.cuda.arguments import ConcatFields, NormFields, call, dtype_name


def forward(x: Concat, norm: Norm, pool: int) -> Tensor:
    """Concatenation ``(N, C, H, W)``, norm ``(T, C)`` -> ``(N, C, H / pool, W / pool)``."""
    lanes, channels, height, width = x.shape
    out = x.tensors[0].new_empty((lanes, channels, height // pool, width // pool), dtype=x.dtype)
    _each(x, NormFields(norm), pool, out)
    return out


def backward(gradient: Tensor, x: Concat, norm: Norm, pool: int) -> list[Tensor]:
    """Gradients of the sources, then of weight, bias, mean and var, for the output's ``gradient``."""
    values, (lanes, channels, height, width) = NormFields(norm), x.shape
    gradient = gradient.to(x.dtype).contiguous()
    tiles = native.cuda_module().integrate_tiles(height, width)
    shape = values.values[0].shape
    sums = gradient.new_empty((lanes, tiles, channels, 2), dtype=torch.float32)
    found = [source.new_empty(source.shape, dtype=x.dtype) for source in x.tensors]
    _each(x, values, pool, gradient, found, sums)
    norms = values.values[0].new_empty((4, *shape))
    arguments = (sums.data_ptr(), tiles, channels, list(x.lanes.segments), values.fields, norms.data_ptr())
    call("norm_gradients", norms, *arguments)
    return [
        *(value.to(source.dtype) for value, source in zip(found, x.tensors, strict=True)),
        *(value.to(given.dtype, copy=True) for value, given in zip(norms, norm.tensors, strict=True)),
    ]


def _each(
    x: Concat, norm: NormFields, pool: int, y: Tensor, gradients: Sequence[Tensor] = (), sums: Tensor | None = None
) -> None:
    """Forward into ``y``; with ``sums``, backward from the gradient ``y`` into ``gradients`` and ``sums``."""
    fields, first = ConcatFields(x), 0
    for index, plane in enumerate(fields.planes):
        call(
            "integrate_forward" if sums is None else "integrate_backward",
            y,
            *(fields.sources[index], dtype_name(plane), list(x.lanes.segments), first, norm.values[0].shape[1]),
            *(norm.fields, pool, y.data_ptr()),
            *((gradients[index].data_ptr(), sums.data_ptr()) if sums is not None else (0, 0)),
        )
        first += plane.shape[1]
