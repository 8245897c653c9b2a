"""Statistics and turns on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ifan.bench.timing import Percentiles, Rounds, interleave, pair_ratios, percentiles


class Watch:
    """A clock that moves only when somebody works or rests."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, list[str]()

    def worker(self, name: str, seconds: Callable[[int], float]) -> Callable[[int], str]:
        def run(index: int) -> str:
            self.log.append(f"{name}{index}")
            self.now += seconds(index)
            return f"{name} of round {index}"

        return run

    def rest(self, seconds: float) -> None:
        self.now += seconds


def test_percentiles_are_linear_between_neighbours() -> None:
    assert percentiles([5, 1, 2, 4, 3]) == Percentiles(3, pytest.approx(1.8), pytest.approx(4.2), 5)
    assert percentiles([7.0]) == Percentiles(7.0, 7.0, 7.0, 1)
    assert percentiles([1.0, 2.0]).median == 1.5


def test_ratios_are_of_pairs_not_of_medians() -> None:
    """A machine that slows down over time moves both medians; the pairs still say two."""
    ours = [1.0, 2.0, 4.0, 8.0, 100.0]
    assert pair_ratios([2 * t for t in ours], ours) == Percentiles(2.0, 2.0, 2.0, 5)
    assert pair_ratios([3.0, 1.0, 1.0], [1.0, 1.0, 2.0]).median == 1.0
    with pytest.raises(ValueError, match="longer"):
        pair_ratios([1.0], [1.0, 2.0])


def test_turns_rotate_and_rests_are_not_timed() -> None:
    watch = Watch()
    runs = {"a": watch.worker("a", lambda i: 0.25 * (i + 1)), "b": watch.worker("b", lambda i: 0.5)}
    taken, last = interleave(runs, Rounds(0.0, 3, 9), clock=lambda: watch.now, rest=watch.rest)
    assert watch.log == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert taken == {"a": pytest.approx([0.25, 0.5, 0.75]), "b": pytest.approx([0.5, 0.5, 0.5])}
    assert last == {"a": "a of round 2", "b": "b of round 2"}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 4), (5.5, 6), (100.0, 10)], ids=["min", "time", "max"])
def test_number_of_rounds(seconds: float, rounds: int) -> None:
    watch = Watch()
    runs = {"a": watch.worker("a", lambda i: 1.0)}
    taken, _ = interleave(runs, Rounds(seconds, 4, 10), clock=lambda: watch.now, rest=watch.rest)
    assert len(taken["a"]) == rounds
