"""The graph printed as the paper's tables, by a user of `ifan.wiring` of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from ifan.config import NetworkConfig, TaskConfig
from ifan.wiring import LEVELS, MIDDLE, Width, Widths, encoder_widths, joined_maps, wire

DOWN = """
down 0 @128: 48 -> 48 60 72 -> 84; skip 132; join 153 -> 52
down 1 @64: 52 -> 52 64 76 -> 88; skip 140; join 140 -> 88
down 2 @32: 88 -> 88 100 112 -> 124; skip 212; join 267 -> 124
down 3 @16: 124 -> 124 136 148 -> 160; skip 284; join 387 -> 160
down 4 @8: 160 -> 160 172 184 -> 196; skip 356; join 491 -> 196
"""
MIDDLE_AND_UP = """
middle @4: 196 208 220 -> 232
up 0 @4: 232 -> 128 @8; 484 496 508 -> 520
up 1 @8: 655 -> 128 @16; 412 424 436 -> 448
up 2 @16: 551 -> 128 @32; 340 352 364 -> 376
up 3 @32: 431 -> 128 @64; 268 280 292 -> 304
up 4 @64: 304 -> 128 @128; 260 272 284 -> 296
"""
HEADS = {"parsing": [(317, 128)], "landmarks": [(491, 8)], "emotion": [(232, 4)]}


def numbers(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def table(config: NetworkConfig) -> tuple[list[str], list[str]]:
    """Lines of the down path, and of the middle and the up path."""
    w = Widths(config)
    grown = config.growth * config.block_layers
    down, up = [], []
    for level in range(LEVELS):
        width, side = w.dense_in[level].channels, w.dense_in[level].side
        down.append(
            f"down {level} @{side}: {width} -> {numbers(w.dense_inputs(level))} -> {width + grown}; "
            f"skip {2 * width + grown}; join {w.down_in[level].channels} -> {w.down_width(level)}"
        )
    middle = w.dense_in[MIDDLE]
    up.append(f"middle @{middle.side}: {numbers(w.dense_inputs(MIDDLE))} -> {middle.channels + grown}")
    for step, x in w.up_in.items():
        inputs = w.dense_inputs(MIDDLE + 1 + step)
        up.append(
            f"up {step} @{x.side}: {x.channels} -> {config.up_channels} @{2 * x.side}; "
            f"{numbers(inputs)} -> {inputs[0] + grown}"
        )
    return down, up


def test_the_graph_is_the_papers_table() -> None:
    down, up = table(NetworkConfig())
    assert down == DOWN.strip().splitlines()
    assert up == MIDDLE_AND_UP.strip().splitlines()
    heads = {name: [(x.channels, x.side) for x in read] for name, read in Widths(NetworkConfig()).heads.items()}
    assert heads == HEADS


def test_heat_maps_read_every_level() -> None:
    read = Widths(NetworkConfig(landmark_head="heat_maps")).heads["landmarks"]
    assert [(x.channels, x.side) for x in read] == [(153, 128), (140, 64), (267, 32), (387, 16), (491, 8)]


@dataclass(frozen=True)
class Named:
    """A concatenation of named maps, of some tasks."""

    names: tuple[str, ...]
    tasks: tuple[str, ...]

    def __add__(self, other: Named) -> Named:
        assert self.tasks == other.tasks, "maps of other tasks' lanes were concatenated"
        return replace(self, names=self.names + other.names)

    def keep(self, tasks: Sequence[int]) -> Named:
        return replace(self, tasks=tuple(self.tasks[t] for t in tasks))


class Names:
    """Writes down what each layer reads, by name."""

    def __init__(self, config: NetworkConfig, without: Sequence[str] = ()) -> None:
        self.config, self.without, self.read = config, without, dict[str, Named]()

    def _note(self, name: str, x: Named) -> Named:
        self.read[name] = x
        return replace(x, names=(name,))

    def dense(self, block: int, x: Named) -> Named:
        return self._note(f"dense{block}", x)

    def down(self, level: int, x: Named) -> Named:
        return self._note(f"down{level}", x)

    def up(self, step: int, x: Named) -> Named:
        return self._note(f"up{step}", x)

    def head(self, task: TaskConfig, read: list[Named]) -> str:
        self.read[task.name] = read[-1]
        assert read[0].tasks == (task.name,)
        return task.name

    def present(self, x: Named) -> bool:
        return any(task not in self.without for task in x.tasks)


def walked(without: Sequence[str] = ()) -> tuple[Names, dict[str, str]]:
    config = NetworkConfig()
    tasks = tuple(t.name for t in config.tasks)
    net = Names(config, without)

    def one(name: str) -> Named:
        return Named((name,), tasks)

    encoded = [[one(f"{t[0]}{i}") for i in (2, 3, 4)] for t in tasks]
    return net, wire(net, one("stem"), joined_maps([one(t[0]) for t in tasks], encoded), config.tasks)


def test_order_of_every_concatenation() -> None:
    net, found = walked()
    assert set(found) == {"parsing", "landmarks", "emotion"}
    assert net.read["dense0"].names == ("stem",)
    assert net.read["down0"].names == ("stem", "dense0", "stem", "p", "l", "e")
    assert net.read["down1"].names == ("down0", "dense1", "down0")
    assert net.read["down4"].names == ("down3", "dense4", "down3", "p4", "l4", "e4")
    assert net.read["up0"].names == ("down4", "dense5")
    assert net.read["up1"].names == ("up0", "down3", "dense4", "down3", "dense6", "p4", "l4", "e4")
    assert net.read["up4"].names == ("up3", "down0", "dense1", "down0", "dense9")
    assert net.read["parsing"].names == ("up4", "stem", "dense0", "stem", "dense10", "p", "l", "e")
    assert net.read["landmarks"].names == net.read["down4"].names
    assert net.read["emotion"].names == ("down4", "dense5")


def test_what_has_no_lanes_is_not_computed() -> None:
    net, found = walked(without=["parsing"])
    assert set(found) == {"landmarks", "emotion"}
    assert not any(name.startswith("up") for name in net.read)
    net, found = walked(without=["parsing", "emotion"])
    assert set(found) == {"landmarks"}
    assert "down4" not in net.read


def test_maps_of_different_sides_do_not_join() -> None:
    with pytest.raises(ValueError, match="side 8 and 4"):
        Width(1, 8) + Width(1, 4)


def test_widths_of_re_encoded_maps() -> None:
    parsing, _, emotion = NetworkConfig().tasks
    assert (encoder_widths(parsing), encoder_widths(emotion)) == ((24, 48, 64), (7, 7, 7))
