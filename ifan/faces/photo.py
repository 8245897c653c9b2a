"""Photos as Python programs hold them, made (H, W, 3) uint8 RGB."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import numpy as np

from ifan.data.images import ImageError, read_image


def as_rgb(photo: Any, name: str) -> np.ndarray:
    """A path, file bytes, array, tensor or PIL image as (H, W, 3) uint8 RGB; ``name`` stands for it in messages.

    Raises `ImageError` (a ``ValueError``) that says what was expected and what came.
    """
    if isinstance(photo, (str, os.PathLike)):
        return read_image(os.fspath(photo))
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return read_image(bytes(photo), name)
    torch = sys.modules.get("torch")  # who holds a tensor has imported it
    if torch is not None and isinstance(photo, torch.Tensor):
        _check(tuple(photo.shape), str(photo.dtype).removeprefix("torch."), "a (3, H, W) uint8 RGB tensor", name)
        return np.ascontiguousarray(photo.detach().cpu().numpy().transpose(1, 2, 0))
    if isinstance(photo, np.ndarray):
        _check(photo.shape, str(photo.dtype), "an (H, W, 3) uint8 RGB array", name)
        return np.ascontiguousarray(photo)
    if type(photo).__module__.startswith("PIL."):
        return _from_pil(photo, name)
    raise ImageError(
        f"{name}: expected a path, bytes, numpy array, torch tensor or PIL image; got {type(photo).__name__}"
    )


def _check(shape: tuple[int, ...], dtype: str, expected: str, name: str) -> None:
    """Raise `ImageError` unless three uint8 colours are where ``expected`` says."""
    colours = 0 if "(3," in expected else 2
    if len(shape) != 3 or shape[colours] != 3 or dtype != "uint8" or 0 in shape:
        raise ImageError(f"{name}: expected {expected}; got {shape} {dtype}. Give one photo, values 0 to 255.")


def _from_pil(image: Any, name: str) -> np.ndarray:
    """Turned upright, then RGB as it is, other modes as the same picture read from a file would be."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if 0 in upright.size:
        raise ImageError(f"{name}: expected a picture with pixels; got {upright.size}")
    if upright.mode != "RGB":
        buffer = io.BytesIO()
        try:
            upright.save(buffer, "PNG")
            return read_image(buffer.getvalue(), name)
        except OSError:  # a mode that PNG does not have, such as CMYK
            upright = upright.convert("RGB")
    return np.array(upright)
