"""The whole feedback loop as one native plan: weights repacked once, one arena, one call, no Python between layers.

What is exact and saves work: stem and re-encoders run once for all tasks; the image's share of the stem once for all
iterations; what the first iteration reads are constants; transitions down pool before their 1x1 convolution; skip
channels that stand twice in a concatenation are read once where they are read raw; lanes are ordered so that those
that go on past the landmark tap, and then those that are parsed, come first and nothing is copied.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ifan.config import NetworkConfig
from ifan.cuda_graph import joined
from ifan.engine.recorder import Plan, PlanKey, uninitialised
from ifan.engine.weights import PackedWeights
from ifan.network import IFAN, Predictions, fold_training_extras
from ifan.ops.native import bf16_refusal, cpu_module, kernels_in_use
from ifan.predictions import FacePredictions, check_inputs
from ifan.torch_runner import face_predictions, torch_predictions
from ifan.weights import SavedModel, model_of, network_of

_LARGEST_SLICE = 128 * 128
"""Pixels of the faces that share an arena: more of them outgrow the caches, fewer read the weights more often."""


class Engine:
    """A trained network on the CPU's native kernels.

    Args:
        model: configuration and tensors; these are copied.
        iterations: passes, each of which begins with what the one before found; ``None`` = as the configuration says.
        tasks: names of what the last pass predicts; ``None`` = all. Earlier passes always predict everything.
        precision: ``"fp32"``, or ``"bf16"``: products of the convolutions in bfloat16, sums and all else in float32.

    May be called from several threads at once. Raises ``ValueError`` for an unknown task or precision, or a processor
    without bfloat16 products, and ``ImportError`` where the native kernels are missing.
    """

    def __init__(
        self,
        model: SavedModel,
        *,
        iterations: int | None = None,
        tasks: Sequence[str] | None = None,
        precision: str = "fp32",
    ) -> None:
        _check_precision(precision)
        self.config: NetworkConfig = model.config
        self.iterations = self.config.iterations_per_crop if iterations is None else iterations
        if self.iterations < 1:
            raise ValueError(f"iterations: expected at least 1; got {self.iterations}")
        names = [t.name for t in self.config.tasks]
        wanted = names if tasks is None else [self.config.task(t).name for t in tasks]
        self.tasks = tuple(names.index(n) for n in names if n in wanted)
        self._network = network_of(model)
        self._weights = PackedWeights(fold_training_extras(self._network).eval(), precision == "bf16")
        self._plans: dict[PlanKey, list[Plan]] = defaultdict(list)
        self._lock = threading.Lock()

    @classmethod
    def from_network(
        cls,
        network: IFAN,
        *,
        iterations: int | None = None,
        tasks: Sequence[str] | None = None,
        precision: str = "fp32",
    ) -> Engine:
        """The engine of a PyTorch network, on the CPU in float32; its weights are copied."""
        weight = network.stem.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            raise ValueError(f"Engine: expected a float32 network on the CPU; got {weight.dtype} on {weight.device}")
        return cls(model_of(network), iterations=iterations, tasks=tasks, precision=precision)

    def __call__(self, images: np.ndarray, begun: FacePredictions | None = None) -> FacePredictions:
        """The last pass's predictions for ``images (N, 3, I, I)`` RGB uint8, a row a face.

        All passes from the label means, or one later pass that begins with the predictions ``begun`` of all tasks.
        """
        check_inputs(self.config, images, begun)
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        planes = None if begun is None else self._network.encode(torch_predictions(begun), len(images))
        return face_predictions(self._run(pixels, planes))

    def iterate(self, images: Tensor, planes: Tensor) -> Predictions:
        """One pass from ``planes (N, K + P + sum of C, S, S)``: what the network's ``iterate`` does."""
        return self._run(images, planes)

    def _run(self, images: Tensor, planes: Tensor | None) -> Predictions:
        size = self.config.image_size
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images: expected (N, 3, {size}, {size}) uint8; got {tuple(images.shape)} {images.dtype}. Crop to "
                "that size."
            )
        if not images.shape[0]:
            return uninitialised(self.config, self.tasks, 0)
        largest, threads, parts = (
            max(1, _LARGEST_SLICE // self.config.size**2),
            torch.get_num_threads(),
            list[Predictions](),
        )
        starts = range(0, images.shape[0], largest)
        for first in range(0, len(starts), threads):
            together = starts[first : first + threads]  # a thread a slice, or all threads one slice after another
            groups = [together] if len(together) == threads else [[start] for start in together]
            for group in groups:
                pieces = [slice(start, start + largest) for start in group]
                parts += self._together([(images[i], None if planes is None else planes[i]) for i in pieces])
        return joined(parts)

    def _together(self, slices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Predictions]:
        plans = [self._taken(images.shape[0], planes is not None) for images, planes in slices]
        for plan, (images, planes) in zip(plans, slices, strict=True):
            plan.fill(images, planes)
        cpu_module().run_plans([plan.plan for plan in plans], torch.get_num_threads())
        found = [plan.predictions() for plan in plans]
        with self._lock:
            for plan in plans:
                self._plans[plan.key].append(plan)
        return found

    def _taken(self, count: int, from_planes: bool) -> Plan:
        """A plan for that many faces that nobody runs now."""
        key = (count, from_planes, kernels_in_use())
        with self._lock:
            if self._plans[key]:
                return self._plans[key].pop()
        iterations = 1 if from_planes else self.iterations
        return Plan(key, self._weights, count, iterations, self.tasks, from_planes)


def _check_precision(precision: str) -> None:
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: expected 'fp32' or 'bf16'; got {precision!r}")
    cpu_module()
    if precision == "bf16" and (missing := bf16_refusal()):
        raise ValueError(f"precision 'bf16': expected a processor with AVX512_BF16; {missing}. Use 'fp32'.")
