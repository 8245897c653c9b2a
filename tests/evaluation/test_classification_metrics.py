"""Classification metrics against hand-counted cases, torchmetrics and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support
from torchmetrics.classification import MulticlassAccuracy

from ifan.config import EMOTIONS
from ifan.evaluation import ClassificationMeter


def measure(predicted: torch.Tensor, target: torch.Tensor, classes: tuple[str, ...] = EMOTIONS) -> dict:
    meter = ClassificationMeter(classes)
    meter.update(predicted, target)
    return meter.result()


def random_ids(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 7, (200,), generator=generator)
    predicted = torch.where(torch.rand(200, generator=generator) < 0.5, target, torch.randint(0, 7, (200,)))
    return predicted, target


def test_by_hand() -> None:
    target = torch.tensor([0, 0, 0, 1, -1])
    predicted = torch.tensor([0, 0, 1, 1, 0])
    result = measure(predicted, target, ("yes", "no", "never"))
    assert result["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]  # a row a true class
    assert result["images"] == 4
    assert result["accuracy"] == 3 / 4
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["classes"]["yes"] == {"precision": 1, "recall": 2 / 3, "f": 4 / 5, "images": 3}
    assert result["classes"]["no"] == {"precision": 1 / 2, "recall": 1, "f": 2 / 3, "images": 1}
    assert result["classes"]["never"] == {"precision": None, "recall": None, "f": None, "images": 0}


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_scikit_learn_and_torchmetrics(seed: int) -> None:
    predicted, target = random_ids(seed)
    result = measure(predicted, target)
    assert result["confusion"] == confusion_matrix(target, predicted).tolist()
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(target, predicted))
    assert result["accuracy"] == pytest.approx(float(MulticlassAccuracy(7, average="micro")(predicted, target)))
    expected = np.transpose(precision_recall_fscore_support(target, predicted)).tolist()
    for scores, row in zip(result["classes"].values(), expected, strict=True):
        assert [scores[key] for key in ("precision", "recall", "f", "images")] == pytest.approx(row)


def test_perfect_and_off_by_one() -> None:
    _, target = random_ids()
    assert measure(target, target)["accuracy"] == measure(target, target)["balanced_accuracy"] == 1
    assert measure((target + 1) % 7, target)["accuracy"] == 0


def test_order_and_batches_do_not_matter() -> None:
    predicted, target = random_ids()
    whole, order = measure(predicted, target), torch.randperm(len(target))
    assert measure(predicted[order], target[order]) == whole
    meter = ClassificationMeter(EMOTIONS)
    for p, t in zip(predicted.split(33), target.split(33), strict=True):
        meter.update(p, t)
    assert meter.result() == whole


@pytest.mark.parametrize("target", [torch.zeros(0).long(), torch.tensor([-1, -1])], ids=["no image", "unlabelled"])
def test_nothing_to_count(target: torch.Tensor) -> None:
    result = measure(torch.zeros_like(target), target)
    assert (result["images"], result["accuracy"], result["balanced_accuracy"]) == (0, None, None)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="one shape"):
        measure(torch.zeros(3).long(), torch.zeros(2).long())
    with pytest.raises(ValueError, match="target class ids"):
        measure(torch.zeros(1).long(), torch.tensor([7]))
    with pytest.raises(ValueError, match="predicted class ids"):
        measure(torch.tensor([-1]), torch.zeros(1).long())
