"""Conditions of every figure: the same allocator settings for all, and the machine's name beside it."""

from __future__ import annotations

import pytest

from ifan.allocator import keep_freed_memory
from ifan.bench.machine import describe


@pytest.fixture(autouse=True, scope="session")
def _same_allocator_for_all() -> None:
    """Page faults are glibc's, not PyTorch's: they are kept out of every row alike."""
    keep_freed_memory()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """Put processor, instruction set, threads and versions into the file of figures."""
    machine_info["ifan"] = describe("cpu")


def pytest_report_header(config: pytest.Config) -> str:
    """The same above the table in the terminal."""
    machine = describe("cpu")
    return f"{machine['processor']}, {machine['isa']} kernels, {machine['threads']} threads, {machine['versions']}"
