"""Transition up: two 3x3 convolutions about a phase shift that doubles the resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ifan import reference
from ifan.ops import checks
from ifan.ops.dispatch import choose, register_kernel
from ifan.ops.gpu import triton_kernels, triton_refusal
from ifan.ops.recompute import empty_gradients, gradients

NAME = "transition_up"


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
    flags = _check(sources, weight_a, weight_b, rows, per_sample)
    chosen = choose(NAME, backend, *sources)
    if chosen == "reference":
        return reference.transition_up(sources, weight_a, weight_b, rows, flags)
    return _forward(sources, weight_a, weight_b, rows, flags, chosen)


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


register_kernel(NAME, "triton", triton_refusal)


@torch.library.custom_op("ifan::transition_up", mutates_args=())
def _forward(
    sources: Sequence[Tensor],
    weight_a: Tensor,
    weight_b: Tensor,
    rows: Tensor | None,
    per_sample: Sequence[bool],
    backend: str,
) -> Tensor:
    if backend == "triton":
        out: Tensor = triton_kernels(NAME).forward(sources, weight_a, weight_b, rows, per_sample)
        return out
    return reference.transition_up(sources, weight_a, weight_b, rows, per_sample).contiguous()


@_forward.register_fake
def _(
    sources: Sequence[Tensor],
    weight_a: Tensor,
    weight_b: Tensor,
    rows: Tensor | None,
    per_sample: Sequence[bool],
    backend: str,
) -> Tensor:
    by_lane = [source.shape[0] for source, flag in zip(sources, per_sample, strict=True) if not flag]
    lanes = by_lane[0] if by_lane or rows is None else rows.shape[0]
    height, width = sources[0].shape[2:]
    return weight_b.new_empty((lanes, weight_b.shape[0], 2 * height, 2 * width), dtype=checks.promoted(sources))


@torch.library.custom_op("ifan::transition_up_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    out: Tensor,
    inputs: Sequence[Tensor],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    if backend == "triton":
        *sources, weight_a, weight_b = inputs
        found: list[Tensor] = triton_kernels(NAME).backward(
            gradient, out, sources, weight_a, weight_b, rows, per_sample
        )
        return found

    def run(*values: Tensor) -> list[Tensor]:
        return [reference.transition_up(values[:-2], values[-2], values[-1], rows, per_sample)]

    return gradients(run, inputs, [gradient])


@_backward.register_fake
def _(gradient: Tensor, out: Tensor, inputs: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return empty_gradients(inputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sources, weight_a, weight_b, rows, *ctx.rest = inputs
    ctx.save_for_backward(rows, output, *sources, weight_a, weight_b)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    rows, out, *inputs = ctx.saved_tensors
    found = _backward(gradient, out, inputs, rows, *ctx.rest)
    return (found[:-2], *found[-2:], None, None, None)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
