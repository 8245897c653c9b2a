"""Batches for `ifan.ops.hybrid_loss`, its definition as loops over elements, and the ways to call it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.config import IGNORE, UNLABELLED
from ifan.ops import HybridLoss, LossOptions, LossPredictions, LossTargets, hybrid_loss
from ifan.ops.hybrid_loss import _forward
from tests.support.cases import gradients, leaf, needs_cpu

SIZES = [3, 4]
PREDICTIONS = ("parsing_logits", "points", "class_logits", "task_weights")
TARGETS = ("parsing_target", "points_target", "points_weight", "class_targets")


def batch(dtype: torch.dtype = torch.float64, scale: int = 1) -> dict[str, Any]:
    """Two parsing, three landmark and four classification rows, each partly labelled."""
    target = torch.randint(0, 5, (2, 6 * scale, 4 * scale), dtype=torch.uint8)
    target[torch.rand(target.shape) < 0.3] = IGNORE
    points_target, weight = torch.rand(3, 2, 5, dtype=dtype) - 0.5, torch.rand(3, 5, dtype=dtype)
    weight[0, :3] = 0
    points_target[0, :, :3] = torch.nan
    return {
        "parsing_logits": leaf(2, 5, 6, 4, dtype=dtype),
        "parsing_target": target,
        "points": (torch.rand(3, 2, 5, dtype=dtype) - 0.5).requires_grad_(),
        "points_target": points_target,
        "points_weight": weight,
        "class_logits": leaf(4, 7, dtype=dtype),
        "class_targets": torch.tensor([[0, UNLABELLED], [1, 3], [UNLABELLED, UNLABELLED], [2, 0]]),
        "class_sizes": SIZES,
        "task_weights": leaf(4, dtype=dtype, positive=True),
    }


def naive(
    data: dict[str, Any],
    class_weights: Tensor | None = None,
    smoothing: tuple[float, float] = (0.0, 0.0),
    kind: str = "wing",
    denominators: list[float] | None = None,
) -> tuple[list[Tensor], list[float]]:
    """Losses and counts by loops over elements."""

    def cross_entropy(logits: Tensor, label: int, smooth: float) -> Tensor:
        log = logits.double() - logits.double().exp().sum().log()
        return -(1 - smooth) * log[label] - smooth * log.mean()

    def point(d: Tensor) -> Tensor:
        w, c, d = 0.1, 0.02, d.abs()
        if kind == "l2":
            return d * d
        if kind == "smooth_l1":
            return d * d / (2 * w) if d < w else d - w / 2
        return w * torch.log(1 + d / c) if d < w else d - w + w * math.log(1 + w / c)

    sums, counts = [], []
    total, count = data["parsing_logits"].double().sum() * 0, 0.0
    target = data["parsing_target"]
    logits = data["parsing_logits"].double()
    if logits.shape[2:] != target.shape[1:]:
        logits = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    for b, i, j in torch.cartesian_prod(*map(torch.arange, target.shape)).tolist():
        label = int(target[b, i, j])
        if label != IGNORE:
            weight = 1.0 if class_weights is None else float(class_weights[label])
            total = total + weight * cross_entropy(logits[b, :, i, j], label, smoothing[0])
            count += weight
    sums.append(total)
    counts.append(count)
    total, count = data["points"].double().sum() * 0, 0.0
    for b in range(data["points"].shape[0]):
        for p in range(data["points"].shape[2]):
            weight = float(data["points_weight"][b, p])
            if weight > 0:
                difference = data["points"][b, :, p].double() - data["points_target"][b, :, p].double()
                total = total + weight * (point(difference[0]) + point(difference[1]))
                count += weight
    sums.append(total)
    counts.append(count)
    for task, logits in enumerate(data["class_logits"].split(data["class_sizes"], 1)):
        labels = data["class_targets"][:, task].tolist()
        rows = [cross_entropy(logits[b], label, smoothing[1]) for b, label in enumerate(labels) if label >= 0]
        sums.append(torch.stack(rows).sum() if rows else logits.double().sum() * 0)
        counts.append(float(len(rows)))
    divisors = counts if denominators is None else denominators
    return [s / d if d else s * 0 for s, d in zip(sums, divisors, strict=True)], counts


def loss(backend: str | None, **data: Any) -> HybridLoss:
    """The loss of a batch; what is no prediction or target are options."""
    predictions = LossPredictions(*(data.pop(name) for name in PREDICTIONS[:3]))
    targets = LossTargets(*(data.pop(name) for name in TARGETS))
    return hybrid_loss(predictions, targets, LossOptions(**data), backend=backend)


def registered(backend: str, **data: Any) -> tuple[Any, ...]:
    """Arguments of the registered operation."""
    targets = [data.get(name, torch.empty(0)) for name in (*TARGETS, "parsing_class_weights", "denominators")]
    settings = [data.get("parsing_smoothing", 0.0), data.get("class_smoothing", 0.0), 0.1, 0.02]
    predictions = [data[name] for name in PREDICTIONS]
    return predictions, targets, data["class_sizes"], settings, data.get("point_loss", "wing"), backend


def op(**data: Any) -> HybridLoss:
    """The registered operation on the reference backend."""
    return HybridLoss(*_forward(*registered("reference", **data))[:3])


def eager(**data: Any) -> HybridLoss:
    return loss("reference", **data)


def automatic(**data: Any) -> HybridLoss:
    return loss(None, **data)


def kernel(**data: Any) -> HybridLoss:
    return loss("cpu", **data)


CALLS = pytest.mark.parametrize("call", [eager, op, pytest.param(kernel, marks=needs_cpu)], ids=["eager", "op", "cpu"])
DTYPE = {eager: torch.float64, op: torch.float64, kernel: torch.float32}


def with_predictions(data: dict[str, Any], values: tuple[Tensor, ...]) -> dict[str, Any]:
    return {**data, **dict(zip(PREDICTIONS, values, strict=True))}


def large_batch(images: int = 3, size: int = 36, times: int = 8) -> dict[str, Any]:
    """More than one strip of logits, with rows and columns that fill no whole vectors."""
    data = batch(torch.float32)
    data["parsing_logits"] = leaf(images, 5, size, size - 3, dtype=torch.float32)
    target = torch.randint(0, 6, (images, size * times, (size - 3) * times), dtype=torch.uint8)
    data["parsing_target"] = torch.where(target == 5, IGNORE, target)
    return data


def all_gradients(call: Any, data: dict[str, Any], **options: Any) -> list[Tensor]:
    """Losses, counts and the gradients of all predictions."""
    values = [data[name].detach().requires_grad_() for name in PREDICTIONS]
    found = call(**with_predictions(data, tuple(values)), **options)
    return [*(value.detach() for value in found), *gradients(lambda *_: list(found[:2]), values)]
