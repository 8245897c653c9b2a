"""A row: every contender prepared, checked against the truth, timed in turns with the others, checked again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ifan.bench import memory
from ifan.bench.machine import Peaks, has_bf16, synchronise
from ifan.bench.problem import CONTENDERS, OURS, Case, Missing, Problem, Ready, Run, Setting
from ifan.bench.timing import Rounds, interleave, pair_ratios, percentiles
from ifan.profiling import named_ranges

Row = dict[str, Any]
"""Plain data: see `measure`."""


@dataclass(frozen=True)
class Budget:
    """Time and rounds of the turns, contenders whose memory is measured, and where a trace goes."""

    rounds: Rounds = field(default=Rounds())
    memory: Sequence[str] = ()
    trace: Path | None = None


def measure(
    case: Case,
    setting: Setting,
    budget: Budget,
    limits: Peaks | None,
    machine: dict[str, Any],
    against: Sequence[str],
    turn: Callable[[str], None] = lambda name: None,
) -> Row:
    """Measure ``case`` with ifan and the rivals in ``against``; never raises for what a contender does. ``turn`` is
    called with the name of each before it is prepared or runs.

    The row holds the case (name, op, shape, work, dtype, bytes, flop), ``machine``, ``contenders`` (each ``status`` ok,
    missing, failed or wrong, ``note``, ``error``, ``prepare_s``, ``ms`` with median, p20, p80 and count, ``extra_mb``),
    ``ratios`` of each rival's time to ours, ``best`` (the fastest rival), ours in ``gb_s`` and ``gflop_s`` with their
    shares of the machine's limits, and ``problem``, why there are no times.
    """
    row = unmeasured(case, machine)
    if case.needs_bf16 and not has_bf16(setting.device):
        return row | {"problem": "not applicable: no bfloat16 arithmetic here"}
    try:
        problem = case.build(setting)
        ready = _prepare(problem, row["contenders"], [n for n in CONTENDERS if n == OURS or n in against], turn)
        _time(problem, ready, row, setting, budget, turn)
    except Exception as error:  # one row must not end the others
        row["problem"] = f"failed: {_line(error)}"
    sound = [name for name in budget.memory if row["contenders"].get(name, {}).get("status") == "ok"]
    at_once = len(sound) if sound and setting.device == "cpu" else 1  # in processes of their own; nothing is timed
    with ThreadPoolExecutor(at_once) as pool:
        for name, found in zip(sound, pool.map(lambda name: memory.measured(case, name, setting), sound), strict=True):
            row["contenders"][name] |= found
    _rates(row, limits)
    return row


def unmeasured(case: Case, machine: dict[str, Any], problem: str | None = None) -> Row:
    """A row without figures yet, or with the reason why there will be none."""
    row: Row = {k: getattr(case, k) for k in ("name", "op", "shape", "work", "dtype", "bytes", "flop")}
    row |= {**machine, "contenders": {}, "ratios": {}, "best": None, "problem": problem}
    return row | dict.fromkeys(("gb_s", "gb_s_share", "gflop_s", "gflop_s_share"))


def entry_of(status: str, note: str) -> Row:
    """Entry of a contender that has no time."""
    return {"status": status, "note": note, "error": None, "prepare_s": None, "ms": None}


def _prepare(
    problem: Problem, entries: dict[str, Row], names: Sequence[str], turn: Callable[[str], None]
) -> dict[str, Ready]:
    ready: dict[str, Ready] = {}
    for name in names:
        if name not in problem.makers:
            continue
        entry = entries[name] = entry_of("ok", "")
        turn(name)
        began = time.perf_counter()
        try:
            one = problem.makers[name]()
            found = one.run(0) if one.first is None else one.first
            checked = one.check or one.run
            found = one.check(0) if one.check else found
            entry |= {"note": one.note, "prepare_s": time.perf_counter() - began}
            entry["error"] = problem.error(found, problem.expected(0))
            found = checked(1)
            if problem.repeatable:
                entry["error"] = max(entry["error"], problem.error(found, problem.expected(1)))
            if entry["error"] <= problem.tolerance:
                ready[name] = one
            else:
                entry |= {"status": "wrong", "note": _wrong(entry["error"], problem.tolerance)}
        except Missing as error:
            entry |= {"status": "missing", "note": str(error)}
        except Exception as error:  # a rival that fails is a fact to report
            entry |= {"status": "failed", "note": _line(error)}
    return ready


def _time(
    problem: Problem,
    ready: dict[str, Ready],
    row: Row,
    setting: Setting,
    budget: Budget,
    turn: Callable[[str], None],
) -> None:
    entries = row["contenders"]
    if OURS not in ready:
        row["problem"] = f"ifan: {entries[OURS]['status']}: {entries[OURS]['note']}"
    if not ready:
        return
    runs = {name: _synchronised(name, one.run, setting.device) for name, one in ready.items()}
    taken, last = interleave(runs, budget.rounds, turn)
    if budget.trace:
        steps = {f"{name}, part by part": one.steps for name, one in ready.items() if one.steps}
        _trace({**runs, **steps}, row["name"], budget.trace)
    for name, seconds in taken.items():
        entry = entries[name]
        entry["ms"] = asdict(percentiles([1e3 * s for s in seconds]))
        if problem.repeatable:
            i, check = (len(seconds) - 1) % 2, ready[name].check
            again = problem.error(check(i) if check else last[name], problem.expected(i))
            entry["error"] = max(entry["error"], again)
            if again > problem.tolerance:
                entry |= {"status": "wrong", "ms": None, "note": "later runs: " + _wrong(again, problem.tolerance)}
    sound = [name for name in taken if entries[name]["status"] == "ok"]
    if OURS in sound:
        row["ratios"] = {n: asdict(pair_ratios(taken[n], taken[OURS])) for n in sound if n != OURS}
        row["best"] = min(row["ratios"], key=lambda n: row["ratios"][n]["median"], default=None)
    elif OURS in ready:
        row["problem"] = f"ifan: {entries[OURS]['note']}"


def _synchronised(name: str, run: Run, device: str) -> Run:
    """On a GPU: wait for the result, inside an NVTX range."""
    if device != "cuda":
        return run

    def waiting(i: int) -> Any:
        with torch.cuda.nvtx.range(name):
            found = run(i)
            synchronise(device)
        return found

    return waiting


def _trace(runs: dict[str, Run], title: str, path: Path) -> None:
    """A Chrome trace of one run of each contender, with the names of its parts; one file a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with named_ranges(), torch.profiler.profile(activities=activities) as profiler:
        for name, run in runs.items():
            with torch.profiler.record_function(f"{name}: {title}"):
                run(0)
    profiler.export_chrome_trace(str(path))


def _rates(row: Row, limits: Peaks | None) -> None:
    """Bytes and FLOP a second of ours, and their shares of the measured limits."""
    ours = row["contenders"].get(OURS, {}).get("ms")
    for kind, unit, limit in (
        ("bytes", "gb_s", limits and limits.copy),
        ("flop", "gflop_s", limits and limits.gemm.get(row["dtype"])),
    ):
        rate = row[kind] / ours["median"] * 1e3 if ours and row[kind] else None
        row[unit] = rate and rate / 1e9
        row[f"{unit}_share"] = rate / limit if rate and limit else None


def _wrong(error: float, tolerance: float) -> str:
    return f"differs from the truth by {error:.2g} of its size; {tolerance:.2g} is accepted"


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch (and with it the native kernels) on that many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
