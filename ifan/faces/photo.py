"""Photos as Python programs hold them, made (H, W, 3) uint8 RGB."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import torch

from ifan.data.images import ImageError, read_image


def as_rgb(photo: Any, name: str) -> np.ndarray:
    """A path, file bytes, array, tensor or PIL image as (H, W, 3) uint8 RGB; ``name`` stands for it in messages.

    Raises `ImageError` (a ``ValueError``) that says what was expected and what came.
    """
    if isinstance(photo, (str, os.PathLike)):
        return read_image(os.fspath(photo))
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return read_image(bytes(photo), name)
    if isinstance(photo, torch.Tensor):
        if photo.dim() != 3 or photo.shape[0] != 3 or photo.dtype != torch.uint8 or photo.numel() == 0:
            got = f"{tuple(photo.shape)} {photo.dtype}"
            raise ImageError(
                f"{name}: expected a (3, H, W) uint8 RGB tensor; got {got}. Give one photo, values 0 to 255."
            )
        return np.ascontiguousarray(photo.detach().cpu().permute(1, 2, 0).numpy())
    if isinstance(photo, np.ndarray):
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or photo.size == 0:
            got = f"{photo.shape} {photo.dtype}"
            raise ImageError(
                f"{name}: expected an (H, W, 3) uint8 RGB array; got {got}. Give one photo, values 0 to 255."
            )
        return np.ascontiguousarray(photo)
    if type(photo).__module__.startswith("PIL."):
        return _from_pil(photo, name)
    raise ImageError(
        f"{name}: expected a path, bytes, numpy array, torch tensor or PIL image; got {type(photo).__name__}"
    )


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
