"""All rows, and a choice of them by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from ifan.bench.cases import operations
from ifan.bench.network import inference, trained, training
from ifan.bench.problem import Case


def suite(quick: bool = False) -> list[Case]:
    """Every op and size, inference, training; ``quick`` has the same at small sizes, without trained weights."""
    return [*operations(quick), *inference(quick), *([] if quick else trained()), *training(quick)]


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


def named(name: str, quick: bool) -> Case:
    """The case called so."""
    return next(case for case in suite(quick) if case.name == name)
