"""`ifan.mirror`: a picture and its mirror image, together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ifan.config import NetworkConfig, TaskConfig, load_config
from ifan.data import FaceDataset, open_dataset
from ifan.data.sample import FaceSample
from ifan.evaluation import Subset, evaluate
from ifan.inference.predictor import NetworkPredictor
from ifan.network import IFAN

PARTS = TaskConfig("parsing", "parsing", ("background", "left_eye", "right_eye", "nose"))
TASKS = (PARTS, *load_config("attributes-64").network.tasks[1:])


@pytest.fixture(scope="module")
def network() -> IFAN:
    torch.manual_seed(0)
    return IFAN(NetworkConfig(size=32, tasks=TASKS, iterations=2)).eval()


def crops(count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_a_mirror_image_shows_is_mirrored(network: IFAN, backend: str) -> None:
    """Without it nothing makes a network with random weights treat left and right alike."""
    from ifan.ops import use_backend

    with use_backend(backend):
        plain, both = NetworkPredictor(network), NetworkPredictor(network, mirror=True)
    images = crops()
    mirrored = np.ascontiguousarray(images[..., ::-1])
    with use_backend(backend):
        assert not np.allclose(plain(images)["parsing"], plain(mirrored)["parsing"][..., ::-1], atol=1e-2)
        seen, turned = both(images), both(mirrored)
    parsing = turned["parsing"][:, [0, 2, 1, 3], :, ::-1]
    points = turned["landmarks"][:, :, [1, 0, 2, 4, 3]] * np.array([[-1], [1]], np.float32)
    assert np.allclose(seen["parsing"], parsing, atol=1e-5)
    assert np.allclose(seen["landmarks"], points, atol=1e-4)
    assert np.allclose(seen["emotion"], turned["emotion"], atol=1e-5)
    assert np.allclose(seen["pose"], turned["pose"][:, ::-1], atol=1e-5)


def test_tasks_that_nobody_wants_are_left_out(network: IFAN) -> None:
    some = NetworkPredictor(network, tasks=["landmarks", "smile"], mirror=True)(crops())
    every = NetworkPredictor(network, mirror=True)(crops())
    assert set(some) == {"landmarks", "smile"}
    assert np.allclose(some["landmarks"], every["landmarks"], atol=1e-4)


class Mirrored(Subset):
    """A dataset's first samples as a mirror shows them: their pictures and points."""

    def __getitem__(self, index: int) -> FaceSample:
        sample = super().__getitem__(index)
        assert sample.points is not None
        points = sample.points[[1, 0, 2, 4, 3]] * (-1, 1) + (sample.image.shape[1], 0)
        return replace(sample, image=np.ascontiguousarray(sample.image[:, ::-1]), points=points.astype(np.float32))


def test_evaluation_with_mirror_images(network: IFAN) -> None:
    """Landmarks are then as good in mirrored pictures as in the pictures, after every iteration."""
    toy = open_dataset("toy", "toy:6", "val")
    model = IFAN(replace(network.config, tasks=load_config("attributes-64").network.tasks)).eval()

    def errors(dataset: FaceDataset, mirror: bool) -> list[float]:
        report = evaluate(model, {"toy": dataset}, every_iteration=True, mirror=mirror)
        assert report["network"]["mirror"] == mirror
        return [found["nme"] for found in report["datasets"]["toy"]["tasks"]["landmarks"]["iterations"]]

    plain, turned = Subset(toy, 6), Mirrored(toy, 6)
    assert len(errors(plain, False)) == 2
    assert np.allclose(errors(plain, True), errors(turned, True), rtol=1e-3)
    assert not np.allclose(errors(plain, False), errors(turned, False), rtol=1e-3)
