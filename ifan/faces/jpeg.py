"""Pictures for people as JPEG files."""

from __future__ import annotations

import cv2
import numpy as np

QUALITY = 90


def encode_jpeg(image: np.ndarray, quality: int = QUALITY) -> bytes:
    """An (H, W, 3) uint8 RGB picture as a JPEG file; colours keep their full resolution, as thin lines need it."""
    full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
