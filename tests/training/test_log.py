import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ifan.training.log import RunLog, StepResult, first_figures, read_log
from ifan.training.plot import plot_losses


def result(step: int, present: bool = True) -> StepResult:
    return StepResult(torch.tensor([float(step), 1.0]), torch.tensor([present, True]), 8, 1e-3, 0.5)


def train(out: Path, start: int, stop: int, console: Console) -> None:
    log = RunLog(out, ["parsing", "emotion"], 20, 5, console)
    with log.open(start):
        for step in range(start + 1, stop + 1):
            log.step(step, result(step))
        log.validation(stop, {"val": {"accuracy": 0.5, "nothing": None}})


def test_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    text = io.StringIO()
    train(tmp_path, 0, 20, Console(file=text, force_terminal=False, width=40))
    lines = text.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[4] == "validation after step 20: val accuracy 0.5"
    assert lines[0].startswith("step 5/20  parsing 3.0000  emotion 1.0000  ")
    assert "samples/s" in lines[0]
    assert lines[0].endswith(" left")


def test_bar_on_a_terminal(tmp_path: Path) -> None:
    text = io.StringIO()
    train(tmp_path, 0, 20, Console(file=text, force_terminal=True, width=120))
    assert "20/20" in text.getvalue()
    assert "parsing 18.0000" in text.getvalue()


def test_means_over_the_steps_that_had_the_task(tmp_path: Path) -> None:
    log = RunLog(tmp_path, ["parsing", "emotion"], 8, 4, Console(file=io.StringIO()))
    with log.open(0):
        for step in range(1, 9):
            log.step(step, result(step, present=step == 2))
    rows = read_log(tmp_path / "log.jsonl")
    assert rows[0]["losses"] == {"parsing": 2.0, "emotion": 1.0}
    assert rows[1]["losses"] == {"emotion": 1.0}
    assert rows[0]["samples_per_s"] > 0


def test_resuming_drops_later_lines_and_a_cut_one(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    train(tmp_path, 0, 15, console)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 20, "los')
    train(tmp_path, 10, 20, console)
    steps = [r["step"] for r in read_log(tmp_path / "log.jsonl") if "losses" in r]
    assert steps == [5, 10, 15, 20]
    assert all(json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(None, ["parsing", "emotion"], 8, 1)
    with log.open(0):
        log.step(1, result(1))
        log.say("hello")
        log.validation(1, {})
    assert capsys.readouterr().out == ""


def test_first_figures() -> None:
    figures = {"a/points": {"nme": None, "auc": 0.5}, "b/mood": {"accuracy": 0.25, "loss": 1.0}, "c": {"f": None}}
    assert first_figures(figures) == {"a/points": ("auc", 0.5), "b/mood": ("accuracy", 0.25)}


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="install the plot extra")
    assert plot_losses(tmp_path) is None
    train(tmp_path, 0, 20, Console(file=io.StringIO()))
    assert plot_losses(tmp_path) == tmp_path / "losses.png"
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
