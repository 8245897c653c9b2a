"""Pictures made worse: what is changed, and that labels stay where the face is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import limits
from ifan.crop import Crop
from ifan.data import FaceSample

CROP = Crop(50, 60, 80)


def sample(seed: int = 0) -> FaceSample:
    """A picture with noise, three bright places that are points, and label maps of these."""
    image = np.random.default_rng(seed).integers(0, 60, (120, 100, 3), np.uint8)
    parsing = np.zeros((120, 100), np.uint8)
    points = np.array([[30.5, 50.5], [70.5, 50.5], [50.5, 80.5]], np.float32)
    for k, (x, y) in enumerate(points, 1):
        cv2.circle(image, (int(x), int(y)), 3, (255, 255, 255), cv2.FILLED)
        cv2.circle(parsing, (int(x), int(y)), 3, k, cv2.FILLED)
    return FaceSample("a", image, points=points, parsing=parsing)


@pytest.mark.parametrize("degrees", [15, 45, -30])
def test_labels_turn_with_the_picture(degrees: float) -> None:
    given = sample()
    found = limits.turned(degrees)(given, CROP)
    assert found.points is not None
    assert found.parsing is not None
    for k, (x, y) in enumerate(found.points, 1):
        bright = np.argwhere(found.image.min(2) > 200) + 0.5
        near = bright[np.hypot(bright[:, 1] - x, bright[:, 0] - y) < 6]
        assert near.mean(0) == pytest.approx([y, x], abs=0.3)
        assert (np.argwhere(found.parsing == k) + 0.5).mean(0) == pytest.approx([y, x], abs=0.5)
    turned = np.degrees(np.arctan2(*(found.points[1] - found.points[0])[::-1]))
    assert turned == pytest.approx(-degrees, abs=0.1), "against the clock, as seen"


def test_small_faces_have_fewer_details_and_their_size() -> None:
    given = sample()
    found = limits.smaller(16)(given, CROP)
    assert found.image.shape == given.image.shape
    assert found.image.std() < 0.7 * given.image.std()
    assert found.image.mean() == pytest.approx(given.image.mean(), abs=2)
    assert (limits.smaller(200)(given, CROP).image == given.image).all()


def test_light_and_blur_and_bars() -> None:
    given = sample()
    dark, bright = (limits.lit(factor)(given, CROP).image.astype(float) for factor in (0.25, 4))
    assert dark.mean() < 0.75 * given.image.mean() < given.image.mean() < 0.75 * bright.mean()
    assert limits.blurred(0.04)(given, CROP).image.std() < 0.7 * given.image.std()
    grey = limits.covered(0.5, 1.0)(given, CROP).image
    assert (grey[60:100, 10:90] == 128).all()
    assert (grey[:60] == given.image[:60]).all()
    assert (grey[100:] == given.image[100:]).all()
    assert (given.image == sample().image).all(), "the sample itself stays"


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHANGES", {"light": {"0.25 times": limits.lit(0.25)}})
    out = tmp_path / "limits.json"
    monkeypatch.setattr(
        sys, "argv", ["limits", "--weights", "paper-64", "--data", "toy=toy:6", "--limit", "2", "--out", str(out)]
    )
    limits.main()
    found = json.loads(out.read_text())
    assert found["faces"] == {"toy": 6}
    assert found["changes"].keys() == {"", "light"}
    assert found["changes"]["light"]["0.25 times"]["toy"] != found["changes"][""]["as they are"]["toy"]
    assert sum(b["images"] for b in found["calibration"]["emotion"]["bins"]) == 6
