"""The graph of iFAN, once: which layer reads what, for whatever is walked along it.

`wire` is the paper's figure as a function. The PyTorch network, the native engine's recorder, the exported graph and
the channel counts (`Widths`) each give it their own layers and maps; a level or a head is added here alone. The graph
is that of the released three-task code of Li et al., "Integrated Face Analytics Networks through Cross-Dataset Hybrid
Training" (arXiv 1711.06055).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Protocol, TypeVar

from ifan.config import NetworkConfig, TaskConfig

LEVELS = 5
"""Levels of the down path, from the finest."""

MIDDLE = LEVELS
"""Index of the dense block at the lowest resolution: those before it lie on the down path, those after it on the up
path."""

BGR_MEAN = (103.939, 116.779, 123.68)
"""Means that are subtracted from an image's channels, which are 0 to 255."""

ENCODER_WIDTHS = (24, 48, 64)
FIRST_FILTERS = 16
"""The release's filter counter starts here although the stem gives 48 channels; it sets the widths of the transitions
down."""


class Maps(Protocol):
    """Feature maps of some tasks' lanes; ``+`` concatenates channels."""

    def __add__(self: M, other: M, /) -> M: ...

    def keep(self: M, tasks: Sequence[int], /) -> M:
        """The maps of the tasks at these positions among those that they belong to."""
        ...


M = TypeVar("M", bound=Maps)
P_co = TypeVar("P_co", covariant=True)


class Net(Protocol[M, P_co]):
    """Layers that `wire` connects."""

    config: NetworkConfig

    def dense(self, block: int, x: M, /) -> M:
        """The channels that dense block ``block`` grows from ``x``, without ``x``."""
        ...

    def down(self, level: int, x: M, /) -> M:
        """Transition down from ``level`` to half the side."""
        ...

    def up(self, step: int, x: M, /) -> M:
        """Transition up number ``step`` from the lowest resolution, to twice the side."""
        ...

    def head(self, task: TaskConfig, read: list[M], /) -> P_co:
        """The predictions of ``task`` from the maps of its lanes, one map unless the head reads several levels."""
        ...

    def present(self, x: M, /) -> bool:
        """True if ``x`` has a lane in any process; what has none is not computed."""
        ...


def wire(net: Net[M, P_co], stem: M, maps: Sequence[Sequence[M]], tasks: Sequence[TaskConfig]) -> dict[str, P_co]:
    """One pass from the stem to the predictions of ``tasks``, by name; a task without lanes may be missing.

    ``maps`` are those of `joined_maps`; they and ``stem`` belong to ``tasks``, in this order. Order of a
    concatenation: the running map first, then the maps of each task.
    """
    found: dict[str, P_co] = {}
    x = stem
    skips: list[M] = []  # torch.compile does not follow list[M]()
    taps: list[M] = []
    for level in range(LEVELS):
        skips.append(x + net.dense(level, x) + x)  # as released: the block's input stands in the skip twice
        taps.append(_join(skips[-1], maps[level]))
        if level < LEVELS - 1:
            x = net.down(level, taps[-1])
    heat_maps = net.config.landmark_head == "heat_maps"
    for at, task in enumerate(tasks):
        if task.kind == "landmarks":
            found[task.name] = net.head(task, [tap.keep([at]) for tap in (taps if heat_maps else taps[-1:])])
    deeper = [at for at, task in enumerate(tasks) if task.kind != "landmarks"]
    if not deeper or not net.present(x := taps[-1].keep(deeper)):
        return found
    x = net.down(LEVELS - 1, x)
    x = x + net.dense(MIDDLE, x)
    parsing: int | None = None
    for position, at in enumerate(deeper):
        if tasks[at].kind == "classification":
            found[tasks[at].name] = net.head(tasks[at], [x.keep([position])])
        else:
            parsing = position
    if parsing is None or not net.present(x := x.keep([parsing])):
        return found
    at = deeper[parsing]
    skips, levels = [skip.keep([at]) for skip in skips], [[one.keep([at]) for one in level] for level in maps]
    for step in range(LEVELS):
        level = LEVELS - 1 - step
        x = net.up(step, _join(x, levels[level + 1])) + skips[level]
        x = x + net.dense(MIDDLE + 1 + step, x)
    found[tasks[at].name] = net.head(tasks[at], [_join(x, levels[0])])
    return found


def joined_maps(planes: Sequence[M], encoded: Sequence[Sequence[M]]) -> list[list[M]]:
    """The maps that join at the side of the planes, at half of it, and so on to the lowest resolution.

    ``planes``: each task's, or those of all together; ``encoded``: the three maps of each task's re-encoder.
    """
    return [list(planes), [], *(list(level) for level in zip(*encoded, strict=True)), []]


def _join(x: M, maps: Sequence[M]) -> M:
    return reduce(add, maps, x)


def encoder_widths(task: TaskConfig) -> tuple[int, ...]:
    """Channels of the three maps of a task's re-encoder."""
    return (task.width,) * 3 if task.kind == "classification" else ENCODER_WIDTHS


@dataclass(frozen=True)
class Width:
    """Channels and side of a map."""

    channels: int
    side: int

    def __add__(self, other: Width) -> Width:
        if self.side != other.side:
            raise ValueError(f"maps of side {self.side} and {other.side} cannot be concatenated")
        return Width(self.channels + other.channels, self.side)

    def keep(self, tasks: Sequence[int]) -> Width:
        """Itself: all tasks' maps are equally wide."""
        return self

    @property
    def values(self) -> int:
        """Values of one face."""
        return self.channels * self.side**2


class Widths:
    """Inputs of every layer of a network, and its multiply-adds: `wire` walked along with channel counts.

    ``dense``, ``down`` and ``up`` hold the input of each block and transition by its index, ``heads`` those of each
    head by its task's name. ``macs`` counts multiply-adds by group; every convolution is dense and at its own
    resolution, as released, and the stem and the re-encoders are not in it.
    """

    def __init__(self, config: NetworkConfig, tasks: Sequence[TaskConfig] | None = None) -> None:
        self.config = config
        self.dense_in: dict[int, Width] = {}
        self.down_in: dict[int, Width] = {}
        self.up_in: dict[int, Width] = {}
        self.heads: dict[str, list[Width]] = {}
        self.macs: Counter[str] = Counter()
        self.planes = sum(t.planes for t in config.tasks)
        planes: list[Width] = [Width(t.planes, config.size) for t in config.tasks]
        encoded: list[list[Width]] = [
            [Width(w, config.size >> i) for i, w in enumerate(encoder_widths(t), 2)] for t in config.tasks
        ]
        wire(self, Width(config.stem_channels, config.size), joined_maps(planes, encoded), tasks or config.tasks)

    def dense_inputs(self, block: int) -> tuple[int, ...]:
        """Channels that each layer of a dense block reads."""
        return tuple(self.dense_in[block].channels + self.config.growth * i for i in range(self.config.block_layers))

    def down_width(self, level: int) -> int:
        """Channels that the transition down from ``level`` gives."""
        return FIRST_FILTERS + (level + 1) * self.config.growth * self.config.block_layers

    def dense(self, block: int, x: Width) -> Width:
        """See `Net`."""
        self.dense_in[block] = x
        group = "dense_down" if block < MIDDLE else "dense_middle" if block == MIDDLE else "dense_up"
        self.macs[group] += sum(9 * c * self.config.growth for c in self.dense_inputs(block)) * x.side**2
        return Width(self.config.growth * self.config.block_layers, x.side)

    def down(self, level: int, x: Width) -> Width:
        """See `Net`."""
        self.down_in[level] = x
        self.macs["transition_down"] += x.values * self.down_width(level)
        return Width(self.down_width(level), x.side // 2)

    def up(self, step: int, x: Width) -> Width:
        """See `Net`."""
        self.up_in[step], channels = x, self.config.up_channels
        self.macs["transition_up_a"] += 9 * x.values * channels
        self.macs["transition_up_b"] += 9 * channels // 4 * channels * (2 * x.side) ** 2
        return Width(channels, 2 * x.side)

    def head(self, task: TaskConfig, read: list[Width]) -> None:
        """See `Net`."""
        self.heads[task.name] = read
        factor = 1
        if task.kind == "landmarks":
            factor = 9 if self.config.landmark_head == "heat_maps" else 2
        self.macs["heads"] += factor * sum(x.values for x in read) * task.width

    def present(self, x: Width) -> bool:
        """See `Net`."""
        return True


def macs(config: NetworkConfig) -> dict[str, dict[str, int]]:
    """Multiply-adds of one face's pass as released, by task and group; those of the re-encoders, which the tasks
    share, under ``"shared"``. See `Widths.macs`."""
    stem = 49 * (config.image_channels + sum(t.planes for t in config.tasks)) * config.stem_channels * config.size**2
    encoders = sum(_encoder_macs(t, config.size) for t in config.tasks)
    by_task = {t.name: {"stem": stem, **Widths(config, [t]).macs} for t in config.tasks}
    return {"shared": {"encoders": encoders}, **by_task}


def _encoder_macs(task: TaskConfig, size: int) -> int:
    first, other = (1, 1) if task.kind == "classification" else (25, 9)
    total, width = 0, task.planes
    for i, out in enumerate(encoder_widths(task)):
        total += (first if i == 0 else other) * width * out * (size >> (i + 1)) ** 2
        width = out
    return total
