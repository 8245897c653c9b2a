"""Classification: accuracy, balanced accuracy, precision, recall and F a class, from one confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ifan.config import UNLABELLED
from ifan.evaluation.calibration import CalibrationMeter

CHUNK = 1 << 22
"""Elements counted at a time: their 64-bit indices take 32 MB."""


class ClassificationMeter:
    """Counts predictions in a confusion matrix ``n[t, p]`` of true class t and predicted class p.

    Accuracy is the share of right predictions; balanced accuracy the mean recall of the classes that occur. Precision,
    recall and F of a class are ``None`` where their denominator is 0. ``temperature``: see `CalibrationMeter`.
    """

    def __init__(self, classes: Sequence[str], temperature: float = 1.0) -> None:
        self.classes = tuple(classes)
        self.calibration = CalibrationMeter(temperature)
        self.counts = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)

    def update(self, predicted: Tensor, target: Tensor, logits: Tensor | None = None) -> None:
        """Add class ids ``(N,)``, integers, and the ``logits`` (N, C) they come from; a target of -1 is unlabelled and
        left out.

        Raises ``ValueError`` for shapes that differ and for ids the task does not have.
        """
        if predicted.shape != target.shape:
            raise ValueError(
                f"classification metric: prediction and target must have one shape; got {tuple(predicted.shape)} and "
                f"{tuple(target.shape)}; give one class id a sample"
            )
        self.counts += confusion_counts(predicted, target, len(self.classes), UNLABELLED)
        if logits is not None:
            self.calibration.update(logits, target)

    def result(self) -> dict[str, Any]:
        """Scores in [0, 1], ``None`` where nothing was counted; ``confusion`` has a row a true class."""
        right, true, predicted = self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)
        recalls = [ratio(a, b) for a, b in zip(right, true, strict=True)]
        precisions = [ratio(a, b) for a, b in zip(right, predicted, strict=True)]
        rows = zip(self.classes, precisions, recalls, f_scores(self.counts), true.tolist(), strict=True)
        return {
            "images": int(self.counts.sum()),
            "accuracy": ratio(right.sum(), self.counts.sum()),
            "balanced_accuracy": mean(recalls),
            **self.calibration.result(),
            "classes": {
                name: {"precision": p, "recall": r, "f": f, "images": images} for name, p, r, f, images in rows
            },
            "confusion": self.counts.tolist(),
        }


def confusion_counts(predicted: Tensor, target: Tensor, classes: int, ignored: int) -> Tensor:
    """``(classes, classes)`` int64 on the CPU: how often true class (row) and predicted class (column) meet.

    ``predicted`` and ``target`` are integer tensors of one shape; elements whose target is ``ignored`` are left out.
    Raises ``ValueError`` for ids outside ``0 .. classes - 1``.
    """
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    for p, t in zip(predicted.reshape(-1).split(CHUNK), target.reshape(-1).split(CHUNK), strict=True):
        counted = t != ignored
        p, t = p[counted].long(), t[counted].long()
        for what, ids in (("predicted", p), ("target", t)):
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
                raise ValueError(
                    f"metric: {what} class ids must be in 0 .. {classes - 1}; got {int(ids.min())} .. {int(ids.max())};"
                    " check the label table of the dataset"
                )
        counts += torch.bincount(t * classes + p, minlength=classes * classes).cpu()
    return counts.view(classes, classes)


def f_scores(counts: Tensor) -> list[float | None]:
    """F of each class of a confusion matrix: 2 x right / (predicted + true); ``None`` where a class does not occur."""
    return [ratio(2 * a, b) for a, b in zip(counts.diagonal(), counts.sum(0) + counts.sum(1), strict=True)]


def ratio(numerator: Tensor, denominator: Tensor) -> float | None:
    """Quotient of two counts; ``None`` for 0 / 0."""
    return int(numerator) / int(denominator) if int(denominator) else None


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; ``None`` without any."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
