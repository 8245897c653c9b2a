"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Datasets = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="Dataset as NAME=PATH, or NAME=READER=PATH with a known reader or module:Class; repeat for more.",
        metavar="NAME=PATH",
    ),
]
Splits = Annotated[Path | None, typer.Option(help="Folder of lists NAME_SPLIT.txt that overrule the official splits.")]


def by_name(data: Sequence[str]) -> dict[str, str]:
    """``NAME=PATH`` items as a mapping; ``ValueError`` for another form or a name given twice."""
    found: dict[str, str] = {}
    for item in data:
        name, equals, path = item.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--data {item!r}: expected NAME=PATH, such as mtfl=data/MTFL")
        if name in found:
            raise ValueError(f"--data: expected each dataset once; got {name!r} twice; leave one out")
        found[name] = path
    return found
