"""One sample problem an operation and setting, run on any backend: what the interpreter tests and the mutants share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ifan import ops
from tests.support import flat
from tests.support.samples import arrange, leaf, outputs_of

ROWS = torch.tensor([2, 0, 1, 1, 0])
SEGMENTS = [2, 0, 3]


@dataclass(frozen=True)
class Problem:
    """Differentiable ``inputs``, the first ``maps`` of them feature maps, and ``run(backend, *inputs)``."""

    inputs: list[Tensor]
    maps: int
    run: Callable[..., Any]

    def arranged(self, dtype: torch.dtype, layout: str = "contiguous") -> list[Tensor]:
        """The inputs, feature maps in ``dtype`` and ``layout``; leaves of their own."""
        maps = [arrange(x.to(dtype), layout) for x in self.inputs[: self.maps]]
        rest = [x.detach().float().clone() for x in self.inputs[self.maps :]]
        return [x.requires_grad_() for x in (*maps, *rest)]


def results(problem: Problem, backend: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, then gradients for a random upstream gradient, one after another."""
    outputs = outputs_of(problem.run(backend, *inputs))
    generator = torch.Generator().manual_seed(1)
    pairs = [(y, torch.randn(y.shape, generator=generator, dtype=torch.float64, device="cpu").to(y)) for y in outputs]
    pairs = [(y, g) for y, g in pairs if y.requires_grad and y.numel()]
    outputs_used, upstream = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(outputs_used, list(inputs), upstream, materialize_grads=True)
    return [*(y.detach() for y in outputs), *gradients]


def integrate(pool: int, size: int = 6) -> Problem:
    sources = [leaf(5, 3, size, size), leaf(3, 2, size, size), leaf(5, 4, size, size)]
    norm = [leaf(3, 9, positive=k in (0, 3)) for k in range(4)]

    def run(backend: str, *v: Tensor) -> Tensor:
        return flat.integrate(v[:3], *v[3:], SEGMENTS, ROWS, [False, True, False], pool, backend=backend)

    return Problem([*sources, *norm], 3, run)


def channel_moments(height: int = 5, width: int = 7) -> Problem:
    x = leaf(5, 3, height, width)
    return Problem([x], 1, lambda backend, x: ops.channel_moments(x, SEGMENTS, backend=backend))


def encode_predictions(classes: int = 3) -> Problem:
    points = torch.tensor([[[-0.2, 0.1, 3.0], [0.3, -0.4, 0.0]]]).expand(2, 2, 3)

    def run(backend: str, logits: Tensor, class_logits: Tensor) -> Tensor:
        return ops.encode_predictions(logits, points, class_logits, [3, 2], 2, backend=backend)

    return Problem([leaf(2, classes, 8, 8), leaf(2, 5)], 1, run)


def hybrid_loss(
    finer: float = 1,
    kind: str = "wing",
    weighted: bool = True,
    all_masked: bool = False,
    smoothing: float = 0.1,
    ignored: float = 0.3,
) -> Problem:
    labels = torch.randint(0, 5, (2, int(6 * finer), int(4 * finer)), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < ignored] = 255
    weight = torch.rand(3, 4) + 0.1
    target = torch.rand(3, 2, 4) - 0.5
    if ignored:
        weight[0, :2] = 0
        target[0, :, :2] = torch.nan
    classes = torch.tensor([[0, -1], [1, 3], [-1, -1], [2, 0]])
    if all_masked:
        labels.fill_(255)
        weight.zero_()
        classes.fill_(-1)

    class_weights = torch.rand(5) + 0.5 if weighted else None
    denominators = torch.tensor([40.0, 7.0, 0.0, 3.0]) if weighted else None

    def run(backend: str, logits: Tensor, points: Tensor, class_logits: Tensor, task_weights: Tensor) -> Any:
        wide = torch.float64 if class_logits.dtype == torch.float64 else torch.float32
        return ops.hybrid_loss(
            logits,
            labels,
            points,
            target.to(wide),
            weight.to(wide),
            class_logits,
            classes,
            [3, 4],
            task_weights,
            parsing_class_weights=class_weights,
            parsing_smoothing=smoothing,
            class_smoothing=smoothing,
            point_loss=kind,
            denominators=denominators,
            backend=backend,
        )

    points = (torch.rand(3, 2, 4, dtype=torch.float64) - 0.5).requires_grad_()
    return Problem([leaf(2, 5, 6, 4), points, leaf(4, 7), leaf(4, positive=True)], 1, run)


def dense_block(batch_statistics: bool = True) -> Problem:
    sources = [leaf(5, 3, 4, 3), leaf(3, 2, 4, 3)]
    weights = [leaf(2, 5 + 2 * layer, 3, 3) for layer in range(2)]
    norms = [leaf(3, 5 + 2 * layer) for _ in range(2) for layer in range(2)]
    count = 1 if batch_statistics else 2
    statistics = [leaf(3, 5 + 2 * layer, positive=k == 1) for k in range(2) for layer in range(count)]

    def run(backend: str, *v: Tensor) -> Any:
        groups = v[2:4], v[4:6], v[6:8], v[8 : 8 + count], v[8 + count :]
        return flat.dense_block(v[:2], *groups, SEGMENTS, ROWS, [False, True], backend=backend)

    return Problem([*sources, *weights, *norms, *statistics], 2, run)


def transition_up() -> Problem:
    values = [leaf(5, 3, 4, 3), leaf(3, 2, 4, 3), leaf(8, 5, 3, 3), leaf(3, 2, 3, 3)]

    def run(backend: str, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return flat.transition_up([x, y], a, b, ROWS, [False, True], backend=backend)

    return Problem(values, 2, run)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "integrate": partial(integrate, 1),
    "integrate-pooled": partial(integrate, 2),
    "channel_moments": channel_moments,
    "encode_predictions": encode_predictions,
    "hybrid_loss-weighted": hybrid_loss,
    "hybrid_loss-finer": partial(hybrid_loss, 2, "smooth_l1", False),
    "hybrid_loss-odd": partial(hybrid_loss, 2.5, "l2"),
    "hybrid_loss-coarser": partial(hybrid_loss, 0.5, weighted=False),
    "dense_block-batch": dense_block,
    "dense_block-running": partial(dense_block, False),
    "transition_up": transition_up,
}
QUICK = [name for name in PROBLEMS if not name.startswith(("dense_block-running", "hybrid_loss-odd"))]


def small_transition() -> Problem:
    """A transition up of one lane."""
    values = [leaf(1, 2, 3, 2), leaf(4, 2, 3, 3), leaf(2, 1, 3, 3)]
    return Problem(values, 1, lambda backend, x, a, b: flat.transition_up([x], a, b, backend=backend))


def small_block() -> Problem:
    """A dense block of two layers with batch statistics, whose two lanes read one sample."""
    weights = [leaf(1, 2 + layer, 3, 3) for layer in range(2)]
    norms = [leaf(1, 2 + layer) for _ in range(2) for layer in range(2)]
    moments = [leaf(1, 2), leaf(1, 2, positive=True)]

    def run(backend: str, x: Tensor, *v: Tensor) -> Any:
        groups = v[:2], v[2:4], v[4:6], v[6:7], v[7:]
        return flat.dense_block([x], *groups, [2], torch.zeros(2, dtype=torch.int64), [True], backend=backend)

    return Problem([leaf(1, 2, 3, 2), *weights, *norms, *moments], 1, run)


SMALL = {"transition": small_transition, "block": small_block}
"""Convolutions that the interpreter runs in tenths of a second."""
