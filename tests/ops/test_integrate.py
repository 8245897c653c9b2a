from __future__ import annotations

import pytest
import torch
from cases import (
    LAYOUTS,
    SEGMENTS,
    arrange,
    assert_compiles,
    assert_double_backward_raises,
    assert_same_gradients,
    leaf,
)
from tolerances import assert_close
from torch import Tensor
from torch.library import opcheck

from ifan.ops import integrate
from ifan.ops.integrate import _forward

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


def run(sources: list[Tensor], values: list[Tensor], segments: list[int], pool: int, op: bool) -> Tensor:
    if op:
        return _forward(sources, *values, segments, ROWS, [False, True, False], pool, 1e-3, "reference")
    return integrate(sources, *values, segments, ROWS, [False, True, False], pool, backend="reference")


@pytest.mark.parametrize("op", [False, True], ids=["eager", "op"])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_equals_naive_lanes(layout: str, pool: int, op: bool) -> None:
    sources, values = inputs()
    sources = [arrange(source, layout) for source in sources]
    for segments in SEGMENTS:
        used = [value[: len(segments)].detach() for value in values]
        actual = run(sources, used, segments, pool, op)
        expected = naive([s.double() for s in sources], [v.double() for v in used], segments, ROWS, pool)
        assert_close(actual, expected, 4)


@pytest.mark.parametrize("op", [False, True], ids=["eager", "op"])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradients_of_random_upstream(dtype: torch.dtype, pool: int, op: bool) -> None:
    sources, values = inputs(dtype)
    for segments in ([2, 0, 3], [0, 5, 0]):
        assert_same_gradients(
            lambda *v, s=segments: run(list(v[:3]), list(v[3:]), s, pool, op),
            lambda *v, s=segments: naive(list(v[:3]), list(v[3:]), s, ROWS, pool),
            [*sources, *values],
            terms=400,
        )


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
    actual = run(low, values, [2, 0, 3], 2, op=False)
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
    run(sources, values, [2, 0, 3], 1, op=False).sum().backward()
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
        lambda *v: run(list(v[:3]), list(v[3:]), [2, 0, 3], 2, op=True), (*sources, *values), fast_mode=True
    )


def test_opcheck_and_one_graph() -> None:
    sources, values = inputs(size=4)
    opcheck(_forward, (sources, *values, [2, 0, 3], ROWS, [False, True, False], 2, 1e-3, "reference"))
    for op in (False, True):
        assert_compiles(lambda *v, o=op: run(list(v[:3]), list(v[3:]), [2, 0, 3], 2, o), [*sources, *values])


def test_double_backward_of_the_op_raises() -> None:
    sources, values = inputs(size=2)
    assert_double_backward_raises(lambda x: run([x, *sources[1:]], values, [2, 0, 3], 1, op=True), sources[0])


def test_autocast_leaves_the_dtype_alone() -> None:
    sources, values = inputs(size=2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(sources, values, [2, 0, 3], 1, op=False)
    assert torch.equal(inside, run(sources, values, [2, 0, 3], 1, op=False))


def test_inputs_are_left_as_they_were() -> None:
    sources, values = inputs()
    before = [value.detach().clone() for value in (*sources, *values)]
    run(sources, values, [2, 0, 3], 2, op=False).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (*sources, *values), strict=True))


def test_bad_input_is_refused() -> None:
    sources, values = ([v.detach() for v in group] for group in inputs())
    flags = [False, True, False]
    for arguments, message in (
        (([], *values, [5]), "at least one tensor"),
        ((sources, *values, [2, 3], ROWS, flags), "weight must be (T, C) = (2, 9); got (3, 9)"),
        ((sources, *values, [2, 0, 2], ROWS, flags), "rows must be (N,)"),
        ((sources, *values, [2, 0, 3]), "Mark it in per_sample"),
        ((sources, *values, [2, 0, 3], None, flags), "need rows"),
        ((sources, *values, [2, 0, 3], ROWS + 1, flags), "rows must be in 0..2; got 3"),
        ((sources, *values, [2, 0, 3], ROWS.float(), flags), "int64"),
        ((sources, *values, [2, 0, 3], ROWS, flags[:2]), "per_sample must have one entry a source"),
        (([sources[0], sources[2][..., :4]], *values, [2, 0, 3]), "share (H, W); got (6, 6) and (6, 4)"),
        ((sources, *values, [2, 0, 3], ROWS, flags, 3), "pool must be 1 or 2"),
        (([sources[0][..., :5]], *[v[:, :3] for v in values], [2, 0, 3], None, None, 2), "even H and W"),
    ):
        with pytest.raises(ValueError, match=r"^integrate: ") as error:
            integrate(*arguments)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
