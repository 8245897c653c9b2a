"""Analyse a photo with ONNX Runtime, OpenCV and numpy alone, from the folder that ``ifan export FOLDER`` writes.

    ifan export face
    python examples/onnx_inference.py face ifan/assets/astronaut.png --out overlay.png

Everything between the photo and the graphs is in this file, with the numbers of ``face/ifan.json``; it gives the
results of ``ifan.load()``. Copy it into your own program.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

COLOURS = ((0, 0, 0), (255, 190, 120), (150, 90, 40), (60, 200, 255), (255, 220, 80), (235, 60, 100), (120, 20, 40),
           (235, 90, 150), (110, 80, 220))  # fmt: skip

TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Crop:
    """A square of a picture: its centre and side in pixels, turned clockwise by ``angle`` radians, maybe mirrored."""

    cx: float
    cy: float
    side: float
    angle: float = 0.0
    flip: bool = False

    def matrix(self, size: float) -> np.ndarray:
        """(2, 3): pixels of the picture -> pixels of the crop drawn at ``size``."""
        scale, across = size / self.side, -1 if self.flip else 1
        c, s = scale * math.cos(self.angle), scale * math.sin(self.angle)
        return np.array(
            [
                (across * c, across * s, size / 2 - across * (c * self.cx + s * self.cy)),
                (-s, c, size / 2 + s * self.cx - c * self.cy),
            ]
        )


@dataclass(frozen=True)
class Face:
    """A face in pixels of the photo; ``parsing`` (H, W) holds a class of the parsing task for each pixel."""

    box: np.ndarray
    points: dict[str, tuple[float, float]]
    parsing: np.ndarray
    classes: dict[str, dict[str, float]]


class Analyzer:
    """The graphs of an exported folder and what ``ifan.json`` says about them."""

    def __init__(self, folder: Path) -> None:
        self.about = json.loads((folder / "ifan.json").read_text(encoding="utf-8"))
        self.first, self.later, self.detector = (
            onnxruntime.InferenceSession(folder / self.about[name]["file"]) for name in ("first", "later", "detector")
        )
        self.size, self.parsing_side = self.about["images"]["shape"][2], self.about["parsing_side"]
        self.tasks = {task["output"]: task for task in self.about["tasks"]}
        self.parsing_task: dict[str, Any] = next(
            (task for task in self.tasks.values() if task["kind"] == "parsing"), {}
        )
        self.around: dict[str, Any] = (self.about["refinement"] or {}).get("around", {})

    def __call__(self, photo: np.ndarray, boxes: Sequence[Sequence[float]] | None = None) -> list[Face]:
        """The faces of ``photo`` (H, W, 3) uint8 RGB: in ``boxes`` (x0, y0, x1, y1), or those that are found."""
        wider = self.about["refinement"]["wider"] if self.about["refinement"] else 1
        if boxes is None:
            found = [(box, self.crop_of_points(points, wider)) for box, points in self.detect(photo)]
        else:
            found = [(np.array(box), self.crop_of_box(box, wider)) for box in boxes]
        return [self.analyze(photo, box, crop) for box, crop in found]

    def detect(self, photo: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boxes (x0, y0, x1, y1) and five points (5, 2) of the faces, most certain first."""
        about = self.about["detector"]
        stride, multiple = about["stride"], about["multiple"]
        scale = min(1.0, about["max_side"] / max(photo.shape[:2]))
        height, width = (max(1, round(side * scale)) for side in photo.shape[:2])
        canvas = np.zeros((1, 3, *(-(-side // multiple) * multiple for side in (height, width))), np.float32)
        small = photo if scale == 1 else cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
        canvas[0, :, :height, :width] = small.transpose(2, 0, 1)
        names = [about["outputs"][name] for name in ("heat", "size", "offset", "points")]
        (name,) = (value.name for value in self.detector.get_inputs())
        heat, size, offset, points = (value[0] for value in self.detector.run(names, {name: canvas}))
        rows, columns = np.nonzero(heat[0] > about["min_score"])
        extent = np.exp(size[:, rows, columns]) * stride
        centre = (np.stack([rows, columns]) + 0.5 + offset[:, rows, columns]) * stride
        corner = np.maximum(centre - extent / 2, 0)
        places = corner + points[:, rows, columns].reshape(5, 2, -1) * extent
        boxes = np.concatenate([corner, extent]).T[:, [1, 0, 3, 2]] / scale
        scores = heat[0, rows, columns]
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), about["min_score"], about["max_overlap"])
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        return [(corners[k], places[:, ::-1, k] / scale) for k in np.asarray(kept, int).ravel()]

    def crop_of_points(self, points: np.ndarray, scale: float = 1.0) -> Crop:
        """The crop around five points (eyes, nose, corners of the mouth), turned until the face is upright."""
        eyes, down = points[1] - points[0], (points[3] + points[4] - points[0] - points[1]) / 2
        angle = math.atan2(eyes[1] - down[0], eyes[0] + down[1])
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        upright = points @ turn.T
        cx, cy = (upright.min(0) + upright.max(0)) / 2 @ turn
        side = float(np.ptp(upright, axis=0).max()) * self.about["crop"]["points"]["factor"]
        return Crop(float(cx), float(cy), side * scale, angle)

    def crop_of_box(self, box: Sequence[float], scale: float = 1.0) -> Crop:
        """The upright crop around a box from hairline to chin."""
        about, (x0, y0, x1, y1) = self.about["crop"]["box"], box
        side = math.sqrt((x1 - x0) * (y1 - y0))
        return Crop((x0 + x1) / 2, (y0 + y1) / 2 + about["drop"] * side, side * about["margin"] * scale)

    def cut(self, picture: np.ndarray, crop: Crop, size: int) -> np.ndarray:
        """The crop's pixels, (size, size, 3)."""
        above = self.about["crop"]["shrink_above"]
        drawn = 2 * size if crop.side > above * size else size
        ratio, matrix = crop.side / drawn, crop.matrix(drawn)
        reach = crop.side / 2 * (abs(math.cos(crop.angle)) + abs(math.sin(crop.angle))) + 2 + 2 * ratio
        height, width = picture.shape[:2]
        x0, y0 = (min(max(math.floor(c - reach), 0), n - 1) for c, n in ((crop.cx, width), (crop.cy, height)))
        x1, y1 = (max(min(math.ceil(c + reach), n), a + 1) for c, a, n in ((crop.cx, x0, width), (crop.cy, y0, height)))
        picture = picture[y0:y1, x0:x1]
        matrix[:, 2] += matrix[:, :2] @ (x0, y0)
        if ratio > above:  # areas are averaged first, so that nothing aliases
            height, width = picture.shape[:2]
            small = max(1, round(width / ratio)), max(1, round(height / ratio))
            picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
            matrix[:, :2] *= (width / small[0], height / small[1])
        pixels = warp(picture, matrix, (drawn, drawn))
        return pixels if drawn == size else cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)

    def analyze(self, photo: np.ndarray, box: np.ndarray, crop: Crop) -> Face:
        """All iterations on one face."""
        found, seen = self.run(self.first, self.cut(photo, crop, self.size)), crop
        if self.about["refinement"]:
            width = self.about["refinement"]["window"]
            window = self.cut(photo, replace(crop, side=crop.side * width), round(2 * self.size * width))
            found = self.refined(window, found)
            if self.reaches_out(found):
                found, seen = self.surrounded(window, found), replace(crop, side=crop.side * self.around["side"])
        else:
            pixels = self.cut(photo, crop, self.size)
            for _ in range(1, self.about["iterations"]):
                found = self.run(self.later, pixels, found)
        return self.face(photo.shape[:2], box, crop, seen, found)

    def run(self, graph: Any, pixels: np.ndarray, begun: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """One iteration on one crop: outputs by name."""
        feeds = {"images": pixels.transpose(2, 0, 1)[None]}
        feeds |= {f"begun_{name}": value[None].astype(np.float32) for name, value in (begun or {}).items()}
        names = self.about["first"]["outputs"]
        return {name: value[0] for name, value in zip(names, graph.run(names, feeds), strict=True)}

    def refined(self, window: np.ndarray, first: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Later iterations: each sees a closer crop framed by the points found so far, begun with all that was found.

        Their points and logits are averaged. Regions are a weighted mean with the first iteration's.
        """
        found, mean = first, Mean(self, first)
        for i in range(1, self.about["iterations"]):
            closer = self.closer(found, i)
            found = mean.with_later(self.seen_again(window, closer, found), closer)
        return found

    def seen_again(self, window: np.ndarray, crop: Crop, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A pass at a ``crop`` in sides of the first one, cut from the ``window``, that begins with what was found."""
        unit, middle = window.shape[0] / self.about["refinement"]["window"], window.shape[0] / 2
        there = replace(crop, cx=crop.cx * unit + middle, cy=crop.cy * unit + middle, side=crop.side * unit)
        return self.run(self.later, self.cut(window, there, self.size), self.moved(found, crop))

    def reaches_out(self, found: dict[str, np.ndarray]) -> bool:
        """True if hair reaches the first crop's border, so that it goes on beyond it."""
        if not (task := self.parsing_task) or self.around["class"] not in task["classes"]:
            return False
        hair = found[task["output"]].argmax(0) == task["classes"].index(self.around["class"])
        border = np.concatenate([hair[0], hair[-1], hair[:, 0], hair[:, -1]])
        return bool(border.mean() > self.around["touching"])

    def surrounded(self, window: np.ndarray, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Regions as before inside the first crop and, around it, those that a pass at a wider one finds."""
        name, ratio = self.parsing_task["output"], self.around["side"]
        near, wide = softmax(found[name]), softmax(self.seen_again(window, Crop(0, 0, ratio), found)[name])
        size = near.shape[-1]
        side = max(2 * wide.shape[-1], round(size * ratio))
        at = ((np.arange(side) + 0.5) / side - 0.5) * ratio + 0.5
        edge = np.clip(np.minimum(at, 1 - at) / self.about["refinement"]["feather"], 0, 1)
        to_wide = chained(inverse(Crop(0, 0, 1).matrix(size)), Crop(0, 0, ratio).matrix(side))
        inner = np.array([warp(plane, to_wide, (side, side)) for plane in near])
        outer = np.array([cv2.resize(plane, (side, side)) for plane in wide])
        mixed = outer + np.minimum.outer(edge, edge) * (inner - outer)
        return {**found, name: np.log(np.maximum(mixed, TINY)).astype(np.float32)}

    def closer(self, found: dict[str, np.ndarray], iteration: int) -> Crop:
        """The crop of a later iteration, in sides of the first one from its centre."""
        about, task = self.about["refinement"], next(t for t in self.tasks.values() if t["kind"] == "landmarks")
        order = [task["classes"].index(name) for name in self.about["crop"]["points"]["names"]]
        usual = self.crop_of_points(found[task["output"]][:, order].T.astype(np.float64))
        (low, high), count = about["sides"], self.about["iterations"] - 1
        share = low + (high - low) * (iteration - 1) / (count - 1) if count > 1 else (low + high) / 2
        cx, cy = np.clip((usual.cx, usual.cy), -about["reach"], about["reach"])
        side = float(np.clip(usual.side * share, about["nearest"], about["farthest"]))
        return Crop(float(cx), float(cy), side, usual.angle, iteration % 2 == 1)

    def moved(self, found: dict[str, np.ndarray], crop: Crop) -> dict[str, np.ndarray]:
        """What was found in the first crop, as a pass at another ``crop`` begins with it."""
        begun = {}
        for name, task in self.tasks.items():
            value, side = found[name], self.parsing_side
            if task["kind"] == "parsing":
                there = chained(inverse(Crop(0, 0, 1).matrix(value.shape[-1])), crop.matrix(side))
                value = np.array([warp(plane, there, (side, side)) for plane in softmax(value)])
                value = np.log(np.maximum(value, TINY))
            elif task["kind"] == "landmarks":
                value = transformed(value, crop.matrix(1)) - 0.5
            begun[name] = mirrored(value, task) if crop.flip else value
        return begun

    def face(self, shape: Sequence[int], box: np.ndarray, crop: Crop, seen: Crop, found: dict[str, np.ndarray]) -> Face:
        """Outputs as a face in a photo of ``shape`` (H, W): regions in the crop ``seen``, points in ``crop``."""
        points, classes, parsing = {}, {}, np.zeros(shape, np.uint8)
        for name, task in self.tasks.items():
            if task["kind"] == "parsing":
                back = inverse(seen.matrix(found[name].shape[-1]))
                size = (shape[1], shape[0])
                parsing = np.argmax([warp(p, back, size) for p in softmax(found[name])], 0).astype(np.uint8)
                y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
                inside = transformed(np.stack([x.ravel(), y.ravel()]), seen.matrix(1)).reshape(2, *shape)
                parsing[(inside < 0).any(0) | (inside > 1).any(0)] = 0
            elif task["kind"] == "landmarks":
                pixels = transformed(found[name] + 0.5, inverse(crop.matrix(1))).T.tolist()
                points = {label: (x, y) for label, (x, y) in zip(task["classes"], pixels, strict=True)}
            else:
                probabilities = softmax(found[name] / task["temperature"]).tolist()
                classes[task["name"]] = dict(zip(task["classes"], probabilities, strict=True))
        return Face(box, points, parsing, classes)


class Mean:
    """Mean over the iterations so far, in terms of the first crop; parsing on a grid twice as fine."""

    def __init__(self, analyzer: Analyzer, first: dict[str, np.ndarray]) -> None:
        self.tasks, self.side, self.count = analyzer.tasks, analyzer.parsing_side, 0
        self.feather, weight = (analyzer.about["refinement"][name] for name in ("feather", "first_weight"))
        self.fine = (2 * self.side, 2 * self.side)
        self.weight, self.sums = np.full(self.fine, weight, np.float32), dict[str, Any]()
        for name, task in self.tasks.items():
            parsing = task["kind"] == "parsing"
            planes = [cv2.resize(plane, self.fine) for plane in softmax(first[name])] if parsing else []
            self.sums[name] = weight * np.array(planes) if parsing else 0

    def with_later(self, seen: dict[str, np.ndarray], crop: Crop) -> dict[str, np.ndarray]:
        """The mean with what another iteration saw in its ``crop``."""
        self.count += 1
        found = {}
        for name, task in self.tasks.items():
            value = mirrored(seen[name], task) if crop.flip else seen[name]
            if task["kind"] == "parsing":
                share = self.share(crop)
                to_fine = chained(inverse(crop.matrix(self.side)), Crop(0, 0, 1).matrix(2 * self.side))
                self.sums[name] += share * np.array([warp(plane, to_fine, self.fine) for plane in softmax(value)])
                self.weight += share
                found[name] = np.log(np.maximum(self.sums[name] / self.weight, TINY))
                continue
            if task["kind"] == "landmarks":
                value = transformed(value + 0.5, inverse(crop.matrix(1)))
            self.sums[name] += value
            found[name] = self.sums[name] / self.count
        return found

    def share(self, crop: Crop) -> np.ndarray:
        """How much each pixel of the fine grid counts in a later crop: less and less along its border."""
        at = (np.arange(2 * self.side) + 0.5) / (2 * self.side) - 0.5
        x, y = transformed(np.stack(np.meshgrid(at, at)).reshape(2, -1), crop.matrix(1))
        border = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)).reshape(self.fine)
        return np.clip(border / self.feather, 0, 1).astype(np.float32)


def warp(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``picture`` under ``matrix``, drawn at ``size`` (width, height). OpenCV puts pixels' centres on integers."""
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return cv2.warpAffine(picture, shifted, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The way back of a (2, 3) matrix."""
    return cv2.invertAffineTransform(matrix)


def chained(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One (2, 3) matrix after another."""
    return second @ np.vstack([first, (0, 0, 1)])


def transformed(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (2, P) under a (2, 3) matrix."""
    return matrix[:, :2] @ points + matrix[:, 2:]


def mirrored(value: np.ndarray, task: dict[str, Any]) -> np.ndarray:
    """Left and right exchanged among the classes of a task."""
    return value.take(task["mirrored"], 1 if task["kind"] == "landmarks" else 0)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the first axis."""
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def overlay(photo: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """``photo`` with regions and points drawn in."""
    drawn = photo.copy()
    for face in faces:
        colours = np.array(COLOURS, np.float32)[face.parsing % len(COLOURS)]
        inside = face.parsing > 0
        drawn[inside] = (0.65 * drawn[inside] + 0.35 * colours[inside]).astype(np.uint8)
        for x, y in face.points.values():
            cv2.circle(drawn, (round(x), round(y)), max(2, photo.shape[0] // 150), (255, 255, 255), -1, cv2.LINE_AA)
    return drawn


def main() -> None:
    """Print what is found in a photo, and write an overlay."""
    parser = argparse.ArgumentParser(description="Analyse a photo with ONNX Runtime, OpenCV and numpy alone.")
    parser.add_argument("folder", type=Path, help="what ifan export wrote")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--box", type=float, nargs=4, action="append", metavar=("X0", "Y0", "X1", "Y1"))
    parser.add_argument("--out", type=Path, help="overlay to write")
    options = parser.parse_args()
    pixels = cv2.imread(str(options.photo), cv2.IMREAD_COLOR)
    if pixels is None:
        parser.error(f"{options.photo}: expected a picture that OpenCV reads; check the path")
    photo = np.ascontiguousarray(pixels[:, :, ::-1])
    faces = Analyzer(options.folder)(photo, options.box)
    for number, face in enumerate(faces, 1):
        print(f"face {number}: box {', '.join(f'{v:.1f}' for v in face.box)}")
        for name, (x, y) in face.points.items():
            print(f"  {name}: {x:.1f}, {y:.1f}")
        for task, classes in face.classes.items():
            best = max(classes, key=classes.__getitem__)
            print(f"  {task}: {best} {classes[best]:.0%}")
    if options.out:
        cv2.imwrite(str(options.out), np.ascontiguousarray(overlay(photo, faces)[:, :, ::-1]))


if __name__ == "__main__":
    main()
