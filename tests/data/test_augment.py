"""Augmentation moves picture, map and points together, and is a function of its generator."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from ifan.config import AugmentConfig, NetworkConfig, TaskConfig
from ifan.crop import Crop
from ifan.data.augment import EARLIER, augment_crop, augment_pixels
from ifan.data.labels import MTFL_ATTRIBUTES
from ifan.data.sample import FaceSample
from ifan.data.targets import TargetMap
from ifan.data.toy import ToyFaces
from tests.support.dataset_layouts import picture

GEOMETRY = AugmentConfig(
    shift=0.1, scale=(0.7, 1.4), rotate=30, brightness=0, contrast=0, saturation=0, grey=0,
    low_resolution=0, blur=0, noise=0, erase=0,
)  # fmt: skip
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]], np.uint8)
POINTS = np.array([[90, 100], [160, 96], [126, 140], [100, 170], [150, 172]], np.float32)


def dotted() -> FaceSample:
    """A dark picture with a coloured dot at each point, and a map with a disc of another class around each."""
    image, parsing = np.full((256, 256, 3), 20, np.uint8), np.zeros((256, 256), np.uint8)
    for k, (x, y) in enumerate(POINTS):
        centre = int(x) * 16 - 8, int(y) * 16 - 8
        cv2.circle(image, centre, 8 * 16, COLOURS[k].tolist(), -1, cv2.LINE_AA, 4)
        cv2.circle(parsing, centre, 10 * 16, k + 1, -1, cv2.LINE_8, 4)
    return FaceSample("dots", image, parsing=parsing, points=POINTS)


def middle(mask: np.ndarray) -> np.ndarray:
    """Centre of the True pixels in crop-normalised x, y."""
    y, x = np.nonzero(mask)
    return np.array([x.mean() + 0.5, y.mean() + 0.5]) / mask.shape[0] - 0.5


@pytest.mark.parametrize("seed", range(12))
def test_picture_map_and_points_move_together(seed: int) -> None:
    sample, mapping = dotted(), TargetMap(ToyFaces(1), NetworkConfig(size=128))
    crop = augment_crop(mapping.base_crop(sample), np.random.default_rng(seed), GEOMETRY)
    targets = mapping(sample, crop)
    assert targets.points is not None
    assert targets.parsing is not None
    # A mirror swaps the names of sides: the dot of the left eye is then the right eye.
    order = [1, 0, 2, 4, 3] if crop.flip else range(5)
    for name, dot in enumerate(order):
        at = targets.points[:, name]
        seen = np.abs(targets.image.astype(int) - COLOURS[dot]).max(-1) < 60
        if (np.abs(at) < 0.42).all():
            assert np.abs(middle(seen) - at).max() * 128 < 0.7
            assert np.abs(middle(targets.parsing == dot + 1) - at).max() * 128 < 0.7


def test_flips_happen_and_left_stays_left() -> None:
    sample, mapping = dotted(), TargetMap(ToyFaces(1), NetworkConfig(size=64))
    level = replace(GEOMETRY, rotate=0)
    crops = [augment_crop(mapping.base_crop(sample), np.random.default_rng(seed), level) for seed in range(40)]
    assert 10 < sum(crop.flip for crop in crops) < 30
    for crop in crops:
        points = mapping(sample, crop).points
        assert points is not None
        assert points[0, 0] < points[0, 1]
        assert points[0, 3] < points[0, 4]


def test_pose_label_is_mirrored_with_the_picture() -> None:
    network = NetworkConfig(size=64, tasks=(TaskConfig("pose", "classification", MTFL_ATTRIBUTES["pose"]),))
    faces = ToyFaces(30)
    mapping = TargetMap(faces, network)
    for i in range(30):
        crop = mapping.base_crop(faces[i])
        plain, mirrored = mapping(faces[i], crop), mapping(faces[i], replace(crop, flip=True))
        assert mirrored.classes[0] == 4 - plain.classes[0]
        assert plain.lanes.tolist() == [True]


def test_crop_stays_in_its_ranges() -> None:
    base, config = Crop(50, 60, 100), AugmentConfig()
    crops = [augment_crop(base, np.random.default_rng(seed), config) for seed in range(300)]
    assert 5.8 < max(abs(c.cx - 50) for c in crops) <= 6
    assert 5.8 < max(abs(c.cy - 60) for c in crops) <= 6
    assert 14 < max(abs(c.angle_deg) for c in crops) <= 15
    for values in ([c.cx - 50 for c in crops], [c.cy - 60 for c in crops], [c.angle_deg for c in crops]):
        assert abs(np.mean(np.sign(values))) < 0.2, "to both sides"
    sides = np.array([c.side for c in crops])
    assert sides.min() >= 80
    assert sides.max() <= 120
    # Log-uniform: as many faces grow as shrink by the same factor.
    assert abs(np.median(np.log(sides / 100)) - (np.log(0.8) + np.log(1.2)) / 2) < 0.04


def test_an_earlier_look_sees_more_and_the_same_middle() -> None:
    crop = Crop(50, 60, 100, 10.0, True)
    before = [crop.seen_from(augment_crop(crop, np.random.default_rng(seed), EARLIER)) for seed in range(300)]
    sides = np.array([c.side for c in before])
    assert 1 / EARLIER.scale[1] <= sides.min() < 0.6
    assert 0.95 < sides.max() <= 1 + 1e-9
    assert 0.1 < max(abs(c.cx) for c in before) <= EARLIER.shift * 2**0.5
    assert 15 < max(abs(c.angle_deg) for c in before) <= EARLIER.rotate + 1e-9
    assert 100 < sum(c.flip for c in before) < 200


def test_nothing_configured_changes_nothing() -> None:
    off = replace(GEOMETRY, flip=0, shift=0, scale=(1.0, 1.0), rotate=0)
    base, image = Crop(50, 60, 100), picture(0)
    assert augment_crop(base, np.random.default_rng(0), off) == base
    assert np.array_equal(augment_pixels(image, np.random.default_rng(0), off), image)


@pytest.mark.parametrize(
    "only", ["brightness", "contrast", "saturation", "grey", "low_resolution", "blur", "noise", "erase"]
)
def test_each_change_of_pixels(only: str) -> None:
    image = picture(5)
    config = replace(GEOMETRY, **{only: 1.0 if only not in ("brightness", "contrast", "saturation") else 0.5})
    changed = augment_pixels(image, np.random.default_rng(3), config)
    again = augment_pixels(image, np.random.default_rng(3), config)
    assert np.array_equal(changed, again)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)
    assert np.array_equal(image, picture(5)), "the input is left as it is"
    if only == "grey":
        assert (changed.max(-1).astype(int) - changed.min(-1) <= 1).all()
    if only == "erase":
        assert 0.01 < (changed != image).any(-1).mean() < 0.2
    if only in ("low_resolution", "blur"):
        detail = [np.abs(cv2.Laplacian(x.astype(np.float32), cv2.CV_32F)).mean() for x in (image, changed)]
        assert detail[1] < detail[0] * 1.05


def seen(only: str, strength: float, image: np.ndarray, count: int = 60) -> list[np.ndarray]:
    """Results of one change alone, as float64, of as many seeds."""
    config = replace(GEOMETRY, **{only: strength})
    return [augment_pixels(image, np.random.default_rng(seed), config).astype(float) for seed in range(count)]


def middling() -> np.ndarray:
    """Colours that no change takes beyond 0 or 255."""
    return np.random.default_rng(0).integers(80, 120, (64, 64, 3)).astype(np.uint8)


def test_brightness_multiplies_all_colours() -> None:
    image = middling()
    factors = [float((changed / image).mean()) for changed in seen("brightness", 0.5, image)]
    for changed, factor in zip(seen("brightness", 0.5, image), factors, strict=True):
        assert np.abs(changed - factor * image).max() < 1.1
    assert 0.5 <= min(factors) < 0.55
    assert 1.45 < max(factors) <= 1.5


def test_contrast_stretches_around_the_mean_brightness() -> None:
    image = middling()
    mean = (image.mean((0, 1)) * [0.299, 0.587, 0.114]).sum()
    spreads = []
    for changed in seen("contrast", 0.5, image):
        spreads.append(np.std(changed) / np.std(image))
        assert np.abs(changed - (mean + spreads[-1] * (image - mean))).max() < 1.5
    assert 0.48 <= min(spreads) < 0.55
    assert 1.45 < max(spreads) <= 1.52


def test_saturation_moves_colours_from_and_to_their_grey() -> None:
    image = middling()
    grey = (image * [0.299, 0.587, 0.114]).sum(-1, keepdims=True)
    shares = []
    for changed in seen("saturation", 0.5, image):
        shares.append(float(((changed - grey) * (image - grey)).sum() / ((image - grey) ** 2).sum()))
        assert np.abs(changed - (grey + shares[-1] * (image - grey))).max() < 1.1
    assert 0.49 <= min(shares) < 0.55
    assert 1.45 < max(shares) <= 1.51
    assert max(np.abs(changed - grey).max() for changed in seen("grey", 1.0, image, 3)) < 1.1


def test_changes_happen_as_often_as_configured() -> None:
    image = middling()
    for only in ("grey", "low_resolution", "blur", "noise", "erase"):
        happened = [not np.array_equal(changed, image) for changed in seen(only, 0.3, image, 200)]
        assert 40 < sum(happened) < 80, only
        assert not any((changed != image).any() for changed in seen(only, 0.0, image, 5))


def test_noise_is_of_both_signs_and_of_several_strengths() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    noise = [changed - 128 for changed in seen("noise", 1.0, image)]
    assert max(abs(one.mean()) for one in noise) < 0.5
    strengths = [one.std() for one in noise]
    assert 1.9 < min(strengths) < 3
    assert 11 < max(strengths) < 12.5
    assert not np.array_equal(noise[0][..., 0], noise[0][..., 1])


def test_blur_and_low_resolution_stay_within_bounds() -> None:
    """Variance that is left of noise: of a Gaussian of 0.4 to 1.2 pixels, and of a third to four fifths of the size."""
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for only, least, most in (("blur", (0.03, 0.12), (0.6, 0.85)), ("low_resolution", (0.05, 0.2), (0.25, 0.4))):
        left = [np.var(changed) / np.var(image) for changed in seen(only, 1.0, image)]
        assert least[0] < min(left) < least[1], only
        assert most[0] < max(left) < most[1], only
        assert all(abs(changed.mean() - image.mean()) < 2 for changed in seen(only, 1.0, image, 5))


def test_a_rectangle_is_erased() -> None:
    """Of 2 to 12 % of the crop, at most twice as long as high or the reverse, anywhere, of one colour or of noise."""
    image = np.random.default_rng(2).integers(1, 255, (64, 64, 3)).astype(np.uint8)
    shares, shapes, plain, places = [], [], [], []
    for changed in seen("erase", 1.0, image, 120):
        rows, columns = (np.flatnonzero((changed != image).any((1 - axis, 2))) for axis in (0, 1))
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        shares.append(box.shape[0] * box.shape[1] / 64**2)
        shapes.append(box.shape[1] / box.shape[0])
        plain.append(len(np.unique(box.reshape(-1, 3), axis=0)) == 1)
        places.append((rows[0], 63 - rows[-1], columns[0], 63 - columns[-1]))
    assert 0.015 < min(shares) < 0.03
    assert 0.1 < max(shares) < 0.13
    assert 0.4 < min(shapes) < 0.6
    assert 1.7 < max(shapes) < 2.4
    assert 35 < sum(plain) < 85
    assert max(np.min(places, axis=0)) <= 2, "up to every border"
