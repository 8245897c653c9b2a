"""Rows as a Markdown table and as JSON; verdicts on goals as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ifan.bench.goals import Verdict
from ifan.bench.measure import Row
from ifan.bench.problem import CONTENDERS, OURS, RIVALS

FORMAT = 1
"""Version of the JSON."""


def as_json(rows: Sequence[Row], verdicts: Sequence[Verdict] = ()) -> dict[str, Any]:
    """Content of ``--json``: ``format``, ``rows`` and, for goals, ``goals``."""
    tree: dict[str, Any] = {"format": FORMAT, "rows": list(rows)}
    if verdicts:
        tree["goals"] = [
            {
                "row": v.goal.row,
                "rivals": list(v.goal.rivals),
                "state": v.state,
                "floor": v.floor,
                "aim": v.goal.aim,
                "ratio": v.ratio,
                "rival": v.rival,
                "memory_share": v.memory,
                "notes": list(v.notes),
            }
            for v in verdicts
        ]
    return tree


def heading(machine: Row) -> str:
    """Processor, threads and versions in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    limits = ""
    if "copy_gb_s" in machine:
        rates = ", ".join(f"{dtype} GEMM {rate:.0f} GFLOP/s" for dtype, rate in machine["gemm_gflop_s"].items())
        limits = f"; copy {machine['copy_gb_s']:.1f} GB/s, {rates}"
    return (
        f"{machine['processor']} ({machine['isa']} kernels), {machine['threads']} threads{limits}; "
        f"commit {machine['commit'] or 'unknown'}; {versions}"
    )


def markdown(rows: Sequence[Row]) -> str:
    """One line a row: times in ms as median (p20-p80), ratios of the rivals' times to ours, rates and their shares."""
    names = [n for n in CONTENDERS if any(n in row["contenders"] for row in rows)]
    headers = ["op", "shape", "work", "dtype", *(f"{n} ms" for n in names)]
    headers += [f"/ {n}" for n in names if n != OURS]
    headers += ["GB/s", "of copy", "GFLOP/s", "of GEMM", "error", "extra MB"]
    lines = [[r["op"], r["shape"], r["work"], r["dtype"], *_cells(r, names)] for r in rows]
    table = _table(headers, lines, left=4)
    notes = [note for row in rows for note in _notes(row)]
    return table + ("\n" + "\n".join(notes) if notes else "")


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """Figure beside floor and aim, one line a goal."""
    lines, notes = [], list[str]()
    for v in verdicts:
        aim = f"{v.goal.aim:g}x" if v.goal.aim else "copy bandwidth"
        memory = "" if v.memory is None else f"{v.memory:.1%}"
        figure = "-" if v.ratio is None else f"{v.ratio:.2f}x"
        lines.append([v.goal.row, v.rival or "/".join(v.goal.rivals), figure, f"{v.floor:g}x", aim, memory, v.state])
        notes += [f"- {v.goal.row}: {note}" for note in v.notes]
    table = _table(["row", "fastest rival", "figure", "floor", "aim", "memory", "verdict"], lines, left=2)
    return table + ("\n" + "\n".join(notes) if notes else "")


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    entries, ratios = row["contenders"], row["ratios"]
    times = [_time(entries.get(n)) for n in names]
    against = [f"{ratios[n]['median']:.2f}x" if n in ratios else "-" for n in names if n in RIVALS]
    rates = [_rate(row, key) for key in ("gb_s", "gb_s_share", "gflop_s", "gflop_s_share")]
    extra = [f"{n} {entries[n]['extra_mb']:.1f}" for n in names if entries.get(n, {}).get("extra_mb") is not None]
    return [*times, *against, *rates, _error(entries), ", ".join(extra) or "-"]


def _time(entry: Row | None) -> str:
    if entry is None:
        return "-"
    ms = entry["ms"]
    return entry["status"] if ms is None else f"{ms['median']:.3g} ({ms['p20']:.3g}-{ms['p80']:.3g})"


def _rate(row: Row, key: str) -> str:
    value = row[key]
    if value is None:
        return "-"
    return f"{value:.0%}" if key.endswith("share") else f"{value:.1f}"


def _error(entries: dict[str, Row]) -> str:
    """Our largest error, and how many times eager's it is."""
    ours, eager = (entries.get(n, {}).get("error") for n in (OURS, "eager"))
    if ours is None:
        return "-"
    return f"{ours:.1e}" + (f" ({ours / eager:.1f}x eager's)" if eager else "")


def _notes(row: Row) -> list[str]:
    """Why a time is missing, and what torch.compile needed to be ready."""
    found = [f"- {row['name']}: {row['problem']}"] if row["problem"] else []
    for name, entry in row["contenders"].items():
        said = row["problem"] and name == OURS
        noted = entry["note"] and not said and (entry["status"] != "ok" or name == "compile")
        found += [f"- {row['name']}: {name}: {entry['note']}"] if noted else []
        found += [f"- {row['name']}: {name}: memory: {entry['memory_note']}"] if entry.get("memory_note") else []
    return found


def _table(headers: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    marks = ["---" if i < left else "---:" for i in range(len(headers))]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (headers, marks, *lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
