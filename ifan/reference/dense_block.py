"""Dense layers: task-wise normalisation, ReLU, 3x3 convolution; each reads the sources and all grown before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.reference.channel_moments import channel_moments
from ifan.reference.lanes import accumulation_dtype, join, normalise_relu


def dense_block(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    segments: Sequence[int],
    rows: Tensor | None = None,
    per_sample: Sequence[bool] | None = None,
    eps: float = 1e-3,
) -> tuple[Tensor, Tensor, Tensor]:
    """Grown channels ``(N, G * L, H, W)`` and their moments ``(T, G * L)``, or ``(T, 0)`` with running statistics."""
    batch_statistics = len(means) == 1
    with torch.autocast(weights[0].device.type, enabled=False):
        x = join(sources, rows, per_sample)
        mean, var = means[0], variances[0]
        grown: list[Tensor] = []
        moments: list[tuple[Tensor, Tensor]] = []
        for layer, (weight, gamma, beta) in enumerate(zip(weights, gammas, betas, strict=True)):
            if layer and batch_statistics:
                mean, var = torch.cat([mean, moments[-1][0]], 1), torch.cat([var, moments[-1][1]], 1)
            elif layer:
                mean, var = means[layer], variances[layer]
            x = torch.cat([x, grown[-1]], 1) if layer else x
            y = normalise_relu(x, gamma, beta, mean, var, segments, eps).to(x.dtype)
            grown.append(F.conv2d(y, weight.to(x.dtype), padding=1))
            if batch_statistics:
                moments.append(channel_moments(grown[-1], segments))
        if not batch_statistics:
            none = x.new_empty((len(segments), 0), dtype=accumulation_dtype(x.dtype))
            return torch.cat(grown, 1), none, none.clone()
        new_mean, new_var = zip(*moments, strict=True)
        return torch.cat(grown, 1), torch.cat(new_mean, 1), torch.cat(new_var, 1)
