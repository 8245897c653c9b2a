"""Ablation of the method: the same samples and seeds, one part more at a time, measured on validation.

    python -m benchmarks.ablation --data mtfl=packed/mtfl --data celebamask=packed/celebamask \\
        --data fer2013=packed/fer2013 --steps 1500 --seeds 0 1 2 --out runs/ablation

Trains a network a cell and seed, and writes ``ablation.json`` and ``ablation.md`` to ``--out`` after each. Run again,
it goes on where it stopped: finished cells are kept, a cell in progress continues from its checkpoint. The same budget
means that every cell sees the same samples, in the same order, with the same augmentation; its cost is in the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ifan.allocator import keep_freed_memory
from ifan.cli.options import by_name
from ifan.config import Config, load_config, to_dict
from ifan.data import FaceDataset, open_dataset
from ifan.evaluation import Subset, evaluate
from ifan.evaluation.report import write_json
from ifan.training import Trainer
from ifan.training.log import read_log
from ifan.weights import load_network

Datasets = Mapping[str, FaceDataset]
FIGURES = {"nme": "NME %", "mean_f": "mean F", "overall_f": "overall F", "accuracy": "accuracy %"}
PERCENT = ("nme", "accuracy")


@dataclass(frozen=True)
class Cell:
    """One row of the table: what it is, and how it changes the base configuration."""

    title: str
    change: Callable[[Config, Datasets], Config]


def single(kind: str) -> Callable[[Config, Datasets], Config]:
    """One task's network on the datasets that label it, as many samples of each as the joint batch has."""

    def change(config: Config, datasets: Datasets) -> Config:
        tasks = tuple(t for t in config.network.tasks if kind in (t.kind, t.name))
        wanted = {kind, *(t.name for t in tasks)}
        known = [name for name, dataset in datasets.items() if wanted & dataset.tasks]
        shares = {name: config.training.shares.get(name, 1.0) for name in datasets}
        kept = {name: share if name in known else 0.0 for name, share in shares.items()}
        size = max(1, round(config.training.batch_size * sum(kept.values()) / sum(shares.values())))
        weights = {name: w for name, w in config.training.task_weights.items() if name in {t.name for t in tasks}}
        training = replace(config.training, batch_size=size, shares=kept, task_weights=weights)
        return passes(1)(Config(replace(config.network, tasks=tasks), training), datasets)

    return change


def passes(most: int, supervise: str = "last", **network: Any) -> Callable[[Config, Datasets], Config]:
    """So many iterations: training draws 1 .. most, the first with 40 %, the others alike; changes of the network."""

    def change(config: Config, datasets: Datasets) -> Config:
        drawn = (1.0,) if most == 1 else (0.4, *[0.6 / (most - 1)] * (most - 1))
        training: dict[str, Any] = {"iterations": drawn, "supervise": supervise}
        return Config(replace(config.network, iterations=most, **network), replace(config.training, **training))

    return change


def alternating(config: Config, datasets: Datasets) -> Config:
    """The joint network of one iteration on batches of one dataset in turn: the same samples in more, smaller steps."""
    config, turns = passes(1)(config, datasets), len(datasets)
    training = config.training
    times = {
        name: turns * getattr(training, name) for name in ("steps", "warmup_steps", "log_every", "checkpoint_every")
    }
    decay = training.ema_decay ** (1 / turns)
    return replace(config, training=replace(training, batches="alternating", ema_decay=decay, **times))


CELLS = {
    "single-parsing": Cell("parsing alone", single("parsing")),
    "single-landmarks": Cell("landmarks alone", single("landmarks")),
    "single-emotion": Cell("emotion alone", single("emotion")),
    "one-norm": Cell("shared trunk, one normalisation for all tasks", passes(1, task_norm=False)),
    "task-norm": Cell("+ task-wise normalisation (hybrid batches, 1 iteration)", passes(1)),
    "alternating": Cell("the same on alternating batches", alternating),
    "two-iterations": Cell("+ task interaction, 2 iterations", passes(2)),
    "three-iterations": Cell("+ task interaction, 3 iterations", passes(3)),
    "every-iteration": Cell("3 iterations, a loss on each", passes(3, supervise="all")),
    "own-norm": Cell(
        "3 iterations, a loss on each, later ones with their own normalisation",
        passes(3, supervise="all", iteration_norm="separate"),
    ),
}


def run_cell(name: str, base: Config, seed: int, out: Path, train: Datasets, val: Datasets) -> dict[str, Any]:
    """Train and validate one cell with one seed in folder ``out``; a finished one is read, one in progress continued.

    Raises ``ValueError`` where ``out`` holds a run of other settings.
    """
    config = CELLS[name].change(replace(base, training=replace(base.training, seed=seed)), train)
    used = {key: dataset for key, dataset in train.items() if config.training.shares.get(key, 1.0) > 0}
    result, begun = out / "result.json", out / "config.yaml"
    if begun.exists() and to_dict(load_config(begun)) != to_dict(config):
        raise ValueError(f"{out}: holds a run of other settings; name another --out, or remove it")
    if result.exists():
        return dict(json.loads(result.read_text(encoding="utf-8")))
    if not (out / "model").exists():
        stopped = Trainer(config, used, out, resume=begun.exists()).run()
        if stopped is not None:
            raise SystemExit(128 + stopped)
    measured = {key: dataset for key, dataset in val.items() if key in used}
    report = evaluate(load_network(out), measured, every_iteration=True)
    results = {t: r for dataset in report["datasets"].values() for t, r in dataset["tasks"].items()}
    found = {
        "cell": name,
        "seed": seed,
        "steps": config.training.steps,
        "seconds": round(_seconds(out, config, len(used)), 1),
        "tasks": {t: r["iterations"] for t, r in results.items()},
    }
    write_json(found, result)
    return found


def _seconds(out: Path, config: Config, datasets: int) -> float:
    """Training time by the rates in the run's log, whatever stopped it in between."""
    size = config.training.batch_size / (datasets if config.training.batches == "alternating" else 1)
    rows = [row for row in read_log(out / "log.jsonl") if "samples_per_s" in row]
    ends = [0, *(row["step"] for row in rows)]
    return sum((b - a) * size / row["samples_per_s"] for (a, b), row in zip(pairwise(ends), rows, strict=True))


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The cells as a Markdown table, a row an iteration: mean and, of several seeds, sample standard deviation."""
    columns = _columns(results)
    heads = ["cell", "iteration", *(f"{task} {FIGURES[figure]}" for task, figure in columns), "seeds", "seconds a seed"]
    lines = [heads, ["---"] * len(heads)]
    for name, cell in CELLS.items():
        runs = [r for r in results if r["cell"] == name]
        for k in range(max((len(its) for r in runs for its in r["tasks"].values()), default=0)):
            figures = [_spread([r["tasks"][t][k][f] for r in runs if t in r["tasks"]], f) for t, f in columns]
            cost = f"{statistics.mean(r['seconds'] for r in runs):.0f}" if k == 0 else ""
            lines.append([cell.title if k == 0 else "", str(k + 1), *figures, str(len(runs)) if k == 0 else "", cost])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _columns(results: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    found = ((task, its[0]) for r in results for task, its in r["tasks"].items())
    pairs = (
        (task, f) for task, row in found for f in row if f in FIGURES and not (f == "accuracy" and "mean_f" in row)
    )
    return sorted(set(pairs), key=lambda pair: (list(FIGURES).index(pair[1]), pair[0]))


def _spread(values: Sequence[float | None], figure: str) -> str:
    known = [100 * v if figure in PERCENT else v for v in values if v is not None]
    digits = 2 if figure in PERCENT else 3
    if not known:
        return ""
    text = f"{statistics.mean(known):.{digits}f}"
    return f"{text} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else text


def run(
    base: Config, train: Datasets, val: Datasets, out: Path, cells: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """All cells with all seeds, seed by seed so that an early end leaves whole tables; writes the files as it goes."""
    results = []
    for seed in seeds:
        for name in cells:
            print(f"{name}, seed {seed}", flush=True)
            results.append(run_cell(name, base, seed, out / name / f"seed-{seed}", train, val))
            write_json({"config": to_dict(base), "results": results}, out / "ablation.json")
            (out / "ablation.md").write_text(_heading(base, seeds) + table(results), encoding="utf-8")
    return results


def _heading(base: Config, seeds: Sequence[int]) -> str:
    training = base.training
    return (
        f"{training.steps} steps of {training.batch_size} samples at {base.network.image_size} px, seeds"
        f" {', '.join(map(str, seeds))}; averaged weights, validation splits; ± standard deviation over seeds.\n\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--config", default="paper-64", help="what the cells change: a preset or a YAML file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="of each cell; the configuration's if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--limit", type=int, help="validation images a dataset, spread evenly over it")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    named = by_name(options.data)
    train, val = ({n: open_dataset(n, p, split) for n, p in named.items()} for split in ("train", "val"))
    if options.limit:
        val = {name: Subset(dataset, options.limit) for name, dataset in val.items()}
    base = load_config(options.config)
    if options.steps:
        base = replace(base, training=replace(base.training, steps=options.steps))
    run(base, train, val, options.out, options.cells, options.seeds)
    print((options.out / "ablation.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
