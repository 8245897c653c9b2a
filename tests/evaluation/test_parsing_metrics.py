"""Parsing F against hand-counted cases, torchmetrics and scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassF1Score

from ifan.config import IGNORE, PARSING_CLASSES
from ifan.evaluation import ParsingMeter
from ifan.evaluation import classification as counting
from ifan.evaluation.parsing import OVERALL_CLASSES

ID = {name: i for i, name in enumerate(PARSING_CLASSES)}


def measure(predicted: torch.Tensor, target: torch.Tensor) -> dict:
    meter = ParsingMeter(PARSING_CLASSES)
    meter.update(predicted, target)
    return meter.result()


def random_maps(seed: int = 0, images: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 9, (images, 17, 13), generator=generator, dtype=torch.uint8)
    predicted = torch.randint(0, 9, target.shape, generator=generator)
    predicted = torch.where(torch.rand(target.shape, generator=generator) < 0.6, target.long(), predicted)
    target[torch.rand(target.shape, generator=generator) < 0.1] = IGNORE
    return predicted, target


def test_by_hand() -> None:
    # row of pixels: true     brow brow nose  skin  hair  (ignored)
    #                predicted brow nose nose  brow  hair   nose
    names = ["brow", "brow", "nose", "skin", "hair"]
    target = torch.tensor([[*(ID[n] for n in names), IGNORE]], dtype=torch.uint8)
    predicted = torch.tensor([[ID[n] for n in ("brow", "nose", "nose", "brow", "hair", "nose")]])
    result = measure(predicted, target)
    assert result["f"]["brow"] == 2 * 1 / (2 + 2)
    assert result["f"]["nose"] == 2 * 1 / (2 + 1)
    assert result["f"]["skin"] == 0
    assert result["f"]["hair"] == 1
    assert result["f"]["eye"] is None
    assert result["mean_f"] == pytest.approx((1 / 2 + 2 / 3 + 0 + 1) / 4)
    assert result["overall_f"] == 2 * 2 / (4 + 3)  # parts: 2 right, 4 predicted (brow 2, nose 2), 3 true
    assert result["accuracy"] == 3 / 5
    assert (result["pixels"], result["images"]) == (5, 1)


def test_overall_leaves_skin_hair_and_background_out_but_counts_parts_taken_for_each_other() -> None:
    target = torch.tensor([[ID["upper_lip"], ID["lower_lip"], ID["skin"], ID["hair"]]], dtype=torch.uint8)
    swapped = torch.tensor([[ID["lower_lip"], ID["upper_lip"], ID["hair"], ID["skin"]]])
    assert measure(swapped, target)["overall_f"] == 0
    assert measure(swapped, target)["mouth_f"] == 1
    outside = torch.tensor([[ID["upper_lip"], ID["lower_lip"], ID["hair"], ID["background"]]])
    assert measure(outside, target)["overall_f"] == 1
    assert set(OVERALL_CLASSES) == set(PARSING_CLASSES) - {"background", "skin", "hair"}


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_torchmetrics_and_scikit_learn(seed: int) -> None:
    predicted, target = random_maps(seed)
    result, labels = measure(predicted, target), target.long()
    expected = MulticlassF1Score(9, average="none", ignore_index=IGNORE)(predicted, labels)
    torch.testing.assert_close(torch.tensor(list(result["f"].values())), expected)
    confusion = MulticlassConfusionMatrix(9, ignore_index=IGNORE)(predicted, labels)
    assert result["confusion"] == confusion.tolist()
    counted = target != IGNORE
    true, found = labels[counted].numpy(), predicted[counted].numpy()
    assert result["mean_f"] == pytest.approx(f1_score(true, found, average="macro"))
    parts = [ID[name] for name in OVERALL_CLASSES]
    assert result["overall_f"] == pytest.approx(f1_score(true, found, labels=parts, average="micro"))


def test_perfect_and_off_by_one() -> None:
    _, target = random_maps()
    perfect = torch.where(target == IGNORE, 0, target).long()
    result = measure(perfect, target)
    assert result["mean_f"] == result["overall_f"] == result["accuracy"] == result["mouth_f"] == 1
    shifted = measure((perfect + 1) % 9, target)
    assert shifted["mean_f"] == shifted["overall_f"] == shifted["accuracy"] == 0


def test_order_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, target = random_maps()
    whole, order = measure(predicted, target), torch.randperm(len(target))
    assert measure(predicted[order], target[order]) == whole
    meter = ParsingMeter(PARSING_CLASSES)
    for p, t in zip(predicted, target, strict=True):
        meter.update(p, t)
    assert meter.result() == whole
    monkeypatch.setattr(counting, "CHUNK", 7)
    assert measure(predicted, target) == whole


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 4, 4)], ids=["no image", "all ignored"])
def test_nothing_to_count(shape: tuple[int, ...]) -> None:
    result = measure(torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORE, dtype=torch.uint8))
    assert result["pixels"] == 0
    assert [result[key] for key in ("mean_f", "overall_f", "accuracy", "mouth_f")] == [None] * 4


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="one shape"):
        measure(torch.zeros(1, 4, 4), torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=r"target class ids must be in 0 \.\. 8; got 0 \.\. 9"):
        measure(torch.zeros(1, 2).long(), torch.tensor([[0, 9]], dtype=torch.uint8))
