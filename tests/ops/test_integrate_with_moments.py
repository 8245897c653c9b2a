from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ifan.bench import plain
from ifan.ops import channel_moments, integrate, integrate_with_moments
from ifan.ops.integrate_with_moments import _forward
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
from tests.support.tolerances import assert_close, assert_no_worse

ROWS, FLAGS = torch.tensor([2, 0, 1, 1, 0]), [False, True, False]


def naive(values: list[Tensor], segments: list[int], pool: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """One task after another by `torch.var_mean` of its lanes."""
    *sources, weight, bias = values
    x = torch.cat([s[ROWS] if s.shape[0] == 3 else s for s in sources], 1)
    out, means, variances = [], [], []
    for t, part in enumerate(x.split(segments)):
        if part.shape[0]:
            var, mean = torch.var_mean(part, (0, 2, 3), correction=0)
        else:
            mean, var = torch.zeros_like(weight[t]), torch.ones_like(weight[t])
        z = (part - mean[:, None, None]) / (var[:, None, None] + 1e-3).sqrt()
        z = torch.clamp(z * weight[t][:, None, None] + bias[t][:, None, None], min=0)
        out.append(torch.nn.functional.avg_pool2d(z, pool) if part.shape[0] else z[:, :, ::pool, ::pool])
        means.append(mean)
        variances.append(var)
    return torch.cat(out), torch.stack(means), torch.stack(variances)


def inputs(dtype: torch.dtype = torch.float32, size: int = 6, tasks: int = 3) -> list[Tensor]:
    """Three sources of 9 channels together, the second with a row a sample, weight and bias."""
    shapes = ((5, 3, size, size), (3, 2, size, size), (5, 4, size, size), (tasks, 9), (tasks, 9))
    return [leaf(*shape, dtype=dtype) for shape in shapes]


def run(values: list[Tensor], segments: list[int], pool: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return integrate_with_moments(values[:-2], *values[-2:], segments, ROWS, FLAGS, pool, backend=backend)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [2, 6, 34])
def test_forward_equals_naive_tasks(size: int, layout: str, pool: int, backend: str) -> None:
    for segments in SEGMENTS:
        values = [v.detach() for v in inputs(size=size, tasks=len(segments))]
        values = [arrange(v, layout) if v.dim() == 4 else v for v in values]
        expected = naive([v.double() for v in values], segments, pool)
        for actual, exact in zip(run(values, segments, pool, backend), expected, strict=True):
            assert_close(actual, exact, 16)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [6, 34])
def test_gradients_of_random_upstream(size: int, layout: str, pool: int, backend: str) -> None:
    """Through the result, the mean and the variance."""
    for segments in ([2, 0, 3], [0, 5, 0]):
        values = [arrange(v, layout).requires_grad_() if v.dim() == 4 else v for v in inputs(size=size)]
        assert_same_gradients(
            lambda *v, s=segments: run(list(v), s, pool, backend),
            lambda *v, s=segments: naive(list(v), s, pool),
            values,
            terms=1000,
        )


@needs_cpu
def test_moments_and_values_are_those_of_the_two_operations() -> None:
    x, weight, bias = leaf(5, 3, 70, 66), leaf(2, 3), leaf(2, 3)
    x, weight, bias = (v.detach().float() for v in (x, weight, bias))
    y, mean, var = integrate_with_moments([x], weight, bias, [2, 3], pool=2, backend="cpu")
    apart = channel_moments(x, [2, 3], backend="cpu")
    assert torch.equal(mean, apart[0])
    assert torch.equal(var, apart[1])
    assert_close(y, integrate([x], weight, bias, mean, var, [2, 3], pool=2, backend="cpu"))


@needs_cpu
def test_error_is_at_most_twice_that_of_batch_norm() -> None:
    x, weight, bias = torch.randn(8, 5, 64, 64) + 3, torch.rand(1, 5) + 0.5, torch.randn(1, 5)
    upstream, found = torch.randn(8, 5, 32, 32), []
    for dtype, call in (
        (torch.float64, lambda *v: plain.integrate_with_moments(v[:1], *v[1:], pool=2)),
        (torch.float32, lambda *v: plain.integrate_with_moments(v[:1], *v[1:], pool=2)),
        (torch.float32, lambda *v: integrate_with_moments(v[:1], *v[1:], [8], pool=2, backend="cpu")[0]),
    ):
        values = [v.to(dtype).requires_grad_() for v in (x, weight, bias)]
        y = call(*values)
        found.append([y.detach(), *torch.autograd.grad(y, values, upstream.to(dtype))])
    for index, (exact, eager, ours) in enumerate(zip(*found, strict=True)):
        assert_no_worse(ours, eager, exact, 4 if index > 1 else 2)


@pytest.mark.parametrize("backend", NATIVE)
def test_empty_batch_and_absent_task(backend: str) -> None:
    values = inputs()
    empty = [v.detach()[:0] if v.shape[0] == 5 else v.detach() for v in values]
    y, mean, var = integrate_with_moments(empty[:3], *empty[3:], [0, 0, 0], ROWS[:0], FLAGS, 2, backend=backend)
    assert y.shape == (0, 9, 3, 3)
    assert torch.equal(mean, torch.zeros(3, 9))
    assert torch.equal(var, torch.ones(3, 9))
    sum(v.sum() for v in run(values, [2, 0, 3], 1, backend)).backward()
    assert all(float(v.grad[1].abs().max()) == 0 for v in values[-2:] if v.grad is not None)
    assert all(float(v.grad[0].abs().max()) > 0 for v in values[-2:] if v.grad is not None)


def test_gradcheck() -> None:
    values = inputs(torch.float64, size=2)
    assert torch.autograd.gradcheck(lambda *v: run(list(v), [2, 0, 3], 2, "reference"), values, fast_mode=True)


@needs_cpu
def test_opcheck_and_one_graph() -> None:
    values = inputs(size=4)
    opcheck(_forward.registered, (values[:3], *values[3:], [2, 0, 3], ROWS, FLAGS, 2, 1e-3))
    assert_compiles(lambda *v: run(list(v), [2, 0, 3], 2, "cpu"), values)
    assert_double_backward_raises(lambda x: run([x, *values[1:]], [2, 0, 3], 1, "cpu"), values[0])


def test_what_is_wrong_is_named() -> None:
    values = inputs()
    with pytest.raises(ValueError, match=r"integrate_with_moments: weight must be \(T, C\) = \(3, 9\)"):
        integrate_with_moments(values[:3], values[3][:, :4], values[4], [2, 0, 3], ROWS, FLAGS)
    with pytest.raises(ValueError, match="pool must be 1 or 2; got 3"):
        run(values, [2, 0, 3], 3, "auto")
