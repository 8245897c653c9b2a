"""The CUDA kernels, run on the CPU by the emulation, against their references."""

from __future__ import annotations

from types import ModuleType

import problems
import pytest
import torch
from cases import LAYOUTS
from comparison import check
from emulation import ORDERS, emulated, needs_compiler
from problems import PROBLEMS, results
from torch import Tensor

from ifan import ops

pytestmark = needs_compiler
HALVES = (torch.float16, torch.bfloat16)
TRAINED = [name for name in PROBLEMS if name.startswith(("integrate", "hybrid_loss"))]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", TRAINED)
def test_values_and_gradients_in_every_order_of_threads(name: str, order: str, emulation: ModuleType) -> None:
    with emulated(emulation, order):
        check(PROBLEMS[name]())


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("name", ["integrate", "integrate-pooled", "hybrid_loss-weighted", "hybrid_loss-finer"])
def test_layouts(name: str, layout: str, emulation: ModuleType) -> None:
    with emulated(emulation):
        check(PROBLEMS[name](), layout=layout)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["integrate", "integrate-pooled", "hybrid_loss-weighted", "hybrid_loss-finer"])
def test_low_precision_is_computed_in_float32(name: str, dtype: torch.dtype, emulation: ModuleType) -> None:
    with emulated(emulation):
        check(PROBLEMS[name](), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("pool", [1, 2])
def test_rows_of_16_bytes(pool: int, dtype: torch.dtype, emulation: ModuleType) -> None:
    with emulated(emulation, "rand"):
        check(problems.integrate(pool, 16), dtype)
