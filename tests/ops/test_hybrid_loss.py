from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import arrange, assert_compiles, assert_same_gradients, gradients, leaf, needs_cpu
from tolerances import assert_close, assert_no_worse
from torch import Tensor
from torch.library import opcheck

from ifan.ops import HybridLoss, backends, hybrid_loss, native
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


def eager(**data: Any) -> HybridLoss:
    return hybrid_loss(**data, backend="reference")


def kernel(**data: Any) -> HybridLoss:
    return hybrid_loss(**data, backend="cpu")


CALLS = pytest.mark.parametrize("call", [eager, op, pytest.param(kernel, marks=needs_cpu)], ids=["eager", "op", "cpu"])
DTYPE = {eager: torch.float64, op: torch.float64, kernel: torch.float32}
PREDICTIONS = ("parsing_logits", "points", "class_logits", "task_weights")


def with_predictions(data: dict[str, Any], values: tuple[Tensor, ...]) -> dict[str, Any]:
    return {**data, **dict(zip(PREDICTIONS, values, strict=True))}


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
    ignored = (data["parsing_target"] == 255)[:, None].expand_as(data["parsing_logits"])
    assert int(data["parsing_logits"].grad[ignored].count_nonzero()) == 0
    assert int(data["points"].grad[0, :, :3].count_nonzero()) == 0
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
    data = batch(DTYPE[call])
    exact = float(naive(data)[0][task].detach())
    assert abs(float(call(**data).losses[task].detach()) - exact) < (1e-9 if DTYPE[call] == torch.float64 else 1e-5)
    assert abs(float(call(**mutate(data)).losses[task].detach()) - exact) > 1e-4


@CALLS
def test_tasks_without_labels_give_exact_zeros_and_the_others_train(call: Any) -> None:
    data = batch(DTYPE[call])
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


def large_batch(images: int = 3, size: int = 36, times: int = 8) -> dict[str, Any]:
    """More than one strip of logits, with rows and columns that fill no whole vectors."""
    data = batch(torch.float32)
    data["parsing_logits"] = leaf(images, 5, size, size - 3, dtype=torch.float32)
    target = torch.randint(0, 6, (images, size * times, (size - 3) * times), dtype=torch.uint8)
    data["parsing_target"] = torch.where(target == 5, 255, target)
    return data


def all_gradients(call: Any, data: dict[str, Any], **options: Any) -> list[Tensor]:
    """Losses, counts and the gradients of all predictions."""
    values = [data[name].detach().requires_grad_() for name in PREDICTIONS]
    found = call(**with_predictions(data, tuple(values)), **options)
    return [*(value.detach() for value in found), *gradients(lambda *_: list(found[:2]), values)]


RATIOS = [  # logits and labels of a side
    ((36, 33), (36, 33)),
    ((36, 33), (288, 264)),
    ((36, 33), (108, 165)),
    ((33, 4), (50, 24)),
    ((5, 7), (61, 53)),
    ((17, 18), (9, 18)),
    ((1, 1), (8, 8)),
    ((2, 64), (1, 512)),
]


@needs_cpu
@pytest.mark.parametrize(("coarse", "fine"), RATIOS, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_kernel_upsamples_by_any_ratio_and_writes_everything(
    monkeypatch: pytest.MonkeyPatch, coarse: tuple[int, int], fine: tuple[int, int], smoothing: float
) -> None:
    data = batch(torch.float32)
    data["parsing_logits"] = leaf(2, 5, *coarse, dtype=torch.float32)
    data["parsing_target"] = torch.randint(0, 5, (2, *fine), dtype=torch.uint8)
    data["parsing_target"][torch.rand(2, *fine) < 0.2] = 255
    options = {"parsing_class_weights": torch.rand(5), "parsing_smoothing": smoothing, "class_smoothing": smoothing}
    doubled = {
        n: v.detach().double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in data.items()
    }
    expected = all_gradients(eager, doubled, **options)
    usual = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x, **k: usual(x, **k).fill_(torch.nan))
    for actual, exact in zip(all_gradients(kernel, data, **options), expected, strict=True):
        assert_close(actual, exact, fine[0] * fine[1])


@needs_cpu
@pytest.mark.parametrize("times", [1, 8, 3])
def test_same_bits_for_any_number_of_threads_and_run(times: int) -> None:
    data, before, results = large_batch(times=times), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(all_gradients(kernel, data, parsing_smoothing=0.1))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpu
def test_every_instruction_set_gives_the_same_loss() -> None:
    data, module = large_batch(), native.cpu_module()
    expected = all_gradients(eager, data)
    try:
        for isa in module.features()["supported"]:
            module.use_isa(isa)
            for actual, exact in zip(all_gradients(kernel, data), expected, strict=True):
                assert_close(actual, exact, 400)
    finally:
        module.use_isa(module.features()["supported"][-1])


@needs_cpu
@pytest.mark.parametrize("times", [1, 8])
def test_kernel_is_no_less_exact_than_eager(times: int) -> None:
    data = large_batch(times=times)
    doubled = {
        n: v.detach().double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in data.items()
    }
    exact = all_gradients(eager, doubled)
    for a, b, c in zip(all_gradients(kernel, data), all_gradients(eager, data), exact, strict=True):
        assert_no_worse(a, b, c)


@needs_cpu
def test_nan_and_infinite_logits_are_not_hidden() -> None:
    data = large_batch()
    with torch.no_grad():
        data["parsing_logits"][0, 2, 20, 11] = torch.nan
    total, losses, _ = kernel(**data)
    assert total.isnan()
    assert losses[0].isnan()
    data = large_batch(times=1)
    with torch.no_grad():  # a class that is ruled out
        data["parsing_logits"][:, 4] = -torch.inf
    data["parsing_target"][data["parsing_target"] == 4] = 255
    assert_close(kernel(**data).losses, eager(**data).losses, 100)


@needs_cpu
@pytest.mark.parametrize("classes", [9, 200, 201])
def test_pixels_that_share_a_logarithm_overflow_nothing(classes: int) -> None:
    """Equal logits make the largest sums of exponentials; 200 is the most classes whose products are taken."""
    data = batch(torch.float32)
    data["parsing_logits"] = torch.zeros(2, classes, 20, 19).requires_grad_()
    data["parsing_target"] = torch.randint(0, classes, (2, 20, 19), dtype=torch.uint8)
    assert_close(kernel(**data).losses[0], torch.tensor(math.log(classes)))
    weighted = kernel(**data, parsing_class_weights=torch.ones(classes))
    assert_close(weighted.losses[0], torch.tensor(math.log(classes)))


@needs_cpu
def test_calls_of_equal_shapes_may_differ_in_layout_and_dtype() -> None:
    """What is remembered of a kind of call must not be taken for another kind."""
    data = large_batch(times=1)
    expected = all_gradients(kernel, data)
    for logits in (arrange(data["parsing_logits"].detach(), "channels_last"), data["parsing_logits"].detach()):
        for actual, usual in zip(all_gradients(kernel, {**data, "parsing_logits": logits}), expected, strict=True):
            assert torch.equal(actual, usual)
    rounded = data["parsing_logits"].detach().bfloat16()
    half, whole = (all_gradients(kernel, {**data, "parsing_logits": x}) for x in (rounded, rounded.float()))
    assert half[3].dtype == torch.bfloat16
    assert torch.equal(half[0], whole[0])
    assert torch.equal(half[3], whole[3].bfloat16())
    with torch.no_grad():
        assert torch.equal(kernel(**data).losses, expected[1])


@needs_cpu
@pytest.mark.parametrize("times", [1, 8])
def test_unlabelled_images_and_pixels_have_no_gradient(times: int) -> None:
    data = large_batch(times=times)
    data["parsing_target"][1] = 255
    (gradient,) = torch.autograd.grad(kernel(**data).total, [data["parsing_logits"]])
    assert int(gradient[1].count_nonzero()) == 0
    labelled = (data["parsing_target"][0] != 255).expand(5, -1, -1) if times == 1 else slice(None)
    assert float(gradient[0][labelled].abs().min()) > 0


@needs_cpu
def test_backward_twice_and_through_losses_alone() -> None:
    data = batch(torch.float32, scale=2)
    total, losses, _ = kernel(**data)
    first = torch.autograd.grad(losses[0], data["parsing_logits"], retain_graph=True)
    again = torch.autograd.grad(3 * losses[0], data["parsing_logits"], retain_graph=True)
    assert_close(again[0], 3 * first[0])
    (whole,) = torch.autograd.grad(total, data["parsing_logits"])
    assert_close(whole, data["task_weights"][0].detach() * first[0])


@needs_cpu
def test_first_backward_gets_what_forward_made_and_a_later_one_makes_it_again() -> None:
    data = batch(torch.float32)
    total = kernel(**data).total
    (first,) = torch.autograd.grad(total, data["parsing_logits"], retain_graph=True)
    before = first.clone()
    (again,) = torch.autograd.grad(2 * total, data["parsing_logits"], retain_graph=True)
    assert torch.equal(first, before)
    assert_close(again, 2 * first)
    with torch.no_grad():
        data["parsing_logits"].add_(1)  # what it would be made from
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@needs_cpu
def test_labels_are_looked_at_on_every_call() -> None:
    """Though shapes and dtypes are not when a call like it was right."""
    data = batch(torch.float32)
    kernel(**data)
    for name, value, message in (
        ("parsing_target", 5, r"parsing_target must be in 0..4 or 255; got 5"),
        ("class_targets", 4, r"class_targets\[:, 0\] must be in 0..2 or -1; got 4"),
    ):
        wrong = data[name].clone()
        wrong.view(-1)[0] = value
        with pytest.raises(ValueError, match=message):
            kernel(**{**data, name: wrong})


@needs_cpu
def test_kernel_allocates_less_than_a_tenth_of_eager() -> None:
    data, made = large_batch(size=64), []
    for call in (kernel, eager):
        with torch.profiler.profile(profile_memory=True) as profile:
            call(**data).total.backward()
        made.append(sum(max(event.self_cpu_memory_usage, 0) for event in profile.events()))
    assert 0 < made[0] < 0.1 * made[1]


@needs_cpu
def test_float64_stays_with_the_reference() -> None:
    with pytest.raises(ValueError, match=r"backend 'cpu' cannot take this input: .*float64"):
        kernel(**batch())


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
    for backend in ("reference", *(row.name for row in backends() if row.available and row.name == "cpu")):
        opcheck(
            _forward.registered, (predictions, targets, torch.ones(5), torch.ones(4), SIZES, settings, "wing", backend)
        )
    for call in (hybrid_loss, op, eager):
        assert_compiles(lambda *v, c=call: list(c(**with_predictions(data, v))[:2]), predictions)


def test_bad_input_is_refused() -> None:
    data = batch()
    wrong = data["parsing_target"].clone()
    wrong[0, 0, 0] = 7
    for change, message in (
        ({"parsing_target": wrong}, "parsing_target must be in 0..4 or 255; got 7"),
        ({"parsing_target": data["parsing_target"][:, :0]}, "cannot be resized"),
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
