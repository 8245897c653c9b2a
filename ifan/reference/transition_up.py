"""Transition up: 3x3 convolution, ReLU, phase shift, 3x3 convolution, ReLU. No normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.concat import Concat
from ifan.reference.lanes import join


def transition_up(x: Concat, a: Tensor, b: Tensor) -> Tensor:
    """Concatenation ``(N, C, H, W)``, ``a (A, C, 3, 3)``, ``b (A', A / 4, 3, 3)`` -> ``(N, A', 2H, 2W)``."""
    with torch.autocast(a.device.type, enabled=False):
        y = join(x)
        y = F.conv2d(y, a.to(y.dtype), padding=1).relu_()
        return F.conv2d(phase_shift(y), b.to(y.dtype), padding=1).relu_()


def phase_shift(x: Tensor) -> Tensor:
    """``(N, 4c, H, W)`` -> ``(N, c, 2H, 2W)``: channel ``4c + 2i + j`` goes to row offset ``j``, column offset ``i``.

    The released network's order; `torch.nn.functional.pixel_shuffle` is its transpose inside each 2x2 cell.
    """
    n, channels, height, width = x.shape
    cells = x.view(n, channels // 4, 2, 2, height, width).permute(0, 1, 4, 3, 5, 2)
    return cells.reshape(n, channels // 4, 2 * height, 2 * width)
