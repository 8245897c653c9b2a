"""Every kernel against its reference in float64, and what each promises of memory, layout and repetition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ifan import ops
from ifan.ops.hybrid_loss import _forward as loss_op
from ifan.ops.integrate import _forward as integrate_op
from tests.gpu import comparison, problems
from tests.gpu.comparison import assert_same, exact
from tests.gpu.problems import PROBLEMS, QUICK, Problem, results
from tests.gpu.triton.checker import checked
from tests.support import flat
from tests.support.cases import LAYOUTS

FEW = ("integrate", "channel_moments", "encode_predictions", "hybrid_loss-finer", "transition_up")

ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in PROBLEMS]


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory is filled with NaN."""
    with comparison.poisoned():
        assert torch.empty(3).isnan().all()
        yield


@pytest.mark.parametrize("name", ALL)
def test_values_and_gradients(name: str, poisoned: None) -> None:
    problem = PROBLEMS[name]()
    inputs = problem.arranged(torch.float32)
    before = [x.detach().clone() for x in inputs]
    assert_same(results(problem, "triton", inputs), exact(problem, inputs), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("name", [*FEW[:-1], pytest.param(FEW[-1], marks=pytest.mark.full)])
def test_layouts(name: str, layout: str) -> None:
    problem = PROBLEMS[name]()
    inputs = problem.arranged(torch.float32, layout)
    assert_same(results(problem, "triton", inputs), exact(problem, inputs), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*FEW, "hybrid_loss-weighted"])
def test_low_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    problem = PROBLEMS[name]()
    inputs = problem.arranged(dtype)
    found, expected = results(problem, "triton", inputs), results(problem, "reference", inputs)
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    assert_same(found, exact(problem, inputs), dtype, roundings=2)  # the interpreter's bfloat16 store truncates


@pytest.mark.parametrize("name", ALL)
def test_memory_is_used_rightly_and_results_repeat(name: str) -> None:
    problem = PROBLEMS[name]()
    inputs = problem.arranged(torch.float32)
    with checked(overflow=True):
        found = results(problem, "triton", inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, results(problem, "triton", inputs), strict=True))


@pytest.mark.parametrize("kind", ["wing", "smooth_l1", "l2"])
@pytest.mark.parametrize("finer", [1, 2])
def test_loss_without_labels_is_zero_with_zero_gradient(kind: str, finer: int, poisoned: None) -> None:
    problem = problems.hybrid_loss(finer, kind, all_masked=True)
    found = results(problem, "triton", problem.arranged(torch.float32))
    assert all(float(value.abs().sum()) == 0 for value in found)


def test_loss_of_a_label_that_is_no_class_is_nan() -> None:
    logits, label = torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 7, dtype=torch.uint8)
    none = torch.zeros(0, 2, 0), torch.zeros(0, 2, 0), torch.zeros(0, 0)
    classes = torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.int64)
    constants = ([label, none[1], none[2], classes[1]], None, None, [], [0.0, 0.0, 0.1, 0.02], "wing")
    total = loss_op([logits, none[0], classes[0], torch.ones(1)], *constants, "triton")[0]
    assert total.isnan()


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_loss_of_two_tasks(absent: int) -> None:
    def run(backend: str, logits: Tensor, points: Tensor, classes: Tensor, weights: Tensor) -> ops.HybridLoss:
        return ops.hybrid_loss(
            *(logits, torch.zeros(logits.shape[0], 2, 2, dtype=torch.uint8), points, torch.zeros_like(points)),
            *(torch.ones(points.shape[0], points.shape[2], dtype=points.dtype), classes),
            *(torch.zeros(classes.shape[0], len(sizes), dtype=torch.int64), sizes, weights),
            backend=backend,
        )

    sizes = [] if absent == 2 else [3]
    shapes = [(2, 0 if absent == 0 else 3, 2, 2), (2, 2, 0 if absent == 1 else 4), (2, sum(sizes)), (2,)]
    problem = Problem([torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes], 1, run)
    inputs = problem.arranged(torch.float32)
    assert_same(results(problem, "triton", inputs), exact(problem, inputs), torch.float32)


@pytest.mark.parametrize("size", [1, 2, 17, 64])
def test_sizes(size: int) -> None:
    for problem in (problems.integrate(1, size), problems.channel_moments(size, 3)):
        inputs = problem.arranged(torch.float32)
        assert_same(results(problem, "triton", inputs), exact(problem, inputs), torch.float32, terms=20_000)


def test_empty_batches() -> None:
    x, values = torch.randn(0, 3, 4, 4, requires_grad=True), [torch.ones(2, 3, requires_grad=True) for _ in range(4)]
    y = flat.integrate([x], *values, [0, 0], pool=2, backend="triton")
    assert y.shape == (0, 3, 2, 2)
    assert [g.abs().sum() for g in torch.autograd.grad(y.sum(), [x, *values])] == [0] * 5
    mean, var = ops.channel_moments(x, [0, 0], backend="triton")
    assert mean.eq(0).all()
    assert var.eq(1).all()
    weights = torch.ones(4, 3, 3, 3, requires_grad=True), torch.ones(2, 1, 3, 3, requires_grad=True)
    up = flat.transition_up([x], *weights, backend="triton")
    assert up.shape == (0, 2, 8, 8)
    assert [g.abs().sum() for g in torch.autograd.grad(up.sum(), [x, *weights])] == [0] * 3
    planes = ops.encode_predictions(x, torch.zeros(0, 2, 2), torch.zeros(0, 4), [4], backend="triton")
    assert planes.shape == (0, 9, 4, 4)
    norms = [[torch.ones(2, 3)] for _ in range(4)]
    grown, *_ = flat.dense_block([x], [torch.ones(2, 3, 3, 3)], *norms, [0, 0], backend="triton")
    assert grown.shape == (0, 2, 4, 4)


def test_offsets_past_two_to_the_31() -> None:
    far = torch.empty(2**31 + 2**12, dtype=torch.bfloat16).as_strided((2, 3, 4, 4), (2**31, 32, 4, 1))
    near = torch.randn(2, 3, 4, 4).to(torch.bfloat16)
    far.copy_(near)
    values = [torch.rand(1, 3) + 0.5 for _ in range(4)]
    logits, label = torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64)
    labels = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    points = torch.zeros(2, 2, 1)
    weight = torch.rand(4, 3, 3, 3), torch.rand(1, 1, 3, 3)
    norms = [[value] for value in values]
    for call in (
        lambda x: flat.integrate([x], *values, [2], backend="triton"),
        lambda x: ops.channel_moments(x, [2], backend="triton")[1],
        lambda x: ops.encode_predictions(x, points, logits, [], backend="triton"),
        lambda x: (
            ops.hybrid_loss(
                *(x, labels, points, points, points[:, 0], logits, label, [], torch.ones(2)), backend="triton"
            ).losses
        ),
        lambda x: flat.transition_up([x], *weight, backend="triton"),
        lambda x: flat.dense_block([x], [weight[0]], *norms, [2], backend="triton")[0],
    ):
        with checked(overflow=True):
            assert torch.equal(call(far), call(near))


def test_no_less_exact_than_eager() -> None:
    problem = problems.integrate(2, 16)
    inputs = problem.arranged(torch.float32)
    wanted = exact(problem, inputs)
    found, eager = (results(problem, backend, inputs) for backend in ("triton", "reference"))
    for ours, theirs, true in zip(found, eager, wanted, strict=True):
        scale = float(true.abs().max()) * torch.finfo(torch.float32).eps
        assert float((ours - true).abs().max()) <= 4 * max(float((theirs - true).abs().max()), scale)


def test_operations_have_schema_fake_and_autograd() -> None:
    problem = problems.integrate(2, 4)
    values = problem.arranged(torch.float32)
    arguments = (values[:3], *values[3:], [2, 0, 3], problems.ROWS, [False, True, False], 2, 1e-3, "triton")
    opcheck(integrate_op.registered, flat.integrate_arguments(*arguments))
    logits, points, classes, weights = problems.hybrid_loss().arranged(torch.float32)
    labels = torch.zeros(2, 6, 4, dtype=torch.uint8)
    targets = [labels, points.detach(), torch.ones(3, 4), torch.zeros(4, 2, dtype=torch.int64)]
    constants = (targets, None, None, [3, 4], [0.0, 0.0, 0.1, 0.02], "wing", "triton")
    opcheck(loss_op.registered, ([logits, points, classes, weights], *constants))


@pytest.mark.parametrize("name", ["integrate", "hybrid_loss-finer"])
def test_one_graph(name: str) -> None:
    problem = PROBLEMS[name]()
    inputs = problem.arranged(torch.float32)
    torch._dynamo.reset()
    run = torch.compile(
        lambda *v: tuple(problems.outputs_of(problem.run("triton", *v))), fullgraph=True, backend="eager"
    )
    for fast, slow in zip(run(*inputs), problems.outputs_of(problem.run("triton", *inputs)), strict=True):
        assert torch.equal(fast, slow)


def test_float64_is_refused() -> None:
    with pytest.raises(ValueError, match="float64, not float32, float16 or bfloat16"):
        ops.channel_moments(torch.ones(1, 1, 2, 2, dtype=torch.float64), [1], backend="triton")
