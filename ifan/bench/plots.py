"""Bars of the times and a roofline, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ifan.bench.measure import Row
from ifan.bench.problem import CONTENDERS, OURS
from ifan.evaluation.report import require_matplotlib

COLOURS = dict(zip(CONTENDERS, ("#c0392b", "#7f8c8d", "#2980b9", "#16a085", "#8e44ad"), strict=True))


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``bars.png`` and ``roofline.png`` to ``folder``; returns the files that had anything to show.

    Raises ``ValueError`` without matplotlib, ``OSError`` for a folder that cannot be written.
    """
    require_matplotlib()
    timed = [row for row in rows if row["ratios"]]
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    if timed:
        drawn.append(_bars(timed, folder / "bars.png"))
    counted = [row for row in rows if row["gflop_s"] and row["bytes"]]
    if counted:
        drawn.append(_roofline(counted, folder / "roofline.png"))
    return drawn


def _bars(rows: Sequence[Row], path: Path) -> Path:
    """How many times the rival's time is ours; the dashed line is ours."""
    from matplotlib.figure import Figure

    names = [n for n in CONTENDERS if n != OURS and any(n in row["ratios"] for row in rows)]
    figure = Figure(figsize=(9, 1.5 + 0.1 * len(rows) * (len(names) + 1)), layout="constrained")
    axes, height = figure.add_subplot(), 0.8 / len(names)
    for k, name in enumerate(names):
        at = [i + k * height for i, row in enumerate(rows) if name in row["ratios"]]
        ratios = [row["ratios"][name] for row in rows if name in row["ratios"]]
        values = np.array([r["median"] for r in ratios])
        spans = np.abs(np.array([[r["p20"], r["p80"]] for r in ratios]).T - values)
        axes.barh(at, values, height, xerr=spans, label=name, color=COLOURS[name], error_kw={"linewidth": 0.6})
    axes.axvline(1, color=COLOURS[OURS], linestyle="--")
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(rows))], [_label(row) for row in rows], fontsize=7)
    axes.set_ylim(len(rows), -0.5)
    axes.set_xlabel(f"time of the rival / time of {OURS} (median of pairs, p20 to p80)")
    axes.set_title(_machine(rows[0]), fontsize=8)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    return path


def _roofline(rows: Sequence[Row], path: Path) -> Path:
    """FLOP a second over FLOP a byte, under the measured copy bandwidth and GEMM rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    intensity = np.array([row["flop"] / row["bytes"] for row in rows])
    least = min(row["copy_gb_s"] and min(row["gemm_gflop_s"].values()) / row["copy_gb_s"] for row in rows)
    reach = np.logspace(np.log10(min(intensity.min(), least) / 3), np.log10(intensity.max() * 3), 200)
    for dtype, rate in rows[0]["gemm_gflop_s"].items():
        axes.plot(reach, np.minimum(reach * rows[0]["copy_gb_s"], rate), color="black", linewidth=1)
        axes.annotate(f"GEMM {dtype}", (reach[-1], rate), ha="right", va="bottom", fontsize=7)
    for op in dict.fromkeys(row["op"] for row in rows):
        points = [(row["flop"] / row["bytes"], row["gflop_s"]) for row in rows if row["op"] == op]
        axes.plot(*zip(*points, strict=True), "o", label=op, markersize=5)
    axes.set(
        xscale="log", yscale="log", xlabel="FLOP a byte (compulsory traffic)", ylabel="GFLOP/s, as direct convolution"
    )
    axes.set_title(_machine(rows[0]), fontsize=8)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    return path


def _label(row: Row) -> str:
    return f"{row['op']} {row['shape']} {row['work']}" + ("" if row["dtype"] == "float32" else f" {row['dtype']}")


def _machine(row: Row) -> str:
    return f"{row['processor']}, {row['threads']} threads, {row['isa']} kernels, torch {row['versions']['torch']}"
