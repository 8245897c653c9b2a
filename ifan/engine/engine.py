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
from typing import TYPE_CHECKING

import numpy as np

from ifan.engine.recorder import Plan, PlanKey
from ifan.engine.weights import PackedWeights
from ifan.native import bf16_refusal, cpu_module, kernels_in_use, thread_count
from ifan.predictions import FacePredictions, check_inputs, joined, uninitialised
from ifan.weights import SavedModel

if TYPE_CHECKING:
    from ifan.network import IFAN

_LARGEST_SLICE = 128 * 128
"""Pixels of the faces that share an arena: more of them outgrow the caches, fewer read the weights more often."""


class Engine:
    """A trained network on the CPU's native kernels.

    Args:
        model: configuration and tensors, which must not change afterwards.
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
        self.config, names = model.config, [t.name for t in model.config.tasks]
        self.iterations = self.config.iterations_per_crop if iterations is None else iterations
        if self.iterations < 1:
            raise ValueError(f"iterations: expected at least 1; got {self.iterations}")
        if self.iterations > 1 and any(t.planes < t.width for t in self.config.tasks):
            raise ValueError("iterations: expected 1 where not all points are drawn; use ifan.refine for more crops")
        wanted = names if tasks is None else [self.config.task(t).name for t in tasks]
        self.tasks = tuple(names.index(n) for n in names if n in wanted)
        self._weights = PackedWeights(model, precision == "bf16")
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
        if weight.device.type != "cpu" or str(weight.dtype) != "torch.float32":
            raise ValueError(f"Engine: expected a float32 network on the CPU; got {weight.dtype} on {weight.device}")
        from ifan.weights.networks import model_of

        return cls(model_of(network), iterations=iterations, tasks=tasks, precision=precision)

    def __call__(self, images: np.ndarray, begun: FacePredictions | None = None) -> FacePredictions:
        """The last pass's predictions for ``images (N, 3, I, I)`` RGB uint8, a row a face.

        All passes from the label means, or one later pass that begins with the predictions ``begun`` of all tasks.
        """
        check_inputs(self.config, images, begun)
        if not len(images):
            return uninitialised(self.config, [], 0)
        largest, threads = max(1, _LARGEST_SLICE // self.config.size**2), thread_count()
        starts, parts = range(0, len(images), largest), list[FacePredictions]()
        for first in range(0, len(starts), threads):
            together = starts[first : first + threads]  # a thread a slice, or all threads one slice after another
            groups = [together] if len(together) == threads else [[start] for start in together]
            for group in groups:
                pieces = [slice(start, start + largest) for start in group]
                parts += self._together([(images[i], None if begun is None else begun[i]) for i in pieces], threads)
        return joined(parts)

    def _together(
        self, slices: Sequence[tuple[np.ndarray, FacePredictions | None]], threads: int
    ) -> list[FacePredictions]:
        plans = [self._taken(PlanKey(len(images), begun is not None, kernels_in_use())) for images, begun in slices]
        for plan, (images, begun) in zip(plans, slices, strict=True):
            plan.fill(images, begun)
        cpu_module().run_plans([plan.plan for plan in plans], threads)
        found = [plan.predictions() for plan in plans]
        with self._lock:
            for plan in plans:
                self._plans[plan.key].append(plan)
        return found

    def _taken(self, key: PlanKey) -> Plan:
        """A plan of that key that nobody runs now."""
        with self._lock:
            if self._plans[key]:
                return self._plans[key].pop()
        return Plan(key, self._weights, 1 if key.begun else self.iterations, self.tasks)


def _check_precision(precision: str) -> None:
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: expected 'fp32' or 'bf16'; got {precision!r}")
    cpu_module()
    if precision == "bf16" and (missing := bf16_refusal()):
        raise ValueError(f"precision 'bf16': expected a processor with AVX512_BF16; {missing}. Use 'fp32'.")
