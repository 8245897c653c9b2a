"""Face parsing, landmarks and emotion from one network (iFAN, Li et al., ACM MM 2017).

    import ifan

    analyzer = ifan.load()
    result = analyzer("photo.jpg")
    result.save("out")

Everything else is imported on first use. Analysing photos needs no PyTorch; `IFAN`, the network as a PyTorch module,
and the backends of its operations do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ifan.optional import lazy

if TYPE_CHECKING:
    from ifan.faces import FaceAnalyzer, load
    from ifan.network import IFAN
    from ifan.ops import use_backend

__version__ = "0.1.0"
__all__ = ["IFAN", "FaceAnalyzer", "__version__", "load", "use_backend"]

__getattr__ = lazy(
    __name__,
    {"IFAN": "ifan.network", "FaceAnalyzer": "ifan.faces", "load": "ifan.faces", "use_backend": "ifan.ops"},
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
