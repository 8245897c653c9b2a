"""`ifan.ops.integrate` at the sizes of the first transition down: eight faces at 128 px, a training batch at 64 px."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ifan.concat import Concat, Lanes, Norm
from ifan.ops import integrate

CHANNELS = (48, 36, 48, 21)
CASES = {"8x153x128x128": (8, 128, [8]), "44x153x64x64": (44, 64, [5, 13, 26])}


def sample(case: str, gradient: bool) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Sources and normalisation values of a case."""
    lanes, size, segments = CASES[case]
    torch.manual_seed(0)
    sources = [torch.randn(lanes, c, size, size, requires_grad=gradient) for c in CHANNELS]
    values = [torch.rand(len(segments), sum(CHANNELS)).add(0.5).requires_grad_(gradient) for _ in range(4)]
    return sources, values, segments


@pytest.mark.parametrize("case", CASES)
def test_forward(benchmark: Callable[..., Any], backend: str, case: str) -> None:
    sources, values, segments = sample(case, gradient=False)
    x, norm = Concat.of(Lanes.ordered(segments), *sources), Norm.from_flat(values)
    exact = integrate(x, norm, 2, backend="reference")
    result = benchmark(lambda: integrate(x, norm, 2, backend=backend))
    torch.testing.assert_close(result, exact)


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(benchmark: Callable[..., Any], backend: str, case: str) -> None:
    sources, values, segments = sample(case, gradient=True)
    inputs, x, norm = [*sources, *values], Concat.of(Lanes.ordered(segments), *sources), Norm.from_flat(values)

    def run(name: str) -> tuple[Tensor, ...]:
        out = integrate(x, norm, 2, backend=name)
        return torch.autograd.grad(out, inputs, torch.ones_like(out))

    exact = run("reference")
    for actual, expected in zip(benchmark(lambda: run(backend)), exact, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3 * float(expected.abs().max()))
