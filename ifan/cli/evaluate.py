"""``ifan evaluate``: measure weights on labelled datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ifan.cli.options import Datasets, Quiet, Splits, Verbose, by_name, over_all, sizes
from ifan.optional import TORCH, require, require_matplotlib
from ifan.progress import progress


def evaluate(
    weights: Annotated[str, typer.Option(help="Saved model, run folder, or name of packaged weights.")],
    data: Datasets,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    splits: Splits = None,
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 32,
    iterations: Annotated[int | None, typer.Option(help="Passes; the network's if not given.", min=1)] = None,
    every_iteration: Annotated[bool, typer.Option("--every-iteration", help="Measure after each pass.")] = False,
    full_resolution: Annotated[
        bool, typer.Option("--full-resolution", help="Compare parsing in the labels' own pixels, not the network's.")
    ] = False,
    shifted: Annotated[
        bool,
        typer.Option("--shifted", help="Crops off centre and tighter, more profiles: as hard as MTFL's test split."),
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Images a dataset, spread evenly over it.", min=1)] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report here.", metavar="FILE")] = None,
    plots: Annotated[Path | None, typer.Option(help="Draw PNGs into this folder.", metavar="DIR")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure weights on datasets: parsing F, landmark error, accuracy, beside a constant predictor."""
    require("ifan evaluate", *TORCH)

    from rich.console import Console

    from ifan.data import open_dataset
    from ifan.evaluation import Shifted, Subset
    from ifan.evaluation import evaluate as measure
    from ifan.evaluation import report as reporting
    from ifan.weights import load_network, resolve

    if plots:
        require_matplotlib()
    named = by_name(data)
    model = load_network(weights, device)
    datasets = {name: open_dataset(name, path, split, splits=splits) for name, path in named.items()}
    if limit is not None:
        datasets = {name: Subset(dataset, limit) for name, dataset in datasets.items()}
    if shifted:
        datasets = {name: Shifted(dataset) for name, dataset in datasets.items()}
    if verbose:
        typer.echo(f"{weights} on {device}; {sizes(datasets)}", err=True)
    with progress("evaluate", quiet=quiet) as shown:
        report = measure(
            model,
            datasets,
            batch,
            iterations,
            progress=over_all(datasets, shown),
            every_iteration=every_iteration,
            full_resolution=full_resolution,
        )
    report = {
        "weights": str(resolve(weights)),
        "split": split,
        "shifted": shifted,
        "data": named,
        "limit": limit,
        **report,
    }
    console = Console(quiet=quiet)
    reporting.print_report(report, console)
    if json:
        reporting.write_json(report, json)
        console.print(f"report: {json}", highlight=False)
    if plots:
        drawn = reporting.plots(report, plots)
        console.print(f"plots: {', '.join(path.name for path in drawn)} in {plots}", highlight=False)
