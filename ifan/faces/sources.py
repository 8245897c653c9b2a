"""Inputs of an analysis: pictures, clips, folders and patterns of them; and the frames of a clip."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ifan.data.images import MAX_PIXELS
from ifan.faces.matroska import is_torn
from ifan.optional import require

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
CLIPS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
"""Endings of files that are taken from a folder, and those of clips."""

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpegts,mpeg,ogg,flv,asf"
"""FFmpeg's names of what may be in a clip, whatever its name: containers of frames, no lists of other files."""


class ClipError(ValueError):
    """A clip, camera or stream that cannot be read to its end; the message names it and the way out."""


def expand(
    inputs: Sequence[str], suffixes: Sequence[str] = PICTURES + CLIPS, recursive: bool = False
) -> tuple[list[str], list[str]]:
    """Files to read, in order and each once, and those in folders that are skipped.

    Paths stay as they are; folders become the files in them with one of ``suffixes``, with ``recursive`` also those of
    the folders below; patterns become their matches. Skipped are files with other suffixes and, unless ``recursive``,
    folders; hidden ones are not named. A folder without any file to read raises ``ValueError``. A pattern without
    matches stays and fails when it is read.
    """
    paths: list[str] = []
    skipped: list[str] = []
    for given in inputs:
        if os.path.isdir(given):  # unlike Path, os.path says no to a name that is too long or a loop of links
            files, folders = _listed(given, recursive)
            taken = [path for path in files if Path(path).suffix.lower() in suffixes]
            if not taken:
                hint = ", or --recursive for the folders in it" if folders else ""
                raise ValueError(f"{given}: no pictures in this folder ({', '.join(suffixes)}); pass another one{hint}")
            paths += taken
            skipped += sorted([*set(files).difference(taken), *folders])
        else:
            paths += [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True)) or [given]
    return list(dict.fromkeys(paths)), list(dict.fromkeys(skipped))


def _listed(folder: str, recursive: bool) -> tuple[list[str], list[str]]:
    """Files in ``folder`` that are not hidden, sorted, and the folders; with ``recursive`` the files below too."""
    files: list[str] = []
    folders: list[str] = []
    for parent, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        files += [os.path.join(parent, name) for name in names if not name.startswith(".")]
        if not recursive:
            folders += [os.path.join(parent, name, "") for name in below]
            break
    return sorted(files), folders


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

    Frames come upright, as players show them. Raises `ClipError` for what cannot be read; frames before the damage have
    been given by then.
    """
    with open_clip(path) as clip:
        yield from decoded(clip, path, every, skip)
        if not clip.streams.video[0].frames and is_torn(path):
            raise ClipError(f"{path}: the clip is damaged: its parts do not fit together; copy or convert it again")


def decoded(clip: Any, name: str, every: int, skip: int = 0) -> Iterator[tuple[int, float | None, np.ndarray]]:
    """Frames of an open clip, as `frames` gives them; ``name`` stands in messages."""
    import av

    if not clip.streams.video:
        raise ClipError(f"{name}: the file has no video; pass a clip or a picture")
    stream = clip.streams.video[0]
    if stream.codec_context is None:
        raise ClipError(f"{name}: the clip's coding is unknown or damaged; convert it")
    stream.thread_type = "AUTO"
    if stream.width * stream.height > MAX_PIXELS:
        raise ClipError(f"{name}: frames beyond the limit of {MAX_PIXELS // 10**6} megapixels; shrink the clip")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # of frames larger than the header says
    number, damaged, end, hidden = -1, False, 0.0, 0

    def shown() -> Iterator[Any]:
        nonlocal hidden
        try:
            for packet in clip.demux(stream):
                hidden += packet.is_discard  # cut off by an edit list, as where a clip was trimmed
                yield from packet.decode()
        except av.error.FFmpegError:
            last = av.Packet()  # an empty one gives the frames that wait in the decoder
            last.stream, last.time_base = stream, stream.time_base
            yield from last.decode()
            raise

    for number, frame in enumerate(shown()):
        damaged |= frame.is_corrupt
        end = max(end, _end_of(frame, stream))
        if number % every == 0 and number // every >= skip:
            upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            yield number, frame.time, np.ascontiguousarray(upright)
    expected = max(0, stream.frames - hidden)
    if damaged or number + 1 < expected:
        raise ClipError(
            f"{name}: the clip is damaged: expected {expected or 'whole'} frames; got {number + 1}"
            f"{', some of them with errors' if damaged else ''}; copy or convert it again"
        )
    length = 0.0 if stream.frames else _length(clip, stream)
    if end < length - 0.9 / float(stream.average_rate or 25):  # a frame is missing
        raise ClipError(
            f"{name}: the clip is damaged: expected {length:.2f} s; got {end:.2f} s; copy or convert it again"
        )


def _end_of(frame: Any, stream: Any) -> float:
    """Seconds at which a frame has been shown."""
    lasts = float(frame.duration * frame.time_base) if frame.duration else 1 / float(stream.average_rate or 25)
    return (frame.time or 0.0) + lasts


def _length(clip: Any, stream: Any) -> float:
    """Seconds at which the last frame has been shown, from the header; 0 where it does not say.

    Matroska has no count of frames. It says how long a stream is in a tag, and how long the longest one is.
    """
    parts = stream.metadata.get("DURATION", "").split(":")
    try:
        return sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
    except ValueError:
        return clip.duration / 1e6 if clip.duration and len(clip.streams) == 1 else 0.0


def count_frames(path: str, every: int = 1) -> int:
    """About how many frames `frames` gives, from the clip's header; 1 where it does not say."""
    try:
        with open_clip(path) as clip:
            return max(1, -(-clip.streams.video[0].frames // every))
    except (ClipError, IndexError):
        return 1


def frame_rate(path: str) -> float:
    """Frames a second, 25 where the file does not say. Raises `ClipError` for what cannot be read."""
    with open_clip(path) as clip:
        return float(clip.streams.video[0].average_rate or 25) if clip.streams.video else 25.0


@contextmanager
def open_clip(path: str) -> Iterator[Any]:
    """An open clip. FFmpeg follows addresses and names of files that stand in a file (a playlist, a list of parts):
    here it reads this file."""
    av = require("reading a clip", "av", "PyAV", "av")
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would wait for ever
        raise ClipError(f"{path}: expected a file with a clip; got a folder, pipe or device; check the path")
    try:
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as clip:
            yield clip
    except av.error.FFmpegError as error:
        raise ClipError(f"{path}: the clip cannot be read ({error.strerror or error}); check or convert it") from error
