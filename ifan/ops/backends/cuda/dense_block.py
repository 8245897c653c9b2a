"""Dense layers on tensor cores, for inference: normalisation and ReLU are the prologue of the 3x3 convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ifan import reference
from ifan.concat import Concat, DenseLayer
from ifan.ops.backends.cuda.arguments import ConcatFields, NormFields, call, dtype_name, source_fields


def forward(x: Concat, layers: Sequence[DenseLayer]) -> tuple[Tensor, Tensor, Tensor]:
    """Grown channels ``(N, G L, H, W)`` and their moments ``(T, G L)``, or ``(T, 0)`` with running statistics.

    One launch a layer, each writing its channels of one buffer; moments are made by the reference.
    """
    growth, batch_statistics = layers[0].weight.shape[0], len(layers) == 1 or layers[-1].norm.mean is None
    fields, segments, (lanes, _, height, width) = ConcatFields(x), x.lanes.segments, x.shape
    grown = fields.planes[0].new_empty((lanes, growth * len(layers), height, width))
    kept = (len(segments), grown.shape[1] if batch_statistics else 0)
    mean, var = (grown.new_empty(kept, dtype=torch.float32) for _ in range(2))
    first = layers[0].norm.tensors[2:]
    for layer, (weight, norm) in enumerate(layers):
        before, new = slice(0, growth * layer), slice(growth * layer, growth * (layer + 1))
        if layer and batch_statistics:
            known = [torch.cat([a, b[:, before]], 1) for a, b in zip(first, (mean, var), strict=True)]
            norm = norm._replace(mean=known[0], var=known[1])
        values, filters = NormFields(norm), weight.to(grown.dtype).permute(2, 3, 0, 1).contiguous()
        inputs = [*fields.sources, source_fields(grown[:, before])] if layer else fields.sources
        target = grown[:, new]
        call(
            "dense_layer",
            grown,
            *(inputs, dtype_name(grown), list(segments), values.fields, filters.data_ptr(), growth),
            *(target.data_ptr(), list(target.stride()[:2])),
        )
        if batch_statistics:
            mean[:, new], var[:, new] = reference.channel_moments(target, segments)
    return grown, mean, var


def backward(*_: Any) -> NoReturn:
    """Not there: raises instead of returning wrong gradients. The operation refuses such inputs before it runs."""
    raise NotImplementedError(
        "dense_block: backend 'cuda' is for inference and has no backward; got a gradient. Use backend='reference'."
    )
