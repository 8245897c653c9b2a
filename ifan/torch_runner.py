"""A PyTorch network called like the native engine: numpy in, numpy out, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ifan.cuda_graph import GraphRunner, in_bfloat16
from ifan.device import usable_device
from ifan.network import IFAN, Lanes, Predictions
from ifan.predictions import FacePredictions, check_inputs


class TorchRunner:
    """A network in evaluation mode: on a GPU by CUDA graphs, elsewhere as it is.

    Args:
        network: the network; moved to ``device`` and put into evaluation mode.
        device: where it runs.
        iterations: passes, each of which begins with what the one before found; ``None`` = as the configuration says.
        tasks: names of what the last pass predicts; ``None`` = all. Earlier passes always predict everything.
        precision: ``"fp32"``, or on a GPU ``"bf16"``: convolutions in bfloat16.

    Raises ``ValueError`` for an unknown task or precision, an unusable device, fewer than one iteration.
    """

    def __init__(
        self,
        network: IFAN,
        device: str | torch.device = "cpu",
        iterations: int | None = None,
        tasks: Sequence[str] | None = None,
        precision: str = "fp32",
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision: expected 'fp32' or 'bf16'; got {precision!r}")
        self.config = network.config
        self.iterations = self.config.iterations_per_crop if iterations is None else iterations
        if self.iterations < 1:
            raise ValueError(f"iterations: expected at least 1; got {self.iterations}")
        names = [t.name for t in self.config.tasks]
        wanted = names if tasks is None else [self.config.task(t).name for t in tasks]
        self.tasks = [n for n in names if n in wanted]
        self.device = usable_device(device)
        self.network = network.to(self.device).eval()
        self._graphs: GraphRunner | None = None
        if self.device.type == "cuda":
            on_gpu = in_bfloat16(self.network) if precision == "bf16" else self.network
            self._graphs = GraphRunner(on_gpu, self.iterations, self.tasks)
        elif precision != "fp32":
            raise ValueError(
                f"precision {precision!r}: expected a GPU or the native engine; got {self.device}. Use 'fp32'."
            )

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, begun: FacePredictions | None = None) -> FacePredictions:
        """The last pass's predictions for ``images (N, 3, I, I)`` RGB uint8, a row a face.

        All passes from the label means, or one later pass that begins with the predictions ``begun`` of all tasks.
        """
        check_inputs(self.config, images, begun)
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        planes = None
        if begun is not None:
            planes = self.network.encode(torch_predictions(begun, self.device), len(images))
        return face_predictions(self._last_pass(pixels, planes))

    def _last_pass(self, images: torch.Tensor, planes: torch.Tensor | None) -> Predictions:
        if self._graphs is not None:
            return self._graphs(images) if planes is None else self._graphs.iterate(images, planes)
        lanes = Lanes.for_tasks(images.shape[0], self.config, self.tasks, self.device)
        return self.network(images, lanes, self.iterations if planes is None else 1, planes=planes)[-1]


def torch_predictions(found: FacePredictions, device: torch.device | str = "cpu") -> Predictions:
    """Predictions as a network takes them, on ``device``."""
    classes = {name: torch.from_numpy(logits).to(device) for name, logits in found.class_logits.items()}
    rows = {name: torch.arange(len(logits), device=device) for name, logits in classes.items()}
    parsing, points = (torch.from_numpy(value).to(device) for value in (found.parsing_logits, found.points))
    return Predictions(parsing, points, classes, rows)


def face_predictions(found: Predictions) -> FacePredictions:
    """Predictions of a network, whose rows are faces in their order, as numpy arrays."""

    def array(value: torch.Tensor) -> np.ndarray:
        return np.asarray(value.detach().float().cpu().numpy())

    classes = {name: array(logits) for name, logits in found.class_logits.items()}
    return FacePredictions(array(found.parsing_logits), array(found.points), classes)
