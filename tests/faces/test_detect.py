"""The detector: faces of the bundled portrait and the demo photos, sizes of every kind; crops from what it finds."""

from __future__ import annotations

import math
import threading
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest

from ifan.crop import points_to_crop
from ifan.data.images import read_image
from ifan.faces import CenterFace, Detection
from ifan.faces.framing import FACE_DROP, FACE_MARGIN, crop_of

COUNTS = {
    "astronaut.png": (1, 1),
    "multi_face.jpg": (5, 5),
    "nasa_astronaut_group.jpg": (23, 23),
    "official_portrait_standing.jpg": (1, 1),
    "sideface.jpg": (1, 1),
    "single_face.jpg": (1, 1),
    "solvay_1927.jpg": (28, 29),
}
"""Least and most faces to be found."""


@pytest.fixture(scope="module")
def detector() -> CenterFace:
    return CenterFace()


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return read_image((resources.files("ifan") / "assets" / "astronaut.png").read_bytes())


def test_portrait_has_one_face_with_its_points(detector: CenterFace, portrait: np.ndarray) -> None:
    (face,) = detector.detect([portrait])[0]
    assert face.score > 0.8
    np.testing.assert_allclose(face.box, (181, 58, 269, 177), atol=6)
    expected = [(202, 102), (250, 102), (227, 128), (206, 149), (245, 149)]
    np.testing.assert_allclose(face.points, expected, atol=8)


def test_sizes_do_not_disturb_each_other(detector: CenterFace, portrait: np.ndarray) -> None:
    """OpenCV 4 keeps the last picture's shape: mixed sizes once gave hundreds of faces."""
    wide = np.ascontiguousarray(np.pad(portrait, ((0, 0), (0, 300), (0, 0))))
    images = [
        portrait,
        wide,
        cv2.resize(portrait, (300, 300)),
        portrait[:200, :60],
        portrait,
        np.tile(portrait, (1, 2, 1)),
    ]
    together = detector.detect(images)
    assert [len(faces) for faces in together] == [1, 1, 1, 0, 1, 2]
    assert together[0] == together[4]
    np.testing.assert_allclose(together[1][0].box, together[0][0].box, atol=2)


def test_large_photos_are_shrunk_and_places_are_theirs(portrait: np.ndarray) -> None:
    small, large = (CenterFace(max_side=side).detect([cv2.resize(portrait, (1024, 1024))])[0] for side in (512, 1024))
    np.testing.assert_allclose(small[0].box, large[0].box, atol=16)


def test_threads_find_the_same(detector: CenterFace, portrait: np.ndarray) -> None:
    expected, found = detector.detect([portrait]), []
    threads = [threading.Thread(target=lambda: found.append(detector.detect([portrait]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (33, 31)])
def test_shapes_without_a_face(detector: CenterFace, shape: tuple[int, int]) -> None:
    assert detector.detect([np.full((*shape, 3), 128, np.uint8)]) == [[]]


def test_options_out_of_range() -> None:
    for options in ({"max_side": 8}, {"min_score": 0}, {"max_overlap": 2}):
        with pytest.raises(ValueError, match="CenterFace: expected"):
            CenterFace(**options)


@pytest.mark.parametrize("name", COUNTS)
def test_every_face_of_the_demo_photos(detector: CenterFace, shared: Path, name: str) -> None:
    least, most = COUNTS[name]
    assert least <= len(detector.detect([read_image(shared / "demo" / name)])[0]) <= most


@pytest.mark.parametrize(
    ("name", "faces"), [("no_face.mp4", 0), ("single_face.mp4", 1), ("WolfgangLanger_Pexels.mp4", 1)]
)
def test_faces_of_the_demo_clips(shared: Path, name: str, faces: int) -> None:
    clip, frames, number = cv2.VideoCapture(str(shared / "demo" / name)), [], 0
    while clip.grab():
        if number % 30 == 0:
            frames.append(clip.retrieve()[1][..., ::-1])
        number += 1
    assert len(frames) > 1
    assert {len(found) for found in CenterFace(max_side=640).detect(frames)} == {faces}


def test_crop_of_points_is_upright_and_framed_as_in_training() -> None:
    """MTFL's convention: points around the middle, 3.2 times their extent; whatever the turn."""
    upright = np.array([(40, 40), (60, 40), (50, 52), (42, 64), (58, 64)], float)
    for degrees in (-60, 0, 25, 170):
        angle = math.radians(degrees)
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        points = tuple(map(tuple, upright @ turn + 300))
        crop = crop_of(Detection((0, 0, 1, 1), 0.9, points))
        assert crop.side == pytest.approx(3.2 * 24)
        assert crop.angle_deg == pytest.approx(degrees)
        x, y = points_to_crop(points, crop)
        np.testing.assert_allclose(x, (upright[:, 0] - 50) / 76.8, atol=1e-9)
        np.testing.assert_allclose(y, (upright[:, 1] - 52) / 76.8, atol=1e-9)


def test_useless_points_leave_the_box() -> None:
    for points in ((), ((5.0, 5.0),) * 5, ((float("nan"), 0.0),) * 5):
        crop = crop_of(Detection((10, 10, 40, 40), 0.9, points))
        assert (crop.side, crop.angle_deg) == (pytest.approx(30 * FACE_MARGIN), 0)
        assert crop.cy == pytest.approx(25 + 30 * FACE_DROP)
