from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import arrange, assert_compiles, assert_same_gradients, leaf
from tolerances import assert_close
from torch import Tensor
from torch.library import opcheck

from ifan.ops import HybridLoss, hybrid_loss
from ifan.ops.hybrid_loss import _forward

SIZES = [3, 4]


def batch(dtype: torch.dtype = torch.float64, scale: int = 1) -> dict[str, Any]:
    """Two parsing, three landmark and four classification rows, each partly labelled."""
    target = torch.randint(0, 5, (2, 6 * scale, 4 * scale), dtype=torch.uint8)
    target[torch.rand(target.shape) < 0.3] = 255
    points_target, weight = torch.rand(3, 2, 5, dtype=dtype) - 0.5, torch.rand(3, 5, dtype=dtype)
    weight[0, :3] = 0
    points_target[0, :, :3] = torch.nan
    return {
        "parsing_logits": leaf(2, 5, 6, 4, dtype=dtype),
        "parsing_target": target,
        "points": (torch.rand(3, 2, 5, dtype=dtype) - 0.5).requires_grad_(),
        "points_target": points_target,
        "points_weight": weight,
        "class_logits": leaf(4, 7, dtype=dtype),
        "class_targets": torch.tensor([[0, -1], [1, 3], [-1, -1], [2, 0]]),
        "class_sizes": SIZES,
        "task_weights": leaf(4, dtype=dtype, positive=True),
    }


def naive(
    data: dict[str, Any],
    class_weights: Tensor | None = None,
    smoothing: tuple[float, float] = (0.0, 0.0),
    kind: str = "wing",
    denominators: list[float] | None = None,
) -> tuple[list[Tensor], list[float]]:
    """Losses and counts by loops over elements."""

    def cross_entropy(logits: Tensor, label: int, smooth: float) -> Tensor:
        log = logits.double() - logits.double().exp().sum().log()
        return -(1 - smooth) * log[label] - smooth * log.mean()

    def point(d: Tensor) -> Tensor:
        w, c, d = 0.1, 0.02, d.abs()
        if kind == "l2":
            return d * d
        if kind == "smooth_l1":
            return d * d / (2 * w) if d < w else d - w / 2
        return w * torch.log(1 + d / c) if d < w else d - w + w * math.log(1 + w / c)

    sums, counts = [], []
    total, count = data["parsing_logits"].double().sum() * 0, 0.0
    target = data["parsing_target"]
    logits = data["parsing_logits"].double()
    if logits.shape[2:] != target.shape[1:]:
        logits = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    for b, i, j in torch.cartesian_prod(*map(torch.arange, target.shape)).tolist():
        label = int(target[b, i, j])
        if label != 255:
            weight = 1.0 if class_weights is None else float(class_weights[label])
            total = total + weight * cross_entropy(logits[b, :, i, j], label, smoothing[0])
            count += weight
    sums.append(total)
    counts.append(count)
    total, count = data["points"].double().sum() * 0, 0.0
    for b in range(data["points"].shape[0]):
        for p in range(data["points"].shape[2]):
            weight = float(data["points_weight"][b, p])
            if weight > 0:
                difference = data["points"][b, :, p].double() - data["points_target"][b, :, p].double()
                total = total + weight * (point(difference[0]) + point(difference[1]))
                count += weight
    sums.append(total)
    counts.append(count)
    for task, logits in enumerate(data["class_logits"].split(data["class_sizes"], 1)):
        labels = data["class_targets"][:, task].tolist()
        rows = [cross_entropy(logits[b], label, smoothing[1]) for b, label in enumerate(labels) if label >= 0]
        sums.append(torch.stack(rows).sum() if rows else logits.double().sum() * 0)
        counts.append(float(len(rows)))
    divisors = counts if denominators is None else denominators
    return [s / d if d else s * 0 for s, d in zip(sums, divisors, strict=True)], counts


def op(**data: Any) -> HybridLoss:
    """The registered operation on the reference backend."""
    predictions = [data["parsing_logits"], data["points"], data["class_logits"], data["task_weights"]]
    targets = [data["parsing_target"], data["points_target"], data["points_weight"], data["class_targets"]]
    settings = [data.get("parsing_smoothing", 0.0), data.get("class_smoothing", 0.0), 0.1, 0.02]
    optional = (data.get("parsing_class_weights"), data.get("denominators"))
    return HybridLoss(
        *_forward(
            predictions, targets, *optional, data["class_sizes"], settings, data.get("point_loss", "wing"), "reference"
        )[:3]
    )


CALLS = pytest.mark.parametrize("call", [hybrid_loss, op], ids=["eager", "op"])
PREDICTIONS = ("parsing_logits", "points", "class_logits", "task_weights")


def with_predictions(data: dict[str, Any], values: tuple[Tensor, ...]) -> dict[str, Any]:
    return {**data, **dict(zip(PREDICTIONS, values, strict=True))}


@CALLS
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("kind", ["wing", "smooth_l1", "l2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_values_and_gradients_equal_element_loops(call: Any, scale: int, kind: str, dtype: torch.dtype) -> None:
    data = batch(dtype, scale)
    weights, smoothing = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0], dtype=dtype), (0.1, 0.2)
    options = {
        "parsing_class_weights": weights,
        "parsing_smoothing": smoothing[0],
        "class_smoothing": smoothing[1],
        "point_loss": kind,
    }
    total, losses, counts = call(**data, **options)
    expected, expected_counts = naive(data, weights, smoothing, kind)
    assert_close(losses, torch.stack(expected).detach(), 100)
    assert_close(counts, torch.tensor(expected_counts), 100)
    assert_close(total, (data["task_weights"].double() * torch.stack(expected)).sum(), 100)
    assert not counts.requires_grad or call is op

    def run(*values: Tensor) -> list[Tensor]:  # total and losses both receive a random gradient
        return list(call(**with_predictions(data, values), **options)[:2])

    def oracle(*values: Tensor) -> list[Tensor]:
        each = torch.stack(naive(with_predictions(data, values), weights, smoothing, kind)[0])
        return [(values[3] * each).sum(), each]

    assert_same_gradients(run, oracle, [data[name] for name in PREDICTIONS], terms=100)


@CALLS
def test_upsampling_is_torch_bilinear(call: Any) -> None:
    data = batch()
    data["parsing_target"] = torch.randint(0, 5, (2, 15, 9), dtype=torch.uint8)
    large = F.interpolate(data["parsing_logits"], (15, 9), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(large, data["parsing_target"].long()).detach()
    assert_close(call(**data).losses[0], expected, 135)
    wrong = F.interpolate(data["parsing_logits"], (15, 9), mode="bilinear", align_corners=True)
    assert abs(float(F.cross_entropy(wrong, data["parsing_target"].long()).detach() - expected)) > 1e-3


@CALLS
def test_unlabelled_elements_have_exactly_no_gradient(call: Any) -> None:
    data = batch()
    call(**data).total.backward()
    ignored = (data["parsing_target"] == 255)[:, None].expand_as(data["parsing_logits"])
    assert torch.equal(data["parsing_logits"].grad[ignored], torch.zeros(int(ignored.sum()), dtype=torch.float64))
    assert torch.equal(data["points"].grad[0, :, :3], torch.zeros(2, 3, dtype=torch.float64))
    unlabelled = torch.cat([(data["class_targets"][:, t] < 0)[:, None].expand(-1, n) for t, n in enumerate(SIZES)], 1)
    assert float(data["class_logits"].grad[unlabelled].abs().max()) == 0
    for name, labelled in (("parsing_logits", ~ignored), ("class_logits", ~unlabelled)):
        assert float(data[name].grad[labelled].abs().min()) > 0
    assert float(data["points"].grad[0, :, 3:].abs().min()) > 0


def drop_mask(data: dict[str, Any]) -> dict[str, Any]:
    target = data["parsing_target"].clone()
    target[target == 255] = 0
    return {**data, "parsing_target": target}


def swap_sides(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "points_target": data["points_target"][:, :, [1, 0, 2, 4, 3]]}


def swap_coordinates(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "points_target": data["points_target"].flip(1)}


def all_points(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "points_weight": torch.ones(3, 5), "points_target": data["points_target"].nan_to_num()}


def rows_as_denominator(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "denominators": torch.tensor([48.0, 15.0, 4.0, 4.0])}


def labels_of_the_other_task(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "class_targets": data["class_targets"].clamp(max=2).flip(1)}


@pytest.mark.parametrize(
    ("mutate", "task"),
    [
        (drop_mask, 0),
        (swap_sides, 1),
        (swap_coordinates, 1),
        (all_points, 1),
        (rows_as_denominator, 0),
        (rows_as_denominator, 1),
        (rows_as_denominator, 2),
        (labels_of_the_other_task, 2),
    ],
)
@CALLS
def test_a_mistake_would_be_noticed(call: Any, mutate: Callable[[dict[str, Any]], dict[str, Any]], task: int) -> None:
    data = batch()
    exact = float(naive(data)[0][task].detach())
    assert abs(float(call(**data).losses[task].detach()) - exact) < 1e-9
    assert abs(float(call(**mutate(data)).losses[task].detach()) - exact) > 1e-4


@CALLS
def test_tasks_without_labels_give_exact_zeros_and_the_others_train(call: Any) -> None:
    data = batch()
    data["parsing_target"] = torch.full_like(data["parsing_target"], 255)
    data["points_weight"] = torch.zeros_like(data["points_weight"])
    data["points_target"] = torch.full_like(data["points_target"], torch.nan)
    data["class_targets"] = torch.tensor([[-1, 1], [-1, 2], [-1, -1], [-1, 0]])
    total, losses, counts = call(**data)
    assert losses[:3].tolist() == [0, 0, 0]
    assert counts.tolist() == [0, 0, 0, 3]
    total.backward()
    assert float(data["parsing_logits"].grad.abs().max()) == 0
    assert float(data["points"].grad.abs().max()) == 0
    assert float(data["class_logits"].grad[:, :3].abs().max()) == 0
    assert float(data["class_logits"].grad[0, 3:].abs().min()) > 0
    assert_close(total, data["task_weights"][3] * losses[3])


@CALLS
def test_zero_rows_and_absent_tasks(call: Any) -> None:
    data, empty = batch(), torch.zeros
    rows = {
        "parsing_logits": leaf(0, 5, 3, 2),
        "parsing_target": empty(0, 6, 4, dtype=torch.uint8),
        "points": leaf(0, 2, 5),
        "points_target": empty(0, 2, 5),
        "points_weight": empty(0, 5),
    }
    total, losses, counts = call(**{**data, **rows})
    assert losses[:2].tolist() == counts[:2].tolist() == [0, 0]
    total.backward()
    assert_close(losses[2:], torch.stack(naive(data)[0])[2:].detach())
    absent = {
        "parsing_logits": empty(0, 0, 1, 1),
        "parsing_target": empty(0, 1, 1, dtype=torch.uint8),
        "points": empty(0, 2, 0),
        "points_target": empty(0, 2, 0),
        "points_weight": empty(0, 0),
        "task_weights": torch.ones(2),
    }
    assert_close(call(**{**data, **absent}).losses, torch.stack(naive(data)[0])[2:].detach())
    alone = {"class_logits": empty(0, 0), "class_targets": empty(0, 0, dtype=torch.int64), "class_sizes": []}
    assert call(**{**data, **alone, "task_weights": torch.ones(2)}).losses.shape == (2,)


@CALLS
def test_shares_of_a_batch_add_up_with_the_denominators_of_the_whole(call: Any) -> None:
    data = batch()
    whole = call(**data)
    rows = {
        "parsing_logits": 1, "parsing_target": 1, "points": 2, "points_target": 2, "points_weight": 2,
        "class_logits": 3, "class_targets": 3,
    }  # fmt: skip
    parts = [
        {**data, **{name: data[name][cut(n)] for name, n in rows.items()}, "denominators": whole.counts.detach()}
        for cut in (lambda n: slice(None, n), lambda n: slice(n, None))
    ]
    assert_close(sum(call(**part).losses for part in parts), whole.losses, 10)
    assert_close(sum(call(**part).counts for part in parts), whole.counts, 10)


@CALLS
def test_large_logits_stay_finite(call: Any) -> None:
    data = batch(torch.float32)
    data["parsing_logits"] = (data["parsing_logits"].detach() * 1e4).requires_grad_()
    total = call(**data).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(data["parsing_logits"].grad).all()


@pytest.mark.parametrize("layout", ["channels_last", "slice", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_layouts_and_low_precision_sum_in_float32(layout: str, dtype: torch.dtype) -> None:
    data = batch(torch.float32)
    for name in ("parsing_logits", "points", "class_logits"):
        data[name] = data[name].detach().to(dtype)
    data["parsing_logits"] = arrange(data["parsing_logits"], layout)
    losses = hybrid_loss(**data).losses
    assert losses.dtype == torch.float32
    assert_close(losses, torch.stack(naive(data)[0]).detach(), 100)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hybrid_loss(**data).losses, losses)


def test_gradcheck() -> None:
    data = batch(scale=2)

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        return op(**with_predictions(data, values))[:2]

    assert torch.autograd.gradcheck(run, [data[name] for name in PREDICTIONS], fast_mode=True)


def test_opcheck_and_one_graph() -> None:
    data = batch(torch.float32, scale=2)
    predictions = [data[name] for name in PREDICTIONS]
    targets = [data[name] for name in ("parsing_target", "points_target", "points_weight", "class_targets")]
    settings = [0.1, 0.1, 0.1, 0.02]
    opcheck(_forward, (predictions, targets, torch.ones(5), torch.ones(4), SIZES, settings, "wing", "reference"))
    for call in (hybrid_loss, op):
        assert_compiles(lambda *v, c=call: list(c(**with_predictions(data, v))[:2]), predictions)


def test_bad_input_is_refused() -> None:
    data = batch()
    wrong = data["parsing_target"].clone()
    wrong[0, 0, 0] = 7
    for change, message in (
        ({"parsing_target": wrong}, "parsing_target must be in 0..4 or 255; got 7"),
        ({"class_targets": torch.full((4, 2), 3)}, "class_targets[:, 0] must be in 0..2 or -1; got 3"),
        ({"parsing_target": wrong.long()}, "must be torch.uint8"),
        ({"class_targets": data["class_targets"].int()}, "must be torch.int64"),
        ({"points_target": data["points_target"][:, :, :4]}, "points_target must be (Bl, 2, P)"),
        ({"task_weights": torch.ones(3)}, "task_weights must be (T,) = (4,); got (3,)"),
        ({"denominators": torch.ones(5)}, "denominators must be (T,)"),
        ({"parsing_class_weights": torch.ones(4)}, "parsing_class_weights must be (K,)"),
        ({"point_loss": "l3"}, "point_loss must be one of"),
        ({"class_smoothing": 1.0}, "class_smoothing must be in [0, 1)"),
        ({"wing_width": 0.0}, "wing_width must be positive"),
        ({"class_sizes": [3, 3]}, "class_logits must be"),
    ):
        with pytest.raises(ValueError, match=r"^hybrid_loss: ") as error:
            hybrid_loss(**{**data, **change})
        assert message in str(error.value)
        assert "\n" not in str(error.value)
