"""`ifan.ops.dense_block`: the widest layer of the network at 128 px, and layers of a training batch at 64 px."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ifan.concat import Concat, DenseLayer, Lanes, Norm
from ifan.ops import dense_block

CASES = {"1x284x128x128": (1, 284, 128), "8x260x128x128": (8, 260, 128), "44x100x64x64": (44, 100, 64)}
TRAINED = {"44x100x64x64": CASES["44x100x64x64"], "44x150x32x32": (44, 150, 32)}


def sample(lanes: int, channels: int, size: int, gradient: bool) -> list[Tensor]:
    """Source, weight, and the values of its normalisation."""
    torch.manual_seed(0)
    norms = [torch.rand(1, channels) + 0.5 for _ in range(4)]
    values = [torch.randn(lanes, channels, size, size), torch.randn(12, channels, 3, 3) / 30, *norms]
    return [value.requires_grad_(gradient) for value in values]


def layer(values: list[Tensor], backend: str) -> tuple[Tensor, Tensor, Tensor]:
    source, weight, *norms = values
    x = Concat.of(Lanes.ordered([source.shape[0]]), source)
    return dense_block(x, [DenseLayer(weight, Norm.from_flat(norms))], backend=backend)


@pytest.mark.parametrize("case", CASES)
def test_forward(benchmark: Callable[..., Any], backend: str, case: str) -> None:
    values = sample(*CASES[case], gradient=False)
    result = benchmark(lambda: layer(values, backend)[0])
    torch.testing.assert_close(result, layer(values, "reference")[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", TRAINED)
def test_forward_and_backward(benchmark: Callable[..., Any], backend: str, case: str) -> None:
    values = sample(*TRAINED[case], gradient=True)

    def run(name: str) -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(values, name)[0].square().sum(), values)

    exact = run("reference")
    for actual, expected in zip(benchmark(lambda: run(backend)), exact, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
