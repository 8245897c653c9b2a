"""Photos as Python programs hold them, made (H, W, 3) uint8 RGB."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from ifan.data.images import MAX_BYTES, ImageError, read_image


def is_photo(value: Any) -> bool:
    """True if ``value`` is one photo, or nothing that `as_rgb` takes; False if it holds several, as a list does."""
    single = isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview))
    arrays = any(hasattr(value, name) for name in ("__array__", "__array_interface__"))
    return single or arrays or hasattr(value, "read") or not isinstance(value, Iterable)


def as_rgb(photo: Any, name: str) -> np.ndarray:
    """A path, file bytes, open file, array, tensor or PIL image as (H, W, 3) uint8 RGB; ``name`` stands for it in
    messages. Grey becomes RGB, and transparency is left out.

    Raises `ImageError` (a ``ValueError``) that says what was expected and what came.
    """
    if isinstance(photo, (str, os.PathLike)):
        return read_image(os.fspath(photo))
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return read_image(bytes(photo), name)
    if callable(getattr(photo, "read", None)):
        return read_image(_contents(photo, name), name)
    torch = sys.modules.get("torch")  # who holds a tensor has imported it
    if torch is not None and isinstance(photo, torch.Tensor):
        channels_last = photo.detach().cpu().numpy()
        channels_last = channels_last.transpose(1, 2, 0) if channels_last.ndim == 3 else channels_last
        return _from_array(channels_last, f"a (3, H, W) uint8 RGB tensor; got {tuple(photo.shape)}", name)
    if isinstance(photo, np.ndarray):
        return _from_array(photo, f"an (H, W, 3) uint8 RGB array; got {photo.shape}", name)
    if type(photo).__module__.startswith("PIL."):
        return _from_pil(photo, name)
    raise ImageError(
        f"{name}: expected a path, bytes, open file, numpy array, torch tensor or PIL image; got {type(photo).__name__}"
    )


def _contents(file: Any, name: str) -> bytes:
    """All bytes of an open file, from its beginning where it can go back."""
    if callable(getattr(file, "seekable", None)) and file.seekable():
        file.seek(0)
    data = file.read(MAX_BYTES + 1)
    if not isinstance(data, bytes):
        raise ImageError(f"{name}: expected a file of bytes; got {type(data).__name__}; open it with mode 'rb'")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: more than {MAX_BYTES} bytes; shrink the picture first")
    return data


def _from_array(pixels: np.ndarray, expected: str, name: str) -> np.ndarray:
    """Grey (H, W) or (H, W, 1), RGB or RGBA pixels as RGB; ``expected`` says so in a message, with the shape."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ImageError(f"{name}: expected {expected}. Give one photo: RGB, RGBA or grey.")
    if pixels.dtype != np.uint8:
        hint = "Multiply by 255 and convert" if pixels.dtype.kind == "f" and pixels.max() <= 1 else "Convert it"
        raise ImageError(f"{name}: expected {expected} {pixels.dtype}. {hint} to uint8, values 0 to 255.")
    return np.ascontiguousarray(np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[..., :3])


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
