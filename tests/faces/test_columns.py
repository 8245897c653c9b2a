"""Flat columns of faces."""

from __future__ import annotations

import pytest

from ifan.config import TaskConfig
from ifan.faces.columns import PLACE, columns, flat_rows

TASKS = (
    TaskConfig("parsing", "parsing", ("background", "skin", "hair")),
    TaskConfig("landmarks", "landmarks", ("nose",)),
    TaskConfig("emotion", "classification", ("happy", "sad")),
)


def test_columns_are_those_of_the_tasks() -> None:
    names = columns(TASKS)
    assert list(names)[: len(PLACE)] == list(PLACE)
    later = ["nose_x", "nose_y", "emotion", "emotion_happy", "emotion_sad", "share_skin", "share_hair", "error"]
    assert list(names)[len(PLACE) :] == later
    assert (names["emotion"], names["emotion_happy"], names["face"]) == (str, float, int)
    assert list(columns(()))[len(PLACE) :] == ["error"]


def test_columns_of_the_same_name_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'box_x0' twice"):
        columns((TaskConfig("box", "classification", ("x0", "x1")),))


def test_rows_are_flat() -> None:
    face = {
        "box": [1.0, 2.0, 3.0, 4.0],
        "score": None,
        "landmarks": {"nose": [5.0, 6.0]},
        "classes": {"emotion": {"happy": 0.25, "sad": 0.75}},
        "parsing": {"region": [0, 0, 2, 2], "pixels": {"background": 9, "skin": 3, "hair": 1}},
    }
    first, second = flat_rows({"photo": "a.png"}, [face, {**face, "id": 7}])
    assert first == {
        "photo": "a.png", "face": 1, "id": None, "box_x0": 1.0, "box_y0": 2.0, "box_x1": 3.0, "box_y1": 4.0,
        "score": None, "nose_x": 5.0, "nose_y": 6.0, "emotion": "sad", "emotion_happy": 0.25, "emotion_sad": 0.75,
        "share_skin": 0.75, "share_hair": 0.25,
    }  # fmt: skip
    assert (second["face"], second["id"]) == (2, 7)
    assert set(first) <= set(columns(TASKS))


def test_a_photo_without_a_face_has_a_row() -> None:
    assert flat_rows({"photo": "a.png", "error": "broken"}, []) == [{"photo": "a.png", "error": "broken", "face": 0}]
