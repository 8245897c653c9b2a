"""Dense layers: task-wise normalisation, ReLU, 3x3 convolution; each reads the sources and all grown before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.concat import Concat, DenseLayer, Moments
from ifan.reference.channel_moments import channel_moments
from ifan.reference.lanes import accumulation_dtype, join, normalise_relu


def dense_block(x: Concat, layers: Sequence[DenseLayer]) -> tuple[Tensor, Tensor, Tensor]:
    """Grown channels ``(N, G * L, H, W)`` and their moments ``(T, G * L)``, or ``(T, 0)`` with running statistics."""
    batch_statistics = len(layers) == 1 or layers[-1].norm.mean is None
    segments = x.lanes.segments
    with torch.autocast(layers[0].weight.device.type, enabled=False):
        y = join(x)
        grown: list[Tensor] = []
        moments: list[Moments] = []
        known = [value for value in (layers[0].norm.mean, layers[0].norm.var) if value is not None]
        for weight, norm in layers:
            if grown:
                y = torch.cat([y, grown[-1]], 1)
            if grown and batch_statistics:
                known = [torch.cat(pair, 1) for pair in zip(known, moments[-1], strict=True)]
                norm = norm._replace(mean=known[0], var=known[1])
            z = normalise_relu(y, norm, segments).to(y.dtype)
            grown.append(F.conv2d(z, weight.to(y.dtype), padding=1))
            if batch_statistics:
                moments.append(channel_moments(grown[-1], segments))
        if not batch_statistics:
            none = y.new_empty((len(segments), 0), dtype=accumulation_dtype(y.dtype))
            return torch.cat(grown, 1), none, none.clone()
        new_mean, new_var = zip(*moments, strict=True)
        return torch.cat(grown, 1), torch.cat(new_mean, 1), torch.cat(new_var, 1)
