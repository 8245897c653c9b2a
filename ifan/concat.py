"""Lanes, and feature maps that are concatenated by name only.

A *lane* is one sample on one task's path. Lanes are stacked on the batch axis, grouped by task; convolution weights
are the same for all of them, only the normalisation differs. `Concat` is the ordered list of tensors that the
paper's graph concatenates; the concatenation is never written, the ops read the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ifan.config import NetworkConfig
from ifan.ops.channel_moments import Parts
from ifan.ops.repeats import first_occurrences

Moments = tuple[Tensor, Tensor]
"""Mean and biased variance of each channel over a task's lanes and all pixels, ``(T, C)`` each."""

MomentsReduce = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Joins moments over processes: (mean (T, C), var (T, C), counts (T,)) of this process to those of all;
differentiable."""


@dataclass(frozen=True)
class Lanes:
    """Which samples run on which tasks' paths.

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


@dataclass(frozen=True)
class Concat:
    """Tensors that stand for their concatenation on the channel axis.

    ``sources`` are ``(N, C_i, H, W)`` with a row a lane or, where ``per_sample`` is true, ``(B, C_i, H, W)`` with a
    row a sample. ``moments`` hold each source's statistics when the network normalises with those of the batch, else
    ``None``. ``by_task`` holds for each source the lanes of each task, whose gradients have a shorter way back than
    those of lanes that are cut out here (`ifan.ops.by_task`), or ``None``.
    """

    lanes: Lanes
    sources: tuple[Tensor, ...]
    per_sample: tuple[bool, ...]
    moments: tuple[Moments | None, ...]
    by_task: tuple[Parts, ...]

    @staticmethod
    def of(
        lanes: Lanes,
        source: Tensor,
        moments: Moments | None = None,
        per_sample: bool = False,
        by_task: Parts = None,
    ) -> Concat:
        """A list of one tensor."""
        return Concat(lanes, (source,), (per_sample,), (moments,), (by_task,))

    def __add__(self, other: Concat) -> Concat:
        """Concatenation: the tensors of ``self``, then those of ``other``."""
        return Concat(
            self.lanes,
            self.sources + other.sources,
            self.per_sample + other.per_sample,
            self.moments + other.moments,
            self.by_task + other.by_task,
        )

    @property
    def segments(self) -> list[int]:
        """Lanes of each task."""
        return list(self.lanes.segments)

    @property
    def channels(self) -> int:
        """Channels of the concatenation."""
        return sum(s.shape[1] for s in self.sources)

    def moments_of(self, channels: int) -> Moments:
        """Moments of the concatenation's first channels, ``(T, channels)`` each; only in training, where every source
        has its own."""
        known = [m for m in self.moments if m is not None]
        mean, var = torch.cat([m for m, _ in known], 1), torch.cat([v for _, v in known], 1)
        return mean[:, :channels], var[:, :channels]

    def keep(self, tasks: Sequence[int]) -> Concat:
        """The lanes, and moments, of the tasks at these positions."""
        index, lanes = self.lanes.keep(tasks)
        kept = []
        for source, per_sample, by_task in zip(self.sources, self.per_sample, self.by_task, strict=True):
            if per_sample:
                kept.append(source)
            else:
                kept.append(by_task[tasks[0]] if by_task and len(tasks) == 1 else source[index])
        moments = [m and (m[0][list(tasks)], m[1][list(tasks)]) for m in self.moments]
        firsts = first_occurrences(self.sources, self.per_sample)  # a doubled source stays one tensor
        sources, nothing = tuple(kept[i] for i in firsts), (None,) * len(firsts)
        return Concat(lanes, sources, self.per_sample, tuple(moments[i] for i in firsts), nothing)

    def tail(self, start: int) -> Concat:
        """The tensors from position ``start`` on."""
        rest = slice(start, None)
        return Concat(self.lanes, self.sources[rest], self.per_sample[rest], self.moments[rest], self.by_task[rest])

    def unique(self, weight: Tensor) -> tuple[Concat, Tensor]:
        """Read doubled sources once: the distinct tensors, and ``weight (O, C, k, k)`` with the copies' columns added.

        Exact for a convolution that reads the raw concatenation (a skip holds its block's input twice).
        """
        firsts = first_occurrences(self.sources, self.per_sample)
        columns: dict[int, Tensor] = {}
        for at, part in zip(firsts, weight.split([s.shape[1] for s in self.sources], 1), strict=True):
            columns[at] = columns[at] + part if at in columns else part
        picked = Concat(
            self.lanes,
            tuple(self.sources[i] for i in columns),
            tuple(self.per_sample[i] for i in columns),
            tuple(self.moments[i] for i in columns),
            tuple(self.by_task[i] for i in columns),
        )
        parts = list(columns.values())
        return picked, parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def concatenated(self) -> Tensor:
        """The concatenation itself, ``(N, C, H, W)``, for the few places that read it raw."""
        return torch.cat(self._by_lane(), 1)

    def pointwise(self, weight: Tensor) -> Tensor:
        """1x1 convolution of the raw concatenation, which is not written: ``(N, O, H, W)`` by ``weight (O, C, 1, 1)``.

        A product a source, added up. With few outputs most of `torch.nn.functional.conv2d` is rearranging its input.
        """
        maps = self._by_lane()
        out: Tensor | None = None
        for part, x in zip(weight.flatten(1).split([x.shape[1] for x in maps], 1), maps, strict=True):
            factors = part.expand(x.shape[0], -1, -1), x.flatten(2)
            out = torch.bmm(*factors) if out is None else torch.baddbmm(out, *factors)
        if out is None:
            raise ValueError("pointwise: expected at least one source; got none")
        return out.unflatten(2, maps[0].shape[2:])

    def _by_lane(self) -> list[Tensor]:
        return [s[self.lanes.rows] if p else s for s, p in zip(self.sources, self.per_sample, strict=True)]


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
