"""Face parsing, landmarks and emotion from one network (iFAN, Li et al., ACM MM 2017).

    import ifan

    analyzer = ifan.load()
    result = analyzer("photo.jpg")
    result.save("out")

Everything that needs torch is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifan.faces import FaceAnalyzer, load
    from ifan.network import IFAN
    from ifan.ops import use_backend

__version__ = "0.1.0"
__all__ = ["IFAN", "FaceAnalyzer", "__version__", "load", "use_backend"]

_HOMES = {
    "IFAN": "ifan.network",
    "FaceAnalyzer": "ifan.faces",
    "load": "ifan.faces",
    "use_backend": "ifan.ops",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ifan' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
