"""Finding faces: one small protocol, and a detector that ships with the package.

The default is CenterFace (Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", 2019): a
heat map of face centres at a quarter of the picture's resolution, with the face's size, the centre's offset and five
points at each of its pixels. The native kernels run it, or OpenCV where they are missing; nothing is downloaded.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

import cv2
import numpy as np

from ifan.engine.centerface import CenterFaceEngine
from ifan.native import cpu_refusal, thread_count

OPENCV = int(cv2.__version__.split(".")[0])

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the photo."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A face: ``box`` (x0, y0, x1, y1) in pixels, ``score`` in [0, 1] (``None`` if nobody judged it), and, from
    detectors that find them, ``points``: (x, y) in pixels of left eye, right eye, nose, left and right corner of the
    mouth, as seen."""

    box: Box
    score: float | None
    points: tuple[tuple[float, float], ...] = ()


class Detector(Protocol):
    """Whatever finds faces; `FaceAnalyzer` takes any object with this method."""

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """The faces in each of ``images``, (H, W, 3) uint8 RGB of any sizes; may be called from several threads."""
        ...


class CenterFace:
    """The default detector.

    Args:
        max_side: larger photos are shrunk until their longer side is this; bounds time and memory.
        min_score: faces less certain than this are left out.
        max_overlap: of two boxes with a larger intersection over union the less certain is left out.

    Raises:
        ValueError: a number out of range.
    """

    STRIDE, MULTIPLE = 4, 32
    OUTPUTS = ("537", "538", "539", "540")
    """Heat map, logarithm of height and width, offset (y, x), points (y, x); in units of `STRIDE` pixels or the box."""

    def __init__(self, max_side: int = 1024, min_score: float = 0.5, max_overlap: float = 0.3) -> None:
        if max_side < self.MULTIPLE or not (0 < min_score < 1 and 0 <= max_overlap <= 1):
            raise ValueError(
                f"CenterFace: expected max_side of at least {self.MULTIPLE}, min_score and max_overlap within 0 and 1; "
                f"got {max_side}, {min_score}, {max_overlap}"
            )
        self.max_side, self.min_score, self.max_overlap = max_side, min_score, max_overlap
        model = (resources.files("ifan") / "assets" / "centerface.onnx").read_bytes()
        self._engine = CenterFaceEngine(model) if cpu_refusal() is None else None
        self._weights = np.frombuffer(model, np.uint8)
        self._own = threading.local()  # a network of OpenCV holds its input: one a thread

    def __repr__(self) -> str:
        return f"CenterFace(max_side={self.max_side}, min_score={self.min_score}, max_overlap={self.max_overlap})"

    def __reduce__(self) -> tuple[Any, ...]:
        return CenterFace, (self.max_side, self.min_score, self.max_overlap)

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """See `Detector`; most certain first. One at a time: on processors batches gain nothing (docs/detector.md)."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> list[Detection]:
        scale = min(1.0, self.max_side / max(image.shape[:2]))
        height, width = (max(1, round(n * scale)) for n in image.shape[:2])
        canvas = np.zeros((3, *(-(-n // self.MULTIPLE) * self.MULTIPLE for n in (height, width))), np.float32)
        small = image if scale == 1 else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        canvas[:, :height, :width] = small.transpose(2, 0, 1)
        return self._decode(self._maps(canvas), scale, image.shape)

    def _maps(self, canvas: np.ndarray) -> Sequence[np.ndarray]:
        if self._engine is not None:
            return self._engine(canvas, thread_count())
        network = self._network(canvas.shape)
        network.setInput(canvas[None])
        return [output[0] for output in network.forward(list(self.OUTPUTS))]

    def _network(self, shape: tuple[int, ...]) -> Any:
        """This thread's network. OpenCV before 5 keeps buffers of the last shape and then finds faces that are not
        there (seen with 4.8 and 4.13): there each shape starts anew."""
        if getattr(self._own, "shape", None) != shape and (OPENCV < 5 or not hasattr(self._own, "network")):
            self._own.network = cv2.dnn.readNetFromONNX(self._weights)
        self._own.shape = shape
        return self._own.network

    def _decode(self, outputs: Sequence[np.ndarray], scale: float, shape: Sequence[int]) -> list[Detection]:
        """Peaks of the heat map of one photo as faces in its pixels, of overlapping ones the most certain."""
        heat, size, offset, points = outputs
        rows, columns = np.nonzero(heat[0] > self.min_score)
        scores = heat[0, rows, columns]
        extent = np.exp(np.minimum(size[:, rows, columns], 10)) * self.STRIDE
        centre = (np.stack([rows, columns]) + 0.5 + offset[:, rows, columns]) * self.STRIDE
        corner = np.maximum(centre - extent / 2, 0)  # the points are relative to the corner within the picture
        places = corner[None] + points[:, rows, columns].reshape(5, 2, -1) * extent[None]
        boxes = np.concatenate([corner, extent]).T[:, [1, 0, 3, 2]]
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), self.min_score, self.max_overlap)
        height, width = shape[:2]
        found = []
        for k in np.asarray(kept, int).ravel():
            x, y, w, h = (boxes[k] / scale).tolist()
            box = (x, y, min(x + w, width), min(y + h, height))
            if box[2] - box[0] >= 1 and box[3] - box[1] >= 1:
                pairs = (places[:, ::-1, k] / scale).tolist()
                found.append(Detection(box, float(scores[k]), tuple((px, py) for px, py in pairs)))
        return found
