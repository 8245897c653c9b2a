"""Instructions that each native kernel executes at one thread, counted by valgrind's callgrind.

``python -m tests.native.instructions`` prints what was counted beside what is expected; ``--write`` makes the one the
other. Valgrind 3.19 knows no AVX-512, so the kernels compiled for AVX2 are counted. Only the kernels' own calls are:
drawing the inputs and comparing the results are not.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.native.build import build_driver, compiler

EXPECTED = Path(__file__).with_name("instruction_counts.yaml")
HEADER = """\
# Instructions of the native kernels (AVX2, one thread) on the cases of driver.cpp, counted by valgrind.
# Rewritten by `make instruction-counts`. A count may grow by `margin`, with another compiler by `other_compiler`.
"""
_DUMP = re.compile(r"^desc: Trigger: Client Request: (\w+)$.*?^totals: (\d+)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Expected:
    """The committed counts, the compiler that gave them, and by what share a count may grow."""

    compiler: str
    margin: float
    other_compiler: float
    counts: dict[str, int]

    def complaints(self, counted: dict[str, int], version: str) -> list[str]:
        """One line for each count that grew too much or has no counterpart."""
        margin = self.margin if version == self.compiler else self.other_compiler
        lines = []
        for name in {**self.counts, **counted}:
            before, now = self.counts.get(name), counted.get(name)
            if before is None or now is None:
                lines.append(f"{name}: expected {before} instructions; got {now}.")
            elif now > before * (1 + margin):
                lines.append(f"{name}: expected at most {before} + {margin:.0%} instructions; got {now}.")
        return lines


def expected() -> Expected:
    """What is committed."""
    return Expected(**yaml.safe_load(EXPECTED.read_text(encoding="utf-8")))


def compiler_version() -> str:
    """The first line of what the compiler says of itself."""
    out = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    return out.splitlines()[0].strip()


def count_instructions() -> dict[str, int]:
    """Instructions of each case of the driver; empty where the driver was compiled without valgrind's header."""
    driver, counts = build_driver("counted", "avx2"), dict[str, int]()
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", driver, "--only-run"]
        subprocess.run(command, check=True, capture_output=True)
        for path in Path(folder).iterdir():
            for name, total in _DUMP.findall(path.read_text(errors="replace")):
                counts[name] = counts.get(name, 0) + int(total)
    return dict(sorted(counts.items()))


def main() -> None:
    """Print the counts, and with ``--write`` expect them from now on."""
    counted, before = count_instructions(), expected()
    for name, count in counted.items():
        was = before.counts.get(name)
        print(f"{name:32} {count:>12,}" + (f"  expected {was:>12,}  {count / was - 1:+.2%}" if was else "  new"))
    if "--write" in sys.argv[1:]:
        values = {
            "compiler": compiler_version(),
            "margin": before.margin,
            "other_compiler": before.other_compiler,
            "counts": counted,
        }
        EXPECTED.write_text(HEADER + yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
