"""The check of the kernels on a GPU, as far as a machine without one can test it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ifan import ops
from ifan.network import Predictions
from tests.gpu.tools import gpu_check
from tests.support.pretended_gpu import FakeDevice

BARE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"huggingface_hub", "yaml", "cv2", "safetensors", "typer", "rich", "av", "pyarrow"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import torch
from tests.gpu.tools import gpu_check
from ifan import ops
from ifan.network import IFAN
from tests.support.pretended_gpu import FakeDevice

assert gpu_check.graphs("cpu", ["reference"], FakeDevice()) == []
try:
    IFAN.from_pretrained("some/model")
except ImportError as error:
    assert "pip install huggingface_hub" in str(error)
else:
    raise AssertionError("nothing was missing")
if sys.argv[1:]:
    assert gpu_check.values("cpu", ["channel_moments"]) == []
    assert gpu_check.repetition("cpu", ["channel_moments"], runs=2) == []
print("passed without", [name for name in sys.modules if name.startswith(("ifan.faces", "ifan.bulk", "ifan.cli"))])
"""
"""The check on a machine that has what the GPU machine has; with an argument, the kernels' values as well."""

CLEAN = {
    "memcheck": "========= ERROR SUMMARY: 0 errors",
    "racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == gpu_check.NO_GPU + "\n"


@pytest.mark.parametrize("tool", CLEAN)
def test_summary_of_compute_sanitizer(tool: str) -> None:
    assert gpu_check.summary_faults(tool, CLEAN[tool], 0) == []
    assert "ended with 1" in gpu_check.summary_faults(tool, CLEAN[tool], 1)[0]
    assert "3 faults" in gpu_check.summary_faults(tool, CLEAN[tool].replace(": 0", ": 3"), 0)[0]
    assert "no summary line" in gpu_check.summary_faults(tool, "========= COMPUTE-SANITIZER", 0)[0]


def test_a_missing_sanitizer_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "not on PATH" in gpu_check.sanitizer("memcheck")[0]


def test_it_needs_nothing_but_torch_and_triton() -> None:
    triton = ["triton"] if importlib.util.find_spec("triton") else []
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", BARE, *triton]
    done = subprocess.run(
        command, cwd=gpu_check.ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "passed without []\n"


def test_graphs_that_differ_from_the_network_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_check.graphs("cpu", ["reference"], FakeDevice()) == []

    class Stale(FakeDevice):
        def capture(self, work: Callable[[], Predictions]) -> tuple[Predictions, Callable[[], None]]:
            return super().capture(work)[0], lambda: None

    class Refusing(FakeDevice):
        def capture(self, work: Callable[[], Predictions]) -> tuple[Predictions, Callable[[], None]]:
            raise RuntimeError("not permitted")

    assert "relative error" in gpu_check.graphs("cpu", ["reference"], Stale())[0]
    with pytest.warns(RuntimeWarning, match="not permitted"):
        faults = gpu_check.graphs("cpu", ["reference"], Refusing())
    assert faults == [f"graphs, reference, {dtype}: could not be recorded" for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize(("scale", "faults"), [(1.0, 0), (1.1, 2)], ids=["right", "wrong"])
def test_kernels_without_a_backward_are_checked_forward(
    monkeypatch: pytest.MonkeyPatch, scale: float, faults: int
) -> None:
    """Backend ``cuda`` replaced by the reference times a number."""
    whole = ops.dense_block

    def replaced(*arguments: Any, backend: str) -> tuple[torch.Tensor, ...]:
        grown, mean, var = whole(*arguments, backend="reference")
        assert backend == "reference" or not torch.is_grad_enabled()
        return grown * (scale if backend == "cuda" else 1), mean, var

    monkeypatch.setattr(ops, "dense_block", replaced)
    try:
        found = gpu_check.values("cpu", ["dense_block-running"], "cuda")
    finally:
        torch.set_default_device(None)
    assert len(found) == faults
    assert all(fault.startswith("dense_block-running, cuda, torch.") for fault in found)


@pytest.mark.parametrize("refusal", [None, "nvcc was not found"])
def test_the_kernels_in_cuda_are_checked_where_they_were_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusal: str | None
) -> None:
    asked: list[str] = []

    def values(device: str, names: list[str], backend: str) -> list[str]:
        asked.extend([backend, *names])
        return ["wrong"]

    monkeypatch.setattr("ifan.ops.native.cuda_refusal", lambda: refusal)
    monkeypatch.setattr(gpu_check, "values", values)
    monkeypatch.setattr(gpu_check, "timings", lambda _: [])
    monkeypatch.setattr(gpu_check, "STEPS", {})
    try:
        assert gpu_check.cuda_values("cpu") == ([] if refusal else ["wrong"])
    finally:
        torch.set_default_device(None)
    assert not (refusal and asked)
    assert {name.split("-")[0] for name in asked} <= {"cuda", "integrate", "hybrid_loss", "dense_block"}
    gpu_check.check(tmp_path / "report.json", tmp_path / "record.json", "a GPU")
    assert ("cuda" in json.loads((tmp_path / "record.json").read_text())) == (refusal is None)
    assert json.loads((tmp_path / "report.json").read_text())["without cuda"] == refusal


def test_the_record_is_written_only_when_nothing_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, record = tmp_path / "out" / "report.json", tmp_path / "record.json"
    monkeypatch.setattr("ifan.ops.native.cuda_refusal", lambda: "nvcc was not found")
    monkeypatch.setattr(gpu_check, "timings", lambda _: [])

    def broken() -> list[str]:
        raise RuntimeError("launch failed")

    monkeypatch.setattr(gpu_check, "STEPS", {"good": list})
    assert gpu_check.check(report, record, "a GPU") == []
    assert json.loads(record.read_text()) == {"triton": "a GPU", "graphs": "a GPU"}
    monkeypatch.setattr(gpu_check, "STEPS", {"good": list, "values": lambda: ["wrong"], "broken": broken})
    assert gpu_check.check(report, record, "a GPU") == ["wrong", "broken: RuntimeError: launch failed"]
    assert not record.exists(), "an earlier pass does not outlive a failure"
    assert json.loads(report.read_text())["steps"]["values"]["faults"] == ["wrong"]
