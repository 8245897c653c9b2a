"""``ifan train``: cross-dataset hybrid training."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifan.cli.options import Datasets, Quiet, Splits, Verbose, by_name, over_all, sizes
from ifan.config import Config, from_dict, load_config, parse_yaml, to_dict
from ifan.optional import TORCH, require
from ifan.progress import progress

if TYPE_CHECKING:
    from ifan.data.dataset import FaceDataset
    from ifan.network import IFAN
    from ifan.training.log import Figures
    from ifan.training.trainer import Validate


def train(
    config: Annotated[str, typer.Option(help="Preset name or YAML file.")],
    data: Datasets,
    out: Annotated[Path, typer.Option(help="Folder of the run: new, or an earlier one with --resume.")],
    splits: Splits = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    init: Annotated[Path | None, typer.Option(help="Begin from a model folder or safetensors file.")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Of --init take what fits: weights of another size or variant.")
    ] = False,
    add_task: Annotated[
        list[str] | None,
        typer.Option(
            help="Give the weights of --init, whose network it is then, one more classification; repeat for more.",
            metavar="NAME[=CLASS,..]",
        ),
    ] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="With --add-task: train the new heads alone.")] = False,
    steps: Annotated[int | None, typer.Option(help="Steps in all; short for --set training.steps=N.")] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Passes when validating and predicting; short for --set network.iterations=N.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting, such as training.batch_size=22.", metavar="KEY=VALUE"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Processor threads.", min=1)] = None,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.", min=0)] = 0,
    time_limit: Annotated[float | None, typer.Option(help="Stop with a checkpoint after so many minutes.")] = None,
    mallopt: Annotated[bool, typer.Option(help="Let glibc keep freed memory (faster on the CPU).")] = True,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train one network on datasets that each label some of its tasks."""
    from ifan.allocator import keep_freed_memory

    short = {"training.steps": steps, "network.iterations": iterations}
    changes = [*(set_ or []), *(f"{key}={value}" for key, value in short.items() if value is not None)]
    given = load_config(config)
    if add_task or freeze:
        given = _with_tasks(given, init, add_task or [], data, freeze)
    settings = override(given, changes)
    if mallopt:
        keep_freed_memory()
    torch = require("ifan train", *TORCH)  # only when the options are sound

    from ifan.training import RunOptions, Trainer

    if threads:
        torch.set_num_threads(threads)
    training, validation = (_open(data, split, splits) for split in ("train", "val"))
    if verbose:
        where = f"{device}, {torch.get_num_threads()} threads"
        typer.echo(f"{where}; train: {sizes(training)}; val: {sizes(validation)}", err=True)
    measure = _measure(validation, out, quiet)
    options = RunOptions(init, partial or bool(add_task), workers, measure, quiet=quiet)
    trainer = Trainer(settings, training, out, device, resume, options)
    gc.freeze()  # what lives as long as the run is not searched again at every collection
    try:
        signal = trainer.run(time_limit)
    finally:
        gc.unfreeze()  # or nothing would free it at the end, and libraries that count their objects would say so
    if signal is not None:
        raise typer.Exit(128 + signal)


def _open(data: list[str], split: str, splits: Path | None) -> dict[str, FaceDataset]:
    """The datasets of ``--data`` by name."""
    from ifan.data import open_dataset

    return {name: open_dataset(name, path, split, splits) for name, path in by_name(data).items()}


def _measure(datasets: dict[str, FaceDataset], out: Path, quiet: bool) -> Validate:
    """Measure of a network after its last pass, which also leaves the whole report in ``out``."""
    from ifan.evaluation import evaluate
    from ifan.evaluation.report import write_json

    def validate(model: IFAN, passes: int) -> Figures:
        with progress("validation", quiet=quiet) as shown:
            report = evaluate(model, datasets, iterations=passes, progress=over_all(datasets, shown))
        write_json(report, out / "validation.json")
        results = {f"{name}/{task}": r for name, d in report["datasets"].items() for task, r in d["tasks"].items()}
        return {name: result["iterations"][-1] for name, result in results.items()}

    return validate


def _with_tasks(config: Config, init: Path | None, added: list[str], data: list[str], freeze: bool) -> Config:
    """``config`` for weights with classifications added, see `ifan.training.added_tasks.add_tasks`."""
    from ifan.training.added_tasks import add_tasks

    if init is None or not added:
        raise ValueError("--add-task and --freeze: expected --init WEIGHTS --add-task NAME; name both")
    return add_tasks(config, init, added, by_name(data), freeze)


def override(config: Config, changes: list[str]) -> Config:
    """``config`` with ``section.key=value`` changes, values in YAML; ``ValueError`` names a wrong key or type."""
    tree = to_dict(config)
    for change in changes:
        key, equals, value = change.partition("=")
        *path, last = key.split(".")
        if not equals or not path:
            raise ValueError(f"--set {change!r}: expected SECTION.KEY=VALUE, such as training.steps=100")
        section: Any = tree
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise ValueError(f"--set {change!r}: there is no section {'.'.join(path)!r}; expected network or training")
        try:
            section[last] = parse_yaml(value)
        except ValueError as error:
            raise ValueError(f"--set {change!r}: {value!r} is not a YAML value") from error
    return from_dict(Config, tree)
