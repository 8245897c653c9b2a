"""Tables of clips: faces are followed, and whoever goes on with a clip writes the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from ifan.bulk.clips import clip_rows
from ifan.bulk.flat import predict_table
from ifan.bulk.run import COMMITS, predict_bulk
from ifan.faces import Detection, FaceAnalyzer
from tests.support.clips import write_pictures
from tests.support.dotted_faces import COLOURS, SHAPE, Network, draw, watching

FRAMES = 22


class Lookout:
    """A detector that finds dotted faces by their noses, and sees none behind the plate."""

    def detect(self, images: list[np.ndarray]) -> list[list[Detection]]:
        return [self._one(image) for image in images]

    def _one(self, image: np.ndarray) -> list[Detection]:
        blue = (np.abs(image - COLOURS[2]).max(2) < 110).astype(np.uint8)
        _, _, stats, centres = cv2.connectedComponentsWithStats(blue)
        noses = [(x, y - 2) for (x, y), area in zip(centres[1:], stats[1:, 4], strict=True) if area > 12]
        return [
            Detection((x - 22, y - 26, x + 22, y + 26), 0.9, tuple(map(tuple, np.add(SHAPE, (x, y)).tolist())))
            for x, y in noses
        ]


@pytest.fixture
def watcher(analyzer: FaceAnalyzer, monkeypatch: pytest.MonkeyPatch) -> FaceAnalyzer:
    """An analyzer that sees faces of five dots."""
    return watching(analyzer, monkeypatch, Lookout())


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Two faces, the left one of which a plate hides for five frames."""
    pictures = [draw([(60 + i, 60), (180, 100)], plate=(20, 130) if 8 <= i < 13 else None) for i in range(FRAMES)]
    return write_pictures(tmp_path / "two.mp4", pictures)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_a_face_and_frame_with_its_id(watcher: FaceAnalyzer, clip: Path, tmp_path: Path) -> None:
    summary = predict_table(watcher, [str(clip)], tmp_path / "faces.jsonl")
    table = rows(tmp_path / "faces.jsonl")
    assert (summary.rows, summary.faces, summary.failures) == (FRAMES, len(table), [])
    for face in table:
        x = 60 + face["frame"] if face["id"] == 1 else 180
        assert face["nose_x"] == pytest.approx(x, abs=2)
        assert face["time"] == pytest.approx(face["frame"] / 10)
    seen = {number: [face["frame"] for face in table if face["id"] == number] for number in (1, 2)}
    assert seen[2] == list(range(FRAMES))
    assert seen[1] == [*range(8), *range(seen[1][8], FRAMES)]
    assert 13 <= seen[1][8] <= 16  # a hidden face has no row
    assert len(table) == len(seen[1]) + len(seen[2])


def test_the_table_of_a_clip_is_that_of_the_video(watcher: FaceAnalyzer, clip: Path, tmp_path: Path) -> None:
    predict_bulk(watcher, [str(clip)], tmp_path / "raw.jsonl")
    predict_bulk(watcher, [str(clip)], tmp_path / "smooth.jsonl", smooth=True)
    for name, smooth in (("raw", False), ("smooth", True)):
        (part,) = (tmp_path / f"{name}.jsonl").glob("part-*")
        for row, frame in zip(rows(part), watcher.video(clip, smooth=smooth), strict=True):
            seen = [face.to_dict() for track, face in frame if track.state != "occluded"]
            assert row["faces"] == json.loads(json.dumps(seen))


@pytest.mark.parametrize("finished", [1, 2])
def test_a_stopped_clip_goes_on_to_the_same_bytes(
    watcher: FaceAnalyzer, clip: Path, tmp_path: Path, finished: int
) -> None:
    """Also where the stop comes while a face is hidden: ids of later rows depend on all frames before."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    options = {"shard_rows": 6, "smooth": True, "maps": True}
    predict_bulk(watcher, [str(clip)], whole, **options)
    shutil.copytree(whole, out)
    for note in sorted((out / COMMITS).iterdir())[finished:]:
        note.unlink()
    before = {path.name: path.stat().st_ino for path in out.glob("part-*")}
    predict_bulk(watcher, [str(clip)], out, **options)
    after = {path.name: path.stat().st_ino for path in out.glob("part-*")}
    assert len(before.items() & after.items()) == finished
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(files) == 4 + 4 + FRAMES + 1 + any(path.name == ".lock" for path in files)
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in files)


def test_a_broken_clip_has_its_rows_and_one_reason_however_often_it_is_begun(
    watcher: FaceAnalyzer, tmp_path: Path
) -> None:
    small = write_pictures(tmp_path / "small.mkv", [draw([(60 + 4 * i, 60)]) for i in range(12)])
    small.write_bytes(small.read_bytes()[: small.stat().st_size * 4 // 5])
    made = [row for row, _ in clip_rows(watcher, str(small))]
    assert [row["error"] is None for row in made] == [True] * (len(made) - 1) + [False]
    assert "small.mkv: the clip" in made[-1]["error"]
    assert len(made) > 2
    for skip in range(len(made) + 1):
        assert [row for row, _ in clip_rows(watcher, str(small), skip=skip)] == made[skip:]


def test_no_frames_and_another_size_are_reasons(watcher: FaceAnalyzer) -> None:
    (empty,) = clip_rows(watcher, [])
    assert empty[0]["error"] == "video: the clip has no frames; check it"
    *whole, (last, _) = clip_rows(watcher, [draw([(60, 60)])] * 2 + [draw([])[:100]])
    assert [(row["frame"], len(row["faces"])) for row, _ in whole] == [(0, 1), (1, 1)]
    assert "frame 2: expected 240 x 160 pixels as before; got 240 x 100" in last["error"]


def test_damaged_weights_stop_instead_of_filling_a_table(
    watcher: FaceAnalyzer, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = Network()
    damaged.lies = float("nan"), 0.0
    monkeypatch.setattr(watcher, "one_pass", lambda: damaged)
    with pytest.raises(ValueError, match="its weights are damaged"):
        predict_table(watcher, [str(clip)], tmp_path / "faces.csv")
    assert not (tmp_path / "faces.csv").exists()


def test_addresses_are_no_files(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"http://host/a\.mp4: expected files; got an address"):
        predict_bulk(analyzer, ["http://host/a.mp4"], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
