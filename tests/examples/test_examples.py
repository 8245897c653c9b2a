"""The short examples, run as their users run them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from ifan.data.images import read_image

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "ifan" / "assets" / "astronaut.png"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


def test_photo(tmp_path: Path) -> None:
    found = run("photo.py", PHOTO, tmp_path / "out")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("face 1: happy ")
    written = {line for line in found.stdout.splitlines() if line.startswith(str(tmp_path))}
    assert written == {str(path) for path in (tmp_path / "out").iterdir()}


def test_folder_to_table(tmp_path: Path) -> None:
    photos, table = tmp_path / "photos" / "below", tmp_path / "faces.csv"
    photos.mkdir(parents=True)
    shutil.copy(PHOTO, photos / "one.png")
    (photos / "broken.jpg").write_bytes(b"no picture")
    found = run("folder_to_table.py", tmp_path / "photos", table)
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"{table}: 1 faces\n"
    assert "failed: " in found.stderr
    with open(table, newline="", encoding="utf-8") as file:
        broken, one = csv.DictReader(file)
    assert [Path(row["photo"]).name for row in (broken, one)] == ["broken.jpg", "one.png"]
    assert (broken["face"], one["error"]) == ("0", "")
    assert 180 < float(one["left_eye_x"]) < 230
    assert one["emotion"] == "happy"
    assert 0.4 < float(one["share_hair"]) < 0.7


def test_folder_without_photos(tmp_path: Path) -> None:
    found = run("folder_to_table.py", tmp_path)
    assert found.returncode == 1
    assert "no pictures in this folder (.jpg" in found.stderr


def test_video(tmp_path: Path) -> None:
    clip, table = tmp_path / "clip.mp4", tmp_path / "clip.csv"
    picture = read_image(PHOTO)[:320, 80:400]
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", 10)
        stream.width, stream.height, stream.pix_fmt = 320, 320, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.copy(), format="rgb24")))
        container.mux(stream.encode())
    found = run("video.py", clip, table, 3)
    assert found.returncode == 0, found.stderr
    with open(table, newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["frame"], second["frame"], second["seconds"]) == ("0", "3", "0.3")
    assert {first["emotion"], second["emotion"]} == {"happy"}
    assert abs(float(first["nose_x"]) - 146) < 10


def test_own_task(tmp_path: Path) -> None:
    for name, brightness in (("dark", 40), ("light", 210)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            cv2.imwrite(str(tmp_path / "pictures" / name / f"{i}.png"), np.full((32, 32, 3), brightness + i, np.uint8))
    found = run("own_task.py", "tone", tmp_path / "pictures", tmp_path / "run", 8, 32)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1].startswith("accuracy ")
    assert any(line.startswith(("dark: ", "light: ")) for line in found.stdout.splitlines())
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_notebook() -> None:
    pytest.importorskip("pandas", reason="the notebook makes a table with pandas")
    cells = json.loads((ROOT / "examples" / "photos.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert names["table"].emotion.tolist() == ["happy", "happy"]
    assert 0.02 < names["hair"].mean() < 0.5
    assert names["result"]._repr_png_().startswith(b"\x89PNG")


def test_training_on_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray.train", reason="Ray is large: pip install 'ray[train]' to run this")
    (tmp_path / "tiny.yaml").write_text(
        "network: {size: 32, growth: 4, block_layers: 1, stem_channels: 8, up_channels: 16, iterations: 1}\n"
        "training: {steps: 2, batch_size: 6}\n"
    )
    found = run("ray_train.py", tmp_path / "tiny.yaml", tmp_path / "run", 1, "toy=20")
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="Ray is large: pip install 'ifan[ray]' to run this")
    (tmp_path / "photos").mkdir()
    shutil.copy(PHOTO, tmp_path / "photos")
    found = run("ray_photos.py", tmp_path / "photos", tmp_path / "faces")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "1 photos"
