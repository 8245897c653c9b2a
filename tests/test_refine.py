"""`ifan.refine`: closer looks are framed by the first one's points, and lead back to its crop."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ifan.config import NetworkConfig, TaskConfig, load_config
from ifan.crop import Crop, crop_image, points_to_crop
from ifan.data import open_dataset
from ifan.engine.predictor import NetworkPredictor
from ifan.evaluation import Subset, evaluate
from ifan.faces import FaceAnalyzer
from ifan.network import IFAN, Predictions
from ifan.refine import FARTHEST, NEAREST, REACH, SIDES, WIDER, closer_crops, look, scene

HALVES = TaskConfig("parsing", "parsing", ("left_half", "right_half"))
TASKS = (HALVES, *load_config("attributes-64").network.tasks[1:])
CONFIG = NetworkConfig(size=32, image_fold=2, tasks=TASKS)
PICTURE = 256
"""Side of a picture whose red grows to the right and whose green grows downwards, one a pixel."""
POINTS = np.array([[110, 100], [150, 104], [131, 125], [112, 150], [145, 152]], np.float64)
CROP = Crop(128, 126, 140, 8.0)


@pytest.fixture(scope="module")
def network() -> IFAN:
    torch.manual_seed(0)
    return IFAN(NetworkConfig(size=32, tasks=TASKS, iterations=2)).eval()


def picture() -> np.ndarray:
    ramp = np.arange(PICTURE, dtype=np.uint8)
    red, green = np.meshgrid(ramp, ramp)
    return np.stack([red, green, np.zeros_like(red)], 2)


class Seer:
    """Knows from the colours of a crop where in the picture it is, and predicts what is there: the points, halves whose
    share is how far to the right a pixel is, and a head that always looks left."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.begun: list[Tensor | None] = []

    def __call__(self, images: Tensor, planes: Tensor | None) -> list[Predictions]:
        self.seen.append(images)
        self.begun.append(planes)
        return [self.predict(images)]

    def predict(self, images: Tensor) -> Predictions:
        points, halves, pose = [], [], []
        for image in images.double():
            size = image.shape[-1]
            y, x = torch.meshgrid(*2 * [(torch.arange(size).double() + 0.5) / size - 0.5], indexing="ij")
            basis = torch.stack([x.ravel(), y.ravel(), torch.ones(size * size)], 1)
            to_picture = torch.linalg.lstsq(basis, image[:2].flatten(1).T).solution.T  # red, green of (x, y, 1)
            there = torch.linalg.solve(to_picture[:, :2], torch.tensor(POINTS - 0.5).T - to_picture[:, 2:])
            flipped = bool(torch.linalg.det(to_picture[:, :2]) < 0)
            points.append(there[:, [1, 0, 2, 4, 3]] if flipped else there)
            right = F.avg_pool2d(image[None, :1], CONFIG.image_fold)[0] / 255
            halves.append(torch.cat([right, 1 - right] if flipped else [1 - right, right]).log())
            logits = torch.arange(5.0)
            pose.append(logits.flip(0) if flipped else logits)
        count = len(images)
        classes = {t.name: torch.zeros(count, t.width) for t in CONFIG.classifications}
        classes["pose"] = torch.stack(pose)
        rows = {t.name: torch.arange(count) for t in CONFIG.tasks}
        return Predictions(torch.stack(halves).float(), torch.stack(points).float(), classes, rows)


@pytest.mark.parametrize("looks", [1, 2, 3, 4])
def test_what_closer_looks_find_is_led_back_to_the_first_crop(looks: int) -> None:
    image, seer = picture(), Seer()
    crops = [CROP, Crop(135, 122, 125)]
    images = torch.from_numpy(np.stack([crop_image(image, c, CONFIG.image_size).transpose(2, 0, 1) for c in crops]))
    scenes = [scene(image, crop, CONFIG.image_size) for crop in crops]
    (found,) = look(IFAN(CONFIG), seer, images, scenes, looks)

    assert seer.begun == [None, None][: min(looks, 2)]
    assert [len(seen) for seen in seer.seen] == [2, 2 * (looks - 1)][: min(looks, 2)]
    truth = np.stack([points_to_crop(POINTS, crop) for crop in crops])
    assert np.abs(found.points.numpy() - truth).max() < 0.006, "points, in sides of the crop"
    side = CONFIG.size * (1 if looks == 1 else 2)
    assert found.parsing_logits.shape == (2, 2, side, side)
    share = found.parsing_logits.softmax(1)[:, 1]
    expected = F.interpolate(images[:, :1].float() / 255, (side, side), mode="bilinear", antialias=True)[:, 0]
    inner = slice(2, -2)  # enlarging repeats the border
    assert (share - expected)[:, inner, inner].abs().max() < 0.012
    assert np.allclose(found.class_logits["pose"].numpy(), np.arange(5.0), atol=1e-6)


def test_a_closer_look_begins_with_what_those_before_it_found() -> None:
    """Each is an iteration, begun with the planes that its own crop's predictions would be drawn as."""
    image, seer, network = picture(), Seer(), IFAN(replace(CONFIG, carry=True, point_radius=2))
    crops = [CROP, Crop(135, 122, 125)]
    images = torch.from_numpy(np.stack([crop_image(image, c, CONFIG.image_size).transpose(2, 0, 1) for c in crops]))
    found = look(network, seer, images, [scene(image, crop, CONFIG.image_size) for crop in crops], 3)
    truth = np.stack([points_to_crop(POINTS, crop) for crop in crops])
    assert [np.abs(state.points.numpy() - truth).max() < 0.006 for state in found] == [True] * 3
    assert seer.begun[0] is None
    for seen, begun in zip(seer.seen[1:], seer.begun[1:], strict=True):
        assert begun is not None
        assert begun.shape[0] == seen.shape[0] == 2
        expected = network.encode(seer.predict(seen), 2)
        halves, points = 2, slice(2, 7)
        inner = slice(8, -8)  # around it lies what the look before did not see
        assert (begun - expected)[:, :halves, inner, inner].abs().max() < 0.03
        assert (begun[:, points] != expected[:, points]).float().mean() < 0.01, "a disc may lie a pixel away"
        assert (begun[:, 7:] - expected[:, 7:]).abs().max() < 1e-5


def test_closer_looks_see_an_upright_face_in_the_middle_once_larger_once_mirrored() -> None:
    image, seer = picture(), Seer()
    crop = replace(CROP, cx=118.0, angle_deg=-15.0)
    first = torch.from_numpy(crop_image(image, crop, CONFIG.image_size).transpose(2, 0, 1)[None].copy())
    look(IFAN(CONFIG), seer, first, [scene(image, crop, CONFIG.image_size)], 3)
    seen = torch.cat(seer.seen)
    assert seen.shape == (3, *first.shape[1:])
    points = seer.predict(seen).points.numpy()
    tilt = [abs(p[1, 1] - p[1, 0] + p[1, 4] - p[1, 3]) for p in points]
    middle = [np.abs((p.max(1) + p.min(1)) / 2).max() for p in points]
    extent = [np.ptp(p, axis=1).max() for p in points]
    assert tilt[0] > 0.1 > 0.05 > max(tilt[1:])
    assert middle[0] > 0.05 > 0.01 > max(middle[1:])
    assert extent[1] == pytest.approx(1 / 3.2 / SIDES[0], rel=0.02)
    assert extent[2] == pytest.approx(1 / 3.2 / SIDES[1], rel=0.02)
    red = seen[:, 0].float().diff(dim=2).mean((1, 2))
    assert red[0] > 0 > red[1]
    assert red[2] > 0


@given(st.lists(st.floats(width=32), min_size=10, max_size=10), st.integers(2, 6))
def test_wrong_points_lead_no_look_astray(values: list[float], looks: int) -> None:
    crops = closer_crops(CONFIG, np.array(values).reshape(2, 5), looks)
    assert len(crops) == looks - 1
    for crop in crops:
        assert max(abs(crop.cx), abs(crop.cy)) <= REACH
        assert NEAREST <= crop.side <= FARTHEST


def crops(count: int = 3) -> tuple[np.ndarray, list[np.ndarray]]:
    pictures = np.random.default_rng(1).integers(0, 256, (count, 40, 48, 3), dtype=np.uint8)
    crop = Crop(24, 20, 36)
    first = [crop_image(image, crop, 32).transpose(2, 0, 1) for image in pictures]
    return np.stack(first), [scene(image, crop, 32) for image in pictures]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_predictor_with_closer_looks(network: IFAN, backend: str) -> None:
    from ifan.ops import use_backend

    with use_backend(backend):
        first, scenes = crops()
        once, often = NetworkPredictor(network)(first), NetworkPredictor(network, looks=3)(first, scenes)
        assert often["parsing"].shape == (3, 2, 64, 64)
        assert np.allclose(often["parsing"].sum(1), 1, atol=1e-5)
        assert np.abs(often["landmarks"] - once["landmarks"]).max() > 1e-3
        for name in ("parsing", "emotion"):  # also where nobody asked for the points that frame closer looks
            some = NetworkPredictor(network, tasks=[name], looks=3)(first, scenes)
            assert set(some) == {name}
            assert np.abs(some[name] - often[name]).mean() < 1e-4


def test_predictor_whose_looks_carry_over(network: IFAN) -> None:
    """The engine and the plain network take closer looks for later iterations, and need all tasks for that.

    With random weights what is rounded differently grows a hundredfold from one look to the next.
    """
    from ifan.ops import use_backend

    carrying = IFAN(replace(network.config, carry=True, iteration_norm="separate", iterations=1)).eval()
    torch.manual_seed(1)
    for name, value in carrying.state_dict().items():
        if ".later_" in name:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    once = IFAN(replace(carrying.config, carry=False)).eval()
    once.load_state_dict(carrying.state_dict())
    first, scenes = crops()
    for looks, bound in ((2, 1e-4), (3, 1e-2)):
        found = {}
        for backend in ("auto", "reference"):
            with use_backend(backend):
                found[backend] = NetworkPredictor(carrying, looks=looks)(first, scenes)
                some = NetworkPredictor(carrying, tasks=["emotion"], looks=looks)(first, scenes)
                assert set(some) == {"emotion"}
                assert np.abs(some["emotion"] - found[backend]["emotion"]).max() < 1e-4
        for name, value in found["auto"].items():
            assert np.abs(value - found["reference"][name]).mean() < bound * max(1, np.abs(value).max()), (looks, name)
        uncarried = NetworkPredictor(once, looks=looks)(first, scenes)
        assert np.abs(found["auto"]["landmarks"] - uncarried["landmarks"]).max() > 1e-3
    assert np.array_equal(NetworkPredictor(carrying)(first)["emotion"], NetworkPredictor(once)(first)["emotion"])


def test_a_crop_without_its_scene_is_refused(network: IFAN) -> None:
    first, scenes = crops()
    with pytest.raises(ValueError, match="a scene for each of 3 crops to look 2 times; got 2"):
        NetworkPredictor(network, looks=2)(first, scenes[:2])


def test_no_faces(network: IFAN) -> None:
    found = NetworkPredictor(network, looks=2)(np.zeros((0, 3, 32, 32), np.uint8), [])
    assert {name: len(value) for name, value in found.items()} == {t.name: 0 for t in TASKS}


def test_networks_that_cannot_frame_a_face_look_once() -> None:
    points = TaskConfig("landmarks", "landmarks", ("left_eye", "right_eye"))
    for tasks in ((HALVES,), (HALVES, points)):
        blind = IFAN(NetworkConfig(size=32, tasks=tasks)).eval()
        NetworkPredictor(blind)
        with pytest.raises(ValueError, match=r"left_mouth_corner.* to look 2 times.*use 1"):
            NetworkPredictor(blind, looks=2)
        with pytest.raises(ValueError, match="use 1"):
            evaluate(blind, {}, looks=2)
    with pytest.raises(ValueError, match="looks must be at least 1; got 0"):
        NetworkPredictor(blind, looks=0)


def test_the_configuration_says_how_often_and_callers_may_overrule_it(network: IFAN) -> None:
    twice = IFAN(replace(network.config, looks=2)).eval()
    twice.load_state_dict(network.state_dict())
    image = np.random.default_rng(2).integers(0, 256, (60, 50, 3), dtype=np.uint8)

    def points(analyzer: FaceAnalyzer) -> np.ndarray:
        (face,) = analyzer(image).faces
        return np.array(list(face.landmarks.values()))

    by_configuration, overruled = FaceAnalyzer(twice, detector=None), FaceAnalyzer(twice, detector=None, looks=1)
    assert np.array_equal(points(by_configuration), points(FaceAnalyzer(network, detector=None, looks=2)))
    assert np.array_equal(points(overruled), points(FaceAnalyzer(network, detector=None)))
    assert not np.allclose(points(by_configuration), points(overruled), atol=1e-2)
    assert pickle.loads(pickle.dumps(overruled)).looks == 1


def test_the_first_of_several_looks_sees_more_of_the_hair(network: IFAN) -> None:
    image, box = np.random.default_rng(3).integers(0, 256, (80, 80, 3), dtype=np.uint8), (30, 30, 50, 55)
    once, twice = (FaceAnalyzer(network, looks=looks)(image, box)[0] for looks in (1, 2))
    assert twice.crop == replace(once.crop, side=WIDER * once.crop.side)
    assert twice.region[0] < once.region[0]


def test_evaluation_counts_looks_and_iterations(network: IFAN) -> None:
    tasks = load_config("attributes-64").network.tasks
    model = IFAN(replace(network.config, tasks=tasks, looks=3)).eval()
    toy = Subset(open_dataset("toy", "toy:6", "val"), 6)
    report = evaluate(model, {"toy": toy}, every_iteration=True)
    assert report["network"]["looks"] == 3
    assert len(report["datasets"]["toy"]["tasks"]["landmarks"]["iterations"]) == 2
    once, thrice = (
        evaluate(model, {"toy": toy}, looks=looks)["datasets"]["toy"]["tasks"]["landmarks"]["nme"] for looks in (1, 3)
    )
    assert once != thrice
    carrying = IFAN(replace(model.config, carry=True, iterations=1)).eval()
    carrying.load_state_dict(model.state_dict())
    each = evaluate(carrying, {"toy": toy}, every_iteration=True)["datasets"]["toy"]["tasks"]["landmarks"]
    assert len(each["iterations"]) == 3
    assert each["iterations"][-1]["nme"] == each["nme"] != each["iterations"][0]["nme"]
