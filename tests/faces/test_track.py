"""The tracker on faces of five dots: ids, states, when the detector runs, what it remembers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ifan.config import NetworkConfig, TaskConfig
from ifan.faces.track import DETECT_EVERY, REMEMBERED, RETRY, SHOWN, Tracker
from ifan.faces.tracked_face import HELD, TrackedFace
from ifan.faces.trust import point_trust
from tests.support.dotted_faces import CONFIG, SHAPE, Eyes, Network, Place, draw


class Stage:
    """A tracker with what it sees through."""

    def __init__(self, **options) -> None:
        self.network, self.eyes = Network(), Eyes()
        self.tracker = Tracker(CONFIG, self.network, self.eyes, **options)

    def show(self, places: list[Place], seen: list[Place] | None = None, plate=None) -> list[TrackedFace]:
        """The faces of the next frame; the detector sees ``seen``, by default all."""
        self.eyes.places = places if seen is None else seen
        return self.tracker(draw(places, plate=plate))


@pytest.mark.parametrize("carry", [False, True])
def test_moving_faces_keep_their_ids_without_the_detector(carry: bool) -> None:
    stage = Stage(carry=carry)
    for i in range(2 * DETECT_EVERY):
        places = [(60 + 2.0 * i, 50.0), (180 - 2.0 * i, 110.0)]
        faces = stage.show(places)
        assert [face.id for face in faces] == [1, 2]
        assert [face.state for face in faces] == (["followed"] * 2 if i else ["new"] * 2)
        for face, place in zip(faces, places, strict=True):
            assert np.abs(face.points - SHAPE - place).max() < 2
            assert (
                np.abs(
                    np.array(face.detection.box) - (place[0] - 22, place[1] - 26, place[0] + 22, place[1] + 26)
                ).max()
                < 3
            )
    assert stage.eyes.runs == 2
    assert stage.network.calls == [2, 2] + [2] * (2 * DETECT_EVERY - 1) + [2]


def test_a_face_at_rest_keeps_its_crop() -> None:
    stage = Stage()
    (first,) = stage.show([(100, 80)])
    assert all(stage.show([(100 + 0.5 * (i % 2), 80)])[0].crop == first.crop for i in range(6))
    (moved,) = stage.show([(106, 80)])
    (after,) = stage.show([(106, 80)])
    assert moved.crop == first.crop != after.crop


def test_a_hidden_face_is_carried_on_and_returns_with_its_id() -> None:
    stage = Stage()
    for i in range(10):
        stage.show([(40 + 3.0 * i, 80)])
    states = []
    for i in range(10, 30):
        hidden = 10 <= i < 10 + SHOWN + 4
        place = (40 + 3.0 * i, 80)
        faces = stage.show([place], [] if hidden else None, (0, 240) if hidden else None)
        states.append(faces[0].state if faces else None)
        assert all(face.id == 1 for face in faces)
        if faces and hidden:
            assert np.abs(faces[0].points.mean(0) - SHAPE.mean(0) - place).max() < 4
    assert states[:SHOWN] == ["occluded"] * SHOWN
    assert states[SHOWN : SHOWN + 4] == [None] * 4
    assert states[SHOWN + 4 + RETRY :] == ["followed"] * (20 - SHOWN - 4 - RETRY)


def test_a_point_that_jumps_is_carried_on_by_the_others() -> None:
    """The nose is seen on the mouth, for a while and then for good; the face moves on."""
    stage = Stage()
    for i in range(8 + HELD):
        stage.network.lies = (0.0, 0.12) if i > 4 else (0.0, 0.0)
        (face,) = stage.show([(60 + 2.0 * i, 80)])
        (x, y), wanted = face.points[2], SHAPE[2] + (60 + 2.0 * i, 80)
        assert abs(x - wanted[0]) < 2
        assert abs(y - wanted[1]) < 2 if i < 5 + HELD else y - wanted[1] > 4
        assert face.state == ("followed" if i else "new")


def test_a_face_that_was_away_for_long_is_another_one() -> None:
    stage = Stage()
    stage.show([(100, 80)])
    for _ in range(REMEMBERED + 1):
        stage.show([])
    assert stage.tracker._tracks == []
    found = [face.id for _ in range(RETRY + 1) for face in stage.show([(100, 80)])]
    assert set(found) == {2}


@pytest.mark.parametrize("front", [0, 1])
def test_crossing_faces_keep_their_ids(front: int) -> None:
    stage = Stage()
    ids = {}
    for i in range(46):
        places = [(30 + 4.0 * i, 78.0), (210 - 4.0 * i, 82.0)]
        apart = abs(places[0][0] - places[1][0])
        order = places if front else places[::-1]
        faces = stage.show(order, None if apart > 34 else order[1:])
        for face in faces:
            if apart > 60 and face.state != "occluded":
                nearest = int(np.argmin([abs(face.points[2, 0] - x) for x, _ in places]))
                assert ids.setdefault(nearest, face.id) == face.id
    assert sorted(ids.values()) == [1, 2]
    assert len(faces) == 2


def test_another_scene_begins_anew_at_once() -> None:
    stage = Stage()
    stage.show([(100, 80)])
    stage.show([(100, 80)])
    bright = draw([(102, 82)])
    bright[:, ::2] = 255 - bright[:, ::2]  # another scene, its face in nearly the same place
    bright[40:120, 60:140] = draw([(102, 82)])[40:120, 60:140]
    bright[:, 140:] = 250
    stage.eyes.places = [(102, 82)]
    (face,) = stage.tracker(bright)
    assert (face.id, face.state) == (2, "new")


def test_a_flash_is_no_cut() -> None:
    stage = Stage()
    stage.show([(100, 80)])
    (face,) = stage.tracker(np.minimum(draw([(100, 80)]).astype(int) + 50, 255).astype(np.uint8))
    assert face.id == 1
    assert stage.eyes.runs <= 2


def test_what_the_detector_takes_for_a_face_is_checked() -> None:
    stage = Stage()
    assert stage.show([], [(100, 80)]) == []
    assert [face.id for _ in range(RETRY) for face in stage.show([(100, 80)])] == [1]


def test_nobody_is_looked_for_now_and_then() -> None:
    stage = Stage()
    for _ in range(4 * RETRY):
        assert stage.show([]) == []
    assert stage.eyes.runs == 4


def test_what_cannot_be_tracked_is_one_line() -> None:
    stage = Stage()
    stage.show([])
    with pytest.raises(ValueError, match=r"expected \(160, 240, 3\) as before; got \(20, 20, 3\)"):
        stage.tracker(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(ValueError, match="detect_every: expected at least 1"):
        Stage(detect_every=0)
    emotion = NetworkConfig(size=32, iterations=1, tasks=(TaskConfig("emotion", "classification", ("a", "b")),))
    with pytest.raises(ValueError, match="expected a network that finds left_eye"):
        Tracker(emotion, stage.network, stage.eyes)
    damaged = Tracker(CONFIG, lambda *given: _without_numbers(Network()(*given)), stage.eyes)
    stage.eyes.places = [(100, 80)]
    with pytest.raises(ValueError, match="weights are damaged"):
        damaged(draw([(100, 80)]))


def _without_numbers(found):
    return replace(found, points=found.points * np.nan)


def test_trust_is_the_agreement_of_points_and_regions() -> None:
    image = draw([(16, 16)], (32, 32)).transpose(2, 0, 1)[None]
    found = Network()(image)
    assert point_trust(CONFIG, found).min() > 0.9
    moved = replace(found, points=found.points.copy())
    moved.points[0, :, 2] += 0.2  # the nose, onto the mouth
    moved.points[0, 0, 4] = 0.6  # out of the crop
    trust = point_trust(CONFIG, moved)
    assert trust[2] < 0.1
    assert trust[4] == 0
    assert trust[[0, 1, 3]].min() > 0.9
