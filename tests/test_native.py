"""Loading of the native modules, and threads for their kernels, without PyTorch."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from ifan import native


@pytest.mark.parametrize(
    ("variable", "expected"), [("3", 3), ("2,4", 2), (" 5 ", 5), ("", 7), ("0", 7), ("many", 7), (None, 7)]
)
def test_threads_without_pytorch(monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: int) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)), raising=False)
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert native.thread_count() == expected


def test_threads_are_those_of_pytorch_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 11))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert native.thread_count() == 11
