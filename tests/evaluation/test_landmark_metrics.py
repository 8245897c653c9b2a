"""Normalised mean error, failures and the cumulative curve against hand-computed cases."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import auc

from ifan.config import POINT_NAMES
from ifan.crop import Crop, points_to_crop
from ifan.evaluation import LandmarkMeter

FACE = np.array([[30, 70, 50, 35, 65], [40, 40, 60, 80, 80]], float)  # eyes 40 pixels apart


def measure(predicted: np.ndarray, target: np.ndarray, **options: object) -> dict:
    meter = LandmarkMeter(POINT_NAMES)
    meter.update(predicted, target, **options)  # type: ignore[arg-type]
    return meter.result()


def faces(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = FACE + rng.normal(0, 3, (n, 2, 5))
    return target + rng.normal(0, 1, target.shape) * rng.uniform(0, 5, (n, 1, 1)), target


def test_by_hand() -> None:
    predicted = np.stack([FACE, FACE])
    predicted[0, :, 2] += (3, 4)  # the nose by 5 pixels: 5 / 40 at the nose, 5 / 40 / 5 for the image
    predicted[1] += 6  # every point by 6 sqrt 2 pixels: a failure
    result = measure(predicted, np.stack([FACE, FACE]))
    one, two = 5 / 40 / 5, 6 * 2**0.5 / 40
    assert result["nme"] == pytest.approx((one + two) / 2)
    assert result["points"]["nose"] == pytest.approx((5 / 40 + two) / 2)
    assert result["points"]["left_eye"] == pytest.approx(two / 2)
    assert result["offsets"]["nose"] == pytest.approx([(3 + 6) / 2 / 40, (4 + 6) / 2 / 40])
    assert result["failure_rate"] == 1 / 2
    assert result["auc"] == pytest.approx((1 - one / 0.1) / 2)
    assert (result["images"], result["unmeasured"]) == (2, 0)


def test_offset_of_a_point_that_is_not_always_labelled() -> None:
    target = np.stack([FACE, FACE, FACE])
    target[1, :, 2] = np.nan
    predicted = np.stack([FACE + 4, FACE + 8, FACE - 8])
    offsets = measure(predicted, target)["offsets"]
    assert offsets["nose"] == pytest.approx([-2 / 40, -2 / 40])
    assert offsets["left_eye"] == pytest.approx([4 / 3 / 40, 4 / 3 / 40])


def test_auc_is_the_area_under_the_curve() -> None:
    predicted, target = faces()
    result = measure(predicted, target)
    errors = np.linalg.norm(predicted - target, axis=1).mean(1) / np.linalg.norm(
        target[:, :, 0] - target[:, :, 1], axis=1
    )
    fine = np.linspace(0, 0.1, 20001)
    assert result["auc"] == pytest.approx(auc(fine, [(errors <= e).mean() for e in fine]) / 0.1, abs=1e-4)
    curve = dict(zip(np.round(result["curve"]["threshold"], 4), result["curve"]["share"], strict=True))
    assert curve[0.1] == pytest.approx(1 - result["failure_rate"])
    assert curve[0.0] == 0
    assert curve[0.2] == 1


def test_same_in_pixels_and_in_any_crop() -> None:
    predicted, target = faces()
    crop = Crop(47.5, 61, 113, angle_deg=25, flip=True)
    moved = [np.stack([points_to_crop(p.T, crop) for p in points]) for points in (predicted, target)]
    a, b = measure(predicted, target), measure(*moved)
    assert b["nme"] == pytest.approx(a["nme"], rel=1e-12)
    assert list(b["points"].values()) == pytest.approx(list(a["points"].values()), rel=1e-12)


def test_perfect_and_left_right_swapped() -> None:
    _, target = faces()
    perfect = measure(target, target)
    assert (perfect["nme"], perfect["failure_rate"], perfect["auc"]) == (0, 0, 1)
    eyes = measure(target[:, :, [1, 0, 2, 3, 4]], target)
    assert eyes["points"]["left_eye"] == pytest.approx(1)
    assert eyes["points"]["nose"] == 0
    assert eyes["failure_rate"] == 1
    mouth = measure(target[:, :, [0, 1, 2, 4, 3]], target)
    assert mouth["points"]["right_mouth_corner"] > 0.5
    assert mouth["points"]["right_eye"] == 0
    axes = measure(target[:, ::-1], target)
    assert axes["nme"] > 0.1


def test_the_unit_is_the_distance_of_the_true_eyes() -> None:
    wide = FACE.copy()
    wide[0, :2] = (10, 90)  # predicted eyes twice as far apart: 20 pixels off each, still over 40
    assert measure(wide[None], FACE[None])["points"]["left_eye"] == pytest.approx(20 / 40)


def test_order_and_batches_do_not_matter() -> None:
    predicted, target = faces()
    whole, order = measure(predicted, target), np.random.default_rng(0).permutation(len(target))
    shuffled = measure(predicted[order], target[order])
    assert shuffled["nme"] == pytest.approx(whole["nme"], rel=1e-12)
    assert shuffled["curve"] == whole["curve"]
    meter = LandmarkMeter(POINT_NAMES)
    for start in range(0, len(target), 7):
        meter.update(predicted[start : start + 7], target[start : start + 7])
    assert meter.result() == whole


def test_the_five_points_among_more() -> None:
    predicted, target = (np.concatenate([np.stack([FACE] * 2), np.zeros((2, 2, 1))], 2) for _ in range(2))
    predicted[:, :, 5] += 40
    meter = LandmarkMeter((*POINT_NAMES, "chin"))
    meter.update(predicted, target)
    result = meter.result()
    assert result["nme_five"] == 0
    assert result["nme"] == pytest.approx(2**0.5 / 6)


def test_unlabelled_points_count_nowhere() -> None:
    predicted, target = np.stack([FACE] * 3), np.stack([FACE] * 3)
    predicted[:, :, 2] += 40  # a wrong nose, which only the first image labels
    target[1, :, 2] = np.nan
    weight = np.ones((3, 5))
    weight[2, 2] = 0
    result = measure(predicted, target, weight=weight)
    assert result["points"]["nose"] == pytest.approx(2**0.5)
    assert result["nme"] == pytest.approx(2**0.5 / 5 / 3)
    all_moved = measure(target + 1, target, weight=weight)  # the mean is over labelled points, be they five or four
    assert all_moved["nme"] == pytest.approx(2**0.5 / 40)


def test_image_without_two_eyes_is_left_out() -> None:
    target, weight = np.stack([FACE] * 5), np.ones((5, 5))
    target[0, :, 0] = np.nan
    target[1, :, 1] = target[1, :, 0]
    weight[2, 0] = weight[3, 1] = 0
    result = measure(target + 1, target, weight=weight)
    assert (result["images"], result["unmeasured"]) == (1, 4)
    assert result["nme"] == pytest.approx(2**0.5 / 40)


def test_groups() -> None:
    target = np.stack([FACE] * 3)
    predicted = target + np.array([0, 3, 6])[:, None, None]
    groups = [{"pose": "left", "smile": "yes"}, {"pose": "left"}, {"pose": "frontal"}]
    result = measure(predicted, target, groups=groups)["groups"]
    assert result["pose"]["left"]["images"] == 2
    assert result["pose"]["left"]["nme"] == pytest.approx(3 * 2**0.5 / 40 / 2)
    assert result["pose"]["frontal"]["failure_rate"] == 1
    assert result["smile"] == {"yes": {"images": 1, "nme": 0, "failure_rate": 0, "auc": 1}}


def test_groups_follow_the_images_that_count() -> None:
    target = np.stack([FACE] * 2)
    target[0, :, 0] = np.nan
    result = measure(target, target, groups=[{"pose": "left"}, {"pose": "right"}])
    assert list(result["groups"]["pose"]) == ["right"]


def test_a_diverged_network_fails_instead_of_vanishing() -> None:
    target = np.stack([FACE] * 2)
    predicted = target.copy()
    predicted[0] = np.nan
    result = measure(predicted, target)
    assert (result["nme"], result["failure_rate"], result["auc"]) == (None, 0.5, 0.5)
    json.dumps(result, allow_nan=False)


def test_nothing_to_measure() -> None:
    result = measure(np.zeros((0, 2, 5)), np.zeros((0, 2, 5)))
    assert (result["images"], result["nme"], result["failure_rate"], result["auc"]) == (0, None, None, None)
    json.dumps(result, allow_nan=False)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"\(N, 2, 5\)"):
        measure(np.zeros((3, 5, 2)), np.zeros((3, 5, 2)))
    with pytest.raises(ValueError, match="left_eye and right_eye"):
        LandmarkMeter(("nose", "chin"))
