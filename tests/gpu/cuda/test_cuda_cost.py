"""The cost model of the CUDA kernels against what the emulated kernels load and store: equal to the byte."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu import problems
from tests.gpu.emulation.build import KERNELS, SOURCES, compile_kernel, emulated, link, mutated_sources, needs_compiler
from tests.gpu.problems import PROBLEMS, Problem, results
from tests.gpu.tools import cuda_cost
from tests.support import flat

pytestmark = needs_compiler
WATCHED = ("-O1", "-fsanitize=thread", "-U__SANITIZE_THREAD__", "-fno-threadsafe-statics")


LABELLED = {f"hybrid_loss-{finer}": partial(problems.hybrid_loss, finer, ignored=0) for finer in (0.5, 1, 2, 2.5)}
CASES = {
    "integrate": PROBLEMS["integrate"],
    "integrate-pooled": PROBLEMS["integrate-pooled"],
    "integrate-16": partial(problems.integrate, 1, 16),
    "integrate-pooled-16": partial(problems.integrate, 2, 16),
    "integrate-80": partial(problems.integrate, 1, 80),
    "integrate-pooled-80": partial(problems.integrate, 2, 80),
    **LABELLED,
}


@dataclass(frozen=True)
class Counted:
    """One call: bytes loaded and stored, then distinct ones, as they were counted and by the formula."""

    name: str
    moved: tuple[int, ...]
    predicted: tuple[int, ...]


class Counting:
    """The emulated module, whose every call is counted; ``memory`` holds the size of what its addresses point to."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.found, self.memory = module, list[Counted](), dict[int, int]()
        self.library = ctypes.CDLL(str(module.__file__))

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.module, name)
        return partial(self._count, name, function) if name in cuda_cost.FORMULAS else function

    def _count(self, name: str, function: Any, *arguments: Any) -> None:
        self.library.count_clear()
        for address, size in self.memory.items():
            self.library.count_memory(ctypes.c_size_t(address), ctypes.c_size_t(size))
        function(*arguments)
        moved, cost = (ctypes.c_int64 * 4)(), cuda_cost.cost(name, arguments)
        self.library.count_read(moved)
        self.found.append(Counted(name, tuple(moved), (cost.loaded, cost.stored, cost.read, cost.written)))


@contextmanager
def counted(module: ModuleType) -> Iterator[list[Counted]]:
    """Backend ``cuda`` by the emulation, its calls counted; a tensor makes itself known by giving its address."""
    counting, address = Counting(module), Tensor.data_ptr

    def known(x: Tensor) -> int:
        storage = x.untyped_storage()
        counting.memory[storage.data_ptr()] = storage.nbytes()
        return address(x)

    with pytest.MonkeyPatch.context() as patch, emulated(counting):  # type: ignore[arg-type]
        patch.setattr(Tensor, "data_ptr", known)
        yield counting.found


def differences(found: list[Counted]) -> list[str]:
    return [f"{one.name}: {one.moved}, not {one.predicted}" for one in found if one.moved != one.predicted]


def moved(module: ModuleType, problem: Problem, dtype: torch.dtype) -> list[Counted]:
    """Forward and backward, counted."""
    with counted(module) as found:
        results(problem, "cuda", problem.arranged(dtype))
    return found


@pytest.fixture(scope="module")
def objects(emulation_objects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The kernels compiled so that every access is counted, the counter, and the binding."""
    folder = tmp_path_factory.mktemp("counting")
    found = {name: compile_kernel(SOURCES / f"{name}.cu", folder / f"{name}.o", *WATCHED) for name in KERNELS}
    counter = compile_kernel(Path(__file__).parent / "count_accesses.cpp", folder / "counter.o", "-O2")
    return {**found, "counter": counter, "bindings": emulation_objects["bindings"]}


@pytest.fixture(scope="module")
def counting(objects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return link(list(objects.values()), tmp_path_factory.mktemp("counting_module"))


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.full), torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.full) if "80" in n else n for n in CASES])
def test_bytes_of_every_call(name: str, dtype: torch.dtype, counting: ModuleType) -> None:
    found = moved(counting, CASES[name](), dtype)
    assert differences(found) == []
    assert len(found) == (7 if name.startswith("integrate") else 8)


@pytest.mark.parametrize("shape", [(9, 18), (8, 16), (3, 33)], ids=str)
def test_bytes_of_a_dense_layer(shape: tuple[int, int], counting: ModuleType) -> None:
    """Two sources, one of them with a row a sample; more outputs than a block makes; whole and broken tiles."""
    sources, channels = [torch.randn(3, 17, *shape).half(), torch.randn(2, 4, *shape).half()], 21
    norm = [[torch.rand(2, channels) + 0.5] for _ in range(4)]
    with counted(counting) as found, torch.no_grad():
        flat.dense_block(
            sources,
            [torch.randn(17, channels, 3, 3).half()],
            *norm,
            [1, 2],
            torch.tensor([1, 0, 0]),
            [False, True],
            backend="cuda",
        )
    assert [one.name for one in found] == ["dense_layer"]
    assert differences(found) == []


def test_unlabelled_elements_move_no_more(counting: ModuleType) -> None:
    for name in ("hybrid_loss-weighted", "hybrid_loss-finer"):
        for one in moved(counting, PROBLEMS[name](), torch.float32):
            assert all(a <= b for a, b in zip(one.moved, one.predicted, strict=True)), one


def test_every_function_of_the_module_has_a_formula(counting: ModuleType) -> None:
    others = {"versions", "integrate_tiles", "loss_blocks"}
    functions = {name for name in dir(counting) if callable(getattr(counting, name)) and not name.startswith("_")}
    assert functions - others == set(cuda_cost.FORMULAS)


def test_a_kernel_that_reads_more_with_the_same_result_is_caught(objects: dict[str, Path], tmp_path: Path) -> None:
    """Pixels beyond the last reader of a logit have a share of 0 in it: no value shows that they are read."""
    sources = mutated_sources(tmp_path / "cuda", "hybrid_loss.cu", "if (row.low > i) break;", "")
    broken = compile_kernel(sources / "hybrid_loss.cu", tmp_path / "broken.o", *WATCHED)
    module = link([broken, *(made for name, made in objects.items() if name != "hybrid_loss")], tmp_path / "module")
    (fault,) = differences(moved(module, CASES["hybrid_loss-2"](), torch.bfloat16))
    assert fault.startswith("cross_entropy")
