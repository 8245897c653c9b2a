"""Shared parts of the references: joined sources, a task's values spread over its lanes, the dtype of sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.concat import Concat, Norm


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if any input is float64, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def per_lane(values: Tensor, segments: Sequence[int]) -> Tensor:
    """``(T, C)`` -> ``(N, C, 1, 1)``, row n that of lane n's task; ``(1, C, 1, 1)`` if only one task has lanes."""
    present = [task for task, lanes in enumerate(segments) if lanes]
    if len(present) <= 1:
        task = present[0] if present else 0
        rows = values[task : task + 1]
    else:
        rows = torch.cat([values[task].expand(segments[task], -1) for task in present])
    return rows[:, :, None, None]


def segment_means(values: Tensor, segments: Sequence[int], empty: float) -> Tensor:
    """Means over the rows of each segment: ``(N, C)`` -> ``(T, C)``; ``empty`` for a segment without rows."""
    parts = values.split(list(segments))
    # The sum of no rows is 0 and keeps the result part of the graph.
    return torch.stack([part.mean(0) if part.shape[0] else part.sum(0) + empty for part in parts])


def join(x: Concat) -> Tensor:
    """The concatenation ``(N, C, H, W)`` itself; sources with a row a sample are gathered by the lanes' rows."""
    maps = [s.tensor.index_select(0, x.lanes.rows) if s.per_sample else s.tensor for s in x.sources]
    return torch.cat(maps, 1) if len(maps) > 1 else maps[0]


def normalise_relu(x: Tensor, norm: Norm, segments: Sequence[int]) -> Tensor:
    """``relu((x - mean) / sqrt(var + eps) * weight + bias)`` with the ``(T, C)`` values of each lane's task.

    In the accumulation dtype; folded into one scale and one shift a channel, as PyTorch's own batch norm does.
    """
    dtype = accumulation_dtype(x.dtype)
    weight, bias, mean, var = (value.to(dtype) for value in norm.tensors)
    scale = weight * torch.rsqrt(var + norm.eps)
    shift = bias - mean * scale
    return torch.addcmul(per_lane(shift, segments), x.to(dtype), per_lane(scale, segments)).relu_()
