"""Table of what a change did to the benchmarks; exit code 1 where something got worse.

    python tools/compare_benchmarks.py --counts OLD.yaml NEW.yaml --before OLD.json ... --after NEW.json ...

Counts are those of tests/native/instruction_counts.yaml. Rows are those of ``ifan bench --json``: of several files the
median of each ratio is taken. A ratio says how many times as fast as a rival ours is, both measured in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

MORE_INSTRUCTIONS = 0.03
SLOWER = 0.15
"""Shares by which a count may grow and a ratio may fall: instructions repeat, ratios on shared machines do not."""


def counts(path: Path) -> dict[str, float]:
    """Instructions of each kernel."""
    found: dict[str, float] = yaml.safe_load(path.read_text(encoding="utf-8"))["counts"]
    return found


def ratios(paths: Sequence[Path]) -> dict[str, float]:
    """Median ratio over the files, by ``row: rival``."""
    seen: dict[str, list[float]] = {}
    for path in paths:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            for rival, ratio in row["ratios"].items():
                seen.setdefault(f"{row['name']}: {rival}", []).append(ratio["median"])
    return {name: statistics.median(values) for name, values in seen.items()}


def compare(
    before: Mapping[str, float], after: Mapping[str, float], most: float, more_is_worse: bool
) -> list[list[str]]:
    """Rows ``name, before, after, change, verdict``; a figure that is gone counts as worse."""
    lines = []
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            lines.append([name, _figure(old), _figure(new), "", "new" if old is None else "**missing**"])
            continue
        worse = new > old * (1 + most) if more_is_worse else new < old * (1 - most)
        lines.append([name, _figure(old), _figure(new), f"{new / old - 1:+.1%}", "**worse**" if worse else ""])
    return lines


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 if anything got worse or is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", nargs=2, type=Path, metavar=("OLD", "NEW"))
    parser.add_argument("--before", nargs="+", type=Path, default=[], metavar="JSON")
    parser.add_argument("--after", nargs="+", type=Path, default=[], metavar="JSON")
    given = parser.parse_args(arguments)
    bad = False
    parts = []
    if given.counts:
        old_and_new = counts(given.counts[0]), counts(given.counts[1])
        parts.append(("instructions", compare(*old_and_new, MORE_INSTRUCTIONS, True)))
    if given.before or given.after:
        parts.append(("times as fast", compare(ratios(given.before), ratios(given.after), SLOWER, False)))
    for title, lines in parts:
        print(f"| {title} | before | after | change | |\n|---|---|---|---|---|")
        print("\n".join(f"| {' | '.join(line)} |" for line in lines), end="\n\n")
        bad |= any(line[-1].startswith("**") for line in lines)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
