"""Videos: frames with ids from any source, and one line for what goes wrong, with all frames before it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ifan.faces import FaceAnalyzer
from ifan.faces.video import VideoFrame
from tests.support.clips import write_clip
from tests.support.dotted_faces import Eyes, Network, draw, watching


@pytest.fixture
def watcher(analyzer: FaceAnalyzer, monkeypatch: pytest.MonkeyPatch) -> FaceAnalyzer:
    """An analyzer that sees faces of five dots; its detector is told where they are."""
    return watching(analyzer, monkeypatch, Eyes())


def until_error(analyzer: FaceAnalyzer, source, match: str) -> list[VideoFrame]:
    seen = []
    with pytest.raises(ValueError, match=match):
        seen.extend(analyzer.video(source))
    return seen


def test_frames_come_with_results_and_ids(watcher: FaceAnalyzer) -> None:
    watcher.detector.places = [(60, 50), (180, 110)]
    pictures = (draw([(60 + i, 50), (180, 110)]) for i in range(5))
    for i, frame in enumerate(watcher.video(pictures)):
        assert (frame.number, frame.time, len(frame)) == (i, None, 2)
        for track, face in frame:
            assert face.id == track.id
            assert face.best("emotion")[0] == "neutral"
        row = frame.to_dict()
        assert [(face["id"], face["state"], face["trust"]) for face in row["faces"]] == [
            (1, "followed" if i else "new", 1.0),
            (2, "followed" if i else "new", 1.0),
        ]
        assert (row["frame"], row["width"]) == (i, 240)
        assert np.abs(np.array(row["faces"][0]["landmarks"]["nose"]) - (60 + i, 52)).max() < 1.5
    assert i == 4


def test_smoothed_frames_tremble_less(watcher: FaceAnalyzer) -> None:
    watcher.detector.places = [(60, 50)]
    pictures = [draw([(60 + i % 2, 50)]) for i in range(12)]
    raw, smooth = ([face.landmarks["nose"][0] for f in watcher.video(pictures, smooth=way) for _, face in f]
                   for way in (False, True))  # fmt: skip
    assert np.ptp(smooth[6:]) < 0.5 * np.ptp(raw[6:])


def test_every_nth_frame(watcher: FaceAnalyzer) -> None:
    assert [frame.number for frame in watcher.video([draw([])] * 7, every=3)] == [0, 3, 6]
    with pytest.raises(ValueError, match="every: expected at least 1"):
        next(watcher.video([], every=0))


def test_no_frames_and_frames_of_another_size_are_one_line(watcher: FaceAnalyzer, tmp_path: Path) -> None:
    assert until_error(watcher, [], "video: the clip has no frames") == []
    pictures = [draw([]), draw([]), draw([])[:100]]
    assert len(until_error(watcher, pictures, "frame 2: expected 240 x 160 pixels as before; got 240 x 100")) == 2
    assert until_error(watcher, tmp_path / "none.mp4", "none.mp4: the clip cannot be read") == []


def test_a_camera_that_vanishes_is_one_line(watcher: FaceAnalyzer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Camera:
        def __init__(self, index: int) -> None:
            self.left, self.released = 3 if index == 0 else 0, False
            cameras.append(self)

        def read(self):
            self.left -= 1
            return (True, draw([])[..., ::-1]) if self.left >= 0 else (False, None)

        def release(self) -> None:
            self.released = True

    cameras: list[Camera] = []
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    frames = until_error(watcher, 0, "camera 0: it gave no more frames after 3; check")
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert frames[0].time <= frames[1].time <= frames[2].time
    assert np.array_equal(frames[0].result.image, draw([]))
    assert until_error(watcher, 1, "camera 1: it cannot be opened; check") == []
    assert all(camera.released for camera in cameras)


def test_crops_of_one_face_need_no_detector(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 3)
    frames = list(analyzer.video(clip))
    assert [[face.id for face in frame.result] for frame in frames] == [[1]] * 3
    photo = analyzer(frames[0].result.image)[0]
    assert frames[0].result[0].crop == photo.crop


def test_a_network_without_points_follows_boxes(watcher: FaceAnalyzer) -> None:
    from ifan.faces.box_tracker import BoxTracker
    from tests.support.dotted_faces import CONFIG

    tracker = BoxTracker(CONFIG, Network(), watcher.detector)
    ids = []
    for i in range(3):
        watcher.detector.places = [(60 + 3 * i, 50), (180, 110)][:: 1 if i % 2 else -1]
        faces = tracker(draw(watcher.detector.places))
        ids.append([(face.id, face.state, round(face.points[2, 0])) for face in faces])
    assert [[number for number, _, _ in frame] for frame in ids] == [[1, 2]] * 3
    assert [x for frame in ids for number, _, x in frame if number == 2] == pytest.approx([60, 63, 66], abs=2)
    watcher.detector.places = []
    assert tracker(draw([])) == []
    watcher.detector.places = [(60, 50)]
    assert [face.id for face in tracker(draw([(60, 50)]))] == [3]
