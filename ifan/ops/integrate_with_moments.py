"""The task-interaction fusion with the moments of the very maps it normalises, as batch normalisation has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ifan.ops import checks, native
from ifan.ops.call import CallCache, operation
from ifan.ops.channel_moments import channel_moments
from ifan.ops.concatenation import Concatenation
from ifan.ops.dispatch import choose, current_backend
from ifan.ops.integrate import check, integrate
from ifan.ops.recompute import empty_gradients

NAME = "integrate_with_moments"


def integrate_with_moments(
    sources: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    segments: Sequence[int],
    rows: Tensor | None = None,
    per_sample: Sequence[bool] | None = None,
    pool: int = 1,
    eps: float = 1e-3,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`channel_moments` of the concatenated sources, and `integrate` with them.

    For maps that are normalised once. Where several normalisations read them, compute their moments once and call
    `integrate`. On the CPU the maps pass through memory once forward and once backward, which is as often as
    normalising takes that computes no moments; other backends run the two operations.

    Args:
        sources, weight, bias, segments, rows, per_sample, pool, eps, backend: see `integrate`.

    Returns:
        what `integrate` returns, and mean and biased variance of each channel over the lanes of each task and all
        pixels, ``(T, C)`` each, 0 and 1 for a task without lanes; float32, or float64 for float64 sources.
        Differentiable in sources, weight and bias, through all three.

    Raises:
        ValueError: a shape, dtype, device, segment or row is wrong.

    Source: integration of task maps, iFAN (arXiv 1711.06055); batch normalisation, arXiv 1502.03167.
    """
    tensors = (*sources, weight, bias)

    def check_call() -> tuple[tuple[list[int], list[bool]], str]:
        checked = check(NAME, sources, {"weight": weight, "bias": bias}, segments, rows, per_sample, pool)
        return checked, choose("integrate", backend, *tensors)

    told = backend or current_backend(), tuple(segments), pool, per_sample and len(per_sample)
    (counts, flags), chosen, run = _CALLS(tensors, told, check_call, keep=not any(per_sample or ()))
    if chosen == "cpu":
        found: tuple[Tensor, Tensor, Tensor] = run(sources, weight, bias, counts, rows, flags, pool, eps)
        return found
    laid_out = [x.index_select(0, rows) if f and rows is not None else x for x, f in zip(sources, flags, strict=True)]
    moments = [channel_moments(x, counts, backend=backend) for x in laid_out]
    mean, var = (torch.cat(parts, 1) for parts in zip(*moments, strict=True))
    return integrate(laid_out, weight, bias, mean, var, counts, pool=pool, eps=eps, backend=backend), mean, var


@operation("ifan::integrate_with_moments")
def _forward(
    sources: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    pool: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    x, affine = Concatenation(sources, segments, rows, per_sample), _affine(weight, bias)
    out, mean, var = _empty(sources, weight, torch.float32, pool, x.shape)
    native.cpu_module().integrate_with_moments_forward(
        *x.arguments,
        pool,
        [value.data_ptr() for value in affine],
        eps,
        [value.data_ptr() for value in (out, mean, var)],
        torch.get_num_threads(),
    )
    return native.in_dtype(out, checks.promoted(sources)), mean, var


_CALLS = CallCache[tuple[list[int], list[bool]]](_forward)


@_forward.register_fake
def _(
    sources: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    segments: Sequence[int],
    rows: Any,
    flags: Any,
    pool: int,
    _: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (sum(segments), weight.shape[1], *sources[0].shape[2:])
    return _empty(sources, weight, checks.promoted(sources), pool, shape)


def _empty(
    sources: Sequence[Tensor], weight: Tensor, dtype: torch.dtype, pool: int, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    lanes, channels, height, width = shape
    out = sources[0].new_empty((lanes, channels, height // pool, width // pool), dtype=dtype)
    mean, var = (weight.new_empty(weight.shape, dtype=torch.float32) for _ in range(2))
    return out, mean, var


def _affine(*values: Tensor) -> list[Tensor]:
    return [value.float().contiguous() for value in values]


@operation("ifan::integrate_with_moments_backward")
def _backward(
    upstream: Sequence[Tensor],
    inputs: Sequence[Tensor],
    moments: Sequence[Tensor],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    pool: int,
    eps: float,
) -> list[Tensor]:
    *sources, weight, bias = inputs
    x = Concatenation(sources, segments, rows, per_sample, True)
    affine, known = _affine(weight, bias), _affine(*moments, *upstream)
    found = [value.new_empty(value.shape) for value in affine]
    native.cpu_module().integrate_with_moments_backward(
        *x.arguments,
        x.targets,
        pool,
        [value.data_ptr() for value in affine],
        eps,
        [value.data_ptr() for value in known],
        [value.data_ptr() for value in found],
        torch.get_num_threads(),
    )
    return native.in_dtypes_of(inputs, [*x.source_gradients(), *found])


@_backward.register_fake
def _(upstream: Sequence[Tensor], inputs: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return empty_gradients(inputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    sources, weight, bias, ctx.segments, rows, *ctx.rest = inputs
    ctx.save_for_backward(rows, *output[1:], *sources, weight, bias)


def _differentiate(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    rows, mean, var, *inputs = ctx.saved_tensors
    found = _backward(list(upstream), inputs, [mean, var], ctx.segments, rows, *ctx.rest)
    return (found[:-2], *found[-2:], *[None] * 5)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
