"""`ifan.ops.hybrid_loss`: values and gradients of every way to call it, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from ifan.config import IGNORE, UNLABELLED
from ifan.ops import backend_status
from ifan.ops.hybrid_loss import _forward
from tests.support.cases import arrange, assert_compiles, assert_same_gradients, leaf
from tests.support.losses import (
    CALLS,
    DTYPE,
    PREDICTIONS,
    SIZES,
    automatic,
    batch,
    eager,
    kernel,
    naive,
    op,
    registered,
    with_predictions,
)
from tests.support.tolerances import assert_close


@CALLS
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("kind", ["wing", "smooth_l1", "l2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_values_and_gradients_equal_element_loops(call: Any, scale: int, kind: str, dtype: torch.dtype) -> None:
    if call is kernel and dtype == torch.float64:
        pytest.skip("the kernel leaves float64 to the reference")
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
    assert not counts.requires_grad or call is not eager

    def run(*values: Tensor) -> list[Tensor]:  # total and losses both receive a random gradient
        return list(call(**with_predictions(data, values), **options)[:2])

    def oracle(*values: Tensor) -> list[Tensor]:
        each = torch.stack(naive(with_predictions(data, values), weights, smoothing, kind)[0])
        return [(values[3] * each).sum(), each]

    assert_same_gradients(run, oracle, [data[name] for name in PREDICTIONS], terms=100)


@CALLS
def test_upsampling_is_torch_bilinear(call: Any) -> None:
    data = batch(DTYPE[call])
    data["parsing_target"] = torch.randint(0, 5, (2, 15, 9), dtype=torch.uint8)
    large = F.interpolate(data["parsing_logits"], (15, 9), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(large, data["parsing_target"].long()).detach()
    assert_close(call(**data).losses[0], expected, 135)
    wrong = F.interpolate(data["parsing_logits"], (15, 9), mode="bilinear", align_corners=True)
    assert abs(float(F.cross_entropy(wrong, data["parsing_target"].long()).detach() - expected)) > 1e-3


@CALLS
def test_unlabelled_elements_have_exactly_no_gradient(call: Any) -> None:
    data = batch(DTYPE[call])
    call(**data).total.backward()
    ignored = (data["parsing_target"] == IGNORE)[:, None].expand_as(data["parsing_logits"])
    assert int(data["parsing_logits"].grad[ignored].count_nonzero()) == 0
    assert int(data["points"].grad[0, :, :3].count_nonzero()) == 0
    unlabelled = torch.cat([(data["class_targets"][:, t] < 0)[:, None].expand(-1, n) for t, n in enumerate(SIZES)], 1)
    assert float(data["class_logits"].grad[unlabelled].abs().max()) == 0
    for name, labelled in (("parsing_logits", ~ignored), ("class_logits", ~unlabelled)):
        assert float(data[name].grad[labelled].abs().min()) > 0
    assert float(data["points"].grad[0, :, 3:].abs().min()) > 0


def drop_mask(data: dict[str, Any]) -> dict[str, Any]:
    target = data["parsing_target"].clone()
    target[target == IGNORE] = 0
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
    data = batch(DTYPE[call])
    exact = float(naive(data)[0][task].detach())
    assert abs(float(call(**data).losses[task].detach()) - exact) < (1e-9 if DTYPE[call] == torch.float64 else 1e-5)
    assert abs(float(call(**mutate(data)).losses[task].detach()) - exact) > 1e-4


@CALLS
def test_tasks_without_labels_give_exact_zeros_and_the_others_train(call: Any) -> None:
    data = batch(DTYPE[call])
    data["parsing_target"] = torch.full_like(data["parsing_target"], IGNORE)
    data["points_weight"] = torch.zeros_like(data["points_weight"])
    data["points_target"] = torch.full_like(data["points_target"], torch.nan)
    data["class_targets"] = torch.tensor([[UNLABELLED, label] for label in (1, 2, UNLABELLED, 0)])
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
    data, empty = batch(DTYPE[call]), torch.zeros
    rows = {
        "parsing_logits": leaf(0, 5, 3, 2, dtype=DTYPE[call]),
        "parsing_target": empty(0, 6, 4, dtype=torch.uint8),
        "points": leaf(0, 2, 5, dtype=DTYPE[call]),
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
    data = batch(DTYPE[call])
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
@CALLS
def test_layouts_and_low_precision_sum_in_float32(call: Any, layout: str, dtype: torch.dtype) -> None:
    data = batch(torch.float32, scale=2)
    for name in ("parsing_logits", "points", "class_logits"):
        data[name] = data[name].detach().to(dtype)
    data["parsing_logits"] = arrange(data["parsing_logits"], layout)
    losses = call(**data).losses
    assert losses.dtype == torch.float32
    assert_close(losses, torch.stack(naive(data)[0]).detach(), 100)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(**data).losses, losses)
    weights = data["task_weights"].detach()
    assert_same_gradients(
        lambda *values: call(**with_predictions(data, (*values, weights))).losses,
        lambda *values: torch.stack(naive(with_predictions(data, (*values, weights)))[0]),
        [data[name].requires_grad_() for name in PREDICTIONS[:3]],
        terms=100,
    )


def test_gradcheck() -> None:
    data = batch(scale=2)

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        return op(**with_predictions(data, values))[:2]

    assert torch.autograd.gradcheck(run, [data[name] for name in PREDICTIONS], fast_mode=True)


def test_opcheck_and_one_graph() -> None:
    data = batch(torch.float32, scale=2)
    predictions = [data[name] for name in PREDICTIONS]
    settings = {"parsing_smoothing": 0.1, "class_smoothing": 0.1}
    optional = {"parsing_class_weights": torch.ones(5), "denominators": torch.ones(4)}
    for backend in ("reference", *(row.name for row in backend_status() if row.available and row.name == "cpu")):
        for given in (optional, {}):
            opcheck(_forward.registered, registered(backend, **data, **settings, **given))
    for call in (automatic, op, eager):
        assert_compiles(lambda *v, c=call: list(c(**with_predictions(data, v))[:2]), predictions)


def test_bad_input_is_refused() -> None:
    data = batch()
    wrong = data["parsing_target"].clone()
    wrong[0, 0, 0] = 7
    for change, message in (
        ({"parsing_target": wrong}, "parsing targets must be in 0..4 or 255; got 7"),
        ({"parsing_target": data["parsing_target"][:, :0]}, "cannot be resized"),
        ({"class_targets": torch.full((4, 2), 3)}, "class targets[:, 0] must be in 0..2 or -1; got 3"),
        ({"parsing_target": wrong.long()}, "must be torch.uint8"),
        ({"class_targets": data["class_targets"].int()}, "must be torch.int64"),
        ({"points_target": data["points_target"][:, :, :4]}, "points targets must be (Bl, 2, P)"),
        ({"task_weights": torch.ones(3)}, "task_weights must be (T,) = (4,); got (3,)"),
        ({"denominators": torch.ones(5)}, "denominators must be (T,)"),
        ({"parsing_class_weights": torch.ones(4)}, "parsing_class_weights must be (K,)"),
        ({"point_loss": "l3"}, "point_loss must be one of"),
        ({"class_smoothing": 1.0}, "class_smoothing must be in [0, 1)"),
        ({"wing_width": 0.0}, "wing_width must be positive"),
        ({"class_sizes": [3, 3]}, "class_logits must be"),
    ):
        with pytest.raises(ValueError, match=r"^hybrid_loss: ") as error:
            automatic(**{**data, **change})
        assert message in str(error.value)
        assert "\n" not in str(error.value)
