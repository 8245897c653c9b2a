"""Dense layers on tensor cores, for inference: normalisation and ReLU are the prologue of the 3x3 convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ifan import reference
from ifan.ops.cuda.arguments import Norm, call, dtype_name, same_dtype, source_fields


def forward(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Grown channels ``(N, G L, H, W)`` and their moments ``(T, G L)``, or ``(T, 0)`` with running statistics.

    One launch a layer, each writing its channels of one buffer; moments are made by the reference.
    """
    growth, batch_statistics = weights[0].shape[0], len(means) == 1
    sources, rows = same_dtype(sources), None if rows is None else rows.contiguous()
    grown = sources[0].new_empty((sum(segments), growth * len(weights), *sources[0].shape[2:]))
    kept = (len(segments), grown.shape[1] if batch_statistics else 0)
    mean, var = (grown.new_empty(kept, dtype=torch.float32) for _ in range(2))
    fields = [source_fields(x, rows if flag else None) for x, flag in zip(sources, per_sample, strict=True)]
    for layer, weight in enumerate(weights):
        before, new = slice(0, growth * layer), slice(growth * layer, growth * (layer + 1))
        statistics = means[0], variances[0]
        if not batch_statistics:
            statistics = means[layer], variances[layer]
        elif layer:
            statistics = torch.cat([means[0], mean[:, before]], 1), torch.cat([variances[0], var[:, before]], 1)
        norm = Norm((gammas[layer], betas[layer], *statistics), eps)
        filters = weight.to(grown.dtype).permute(2, 3, 0, 1).contiguous()
        inputs = [*fields, source_fields(grown[:, before], None)] if layer else fields
        target = grown[:, new]
        call(
            "dense_layer",
            grown,
            *(inputs, dtype_name(grown), list(segments), norm.fields, filters.data_ptr(), growth),
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
