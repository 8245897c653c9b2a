"""``losses.png``: a run's loss curves and validation figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ifan.training.log import first_figures, read_log


def plot_losses(out: Path) -> Path | None:
    """Draw ``out/log.jsonl`` as ``out/losses.png``: one panel a task, one for the validation figures.

    Returns ``None`` where matplotlib (``pip install 'ifan[plot]'``) or the data is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    rows = read_log(out / "log.jsonl")
    tasks = list(dict.fromkeys(task for row in rows for task in row.get("losses", {})))
    if not tasks:
        return None
    figures = _validation(rows)
    panels = len(tasks) + bool(figures)
    figure = Figure(figsize=(4 * panels, 3), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for task, axis in zip(tasks, axes, strict=False):
        points = [(row["step"], row["losses"][task]) for row in rows if task in row.get("losses", {})]
        axis.plot(*zip(*points, strict=True), linewidth=1)
        axis.set(title=f"{task} loss", xlabel="step")
        if min(value for _, value in points) > 0:
            axis.set_yscale("log")
    for name, points in figures.items():
        axes[-1].plot(*zip(*points, strict=True), marker="o", label=f"{name} {points[-1][1]:.3g}")
    if figures:
        axes[-1].set(title="validation", xlabel="step", ylim=(0, None))
        axes[-1].legend(fontsize="x-small")
    figure.savefig(out / "losses.png", dpi=120)
    return out / "losses.png"


def _validation(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The leading figure of each entry over the steps."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, (metric, value) in first_figures(row.get("validation", {})).items():
            lines.setdefault(f"{name} {metric}", []).append((row["step"], value))
    return lines
