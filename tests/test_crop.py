"""The crop convention: there and back, half pixels, flips, borders, label maps."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from ifan.config import IGNORE
from ifan.crop import Crop, crop_image, crop_labels, map_to_image, points_from_crop, points_to_crop
from tests.support.dataset_layouts import picture

CROPS = [
    Crop(32, 32, 64),
    Crop(30.25, 33.5, 40.5),
    Crop(20, 40, 90, angle_deg=17),
    Crop(31, 29, 50, angle_deg=-40, flip=True),
    Crop(500, 700, 3.5, angle_deg=180, flip=True),
]


@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_points_go_there_and_back(crop: Crop) -> None:
    points = np.random.default_rng(0).uniform(-50, 900, (7, 2))
    assert np.abs(points_from_crop(points_to_crop(points, crop), crop) - points).max() < 1e-9


@pytest.mark.parametrize("crop", CROPS, ids=str)
@pytest.mark.parametrize("size", [64, 128])
def test_matrix_and_points_agree(crop: Crop, size: int) -> None:
    points = np.random.default_rng(1).uniform(0, 64, (5, 2))
    matrix = crop.matrix(size)
    pixels = points @ matrix[:, :2].T + matrix[:, 2]
    assert np.allclose(points_to_crop(points, crop), pixels.T / size - 0.5)


@pytest.mark.parametrize("outer", CROPS, ids=str)
@pytest.mark.parametrize("inner", CROPS, ids=str)
def test_a_crop_seen_from_another(inner: Crop, outer: Crop) -> None:
    """Points led through both are where the inner crop has them."""
    points = np.random.default_rng(2).uniform(0, 64, (5, 2))
    through = points_to_crop(points_to_crop(points, outer).T, inner.seen_from(outer))
    assert np.allclose(through, points_to_crop(points, inner), atol=1e-9)


def test_box_gives_the_square_around_its_middle() -> None:
    assert Crop.from_box((10, 20, 40, 30), margin=1.5) == Crop(25, 25, 45)
    corners = points_from_crop(np.array([[-0.5, 0.5], [-0.5, 0.5]]), Crop.from_box((10, 20, 40, 50)))
    assert np.allclose(corners, [[10, 20], [40, 50]])


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 9, 7, 9), (9, 0, 1, 5), (0, 0, np.nan, 5)])
def test_bad_box_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="crop: expected"):
        Crop.from_box(box)


def test_turn_is_clockwise_in_the_picture() -> None:
    # The crop's own right-hand direction, turned by 90 degrees clockwise, points down in the picture.
    right = points_from_crop(np.array([[0.5], [0.0]]), Crop(50, 50, 20, angle_deg=90))
    assert np.allclose(right, [[50, 60]])


def test_whole_picture_at_its_own_size_is_unchanged() -> None:
    image = picture(0)
    assert np.array_equal(crop_image(image, Crop(32, 32, 64), 64), image)


def test_integer_window_is_cut_out() -> None:
    image = picture(1)
    assert np.array_equal(crop_image(image, Crop(40, 24, 32), 32), image[8:40, 24:56])


def test_flip_mirrors_the_whole_window() -> None:
    image = picture(2)
    assert np.array_equal(crop_image(image, Crop(32, 32, 64, flip=True), 64), image[:, ::-1])
    labels = image[..., 0]
    assert np.array_equal(crop_labels(labels, Crop(32, 32, 64, flip=True), 64), labels[:, ::-1])
    assert np.allclose(points_to_crop(np.array([[0.0, 10.0]]), Crop(32, 32, 64, flip=True))[:, 0], [0.5, 10 / 64 - 0.5])


def test_half_pixels_by_hand() -> None:
    # Two pixels 0 and 100 stretched to four: centres at 0.25, 0.75, 1.25, 1.75 of pixels whose centres are 0.5 and 1.5.
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 100
    row = crop_image(image, Crop(1, 1, 2), 4)[0, :, 0]
    assert np.abs(row.astype(int) - [0, 25, 75, 100]).max() <= 1


def test_shrinking_by_hand_is_the_mean_of_areas() -> None:
    image = picture(3)
    small = crop_image(image, Crop(32, 32, 64), 16)
    means = image.reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(small - means).max() <= 1, "rounded twice"


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    grey = crop_image(stripes, Crop(120.3, 130.7, 200, angle_deg=5), 32)
    assert np.abs(grey.astype(int) - 127).max() < 30


@pytest.mark.parametrize("angle", [0, 25])
def test_shrinking_keeps_positions(angle: float) -> None:
    """A blob's centre of mass moves as the points do, however much the crop shrinks."""
    image = np.zeros((300, 260, 3), np.uint8)
    centre = np.array([121.3, 160.8])
    y, x = np.mgrid[:300, :260] + 0.5
    image[...] = (255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 200))[..., None].astype(np.uint8)
    for side in (60, 77.7, 150, 260):
        crop = Crop(125, 155, side, angle_deg=angle, flip=True)
        weight = crop_image(image, crop, 64)[..., 0].astype(float)
        weight[weight < 3] = 0
        rows, columns = np.mgrid[:64, :64] + 0.5
        found = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum() / 64 - 0.5
        assert np.abs(found - points_to_crop(centre[None], crop)[:, 0]).max() * side < 1.0, side


def test_outside_repeats_the_border_and_ignores_labels() -> None:
    image = np.full((10, 10, 3), 77, np.uint8)
    assert (crop_image(image, Crop(100, 100, 20), 8) == 77).all()
    assert (crop_labels(image[..., 0], Crop(100, 100, 20), 8) == IGNORE).all()
    half = crop_labels(image[..., 0], Crop(0, 5, 10), 10)
    assert (half[:, :5] == IGNORE).all()
    assert (half[:, 5:] == 77).all()


def test_one_pixel_picture() -> None:
    image = np.array([[[1, 2, 3]]], np.uint8)
    assert (crop_image(image, Crop(0.5, 0.5, 1), 64) == [1, 2, 3]).all()


@pytest.mark.parametrize("crop", [Crop(32, 32, 64), Crop(30, 34, 44, angle_deg=20), Crop(30, 34, 44, -35, flip=True)])
def test_label_map_goes_there_and_back(crop: Crop) -> None:
    y, x = np.mgrid[:64, :64]
    labels = ((x - 32) ** 2 + (y - 36) ** 2 < 15**2).astype(np.uint8) + (((x - 26) ** 2 + (y - 30) ** 2) < 30)
    drawn = crop_labels(labels, crop, 128)
    back = map_to_image(
        np.eye(3, dtype=np.float32)[np.where(drawn == IGNORE, 0, drawn)].transpose(2, 0, 1), crop, (64, 64)
    )
    inside = np.abs(points_to_crop(np.stack([x.ravel() + 0.5, y.ravel() + 0.5], 1), crop)).max(0).reshape(64, 64) < 0.5
    assert (back == labels)[inside].mean() > 0.995
    assert (back[~inside] == 0).all()


def test_probabilities_are_interpolated_before_the_largest_wins() -> None:
    # 60 % of class 1 on the left, 90 % of class 2 on the right: between them the border is not half-way.
    probabilities = np.zeros((3, 2, 2), np.float32)
    probabilities[1] = [[0.6, 0.1], [0.6, 0.1]]
    probabilities[2] = [[0.4, 0.9], [0.4, 0.9]]
    row = map_to_image(probabilities, Crop(10, 10, 20), (20, 20))[10]
    # Class 2 wins from 1/5 of the way between the two centres, which lie at 5 and 15 pixels.
    assert row.tolist() == [1] * 7 + [2] * 13


def test_map_to_a_part_of_a_large_photo() -> None:
    ones = np.stack([np.zeros((32, 32)), np.ones((32, 32))]).astype(np.float32)
    ids = map_to_image(ones, Crop(150, 80, 40), (200, 300))
    assert ids.sum() == 40 * 40
    assert (ids[60:100, 130:170] == 1).all()


def test_resize_and_crop_share_the_half_pixel() -> None:
    image = picture(4)
    ours = crop_image(image, Crop(32, 32, 64), 128)
    theirs = cv2.resize(image, (128, 128), interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_large_maps_are_drawn_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ids, and no more memory than theirs and that of a strip."""
    probabilities = np.random.default_rng(0).random((9, 16, 16), np.float32)
    crop, shape = Crop(300, 250, 420, 20), (500, 600)
    whole = map_to_image(probabilities, crop, shape)
    monkeypatch.setattr("ifan.crop.PIXELS_AT_ONCE", 10_000)
    tracemalloc.start()
    strips = map_to_image(probabilities, crop, shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(whole)) == 9
    assert np.array_equal(strips, whole)
    assert peak < 3 * strips.size
