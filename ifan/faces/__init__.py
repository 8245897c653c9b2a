"""From photos to faces: `load` an analyzer, call it, read or save its results.

Imported on first use: what runs a network on crops needs none of the packages that read and draw photos.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifan.faces.analyzer import FaceAnalyzer, load
    from ifan.faces.detect import CenterFace, Detection, Detector
    from ifan.faces.framing import FACE_MARGIN
    from ifan.faces.result import Face, PhotoResult

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

_HOMES = {
    "FACE_MARGIN": "framing",
    "CenterFace": "detect",
    "Detection": "detect",
    "Detector": "detect",
    "Face": "result",
    "FaceAnalyzer": "analyzer",
    "PhotoResult": "result",
    "load": "analyzer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
