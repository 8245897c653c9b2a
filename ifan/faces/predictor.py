"""The seam between an analyzer and what computes: crops in, predictions out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypedDict

import numpy as np

from ifan.config import NetworkConfig, TaskConfig
from ifan.engine.predictor import make_runner
from ifan.predictions import FacePredictions
from ifan.refine import around, reaching_out, refine, softmax
from ifan.weights import SavedModel

if TYPE_CHECKING:
    import torch

    from ifan.network import IFAN


class Predictor(Protocol):
    """Whatever turns crops into predictions, such as a `NetworkPredictor`."""

    config: NetworkConfig
    tasks: tuple[TaskConfig, ...]
    """Tasks that it predicts, in order."""

    def __call__(
        self, crops: np.ndarray, windows: Sequence[np.ndarray] = (), room: Sequence[bool] = ()
    ) -> dict[str, np.ndarray]:
        """Predictions of ``crops`` (N, 3, I, I) uint8 RGB by task name, float32: parsing probabilities (N, K, S, S) or
        finer, points (N, 2, P) normalised to the crop, probabilities of a classification (N, C). ``windows``: a crop's
        source window each, where several iterations reframe the face (`ifan.refine`). ``room``: True for each crop
        beside which the photo goes on. Then there may be `AROUND_KEY`: parsing probabilities (N, K, S, S) of the crops
        `ifan.refine.AROUND` times as large, NaN where they are not needed."""
        ...


AROUND_KEY = "regions around"
"""Key of what is predicted in a wider crop, beside the tasks' names."""


class NetworkOptions(TypedDict, total=False):
    """Options of a `NetworkPredictor`, each given by its name."""

    iterations: int | None
    tasks: str | Sequence[str] | None
    precision: str


class NetworkPredictor:
    """A network's predictions by the fastest runner, over all iterations.

    Args:
        model: a saved model, or a PyTorch network, which is put into evaluation mode.
        device: where it runs.
        iterations: passes of the network, each begun with what those before it found; ``None`` = as its configuration
            says. Where ``network.reframe`` is set, those after the first see closer crops, and the first one more hair.
        tasks: names of the tasks that are wanted, or one name; ``None`` = all. All feed the iterations before the last.
        precision: ``"fp32"``; ``"bf16"`` on a GPU or with AVX512_BF16: faster, errors in docs/kernels/engine.md.

    Raises:
        ValueError: unknown task or precision, unusable device, a number out of range, no bf16 here.
        ImportError: a device that needs PyTorch, which is not installed.
    """

    def __init__(
        self,
        model: SavedModel | IFAN,
        device: str | torch.device = "cpu",
        *,
        iterations: int | None = None,
        tasks: str | Sequence[str] | None = None,
        precision: str = "fp32",
    ) -> None:
        self.config = config = model.config
        self.iterations = config.check_iterations(config.iterations if iterations is None else iterations)
        if not isinstance(model, SavedModel):
            model.eval()
        names = [tasks] if isinstance(tasks, str) else tasks or [task.name for task in config.tasks]
        self.tasks = tuple(config.task(name) for name in names)
        self.runner = make_runner(
            model,
            device,
            iterations=1 if config.reframe else self.iterations,
            tasks=config.needed(self.tasks, self.iterations),
            precision=precision,
        )

    def __call__(
        self, crops: np.ndarray, windows: Sequence[np.ndarray] = (), room: Sequence[bool] = ()
    ) -> dict[str, np.ndarray]:
        """See `Predictor`. Raises ``ValueError`` when the weights are so damaged that a prediction is not finite."""
        if not self.config.reframe:
            return probabilities(self.tasks, self.runner(crops))
        last = refine(self.config, self.runner, crops, windows, self.iterations)[-1]
        found = probabilities(self.tasks, last)
        wide = np.flatnonzero(reaching_out(self.config, last) & room) if len(room) else np.empty(0, int)
        if len(wide) and self.config.parsing in self.tasks:
            seen = [windows[face] for face in wide.tolist()]
            logits = around(self.config, self.runner, seen, last[wide], crops.shape[-1])
            found[AROUND_KEY] = np.full((len(crops), *logits.shape[1:]), np.nan, np.float32)
            found[AROUND_KEY][wide] = softmax(logits, 1)
        return found


def probabilities(tasks: Sequence[TaskConfig], found: FacePredictions) -> dict[str, np.ndarray]:
    """Predictions of ``tasks`` as `Predictor` gives them.

    Raises ``ValueError`` when the weights are so damaged that a prediction is not finite.
    """
    out = {}
    for task in tasks:
        if task.kind == "parsing":
            out[task.name] = softmax(found.parsing_logits, 1)
        elif task.kind == "landmarks":
            out[task.name] = found.points
        else:
            out[task.name] = softmax(found.class_logits[task.name] / np.float32(task.temperature), 1)
        if not np.isfinite(out[task.name]).all():
            raise ValueError(
                f"the network's {task.name} predictions are not finite: its weights are damaged; use others"
            )
    return out
