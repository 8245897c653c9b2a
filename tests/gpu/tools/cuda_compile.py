"""What nvcc made of the CUDA kernels: registers, stack, spills, 16-byte accesses and tensor-core instructions.

    python -m tests.gpu.tools.cuda_compile          # compares with cuda_compile.yaml; --write replaces what it says

Reads what an editable installation with nvcc leaves in ``build/ifan._cuda``: ptxas' report beside each object, and the
machine code by the ``cuobjdump`` that comes with Triton. Exits with 1 if a kernel has a stack frame, spills, takes more
registers than its budget, moves rows of 16 bytes in smaller pieces, or multiplies without tensor cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.gpu.tools import records
from tests.gpu.tools.records import Table

BUILD = Path(__file__).resolve().parents[3] / "build" / "ifan._cuda"
FAMILIES = ("sm_80", "sm_90a", "sm_100")
BUDGET = {"layer_kernel": 80}
"""Most registers a thread may use; 64 where not named: then four blocks of 256 threads share a multiprocessor."""
PRODUCTS = 36
"""Tensor-core instructions of a warp of the dense layer for 16 channels: 9 taps, 2 rows of pixels, 2 x 8 outputs."""
TYPES = {"__nv_bfloat16": "bf16", "__half": "fp16", "float": "fp32", "unsigned char": "u8", "long": "i64"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel on one family; ``wide_loads`` and ``wide_stores`` move 16 bytes a thread, ``None`` where unknown."""

    op: str
    name: str
    variant: tuple[str, ...]
    family: str
    registers: int
    stack: int
    spills: int
    shared: int
    wide_loads: int | None = None
    wide_stores: int | None = None
    products: int | None = None

    @property
    def wide(self) -> bool:
        """Whether this is the variant for rows that can be moved 16 bytes at a time."""
        return self.name in ("forward_kernel", "backward_kernel", "scale_kernel") and self.variant[-1] == "true"

    def faults(self) -> list[str]:
        """What the gate refuses; empty for a good kernel."""
        budget = BUDGET.get(self.name, 64)
        known = self.products is not None
        found = {
            f"a stack frame of {self.stack} bytes": self.stack > 0,
            f"{self.spills} bytes of spills": self.spills > 0,
            f"{self.registers} registers, more than {budget}": self.registers > budget,
            "no 16-byte loads": known and self.wide and not self.wide_loads,
            "no 16-byte stores": known and self.wide and not self.wide_stores and self.variant[1:2] != ("2",),
            f"{self.products} tensor-core instructions, not {PRODUCTS}": known
            and self.name == "layer_kernel"
            and self.products != PRODUCTS,
        }
        return [
            f"{self.op}: {self.name}<{', '.join(self.variant)}>, {self.family}: {text}"
            for text, bad in found.items()
            if bad
        ]


def parse(log: str, op: str = "") -> Iterator[tuple[str, Kernel]]:
    """Mangled name and kernel for each entry of a report of ``ptxas -v``."""
    pattern = (
        r"Compiling entry function '(\w+)' for '(sm_\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    entries = re.findall(pattern, log, re.S)
    plain = demangled([entry[0] for entry in entries])
    for mangled, family, stack, stores, loads, registers, rest in entries:
        shared = re.search(r"(\d+) bytes smem", rest)
        name, variant = readable(plain[mangled])
        size = int(shared.group(1)) if shared else 0
        yield mangled, Kernel(op, name, variant, family, int(registers), int(stack), int(stores) + int(loads), size)


def demangled(names: Sequence[str]) -> dict[str, str]:
    """Signatures in C++ by the names that the compiler gave them."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


def readable(signature: str) -> tuple[str, tuple[str, ...]]:
    """A kernel's own name and its template arguments."""
    found = re.search(r"(\w+_kernel)(?:<(.*)>)?\(", signature)
    if found is None:
        return signature, ()
    arguments = found.group(2).split(", ") if found.group(2) else []
    return found.group(1), tuple(TYPES.get(argument, argument) for argument in arguments)


def instructions(code: Path) -> dict[tuple[str, str], list[str]]:
    """Mnemonics of each function and family in an object file; empty where there is no ``cuobjdump``."""
    spec = importlib.util.find_spec("triton")
    tool = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec and spec.origin else Path("cuobjdump")
    try:
        text = subprocess.run([tool, "-sass", code], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    found: dict[tuple[str, str], list[str]] = {}
    family, names = "", []
    for line in text.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            family = match.group(1)
        elif match := re.match(r"\s*Function : (\w+)", line):
            names = found.setdefault((match.group(1), family), [])
        elif match := re.match(r"\s*/\*\w+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            names.append(match.group(1))
    return found


def survey(build: Path = BUILD) -> list[Kernel]:
    """Every kernel of the last editable installation; empty where nvcc built none."""
    kernels = []
    for log in sorted(build.glob("*.o.log")):
        code = instructions(log.with_suffix(""))
        for mangled, kernel in parse(log.read_text(encoding="utf-8"), log.name.split(".")[0]):
            kernels.append(_counted(kernel, code.get((mangled, kernel.family))))
    return kernels


def _counted(kernel: Kernel, names: Sequence[str] | None) -> Kernel:
    if names is None:
        return kernel
    wide = [name.split(".")[0] for name in names if ".128" in name]
    products = sum(name.split(".")[0] == "HMMA" for name in names)
    fields = {name: getattr(kernel, name) for name in kernel.__slots__}
    return Kernel(**fields | {"wide_loads": wide.count("LDG"), "wide_stores": wide.count("STG"), "products": products})


LEGEND = (
    "Registers / stack and spills, bytes / shared memory, bytes / 16-byte loads + stores / tensor-core products;\n"
    "smallest-largest over the types. `true` is the variant for rows of whole 16 bytes."
)
KNOWN = Path(__file__).with_name("cuda_compile.yaml")
"""What nvcc made of every kernel and variant, by its version."""


def table(kernels: Sequence[Kernel]) -> Table:
    """A row a kernel and variant, the types of one row taken together; a column a family."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Kernel]] = {}
    for kernel in sorted(kernels, key=lambda kernel: (kernel.op, kernel.name, kernel.variant[1:])):
        groups.setdefault((kernel.op, kernel.name, kernel.variant[1:]), []).append(kernel)
    made: Table = {}
    for (op, name, rest), members in groups.items():
        types = ", ".join(dict.fromkeys(kernel.variant[0] for kernel in members if kernel.variant))
        arguments = f"<T, {', '.join(rest)}>" if rest else ""
        made[f"{op}: {name}{arguments} | {types}"] = {
            family: _cell([kernel for kernel in members if kernel.family == family]) for family in FAMILIES
        }
    return made


def _cell(kernels: Sequence[Kernel]) -> str:
    def span(name: str) -> str:
        values = sorted({getattr(kernel, name) for kernel in kernels}, key=lambda value: -1 if value is None else value)
        return "?" if None in values else "-".join(str(value) for value in dict.fromkeys((values[0], values[-1])))

    lost = sorted({kernel.stack + kernel.spills for kernel in kernels})
    wide = f"{span('wide_loads')} + {span('wide_stores')}"
    return f"{span('registers')} / {lost[-1]} / {span('shared')} / {wide} / {span('products')}" if kernels else ""


def compiler_version() -> str:
    """``13.0`` and so on, of the nvcc in $CUDA_HOME/bin or on the PATH; empty where there is none."""
    home = os.environ.get("CUDA_HOME")
    nvcc = (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout if nvcc else ""
    found = re.search(r"release (\d+\.\d+)", said)
    return found.group(1) if found else ""


def main() -> None:
    """Print the table, and write it to `KNOWN` or compare it; exit 1 if the gate refuses a kernel or they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"to {KNOWN.name}, for this nvcc")
    arguments = parser.parse_args()
    kernels = survey()
    if not kernels:
        raise SystemExit(f"no reports of ptxas in {BUILD}: install with nvcc, IFAN_CUDA=require pip install -e .")
    made, faults = table(kernels), [fault for kernel in kernels for fault in kernel.faults()]
    print(records.markdown(made, ("kernel", "types")))
    if arguments.write:
        records.write(KNOWN, compiler_version(), made)
    else:
        faults += records.differences(KNOWN, compiler_version(), made)
    print(*faults, sep="\n")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
