"""The native kernel of `ifan.ops.hybrid_loss`: ratios, threads, instruction sets, memory, repeated backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ifan.config import IGNORE
from ifan.ops import native
from tests.support.cases import arrange, leaf, needs_cpu
from tests.support.losses import (
    all_gradients,
    batch,
    eager,
    kernel,
    large_batch,
)
from tests.support.tolerances import assert_close, assert_no_worse

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
    data["parsing_target"][torch.rand(2, *fine) < 0.2] = IGNORE
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
@pytest.mark.parametrize("side", [3, 6])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_one_class_alone_has_no_gradient(side: int, smoothing: float) -> None:
    """Whatever it says is right: exactly nothing is left, divided by any number of pixels."""
    data = batch(torch.float32)
    data["parsing_logits"] = leaf(2, 1, 3, 3, dtype=torch.float32)
    data["parsing_target"] = torch.zeros(2, side, side, dtype=torch.uint8)
    data["parsing_target"][0, 0] = IGNORE
    gradients = all_gradients(kernel, data, parsing_smoothing=smoothing)
    shaped = [value for value in gradients if value.shape == data["parsing_logits"].shape]
    assert len(shaped) == 1
    assert shaped[0].abs().max() == 0


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
    data["parsing_target"][data["parsing_target"] == 4] = IGNORE
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
    data["parsing_target"][1] = IGNORE
    (gradient,) = torch.autograd.grad(kernel(**data).total, [data["parsing_logits"]])
    assert int(gradient[1].count_nonzero()) == 0
    labelled = (data["parsing_target"][0] != IGNORE).expand(5, -1, -1) if times == 1 else slice(None)
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
        ("parsing_target", 5, r"parsing targets must be in 0..4 or 255; got 5"),
        ("class_targets", 4, r"class targets\[:, 0\] must be in 0..2 or -1; got 4"),
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
