"""The page for browsers, opened in a headless Chromium: it finds what ``ifan.load()`` finds, and asks nobody else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

import ifan

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "ifan" / "assets" / "astronaut.png"
PAGE = ROOT / "examples" / "web"
SHARE_OF_EYES = 0.03
"""The page averages a grid of samples, the library areas."""


@pytest.fixture(scope="module")
def chromium() -> str:
    """Path of a browser; skips without one, or without npm."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found or not shutil.which("npm"):
        pytest.skip("needs chromium and npm: apt-get install chromium npm")
    return found


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_page_finds_the_face(exported: Path, tmp_path: Path, chromium: str) -> None:
    page = tmp_path / "page"
    shutil.copytree(PAGE, page, ignore=shutil.ignore_patterns("node_modules", "model"))
    shutil.copytree(exported, page / "model")
    shutil.copy(PHOTO, page)
    install = ["npm", "install", "--no-audit", "--no-fund"]
    if subprocess.run(install, cwd=page, capture_output=True).returncode:
        pytest.skip("npm cannot install onnxruntime-web and puppeteer-core here")
    shot = Path(os.environ.get("IFAN_SCREENSHOT", tmp_path / "page.png"))
    run = subprocess.run(
        ["node", "check.mjs", PHOTO.name, str(shot)],
        cwd=page,
        env={**os.environ, "CHROMIUM": chromium},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert not seen["refused"], seen["status"]
    assert not seen["strangers"]
    assert " ms a frame of 512 x 512" in seen["status"]
    (found,), (face,) = seen["found"], ifan.load()(PHOTO).faces
    expected = np.array(list(face.landmarks.values()))
    eyes = np.linalg.norm(expected[0] - expected[1])
    assert list(found["points"]) == list(face.landmarks)
    assert np.linalg.norm(np.array(list(found["points"].values())) - expected, axis=1).max() < SHARE_OF_EYES * eyes
    np.testing.assert_allclose(list(found["classes"]["emotion"].values()), list(face.emotion.values()), atol=0.05)
    drawn = cv2.imread(str(shot))
    assert drawn.std() > 20  # not an empty page
