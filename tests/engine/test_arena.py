"""Views of a plan's memory: lanes that are kept, doubled views that are read once."""

from __future__ import annotations

import numpy as np

from ifan.engine.arena import Arena, LaneMaps, PlanLanes, View

LANES = PlanLanes((0, 2, 3, 1), 5, 1000)
"""Parsing, two classifications, landmarks: in the configuration the landmarks come second."""


def test_kept_lanes_are_those_of_the_tasks_at_these_places() -> None:
    by_lane, by_sample = View(0, 3, 4, 48), View(8000, 2, 4, 32, per_sample=True)
    x = LaneMaps((by_lane, by_sample), LANES)
    deeper = x.keep([0, 2, 3])
    assert deeper.lanes.tasks == (0, 2, 3)
    assert deeper.views == x.views
    points = x.keep([1])
    assert points.lanes.tasks == (1,)
    assert points.views == (View(4 * 15 * 48, 3, 4, 48), by_sample)
    second = deeper.keep([2])
    assert second.lanes.tasks == (3,)
    assert second.views[0].address == 4 * 10 * 48
    fields, rows, segments, shape = second.arguments
    assert fields == [(4 * 480, 3, 48, 16, 0), (8000, 2, 32, 16, 5)]
    assert (rows, segments, shape) == (1000, [5], (5, 5, 4, 4))


def test_a_doubled_view_is_read_once_with_the_sum_of_its_columns() -> None:
    a, b = View(0, 2, 4, 32), View(640, 1, 4, 16)
    x = LaneMaps((a, b), LANES) + LaneMaps((a,), LANES)
    assert x.unique().views == (a, b)
    weight = np.arange(10, dtype=np.float32).reshape(2, 5)
    assert x.merged(weight).tolist() == [[0 + 3, 1 + 4, 2], [5 + 8, 6 + 9, 7]]


def test_memory_of_a_frame_is_used_again() -> None:
    arena = Arena(64)
    first = arena.take(10)
    with arena.frame():
        inside = arena.maps(1, 1, 8).address
    assert arena.take(1) == inside
    assert first == 64
    assert arena.size == (16 + 80) + (64 + 80)
