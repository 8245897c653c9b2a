"""A tiny untrained network, and a photo with structure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ifan.config import TaskConfig
from ifan.faces import FaceAnalyzer
from tests.support.dotted_faces import CONFIG

TINY = replace(CONFIG, iterations=2, tasks=(*CONFIG.tasks, TaskConfig("smile", "classification", ("yes", "no"))))


@pytest.fixture
def analyzer() -> FaceAnalyzer:
    """Of an untrained network whose points stay near the crop's centre; photos without boxes are crops."""
    pytest.importorskip("torch", reason="the fixture's network is made by PyTorch")
    from ifan.network import IFAN

    network = IFAN(TINY)
    network.landmark_head.weight.data.mul_(1e-3)
    network.landmark_head.bias.data.uniform_(-0.3, 0.3)
    return FaceAnalyzer(network, detector=None)


@pytest.fixture
def photo() -> np.ndarray:
    """(60, 90, 3) uint8 RGB: smooth, coloured, without symmetry."""
    y, x = np.mgrid[0:60, 0:90] / 90
    wave = np.stack([np.sin(7 * x + 3 * y), np.cos(5 * x * y + y), np.sin(9 * y - 4 * x)], -1)
    return (127.5 + 127.5 * wave).astype(np.uint8)
