"""`FaceAnalyzer`: photos in, faces out."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from ifan.config import NetworkConfig
from ifan.data.crop import Crop, crop_image, map_to_image, points_from_crop
from ifan.inference.photo import as_rgb
from ifan.inference.result import Box, Face, PhotoResult
from ifan.network import IFAN, Lanes

FACE_MARGIN = 1.45
"""Side of the crop / side of a square as large as the face's box.

In a detector's box, forehead to chin, the eyes are 0.38 of that side apart (0.42 of the width); in the crops that
networks are trained on they are 0.27 of the crop's side apart."""


def load(name_or_path: str | Path | None = None, device: str | torch.device = "cpu", **options: Any) -> FaceAnalyzer:
    """An analyzer with trained weights.

    Args:
        name_or_path: weights that ship with the package by name, or a folder with ``config.json`` and
            ``model.safetensors``; ``None`` = the default weights.
        device: where the network runs.
        options: further arguments of `FaceAnalyzer`.

    Raises:
        ValueError: unknown name, damaged or missing weights; says what there is.
    """
    from ifan.weights import DEFAULT, load_network

    return FaceAnalyzer(load_network(DEFAULT if name_or_path is None else name_or_path), device, **options)


class FaceAnalyzer:
    """Photos in, faces out: crops, one batched network for all of them, results in pixels of the photos.

    Args:
        network: the network; put into evaluation mode.
        device: where it runs.
        iterations: feedback iterations; ``None`` = as the network's configuration says.
        batch_size: most faces that run at once.
        margin: how much wider than a face's box its crop is, see `FACE_MARGIN`. Whole images are taken as they are.
        tasks: names of the tasks that are wanted; ``None`` = all. All feed the iterations before the last.

    Raises:
        ValueError: unknown task, unusable device, a number out of range.
    """

    def __init__(
        self,
        network: IFAN,
        device: str | torch.device = "cpu",
        *,
        iterations: int | None = None,
        batch_size: int = 32,
        margin: float = FACE_MARGIN,
        tasks: Sequence[str] | None = None,
    ) -> None:
        if (iterations is not None and iterations < 1) or batch_size < 1:
            raise ValueError(f"iterations and batch_size must be at least 1; got {iterations} and {batch_size}")
        if not 0.5 <= margin <= 4:
            raise ValueError(f"margin: expected crop side / face side between 0.5 and 4; got {margin}")
        self.config: NetworkConfig = network.config
        self.device = _usable(device)
        self.network = network.to(self.device).eval()
        self.iterations, self.batch_size, self.margin = iterations, batch_size, margin
        self.tasks = tuple(self.config.task(t).name for t in (tasks or [t.name for t in self.config.tasks]))

    @overload
    def __call__(self, photos: list[Any] | tuple[Any, ...], boxes: Any = None) -> list[PhotoResult]: ...
    @overload
    def __call__(self, photos: Any, boxes: Any = None) -> PhotoResult: ...
    def __call__(self, photos: Any, boxes: Any = None) -> PhotoResult | list[PhotoResult]:
        """Analyse one photo or a list of them.

        Args:
            photos: a path, the bytes of a picture file, an (H, W, 3) uint8 RGB array, a PIL image, a (3, H, W) uint8
                RGB tensor; or a list or tuple of such.
            boxes: where the faces are: one box (x0, y0, x1, y1) in pixels, or a sequence of boxes; for a list of photos
                one of these (or ``None``) a photo. ``None`` = the whole photo is one face's crop.

        Returns:
            A `PhotoResult`, or for a list of photos the list of theirs in order.

        Raises:
            ValueError: a photo that cannot be read, or a box that is not in its photo; names the photo.
        """
        if not isinstance(photos, (list, tuple)):
            return self.analyze([photos], [boxes])[0]
        if boxes is not None and len(boxes) != len(photos):
            raise ValueError(f"boxes: expected one entry for each of the {len(photos)} photos; got {len(boxes)}")
        return self.analyze(photos, [None] * len(photos) if boxes is None else boxes)

    def analyze(self, photos: Sequence[Any], boxes: Sequence[Any]) -> list[PhotoResult]:
        """The list form of calling an analyzer; faces of all photos share batches."""
        images, paths, asked = [], [], []
        for i, (photo, box) in enumerate(zip(photos, boxes, strict=True)):
            path = os.fspath(photo) if isinstance(photo, (str, os.PathLike)) else None
            name = path or (f"photo {i + 1}" if len(photos) > 1 else "photo")
            images.append(as_rgb(photo, name))
            paths.append(path)
            asked.append([self._place(b, images[-1].shape, name) for b in _list_of_boxes(box, name)])
        places = [(image, crop) for image, crops in zip(images, asked, strict=True) for _, crop in crops]
        predictions = iter(self._predict(places))
        return [
            PhotoResult(
                path,
                (image.shape[1], image.shape[0]),
                tuple(self._face(image.shape[:2], box, crop, next(predictions)) for box, crop in crops),
                image,
            )
            for path, image, crops in zip(paths, images, asked, strict=True)
        ]

    def _place(self, box: Sequence[float] | None, shape: Sequence[int], name: str) -> tuple[Box, Crop]:
        """A checked box and its crop; the whole photo for ``None``."""
        height, width = shape[:2]
        if box is None:
            whole = (0.0, 0.0, float(width), float(height))
            return whole, Crop.from_box(whole)
        x0, y0, x1, y1 = box
        inside = min(x1, width) > max(x0, 0) and min(y1, height) > max(y0, 0)
        sides = x1 - x0, y1 - y0
        if not (inside and min(sides) >= 1 and max(sides) <= 2 * max(width, height)):
            raise ValueError(
                f"{name}: box {tuple(box)} is not a face in a photo of {width} x {height} pixels; "
                "give x0,y0,x1,y1 with x0 < x1 and y0 < y1"
            )
        half = math.sqrt(sides[0] * sides[1]) / 2
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        return (x0, y0, x1, y1), Crop.from_box((cx - half, cy - half, cx + half, cy + half), self.margin)

    def _predict(self, places: Sequence[tuple[np.ndarray, Crop]]) -> list[dict[str, np.ndarray]]:
        """Task name to prediction for each crop: probabilities (K, S, S), points (2, P) or probabilities (C,)."""
        out: list[dict[str, np.ndarray]] = []
        for start in range(0, len(places), self.batch_size):
            batch = places[start : start + self.batch_size]
            crops = np.stack([crop_image(image, crop, self.config.size) for image, crop in batch])
            images = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2).contiguous()
            out += self._forward(images)
        return out

    @torch.inference_mode()
    def _forward(self, images: torch.Tensor) -> list[dict[str, np.ndarray]]:
        lanes = Lanes.for_tasks(images.shape[0], self.config, self.tasks, self.device)
        last = self.network(images, lanes, self.iterations)[-1]
        found: dict[str, torch.Tensor] = {}
        for task in (self.config.task(t) for t in self.tasks):
            if task.kind == "parsing":
                found[task.name] = last.parsing_logits.float().softmax(1)
            elif task.kind == "landmarks":
                found[task.name] = last.points.float()
            else:
                found[task.name] = last.class_logits[task.name].float().softmax(1)
        for name, value in found.items():
            if not value.isfinite().all():
                raise ValueError(
                    f"the network's {name} predictions are not finite: its weights are damaged; use others"
                )
        arrays = {name: value.cpu().numpy() for name, value in found.items()}
        return [{name: value[i] for name, value in arrays.items()} for i in range(images.shape[0])]

    def _face(self, shape: tuple[int, int], box: Box, crop: Crop, predicted: dict[str, np.ndarray]) -> Face:
        x0, y0, x1, y1 = region = _region(crop, shape)
        parsing: np.ndarray | None = None
        names: tuple[str, ...] = ()
        landmarks, classes = {}, {}
        for task in (self.config.task(t) for t in self.tasks):
            value = predicted[task.name]
            if task.kind == "parsing":
                inside = Crop(crop.cx - x0, crop.cy - y0, crop.side, crop.angle_deg, crop.flip)
                parsing, names = map_to_image(value, inside, (y1 - y0, x1 - x0)), task.classes
            elif task.kind == "landmarks":
                pixels = points_from_crop(value, crop)
                landmarks = {name: (float(x), float(y)) for name, (x, y) in zip(task.classes, pixels, strict=True)}
            else:
                classes[task.name] = {name: float(p) for name, p in zip(task.classes, value, strict=True)}
        return Face(box, crop, region, parsing, names, landmarks, classes)


def _region(crop: Crop, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels of the photo that the crop touches: x0, y0, x1, y1, at least one pixel."""
    corners = points_from_crop(np.array([[-0.5, 0.5, -0.5, 0.5], [-0.5, -0.5, 0.5, 0.5]]), crop)
    (left, top), (right, bottom) = np.floor(corners.min(0)), np.ceil(corners.max(0))
    x0, y0 = (int(np.clip(v, 0, n - 1)) for v, n in ((left, shape[1]), (top, shape[0])))
    return x0, y0, int(np.clip(right, x0 + 1, shape[1])), int(np.clip(bottom, y0 + 1, shape[0]))


def _list_of_boxes(boxes: Any, name: str) -> list[tuple[float, ...] | None]:
    """One box, several or none as a list; ``[None]`` stands for the whole photo."""
    if boxes is None:
        return [None]
    try:
        table = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        table = np.full(1, np.nan)
    if table.size == 0:
        return []
    table = table[None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[1] != 4 or not np.isfinite(table).all():
        raise ValueError(f"{name}: expected a box (x0, y0, x1, y1) or a list of boxes in pixels; got {boxes!r}")
    return [tuple(row) for row in table.tolist()]


def _usable(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f'device {str(device)!r} cannot be used here ({reason}); use "cpu"') from error
    return found
