"""``ifan demo``: pictures are where it says, and the packaged weights see the face."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import cv2
import pytest

import ifan
from ifan.cli.demo import TILE, nine_of
from ifan.data.images import read_image
from ifan.data.portrait import PORTRAIT


def test_demo_says_where_the_pictures_are(run, weights: Path, tmp_path: Path) -> None:
    code, text, errors = run("demo", "--out", tmp_path / "out", "--weights", weights)
    assert (code, errors) == (0, "")
    named = [Path(line.rpartition(": ")[2]) for line in text.splitlines()]
    assert sorted(named) == sorted((tmp_path / "out").iterdir())
    assert [p.name for p in named] == [
        "astronaut_overlay.jpg",
        "astronaut_parsing.png",
        "astronaut.json",
        "nine_overlay.jpg",
    ]
    overlay, nine = cv2.imread(str(named[0])), cv2.imread(str(named[3]))
    assert overlay.shape[0] >= 512
    assert nine.shape[0] > 3 * TILE
    (face,) = json.loads(named[2].read_text())["faces"]
    assert face["box"] == pytest.approx([181, 58, 269, 177], abs=6)


def test_demo_runs_on_the_packaged_weights(run, tmp_path: Path) -> None:
    code, _, errors = run("demo", "--out", tmp_path)
    assert (code, errors) == (0, "")
    (face,) = json.loads((tmp_path / "astronaut.json").read_text())["faces"]
    assert max(face["classes"]["emotion"], key=face["classes"]["emotion"].get) == "happy"
    for name, (x, y) in {"left_eye": (202, 102), "right_eye": (250, 102), "nose": (227, 128)}.items():
        assert abs(face["landmarks"][name][0] - x) < 10
        assert abs(face["landmarks"][name][1] - y) < 10


def test_all_nine_faces_are_found_and_happy() -> None:
    analyzer = ifan.load(iterations=1, tasks="emotion")
    result = analyzer(nine_of(read_image((resources.files("ifan") / "assets" / PORTRAIT).read_bytes())))
    assert {(int(x0 // TILE), int(y0 // TILE)) for x0, y0, _, _ in (face.box for face in result)} == {
        (x, y) for x in range(3) for y in range(3)
    }
    assert {face.best("emotion")[0] for face in result} == {"happy"}


def test_portrait_is_credited() -> None:
    assets = resources.files("ifan") / "assets"
    assert "public domain" in (assets / "README.md").read_text()
    assert len((assets / "astronaut.png").read_bytes()) < 500_000
