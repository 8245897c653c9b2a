"""Mean and variance of every channel over the lanes of each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ifan import reference
from ifan.concat import Parts
from ifan.ops import checks, native
from ifan.ops.backends.cpu import channel_moments as cpu
from ifan.ops.call import is_plain, is_traced, operation, recorded
from ifan.ops.dispatch import choose, register_kernel
from ifan.ops.gpu import kernels, triton_refusal
from ifan.ops.recompute import gradients
from ifan.profiling import ranged

NAME = "channel_moments"


@ranged(f"ifan.{NAME}")
def channel_moments(x: Tensor, segments: Sequence[int], *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over the lanes of each task and all pixels.

    Args:
        x: ``(N, C, H, W)``, floating point, any strides; H and W at least 1.
        segments: number of lanes of each of the T tasks, zeros allowed, summing to N; lanes are grouped by task.
        backend: see `ifan.ops.use_backend`.

    Returns:
        mean ``(T, C)`` and variance ``(T, C)``, float64 for float64 input, else float32. A task without lanes has mean
        0 and variance 1. Differentiable in ``x``.

    Raises:
        ValueError: a shape or dtype is wrong, or segments do not sum to N.
    """
    return _moments(x, *_checked(x, segments, backend))


@ranged(f"ifan.{NAME}")
def with_channel_moments(
    x: Tensor, segments: Sequence[int], *, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor, Parts]:
    """``x`` for all who read it further, its `channel_moments`, and its lanes `by_task`.

    In a backward by the native kernels the gradients of the moments and of a task's lanes are added to that of ``x`` as
    this one passes, in place of tensors of their own that autograd would add.

    Args:
        x, segments, backend: as for `channel_moments`.

    Returns:
        ``(N, C, H, W)``, ``x`` or a view of it; mean and biased variance, ``(T, C)`` each, as `channel_moments` gives
        them; what `by_task` gives.

    Raises:
        ValueError: as `channel_moments`.
    """
    counts, chosen = _checked(x, segments, backend)
    if chosen == "cpu" and x.dtype in cpu.DTYPES and _is_recorded(x):
        passing, mean, var, *lanes = _record_passing(x, counts)
        return passing, mean, var, tuple(lanes)
    return x, *_moments(x, counts, chosen), None


def by_task(x: Tensor, segments: Sequence[int]) -> tuple[Tensor, Parts]:
    """``x (N, ...)`` for all who read all of it, and the lanes of each task for those who read these alone.

    The gradients of the parts are added to that of the whole, where autograd would add tensors of its size that it
    fills with zeros. ``None`` where there is nothing to save: no gradient is recorded, or not in eager mode.
    """
    if not _is_recorded(x):
        return x, None
    whole, *lanes = _record_parts(x, segments)
    return whole, tuple(lanes)


def _is_recorded(x: Tensor) -> bool:
    """True if this is a plain eager call that records a gradient of ``x``."""
    return x.requires_grad and torch.is_grad_enabled() and not is_traced() and is_plain([x])


def _checked(x: Tensor, segments: Sequence[int], backend: str | None) -> tuple[list[int], str]:
    _check(x, segments)
    return list(segments), choose(NAME, backend, x)


def _check(x: Tensor, segments: Sequence[int], backend: str = "") -> None:
    checks.dimensions(NAME, "x", x, "(N, C, H, W)")
    checks.floating(NAME, x.device, x=x)
    if min(x.shape[2:]) == 0:
        checks.fail(NAME, f"x must have H and W of at least 1; got {tuple(x.shape)}. Drop it.")
    checks.segments_of(NAME, segments, x.shape[0])


def _moments(x: Tensor, counts: list[int], chosen: str) -> tuple[Tensor, Tensor]:
    return reference.channel_moments(x, counts) if chosen == "reference" else _forward(x, counts, chosen)


register_kernel(NAME, "cpu", native.input_refusal)
register_kernel(NAME, "triton", triton_refusal)


@operation("ifan::channel_moments", check=_check)
def _forward(x: Tensor, segments: Sequence[int], backend: str) -> tuple[Tensor, Tensor]:
    if backend == "reference":
        return reference.channel_moments(x, segments)
    if backend == "triton":
        found: tuple[Tensor, Tensor] = kernels(backend, NAME).forward(x, segments)
        return found
    mean, var = _empty_moments(x, segments)
    cpu.forward(x, segments, mean, var)
    return mean, var


@_forward.register_fake
def _(x: Tensor, segments: Sequence[int], backend: str) -> tuple[Tensor, Tensor]:
    return _empty_moments(x, segments)


def _empty_moments(x: Tensor, segments: Sequence[int]) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (len(segments), x.shape[1])
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


@operation("ifan::channel_moments_backward")
def _backward(
    mean_gradient: Tensor, var_gradient: Tensor, x: Tensor, mean: Tensor, segments: Sequence[int], backend: str
) -> Tensor:
    if backend == "triton":
        found: Tensor = kernels(backend, NAME).backward(mean_gradient, var_gradient, x, mean, segments)
        return found
    upstream = [mean_gradient, var_gradient]
    if backend == "reference":
        found = gradients(lambda value: reference.channel_moments(value, segments), [x], upstream)[0]
        return torch.empty_like(x).copy_(found)
    read = cpu.readable(x)
    result = torch.empty_like(read)
    cpu.backward(upstream, read, mean, segments, result)
    return result.to(x.dtype)


@_backward.register_fake
def _(
    mean_gradient: Tensor, var_gradient: Tensor, x: Tensor, mean: Tensor, segments: Sequence[int], backend: str
) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.segments, ctx.backend = inputs
    ctx.save_for_backward(x, output[0])


def _differentiate(ctx: Any, mean_gradient: Tensor, var_gradient: Tensor) -> tuple[Any, ...]:
    x, mean = ctx.saved_tensors
    return _backward(mean_gradient, var_gradient, x, mean, ctx.segments, ctx.backend), None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)


# Views of the input, which registered operations may not return: these two exist on the fast path alone.


def _passing(x: Tensor, segments: Sequence[int]) -> tuple[Tensor, ...]:
    """`with_channel_moments` by the native kernels: ``x``, mean, var and each task's lanes."""
    mean, var = _empty_moments(x, segments)
    cpu.forward(x, segments, mean, var)
    return x.view_as(x), mean, var, *x.split(segments)


def _setup_passing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, ctx.segments = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1])


@once_differentiable
def _differentiate_passing(
    ctx: Any, passing: Tensor | None, of_mean: Tensor | None, of_var: Tensor | None, *lanes: Tensor | None
) -> tuple[Tensor | None, None]:
    x, mean = ctx.saved_tensors
    if of_mean is None and of_var is None:
        return _joined(x, passing, lanes, ctx.segments), None
    upstream = [torch.zeros_like(mean) if g is None else g for g in (of_mean, of_var)]
    gradient = torch.empty_like(x)
    if passing is not None and passing.stride() != gradient.stride():
        passing = torch.empty_like(x).copy_(passing)
    cpu.backward(upstream, x, mean, ctx.segments, gradient, passing)
    _add_lanes(gradient, lanes, ctx.segments)
    return gradient, None


def _parts(x: Tensor, segments: Sequence[int]) -> tuple[Tensor, ...]:
    """`by_task`: ``x`` and each task's lanes."""
    return x.view_as(x), *x.split(segments)


def _setup_parts(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, ctx.segments = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x)


@once_differentiable
def _differentiate_parts(ctx: Any, whole: Tensor | None, *lanes: Tensor | None) -> tuple[Tensor | None, None]:
    return _joined(ctx.saved_tensors[0], whole, lanes, ctx.segments), None


def _joined(x: Tensor, whole: Tensor | None, lanes: Sequence[Tensor | None], segments: Sequence[int]) -> Tensor | None:
    if all(g is None for g in lanes):
        return whole
    gradient = torch.zeros_like(x) if whole is None else whole.clone()
    _add_lanes(gradient, lanes, segments)
    return gradient


def _add_lanes(gradient: Tensor, lanes: Sequence[Tensor | None], segments: Sequence[int]) -> None:
    for part, g in zip(gradient.split(segments), lanes, strict=True):
        if g is not None:
            part.add_(g)


_record_passing = recorded(_passing, _differentiate_passing, _setup_passing)
_record_parts = recorded(_parts, _differentiate_parts, _setup_parts)
