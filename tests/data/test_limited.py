"""Pictures decoded in a process of their own: the same pixels and lines, and bounds that hold."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ifan.data import limited
from ifan.data.images import ImageError, read_image


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8))
    return path


def test_pixels_are_those_of_this_process(photo: Path) -> None:
    assert np.array_equal(limited.read_limited(photo, "a.png"), read_image(photo))


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:50], lambda data: b"hello"])
def test_errors_are_those_of_this_process(photo: Path, damage) -> None:
    data = damage(photo.read_bytes())
    photo.write_bytes(data)
    with pytest.raises(ImageError) as here:
        read_image(data, "my café.png")
    with pytest.raises(ImageError) as there:
        limited.read_limited(photo, "my café.png")
    assert str(there.value) == str(here.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not limit the memory of a process")
def test_memory_is_bounded(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(photo), np.zeros((3000, 3000, 3), np.uint8))
    monkeypatch.setattr(limited, "MEMORY", 64 << 20)
    with pytest.raises(ImageError, match=r"a\.png: the picture needs more than 64 MB or 20 s to decode; shrink it"):
        limited.read_limited(photo, "a.png")


def test_time_is_bounded(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "SECONDS", 0)
    with pytest.raises(ImageError, match=r"needs more than .+ or 0 s to decode"):
        limited.read_limited(photo, "a.png")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.png: cannot read the picture \(No such file or directory\)"):
        limited.read_limited(tmp_path / "a.png", "a.png")
