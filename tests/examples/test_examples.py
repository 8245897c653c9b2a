"""The short examples, run as their users run them."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

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
    shutil.copy(PHOTO, photos / "two.png")
    (photos / "broken.jpg").write_bytes(b"no picture")
    found = run("folder_to_table.py", tmp_path / "photos", table)
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"{table}: 2 faces\n"
    assert "skipped: " in found.stderr
    assert "broken.jpg" in found.stderr
    with open(table, newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert [Path(row["photo"]).name for row in (first, second)] == ["one.png", "two.png"]
    assert 180 < float(first["left_eye_x"]) < 230
    assert max(first, key=lambda name: float(first[name]) if name.startswith("emotion_") else 0) == "emotion_happy"


def test_folder_without_photos(tmp_path: Path) -> None:
    found = run("folder_to_table.py", tmp_path)
    assert found.returncode == 1
    assert "no faces; expected photos ending in .bmp" in found.stderr
