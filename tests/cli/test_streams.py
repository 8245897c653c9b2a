"""``ifan predict`` with cameras, addresses and pipes: what came before the end is kept."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from ifan.cli.streams import stem_of
from ifan.faces.sources import frames
from ifan.faces.streams import Address
from tests.support.clips import write_clip
from tests.support.web import serving

RAW = ("-", "--size", "64x48", "--rate", "20")


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five raw frames and a part of one on standard input."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(bytes(5 * 64 * 48 * 3 + 10))))


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A camera of grey pictures. Frames at which Ctrl-C is pressed may be put into the list; after nine it vanishes."""
    pressed: list[int] = []

    class Camera:
        def __init__(self, index: int) -> None:
            self.count = 0 if index == 0 else 9

        def read(self) -> tuple[bool, np.ndarray | None]:
            self.count += 1
            if self.count in pressed:
                os.kill(os.getpid(), signal.SIGINT)
            return (True, np.full((48, 64, 3), 99, np.uint8)) if self.count < 10 else (False, None)

        def release(self) -> None:
            """Nothing to free."""

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    return pressed


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_pipe_becomes_an_overlay_and_lines(run, weights: Path, tmp_path: Path, pipe: None) -> None:
    code, text, errors = run("predict", *RAW, "--out", tmp_path, "--crops", "--weights", weights)
    assert (code, text) == (1, "")
    assert errors.startswith("error: pipe: frame 5: expected 9216 bytes, 64 x 48 RGB; got 10; ")
    assert f"5 frames before that are in {tmp_path / 'pipe_overlay.mp4'}" in errors
    lines = [json.loads(line) for line in (tmp_path / "pipe.jsonl").read_text().splitlines()]
    assert [(line["photo"], line["frame"], line["time"]) for line in lines] == [("pipe", i, i / 20) for i in range(5)]
    assert [t for _, t, _ in frames(str(tmp_path / "pipe_overlay.mp4"))] == pytest.approx([i / 20 for i in range(5)])


def test_a_pipe_becomes_a_table(run, weights: Path, tmp_path: Path, pipe: None) -> None:
    out = tmp_path / "faces.csv"
    code, text, errors = run("predict", *RAW, "--every", 2, "--out", out, "--crops", "--weights", weights)
    assert (code, text) == (1, f"{out}: 3 faces in 3 frames\n")
    assert errors.startswith("error: pipe: frame 5: expected 9216 bytes")
    assert errors.endswith(f"rows before that are in {out}\n")
    table = rows(out)
    assert [(row["photo"], row["frame"], row["id"]) for row in table[:3]] == [("pipe", str(i), "1") for i in (0, 2, 4)]
    assert [row["error"] != "" for row in table] == [False] * 3 + [True]


def test_a_stream_without_a_frame_leaves_no_table(run, weights: Path, tmp_path: Path, camera: list[int]) -> None:
    code, text, errors = run("predict", 1, "--out", tmp_path / "a.csv", "--crops", "--weights", weights)
    assert (code, text) == (1, "")
    assert errors.startswith("error: camera 1: it cannot be opened; check")
    assert list(tmp_path.glob("a*")) == []


def test_a_camera_that_vanishes_leaves_what_came(run, weights: Path, tmp_path: Path, camera: list[int]) -> None:
    code, _, errors = run("predict", 0, "--out", tmp_path, "--crops", "--weights", weights)
    assert code == 1
    assert errors.startswith("error: camera 0: it gave no more frames after 9; check")
    assert len((tmp_path / "camera_0.jsonl").read_text().splitlines()) == 9


@pytest.mark.parametrize("out", ["faces.csv", "folder"])
def test_ctrl_c_ends_a_camera_and_keeps_what_came(
    run, weights: Path, tmp_path: Path, camera: list[int], out: str
) -> None:
    camera.append(4)
    usual = signal.getsignal(signal.SIGINT)
    code, text, errors = run("predict", 0, "--out", tmp_path / out, "--crops", "--weights", weights)
    assert (code, errors) == (0, "")
    assert "3 faces in 3 frames" in text
    assert signal.getsignal(signal.SIGINT) is usual


def test_a_clip_at_an_address(run, weights: Path, tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.mkv", 4).read_bytes()
    with serving({"/a.mkv": ("video/x-matroska", len(data), [data])}) as root:
        code, text, _ = run("predict", f"{root}/a.mkv", "--out", tmp_path, "--crops", "--weights", weights)
    assert code == 0
    assert text.startswith(f"{root}/a.mkv: 4 faces in 4 frames -> ")
    assert stem_of(Address("rtsp://me:secret@host:1/a b?c=/../d")) == "host_1_a_b_c_.._d"
    assert stem_of(Address("udp://@")) == "stream"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-",), "-: expected raw RGB frames with --size and --rate, such as"),
        (("-", "--size", "64", "--rate", "9"), "got --size 64 and --rate 9"),
        (("-", "--size", "0x9", "--rate", "9"), "raw frames: expected at least 1 x 1"),
        (("0", "--size", "4x4"), "--size, --rate: expected raw frames"),
        (("a.jpg", "--rate", "4"), "--size, --rate: expected raw frames"),
        (("0", "a.jpg"), "0: expected a camera, address or pipe alone; got 2 inputs"),
        (("0", "--strict"), "camera 0: goes without --box, --json, --strict and --shards"),
    ],
)
def test_wrong_streams_are_one_line(run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, text, errors = run("predict", *arguments, "--out", tmp_path / "out")
    assert (code, text, errors.count("\n")) == (1, "", 1)
    assert message in errors
    assert not (tmp_path / "out").exists()
