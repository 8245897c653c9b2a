"""Drawn faces: exact, varied and reproducible."""

from __future__ import annotations

import numpy as np
import pytest

from ifan.config import EMOTIONS, IGNORE, PARSING_CLASSES
from ifan.data import DataError, open_dataset
from ifan.data.labels import MTFL_ATTRIBUTES
from ifan.data.toy import ToyFaces

COUNT = 60


@pytest.fixture(scope="module")
def faces() -> ToyFaces:
    return ToyFaces(COUNT)


def test_same_seed_same_face(faces: ToyFaces) -> None:
    again, other = ToyFaces(COUNT)[3], ToyFaces(COUNT, seed=1)[3]
    assert np.array_equal(faces[3].image, again.image)
    assert not np.array_equal(faces[3].image, other.image)
    assert not np.array_equal(faces[3].image, ToyFaces(COUNT, split="val")[3].image)


def test_every_class_occurs(faces: ToyFaces) -> None:
    samples = [faces[i] for i in range(COUNT)]
    seen = set(np.unique([s.parsing for s in samples]).tolist())
    assert seen == {*range(len(PARSING_CLASSES)), IGNORE}
    for task, names in {"emotion": EMOTIONS, **MTFL_ATTRIBUTES}.items():
        assert {s.labels[task] for s in samples} == set(range(len(names))), task


def test_labels_fit_the_drawing(faces: ToyFaces) -> None:
    for i in range(COUNT):
        face = faces[i]
        assert face.points is not None
        assert face.parsing is not None
        assert face.labels == faces.labels_of(i)
        left, right, nose, left_corner, right_corner = face.points
        assert left[0] < right[0]
        assert left_corner[0] < right_corner[0]
        eye, nose_id = PARSING_CLASSES.index("eye"), PARSING_CLASSES.index("nose")
        for x, y in (left, right):
            assert face.parsing[int(y), int(x)] in (eye, nose_id, IGNORE)
        assert face.parsing[int(nose[1]), int(nose[0])] in (nose_id, PARSING_CLASSES.index("upper_lip"))
        happy = EMOTIONS[face.labels["emotion"]] == "happy"
        assert (MTFL_ATTRIBUTES["smile"][face.labels["smile"]] == "smiling") == happy


def test_eye_centres_are_exact() -> None:
    """The centre of mass of an eye that nothing covers is its point."""
    faces, checked = ToyFaces(200, size=256), 0
    plain = MTFL_ATTRIBUTES["glasses"].index("no_glasses")
    for i in range(200):
        labels = faces.labels_of(i)
        if labels["glasses"] != plain or labels["pose"] != 2 or EMOTIONS[labels["emotion"]] != "neutral":
            continue
        face = faces[i]
        assert face.points is not None
        y, x = np.nonzero(face.parsing == PARSING_CLASSES.index("eye"))
        middle = np.array([x.mean(), y.mean()]) + 0.5
        assert np.abs(middle - face.points[:2].mean(0)).max() < 0.6
        checked += 1
    assert checked > 1


def test_open_by_name() -> None:
    assert len(open_dataset("toy", "toy:12", "train")) == 12
    assert len(open_dataset("toy", "5", "val")) == 5
    for path in ("toy:", "toy:0", "toy:-3", "toys"):
        with pytest.raises(DataError, match="expected toy:COUNT"):
            open_dataset("toy", path, "train")
    with pytest.raises(DataError, match="at least 16 pixels"):
        ToyFaces(1, size=8)
