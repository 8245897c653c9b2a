"""What every native operation promises, one table for all: see also the tests of each operation.

An operation's entry gives its inputs and a run on a backend; adding one here puts it through every promise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ifan import ops
from ifan.ops import BackendError, native
from tests.support import flat
from tests.support.cases import LAYOUTS, arrange, assert_compiles, needs_cpu, outputs_of

pytestmark = needs_cpu

ROWS, SEGMENTS, FLAGS = torch.tensor([2, 0, 1, 1, 0]), [2, 0, 3], [False, True]


@dataclass(frozen=True)
class Operation:
    """``inputs(height, width, dtype)`` makes leaves; ``run(inputs, backend)`` the outputs. ``dtypes``: what the
    kernel takes."""

    inputs: Callable[[int, int, torch.dtype], list[Tensor]]
    run: Callable[[Sequence[Tensor], str], Any]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)


def leaves(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Pictures and weights of any sign; what normalises, ``(T, C)``, positive."""
    drawn = [torch.randn(shape) if len(shape) == 4 else torch.rand(shape) + 0.5 for shape in shapes]
    return [value.to(dtype).requires_grad_() for value in drawn]


def two_sources(h: int, w: int) -> list[tuple[int, ...]]:
    """Of five lanes and three samples, 13 channels together."""
    return [(5, 7, h, w), (3, 6, h, w)]


OPERATIONS = {
    "channel_moments": Operation(
        lambda h, w, dtype: leaves(dtype, (5, 7, h, w)),
        lambda v, backend: ops.channel_moments(v[0], SEGMENTS, backend=backend),
    ),
    "integrate": Operation(
        lambda h, w, dtype: leaves(dtype, *two_sources(h, w), *[(3, 13)] * 4),
        lambda v, backend: flat.integrate(v[:2], *v[2:], SEGMENTS, ROWS, FLAGS, backend=backend),
    ),
    "integrate pooled": Operation(
        lambda h, w, dtype: leaves(dtype, *two_sources(2 * h, 2 * w), *[(3, 13)] * 4),
        lambda v, backend: flat.integrate(v[:2], *v[2:], SEGMENTS, ROWS, FLAGS, 2, backend=backend),
    ),
    "dense_block": Operation(
        lambda h, w, dtype: leaves(dtype, *two_sources(h, w), (12, 13, 3, 3), *[(3, 13)] * 4),
        lambda v, backend: flat.dense_block(
            v[:2], [v[2]], *[[x] for x in v[3:]], SEGMENTS, ROWS, FLAGS, backend=backend
        ),
    ),
    "transition_up": Operation(
        lambda h, w, dtype: leaves(dtype, *two_sources(h, w), (8, 13, 3, 3), (8, 2, 3, 3)),
        lambda v, backend: flat.transition_up(v[:2], v[2], v[3], ROWS, FLAGS, backend=backend),
    ),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
ERROR = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
"""Largest relative L2 error of a value of that dtype against float64. Wide: how exact the kernels are is tested with
each operation, here it is that no shape or layout makes them read or write the wrong place."""


def arranged(values: Sequence[Tensor], layout: str) -> list[Tensor]:
    return [arrange(v, layout).requires_grad_() if v.dim() == 4 else v for v in values]


def results(operation: Operation, values: Sequence[Tensor], backend: str = "cpu") -> list[Tensor]:
    """Outputs, and the gradients of all inputs for a random upstream gradient."""
    outputs = outputs_of(operation.run(values, backend))
    outputs = [value for value in outputs if value.requires_grad]
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(value.shape, generator=generator).to(value.dtype) for value in outputs]
    return [*(value.detach() for value in outputs), *torch.autograd.grad(outputs, list(values), upstream)]


def assert_same_bits(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        assert torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """PyTorch fills every tensor that is made without values with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@every_operation
# The same examples every time: within rounding of a ReLU's kink the gradient is another one in double.
@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 19), st.integers(1, 37), st.sampled_from(LAYOUTS), st.sampled_from(DTYPES), st.integers(0, 9))
def test_any_shape_and_layout(
    operation: Operation, height: int, width: int, layout: str, dtype: torch.dtype, seed: int
) -> None:
    if dtype not in operation.dtypes:
        dtype = torch.float32
    torch.manual_seed(seed)
    values = arranged(operation.inputs(height, width, dtype), layout)
    exact = results(operation, [v.detach().double().requires_grad_() for v in values], "reference")
    for actual, expected in zip(results(operation, values), exact, strict=True):
        assert actual.shape == expected.shape
        error = float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-20))
        assert error < ERROR[actual.dtype] or float((actual.double() - expected).abs().max()) < 1e-6


@every_operation
@layouts
@pytest.mark.usefixtures("poisoned")
def test_every_element_is_written(operation: Operation, layout: str) -> None:
    for dtype in operation.dtypes:
        for height, width in ((1, 1), (2, 2), (9, 13), (16, 33)):
            values = arranged(operation.inputs(height, width, dtype), layout)
            assert all(value.isfinite().all() for value in results(operation, values))


@every_operation
@layouts
def test_same_bits_for_any_number_of_threads_and_run(
    operation: Operation, layout: str, threads: Callable[[int], None]
) -> None:
    for dtype in operation.dtypes:
        values, found = arranged(operation.inputs(33, 66, dtype), layout), []
        for count in (1, 2, 3, 1):
            threads(count)
            found.append(results(operation, values))
        for later in found[1:]:
            assert_same_bits(later, found[0])


@every_operation
@layouts
def test_inputs_are_left_as_they_were(operation: Operation, layout: str) -> None:
    """And so is the memory around them that is not theirs."""
    values = arranged(operation.inputs(6, 10, torch.float32), layout)
    memory = [torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()) for value in values]
    before = [value.clone() for value in memory]
    results(operation, values)
    assert_same_bits(memory, before)


@every_operation
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_dtypes_are_refused_by_name_and_run_on_the_reference(operation: Operation, dtype: torch.dtype) -> None:
    if dtype in operation.dtypes:
        return
    values = operation.inputs(4, 6, dtype)
    with pytest.raises(BackendError, match=f"cannot take this input: .*{str(dtype)[6:]}, not float32"):
        operation.run(values, "cpu")
    assert_same_bits(results(operation, values, "auto"), results(operation, values, "reference"))


@every_operation
def test_callers_at_once(operation: Operation, threads: Callable[[int], None]) -> None:
    threads(3)
    values = operation.inputs(33, 40, torch.float32)
    expected = results(operation, values)
    with ThreadPoolExecutor(4) as executor:
        for found in executor.map(lambda _: results(operation, values), range(8)):
            assert_same_bits(found, expected)


@every_operation
def test_subnormal_numbers_stay_pytorchs_own_affair(operation: Operation, threads: Callable[[int], None]) -> None:
    """Kernels count them as zeros, on whose threads ever they run; PyTorch then does with them what it did before."""
    tiny = torch.full((1 << 20,), 1e-40)
    bits = tiny.view(torch.int32).clone()  # a thread that flushes calls 1e-40 and 0 equal
    for count in (1, 3):
        threads(count)
        results(operation, operation.inputs(19, 37, torch.float32))
        assert torch.equal((tiny * 1).view(torch.int32), bits)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("value", "scale"), [(1e-40, 1e10), (1e-30, 1e-10)], ids=["operands", "results"])
def test_subnormal_numbers_count_as_zeros(
    value: float, scale: float, count: int, threads: Callable[[int], None]
) -> None:
    """Where they come in, though what is made of them would be none, and where they would come out."""
    threads(count)
    sources, one, zero = [torch.full((2, 3, 64, 40), value)], torch.ones(1, 3), torch.zeros(1, 3)
    found = {
        backend: flat.integrate(sources, one * scale, zero, zero, one, [2], backend=backend).view(torch.int32)
        for backend in ("reference", "cpu")
    }
    assert found["reference"].all()
    assert not found["cpu"].any()


@every_operation
def test_a_forked_child_gets_the_same(
    operation: Operation, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent has threads of the pool, the child starts its own. PyTorch's own threads do not survive a fork, so
    only the kernels are told of three."""
    threads(3)
    values = operation.inputs(33, 40, torch.float32)
    with torch.no_grad():
        expected = outputs_of(operation.run(values, "cpu"))
        child = os.fork()
        if child == 0:  # never returns into pytest
            same = False
            try:
                torch.set_num_threads(1)
                monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
                found = outputs_of(operation.run(values, "cpu"))
                same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            finally:
                os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


class Forward(Dataset[list[Tensor]]):
    """Item i: the outputs of the operation on inputs drawn from seed i."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[Tensor]:
        torch.manual_seed(index)
        values = self.operation.inputs(9, 12, torch.float32)
        return [value.detach() for value in outputs_of(self.operation.run(values, "cpu"))]


@every_operation
def test_loader_workers_get_the_same(operation: Operation) -> None:
    items = Forward(operation)
    loader = DataLoader(items, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for found, expected in zip(loader, (items[i] for i in range(len(items))), strict=True):
        assert_same_bits(found, expected)


@every_operation
def test_one_graph(operation: Operation) -> None:
    assert_compiles(lambda *v: operation.run(v, "cpu"), operation.inputs(4, 6, torch.float32))


@pytest.mark.full
@every_operation
def test_inductor(operation: Operation) -> None:
    values = operation.inputs(4, 6, torch.float32)
    assert_compiles(lambda *v: operation.run([x * 1.5 for x in v], "cpu"), values, "inductor")


def test_every_native_kernel_has_its_entry() -> None:
    """Operations with tests of these promises of their own are named here."""
    elsewhere = {"hybrid_loss", "encode_predictions"}
    here = {name.split()[0] for name in OPERATIONS}
    assert {op for op, backend in ops.dispatch._KERNELS if backend == "cpu"} - elsewhere == here
    assert native.cpu_module() is not None
