"""The native modules: loaded on first use; a failure is kept with its reason and the fix. Needs no PyTorch."""

from __future__ import annotations

import importlib
import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

BUILD_NOTE = Path(__file__).resolve().parent / "_build.json"
FIX = "install a C++ compiler (g++ or clang++) and reinstall ifan; IFAN_NATIVE=require shows the compiler's message"
CUDA_FIX = (
    "it takes an NVIDIA driver and, when ifan is installed, nvcc of CUDA 12.8 or newer (IFAN_CUDA=require shows its "
    "message); or use backend 'auto' or 'reference'"
)


@lru_cache(maxsize=2)
def _load(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(name), ""
    except ImportError as error:
        note = build_note().get(name, "")
        return None, note if note and note != "built" else f"{name} does not load ({error})"


def cpu_module() -> ModuleType:
    """The compiled CPU kernels; ``ImportError`` names the reason and the fix."""
    module, reason = _load("ifan._cpu")
    if module is None:
        raise ImportError(f"{reason}; {FIX}")
    return module


def kernels_in_use() -> str:
    """Kernels that packed weights and plans are made for: the instruction set, and ``+amx`` where bfloat16 goes through
    AMX tiles."""
    features = cpu_module().features()
    return f"{features['isa']}{'+amx' * features['tiles']}"


def bf16_refusal() -> str | None:
    """Reason why the compiled CPU kernels cannot multiply in bfloat16 here; ``None`` if they can."""
    module, reason = _load("ifan._cpu")
    if module is None:
        return reason
    features = module.features()
    return None if features["bf16"] else f"{features['processor']} has no AVX512_BF16"


def cpu_refusal() -> str | None:
    """Reason why the compiled CPU kernels are missing; ``None`` if they are there."""
    module, reason = _load("ifan._cpu")
    return None if module is not None else reason


def cuda_module() -> ModuleType:
    """The compiled CUDA kernels; ``ImportError`` names the reason and the fix."""
    module, reason = _load("ifan._cuda")
    if module is None:
        raise ImportError(f"{reason}; {CUDA_FIX}")
    return module


def cuda_refusal() -> str | None:
    """Reason why the compiled CUDA kernels cannot run here; ``None`` if they can. Does not touch a GPU."""
    module, reason = _load("ifan._cuda")
    if module is None:
        return reason
    runtime, driver = (module.versions()[key] for key in ("runtime", "driver"))
    if module.emulated or driver >= runtime:
        return None
    found = f"the NVIDIA driver serves CUDA up to {_version(driver)}" if driver else "there is no NVIDIA driver"
    return f"ifan._cuda loads, but {found}; it was built with CUDA {_version(runtime)}"


def _version(number: int) -> str:
    """13000 as 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def build_note() -> dict[str, str]:
    """Notes of the installation about each native module; empty when nothing was noted."""
    try:
        return dict(json.loads(BUILD_NOTE.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def thread_count() -> int:
    """Threads for native kernels: as many as PyTorch uses where it is loaded; else ``OMP_NUM_THREADS``, or as many as
    there are processors that this process may use."""
    torch = sys.modules.get("torch")
    if hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())  # type: ignore[union-attr]
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
