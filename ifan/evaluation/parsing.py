"""Face parsing: F a class, their mean, overall F by the Helen protocol, pixel accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ifan.config import IGNORE
from ifan.evaluation.classification import confusion_counts, f_scores, mean, ratio

OVERALL_CLASSES = ("brow", "eye", "nose", "upper_lip", "inside_mouth", "lower_lip")
"""The inner parts: what overall F counts. Skin, hair and background are left out."""

MOUTH_CLASSES = ("upper_lip", "inside_mouth", "lower_lip")

DEFINITION = (
    "overall F: pixels of brows, eyes, nose and mouth parts of all images; 2 x (pixels of the right part) / (predicted"
    " + true pixels of these parts). mean F: mean of the classes' F, background included."
)


class ParsingMeter:
    """Counts pixels in a confusion matrix, image after image.

    With ``n[t, p]`` pixels of true class t and predicted class p over all images, and ignored pixels (255) left out:
    F of class c is ``2 n[c, c] / (sum_p n[c, p] + sum_t n[t, c])``, none where a class is neither predicted nor true.
    Overall F by the Helen protocol (Smith et al., CVPR 2013) takes brows, eyes, nose and mouth parts together:
    ``2 sum_c n[c, c] / sum_c (sum_p n[c, p] + sum_t n[t, c])`` over those classes c. A part taken for another part is
    wrong. The mouth's F is that of its three parts as one region.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.images = 0
        self.counts = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add class ids ``(N, H, W)`` or ``(H, W)``: ``predicted`` of any integer type, ``target`` uint8, 255 ignored.

        Raises ``ValueError`` for shapes that differ and for ids the task does not have.
        """
        if predicted.shape != target.shape:
            raise ValueError(
                f"parsing metric: prediction and target must have one shape; got {tuple(predicted.shape)} and "
                f"{tuple(target.shape)}; resize the prediction to the labels"
            )
        self.images += 1 if target.dim() == 2 else target.shape[0]
        self.counts += confusion_counts(predicted, target, len(self.classes), IGNORE)

    def result(self) -> dict[str, Any]:
        """Scores in [0, 1], ``None`` where nothing was counted."""
        scores = f_scores(self.counts)
        mouth = self._ids(MOUTH_CLASSES)
        regions = [self.counts[mouth][:, mouth].sum(), self.counts[mouth].sum() + self.counts[:, mouth].sum()]
        return {
            "images": self.images,
            "pixels": int(self.counts.sum()),
            "mean_f": mean(scores),
            "overall_f": self._overall(),
            "accuracy": ratio(self.counts.trace(), self.counts.sum()),
            "mouth_f": ratio(2 * regions[0], regions[1]),
            "f": dict(zip(self.classes, scores, strict=True)),
            "confusion": self.counts.tolist(),
            "definition": DEFINITION,
        }

    def _overall(self) -> float | None:
        parts = self._ids(OVERALL_CLASSES)
        true_positives = self.counts.diagonal()[parts].sum()
        return ratio(2 * true_positives, self.counts[parts].sum() + self.counts[:, parts].sum())

    def _ids(self, names: Sequence[str]) -> list[int]:
        return [i for i, name in enumerate(self.classes) if name in names]
