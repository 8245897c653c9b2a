"""The short way past PyTorch's dispatcher: taken in plain eager mode only, with the registered operation's results."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from ifan.ops import channel_moments
from ifan.ops.call import CallCache, Operation, operation
from tests.support.cases import assert_double_backward_raises, gradients
from tests.support.flat import integrate


@operation("ifan_tests::weighted_sum_backward")
def weighted_sum_backward(gradient: Tensor, values: list[Tensor], weight: Tensor, scale: float) -> list[Tensor]:
    dot = torch.stack([value.sum() for value in values]).sum()
    return [*(gradient * weight * scale * torch.ones_like(value) for value in values), gradient * scale * dot]


@operation("ifan_tests::weighted_sum")
def weighted_sum(
    values: list[Tensor], weight: Tensor, rows: Tensor | None, scale: float
) -> tuple[Tensor, list[Tensor]]:
    """weight x scale x the sum of all values; and one output that has no gradient."""
    total = torch.stack([value.sum() for value in values]).sum() * weight * scale
    return total, [torch.zeros(2)]


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: object) -> None:
    values, weight, _, ctx.scale = inputs  # type: ignore[misc, attr-defined]
    ctx.save_for_backward(*values, weight)  # type: ignore[misc]


def _differentiate(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor, _: object) -> tuple[object, ...]:
    *values, weight = ctx.saved_tensors  # type: ignore[attr-defined]
    *of_values, of_weight = weighted_sum_backward(gradient, values, weight, ctx.scale)  # type: ignore[attr-defined]
    return of_values, of_weight, None, None


@weighted_sum.register_fake
def _(values: list[Tensor], weight: Tensor, rows: Tensor | None, scale: float) -> tuple[Tensor, list[Tensor]]:
    return weight.new_empty(()), [torch.empty(2)]


weighted_sum.register_autograd(_differentiate, setup_context=_setup)


def leaves() -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((3,), (2, 2), ())]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way each call went."""
    taken: list[str] = []
    registered = Operation.__dict__["__call__"]

    def spy(self: Operation, *arguments: object) -> object:
        original = self.registered
        count = len(taken)

        def noted(*values: object) -> object:
            taken.append("registered")
            return original(*values)

        self.registered = noted  # type: ignore[assignment]
        try:
            return registered(self, *arguments)
        finally:
            self.registered = original
            if len(taken) == count:
                taken.append("direct")

    monkeypatch.setattr(Operation, "__call__", spy)
    return taken


def test_both_ways_give_the_same_values_and_gradients(ways: list[str]) -> None:
    values = leaves()
    found = gradients(lambda *v: weighted_sum(v[:2], v[2], None, 0.5)[0], values)
    assert ways == ["direct", "direct"]
    expected = gradients(lambda *v: weighted_sum.registered(list(v[:2]), v[2], None, 0.5)[0], values)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.autograd.gradcheck(lambda *v: weighted_sum(v[:2], v[2], None, 0.5)[0], values)


def test_inputs_without_gradient_get_none() -> None:
    a, b, weight = leaves()
    total = weighted_sum([a, b.detach()], weight.detach(), None, 2.0)[0]
    total.backward()
    assert torch.equal(a.grad, torch.full((3,), 2.0, dtype=torch.float64) * weight)
    assert b.grad is None
    assert weight.grad is None
    assert not weighted_sum([a.detach()], weight.detach(), None, 2.0)[0].requires_grad


def test_a_second_derivative_raises() -> None:
    assert_double_backward_raises(lambda a: weighted_sum([a], a.sum(), None, 1.0)[0], leaves()[0])


def test_backward_twice_and_checkpointed() -> None:
    a, b, weight = leaves()
    total = weighted_sum([a, b], weight, None, 2.0)[0]
    first = torch.autograd.grad(total, [a, weight], retain_graph=True)
    again = torch.autograd.grad(total, [a, weight])
    recomputed = torch.autograd.grad(
        checkpoint(lambda: weighted_sum([a, b], weight, None, 2.0)[0], use_reentrant=False), [a, weight]
    )
    for other in (again, recomputed):
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True))


class Names(TorchDispatchMode):
    """Notes the operations that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


class Named(Tensor):
    """A subclass, which may want to see every operation."""


def test_tracers_see_the_registered_operation(ways: list[str]) -> None:
    x = torch.randn(2, 3, 4, 4)
    graph = make_fx(lambda v: channel_moments(v, [2])[0])(x).graph
    assert any("ifan.channel_moments" in str(node.target) for node in graph.nodes)
    with FakeTensorMode() as mode:
        assert channel_moments(mode.from_tensor(x), [2])[0].shape == (1, 3)
    with Names() as names:
        channel_moments(x, [2])
    assert "ifan.channel_moments.default" in names.seen
    assert set(ways) == {"registered"}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_see_the_registered_operation(ways: list[str]) -> None:
    """Which `torch.vmap` runs once for each, and `torch.func.grad` refuses."""
    x = torch.randn(2, 4, 3, 5, 5)
    found = torch.vmap(lambda v: channel_moments(v, [4])[1])(x)
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda v: channel_moments(v, [4])[1].sum())(x[0])
    assert ways.count("registered") >= 2
    assert torch.equal(found, torch.stack([channel_moments(v, [4])[1] for v in x]))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace:DeprecationWarning")
def test_subclasses_and_traces_see_the_registered_operation(ways: list[str]) -> None:
    x = torch.randn(2, 3, 4, 4)
    channel_moments(x.as_subclass(Named), [2])
    traced = torch.jit.trace(lambda v: channel_moments(v, [2])[0], x, check_trace=False)
    assert "ifan::channel_moments" in str(traced.graph)
    assert set(ways) == {"registered"}
    channel_moments(torch.nn.Parameter(x), [2])
    assert ways[-1] == "direct"


def test_a_kind_that_is_known_still_shows_itself_to_who_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    x, values = torch.randn(2, 3, 4, 4), torch.rand(4, 1, 3)
    expected = [integrate([x], *values, [2]) for _ in range(2)][1]
    leaf = x.clone().requires_grad_()
    recorded = integrate([leaf], *values, [2])
    (found,) = torch.autograd.grad(recorded.sum(), leaf)
    assert torch.equal(recorded, expected)
    assert found.count_nonzero() == expected.count_nonzero()
    with Names() as names:
        integrate([x], *values, [2])
    assert "ifan.integrate.default" in names.seen
    noted: list[bool] = []
    monkeypatch.setattr(
        Operation, "fast_path", lambda self, plain, recording: lambda *a: noted.append(plain) or expected
    )
    integrate([x], *values, [2])  # known: nobody asks for its fast path
    integrate([x.as_subclass(Named)], *values, [2])
    assert noted == [False]


def test_importing_the_operations_leaves_the_compiler_out() -> None:
    code = "import sys, ifan.ops; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_calls_are_kept_by_key() -> None:
    cache, calls = CallCache[int](weighted_sum), 0

    def made(tensors: list[Tensor | None], constant: int = 0, keep: bool = True) -> object:
        def check() -> tuple[int, str]:
            nonlocal calls
            calls += 1
            return calls, "cpu"

        return cache(tensors, constant, check, keep)[0]

    x = torch.randn(2, 3)
    assert [made([x, None]), made([x.clone(), None])] == [1, 1]
    others = (x.double(), x.t(), x[:1], x.clone().requires_grad_(), x.as_subclass(Named))
    assert [made([value, None]) for value in others] == [2, 3, 4, 5, 6]
    assert [made([x, x]), made([x, None], 1), made([x, None], keep=False), made([x, None], keep=False)] == [7, 8, 9, 10]
    assert made([x, None]) == 1
