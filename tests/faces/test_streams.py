"""Streams: cameras, addresses and pipes give frames, and one line where they break off, with all frames before it."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from ifan.faces import FaceAnalyzer
from ifan.faces.sources import frames
from ifan.faces.streams import Address, Camera, RawVideo, Stream, as_stream, is_address
from tests.support.clips import write_pictures
from tests.support.web import serving


def until_error(source: Stream, match: str) -> list[np.ndarray]:
    seen = []
    with pytest.raises(ValueError, match=match) as raised:
        seen.extend(image for _, _, image in source.frames())
    assert "\n" not in str(raised.value)
    return seen


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that moves: each frame fills several packets of the network."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(12)]
    return write_pictures(tmp_path_factory.mktemp("clips") / "noise.mkv", pictures)


def test_addresses_are_told_from_files() -> None:
    for address in ("rtsp://host/a", "HTTP://host/a.mp4", "https://host/", "udp://@:1234", "rtmp://host/a"):
        assert isinstance(as_stream(address), Address)
    for other in ("a.mp4", "file:///etc/passwd", "concat:http://host/a", "./http://host", "data:x", "http:/a"):
        assert not is_address(other)
        assert as_stream(other) is None
    assert isinstance(as_stream(0), Camera)
    assert as_stream(Path("http://host/a")) is None


def test_a_clip_at_an_address_is_that_of_the_file(analyzer: FaceAnalyzer, clip: Path) -> None:
    data = clip.read_bytes()
    with serving({"/a.mkv": ("video/x-matroska", len(data), [data])}) as root:
        found = list(Address(f"{root}/a.mkv").frames(every=5))
        results = [frame.result.path for frame in analyzer.video(f"{root}/a.mkv", every=5)]
    assert results == [None] * 3
    for (number, seconds, image), (n, t, expected) in zip(found, frames(str(clip), every=5), strict=True):
        assert (number, seconds) == (n, t)
        assert np.array_equal(image, expected)


def test_an_address_that_gives_nothing_is_one_line(clip: Path) -> None:
    with serving({"/page": ("text/html", 5, [b"hello"])}) as root:
        for path in ("/none", "/page"):
            assert (
                until_error(Address(root + path), rf"{root}{path}: it cannot be opened \(.+\); check the address") == []
            )
    assert until_error(Address(f"{root}/gone"), "cannot be opened") == []


def test_passwords_are_not_named() -> None:
    assert (
        until_error(Address("http://me:secret@127.0.0.1:9/a"), r"^http://127\.0\.0\.1:9/a: it cannot be opened") == []
    )


def test_what_is_at_an_address_does_not_lead_to_files(clip: Path) -> None:
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{clip}\n#EXT-X-ENDLIST\n".encode()
    listed = f"ffconcat version 1.0\nfile 'file:{clip}'\n".encode()
    with serving({"/a.m3u8": ("application/vnd.apple.mpegurl", None, [playlist]), "/b": ("", None, [listed])}) as root:
        for path in ("/a.m3u8", "/b"):
            assert until_error(Address(root + path), "cannot be opened|no video|damaged") == []


def test_a_server_that_goes_away_leaves_the_frames_before(clip: Path) -> None:
    data = clip.read_bytes()
    with serving({"/a.mkv": ("video/x-matroska", len(data), [data[: len(data) // 2]])}) as root:
        seen = until_error(Address(f"{root}/a.mkv"), "a.mkv: it broke off after 5 frames")
    assert len(seen) == 5


def test_a_broken_packet_leaves_the_frames_before(clip: Path) -> None:
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2500] = bytes(2500)
    with serving({"/a.mkv": ("video/x-matroska", len(data), [bytes(data)])}) as root:
        seen = until_error(Address(f"{root}/a.mkv"), "a.mkv: the clip is damaged")
    assert len(seen) == 6


def multipart(sizes: list[tuple[int, int]]) -> list[bytes]:
    """JPEG pictures as web cameras send them."""
    parts = []
    for i, (width, height) in enumerate(sizes):
        picture = cv2.imencode(".jpg", np.full((height, width, 3), 20 * i, np.uint8))[1].tobytes()
        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
        parts.append(head.encode() + picture + b"\r\n")
    return parts


def test_a_web_camera_is_read(analyzer: FaceAnalyzer) -> None:
    kind, sizes = "multipart/x-mixed-replace; boundary=next", [(64, 48)] * 5
    answers = {"/same": (kind, None, multipart(sizes)), "/other": (kind, None, multipart([*sizes, (32, 32)]))}
    with serving(answers) as root:
        pictures = until_error(Address(f"{root}/same"), "/same: it broke off after 5 frames")
        assert [image.mean() for image in pictures] == pytest.approx([0, 20, 40, 60, 80], abs=2)
        seen = []
        with pytest.raises(ValueError, match=r"/other: frame 5: expected 64 x 48 pixels as before; got 32 x 32"):
            seen.extend(analyzer.video(f"{root}/other"))
        assert len(seen) == 5


def test_times_of_a_web_camera_are_those_of_the_clock() -> None:
    def slow() -> Iterator[bytes]:
        for part in multipart([(64, 48)] * 8):
            yield part
            time.sleep(0.1)

    times: list[float | None] = []
    answers = {"/a": ("multipart/x-mixed-replace; boundary=next", None, slow())}
    with serving(answers) as root, pytest.raises(ValueError, match="broke off after 8 frames"):
        times.extend(seconds for _, seconds, _ in Address(f"{root}/a").frames())
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] > 0.35  # ffmpeg's guess, 25 frames a second, would be 0.28


def test_raw_frames_come_from_a_pipe(analyzer: FaceAnalyzer) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (5, 6, 8, 3), np.uint8)
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb", 0) as pipe:
            for byte in (pictures.tobytes()[i : i + 100] for i in range(0, pictures.nbytes, 100)):
                pipe.write(byte)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reading, "rb", 0) as pipe:
        found = list(RawVideo(pipe, (8, 6), 20).frames(every=2))
    thread.join()
    assert [(number, time) for number, time, _ in found] == [(0, 0.0), (2, 0.1), (4, 0.2)]
    assert all(np.array_equal(image, pictures[number]) for number, _, image in found)
    results = list(analyzer.video(RawVideo(io.BytesIO(pictures.tobytes()), (8, 6), 20)))
    assert [frame.result.size for frame in results] == [(8, 6)] * 5


def test_a_pipe_that_ends_within_a_frame_is_one_line(analyzer: FaceAnalyzer) -> None:
    short = RawVideo(io.BytesIO(bytes(2 * 144 + 7)), (8, 6), 20)
    assert len(until_error(short, r"pipe: frame 2: expected 144 bytes, 8 x 6 RGB; got 7; check the size")) == 2
    with pytest.raises(ValueError, match="pipe: the clip has no frames"):
        next(analyzer.video(RawVideo(io.BytesIO(), (8, 6), 20)))


@pytest.mark.parametrize(("size", "rate"), [((0, 6), 20), ((8, 6), 0), ((8, 6), float("nan")), ((10**6, 10**6), 20)])
def test_impossible_raw_frames_are_refused(size: tuple[int, int], rate: float) -> None:
    with pytest.raises(ValueError, match="raw frames: expected at least 1 x 1"):
        RawVideo(io.BytesIO(), size, rate)


def test_a_stream_can_be_stopped() -> None:
    video, seen = RawVideo(io.BytesIO(bytes(9 * 144)), (8, 6), 20), []
    for number, _, _ in video.frames():
        seen.append(number)
        if number == 3:
            video.stop()
    assert seen == [0, 1, 2, 3]
