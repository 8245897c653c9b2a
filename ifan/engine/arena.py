"""Where the planes of a native plan lie: addresses, strides, and the lanes of a batch."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_HUGE_PAGE = 1 << 21
"""Bytes, as on x86-64 and most aarch64."""


def zeros(floats: int) -> Tensor:
    """Zeros ``(floats,)`` in float32, in huge pages where the system has them; ``OSError`` if memory is short.

    Kernels that go through hundreds of planes at once otherwise spend time on finding their pages.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(floats)
    memory = mmap.mmap(-1, 4 * floats + _HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a Linux built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    values = torch.frombuffer(memory, dtype=torch.float32)
    first = -values.data_ptr() % _HUGE_PAGE // 4
    return values[first : first + floats]


@dataclass(frozen=True)
class View:
    """Planes ``(rows, channels, side, side)`` at an address; ``stride`` from row to row, 0 where all share one."""

    address: int
    channels: int
    side: int
    stride: int
    per_sample: bool = False

    def field(self, samples: int) -> tuple[int, int, int, int, int]:
        """The view as a kernel reads it: address, channels, strides of rows and planes, rows if it has one a sample."""
        return self.address, self.channels, self.stride, self.side**2, samples if self.per_sample else 0

    def rows_from(self, row: int) -> View:
        """The rows from ``row`` on."""
        return replace(self, address=self.address + 4 * row * self.stride)

    def channels_from(self, first: int, count: int) -> View:
        """``count`` channels from ``first`` on."""
        return replace(self, address=self.address + 4 * first * self.side**2, channels=count)


class Arena:
    """Addresses inside one piece of memory, handed out as a stack."""

    def __init__(self, base: int) -> None:
        self.base, self.top, self.size = base, 0, 0

    def take(self, floats: int) -> int:
        """The address of so many new floats."""
        at = self.base + 4 * self.top
        self.top += -(-floats // 16) * 16 + 80  # planes of neighbouring tensors shall not share cache sets
        self.size = max(self.size, self.top)
        return at

    def maps(self, rows: int, channels: int, side: int, per_sample: bool = False) -> View:
        """New planes ``(rows, channels, side, side)``."""
        stride = channels * side**2
        return View(self.take(rows * stride), channels, side, stride, per_sample)

    @contextmanager
    def frame(self) -> Iterator[None]:
        """What is taken inside is free again afterwards."""
        top = self.top
        yield
        self.top = top


@dataclass(frozen=True)
class PlanLanes:
    """The lanes of some tasks in the plan's order: ``count`` samples each, starting at lane ``first``."""

    tasks: tuple[int, ...]  # positions in the configuration
    count: int
    rows: int  # address of the sample of each lane
    first: int = 0

    @property
    def total(self) -> int:
        return self.count * len(self.tasks)

    @property
    def segments(self) -> list[int]:
        return [self.count] * len(self.tasks)

    def prefix(self, tasks: Sequence[int]) -> PlanLanes:
        return replace(self, tasks=self.tasks[: len(tasks)])

    def only(self, task: int) -> PlanLanes:
        return replace(self, tasks=(task,), first=self.first + self.count * self.tasks.index(task))

    def read(self, sources: Sequence[View], side: tuple[int, int] | None = None) -> tuple[Any, ...]:
        """The first four arguments of a kernel."""
        views = [s if s.per_sample else s.rows_from(self.first) for s in sources]
        height, width = side or (sources[0].side, sources[0].side)
        shape = (self.total, sum(s.channels for s in sources), height, width)
        return [s.field(self.count) for s in views], self.rows + 8 * self.first, self.segments, shape
