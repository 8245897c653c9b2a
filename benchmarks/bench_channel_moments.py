"""`ifan.ops.channel_moments` at the widths and sizes where the network takes moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ifan.ops import channel_moments

CASES = {
    "44x48x64x64": (44, 48, 64, [5, 13, 26]),
    "8x128x64x64": (8, 128, 64, [8]),
    "44x160x4x4": (44, 160, 4, [5, 13, 26]),
}


def sample(case: str) -> tuple[Tensor, list[int]]:
    """Input and segments of a case."""
    lanes, channels, size, segments = CASES[case]
    torch.manual_seed(0)
    return torch.randn(lanes, channels, size, size, requires_grad=True), segments


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(benchmark: Callable[..., Any], backend: str, case: str) -> None:
    x, segments = sample(case)

    def run(name: str) -> Tensor:
        mean, var = channel_moments(x, segments, backend=name)
        return torch.autograd.grad([mean, var], [x], [torch.ones_like(mean), torch.ones_like(var)])[0]

    exact = run("reference")
    torch.testing.assert_close(benchmark(lambda: run(backend)), exact)
