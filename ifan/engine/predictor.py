"""The one seam between an analyzer and what computes: crops in, predictions out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from ifan.config import NetworkConfig, TaskConfig
from ifan.cuda_graph import GraphRunner, in_bfloat16
from ifan.engine.engine import Engine
from ifan.network import IFAN, Lanes, Predictions
from ifan.ops.dispatch import current_backend
from ifan.ops.native import cpu_refusal


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
    """The network in evaluation mode; on a CPU its native engine, where that is there; on a GPU its CUDA graphs.

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
        if iterations is not None and iterations < 1:
            raise ValueError(f"iterations must be at least 1; got {iterations}")
        self.config, self.iterations = network.config, iterations
        self.looks = network.config.check_looks(network.config.looks if looks is None else looks)
        self.device = _usable(device)
        self.network = network.to(self.device).eval()
        self.tasks = tuple(self.config.task(name) for name in (tasks or [t.name for t in self.config.tasks]))
        self._needed = self.config.needed(self.tasks, self.looks)
        self._engine = self._make_engine(precision)

    def _make_engine(self, precision: str) -> Engine | GraphRunner | None:
        weight, names = self.network.stem.weight, self._needed
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision: expected 'fp32' or 'bf16'; got {precision!r}")
        if self.device.type == "cuda":
            network = in_bfloat16(self.network) if precision == "bf16" else self.network
            return GraphRunner(network, self.iterations, names)
        native = current_backend() in ("auto", "cpu") and cpu_refusal() is None
        if self.device.type != "cpu" or weight.dtype != torch.float32 or not native:
            if precision != "fp32":
                raise ValueError(
                    f"precision {precision!r}: expected a float32 network on the CPU with the native engine; got "
                    f"{weight.dtype} on {self.device}, backend {current_backend()!r}, native kernels "
                    f"{cpu_refusal() or 'loaded'}. Use 'fp32'."
                )
            return None
        return Engine(self.network, self.iterations, names, precision)

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray, scenes: Sequence[np.ndarray] = ()) -> dict[str, np.ndarray]:
        """See `Predictor`. Raises ``ValueError`` when the weights are so damaged that a prediction is not finite."""
        images = torch.from_numpy(crops).to(self.device)
        if self.looks == 1:
            last = self._last_iteration(images, None)
        else:
            from ifan.refine import look  # needs OpenCV

            last = look(self.network, lambda *seen: [self._last_iteration(*seen)], images, scenes, self.looks)[-1]
        found: dict[str, torch.Tensor] = {}
        for task in self.tasks:
            if task.kind == "parsing":
                found[task.name] = last.parsing_logits.float().softmax(1)
            elif task.kind == "landmarks":
                found[task.name] = last.points.float()
            else:
                found[task.name] = last.class_logits[task.name].float().softmax(1)
        finite = torch.stack([value.isfinite().all() for value in found.values()]).tolist()  # one wait for a GPU
        for name, sound in zip(found, finite, strict=True):
            if not sound:
                raise ValueError(
                    f"the network's {name} predictions are not finite: its weights are damaged; use others"
                )
        return {name: value.cpu().numpy() for name, value in found.items()}

    def _last_iteration(self, images: torch.Tensor, planes: torch.Tensor | None) -> Predictions:
        """From the label means, or one iteration from ``planes``."""
        if self._engine is not None:
            return self._engine(images) if planes is None else self._engine.iterate(images, planes)
        lanes = Lanes.for_tasks(images.shape[0], self.config, self._needed, self.device)
        return self.network(images, lanes, self.iterations if planes is None else 1, planes=planes)[-1]


def _usable(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f'device {str(device)!r} cannot be used here ({reason}); use "cpu"') from error
    return found
