"""Plots over time: what is measured, and faces by their ids."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest

from ifan.faces.timeline import draw_timeline, eye_opening, mouth_opening


def face(number: int, state: str = "followed", **pixels: int) -> dict[str, Any]:
    return {
        "id": number,
        "state": state,
        "classes": {"emotion": {"happy": 0.75, "sad": 0.25}},
        "landmarks": {"left_eye": [10.0, 10.0], "right_eye": [40.0, 50.0]},
        "parsing": {"pixels": {"eye": 25, "upper_lip": 10, "inside_mouth": 20, "lower_lip": 10, **pixels}},
    }


def frame(number: int, *faces: dict[str, Any], time: float | None = None) -> dict[str, Any]:
    return {"frame": number, "time": time, "faces": list(faces)}


def test_openings() -> None:
    assert mouth_opening(face(1)) == 50
    assert mouth_opening(face(1, inside_mouth=0)) == 0
    assert eye_opening(face(1)) == pytest.approx(100 * 25 / 2500)
    for measure in (mouth_opening, eye_opening):
        assert math.isnan(measure({}))
    assert math.isnan(mouth_opening(face(1, upper_lip=0, inside_mouth=0, lower_lip=0)))


def drawn(frames: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of the figure, which is as large as it says."""
    figure = pytest.importorskip("matplotlib.figure", reason="plots need the extra plot").Figure
    seen: list[Any] = []
    save = figure.savefig
    monkeypatch.setattr(figure, "savefig", lambda self, *a, **k: (seen.append(self), save(self, *a, **k)))
    picture = cv2.imdecode(np.frombuffer(draw_timeline(frames), np.uint8), 1)
    assert picture.shape[1::-1] == tuple((seen[0].get_size_inches() * 110).astype(int))
    return seen[0].axes


def test_a_column_a_face_with_gaps_where_it_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [
        frame(0, face(3), face(7), time=0.0),
        frame(1, face(3, "occluded"), face(7, inside_mouth=0), time=0.5),
        frame(2, face(3), time=1.0),
    ]
    axes = drawn(frames, monkeypatch)
    assert len(axes) == 6
    assert [axes[i].get_title() for i in (0, 1)] == ["face 3", "face 7"]
    happy, sad = axes[0].get_lines()
    assert happy.get_label() == "happy"
    assert np.array_equal(happy.get_ydata(), [0.75, np.nan, 0.75], equal_nan=True)
    assert np.array_equal(sad.get_xdata(), [0, 0.5, 1])
    assert np.array_equal(axes[3].get_lines()[0].get_ydata(), [50, 0, np.nan], equal_nan=True)
    assert axes[4].get_xlabel() == "seconds"


def test_the_faces_that_are_seen_most_and_frames_without_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifan.faces.timeline.DRAWN", 2)
    frames = [frame(0, face(1), face(9)), frame(1, face(9), face(4)), frame(2, face(4), face(5))]
    axes = drawn(frames, monkeypatch)
    assert [axis.get_title() for axis in axes[:2]] == ["face 4", "face 9"]
    assert len(axes) == 6
    assert axes[-1].get_xlabel() == "frame"


def test_nothing_to_plot_is_one_line() -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra plot")
    with pytest.raises(ValueError, match="expected a clip with a face; got none"):
        draw_timeline([frame(0)])
    with pytest.raises(ValueError, match="expected classes or regions; got neither"):
        draw_timeline([frame(0, {"id": 1, "state": "new"})])
