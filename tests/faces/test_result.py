"""Results in the hands of people: masks, cut-outs, tables, pictures in notebooks, short prints."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from ifan.crop import Crop
from ifan.faces import Face, PhotoResult
from ifan.faces.columns import columns
from tests.faces.conftest import TINY

NAMES = ("background", "skin", "hair")
PARSING = np.array([[0, 1, 1, 2], [2, 2, 0, 1]], np.uint8)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)


@pytest.fixture
def result(photo: np.ndarray) -> PhotoResult:
    """A face with regions in x 3 to 6, y 2 to 3, and one without."""
    emotion = {"emotion": {"happy": 0.9, "sad": 0.1}}
    nose = {"nose": (5.0, 3.0)}
    found = Face((3.0, 2.0, 7.0, 4.0), Crop(5, 3, 4), (3, 2, 7, 4), PARSING, NAMES, nose, emotion, 0.5)
    return PhotoResult("a.jpg", (9, 6), (found, replace(found, parsing=None, score=None, id=3)), photo)


def test_mask_lies_where_the_region_lies(result: PhotoResult) -> None:
    face = result[0]
    hair = face.mask("hair")
    assert hair.shape == (6, 9)
    assert np.argwhere(hair).tolist() == [[2, 6], [3, 3], [3, 4]]
    assert np.array_equal(face.mask("hair", "skin"), face.mask())
    assert face.mask().sum() == 6


def test_cutout_is_transparent_outside(result: PhotoResult, photo: np.ndarray) -> None:
    cut = result[0].cutout("skin")
    assert np.array_equal(cut[..., :3], photo[2:4, 3:7])
    assert np.array_equal(cut[..., 3], np.where(PARSING == 1, 255, 0))
    assert np.array_equal(result[0].cutout()[..., 3] > 0, PARSING > 0)


def test_masks_say_what_is_missing(result: PhotoResult) -> None:
    with pytest.raises(ValueError, match="expected regions of background, skin, hair; got 'beard'"):
        result[0].mask("beard")
    with pytest.raises(ValueError, match="ask the analyzer for the parsing task too"):
        result[1].cutout()
    with pytest.raises(ValueError, match="one without its photo"):
        replace(result[0], photo=None).mask()


def test_prints_are_short(result: PhotoResult, photo: np.ndarray) -> None:
    assert repr(result) == "PhotoResult('a.jpg', 9 x 6, 2 faces: happy 90%, happy 90%)"
    assert repr(result[0]) == "Face(box=(3, 2, 7, 4), score=0.50, happy 90%, 1 points, regions)"
    assert repr(result[1]) == "Face(id=3, box=(3, 2, 7, 4), happy 90%, 1 points)"
    assert repr(PhotoResult(None, (9, 6), (), photo)) == "PhotoResult(9 x 6, 0 faces)"
    crowd = PhotoResult("x/" * 500, (20_000, 20_000), result.faces * 20, photo)
    assert len(repr(crowd)) < 200
    assert repr(crowd).endswith(", ...)")


def test_json_is_that_of_the_dict(result: PhotoResult) -> None:
    tree = json.loads(result.to_json(runs=True))
    assert tree == json.loads(json.dumps(result.to_dict(runs=True)))
    assert [face.get("id") for face in tree["faces"]] == [None, 3]


def test_pandas_has_a_row_a_face(result: PhotoResult, photo: np.ndarray) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is optional")
    table = result.to_pandas()
    assert table.face.tolist() == [1, 2]
    assert table["share_hair"].fillna(-1).tolist() == [0.5, -1]
    assert table.emotion_happy.mean() == pytest.approx(0.9)
    assert table.id.isna().tolist() == [True, False]
    empty = PhotoResult("b.jpg", (9, 6), (), photo).to_pandas()
    assert pandas.concat([table, empty]).photo.tolist() == ["a.jpg", "a.jpg", "b.jpg"]
    assert empty.face.tolist() == [0]


def test_pandas_has_the_columns_of_a_table(analyzer, photo: np.ndarray) -> None:
    pytest.importorskip("pandas", reason="pandas is optional")
    assert list(analyzer(photo).to_pandas()) == list(columns(TINY.tasks))[:-1]


def test_pandas_is_optional(result: PhotoResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^to_pandas needs pandas: pip install pandas$"):
        result.to_pandas()


def test_notebooks_show_a_picture_of_bounded_size(result: PhotoResult) -> None:
    large = np.zeros((40, 3000, 3), np.uint8)
    shown = cv2.imdecode(np.frombuffer(PhotoResult(None, (3000, 40), (), large)._repr_png_(), np.uint8), 1)
    assert shown.shape == (16, 1200, 3)
    face = cv2.imdecode(np.frombuffer(result[0]._repr_png_(), np.uint8), 1)
    assert np.array_equal(face[..., ::-1], result.image[2:4, 3:7])
    assert replace(result[0], photo=None)._repr_png_() is None


def test_show_opens_a_picture(result: PhotoResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = result.show()
    assert opened == [path.as_uri()]
    assert cv2.imread(str(path)) is not None
