"""The two nouns of the operations: feature maps that are concatenated by name only, and the normalisation of a task.

A *lane* is one sample on one task's path. Lanes are stacked on the batch axis, grouped by task; convolution weights
are the same for all of them, only the normalisation differs. `Concat` is the ordered list of sources that the paper's
graph concatenates; the concatenation is never written, the operations read the list. Knows torch and the
configuration only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ifan.config import EPSILON, NetworkConfig

Moments = tuple[Tensor, Tensor]
"""Mean and biased variance of each channel over a task's lanes and all pixels, ``(T, C)`` each."""

Parts = tuple[Tensor, ...] | None
"""The lanes of each task, views of the whole, or ``None``: see `ifan.ops.by_task`."""

MomentsReduce = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Joins moments over processes: (mean (T, C), var (T, C), counts (T,)) of this process to those of all;
differentiable."""


class Norm(NamedTuple):
    """Normalisation ``(x - mean) / sqrt(var + eps) * weight + bias`` with values of each task, ``(T, C)`` each.

    Without ``mean`` and ``var`` they are those of the batch, where an operation computes them (`ifan.ops.dense_block`).
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor | None = None
    var: Tensor | None = None
    eps: float = EPSILON

    @staticmethod
    def from_flat(tensors: Sequence[Tensor], eps: float = EPSILON) -> Norm:
        """The `Norm` of these ``tensors``: weight and bias, or these and mean and var."""
        if len(tensors) == 2:
            return Norm(tensors[0], tensors[1], eps=eps)
        weight, bias, mean, var = tensors
        return Norm(weight, bias, mean, var, eps)

    @property
    def tensors(self) -> list[Tensor]:
        """Weight, bias, and mean and var if they are given."""
        return [x for x in self[:4] if x is not None]


class DenseLayer(NamedTuple):
    """A layer of a dense block: normalisation, ReLU and 3x3 convolution by ``weight (G, C, 3, 3)``."""

    weight: Tensor
    norm: Norm


@dataclass(frozen=True)
class Lanes:
    """Samples and the tasks' paths on which they run.

    ``rows`` (N,) int64: the sample of each lane, grouped by task in the configuration's order; ``segments``: lanes of
    each task, zeros allowed, summing to N; ``global_segments``: the same over all processes, where several train
    together; ``in_order``: ``rows`` are 0 to N - 1, so that a row a sample is a row a lane.
    """

    rows: Tensor
    segments: tuple[int, ...]
    global_segments: tuple[int, ...] = ()
    in_order: bool = False

    def __post_init__(self) -> None:
        if self.rows.dim() != 1 or sum(self.segments) != self.rows.shape[0] or min(self.segments, default=0) < 0:
            raise ValueError(
                f"Lanes: segments must be non-negative and sum to the number of rows; got {self.segments} and rows of "
                f"shape {tuple(self.rows.shape)}. Give one row a lane, grouped by task."
            )
        if not self.global_segments:
            object.__setattr__(self, "global_segments", self.segments)

    @staticmethod
    def ordered(segments: Sequence[int], device: torch.device | str = "cpu") -> Lanes:
        """One lane a sample, in the samples' order: ``segments`` says how many each task has."""
        return Lanes(torch.arange(sum(segments), device=device), tuple(segments), in_order=True)

    @staticmethod
    def for_tasks(batch: int, config: NetworkConfig, names: Sequence[str], device: torch.device | str = "cpu") -> Lanes:
        """Every one of ``batch`` samples on the paths of the named tasks; unknown names raise ``ValueError``."""
        wanted = {config.task(name).name for name in names}
        segments = tuple(batch if t.name in wanted else 0 for t in config.tasks)
        return Lanes(torch.arange(batch, device=device).repeat(len(wanted)), segments)

    @staticmethod
    def all_tasks(batch: int, config: NetworkConfig, device: torch.device | str = "cpu") -> Lanes:
        """Every one of ``batch`` samples on every task's path."""
        return Lanes.for_tasks(batch, config, [t.name for t in config.tasks], device)

    def split(self) -> tuple[Tensor, ...]:
        """The samples of each task's lanes."""
        return self.rows.split(list(self.segments))

    def keep(self, tasks: Sequence[int]) -> tuple[Tensor | slice, Lanes]:
        """The lanes of the tasks at these positions: an index into the lane axis (a view where they lie together) and
        the smaller `Lanes`."""
        parts = [(end - n, end) for end, n in zip(accumulate(self.segments), self.segments, strict=True)]
        kept = [parts[t] for t in tasks]
        together = all(a[1] == b[0] for a, b in pairwise(kept))
        index: Tensor | slice = slice(kept[0][0], kept[-1][1])
        if not together:
            index = torch.cat([torch.arange(a, b, device=self.rows.device) for a, b in kept])
        segments, everywhere = (tuple(n[t] for t in tasks) for n in (self.segments, self.global_segments))
        return index, Lanes(self.rows[index], segments, everywhere)


class Source(NamedTuple):
    """One tensor of a `Concat`.

    ``tensor``: ``(N, C_i, H, W)`` with a row a lane or, if ``per_sample``, ``(B, C_i, H, W)`` with a row a sample.
    ``moments``: its statistics where the network normalises with those of the batch. ``by_task``: the lanes of each
    task, whose gradients have a shorter way back than those of lanes that are cut out here (`ifan.ops.by_task`).
    """

    tensor: Tensor
    per_sample: bool = False
    moments: Moments | None = None
    by_task: Parts = None


@dataclass(frozen=True)
class Concat:
    """Sources that stand for their concatenation on the channel axis, and the lanes on which they are read."""

    sources: tuple[Source, ...]
    lanes: Lanes

    @staticmethod
    def of(lanes: Lanes, *tensors: Tensor, per_sample: Sequence[bool] | bool = False) -> Concat:
        """Tensors without moments; ``per_sample`` says of each, or of all, whether it has a row a sample."""
        flags = [per_sample] * len(tensors) if isinstance(per_sample, bool) else per_sample
        return Concat(tuple(Source(x, flag) for x, flag in zip(tensors, flags, strict=True)), lanes)

    def __add__(self, other: Concat) -> Concat:
        """Concatenation: the sources of ``self``, then those of ``other``."""
        return Concat(self.sources + other.sources, self.lanes)

    @property
    def tensors(self) -> list[Tensor]:
        """The sources' tensors."""
        return [source.tensor for source in self.sources]

    @property
    def per_sample(self) -> list[bool]:
        """For each source whether it has a row a sample."""
        return [source.per_sample for source in self.sources]

    @property
    def channels(self) -> int:
        """Channels of the concatenation."""
        return sum(source.tensor.shape[1] for source in self.sources)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape ``(N, C, H, W)`` of the concatenation."""
        height, width = self.sources[0].tensor.shape[2:]
        return sum(self.lanes.segments), self.channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the concatenation."""
        return promoted(self.tensors)

    def flat(self) -> tuple[list[Tensor], Tensor, list[int]]:
        """Tensors, rows and layout, as registered operations take a `Concat`; `from_flat` is the way back."""
        tensors = [source.tensor for source in self.sources]
        return tensors, self.lanes.rows, [*[int(source.per_sample) for source in self.sources], *self.lanes.segments]

    @staticmethod
    def from_flat(tensors: Sequence[Tensor], rows: Tensor, layout: Sequence[int]) -> Concat:
        """The `Concat` of which `flat` made these: ``layout`` holds each source's ``per_sample``, then the
        segments."""
        count = len(tensors)
        sources = tuple(Source(x, bool(flag)) for x, flag in zip(tensors, layout[:count], strict=True))
        return Concat(sources, Lanes(rows, tuple(layout[count:])))

    def moments_of(self, channels: int) -> Moments:
        """Moments of the concatenation's first channels, ``(T, channels)`` each; only in training, where every source
        has its own."""
        known = [source.moments for source in self.sources if source.moments is not None]
        mean, var = torch.cat([m for m, _ in known], 1), torch.cat([v for _, v in known], 1)
        return mean[:, :channels], var[:, :channels]

    def keep(self, tasks: Sequence[int]) -> Concat:
        """The lanes, and moments, of the tasks at these positions."""
        index, lanes = self.lanes.keep(tasks)
        kept = []
        for x, per_sample, moments, by_task in self.sources:
            if not per_sample:
                x = by_task[tasks[0]] if by_task and len(tasks) == 1 else x[index]
            of_tasks = None if moments is None else (moments[0][list(tasks)], moments[1][list(tasks)])
            kept.append(Source(x, per_sample, of_tasks))
        return Concat(tuple(kept[i] for i in self.firsts()), lanes)  # a doubled source stays one tensor

    def tail(self, start: int) -> Concat:
        """The sources from position ``start`` on."""
        return replace(self, sources=self.sources[start:])

    def firsts(self) -> list[int]:
        """For each source the position at which the same tensor stands first, read in the same way: a row a lane or a
        row a sample."""
        return first_occurrences(self.tensors, self.per_sample)

    def unique(self, weight: Tensor) -> tuple[Concat, Tensor]:
        """Read doubled sources once: the distinct ones, and ``weight (O, C, k, k)`` with the copies' columns added.

        Exact for a convolution that reads the raw concatenation (a skip holds its block's input twice).
        """
        columns: dict[int, Tensor] = {}
        for at, part in zip(self.firsts(), weight.split([x.shape[1] for x in self.tensors], 1), strict=True):
            columns[at] = columns[at] + part if at in columns else part
        picked, parts = tuple(self.sources[i] for i in columns), list(columns.values())
        return replace(self, sources=picked), parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def by_lane(self) -> list[Tensor]:
        """The sources' tensors with a row a lane."""
        return [x[self.lanes.rows] if flag else x for x, flag in zip(self.tensors, self.per_sample, strict=True)]

    def concatenated(self) -> Tensor:
        """The concatenation itself, ``(N, C, H, W)``, for the few places that read it raw."""
        return torch.cat(self.by_lane(), 1)

    def pointwise(self, weight: Tensor) -> Tensor:
        """1x1 convolution of the raw concatenation, which is not written: ``(N, O, H, W)`` by ``weight (O, C, 1, 1)``.

        A product a source, added up. With few outputs most of `torch.nn.functional.conv2d` is rearranging its input.
        """
        maps = self.by_lane()
        out: Tensor | None = None
        for part, x in zip(weight.flatten(1).split([x.shape[1] for x in maps], 1), maps, strict=True):
            factors = part.expand(x.shape[0], -1, -1), x.flatten(2)
            out = torch.bmm(*factors) if out is None else torch.baddbmm(out, *factors)
        if out is None:
            raise ValueError("pointwise: expected at least one source; got none. Pass the maps to convolve.")
        return out.unflatten(2, maps[0].shape[2:])


def promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype of the tensors' concatenation, that to which all are promoted."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def first_occurrences(tensors: Sequence[Tensor], per_sample: Sequence[int]) -> list[int]:
    """For each tensor the position at which the same one stands first, read in the same way: a row a lane or a row a
    sample."""
    read = list(zip(map(id, tensors), per_sample, strict=True))
    return [read.index(one) for one in read]


def norms_from_flat(tensors: Sequence[Tensor], layers: int, eps: float) -> list[Norm]:
    """Norms of the layers of a dense block from the tensors of all of them, one norm behind the other: four tensors a
    layer or, with batch statistics, two for each layer but the first."""
    each = [4] + [4 if len(tensors) == 4 * layers else 2] * (layers - 1)
    return [Norm.from_flat(tensors[end - n : end], eps) for end, n in zip(accumulate(each), each, strict=True)]


def joined_moments(x: Tensor, moments: Moments, lanes: Lanes, reduce: MomentsReduce | None) -> Moments:
    """This process's ``moments`` of ``x``, joined over processes by ``reduce``."""
    if reduce is None:
        return moments
    pixels = x.shape[2] * x.shape[3]
    counts = torch.tensor([n * pixels for n in lanes.segments], dtype=moments[0].dtype, device=x.device)
    mean, var, _ = reduce(*moments, counts)
    return mean, var


def pooled_moments(mean: Tensor, var: Tensor, segments: Sequence[int]) -> Moments:
    """Moments ``(1, C)`` of the lanes of all tasks together, from those of each ``(T, C)``; 0 and 1 without lanes."""
    if not sum(segments):
        return mean.new_zeros(1, mean.shape[1]), var.new_ones(1, var.shape[1])
    share = mean.new_tensor(segments)[:, None] / sum(segments)
    joined = (share * mean).sum(0, keepdim=True)
    return joined, (share * (var + (mean - joined) ** 2)).sum(0, keepdim=True)
