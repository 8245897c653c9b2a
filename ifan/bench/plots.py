"""Bars of the times and a roofline, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ifan.bench.measure import Row
from ifan.bench.problem import CONTENDERS, OURS, RIVALS
from ifan.optional import require_matplotlib

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
    """Bars of the rival's time over ours, to the right of 1 where ours is less; a bar a rival that ran."""
    from matplotlib.figure import Figure

    bars = [[(row["ratios"][n], n) for n in RIVALS if n in row["ratios"]] for row in rows]
    figure = Figure(figsize=(9, 1.2 + 0.17 * sum(len(row) + 1 for row in bars)), layout="constrained")
    axes, at = figure.add_subplot(), 0.0
    middles, shown = list[float](), set[str]()
    for row in bars:
        middles.append(at + (len(row) - 1) / 2)
        for ratio, name in row:
            median, low, high = (ratio[k] for k in ("median", "p20", "p80"))
            label = None if name in shown else name
            axes.barh(at, median - 1, 0.9, left=1, color=COLOURS[name], label=label)
            axes.plot([low, high], [at, at], color="black", linewidth=0.6)
            axes.annotate(f" {median:.2g}x", (max(high, 1), at), va="center", fontsize=6)
            shown.add(name)
            at += 1
        at += 1
    axes.axvline(1, color=COLOURS[OURS], linestyle="--", label=OURS)
    axes.set_yticks(middles, [_label(row) for row in rows], fontsize=7)
    axes.set_ylim(at - 0.5, -1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 1.15)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"time of the rival / time of {OURS} (median of pairs; line: p20 to p80)")
    axes.set_title(_machine(rows[0]), fontsize=8)
    legend = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda pair: CONTENDERS.index(pair[1]))
    axes.legend(*zip(*legend, strict=True), fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)
    return path


def _roofline(rows: Sequence[Row], path: Path) -> Path:
    """FLOP a second over FLOP a byte, under the measured copy bandwidth and GEMM rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    copy, gemm = rows[0]["copy_gb_s"], rows[0]["gemm_gflop_s"]
    intensity = np.array([row["flop"] / row["bytes"] for row in rows])
    low = min(intensity.min(), min(gemm.values()) / copy) / 3
    reach = np.logspace(np.log10(low), np.log10(intensity.max() * 3), 200)
    for dtype, rate in gemm.items():
        axes.plot(reach, np.minimum(reach * copy, rate), color="black", linewidth=1)
        axes.annotate(f"GEMM {dtype} {rate:.0f} GFLOP/s", (reach[-1], rate), ha="right", va="bottom", fontsize=7)
    axes.annotate(f" copy {copy:.1f} GB/s", (reach[0], reach[0] * copy), va="top", fontsize=7)
    ops = list(dict.fromkeys(row["op"] for row in rows))
    for row in rows:
        colour, marker = f"C{ops.index(row['op'])}", "o" if row["dtype"] == "float32" else "s"
        axes.plot(row["flop"] / row["bytes"], row["gflop_s"], marker, color=colour, markersize=5, label=_label(row))
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte (compulsory traffic)")
    axes.set_ylabel("GFLOP/s, counted as direct convolution")  # Winograd's may pass the roof
    axes.set_title(_machine(rows[0]), fontsize=8)
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)
    return path


def _label(row: Row) -> str:
    return f"{row['op']} {row['shape']} {row['work']}" + ("" if row["dtype"] == "float32" else f" {row['dtype']}")


def _machine(row: Row) -> str:
    return f"{row['processor']}, {row['threads']} threads, {row['isa']} kernels, torch {row['versions']['torch']}"
