"""The CUDA kernels, run on the CPU by the emulation, against their references."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ifan import ops
from ifan.ops import gpu
from ifan.ops.integrate import _forward as integrate_op
from tests.gpu import problems
from tests.gpu.comparison import assert_same, check, poisoned
from tests.gpu.emulation.build import LAGGING, ORDERS, emulated, needs_compiler
from tests.gpu.problems import PROBLEMS, results
from tests.support import flat
from tests.support.cases import LAYOUTS, arrange, assert_compiles
from tests.support.tolerances import assert_no_worse

pytestmark = needs_compiler
HALVES = (torch.float16, torch.bfloat16)
TRAINED = [name for name in PROBLEMS if name.startswith(("integrate", "hybrid_loss"))]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", TRAINED)
def test_values_and_gradients_in_every_order_of_threads(name: str, order: str, emulation: ModuleType) -> None:
    with emulated(emulation, order):
        check(PROBLEMS[name]())


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("name", ["integrate", "integrate-pooled", "hybrid_loss-weighted", "hybrid_loss-finer"])
def test_layouts(name: str, layout: str, emulation: ModuleType) -> None:
    with emulated(emulation):
        check(PROBLEMS[name](), layout=layout)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["integrate", "integrate-pooled", "hybrid_loss-weighted", "hybrid_loss-finer"])
def test_low_precision_is_computed_in_float32(name: str, dtype: torch.dtype, emulation: ModuleType) -> None:
    with emulated(emulation):
        check(PROBLEMS[name](), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("pool", [1, 2])
def test_rows_of_16_bytes(pool: int, dtype: torch.dtype, emulation: ModuleType) -> None:
    with emulated(emulation, "rand"):
        check(problems.integrate(pool, 16), dtype)


def test_planes_of_several_blocks(emulation: ModuleType) -> None:
    """More pixels than a block covers, in rows of 16 bytes and not."""
    for width in (64, 63):
        sources = [torch.randn(3, 1, 72, width, dtype=torch.float64).requires_grad_()]
        norm = [(torch.rand(2, 1, dtype=torch.float64) + 0.5).requires_grad_() for _ in range(4)]
        rows = torch.tensor([2, 0, 2, 2])  # sample 1 is read by no lane

        def run(backend: str, x: Tensor, *norm: Tensor, rows: Tensor = rows) -> Tensor:
            return flat.integrate([x], *norm, [3, 1], rows, [True], backend=backend)

        with emulated(emulation):
            check(problems.Problem([*sources, *norm], 1, run), torch.float32)


@pytest.mark.parametrize(("lanes", "samples", "channels"), [(0, 2, 3), (0, 0, 3), (2, 2, 0)])
def test_integrate_of_nothing(lanes: int, samples: int, channels: int, emulation: ModuleType) -> None:
    """No lanes, no samples, a source without channels: every gradient is there, and zero where nothing was read."""
    inputs = [torch.randn(lanes, 2, 4, 4), torch.randn(samples, channels, 4, 4)]
    inputs = [x.requires_grad_() for x in (*inputs, *(torch.rand(2, channels + 2) for _ in range(4)))]
    found = {}
    for backend in ("cuda", "reference"):
        with emulated(emulation), poisoned():
            rest = ([lanes, 0], torch.zeros(lanes, dtype=torch.int64), [False, True], 2)
            y = flat.integrate(inputs[:2], *inputs[2:], *rest, backend=backend)
            found[backend] = [y.detach(), *torch.autograd.grad(y.square().sum(), inputs)]
    assert_same(found["cuda"], [x.double() for x in found["reference"]], torch.float32)


@pytest.mark.parametrize("kind", ["wing", "smooth_l1", "l2"])
@pytest.mark.parametrize("finer", [1, 2])
def test_loss_without_labels_is_zero_with_zero_gradient(kind: str, finer: int, emulation: ModuleType) -> None:
    problem = problems.hybrid_loss(finer, kind, all_masked=True)
    with emulated(emulation), poisoned():
        found = results(problem, "cuda", problem.arranged(torch.float32))
    assert all(float(value.abs().sum()) == 0 for value in found)


@pytest.mark.parametrize("absent", ["parsing", "points", "classes", "samples"])
def test_loss_of_fewer_tasks(absent: str, emulation: ModuleType) -> None:
    batch, sizes = (0 if absent == "samples" else 2), ([] if absent == "classes" else [3])
    shapes = [(batch, 3 * (absent != "parsing"), 2, 2), (batch, 2, 4 * (absent != "points")), (batch, sum(sizes))]
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in (*shapes, (2 + (absent == "samples"),))]

    def run(backend: str, logits: Tensor, points: Tensor, classes: Tensor, weights: Tensor) -> ops.HybridLoss:
        labels, ids = torch.zeros(batch, 2, 2, dtype=torch.uint8), torch.zeros(batch, len(sizes), dtype=torch.int64)
        weight = torch.ones(batch, points.shape[2], dtype=points.dtype)
        targets = ops.LossTargets(labels, torch.zeros_like(points), weight, ids)
        judged, options = ops.LossPredictions(logits, points, classes), ops.LossOptions(sizes, weights)
        return ops.hybrid_loss(judged, targets, options, backend=backend)

    with emulated(emulation):
        check(problems.Problem([x.requires_grad_() for x in inputs], 1, run))


def test_loss_of_an_infinite_logit_is_finite_and_of_a_label_that_is_no_class_nan(emulation: ModuleType) -> None:
    logits, none = torch.zeros(1, 3, 2, 2), torch.zeros(0, 2, 0)
    logits[:, 0] = -torch.inf
    rest, options = (none, torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.int64)), ops.LossOptions([], torch.ones(1))
    judged = ops.LossPredictions(logits, none, torch.zeros(0, 0))
    for label in (1, 7):
        labels = torch.full((1, 2, 2), label, dtype=torch.uint8)
        with emulated(emulation), pytest.MonkeyPatch.context() as patch:
            patch.setattr("ifan.ops.checks.index_range", lambda *_: None)
            total = ops.hybrid_loss(judged, ops.LossTargets(labels, *rest), options, backend="cuda").total
        assert total.isnan() if label == 7 else abs(float(total) - math.log(2)) < 1e-6


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("batch_statistics", [True, False])
def test_dense_block(batch_statistics: bool, dtype: torch.dtype, order: str, emulation: ModuleType) -> None:
    """As close to float64 as the reference of the same type; three layers, maps larger than a tile, odd sizes."""
    channels, growth, shape = 19, 5, (9, 18)
    inputs = [torch.randn(3, 16, *shape), torch.randn(2, 3, *shape)]
    weights = [torch.randn(growth, channels + growth * i, 3, 3) * 0.1 for i in range(3)]
    norms = [[torch.rand(2, channels + growth * i) + 0.5 for i in range(3)] for _ in range(4)]
    means, variances = (norms[2][:1], norms[3][:1]) if batch_statistics else norms[2:]

    def run(backend: str, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        sources = [arrange(x.to(dtype).to(kind), "channels_last") for x in inputs]
        rest = ([w.to(dtype).to(kind) for w in weights], norms[0], norms[1], means, variances, [1, 2])
        with torch.no_grad():
            return flat.dense_block(sources, *rest, torch.tensor([1, 0, 0]), [False, True], backend=backend)

    with emulated(emulation, order), poisoned():
        found = run("cuda", dtype)
    for actual, eager, exact in zip(found, run("reference", dtype), run("reference", torch.float64), strict=True):
        assert actual.dtype == eager.dtype
        assert_no_worse(actual, eager, exact)


def test_dense_block_of_more_outputs_than_a_block_makes(emulation: ModuleType) -> None:
    x, weight = torch.randn(1, 2, 3, 3).half(), torch.randn(17, 2, 3, 3).half()
    norm = [[torch.rand(1, 2) + 0.5] for _ in range(4)]
    with emulated(emulation):
        found = flat.dense_block([x], [weight], *norm, [1], backend="cuda")[0]
        none = flat.dense_block([x[:0]], [weight], *norm, [0], backend="cuda")[0]
    exact = flat.dense_block([x.double()], [weight.double()], *norm, [1], backend="reference")[0]
    assert_no_worse(found, flat.dense_block([x], [weight], *norm, [1], backend="reference")[0], exact)
    assert none.shape == (0, 17, 3, 3)


def test_results_repeat_bit_for_bit(emulation: ModuleType) -> None:
    for name in ("integrate", "hybrid_loss-finer"):
        problem = PROBLEMS[name]()
        inputs, found = problem.arranged(torch.float32), []
        for order in (*ORDERS, LAGGING):
            with emulated(emulation, order):
                found.append(results(problem, "cuda", inputs))
        assert all(torch.equal(a, b) for later in found[1:] for a, b in zip(found[0], later, strict=True))


def test_compiled_code_gives_the_same_values_and_gradients(emulation: ModuleType) -> None:
    problem = PROBLEMS["integrate"]()
    with emulated(emulation):
        assert_compiles(lambda *v: problem.run("cuda", *v), problem.arranged(torch.float32))


def test_operations_pass_opcheck(emulation: ModuleType) -> None:
    problem = PROBLEMS["integrate"]()
    *sources, weight, bias, mean, var = problem.arranged(torch.float32)
    arguments = (problems.SEGMENTS, problems.ROWS, [False, True, False], 1, 1e-3, "cuda")
    with emulated(emulation):
        opcheck(integrate_op.registered, flat.integrate_arguments(sources, weight, bias, mean, var, *arguments))


def test_what_the_backend_refuses(emulation: ModuleType) -> None:
    x, norm = torch.randn(40, 2, 4, 4), [torch.rand(1, 2) for _ in range(4)]
    weight = torch.randn(3, 2, 3, 3)
    with emulated(emulation):
        with pytest.raises(ops.BackendError, match=r"dtype is torch\.float64, not float32, float16 or bfloat16"):
            flat.integrate([x.double()], *norm, [40], backend="cuda")
        with pytest.raises(ops.BackendError, match="40 tasks, more than 32"):
            flat.integrate([x], *[v.expand(40, 2) for v in norm], [1] * 40, backend="cuda")
        with pytest.raises(ops.BackendError, match="float32, and its kernel multiplies float16"):
            flat.dense_block([x], [weight], *[[v] for v in norm], [40], backend="cuda")
        with pytest.raises(ops.BackendError, match=r"for inference: call it under torch\.no_grad"):
            flat.dense_block([x.half().requires_grad_()], [weight], *[[v] for v in norm], [40], backend="cuda")
    assert emulation.max_tasks == gpu.MOST_TASKS
    with pytest.raises(ValueError, match="expected 1 to 32 tasks; got 33"):
        emulation.norm_gradients(0, 1, 1, [0] * 33, (0, 0, 0, 0, 0.0), 0, 0)
