"""The check of the kernels on a GPU, as far as a machine without one can test it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check

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


def test_the_record_is_written_only_when_nothing_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, record = tmp_path / "out" / "report.json", tmp_path / "record.json"
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
