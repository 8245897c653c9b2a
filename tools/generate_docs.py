"""Fills the tables of the documents from data, so that no figure is typed twice.

    python tools/generate_docs.py

README.md and pages of docs/ hold blocks between ``<!-- NAME -->`` and ``<!-- /NAME -->``; each is written anew from
benchmarks/results/*.json, docs/results/accuracy.json, docs/results/limits.json and the cards of the packaged weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RIVALS = {"eager": "eager", "compile": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
MACHINES = {
    "intel-xeon-amx-2threads": "Intel Xeon with AVX-512 and AMX",
    "amd-epyc-avx512-2threads": "AMD EPYC (Zen 5) with AVX-512",
    "amd-epyc-avx2-2threads": "AMD EPYC (Zen 3) with AVX2",
}
README_MACHINE = "intel-xeon-amx-2threads"
README_ROWS = {
    "network 1x3x128x128 inference 3 iterations float32": "inference, 3 iterations, one face",
    "network 8x3x128x128 inference 3 iterations float32": "inference, 3 iterations, eight faces",
    "network 1x3x128x128 inference 3 iterations bfloat16": "the same in bf16, one face",
    "transition_up 1x304x64x64 forward float32": "op `transition_up`, inference",
    "hybrid_loss 8x11x64x64->512 forward+backward float32": "op `hybrid_loss`, forward and backward",
    "network paper-64/64px 24x3x64x64 training step float32": "training step, preset `paper-64`",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("  |", " |") for line in lines)


def accuracy() -> dict[str, list[list[str]]]:
    """Figures of accuracy as they were measured."""
    found: dict[str, list[list[str]]] = json.loads((ROOT / "docs/results/accuracy.json").read_text(encoding="utf-8"))
    return found


def results(machine: str) -> list[dict[str, Any]]:
    """Rows of ``ifan bench --goals`` on a machine."""
    found: list[dict[str, Any]] = json.loads((ROOT / f"benchmarks/results/{machine}.json").read_text())["rows"]
    return found


def readme_accuracy() -> str:
    """One row a task, test splits."""
    head = ("task", "test split", "metric", "paper's graph (`paper-64`)", "default (`ifan-128`)", "best peer")
    return table(head, accuracy()["readme"])


def all_accuracy() -> str:
    """Validation figures, those of the test split in brackets."""
    head = ("data", "metric", "constant predictor", "`paper-64`", "`ifan-128`", "aim")
    return table(head, accuracy()["splits"])


def iterations() -> str:
    """Accuracy of the default weights after each iteration."""
    head = ("iterations", "MTFL: NME", "`--shifted`", "mean F, overall F", "FER2013", "ms a face")
    return table(head, accuracy()["iterations"])


def points68() -> str:
    """NME of the weights with 68 points."""
    return table(("data", "`ifan-128`", "`ifan-128-68`"), accuracy()["points68"])


def readme_speed() -> str:
    """Six rows of one machine."""
    by_name = {row["name"]: row for row in results(README_MACHINE)}
    rows = [[label, _milliseconds(by_name[name]), *_ratios(by_name[name])] for name, label in README_ROWS.items()]
    return table(("work", "ours", *RIVALS.values()), rows)


def all_speed() -> str:
    """All rows of all machines, one table each."""
    parts = []
    for machine, label in MACHINES.items():
        rows = results(machine)
        first = rows[0]
        versions = ", ".join(f"{name} {first['versions'][name]}" for name in ("torch", "onnxruntime", "openvino"))
        commits = ", ".join(sorted({row["commit"] for row in rows}))
        cells = [[f"`{row['name']}`", _milliseconds(row), *_ratios(row)] for row in rows]
        about = f"Two threads; {versions}; commits {commits}; `benchmarks/results/{machine}.json`."
        parts.append(f"## {label}\n\n{about}\n")
        parts.append(table(("row", "ours", *RIVALS.values()), cells) + "\n")
    return "\n".join(parts).rstrip()


def cost() -> str:
    """Growth of the cost, a table a kind of growth, and the line that fits it."""
    found = json.loads((ROOT / "benchmarks/results/cost-amd-epyc-avx2-2threads.json").read_text(encoding="utf-8"))
    parts = []
    for name, (title, unit) in COSTS.items():
        rows, fit = found["tables"][name]["rows"], found["tables"][name]["fit"]
        calls = name != "faces"  # there memory is taken before, as the photo is checked
        cells = [[label, f"{row['ms']:,.0f}", *([f"{row['mb']:,.0f}"] * calls)] for label, row in rows.items()]
        line = f"{fit['fixed']:,.0f} ms and {fit['each']:.3g} ms {unit}; no row is off by more than {fit['worst']:.0%}."
        parts.append(f"## {title}\n\n{table((name, 'ms', *(['MB'] * calls)), cells)}\n")
        parts.append(f"The line that fits: {line}\n" if name != "threads" else "")
    return "\n".join(part for part in parts if part).rstrip()


COSTS = {
    "batch": ("Faces in a call of the engine", "a face"),
    "side": ("Side of the picture", "a squared pixel of the side"),
    "iterations": ("Iterations", "an iteration"),
    "threads": ("Threads, eight faces", ""),
    "faces": ("Faces in a photo", "a face"),
}


def limits() -> dict[str, Any]:
    """Figures of ``python -m benchmarks.limits``."""
    found: dict[str, Any] = json.loads((ROOT / "docs/results/limits.json").read_text(encoding="utf-8"))
    return found


def limits_changes() -> str:
    """A figure a dataset on pictures made worse."""
    changes = limits()["changes"]
    rows = [
        [f"{kind}: {step}" if kind else step, *(_percent(values[name]) for name in ("mtfl", "celebamask", "fer2013"))]
        for kind, steps in changes.items()
        for step, values in steps.items()
    ]
    return table(("pictures", "points: NME, less is better", "regions: mean F", "emotions: accuracy"), rows)


def limits_groups() -> str:
    """Points by what MTFL says of a face."""
    rows = [
        [name, value.replace("_", " "), f"{s['images']:,}", _percent(s["nme"]), _percent(s["failure_rate"])]
        for name, group in limits()["groups"].items()
        for value, s in group.items()
    ]
    return table(("label", "faces that", "number", "NME", "failures: above 10 %"), rows)


def limits_emotions() -> str:
    """Emotions one by one."""
    rows = [
        [name, f"{s['images']:,}", *(_percent(s[key]) for key in ("recall", "precision"))]
        for name, s in limits()["classes"]["emotion"].items()
    ]
    return table(("emotion", "faces", "found", "right where it is said"), rows)


def limits_calibration() -> str:
    """Share of right emotions among those said with some probability."""
    rows = [
        [f"{b['from']:.0%} to {b['to']:.0%}", f"{b['images']:,}", _percent(b["probability"]), _percent(b["accuracy"])]
        for b in limits()["calibration"]["emotion"]["bins"]
    ]
    return table(("probability of the emotion", "faces", "mean probability", "right"), rows)


def limits_error() -> str:
    """Calibration in one line."""
    found = limits()["calibration"]["emotion"]
    return (
        f"Expected calibration error: {_percent(found['calibration_error'])}. The temperature of the largest likelihood"
        f" is {found['best_temperature']:.2f}, with an error of {_percent(found['calibration_error_at_best'])}."
    )


def zoo() -> str:
    """Cards of the packaged weights."""
    parts = []
    for card in sorted((ROOT / "ifan/weights").glob("*/README.md")):
        body = card.read_text(encoding="utf-8").split("---\n", 2)[2].strip()
        size = (card.parent / "model.safetensors").stat().st_size / 1e6
        parts.append(re.sub(r"(?m)^# (.+)$", rf"## \1\n\n{size:.1f} MB.", body))
    return "\n\n".join(parts)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _milliseconds(row: dict[str, Any]) -> str:
    time = row["contenders"]["ifan"].get("ms")
    return f"{time['median']:.3g} ms" if time else ""


def _ratios(row: dict[str, Any]) -> list[str]:
    """How many times as fast as each rival, the best rival in bold."""
    cells = []
    for rival in RIVALS:
        ratio = row["ratios"].get(rival)
        text = f"{ratio['median']:.2g}x" if ratio else ""
        cells.append(f"**{text}**" if text and rival == row["best"] else text)
    return cells


BLOCKS: dict[str, Callable[[], str]] = {
    "readme-accuracy": readme_accuracy,
    "accuracy": all_accuracy,
    "iterations": iterations,
    "points68": points68,
    "readme-speed": readme_speed,
    "speed": all_speed,
    "zoo": zoo,
    "cost": cost,
    "limits-changes": limits_changes,
    "limits-groups": limits_groups,
    "limits-emotions": limits_emotions,
    "limits-calibration": limits_calibration,
    "limits-error": limits_error,
}


def fill(text: str) -> str:
    """``text`` with every block written anew."""
    for name, make in BLOCKS.items():
        block = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        if block.search(text):
            text = block.sub(lambda _, name=name, make=make: f"<!-- {name} -->\n{make()}\n<!-- /{name} -->", text)
    return text


def main() -> None:
    """Rewrite the files whose blocks have changed, and name them."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
