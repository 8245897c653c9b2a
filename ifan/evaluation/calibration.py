"""Calibration of a classification: of the faces called something with 70 %, are 70 in 100 so?

Expected calibration error and temperature scaling after Guo et al., "On Calibration of Modern Neural Networks", ICML
2017 (arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ifan.config import UNLABELLED
from ifan.refine import softmax

BINS = 15
"""Bins of equal width over the probability of the predicted class."""

TEMPERATURES = np.geomspace(0.25, 4, 401)
"""Temperatures that are tried: steps of 0.7 %."""


class CalibrationMeter:
    """Collects logits with their true classes; what users see is the softmax of the logits over ``temperature``."""

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature
        self._logits: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add logits ``(N, C)`` with class ids ``(N,)``; a target of -1, and logits that diverged, are left out."""
        values, ids = logits.detach().double().cpu().numpy(), target.cpu().numpy()
        counted = (ids != UNLABELLED) & np.isfinite(values).all(1)
        self._logits.append(values[counted])
        self._targets.append(ids[counted])

    def result(self) -> dict[str, Any]:
        """``calibration_error`` is the mean distance of a bin's accuracy and its mean probability, each face alike.

        ``true_probability``: mean probability that the true class was given. ``bins``: range, faces, mean probability
        and accuracy of those that hold faces. ``best_temperature``: that of the largest likelihood here, and the
        ``calibration_error_at_best`` with it. ``None`` where nothing was counted.
        """
        targets = np.concatenate(self._targets) if self._targets else np.empty(0, int)
        if not len(targets):
            return dict.fromkeys(
                ("calibration_error", "true_probability", "best_temperature", "calibration_error_at_best", "bins")
            )
        logits = np.concatenate(self._logits)
        probabilities = softmax(logits / self.temperature, 1)
        best = best_temperature(logits, targets)
        bins = _bins(probabilities, targets)
        return {
            "calibration_error": _error(bins),
            "true_probability": float(probabilities[np.arange(len(targets)), targets].mean()),
            "best_temperature": best,
            "calibration_error_at_best": _error(_bins(softmax(logits / best, 1), targets)),
            "bins": bins,
        }


def best_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature by which the softmax of ``logits`` (N, C) makes ``targets`` (N,) most likely."""
    rows = np.arange(len(targets))

    def unlikelihood(temperature: float) -> float:
        scaled = logits / temperature
        largest = scaled.max(1)
        return float((largest + np.log(np.exp(scaled - largest[:, None]).sum(1)) - scaled[rows, targets]).mean())

    return float(min(TEMPERATURES, key=unlikelihood))


def _bins(probabilities: np.ndarray, targets: np.ndarray) -> list[dict[str, Any]]:
    sure, right = probabilities.max(1), probabilities.argmax(1) == targets
    at = np.minimum((sure * BINS).astype(int), BINS - 1)
    return [
        {
            "from": k / BINS,
            "to": (k + 1) / BINS,
            "images": int((at == k).sum()),
            "probability": float(sure[at == k].mean()),
            "accuracy": float(right[at == k].mean()),
        }
        for k in np.unique(at).tolist()
    ]


def _error(bins: Sequence[dict[str, Any]]) -> float:
    faces = sum(b["images"] for b in bins)
    return sum(b["images"] * abs(b["accuracy"] - b["probability"]) for b in bins) / faces
