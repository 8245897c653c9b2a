"""Inputs of an analysis: pictures, clips, folders and patterns of them; and the frames of a clip."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ifan.data.dataset import DataError
from ifan.data.images import MAX_PIXELS
from ifan.optional import require

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CLIPS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
"""What is taken from a folder, and by which names a clip is known."""


def expand(inputs: Sequence[str], suffixes: Sequence[str] = PICTURES + CLIPS) -> list[str]:
    """Paths as they are, folders as the files in them with one of ``suffixes``, patterns as their matches; in order,
    each once.

    A folder without any raises ``ValueError``; a pattern without matches stays and fails when it is read.
    """
    paths: list[str] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in suffixes)
            if not found:
                raise ValueError(f"{given}: no pictures in this folder ({', '.join(suffixes)}); pass another one")
            paths += found
        else:
            paths += [given] if path.exists() else sorted(glob.glob(given, recursive=True)) or [given]
    return list(dict.fromkeys(paths))


def unique_stems(paths: Sequence[str]) -> list[str]:
    """A name for each photo's results: its own without suffix, numbered where that is taken (letter case aside).

    Cut to 200 bytes, so that endings still fit into a file name.
    """
    names = [os.fsencode(Path(path).stem)[:200].decode("utf-8", "replace") for path in paths]
    taken = {name.casefold() for name in names}
    numbers: dict[str, int] = {}
    stems = []
    for name in names:
        key = name.casefold()
        if key not in numbers:
            numbers[key] = 1
            stems.append(name)
            continue
        numbers[key] += 1
        while f"{key}_{numbers[key]}" in taken:
            numbers[key] += 1
        taken.add(f"{key}_{numbers[key]}")
        stems.append(f"{name}_{numbers[key]}")
    return stems


def is_clip(path: str) -> bool:
    """True if ``path`` is read frame by frame."""
    return Path(path).suffix.lower() in CLIPS


def frames(path: str, every: int = 1, skip: int = 0) -> Iterator[tuple[int, float | None, np.ndarray]]:
    """Every ``every``-th frame of a clip, less the first ``skip`` of these: number, seconds, (H, W, 3) uint8 RGB.

    Frames come upright, as players show them. Raises `DataError`, a ``ValueError``, for what cannot be read; frames
    before the damage have been given by then.
    """
    with _open(path) as clip:
        if not clip.streams.video:
            raise DataError(f"{path}: the file has no video; pass a clip or a picture")
        stream = clip.streams.video[0]
        stream.thread_type = "AUTO"
        for number, frame in enumerate(clip.decode(stream)):
            if frame.width * frame.height > MAX_PIXELS:
                raise DataError(f"{path}: frames beyond the limit of {MAX_PIXELS // 10**6} megapixels; shrink the clip")
            if number % every == 0 and number // every >= skip:
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield number, frame.time, np.ascontiguousarray(upright)


def count_frames(path: str, every: int = 1) -> int:
    """About how many frames `frames` gives, from the clip's header; 1 where it does not say."""
    try:
        with _open(path) as clip:
            return max(1, -(-clip.streams.video[0].frames // every))
    except (DataError, IndexError):
        return 1


def frame_rate(path: str) -> float:
    """Frames a second, 25 where the file does not say. Raises `DataError` for what cannot be read."""
    with _open(path) as clip:
        return float(clip.streams.video[0].average_rate or 25) if clip.streams.video else 25.0


@contextmanager
def _open(path: str) -> Iterator[Any]:
    """An open clip. FFmpeg follows addresses, also those that stand in a file (a playlist): here it reads this file."""
    av = require("reading a clip", "av", "PyAV", "av")
    if Path(path).exists() and not Path(path).is_file():  # a pipe would wait for ever
        raise DataError(f"{path}: expected a file with a clip; got a folder, pipe or device; check the path")
    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as clip:
            yield clip
    except av.error.FFmpegError as error:
        raise DataError(f"{path}: the clip cannot be read ({error.strerror or error}); check or convert it") from error
