"""Times of contenders that take turns in one process; medians of pairs, as what disturbs one disturbs its rival."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Clock = Callable[[], float]
PAUSE = 0.003
"""Seconds before each run, in which threads that the run before left spinning go to sleep."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """Rounds go on for ``seconds``; there are no fewer than ``min`` and no more than ``max``."""

    seconds: float = 10.0
    min: int = 5
    max: int = 100


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Median with the 20th and 80th percentile, over ``count`` samples."""

    median: float
    p20: float
    p80: float
    count: int


def percentiles(samples: Sequence[float]) -> Percentiles:
    """Percentiles of one or more samples, linear between neighbours."""
    ordered = sorted(samples)

    def at(share: float) -> float:
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    return Percentiles(at(0.5), at(0.2), at(0.8), len(ordered))


def pair_ratios(rival: Sequence[float], ours: Sequence[float]) -> Percentiles:
    """``rival / ours`` of each round; above 1 = ours is faster."""
    return percentiles([theirs / own for theirs, own in zip(rival, ours, strict=True)])


def interleave(
    runs: Mapping[str, Callable[[int], Any]],
    rounds: Rounds,
    turn: Callable[[str], Any] = lambda name: None,
    clock: Clock = time.perf_counter,
    rest: Callable[[float], Any] = time.sleep,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each run in each round, and what each returned last.

    A round runs everybody once, beginning with another one each time. Before each run is a `PAUSE`, and ``turn`` is
    called with its name.
    """
    names, began = list(runs), clock()
    taken: dict[str, list[float]] = {name: [] for name in names}
    last: dict[str, Any] = {}
    for index in range(rounds.max):
        if index >= rounds.min and clock() - began >= rounds.seconds:
            break
        first = index % len(names) if names else 0
        for name in names[first:] + names[:first]:
            last.pop(name, None)
            turn(name)
            rest(PAUSE)
            start = clock()
            last[name] = runs[name](index)
            taken[name].append(clock() - start)
    return taken, last
