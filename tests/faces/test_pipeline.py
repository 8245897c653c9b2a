"""The two ways to overlap work: order, bounds, errors, stopping."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ifan.faces.pipeline import ordered_map, prefetched


def test_map_keeps_order_and_bound() -> None:
    active, most, lock = 0, 0, threading.Lock()
    taken = itertools.count()

    def slow(i: int) -> int:
        nonlocal active, most
        with lock:
            active, most = active + 1, max(most, active)
        time.sleep(0.002 * (i % 3))
        with lock:
            active -= 1
        return i * i

    def items() -> Iterator[int]:
        for i in range(40):
            next(taken)
            yield i

    with ThreadPoolExecutor(4) as pool:
        stream = ordered_map(pool, slow, items(), ahead=3)
        assert next(stream) == 0
        assert next(taken) == 3
        assert list(stream) == [i * i for i in range(1, 40)]
    assert 1 < most <= 3


def test_prefetch_runs_ahead_but_not_far() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    with prefetched(items(), depth=5) as stream:
        assert next(stream) == 0
        time.sleep(0.3)
        assert 5 <= len(made) <= 7
    assert len(made) <= 7  # leaving stops the thread


def test_prefetch_hands_errors_over() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    with prefetched(items(), depth=5) as stream:
        assert next(stream) == 1
        with pytest.raises(OSError, match="disk"):
            next(stream)
