"""Predictions of all tasks drawn as planes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.reference.lanes import accumulation_dtype


def encode_predictions(
    parsing_logits: Tensor, points: Tensor, class_logits: Tensor, class_sizes: Sequence[int], radius: int = 5
) -> Tensor:
    """``(B, K, S, S)``, ``(B, 2, P)``, ``(B, sum C)`` -> ``(B, K + P + sum C, S, S)`` of the parsing logits' dtype."""
    size, dtype = parsing_logits.shape[-1], parsing_logits.dtype
    groups = [group.softmax(1) for group in class_logits.to(dtype).split(list(class_sizes), 1)]
    constant = [group[:, :, None, None].expand(-1, -1, size, size) for group in groups]
    return torch.cat([parsing_logits.softmax(1), draw_discs(points, size, radius).to(dtype), *constant], 1).to(dtype)


def draw_discs(points: Tensor, size: int, radius: int) -> Tensor:
    """Boolean discs ``(B, P, size, size)`` about points ``(B, 2, P)`` in [-.5, .5].

    The centre is rounded to a whole pixel, half to even; a pixel is set where ``dx**2 + dy**2 < radius**2``.
    """
    points = points.detach().to(accumulation_dtype(points.dtype))
    centre = torch.round((points + 0.5) * size)
    index = torch.arange(size, dtype=points.dtype, device=points.device)
    dx, dy = (index - centre[..., None]).square().unbind(1)
    return dx[:, :, None, :] + dy[:, :, :, None] < radius * radius
