"""`ifan.ops.hybrid_loss`, forward and backward: labels finer than the logits, and labels of their size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ifan.ops import hybrid_loss

CASES = {  # faces, classes, side of the logits, side of the labels
    "8x11x64x64 to 512": (8, 11, 64, 512),
    "8x9x128x128": (8, 9, 128, 128),
}
POINTS, SIZES = 68, [7, 2]


def sample(case: str) -> tuple[list[Tensor], dict[str, Any]]:
    """Parsing logits, points and class logits; the other arguments. A tenth of the pixels is unlabelled."""
    faces, classes, side, fine = CASES[case]
    torch.manual_seed(0)
    target = torch.randint(0, classes, (faces, fine, fine), dtype=torch.uint8)
    target[torch.rand(target.shape) < 0.1] = 255
    predictions = [
        torch.randn(faces, classes, side, side),
        torch.rand(faces, 2, POINTS) - 0.5,
        torch.randn(faces, sum(SIZES)),
    ]
    rest = {
        "parsing_target": target,
        "points_target": torch.rand(faces, 2, POINTS) - 0.5,
        "points_weight": torch.ones(faces, POINTS),
        "class_targets": torch.stack([torch.randint(0, size, (faces,)) for size in SIZES], 1),
        "class_sizes": SIZES,
        "task_weights": torch.ones(2 + len(SIZES)),
    }
    return [value.requires_grad_() for value in predictions], rest


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(benchmark: Callable[..., Any], backend: str, case: str) -> None:
    predictions, rest = sample(case)
    names = ("parsing_logits", "points", "class_logits")

    def run(name: str) -> tuple[Tensor, ...]:
        total = hybrid_loss(**dict(zip(names, predictions, strict=True)), **rest, backend=name).total
        return torch.autograd.grad(total, predictions)

    exact = run("reference")
    for actual, expected in zip(benchmark(lambda: run(backend)), exact, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
