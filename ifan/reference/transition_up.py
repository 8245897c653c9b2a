"""Transition up: 3x3 convolution, ReLU, phase shift, 3x3 convolution, ReLU. No normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.reference.lanes import join


def transition_up(
    sources: Sequence[Tensor],
    weight_a: Tensor,
    weight_b: Tensor,
    rows: Tensor | None = None,
    per_sample: Sequence[bool] | None = None,
) -> Tensor:
    """Sources ``(N or R, C_i, H, W)``, ``weight_a (A, C, 3, 3)``, ``weight_b (A', A / 4, 3, 3)`` -> ``(N, A', 2H,
    2W)``."""
    with torch.autocast(weight_a.device.type, enabled=False):
        x = join(sources, rows, per_sample)
        x = F.conv2d(x, weight_a.to(x.dtype), padding=1).relu_()
        return F.conv2d(phase_shift(x), weight_b.to(x.dtype), padding=1).relu_()


def phase_shift(x: Tensor) -> Tensor:
    """``(N, 4c, H, W)`` -> ``(N, c, 2H, 2W)``: channel ``4c + 2i + j`` goes to row offset ``j``, column offset ``i``.

    The released network's order; `torch.nn.functional.pixel_shuffle` is its transpose inside each 2x2 cell.
    """
    n, channels, height, width = x.shape
    cells = x.view(n, channels // 4, 2, 2, height, width).permute(0, 1, 4, 3, 5, 2)
    return cells.reshape(n, channels // 4, 2 * height, 2 * width)
