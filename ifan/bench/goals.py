"""Floors that measured rows are held against: `GOALS`, or another file like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ifan.bench.measure import Row
from ifan.bench.problem import OURS, Case
from ifan.config import from_dict

GOALS = Path(__file__).with_name("goals.yaml")
"""The floors that this package was released with."""
COPY = "copy bandwidth"
REACHED, SHORT, UNMEASURED, INAPPLICABLE = "reached", "falls short", "not measured", "not applicable"


@dataclass(frozen=True)
class MemoryGoal:
    """Most extra memory of a call, as a share of the rival's."""

    rival: str
    most: float


@dataclass(frozen=True)
class Goal:
    """A row's least ratio to the fastest of ``rivals``, by instruction set where they differ, and what is aimed at."""

    row: str
    rivals: tuple[str, ...]
    floors: dict[str, float]
    aim: float | None
    memory: MemoryGoal | None = None

    def floor(self, isa: str) -> float:
        """The floor for the native kernels' instruction set."""
        return self.floors.get(isa, self.floors.get("avx2", next(iter(self.floors.values()))))


@dataclass(frozen=True)
class Verdict:
    """Verdict on a goal: ``state`` is one of the four constants; ``ratio`` and ``memory`` are the figures."""

    goal: Goal
    state: str
    floor: float
    ratio: float | None = None
    rival: str | None = None
    memory: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def failed(self) -> bool:
        """Short of its floor, or not measured."""
        return self.state in (SHORT, UNMEASURED)


def load_goals(path: Path, cases: Sequence[Case]) -> list[Goal]:
    """Read a goals file; ``ValueError`` names the entry, what was expected and what came."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot read the goals ({' '.join(str(error).split())}); check the file") from error
    entries = tree.get("goals") if isinstance(tree, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list under the key goals; got {type(entries).__name__}")
    known = {case.name for case in cases}
    goals = []
    for number, entry in enumerate(entries, 1):
        try:
            goal = _goal(entry)
            if goal.row not in known:
                raise ValueError(f"no row is called {goal.row!r}; ifan bench --list shows the names")
        except ValueError as error:
            raise ValueError(f"{path}: goal {number}: {error}") from error
        goals.append(goal)
    return goals


def _goal(entry: Any) -> Goal:
    if not isinstance(entry, dict):
        raise ValueError(f"expected a mapping; got {entry!r}")
    tree = dict(entry)
    floor, aim = tree.pop("floor", None), tree.pop("aim", None)
    if isinstance(floor, (int, float)) and not isinstance(floor, bool):
        floor = {"avx2": floor}
    if not isinstance(floor, dict) or not floor:
        raise ValueError(f"floor: expected a number, or one an instruction set; got {floor!r}")
    return from_dict(Goal, {**tree, "floors": floor, "aim": None if aim == COPY else aim})


def judge(goals: Sequence[Goal], rows: Sequence[Row]) -> list[Verdict]:
    """A verdict a goal, in order. Missing rivals are named; the ratio is then that to the fastest that ran."""
    by_name = {row["name"]: row for row in rows}
    return [_judge(goal, by_name.get(goal.row)) for goal in goals]


def _judge(goal: Goal, row: Row | None) -> Verdict:
    if row is None:
        return Verdict(goal, UNMEASURED, goal.floor(""), notes=("the row was not run",))
    floor, problem = goal.floor(row["isa"]), row["problem"]
    if problem:
        state = INAPPLICABLE if problem.startswith(INAPPLICABLE) else UNMEASURED
        return Verdict(goal, state, floor, notes=(problem,))
    entries, ratios = row["contenders"], row["ratios"]
    absent = [n for n in goal.rivals if n not in ratios]
    notes = [f"without {n}: {entries[n]['status']}, {entries[n]['note']}" for n in absent if n in entries]
    notes += [f"without {n}: it was not asked for" for n in absent if n not in entries]
    there = [n for n in goal.rivals if n in ratios]
    if not there:
        return Verdict(goal, UNMEASURED, floor, notes=tuple(notes))
    rival = min(there, key=lambda n: ratios[n]["median"])
    ratio, state = ratios[rival]["median"], REACHED
    share = None
    if ratio < floor:
        state = SHORT
    if goal.memory:
        share, note = _memory(goal.memory, entries)
        if note:
            notes.append(note)
        if state == REACHED and (share is None or share > goal.memory.most):
            state = UNMEASURED if share is None else SHORT
    return Verdict(goal, state, floor, ratio, rival, share, tuple(notes))


def _memory(goal: MemoryGoal, entries: dict[str, Row]) -> tuple[float | None, str]:
    ours, theirs = (entries.get(n, {}).get("extra_mb") for n in (OURS, goal.rival))
    if ours is None or theirs is None:
        found = (entries.get(n, {}).get("memory_note") for n in (OURS, goal.rival))
        return None, "memory not measured: " + "; ".join(filter(None, found))
    share = max(ours, 0.0) / theirs if theirs > 0 else float("inf")
    return share, f"extra memory {ours:.1f} MB of {goal.rival}'s {theirs:.1f} MB, at most {goal.most:.0%}"
