"""Closer looks: the points of a first look frame the face anew, and what the others predict is averaged (test-time
augmentation over crops that a first pass aligns).

The network's own points are fed back, as the paper's iterations feed predictions back, but into the framing: faces come
upright, centred and as large as in training, or larger, with the picture's own pixels. Closer looks differ in side, and
every other one sees the mirror image, so that their errors differ too. Regions beyond them are the first look's. With
``network.carry`` all that was found is also drawn into the next crop, and re-encoded as the paper's iterations do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.config import POINT_NAMES, NetworkConfig
from ifan.crop import Crop, crop_image, points_from_crop, points_to_crop
from ifan.cuda_graph import joined
from ifan.data.labels import mirrored
from ifan.faces.framing import crop_of_points
from ifan.network import IFAN, Predictions

SIDES = 0.75, 0.95
"""Sides of the closest and the widest closer look, in sides of the usual crop around a face's points."""

REACH = 0.3
"""How far from the first crop's centre a closer one's may be, in its sides; points farther away are wrong."""

NEAREST, FARTHEST = 0.4, 1.4
"""Bounds of a closer crop's side, in sides of the first."""

SCENE = 1.6
"""Sides of the first crop around it that are kept for closer looks."""

WIDER = 1.3
"""Sides of the usual crop that the first of several looks sees where a face was found: hair is wider than a face."""

FIRST = 0.2
"""How much the first look's parsing counts beside a closer one's."""

FEATHER = 0.06
"""Sides of a closer crop along its border over which its parsing counts less and less."""

Run = Callable[[Tensor, Tensor | None], Sequence[Predictions]]
"""Any number of images (N, 3, I, I) uint8 RGB to predictions, an iteration each, with a row an image of the points and
of what else is wanted; one iteration from planes, where there are any."""


def scene(image: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """What closer looks are cut from: `SCENE` times as much of ``image`` as the first look's ``crop`` of ``size``
    pixels, twice as fine: (V, V, 3) uint8."""
    return crop_image(image, replace(crop, side=crop.side * SCENE), round(2 * size * SCENE))


def closer_crops(config: NetworkConfig, points: np.ndarray, looks: int) -> list[Crop]:
    """The crops of all looks but the first around ``points`` (2, P), in sides of the first crop from its centre."""
    assert config.landmarks
    five = points[:, [config.landmarks.classes.index(name) for name in POINT_NAMES]].T.astype(np.float64)
    sound = np.isfinite(five).all() and np.ptp(five, 0).max() > 0
    usual = crop_of_points(five) if sound else Crop(0, 0, 1)
    cx, cy = np.clip((usual.cx, usual.cy), -REACH, REACH)
    count = looks - 1
    sides = np.linspace(*SIDES, count) if count > 1 else [sum(SIDES) / 2]
    return [
        Crop(float(cx), float(cy), float(np.clip(usual.side * side, NEAREST, FARTHEST)), usual.angle_deg, k % 2 == 0)
        for k, side in enumerate(sides)
    ]


def look(network: IFAN, run: Run, images: Tensor, scenes: Sequence[np.ndarray], looks: int) -> list[Predictions]:
    """What ``looks`` looks say together, an iteration each, in terms of the first look's crops.

    ``images`` are the first look's, ``scenes`` (one an image, see `scene`) what the others are cut from. Points and
    logits of classes are means over the closer ones; parsing comes as logarithms of probabilities ``(N, K, 2S, 2S)``,
    averaged over all where closer ones reach. With one look ``scenes`` are not used and all is as ``run`` gives it.
    With ``network.carry`` a closer look is one more iteration, framed by all looks before it and begun with what they
    say together.

    Raises ``ValueError`` for several looks without a scene for each image.
    """
    if looks > 1 and len(scenes) != len(images):
        raise ValueError(
            f"looks: expected a scene for each of {len(images)} crops to look {looks} times; got {len(scenes)}"
        )
    config, first = network.config, list(run(images, None))
    if looks == 1 or not images.shape[0]:
        return first

    def framed(found: Predictions) -> list[tuple[Crop, ...]]:
        """The crops of the faces, a closer look after another."""
        around = [closer_crops(config, face, looks) for face in found.points.double().cpu().numpy()]
        return list(zip(*around, strict=True))

    def cut(crops: Sequence[Crop]) -> Tensor:
        pixels = [_cut(seen, crop, images.shape[-1]) for seen, crop in zip(cycle(scenes), crops, strict=False)]
        return torch.from_numpy(np.stack(pixels)).to(images.device)

    if not config.carry:
        crops = [crop for one_look in framed(first[-1]) for crop in one_look]
        closer = run(cut(crops), None)
        return [_together(config, one, more, crops) for one, more in zip(first, closer, strict=True)]
    found, after, crops = list(first), list[Predictions](), list[Crop]()
    for k in range(looks - 1):
        now = framed(found[-1])[k]
        after += run(cut(now), drawn_into(network, found[-1], now))[-1:]
        crops += now
        found.append(_together(config, first[-1], joined(after), crops))
    return found


def drawn_into(network: IFAN, found: Predictions, crops: Sequence[Crop]) -> Tensor:
    """What was ``found`` of all tasks, a row an image, as the planes (N, planes, S, S) that a look at ``crops``, one an
    image and in sides of its own crop, begins with."""
    if not crops:
        return network.first_planes()[:0]
    config, parsing, points = network.config, found.parsing_logits, found.points
    if config.parsing:
        maps = np.stack([cv2.invertAffineTransform(crop.matrix(1)) for crop in crops])
        maps[:, :, 2] = maps[:, :, :2].sum(2) + 2 * maps[:, :, 2]  # [0, 1] of the closer to sides; -1 to 1 both
        seen = parsing.float().softmax(1)
        seen = F.grid_sample(seen, _grid(seen, maps, config.size), padding_mode="border", align_corners=False)
        seen = _named(seen, config.parsing.classes, 1, crops)
        parsing = seen.clamp_min(torch.finfo(seen.dtype).tiny).log().to(parsing.dtype)
    if config.landmarks:
        there = [points_to_crop(face.T, crop) for face, crop in zip(points.double().cpu().numpy(), crops, strict=True)]
        points = _named(torch.from_numpy(np.stack(there)).to(points), config.landmarks.classes, 2, crops)
    classes = {t.name: _named(found.class_logits[t.name], t.classes, 1, crops) for t in config.classifications}
    return network.encode(Predictions(parsing, points, classes, found.rows), len(crops))


def _cut(seen: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """``crop``, in sides of the first one, from a scene: (3, I, I)."""
    unit, middle = seen.shape[0] / SCENE, seen.shape[0] / 2
    there = replace(crop, cx=crop.cx * unit + middle, cy=crop.cy * unit + middle, side=crop.side * unit)
    return crop_image(seen, there, size).transpose(2, 0, 1)


def _together(config: NetworkConfig, first: Predictions, closer: Predictions, crops: Sequence[Crop]) -> Predictions:
    """``closer`` has the rows of one look's ``crops`` after another's."""
    assert config.landmarks
    faces = first.points.shape[0]

    def by_look(values: Tensor) -> Tensor:
        return values.unflatten(0, (len(crops) // faces, faces))

    points = by_look(_points_back(_named(closer.points, config.landmarks.classes, 2, crops), crops)).mean(0)
    classes = dict(first.class_logits)
    for task in config.classifications:
        if classes[task.name].shape[0]:
            logits = _named(closer.class_logits[task.name], task.classes, 1, crops)
            classes[task.name] = by_look(logits).mean(0)
    parsing = first.parsing_logits
    if config.parsing and parsing.shape[0]:
        parsing = F.interpolate(parsing.float().softmax(1), scale_factor=2, mode="bilinear", align_corners=False)
        seen = _named(closer.parsing_logits.float().softmax(1), config.parsing.classes, 1, crops)
        drawn, weight = _drawn_back(seen, crops)
        parsing = FIRST * parsing + by_look(weight * drawn).sum(0)
        parsing = (parsing / (FIRST + by_look(weight).sum(0))).clamp_min(torch.finfo(parsing.dtype).tiny).log()
    return Predictions(parsing, points, classes, first.rows)


def _named(values: Tensor, names: Sequence[str], dim: int, crops: Sequence[Crop]) -> Tensor:
    """``values`` with left and right traded along ``dim`` in the rows of mirrored crops."""
    flipped = torch.tensor([crop.flip for crop in crops], device=values.device)
    traded = values.index_select(dim, torch.tensor(mirrored(names), device=values.device))
    return torch.where(flipped.view(-1, *[1] * (values.dim() - 1)), traded, values)


def _points_back(points: Tensor, crops: Sequence[Crop]) -> Tensor:
    """Points (M, 2, P) of closer looks in the first ones' crops."""
    back = [points_from_crop(face, crop).T for face, crop in zip(points.double().cpu().numpy(), crops, strict=True)]
    return torch.from_numpy(np.stack(back)).to(points)


def _drawn_back(planes: Tensor, crops: Sequence[Crop]) -> tuple[Tensor, Tensor]:
    """Planes (M, K, S, S) of closer looks on grids (2S, 2S) of the first ones' crops, and how much each pixel
    counts."""
    maps = np.stack([crop.matrix(2) for crop in crops])  # sides of the first crop from its centre -> 0 to 2
    maps[:, :, 2] -= 1
    maps[:, :, :2] /= 2  # affine_grid's coordinates are from -1 to 1, ours from -0.5 to 0.5
    grid = _grid(planes, maps, 2 * planes.shape[2])
    inside = ((1 - grid.abs().amax(3)) / (2 * FEATHER)).clamp(0, 1).unsqueeze(1)
    return F.grid_sample(planes, grid, padding_mode="border", align_corners=False), inside


def _grid(planes: Tensor, maps: np.ndarray, size: int) -> Tensor:
    shape = [planes.shape[0], planes.shape[1], size, size]
    return F.affine_grid(torch.from_numpy(maps).to(planes), shape, align_corners=False)
