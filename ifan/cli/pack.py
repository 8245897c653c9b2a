"""``ifan pack``: a dataset as compact, checksummed files that load fast."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ifan.cli.options import Datasets, Splits, by_name

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def pack(
    data: Datasets,
    out: Annotated[Path, typer.Option(help="Folder to write to: OUT/NAME/SPLIT/.")],
    split: Annotated[list[str], typer.Option(help="train, val or test; repeat for several.")] = ["train"],  # noqa: B006
    splits: Splits = None,
    max_side: Annotated[int, typer.Option(min=16, help="Longer side of a face's box in pixels.")] = 160,
) -> None:
    """Pack datasets into OUT/NAME/SPLIT; train and evaluate then take --data NAME=OUT/NAME."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ifan.data import open_dataset
    from ifan.data.packing import pack as pack_dataset

    opened = [
        (name, part, open_dataset(name, path, part, splits)) for name, path in by_name(data).items() for part in split
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        for name, part, dataset in opened:
            bar = progress.add_task(f"{name} {part}", total=len(dataset))
            advance = functools.partial(_advance, progress, bar)
            folder = pack_dataset(dataset, out / name, part, max_side, advance)
            size = sum(file.stat().st_size for file in folder.iterdir())
            progress.console.print(f"{folder}: {len(dataset)} samples, {size / 1e6:.1f} MB")


def _advance(progress: Progress, bar: TaskID, done: int) -> None:
    progress.update(bar, completed=done)
