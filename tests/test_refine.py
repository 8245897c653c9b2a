"""`ifan.refine`: later crops are framed by the points found, and what they find leads back to the first crop."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ifan.config import NetworkConfig, TaskConfig, load_config
from ifan.crop import Crop, crop_image, points_to_crop
from ifan.data import open_dataset
from ifan.evaluation import Subset, evaluate
from ifan.faces import FaceAnalyzer
from ifan.faces.predictor import NetworkPredictor
from ifan.network import IFAN
from ifan.predictions import FacePredictions
from ifan.refine import closer_crop, moved, refine, softmax, source_window
from ifan.torch_runner import torch_predictions

HALVES = TaskConfig("parsing", "parsing", ("left_half", "right_half"))
TASKS = (HALVES, *load_config("attributes-64").network.tasks[1:])
CONFIG = NetworkConfig(size=32, image_fold=2, tasks=TASKS, reframe=True)
PICTURE = 256
"""Side of a picture whose red grows to the right and whose green grows downwards, one a pixel."""
POINTS = np.array([[110, 100], [150, 104], [131, 125], [112, 150], [145, 152]], np.float64)
CROP = Crop(128, 126, 140, 8.0)


@pytest.fixture(scope="module")
def network() -> IFAN:
    torch.manual_seed(0)
    return IFAN(NetworkConfig(size=32, tasks=TASKS, iterations=2, reframe=True, iteration_norm="separate")).eval()


def picture() -> np.ndarray:
    ramp = np.arange(PICTURE, dtype=np.uint8)
    red, green = np.meshgrid(ramp, ramp)
    return np.stack([red, green, np.zeros_like(red)], 2)


class Seer:
    """Knows from the colours of a crop where in the picture it is, and predicts what is there: the points, halves whose
    share is how far to the right a pixel is, and a head that always looks left."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []
        self.begun: list[FacePredictions | None] = []

    def __call__(self, images: np.ndarray, begun: FacePredictions | None) -> FacePredictions:
        self.seen.append(images)
        self.begun.append(begun)
        return self.predict(images)

    def predict(self, images: np.ndarray) -> FacePredictions:
        points, halves, pose = [], [], []
        for image in torch.from_numpy(images).double():
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
        classes = {t.name: np.zeros((len(images), t.width), np.float32) for t in CONFIG.classifications}
        classes["pose"] = torch.stack(pose).numpy()
        return FacePredictions(torch.stack(halves).float().numpy(), torch.stack(points).float().numpy(), classes)


def crops_and_windows() -> tuple[list[Crop], np.ndarray, list[np.ndarray]]:
    """Two faces of the picture: their crops, images and source windows."""
    image, crops = picture(), [CROP, Crop(135, 122, 125)]
    images = np.stack([crop_image(image, crop, CONFIG.image_size).transpose(2, 0, 1) for crop in crops])
    return crops, images, [source_window(image, crop, CONFIG.image_size) for crop in crops]


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
def test_what_later_iterations_find_is_led_back_to_the_first_crop(iterations: int) -> None:
    seer, (crops, images, windows) = Seer(), crops_and_windows()
    each = refine(CONFIG, seer, images, windows, iterations)

    assert len(each) == iterations
    assert [len(seen) for seen in seer.seen] == [2] * iterations
    truth = np.stack([points_to_crop(POINTS, crop) for crop in crops])
    for i, found in enumerate(each):
        assert np.abs(found.points - truth).max() < 0.006, "points, in sides of the crop"
        side = CONFIG.size * (1 if i == 0 else 2)
        assert found.parsing_logits.shape == (2, 2, side, side)
        share = softmax(found.parsing_logits, 1)[:, 1]
        first = torch.from_numpy(images)[:, :1].float() / 255
        expected = F.interpolate(first, (side, side), mode="bilinear", antialias=True)[:, 0].numpy()
        inner = slice(2, -2)  # enlarging repeats the border
        assert np.abs(share - expected)[:, inner, inner].max() < 0.012
        assert np.allclose(found.class_logits["pose"], np.arange(5.0), atol=1e-6)


def test_a_later_iteration_begins_with_what_those_before_it_found() -> None:
    """It begins with what its own crop's predictions would be."""
    seer, (_, images, windows) = Seer(), crops_and_windows()
    network = IFAN(replace(CONFIG, point_radius=2))
    refine(CONFIG, seer, images, windows, 3)
    assert seer.begun[0] is None
    for seen, begun in zip(seer.seen[1:], seer.begun[1:], strict=True):
        assert begun is not None
        drawn, expected = (network.encode(torch_predictions(p), 2) for p in (begun, seer.predict(seen)))
        halves, points = 2, slice(2, 7)
        inner = slice(8, -8)  # around it lies what the iteration before did not see
        assert (drawn - expected)[:, :halves, inner, inner].abs().max() < 0.03
        assert (drawn[:, points] != expected[:, points]).float().mean() < 0.01, "a disc may lie a pixel away"
        assert (drawn[:, 7:] - expected[:, 7:]).abs().max() < 1e-5


@pytest.mark.parametrize("side", [32, 64])
def test_moved_parsing_is_that_of_grid_sample(side: int) -> None:
    """Predictions in another crop, also beyond the border, by PyTorch's sampling."""
    crops = [Crop(0.1, -0.05, 0.7, 20.0), Crop(-0.2, 0.3, 1.3, -8.0, flip=True), Crop(0.9, 0.0, 0.5)]
    rng = np.random.default_rng(0)
    config = replace(CONFIG, tasks=(HALVES,), reframe=False)
    logits = rng.standard_normal((len(crops), 2, side, side)).astype(np.float32)
    found = moved(config, FacePredictions(logits, np.zeros((0, 2, 0), np.float32), {}), crops).parsing_logits
    maps = np.stack([np.vstack([crop.matrix(1), [0, 0, 1]]) for crop in crops])
    maps = np.linalg.inv(maps)[:, :2]
    maps[:, :, 2] = maps[:, :, :2].sum(2) + 2 * maps[:, :, 2]  # [0, 1] of the new crop to sides; -1 to 1 both
    shape = [len(crops), 2, CONFIG.size, CONFIG.size]
    grid = F.affine_grid(torch.from_numpy(maps), shape, align_corners=False)
    planes = torch.from_numpy(logits).double().softmax(1)
    expected = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    expected[1] = expected[1].flip(0)  # the halves trade names in a mirrored crop
    assert np.abs(np.exp(found) - expected.numpy()).max() < 1e-5


def test_later_iterations_see_an_upright_face_in_the_middle_once_larger_once_mirrored() -> None:
    image, seer = picture(), Seer()
    crop = replace(CROP, cx=118.0, angle_deg=-15.0)
    first = crop_image(image, crop, CONFIG.image_size).transpose(2, 0, 1)[None].copy()
    refine(CONFIG, seer, first, [source_window(image, crop, CONFIG.image_size)], 3)
    seen = np.concatenate(seer.seen)
    assert seen.shape == (3, *first.shape[1:])
    points = seer.predict(seen).points
    tilt = [abs(p[1, 1] - p[1, 0] + p[1, 4] - p[1, 3]) for p in points]
    middle = [np.abs((p.max(1) + p.min(1)) / 2).max() for p in points]
    extent = [np.ptp(p, axis=1).max() for p in points]
    assert tilt[0] > 0.1 > 0.05 > max(tilt[1:])
    assert middle[0] > 0.05 > 0.01 > max(middle[1:])
    assert extent[1] == pytest.approx(1 / 3.2 / 0.75, rel=0.02)
    assert extent[2] == pytest.approx(1 / 3.2 / 0.95, rel=0.02)
    red = np.diff(seen[:, 0].astype(float), axis=2).mean((1, 2))
    assert red[0] > 0 > red[1]
    assert red[2] > 0


@given(st.lists(st.floats(width=32), min_size=10, max_size=10), st.integers(2, 6))
def test_wrong_points_lead_no_crop_astray(values: list[float], iterations: int) -> None:
    for iteration in range(1, iterations):
        crop = closer_crop(CONFIG, np.array(values).reshape(2, 5), iteration, iterations)
        assert max(abs(crop.cx), abs(crop.cy)) <= 0.3
        assert 0.4 <= crop.side <= 1.4


LEVEL = np.array([[-0.1, 0.1, 0.0, -0.08, 0.08], [-0.1, -0.1, 0.02, 0.12, 0.12]])
"""Five points of an upright face, x and y in crop sides from the middle of the crop."""


@pytest.mark.parametrize("away", [(0.9, -0.7), (-0.31, 0.8), (5.0, 5.0)])
def test_a_later_crop_is_not_far_away(away: tuple[float, float]) -> None:
    crop = closer_crop(CONFIG, LEVEL + np.array(away)[:, None], 1, 2)
    assert (crop.cx, crop.cy) == tuple(np.sign(away) * 0.3)


@pytest.mark.parametrize(("iterations", "sides"), [(2, [0.85]), (3, [0.75, 0.95]), (4, [0.75, 0.85, 0.95])])
def test_later_crops_have_sides_of_their_own_within_bounds(iterations: int, sides: list[float]) -> None:
    for extent in (0.01, 0.12, 0.25, 0.4, 3.0):
        points = LEVEL * (extent / 0.22)
        crops = [closer_crop(CONFIG, points, i, iterations) for i in range(1, iterations)]
        expected = [min(max(3.2 * extent * side, 0.4), 1.4) for side in sides]
        assert [crop.side for crop in crops] == pytest.approx(expected, rel=1e-6)
        assert [crop.flip for crop in crops] == [i % 2 == 1 for i in range(1, iterations)]
        assert [crop.angle_deg for crop in crops] == pytest.approx([0] * len(sides), abs=1e-9)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.12, -0.2)])
def test_parsing_of_a_later_crop_fades_in_from_its_border(shift: tuple[float, float]) -> None:
    """The first crop says that all is the one half of the face, and the later one that all is the other."""
    points = (LEVEL + np.array(shift)[:, None]).astype(np.float32)

    def run(images: np.ndarray, begun: FacePredictions | None) -> FacePredictions:
        logits = np.zeros((1, 2, 32, 32), np.float32)
        logits[:, 0] = 40  # the later crop is mirrored: its left half is the right one
        classes = {t.name: np.zeros((1, t.width), np.float32) for t in CONFIG.classifications}
        return FacePredictions(logits, points[None] if begun is None else np.zeros((1, 2, 5), np.float32), classes)

    crop = closer_crop(CONFIG, points, 1, 2)
    images, window = np.zeros((1, 3, 64, 64), np.uint8), np.zeros((205, 205, 3), np.uint8)
    share = softmax(refine(CONFIG, run, images, [window], 2)[-1].parsing_logits[0])[1]
    place = (np.arange(64) + 0.5) / 64 - 0.5
    inside = [0.5 - np.abs(place - centre) / crop.side for centre in (crop.cx, crop.cy)]
    weight = np.clip(np.minimum(inside[0][None, :], inside[1][:, None]) / 0.06, 0, 1)
    assert 0.05 < np.mean((weight > 0) & (weight < 1)) < 0.5
    np.testing.assert_allclose(share, weight / (weight + 0.2), atol=1e-4)


def crops(count: int = 3) -> tuple[np.ndarray, list[np.ndarray]]:
    pictures = np.random.default_rng(1).integers(0, 256, (count, 40, 48, 3), dtype=np.uint8)
    crop = Crop(24, 20, 36)
    first = [crop_image(image, crop, 32).transpose(2, 0, 1) for image in pictures]
    return np.stack(first), [source_window(image, crop, 32) for image in pictures]


def test_predictor_whose_iterations_reframe(network: IFAN) -> None:
    """The engine and the plain network agree, and need all tasks for it.

    With random weights what is rounded differently grows a hundredfold from one iteration to the next.
    """
    from ifan.ops import use_backend

    torch.manual_seed(1)
    for name, value in network.state_dict().items():
        if ".later_" in name:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    first, windows = crops()
    once = NetworkPredictor(network, iterations=1)(first)
    for iterations, bound in ((2, 1e-4), (3, 1e-2)):
        found = {}
        for backend in ("auto", "reference"):
            with use_backend(backend):
                found[backend] = NetworkPredictor(network, iterations=iterations)(first, windows)
                some = NetworkPredictor(network, tasks="emotion", iterations=iterations)(first, windows)
                assert set(some) == {"emotion"}
                assert np.abs(some["emotion"] - found[backend]["emotion"]).max() < 1e-4
        for name, value in found["auto"].items():
            close = np.abs(value - found["reference"][name]).mean() < bound * max(1, np.abs(value).max())
            assert close, (iterations, name)
        assert found["auto"]["parsing"].shape == (3, 2, 64, 64)
        assert np.allclose(found["auto"]["parsing"].sum(1), 1, atol=1e-5)
        assert np.abs(found["auto"]["landmarks"] - once["landmarks"]).max() > 1e-3


def test_a_crop_without_its_window_is_refused(network: IFAN) -> None:
    first, windows = crops()
    with pytest.raises(ValueError, match="a source window for each of 3 crops to make 2 iterations; got 2"):
        NetworkPredictor(network, iterations=2)(first, windows[:2])


def test_no_faces(network: IFAN) -> None:
    found = NetworkPredictor(network, iterations=2)(np.zeros((0, 3, 32, 32), np.uint8), [])
    assert {name: len(value) for name, value in found.items()} == {t.name: 0 for t in TASKS}


def test_networks_that_cannot_frame_a_face_make_one_iteration() -> None:
    points = TaskConfig("landmarks", "landmarks", ("left_eye", "right_eye"))
    for tasks in ((HALVES,), (HALVES, points)):
        blind = IFAN(NetworkConfig(size=32, tasks=tasks, iterations=1, reframe=True)).eval()
        NetworkPredictor(blind)
        with pytest.raises(ValueError, match=r"left_mouth_corner.* for 2 iterations.*use 1, or reframe: false"):
            NetworkPredictor(blind, iterations=2)
        with pytest.raises(ValueError, match="use 1, or reframe: false"):
            evaluate(blind, {}, iterations=2)
    with pytest.raises(ValueError, match="iterations must be at least 1; got 0"):
        NetworkPredictor(blind, iterations=0)


def test_the_configuration_says_how_many_and_callers_may_overrule_it(network: IFAN) -> None:
    image = np.random.default_rng(2).integers(0, 256, (60, 50, 3), dtype=np.uint8)

    def points(analyzer: FaceAnalyzer) -> np.ndarray:
        (face,) = analyzer(image).faces
        return np.array(list(face.landmarks.values()))

    by_configuration = FaceAnalyzer(network, detector=None)
    once = FaceAnalyzer(network, detector=None, iterations=1)
    assert by_configuration.iterations == 2
    assert np.array_equal(points(by_configuration), points(FaceAnalyzer(network, detector=None, iterations=2)))
    assert not np.allclose(points(by_configuration), points(once), atol=1e-2)
    assert pickle.loads(pickle.dumps(once)).iterations == 1


def test_the_first_of_several_crops_has_more_of_the_hair(network: IFAN) -> None:
    image, box = np.random.default_rng(3).integers(0, 256, (80, 80, 3), dtype=np.uint8), (30, 30, 50, 55)
    once, twice = (FaceAnalyzer(network, iterations=n)(image, box)[0] for n in (1, 2))
    assert twice.crop == replace(once.crop, side=1.3 * once.crop.side)
    assert twice.region[0] < once.region[0]


def test_evaluation_measures_each_iteration(network: IFAN) -> None:
    tasks = load_config("attributes-64").network.tasks
    model = IFAN(replace(network.config, tasks=tasks, iterations=3)).eval()
    toy = Subset(open_dataset("toy", "toy:6", "val"), 6)
    report = evaluate(model, {"toy": toy}, every_iteration=True)
    assert report["network"]["iterations"] == 3
    each = report["datasets"]["toy"]["tasks"]["landmarks"]
    assert len(each["iterations"]) == 3
    assert each["iterations"][-1]["nme"] == each["nme"] != each["iterations"][0]["nme"]
    once = evaluate(model, {"toy": toy}, iterations=1)["datasets"]["toy"]["tasks"]["landmarks"]["nme"]
    assert once == each["iterations"][0]["nme"]
