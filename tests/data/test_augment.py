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
    assert max(abs(c.cx - 50) for c in crops) <= 6
    assert max(abs(c.angle_deg) for c in crops) <= 15
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
