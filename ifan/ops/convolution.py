"""The native 3x3 convolution of a concatenation, with its prologue and epilogue, and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ifan.ops.concatenation import Concatenation, Normalisation
from ifan.ops.native import cpu_module


def _parts(lanes: int, pixels: int) -> int:
    """Groups of lanes whose weight gradients are added up at the end.

    Each costs as much as some dozens of tiles, so small maps get few; no number of threads changes a bit.
    """
    return min(lanes, max(2, min(8, lanes * pixels // 4096)))


def convolve(
    x: Concatenation, weight: Tensor, out: Tensor, epilogue: str = "none", norm: Normalisation | None = None
) -> None:
    """Write ``epilogue(conv3x3(relu(norm(x))))`` to ``out``, or without ``norm`` the convolution of ``x`` itself.

    ``weight (O, C, 3, 3)``; float32 ``out (N, O, H, W)`` or, after ``relu_phase_shift``, ``(N, O / 4, 2H, 2W)``, with
    planes in one piece.
    """
    if not x.shape[1]:
        out.zero_()
    if not out.numel() or not x.shape[1]:
        return
    filters = _packed(weight, transposed=False)
    cpu_module().convolution_forward(
        *x.arguments,
        norm.scale.data_ptr() if norm else 0,
        norm.shift.data_ptr() if norm else 0,
        filters.data_ptr(),
        weight.shape[0],
        epilogue,
        out.data_ptr(),
        out.stride(0),
        torch.get_num_threads(),
    )


def differentiate(
    x: Concatenation, weight: Tensor, gradient: Tensor, norm: Normalisation | None = None
) -> tuple[Tensor, Tensor]:
    """Fill ``x.gradients`` for the float32 ``gradient (N, O, H, W)`` of the convolution, planes in one piece.

    Returns the weight's gradient and, with ``norm``, the sums ``(N, C, 2)`` that `Normalisation.gradients` reads.
    """
    lanes, channels, outputs = x.shape[0], x.shape[1], weight.shape[0]
    sums = gradient.new_zeros((lanes, channels, 2) if norm else (0,), dtype=torch.float64)
    if not gradient.numel() or not channels:
        for source in x.gradients:
            source.zero_()
        return torch.zeros_like(weight, memory_format=torch.contiguous_format), sums
    parts = gradient.new_empty((_parts(lanes, x.shape[2] * x.shape[3]), outputs, channels, 3, 3))
    filters = _packed(weight, transposed=True)
    cpu_module().convolution_backward(
        *x.arguments,
        norm.scale.data_ptr() if norm else 0,
        norm.shift.data_ptr() if norm else 0,
        norm.mean.data_ptr() if norm else 0,
        filters.data_ptr(),
        outputs,
        gradient.data_ptr(),
        gradient.stride(0),
        parts.data_ptr(),
        parts.shape[0],
        sums.data_ptr() if norm else 0,
        torch.get_num_threads(),
    )
    return parts.sum(0), sums


def _packed(weight: Tensor, transposed: bool) -> Tensor:
    """The transformed filters, for the gradient of the inputs if ``transposed``."""
    outputs, inputs = (weight.shape[1], weight.shape[0]) if transposed else weight.shape[:2]
    whole = weight.float().contiguous()
    filters = whole.new_empty(cpu_module().packed_filters(outputs, inputs))
    cpu_module().pack_filters(whole.data_ptr(), outputs, inputs, transposed, filters.data_ptr())
    return filters
