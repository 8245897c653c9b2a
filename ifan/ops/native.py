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


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("ifan._cpu"), ""
    except ImportError as error:
        note = build_note().get("ifan._cpu", "")
        return None, note if note and note != "built" else f"ifan._cpu does not load ({error})"


def cpu_module() -> ModuleType:
    """The compiled CPU kernels; ``ImportError`` names the reason and the fix."""
    module, reason = _load()
    if module is None:
        raise ImportError(f"{reason}; {FIX}")
    return module


def cpu_refusal() -> str | None:
    """Why the compiled CPU kernels are missing; ``None`` when they are there."""
    module, reason = _load()
    return None if module is not None else reason


def input_refusal(*tensors: Tensor) -> str | None:
    """Why the kernels cannot take these tensors; ``None`` if they can."""
    for x in tensors:
        if x.device.type != "cpu":
            return f"an input lies on {x.device}, not on the CPU"
        if x.dtype not in DTYPES:
            return f"an input's dtype is {x.dtype}, not float32, bfloat16 or float16"
    return None


def in_dtypes_of(inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Each input's gradient, which the kernels make in float32, in the input's own dtype."""
    return [gradient.to(value.dtype) for value, gradient in zip(inputs, gradients, strict=True)]


def build_note() -> dict[str, str]:
    """What the installation said about each native module; empty when nothing was noted."""
    try:
        return dict(json.loads(BUILD_NOTE.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
