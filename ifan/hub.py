"""``from_pretrained`` and ``save_pretrained`` from huggingface_hub, where it is installed: networks run without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from huggingface_hub import PyTorchModelHubMixin
else:
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError:

        class PyTorchModelHubMixin:
            """Says what is missing when a model is to be loaded or saved."""

            def __init_subclass__(cls, **_: Any) -> None:
                super().__init_subclass__()

            @classmethod
            def from_pretrained(cls, *_: Any, **__: Any) -> NoReturn:
                raise ImportError(f"{cls.__name__}.from_pretrained needs huggingface_hub: pip install huggingface_hub")

            def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
                raise ImportError("save_pretrained needs huggingface_hub: pip install huggingface_hub")


__all__ = ["PyTorchModelHubMixin"]
