"""The walk over datasets: rows meet their labels, every dataset is measured on its own tasks."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ifan.crop import Crop
from ifan.evaluation import HEADLINES, ParsingMeter, Subset, constant_baseline, evaluate
from ifan.evaluation.runner import _update
from ifan.network import Predictions


def test_perfect_network(faces: Any, oracle: Any) -> None:
    model = oracle(faces()).train()
    seen: list[tuple[str, int, int]] = []
    report = evaluate(model, {"faces": faces()}, batch_size=3, progress=lambda *state: seen.append(state))
    assert seen == [("faces", 3, 7), ("faces", 6, 7), ("faces", 7, 7)]
    assert model.training
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    tasks = report["datasets"]["faces"]["tasks"]
    assert list(tasks) == ["parsing", "landmarks", "emotion"]
    assert tasks["parsing"]["mean_f"] == tasks["parsing"]["overall_f"] == tasks["emotion"]["accuracy"] == 1
    assert tasks["landmarks"]["nme"] == pytest.approx(0, abs=1e-6)
    assert tasks["emotion"]["images"] == tasks["landmarks"]["images"] == 7
    assert {name: group["images"] for name, group in tasks["landmarks"]["groups"]["pose"].items()} == {
        "left": 4,
        "frontal": 3,
    }


def test_further_classifications(faces: Any, oracle: Any) -> None:
    tasks = evaluate(oracle(faces(), pose=True), {"faces": faces()})["datasets"]["faces"]["tasks"]
    assert tasks["emotion"]["accuracy"] == tasks["pose"]["accuracy"] == 1
    assert [len(tasks[name]["confusion"]) for name in ("emotion", "pose")] == [7, 3]


def test_every_iteration(faces: Any, oracle: Any) -> None:
    report = evaluate(oracle(faces()), {"faces": faces()}, iterations=2, every_iteration=True)
    for task in report["datasets"]["faces"]["tasks"].values():
        best, worst = (0, 1) if task["kind"] == "landmarks" else (1, 0)
        key = HEADLINES[task["kind"]][1]
        assert [row[key] for row in task["iterations"]] == [worst, best]
        assert task["iterations"][-1] == {name: task[name] for name in HEADLINES[task["kind"]]}


def test_batch_size_does_not_matter(faces: Any, oracle: Any) -> None:
    reports = [
        evaluate(oracle(faces()), {"faces": faces()}, batch_size=n, every_iteration=True) for n in (1, 3, 7, 100)
    ]
    assert all(report == reports[0] for report in reports)


def test_a_dataset_is_measured_on_what_it_labels(faces: Any, oracle: Any) -> None:
    sets = {"points": faces(5, ("landmarks",)), "feelings": faces(4, ("emotion", "pose"))}
    model = oracle(faces())
    report = evaluate(model, sets)
    assert {name: list(part["tasks"]) for name, part in report["datasets"].items()} == {
        "points": ["landmarks"],
        "feelings": ["emotion"],
    }
    assert [lanes.segments for lanes in model.asked] == [(0, 5, 0), (0, 0, 4)]
    with pytest.raises(ValueError, match=r"dataset 'poses' labels \['pose'\]"):
        evaluate(model, {"poses": faces(3, ("pose",))})


@pytest.mark.parametrize("side", [32, 70])
def test_parsing_in_the_labels_own_pixels(faces: Any, oracle: Any, side: int) -> None:
    data = faces(3, side=side)
    report = evaluate(oracle(data), {"faces": data}, full_resolution=True)
    result = report["datasets"]["faces"]["tasks"]["parsing"]
    assert report["parsing_resolution"] == "labels"
    assert result["pixels"] == 3 * (side * side - 5)
    assert result["images"] == 3
    assert (result["mean_f"] == 1) == (side == 32)


@pytest.mark.parametrize("own_pixels", [False, True])
@pytest.mark.parametrize(("left", "right", "border"), [(0.9, 0.4, 5), (0.999, 0.3, 4)], ids=["nearest", "logits"])
def test_probabilities_are_enlarged_to_the_labels_before_the_largest_wins(
    own_pixels: bool, left: float, right: float, border: int
) -> None:
    """Of two columns at the border, where the nearest pixel, or the mean of the logits, would choose otherwise."""
    share = torch.tensor([left, left, right, right]).expand(4, 4)
    labels = (torch.arange(8) >= border).byte().expand(8, 8)
    meter, sample = ParsingMeter(("left", "right")), SimpleNamespace(parsing=labels.numpy())
    batch = SimpleNamespace(parsing=labels[None], samples=[sample], crops=[Crop(4, 4, 8)])
    predictions = Predictions(torch.stack([share, 1 - share]).log()[None], torch.zeros(0, 2, 0), {}, {})
    table = np.arange(256, dtype=np.uint8) if own_pixels else None
    _update({"parsing": meter}, predictions, batch, SimpleNamespace(), table)
    assert meter.result()["confusion"] == [[8 * border, 0], [0, 8 * (8 - border)]]


def test_constant_baseline(faces: Any, oracle: Any) -> None:
    data = faces()
    tasks = evaluate(oracle(data), {"faces": data})["datasets"]["faces"]["tasks"]
    labels = np.stack([data[i].parsing for i in range(7)])
    assert tasks["parsing"]["constant"]["accuracy"] == pytest.approx((labels == 0).sum() / (labels != 255).sum())
    assert tasks["emotion"]["constant"]["accuracy"] == 2 / 7
    points = np.stack([data[i].points for i in range(7)])
    unit = np.linalg.norm(points[:, 0] - points[:, 1], axis=1)
    nme = (np.linalg.norm(points - 16, axis=2).mean(1) / unit).mean()
    assert tasks["landmarks"]["constant"]["nme"] == pytest.approx(nme, rel=1e-5)
    model = oracle(data)
    prediction = constant_baseline(model, 2)
    assert prediction.parsing_logits.argmax(1).unique().tolist() == [0]
    assert prediction.class_logits["emotion"].softmax(1)[1].tolist() == pytest.approx(model.mean_classes.tolist())


def test_no_images(faces: Any, oracle: Any) -> None:
    report = evaluate(oracle(faces()), {"faces": faces(0)})
    assert json.dumps(report, allow_nan=False)
    assert all(t["images"] == 0 for t in report["datasets"]["faces"]["tasks"].values())
    assert report["datasets"]["faces"]["tasks"]["landmarks"]["nme"] is None


def test_subset_is_spread_evenly(faces: Any) -> None:
    few = Subset(faces(7), 3)
    assert [few[i].key for i in range(len(few))] == ["0", "2", "4"]
    assert few.labels_of(2) == faces(7).labels_of(4)
    assert len(Subset(faces(7), 100)) == 7
    with pytest.raises(IndexError):
        few[3]
    with pytest.raises(ValueError, match="at least 1"):
        Subset(faces(7), 0)


def test_wrong_counts(faces: Any, oracle: Any) -> None:
    with pytest.raises(ValueError, match="batch_size: expected at least 1; got 0"):
        evaluate(oracle(faces()), {}, batch_size=0)
    with pytest.raises(ValueError, match="iterations"):
        evaluate(oracle(faces()), {}, iterations=0)


def test_mode_is_restored_after_a_failure(faces: Any, oracle: Any) -> None:
    model = oracle(faces()).train()
    with pytest.raises(ZeroDivisionError):
        evaluate(model, {"faces": faces()}, progress=lambda *_: 1 / 0)
    assert model.training
    assert torch.is_grad_enabled()
