"""Sample inputs and checks shared by the tests of the operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ifan.ops import backend_status
from tests.support.samples import VECTOR_ERROR, arrange, leaf, outputs_of  # noqa: F401 (tests take them from here)
from tests.support.tolerances import assert_close

LAYOUTS = ("contiguous", "channels_last", "slice", "transposed")
SEGMENTS = ([5], [2, 0, 3], [1, 4, 0])

_MISSING = next(row for row in backend_status() if row.name == "cpu")
needs_cpu = pytest.mark.skipif(not _MISSING.available, reason=f"native module: {_MISSING.reason}")
NATIVE = ("reference", pytest.param("cpu", marks=needs_cpu))


def gradients(run: Callable[..., Any], inputs: Sequence[Tensor], seed: int = 1) -> list[Tensor]:
    """Gradients of ``run(*inputs)`` for a random upstream gradient that depends on the seed only."""
    outputs = [value for value in outputs_of(run(*inputs)) if value.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype) for value in outputs]
    return list(torch.autograd.grad(outputs, list(inputs), upstream))


def assert_same_gradients(
    run: Callable[..., Any], oracle: Callable[..., Any], inputs: Sequence[Tensor], terms: int = 1
) -> None:
    """Gradients of ``run`` against those of ``oracle`` in float64, element by element and as vectors."""
    exact = gradients(oracle, [value.detach().double().requires_grad_() for value in inputs])
    for index, (actual, expected) in enumerate(zip(gradients(run, inputs), exact, strict=True)):
        assert actual.shape == expected.shape
        assert actual.dtype == inputs[index].dtype
        assert_close(actual, expected, terms, inputs[index].dtype)
        norm = float(expected.norm())
        if norm:
            assert float((actual.double() - expected).norm()) / norm < VECTOR_ERROR[actual.dtype], f"input {index}"


def compiled(run: Callable[..., Any], backend: str = "aot_eager") -> Callable[..., Any]:
    """``run`` compiled as one graph, from a clean state."""
    torch._dynamo.reset()
    return torch.compile(run, fullgraph=True, backend=backend)


def assert_compiles(run: Callable[..., Any], inputs: Sequence[Tensor], backend: str = "aot_eager") -> None:
    """The compiled function gives the values and gradients of the eager one."""
    fast = compiled(run, backend)
    for actual, expected in zip(outputs_of(fast(*inputs)), outputs_of(run(*inputs)), strict=True):
        assert_close(actual, expected, 64)
    for actual, expected in zip(gradients(fast, inputs), gradients(run, inputs), strict=True):
        assert_close(actual, expected, 64)


def assert_double_backward_raises(run: Callable[..., Any], x: Tensor) -> None:
    """A second derivative raises instead of being silently wrong."""
    total = sum(value.square().sum() for value in outputs_of(run(x)) if value.requires_grad)
    (first,) = torch.autograd.grad(total, x, create_graph=True)
    with pytest.raises(RuntimeError):
        first.square().sum().backward()
