"""``ifan bench``: this machine's times of ifan beside eager PyTorch, torch.compile, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ifan.bench.goals import Goal
    from ifan.bench.measure import Effort, Row
    from ifan.bench.problem import Case, Setting

RIVALS = "eager,compile,onnxruntime,openvino"
GOALS_SECONDS = 570.0
"""All that a run of the goals may take."""
AHEAD_SECONDS = 240.0
"""And what of it may go into torch.compile before the first row."""


def bench(
    only: Annotated[str | None, typer.Option(help="Rows whose name holds this, or matches it as a glob.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few rounds: does everything work?")] = False,
    goals: Annotated[bool, typer.Option("--goals", help="Only the rows of benchmarks/goals.yaml; 1 if short.")] = False,
    goals_file: Annotated[Path | None, typer.Option(help="The same with this file.", metavar="FILE")] = None,
    against: Annotated[str, typer.Option(help="Rivals, with commas between.", metavar="NAMES")] = RIVALS,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.", metavar="FILE")] = None,
    plots: Annotated[Path | None, typer.Option(help="Draw PNGs into this folder.", metavar="DIR")] = None,
    trace: Annotated[Path | None, typer.Option(help="Chrome trace of a run of each.", metavar="FILE")] = None,
    ranges: Annotated[bool, typer.Option("--ranges", help="Name ifan's parts for Nsight; no CUDA graphs.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Processor threads of every contender.", min=1)] = 2,
    seconds: Annotated[float, typer.Option(help="Time for the turns of a row.", min=0)] = 10.0,
    compile_seconds: Annotated[float, typer.Option(help="Longest wait for torch.compile, a row.", min=0)] = 300.0,
    memory: Annotated[bool, typer.Option(help="Measure extra memory, in processes of their own.")] = True,
    mallopt: Annotated[bool, typer.Option(help="Let glibc keep freed memory, for every contender.")] = True,
    apart: Annotated[bool, typer.Option(help="A process of its own for every row.")] = True,
    list_: Annotated[bool, typer.Option("--list", help="Print the rows' names and stop.")] = False,
) -> None:
    """Measure ops, inference and training against other ways to run the same network."""
    from ifan.allocator import keep_freed_memory
    from ifan.bench.measure import threads as on_threads
    from ifan.bench.problem import Setting
    from ifan.bench.suite import choose, suite
    from ifan.profiling import named_ranges

    rivals = _rivals(against)
    _check_device(device)
    cases = choose(suite(quick), only)
    if list_:
        typer.echo("\n".join(case.name for case in cases))
        return
    wanted = _goals(goals, goals_file, cases, quick)
    if wanted:
        names = {goal.row for goal in wanted}
        cases = [case for case in cases if case.name in names]
    if plots:
        from ifan.optional import require_matplotlib

        require_matplotlib()
    if mallopt:
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, on_threads(threads), named_ranges(ranges):
        modes = ("default",) if quick else ("default", "max-autotune")
        setting = Setting(Path(folder), device, threads, compile_seconds, quick, modes, ranges, mallopt)
        effort = _Efforts(quick, seconds, memory, trace, wanted, rivals, len(cases))
        failed = _run(cases, setting, effort, wanted, json, plots, apart)
    if failed:
        raise typer.Exit(1)


class _Efforts:
    """How much each row gets, out of what is left of the time."""

    def __init__(
        self,
        quick: bool,
        seconds: float,
        memory: bool,
        trace: Path | None,
        goals: Sequence[Goal],
        rivals: Sequence[str],
        rows: int,
    ) -> None:
        self.quick, self.seconds, self.memory, self.trace = quick, seconds, memory, trace
        self.goals, self.rivals, self.rows, self.left = goals, rivals, rows, rows
        self.end = time.monotonic() + GOALS_SECONDS if goals else None

    def __call__(self, case: Case) -> tuple[Effort, Sequence[str]]:
        from ifan.bench.measure import Effort
        from ifan.bench.problem import OURS

        trace = self.trace
        if trace and self.rows > 1:
            slug = re.sub(r"[^\w.+-]+", "_", case.name)
            trace = trace.with_name(f"{trace.stem}-{slug}{trace.suffix}")
        mine = [goal for goal in self.goals if goal.row == case.name]
        if mine:
            rivals = [name for name in self.rivals if any(name in goal.rivals for goal in mine)]
            memories = {goal.memory.rival for goal in mine if goal.memory} if self.memory else set[str]()
            watched = (OURS, *sorted(memories)) if memories else ()
            return Effort(min(self.seconds, 4.0), 4, 60, watched, trace), rivals
        watched = (OURS, "eager") if self.memory and not self.quick else ()
        if self.quick:
            return Effort(min(self.seconds, 0.5), 3, 20, watched, trace), self.rivals
        return Effort(self.seconds, 5, 100, watched, trace), self.rivals

    def adapt(self, setting: Setting, case: Case) -> Setting:
        """A goals run gives torch.compile no more than twice a fair share of the time that is left, and compiles the
        network only once: max-autotune times matrix products, and it has few."""
        share, self.left = 2 / (self.left + 1), self.left - 1
        if self.end is None:
            return setting
        spare = max(self.end - time.monotonic(), 0.0)
        modes = setting.compile_modes[:1] if case.op == "network" else setting.compile_modes
        seconds = min(setting.compile_seconds, share * spare)
        return replace(setting, compile_seconds=seconds, compile_modes=modes, row_seconds=spare + 60)

    def ahead(self, cases: Sequence[Case]) -> list[tuple[Case, str]]:
        """Of a goals run the rivals whose preparation takes longest, minutes of it on one core: compiled training
        steps, and one that has the network exported for all its rows, in bfloat16 with one graph more."""
        from ifan.bench.machine import has_bf16

        if not self.goals:
            return []
        here = [case for case in cases if case.op == "network" and (not case.needs_bf16 or has_bf16("cpu"))]
        steps = [(case, "compile") for case in here if case.work == "training step" and "compile" in self(case)[1]]
        graphs = [(case, "openvino") for case in here if "openvino" in self(case)[1]]
        return steps + sorted(graphs, key=lambda one: not one[0].needs_bf16)[:1]


def _run(
    cases: Sequence[Case],
    setting: Setting,
    effort: _Efforts,
    wanted: Sequence[Goal],
    json: Path | None,
    plots: Path | None,
    apart: bool,
) -> bool:
    """Measure, print, write after every row; true if a goal is not reached."""
    from ifan.bench import report
    from ifan.bench.goals import judge
    from ifan.bench.plots import draw
    from ifan.bench.suite import named, prepare_ahead, run_suite
    from ifan.evaluation.report import write_json

    def say(text: str) -> None:
        typer.echo(text, err=True)

    ahead = effort.ahead(cases) if apart else []
    kept = _kept_graphs() if len(ahead) > 1 else None
    if len(ahead) > 1 and not (kept and kept.exists()):
        say("compiling the training steps, exporting the network")
        early = replace(setting, compile_modes=setting.compile_modes[:1], compile_seconds=AHEAD_SECONDS)
        if prepare_ahead(ahead, early) and kept:
            kept.touch()
    rows: list[Row] = []
    for row in run_suite(cases, setting, effort, say, effort.adapt, named if apart else None):
        rows.append(row)
        target = json or (_results(row) if not setting.quick else None)
        if target:
            write_json(report.as_json(rows, judge(wanted, rows)), target)
    verdicts = judge(wanted, rows)
    typer.echo(report.heading(rows[0]) + "\n")
    typer.echo(report.markdown(rows))
    if verdicts:
        typer.echo("\n" + report.verdict_table(verdicts))
    if target:
        typer.echo(f"\nrows: {target}")
    if plots:
        typer.echo("\nplots: " + ", ".join(str(path) for path in draw(rows, plots)))
    return any(verdict.failed for verdict in verdicts)


def _kept_graphs() -> Path | None:
    """A file in the folder where torch.compile keeps its graphs, there once those of this commit's goals are; none for
    a changed checkout, whose next change would not be told from this one."""
    import torch
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    from ifan import __version__
    from ifan.bench.machine import commit

    found = commit() or "installed"
    return None if found.endswith("+") else Path(cache_dir()) / f"ifan-{__version__}-{found}-torch-{torch.__version__}"


def _results(machine: dict[str, Any]) -> Path | None:
    """In a checkout, a file under ``benchmarks/results`` named after the processor and the commit."""
    from ifan.bench.machine import checkout

    root, name = checkout(), f"{machine['processor']}-{machine['isa']}-{machine['commit'] or 'unknown'}"
    return root and root / "benchmarks" / "results" / (re.sub(r"[^\w.-]+", "_", name).lower() + ".json")


def _rivals(against: str) -> list[str]:
    from ifan.bench.problem import RIVALS as KNOWN

    names = [name.strip() for name in against.split(",") if name.strip()]
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise ValueError(f"--against: expected some of {', '.join(KNOWN)}; got {unknown[0]!r}")
    return names


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device {device!r}: expected cpu or cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: PyTorch sees no GPU here; use --device cpu, or install PyTorch with CUDA")


def _goals(flag: bool, file: Path | None, cases: Sequence[Case], quick: bool) -> Sequence[Goal]:
    from ifan.bench.goals import default_file, load_goals
    from ifan.bench.suite import suite

    if not flag and file is None:
        return []
    if quick:
        raise ValueError("--goals: floors are for full sizes; leave --quick out")
    chosen = {case.name for case in cases}
    found = [goal for goal in load_goals(file or default_file(), suite()) if goal.row in chosen]
    if not found:
        raise ValueError("--goals: no goal is among the rows that --only leaves; widen it")
    return found
