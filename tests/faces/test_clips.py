"""Clips: frames with their times, upright; damage is one clear line; overlays and JSON beside each other."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from ifan.faces import FaceAnalyzer
from ifan.faces.clip import save_clip
from ifan.faces.matroska import is_torn
from ifan.faces.sources import count_frames, expand, frame_rate, frames
from tests.support.clips import trim_clip, turn_clip, write_clip


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "grey.mp4", 11)


def test_every_nth_frame_with_its_time(clip: Path) -> None:
    found = list(frames(str(clip), every=4))
    assert [(number, round(time, 3)) for number, time, _ in found] == [(0, 0.0), (4, 0.4), (8, 0.8)]
    for number, _, image in found:
        assert image.shape == (48, 64, 3)
        assert abs(int(image[40, 50, 0]) - 8 * number) < 6
    assert [number for number, _, _ in frames(str(clip), 4, skip=2)] == [8]
    assert count_frames(str(clip), 4) == 3


def test_frames_come_upright(clip: Path) -> None:
    turn_clip(clip)
    _, _, image = next(frames(str(clip)))
    assert image.shape == (64, 48, 3)
    assert image[5, 40].min() > 200
    assert image[5, 5].max() < 60
    ok, other = cv2.VideoCapture(str(clip)).read()
    assert ok
    assert np.abs(image[..., ::-1].astype(int) - other).max() < 8


def test_what_is_no_clip_is_one_line(clip: Path, tmp_path: Path) -> None:
    for data in (b"", b"hello", clip.read_bytes()[:300]):
        bad = tmp_path / "bad.mp4"
        bad.write_bytes(data)
        with pytest.raises(ValueError, match=r"bad.mp4: the clip cannot be read \(.+\); check or convert it"):
            list(frames(str(bad)))
    with pytest.raises(ValueError, match="cannot be read"):
        list(frames(str(tmp_path / "none.mp4")))


def test_addresses_pipes_and_playlists_are_not_followed(clip: Path, tmp_path: Path) -> None:
    playlist = tmp_path / "playlist.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip}\n#EXT-X-ENDLIST\n")
    os.mkfifo(tmp_path / "pipe.mp4")
    for bad in (str(playlist), "http://127.0.0.1:9/a.mp4", f"concat:{clip}|{clip}", str(tmp_path / "pipe.mp4")):
        with pytest.raises(ValueError, match=r"cannot be read|expected a file"):
            list(frames(bad))


def test_odd_names_are_read(clip: Path, tmp_path: Path) -> None:
    for name in (b"data:two\nlines.mp4", b"caf\xe9%20.mp4"):
        odd = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        Path(odd).write_bytes(clip.read_bytes())
        assert len(list(frames(odd))) == 11


def test_one_frame_is_in_memory_at_a_time(analyzer: FaceAnalyzer, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr("ifan.faces.video.frames", lambda *a: (read.append(f[0]) or f for f in frames(*a)))
    for frame in analyzer.video(clip):
        assert read[-1] == frame.number
    assert read == list(range(11))


def test_folders_give_clips_too(clip: Path) -> None:
    assert expand([str(clip.parent)]) == ([str(clip)], [])
    with pytest.raises(ValueError, match="no pictures"):
        expand([str(clip.parent)], (".png",))


def test_save_writes_an_overlay_and_lines(analyzer: FaceAnalyzer, clip: Path, tmp_path: Path) -> None:
    done: list[int] = []
    (film, lines), count, faces = save_clip(analyzer, str(clip), tmp_path / "out", "a", 2, done.append)
    assert done == [1, 2, 3, 4, 5, 6]
    assert (count, faces) == (6, 6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jsonl", "a_overlay.mp4"]
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["frame"] for row in rows] == [0, 2, 4, 6, 8, 10]
    assert rows[3]["time"] == pytest.approx(0.6)
    assert [row["faces"][0]["id"] for row in rows] == [1] * 6
    assert [time for _, time, _ in frames(str(film))] == pytest.approx([row["time"] for row in rows], abs=1e-3)
    with pytest.raises(ValueError, match="cannot be read"):
        save_clip(analyzer, str(lines.rename(tmp_path / "b.mp4")), tmp_path / "out2", "b")
    assert list((tmp_path / "out2").iterdir()) == []


def test_a_clip_that_does_not_say_how_fast_it_is_has_25_frames_a_second(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert frame_rate(str(clip)) == 10
    for video in ([SimpleNamespace(average_rate=None)], []):
        opened = SimpleNamespace(streams=SimpleNamespace(video=video))
        monkeypatch.setattr("ifan.faces.sources.open_clip", lambda path, opened=opened: contextlib.nullcontext(opened))
        assert frame_rate("a.mp4") == 25


def test_a_list_of_other_files_is_no_clip(clip: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.mp4"
    listed.write_text(f"ffconcat version 1.0\nfile {clip.name}\n")
    with pytest.raises(ValueError, match="cannot be read"):
        list(frames(str(listed)))


def test_a_trimmed_clip_is_whole(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 12)
    with av.open(str(path)) as clip:
        frame = round(0.1 / clip.streams.video[0].time_base)
    trim_clip(path, 3 * frame)
    assert count_frames(str(path)) == 12
    assert len(list(frames(str(path)))) == 9


def test_a_clip_that_gives_fewer_frames_than_it_says_is_an_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    seen = []
    with pytest.raises(ValueError, match=r"a\.avi: the clip (is damaged|cannot be read)"):
        seen.extend(number for number, _, _ in frames(str(path)))
    assert len(seen) < 20


def test_frames_beyond_the_limit_are_refused_before_decoding(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifan.faces.sources.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(ValueError, match="frames beyond the limit"):
        next(frames(str(clip)))


def cut(data: bytes) -> bytes:
    return data[: len(data) * 4 // 5]


def cut_by_a_frame(data: bytes) -> bytes:
    return data[: data.rindex(b"\xa3") - 1]


def torn(data: bytes) -> bytes:
    """Without the size of a block in the middle."""
    at = data.index(b"\xa3", len(data) // 2)
    return data[: at + 1] + data[at + 3 :]


def read(path: Path) -> int:
    return len(list(frames(str(path))))


@pytest.mark.parametrize("options", [{}, {"live": "1"}], ids=["sized", "unsized"])
def test_whole_clips_without_a_count_are_read(tmp_path: Path, options: dict[str, str]) -> None:
    assert read(write_clip(tmp_path / "a.mkv", 12, options=options)) == 12


@pytest.mark.parametrize("damage", [cut, cut_by_a_frame, torn])
def test_clips_without_a_count_that_lack_frames_are_an_error(tmp_path: Path, damage) -> None:
    path = write_clip(tmp_path / "a.mkv", 12)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.mkv: the clip (is damaged|cannot be read).+; (copy|check) .+"):
        read(path)


def test_a_clip_that_ends_early_says_when(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", 12)
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(ValueError, match=r"the clip is damaged: expected 1\.20 s; got (1\.[01]|0\.\d)0 s; copy"):
        read(path)


def test_torn_files_are_told_from_whole_ones(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", 12)
    whole = path.read_bytes()
    for data, expected in ((whole, False), (whole + b"more", False), (torn(whole), True), (cut(whole), True)):
        path.write_bytes(data)
        assert is_torn(str(path)) == expected
    assert not is_torn(str(write_clip(tmp_path / "b.mp4", 2)))


def test_metadata_that_is_no_text_does_not_matter(clip: Path) -> None:
    clip.write_bytes(clip.read_bytes().replace(b"VideoHandler", b"Video\xff\xfe\xb2dler"))
    assert read(clip) == 11
