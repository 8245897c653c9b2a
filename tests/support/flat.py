"""The operations called with lists of tensors, as tests draw and differentiate them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ifan import ops
from ifan.concat import EPSILON, Concat, DenseLayer, Lanes, Norm
from ifan.ops.dense_block import _forward as dense_block_registered
from ifan.ops.integrate import _forward as integrate_registered
from ifan.ops.transition_up import _forward as transition_up_registered

Flags = Sequence[bool] | None


def concat(
    sources: Sequence[Tensor], segments: Sequence[int] | None, rows: Tensor | None = None, per_sample: Flags = None
) -> Concat:
    """The sources on lanes of tasks, or of one task where no segments are given."""
    flags = [False] * len(sources) if per_sample is None else per_sample
    if rows is None:
        rows = torch.arange(sources[0].shape[0] if segments is None else sum(segments), device=device_of(sources))
    return Concat.of(Lanes(rows, (rows.shape[0],) if segments is None else tuple(segments)), *sources, per_sample=flags)


def device_of(sources: Sequence[Tensor]) -> torch.device:
    """The first source's device; the CPU without sources."""
    return sources[0].device if sources else torch.device("cpu")


def integrate(
    sources: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    segments: Sequence[int],
    rows: Tensor | None = None,
    per_sample: Flags = None,
    pool: int = 1,
    eps: float = EPSILON,
    *,
    backend: str | None = None,
) -> Tensor:
    """`ifan.ops.integrate`."""
    x = concat(sources, segments, rows, per_sample)
    return ops.integrate(x, Norm(weight, bias, mean, var, eps), pool, backend=backend)


def layers(
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
) -> list[DenseLayer]:
    """Layers of a dense block; batch statistics where there is one mean and one variance."""
    known = [*zip(means, variances, strict=True), *[(None, None)] * (len(weights) - len(means))]
    norms = [Norm(gamma, beta, *moments) for gamma, beta, moments in zip(gammas, betas, known, strict=True)]
    return [DenseLayer(weight, norm) for weight, norm in zip(weights, norms, strict=True)]


def dense_block(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    segments: Sequence[int],
    rows: Tensor | None = None,
    per_sample: Flags = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`ifan.ops.dense_block`."""
    block = layers(weights, gammas, betas, means, variances)
    return ops.dense_block(concat(sources, segments, rows, per_sample), block, backend=backend)


def transition_up(
    sources: Sequence[Tensor],
    a: Tensor,
    b: Tensor,
    rows: Tensor | None = None,
    per_sample: Flags = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """`ifan.ops.transition_up`."""
    return ops.transition_up(concat(sources, None, rows, per_sample), a, b, backend=backend)


def integrate_arguments(sources: Sequence[Tensor], *rest: Any) -> tuple[Any, ...]:
    """Arguments of the registered operation: for sources, weight, bias, mean, var, segments, rows, per_sample, pool,
    eps and backend."""
    norm, (segments, rows, per_sample, pool, eps, backend) = rest[:4], rest[4:]
    tensors, rows, layout = concat(sources, segments, rows, per_sample).flat()
    return tensors, list(norm), rows, layout, pool, eps, backend


def integrate_op(*arguments: Any) -> Tensor:
    """The operation behind `ifan.ops.integrate`."""
    found: Tensor = integrate_registered(*integrate_arguments(*arguments))
    return found


def dense_block_arguments(sources: Sequence[Tensor], *rest: Any) -> tuple[Any, ...]:
    """Arguments of the registered operation: for sources, five groups of tensors, segments, rows, per_sample, eps and
    backend."""
    groups, (segments, rows, per_sample, eps, backend) = rest[:5], rest[5:]
    tensors, rows, layout = concat(sources, segments, rows, per_sample).flat()
    norms = [value for layer in layers(*groups) for value in layer.norm.tensors]
    return tensors, list(groups[0]), norms, rows, layout, eps, backend


def dense_block_op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operation behind `ifan.ops.dense_block`."""
    found: tuple[Tensor, Tensor, Tensor] = dense_block_registered(*dense_block_arguments(*arguments))
    return found


def transition_up_arguments(
    sources: Sequence[Tensor], a: Tensor, b: Tensor, rows: Tensor | None, per_sample: Flags, backend: str
) -> tuple[Any, ...]:
    """Arguments of the registered operation."""
    tensors, rows, layout = concat(sources, None, rows, per_sample).flat()
    return tensors, [a, b], rows, layout, backend


def transition_up_op(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operation behind `ifan.ops.transition_up`."""
    found: tuple[Tensor, Tensor] = transition_up_registered(*transition_up_arguments(*arguments))
    return found
