"""Task-interaction fusion: concatenate, normalise with each lane's task, ReLU, pool."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.reference.lanes import join, normalise_relu


def integrate(
    sources: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    segments: Sequence[int],
    rows: Tensor | None = None,
    per_sample: Sequence[bool] | None = None,
    pool: int = 1,
    eps: float = 1e-3,
) -> Tensor:
    """Sources ``(N or R, C_i, H, W)``, the rest ``(T, C)`` -> ``(N, C, H / pool, W / pool)`` of the sources' dtype."""
    with torch.autocast(weight.device.type, enabled=False):
        x = join(sources, rows, per_sample)
        y = normalise_relu(x, weight, bias, mean, var, segments, eps)
        return (F.avg_pool2d(y, pool) if pool > 1 else y).to(x.dtype)
