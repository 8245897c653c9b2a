"""Landmarks: normalised mean error, failures and the cumulative error curve, also by point and by group of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ifan.config import POINT_NAMES

EYES = ("left_eye", "right_eye")
FAILURE = 0.10
"""An image whose normalised error is above this is a failure; the area under the cumulative curve ends here too."""

DEFINITION = (
    "NME: mean over images of (mean distance of predicted and true points / distance of the true eyes). failures:"
    " images above 10 %. AUC: area under the cumulative error curve up to 10 %, as a share of it. right, down: mean of"
    " predicted less true, which tells whether labels and predictions mean the same point."
)

CURVE_END, CURVE_STEPS = 0.20, 80


class LandmarkMeter:
    """Collects the errors of images with labelled points.

    The error of an image is the mean, over its labelled points, of the distance between predicted and true point,
    divided by the distance between its two true eye points (inter-ocular); NME is the mean over images. The quotient is
    the same in pixels of the picture and in units of the crop, because a crop scales both axes alike. An image without
    two distinct labelled eye points has no such unit: it is counted as ``unmeasured`` and left out.

    Raises ``ValueError`` when ``points`` does not name the two eyes.
    """

    def __init__(self, points: Sequence[str]) -> None:
        self.points = tuple(points)
        if not set(EYES) <= set(points):
            raise ValueError(f"landmark metric: expected points named {' and '.join(EYES)}; got {tuple(points)}")
        self.unmeasured = 0
        self._errors: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        self._groups: list[Mapping[str, str]] = []

    def update(
        self,
        predicted: np.ndarray | Tensor,
        target: np.ndarray | Tensor,
        weight: np.ndarray | Tensor | None = None,
        groups: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        """Add points ``(N, 2, P)``, x's then y's, in any unit; NaN targets are unlabelled.

        ``weight`` ``(N, P)``: 0 = unlabelled too. ``groups`` says for each image which groups it is in, as
        ``{"pose": "frontal", ...}``. Raises ``ValueError`` for shapes that do not fit.
        """
        predicted, target = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
        if predicted.shape != target.shape or predicted.shape[1:] != (2, len(self.points)):
            raise ValueError(
                f"landmark metric: expected prediction and target (N, 2, {len(self.points)}); got {predicted.shape} and"
                f" {target.shape}; give x's then y's"
            )
        known = np.isfinite(target).all(1) if weight is None else (np.asarray(weight) > 0) & np.isfinite(target).all(1)
        left, right = (self.points.index(eye) for eye in EYES)
        unit = np.linalg.norm(target[:, :, left] - target[:, :, right], axis=1)
        measured = known[:, left] & known[:, right] & (unit > 0)
        self.unmeasured += int((~measured).sum())
        offset = (predicted - target)[measured] / unit[measured, None, None]
        distance = np.linalg.norm(offset, axis=1)
        diverged = ~np.isfinite(distance)  # a network that predicts no number is infinitely wrong, not unlabelled
        self._errors.extend(np.where(known[measured], np.where(diverged, np.inf, distance), np.nan))
        self._offsets.extend(np.where(known[measured, None], np.where(diverged[:, None], np.inf, offset), np.nan))
        named = groups if groups is not None else [{}] * len(measured)
        self._groups.extend(group for group, kept in zip(named, measured, strict=True) if kept)

    def result(self) -> dict[str, Any]:
        """Errors in inter-ocular distances (0.05 = 5 %), ``None`` where nothing was measured.

        ``offsets``: mean of predicted less true to the right and down, a point. ``nme_five``: of the points in
        `ifan.config.POINT_NAMES` alone.
        """
        points = np.reshape(self._errors, (-1, len(self.points)))
        offsets = np.reshape(self._offsets, (-1, 2, len(self.points)))
        images = np.nanmean(points, axis=1)
        thresholds = np.linspace(0, CURVE_END, CURVE_STEPS + 1)
        tasks = sorted({name for group in self._groups for name in group})
        return {
            **_summary(images),
            "nme_five": _mean(np.nanmean(points[:, [name in POINT_NAMES for name in self.points]], axis=1)),
            "unmeasured": self.unmeasured,
            "points": {name: _mean(points[:, i]) for i, name in enumerate(self.points)},
            "offsets": {name: [_mean(offsets[:, k, i]) for k in (0, 1)] for i, name in enumerate(self.points)},
            "groups": {task: self._by_group(images, task) for task in tasks},
            "curve": {
                "threshold": thresholds.tolist(),
                "share": [_mean((images <= t).astype(float)) for t in thresholds],
            },
        }

    def _by_group(self, images: np.ndarray, task: str) -> dict[str, dict[str, Any]]:
        values = np.array([group.get(task, "") for group in self._groups])
        return {str(value): _summary(images[values == value]) for value in np.unique(values) if value}


def _summary(errors: np.ndarray) -> dict[str, Any]:
    """``auc`` is the area under the share of images with an error of at most e, e from 0 to 10 %, as a part of 10 %."""
    return {
        "images": len(errors),
        "nme": _mean(errors),
        "failure_rate": _mean((errors > FAILURE).astype(float)),
        "auc": _mean(np.clip(1 - errors / FAILURE, 0, None)),
    }


def _mean(values: np.ndarray) -> float | None:
    """Mean of the labelled values; ``None`` without any, and where a prediction diverged."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size and np.isfinite(values).all() else None
