"""Lanes in the kernels: a task's values spread over its lanes, gradients collected by sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifan.concat import Concat

from .configs import config_of
from .launch import launch


def rows_of(x: Concat) -> list[Tensor | None]:
    """For each source the lanes' samples if it has a row a sample."""
    return [x.lanes.rows if flag else None for flag in x.per_sample]


def per_lane(values: Tensor, segments: Sequence[int]) -> Tensor:
    """``(T, C)`` -> ``(N, C)`` float32, row n that of lane n's task; expanded on the device, so nothing is awaited."""
    spread = [values[task].expand(lanes, -1) for task, lanes in enumerate(segments)]
    return torch.cat(spread).float().contiguous()


def per_task(values: Tensor, segments: Sequence[int]) -> Tensor:
    """Sums over each task's lanes ``(N, ...)`` -> ``(T, ...)``, in double precision."""
    return torch.stack([part.sum(0) for part in values.double().split(list(segments))])


def collect(by_lane: Tensor, rows: Tensor, samples: int, dtype: torch.dtype) -> Tensor:
    """Sum the lanes of each sample, ``(N, ...)`` -> ``(samples, ...)``, in lane order and without atomics."""
    result = by_lane.new_empty((samples, *by_lane.shape[1:]), dtype=dtype)
    size = result[:1].numel()
    config = config_of(result.device)
    blocks = triton.cdiv(size, config.elements)
    launch(
        collect_kernel,
        (samples, blocks),
        *(by_lane, rows, result, by_lane.shape[0], size),
        BLOCK=config.elements,
        num_warps=config.warps,
    )
    return result


@triton.jit
def collect_kernel(by_lane, rows, result, lanes, size, BLOCK: tl.constexpr):
    sample = tl.program_id(0)
    index = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for lane in range(lanes):
        end = tl.where(tl.load(rows + lane) == sample, size, 0)
        total += tl.load(by_lane + tl.cast(lane, tl.int64) * size + index, mask=index < end, other=0.0).to(tl.float32)
    tl.store(result + sample.to(tl.int64) * size + index, total.to(result.dtype.element_ty), mask=index < size)
