"""Running a choice of rows, each in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ifan import __version__
from ifan.allocator import keep_freed_memory
from ifan.bench.machine import Peaks, commit, describe, has_bf16, peaks
from ifan.bench.measure import Row, entry_of, measure, threads, unmeasured
from ifan.bench.problem import Case, Setting
from ifan.bench.process import Mark, ProcessDied, in_subprocess, started
from ifan.bench.schedule import AHEAD_SECONDS, Schedule
from ifan.bench.suite import named
from ifan.profiling import named_ranges

Find = Callable[[str, bool], Case]


def limits(setting: Setting, cases: Sequence[Case]) -> Peaks:
    """The machine's limits for the dtypes of these cases."""
    wanted = {case.dtype for case in cases if not case.needs_bf16 or has_bf16(setting.device)}
    return peaks(setting.device, tuple(sorted(wanted)))


def run_suite(
    cases: Sequence[Case],
    setting: Setting,
    schedule: Schedule,
    say: Callable[[str], None] = lambda text: None,
    find: Find | None = named,
) -> Iterator[Row]:
    """A row a case, as soon as it is measured; ``schedule`` says how long and against whom.

    Each is measured in a process of its own, where ``find`` finds the case again by its name and `Setting.quick`;
    without ``find``, in this one.
    """
    found, machine = limits(setting, cases), describe(setting.device)
    machine |= {"copy_gb_s": found.copy / 1e9, "gemm_gflop_s": {k: v / 1e9 for k, v in found.gemm.items()}}
    for index, case in enumerate(cases, 1):
        say(f"[{index}/{len(cases)}] {case.name}")
        (budget, against), adapted = schedule.budget(case), schedule.adapt(setting, case)
        run = partial(measure, setting=adapted, budget=budget, limits=found, machine=machine)
        if find is None:
            yield run(case, against=against)
        else:
            yield _in_subprocess(run, case, find, adapted, against)


def fill_caches(rivals: Sequence[tuple[Case, str]], setting: Setting, say: Callable[[str], None]) -> None:
    """Prepare several slow rivals at once, unless an earlier run of this commit has; see `Schedule.ahead`."""
    kept = _kept_graphs()
    if len(rivals) < 2 or (kept and kept.exists()):
        return
    say("compiling the training steps, exporting the network")
    early = replace(setting, compile_modes=setting.compile_modes[:1], compile_seconds=AHEAD_SECONDS)
    if prepare_ahead(rivals, early) and kept:
        kept.touch()


def _kept_graphs() -> Path | None:
    """A file in the folder where torch.compile keeps its graphs, there once those of this commit's goals are; none for
    a changed checkout, whose next change could not be distinguished from this one."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    found = commit() or "installed"
    return None if found.endswith("+") else Path(cache_dir()) / f"ifan-{__version__}-{found}-torch-{torch.__version__}"


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


def _in_subprocess(run: partial[Row], case: Case, find: Find, setting: Setting, against: Sequence[str]) -> Row:
    """A rival that ends the process is left out of another attempt, and the row says what became of it."""
    lost: dict[str, Row] = {}
    while True:
        left = [name for name in against if name not in lost]
        try:
            row = in_subprocess(_row, run, find, case.name, setting, left, timeout=setting.row_seconds)
        except ProcessDied as end:
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
