"""``ifan live``: a window where there is a screen, else a line that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from ifan.cli.live import Window


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    """A screen that nobody sees."""
    pytest.importorskip("tkinter", reason="windows need Python's tkinter")
    program = shutil.which("Xvfb")
    if program is None:
        pytest.skip("the window's screen is Xvfb: apt-get install xvfb")
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [program, "-displayfd", str(writing), "-screen", "0", "320x240x24", "-nolisten", "tcp"],
        pass_fds=[writing],
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    with os.fdopen(reading) as numbers:
        yield f":{numbers.readline().strip()}"
    process.terminate()
    process.wait()


def test_a_window_shows_pictures_until_escape(screen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", screen)
    window = Window("test")
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    assert window.show(picture)
    assert window._shown.get(7, 5) == tuple(picture[5, 7])
    assert (window._label.winfo_width(), window._label.winfo_height()) == (30, 20)
    window._root.focus_force()
    window._root.event_generate("<Escape>")
    assert not window.show(picture)


def test_a_camera_is_shown_until_it_vanishes(run, screen: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Camera:
        def __init__(self, index: int) -> None:
            self.left = 3

        def read(self) -> tuple[bool, np.ndarray | None]:
            self.left -= 1
            return (True, np.full((48, 64, 3), 99, np.uint8)) if self.left >= 0 else (False, None)

        def release(self) -> None:
            """Nothing to free."""

    shown: list[tuple[int, ...]] = []
    show = Window.show
    monkeypatch.setattr(Window, "show", lambda window, picture: shown.append(picture.shape) or show(window, picture))
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setenv("DISPLAY", screen)
    code, _, errors = run("live", "--weights", weights)
    assert code == 1
    assert errors.startswith("error: camera 0: it gave no more frames after 3; check")
    assert shown
    assert set(shown) == {(48, 64, 3)}


@pytest.mark.parametrize("camera", ["0", "clip.mp4"])
def test_without_a_screen_one_line_names_the_page(run, monkeypatch: pytest.MonkeyPatch, camera: str) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    code, text, errors = run("live", camera)
    assert (code, text, errors.count("\n")) == (1, "", 1)
    expected = "run ifan serve and open the tab Live" if camera == "0" else "for files use ifan predict"
    assert expected in errors
