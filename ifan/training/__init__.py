"""Cross-dataset hybrid training; the names below are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifan.safetensors_io import CheckpointError
    from ifan.training.model import build_model, export, load_weights
    from ifan.training.trainer import RunOptions, Trainer

__all__ = ["CheckpointError", "RunOptions", "Trainer", "build_model", "export", "load_weights"]

_HOMES = {
    "CheckpointError": "ifan.safetensors_io",
    "RunOptions": "ifan.training.trainer",
    "Trainer": "ifan.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ifan.training' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "ifan.training.model")), name)
