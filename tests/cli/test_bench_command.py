"""``ifan bench``: options, exit codes, and a small run with real kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ifan.bench.problem import Case, Problem, Ready, Setting


@pytest.fixture
def one_case(monkeypatch: pytest.MonkeyPatch) -> str:
    """A suite of one row in which eager takes as long as ifan; its name."""

    def right(i: int) -> list[Tensor]:
        return [torch.ones(1)]

    def build(setting: Setting) -> Problem:
        return Problem({"ifan": lambda: Ready(right), "eager": lambda: Ready(right)}, right, 1e-3)

    case = Case("abacus", "1", "forward", build)
    monkeypatch.setattr("ifan.bench.suite.suite", lambda quick=False: [case])
    monkeypatch.setattr("ifan.bench.run.peaks", lambda device, dtypes: _peaks())
    return case.name


def _peaks() -> Any:
    from ifan.bench.machine import Peaks

    return Peaks(1e10, {"float32": 1e11})


def goals_file(folder: Path, row: str, floor: float) -> Path:
    path = folder / "goals.yaml"
    path.write_text(f"goals:\n  - {{row: {row}, rivals: [eager, openvino], floor: {floor}, aim: 3}}\n")
    return path


@pytest.mark.parametrize(("floor", "code"), [(0.001, 0), (1000000.0, 1)], ids=["reached", "short"])
def test_goals_decide_the_exit_code(run, one_case: str, tmp_path: Path, floor: float, code: int) -> None:
    table = tmp_path / "out.json"
    arguments = ("--goals-file", goals_file(tmp_path, one_case, floor), "--json", table, "--no-mallopt")
    found, text, errors = run("bench", *arguments, "--seconds", 0, "--no-subprocess")
    assert found == code
    assert f"| {one_case} | eager |" in text
    assert ("reached" if code == 0 else "falls short") in text
    assert "without openvino" in text
    assert errors == f"[1/1] {one_case}\n"
    tree = json.loads(table.read_text())
    assert tree["goals"][0]["state"] == ("reached" if code == 0 else "falls short")
    assert tree["rows"][0]["threads"] == 2


def test_rows_are_written_as_they_come(one_case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was measured before Ctrl-C is there, with verdicts, and nothing else beside it."""
    from ifan.bench import suite
    from ifan.cli.main import main

    def interrupted(setting: Setting) -> Problem:
        raise KeyboardInterrupt

    cases = [*suite.suite(), Case("later", "1", "forward", interrupted)]
    monkeypatch.setattr("ifan.bench.suite.suite", lambda quick=False: cases)
    folder = tmp_path / "new"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(
            [
                "bench",
                "--json",
                str(folder / "out.json"),
                "--no-mallopt",
                "--no-memory",
                "--no-subprocess",
                "--seconds=0",
            ]
        )
    assert [row["name"] for row in json.loads((folder / "out.json").read_text())["rows"]] == [one_case]
    assert [path.name for path in folder.iterdir()] == ["out.json"]


def test_threads_are_as_before_afterwards(run, one_case: str, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    code, _, _ = run(
        "bench",
        "--threads",
        before + 3,
        "--json",
        tmp_path / "o.json",
        "--no-mallopt",
        "--no-memory",
        "--no-subprocess",
    )
    assert code == 0
    assert torch.get_num_threads() == before
    assert json.loads((tmp_path / "o.json").read_text())["rows"][0]["threads"] == before + 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "nothing"], "no row is called so"),
        (["--against", "eager,tvm"], "expected some of eager, compile, onnxruntime, openvino; got 'tvm'"),
        (["--device", "tpu"], "expected cpu or cuda"),
        (["--goals", "--quick"], "leave --quick out"),
        (["--goals-file", "no.yaml"], "cannot read the goals"),
        (["--goals", "--only", "encode_predictions"], "no goal is among the rows"),
    ],
    ids=["only", "against", "device", "quick", "file", "none"],
)
def test_wrong_options_are_one_line(run, options: list[str], message: str) -> None:
    code, text, errors = run("bench", *options)
    assert (code, text, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("error: ")
    assert message in errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_one_line(run) -> None:
    code, text, errors = run("bench", "--device", "cuda")
    assert (code, text) == (1, "")
    assert errors == (
        "error: --device cuda: PyTorch sees no GPU here; use --device cpu, or install PyTorch with CUDA\n"
    )


def test_names_are_listed(run) -> None:
    code, text, _ = run("bench", "--list", "--only", "hybrid_loss")
    assert code == 0
    assert text.splitlines()[0] == "hybrid_loss 8x11x64x64->512 forward+backward float32"


def test_a_small_run(run, tmp_path: Path) -> None:
    """Real kernels at 32 px, batch 1, one op forward and backward; traced."""
    table, trace = tmp_path / "out.json", tmp_path / "trace.json"
    options = ("--quick", "--threads", 1, "--against", "eager", "--json", table, "--trace", trace, "--no-mallopt")
    code, text, _ = run("bench", "--only", "network 1x3x32x32 * float32", *options)
    assert code == 0, text
    (row,) = json.loads(table.read_text())["rows"]
    assert row["problem"] is None
    assert {name: entry["status"] for name, entry in row["contenders"].items()} == {"ifan": "ok", "eager": "ok"}
    assert 0 <= row["contenders"]["ifan"]["error"] < 1e-3
    assert row["best"] == "eager"
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert names >= {f"ifan: {row['name']}", f"ifan, part by part: {row['name']}", f"eager: {row['name']}"}
    assert names >= {"iteration", "stem", "block 1", "head parsing", "ifan.dense_block", "ifan.transition_up"}
    code, text, _ = run("bench", "--only", "integrate * forward+backward*", *options)
    assert code == 0, text
    assert json.loads(table.read_text())["rows"][0]["contenders"]["ifan"]["error"] < 1e-4


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured on Linux")
def test_memory_of_a_call_is_what_it_allocates() -> None:
    code = (
        "from pathlib import Path\nimport torch\n"
        "from ifan.bench.memory import extra_megabytes\n"
        "from ifan.bench.problem import Case, Problem, Ready, Setting\n"
        "def build(setting):\n"
        "    held = torch.ones(8 << 20)\n"
        "    run = lambda i: [held + 1]\n"
        "    return Problem({'ifan': lambda: Ready(run)}, run, 1e-3)\n"
        "case = Case('op', '1', 'forward', build)\n"
        "print(extra_megabytes(case, case, 'ifan', Setting(Path())))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 31 < float(done.stdout) < 36  # one tensor of 32 MiB; the one that is held does not count
