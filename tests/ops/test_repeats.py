"""A tensor that stands several times among the sources has one gradient, that of all its places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.cases import NATIVE, assert_compiles, assert_same_gradients, leaf
from tests.support.flat import dense_block, dense_block_op, integrate, integrate_op, transition_up
from tests.support.tolerances import assert_close

ROWS, SEGMENTS, FLAGS = torch.tensor([2, 0, 1, 1, 0]), [2, 0, 3], [False, True, False, True, False]
WIDTHS = [13, 15]


def repeated(x: Tensor, y: Tensor) -> list[Tensor]:
    """A row a lane and a row a sample, 3 and 2 channels; 13 channels in all."""
    return [x, y, x, y, x]


def maps(size: int) -> list[Tensor]:
    return [leaf(5, 3, size, size, dtype=torch.float32), leaf(3, 2, size, size, dtype=torch.float32)]


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("size", [6, 32])
def test_integrate(size: int, pool: int, backend: str) -> None:
    values = [leaf(3, 13, dtype=torch.float32, positive=i in (0, 3)) for i in range(4)]

    def run(x: Tensor, y: Tensor, *norm: Tensor) -> Tensor:
        return integrate_op(repeated(x, y), *norm, SEGMENTS, ROWS, FLAGS, pool, 1e-3, backend)

    def oracle(x: Tensor, y: Tensor, *norm: Tensor) -> Tensor:
        return integrate(repeated(x, y), *norm, SEGMENTS, ROWS, FLAGS, pool, 1e-3, backend="reference")

    assert_same_gradients(run, oracle, [*maps(size), *values], 4 * size**2)
    assert_compiles(run, [*maps(size), *values])


@pytest.mark.parametrize("backend", NATIVE)
def test_a_tensor_read_by_lane_and_by_sample(backend: str) -> None:
    """Its places find their rows in two ways, so that their gradients cannot be added before they are collected."""
    values = [leaf(3, 9, dtype=torch.float32, positive=i in (0, 3)) for i in range(4)]

    def run(x: Tensor, *norm: Tensor) -> Tensor:
        return integrate_op([x, x, x], *norm, SEGMENTS, ROWS, [False, True, True], 2, 1e-3, backend)

    def oracle(x: Tensor, *norm: Tensor) -> Tensor:
        return integrate([x, x, x], *norm, SEGMENTS, ROWS, [False, True, True], 2, 1e-3, backend="reference")

    assert_same_gradients(run, oracle, [leaf(5, 3, 6, 6, dtype=torch.float32), *values], 144)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_dense_block(batch_statistics: bool, backend: str) -> None:
    weights = [(torch.randn(2, width, 3, 3) / 8).requires_grad_() for width in WIDTHS]
    norms = [leaf(3, width, dtype=torch.float32) for _ in range(2) for width in WIDTHS]
    widths = WIDTHS[:1] if batch_statistics else WIDTHS
    moments = [leaf(3, width, dtype=torch.float32, positive=positive) for positive in (False, True) for width in widths]

    def groups(x: Tensor, y: Tensor, *rest: Tensor) -> list[list[Tensor]]:
        lengths, flat = (2, 2, 2, len(widths), len(widths)), iter(rest)
        return [repeated(x, y), *([next(flat) for _ in range(length)] for length in lengths)]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        return dense_block_op(*groups(*inputs), SEGMENTS, ROWS, FLAGS, 1e-3, backend)

    def oracle(*inputs: Tensor) -> tuple[Tensor, ...]:
        return dense_block(*groups(*inputs), SEGMENTS, ROWS, FLAGS, backend="reference")

    inputs = [*maps(8), *weights, *norms, *moments]
    assert_same_gradients(run, oracle, inputs, 1024)
    assert_compiles(run, inputs)


@pytest.mark.parametrize("backend", NATIVE)
def test_transition_up(backend: str) -> None:
    weights, (x, y) = (torch.randn(8, 13, 3, 3) / 8, torch.randn(4, 2, 3, 3) / 4), maps(8)

    def gradients(sources: list[Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(transition_up(sources, *weights, ROWS, FLAGS, backend=backend).sum(), inputs)

    copies = [source.detach().clone().requires_grad_() for source in repeated(x, y)]
    apart = gradients(copies, copies)
    for found, expected in zip(gradients(repeated(x, y), [x, y]), (sum(apart[::2]), sum(apart[1::2])), strict=True):
        assert_close(found, expected, 16)


def test_large_maps_whose_gradients_pass_the_caches() -> None:
    """Streamed stores would not be seen by what adds to them soon after."""
    x = leaf(24, 48, 64, 64, dtype=torch.float32)
    values = [leaf(1, 96, dtype=torch.float32, positive=i in (0, 3)) for i in range(4)]

    def run(x: Tensor, other: Tensor) -> Tensor:
        return integrate([x, other], *values, [24], pool=2)

    upstream = torch.randn(24, 96, 32, 32)
    (once,) = torch.autograd.grad(run(x, x), x, upstream)
    copy = x.detach().clone().requires_grad_()
    apart = torch.autograd.grad(run(x, copy), [x, copy], upstream)
    assert_close(once, apart[0] + apart[1])
