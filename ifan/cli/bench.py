"""``ifan bench``: this machine's times of ifan beside eager PyTorch, torch.compile, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ifan.bench.goals import Goal
    from ifan.bench.measure import Row
    from ifan.bench.problem import Case

RIVALS = "eager,compile,onnxruntime,openvino"


def bench(
    only: Annotated[str | None, typer.Option(help="Rows whose name holds this, or matches it as a glob.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few rounds: does everything work?")] = False,
    goals: Annotated[bool, typer.Option("--goals", help="Only rows that have a floor; 1 if one falls short.")] = False,
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
    subprocess: Annotated[bool, typer.Option(help="A process of its own for every row.")] = True,
    list_: Annotated[bool, typer.Option("--list", help="Print the rows' names and stop.")] = False,
) -> None:
    """Measure ops, inference and training against other ways to run the same network."""
    from ifan.allocator import keep_freed_memory
    from ifan.bench import report
    from ifan.bench.goals import judge
    from ifan.bench.measure import threads as on_threads
    from ifan.bench.plots import draw
    from ifan.bench.problem import Setting
    from ifan.bench.run import fill_caches, run_suite
    from ifan.bench.schedule import Schedule
    from ifan.bench.suite import choose, named, suite
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
        schedule = Schedule(len(cases), rivals, wanted, quick, seconds, memory, trace)
        if subprocess:
            fill_caches(schedule.ahead(cases), setting, _say)
        rows = _written(run_suite(cases, setting, schedule, _say, named if subprocess else None), wanted, json, quick)
    typer.echo(report.heading(rows[0]) + "\n")
    typer.echo(report.markdown(rows))
    verdicts = judge(wanted, rows)
    if verdicts:
        typer.echo("\n" + report.verdict_table(verdicts))
    if target := _target(rows[0], json, quick):
        typer.echo(f"\nrows: {target}")
    if plots:
        typer.echo("\nplots: " + ", ".join(str(path) for path in draw(rows, plots)))
    if any(verdict.failed for verdict in verdicts):
        raise typer.Exit(1)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _written(measured: Iterator[Row], goals: Sequence[Goal], json: Path | None, quick: bool) -> list[Row]:
    """All rows; the file is written anew after each."""
    from ifan.bench.goals import judge
    from ifan.bench.report import as_json
    from ifan.evaluation.report import write_json

    rows: list[Row] = []
    for row in measured:
        rows.append(row)
        if target := _target(row, json, quick):
            write_json(as_json(rows, judge(goals, rows)), target)
    return rows


def _target(row: Row, json: Path | None, quick: bool) -> Path | None:
    return json or (None if quick else _results(row))


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
    from ifan.bench.goals import GOALS, load_goals
    from ifan.bench.suite import suite

    if not flag and file is None:
        return []
    if quick:
        raise ValueError("--goals: floors are for full sizes; leave --quick out")
    chosen = {case.name for case in cases}
    found = [goal for goal in load_goals(file or GOALS, suite()) if goal.row in chosen]
    if not found:
        raise ValueError("--goals: no goal is among the rows that --only leaves; widen it")
    return found
