"""Mean and biased variance of every channel over the lanes of each task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ifan.reference.lanes import accumulation_dtype, per_lane, segment_means


def channel_moments(x: Tensor, segments: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``x (N, C, H, W)`` -> mean ``(T, C)``, biased variance ``(T, C)``; two passes, the second about the mean."""
    x = x.to(accumulation_dtype(x.dtype))
    mean = segment_means(x.mean((2, 3)), segments, empty=0.0)
    var = segment_means((x - per_lane(mean, segments)).square().mean((2, 3)), segments, empty=1.0)
    return mean, var
