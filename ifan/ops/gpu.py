"""The GPU kernels: loaded on first use; what they refuse; which of them have passed a check on a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifan.ops import native
from ifan.ops.call import constant_in_graphs

RECORD = Path(__file__).resolve().parents[1] / "_gpu_check.json"
"""Written by a check of the kernels on a GPU: ``{backend: name of the GPU it passed on}``."""

TRITON_FIX = "pip install triton (it comes with PyTorch's GPU builds), or use backend 'auto' or 'reference'"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_TASKS = 32  # kMaxTasks in csrc/cuda/call.h: they travel in the kernels' arguments


def kernels(backend: str, op: str) -> Any:
    """The module with ``forward`` and ``backward`` of an operation on a GPU; ``backend`` is ``triton`` or ``cuda``."""
    return importlib.import_module(f"ifan.kernels.{op}" if backend == "triton" else f"ifan.ops.backends.cuda.{op}")


@constant_in_graphs
def triton_missing() -> str | None:
    """Reason why Triton kernels cannot be loaded; ``None`` when they can."""
    return None if importlib.util.find_spec("triton") else "Triton is not installed"


def triton_refusal(*tensors: Tensor) -> str | None:
    """Reason why the Triton kernels cannot take these inputs; ``None`` when they can."""
    for x in tensors:
        if x.device.type != "cuda" and not _interpreted():
            return f"an input lies on {x.device}, not on a GPU (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
        if x.dtype not in DTYPES:
            return f"an input's dtype is {x.dtype}, not float32, float16 or bfloat16"
    return None


@constant_in_graphs
def cuda_missing() -> str | None:
    """Reason why the CUDA kernels cannot run here; ``None`` when they can."""
    return native.cuda_refusal()


def cuda_refusal(*tensors: Tensor) -> str | None:
    """Reason why the CUDA kernels cannot take these inputs; ``None`` when they can."""
    for x in tensors:
        if x.device.type != "cuda" and not _emulated():
            return f"an input lies on {x.device}, not on a GPU"
        if x.dtype not in DTYPES:
            return f"an input's dtype is {x.dtype}, not float32, float16 or bfloat16"
    return None


def tasks_refusal(*tensors: Tensor) -> str | None:
    """As `cuda_refusal`, for operations whose last input is ``(T, C)``."""
    refusal, tasks = cuda_refusal(*tensors), tensors[-1].shape[0]
    if refusal is None and tasks > MOST_TASKS:
        return f"there are {tasks} tasks, more than {MOST_TASKS}"
    return refusal


@constant_in_graphs
def _emulated() -> bool:
    return bool(native.cuda_module().emulated)


@constant_in_graphs
def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@constant_in_graphs
def checked_on(backend: str) -> str | None:
    """The GPU on which the backend's kernels passed their check; ``None`` if on none yet."""
    try:
        found = json.loads(RECORD.read_text(encoding="utf-8")).get(backend)
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) and found else None
