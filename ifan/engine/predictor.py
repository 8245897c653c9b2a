"""The choice of what runs a network: the native engine or PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from ifan.config import NetworkConfig
from ifan.device import usable_device
from ifan.engine.engine import Engine
from ifan.network import IFAN
from ifan.ops.native import cpu_refusal
from ifan.predictions import FacePredictions
from ifan.torch_runner import TorchRunner
from ifan.weights import SavedModel, network_of


class Runner(Protocol):
    """Whatever turns crops into raw predictions: an `Engine` or a `TorchRunner`."""

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

    Arguments and errors are those of `Engine` and `TorchRunner`.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: expected 'fp32' or 'bf16'; got {precision!r}")
    saved, backend = isinstance(model, SavedModel), _backend()
    where = usable_device(device)
    native = where.type == "cpu" and backend in ("auto", "cpu") and cpu_refusal() is None
    if native and isinstance(model, SavedModel):
        return Engine(model, iterations=iterations, tasks=tasks, precision=precision)
    network = network_of(model) if isinstance(model, SavedModel) else model
    if native and network.stem.weight.dtype == torch.float32:
        return Engine.from_network(network.to(where), iterations=iterations, tasks=tasks, precision=precision)
    if precision != "fp32" and where.type != "cuda":
        raise ValueError(
            f"precision {precision!r}: expected a float32 network on the CPU with the native engine; got "
            f"{'float32' if saved else network.stem.weight.dtype} on {where}, backend {backend!r}, native kernels "
            f"{cpu_refusal() or 'loaded'}. Use 'fp32'."
        )
    return TorchRunner(network, where, iterations, tasks, precision)


def _backend() -> str:
    """The backend of the operations; where they are not loaded yet, the one of the environment."""
    dispatch = sys.modules.get("ifan.ops.dispatch")
    return str(dispatch.current_backend() if dispatch else os.environ.get("IFAN_BACKEND") or "auto")
