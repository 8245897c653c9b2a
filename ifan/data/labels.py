"""Tables from each dataset's own labels to our classes, and the mirror of each label.

Left and right: MTFL and our point names mean the picture (left = smaller x). CelebAMask-HQ, Helen's maps and LaPa
mean the person (their left eye has the larger x); our parsing classes have no sides, so those pairs merge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ifan.config import EMOTIONS, IGNORE, PARSING_CLASSES, POINT_NAMES, POINT_NAMES_68

Classes = Mapping[str, tuple[str, ...]]
PARSING: Classes = {"parsing": PARSING_CLASSES}
LANDMARKS: Classes = {"landmarks": POINT_NAMES}
LANDMARKS_68: Classes = {"landmarks": (*POINT_NAMES, *(n for n in POINT_NAMES_68 if n not in POINT_NAMES))}
"""The five points, then those of 300-W's 68 that are not among them."""
EMOTION: Classes = {"emotion": EMOTIONS}

CELEBAMASK: dict[str, str | None] = {
    # In the order of the 19 ids; the names are those of the authors' one-PNG-a-part files. None = ignored.
    "background": "background",
    "skin": "skin",
    "nose": "nose",
    "eye_g": None,
    "l_eye": "eye",
    "r_eye": "eye",
    "l_brow": "brow",
    "r_brow": "brow",
    "l_ear": "background",
    "r_ear": "background",
    "mouth": "inside_mouth",
    "u_lip": "upper_lip",
    "l_lip": "lower_lip",
    "hair": "hair",
    "hat": "background",
    "ear_r": "background",
    "neck_l": "background",
    "neck": "background",
    "cloth": "background",
}

HELEN: tuple[str, ...] = (
    # Class of each of the eleven soft maps lbl00 .. lbl10.
    "background",
    "skin",
    "brow",
    "brow",
    "eye",
    "eye",
    "nose",
    "upper_lip",
    "inside_mouth",
    "lower_lip",
    "hair",
)

LAPA = HELEN
"""LaPa's ids 0..10 name the same eleven parts in the same order."""

FER2013: tuple[str, ...] = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
RAF_DB: dict[str, str | None] = {
    "1": "surprise",
    "2": "fear",
    "3": "disgust",
    "4": "happy",
    "5": "sad",
    "6": "angry",
    "7": "neutral",
}
AFFECTNET: dict[str, str | None] = {
    # 7 contempt, 8 none, 9 uncertain, 10 no face: not among our classes, left out.
    "0": "neutral",
    "1": "happy",
    "2": "sad",
    "3": "surprise",
    "4": "fear",
    "5": "disgust",
    "6": "angry",
    "7": None,
    "8": None,
    "9": None,
    "10": None,
}
EMOTION_NAMES: dict[str, str | None] = {
    # Folder names in use, lower case.
    **{name: name for name in EMOTIONS},
    "anger": "angry",
    "disgusted": "disgust",
    "fearful": "fear",
    "happiness": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "contempt": None,
}

MTFL_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    # The codes 1, 2, .. of the last four columns, in column order.
    "gender": ("male", "female"),
    "smile": ("smiling", "not_smiling"),
    "glasses": ("glasses", "no_glasses"),
    "pose": ("left_profile", "left", "frontal", "right", "right_profile"),
}

POINTS_68: tuple[tuple[int, ...], ...] = (
    # 0-based indices of the 68-point markup whose mean is each of our points: eye outlines, nose tip, mouth corners.
    (36, 37, 38, 39, 40, 41),
    (42, 43, 44, 45, 46, 47),
    (30,),
    (48,),
    (54,),
)


POINTS_106: tuple[tuple[int, ...], ...] = (
    # The same in LaPa's 106-point markup.
    tuple(range(66, 74)),
    tuple(range(75, 83)),
    (54,),
    (84,),
    (90,),
)

POINTS_194: tuple[tuple[int, ...], ...] = (
    # The same in Helen's 194-point markup, which has no nose tip: the person's right eye lies left in the picture, the
    # outer lips begin (58) and turn (72) at the corners.
    tuple(range(114, 134)),
    tuple(range(134, 154)),
    (),
    (58,),
    (72,),
)


def five_points(points: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """(5, 2) float32: the mean of each group of a markup's points (n, 2), NaN for an empty group.

    Of each left and right pair the one with the smaller x comes first, as our names say.
    """
    means = [points[list(group)].mean(0) if group else np.full(2, np.nan) for group in groups]
    for a, b in ((0, 1), (3, 4)):
        if means[a][0] > means[b][0]:
            means[a], means[b] = means[b], means[a]
    return np.asarray(means, np.float32)


def named_points(points: np.ndarray) -> np.ndarray:
    """(70, 2) float32, the points of `LANDMARKS_68`, from 300-W's 68: the eyes are the means of their outlines."""
    found = dict(zip(POINT_NAMES_68, points, strict=True))
    found |= zip(POINT_NAMES, five_points(points, POINTS_68), strict=True)
    return np.array([found[name] for name in LANDMARKS_68["landmarks"]], np.float32)


def parsing_table(source: Sequence[str | None] | Mapping[str, str | None]) -> np.ndarray:
    """(256,) uint8: a dataset's parsing id -> index in PARSING_CLASSES, IGNORE for None and unknown ids."""
    names = list(source.values()) if isinstance(source, Mapping) else list(source)
    table = np.full(256, IGNORE, np.uint8)
    for i, name in enumerate(names):
        if name is not None:
            table[i] = PARSING_CLASSES.index(name)
    return table
