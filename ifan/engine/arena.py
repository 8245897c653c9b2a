"""Memory of a native plan: addresses, strides, and the lanes of a batch."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

_HUGE_PAGE = 1 << 21
"""Bytes, as on x86-64 and most aarch64."""


def zeros(floats: int) -> np.ndarray:
    """Zeros ``(floats,)`` in float32, in huge pages where the system has them; ``OSError`` if memory is short.

    Kernels that go through hundreds of planes at once otherwise spend time on finding their pages.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(floats, np.float32)
    memory = mmap.mmap(-1, 4 * floats + _HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a Linux built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    values = np.frombuffer(memory, np.float32)
    first = -address(values) % _HUGE_PAGE // 4
    return values[first : first + floats]


def address(x: np.ndarray) -> int:
    """Address of an array's first value."""
    return x.ctypes.data


@dataclass(frozen=True)
class View:
    """Planes ``(rows, channels, side, side)`` at an address; ``stride`` from row to row, 0 where all share one."""

    address: int
    channels: int
    side: int
    stride: int
    per_sample: bool = False

    @property
    def field(self) -> tuple[int, int, int, int, int]:
        """The view as a kernel reads it: address, channels, strides of rows and planes, a row a sample."""
        return self.address, self.channels, self.stride, self.side**2, int(self.per_sample)

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
        """Context after which all that was taken inside is free again."""
        top = self.top
        yield
        self.top = top


@dataclass(frozen=True)
class PlanLanes:
    """The lanes of some tasks in the plan's order: ``count`` samples each."""

    tasks: tuple[int, ...]  # positions in the configuration
    count: int
    rows: int  # address of the sample of each lane

    @property
    def total(self) -> int:
        """Number of lanes."""
        return self.count * len(self.tasks)


@dataclass(frozen=True)
class LaneMaps:
    """Feature maps that are read as one, with their lanes: what `ifan.wiring.wire` connects.

    A view has a row a lane or, ``per_sample``, a row a sample.
    """

    views: tuple[View, ...]
    lanes: PlanLanes

    def __add__(self, other: LaneMaps) -> LaneMaps:
        return LaneMaps(self.views + other.views, self.lanes)

    def keep(self, tasks: Sequence[int]) -> LaneMaps:
        """See `ifan.wiring.Maps`; the tasks kept stand side by side in the plan's order, so nothing is copied."""
        ours = sorted(self.lanes.tasks)
        kept = tuple(t for t in self.lanes.tasks if t in {ours[at] for at in tasks})
        first = self.lanes.tasks.index(kept[0]) * self.lanes.count
        views = tuple(view if view.per_sample else view.rows_from(first) for view in self.views)
        return LaneMaps(views, replace(self.lanes, tasks=kept))

    @property
    def side(self) -> int:
        """Side of all planes."""
        return self.views[0].side

    @property
    def channels(self) -> int:
        """Channels of all views."""
        return sum(view.channels for view in self.views)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The first four arguments of a kernel: sources, rows, segments, shape."""
        lanes, side = self.lanes, self.side
        shape = (lanes.total, self.channels, side, side)
        return [view.field for view in self.views], lanes.rows, [lanes.count] * len(lanes.tasks), shape

    def unique(self) -> LaneMaps:
        """The maps with each view once."""
        return replace(self, views=tuple(dict.fromkeys(self.views)))

    def merged(self, weight: np.ndarray) -> np.ndarray:
        """The columns of ``weight (O, C, ...)`` for what `unique` reads: those of a doubled view are added."""
        if len(set(self.views)) == len(self.views):
            return weight
        columns: dict[View, np.ndarray] = {}
        first = 0
        for view in self.views:
            part = weight[:, first : first + view.channels]
            columns[view] = columns[view] + part if view in columns else part
            first += view.channels
        return np.concatenate(list(columns.values()), 1)
