"""The whole network at 128 px, three iterations, all tasks: plain PyTorch, the native ops, and the inference engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ifan import ops
from ifan.config import NetworkConfig
from ifan.engine.engine import Engine
from ifan.network import IFAN, Predictions
from ifan.predictions import FacePredictions

BATCHES = {"batch 1": 1, "batch 8": 8}


@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("way", ["reference", "cpu", "engine"])
def test_inference(benchmark: Callable[..., Any], way: str, case: str) -> None:
    if way != "reference" and not any(row.available for row in ops.backends() if row.name == "cpu"):
        pytest.skip("the native module is missing")
    torch.manual_seed(0)
    network = IFAN(NetworkConfig()).eval()
    images = torch.randint(0, 256, (BATCHES[case], 3, 128, 128), dtype=torch.uint8)
    engine = Engine.from_network(network, iterations=3) if way == "engine" else None

    @torch.inference_mode()
    def run() -> Predictions | FacePredictions:
        if engine is not None:
            return engine(images.numpy())
        with ops.use_backend("reference" if way == "reference" else "auto"):
            return network(images, None, 3)[-1]

    found = benchmark.pedantic(run, rounds=5, warmup_rounds=1)  # type: ignore[attr-defined]
    assert np.isfinite(np.asarray(found.parsing_logits)).all()
