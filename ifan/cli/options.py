"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Annotated

import typer

from ifan.progress import Report

Datasets = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="Dataset as NAME=PATH, or NAME=READER=PATH with a known reader or module:Class; repeat for more.",
        metavar="NAME=PATH",
    ),
]
Splits = Annotated[Path | None, typer.Option(help="Folder of lists NAME_SPLIT.txt that overrule the official splits.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also print what runs where, and how long it takes.")]


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


def sizes(datasets: Mapping[str, Sized]) -> str:
    """Names of datasets and their numbers of samples, for a line of text."""
    return ", ".join(f"{name}: {len(dataset)} samples" for name, dataset in datasets.items())


def over_all(datasets: Mapping[str, Sized], report: Report) -> Callable[[str, int, int], None]:
    """Progress of an evaluation over all datasets, from the progress over each."""
    done, total = dict.fromkeys(datasets, 0), sum(map(len, datasets.values()))

    def note(name: str, images: int, _: int) -> None:
        done[name] = images
        report(sum(done.values()), total)

    return note
