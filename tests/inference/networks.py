"""Networks with random weights and what goes in and comes out of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ifan import ops
from ifan.config import EMOTIONS, PAPER_TASKS, NetworkConfig, TaskConfig
from ifan.network import IFAN, Predictions

SMALL = NetworkConfig(size=32, iterations=3)


def network(config: NetworkConfig, seed: int = 0) -> IFAN:
    """Random weights and random statistics."""
    torch.manual_seed(seed)
    model = IFAN(config).eval()
    for name, buffer in model.named_buffers():
        if "running_mean" in name:
            buffer.normal_(0, 0.3)
        elif "running_var" in name:
            buffer.uniform_(0.5, 2)
    for name, parameter in model.named_parameters():
        if ".norm" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.mean_points.uniform_(-0.3, 0.3)
    return model


def faces(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def outputs(predictions: Predictions) -> list[Tensor]:
    return [predictions.parsing_logits, predictions.points, *predictions.class_logits.values()]


def reference(model: IFAN, images: Tensor, iterations: int) -> list[Predictions]:
    with torch.inference_mode(), ops.use_backend("reference"):
        return model(images, None, iterations)


CONFIGS = {
    "paper, 32 px": SMALL,
    "paper, 64 px": replace(SMALL, size=64, image_scale=1 / 64, normalise_heads=True),
    "extra tasks": replace(SMALL, tasks=(*PAPER_TASKS, TaskConfig("smile", "classification", ("yes", "no")))),
    "no parsing": replace(SMALL, tasks=PAPER_TASKS[1:]),
    "no landmarks": replace(SMALL, tasks=(PAPER_TASKS[0], PAPER_TASKS[2])),
    "emotion only": replace(SMALL, tasks=(TaskConfig("emotion", "classification", EMOTIONS),)),
}
