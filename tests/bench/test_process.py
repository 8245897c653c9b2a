"""A crash in a process of its own is a sentence, not the end; what it started ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ifan.bench.machine import Peaks
from ifan.bench.problem import Case, Problem, Ready, Setting
from ifan.bench.process import ProcessDied, in_subprocess, started
from ifan.bench.run import prepare_ahead, run_suite
from ifan.bench.schedule import Schedule
from tests.support.fakes import right
from tests.support.spawned import aborting, behave


def case(name: str, quick: bool) -> Case:
    """A rival that dies while it is prepared, one that dies later, and one that fails; or ifan itself dies."""
    runs = iter(range(100))

    def later(i: int) -> Any:
        return right(i) if next(runs) < 4 else aborting()

    makers = {
        "ifan": lambda: Ready(right),
        "eager": lambda: Ready(right),
        "compile": lambda: aborting() or Ready(right),
        "onnxruntime": lambda: Ready(later),
        "openvino": lambda: Ready(right if quick else print),
    }
    if name.startswith("crash"):
        makers["ifan"] = makers["compile"]
    return Case(name.split()[0], "2x2", "forward", lambda setting: Problem(makers, right, 1e-3))


def test_the_answer_comes_from_another_process(tmp_path: Path) -> None:
    assert in_subprocess(behave, "answer", tmp_path) != os.getpid()


def test_what_is_raised_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^no$"):
        in_subprocess(behave, "raise", tmp_path)


def test_a_dead_process_says_why_and_what_it_was_at(tmp_path: Path) -> None:
    why = r"the process ended by SIGABRT: double free or corruption \(!prev\)"
    with pytest.raises(ProcessDied, match=f"^{why}$") as raised:
        in_subprocess(behave, "abort", tmp_path)
    assert raised.value.mark == "abort"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes under /proc")
def test_a_process_that_waits_is_ended_with_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with started(behave, "wait", tmp_path) as answer:
        until(pid.exists)
        with pytest.raises(ProcessDied, match="not finished in 0 s") as raised:
            answer(0.01)
    assert raised.value.mark == "wait"
    until(lambda: gone(pid))


PROGRAM = """
import sys
from pathlib import Path
from ifan.bench.process import in_subprocess
from tests.support.spawned import behave
in_subprocess(behave, "wait", Path(sys.argv[1]))
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes under /proc")
def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=Path(__file__).parents[2])
    pid = tmp_path / "pid"
    until(pid.exists)
    parent.kill()
    parent.wait()
    until(lambda: gone(pid))


def gone(pid: Path) -> bool:
    try:
        return (Path("/proc") / pid.read_text() / "stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_rival_that_crashes_costs_only_its_own_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifan.bench.run.limits", lambda setting, cases: Peaks(1e10, {"float32": 1e11}))
    cases = [case("crash 2x2 forward float32", False), case("well 2x2 forward float32", False)]
    rivals = ("eager", "compile", "onnxruntime", "openvino")
    setting = Setting(Path(), threads=1)
    crashed, well = run_suite(cases, setting, Schedule(2, rivals, quick=True, seconds=0.0), find=case)
    dead = "the process ended by SIGABRT: double free or corruption (!prev)"
    assert crashed["problem"] == f"failed: ifan: {dead}"
    assert well["problem"] is None
    entries = well["contenders"]
    assert {n: e["status"] for n, e in entries.items()} == {
        "ifan": "ok",
        "eager": "ok",
        "compile": "failed",
        "onnxruntime": "failed",
        "openvino": "failed",
    }
    assert entries["compile"]["note"] == entries["onnxruntime"]["note"] == dead
    assert list(well["ratios"]) == ["eager"]


def noting(name: str, quick: bool) -> Case:
    """Its compiled rival leaves a file with the modes it was asked for; or dies."""

    def build(setting: Setting) -> Problem:
        def compiled() -> Ready:
            if name.startswith("crash"):
                aborting()
            (setting.folder / name.split()[0]).write_text(",".join(setting.compile_modes))
            return Ready(right)

        return Problem({"compile": compiled}, right, 1e-3)

    return Case(name.split()[0], "2x2", "forward", build)


def test_preparing_ahead_goes_through_all(tmp_path: Path) -> None:
    crash, one = ((noting(f"{name} 2x2 forward float32", False), "compile") for name in ("crash", "one"))
    setting = Setting(tmp_path, threads=1, compile_modes=("default",))
    assert not prepare_ahead([crash, one], setting, noting)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "default"}
    assert prepare_ahead([one], setting, noting)
