"""Helen for parsing (Smith et al., Exemplar-Based Face Parsing, CVPR 2013): eleven soft label maps a photo.

``images/<id>.jpg``, ``labels/<id>/<id>_lbl00.png`` .. ``_lbl10.png`` (8-bit probabilities), and the lists
``exemplars.txt`` (train), ``tuning.txt`` (val), ``testing.txt`` (test) of lines ``number , id``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ifan.config import PARSING_CLASSES
from ifan.crop import box_around
from ifan.data.dataset import DataError, Reader, read_lines
from ifan.data.images import read_image, read_label_image
from ifan.data.labels import HELEN, PARSING
from ifan.data.sample import FaceSample

LISTS = {"train": "exemplars.txt", "val": "tuning.txt", "test": "testing.txt"}
INNER = tuple(PARSING_CLASSES.index(name) for name in ("brow", "eye", "nose", "upper_lip", "inside_mouth", "lower_lip"))
FRAME = 2.2
"""Side of the crop in units of the inner parts' larger extent: the framing of the other datasets."""


class Helen(Reader):
    """Maps of merged classes (both brows, eyes) are added, then the largest wins. The box frames the inner parts."""

    name = "helen"
    classes = PARSING
    layout = "the Helen parsing folder with images, labels, exemplars.txt, tuning.txt and testing.txt"

    def __init__(self, root: Path, split: str, split_file: Path | None = None) -> None:
        super().__init__(root, split, split_file)
        self.require("images", "labels", *(() if split_file else (LISTS[split],)))
        listed = split_file or self.root / LISTS[split]
        self.keys = [line.rpartition(",")[2].strip() for line in read_lines(listed)]
        self.target = np.array([PARSING_CLASSES.index(name) for name in HELEN])
        if not self.keys:
            raise DataError(f"{listed}: the list is empty; restore it from the dataset")

    def __getitem__(self, index: int) -> FaceSample:
        key = self.keys[index]
        image = read_image(self.root / "images" / f"{key}.jpg")
        likely = np.zeros((len(PARSING_CLASSES), *image.shape[:2]), np.uint16)
        for number, target in enumerate(self.target):
            path = self.root / "labels" / key / f"{key}_lbl{number:02d}.png"
            soft = read_label_image(path)
            if soft.shape != image.shape[:2]:
                raise DataError(f"{path}: {soft.shape} pixels, its photo has {image.shape[:2]}; restore the file")
            likely[target] += soft
        parsing = likely.argmax(0).astype(np.uint8)
        y, x = np.isin(parsing, INNER).nonzero()
        box = None
        if x.size:
            box = box_around(np.array([[x.min(), y.min()], [x.max() + 1, y.max() + 1]], float), FRAME)
        return FaceSample(key, image, box, parsing)
