"""Times of the operations and the network on GPUs as predicted from bytes and FLOP: nothing here is measured.

`make docs-generated` writes them to docs/kernels/roofline.md, and its picture.

`tests.gpu.tools.gpu_trace` says what would be launched and what each launch moves and computes. A launch takes the
longest of what it moves at the memory's peak, what it loads and stores at the first-level caches', what it computes at
the vector units' and what it multiplies at the tensor cores'; and each launch costs a fixed time beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ifan.kernels.configs import CONFIGS

from ifan.bench import cases
from ifan.bench.goals import GOALS, load_goals
from ifan.bench.problem import Case
from ifan.bench.suite import suite
from tests.gpu.tools.gpu_cost import Cost
from tests.gpu.tools.gpu_trace import Step, inference_steps, operation_steps, total, training_steps

ROOT = Path(__file__).resolve().parents[3]
PICTURE = ROOT / "docs" / "images" / "roofline.png"
OVERHEAD = 2e-6
"""Seconds from the end of one launch to the full speed of the next, inside a CUDA graph: an assumption."""
CACHE_WIDTH = 128
"""Bytes a clock that a multiprocessor's first-level cache delivers: one access of 4 bytes by a warp; an assumption."""
BATCH = 64


@dataclass(frozen=True, slots=True)
class GPU:
    """Peaks of a GPU by its vendor's data sheet, without sparsity: bytes and FLOP a second; float32 units of a
    multiprocessor, each 2 FLOP a clock."""

    name: str
    family: str
    bandwidth: float
    vector: float
    tensor: float
    units: int

    @property
    def tiles(self) -> str:
        """The first family with the same tiles: what is launched on both is traced once."""
        return next(family for family, config in CONFIGS.items() if config == CONFIGS[self.family])

    def seconds(self, work: Cost, half: bool) -> dict[str, float]:
        """Time of one launch by each limit; float32 products run on the vector units, as they ask for IEEE."""
        caches = CACHE_WIDTH * self.vector / (2 * self.units)
        return {
            "memory": work.moved / self.bandwidth,
            "caches": (work.loaded + work.stored) / caches,
            "vector units": work.flop / self.vector,
            "products": work.products / (self.tensor if half else self.vector),
        }


GPUS = (
    GPU("A100 SXM 80 GB", "sm_80", 2.039e12, 19.5e12, 312e12, 64),
    GPU("H100 SXM", "sm_90", 3.35e12, 67e12, 989.4e12, 128),
    GPU("H200 SXM", "sm_90", 4.8e12, 67e12, 989.4e12, 128),
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of some launches on one GPU, by the limit that binds each, and of launching them."""

    by_limit: dict[str, float]
    launching: float

    @property
    def kernels(self) -> float:
        """Time inside the kernels."""
        return sum(self.by_limit.values())

    @property
    def total(self) -> float:
        """Time of everything."""
        return self.kernels + self.launching

    @property
    def limit(self) -> str:
        """What binds most of the time inside the kernels."""
        return max(self.by_limit, key=lambda name: self.by_limit[name])


def predict(steps: Sequence[Step], device: GPU, half: bool) -> Prediction:
    """Every launch at the limit that binds it, one after another."""
    found: dict[str, float] = {}
    for step in steps:
        times = device.seconds(step.work, half)
        limit = max(times, key=lambda name: times[name])
        found[limit] = found.get(limit, 0.0) + times[limit]
    return Prediction(found, OVERHEAD * total(steps).launches)


def chosen() -> list[Case]:
    """The operations that the goals name, and those that they do not name."""
    named = {goal.row for goal in load_goals(GOALS, suite())}
    rest = ("channel_moments", "encode_predictions")
    return [c for c in cases.operations() if f"{c.op} {c.shape} {c.work} float32" in named or c.op in rest]


def operations_table() -> str:
    """A line an operation and type."""
    lines = [
        "| operation | backend | pass | type | moved, MB | loads and stores, MB | vector, MFLOP | products, GFLOP "
        "| launches | " + " | ".join(f"{device.name}, us" for device in GPUS) + " | limit on H100 |",
        "|---" * (10 + len(GPUS)) + "|",
    ]
    for case in chosen():
        for backend, dtype in ((b, d) for b in ("triton", "cuda") for d in TYPES):
            if backend == "triton" or _has_cuda(case, dtype):
                lines.append(_operation_line(case, backend, dtype))
    return "\n".join(lines) + "\n"


def _has_cuda(case: Case, dtype: torch.dtype) -> bool:
    return case.op in ("integrate", "hybrid_loss") or (case.op == "dense_block" and dtype != torch.float32)


def _operation_line(case: Case, backend: str, dtype: torch.dtype) -> str:
    found, name = [], f"{case.op} {case.shape}".replace("->", " to ")
    for device in GPUS:
        steps = operation_steps(device.tiles, case, backend, dtype)
        found.append(predict(steps, device, dtype != torch.float32))
    cells = [
        name,
        backend,
        case.work,
        TYPES[dtype],
        *_counts(total(operation_steps(GPUS[1].tiles, case, backend, dtype))),
    ]
    cells += [f"{1e6 * each.kernels:.1f} + {1e6 * each.launching:.0f}" for each in found]
    return "| " + " | ".join([*cells, found[1].limit]) + " |"


TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def _counts(work: Cost) -> list[str]:
    return [
        f"{work.moved / 1e6:.1f}",
        f"{(work.loaded + work.stored) / 1e6:.0f}",
        f"{work.flop / 1e6:.0f}",
        f"{work.products / 1e9:.2f}" if work.products else "",
        str(work.launches),
    ]


def _works(family: str, backend: str) -> dict[str, tuple[int, Sequence[Step]]]:
    """Faces and launches of what the network's table shows."""
    return {
        f"inference, {BATCH} faces, 1 pass": (BATCH, inference_steps(family, backend, BATCH, 1)),
        f"inference, {BATCH} faces, 3 passes": (BATCH, inference_steps(family, backend, BATCH, 3)),
        "training step, 12 faces": (12, training_steps(family, backend, 12)),
    }


def network_table() -> str:
    """A line a GPU and piece of work: the kernels beside the same function in PyTorch's own operations."""
    lines = [
        "| GPU | work | moved, GB | products, TFLOP | launches | time, ms | faces a second "
        "| eager: moved, GB | launches | time, ms | eager / ours |",
        "|---" * 11 + "|",
    ]
    for device in GPUS:
        eager = _works(device.tiles, "reference")
        for name, (faces, steps) in _works(device.tiles, "triton").items():
            found, other = (predict(each, device, True) for each in (steps, eager[name][1]))
            mine, theirs = total(steps), total(eager[name][1])
            cells = [
                *(device.name, name, f"{mine.moved / 1e9:.1f}", f"{mine.products / 1e12:.2f}", str(mine.launches)),
                *(_time(found), f"{faces / found.total:,.0f}", f"{theirs.moved / 1e9:.1f}", str(theirs.launches)),
                *(_time(other), f"{other.total / found.total:.1f}"),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _time(found: Prediction) -> str:
    return f"{1e3 * found.kernels:.2f} + {1e3 * found.launching:.2f}"


def parts_table(device: GPU) -> str:
    """Three passes on one GPU by operation."""
    steps = inference_steps(device.tiles, "triton", BATCH, 3)
    whole = predict(steps, device, True).total
    lines = [
        "| part | launches | moved, GB | loads and stores, GB | products, TFLOP | time, ms | share | by limit, ms |",
        "|---" * 8 + "|",
    ]
    for op in sorted({step.op for step in steps}):
        mine = [step for step in steps if step.op == op]
        work, found = total(mine), predict(mine, device, True)
        limits = ", ".join(f"{name} {1e3 * time:.2f}" for name, time in sorted(found.by_limit.items()))
        cells = [
            *(op, str(work.launches), f"{work.moved / 1e9:.2f}", f"{(work.loaded + work.stored) / 1e9:.1f}"),
            *(f"{work.products / 1e12:.2f}", f"{1e3 * found.total:.2f}", f"{found.total / whole:.0%}"),
            f"{limits}, launches {1e3 * found.launching:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[], str]] = {
    "operations": operations_table,
    "network": network_table,
    "parts": lambda: parts_table(GPUS[1]),
}
"""The tables of docs/kernels/roofline.md, by the name of their place."""


def draw(path: Path, device: GPU) -> None:
    """The roofline of one GPU with the chosen operations on it, in bfloat16."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    reach = [0.1, device.tensor / device.bandwidth, 1e4]
    axes.loglog(reach, [min(x * device.bandwidth, device.tensor) / 1e12 for x in reach], color="#c0392b")
    axes.axhline(device.vector / 1e12, color="#7f8c8d", linestyle="--", linewidth=1)
    axes.annotate("vector units, float32", (0.11, device.vector / 1e12 * 1.15), fontsize=8, color="#7f8c8d")
    named = [
        (f"{case.op} {case.shape}, {case.work}", operation_steps(device.tiles, case, "triton", torch.bfloat16))
        for case in chosen()
    ]
    named.append((f"network, batch {BATCH}, 3 passes", inference_steps(device.tiles, "triton", BATCH, 3)))
    for name, steps in named:
        work = total(steps)
        flop, found = work.flop + work.products, predict(steps, device, True)
        style = {"marker": "*", "color": "black"} if name.startswith("network") else {"marker": "o"}
        axes.loglog(flop / work.moved, flop / found.kernels / 1e12, linestyle="", label=name, markersize=6, **style)
    axes.set_xlabel("FLOP a byte moved")
    axes.set_ylabel("TFLOP/s inside the kernels")
    axes.set_title(f"{device.name}: predicted from bytes and FLOP, not measured")
    axes.legend(fontsize=6)
    figure.savefig(path, dpi=110, metadata={"Software": None})
