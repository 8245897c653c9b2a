"""Builds ``driver.cpp`` with the kernels of one instruction set, as setup.py compiles them."""

from __future__ import annotations

import os
import platform
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
X86 = platform.machine() in ("x86_64", "AMD64")


def needs(program: str) -> str:
    """The path of a program; skips the test, naming the reason, where it is missing."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def compiler() -> str:
    """The compiler that setup.py takes; skips the test where there is none."""
    found: str | None = runpy.run_path(str(ROOT / "setup.py"))["compiler"]()
    if found is None:
        pytest.skip("no C++ compiler found")
    return found


def build_driver(name: str, isa: str, extra: str = "", cxx: str | None = None) -> Path:
    """The driver in ``build/driver/<name>``, compiled again where a source is newer.

    ``isa``: ``baseline``, ``avx2`` or ``avx512``; ``extra``: further flags; ``cxx``: another compiler.
    """
    import ninja

    setup = runpy.run_path(str(ROOT / "setup.py"))
    folder = ROOT / "build" / "driver" / name
    folder.mkdir(parents=True, exist_ok=True)
    flags = f"{setup['FLAGS']} -g {setup['ISAS'].get(isa, '')} -DIFAN_ISA={isa} -I{ROOT}/csrc/cpu {extra}"
    lines = [
        f"cxx = {cxx or compiler()}",
        f"rule compile\n  command = $cxx -MMD -MF $out.d {flags} -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = $cxx {extra} -pthread $in -o $out",
    ]
    sources = [*sorted(ROOT.glob("csrc/cpu/**/*.cpp")), Path(__file__).with_name("driver.cpp")]
    kept = [source for source in sources if source.stem != "isa" and not source.stem.endswith("_bf16")]
    objects = {f"{source.stem}.o": source for source in kept}
    lines += [f"build {target}: compile {source}" for target, source in objects.items()]
    lines.append(f"build driver: link {' '.join(objects)}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    command = [os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "driver"
