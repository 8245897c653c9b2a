"""Random changes of a training sample: one crop for the geometry, then changes of the pixels alone.

Everything is drawn from the generator given, so a sample is a pure function of its seed. The geometry is one affine
map, applied by `ifan.crop` to picture, label map and points alike.
"""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from ifan.config import AugmentConfig
from ifan.crop import Crop

EARLIER = AugmentConfig(flip=0.5, shift=0.12, scale=(1.0, 1.8), rotate=20.0)
"""From a closer crop to what the iteration before it may have seen of the face (`ifan.refine`): as much or more, less
upright, not in the middle, perhaps mirrored."""

INNER = AugmentConfig(flip=0.0, shift=0.05, scale=(0.45, 0.9), rotate=10.0)
"""From a wide crop to what the iteration before it saw: the middle of it."""

LUMA = np.array([0.299, 0.587, 0.114])


def augment_crop(crop: Crop, rng: np.random.Generator, config: AugmentConfig) -> Crop:
    """Shift, scale, turn and mirror a crop at random."""
    flip, dx, dy, scale, turn = rng.random(5)
    wide = config.wide > 0 and rng.random() < config.wide
    low, high = (math.log(s) for s in ((config.scale[1], config.widest) if wide else config.scale))
    side = crop.side * math.exp(low + (high - low) * scale)
    return replace(
        crop,
        cx=crop.cx + crop.side * config.shift * (2 * dx - 1),
        cy=crop.cy + crop.side * config.shift * (2 * dy - 1),
        side=side,
        angle_deg=crop.angle_deg + config.rotate * (2 * turn - 1),
        flip=crop.flip != (flip < config.flip),
    )


def augment_pixels(image: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> np.ndarray:
    """Change the pixels of a crop (S, S, 3) uint8 at random; labels stay true."""
    chance = rng.random(6)
    image = _colour(image, rng, config, grey=chance[0] < config.grey)
    if chance[1] < config.low_resolution:
        image = _low_resolution(image, rng)
    if chance[2] < config.blur:
        sigma = image.shape[0] / 64 * rng.uniform(0.4, 1.2)
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if chance[3] < config.noise:
        image = _noise(image, rng)
    if chance[4] < config.erase:
        image = _erase(image, rng)
    return np.asarray(image)


def _colour(image: np.ndarray, rng: np.random.Generator, config: AugmentConfig, grey: bool) -> np.ndarray:
    """Saturation, contrast and brightness as one 3 x 4 matrix on RGB."""
    brightness, contrast, saturation = 1 + rng.uniform(-1, 1, 3) * (
        config.brightness,
        config.contrast,
        config.saturation,
    )
    saturation = 0.0 if grey else saturation
    matrix = np.empty((3, 4))
    matrix[:, :3] = saturation * np.eye(3) + (1 - saturation) * LUMA
    matrix[:, :3] *= contrast * brightness
    mean = float(np.dot(cv2.mean(image)[:3], LUMA))
    matrix[:, 3] = brightness * (1 - contrast) * mean
    return np.asarray(cv2.transform(image, matrix))


def _low_resolution(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrink to between a third and four fifths, then enlarge again."""
    size = image.shape[0]
    small = max(4, round(size * math.exp(rng.uniform(math.log(0.35), math.log(0.8)))))
    shrunk = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
    how = cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(shrunk, (size, size), interpolation=how))


def _noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sigma = np.float32(rng.uniform(2, 12))
    noisy = image + sigma * rng.standard_normal(image.shape, np.float32)
    return np.clip(noisy + np.float32(0.5), 0, 255).astype(np.uint8)


def _erase(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cover a rectangle of 2 to 12 % of the crop with one colour or with noise."""
    size = image.shape[0]
    area, aspect = rng.uniform(0.02, 0.12), math.exp(rng.uniform(-0.7, 0.7))
    width, height = (min(size, max(1, round(size * math.sqrt(a)))) for a in (area * aspect, area / aspect))
    x, y = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
    image = image.copy()
    fill = rng.integers(0, 256, (height, width, 3) if rng.random() < 0.5 else 3, np.uint8)
    image[y : y + height, x : x + width] = fill
    return image
