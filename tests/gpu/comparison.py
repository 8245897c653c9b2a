"""Results of kernels against the reference in float64; what the tests of the Triton and of the CUDA kernels share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tests.gpu.problems import Problem, results
from tests.support.samples import VECTOR_ERROR
from tests.support.tolerances import assert_close


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def exact(problem: Problem, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and gradients of the reference in float64."""
    return results(problem, "reference", [x.detach().double().requires_grad_() for x in inputs])


def assert_same(
    found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype, terms: int = 500, roundings: int = 1
) -> None:
    """Element by element in float32, and as vectors; exactly zero where the reference is. ``roundings``: of values to
    their storage dtype, where that is not float32."""
    bound = VECTOR_ERROR[dtype] * (1 if dtype == torch.float32 else roundings)
    for index, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        assert actual.shape == wanted.shape
        norm = float(wanted.norm())
        if norm:
            error = float((actual.double() - wanted).norm()) / norm
            assert error < bound, f"result {index}: relative error {error:.2g}"
        else:
            assert float(actual.abs().sum()) == 0, f"result {index} is not zero"
        if dtype == torch.float32:
            assert_close(actual, wanted, terms)


def check(problem: Problem, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> None:
    """Backend ``cuda`` on the problem: values, gradients for a random upstream gradient, inputs left as they were."""
    inputs = problem.arranged(dtype, layout)
    before = [x.detach().clone() for x in inputs]
    with poisoned():
        found = results(problem, "cuda", inputs)
    assert_same(found, exact(problem, inputs), dtype)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
