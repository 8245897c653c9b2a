"""`FaceAnalyzer`: photos in, faces out."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from ifan.config import NetworkConfig
from ifan.crop import Crop, covered, crop_image, map_to_image, points_from_crop
from ifan.engine.predictor import Runner, make_runner
from ifan.faces.detect import Box, CenterFace, Detection, Detector
from ifan.faces.face import Face
from ifan.faces.framing import FACE_MARGIN, crop_of
from ifan.faces.photo import as_rgb, is_photo
from ifan.faces.predictor import AROUND_KEY, NetworkOptions, NetworkPredictor, Predictor
from ifan.faces.result import PhotoResult
from ifan.faces.surroundings import merged
from ifan.refine import AROUND, WIDER, source_window

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from ifan.faces.video import Source, VideoFrame
    from ifan.network import IFAN
    from ifan.weights import SavedModel


ROOM = 1.1
"""Pixels of a wider crop in the photo over those of the first, from which it gets a pass."""


class AnalyzerOptions(NetworkOptions, total=False):
    """Options of a `FaceAnalyzer`, each given by its name."""

    detector: Detector | Literal["centerface"] | None
    batch_size: int
    margin: float


def load(
    name_or_path: str | Path | None = None, device: str | torch.device = "cpu", **options: Unpack[AnalyzerOptions]
) -> FaceAnalyzer:
    """An analyzer with trained weights.

    Args:
        name_or_path: weights that ship with the package by name, or a folder with ``config.json`` and
            ``model.safetensors``; ``None`` = the default weights.
        device: where the network runs: the CPU, or with PyTorch a GPU, there also with ``precision="bf16"``.
        options: ``detector``, ``iterations``, ``batch_size``, ``margin``, ``tasks``, ``precision``: see `FaceAnalyzer`.

    Raises:
        TypeError: an option that there is not.
        ValueError: unknown name, damaged or missing weights (the message says what there is), and as `FaceAnalyzer`.
        ImportError: a device that needs PyTorch, which is not installed.
    """
    from ifan.weights import DEFAULT, load_model

    return FaceAnalyzer(load_model(DEFAULT if name_or_path is None else name_or_path), device, **options)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A photo before the network runs: its ``size`` (width, height), its ``faces`` with their crops, what the network
    will see of them, ``pixels`` (N, 3, I, I) uint8 RGB, the ``windows`` that later crops are cut from, and for each
    whether there is ``room`` for a wider crop in the photo."""

    size: tuple[int, int]
    faces: list[tuple[Detection, Crop]]
    pixels: np.ndarray
    windows: list[np.ndarray]
    room: list[bool]

    def rows(self) -> list[tuple[Any, ...]]:
        """Arguments of a `Predictor` for each face: its pixels, and if it is reframed its source window and room."""
        if not self.windows:
            return [(face,) for face in self.pixels]
        return list(zip(self.pixels, self.windows, self.room, strict=True))


class FaceAnalyzer:
    """Photos in, faces out: detection, crops, one batched network for all of them, results in pixels of the photos.

    Args:
        model: a saved model (`ifan.weights.load_model`), or a PyTorch network, which is put into evaluation mode.
        device: where it runs: the CPU, or with PyTorch a GPU.
        detector: finds the faces of photos that come without boxes: the one in the package, any object with its method
            (`ifan.faces.detect.Detector`), or ``None``: each photo is the crop of one face.
        batch_size: most faces that run at once.
        margin: how much wider than a face's box its crop is, see `FACE_MARGIN`; faces with points scale with it.
        network: ``iterations``, ``tasks``, ``precision``: see `NetworkPredictor`.

    Raises:
        TypeError: an option that there is not.
        ValueError: a number out of range, and as `NetworkPredictor`.
        ImportError: a device that needs PyTorch, which is not installed.
    """

    def __init__(
        self,
        model: SavedModel | IFAN,
        device: str | torch.device = "cpu",
        *,
        detector: Detector | Literal["centerface"] | None = "centerface",
        batch_size: int = 32,
        margin: float = FACE_MARGIN,
        **network: Unpack[NetworkOptions],
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if not 0.5 <= margin <= 4:
            raise ValueError(f"margin: expected crop side / face side between 0.5 and 4; got {margin}")
        predictor = NetworkPredictor(model, device, **network)
        self.predictor: Predictor = predictor
        self.model, self.batch_size, self.margin, self.iterations = model, batch_size, margin, predictor.iterations
        self.detector = _detector(detector)
        self._reframes = self.config.reframe and self.iterations > 1
        self._device, self._network = device, network
        self._one_pass: Runner | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, and those that other processes get, make an engine of their own."""
        options: dict[str, Any] = {"detector": self.detector, "batch_size": self.batch_size, "margin": self.margin}
        options |= self._network
        return partial(type(self), **options), (self.model, self._device)

    @property
    def config(self) -> NetworkConfig:
        """The network's configuration."""
        return self.predictor.config

    @overload
    def __call__(self, photos: list[Any] | tuple[Any, ...], boxes: Any = None) -> list[PhotoResult]: ...
    @overload
    def __call__(self, photos: Generator[Any, Any, Any], boxes: None = None) -> Iterator[PhotoResult]: ...
    @overload
    def __call__(self, photos: Any, boxes: Any = None) -> PhotoResult: ...
    def __call__(self, photos: Any, boxes: Any = None) -> PhotoResult | list[PhotoResult] | Iterator[PhotoResult]:
        """Analyse one photo or several.

        Args:
            photos: a path, the bytes of a picture file, an open one, a uint8 array (H, W, 3) RGB, (H, W, 4) RGBA or
                (H, W) grey, a PIL image, a (3, H, W) uint8 RGB tensor; or a list, generator or the like of such.
            boxes: where the faces are: one box (x0, y0, x1, y1) in pixels, hairline to chin, or a sequence of boxes;
                for a list of photos one of these (or ``None``) a photo. ``None`` = the detector looks for them.

        Returns:
            A `PhotoResult`, or for a list of photos the list of theirs in order. For a generator or other iterator an
            iterator of theirs, which reads ``batch_size`` photos at a time.

        Raises:
            ValueError: a photo that cannot be read, or a box that is not in its photo; names the photo.
        """
        if is_photo(photos):
            return self.analyze([photos], [boxes])[0]
        if isinstance(photos, Iterator):
            if boxes is not None:
                raise ValueError("boxes: expected a list of photos; got an iterator; pass list(photos)")
            return self._stream(photos)
        photos = list(photos)
        if boxes is not None and len(boxes) != len(photos):
            raise ValueError(f"boxes: expected one entry for each of the {len(photos)} photos; got {len(boxes)}")
        return self.analyze(photos, [None] * len(photos) if boxes is None else boxes)

    def _stream(self, photos: Iterator[Any]) -> Iterator[PhotoResult]:
        done = 0
        while some := list(islice(photos, self.batch_size)):
            yield from self.analyze(
                some, [None] * len(some), [f"photo {i}" for i in range(done + 1, done + 1 + len(some))]
            )
            done += len(some)

    def analyze(
        self, photos: Sequence[Any], boxes: Sequence[Any], names: Sequence[str] | None = None
    ) -> list[PhotoResult]:
        """The list form of calling an analyzer; faces of all photos share batches.

        ``names`` stand in messages for photos that are no paths.
        """
        paths = [os.fspath(photo) if isinstance(photo, (str, os.PathLike)) else None for photo in photos]
        numbered = names or ([f"photo {i}" for i in range(1, len(photos) + 1)] if len(photos) > 1 else ["photo"])
        names = [path or name for path, name in zip(paths, numbered, strict=False)]
        images = [as_rgb(photo, name) for photo, name in zip(photos, names, strict=True)]
        prepared = self.prepare(images, boxes, names)
        predictions = self.predict(prepared)
        return [
            PhotoResult(path, photo.size, self.faces(photo, predictions), image)
            for path, photo, image in zip(paths, prepared, images, strict=True)
        ]

    def video(self, source: Source, every: int = 1, *, smooth: bool = False) -> Iterator[VideoFrame]:
        """Every ``every``-th frame of a clip or stream, its faces followed from frame to frame.

        One pass of the network a frame, framed by the last points; the detector looks now and then.

        Args:
            source: a clip's path, a camera's number, an address such as ``rtsp://...`` or ``http://...``, raw frames
                from a pipe (`ifan.faces.streams.RawVideo`), or pictures one after the other, as a call takes them.
            every: 1 for all frames.
            smooth: filter points, boxes and probabilities over time, for what people look at.

        Raises:
            ValueError: a source that cannot be read, has no frames, is damaged or changes its size; a camera or stream
                that breaks off. The frames before have been given by then.
        """
        from ifan.faces.video import video

        return video(self, source, every, smooth)

    def one_pass(self) -> Runner:
        """Runner of one pass of all tasks, made at the first call."""
        if self._one_pass is None:
            precision = self._network.get("precision", "fp32")
            self._one_pass = make_runner(self.model, self._device, iterations=1, precision=precision)
        return self._one_pass

    def prepare(self, images: Sequence[np.ndarray], boxes: Sequence[Any], names: Sequence[str]) -> list[Prepared]:
        """Find and crop the faces of ``images`` (H, W, 3) uint8 RGB; ``boxes`` as for a call. Safe in threads."""
        return self.crop(images, self.detect(images, boxes, names))

    def detect(
        self, images: Sequence[np.ndarray], boxes: Sequence[Any], names: Sequence[str]
    ) -> list[list[Detection] | None]:
        """The faces of each of ``images``, found or given as ``boxes``; ``None`` = the whole image is a crop."""
        given = [
            None if box is None else _faces_in(box, image, name)
            for image, box, name in zip(images, boxes, names, strict=True)
        ]
        searched = [image for image, faces in zip(images, given, strict=True) if faces is None]
        found = iter(self.detector.detect(searched) if self.detector and searched else [])
        return [next(found, None) if faces is None else faces for faces in given]

    def crop(self, images: Sequence[np.ndarray], faces: Sequence[list[Detection] | None]) -> list[Prepared]:
        """The ``faces`` of ``images``, see `detect`, as the network will see them."""
        return [self._prepare(image, found) for image, found in zip(images, faces, strict=True)]

    def _prepare(self, image: np.ndarray, detections: list[Detection] | None) -> Prepared:
        size = self.config.image_size
        height, width = image.shape[:2]
        if detections is None:
            whole = Detection((0.0, 0.0, float(width), float(height)), None)
            faces = [(whole, Crop.from_box(whole.box))]
        else:
            margin = self.margin * (WIDER if self._reframes else 1)
            faces = [(face, crop_of(face, margin)) for face in detections]
        pixels = np.empty((len(faces), 3, size, size), np.uint8)
        for row, (_, crop) in zip(pixels, faces, strict=True):
            row[:] = crop_image(image, crop, size).transpose(2, 0, 1)
        windows = [source_window(image, crop, size) for _, crop in faces] if self._reframes else []
        room = [_area(_wider(crop), image.shape) > ROOM * _area(crop, image.shape) for _, crop in faces]
        return Prepared((width, height), faces, pixels, windows, room)

    def predict(
        self, photos: Iterable[Prepared | None], patience: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """The predictions of each face of ``photos`` in order; of one face, without the first axis of `Predictor`.

        Photos are taken as they are needed, and batches go over photos: all are full but the last, and those that have
        waited while ``patience`` photos came; ``None`` counts as a photo without a face.
        """
        waiting: list[tuple[Any, ...]] = []
        taken = 0
        for photo in photos:
            waiting += photo.rows() if photo else []
            taken += 1
            while len(waiting) >= self.batch_size or (waiting and patience is not None and taken >= patience):
                yield from self._run(waiting[: self.batch_size])
                del waiting[: self.batch_size]
                taken = 0
        for start in range(0, len(waiting), self.batch_size):
            yield from self._run(waiting[start : start + self.batch_size])

    def _run(self, faces: Sequence[tuple[Any, ...]]) -> Iterator[dict[str, np.ndarray]]:
        pixels, *windows = zip(*faces, strict=True)
        predicted = self.predictor(np.stack(pixels), *windows)
        return ({name: value[i] for name, value in predicted.items()} for i in range(len(pixels)))

    def faces(self, photo: Prepared, predictions: Iterator[dict[str, np.ndarray]]) -> tuple[Face, ...]:
        """The faces of ``photo``, in its pixels, from the next of ``predictions``."""
        return tuple(self.face(photo.size, found, crop, next(predictions)) for found, crop in photo.faces)

    def face(self, size: tuple[int, int], found: Detection, crop: Crop, predicted: dict[str, np.ndarray]) -> Face:
        """One face of a photo of ``size``, in its pixels, from the predictions of one row in its ``crop``."""
        region = covered(crop, size[::-1])
        parsing: np.ndarray | None = None
        seen: Crop | None = None
        names: tuple[str, ...] = ()
        landmarks, classes = {}, {}
        for task in self.predictor.tasks:
            value = predicted[task.name]
            if task.kind == "parsing":
                wide = predicted.get(AROUND_KEY)
                if wide is not None and np.isfinite(wide).all():
                    seen = _wider(crop)
                    value = merged(value, crop, wide, seen)
                square = seen or crop
                x0, y0, x1, y1 = region = covered(square, size[::-1])
                inside = replace(square, cx=square.cx - x0, cy=square.cy - y0)
                parsing, names = map_to_image(value, inside, (y1 - y0, x1 - x0)), task.classes
            elif task.kind == "landmarks":
                pixels = points_from_crop(value, crop)
                landmarks = {name: (float(x), float(y)) for name, (x, y) in zip(task.classes, pixels, strict=True)}
            else:
                classes[task.name] = {name: float(p) for name, p in zip(task.classes, value, strict=True)}
        return Face(found.box, crop, region, parsing, names, landmarks, classes, found.score, seen=seen)


def _wider(crop: Crop) -> Crop:
    return replace(crop, side=crop.side * AROUND)


def _area(crop: Crop, shape: Sequence[int]) -> int:
    """Pixels of the rectangle of a photo that a crop touches."""
    x0, y0, x1, y1 = covered(crop, shape)
    return (x1 - x0) * (y1 - y0)


def _detector(detector: Detector | str | None) -> Detector | None:
    if detector == "centerface":
        return CenterFace()
    if detector is not None and not callable(getattr(detector, "detect", None)):
        raise ValueError(
            f'detector: expected "centerface", None or an object with a method detect(images); got {detector!r}'
        )
    return detector  # type: ignore[return-value]


def _faces_in(boxes: Any, image: np.ndarray, name: str) -> list[Detection]:
    """Checked boxes as detections."""
    height, width = image.shape[:2]
    for x0, y0, x1, y1 in (listed := _list_of_boxes(boxes, name)):
        inside = min(x1, width) > max(x0, 0) and min(y1, height) > max(y0, 0)
        sides = x1 - x0, y1 - y0
        if not (inside and min(sides) >= 1 and max(sides) <= 2 * max(width, height)):
            raise ValueError(
                f"{name}: box {(x0, y0, x1, y1)} is not a face in a photo of {width} x {height} pixels; "
                "give x0,y0,x1,y1 with x0 < x1 and y0 < y1"
            )
    return [Detection(box, None) for box in listed]


def _list_of_boxes(boxes: Any, name: str) -> list[Box]:
    """One box or several, maybe none, as a list."""
    try:
        table = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        table = np.full(1, np.nan)
    if table.size == 0:
        return []
    table = table[None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[1] != 4 or not np.isfinite(table).all():
        raise ValueError(f"{name}: expected a box (x0, y0, x1, y1) or a list of boxes in pixels; got {boxes!r}")
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in table.tolist()]
