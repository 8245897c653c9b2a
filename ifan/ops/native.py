"""The native modules: loaded on first use; a failure is kept with its reason and the fix."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

BUILD_NOTE = Path(__file__).resolve().parents[1] / "_build.json"
FIX = "install a C++ compiler (g++ or clang++) and reinstall ifan; IFAN_NATIVE=require shows the compiler's message"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels take; they read float32, so the others are converted before and after."""
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
    """What packed weights and plans depend on: the instruction set, and whether bfloat16 goes through tiles."""
    features = cpu_module().features()
    return f"{features['isa']}{'+amx' * features['tiles']}"


def bf16_refusal() -> str | None:
    """Why the compiled CPU kernels cannot multiply in bfloat16 here; ``None`` when they can."""
    module, reason = _load("ifan._cpu")
    if module is None:
        return reason
    features = module.features()
    return None if features["bf16"] else f"{features['processor']} has no AVX512_BF16"


def cpu_refusal() -> str | None:
    """Why the compiled CPU kernels are missing; ``None`` when they are there."""
    module, reason = _load("ifan._cpu")
    return None if module is not None else reason


def input_refusal(*tensors: Tensor) -> str | None:
    """Why the kernels cannot take these tensors; ``None`` if they can."""
    for x in tensors:
        if x.device.type != "cpu":
            return f"an input lies on {x.device}, not on the CPU"
        if x.dtype not in DTYPES:
            return f"an input's dtype is {x.dtype}, not float32, bfloat16 or float16"
    return None


def cuda_module() -> ModuleType:
    """The compiled CUDA kernels; ``ImportError`` names the reason and the fix."""
    module, reason = _load("ifan._cuda")
    if module is None:
        raise ImportError(f"{reason}; {CUDA_FIX}")
    return module


def cuda_refusal() -> str | None:
    """Why the compiled CUDA kernels cannot run here; ``None`` when they can. Does not touch a GPU."""
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


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)`` without a call of PyTorch where nothing is to be done, which most often is so."""
    return x if x.dtype == dtype else x.to(dtype)


def in_dtypes_of(inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Each input's gradient, which the kernels make in float32, in the input's own dtype."""
    return [in_dtype(gradient, value.dtype) for value, gradient in zip(inputs, gradients, strict=True)]


def build_note() -> dict[str, str]:
    """What the installation said about each native module; empty when nothing was noted."""
    try:
        return dict(json.loads(BUILD_NOTE.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
