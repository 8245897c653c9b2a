"""Mean and variance of every channel over the lanes of each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ifan import reference
from ifan.ops import checks, native
from ifan.ops.call import is_plain, is_traced, operation
from ifan.ops.dispatch import choose, register_kernel
from ifan.ops.gpu import kernels, triton_refusal
from ifan.ops.recompute import gradients
from ifan.profiling import ranged

NAME = "channel_moments"
Parts = tuple[Tensor, ...] | None
"""The lanes of each task, views of the whole, or ``None``: see `by_task`."""
NATIVE_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


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
    recorded = x.requires_grad and torch.is_grad_enabled() and not is_traced() and is_plain([x])
    if chosen == "cpu" and x.dtype in NATIVE_DTYPES and recorded:
        passing, mean, var, *lanes = _Passing.apply(x, counts)
        return passing, mean, var, tuple(lanes)
    return x, *_moments(x, counts, chosen), None


def _checked(x: Tensor, segments: Sequence[int], backend: str | None) -> tuple[list[int], str]:
    checks.dimensions(NAME, "x", x, "(N, C, H, W)")
    checks.floating(NAME, x.device, x=x)
    if min(x.shape[2:]) == 0:
        checks.fail(NAME, f"x must have H and W of at least 1; got {tuple(x.shape)}. Drop it.")
    return checks.segments_of(NAME, segments, x.shape[0]), choose(NAME, backend, x)


def _moments(x: Tensor, counts: list[int], chosen: str) -> tuple[Tensor, Tensor]:
    return reference.channel_moments(x, counts) if chosen == "reference" else _forward(x, counts, chosen)


register_kernel(NAME, "cpu", native.input_refusal)
register_kernel(NAME, "triton", triton_refusal)


@operation("ifan::channel_moments")
def _forward(x: Tensor, segments: Sequence[int], backend: str) -> tuple[Tensor, Tensor]:
    if backend == "reference":
        return reference.channel_moments(x, segments)
    if backend == "triton":
        found: tuple[Tensor, Tensor] = kernels(backend, NAME).forward(x, segments)
        return found
    mean, var = _empty_moments(x, segments)
    x = _readable(x)
    native.cpu_module().channel_moments_forward(
        x.data_ptr(),
        NATIVE_DTYPES[x.dtype],
        x.shape,
        x.stride(),
        segments,
        mean.data_ptr(),
        var.data_ptr(),
        torch.get_num_threads(),
    )
    return mean, var


@_forward.register_fake
def _(x: Tensor, segments: Sequence[int], backend: str) -> tuple[Tensor, Tensor]:
    return _empty_moments(x, segments)


@operation("ifan::channel_moments_backward")
def _backward(
    mean_gradient: Tensor, var_gradient: Tensor, x: Tensor, mean: Tensor, segments: Sequence[int], backend: str
) -> Tensor:
    if backend == "triton":
        found: Tensor = kernels(backend, NAME).backward(mean_gradient, var_gradient, x, mean, segments)
        return found
    if backend == "reference":
        upstream = [mean_gradient, var_gradient]
        found = gradients(lambda value: reference.channel_moments(value, segments), [x], upstream)[0]
        return torch.empty_like(x).copy_(found)
    dtype, x = x.dtype, _readable(x)
    result = torch.empty_like(x)
    differentiate(mean_gradient, var_gradient, x, mean, segments, result)
    return result.to(dtype)


def differentiate(
    mean_gradient: Tensor,
    var_gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    segments: Sequence[int],
    gradient: Tensor,
    before: Tensor | None = None,
) -> None:
    """Write the gradient of ``x (N, C, H, W)``, float32 or bfloat16 on the CPU, for those of its moments, float32
    ``(T, C)``, to ``gradient`` of its shape and dtype; added to ``before`` of the same layout, which may be
    ``gradient`` itself."""
    values = [value.contiguous() for value in (mean, mean_gradient, var_gradient)]
    native.cpu_module().channel_moments_backward(
        x.data_ptr(),
        NATIVE_DTYPES[x.dtype],
        x.shape,
        x.stride(),
        segments,
        *[value.data_ptr() for value in values],
        gradient.data_ptr(),
        gradient.stride(),
        0 if before is None else before.data_ptr(),
        torch.get_num_threads(),
    )


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


class _Passing(torch.autograd.Function):
    """`with_channel_moments` by the native kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, segments: Sequence[int]) -> tuple[Tensor, ...]:
        mean, var = _forward(x, segments, "cpu")
        ctx.segments = segments
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, mean)
        return x.view_as(x), mean, var, *x.split(segments)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        passing: Tensor | None,
        mean_gradient: Tensor | None,
        var_gradient: Tensor | None,
        *lanes: Tensor | None,
    ) -> tuple[Tensor | None, None]:
        x, mean = ctx.saved_tensors
        if mean_gradient is None and var_gradient is None:
            return _joined(x, passing, lanes, ctx.segments), None
        of_mean, of_var = (torch.zeros_like(mean) if g is None else g for g in (mean_gradient, var_gradient))
        gradient = torch.empty_like(x)
        if passing is not None and passing.stride() != gradient.stride():
            passing = torch.empty_like(x).copy_(passing)
        differentiate(of_mean, of_var, x, mean, ctx.segments, gradient, passing)
        _add_lanes(gradient, lanes, ctx.segments)
        return gradient, None


def by_task(x: Tensor, segments: Sequence[int]) -> tuple[Tensor, Parts]:
    """``x (N, ...)`` for all who read all of it, and the lanes of each task for those who read these alone.

    The gradients of the parts are added to that of the whole, where autograd would add tensors of its size that it
    fills with zeros. ``None`` where there is nothing to save: no gradient is recorded, or not in eager mode.
    """
    if x.requires_grad and torch.is_grad_enabled() and not is_traced() and is_plain([x]):
        whole, *lanes = _Parted.apply(x, segments)
        return whole, tuple(lanes)
    return x, None


class _Parted(torch.autograd.Function):
    """`by_task` where gradients are recorded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, segments: Sequence[int]) -> tuple[Tensor, ...]:
        ctx.segments = segments
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x.view_as(x), *x.split(segments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, whole: Tensor | None, *lanes: Tensor | None) -> tuple[Tensor | None, None]:
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


def _readable(x: Tensor) -> Tensor:
    return x if x.dtype in NATIVE_DTYPES else x.float()


def _empty_moments(x: Tensor, segments: Sequence[int]) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (len(segments), x.shape[1])
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)
