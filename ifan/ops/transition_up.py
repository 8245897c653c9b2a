"""Transition up: two 3x3 convolutions about a phase shift that doubles the resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ifan import reference
from ifan.concat import Concat
from ifan.ops import checks, native
from ifan.ops.backends.cpu import convolution
from ifan.ops.backends.cpu import transition_up as cpu
from ifan.ops.call import CallCache, operation
from ifan.ops.dispatch import choose, current_backend, register_kernel
from ifan.ops.gpu import kernels, triton_refusal
from ifan.ops.recompute import empty_gradients, gradients
from ifan.profiling import ranged

NAME = "transition_up"


@ranged(f"ifan.{NAME}")
def transition_up(x: Concat, a: Tensor, b: Tensor, *, backend: str | None = None) -> Tensor:
    """``relu(conv_b(phase_shift(relu(conv_a(x)))))`` of a concatenation; no normalisation.

    Args:
        x: concatenation ``(N, C, H, W)``.
        a: ``(A, C, 3, 3)``, weight of the first convolution, A a multiple of 4. Both are used in the sources' dtype;
            padding 1.
        b: ``(A', A / 4, 3, 3)``, weight of the second convolution.
        backend: see `ifan.ops.use_backend`.

    Returns:
        ``(N, A', 2H, 2W)`` in the sources' (promoted) dtype. Autocast changes nothing. The phase shift sends channel
        ``4c + 2i + j`` to row offset j, column offset i. Differentiable in sources and both weights.

    Raises:
        ValueError: a shape, dtype, device or row is wrong.

    Source: transition up of iFAN (arXiv 1711.06055) and its release.
    """
    sources, rows, layout = x.flat()
    tensors = (*sources, a, b)

    def check() -> tuple[None, str]:
        _check(x, a, b)
        return None, choose(NAME, backend, *tensors)

    constants = backend or current_backend(), tuple(layout), len(sources)
    _, chosen, run = _CALLS(tensors, constants, check, keep=1 not in layout[: len(sources)])
    convolution.filters.record([a, b])
    if chosen == "reference":
        return reference.transition_up(x, a, b)
    if run is _forward.function:
        return _run(x, a, b, chosen)[0]
    found: tuple[Tensor, Tensor] = run(sources, [a, b], rows, layout, chosen)
    return found[0]


def _run(x: Concat, a: Tensor, b: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    out, shifted = _maps(x, a, b, backend)
    if backend == "cpu":
        return cpu.forward(x, a, b, out, shifted), shifted
    if backend == "triton":
        found: Tensor = kernels(backend, NAME).forward(x, a, b)
        return found, shifted
    return reference.transition_up(x, a, b).contiguous(), shifted


def _maps(x: Concat, a: Tensor, b: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    lanes, _, height, width = x.shape
    out = b.new_empty((lanes, b.shape[0], 2 * height, 2 * width), dtype=x.dtype)
    between = (lanes, a.shape[0] // 4, 2 * height, 2 * width) if backend == "cpu" else (0,)
    return out, out.new_empty(between, dtype=torch.float32)


def _check(x: Concat, a: Tensor, b: Tensor) -> None:
    checks.concat(NAME, x)
    checks.dimensions(NAME, "a", a, "(A, C, 3, 3)")
    checks.dimensions(NAME, "b", b, "(A', A / 4, 3, 3)")
    middle = a.shape[0]
    checks.require(
        middle % 4 == 0, NAME, f"a must have a multiple of 4 output channels; got {middle}. Pad it with zeros."
    )
    checks.shape(NAME, "a", a, (middle, x.channels, 3, 3), "(A, C, 3, 3)")
    checks.shape(NAME, "b", b, (b.shape[0], middle // 4, 3, 3), "(A', A / 4, 3, 3)")
    checks.floating(NAME, x.sources[0].tensor.device, a=a, b=b)


def _check_flat(
    sources: Sequence[Tensor], weights: Sequence[Tensor], rows: Tensor, layout: Sequence[int], backend: str
) -> None:
    checks.require(len(weights) == 2, NAME, f"weights must be a and b; got {len(weights)} tensors. Pass two.")
    _check(Concat.from_flat(sources, rows, layout), *weights)


@operation("ifan::transition_up", check=_check_flat)
def _forward(
    sources: Sequence[Tensor], weights: Sequence[Tensor], rows: Tensor, layout: Sequence[int], backend: str
) -> tuple[Tensor, Tensor]:
    """The result, and for the backward of the native kernel the phase-shifted maps between the two convolutions."""
    a, b = weights
    return _run(Concat.from_flat(sources, rows, layout), a, b, backend)


@_forward.register_fake
def _empty(
    sources: Sequence[Tensor], weights: Sequence[Tensor], rows: Tensor, layout: Sequence[int], backend: str
) -> tuple[Tensor, Tensor]:
    a, b = weights
    return _maps(Concat.from_flat(sources, rows, layout), a, b, backend)


_CALLS = CallCache[None](_forward)
register_kernel(NAME, "cpu", native.input_refusal, convolution.slower_than_pytorch)
register_kernel(NAME, "triton", triton_refusal)


def _check_backward(gradient: Tensor, outputs: Sequence[Tensor], *arguments: Any) -> None:
    _check_flat(*arguments)
    shapes = [tuple(value.shape) for value in _empty(*arguments)]
    checks.same_shapes(NAME, "gradient and outputs", [gradient, *outputs], [shapes[0], *shapes])


@operation("ifan::transition_up_backward", check=_check_backward)
def _backward(
    gradient: Tensor,
    outputs: Sequence[Tensor],
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    rows: Tensor,
    layout: Sequence[int],
    backend: str,
) -> list[Tensor]:
    """Gradients of the sources, then of both weights."""
    x, (a, b) = Concat.from_flat(sources, rows, layout), weights
    if backend == "cpu":
        return native.in_dtypes_of([*sources, a, b], cpu.backward(gradient, outputs, x, a, b))
    if backend == "triton":
        found: list[Tensor] = kernels(backend, NAME).backward(gradient, outputs[0], x, a, b)
        return found

    def run(*values: Tensor) -> list[Tensor]:
        return [reference.transition_up(Concat.from_flat(values[:-2], rows, layout), *values[-2:])]

    return gradients(run, [*sources, a, b], [gradient])


@_backward.register_fake
def _(
    gradient: Tensor, outputs: Sequence[Tensor], sources: Sequence[Tensor], weights: Sequence[Tensor], *_: Any
) -> list[Tensor]:
    return empty_gradients([*sources, *weights])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    sources, weights, rows, *ctx.rest = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(rows, *output, *weights, *sources)


def _differentiate(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Any, ...]:
    rows, out, shifted, a, b, *sources = ctx.saved_tensors
    if gradient is None:
        return ([None] * len(sources), [None, None], None, None, None)
    found = _backward(gradient, [out, shifted], sources, [a, b], rows, *ctx.rest)
    return (found[:-2], found[-2:], None, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
