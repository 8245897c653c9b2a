"""Transition up: two 3x3 convolutions about a phase shift that doubles the resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ifan import reference
from ifan.ops import checks, convolution, native
from ifan.ops.call import CallCache, operation
from ifan.ops.concatenation import Concatenation
from ifan.ops.dispatch import choose, current_backend, register_kernel
from ifan.ops.gpu import kernels, triton_refusal
from ifan.ops.recompute import empty_gradients, gradients
from ifan.profiling import ranged

NAME = "transition_up"


@ranged(f"ifan.{NAME}")
def transition_up(
    sources: Sequence[Tensor],
    weight_a: Tensor,
    weight_b: Tensor,
    rows: Tensor | None = None,
    per_sample: Sequence[bool] | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """``relu(conv_b(phase_shift(relu(conv_a(x)))))`` of the concatenated sources; no normalisation.

    Args:
        sources: tensors ``(N, C_i, H, W)``, or ``(R, C_i, H, W)`` with a row a sample where ``per_sample`` says so;
            concatenated along channels, C in all.
        weight_a: ``(A, C, 3, 3)``, A a multiple of 4; weight_b: ``(A', A / 4, 3, 3)``. Used in the sources' dtype;
            padding 1.
        rows: ``(N,)`` int64, the sample of each lane; needed if a source has a row a sample.
        per_sample: one flag a source; default all False.
        backend: see `ifan.ops.use_backend`.

    Returns:
        ``(N, A', 2H, 2W)`` in the sources' (promoted) dtype. Autocast changes nothing. The phase shift sends channel
        ``4c + 2i + j`` to row offset j, column offset i. Differentiable in sources and both weights.

    Raises:
        ValueError: a shape, dtype, device or row is wrong.

    Source: transition up of iFAN (arXiv 1711.06055) and its release.
    """
    tensors = (*sources, weight_a, weight_b)

    def check_call() -> tuple[list[bool], str]:
        return _check(sources, weight_a, weight_b, rows, per_sample), choose(NAME, backend, *tensors)

    told = backend or current_backend(), per_sample and len(per_sample)
    flags, chosen, run = _CALLS(tensors, told, check_call, keep=not any(per_sample or ()))
    if chosen == "reference":
        return reference.transition_up(sources, weight_a, weight_b, rows, flags)
    return run(sources, weight_a, weight_b, rows, flags, chosen)[0]


def _check(
    sources: Sequence[Tensor],
    weight_a: Tensor,
    weight_b: Tensor,
    rows: Tensor | None,
    per_sample: Sequence[bool] | None,
) -> list[bool]:
    _, channels, flags = checks.sources_of(NAME, sources, None, rows, per_sample)
    checks.dimensions(NAME, "weight_a", weight_a, "(A, C, 3, 3)")
    checks.dimensions(NAME, "weight_b", weight_b, "(A', A / 4, 3, 3)")
    middle = weight_a.shape[0]
    checks.require(
        middle % 4 == 0, NAME, f"weight_a must have a multiple of 4 output channels; got {middle}. Pad it with zeros."
    )
    checks.shape(NAME, "weight_a", weight_a, (middle, channels, 3, 3), "(A, C, 3, 3)")
    checks.shape(NAME, "weight_b", weight_b, (weight_b.shape[0], middle // 4, 3, 3), "(A', A / 4, 3, 3)")
    checks.floating(NAME, sources[0].device, weight_a=weight_a, weight_b=weight_b)
    return flags


@operation("ifan::transition_up")
def _forward(
    sources: Sequence[Tensor],
    weight_a: Tensor,
    weight_b: Tensor,
    rows: Tensor | None,
    per_sample: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The result, and for the backward of the native kernel the phase-shifted maps between the two convolutions."""
    out, shifted = _empty(sources, weight_a, weight_b, rows, per_sample, backend)
    if backend == "cpu":
        x, made = Concatenation(sources, [out.shape[0]], rows, per_sample), native.in_dtype(out, torch.float32)
        _convolve(x, [weight_a, weight_b], shifted, made)
        return native.in_dtype(made, out.dtype), shifted
    if backend == "triton":
        found: Tensor = kernels(backend, NAME).forward(sources, weight_a, weight_b, rows, per_sample)
        return found, shifted
    return reference.transition_up(sources, weight_a, weight_b, rows, per_sample).contiguous(), shifted


def _convolve(x: Concatenation, weights: Sequence[Tensor], shifted: Tensor, out: Tensor) -> None:
    if not (x.shape[1] and shifted.numel() and out.numel()):
        shifted.zero_()
        out.zero_()
        return
    module, outputs = native.cpu_module(), [weight.shape[0] for weight in weights]

    def kernel(isa: str, filters: int, same: convolution.Pieces) -> bool:
        maps = shifted.data_ptr(), out.data_ptr()
        return bool(
            module.transition_up_forward(*x.arguments, isa, filters, outputs, *maps, torch.get_num_threads(), same)
        )

    whole = slice(None)
    convolution.Filters.use(weights, lambda: convolution.pack([(weight, whole) for weight in weights]), kernel)


def _empty(
    sources: Sequence[Tensor],
    weight_a: Tensor,
    weight_b: Tensor,
    rows: Tensor | None,
    per_sample: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor]:
    by_lane = [source.shape[0] for source, flag in zip(sources, per_sample, strict=True) if not flag]
    lanes = by_lane[0] if by_lane or rows is None else rows.shape[0]
    height, width = sources[0].shape[2:]
    out = weight_b.new_empty((lanes, weight_b.shape[0], 2 * height, 2 * width), dtype=checks.promoted(sources))
    between = (lanes, weight_a.shape[0] // 4, 2 * height, 2 * width) if backend == "cpu" else (0,)
    return out, out.new_empty(between, dtype=torch.float32)


_CALLS = CallCache[list[bool]](_forward)
_forward.register_fake(_empty)
register_kernel(NAME, "cpu", native.input_refusal, convolution.slower_than_pytorch)
register_kernel(NAME, "triton", triton_refusal)


@operation("ifan::transition_up_backward")
def _backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    if backend == "cpu":
        return _cpu_backward(gradient, inputs, outputs, rows, per_sample)
    if backend == "triton":
        *sources, weight_a, weight_b = inputs
        found: list[Tensor] = kernels(backend, NAME).backward(
            gradient, outputs[0], sources, weight_a, weight_b, rows, per_sample
        )
        return found

    def run(*values: Tensor) -> list[Tensor]:
        return [reference.transition_up(values[:-2], values[-2], values[-1], rows, per_sample)]

    return gradients(run, inputs, [gradient])


def _cpu_backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    rows: Tensor | None,
    per_sample: Sequence[bool],
) -> list[Tensor]:
    *sources, weight_a, weight_b = inputs
    out, shifted = outputs
    between = Concatenation([shifted], [shifted.shape[0]], None, [False], True)
    of_b = convolution.differentiate(between, weight_b, _through_relu(gradient, out))
    to_a = _phase_shift_backward(_through_relu(between.gradients[0], shifted))
    x = Concatenation(sources, [out.shape[0]], rows, per_sample, True)
    of_a = convolution.differentiate(x, weight_a, to_a)
    return native.in_dtypes_of(inputs, [*x.source_gradients(), of_a, of_b])


def _through_relu(gradient: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(gradient.float().contiguous(), out.float(), 0)


def _phase_shift_backward(gradient: Tensor) -> Tensor:
    """``(N, c, 2H, 2W)`` -> ``(N, 4c, H, W)``, the transpose of `ifan.reference.transition_up.phase_shift`."""
    cells = gradient.unflatten(2, (-1, 2)).unflatten(4, (-1, 2))  # (N, c, H, j, W, i)
    return cells.permute(0, 1, 5, 3, 2, 4).flatten(1, 3).contiguous()


@_backward.register_fake
def _(gradient: Tensor, inputs: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return empty_gradients(inputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    sources, weight_a, weight_b, rows, *ctx.rest = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(rows, *output, *sources, weight_a, weight_b)


def _differentiate(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Any, ...]:
    rows, out, shifted, *inputs = ctx.saved_tensors
    if gradient is None:
        return ([None] * (len(inputs) - 2), *[None] * 5)
    found = _backward(gradient, inputs, [out, shifted], rows, *ctx.rest)
    return (found[:-2], *found[-2:], None, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
