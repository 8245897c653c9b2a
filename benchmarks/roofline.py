"""Times of the operations and the network on GPUs as predicted from bytes and FLOP: nothing here is measured.

    python -m benchmarks.roofline --write            # docs/kernels/roofline.md and its picture

Operations and network run on tensors without memory (PyTorch's ``meta`` device). Launches of our kernels are priced by
`benchmarks.gpu_cost`, every operation of PyTorch between them by the bytes of its inputs and outputs and, for
convolutions and matrix products, PyTorch's own count of FLOP. A launch takes the longest of what it moves at the
memory's peak, what it loads and stores at the first-level caches', what it computes at the vector units' and what it
multiplies at the tensor cores'; and each launch costs a fixed time beside.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu_cost import NOTHING, Cost, cost, distinct, watched
from ifan.bench import cases
from ifan.bench.problem import Case
from ifan.config import NetworkConfig
from ifan.network import IFAN
from ifan.ops import dispatch, use_backend

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "kernels" / "roofline.md", ROOT / "docs" / "images" / "roofline.png"
OVERHEAD = 2e-6
"""Seconds from the end of one launch to the full speed of the next, inside a CUDA graph: an assumption."""
CACHE_WIDTH = 128
"""Bytes a clock that a multiprocessor's first-level cache delivers: one access of 4 bytes by a warp; an assumption."""
OPS = ("encode_predictions", "channel_moments", "integrate", "dense_block", "transition_up", "hybrid_loss")
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
class Step:
    """One launch: the operation it belongs to, or PyTorch's name, and what it costs."""

    op: str
    work: Cost


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


def total(steps: Sequence[Step]) -> Cost:
    """The sum of the launches."""
    return sum((step.work for step in steps), NOTHING)


class Trace(TorchDispatchMode):
    """Collects what would be launched on a GPU; runs the bodies of our operations rather than their fakes."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.op = ""
        self.bodies = {}
        for name in OPS:
            module = import_module(f"ifan.ops.{name}")
            self.bodies[f"ifan::{name}"] = module._forward._init_fn
            self.bodies[f"ifan::{name}_backward"] = module._backward._init_fn

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.name().split(".")[0], kwargs or {}
        if name in self.bodies:
            before, self.op = self.op, name.removeprefix("ifan::").removesuffix("_backward")
            with self:
                found = self.bodies[name](*args, **kwargs)
            self.op = before
            return found
        found = func(*args, **kwargs)
        work = cost_of_torch(func, args, kwargs, found)
        if work.launches:
            self.steps.append(Step(self.op or _kind(name), work))
        return found


def _kind(name: str) -> str:
    products = ("convolution", "mm", "addmm")
    return "PyTorch: convolutions, linear" if name.removeprefix("aten::") in products else "PyTorch: other"


FREE = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view", "lift_fresh"}
OVERWRITES = {"fill_", "zero_", "copy_"}


def cost_of_torch(func: Any, args: Any, kwargs: Any, found: Any) -> Cost:
    """One launch that reads its inputs and writes its outputs; nothing for views and allocations."""
    name = func.name().removeprefix("aten::").split(".")[0]
    returns = func._schema.returns
    view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
    if view or name in FREE:
        return NOTHING
    inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    outputs = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
    read, written = distinct(*inputs[name in OVERWRITES :]), distinct(*outputs)
    count = flop_registry.get(func.overloadpacket)
    products = int(count(*args, **kwargs, out_val=found)) if count else 0
    return Cost(read, written, read, written, 0, products) if read + written else NOTHING


@contextmanager
def traced(family: str) -> Iterator[list[Step]]:
    """Collect the launches of what runs inside on ``meta`` tensors, with backend ``triton`` and the family's tiles."""
    trace, refusals = Trace(), dict(dispatch._KERNELS)
    for op in OPS:
        dispatch.register_kernel(op, "triton", lambda *_: None)
    try:
        with (
            use_backend("triton"),
            watched(lambda launch: trace.steps.append(Step(trace.op, cost(launch))), family=family),
            trace,
        ):
            yield trace.steps
    finally:
        dispatch._KERNELS.update(refusals)


@lru_cache
def network_steps(family: str, batch: int, iterations: int) -> Sequence[Step]:
    """Inference of all tasks of the paper's network at 128 px in bfloat16."""
    config = NetworkConfig(size=128)
    with torch.device("meta"):
        model = IFAN(config).to(torch.bfloat16).eval()
        images = torch.empty(batch, 3, 128, 128, dtype=torch.uint8)
    with torch.no_grad(), traced(family) as steps:
        model(images, iterations=iterations)
    return tuple(steps)


@lru_cache
def operation_steps(family: str, case: Case, dtype: torch.dtype) -> Sequence[Step]:
    """An operation as the benchmarks call it, its maps in ``dtype``."""
    made: cases.Operation = case.build.args[0]  # type: ignore[attr-defined]
    with torch.device("meta"):
        values = [x.detach().to("meta") for x in made.make()]
    kinds = [dtype if x.dim() == 4 and x.dtype == torch.float32 and x.shape[2] > 3 else x.dtype for x in values]
    values = [x.to(kind).requires_grad_(x.is_floating_point()) for x, kind in zip(values, kinds, strict=True)]
    with traced(family) as steps:
        if not made.backward:
            with torch.no_grad():
                made.call(values, "triton")
        else:
            outputs = [x for x in made.call(values, "triton") if x.requires_grad]
            upstream = [torch.empty_like(x) for x in outputs]
            torch.autograd.grad(outputs, [x for x in values if x.requires_grad], upstream, allow_unused=True)
    return tuple(steps)


def chosen() -> list[Case]:
    """The operations that the goals name, and those that they do not name."""
    goals = (ROOT / "benchmarks" / "goals.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"row: (.*)", goals))
    rest = ("channel_moments", "encode_predictions")
    return [c for c in cases.operations() if f"{c.op} {c.shape} {c.work} float32" in named or c.op in rest]


def operations_table() -> str:
    """A line an operation and type."""
    lines = [
        "| operation | pass | type | moved, MB | loads and stores, MB | vector, MFLOP | products, GFLOP | launches | "
        + " | ".join(f"{device.name}, us" for device in GPUS)
        + " | limit on H100 |",
        "|---" * (9 + len(GPUS)) + "|",
    ]
    for case in chosen():
        for dtype in (torch.bfloat16, torch.float32):
            steps = {device.family: operation_steps(device.family, case, dtype) for device in GPUS}
            found = {device.name: predict(steps[device.family], device, dtype != torch.float32) for device in GPUS}
            name = f"{case.op} {case.shape}".replace("->", " to ")
            cells = [name, case.work, TYPES[dtype], *_counts(total(steps["sm_90"]))]
            cells += [f"{1e6 * each.kernels:.1f} + {1e6 * each.launching:.0f}" for each in found.values()]
            lines.append("| " + " | ".join([*cells, found["H100 SXM"].limit]) + " |")
    return "\n".join(lines) + "\n"


TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def _counts(work: Cost) -> list[str]:
    return [
        f"{work.moved / 1e6:.1f}",
        f"{(work.loaded + work.stored) / 1e6:.0f}",
        f"{work.flop / 1e6:.0f}",
        f"{work.products / 1e9:.2f}" if work.products else "",
        str(work.launches),
    ]


def network_table() -> str:
    """A line a GPU: one pass of the feedback loop, and three."""
    lines = [
        "| GPU | passes | moved, GB | products, TFLOP | launches | kernels, ms | with launches, ms | faces a second |",
        "|---" * 8 + "|",
    ]
    for device in GPUS:
        for passes in (1, 3):
            steps = network_steps(device.family, BATCH, passes)
            work, found = total(steps), predict(steps, device, True)
            cells = f"{work.moved / 1e9:.1f} | {work.products / 1e12:.2f} | {work.launches} | {1e3 * found.kernels:.2f}"
            rate = BATCH / found.total
            lines.append(f"| {device.name} | {passes} | {cells} | {1e3 * found.total:.2f} | {rate:,.0f} |")
    return "\n".join(lines) + "\n"


def parts_table(device: GPU) -> str:
    """Three passes on one GPU by operation."""
    steps = network_steps(device.family, BATCH, 3)
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


def written(page: str) -> str:
    """The page with every table between its markers made anew."""
    tables = {
        "operations": operations_table,
        "network": network_table,
        "parts": lambda: parts_table(GPUS[1]),
    }
    for name, make in tables.items():
        pattern, text = rf"(?s)(<!-- {name} -->\n).*(<!-- /{name} -->)", make()
        page = re.sub(pattern, lambda match, text=text: match[1] + text + match[2], page)
    return page


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
        (f"{case.op} {case.shape}, {case.work}", operation_steps(device.family, case, torch.bfloat16))
        for case in chosen()
    ]
    named.append((f"network, batch {BATCH}, 3 passes", network_steps(device.family, BATCH, 3)))
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


def main() -> None:
    """Print the page, or write it and its picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"to {PAGE.relative_to(ROOT)} and its picture")
    text = written(PAGE.read_text(encoding="utf-8"))
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
        draw(PICTURE, GPUS[1])
    else:
        print(text)


if __name__ == "__main__":
    main()
