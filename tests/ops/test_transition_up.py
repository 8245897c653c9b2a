from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ifan.ops.transition_up import _forward as registered
from tests.ops.test_dense_block import convolve
from tests.support.cases import (
    LAYOUTS,
    arrange,
    assert_compiles,
    assert_double_backward_raises,
    assert_same_gradients,
    leaf,
)
from tests.support.flat import transition_up, transition_up_arguments
from tests.support.flat import transition_up_op as _forward
from tests.support.tolerances import assert_close

ROWS = torch.tensor([2, 0, 1, 1, 0])
FLAGS = [False, True]


def naive(sources: list[Tensor], weight_a: Tensor, weight_b: Tensor) -> Tensor:
    """The released network's rule written out: channel 4c + 2i + j to row offset j, column offset i."""
    x = torch.cat([s[ROWS] if s.shape[0] == 3 else s for s in sources], 1)
    a = convolve(x, weight_a).relu()
    n, channels, h, w = a.shape
    up = a.new_zeros(n, channels // 4, 2 * h, 2 * w)
    for c in range(channels // 4):
        for i in range(2):
            for j in range(2):
                up[:, c, j::2, i::2] = a[:, 4 * c + 2 * i + j]
    return convolve(up, weight_b).relu()


def inputs(dtype: torch.dtype = torch.float32, h: int = 3, w: int = 4) -> list[Tensor]:
    sources = [leaf(5, 3, h, w, dtype=dtype), leaf(3, 2, h, w, dtype=dtype)]
    return [*sources, leaf(8, 5, 3, 3, dtype=dtype), leaf(3, 2, 3, 3, dtype=dtype)]


def run(values: list[Tensor] | tuple[Tensor, ...], op: bool) -> Tensor:
    if op:
        return _forward(list(values[:2]), values[2], values[3], ROWS, FLAGS, "reference")[0]
    return transition_up(values[:2], values[2], values[3], ROWS, FLAGS, backend="reference")


@pytest.mark.parametrize("op", [False, True], ids=["eager", "op"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_equals_written_out_rule(layout: str, op: bool) -> None:
    values = [v.detach() for v in inputs()]
    values[:2] = [arrange(v, layout) for v in values[:2]]
    actual = run(values, op)
    assert actual.shape == (5, 3, 6, 8)
    assert_close(actual, naive([v.double() for v in values[:2]], *[v.double() for v in values[2:]]), 5 * 9 * 2 * 9)


@pytest.mark.parametrize("op", [False, True], ids=["eager", "op"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradients_of_random_upstream(dtype: torch.dtype, op: bool) -> None:
    assert_same_gradients(lambda *v: run(v, op), lambda *v: naive(list(v[:2]), v[2], v[3]), inputs(dtype), terms=5000)


def test_a_source_may_be_listed_twice_and_all_may_have_a_row_a_sample() -> None:
    x, a, b = leaf(3, 2, 3, 3), leaf(4, 4, 3, 3), leaf(2, 1, 3, 3)
    for op in (False, True):
        call = _forward if op else transition_up
        extra = ("reference",) if op else ()
        result = call([x, x], a, b, ROWS, [True, True], *extra)
        result = result[0] if op else result
        assert_close(result, naive([x, x], a, b), 100)
        assert result.shape == (5, 2, 6, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype: torch.dtype) -> None:
    values = [v.detach() for v in inputs()]
    low = [v.to(dtype) for v in values[:2]] + values[2:]
    actual = run(low, op=False)
    exact = naive([v.double() for v in low[:2]], *[v.to(dtype).double() for v in low[2:]])
    assert actual.dtype == dtype
    assert float((actual.double() - exact).norm() / exact.norm()) < (1.6e-2 if dtype == torch.bfloat16 else 1e-3)


def test_empty_batch() -> None:
    values = inputs()
    for op in (False, True):
        call, extra = (_forward, ("reference",)) if op else (transition_up, ())
        result = call([values[0][:0], values[1]], values[2], values[3], ROWS[:0], FLAGS, *extra)
        result = result[0] if op else result
        assert result.shape == (0, 3, 6, 8)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(lambda *v: run(v, op=True), inputs(torch.float64, 2, 2), fast_mode=True)


def test_opcheck_and_one_graph() -> None:
    values = inputs()
    opcheck(registered.registered, transition_up_arguments(values[:2], values[2], values[3], ROWS, FLAGS, "reference"))
    for op in (False, True):
        assert_compiles(lambda *v, o=op: run(v, o), values)


def test_double_backward_of_the_op_raises() -> None:
    values = inputs()
    assert_double_backward_raises(lambda x: run([x, *values[1:]], op=True), values[0])


def test_autocast_leaves_the_dtype_alone() -> None:
    values = inputs()
    outside = run(values, op=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(values, op=False), outside)
        assert torch.equal(run(values, op=True), outside)


def test_bad_input_is_refused() -> None:
    x, y, a, b = inputs()
    for arguments, message in (
        (([x, y], a, b), "Mark it per_sample"),
        (([x], a, b), "a must be (A, C, 3, 3) = (8, 3, 3, 3); got (8, 5, 3, 3)"),
        (([x, y], a[:6], b, ROWS, FLAGS), "multiple of 4"),
        (([x, y], a[:4], b, ROWS, FLAGS), "b must be"),
        (([x, y], a, b, ROWS + 1, FLAGS), "rows must be in 0..2"),
        (([x[0]], a, b), "sources[0] must be (N, C, H, W)"),
    ):
        with pytest.raises(ValueError, match=r"^transition_up: ") as error:
            transition_up(*arguments)
        assert message in str(error.value)
