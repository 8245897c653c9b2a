"""`ifan.ops.transition_up`: the heaviest one of the network at 128 px, and those of a training batch at 64 px."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ifan.concat import Concat, Lanes
from ifan.ops import transition_up

CASES = {"1x304x64x64": (1, 304, 64)}
TRAINED = {"5x304x32x32": (5, 304, 32), "5x431x16x16": (5, 431, 16)}


def sample(lanes: int, channels: int, size: int, gradient: bool) -> list[Tensor]:
    """Source and the two weights."""
    torch.manual_seed(0)
    weights = [torch.randn(128, channels, 3, 3) / 50, torch.randn(128, 32, 3, 3) / 20]
    return [value.requires_grad_(gradient) for value in (torch.randn(lanes, channels, size, size), *weights)]


@pytest.mark.parametrize("case", CASES)
def test_forward(benchmark: Callable[..., Any], backend: str, case: str) -> None:
    source, a, b = sample(*CASES[case], gradient=False)
    x = Concat.of(Lanes.ordered([source.shape[0]]), source)
    result = benchmark(lambda: transition_up(x, a, b, backend=backend))
    torch.testing.assert_close(result, transition_up(x, a, b, backend="reference"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", TRAINED)
def test_forward_and_backward(benchmark: Callable[..., Any], backend: str, case: str) -> None:
    values = sample(*TRAINED[case], gradient=True)
    x = Concat.of(Lanes.ordered([values[0].shape[0]]), values[0])

    def run(name: str) -> tuple[Tensor, ...]:
        return torch.autograd.grad(transition_up(x, *values[1:], backend=name).square().sum(), values)

    exact = run("reference")
    for actual, expected in zip(benchmark(lambda: run(backend)), exact, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
