"""The task-interaction fusion: concatenation, task-wise normalisation, ReLU and average pooling in one operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ifan import reference
from ifan.ops import checks, native, repeats
from ifan.ops.call import CallCache, operation
from ifan.ops.concatenation import Concatenation, Normalisation
from ifan.ops.dispatch import choose, current_backend, register_kernel
from ifan.ops.gpu import kernels, tasks_refusal, triton_refusal
from ifan.ops.recompute import empty_gradients, gradients
from ifan.profiling import ranged

NAME = "integrate"


@ranged(f"ifan.{NAME}")
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
    *,
    backend: str | None = None,
) -> Tensor:
    """``avg_pool(relu((x - mean) / sqrt(var + eps) * weight + bias))``, each lane with the values of its task.

    Args:
        sources: tensors ``(N, C_i, H, W)``, or ``(R, C_i, H, W)`` with a row a sample where ``per_sample`` says so;
            concatenated along channels in this order. One tensor may be listed twice.
        weight, bias, mean, var: ``(T, C)``, C the sum of the C_i.
        segments: lanes of each of the T tasks, zeros allowed, summing to N.
        rows: ``(N,)`` int64, the sample of each lane; needed if a source has a row a sample.
        per_sample: one flag a source; default all False.
        pool: 1, or 2 for the 2x2 average, for which H and W must be even.
        eps: added to the variance.
        backend: see `ifan.ops.use_backend`.

    Returns:
        ``(N, C, H / pool, W / pool)`` of the sources' (promoted) dtype; computed in float32, or float64 for float64.
        Autocast changes nothing. Differentiable in sources, weight, bias, mean and var.

    Raises:
        ValueError: a shape, dtype, device, segment or row is wrong.

    Source: integration of task maps, iFAN (arXiv 1711.06055); the pooling may go before the 1x1 convolution, as both
    are linear.
    """
    values = {"weight": weight, "bias": bias, "mean": mean, "var": var}
    tensors = (*sources, *values.values())

    def check_call() -> tuple[tuple[list[int], list[bool]], str]:
        return check(NAME, sources, values, segments, rows, per_sample, pool), choose(NAME, backend, *tensors)

    told = backend or current_backend(), tuple(segments), pool, per_sample and len(per_sample)
    (counts, flags), chosen, run = _CALLS(tensors, told, check_call, keep=not any(per_sample or ()))
    if chosen == "reference":
        return reference.integrate(sources, weight, bias, mean, var, counts, rows, flags, pool, eps)
    return run(sources, weight, bias, mean, var, counts, rows, flags, pool, eps, chosen)


def check(
    op: str,
    sources: Sequence[Tensor],
    values: dict[str, Tensor],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool] | None,
    pool: int,
) -> tuple[list[int], list[bool]]:
    """Raise ``ValueError`` unless the arguments fit, ``values`` being ``(T, C)`` each; ``segments`` and ``per_sample``
    as lists."""
    lanes, channels, flags = checks.sources_of(op, sources, sum(segments), rows, per_sample)
    counts = checks.segments_of(op, segments, lanes)
    for name, value in values.items():
        checks.shape(op, name, value, (len(counts), channels), "(T, C)")
    checks.floating(op, sources[0].device, **values)
    height, width = sources[0].shape[2:]
    if pool not in (1, 2):
        checks.fail(op, f"pool must be 1 or 2; got {pool}. Choose one of them.")
    if height % pool or width % pool:
        checks.fail(op, f"pool=2 needs even H and W; got {(height, width)}. Pad the sources or use pool=1.")
    return counts, flags


@operation("ifan::integrate")
def _forward(
    sources: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    pool: int,
    eps: float,
    backend: str,
) -> Tensor:
    if backend == "reference":
        result = reference.integrate(sources, weight, bias, mean, var, segments, rows, per_sample, pool, eps)
        return result.contiguous()
    if backend in ("triton", "cuda"):
        values = weight, bias, mean, var
        found: Tensor = kernels(backend, NAME).forward(sources, values, segments, rows, per_sample, pool, eps)
        return found
    height, width = sources[0].shape[2:]
    shape = sum(segments), weight.shape[1], height // pool, width // pool
    out = weight.new_empty(shape, dtype=torch.float32)
    x, norm = Concatenation(sources, segments, rows, per_sample), Normalisation(weight, bias, mean, var, eps)
    native.cpu_module().integrate_forward(
        *x.arguments,
        pool,
        norm.scale.data_ptr(),
        norm.shift.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return native.in_dtype(out, checks.promoted(sources))


register_kernel(NAME, "cpu", native.input_refusal)
register_kernel(NAME, "triton", triton_refusal)
register_kernel(NAME, "cuda", tasks_refusal)


_CALLS = CallCache[tuple[list[int], list[bool]]](_forward)


@_forward.register_fake
def _(
    sources: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    pool: int,
    eps: float,
    backend: str,
) -> Tensor:
    height, width = sources[0].shape[2:]
    dtype = checks.promoted(sources)
    return weight.new_empty((sum(segments), weight.shape[1], height // pool, width // pool), dtype=dtype)


@operation("ifan::integrate_backward")
def _backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    firsts: Sequence[int],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    pool: int,
    eps: float,
    backend: str,
) -> list[Tensor]:
    """Gradients of the inputs, `ifan.ops.repeats.collected`."""
    if backend == "cpu":
        return _cpu_backward(gradient, inputs, firsts, segments, rows, per_sample, pool, eps)
    if backend in ("triton", "cuda"):
        rest = (segments, rows, per_sample, pool, eps)
        found: list[Tensor] = kernels(backend, NAME).backward(gradient, inputs[:-4], inputs[-4:], *rest)
    else:

        def run(*values: Tensor) -> list[Tensor]:
            weight, bias, mean, var = values[-4:]
            return [reference.integrate(values[:-4], weight, bias, mean, var, segments, rows, per_sample, pool, eps)]

        found = gradients(run, inputs, [gradient])
    return repeats.collected(found, firsts)


def _cpu_backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    firsts: Sequence[int],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    pool: int,
    eps: float,
) -> list[Tensor]:
    *sources, weight, bias, mean, var = inputs
    gradient, norm = gradient.float().contiguous(), Normalisation(weight, bias, mean, var, eps)
    x = Concatenation(sources, segments, rows, per_sample, True, firsts)
    sums = weight.new_empty((*x.shape[:2], 2), dtype=torch.float32)
    native.cpu_module().integrate_backward(
        *x.arguments,
        x.targets,
        pool,
        norm.scale.data_ptr(),
        norm.shift.data_ptr(),
        norm.mean.data_ptr(),
        gradient.data_ptr(),
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    of_moments = [torch.zeros_like(norm.scale), torch.zeros_like(norm.scale)]
    found = [*x.source_gradients(), *norm.gradients(sums, segments, *of_moments), *of_moments]
    return native.in_dtypes_of(repeats.distinct(inputs, firsts), found)


@_backward.register_fake
def _(gradient: Tensor, inputs: Sequence[Tensor], firsts: Sequence[int], *_: Any) -> list[Tensor]:
    return empty_gradients(repeats.distinct(inputs, firsts))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sources, weight, bias, mean, var, ctx.segments, rows, *ctx.rest = inputs
    ctx.firsts = repeats.first_occurrences(sources, ctx.rest[0])
    ctx.save_for_backward(rows, *sources, weight, bias, mean, var)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    rows, *inputs = ctx.saved_tensors
    found = _backward(gradient, inputs, ctx.firsts, ctx.segments, rows, *ctx.rest)
    return (repeats.by_source(found[:-4], ctx.firsts), *found[-4:], *[None] * 6)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
