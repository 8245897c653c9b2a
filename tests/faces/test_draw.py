"""Overlays: sizes, what is drawn where; label pictures; files that are whole or not there."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ifan.config import EMOTIONS, PARSING_CLASSES
from ifan.crop import Crop
from ifan.faces import Face, PhotoResult
from ifan.faces.draw import annotate, contact_sheet, paint
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


@pytest.mark.parametrize("size", [(600, 500), (1000, 3000)])
def test_overlay_keeps_the_size_of_a_large_photo(size: tuple[int, int]) -> None:
    picture = result(*size).plot()
    assert picture.shape[0] == size[1]
    assert size[0] + 100 < picture.shape[1] < 2 * size[0]


@pytest.mark.parametrize("size", [(1, 1), (48, 48), (64, 20)])
def test_small_photos_are_enlarged(size: tuple[int, int]) -> None:
    picture = result(*size).plot()
    assert picture.shape[1] >= 420
    assert picture.shape[0] >= 150


def test_small_faces_enlarge_the_photo_within_bounds() -> None:
    assert result(900, 600, side=100).plot().shape[0] == 900
    assert 1195 < result(1200, 800, side=20).plot().shape[0] < 1205
    assert result(4000, 100, side=10).plot().shape[0] < 700


def test_many_faces_stay_legible() -> None:
    picture = result(640, 280, faces=23, side=40).plot()
    assert picture.shape[1] < 3200
    assert (picture == 250).all(-1).mean() > 0.2


def test_overlay_colours_classes_and_leaves_the_rest() -> None:
    shown = result(600, 500, side=200).plot()
    skin = (0.5 * 90 + 0.5 * palette(9)[1]).round()
    assert np.abs(shown[200, 290].astype(int) - skin).max() <= 1
    assert (shown[20, 20] == 90).all()
    assert not (shown[:500, :600] == 90).all()


def test_points_and_boxes_are_drawn_where_they_are() -> None:
    """A bright ring around each point, and a frame around the face unless it fills the photo."""
    made = result(600, 500, side=200)
    face = made.faces[0]
    plain = dataclasses.replace(face, parsing=None, landmarks={}, box=(0.0, 0.0, 600.0, 500.0))
    assert (PhotoResult(None, (600, 500), (plain,), made.image).plot()[:500, :600] == 90).all()
    framed = dataclasses.replace(plain, box=face.box)
    shown = PhotoResult(None, (600, 500), (framed,), made.image).plot()[:500, :600].astype(int)
    rows, columns = (np.flatnonzero((shown != 90).any((1 - axis, 2))) for axis in (0, 1))
    x0, y0, x1, y1 = (round(v) for v in face.box)
    assert max(abs(columns[0] - x0), abs(columns[-1] - x1), abs(rows[0] - y0), abs(rows[-1] - y1)) <= 3
    assert shown[y0, (x0 + x1) // 2].min() > 200, "bright"
    assert min(shown[y0 - 2, (x0 + x1) // 2].max(), shown[y0 + 2, (x0 + x1) // 2].max()) < 90, "on a dark edge"
    dotted = dataclasses.replace(plain, landmarks={"nose": (300.0, 260.0)})
    shown = PhotoResult(None, (600, 500), (dotted,), made.image).plot()[:500, :600]
    ys, xs = np.nonzero((shown != 90).any(-1))
    assert (abs(ys.mean() - 260) < 1, abs(xs.mean() - 300) < 1) == (True, True)
    assert 2 <= np.ptp(xs) <= 30


def test_bars_are_as_long_as_their_shares() -> None:
    """One a emotion, of a whole that is the same for all; the longest has a colour of its own."""
    made = result(600, 500)
    shares = list(made.faces[0].emotion.values())
    panel = made.plot()[:, 600:]
    bar, best, rest = ((panel == colour).all(-1) for colour in ((0, 114, 178), (213, 94, 0), (222, 222, 222)))
    whole = (bar | best | rest).sum(1)
    rows = np.flatnonzero(whole > 0.9 * whole.max())
    blocks = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    assert len(blocks) == len(shares) == 7
    middles = [block[len(block) // 2] for block in blocks]
    assert len({whole[row] for row in middles}) == 1
    found = [(bar | best)[row].sum() / whole[row] for row in middles]
    np.testing.assert_allclose(found, shares, atol=0.02)
    assert [bool(best[row].any()) for row in middles] == [share == max(shares) for share in shares]
    colours = {tuple(colour) for colour in panel.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in palette(9)[1:].tolist()} <= colours, "the legend"


def test_several_faces_have_numbers_below_their_boxes() -> None:
    """Bright on dark, and within the photo."""
    made = result(600, 500, 2, side=200)
    plain = [dataclasses.replace(face, parsing=None, landmarks={}, classes={}) for face in made.faces]
    one, two = (PhotoResult(None, (600, 500), tuple(plain[:n]), made.image).plot().astype(int) for n in (1, 2))
    assert one.shape == two.shape == (500, 600, 3)
    for face in plain:
        x, y = round(face.box[0]), round(face.box[3])
        below = two[y + 4 : y + 24, x : x + 12]
        assert (below == 32).all(-1).mean() > 0.3
        assert not (one[y + 4 : y + 24, x : x + 12] == 32).all(-1).any()
    low = dataclasses.replace(plain[0], box=(590.0, 300.0, 600.0, 500.0))
    shown = PhotoResult(None, (600, 500), (low, low), made.image).plot()
    assert (shown[470:500, 560:600] == 32).all(-1).sum() > 50


def test_a_frame_of_a_clip_has_its_own_size_and_the_emotion_below_the_box() -> None:
    made = result(300, 400, side=150)
    plain = dataclasses.replace(made.faces[0], parsing=None, landmarks={})
    silent = dataclasses.replace(plain, classes={})
    shown, without = (annotate(made.image, [face]).astype(int) for face in (plain, silent))
    assert shown.shape == without.shape == (400, 300, 3)
    rows, columns = (np.flatnonzero((shown != without).any((1 - axis, 2))) for axis in (0, 1))
    assert 0 <= rows[0] - plain.box[3] <= 3
    assert abs(columns[0] - plain.box[0]) <= 1
    assert (made.image == 90).all()
    assert not (annotate(made.image, made.faces) == without).all()


def test_overlay_does_not_touch_the_photo() -> None:
    photo = result(600, 500)
    photo.plot()
    assert (photo.image == 90).all()


def test_nothing_predicted_is_just_the_photo() -> None:
    empty = PhotoResult(None, (600, 500), (), np.full((500, 600, 3), 7, np.uint8))
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
    assert palette(18)[9].tolist() == (0.6 * palette(9)[1]).round().tolist()
    assert palette(18)[17].tolist() == (0.36 * palette(9)[1]).round().tolist()


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


def test_paint_and_sheet() -> None:
    photo, ids = np.full((40, 40, 3), 100, np.uint8), np.zeros((40, 40), np.uint8)
    ids[:, 20:] = 2
    ids[:, 10:20] = 255
    painted = paint(photo, ids)
    assert (painted[:, :20] == 100).all()
    assert (painted[:, 20:] != 100).any()
    sheet = contact_sheet([[photo, painted], [painted, photo]], ["photo", "labels"])
    assert sheet.shape[1] == 2 * 40 + 3 * 8
    assert (sheet[-48:-8, 8:48] == painted).all()


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
