"""Trust in what the network found of one face, from the network itself: do its points lie on its regions?

The landmark head and the parsing head read different levels of the network, so they seldom agree where there is no face
or something hides it.
"""

from __future__ import annotations

import numpy as np

from ifan.config import POINT_NAMES, NetworkConfig
from ifan.predictions import FacePredictions
from ifan.refine import softmax

REACH = 1 / 32
"""Distance around a point within which its regions count, in sides of the crop."""

_MOUTH = ("upper_lip", "inside_mouth", "lower_lip")
_REGIONS = {
    "left_eye": ("eye", "brow"),
    "right_eye": ("eye", "brow"),
    "nose": ("nose",),
    "left_mouth_corner": _MOUTH,
    "right_mouth_corner": _MOUTH,
}
"""Regions that a point lies on."""


def point_trust(config: NetworkConfig, found: FacePredictions) -> np.ndarray:
    """Trust in each of the five points (`POINT_NAMES`) of the first face of ``found``, (5,) in [0, 1].

    It is the largest probability, near the point, of the regions that it lies on; 0 for a point outside the crop.
    Without parsing, or with other regions, a point inside counts 1.
    """
    assert config.landmarks
    places = found.points[0][:, [config.landmarks.classes.index(name) for name in POINT_NAMES]].T
    inside = np.isfinite(places).all(1) & (np.abs(places) < 0.5).all(1)
    classes = config.parsing.classes if config.parsing else ()
    if not set().union(*_REGIONS.values()) <= set(classes):
        return inside.astype(np.float64)
    logits = found.parsing_logits[0]
    side = logits.shape[-1]
    reach = max(1, round(side * REACH))
    probabilities = softmax(logits)
    trust = np.zeros(len(places))
    for i in np.flatnonzero(inside):
        column, row = ((places[i] + 0.5) * side).astype(int)
        regions = [classes.index(name) for name in _REGIONS[POINT_NAMES[i]]]
        around = np.s_[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
        trust[i] = sum(probabilities[region][around] for region in regions).max()
    return trust
