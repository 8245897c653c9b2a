from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ifan.ops.integrate import _forward as registered
from tests.support.cases import (
    LAYOUTS,
    NATIVE,
    SEGMENTS,
    arrange,
    assert_compiles,
    assert_double_backward_raises,
    assert_same_gradients,
    leaf,
    needs_cpu,
)
from tests.support.flat import integrate, integrate_arguments
from tests.support.flat import integrate_op as _forward
from tests.support.tolerances import assert_close, assert_no_worse

ROWS = torch.tensor([2, 0, 1, 1, 0])


def naive(sources: list[Tensor], values: list[Tensor], segments: list[int], rows: Tensor, pool: int = 1) -> Tensor:
    """One lane after another: batch norm by its formula, ReLU, pooling by a sum over four shifted pictures."""
    weight, bias, mean, var = values
    task = [t for t, lanes in enumerate(segments) for _ in range(lanes)]
    lanes = []
    for n, t in enumerate(task):
        x = torch.cat([s[rows[n]] if s.shape[0] == 3 else s[n] for s in sources])
        y = (x - mean[t][:, None, None]) / (var[t][:, None, None] + 1e-3).sqrt()
        y = torch.clamp(y * weight[t][:, None, None] + bias[t][:, None, None], min=0)
        if pool == 2:
            y = (y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]) / 4
        lanes.append(y)
    return torch.stack(lanes)


def inputs(dtype: torch.dtype = torch.float32, size: int = 6, segments: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    sources = [
        leaf(5, 3, size, size, dtype=dtype),
        leaf(3, 2, size, size, dtype=dtype),
        leaf(5, 4, size, size, dtype=dtype),
    ]
    values = [leaf(segments, 9, dtype=dtype, positive=k in (0, 3)) for k in range(4)]
    return sources, values


EAGER = "eager"
"""The public function on the reference: ordinary autograd. Other names are backends of the registered operation."""

WAYS = (EAGER, *NATIVE)


def run(sources: list[Tensor], values: list[Tensor], segments: list[int], pool: int, way: str) -> Tensor:
    if way == EAGER:
        return integrate(sources, *values, segments, ROWS, [False, True, False], pool, backend="reference")
    return _forward(sources, *values, segments, ROWS, [False, True, False], pool, 1e-3, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [2, 6, 34])
def test_forward_equals_naive_lanes(size: int, layout: str, pool: int, way: str) -> None:
    sources, values = inputs(size=size)
    sources = [arrange(source, layout) for source in sources]
    for segments in SEGMENTS:
        used = [value[: len(segments)].detach() for value in values]
        actual = run(sources, used, segments, pool, way)
        expected = naive([s.double() for s in sources], [v.double() for v in used], segments, ROWS, pool)
        assert_close(actual, expected, 4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_random_upstream(layout: str, pool: int, way: str) -> None:
    kernel_dtypes = (torch.float32,) if way == "cpu" else (torch.float32, torch.float64)
    for dtype, segments in itertools.product(kernel_dtypes, ([2, 0, 3], [0, 5, 0])):
        sources, values = inputs(dtype)
        sources = [arrange(source, layout).requires_grad_() for source in sources]
        assert_same_gradients(
            lambda *v, s=segments: run(list(v[:3]), list(v[3:]), s, pool, way),
            lambda *v, s=segments: naive(list(v[:3]), list(v[3:]), s, ROWS, pool),
            [*sources, *values],
            terms=400,
        )


@needs_cpu
def test_kernel_writes_everything_and_reads_rows_of_stride_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs start as NaN, and one row may stand for all samples."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *a, **k: empty(x, *a, **k).fill_(torch.nan))
    one, values = torch.randn(1, 9, 34, 18), [v.detach() for v in inputs(torch.float32)[1]]
    x = one.expand(5, -1, -1, -1).requires_grad_()
    for pool in (1, 2):
        y = integrate([x], *values, [2, 0, 3], pool=pool, backend="cpu")
        assert_close(y, integrate([x.detach()], *values, [2, 0, 3], pool=pool, backend="reference"))
        (gradient,) = torch.autograd.grad(y, [x], torch.ones_like(y))
        assert gradient.isfinite().all()


@needs_cpu
@pytest.mark.parametrize("side", [256, 258])
def test_maps_larger_than_the_caches(side: int) -> None:
    """From 16 MB on they are stored past the caches, where rows are whole vectors."""
    x = torch.randn(2, 130, side, side, requires_grad=True)
    values = [torch.rand(1, 130) + 0.5, torch.randn(1, 130), torch.randn(1, 130), torch.rand(1, 130) + 0.5]
    y = integrate([x], *values, [2], pool=2, backend="cpu")
    scale = (values[0] / (values[3] + 1e-3).sqrt())[..., None, None].double()
    z = (x.detach() - values[2][..., None, None]).double() * scale + values[1][..., None, None]
    assert_close(y, torch.nn.functional.avg_pool2d(z.relu(), 2), 4)
    upstream = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, [x], upstream)
    expected = torch.nn.functional.interpolate(upstream.double(), scale_factor=2) / 4 * scale * (z > 0)
    assert ((gradient - expected).abs() > 1e-5).sum() < 20  # values whose sign is lost in rounding


@needs_cpu
def test_same_bits_for_any_number_of_threads_and_run() -> None:
    x = torch.randn(8, 40, 33, 34, requires_grad=True)
    values = [leaf(2, 40, dtype=torch.float32, positive=k in (0, 3)) for k in range(4)]
    upstream, before, results = torch.randn(8, 40, 33, 34), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            y = integrate([x], *values, [3, 5], backend="cpu")
            results.append([y, *torch.autograd.grad(y, [x, *values], upstream)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpu
def test_kernel_is_no_less_exact_than_eager() -> None:
    sources = [torch.randn(16, c, 32, 32, requires_grad=True) for c in (12, 20)]
    values = [leaf(2, 32, dtype=torch.float32, positive=k in (0, 3)) for k in range(4)]
    upstream = torch.randn(16, 32, 16, 16)

    def gradients(backend: str, dtype: torch.dtype) -> list[Tensor]:
        xs, vs = ([v.detach().to(dtype).requires_grad_() for v in group] for group in (sources, values))
        y = integrate(xs, *vs, [9, 7], pool=2, backend=backend)
        return [y.detach(), *torch.autograd.grad(y, [*xs, *vs], upstream.to(dtype))]

    exact = gradients("reference", torch.float64)
    ours, eager = gradients("cpu", torch.float32), gradients("reference", torch.float32)
    for index, (a, b, c) in enumerate(zip(ours, eager, exact, strict=True)):
        assert_no_worse(a, b, c, factor=2.0 if index < 3 else 4.0)


@needs_cpu
def test_kernel_refuses_what_it_cannot_take() -> None:
    sources, values = inputs(torch.float64)
    with pytest.raises(ValueError, match=r"backend 'cpu' cannot take this input: .*float64, not float32"):
        integrate(sources, *values, [2, 0, 3], ROWS, [False, True, False], backend="cpu")


def test_a_source_may_be_listed_twice() -> None:
    x = leaf(4, 3, 4, 4)
    values = [leaf(2, 6, positive=k in (0, 3)) for k in range(4)]
    for op in (False, True):
        call = (
            (lambda v, *w: _forward([v, v], *w, [1, 3], None, [False] * 2, 1, 1e-3, "reference"))
            if op
            else (lambda v, *w: integrate([v, v], *w, [1, 3]))
        )
        assert_same_gradients(call, lambda v, *w: naive([v, v], list(w), [1, 3], ROWS), [x, *values])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    sources, values = inputs(size=8)
    low = [source.detach().to(dtype) for source in sources]
    actual = run(low, values, [2, 0, 3], 2, way=EAGER)
    assert actual.dtype == dtype
    exact = naive([s.double() for s in low], [v.detach().double() for v in values], [2, 0, 3], ROWS, 2)
    assert torch.equal(actual, exact.float().to(dtype)) or float((actual.double() - exact).abs().max()) < 1e-2
    assert_close(actual, exact)


def test_empty_batch_and_gradient_of_absent_task_is_zero() -> None:
    sources, values = inputs()
    empty = [source[:0] if source.shape[0] == 5 else source for source in sources]
    for op in (False, True):
        call = _forward if op else integrate
        extra = (2, 1e-3, "reference") if op else (2,)
        result = call(empty, *values, [0, 0, 0], ROWS[:0], [False, True, False], *extra)
        assert result.shape == (0, 9, 3, 3)
    run(sources, values, [2, 0, 3], 1, way=EAGER).sum().backward()
    assert all(float(value.grad[1].abs().max()) == 0 for value in values if value.grad is not None)
    assert all(float(value.grad[0].abs().max()) > 0 for value in values if value.grad is not None)


def test_batch_of_one_equals_batch_of_many() -> None:
    x, values = torch.randn(4, 5, 6, 6), [v.detach() for v in (leaf(2, 5, dtype=torch.float32) for _ in range(3))]
    values.append(torch.rand(2, 5))
    together = integrate([x], *values, [1, 3])
    for n, task in enumerate([0, 1, 1, 1]):
        assert torch.equal(together[n : n + 1], integrate([x[n : n + 1]], *values, [int(task == 0), int(task == 1)]))


def test_gradcheck() -> None:
    sources, values = inputs(torch.float64, size=2)
    assert torch.autograd.gradcheck(
        lambda *v: run(list(v[:3]), list(v[3:]), [2, 0, 3], 2, way="reference"), (*sources, *values), fast_mode=True
    )


@pytest.mark.parametrize("way", WAYS)
def test_opcheck_and_one_graph(way: str) -> None:
    sources, values = inputs(torch.float32, size=4)
    if way != EAGER:
        arguments = integrate_arguments(sources, *values, [2, 0, 3], ROWS, [False, True, False], 2, 1e-3, way)
        opcheck(registered.registered, arguments)
    assert_compiles(lambda *v: run(list(v[:3]), list(v[3:]), [2, 0, 3], 2, way), [*sources, *values])


def test_double_backward_of_the_op_raises() -> None:
    sources, values = inputs(size=2)
    assert_double_backward_raises(lambda x: run([x, *sources[1:]], values, [2, 0, 3], 1, way="reference"), sources[0])


def test_autocast_leaves_the_dtype_alone() -> None:
    sources, values = inputs(size=2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(sources, values, [2, 0, 3], 1, way=EAGER)
    assert torch.equal(inside, run(sources, values, [2, 0, 3], 1, way=EAGER))


def test_inputs_are_left_as_they_were() -> None:
    sources, values = inputs()
    before = [value.detach().clone() for value in (*sources, *values)]
    run(sources, values, [2, 0, 3], 2, way=EAGER).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (*sources, *values), strict=True))


def test_bad_input_is_refused() -> None:
    sources, values = ([v.detach() for v in group] for group in inputs())
    flags = [False, True, False]
    for arguments, message in (
        (([], *values, [5]), "at least one tensor"),
        (([sources[0][:0]], *[v[:0, :3] for v in values], []), "at least one task"),
        ((sources, *values, [2, 3], ROWS, flags), "norm.weight must be (T, C) = (2, 9); got (3, 9)"),
        ((sources, *values, [2, 0, 3]), "Mark it per_sample"),
        ((sources, *values, [2, 0, 3], ROWS + 1, flags), "rows must be in 0..2; got 3"),
        ((sources, *values, [2, 0, 3], ROWS.float(), flags), "int64"),
        ((sources, *values[:2], None, None, [2, 0, 3], ROWS, flags), "norm must have mean and var"),
        (([sources[0], sources[2][..., :4]], *values, [2, 0, 3]), "share (H, W); got (6, 6) and (6, 4)"),
        ((sources, *values, [2, 0, 3], ROWS, flags, 3), "pool must be 1 or 2"),
        (([sources[0][..., :5]], *[v[:, :3] for v in values], [2, 0, 3], None, None, 2), "even H and W"),
    ):
        with pytest.raises(ValueError, match=r"^integrate: ") as error:
            integrate(*arguments)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
