"""What a compiler made of the kernels, kept by its version in a YAML file that a changed kernel must change with it.

A `Table` has a row a kernel and a column a GPU family; `pages` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

Table = dict[str, dict[str, str]]


def read(path: Path) -> dict[str, Table]:
    """Tables by the compiler's version."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def write(path: Path, version: str, table: Table) -> None:
    """Put a table in place of what is known of this version; other rows, columns and the file's first comment stay."""
    text = path.read_text(encoding="utf-8")
    heading = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    known = read(path)
    merged = known.setdefault(version, {})
    for row, cells in table.items():
        merged[row] = merged.get(row, {}) | cells
    body = yaml.safe_dump(known, sort_keys=False, default_flow_style=None, width=1000)
    path.write_text(heading + body, encoding="utf-8")


def differences(path: Path, version: str, table: Table) -> list[str]:
    """A fault that names the cells of which the file says otherwise; none where it does not know this version."""
    known = read(path).get(version)
    if known is None:
        return []
    now = {f"{row} {column}": cell for row, cells in table.items() for column, cell in cells.items()}
    before = {f"{row} {column}": cell for row, cells in known.items() for column, cell in cells.items()}
    changed = [place for place, cell in now.items() if before.get(place) != cell]
    if not changed:
        return []
    return [f"{path.name} says otherwise of {', '.join(changed)}. If that is meant, run again with --write."]


def markdown(table: Table, columns: Sequence[str]) -> str:
    """A line a row; ``columns`` are the headings of the parts of a row's name, which ``" | "`` separates."""
    families = list(dict.fromkeys(family for cells in table.values() for family in cells))
    lines = ["| " + " | ".join([*columns, *families]) + " |", "|---" * (len(columns) + len(families)) + "|"]
    lines += [
        f"| {row} | " + " | ".join(cells.get(family, "") for family in families) + " |" for row, cells in table.items()
    ]
    return "\n".join(lines) + "\n"
