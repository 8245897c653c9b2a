"""The seam between an analyzer and what computes: crops in, predictions out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from ifan.config import NetworkConfig, TaskConfig
from ifan.device import usable_device
from ifan.engine.engine import Engine
from ifan.network import IFAN, Predictions
from ifan.ops.native import cpu_refusal
from ifan.predictions import FacePredictions
from ifan.torch_runner import TorchRunner, face_predictions
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


class Predictor(Protocol):
    """Whatever turns crops into predictions, such as a `NetworkPredictor`."""

    config: NetworkConfig
    tasks: tuple[TaskConfig, ...]
    """What it predicts, in order."""

    def __call__(self, crops: np.ndarray, scenes: Sequence[np.ndarray] = ()) -> dict[str, np.ndarray]:
        """Predictions of ``crops`` (N, 3, I, I) uint8 RGB by task name, float32: parsing probabilities (N, K, S, S) or
        finer, points (N, 2, P) normalised to the crop, probabilities of a classification (N, C). ``scenes``: what
        closer looks are cut from, a crop each (`ifan.refine`); none where there is one look."""
        ...


class NetworkPredictor:
    """A network's predictions by the fastest runner.

    Args:
        network: the network; moved to ``device`` and put into evaluation mode.
        iterations: feedback iterations; ``None`` = as its configuration says.
        tasks: names of the tasks that are wanted; ``None`` = all. All feed the iterations before the last.
        precision: ``"fp32"``, or ``"bf16"``: of the native engine (see `Engine`), on a GPU of the convolutions.
        looks: how often each face is looked at (`ifan.refine`); ``None`` = as its configuration says.

    Raises:
        ValueError: unknown task or precision, unusable device, a number out of range, no bf16 here.
    """

    def __init__(
        self,
        network: IFAN,
        device: str | torch.device = "cpu",
        iterations: int | None = None,
        tasks: Sequence[str] | None = None,
        precision: str = "fp32",
        looks: int | None = None,
    ) -> None:
        self.config = network.config
        self.looks = network.config.check_looks(network.config.looks if looks is None else looks)
        self.network = network.to(usable_device(device)).eval()
        self.tasks = tuple(self.config.task(name) for name in (tasks or [t.name for t in self.config.tasks]))
        needed = self.config.needed(self.tasks, self.looks)
        self.runner = make_runner(network, device, iterations=iterations, tasks=needed, precision=precision)

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray, scenes: Sequence[np.ndarray] = ()) -> dict[str, np.ndarray]:
        """See `Predictor`. Raises ``ValueError`` when the weights are so damaged that a prediction is not finite."""
        if self.looks == 1:
            last = self.runner(crops)
        else:
            from ifan.refine import look  # needs OpenCV

            images = torch.from_numpy(crops).to(self.network.stem.weight.device)
            last = face_predictions(look(self.network, self._one, images, scenes, self.looks)[-1])
        found: dict[str, np.ndarray] = {}
        for task in self.tasks:
            if task.kind == "parsing":
                found[task.name] = _softmax(last.parsing_logits)
            elif task.kind == "landmarks":
                found[task.name] = last.points
            else:
                found[task.name] = _softmax(last.class_logits[task.name])
        for name, value in found.items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"the network's {name} predictions are not finite: its weights are damaged; use others"
                )
        return found

    def _one(self, images: torch.Tensor, planes: torch.Tensor | None) -> list[Predictions]:
        """From the label means, or one iteration from ``planes``."""
        runner = self.runner
        return [runner._run(images, planes) if isinstance(runner, Engine) else runner._last_pass(images, planes)]  # type: ignore[attr-defined]


def _softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(1).numpy()
