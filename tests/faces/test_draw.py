"""Overlays: sizes, what is drawn where; label pictures; files that are whole or not there."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ifan.config import EMOTIONS, PARSING_CLASSES
from ifan.crop import Crop
from ifan.faces import Face, PhotoResult
from ifan.faces.draw import FILL, annotate, draw_faces, label_of
from ifan.faces.jpeg import encode_jpeg
from ifan.faces.lettering import label_faces
from ifan.faces.palette import palette
from ifan.faces.png import encode_label_png, encode_png
from ifan.files import write_files


def result(width: int, height: int, faces: int = 1, side: float | None = None) -> PhotoResult:
    """Grey photo; each face's crop is parsed as skin with a mouth of class 7 in its middle."""
    made = []
    for i in range(faces):
        s = side or min(width, height)
        x, y = (width - s) / 2 + 3 * i, (height - s) / 2
        ids = np.ones((round(s), round(s)), np.uint8)
        ids[len(ids) // 2] = 7
        region = (int(x), int(y), int(x) + len(ids), int(y) + len(ids))
        emotion = {name: (k + 1) / 28 for k, name in enumerate(EMOTIONS)}
        points = {"left_eye": (x + 0.3 * s, y + 0.4 * s), "nose": (x + 0.5 * s, float("inf"))}
        classes = {"emotion": emotion, "smile": {"yes": 0.8, "no": 0.2}}
        box = (x, y, x + s, y + s)
        made.append(Face(box, Crop.from_box(box), region, ids, PARSING_CLASSES, points, classes))
    return PhotoResult("in/p.jpg", (width, height), tuple(made), np.full((height, width, 3), 90, np.uint8))


@pytest.mark.parametrize("size", [(700, 500), (1000, 3000)])
def test_overlay_keeps_the_size_of_a_large_photo(size: tuple[int, int]) -> None:
    picture = result(*size).plot()
    assert picture.shape[1] == size[0]
    assert size[1] + 20 < picture.shape[0] < 1.25 * size[1]


@pytest.mark.parametrize("size", [(1, 1), (48, 48), (64, 20)])
def test_small_photos_are_enlarged(size: tuple[int, int]) -> None:
    picture = result(*size).plot()
    assert picture.shape[1] >= 640
    assert picture.shape[0] >= 200


def test_small_faces_enlarge_the_photo_within_bounds() -> None:
    assert result(900, 600, side=100).plot().shape[1] == 1350
    assert result(1200, 800, side=20).plot().shape[1] == 2000
    assert result(4000, 100, side=10).plot().shape[1] == 4000


def test_a_strip_names_colours_and_for_one_face_all_probabilities() -> None:
    one, two = (result(800, 500, faces=n, side=200).plot()[500:] for n in (1, 2))
    for strip in (one, two):
        found = {tuple(pixel) for pixel in strip.reshape(-1, 3).tolist()}
        assert {tuple(colour) for colour in palette(9)[1:].tolist()} <= found
    assert len(one) > 2 * len(two)


def test_overlay_fills_lightly_and_leaves_the_rest() -> None:
    shown = result(700, 500, side=200).plot()
    skin = ((1 - FILL) * 90 + FILL * palette(9)[1]).round()
    assert np.abs(shown[200, 320].astype(int) - skin).max() <= 1
    assert (shown[20, 20] == 90).all()


def test_regions_have_smooth_outlines_in_their_colours() -> None:
    photo = result(64, 64)
    ids = photo.faces[0].parsing
    y, x = np.mgrid[0:64, 0:64]
    ids[:] = np.where((x - 31.5) ** 2 + (y - 31.5) ** 2 < 20**2, 4, 0)
    face = replace(photo.faces[0], landmarks={})
    shown = draw_faces(photo.image, [face], 10).astype(float)
    distance = np.hypot(*(np.mgrid[0:640, 0:640] + 0.5 - 320))
    assert (shown[(distance > 235) & (distance < 310)] == 90).all()
    on_line = np.abs(shown - palette(9)[4]).max(-1) < 40
    assert on_line.sum() > 2 * np.pi * 200
    assert np.abs(distance[on_line] - 200).max() < 6


def test_the_smaller_crop_hides_what_lies_below() -> None:
    wide, small = result(700, 700).faces[0], result(700, 700, side=300).faces[0]
    small.parsing[:] = 4
    picture = draw_faces(np.full((700, 700, 3), 90, np.uint8), [small, wide], 1)
    assert np.abs(picture[300, 300] - ((1 - FILL) * 90 + FILL * palette(9)[4]).round()).max() <= 1


@pytest.mark.parametrize("side", [600, 100])
def test_points_stay_where_they_are_and_large_ones_are_open(side: int) -> None:
    face = replace(result(1000, 800, side=side).faces[0], parsing=None, landmarks={"nose": (500.5, 300.5)})
    picture = draw_faces(np.full((800, 1000, 3), 90, np.uint8), [face], 1)[280:321, 480:521]
    y, x = np.nonzero((picture != 90).any(-1))
    assert (y.mean(), x.mean()) == pytest.approx((20, 20), abs=0.1)
    assert (picture[20, 20] == 90).all() == (side == 600)


def test_labels_stay_inside_and_apart() -> None:
    picture = np.full((300, 400, 3), 200, np.uint8)
    boxes = [(0, 0, 60, 60), (70, 0, 130, 60), (340, 240, 400, 300), (150, 250, 200, 300), (20, 70, 80, 130)]
    alone = []
    for box in boxes:
        blank = picture.copy()
        label_faces(blank, [box], ["1 neutral 100%"], [11])
        alone.append(int((blank != 200).any(-1).sum()))
    label_faces(picture, boxes, ["1 neutral 100%"] * 5, [11] * 5)
    assert int((picture != 200).any(-1).sum()) == sum(alone)


def test_a_label_has_name_and_strongest_emotion() -> None:
    face = result(600, 500).faces[0]
    assert label_of(face, 3) == "3 neutral 25%"
    assert label_of(replace(face, classes={"pose": {"left_profile": 0.7, "frontal": 0.3}})) == "left profile 70%"
    assert label_of(replace(face, classes={}), 0) == "0"


def test_a_frame_keeps_its_size_and_says_ids() -> None:
    photo = result(300, 200, faces=2, side=80)
    plain, followed = (annotate(photo.image, [replace(f, id=i) for f in photo.faces]) for i in (None, 7))
    assert plain.shape == followed.shape == photo.image.shape
    assert (plain != followed).any()


def test_overlay_does_not_touch_the_photo() -> None:
    photo = result(600, 500)
    photo.plot()
    assert (photo.image == 90).all()


def test_nothing_predicted_is_just_the_photo() -> None:
    empty = PhotoResult(None, (700, 500), (), np.full((500, 700, 3), 7, np.uint8))
    assert (empty.plot() == empty.image).all()
    assert empty.parsing is None


def test_smaller_crops_lie_on_top() -> None:
    wide, small = result(100, 100).faces[0], result(100, 100, side=40).faces[0]
    small.parsing[:] = 4
    for order in ((wide, small), (small, wide)):
        ids = PhotoResult(None, (100, 100), order, np.zeros((100, 100, 3), np.uint8)).parsing
        assert ids[50, 50] == 4
        assert ids[5, 5] == 1


def test_palette_is_distinct_and_extends() -> None:
    assert len({tuple(c) for c in palette(25).tolist()}) == 25
    assert palette(256).shape == (256, 3)
    assert palette(1).tolist() == [[0, 0, 0]]
    assert (palette(30)[:9] == palette(9)).all()


def test_label_png_holds_ids_and_colours() -> None:
    ids = np.random.default_rng(0).integers(0, 9, (37, 53)).astype(np.uint8)
    data = encode_label_png(ids)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert (decoded == palette(9)[ids]).all()


def test_label_png_is_read_back_as_ids(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    (tmp_path / "a.png").write_bytes(encode_label_png(ids))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        assert (np.array(picture) == ids).all()


def test_png_is_lossless_rgb() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    assert (cv2.imdecode(np.frombuffer(encode_png(image), np.uint8), cv2.IMREAD_COLOR)[..., ::-1] == image).all()


def test_jpeg_is_close_and_small() -> None:
    y, x = np.mgrid[0:200, 0:300]
    image = np.stack([x % 256, y, 255 - y], -1).astype(np.uint8)
    data = encode_jpeg(image)
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(read.astype(int) - image).mean() < 2
    assert len(data) < len(encode_png(np.random.default_rng(0).permutation(image))) / 3


def test_to_dict_is_json_with_named_numbers() -> None:
    photo = result(100, 100)
    photo.faces[0].landmarks.pop("nose")
    tree = json.loads(json.dumps(photo.to_dict(), allow_nan=False))
    assert list(tree) == ["photo", "width", "height", "faces"]
    face = tree["faces"][0]
    assert set(face) == {"box", "score", "crop", "landmarks", "classes", "parsing"}
    assert face["landmarks"] == {"left_eye": [30, 40]}
    assert list(face["classes"]["emotion"]) == list(EMOTIONS)
    assert face["parsing"]["pixels"]["skin"] == 9900
    assert sum(face["parsing"]["pixels"].values()) == 10_000


def test_write_files_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "a"
    old.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_files({old: b"new", tmp_path / "b": b"new"})
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


def test_regions_fade_where_the_network_saw_no_further() -> None:
    """Not where the photo ends: there the square goes on."""
    box = (30.0, 40.0, 110.0, 120.0)
    ids = np.ones((80, 80), np.uint8)
    photo = np.full((160, 110, 3), 90, np.uint8)
    face = Face(box, Crop.from_box(box), (30, 40, 110, 120), ids, PARSING_CLASSES)
    change = np.abs(draw_faces(photo, [replace(face, box=(0, 0, 110, 160))], 1).astype(int) - photo).sum(2)
    assert 0 < change[80, 33] < 0.7 * change[80, 70]
    cut = Crop(90, 80, 120)
    change = np.abs(draw_faces(photo, [replace(face, box=(0, 0, 110, 160), crop=cut)], 1).astype(int) - photo).sum(2)
    assert change[80, 106] == change[80, 70] > 0


def test_regions_do_not_fade_at_the_border_of_the_photo() -> None:
    """A whole photo that was taken as a crop: the network saw all that there is."""
    ids, photo = np.ones((100, 100), np.uint8), np.full((100, 100, 3), 90, np.uint8)
    whole = Face((0, 0, 100, 100), Crop.from_box((0, 0, 100, 100)), (0, 0, 100, 100), ids, PARSING_CLASSES)
    change = np.abs(draw_faces(photo, [whole], 1).astype(int) - photo).sum(2)
    assert change[50, 5] == change[50, 50] > 0


def test_many_points_are_dots() -> None:
    """Sixty-eight rings would hide the face: drawn so, they cover less of it than five."""
    photo, box = np.full((400, 400, 3), 90, np.uint8), (0.0, 0.0, 400.0, 400.0)
    places = {f"p{i}": (20.0 + 40 * (i % 9), 20.0 + 40 * (i // 9)) for i in range(68)}
    few = dict(list(places.items())[:5])
    faces = [Face(box, Crop.from_box(box), (0, 0, 400, 400), landmarks=points) for points in (few, places)]
    changed = [int((draw_faces(photo, [face], 1) != photo).any(2).sum()) for face in faces]
    assert changed[1] / 68 < 0.25 * changed[0] / 5
    assert all((draw_faces(photo, [faces[1]], 1)[int(y), int(x)] != 90).any() for x, y in places.values())
