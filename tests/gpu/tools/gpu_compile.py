"""What the compiler makes of every Triton kernel, for each GPU family, on a machine without a GPU.

    python -m tests.gpu.tools.gpu_compile           # compares with gpu_compile.yaml; --write replaces what it says

The operations are called with the network's shapes; what they would launch is compiled instead, with the very
arguments, alignments and tiles of that launch. The gate (`Row.faults`) allows no stack frame, no spilled register and
no more registers than budgeted, and asks that the data moves by 16-byte accesses where its alignment is known.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from ifan.kernels import (
    channel_moments,
    dense_block,
    encode_predictions,
    hybrid_loss,
    integrate,
    transition_up,
)
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ifan.concat import Concat, DenseLayer, Lanes, Norm
from tests.gpu.tools import records
from tests.gpu.tools.launches import Started, watched
from tests.gpu.tools.records import Table

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8", torch.int64: "i64"}
CUDA = ("integrate", "hybrid_loss", "dense_block")
"""Operations that backend ``cuda`` has."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with what its launch fixes: argument types, constants, alignments and options."""

    kernel: Any
    signature: dict[str, Any]
    constants: dict[Any, Any]
    aligned: frozenset[tuple[int, ...]]
    options: tuple[tuple[str, Any], ...]
    started: Started
    constant_planes: bool = False
    """Whether the first tensor's pixel strides are 0: it is read once a plane, not once a pixel."""

    @property
    def key(self) -> str:
        return repr((self.kernel.__name__, self.signature, self.constants, sorted(self.aligned), self.options))


@dataclass(frozen=True, slots=True)
class Found:
    """What one kernel became on one target; ``wide`` of ``accesses`` move 16 bytes a thread."""

    registers: int
    spills: int
    stack: int
    shared: int
    accesses: int
    wide: int
    warps: int


@contextmanager
def recorded(family: str) -> Iterator[list[Launch]]:
    """Collect launches, as they would be on a GPU of ``family``, instead of starting them."""
    found: list[Launch] = []
    with watched(lambda started: found.append(specialised(started)), family=family):
        yield found


def specialised(started: Started) -> Launch:
    """Triton's own rules: an integer 1 and ``None`` are constants, multiples of 16 and aligned pointers are marked."""
    kernel, arguments, options = started.kernel, started.arguments, started.options
    names = kernel.arg_names
    constants: dict[Any, Any] = {(names.index(n),): v for n, v in options.items() if n in names}
    aligned: set[tuple[int, ...]] = set()

    def type_of(value: Any, path: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(type_of(item, (*path, index)) for index, item in enumerate(value))
        if value is None or (isinstance(value, int) and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, float):
            return "fp32"
        number = value.data_ptr() if isinstance(value, Tensor) else value
        if number % 16 == 0:
            aligned.add(path)
        if isinstance(value, Tensor):
            return "*" + DTYPES[value.dtype]
        return "i32" if abs(value) < 2**31 else "i64"

    signature = {
        name: type_of(value, (index,)) for index, (name, value) in enumerate(zip(names, arguments, strict=False))
    }
    signature |= dict.fromkeys(names[len(arguments) :], "constexpr")
    rest = tuple(sorted((n, v) for n, v in options.items() if n not in names))
    given = dict(zip(names, arguments, strict=False))
    planes = given.get("stride_h") == 0 and given.get("stride_w") == 0
    return Launch(kernel, signature, constants, frozenset(aligned), rest, started, planes)


def compiled(launched: Launch, target: GPUTarget) -> Any:
    """What Triton makes of a launch for ``target``; its ``asm`` holds each stage's code."""
    attributes = {path: [["tt.divisibility", 16]] for path in launched.aligned}
    source = ASTSource(launched.kernel, launched.signature, constexprs=launched.constants, attrs=attributes)
    return triton.compile(source, target=target, options=dict(launched.options))


def build(launched: Launch, target: GPUTarget) -> Found:
    """Compile for ``target`` and read the machine code."""
    built = compiled(launched, target)
    return _read_cuda(built) if target.backend == "cuda" else _read_hip(built)


def _read_cuda(built: Any) -> Found:
    usage = _tool("cuobjdump", "--dump-resource-usage", data=built.asm["cubin"])
    resources = {key: int(re.search(rf"{key}:(\d+)", usage).group(1)) for key in ("REG", "STACK", "LOCAL")}  # type: ignore[union-attr]
    code = _tool("nvdisasm", "-c", data=built.asm["cubin"])
    pattern = r"^\s*(?:/\*\w+\*/)?\s*(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*(?:\.\w+)*)\s"
    names = re.findall(pattern, code, re.M)
    accesses = [name for name in names if name.split(".")[0] in ("LDG", "STG", "LDGSTS")]
    spills = sum(name.split(".")[0] in ("LDL", "STL") for name in names)
    return Found(
        registers=resources["REG"],
        spills=spills,
        stack=resources["STACK"] + resources["LOCAL"],
        shared=built.metadata.shared,
        accesses=len(accesses),
        wide=sum(".128" in name for name in accesses),
        warps=built.metadata.num_warps,
    )


def _read_hip(built: Any) -> Found:
    code = built.asm["amdgcn"]
    fields = ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
    values = {key: int(re.search(rf"\.{key}:\s*(\d+)", code).group(1)) for key in fields}  # type: ignore[union-attr]
    accesses = re.findall(r"(?:global|buffer)_(?:load|store)_(\w+)", code)
    return Found(
        registers=values["vgpr_count"],
        spills=values["vgpr_spill_count"] + values["sgpr_spill_count"],
        stack=values["private_segment_fixed_size"],
        shared=built.metadata.shared,
        accesses=len(accesses),
        wide=sum("x4" in name for name in accesses),
        warps=built.metadata.num_warps,
    )


def _tool(name: str, *arguments: str, data: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(data)
        file.flush()
        return subprocess.run([TOOLS / name, *arguments, file.name], capture_output=True, text=True, check=True).stdout


def operations(
    dtype: torch.dtype,
    size: int,
    layout: torch.memory_format,
    batch: int = 1,
    backend: str = "triton",
    classes: int = 11,
) -> dict[str, Callable[[], Any]]:
    """Every operation, forward and backward, on shapes of the network: 12 growth channels, 11 ``classes`` of pixels, 5
    points, and three lanes times ``batch``. Backend ``cuda`` has some of them, and no backward of ``dense_block``."""
    modules: Sequence[Any] = (integrate, hybrid_loss, dense_block)
    if backend == "cuda":
        modules = [import_module(f"ifan.ops.backends.cuda.{op}") for op in CUDA]
    fusing, judging, growing = modules

    def maps(lanes: int, channels: int, side: int = size) -> Tensor:
        return torch.empty(lanes, channels, side, side, dtype=dtype, memory_format=layout)

    faces, lanes, tasks, segments = 2 * batch, 3 * batch, 2, [2 * batch, batch]
    rows = torch.zeros(lanes, dtype=torch.int64)
    sources, flags = [maps(lanes, 64), maps(faces, 32)], [False, True]
    norm = [torch.zeros(tasks, 96) for _ in range(4)]
    weights = [torch.empty(12, 96 + 12 * layer, 3, 3) for layer in range(2)]
    norms = [[torch.empty(tasks, 96 + 12 * layer) for layer in range(2)] for _ in range(2)]
    x = Concat.of(Lanes(rows, tuple(segments)), *sources, per_sample=flags)
    moments_of_sources = [torch.empty(tasks, 96) for _ in range(2)]
    block = [
        DenseLayer(weight, Norm(scale, shift, *(moments_of_sources if layer == 0 else ())))
        for layer, (weight, scale, shift) in enumerate(zip(weights, *norms, strict=True))
    ]
    up = (torch.empty(128, 96, 3, 3), torch.empty(32, 32, 3, 3))
    logits, points = maps(faces, classes), torch.empty(faces, 2, 5, dtype=dtype)
    emotions = torch.empty(faces, 7, dtype=dtype)
    predictions = [logits, points, emotions, torch.ones(3)]

    def targets(side: int) -> list[Tensor]:
        labels = torch.empty(faces, side, side, dtype=torch.uint8)
        return [labels, torch.empty(faces, 2, 5), torch.empty(faces, 5), torch.zeros(faces, 1, dtype=torch.int64)]

    def loss(side: int) -> None:
        settings = [0.1, 0.1, 0.1, 0.02]
        for kind in judging.KINDS:
            weights = torch.ones(classes) if kind == "l2" else None
            *_, made = judging.forward(predictions, targets(side), weights, None, [7], settings, kind)
        judging.backward([torch.ones(()), torch.ones(3)], predictions, torch.ones(3), made, [7])

    moments = (maps(lanes, 64), segments)
    gradients = torch.empty(tasks, 64), torch.empty(tasks, 64)

    def fusion(pool: int) -> None:
        arguments = (x, Norm.from_flat(norm), pool)
        fusing.backward(fusing.forward(*arguments), *arguments)

    def grow() -> None:
        grown = growing.forward(x, block)
        if backend == "triton":
            growing.backward(grown, grown, x, block)

    def rise() -> None:
        out = transition_up.forward(x, *up)
        transition_up.backward(out, out, x, *up)

    def draw() -> None:
        planes = encode_predictions.forward(logits, points, emotions, [7], 5)
        encode_predictions.backward(planes, logits, points, emotions, [7])

    def statistics() -> None:
        mean, _ = channel_moments.forward(*moments)
        channel_moments.backward(*gradients, moments[0], mean, segments)

    calls: dict[str, Callable[[], Any]] = {"integrate": lambda: fusion(1), "channel_moments": statistics}
    if size % 2 == 0:
        calls["integrate, pool 2"] = lambda: fusion(2)
    calls |= {
        "encode_predictions": draw,
        "hybrid_loss": lambda: loss(size),
        "hybrid_loss, finer labels": lambda: loss(2 * size),
    }
    calls |= {"dense_block": grow, "transition_up": rise}
    return {op: call for op, call in calls.items() if backend == "triton" or op.split(",")[0] in CUDA}


BUDGET = {"convolution_kernel": 255, "gather_kernel": 168}
"""Most registers a thread may use; 128 where not named: then four blocks of 128 threads share a multiprocessor."""

WIDE = {
    ("integrate", "forward_kernel"): 2,
    ("integrate", "backward_kernel"): 3,
    ("channel_moments", "partial_kernel"): 1,
    ("channel_moments", "backward_kernel"): 2,
    ("encode_predictions", "softmax_kernel"): 2,
    ("encode_predictions", "softmax_backward_kernel"): 3,
    ("hybrid_loss", "cross_entropy_kernel"): 2,
}
"""Tensors of which a kernel moves a whole tile, all of it by 16-byte accesses where the case is aligned."""

ALIGNED = dict.fromkeys(("integrate", "channel_moments"), ("bf16", "fp32", "bf16 channels-last"))
"""Cases with aligned rows, or with channels in multiples of 16 side by side; elsewhere 11 or 12 channels are not."""

CASES = {
    "bf16": (torch.bfloat16, 32, torch.contiguous_format),
    "fp32": (torch.float32, 32, torch.contiguous_format),
    "bf16 channels-last": (torch.bfloat16, 32, torch.channels_last),
    "fp16 33 px": (torch.float16, 33, torch.contiguous_format),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel of one operation, compiled for one family."""

    op: str
    case: str
    family: str
    launched: Launch
    found: Found

    @property
    def name(self) -> str:
        return f"{self.op}: {self.launched.kernel.__name__}"

    def faults(self) -> list[str]:
        """What the gate refuses; empty for a good kernel."""
        kernel, found = self.launched.kernel.__name__, self.found
        budget, wide = BUDGET.get(kernel, 128), self.wide_accesses()
        faults = {
            f"{found.spills} spills": found.spills,
            f"a stack frame of {found.stack} bytes": found.stack,
            f"{found.registers} registers, more than {budget}": found.registers > budget,
            f"{found.wide} 16-byte accesses, fewer than {wide}": found.wide < wide,
        }
        return [f"{self.name}, {self.case}, {self.family}: {fault}" for fault, broken in faults.items() if broken]

    def wide_accesses(self) -> int:
        """16-byte accesses a thread needs to move its share of the tile, where rows are known to be aligned."""
        tensors = WIDE.get((self.op, self.launched.kernel.__name__), 0)
        if not tensors or self.case not in ALIGNED.get(self.op, ("bf16", "fp32")):
            return 0
        tensors -= self.launched.constant_planes
        dtype, names = CASES[self.case][0], self.launched.kernel.arg_names
        values = 1
        for name in ("CHANNELS", "PIXELS"):
            values *= self.launched.constants[(names.index(name),)]
        threads = self.found.warps * TARGETS[self.family].warp_size
        return tensors * (values * dtype.itemsize // (16 * threads))


def launches(
    families: Sequence[str], cases: Sequence[str], once: bool = False
) -> Iterator[tuple[str, str, str, Launch]]:
    """Operation, case, family and launch of what the operations launch, each variant once; with ``once``, each kernel's
    first launch of a case only."""
    for case in cases:
        for family in families:
            seen: set[str] = set()
            for op, call in operations(*CASES[case]).items():
                with recorded(family) as found:
                    call()
                for launched in found:
                    module = launched.kernel.__module__
                    key = f"{module} {launched.kernel.__name__}" if once else launched.key
                    if key not in seen:
                        seen.add(key)
                        yield op, case, family, launched


def survey(families: Sequence[str], cases: Sequence[str], once: bool = False) -> Iterator[Row]:
    """Compile what the operations launch."""
    for op, case, family, launched in launches(families, cases, once):
        yield Row(op, case, family, launched, build(launched, TARGETS[family]))


LEGEND = (
    "Registers / spills / shared bytes, the most of all variants launched, / 16-byte of all global accesses,\n"
    "summed over them."
)
KNOWN = Path(__file__).with_name("gpu_compile.yaml")
"""What each supported version of Triton made of every kernel, case and family."""


def table(rows: Sequence[Row]) -> Table:
    """A row a kernel and case, a column a family."""
    found: dict[tuple[str, str], list[Found]] = {}
    for row in rows:
        found.setdefault((f"{row.name} | {row.case}", row.family), []).append(row.found)
    made: Table = {}
    for (name, family), variants in found.items():
        made.setdefault(name, {})[family] = _cell(variants)
    return made


def _cell(found: Sequence[Found]) -> str:
    worst = [max(getattr(one, name) for one in found) for name in ("registers", "spills", "shared")]
    wide, accesses = (sum(getattr(one, name) for one in found) for name in ("wide", "accesses"))
    return " / ".join(map(str, worst)) + f" / {wide} of {accesses}"


def main() -> None:
    """Print the table, and write it to `KNOWN` or compare it; exit 1 if the gate refuses a kernel or they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--once", action="store_true", help="each kernel's first launch only; nothing is compared")
    parser.add_argument("--write", action="store_true", help=f"to {KNOWN.name}, for this Triton version")
    arguments = parser.parse_args()
    rows = list(survey(arguments.families, arguments.cases, arguments.once))
    made, faults = table(rows), [fault for row in rows for fault in row.faults()]
    print(records.markdown(made, ("kernel", "case")))
    if arguments.write and not arguments.once:
        records.write(KNOWN, triton.__version__, made)
    elif not arguments.once:
        faults += records.differences(KNOWN, triton.__version__, made)
    print(*faults, sep="\n")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
