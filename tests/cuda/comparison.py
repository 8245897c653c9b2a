"""Results of the CUDA kernels against the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from cases import VECTOR_ERROR
from problems import Problem, results
from tolerances import assert_close
from torch import Tensor


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_same(found: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype, terms: int = 500) -> None:
    """Element by element in float32, and as vectors; exactly zero where the reference is."""
    for index, (actual, wanted) in enumerate(zip(found, exact, strict=True)):
        assert actual.shape == wanted.shape
        norm = float(wanted.norm())
        if norm:
            error = float((actual.double() - wanted).norm()) / norm
            assert error < VECTOR_ERROR[dtype], f"result {index}: relative error {error:.2g}"
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
    exact = results(problem, "reference", [x.detach().double().requires_grad_() for x in inputs])
    assert_same(found, exact, dtype)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
