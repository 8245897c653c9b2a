"""``ifan pack``: a dataset as compact, checksummed files that load fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ifan.cli.options import Datasets, Quiet, Splits, by_name
from ifan.progress import later, progress


def pack(
    data: Datasets,
    out: Annotated[Path, typer.Option(help="Folder to write to: OUT/NAME/SPLIT/.")],
    split: Annotated[list[str], typer.Option(help="train, val or test; repeat for several.")] = ["train"],  # noqa: B006
    splits: Splits = None,
    max_side: Annotated[int, typer.Option(min=16, help="Longer side of a face's box in pixels.")] = 160,
    quiet: Quiet = False,
) -> None:
    """Pack datasets into OUT/NAME/SPLIT; train and evaluate then take --data NAME=OUT/NAME."""
    from ifan.data import open_dataset
    from ifan.data.packing import pack as pack_dataset

    opened = [
        (name, part, open_dataset(name, path, part, splits)) for name, path in by_name(data).items() for part in split
    ]
    total, before = sum(len(dataset) for _, _, dataset in opened), 0
    with progress("pack", "samples", quiet) as report:
        for name, part, dataset in opened:
            folder = pack_dataset(dataset, out / name, part, max_side, later(report, before, total))
            size = sum(file.stat().st_size for file in folder.iterdir())
            if not quiet:
                typer.echo(f"{folder}: {len(dataset)} samples, {size / 1e6:.1f} MB")
            before += len(dataset)
