"""All rows, and running a choice of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from ifan.bench.cases import operations
from ifan.bench.machine import Peaks, describe, has_bf16, peaks
from ifan.bench.measure import Effort, Row, measure
from ifan.bench.network import inference, training
from ifan.bench.problem import Case, Setting


def suite(quick: bool = False) -> list[Case]:
    """Every op and size, inference, training; ``quick`` has the same kinds of work at small sizes."""
    return [*operations(quick), *inference(quick), *training(quick)]


def choose(cases: Sequence[Case], pattern: str | None) -> list[Case]:
    """The cases whose name holds ``pattern`` or matches it as a glob; ``ValueError`` lists the names if none does."""
    if pattern is None:
        return list(cases)
    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    found = [case for case in cases if fnmatch.fnmatchcase(case.name, glob)]
    if not found:
        names = "; ".join(case.name for case in cases)
        raise ValueError(f"--only {pattern!r}: no row is called so; expected part of one of: {names}")
    return found


def limits(setting: Setting, cases: Sequence[Case]) -> Peaks:
    """The machine's limits for the dtypes of these cases."""
    wanted = {case.dtype for case in cases if not case.needs_bf16 or has_bf16(setting.device)}
    return peaks(setting.device, tuple(sorted(wanted)))


def run_suite(
    cases: Sequence[Case],
    setting: Setting,
    effort: Callable[[Case], tuple[Effort, Sequence[str]]],
    say: Callable[[str], None] = lambda text: None,
    adapt: Callable[[Setting], Setting] = lambda setting: setting,
) -> list[Row]:
    """A row a case; ``effort`` says how long and against whom, ``adapt`` may shorten what is left of the time."""
    found, machine = limits(setting, cases), describe(setting.device)
    machine |= {"copy_gb_s": found.copy / 1e9, "gemm_gflop_s": {k: v / 1e9 for k, v in found.gemm.items()}}
    rows = []
    for index, case in enumerate(cases, 1):
        say(f"[{index}/{len(cases)}] {case.name}")
        how, against = effort(case)
        rows.append(measure(case, adapt(setting), how, found, machine, against))
    return rows
