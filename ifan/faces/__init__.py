"""From photos to faces: `load` an analyzer, call it, read or save its results.

Imported on first use: what runs a network on crops needs none of the packages that read and draw photos.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ifan.optional import lazy

if TYPE_CHECKING:
    from ifan.faces.analyzer import FaceAnalyzer, load
    from ifan.faces.detect import CenterFace, Detection, Detector
    from ifan.faces.face import Face
    from ifan.faces.framing import FACE_MARGIN
    from ifan.faces.result import PhotoResult

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

__getattr__ = lazy(
    __name__,
    {
        "FACE_MARGIN": "ifan.faces.framing",
        "CenterFace": "ifan.faces.detect",
        "Detection": "ifan.faces.detect",
        "Detector": "ifan.faces.detect",
        "Face": "ifan.faces.face",
        "FaceAnalyzer": "ifan.faces.analyzer",
        "PhotoResult": "ifan.faces.result",
        "load": "ifan.faces.analyzer",
    },
)
