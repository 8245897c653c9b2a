"""An evaluation's report on the terminal, as JSON, and as pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ifan.evaluation import landmarks, parsing
from ifan.evaluation.runner import HEADLINES
from ifan.files import write_files
from ifan.optional import require_matplotlib

Report = dict[str, Any]

NAMES = {
    "mean_f": "mean F",
    "overall_f": "overall F",
    "accuracy": "accuracy %",
    "balanced_accuracy": "balanced accuracy %",
    "calibration_error": "calibration error %",
    "nme": "NME %",
    "failure_rate": "failures %",
    "auc": "AUC",
}
PLAIN = ("mean_f", "overall_f", "auc")
"""Shown as fractions; the rest in percent."""


def print_report(report: Report, console: Console) -> None:
    """Show every dataset: headline numbers beside the constant predictor's, then the details of each task."""
    for name, dataset in report["datasets"].items():
        console.print(f"\n[bold]{name}[/bold]  {dataset['images']} images")
        console.print(_headlines(dataset["tasks"], report["network"]["iterations"]))
        for task, result in dataset["tasks"].items():
            for table in _TABLES[result["kind"]](task, result):
                console.print(table)
    kinds = {result["kind"] for _, _, result in _results(report)}
    if "parsing" in kinds:
        console.print(f"{parsing.DEFINITION} Resolution: {report['parsing_resolution']}.", style="dim", highlight=False)
    if "landmarks" in kinds:
        console.print(landmarks.DEFINITION, style="dim", highlight=False)


def write_json(report: Report, path: Path) -> None:
    """Write the report so that ``path`` holds either all of it or what it held before; raises ``ValueError``."""
    text = json.dumps(report, indent=1, allow_nan=False)
    try:
        write_files({path: f"{text}\n".encode()})
    except OSError as error:
        raise ValueError(f"{path}: cannot write the report ({error.strerror or error}); name another file") from error


def plots(report: Report, folder: Path) -> list[Path]:
    """Draw one PNG a dataset and task into ``folder``: F bars, cumulative error curve or confusion matrix; their paths.

    Tasks in which nothing was measured are left out. Raises ``ImportError`` without Matplotlib and ``ValueError``
    without a folder to write in.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    drawn = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for dataset, task, result in _results(report):
            if result["images"] == 0:
                continue
            figure = Figure(figsize=(5.5, 4.5), layout="constrained")
            axes = figure.add_subplot(title=f"{dataset}: {task}")
            _DRAW[result["kind"]](axes, result)
            drawn.append(folder / f"{dataset}_{task}.png")
            figure.savefig(drawn[-1], dpi=120)
    except OSError as error:
        raise ValueError(f"{folder}: cannot write plots ({error.strerror or error}); name another folder") from error
    return drawn


def _results(report: Report) -> Iterator[tuple[str, str, Report]]:
    for name, dataset in report["datasets"].items():
        for task, result in dataset["tasks"].items():
            yield name, task, result


def _headlines(tasks: dict[str, Report], passes: int) -> Table:
    columns = max(len(result["iterations"]) for result in tasks.values())
    first = passes - columns + 1
    headers = ["task", "metric", "constant", *(f"iteration {i}" for i in range(first, passes + 1))]
    rows = []
    for task, result in tasks.items():
        for key in HEADLINES[result["kind"]]:
            values = [column[key] for column in (result["constant"], *result["iterations"])]
            rows.append([task, NAMES[key], *(_number(v, key in PLAIN) for v in values)])
    return _table(None, headers, rows, left=2)


def _parsing(task: str, result: Report) -> Iterator[Table]:
    scores = {**result["f"], "mouth (all parts)": result["mouth_f"]}
    yield _table(f"{task}: F a class", ["class", "F"], [[name, _number(f, True)] for name, f in scores.items()])


def _landmarks(task: str, result: Report) -> Iterator[Table]:
    points = [[name, *map(_number, [error, *result["offsets"][name]])] for name, error in result["points"].items()]
    yield _table(f"{task}: error a point, % of the eyes' distance", ["point", "error", "right", "down"], points)
    rows = [
        [name, value, str(s["images"]), *(_number(s[key], key in PLAIN) for key in HEADLINES["landmarks"])]
        for name, group in result["groups"].items()
        for value, s in group.items()
    ]
    if rows:
        headers = ["label", "group", "images", *(NAMES[key] for key in HEADLINES["landmarks"])]
        yield _table(f"{task}: by group", headers, rows, left=2)
    if result["unmeasured"]:
        yield _table(None, ["without two labelled eyes, left out", str(result["unmeasured"])], [])


def _classes(task: str, result: Report) -> Iterator[Table]:
    shares = _shares(result["confusion"])
    rows = []
    for (name, scores), row in zip(result["classes"].items(), shares, strict=True):
        cells = ["-" if np.isnan(share) else f"{share:.0%}" for share in row]
        rows.append([name, *cells, *(_number(scores[k]) for k in ("precision", "recall", "f")), str(scores["images"])])
    headers = ["true \\ predicted", *result["classes"], "precision", "recall", "F %", "images"]
    yield _table(f"{task}: share of each true class predicted as", headers, rows)


def _table(title: str | None, headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i < left else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float | None, plain: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if plain else f"{100 * value:.2f}"


def _shares(confusion: list[list[int]]) -> np.ndarray:
    """Rows of a confusion matrix as shares of their sum, NaN where it is 0."""
    counts = np.array(confusion, float)
    totals = counts.sum(1, keepdims=True)
    return np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)


def _draw_f(axes: Any, result: Report) -> None:
    names, scores = list(result["f"]), [0.0 if f is None else f for f in result["f"].values()]
    axes.bar_label(axes.barh(names, scores), [_number(f, True) for f in result["f"].values()], padding=2)
    axes.set(xlabel="F", xlim=(0, 1.15))
    axes.invert_yaxis()


def _draw_curve(axes: Any, result: Report) -> None:
    threshold = 100 * np.array(result["curve"]["threshold"])
    label = f"NME {_number(result['nme'])} %, AUC {_number(result['auc'], True)}"
    axes.plot(threshold, 100 * np.array(result["curve"]["share"]), label=label)
    axes.axvline(10, color="grey", linestyle=":")
    axes.set(xlabel="normalised error, % of the eyes' distance", ylabel="images with at most that error, %")
    axes.set(xlim=(0, threshold[-1]), ylim=(0, 100))
    axes.legend(loc="lower right")


def _draw_confusion(axes: Any, result: Report) -> None:
    shares, names = _shares(result["confusion"]), list(result["classes"])
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share):
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true (each row 100 %)")


_TABLES = {"parsing": _parsing, "landmarks": _landmarks, "classification": _classes}
_DRAW = {"parsing": _draw_f, "landmarks": _draw_curve, "classification": _draw_confusion}
