"""The choice of what runs a network: the native engine, or PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ifan.config import NetworkConfig, TaskConfig
from ifan.engine.engine import Engine
from ifan.native import FIX, cpu_refusal
from ifan.predictions import FacePredictions
from ifan.weights import SavedModel, model_of, network_of

if TYPE_CHECKING:
    import torch

    from ifan.network import IFAN, Predictions


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
        saved = model if isinstance(model, SavedModel) else model_of(model)
        return Engine(saved, iterations=iterations, tasks=tasks, precision=precision)
    try:
        from ifan.torch_runner import TorchRunner
    except ImportError as error:
        raise ImportError(
            f"the native engine cannot be used ({refusal}), and PyTorch is missing ({error}): pip install "
            f"'ifan[torch]', or {FIX}"
        ) from error
    network = network_of(model) if isinstance(model, SavedModel) else model
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
        from ifan.device import usable_device

        self.network = network.to(usable_device(device)).eval()
        self.tasks = tuple(self.config.task(name) for name in (tasks or [t.name for t in self.config.tasks]))
        needed = self.config.needed(self.tasks, self.looks)
        self.runner = make_runner(network, device, iterations=iterations, tasks=needed, precision=precision)

    def __call__(self, crops: np.ndarray, scenes: Sequence[np.ndarray] = ()) -> dict[str, np.ndarray]:
        """See `Predictor`. Raises ``ValueError`` when the weights are so damaged that a prediction is not finite."""
        if self.looks == 1:
            last = self.runner(crops)
        else:
            import torch

            from ifan.refine import look  # needs OpenCV
            from ifan.torch_runner import face_predictions

            images = torch.from_numpy(crops).to(self.network.stem.weight.device)
            with torch.inference_mode():
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
        from ifan.torch_runner import TorchRunner, torch_predictions

        if planes is None:
            return [torch_predictions(self.runner(images.cpu().numpy()), images.device)]
        return [TorchRunner(self.network, images.device)._last_pass(images, planes)]


def _softmax(logits: np.ndarray) -> np.ndarray:
    import torch

    return torch.from_numpy(logits).softmax(1).numpy()
