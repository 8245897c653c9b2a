"""Random networks of every kind, faces for them, and what they should find."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ifan import ops
from ifan.config import EMOTIONS, PAPER_TASKS, POINT_NAMES, NetworkConfig, TaskConfig
from ifan.network import IFAN, Predictions
from ifan.predictions import FacePredictions

SMALL = NetworkConfig(size=32, iterations=3)
TOLERANCE = 1e-5
"""Of the largest value of an output; the engine and the network differ by their order of summation."""


def network(config: NetworkConfig, seed: int = 0) -> IFAN:
    """Random weights and random statistics."""
    torch.manual_seed(seed)
    model = IFAN(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "later_mean")):
            buffer.normal_(0, 0.3)
        elif name.endswith(("running_var", "later_var")):
            buffer.uniform_(0.5, 2)
    for name, parameter in model.named_parameters():
        if ".norm" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
        elif name.startswith("landmark_head.levels"):
            parameter.data *= 0.1  # a softmax of logits as large as trained ones
    model.mean_points.uniform_(-0.3, 0.3)
    return model


def faces(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def outputs(predictions: Predictions | FacePredictions) -> list[Tensor]:
    found = [predictions.parsing_logits, predictions.points, *predictions.class_logits.values()]
    return [torch.as_tensor(value) for value in found]


def assert_equal(found: FacePredictions, expected: Predictions) -> None:
    for actual, wanted in zip(outputs(found), outputs(expected), strict=True):
        assert actual.shape == wanted.shape
        if wanted.numel():
            assert float((actual - wanted).abs().max()) < TOLERANCE * float(wanted.abs().max())


def reference(model: IFAN, images: Tensor, iterations: int) -> list[Predictions]:
    with torch.inference_mode(), ops.use_backend("reference"):
        return model(images, None, iterations)


SIX_POINTS = TaskConfig("landmarks", "landmarks", (*POINT_NAMES, "chin"), drawn=5)
"""The five points, which are drawn, and one that is not."""

CONFIGS = {
    "paper, 32 px": SMALL,
    "paper, 64 px": replace(SMALL, size=64, image_scale=1 / 64, normalise_heads=True),
    "extra tasks": replace(SMALL, tasks=(*PAPER_TASKS, TaskConfig("smile", "classification", ("yes", "no")))),
    "statistics apart": replace(SMALL, normalise_heads=True, iteration_norm="statistics"),
    "norms apart": replace(SMALL, normalise_heads=True, iteration_norm="separate"),
    "folded image": replace(SMALL, image_fold=2, image_scale=1 / 64),
    "heat maps": replace(SMALL, landmark_head="heat_maps", iteration_norm="separate"),
    "points left undrawn": replace(
        SMALL, landmark_head="heat_maps", reframe=True, tasks=(PAPER_TASKS[0], SIX_POINTS, PAPER_TASKS[2])
    ),
    "one norm": replace(SMALL, normalise_heads=True, task_norm=False),
    "no parsing": replace(SMALL, tasks=PAPER_TASKS[1:]),
    "no landmarks": replace(SMALL, tasks=(PAPER_TASKS[0], PAPER_TASKS[2])),
    "emotion only": replace(SMALL, tasks=(TaskConfig("emotion", "classification", EMOTIONS),)),
}
