"""All rows, and running a choice of them, each in a process of its own."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from ifan.allocator import keep_freed_memory
from ifan.bench.apart import Ended, Mark, apart, started
from ifan.bench.cases import operations
from ifan.bench.machine import Peaks, describe, has_bf16, peaks
from ifan.bench.measure import Effort, Row, entry_of, measure, threads, unmeasured
from ifan.bench.network import inference, training
from ifan.bench.problem import Case, Setting
from ifan.profiling import named_ranges

Find = Callable[[str, bool], Case]


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


def named(name: str, quick: bool) -> Case:
    """The case called so."""
    return next(case for case in suite(quick) if case.name == name)


def run_suite(
    cases: Sequence[Case],
    setting: Setting,
    effort: Callable[[Case], tuple[Effort, Sequence[str]]],
    say: Callable[[str], None] = lambda text: None,
    adapt: Callable[[Setting, Case], Setting] = lambda setting, case: setting,
    find: Find | None = named,
) -> Iterator[Row]:
    """A row a case, as soon as it is measured; ``effort`` says how long and against whom, ``adapt`` may shorten what is
    left of the time. Each is measured in a process of its own, where ``find`` finds the case again by its name and
    `Setting.quick`; without ``find``, in this one."""
    found, machine = limits(setting, cases), describe(setting.device)
    machine |= {"copy_gb_s": found.copy / 1e9, "gemm_gflop_s": {k: v / 1e9 for k, v in found.gemm.items()}}
    for index, case in enumerate(cases, 1):
        say(f"[{index}/{len(cases)}] {case.name}")
        (how, against), adapted = effort(case), adapt(setting, case)
        run = partial(measure, setting=adapted, effort=how, limits=found, machine=machine)
        if find is None:
            yield run(case, against=against)
        else:
            yield _apart(run, case, find, adapted, against)


def prepare_ahead(rivals: Sequence[tuple[Case, str]], setting: Setting, find: Find = named) -> bool:
    """Prepare these rivals of these cases, all at once, for what they leave on disk: torch.compile's cache, exported
    graphs. It is mostly work for one core. What goes wrong will go wrong again in the row, and is reported there;
    returns whether nothing did."""
    right = True
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(started(_prepare, find, case.name, name, setting)) for case, name in rivals]
        for answer in waiting:
            try:
                answer(None)
            except Exception:
                right = False
    return right


def _prepare(_: Mark, find: Find, case: str, rival: str, setting: Setting) -> None:
    with threads(setting.threads):
        find(case, setting.quick).build(setting).makers[rival]()


def _apart(run: partial[Row], case: Case, find: Find, setting: Setting, against: Sequence[str]) -> Row:
    """A rival that ends the process is left out of another attempt, and the row says what became of it."""
    lost: dict[str, Row] = {}
    while True:
        left = [name for name in against if name not in lost]
        try:
            row = apart(_row, run, find, case.name, setting, left, timeout=setting.row_seconds)
        except Ended as end:
            if end.mark in left:
                lost[end.mark] = entry_of("failed", str(end))
                continue
            reason = f"failed: {end.mark + ': ' if end.mark else ''}{end}"
            row = unmeasured(case, run.keywords["machine"], reason)
        return row | {"contenders": row["contenders"] | lost}


def _row(turn: Mark, run: partial[Row], find: Find, name: str, setting: Setting, against: Sequence[str]) -> Row:
    if setting.mallopt:
        keep_freed_memory()
    torch.set_flush_denormal(True)  # as in ours and in OpenVINO; threads that PyTorch starts from now on inherit it
    with threads(setting.threads), named_ranges(setting.ranges):
        return run(find(name, setting.quick), against=against, turn=turn)
