"""Time, memory measurement and rivals of each row of a run."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ifan.bench.goals import Goal
from ifan.bench.machine import has_bf16
from ifan.bench.measure import Budget
from ifan.bench.problem import OURS, Case, Setting
from ifan.bench.timing import Rounds

GOALS_SECONDS = 570.0
"""All that a run of the goals may take."""
AHEAD_SECONDS = 240.0
"""And what of it may go into torch.compile before the first row."""


@dataclass
class Schedule:
    """Shares the time of a run among its rows; a run of goals has `GOALS_SECONDS` in all.

    ``rows`` to come; ``seconds`` for the turns of a row; ``memory``: measured where it is asked for; ``trace``: a file
    of which each row gets its own.
    """

    rows: int
    rivals: Sequence[str]
    goals: Sequence[Goal] = ()
    quick: bool = False
    seconds: float = 10.0
    memory: bool = True
    trace: Path | None = None
    _left: int = field(init=False, repr=False)
    _end: float | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._left = self.rows
        self._end = time.monotonic() + GOALS_SECONDS if self.goals else None

    def budget(self, case: Case) -> tuple[Budget, Sequence[str]]:
        """Budget of a row, and its rivals."""
        trace = self.trace
        if trace and self.rows > 1:
            slug = re.sub(r"[^\w.+-]+", "_", case.name)
            trace = trace.with_name(f"{trace.stem}-{slug}{trace.suffix}")
        mine = [goal for goal in self.goals if goal.row == case.name]
        if mine:
            memories = {goal.memory.rival for goal in mine if goal.memory} if self.memory else set[str]()
            measured = (OURS, *sorted(memories)) if memories else ()
            return Budget(Rounds(min(self.seconds, 4.0), 4, 60), measured, trace), self._rivals(mine)
        measured = (OURS, "eager") if self.memory and not self.quick else ()
        rounds = Rounds(min(self.seconds, 0.5), 3, 20) if self.quick else Rounds(self.seconds, 5, 100)
        return Budget(rounds, measured, trace), self.rivals

    def adapt(self, setting: Setting, case: Case) -> Setting:
        """Setting of a row, out of what is left of the time of a goals run.

        torch.compile gets no more than twice a fair share, and compiles the network only once: max-autotune times
        matrix products, and it has few.
        """
        share, self._left = 2 / (self._left + 1), self._left - 1
        if self._end is None:
            return setting
        spare = max(self._end - time.monotonic(), 0.0)
        modes = setting.compile_modes[:1] if case.op == "network" else setting.compile_modes
        seconds = min(setting.compile_seconds, share * spare)
        return replace(setting, compile_seconds=seconds, compile_modes=modes, row_seconds=spare + 60)

    def ahead(self, cases: Sequence[Case]) -> list[tuple[Case, str]]:
        """Rivals of a goals run whose preparation takes longest, minutes of it on one core.

        They are the compiled training steps, and one that has the network exported for all its rows, in bfloat16 with
        one graph more.
        """
        here = [case for case in cases if case.op == "network" and (not case.needs_bf16 or has_bf16("cpu"))]
        mine = {case.name: self._rivals([goal for goal in self.goals if goal.row == case.name]) for case in here}
        steps = [(case, "compile") for case in here if case.work == "training step" and "compile" in mine[case.name]]
        graphs = [(case, "openvino") for case in here if "openvino" in mine[case.name]]
        return steps + sorted(graphs, key=lambda one: not one[0].needs_bf16)[:1]

    def _rivals(self, goals: Sequence[Goal]) -> list[str]:
        return [name for name in self.rivals if any(name in goal.rivals for goal in goals)]
