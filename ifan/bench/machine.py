"""Conditions of a figure: processor, threads, versions, commit, and the machine's own limits."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ifan import __version__
from ifan.ops.native import cpu_module, cpu_refusal
from ifan.processor import processor

PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "triton")
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Processor features, one of which makes bfloat16 arithmetic native."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Measured limits: ``copy`` in bytes a second (read and written), ``gemm`` in FLOP a second by dtype's name."""

    copy: float
    gemm: dict[str, float]


def has_bf16(device: str) -> bool:
    """True if bfloat16 arithmetic is native there."""
    return torch.cuda.is_bf16_supported() if device == "cuda" else bool(BF16 & set(processor()[1]))


def describe(device: str) -> dict[str, Any]:
    """Commit, processor or GPU, instruction set of the native kernels, threads and versions: part of every row."""
    return {
        "commit": commit(),
        "processor": torch.cuda.get_device_name() if device == "cuda" else processor()[0],
        "isa": cpu_module().features()["isa"] if cpu_refusal() is None else "none",
        "threads": torch.get_num_threads(),
        "versions": {"ifan": __version__, "python": platform.python_version(), **_versions()},
    }


def commit() -> str | None:
    """The commit of the checkout the package lies in, with a + if tracked files were changed; ``None`` elsewhere."""
    root = checkout()
    if root is None:
        return None
    try:
        git = ["git", "-C", str(root)]
        found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + ("+" if changed else "")


def checkout() -> Path | None:
    """The root of the source tree the package runs from, if it does."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "benchmarks").is_dir() and (root / "pyproject.toml").is_file() else None


def peaks(device: str, dtypes: tuple[str, ...] = ("float32",), seconds: float = 0.4) -> Peaks:
    """Measure the copy bandwidth and the matrix-multiply rate of each dtype."""
    big = torch.ones(48 << 20, dtype=torch.uint8, device=device).view(torch.float32).repeat(4)
    target = torch.empty_like(big)
    copy = 2 * big.nbytes / _fastest(lambda: target.copy_(big), device, seconds)
    side, rates = 4096 if device == "cuda" else 1536, {}
    for name in dtypes:
        a, b = (torch.rand(side, side, device=device).to(getattr(torch, name)) for _ in range(2))
        out = torch.empty_like(a)
        multiply = _multiplication(a, b, out)
        rates[name] = 2 * side**3 / _fastest(multiply, device, seconds)
    return Peaks(copy, rates)


def _multiplication(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Callable[[], Any]:
    return lambda: torch.mm(a, b, out=out)


def synchronise(device: str) -> None:
    """Wait for a GPU; nothing to do on the CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def _fastest(run: Callable[[], Any], device: str, seconds: float) -> float:
    run()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds or best == float("inf"):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return best


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
