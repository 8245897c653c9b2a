"""`ifan.ops.encode_predictions` at the network's sizes: eight faces at 128 px, a training batch at 64 px."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ifan.ops import encode_predictions

CASES = {"8 at 128": (8, 128), "44 at 64": (44, 64)}
CLASSES, POINTS, SIZES = 9, 5, [7]


def sample(case: str) -> tuple[Tensor, Tensor, Tensor]:
    """Parsing logits, points and class logits."""
    faces, side = CASES[case]
    torch.manual_seed(0)
    parsing, classes = torch.randn(faces, CLASSES, side, side), torch.randn(faces, sum(SIZES))
    return parsing.requires_grad_(), torch.rand(faces, 2, POINTS) - 0.5, classes.requires_grad_()


@pytest.mark.parametrize("case", CASES)
def test_forward(benchmark: Callable[..., Any], backend: str, case: str) -> None:
    parsing, points, classes = (value.detach() for value in sample(case))
    result = benchmark(lambda: encode_predictions(parsing, points, classes, SIZES, backend=backend))
    torch.testing.assert_close(result, encode_predictions(parsing, points, classes, SIZES, backend="reference"))


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(benchmark: Callable[..., Any], backend: str, case: str) -> None:
    parsing, points, classes = sample(case)
    upstream = torch.randn(parsing.shape[0], CLASSES + POINTS + sum(SIZES), *parsing.shape[2:])

    def run(name: str) -> tuple[Tensor, ...]:
        planes = encode_predictions(parsing, points, classes, SIZES, backend=name)
        return torch.autograd.grad(planes, [parsing, classes], upstream)

    exact = run("reference")
    for actual, expected in zip(benchmark(lambda: run(backend)), exact, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
