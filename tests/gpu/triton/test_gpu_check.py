"""The steps of the GPU check, run by the interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ifan.kernels import channel_moments

from tests.gpu.tools import gpu_check


@pytest.fixture(autouse=True)
def _default_device() -> Iterator[None]:
    yield
    torch.set_default_device(None)


def test_right_kernels_have_no_faults() -> None:
    assert gpu_check.values("cpu", ["channel_moments"]) == []
    assert gpu_check.repetition("cpu", ["channel_moments"], runs=3) == []


def test_wrong_and_unsteady_kernels_have_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = channel_moments.forward, []

    def drifting(*arguments):
        calls.append(1)
        mean, var = original(*arguments)
        return mean + 0.1 * len(calls), var

    monkeypatch.setattr(channel_moments, "forward", drifting)
    assert [fault.split(":")[0] for fault in gpu_check.values("cpu", ["channel_moments"])][:1] == [
        "channel_moments, triton, torch.float32, result 0"
    ]
    assert gpu_check.repetition("cpu", ["channel_moments"], runs=3) == ["channel_moments: two runs differ"]


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_network_is_the_references() -> None:
    assert gpu_check.network("cpu") == []
