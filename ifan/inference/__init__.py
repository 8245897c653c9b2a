"""From photos to faces: `load` an analyzer, call it, read or save its results."""

from __future__ import annotations

from ifan.inference.analyzer import FACE_MARGIN, FaceAnalyzer, load
from ifan.inference.result import Face, PhotoResult

__all__ = ["FACE_MARGIN", "Face", "FaceAnalyzer", "PhotoResult", "load"]
