"""The choice of what runs a network: the native engine, or PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ifan import weights  # what needs PyTorch there is loaded where it is called
from ifan.config import NetworkConfig
from ifan.engine.engine import Engine
from ifan.native import FIX, cpu_refusal
from ifan.optional import MissingPackageError
from ifan.predictions import FacePredictions
from ifan.weights import SavedModel

if TYPE_CHECKING:
    import torch

    from ifan.network import IFAN


class Runner(Protocol):
    """Whatever turns crops into raw predictions: an `Engine` or an `ifan.torch_runner.TorchRunner`."""

    config: NetworkConfig
    iterations: int

    def __call__(self, images: np.ndarray, begun: FacePredictions | None = None, /) -> FacePredictions:
        """The last pass's predictions for ``images (N, 3, I, I)`` RGB uint8, a row a face; see `Engine`."""
        ...


def make_runner(
    model: SavedModel | IFAN,
    device: str | torch.device = "cpu",
    *,
    iterations: int | None = None,
    tasks: Sequence[str] | None = None,
    precision: str = "fp32",
) -> Runner:
    """The fastest runner on ``device``: on a CPU the native engine where it is there, else PyTorch.

    Arguments and errors are those of `Engine` and `TorchRunner`; ``ImportError`` where neither is there.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: expected 'fp32' or 'bf16'; got {precision!r}")
    refusal = _native_refusal(model, str(device))
    if refusal is None:
        saved = model if isinstance(model, SavedModel) else weights.model_of(model)
        return Engine(saved, iterations=iterations, tasks=tasks, precision=precision)
    try:
        from ifan.torch_runner import TorchRunner
    except ImportError as error:
        fix = f"; or {FIX}" if refusal == cpu_refusal() else ""
        raise MissingPackageError(f"{refusal}: this needs PyTorch: pip install 'ifan[torch]'{fix}") from error
    network = weights.network_of(model) if isinstance(model, SavedModel) else model
    if precision != "fp32" and not str(device).startswith("cuda"):
        raise ValueError(
            f"precision {precision!r}: expected a float32 network on the CPU with the native engine; got {refusal}. "
            "Use 'fp32'."
        )
    return TorchRunner(network, device, iterations, tasks, precision)


def _native_refusal(model: SavedModel | IFAN, device: str) -> str | None:
    """Reason why the native engine is not taken; ``None`` if it is."""
    # Nobody has chosen another backend where the operations have not been imported.
    dispatch = sys.modules.get("ifan.ops.dispatch")
    backend = dispatch.current_backend() if dispatch else os.environ.get("IFAN_BACKEND") or "auto"
    if device != "cpu":
        return f"device {device!r}"
    if backend not in ("auto", "cpu"):
        return f"backend {backend!r}"
    if not isinstance(model, SavedModel):
        weight = model.stem.weight
        if (weight.device.type, str(weight.dtype)) != ("cpu", "torch.float32"):
            return f"{weight.dtype} on {weight.device}"
    return cpu_refusal()
