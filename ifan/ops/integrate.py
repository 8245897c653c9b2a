"""The task-interaction fusion: concatenation, task-wise normalisation, ReLU and average pooling in one operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ifan import reference
from ifan.concat import Concat, Norm, first_occurrences
from ifan.ops import checks, native, repeats
from ifan.ops.backends.cpu import integrate as cpu
from ifan.ops.call import CallCache, operation
from ifan.ops.dispatch import choose, current_backend, register_kernel
from ifan.ops.gpu import kernels, tasks_refusal, triton_refusal
from ifan.ops.recompute import empty_gradients, gradients
from ifan.profiling import ranged

NAME = "integrate"


@ranged(f"ifan.{NAME}")
def integrate(x: Concat, norm: Norm, pool: int = 1, *, backend: str | None = None) -> Tensor:
    """``avg_pool(relu((x - mean) / sqrt(var + eps) * weight + bias))``, each lane with the values of its task.

    Args:
        x: concatenation ``(N, C, H, W)`` of lanes of T tasks. One tensor may stand in it twice.
        norm: weight, bias, mean and var, ``(T, C)`` each, and eps.
        pool: 1, or 2 for the 2x2 average, for which H and W must be even.
        backend: see `ifan.ops.use_backend`.

    Returns:
        ``(N, C, H / pool, W / pool)`` of the sources' (promoted) dtype; computed in float32, or float64 for float64.
        Autocast changes nothing. Differentiable in sources, weight, bias, mean and var.

    Raises:
        ValueError: a shape, dtype, device or row is wrong.

    Source: integration of task maps, iFAN (arXiv 1711.06055); the pooling may go before the 1x1 convolution, as both
    are linear.
    """
    sources, rows, layout = x.flat()
    values = norm.tensors
    tensors = (*sources, *values)

    def check() -> tuple[None, str]:
        _check(x, norm, pool)
        return None, choose(NAME, backend, *tensors)

    constants = backend or current_backend(), tuple(layout), pool, len(sources)
    _, chosen, run = _CALLS(tensors, constants, check, keep=1 not in layout[: len(sources)])
    if chosen == "reference":
        return reference.integrate(x, norm, pool)
    if run is _forward.function:
        return _run(x, norm, pool, chosen)
    found: Tensor = run(sources, values, rows, layout, pool, norm.eps, chosen)
    return found


def _run(x: Concat, norm: Norm, pool: int, backend: str) -> Tensor:
    if backend == "cpu":
        return cpu.forward(x, norm, pool)
    if backend in ("triton", "cuda"):
        found: Tensor = kernels(backend, NAME).forward(x, norm, pool)
        return found
    return reference.integrate(x, norm, pool).contiguous()


def _check(x: Concat, norm: Norm, pool: int) -> None:
    checks.concat(NAME, x)
    checks.norm(NAME, "norm", norm, x, x.channels)
    if norm.mean is None or norm.var is None:
        checks.fail(NAME, "norm must have mean and var; got none. Pass running statistics or those of the batch.")
    height, width = x.shape[2:]
    if pool not in (1, 2):
        checks.fail(NAME, f"pool must be 1 or 2; got {pool}. Choose one of them.")
    if height % pool or width % pool:
        checks.fail(NAME, f"pool=2 needs even H and W; got {(height, width)}. Pad the sources or use pool=1.")


def _check_flat(
    sources: Sequence[Tensor],
    norm: Sequence[Tensor],
    rows: Tensor,
    layout: Sequence[int],
    pool: int,
    eps: float,
    backend: str,
) -> None:
    checks.require(len(norm) == 4, NAME, f"norm must be weight, bias, mean and var; got {len(norm)}. Pass four.")
    _check(Concat.from_flat(sources, rows, layout), Norm.from_flat(norm, eps), pool)


@operation("ifan::integrate", check=_check_flat)
def _forward(
    sources: Sequence[Tensor],
    norm: Sequence[Tensor],
    rows: Tensor,
    layout: Sequence[int],
    pool: int,
    eps: float,
    backend: str,
) -> Tensor:
    return _run(Concat.from_flat(sources, rows, layout), Norm.from_flat(norm, eps), pool, backend)


register_kernel(NAME, "cpu", native.input_refusal)
register_kernel(NAME, "triton", triton_refusal)
register_kernel(NAME, "cuda", tasks_refusal)

_CALLS = CallCache[None](_forward)


@_forward.register_fake
def _(
    sources: Sequence[Tensor],
    norm: Sequence[Tensor],
    rows: Tensor,
    layout: Sequence[int],
    pool: int,
    eps: float,
    backend: str,
) -> Tensor:
    x = Concat.from_flat(sources, rows, layout)
    lanes, channels, height, width = x.shape
    return norm[0].new_empty((lanes, channels, height // pool, width // pool), dtype=x.dtype)


def _check_backward(
    gradient: Tensor, inputs: Sequence[Tensor], rows: Tensor, layout: Sequence[int], pool: int, eps: float, backend: str
) -> None:
    count = max(len(inputs) - 4, 0)
    firsts, layout = layout[:count], layout[count:]
    _check_flat(inputs[:count], inputs[count:], rows, layout, pool, eps, backend)
    x = Concat.from_flat(inputs[:count], rows, layout)
    checks.firsts(NAME, firsts, x)
    lanes, channels, height, width = x.shape
    checks.same_shapes(NAME, "gradient", [gradient], [(lanes, channels, height // pool, width // pool)])


@operation("ifan::integrate_backward", check=_check_backward)
def _backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    rows: Tensor,
    layout: Sequence[int],
    pool: int,
    eps: float,
    backend: str,
) -> list[Tensor]:
    """Gradients of ``inputs``, the sources and the norm's tensors, `ifan.ops.repeats.collected`.

    ``layout`` holds the sources' first occurrences before what forward has.
    """
    count = len(inputs) - 4
    firsts, layout = layout[:count], layout[count:]
    x, norm = Concat.from_flat(inputs[:count], rows, layout), Norm.from_flat(inputs[count:], eps)
    if backend == "cpu":
        return native.in_dtypes_of(repeats.distinct(inputs, firsts), cpu.backward(gradient, x, norm, pool, firsts))
    if backend in ("triton", "cuda"):
        found: list[Tensor] = kernels(backend, NAME).backward(gradient, x, norm, pool)
    else:

        def run(*values: Tensor) -> list[Tensor]:
            return [
                reference.integrate(
                    Concat.from_flat(values[:count], rows, layout), Norm.from_flat(values[count:], eps), pool
                )
            ]

        found = gradients(run, inputs, [gradient])
    return repeats.collected(found, firsts)


@_backward.register_fake
def _(gradient: Tensor, inputs: Sequence[Tensor], rows: Tensor, layout: Sequence[int], *_: Any) -> list[Tensor]:
    return empty_gradients(repeats.distinct(inputs, layout[: len(inputs) - 4]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sources, norm, rows, layout, *ctx.rest = inputs
    ctx.firsts = first_occurrences(sources, layout[: len(sources)])
    ctx.layout = [*ctx.firsts, *layout]
    ctx.save_for_backward(rows, *sources, *norm)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    rows, *inputs = ctx.saved_tensors
    found = _backward(gradient, inputs, rows, ctx.layout, *ctx.rest)
    return (repeats.by_source(found[:-4], ctx.firsts), found[-4:], *[None] * 5)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
