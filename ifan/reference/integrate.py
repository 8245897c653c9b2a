"""Task-interaction fusion: concatenate, normalise with each lane's task, ReLU, pool."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.concat import Concat, Norm
from ifan.reference.lanes import join, normalise_relu


def integrate(x: Concat, norm: Norm, pool: int = 1) -> Tensor:
    """Concatenation ``(N, C, H, W)``, norm ``(T, C)`` -> ``(N, C, H / pool, W / pool)`` of the sources' dtype."""
    with torch.autocast(norm.weight.device.type, enabled=False):
        joined = join(x)
        y = normalise_relu(joined, norm, x.lanes.segments)
        return (F.avg_pool2d(y, pool) if pool > 1 else y).to(joined.dtype)
