"""Benchmarks time an op on the reference and on each backend that is here; pytest-benchmark prints the table."""

from __future__ import annotations

import platform

import pytest
import torch

from ifan.allocator import keep_freed_memory
from ifan.ops import backends
from ifan.ops.native import cpu_module

BACKENDS = ["reference", *(row.name for row in backends() if row.available and row.name == "cpu")]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    return str(request.param)


@pytest.fixture(autouse=True, scope="session")
def _same_allocator_for_all() -> None:
    """Page faults are glibc's, not PyTorch's: they are kept out of every row alike."""
    keep_freed_memory()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """The processor and versions belong to every figure."""
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    if "cpu" in BACKENDS:
        machine_info["kernels"] = cpu_module().features()


def pytest_report_header(config: pytest.Config) -> str:
    """Said at the top of the terminal's table as well."""
    features = cpu_module().features() if "cpu" in BACKENDS else {"processor": platform.processor(), "isa": "none"}
    return (
        f"processor {features['processor']}, kernels {features['isa']}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
