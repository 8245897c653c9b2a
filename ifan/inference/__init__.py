"""From photos to faces: `load` an analyzer, call it, read or save its results."""

from __future__ import annotations

from ifan.inference.analyzer import FaceAnalyzer, load
from ifan.inference.detect import CenterFace, Detection, Detector
from ifan.inference.framing import FACE_MARGIN
from ifan.inference.result import Face, PhotoResult

__all__ = [
    "FACE_MARGIN",
    "CenterFace",
    "Detection",
    "Detector",
    "Face",
    "FaceAnalyzer",
    "PhotoResult",
    "load",
]
