"""The operations for one task as a PyTorch user writes them with PyTorch's own fused functions: the rivals' version.

`ifan.reference` folds task-wise normalisation by hand, which is slower than `batch_norm`; rivals get the faster way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.config import EPSILON


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """``(N, C, H, W)`` -> mean and biased variance, ``(1, C)`` each."""
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean[None], var[None]


def integrate(
    sources: Sequence[Tensor], weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, pool: int = 1
) -> Tensor:
    """`ifan.ops.integrate` with given moments, ``(1, C)`` each."""
    x = torch.cat(list(sources), 1) if len(sources) > 1 else sources[0]
    if not (torch.is_grad_enabled() and mean.requires_grad):
        return _pooled(F.batch_norm(x, mean[0], var[0], weight[0], bias[0], eps=EPSILON), pool)
    scale = weight * torch.rsqrt(var + EPSILON)  # batch_norm has no gradient for mean and variance that are given
    shift = bias - mean * scale
    return _pooled(torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None]), pool)


def dense_block(
    x: Tensor,
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
) -> Tensor:
    """`ifan.ops.dense_block` with running statistics, ``(1, C)`` each: the grown channels."""
    grown: list[Tensor] = []
    for weight, gamma, beta, mean, var in zip(weights, gammas, betas, means, variances, strict=True):
        normalised = integrate([x, *grown], gamma, beta, mean, var)
        grown.append(F.conv2d(normalised, weight.to(x.dtype), padding=1))
    return torch.cat(grown, 1)


def transition_up(x: Tensor, weight_a: Tensor, weight_b: Tensor) -> Tensor:
    """`ifan.ops.transition_up` of one tensor; `pixel_shuffle` does the phase shift after a swap of channels."""
    swapped = weight_a.unflatten(0, (-1, 2, 2)).transpose(1, 2).flatten(0, 2)
    shifted = F.pixel_shuffle(F.relu(F.conv2d(x, swapped, padding=1)), 2)
    return F.relu(F.conv2d(shifted, weight_b, padding=1))


def _pooled(x: Tensor, pool: int) -> Tensor:
    x = F.relu(x)
    return F.avg_pool2d(x, pool) if pool > 1 else x
