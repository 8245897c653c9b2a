"""Tracked clips in figures: steadiness, identities, time.

    python -m benchmarks.video clips CLIP ...   # real clips with one face, against the same frames as photos
    python -m benchmarks.video made             # clips made of cut-out faces: identities, recovery, exact places
    python -m benchmarks.video time [CLIP]      # ms of processor time a frame by part, photos and video by turns; of a
                                                # made clip with five faces if none is given

Distances are in per cent of the eye distance. *Jitter* is the second difference of points, and *flicker* the share of
face pixels that change class, both where optical flow says that nothing moves. What is printed goes into
docs/guides/video.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import ifan
from benchmarks import made_clips
from benchmarks.made_clips import Cutout, MadeClip
from ifan.faces import FaceAnalyzer
from ifan.faces.smooth import Smoother
from ifan.faces.sources import frames
from ifan.faces.track import Tracker
from ifan.faces.tracked_face import TrackedFace
from ifan.faces.video import Tracked
from ifan.processor import processor

STILL = 0.6
"""Optical flow at a face's points, in per cent of the eye distance a frame, below which the face rests."""

Found = tuple[np.ndarray, np.ndarray | None]
"""Points (5, 2) of the only face, NaN without one, and the class map."""


def clips(options: argparse.Namespace) -> None:
    """Jitter, flicker and distance from the three-pass result on real clips."""
    analyzer = ifan.load(options.weights)
    for path in options.clips:
        images = [image for _, _, image in islice(frames(path), options.frames)]
        photos = [_only(analyzer(image)) for image in images]
        reference = np.array([points for points, _ in photos])
        flow = _flow(images, reference)
        print(f"{Path(path).name}: {len(images)} frames, {_resting(flow, reference).sum()} at rest")
        ways: dict[str, list[Found]] = {"photos": photos}
        for carry in (False, True):
            ways[f"video{', begun with the last predictions' if carry else ''}"] = _followed(analyzer, images, carry)
        ways["video, smoothed"] = _followed(analyzer, images, False, Smoother())
        for name, found in ways.items():
            print(f"  {name:44s} {_steadiness(found, reference, flow)}")


def made(options: argparse.Namespace) -> None:
    """Identities, recovery after cuts, and distance from the truth on made clips."""
    analyzer = ifan.load(options.weights)
    heads = _heads(analyzer, options.faces)
    for name, scene in (
        ()
        if options.identities
        else (("still", made_clips.still(heads[0])), ("drifting", made_clips.drifting(heads[0])))
    ):
        drawn = list(scene.draw())
        truth = np.array([places[0] for _, places in drawn])
        images = [image for image, _ in drawn]
        flow = np.diff(truth, axis=0, prepend=truth[:1])
        print(f"{name} head, {len(images)} frames")
        ways = {"photos": [_only(analyzer(image)) for image in images], "video": _followed(analyzer, images, False),
                "video, smoothed": _followed(analyzer, images, False, Smoother())}  # fmt: skip
        for way, found in ways.items():
            print(f"  {way:20s} {_steadiness(found, truth, flow)}")
    for name, scenes in (
        ("crossings", [made_clips.crossing(heads, seed) for seed in range(options.scenes)]),
        ("occlusions", [made_clips.occlusion(heads[seed % len(heads)], seed) for seed in range(options.scenes)]),
    ):
        counted: list[int] = []
        for seed, scene in enumerate(scenes):
            counted.append(_switches(analyzer, scene, seed))
            print(f"{len(counted)} {name}: {sum(counted)} id switches, by scene {counted}", flush=True)
    waits: list[int] = []
    for seed in range(options.scenes):
        waits.append(_recovery(analyzer, made_clips.cut(heads, seed)))
        print(f"{len(waits)} cuts: frames until the face of the new scene is found: {sorted(waits)}", flush=True)


def timed(options: argparse.Namespace) -> None:
    """Milliseconds of processor time a frame of photos and video, by turns of 10 frames, and of video's parts."""
    print(f"{processor()[0]}, {options.threads} thread(s)")
    analyzer = ifan.load(options.weights)
    clocks: dict[str, list[float]] = {}

    def clocked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.process_time()
            out = call(*arguments)
            clocks.setdefault(name, []).append(time.process_time() - start)
            return out

        return run

    detector = type("Clocked", (), {"detect": staticmethod(clocked("detector", analyzer.detector.detect))})()
    tracker = Tracker(analyzer.config, clocked("network", analyzer.one_pass()), detector)
    follow, photos = clocked("tracker, all", tracker), clocked("photos, all", analyzer)
    finish = clocked("results", lambda frame, faces: frame.result(analyzer, None, faces))
    smooth = clocked("smoothing", Smoother())
    stream, count = islice(frames(options.clip) if options.clip else _five_faces(analyzer), options.frames), 0
    seen: dict[str, list[int]] = {"video": [], "photos": []}
    while True:
        start = time.process_time()
        chunk = list(islice(stream, 10))
        if not chunk:
            break
        clocks.setdefault("decoding", []).append(time.process_time() - start)
        for number, seconds, image in chunk:
            frame = Tracked(number, seconds, image, follow(image))
            finish(frame, frame.faces)
            smooth(seconds, frame.faces)
            seen["video"].append(len(frame.faces))
        seen["photos"] += [len(photos(image)) for _, _, image in chunk]
        count += len(chunk)
    print(f"  {count} frames, faces in them by photos {_counts(seen['photos'])}, by video {_counts(seen['video'])}")
    for name, seconds_taken in clocks.items():
        each = 1e3 * sum(seconds_taken) / count
        print(f"  {name:14s} {each:7.2f} ms a frame, {len(seconds_taken)} calls, "
              f"median {1e3 * statistics.median(seconds_taken):.2f} ms a call")  # fmt: skip


def _five_faces(analyzer: FaceAnalyzer) -> Iterator[tuple[int, float | None, np.ndarray]]:
    """Frames of a made clip, as `ifan.faces.sources.frames` gives them."""
    scene = made_clips.group(_heads(analyzer, None))
    return ((i, i / 25, image) for i, (image, _) in enumerate(scene.draw()))


def _counts(faces: Sequence[int]) -> str:
    return " to ".join(map(str, dict.fromkeys((min(faces), max(faces)))))


def _only(result: ifan.faces.PhotoResult) -> Found:
    """The largest face of a photo."""
    if not len(result):
        return np.full((5, 2), np.nan), None
    face = max(result, key=lambda one: one.crop.side)
    return np.array(list(face.landmarks.values())), result.parsing


def _followed(
    analyzer: FaceAnalyzer, images: Sequence[np.ndarray], carry: bool, smoother: Smoother | None = None
) -> list[Found]:
    tracker = Tracker(analyzer.config, analyzer.one_pass(), analyzer.detector, carry=carry)
    out = []
    for i, image in enumerate(images):
        faces = tracker(image)
        faces = smoother(None, faces) if smoother else faces
        out.append(_only(Tracked(i, None, image, faces).result(analyzer, None, faces).result))
    return out


def _flow(images: Sequence[np.ndarray], points: np.ndarray) -> np.ndarray:
    """Motion of each frame's points since the frame before, (F, 5, 2) in pixels, by Lucas and Kanade's method."""
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
    out = np.full(points.shape, np.nan)
    for i in range(1, len(images)):
        before = points[i - 1].astype(np.float32)
        if np.isfinite(before).all():
            after, _, _ = cv2.calcOpticalFlowPyrLK(
                grey[i - 1], grey[i], before[:, None], before[:, None].copy(), winSize=(21, 21)
            )
            out[i] = after[:, 0] - before
    return out


def _resting(flow: np.ndarray, points: np.ndarray) -> np.ndarray:
    """True for the frames (F - 2,) around which the median motion is below `STILL`."""
    step = 100 * np.median(np.linalg.norm(flow, axis=2), 1) / _eye_distance(points)
    return (step[1:-1] < STILL) & (step[2:] < STILL)


def _eye_distance(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, 0] - points[:, 1], axis=1)


def _steadiness(found: Sequence[Found], reference: np.ndarray, flow: np.ndarray) -> str:
    """Distance, jitter and flicker in words."""
    points, eyes = np.array([p for p, _ in found]), _eye_distance(reference)
    away = 100 * np.linalg.norm(points - reference, axis=2) / eyes[:, None]
    resting = _resting(flow, reference)
    jitter = 100 * np.linalg.norm(points[2:] - 2 * points[1:-1] + points[:-2], axis=2) / eyes[1:-1, None]
    text = f"away {np.nanmean(away):.2f} % (p95 {np.nanpercentile(away, 95):.2f})"
    if resting.any():
        text += f", jitter mean {np.nanmean(jitter[resting]):.3f} % median {np.nanmedian(jitter[resting]):.3f} %"
        maps = [pair for pair, rests in zip(pairwise(found[1:]), resting, strict=True) if rests]
        changes = [_changed(a, b) for (_, a), (_, b) in maps if a is not None and b is not None]
        text += f", flicker {100 * float(np.mean(changes)):.2f} %"
    return text


def _changed(a: np.ndarray, b: np.ndarray) -> float:
    face = (a > 0) | (b > 0)
    return float((a != b)[face].mean()) if face.any() else 0.0


def _heads(analyzer: FaceAnalyzer, folder: str | None) -> list[Cutout]:
    """Heads of the photos in ``folder``, or the packaged portrait and its mirror image."""
    if folder is None:
        portrait = cv2.imread(str(resources.files("ifan") / "assets" / "astronaut.png"))[..., ::-1]
        points, _ = _only(analyzer(np.ascontiguousarray(portrait)))
        return [made_clips.cutout(portrait, points), made_clips.cutout(portrait, points, mirror=True)]
    heads = []
    for path in sorted(Path(folder).iterdir())[:40]:
        result = analyzer(path)
        if len(result) == 1:
            heads.append(made_clips.cutout(result.image, _only(result)[0]))
    return heads


def _switches(analyzer: FaceAnalyzer, scene: MadeClip, seed: int) -> int:
    """Number of times a head gets another id than it had."""
    tracker = Tracker(analyzer.config, analyzer.one_pass(), analyzer.detector)
    ids: dict[int, int] = {}
    switches = 0
    for image, truth in scene.draw(seed):
        faces = [face for face in tracker(image) if face.state != "occluded"]
        for actor, face in _assigned(truth, faces):
            switches += ids.get(actor, face.id) != face.id
            ids[actor] = face.id
    return switches


def _assigned(truth: Sequence[np.ndarray | None], faces: Sequence[TrackedFace]) -> Iterator[tuple[int, TrackedFace]]:
    """Each face with the head that it shows: the nearest one, within an eye distance."""
    for face in faces:
        near = [
            (float(np.linalg.norm(points.mean(0) - face.points[:5].mean(0)) / np.linalg.norm(points[0] - points[1])), i)
            for i, points in enumerate(truth)
            if points is not None
        ]
        if near and min(near)[0] < 1:
            yield min(near)[1], face


def _recovery(analyzer: FaceAnalyzer, scenes: tuple[MadeClip, MadeClip]) -> int:
    """Frames of the second scene without its face."""
    tracker = Tracker(analyzer.config, analyzer.one_pass(), analyzer.detector)
    for image, _ in scenes[0].draw(0):
        old = {face.id for face in tracker(image)}
    for wait, (image, truth) in enumerate(scenes[1].draw(1)):
        found = [face for _, face in _assigned(truth, tracker(image)) if face.id not in old]
        if found:
            return wait
    return scenes[1].frames


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=None)
    parser.add_argument("--frames", type=int, default=None, help="of each clip, the first so many")
    parser.add_argument("--threads", type=int, default=1, help="what OMP_NUM_THREADS says")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("clips")
    one.add_argument("clips", nargs="+")
    one.set_defaults(run=clips)
    two = commands.add_parser("made")
    two.add_argument("--faces", help="folder of photos with one face each; the packaged portrait if left out")
    two.add_argument("--scenes", type=int, default=20)
    two.add_argument("--identities", action="store_true", help="leave the still and drifting heads out")
    two.set_defaults(run=made)
    three = commands.add_parser("time")
    three.add_argument("clip", nargs="?")
    three.set_defaults(run=timed)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
