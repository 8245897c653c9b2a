"""Cross-dataset hybrid training; the names below are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ifan.optional import lazy

if TYPE_CHECKING:
    from ifan.safetensors_io import CheckpointError
    from ifan.training.model import build_model, export, load_weights
    from ifan.training.trainer import RunOptions, Trainer

__all__ = ["CheckpointError", "RunOptions", "Trainer", "build_model", "export", "load_weights"]

__getattr__ = lazy(
    __name__,
    {
        "CheckpointError": "ifan.safetensors_io",
        "RunOptions": "ifan.training.trainer",
        "Trainer": "ifan.training.trainer",
        "build_model": "ifan.training.model",
        "export": "ifan.training.model",
        "load_weights": "ifan.training.model",
    },
)
