"""Log of a run: progress on the terminal, ``log.jsonl``, TensorBoard where it is installed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from ifan.files import write_files
from ifan.progress import close_bars, open_bars

Figures = Mapping[str, Mapping[str, float | None]]
"""Figures of a validation: entry (dataset and task) -> metric -> value, leading metric first, ``None`` = unmeasured."""


@dataclass(frozen=True)
class StepResult:
    """One update: ``losses`` (T,) over the global batch and ``present`` (T,) bool, its size, rate, gradient norm."""

    losses: Tensor
    present: Tensor
    samples: int
    learning_rate: float
    grad_norm: float


class RunLog:
    """Collects steps and writes the mean of every ``every`` of them; ``out=None`` (other processes) says nothing.

    Use as a context manager around the steps from ``start`` to ``steps``. A terminal gets a progress bar, anything else
    a line each time.
    """

    def __init__(
        self, out: Path | None, tasks: Sequence[str], steps: int, every: int, console: Console | None = None
    ) -> None:
        self.out, self.tasks, self.steps, self.every = out, list(tasks), steps, every
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.board: Any = None
        self.start, self.began = 0, time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self.losses: Tensor = torch.zeros(len(self.tasks), dtype=torch.float64)
        self.seen: Tensor = torch.zeros_like(self.losses)
        self.samples, self.since = 0, time.monotonic()

    def say(self, text: str) -> None:
        """One line for the reader."""
        if self.out is not None:
            (self.bar.console if self.bar else self.console).print(text, markup=False, highlight=False, soft_wrap=True)

    def open(self, start: int) -> RunLog:
        """Begin at ``start``: lines of later steps, left by a run that went further, are dropped from ``log.jsonl``."""
        self.start, self.began = start, time.monotonic()
        if self.out is None:
            return self
        _drop_after(self.out / "log.jsonl", start)
        self.board = _tensorboard(self.out / "tensorboard", start)
        if self.console.is_terminal:
            self.bar = open_bars(self.console)
            self.bar.add_task("train", total=self.steps, completed=start, note="", counts=f"{start}/{self.steps}")
        return self

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.bar:
            close_bars(self.bar)
            self.bar = None
        if self.board:
            self.board.close()
            self.board = None

    def step(self, step: int, result: StepResult) -> None:
        """Count update number ``step`` (from 1)."""
        if self.out is None:
            return
        self.losses = self.losses + result.losses.double().cpu() * result.present.cpu()
        self.seen = self.seen + result.present.double().cpu()
        self.samples += result.samples
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=step, counts=f"{step}/{self.steps}")
        if step % self.every == 0 or step == self.steps:
            self._write(step, result)
            self._reset()

    def validation(self, step: int, figures: Figures) -> None:
        """Note the figures of a validation after ``step`` updates."""
        if self.out is None:
            return
        self._append({"step": step, "validation": figures})
        for name, values in figures.items():
            self._draw(step, {f"{name}/{metric}": value for metric, value in values.items() if value is not None})
        shown = [f"{name} {metric} {value:.4g}" for name, (metric, value) in first_figures(figures).items()]
        self.say(f"validation after step {step}: " + ", ".join(shown))
        self._reset()  # its time is not training time

    def _write(self, step: int, result: StepResult) -> None:
        rate = self.samples / max(time.monotonic() - self.since, 1e-9)
        means = (self.losses / self.seen).tolist()
        losses = {t: m for t, m, n in zip(self.tasks, means, self.seen.tolist(), strict=True) if n}
        row = {"learning_rate": result.learning_rate, "grad_norm": result.grad_norm, "samples_per_s": rate}
        self._append({"step": step, "losses": losses, **row})
        self._draw(step, {**{f"loss/{t}": m for t, m in losses.items()}, **row})
        text = "  ".join([*(f"{t} {m:.4f}" for t, m in losses.items()), f"{rate:.1f} samples/s"])
        if self.bar:
            self.bar.update(self.bar.task_ids[0], note=text)
            return
        left = (time.monotonic() - self.began) / (step - self.start) * (self.steps - step)
        self.say(f"step {step}/{self.steps}  {text}  rate {result.learning_rate:.2e}  {_clock(left)} left")

    def _draw(self, step: int, values: Mapping[str, float]) -> None:
        try:
            for name, value in values.items() if self.board else ():
                self.board.add_scalar(name, value, step)
        except OSError as error:  # pictures for the reader are not worth the run
            self.board = None
            self.say(f"TensorBoard: cannot write ({error.strerror}); going on without it")

    def _append(self, row: Mapping[str, Any]) -> None:
        if self.out is not None:
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``log.jsonl``; a last line that was cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def first_figures(figures: Figures) -> dict[str, tuple[str, float]]:
    """The leading metric of each entry that has a value: name -> (metric, value)."""
    known = {name: [(m, v) for m, v in values.items() if v is not None] for name, values in figures.items()}
    return {name: values[0] for name, values in known.items() if values}


def _drop_after(path: Path, step: int) -> None:
    rows = read_log(path)
    if rows:
        kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step)
        write_files({path: kept.encode()})


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start)


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
