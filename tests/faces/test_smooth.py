"""Smoothing: faces at rest do not tremble, moving ones do not lag, probabilities are averages that move along."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ifan.crop import Crop
from ifan.faces.detect import Detection
from ifan.faces.smooth import CLASS_SECONDS, STILL_HZ, Smoother
from ifan.faces.surroundings import with_surroundings
from ifan.faces.tracked_face import TrackedFace
from ifan.predictions import FacePredictions
from ifan.refine import softmax

RATE = 25


def face(x: float, number: int = 1, happy: float = 0.0, column: int = 8) -> TrackedFace:
    """A face with its points around (x, 50), and a region that is one column of its crop."""
    points = np.array([(-10, -8), (10, -8), (0, 2), (-8, 12), (8, 12)]) + np.array((x, 50.0))
    logits = np.zeros((1, 2, 16, 16), np.float32)
    logits[0, 1, :, column] = 6
    found = FacePredictions(logits, np.zeros((1, 2, 5), np.float32), {"mood": np.array([[happy, 0]], np.float32)})
    detection = Detection((x - 20, 30.0, x + 20, 70.0), 0.9)
    return TrackedFace(number, "followed", 1.0, Crop(x, 50, 64), found, points, detection)


def shown(places: np.ndarray) -> np.ndarray:
    """Smoothed x of the first point and of the box's left edge, as moved from the true ones."""
    smoother = Smoother()
    out = []
    for i, x in enumerate(places):
        (one,) = smoother(i / RATE, [face(x)])
        out.append((one.points[0, 0] + 10, one.detection.box[0] + 20))
    return np.array(out)


def test_a_face_at_rest_trembles_less() -> None:
    places = 100 + np.random.default_rng(0).normal(0, 0.2, 200)
    raw, smooth = np.diff(places, 2).std(), np.diff(shown(places)[:, 0], 2).std()
    assert smooth < 0.35 * raw


def test_a_moving_face_lags_by_less_than_a_frame() -> None:
    """At a crop side a second; at rest a step is two thirds done after 1 / (2 pi) s."""
    places = 100 + 64 / RATE * np.arange(40)
    lag = (places - shown(places).T)[:, 10:] / (64 / RATE)
    assert 0 <= lag.min() <= lag.max() < 0.25
    little = shown(np.r_[np.full(10, 100.0), np.full(30, 100.2)])[10:, 0]
    frames = RATE / (2 * math.pi * STILL_HZ)
    assert little[math.ceil(frames) + 1] > 100.2 - 0.2 / math.e


def test_probabilities_are_moving_averages() -> None:
    smoother = Smoother()
    smoother(0.0, [face(100, happy=-4)])
    (one,) = smoother(1 / RATE, [face(100, happy=4)])
    before, after = (softmax(np.array([[h, 0.0]]), 1)[0, 0] for h in (-4, 4))
    share = (1 / RATE) / (1 / RATE + CLASS_SECONDS)
    assert softmax(one.found.class_logits["mood"], 1)[0, 0] == pytest.approx(
        before + share * (after - before), rel=1e-4
    )


def test_regions_move_with_the_crop() -> None:
    """The crop moves by two of its pixels, the region's column the other way: nothing has changed in the picture."""
    smoother = Smoother()
    smoother(0.0, [face(100)])
    new = replace(face(100, column=6), crop=Crop(108, 50, 64))
    (one,) = smoother(1 / RATE, [new])
    expected = softmax(new.found.parsing_logits[0])
    assert softmax(one.found.parsing_logits[0])[:, :, 1:13] == pytest.approx(expected[:, :, 1:13], abs=1e-5)


def test_faces_are_apart_and_begin_anew() -> None:
    smoother = Smoother()
    smoother(0.0, [face(100), face(200, 2)])
    one, two = smoother(1 / RATE, [face(104), face(200, 2)])
    assert 100 < one.points[0, 0] + 10 < 104
    assert two.points[0, 0] + 10 == pytest.approx(200)
    smoother(2 / RATE, [face(200, 2)])
    (back, _) = smoother(3 / RATE, [face(300), face(200, 2)])
    assert back.points[0, 0] + 10 == 300
    (jumped,) = smoother(4 / RATE, [replace(face(50, 2), state="new")])
    assert jumped.points[0, 0] + 10 == 50
    assert len(smoother._faces) == 1


def test_time_that_is_unknown_or_stands_still_is_a_usual_step() -> None:
    places = []
    for times in ((0.0, 0.04), (None, None), (1.0, 1.0)):
        smoother = Smoother()
        smoother(times[0], [face(100)])
        places.append(smoother(times[1], [face(101)])[0].points[0, 0])
    assert places[0] == pytest.approx(places[1]) == pytest.approx(places[2])


def test_regions_lie_in_wider_surroundings() -> None:
    """Of a face whose crop is a quarter of the wider one: there its own regions, beyond it the others."""
    one = face(100, column=8)
    wide = np.zeros((2, 16, 16), np.float32)
    wide[1] = -6
    wide[1, :, 3] = 6
    crop, found = with_surroundings(replace(one, around=(Crop(100, 50, 128), wide)))
    assert crop == Crop(100, 50, 128)
    classes = found.parsing_logits[0].argmax(0)
    inside = np.s_[10:22, 10:22]
    assert np.array_equal(np.unique(classes[inside].nonzero()[1]), [6])
    assert set(classes[:, :8].nonzero()[1]) == {6, 7}
    assert with_surroundings(one) == (one.crop, one.found)
