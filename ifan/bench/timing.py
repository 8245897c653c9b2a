"""Times of contenders that take turns in one process; medians of pairs, as what disturbs one disturbs its rival."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median with the 20th and 80th percentile, over ``count`` samples."""

    median: float
    p20: float
    p80: float
    count: int


def spread(samples: Sequence[float]) -> Spread:
    """Percentiles of at least one sample, linear between neighbours."""
    ordered = sorted(samples)

    def at(share: float) -> float:
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    return Spread(at(0.5), at(0.2), at(0.8), len(ordered))


def pair_ratios(rival: Sequence[float], ours: Sequence[float]) -> Spread:
    """``rival / ours`` of each round; above 1 = ours is faster."""
    return spread([theirs / own for theirs, own in zip(rival, ours, strict=True)])


def interleave(
    runs: Mapping[str, Callable[[int], Any]],
    seconds: float,
    least: int = 5,
    most: int = 100,
    pause: float = 0.003,
    clock: Clock = time.perf_counter,
    rest: Callable[[float], Any] = time.sleep,
    turn: Callable[[str], Any] = lambda name: None,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each run in each round, and what each returned last.

    A round runs everybody once, beginning with another one each time. Rounds go on for ``seconds``, at least ``least``
    and at most ``most`` of them. Before each run is a ``pause``, in which the threads that the one before left spinning
    go to sleep, and ``turn`` is told whose it is.
    """
    names, began = list(runs), clock()
    taken: dict[str, list[float]] = {name: [] for name in names}
    last: dict[str, Any] = {}
    for index in range(most):
        if index >= least and clock() - began >= seconds:
            break
        first = index % len(names) if names else 0
        for name in names[first:] + names[:first]:
            last.pop(name, None)
            turn(name)
            rest(pause)
            start = clock()
            last[name] = runs[name](index)
            taken[name].append(clock() - start)
    return taken, last
