"""Transition up by the native kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.concat import Concat
from ifan.ops.backends.cpu import convolution
from ifan.ops.backends.cpu.arguments import ConcatFields
from ifan.ops.native import cpu_module, in_dtype


def forward(x: Concat, a: Tensor, b: Tensor, out: Tensor, shifted: Tensor) -> Tensor:
    """The result in the dtype of ``out (N, A', 2H, 2W)``, which may be filled; the phase-shifted maps between the two
    convolutions go to ``shifted (N, A / 4, 2H, 2W)``, float32."""
    made, fields = in_dtype(out, torch.float32), ConcatFields(x)
    if not (fields.shape[1] and shifted.numel() and made.numel()):
        shifted.zero_()
        return out.zero_()
    isa, filters = convolution.filters.get([a, b], lambda: convolution.pack([(a, slice(None)), (b, slice(None))]))
    cpu_module().transition_up_forward(
        *fields.arguments,
        isa,
        filters.data_ptr(),
        [a.shape[0], b.shape[0]],
        shifted.data_ptr(),
        made.data_ptr(),
        torch.get_num_threads(),
    )
    return in_dtype(made, out.dtype)


def backward(gradient: Tensor, outputs: Sequence[Tensor], x: Concat, a: Tensor, b: Tensor) -> list[Tensor]:
    """float32 gradients of the sources, then of both weights; ``outputs``: the result and the phase-shifted maps."""
    out, shifted = outputs
    between = ConcatFields(Concat.of(x.lanes, shifted), [0])
    of_b = convolution.differentiate(between, b, _through_relu(gradient, out))
    to_a = _phase_shift_backward(_through_relu(between.gradients[0], shifted))
    fields = ConcatFields(x, range(len(x.sources)))
    of_a = convolution.differentiate(fields, a, to_a)
    return [*fields.source_gradients(), of_a, of_b]


def _through_relu(gradient: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(gradient.float().contiguous(), out.float(), 0)


def _phase_shift_backward(gradient: Tensor) -> Tensor:
    """``(N, c, 2H, 2W)`` -> ``(N, 4c, H, W)``, the transpose of `ifan.reference.transition_up.phase_shift`."""
    cells = gradient.unflatten(2, (-1, 2)).unflatten(4, (-1, 2))  # (N, c, H, j, W, i)
    return cells.permute(0, 1, 5, 3, 2, 4).flatten(1, 3).contiguous()
