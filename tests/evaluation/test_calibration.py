"""Calibration on classes that are drawn from known probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from ifan.config import TaskConfig
from ifan.evaluation.calibration import CalibrationMeter, best_temperature
from ifan.faces.predictor import probabilities
from ifan.predictions import FacePredictions
from ifan.refine import softmax


def drawn(faces: int = 8_000, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn from their softmax."""
    random = np.random.default_rng(0)
    logits = 2 * random.standard_normal((faces, classes))
    rows = softmax(logits, 1).cumsum(1)
    return logits, (rows < random.random((faces, 1))).sum(1).clip(max=classes - 1)


def measured(logits: np.ndarray, targets: np.ndarray, temperature: float = 1.0) -> dict[str, float]:
    meter = CalibrationMeter(temperature)
    for some in np.array_split(np.arange(len(targets)), 3):
        meter.update(torch.from_numpy(logits[some]), torch.from_numpy(targets[some]))
    return meter.result()


@pytest.mark.parametrize("sharper", [0.5, 1.0, 2.5])
def test_temperature_undoes_what_the_logits_were_multiplied_by(sharper: float) -> None:
    logits, targets = drawn()
    found = measured(sharper * logits, targets)
    assert found["best_temperature"] == pytest.approx(sharper, rel=0.05)
    assert found["calibration_error_at_best"] < 0.015
    assert (found["calibration_error"] < 0.015) == (sharper == 1)
    assert measured(sharper * logits, targets, sharper)["calibration_error"] < 0.015


def test_best_temperature_has_the_smallest_log_loss() -> None:
    logits, targets = drawn(500)
    best = best_temperature(3 * logits, targets)
    losses = {t: log_loss(targets, softmax(3 * logits / t, 1), labels=range(7)) for t in (0.9 * best, best, 1.1 * best)}
    assert min(losses, key=losses.__getitem__) == best


def test_error_by_hand() -> None:
    """Two faces called with 0.9, one of them rightly, and one with 0.6, rightly: (2 x 0.4 + 0.4) / 3."""
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    found = measured(logits, np.array([0, 1, 1]))
    assert found["calibration_error"] == pytest.approx((2 * 0.4 + 0.4) / 3)
    assert found["true_probability"] == pytest.approx((0.9 + 0.1 + 0.6) / 3)
    assert [b["images"] for b in found["bins"]] == [1, 2]  # type: ignore[index, attr-defined]


def test_unlabelled_and_diverged_faces_are_left_out() -> None:
    logits = np.log([[0.9, 0.1], [0.5, 0.5], [0.9, 0.1]])
    logits[1] = math.nan
    assert measured(logits, np.array([0, 0, -1]))["calibration_error"] == pytest.approx(0.1)
    assert measured(logits[:0], np.empty(0, int))["calibration_error"] is None


def test_users_see_probabilities_at_the_tasks_temperature() -> None:
    task = TaskConfig("emotion", "classification", ("a", "b"), temperature=2.0)
    logits = np.log(np.array([[0.9, 0.1]], np.float32))
    found = FacePredictions(np.empty((0, 0, 2, 2)), np.empty((0, 2, 0)), {"emotion": logits})
    assert probabilities([task], found)["emotion"] == pytest.approx(np.array([[0.75, 0.25]]), abs=1e-6)
