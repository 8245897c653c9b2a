"""Regions of a followed face's crop set into those of a wider one: hair is wider than a face."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from ifan.crop import Crop
from ifan.faces.tracked_face import TrackedFace
from ifan.predictions import FacePredictions
from ifan.refine import FEATHER, TINY, softmax


def with_surroundings(face: TrackedFace) -> tuple[Crop, FacePredictions]:
    """The wider crop of ``face`` with its predictions there; regions (1, K, 2S, 2S), as logarithms of probabilities.

    A face without surroundings keeps its crop and predictions. Points are those in its own crop.
    """
    if face.around is None:
        return face.crop, face.found
    crop, logits = face.around
    planes = merged(softmax(face.found.parsing_logits[0]), face.crop, softmax(logits), crop)
    return crop, replace(face.found, parsing_logits=logarithms(planes)[None])


def merged(near: np.ndarray, crop: Crop, wide: np.ndarray, wide_crop: Crop) -> np.ndarray:
    """Probabilities ``near`` (K, N, N) in ``crop`` set into those of a wider one, ``wide`` (K, S, S), as finely as they
    are or a little finer: (K, M, M) in ``wide_crop``."""
    size = near.shape[-1]
    side = max(2 * wide.shape[-1], round(size * wide_crop.side / crop.side))
    place = np.arange(size, dtype=np.float32) + 0.5
    edge = np.clip(np.minimum(place, size - place) / (FEATHER * size), 0, 1)
    weight = warped(np.minimum.outer(edge, edge)[None], crop, wide_crop, side, beyond=0)[0]
    planes = []
    for inner, outer in zip(near, wide, strict=True):
        drawn = cv2.resize(outer, (side, side), interpolation=cv2.INTER_LINEAR)
        planes.append(drawn + weight * (warped(inner[None], crop, wide_crop, side)[0] - drawn))
    return np.stack(planes)


def warped(planes: np.ndarray, old: Crop, new: Crop, side: int = 0, beyond: float | None = None) -> np.ndarray:
    """Planes (K, S, S) float32 of one crop as they lie in another, (K, side, side); ``side`` 0 = S.

    Beyond the old crop its border is repeated, or there is the value ``beyond``.
    """
    size = planes.shape[-1]
    side = side or size
    if old == new and side == size:
        return planes
    before, after = (np.vstack([crop.matrix(pixels), (0, 0, 1)]) for crop, pixels in ((old, size), (new, side)))
    matrix = (before @ np.linalg.inv(after))[:2]
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5  # OpenCV puts centres on integers
    border = cv2.BORDER_REPLICATE if beyond is None else cv2.BORDER_CONSTANT
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.stack(
        [
            cv2.warpAffine(plane, matrix, (side, side), flags=flags, borderMode=border, borderValue=beyond or 0.0)
            for plane in planes
        ]
    )


def logarithms(probabilities: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, finite."""
    return np.log(np.maximum(probabilities, TINY))
