"""Operations, however they are called, and every entry of the native module refuse what is out of bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ifan import ops
from ifan.ops import backend_status, encode_predictions, native
from ifan.ops.encode_predictions import MOST_RADIUS
from tests.support import flat
from tests.support.cases import compiled, needs_cpu
from tests.support.losses import PREDICTIONS, TARGETS, batch, eager, kernel, registered
from tests.support.native_calls import BAD_READS, ENTRIES, FAR, FILTERS, ISA, READ, STEPS, TO, VALUES, each

BUILT = [row.name for row in backend_status() if row.available and row.name in ("reference", "cpu")]


def planes(sizes: list[int], radius: int = 5, backend: str | None = None) -> Tensor:
    heads = torch.rand(2, max(sum(sizes), 0))
    return encode_predictions(torch.rand(2, 1, 8, 8), torch.zeros(2, 2, 1), heads, sizes, radius, backend=backend)


@pytest.mark.parametrize("backend", BUILT)
@pytest.mark.parametrize("sizes", [[5, -2], [-2, 5], [0, 3], [2**62, 3 - 2**62]])
def test_class_sizes_are_at_least_one_each(sizes: list[int], backend: str) -> None:
    with pytest.raises(ValueError, match=r"^encode_predictions: class_sizes must be at least 1 each; got \["):
        planes(sizes, backend=backend)
    data = {**batch(torch.float32), "class_sizes": sizes, "class_logits": torch.rand(4, sum(sizes))}
    with pytest.raises(ValueError, match=r"^hybrid_loss: class_sizes must be at least 1 each; got \["):
        (kernel if backend == "cpu" else eager)(**data)


@pytest.mark.parametrize("backend", BUILT)
@pytest.mark.parametrize("radius", [-1, MOST_RADIUS + 1, FAR])
def test_radius_is_bounded(radius: int, backend: str) -> None:
    with pytest.raises(ValueError, match=rf"^encode_predictions: radius must be in 0..{MOST_RADIUS} pixels"):
        planes([3], radius, backend)


@pytest.mark.parametrize("backend", BUILT)
def test_the_largest_radius_covers_everything(backend: str) -> None:
    assert bool((planes([3], MOST_RADIUS, backend)[:, 1] == 1).all())


def encode_arguments(**changed: Any) -> tuple[Any, ...]:
    given = {
        "parsing_logits": torch.rand(2, 1, 8, 8),
        "points": torch.zeros(2, 2, 1),
        "class_logits": torch.rand(2, 3),
        "class_sizes": [3],
        "radius": 2,
    }
    return tuple({**given, **changed}.values())


@pytest.mark.parametrize("backend", BUILT)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_sizes": [5, -2]}, "class_sizes must be at least 1"),
        ({"class_sizes": [4]}, "class_logits must be"),
        ({"class_logits": torch.rand(1, 3)}, "class_logits must be"),
        ({"points": torch.zeros(1, 2, 1)}, "points must be"),
        ({"points": torch.zeros(2, 1, 1)}, "points must be"),
        ({"points": torch.zeros(2, 2, 1, dtype=torch.int64)}, "points must be floating point"),
        ({"parsing_logits": torch.rand(2, 1, 8, 4)}, "square"),
        ({"radius": FAR}, "radius must be in"),
    ],
)
def test_registered_encode_predictions_checks_what_it_is_given(
    changed: dict[str, Any], message: str, backend: str
) -> None:
    arguments = encode_arguments(**changed)
    with pytest.raises(ValueError, match=message):
        torch.ops.ifan.encode_predictions(*arguments, backend)
    with pytest.raises(ValueError, match=message):
        torch.ops.ifan.encode_predictions_backward(torch.rand(2, 5, 8, 8), *arguments, backend)


@pytest.mark.parametrize("backend", BUILT)
def test_registered_backward_checks_the_gradient(backend: str) -> None:
    with pytest.raises(ValueError, match="gradient must be that of the planes"):
        torch.ops.ifan.encode_predictions_backward(torch.rand(2, 4, 8, 8), *encode_arguments(), backend)


LOSS_CHANGES = [
    ({"class_sizes": [9, -2]}, "class_sizes must be at least 1"),
    ({"class_targets": torch.zeros(3, 2, dtype=torch.int64)}, "class targets must be"),
    ({"class_targets": torch.zeros(4, 2, dtype=torch.int32)}, "class targets must be torch.int64"),
    ({"parsing_target": torch.zeros(1, 6, 4, dtype=torch.uint8)}, "parsing targets must be"),
    ({"parsing_target": torch.zeros(2, 6, 4, dtype=torch.bool)}, "parsing targets must be torch.uint8"),
    ({"points_target": torch.zeros(2, 2, 5)}, "points targets must be"),
    ({"points_weight": torch.zeros(2, 5)}, "points_weight must be"),
    ({"task_weights": torch.ones(3)}, "task_weights must be"),
    ({"denominators": torch.ones(3)}, "denominators must be"),
    ({"parsing_class_weights": torch.ones(4)}, "parsing_class_weights must be"),
    ({"parsing_smoothing": float("nan")}, "parsing_smoothing must be in"),
]


@pytest.mark.parametrize("backend", BUILT)
@pytest.mark.parametrize(("changed", "message"), LOSS_CHANGES)
def test_registered_hybrid_loss_checks_what_it_is_given(changed: dict[str, Any], message: str, backend: str) -> None:
    data = batch(torch.float32)
    arguments = registered(backend, **{**data, **changed})
    with pytest.raises(ValueError, match=message):
        torch.ops.ifan.hybrid_loss(*arguments)
    forward = torch.ops.ifan.hybrid_loss(*registered(backend, **data))
    upstream = [torch.ones(()), torch.ones(4), forward[1].detach(), *(x.detach() for x in forward[3])]
    with pytest.raises(ValueError, match=message):
        torch.ops.ifan.hybrid_loss_backward(upstream, *arguments)


@pytest.mark.parametrize("backend", BUILT)
@pytest.mark.parametrize("count", [0, 2, 3, 5])
def test_registered_loss_checks_the_lengths_of_its_lists(count: int, backend: str) -> None:
    predictions, targets, *rest = registered(backend, **batch(torch.float32))
    with pytest.raises(ValueError, match="4 predictions, 4 targets"):
        torch.ops.ifan.hybrid_loss(predictions[:count] if count < 4 else [*predictions, predictions[0]], targets, *rest)
    with pytest.raises(ValueError, match="4 predictions, 4 targets"):
        torch.ops.ifan.hybrid_loss(predictions, targets[:count], *rest)


@needs_cpu
def test_registered_loss_backward_checks_what_forward_made() -> None:
    arguments = registered("cpu", **batch(torch.float32))
    forward = torch.ops.ifan.hybrid_loss(*arguments)
    right = [torch.ones(()), torch.ones(4), forward[1].detach(), *(x.detach() for x in forward[3])]
    assert len(torch.ops.ifan.hybrid_loss_backward(right, *arguments)) == 4
    for index, value in enumerate(right):
        wrong = [*right[:index], value.new_zeros((*value.shape, 1)), *right[index + 1 :]]
        with pytest.raises(ValueError, match=rf"upstream\[{index}\] must be what forward returned"):
            torch.ops.ifan.hybrid_loss_backward(wrong, *arguments)
    with pytest.raises(ValueError, match="upstream must hold 7 tensors; got 6"):
        torch.ops.ifan.hybrid_loss_backward(right[:-1], *arguments)


@needs_cpu
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("parsing_target", 5, "parsing targets must be in 0..4 or 255; got 5"),
        ("class_targets", 10**6, r"class targets\[:, 0\] must be in 0..2 or -1; got 1000000"),
        ("class_targets", -2, r"class targets\[:, 0\] must be in 0..2 or -1; got -2"),
    ],
)
@pytest.mark.parametrize("way", ["compiled", "registered"])
def test_labels_out_of_range_are_refused_where_nobody_looks_before(
    name: str, value: int, message: str, way: str
) -> None:
    data = batch(torch.float32)
    wrong = data[name].clone()
    wrong.view(-1)[0] = value

    def run(*targets: Tensor) -> Tensor:
        given = {**data, **dict(zip(TARGETS, targets, strict=True))}
        if way == "registered":
            return torch.ops.ifan.hybrid_loss(*registered("cpu", **given))[0]
        return kernel(**given).total

    call = compiled(run) if way == "compiled" else run
    right = [data[target] for target in TARGETS]
    assert bool(call(*right).isfinite())
    with pytest.raises(ValueError, match=message):
        call(*[wrong if target == name else data[target] for target in TARGETS])


@pytest.mark.parametrize("backend", BUILT)
def test_negative_views_are_read_with_their_sign(backend: str) -> None:
    """Of predictions, constants and arriving gradients, whether or not such a call was seen before."""
    arguments = encode_arguments()
    exact = encode_predictions(*arguments, backend=backend)
    negative = [torch._neg_view(-x) if isinstance(x, Tensor) else x for x in arguments]
    assert negative[0].is_neg()
    assert torch.equal(encode_predictions(*negative, backend=backend), exact)
    leaves = [x.detach().requires_grad_() for x in arguments[:3]]
    drawn = encode_predictions(*leaves, *arguments[3:], backend=backend)
    upstream = torch.rand(drawn.shape)
    first, second = (
        torch.autograd.grad(drawn, leaves[0], x, retain_graph=True)[0] for x in (upstream, torch._neg_view(-upstream))
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("call", [eager, pytest.param(kernel, marks=needs_cpu)])
def test_negative_views_of_a_loss_are_read_with_their_sign(call: Callable[..., Any]) -> None:
    data = batch(torch.float32)
    names = [n for n, x in data.items() if isinstance(x, Tensor) and x.is_floating_point()]
    for _ in range(2):
        total, losses, _ = call(**data)
        views = {name: torch._neg_view(-data[name].detach()).requires_grad_(name in PREDICTIONS) for name in names}
        turned = call(**{**data, **views})
        assert torch.equal(turned.losses, losses)
        upstream = torch.rand(4)
        inputs = [data[name] for name in PREDICTIONS]
        plain = torch.autograd.grad([total, losses], inputs, [torch.tensor(2.0), upstream])
        total, losses, _ = call(**data)
        signs = [torch._neg_view(torch.tensor(-2.0)), torch._neg_view(-upstream)]
        assert all(map(torch.equal, torch.autograd.grad([total, losses], inputs, signs), plain))
        of_views = torch.autograd.grad([turned.total, turned.losses], [views[name] for name in PREDICTIONS], signs)
        for ours, expected in zip(of_views, plain, strict=True):
            torch.testing.assert_close(ours, expected)


WEIGHTS = torch.rand(4, 3, 3, 3), torch.rand(2, 1, 3, 3)
NORM = [torch.rand(1, 3) + 0.5 for _ in range(4)]
ALL_ROWS = torch.tensor([1, 0, 1])


def integrated(x: Tensor, rows: Tensor, backend: str | None) -> Tensor:
    return flat.integrate([x], *NORM, [3], rows, [True], backend=backend)


def grown(x: Tensor, rows: Tensor, backend: str | None) -> Tensor:
    groups = [[value] for value in NORM]
    return flat.dense_block([x], [WEIGHTS[0]], *groups, [3], rows, [True], backend=backend)[0]


def enlarged(x: Tensor, rows: Tensor, backend: str | None) -> Tensor:
    return flat.transition_up([x], *WEIGHTS, rows, [True], backend=backend)


def registered_arguments(op: Callable[..., Any], x: Tensor, rows: Tensor) -> tuple[str, tuple[Any, ...]]:
    groups = [[value] for value in NORM]
    if op is integrated:
        return "integrate", flat.integrate_arguments([x], *NORM, [3], rows, [True], 1, 1e-3, "cpu")
    if op is grown:
        return "dense_block", flat.dense_block_arguments([x], [WEIGHTS[0]], *groups, [3], rows, [True], 1e-3, "cpu")
    return "transition_up", flat.transition_up_arguments([x], *WEIGHTS, rows, [True], "cpu")


class Reader(torch.nn.Module):
    """An operation on lanes, to be exported."""

    def __init__(self, op: Callable[..., Tensor]) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.op(x, rows, "cpu")


@needs_cpu
@pytest.mark.parametrize("way", ["eager", "compiled", "exported", "registered"])
@pytest.mark.parametrize("op", [integrated, grown, enlarged])
def test_rows_out_of_range_are_refused(op: Callable[..., Tensor], way: str) -> None:
    x = torch.rand(2, 3, 8, 8)
    if way == "registered":
        name, _ = registered_arguments(op, x, ALL_ROWS)
        run = getattr(torch.ops.ifan, name)
        call = lambda x, rows: run(*registered_arguments(op, x, rows)[1])  # noqa: E731
    elif way == "exported":
        call = torch.export.export(Reader(op), (x, ALL_ROWS)).module()
    else:
        call = Reader(op) if way == "eager" else compiled(Reader(op))
    call(x, ALL_ROWS)
    for rows in ([0, 1, 2], [0, 3, 1], [0, 10**6, 0], [-1, 0, 0], [0, 0, -(2**62)]):
        with pytest.raises(ValueError, match=r"rows must be in 0\.\.1; got"):
            call(x, torch.tensor(rows))


@needs_cpu
def test_registered_backwards_check_what_they_are_given() -> None:
    """What is arriving, what forward made, and which sources share a gradient."""
    x, gradient, moments = torch.rand(2, 3, 8, 8), torch.rand(3, 3, 8, 8), torch.zeros(1, 4)
    (_, integrate), (_, block), (_, up) = (
        registered_arguments(op, x, ALL_ROWS) for op in (integrated, grown, enlarged)
    )
    fused = ([*integrate[0], *integrate[1]], integrate[2], [0, *integrate[3]], *integrate[4:])
    layers = (block[0], [*block[1], *block[2]], block[3], [0, *block[4]], *block[5:])
    maps, shifted = torch.rand(3, 2, 16, 16), torch.rand(3, 1, 16, 16)
    results = [torch.rand(3, 4, 8, 8), moments, moments] * 2
    ops_ = torch.ops.ifan
    right: list[tuple[Any, tuple[Any, ...]]] = [
        (ops_.integrate_backward, (gradient, *fused)),
        (ops_.dense_block_backward, (results, *layers)),
        (ops_.transition_up_backward, (maps, [maps, shifted], *up)),
        (ops_.channel_moments_backward, (moments[:, :3], moments[:, :3], x, moments[:, :3], [2], "cpu")),
    ]
    for run, arguments in right:
        run(*arguments)
    wrong: list[tuple[Any, tuple[Any, ...]]] = [
        (ops_.integrate_backward, (gradient[:2], *fused)),
        (ops_.integrate_backward, (gradient, fused[0], fused[1], [-1, *fused[2][1:]], *fused[3:])),
        (ops_.integrate_backward, (gradient, fused[0][1:], *fused[1:])),
        (ops_.dense_block_backward, (results[:-1], *layers)),
        (ops_.dense_block_backward, ([results[0][:1], *results[1:]], *layers)),
        (ops_.transition_up_backward, (maps[:1], [maps, shifted], *up)),
        (ops_.transition_up_backward, (maps, [maps, shifted[:, :, :8]], *up)),
        (ops_.channel_moments_backward, (moments, moments[:, :3], x, moments[:, :3], [2], "cpu")),
        (ops_.channel_moments_backward, (moments[:, :3], moments[:, :3], x, moments[:, :3], [3], "cpu")),
    ]
    for run, arguments in wrong:
        with pytest.raises(ValueError, match=r"must |argument"):
            run(*arguments)


@pytest.mark.parametrize("backend", BUILT)
@pytest.mark.parametrize("op", [integrated, grown, enlarged])
def test_negative_views_of_maps_are_read_with_their_sign(op: Callable[..., Tensor], backend: str) -> None:
    x = (torch.rand(2, 3, 8, 8) - 0.5).requires_grad_()
    for _ in range(2):
        negative = torch._neg_view(-x.detach()).requires_grad_()
        exact, turned = op(x, ALL_ROWS, backend), op(negative, ALL_ROWS, backend)
        assert torch.equal(exact, turned)
        upstream = torch.rand(exact.shape) - 0.5
        (first,) = torch.autograd.grad(exact, x, upstream, retain_graph=True)
        assert torch.equal(torch.autograd.grad(exact, x, torch._neg_view(-upstream))[0], first)
        torch.testing.assert_close(torch.autograd.grad(turned, negative, upstream)[0], first)


@pytest.mark.parametrize("backend", BUILT)
def test_negative_views_have_the_moments_of_their_values(backend: str) -> None:
    x = (torch.rand(2, 3, 8, 8) - 0.2).requires_grad_()
    for _ in range(2):
        negative = torch._neg_view(-x.detach())
        for ours, expected in zip(
            ops.channel_moments(negative, [1, 1], backend=backend),
            ops.channel_moments(x.detach(), [1, 1], backend=backend),
            strict=True,
        ):
            assert torch.equal(ours, expected)
        whole, mean, var, _ = ops.with_channel_moments(x, [1, 1], backend=backend)
        upstream = [torch.rand(value.shape) - 0.5 for value in (whole, mean, var)]
        (first,) = torch.autograd.grad([whole, mean, var], x, upstream, retain_graph=True)
        signs = [torch._neg_view(-value) for value in upstream]
        torch.testing.assert_close(torch.autograd.grad([whole, mean, var], x, signs)[0], first)


def refuses(call: Callable[..., Any], right: dict[str, Any], wrong: list[tuple[str, Any]]) -> None:
    call(*right.values())
    for name, value in wrong:
        with pytest.raises(ValueError, match="must be") as error:
            call(*{**right, name: value}.values())
        assert "\n" not in str(error.value)


@needs_cpu
@pytest.mark.parametrize(("name", "right", "wrong"), ENTRIES, ids=[name for name, *_ in ENTRIES])
def test_native_entry_refuses(name: str, right: dict[str, Any], wrong: list[tuple[str, Any]]) -> None:
    refuses(getattr(native.cpu_module(), name), right, wrong)


@needs_cpu
@pytest.mark.parametrize(("name", "right", "wrong"), STEPS, ids=[f"{i}-{step[0]}" for i, step in enumerate(STEPS)])
def test_step_of_a_plan_refuses(name: str, right: dict[str, Any], wrong: list[tuple[str, Any]]) -> None:
    plan = native.cpu_module().Plan()
    refuses(getattr(plan, name), right, wrong)
    assert len(plan) == 1
    native.cpu_module().run_plans([plan], 1)


@needs_cpu
def test_running_plans_refuses() -> None:
    module = native.cpu_module()
    for plans, threads in (([module.Plan()], 0), ([None], 1)):
        with pytest.raises(ValueError, match=" must be "):
            module.run_plans(plans, threads)
    with pytest.raises(ValueError, match="threads must be"):
        module.Plan().profile(-1)


@needs_cpu
@pytest.mark.parametrize("batch_statistics", [True, False])
def test_native_dense_block_refuses(batch_statistics: bool) -> None:
    norm = [(VALUES.data_ptr(), 3)] * 4
    right = {
        **READ, "norms": [norm, [(TO, 5)] * 4], "eps": 0.001, "isa": ISA, "filters": FILTERS.data_ptr(), "grown": TO,
        "growth": 2, "mean": TO * batch_statistics, "var": TO * batch_statistics, "threads": 1,
    }  # fmt: skip
    wrong = [
        *BAD_READS, ("norms", []), ("norms", [norm, [(0, 5)] * 4]), ("norms", [norm, [(TO, -5)] * 4]), ("filters", 0),
        ("grown", 0), *each("growth"), ("mean", 0 if batch_statistics else TO), ("threads", 0),
    ]  # fmt: skip
    refuses(native.cpu_module().dense_block_forward, right, wrong)
