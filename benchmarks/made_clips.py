"""Clips made of cut-out faces over plain backgrounds, so that places and identities are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIZE = 480, 270
"""Width and height of a made clip."""

Place = tuple[float, float]


@dataclass(frozen=True)
class Cutout:
    """A head: ``picture`` (S, S, 3) uint8 RGB, ``alpha`` (S, S) in [0, 1], ``points`` (P, 2) in its pixels."""

    picture: np.ndarray
    alpha: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class Actor:
    """A head on its way: ``place`` of its centre at a frame, ``side`` in pixels; ``None`` = not in the scene."""

    head: Cutout
    place: Callable[[int], Place | None]
    side: float = 110.0


@dataclass(frozen=True)
class MadeClip:
    """Actors from back to front, and in front of them all a plate at ``plate`` (its left edge at a frame) of
    ``width`` pixels; ``colour`` of the background; ``size`` (width, height) of the frames."""

    actors: Sequence[Actor]
    frames: int
    plate: Callable[[int], float] | None = None
    width: float = 0.0
    colour: int = 120
    size: tuple[int, int] = SIZE

    def draw(self, seed: int = 0, noise: float = 2.0) -> Iterator[tuple[np.ndarray, list[np.ndarray | None]]]:
        """Frames (H, W, 3) uint8 RGB with sensor noise, and each actor's true points (``None`` = absent)."""
        rng = np.random.default_rng(seed)
        width, height = self.size
        ramp = np.linspace(-30, 30, width)[None, :, None] + np.linspace(-20, 20, height)[:, None, None]
        background = np.clip(self.colour + ramp + np.array([0, 5, 12]), 0, 255)
        for i in range(self.frames):
            frame, truth = background.copy(), list[np.ndarray | None]()
            for actor in self.actors:
                place = actor.place(i)
                truth.append(None if place is None else _paste(frame, actor, place))
            if self.plate is not None:
                left = round(self.plate(i))
                frame[:, max(left, 0) : max(round(left + self.width), 0)] = (70, 90, 80)
            noisy = frame + rng.normal(0, noise, frame.shape)
            yield np.clip(noisy, 0, 255).round().astype(np.uint8), truth


def _paste(frame: np.ndarray, actor: Actor, place: Place) -> np.ndarray:
    """Draw an actor into a frame; returns the true points in its pixels."""
    scale = actor.side / len(actor.head.picture)
    matrix = np.array([[scale, 0, place[0] - actor.side / 2], [0, scale, place[1] - actor.side / 2]])
    warp = matrix.copy()
    warp[:, 2] += (scale - 1) / 2  # OpenCV puts centres on integers
    size = frame.shape[1::-1]
    shrunk = cv2.GaussianBlur(actor.head.picture, (0, 0), 0.4 / scale) if scale < 0.7 else actor.head.picture
    picture = cv2.warpAffine(shrunk, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(actor.head.alpha, warp, size, flags=cv2.INTER_LINEAR)[..., None]
    frame += alpha * (picture - frame)
    return actor.head.points @ matrix[:, :2].T + matrix[:, 2]


def cutout(photo: np.ndarray, points: np.ndarray, mirror: bool = False) -> Cutout:
    """The head around the five ``points`` (5, 2) of ``photo``, cut out by a soft ellipse; ``mirror`` makes another
    one, darker, of it."""
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    side = 3.4 * max(x1 - x0, y1 - y0)
    corner = np.array([(x0 + x1) / 2 - side / 2, (y0 + y1) / 2 - side * 0.55])
    matrix = np.array([[256 / side, 0, -corner[0] * 256 / side], [0, 256 / side, -corner[1] * 256 / side]])
    picture = cv2.warpAffine(photo, matrix, (256, 256), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    y, x = (np.mgrid[0:256, 0:256] + 0.5) / 128 - 1
    alpha = np.clip((1 - np.hypot(x / 0.72, y / 0.95)) * 8, 0, 1).astype(np.float32)
    if mirror:
        picture = (picture[:, ::-1] * np.array([0.8, 0.75, 0.7])).astype(np.uint8)
        moved = (moved * (-1, 1) + (256, 0))[[1, 0, 2, 4, 3]]
    return Cutout(np.ascontiguousarray(picture), alpha, moved)


def still(head: Cutout, frames: int = 60) -> MadeClip:
    """A head that rests."""
    return MadeClip([Actor(head, lambda i: (240.0, 135.0), 150)], frames)


def drifting(head: Cutout, frames: int = 90) -> MadeClip:
    """A head that swings to and fro."""
    return MadeClip([Actor(head, lambda i: (240 + 90 * np.sin(i / 14), 135 + 20 * np.cos(i / 9)), 130)], frames)


def group(heads: Sequence[Cutout], frames: int = 30) -> MadeClip:
    """Five heads that sway, 640 x 360."""
    homes = [(110, 100), (320, 95), (530, 100), (215, 255), (425, 255)]
    ways = [
        lambda i, k=k, x=x, y=y: (x + 14 * np.sin(i / 9 + k), y + 8 * np.cos(i / 7 + k))
        for k, (x, y) in enumerate(homes)
    ]
    return MadeClip([Actor(heads[k % len(heads)], way, 120) for k, way in enumerate(ways)], frames, size=(640, 360))


def crossing(heads: Sequence[Cutout], seed: int) -> MadeClip:
    """Two heads that pass each other at speeds, heights and sizes of their own, one in front."""
    rng = np.random.default_rng(seed)
    speeds, heights, sides = rng.uniform(3, 7, 2), 135 + rng.uniform(-25, 25, 2), rng.uniform(90, 125, 2)
    ways = [
        lambda i, v=speeds[0], y=heights[0]: (130 + v * i, y),
        lambda i, v=speeds[1], y=heights[1]: (350 - v * i, y),
    ]
    order = rng.permutation(2)
    frames = int(290 / speeds.max())
    return MadeClip([Actor(heads[k % len(heads)], ways[k], float(sides[k])) for k in order], frames)


def occlusion(head: Cutout, seed: int) -> MadeClip:
    """A head, at rest or moving, that a plate hides for a while."""
    rng = np.random.default_rng(seed)
    speed, plate_speed = float(rng.uniform(-1.5, 1.5)), float(rng.uniform(8, 16))
    side, width = float(rng.uniform(90, 140)), float(rng.uniform(110, 180))
    frames = int((480 + width) / plate_speed) + 12
    return MadeClip([Actor(head, lambda i: (240 + speed * (i - frames / 2), 135.0), side)], frames,
                 lambda i: -width + plate_speed * i, width)  # fmt: skip


def cut(heads: Sequence[Cutout], seed: int) -> tuple[MadeClip, MadeClip]:
    """Two scenes, one after the other, whose heads and backgrounds have nothing in common."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(120, 200), rng.uniform(110, 160)
    first = MadeClip([Actor(heads[0], lambda i: (x, y), 120)], 20, colour=150)
    return first, MadeClip([Actor(heads[-1], lambda i: (480 - x, y), 110)], 20, colour=60)
