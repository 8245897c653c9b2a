"""The example that needs ONNX Runtime, OpenCV and numpy alone gives the results of ``ifan.load()``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import ifan

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "ifan" / "assets" / "astronaut.png"
EXAMPLE = ROOT / "examples" / "onnx_inference.py"
SHARE_OF_EYES, SHARE_OF_PIXELS = 0.005, 0.995

RUN = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np, cv2, onnx_inference
photo = np.ascontiguousarray(cv2.imread({photo!r})[:, :, ::-1])
(face,) = onnx_inference.Analyzer(onnx_inference.Path({exported!r}))(photo, {boxes!r})
assert not {{"ifan", "torch"}} & set(sys.modules), "only numpy, OpenCV and ONNX Runtime"
np.savez({out!r}, points=list(face.points.values()), names=list(face.points), parsing=face.parsing, box=face.box,
         emotion=list(face.classes["emotion"].values()))
"""


@pytest.mark.parametrize("boxes", [None, [(178.0, 60.0, 268.0, 180.0)]], ids=["detected", "given"])
def test_the_results_are_those_of_load(exported: Path, tmp_path: Path, boxes: list[tuple[float, ...]] | None) -> None:
    out = tmp_path / "found.npz"
    code = RUN.format(folder=str(EXAMPLE.parent), photo=str(PHOTO), exported=str(exported), boxes=boxes, out=str(out))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    found = np.load(out)
    (face,) = ifan.load()(str(PHOTO), boxes).faces
    assert list(found["names"]) == list(face.landmarks)
    expected = np.array(list(face.landmarks.values()))
    eyes = np.linalg.norm(expected[0] - expected[1])
    assert np.linalg.norm(found["points"] - expected, axis=1).max() < SHARE_OF_EYES * eyes
    np.testing.assert_allclose(found["box"], face.box, atol=0.01)
    np.testing.assert_allclose(found["emotion"], list(face.classes["emotion"].values()), atol=0.01)
    x0, y0, x1, y1 = face.region
    assert np.mean(found["parsing"][y0:y1, x0:x1] == face.parsing) > SHARE_OF_PIXELS
    outside = found["parsing"].copy()
    outside[y0:y1, x0:x1] = 0
    assert not outside.any()


def test_the_command_prints_and_draws(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "overlay.png"
    run = subprocess.run(
        [sys.executable, str(EXAMPLE), str(exported), str(PHOTO), "--out", str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.startswith("face 1: box ")
    assert "  left_eye: " in run.stdout
    assert "  emotion: happy " in run.stdout
    drawn, photo = cv2.imread(str(out)), cv2.imread(str(PHOTO))
    assert drawn.shape == photo.shape
    assert 0.05 < np.mean((drawn != photo).any(2)) < 0.7
