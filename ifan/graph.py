"""Widths of the released graph, level by level, and its multiply-adds: one place that the network and the tests read.

The numbers at 128 px are those of the tables in Li et al., "Integrated Face Analytics Networks through Cross-Dataset
Hybrid Training" (arXiv 1711.06055), released code `task_seg_pts_emo`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ifan.config import NetworkConfig, TaskConfig

ENCODER_WIDTHS = (24, 48, 64)
"""Channels of a re-encoder's three maps (1/4, 1/8, 1/16 of the input's side); a classification's encoder keeps its
width."""

FIRST_FILTERS = 16
"""Where the filter counter starts although the stem gives 48 channels; it sets the widths of the transitions down."""


@dataclass(frozen=True)
class Level:
    """One level of the down path: dense block, skip, joined planes or maps, transition down."""

    size: int
    width_in: int
    dense_inputs: tuple[int, ...]
    dense_out: int
    skip: int
    maps: int
    joined: int
    width_out: int


@dataclass(frozen=True)
class UpLevel:
    """One level of the up path: transition up from ``size`` to ``2 * size``, skip, dense block."""

    size: int
    transition_in: int
    skip: int
    dense_inputs: tuple[int, ...]
    dense_out: int


@dataclass(frozen=True)
class Graph:
    """Channel counts of the whole network; ``middle_inputs`` are the widths inside the block at the lowest
    resolution."""

    planes: int
    down: tuple[Level, ...]
    middle_inputs: tuple[int, ...]
    middle_out: int
    up: tuple[UpLevel, ...]
    head_in: int
    landmark_inputs: int
    class_inputs: int


def encoder_widths(task: TaskConfig) -> tuple[int, ...]:
    """Channels of the three maps of a task's re-encoder."""
    return (task.width,) * 3 if task.kind == "classification" else ENCODER_WIDTHS


def graph(config: NetworkConfig) -> Graph:
    """Work out every width from the configuration."""
    planes = sum(t.width for t in config.tasks)
    maps = [planes, 0] + [sum(encoder_widths(t)[i] for t in config.tasks) for i in range(3)]
    grown = config.growth * config.block_layers

    def inputs(width: int) -> tuple[int, ...]:
        return tuple(width + config.growth * i for i in range(config.block_layers))

    width, filters, down = config.stem_channels, FIRST_FILTERS, []
    for i in range(config.blocks):
        filters += grown
        skip = 2 * width + grown  # the block's input stands in the skip twice: in the dense output and appended again
        size = config.size >> i
        down.append(Level(size, width, inputs(width), width + grown, skip, maps[i], skip + maps[i], filters))
        width = filters
    middle_inputs, middle_out = inputs(width), width + grown
    up, width = [], middle_out
    for i in range(config.blocks):
        level = config.blocks - 1 - i
        joined = width + (maps[level + 1] if 1 <= i <= 3 else 0)
        entry = config.up_channels + down[level].skip
        up.append(UpLevel(config.size >> (level + 1), joined, down[level].skip, inputs(entry), entry + grown))
        width = entry + grown
    lowest = config.size >> config.blocks
    return Graph(
        planes,
        tuple(down),
        middle_inputs,
        middle_out,
        tuple(up),
        head_in=width + planes,
        landmark_inputs=down[-1].joined * (2 * lowest) ** 2,
        class_inputs=middle_out * lowest**2,
    )


def macs(config: NetworkConfig) -> dict[str, dict[str, int]]:
    """Multiply-adds of one face's pass as released, by task and group; ``encoders`` (shared) under the key
    ``"shared"``.

    Counts convolutions and dense layers only, every convolution dense and at its own resolution (no exact savings).
    """
    g, c = graph(config), config

    def dense(inputs: tuple[int, ...], size: int) -> int:
        return sum(w * c.growth * 9 for w in inputs) * size**2

    stem = 49 * (c.image_channels + g.planes) * c.stem_channels * c.size**2
    dense_down = sum(dense(d.dense_inputs, d.size) for d in g.down)
    transition = [d.joined * d.width_out * d.size**2 for d in g.down]
    lowest = c.size >> c.blocks
    out: dict[str, dict[str, int]] = {"shared": {"encoders": sum(_encoder_macs(t, c.size) for t in c.tasks)}}
    for task in c.tasks:
        groups = {"stem": stem, "dense_down": dense_down, "transition_down": sum(transition)}
        if task.kind == "landmarks":
            groups["transition_down"] -= transition[-1]
            maps = sum(9 * d.joined * d.size**2 for d in g.down)
            groups["heads"] = (maps if c.landmark_head == "heat_maps" else 2 * g.landmark_inputs) * task.width
        else:
            groups["dense_middle"] = dense(g.middle_inputs, lowest)
        if task.kind == "classification":
            groups["heads"] = g.class_inputs * task.width
        if task.kind == "parsing":
            groups["transition_up_a"] = sum(9 * u.transition_in * c.up_channels * u.size**2 for u in g.up)
            groups["transition_up_b"] = sum(9 * c.up_channels // 4 * c.up_channels * (2 * u.size) ** 2 for u in g.up)
            groups["dense_up"] = sum(dense(u.dense_inputs, 2 * u.size) for u in g.up)
            groups["heads"] = g.head_in * task.width * c.size**2
        out[task.name] = groups
    return out


def _encoder_macs(task: TaskConfig, size: int) -> int:
    first, other = (1, 1) if task.kind == "classification" else (25, 9)
    total, width = 0, task.width
    for i, out in enumerate(encoder_widths(task)):
        total += (first if i == 0 else other) * width * out * (size >> (i + 1)) ** 2
        width = out
    return total
