"""Dense layers by the native kernels: all layers in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.concat import Concat, DenseLayer
from ifan.ops.backends.cpu import convolution
from ifan.ops.backends.cpu.arguments import ConcatFields, Rows, in_rows, rows_of
from ifan.ops.native import cpu_module, in_dtype

Grown = tuple[Tensor, Tensor, Tensor]
"""Grown channels ``(N, G L, H, W)``, and their mean and variance ``(T, G L)``, or ``(T, 0)`` with running
statistics."""


def forward(x: Concat, layers: Sequence[DenseLayer]) -> Grown:
    """The grown channels in the concatenation's dtype, and their moments in float32."""
    weights, batch_statistics, fields = [layer.weight for layer in layers], _batch_statistics(layers), ConcatFields(x)
    growth, (lanes, channels, height, width) = weights[0].shape[0], fields.shape
    grown = fields.planes[0].new_empty((lanes, growth * len(weights), height, width))
    new_mean = grown.new_empty((len(x.lanes.segments), grown.shape[1] if batch_statistics else 0))
    new_var = torch.empty_like(new_mean)
    norms = [[in_rows(value) for value in layer.norm.tensors] for layer in layers]
    isa, filters = convolution.filters.get(weights, lambda: _packed(weights, channels))
    cpu_module().dense_block_forward(
        *fields.arguments,
        _addresses(norms),
        layers[0].norm.eps,
        isa,
        filters.data_ptr(),
        grown.data_ptr(),
        growth,
        *[value.data_ptr() if batch_statistics else 0 for value in (new_mean, new_var)],
        torch.get_num_threads(),
    )
    return in_dtype(grown, x.dtype), new_mean, new_var


def backward(
    upstream: Sequence[Tensor],
    outputs: Sequence[Tensor],
    x: Concat,
    layers: Sequence[DenseLayer],
    firsts: Sequence[int],
) -> list[Tensor]:
    """float32 gradients of the sources, a doubled one's once (`ifan.ops.repeats`), of the weights, and of the norms'
    tensors, one norm behind the other."""
    grown, *moments = (in_dtype(value, torch.float32) for value in outputs)
    arriving = [in_dtype(value, torch.float32).contiguous() for value in upstream]
    weights, of_weights = [layer.weight for layer in layers], [_like(layer.weight) for layer in layers]
    of_norms = [[_like(value) for value in layer.norm.tensors] for layer in layers]
    fields, batch_statistics = ConcatFields(x, firsts), _batch_statistics(layers)
    if not grown.numel():
        sources = [_like(x.sources[i].tensor).zero_() for i in dict.fromkeys(firsts)]
        return [*sources, *(value.zero_() for value in (*of_weights, *(v for norm in of_norms for v in norm)))]
    to_grown = torch.empty_like(grown) if batch_statistics else arriving[0].clone()
    norms = [[in_rows(value) for value in layer.norm.tensors] for layer in layers]
    isa, filters = convolution.pack([(weight, slice(None)) for weight in weights], transposed=True)
    found = [(weight.data_ptr(), norm) for weight, norm in zip(of_weights, _addresses(of_norms), strict=True)]
    cpu_module().dense_block_backward(
        *fields.arguments,
        fields.targets,
        _addresses(norms),
        layers[0].norm.eps,
        isa,
        filters.data_ptr(),
        grown.data_ptr(),
        weights[0].shape[0],
        [value.data_ptr() if batch_statistics else 0 for value in moments],
        [value.data_ptr() for value in arriving],
        to_grown.data_ptr(),
        found,
        convolution.parts(fields.shape[0], fields.shape[2] * fields.shape[3]),
        torch.get_num_threads(),
    )
    return [*fields.source_gradients(), *of_weights, *(value for norm in of_norms for value in norm)]


def _batch_statistics(layers: Sequence[DenseLayer]) -> bool:
    return len(layers) == 1 or layers[-1].norm.mean is None


def _packed(weights: Sequence[Tensor], channels: int) -> convolution.Packed:
    """Filters of all layers for the ``channels`` of the sources, which are read once for all, then those of each layer
    for the channels grown before it."""
    later = [(weight, slice(channels, None)) for weight in weights[1:]]
    return convolution.pack([*((weight, slice(0, channels)) for weight in weights), *later])


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def _addresses(norms: Sequence[Sequence[Tensor]]) -> list[list[Rows]]:
    """Weight, bias, mean and variance of each layer's norm; the first layer's moments where it has none of its own."""
    return [[rows_of(value) for value in [*norm, *norms[0][2:]][:4]] for norm in norms]
